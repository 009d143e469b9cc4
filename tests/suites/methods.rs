//! The recipes of published methods and the command that runs them, on a tiny model; and plugins in Python, in runs.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dynalora_tests::{Scene, fixture, package, skip};
use serde_json::Value;

/// The folder of the recipes.
fn methods() -> PathBuf {
    package().join("../configs/methods")
}

/// Every recipe there, by its name.
fn arms() -> Vec<String> {
    let entries = std::fs::read_dir(methods()).expect("the folder is there");
    let mut arms: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8");
            Some(name.strip_suffix(".toml")?.to_owned())
        })
        .collect();
    arms.sort();
    arms
}

/// A folder in the scene with pairs of sentences in the form of STS-B.
fn pairs(scene: &Scene) -> PathBuf {
    let text = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    let sentences: Vec<&str> = text.lines().collect();
    let folder = scene.path("stsb");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, rows) in [("train.csv", 0..200), ("dev.csv", 200..230)] {
        let mut lines = String::new();
        for row in rows {
            let (one, other) = (row % sentences.len(), row * 7 % sentences.len());
            let score = (row % 11) as f64 / 2.0;
            let (one, other) = (sentences[one], sentences[other]);
            writeln!(
                lines,
                "main\tmade\t2012\t{row:04}\t{score:.3}\t{one}\t{other}"
            )
            .expect("a string");
        }
        std::fs::write(folder.join(name), lines).expect("a file");
    }
    folder
}

/// What makes a method's recipe one of a tiny model of 12 linear layers, in two layers.
fn tiny(scene: &Scene, arm: &str) -> Vec<String> {
    let mut sets = vec![
        format!("model.name={}", fixture("tiny-bert").display()),
        format!("data.dir={}", pairs(scene).display()),
        "model.max_length=32".to_owned(),
        "train.batch_size=4".to_owned(),
        "train.steps=40".to_owned(),
        "device=cpu".to_owned(),
        "threads=1".to_owned(),
    ];
    let recipe = std::fs::read_to_string(methods().join(format!("{arm}.toml"))).expect("a recipe");
    for (line, set) in [
        ("k = 12", "allocator.k=6"),
        ("initial_k = 12", "allocation.initial_k=6"),
        ("gamma = 2", "allocator.gamma=1"),
        ("k = 2\norder", "allocator.k=1"),
        ("rank = 4\nb", "allocator.tfinal=0"),
    ] {
        if recipe.contains(&format!("\n{line}")) {
            sets.push(set.to_owned());
        }
    }
    sets
}

