//! The pages under `docs/`: each is in the book, every link leads somewhere, every command is one of the program's, and the
//! recipes and commands of `docs/start.md` and `docs/cookbook.md` run, on small models and few steps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dynalora_tests::chat::{TEMPLATE, chatty};
use dynalora_tests::pictures::write_stripes;
use dynalora_tests::{Scene, dynalora, fixture, said};
use markdown::mdast::Node;
use markdown::{ParseOptions, to_mdast};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages of the book, by name.
fn pages() -> BTreeMap<String, String> {
    let folder = repository().join("docs");
    let names = std::fs::read_dir(&folder).expect("docs/");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("a plain name"));
    names
        .filter(|name| name.ends_with(".md"))
        .map(|name| {
            let text = std::fs::read_to_string(folder.join(&name)).expect("a page");
            (name, text)
        })
        .collect()
}

fn walk(node: &Node, meet: &mut impl FnMut(&Node)) {
    meet(node);
    for child in node.children().into_iter().flatten() {
        walk(child, meet);
    }
}

fn parsed(text: &str) -> Node {
    to_mdast(text, &ParseOptions::gfm()).expect("Markdown has no errors")
}

/// Where a page's links lead.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    walk(&parsed(text), &mut |node| match node {
        Node::Link(link) => links.push(link.url.clone()),
        Node::Image(image) => links.push(image.url.clone()),
        _ => {}
    });
    links
}

/// A page's blocks of code: what they say they are, and their text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    walk(&parsed(text), &mut |node| {
        if let Node::Code(code) = node {
            let language = code.lang.clone().unwrap_or_default();
            blocks.push((language, code.value.clone()));
        }
    });
    blocks
}

/// The names that a page's headings have in links, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    walk(&parsed(text), &mut |node| {
        if let Node::Heading(heading) = node {
            let mut words = String::new();
            for child in &heading.children {
                walk(child, &mut |node| match node {
                    Node::Text(text) => words.push_str(&text.value),
                    Node::InlineCode(code) => words.push_str(&code.value),
                    _ => {}
                });
            }
            let words = words.to_lowercase();
            let kept = words.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                c => c.is_alphanumeric().then_some(c),
            });
            anchors.insert(kept.collect());
        }
    });
    anchors
}

#[test]
fn every_page_is_in_the_book_once() {
    let pages = pages();
    let mut listed = links(&pages["SUMMARY.md"]);
    listed.sort();
    let mut there: Vec<&String> = pages.keys().filter(|name| *name != "SUMMARY.md").collect();
    there.sort();
    assert_eq!(listed.iter().collect::<Vec<_>>(), there);
}

#[test]
fn every_link_leads_somewhere() {
    let mut files = vec![
        "README.md".to_owned(),
        "CONTRIBUTING.md".to_owned(),
        "tests/oracle/README.md".to_owned(),
        "configs/methods/README.md".to_owned(),
        "configs/paper/README.md".to_owned(),
    ];
    files.extend(pages().into_keys().map(|name| format!("docs/{name}")));
    let mut broken = Vec::new();
    let mut followed = 0;
    for file in files {
        let path = repository().join(&file);
        let text = std::fs::read_to_string(&path).expect("a page");
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (to, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match to {
                "" => path.clone(),
                to => path.with_file_name("").join(to),
            };
            let is_anchor = || {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                anchors(&text).contains(anchor)
            };
            if !target.exists() || (!anchor.is_empty() && !is_anchor()) {
                broken.push(format!("{file}: {link}"));
            }
            followed += 1;
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 100, "{followed}");
}

/// The program's command lines in a block, without what follows a `#`; lines that end in `\\` go on.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("$ ");
        let rest = line.strip_prefix("target/release/").unwrap_or(line);
        rest.strip_prefix("dynalora ").map(str::to_owned)
    });
    lines
        .map(|line| shlex::split(&line).unwrap_or_else(|| panic!("no command line: {line}")))
        .collect()
}

/// Whether a line says how a command is written, rather than being one: `[--jobs N]`, `RUN…`, `A | B`.
fn is_usage(words: &[String]) -> bool {
    let usage = |word: &String| word.contains(['[', '…', '|', '>', '<', '$']) || word == "...";
    words.iter().any(usage)
}

