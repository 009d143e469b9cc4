//! The arrows that CONTRIBUTING promises, checked against the imports there really are.
//!
//! A room is a top-level module of the host. Every path into another room counts, whether in a `use` or
//! in the middle of a line; code that is only built for tests does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each room may read. Rooms stand in the order of the house, so that every arrow that is not
/// listed sideways points up the table.
const ARROWS: &[(&str, &[&str])] = &[
    // What every room may read.
    ("error", &[]),
    ("number", &[]),
    ("file", &["error"]),
    ("cache", &["error"]),
    ("yaml", &[]),
    ("hub", &["error"]),
    ("recipe", &["error"]),
    ("metrics", &["recipe"]),
    ("kernel", &[]),
    ("device", &["recipe", "kernel"]),
    // Plugins as libraries: known to `train`, which loads them, and to `cli`, which lists them.
    ("plugin", &["recipe"]),
    ("adapter", &["recipe", "kernel"]),
    // Through the traits of the plugin API alone: not a word of `plugin`.
    ("allocation", &["recipe"]),
    ("run", &["recipe"]),
    ("model", &["hub", "recipe", "kernel", "adapter"]),
    // Sideways: a model's folder holds the tokenizer.
    ("data", &["hub", "recipe", "metrics", "model"]),
    // Sideways: an adapter's file names tensors as its model does.
    ("export", &["recipe", "kernel", "adapter", "model"]),
    (
        "train",
        &[
            "recipe",
            "metrics",
            "kernel",
            "device",
            "plugin",
            "adapter",
            "allocation",
            "run",
            "model",
            "data",
            "export",
        ],
    ),
    // A trained adapter opened again, for `cli` alone.
    (
        "trained",
        &[
            "recipe", "metrics", "kernel", "adapter", "run", "model", "data", "export", "train",
        ],
    ),
    ("report", &["recipe", "metrics", "run"]),
    // Sideways: its file names the report's columns, and its runs stop as a training does.
    ("sweep", &["recipe", "run", "train", "report"]),
    // It stops as a training does.
    ("watch", &["recipe", "run", "train"]),
    (
        "cli",
        &[
            "recipe",
            "metrics",
            "kernel",
            "device",
            "plugin",
            "adapter",
            "allocation",
            "run",
            "model",
            "data",
            "export",
            "train",
            "trained",
            "report",
            "sweep",
            "watch",
        ],
    ),
];

/// What every room may read that is not one of them.
const BASE: &[&str] = &["error", "number", "file", "cache", "yaml"];

#[test]
fn imports_point_the_way_that_is_promised() {
    let arrows = arrows(&sources());
    let wrong: Vec<String> = arrows
        .iter()
        .filter(|((from, to), _)| !allowed(from, to))
        .map(|((from, to), places)| format!("{from} → {to}: {}", places.join(", ")))
        .collect();
    assert!(
        wrong.is_empty(),
        "imports that point the wrong way (see CONTRIBUTING.md, \"The house\"):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_room_has_its_place_and_none_reads_itself_through_others() {
    let rooms: BTreeSet<String> = sources().into_iter().map(|(room, ..)| room).collect();
    let placed: BTreeSet<String> = ARROWS.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(
        rooms, placed,
        "rooms of host/src, and those of the table above"
    );
    for (index, (room, reads)) in ARROWS.iter().enumerate() {
        for read in *reads {
            let at = ARROWS.iter().position(|(other, _)| other == read);
            assert!(
                at.is_some_and(|at| at < index),
                "{room} → {read} would close a circle: {read} must stand above {room}"
            );
        }
    }
}

/// The test itself: what it counts as an import, and what not.
#[test]
fn what_counts_as_an_import() {
    let text = r##"
        //! Words on crate::train do not count.
        use crate::{adapter::{Pass, select}, error::Error};
        use super::super::model as m;
        pub(in crate::data) fn f() -> crate::run::Run { "crate::report" }
        // crate::cli
        /* crate::plugin */
        const RAW: &str = r#"crate::kernel "quoted""#;
        const QUOTE: char = '"';
        fn g<'a>(x: &'a str) { $crate::device::choose(x) }
        #[cfg(test)]
        mod tests { use crate::train::Trained; mod deep { fn f() {} } }
        #[cfg(test)]
        use crate::trained::Trained;
        fn h() { crate::metrics::compute() }
    "##;
    let found: BTreeSet<String> = imports(text, &["data", "table"])
        .into_iter()
        .map(|(_, room)| room)
        .collect();
    let expected = [
        "adapter", "data", "device", "error", "metrics", "model", "run",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

fn allowed(from: &str, to: &str) -> bool {
    let listed = ARROWS
        .iter()
        .any(|(room, reads)| *room == from && reads.contains(&to));
    let for_all = BASE.contains(&to) && !BASE.contains(&from);
    // The recipe is plain data: errors are all that it may read.
    from == to || listed || (for_all && from != "recipe")
}

/// Every source file of the host that is not only for tests: its room, its module path and its place.
fn sources() -> Vec<(String, Vec<String>, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src");
    let mut found = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the host's sources") {
            let path = entry.expect("an entry").path();
            let relative = path.strip_prefix(&root).expect("a path below the root");
            let mut module: Vec<String> = relative
                .with_extension("")
                .components()
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            // The crate's own two entries belong to no room.
            let entry = ["lib.rs", "main.rs"].map(Path::new).contains(&relative);
            let tests = module.iter().any(|part| part == "tests");
            if entry || tests || path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            module.pop_if(|last| last == "mod");
            found.push((module[0].clone(), module, path));
        }
    }
    assert!(
        found.len() > 50,
        "the host's sources are not where they were"
    );
    found
}

