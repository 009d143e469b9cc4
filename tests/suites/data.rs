//! Real data sets in their published files, and those of the Hub in its cache.

use std::path::PathBuf;
use std::process::Output;

use dynalora::data::{DataConfig, Example, Label, Problem, Splits, Task, read};
use dynalora_tests::entries::table;
use dynalora_tests::hub::{self, COMMIT};
use dynalora_tests::{Scene, contains, fixture, said, shared_data};
use serde_json::Value;

/// The splits of a task in the shared folder; none where it is absent.
fn splits(task: Task) -> Option<Splits> {
    let config = DataConfig {
        task: Some(task),
        dir: Some(shared_data(&format!("glue/{task}"))?),
        ..DataConfig::default()
    };
    Some(read(&config).unwrap_or_else(|error| panic!("{task}: {error}")))
}

fn of_class(examples: &[Example], class: u32) -> usize {
    let label = Some(Label::Class(class));
    examples.iter().filter(|e| e.label == label).count()
}

fn validation(splits: &Splits) -> &[Example] {
    assert_eq!(splits.validation.len(), 1);
    assert_eq!(splits.validation[0].0, "validation");
    &splits.validation[0].1
}

#[test]
fn cola() {
    let Some(splits) = splits(Task::Cola) else {
        return;
    };
    assert_eq!(splits.train.len(), 8551);
    assert_eq!(validation(&splits).len(), 1043);
    // `awk -F'\t' '$2 == 1' | wc -l`
    assert_eq!(of_class(&splits.train, 1), 6023);
    assert_eq!(
        splits.train[0].text,
        "Our friends won't buy this analysis, let alone the next one we propose."
    );
    assert!(
        splits
            .train
            .iter()
            .all(|example| example.text_pair.is_none())
    );
}

#[test]
fn mrpc_has_quotes_that_nobody_closes() {
    let Some(splits) = splits(Task::Mrpc) else {
        return;
    };
    // 4,080 pairs below the header: Microsoft's 4,076 and four more.
    assert_eq!(splits.train.len(), 4080);
    assert_eq!(validation(&splits).len(), 1725);
    assert_eq!(of_class(&splits.train, 1), 2755);
    assert_eq!(
        splits.train[0].text_pair.as_deref(),
        Some(
            "Referring to him as only \"the witness\", Amrozi accused his brother of deliberately distorting his evidence."
        )
    );
    // The test split has labels and stands in for the missing dev split.
    assert_eq!(splits.test[0].1, validation(&splits));
}

#[test]
fn stsb_has_rows_of_seven_and_of_nine_columns() {
    let Some(splits) = splits(Task::Stsb) else {
        return;
    };
    assert_eq!(splits.problem, Problem::Regression);
    assert_eq!(splits.train.len(), 5749);
    assert_eq!(validation(&splits).len(), 1500);
    let scores: Vec<Label> = splits.train.iter().filter_map(|e| e.label).collect();
    let scores = Label::values(&scores).expect("values");
    assert_eq!(scores.len(), 5749);
    assert!(scores.iter().all(|score| (0.0..=5.0).contains(score)));
    let sum: f64 = scores.iter().map(|score| f64::from(*score)).sum();
    assert!((sum - 15528.043).abs() < 0.01, "{sum}");
    assert_eq!(splits.train[0].text, "A plane is taking off.");
}

#[test]
fn sst2_at_sentence_level() {
    let Some(splits) = splits(Task::Sst2) else {
        return;
    };
    assert_eq!(splits.train.len(), 6920);
    assert_eq!(validation(&splits).len(), 1821);
    assert_eq!(of_class(&splits.train, 1), 3610);
    assert_eq!(of_class(validation(&splits), 0), 912);
}

/// Puts the data set `owner/name` into the scene's cache of the Hub: its snapshot.
fn cached(scene: &Scene, files: &[(&str, Vec<u8>)]) -> PathBuf {
    hub::cached(&scene.path("hf"), "owner/name", files)
}

/// The program with this cache of the Hub.
fn run(scene: &Scene, arguments: &[&str]) -> Output {
    let mut command = scene.command(arguments);
    command.env("HF_HOME", scene.path("hf"));
    command.output().expect("the program starts")
}