#[test]
fn every_command_is_one_of_the_programs() {
    let mut texts = pages();
    for name in [
        "README.md",
        "CONTRIBUTING.md",
        "configs/methods/README.md",
        "configs/paper/README.md",
    ] {
        let text = std::fs::read_to_string(repository().join(name)).expect("a page");
        texts.insert(name.to_owned(), text);
    }
    let mut tried = 0;
    for (page, text) in texts {
        for (_, block) in blocks(&text) {
            for mut words in commands(&block) {
                if is_usage(&words) {
                    continue;
                }
                // What is wrong with flags and values is said before help is given.
                let shown = words.join(" ");
                words.push("--help".to_owned());
                let output = dynalora()
                    .args(&words)
                    .output()
                    .expect("the program starts");
                assert!(
                    output.status.success(),
                    "{page}: {shown}\n{}",
                    said(&output)
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried}");
}

/// A folder with the files that the pages speak of.
fn workplace() -> Scene {
    let scene = Scene::new();
    let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    let lines: Vec<String> = sentences
        .lines()
        .map(|line| line.replace('"', "'"))
        .collect();
    let folder = |name: &str| std::fs::create_dir_all(scene.path(name)).expect("a folder");
    for (split, lines) in [("train", &lines[..48]), ("dev", &lines[48..])] {
        let rows = |row: &dyn Fn(usize, &String) -> String| -> String {
            lines
                .iter()
                .enumerate()
                .map(|(n, line)| row(n, line))
                .collect()
        };
        let label = |line: &String| usize::from(line.contains(','));
        scene.write(
            &format!("{split}.csv"),
            &format!(
                "text,label\n{}",
                rows(&|_, line| format!("\"{line}\",{}\n", label(line)))
            ),
        );
        let relations = ["contradiction", "neutral", "entailment"];
        scene.write(
            &format!("pairs-{split}.csv"),
            &format!(
                "premise,hypothesis,relation\n{}",
                rows(&|n, line| format!("\"{line}\",\"{line}\",{}\n", relations[n % 3]))
            ),
        );
        scene.write(
            &format!("names-{split}.conll"),
            &rows(&|n, line| {
                let mut words = line.split_whitespace();
                let first = words.next().unwrap_or_default();
                let tag = ["B-PER", "B-LOC"][n % 2];
                let rest: String = words.map(|word| format!("{word} O\n")).collect();
                format!("{first} {tag}\n{rest}\n")
            }),
        );
        scene.write(
            &format!("chat-{split}.jsonl"),
            &rows(&|_, line| {
                let messages = serde_json::json!({"messages": [
                    {"role": "user", "content": "Say it."},
                    {"role": "assistant", "content": line},
                ]});
                format!("{messages}\n")
            }),
        );
        let images = ["validation", "train"][usize::from(split == "train")];
        write_stripes(&scene.path(&format!("images/{images}")), 4, 0);
        // CoLA's columns, as published: source, label, mark, sentence.
        folder("glue/cola");
        scene.write(
            &format!("glue/cola/{split}.tsv"),
            &rows(&|_, line| format!("x\t{}\t\t{line}\n", label(line))),
        );
    }
    scene
}

/// Runs a page from top to bottom: its TOML is written to the file that the first line names, its commands are run. `small`
/// says what is set where a recipe is trained.
fn run_page(name: &str, small: impl Fn(&Scene, &str) -> Vec<String>) -> usize {
    let scene = workplace();
    let mut ran = 0;
    for (language, block) in blocks(&pages()[name]) {
        match language.as_str() {
            "toml" => {
                let first = block.lines().next().unwrap_or_default();
                let file = first.strip_prefix("# ").expect("a file's name comes first");
                scene.write(file, &block);
            }
            "sh" => {
                for words in commands(&block) {
                    let recipe = words.iter().find(|word| word.ends_with(".toml")).cloned();
                    let sets = match (words[0].as_str(), recipe) {
                        ("train" | "plan" | "sweep" | "evaluate" | "report", Some(recipe)) => {
                            small(&scene, &recipe)
                        }
                        // It fetches a model, and has a test of its own.
                        ("quickstart", _) => continue,
                        _ => Vec::new(),
                    };
                    // A shell puts the runs in place of a star.
                    let runs = |word: &String| -> Vec<String> {
                        let Some(folder) = word.strip_suffix("/*") else {
                            return vec![word.clone()];
                        };
                        let entries = std::fs::read_dir(scene.path(folder)).expect("runs");
                        let names = entries.map(|entry| entry.expect("an entry").path());
                        let hidden = |path: &Path| {
                            path.file_name()
                                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
                        };
                        let names = names.filter(|path| path.is_dir() && !hidden(path));
                        names.map(|path| path.display().to_string()).collect()
                    };
                    let mut words: Vec<String> = words.iter().flat_map(runs).collect();
                    words.extend(sets);
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    scene.ok(&words);
                    ran += 1;
                }
            }
            _ => {}
        }
    }
    ran
}

/// What makes a recipe small: a `--set` of its model, and more of them.
fn small(model: &str, more: &[&str]) -> Vec<String> {
    let sets = ["device=cpu", "threads=1", "train.steps=4", model];
    let sets = sets.iter().chain(more);
    sets.flat_map(|set| ["--set".to_owned(), (*set).to_owned()])
        .collect()
}

/// A fixture as a recipe's model.
fn tiny(model: &str) -> String {
    format!("model.name={}", fixture(model).display())
}

#[test]
fn the_cookbook_runs() {
    let ran = run_page("cookbook.md", |scene, recipe| match recipe {
        "chat.toml" => small(
            &chatty(scene, "tiny-llama", TEMPLATE),
            &["model.max_length=64"],
        ),
        "images.toml" => small(&tiny("tiny-vit"), &[]),
        "ranks.toml" => small(
            &tiny("tiny-bert"),
            &["model.max_length=64", "allocation.schedule.every=2"],
        ),
        "periods.toml" => {
            let mut sets = small(&tiny("tiny-bert"), &["model.max_length=64"]);
            sets.extend(["--seeds".to_owned(), "0..1".to_owned()]);
            sets
        }
        _ => small(&tiny("tiny-bert"), &["model.max_length=64"]),
    });
    assert!(ran > 15, "{ran}");
}

#[test]
fn the_start_runs() {
    let ran = run_page("start.md", |_, _| {
        small(&tiny("tiny-bert"), &["model.max_length=64"])
    });
    assert!(ran > 6, "{ran}");
}
