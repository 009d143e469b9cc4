//! The commands around recipes and runs: `recipe`, `runs`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use dynalora_tests::{Scene, contains, fixture, said};
use serde_json::Value;

fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, parts);
}

#[test]
fn a_new_recipe_is_right_and_trains() {
    let scene = Scene::new();
    let data = [
        "--train",
        "train.csv",
        "--validation",
        "dev.csv",
        "--text",
        "sentence",
    ];
    fn new<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["recipe", "new"], more].concat()
    }
    let output = scene.run(&new(
        &[&["my.toml", "--allocator", "uniform"], &data[..]].concat()
    ));
    assert!(output.status.success(), "{}", said(&output));
    contains(
        &output,
        &["my.toml trains into", "runs/my", "dynalora train my.toml"],
    );
    assert_eq!(
        scene.ok(&["recipe", "check", "my.toml", "recipe.toml"]),
        "my.toml: right\nrecipe.toml: right\n"
    );
    let model = format!("model.name={}", fixture("tiny-bert").display());
    scene.ok(&[
        "train",
        "my.toml",
        "--quiet",
        "--set",
        &model,
        "--set",
        "train.steps=3",
        "--set",
        "device=cpu",
        "--set",
        "model.max_length=64",
    ]);
    assert!(scene.path("runs/my/summary.json").is_file());

    // Nothing is written over unasked, and nothing that is not right.
    let before = std::fs::read_to_string(scene.path("my.toml")).expect("the recipe");
    refused(
        &scene,
        &new(&["my.toml"]),
        &["cannot write my.toml", "--force"],
    );
    assert_eq!(
        std::fs::read_to_string(scene.path("my.toml")).expect("the recipe"),
        before
    );
    scene.ok(&new(&["my.toml", "--force", "--quiet"]));
    assert!(
        std::fs::read_to_string(scene.path("my.toml"))
            .expect("the recipe")
            .contains("minimal-pairs")
    );
    scene.ok(&new(&[
        "cola.toml",
        "--task",
        "cola",
        "--data",
        "glue/cola",
    ]));
    refused(
        &scene,
        &new(&["sst2.toml", "--task", "sst2"]),
        &["--task sst2 needs --data"],
    );
    refused(
        &scene,
        &new(&["csv.toml", "--train", "train.csv"]),
        &["--validation"],
    );
    for name in ["sst2.toml", "csv.toml"] {
        assert!(!scene.path(name).exists(), "{name}");
    }
}

#[test]
fn a_recipe_is_checked_and_shown_without_model_and_data() {
    let scene = Scene::new();
    scene.edit("rank = 4", "rank = 4\nrnak = 3");
    refused(
        &scene,
        &["recipe", "check", "recipe.toml"],
        &["recipe.toml", "`adapter.rnak`", "did you mean `rank`"],
    );
    scene.write("recipe.toml", &scene.recipe_text());
    // What is shown is the same recipe.
    let shown = scene.ok(&["recipe", "show", "recipe.toml", "--set", "seed=9"]);
    assert!(
        shown.contains("seed = 9") && shown.contains("weight_decay = "),
        "{shown}"
    );
    scene.write("shown.toml", &shown);
    assert_eq!(scene.ok(&["recipe", "show", "shown.toml"]), shown);
    for (flags, key) in [
        (&["recipe", "schema"][..], "allocation"),
        (&["recipe", "schema", "--sweep"], "grid"),
    ] {
        let schema: Value = serde_json::from_str(&scene.ok(flags)).expect("JSON");
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[test]
fn runs_are_listed_with_what_became_of_them() {
    let scene = Scene::new();
    refused(&scene, &["runs"], &["there is no folder runs"]);
    std::fs::create_dir(scene.path("runs")).expect("a folder");
    assert_eq!(scene.ok(&["runs"]), "no runs in runs\n");
    std::fs::create_dir(scene.path("runs/deep")).expect("a folder");
    scene.train("runs/deep/whole", &[]);
    scene.train(
        "runs/plain",
        &["allocation.schedule={ kind = \"never\" }", "seed=8"],
    );
    let summary = scene.path("runs/plain/summary.json");
    std::fs::remove_file(summary).expect("it was there");

    // One at work, and the same when it was killed.
    let output = format!("output={}", scene.path("runs/long").display());
    let mut command = scene.command(&[
        "train",
        "recipe.toml",
        "--quiet",
        "--set",
        "train.steps=100000",
        "--set",
        &output,
    ]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let since = Instant::now();
    let state = |name: &str| -> Value {
        let rows: Value = serde_json::from_str(&scene.ok(&["runs", "--json"])).expect("JSON");
        let mut rows = rows.as_array().expect("rows").iter().cloned();
        rows.find(|row| row["run"] == format!("runs/{name}"))
            .unwrap_or_default()
    };
    while state("long")["step"].as_u64().unwrap_or(0) < 5 {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "no steps within a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(state("long")["state"], "running");
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_eq!(state("long")["state"], "interrupted");
    assert_eq!(state("plain")["state"], "interrupted");
    let whole = state("deep/whole");
    assert_eq!(
        (&whole["state"], &whole["step"], &whole["seed"]),
        (&"finished".into(), &12.into(), &3.into())
    );
    assert_eq!(
        (&whole["arm"], &whole["metric"][0]),
        (&"activation → top-k".into(), &"accuracy".into())
    );

    let table = scene.ok(&["runs", "runs/deep", "runs/plain"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    // Those that wrote last come first.
    assert!(
        lines[1].contains("runs/plain") && lines[1].contains(" lora "),
        "{table}"
    );
    assert!(
        lines[2].contains("runs/deep/whole") && lines[2].contains("accuracy 0."),
        "{table}"
    );
    // A damaged one does not hide the others.
    std::fs::write(scene.path("runs/plain/recipe.toml"), "seed = ").expect("it is there");
    let output = scene.run(&["runs"]);
    assert!(output.status.success(), "{}", said(&output));
    contains(&output, &["runs/plain", "not valid TOML"]);
}

#[test]
fn shells_and_the_manual_know_every_command() {
    let scene = Scene::new();
    let commands = [
        "train",
        "evaluate",
        "predict",
        "plan",
        "recipe",
        "runs",
        "report",
        "sweep",
        "plugins",
        "quickstart",
    ];
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.ok(&["completions", shell]);
        assert!(
            commands.iter().all(|command| script.contains(command)),
            "{shell}"
        );
    }
    scene.ok(&["man", "manual"]);
    for command in commands {
        let page = std::fs::read_to_string(scene.path(&format!("manual/dynalora-{command}.1")))
            .expect(command);
        assert!(page.contains(".SH OPTIONS"), "{command}");
    }
}