#[track_caller]
fn ok(scene: &Scene, arguments: &[&str]) -> String {
    let output = run(scene, arguments);
    assert!(output.status.success(), "{arguments:?}:\n{}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn inputs(scene: &Scene) -> Value {
    let text = std::fs::read_to_string(scene.path("run/provenance.json")).expect("a file");
    let provenance: Value = serde_json::from_str(&text).expect("JSON");
    provenance["sittings"][0]["inputs"].clone()
}

#[test]
fn a_data_set_of_the_hub_is_trained_on_planned_evaluated_and_held_to_its_files() {
    let scene = Scene::new();
    let readme = "---\nconfigs:\n- config_name: it\n  data_files:\n  - {split: train, path: data/train-*}\n  - {split: dev, path: data/dev-*}\n- \
        config_name: other\n  data_files: other.csv\n---\n";
    let snapshot = cached(
        &scene,
        &[
            ("README.md", readme.into()),
            ("data/train-00000-of-00002.parquet", table(20)),
            ("data/train-00001-of-00002.parquet", table(12)),
            ("data/dev-00000-of-00001.parquet", table(8)),
        ],
    );
    scene.edit(
        "train = \"train.csv\"\nvalidation = \"dev.csv\"\n",
        "hub = \"owner/name\"\nconfig = \"it\"\nvalidation = \"dev\"\n",
    );
    let train = ["train", "recipe.toml", "--quiet"];
    ok(&scene, &["plan", "recipe.toml"]);
    ok(&scene, &train);
    let inputs = inputs(&scene);
    for (name, file) in [
        ("data.train", "train-00000-of-00002"),
        ("data.train[1]", "train-00001-of-00002"),
        ("data.validation", "dev-00000-of-00001"),
    ] {
        let path = inputs[name]["path"].as_str().expect("a path");
        assert!(
            path.contains(file) && path.contains(COMMIT),
            "{name}: {path}"
        );
    }
    let summary = std::fs::read_to_string(scene.path("run/summary.json")).expect("a summary");
    assert!(summary.contains("32"), "32 examples: {summary}");
    let run_dir = scene.path("run").display().to_string();
    let scores = ok(&scene, &["evaluate", &run_dir, "--json"]);
    assert!(scores.contains("accuracy"), "{scores}");
    ok(&scene, &["report", &run_dir]);
    // What is not in the cache is asked for, and named.
    let output = run(
        &scene,
        &["plan", "recipe.toml", "--set", "data.config=other"],
    );
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["other.csv", "no such file"]);
    for (set, part) in [
        ("data.config=none", "no configuration `none`"),
        ("data.train=all", "no split `all` to read as data.train"),
        ("data.revision=v2", "HF_HUB_OFFLINE"),
        ("data.hub=a/b/c", "no name of a data set"),
        ("data.dir=x", "`data.dir` are both given"),
    ] {
        let output = run(&scene, &["plan", "recipe.toml", "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}: {}", said(&output));
        contains(&output, &[part]);
    }

    // Another content under the same names.
    std::fs::remove_file(scene.path("run/summary.json")).expect("a finished run");
    std::fs::remove_dir_all(scene.path("run/adapter")).expect("a finished run");
    std::fs::write(
        snapshot.join("data/train-00001-of-00002.parquet"),
        table(13),
    )
    .expect("a file");
    let output = run(&scene, &[&train[..], &["--resume"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, &["data.train[1] was"]);
}

#[test]
fn images_come_from_the_hub_too() {
    let scene = Scene::new();
    let images = std::fs::read(fixture("images/datasets.parquet")).expect("a fixture");
    cached(
        &scene,
        &[
            ("data/train-00000-of-00001.parquet", images.clone()),
            ("data/validation-00000-of-00001.parquet", images),
        ],
    );
    let recipe = scene
        .recipe_text()
        .replace(
            "train = \"train.csv\"\nvalidation = \"dev.csv\"\n",
            "hub = \"owner/name\"\nformat = \"images\"\n",
        )
        .replace("[data.columns]\ntext = \"sentence\"\n", "")
        .replace("max_length = 64\n", "")
        .replace("[\"query\", \"value\", \"dense\"]", "\"all-linear\"")
        .replace(
            &fixture("tiny-bert").display().to_string(),
            &fixture("tiny-vit").display().to_string(),
        );
    scene.write("recipe.toml", &recipe);
    ok(&scene, &["train", "recipe.toml", "--quiet"]);
    let run_dir = scene.path("run").display().to_string();
    let scores = ok(&scene, &["evaluate", &run_dir, "--json"]);
    assert!(scores.contains("accuracy"), "{scores}");
    assert!(inputs(&scene)["data.validation"]["path"].is_string());
}