/// Which room reads which, with the places where it does.
fn arrows(sources: &[(String, Vec<String>, PathBuf)]) -> BTreeMap<(String, String), Vec<String>> {
    let mut arrows = BTreeMap::<_, Vec<String>>::new();
    for (room, module, path) in sources {
        let text = std::fs::read_to_string(path).expect("a source file");
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        for (line, to) in imports(&text, &module) {
            let place = format!("{}:{line}", module.join("/"));
            arrows.entry((room.clone(), to)).or_default().push(place);
        }
    }
    arrows
}

/// The rooms that the paths in `text` lead to, each with its line. `module` is where the text stands.
fn imports(text: &str, module: &[&str]) -> Vec<(usize, String)> {
    let text = without_tests(&code(text));
    let mut found = Vec::new();
    for (at, _) in text.match_indices("::") {
        let start = text[..at]
            .rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .map_or(0, |before| {
                before + text[before..].chars().next().map_or(1, char::len_utf8)
            });
        let head = &text[start..at];
        // Taken once, at the first `::` after the words that lead out of the module.
        let ups = head.split("::").take_while(|word| *word == "super").count();
        let words = head.split("::").count();
        let line = text[..at].matches('\n').count() + 1;
        let rest = &text[at + 2..];
        let mut to = |name: &str| {
            // A lower-case name is a module; `crate::Thing` would be one of the crate's root.
            if !name.is_empty() && name != "super" && name != "self" {
                found.push((line, name.to_owned()));
            }
        };
        if head == "crate" {
            heads(rest).into_iter().for_each(&mut to);
        } else if ups == words && ups >= module.len() {
            assert_eq!(ups, module.len(), "line {line}: more `super` than modules");
            heads(rest).into_iter().for_each(&mut to);
        } else if ups == words && ups > 0 {
            to(module[0]);
        }
    }
    found
}

/// The first words of what follows `crate::`: one, or one for each branch of `{…}`.
fn heads(rest: &str) -> Vec<&str> {
    let word = |text: &str| {
        text.find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(text.len())
    };
    let Some(inside) = rest.strip_prefix('{') else {
        return vec![&rest[..word(rest)]];
    };
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let part = inside[start..at].trim();
                heads.push(&part[..word(part)]);
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

/// `text` with comments and the insides of strings and characters blanked out, line by line.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest, &out) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |end| open + end + close.len())
        } else if c == '\'' {
            // A lifetime has no second quote after one character.
            let inside = &rest[1..];
            match inside.strip_prefix('\\') {
                Some(escape) => escape
                    .get(1..)
                    .and_then(|after| after.find('\''))
                    .map_or(1, |end| end + 4),
                None => {
                    let first = inside.chars().next().map_or(0, char::len_utf8);
                    if inside[first..].starts_with('\'') {
                        first + 2
                    } else {
                        0
                    }
                }
            }
        } else {
            0
        };
        if skip > 0 {
            out.extend(rest[..skip].chars().filter(|c| *c == '\n'));
            out.push(' ');
            rest = &rest[skip..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// How many `#` a raw string that begins here has.
fn raw_string(rest: &str, before: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !before.ends_with('b') {
        return None;
    }
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// `text` without the items that stand behind `#[cfg(test)]`, their lines kept.
fn without_tests(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let mut depth = 0;
        let end = item
            .char_indices()
            .find(|(_, c)| match c {
                '{' => {
                    depth += 1;
                    false
                }
                '}' => {
                    depth -= 1;
                    depth == 0
                }
                ';' => depth == 0,
                _ => false,
            })
            .map_or(item.len(), |(end, c)| end + c.len_utf8());
        // `use a::{b};` ends with its semicolon, not with its brace.
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}