fn records(run: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join(file)).expect("a run's log");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Trains a method's recipe on the tiny model, whole.
fn train(scene: &Scene, arm: &str) -> PathBuf {
    let run = scene.path(arm);
    let recipe = methods().join(format!("{arm}.toml"));
    let mut arguments = vec![
        "train".to_owned(),
        recipe.display().to_string(),
        "--quiet".to_owned(),
    ];
    let mut sets = tiny(scene, arm);
    sets.push(format!("output={}", run.display()));
    for set in sets {
        arguments.extend(["--set".to_owned(), set]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = scene.run(&arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arm} failed:\n{said}");
    run
}

/// The choices of a run, that before the first step included; of the two of step 0 under `initial = "allocator"` the
/// allocator's.
fn choices(run: &Path) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for record in records(run, "allocations.jsonl") {
        choices.retain(|other| other["step"] != record["step"]);
        choices.push(record);
    }
    choices
}

/// The flags of each.
fn masks(run: &Path) -> Vec<Vec<bool>> {
    let flags = |record: &Value| -> Vec<bool> {
        let flags = record["active"].as_array().expect("flags").iter();
        flags.map(|flag| flag.as_bool().expect("a flag")).collect()
    };
    choices(run).iter().map(flags).collect()
}

#[test]
fn every_method_trains() {
    let arms = arms();
    assert!(arms.len() >= 20, "{arms:?}");
    let scene = Scene::new();
    for arm in &arms {
        let run = train(&scene, arm);
        let masks = masks(&run);
        // What each is about, as far as a mask shows it.
        let changes = masks.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let active = |mask: &Vec<bool>| mask.iter().filter(|active| **active).count();
        match arm.as_str() {
            "lora" | "lora-r3" | "lora-r4" => assert_eq!(masks, [vec![true; 12]]),
            "kept" => assert_eq!((masks.len(), active(&masks[0])), (1, 6)),
            "ist-kept" => assert_eq!((masks.len(), active(&masks[0])), (1, 6)),
            "uniform" | "multinomial" | "discounted" => {
                assert!(
                    changes > 0 && masks.iter().all(|mask| active(mask) == 6),
                    "{arm}"
                );
            }
            "activation" | "gradient" | "fisher" => {
                assert!(
                    masks.len() == 4 && masks.iter().all(|mask| active(mask) == 6),
                    "{arm}"
                );
            }
            "sensitivity" | "ablation" => {
                assert_eq!(active(&masks[0]), 12, "{arm}");
                assert!(masks[1..].iter().all(|mask| active(mask) == 6), "{arm}");
            }
            // Of two layers in turn.
            "cyclic" => assert_eq!((masks.len(), changes), (4, 3)),
            "lisa" | "lisa-score" => {
                let whole =
                    |mask: &Vec<bool>| mask[..6] == [!mask[6]; 6] && mask[6..] == [mask[6]; 6];
                assert!(masks.iter().all(whole), "{arm}: {masks:?}");
            }
            "ist" | "ist-uniform" => {
                assert_eq!(masks.len(), 40, "{arm}");
                assert!(
                    masks.iter().all(|mask| active(mask) == 6) && changes > 5,
                    "{arm}"
                );
            }
            "drop" => assert_eq!((masks.len(), active(&masks[1])), (2, 12)),
            "drop-alone" => assert!(masks.len() == 2 && active(&masks[1]) < 12),
            "threshold" => assert!(
                masks
                    .iter()
                    .skip(1)
                    .all(|mask| (1..12).contains(&active(mask)))
            ),
            "grow" | "rank-budget" => assert!(masks.len() > 2, "{arm}"),
            other => panic!("{other} is not looked at"),
        }
    }
}

#[test]
fn ranks_grow_in_some_modules_and_fall_in_others_at_one_sum() {
    let scene = Scene::new();
    let run = train(&scene, "grow");
    let ranks: Vec<Vec<u64>> = choices(&run)
        .iter()
        .map(|record| {
            let ranks = record["ranks"].as_array().expect("ranks");
            ranks
                .iter()
                .map(|rank| rank.as_u64().expect("a rank"))
                .collect()
        })
        .collect();
    assert_eq!(ranks[0], [4; 12]);
    assert!(
        ranks.iter().all(|ranks| ranks.iter().sum::<u64>() == 48),
        "{ranks:?}"
    );
    let last = ranks.last().expect("some");
    assert!(
        last.iter().any(|rank| *rank > 4) && last.iter().any(|rank| *rank < 4),
        "{ranks:?}"
    );
}

#[test]
fn trials_are_recorded_with_what_they_gave() {
    let scene = Scene::new();
    let run = train(&scene, "ablation");
    let records = records(&run, "allocations.jsonl");
    let text = records.last().expect("some").to_string();
    assert!(text.contains("\"increase\""), "{text}");
}

/// The sweep of all methods runs arms of it on the tiny model, and compares them.
#[test]
fn one_command_runs_and_compares_them() {
    let scene = Scene::new();
    let sweep = package().join("../configs/sweeps/methods-stsb.toml");
    let mut words = vec!["sweep".to_owned(), sweep.display().to_string()];
    for (flag, value) in [
        ("--arms", "lora,uniform"),
        ("--seeds", "0..1"),
        ("--output", "out"),
        ("--jobs", "2"),
    ] {
        words.extend([flag.to_owned(), value.to_owned()]);
    }
    // The same for both arms: theirs would differ in more than the choice.
    for set in tiny(&scene, "uniform") {
        if !set.starts_with("allocator.") {
            words.extend(["--set".to_owned(), set]);
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let table = scene.ok(&words);
    for word in [
        "| uniform ",
        "| lora ",
        "Difference from lora",
        "final pearson",
    ] {
        assert!(table.contains(word), "{word} is not in: {table}");
    }
    assert!(scene.path("out/uniform-s1/summary.json").is_file());
}

/// Every sweep that is shipped names recipes and keys that there are.
#[test]
fn every_sweep_is_of_recipes_that_there_are() {
    let scene = Scene::new();
    let folder = package().join("../configs/sweeps");
    let sweeps = std::fs::read_dir(&folder).expect("the folder is there");
    let mut looked_at = 0;
    for sweep in sweeps {
        let sweep = sweep.expect("an entry").path();
        let commands = scene.ok(&["sweep", sweep.to_str().expect("UTF-8"), "--dry-run"]);
        assert!(commands.lines().count() >= 6, "{}", sweep.display());
        looked_at += 1;
    }
    assert!(looked_at >= 6, "{looked_at}");
}

/// Whether there is a Python for the examples.
fn python() -> Option<()> {
    let script = "import sys; sys.exit(sys.version_info < (3, 10))";
    let found = Command::new("python3").args(["-c", script]).status();
    match found.is_ok_and(|status| status.success()) {
        true => Some(()),
        false => skip("python", "there is no python3 of 3.10 or later"),
    }
}

fn example(name: &str) -> String {
    let path = package().join("../plugins/process/examples").join(name);
    let path = path.canonicalize().expect("it is there");
    format!("[\"python3\", {path:?}]")
}

#[test]
fn a_scorer_and_an_allocator_in_python_choose_as_those_in_rust() {
    let Some(()) = python() else { return };
    let scene = Scene::new();
    let rust = scene.train(
        "rust",
        &["scorer.window=period", "scorer.one_in=1", "allocator.k=3"],
    );
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"",
        &format!(
            "[scorer]\nplugin = \"process\"\ncommand = {}\n\n[allocator]\nplugin = \"process\"\ncommand = {}\n\
             parameters = {{ k = 3 }}",
            example("scorer.py"),
            example("allocator.py")
        ),
    );
    let python = scene.train("python", &[]);
    assert_eq!(masks(&python), masks(&rust));
    assert!(masks(&python).len() > 2);
}

#[test]
fn a_command_that_fails_ends_the_run_with_its_last_words() {
    let Some(()) = python() else { return };
    let scene = Scene::new();
    scene.write(
        "broken.py",
        "import json, sys\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)['call']\n    \
             if call == 'scores':\n        \
                 sys.exit('the oracle is silent')\n    \
             needs = {'ok': True, 'needs': {'signals': ['activation_l2']}}\n    \
             print(json.dumps(needs if call == 'needs' else {'unknown': call != 'make', 'ok': True}), flush=True)\n",
    );
    scene.edit(
        "[scorer]\nplugin = \"activation\"",
        "[scorer]\nplugin = \"process\"\ncommand = [\"python3\", \"broken.py\"]",
    );
    let output = scene.run(&["train", "recipe.toml", "--quiet"]);
    let said = String::from_utf8_lossy(&output.stderr);
    for word in [
        "process",
        "ended with exit code 1",
        "the oracle is silent",
        "step 4",
    ] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
}
