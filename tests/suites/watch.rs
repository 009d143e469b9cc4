//! `dynalora watch` on runs of the built program.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::drawn::{contents, difference};
use dynalora_tests::{Scene, built, contains, package, said, skip};

#[test]
fn a_look_is_text_and_changes_nothing() {
    let scene = Scene::new();
    let run = scene.train("run", &["evaluation.every=4"]);
    let before = contents(&run);
    let small = scene.ok(&["watch", "run", "--once"]);
    assert!(
        small.lines().all(|line| line.chars().count() <= 80),
        "{small}"
    );
    assert!(
        small.lines().count() <= 24 && !small.contains('\u{1b}'),
        "{small}"
    );
    assert!(small.contains("11 modules in 3 rows"), "{small}");
    let look = scene.ok(&["watch", "run", "--once", "--size", "80x40"]);
    for part in [
        "run · activation → top-k · seed 3",
        "finished",
        "100% · step 12 of 12",
        "accuracy",
        "active modules by choice, 11 modules",
        "1 attention.self.query",
        "pooler.dense",
        "step 0",
    ] {
        assert!(look.contains(part), "{part:?} is not in:\n{look}");
    }
    // The three choices of each module, as its log has them.
    let records = scene.records("run", "allocations.jsonl");
    for (at, path) in dynalora_tests::module_paths(&records[0]).iter().enumerate() {
        let active = |record: &serde_json::Value| match record["active"][at] == true {
            true => "████",
            false => "····",
        };
        let row: String = records.iter().map(active).collect();
        let name = path.trim_start_matches("encoder.layer.");
        // `1.output.dense` is `1 output.dense`.
        let name = match name.starts_with(|letter: char| letter.is_ascii_digit()) {
            true => name.replacen('.', " ", 1),
            false => name.to_owned(),
        };
        let mut lines = look.lines().filter(|line| line.starts_with(&name));
        let line = lines.next().unwrap_or_default();
        assert!(line.contains(&row), "{name} {row} is not in:\n{look}");
    }
    let plain = scene.ok(&["watch", "run", "--once", "--ascii", "--size", "60x30"]);
    assert!(plain.is_ascii(), "{plain}");
    assert!(contents(&run) == before, "a look has changed the run");

    scene.train("more/other", &["seed=4"]);
    let both = scene.ok(&["watch", "run", "more", "--once"]);
    assert!(both.contains("> run") && both.contains("  other"), "{both}");

    for (arguments, parts) in [
        (&["watch", "none"][..], &["there is no folder none"][..]),
        (
            &["watch", "recipe.toml"],
            &["is a file, not a folder of runs", "`output`"],
        ),
        (
            &["watch", "run"],
            &["standard output is no terminal", "--once"],
        ),
        (
            &["watch", "run", "--once", "--size", "7"],
            &["such as 80x24"],
        ),
        (&["watch", "run", "--size", "80x24"], &["--once"]),
    ] {
        let refused = scene.run(arguments);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        contains(&refused, parts);
    }
    std::fs::create_dir(scene.path("empty")).expect("a folder");
    assert_eq!(
        scene.ok(&["watch", "empty", "--once"]).lines().next(),
        Some("no runs yet")
    );
}

/// Looked at in a terminal of its own, resized, left and killed, a run trains as it does alone.
#[test]
fn a_terminal_is_drawn_on_and_given_back() {
    let python = Command::new("python3")
        .args(["-c", "import pty, termios"])
        .output();
    if !python.is_ok_and(|output| output.status.success()) {
        return skip("python", "there is no python3 with terminals").unwrap_or_default();
    }
    let scene = Scene::new();
    let sets = [
        "train.steps=600",
        "allocation.schedule.every=20",
        "checkpoint.every=50",
    ];
    let alone = scene.train("alone", &sets);
    let output = format!("output={}", scene.path("run").display());
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--set", &output];
    for set in &sets {
        arguments.extend(["--set", set]);
    }
    let mut training = scene.command(&arguments);
    let training = training.stderr(Stdio::piped()).spawn().expect("it starts");
    let began = Instant::now();
    while !scene.path("run/metrics.jsonl").exists() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no record within a minute"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let looked = Command::new("python3")
        .arg(package().join("suites/watch/terminal.py"))
        .arg(built().join("dynalora"))
        .arg(scene.path("run"))
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .output()
        .expect("python starts");
    assert!(looked.status.success(), "{}", said(&looked));
    let training = training.wait_with_output().expect("it ends");
    assert!(training.status.success(), "{}", said(&training));
    assert_eq!(difference(&alone, Path::new(&scene.path("run")), &[]), "");
}
