//! Runs that learn nothing of their inputs: said while they train, recorded, the same after an interruption, and
//! marked in reports. And where the bias of a fresh head starts.

use dynalora_tests::Scene;
use safetensors::SafeTensors;
use serde_json::Value;

/// A run that cannot learn: thirty batches of 32 at a rate of next to nothing.
const STALLED: [&str; 5] = [
    "allocation.schedule={ kind = \"never\" }",
    "train.steps=30",
    "train.batch_size=32",
    "train.learning_rate=1e-30",
    "checkpoint.every=7",
];

fn summary(scene: &Scene, run: &str) -> Value {
    let text = std::fs::read_to_string(scene.path(run).join("summary.json")).expect("a summary");
    serde_json::from_str(&text).expect("JSON")
}

/// What a training says on the way.
fn said(scene: &Scene, run: &str, sets: &[&str]) -> String {
    let output = format!("output={}", scene.path(run).display());
    let mut arguments = vec!["train", "recipe.toml", "--set", &output];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let ran = scene.run(&arguments);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    said
}

#[test]
fn a_run_that_learns_nothing_says_so_and_records_it() {
    let scene = Scene::new();
    let found = said(&scene, "run", &STALLED);
    assert_eq!(
        found.matches("has not left the entropy").count(),
        1,
        "{found}"
    );
    for part in [
        "WARN",
        "answering their frequencies",
        "train.learning_rate",
        "model.train_pooler = true",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let stalls = &summary(&scene, "run")["stalls"];
    assert_eq!(stalls.as_array().map(Vec::len), Some(1), "{stalls}");
    let stall = &stalls[0];
    assert_eq!(
        (&stall["kind"], &stall["from"], &stall["to"]),
        (&"not_left".into(), &1.into(), &30.into())
    );
    for record in scene.records("run", "metrics.jsonl") {
        if record["kind"] == "step" {
            let ratio =
                record["loss"].as_f64().unwrap() / record["constant_loss"].as_f64().unwrap();
            assert!((0.9..1.1).contains(&ratio), "{record}");
        }
    }
    // One that learns says nothing, and that it was looked for.
    let learns: Vec<&str> = STALLED
        .iter()
        .copied()
        .filter(|set| !set.contains("rate"))
        .collect();
    let found = said(
        &scene,
        "learns",
        &[&learns[..], &["train.learning_rate=2e-2"]].concat(),
    );
    assert!(!found.contains("entropy"), "{found}");
    assert_eq!(summary(&scene, "learns")["stalls"], Value::Array(vec![]));
}

#[test]
fn an_interrupted_run_records_the_same() {
    let scene = Scene::new();
    scene.assert_resumes("stalled", &STALLED);
    let [whole, killed] = ["whole-stalled", "killed-stalled"].map(|run| summary(&scene, run));
    assert_eq!(whole["stalls"], killed["stalls"]);
    assert_eq!(whole["stalls"][0]["to"], 30);
}

#[test]
fn a_report_marks_it() {
    let scene = Scene::new();
    let allocation = STALLED[0];
    let learns = [
        allocation,
        "train.steps=30",
        "train.batch_size=32",
        "train.learning_rate=2e-2",
    ];
    scene.train("lora-s1", &[&learns[..], &["seed=1"]].concat());
    scene.train("stalled-s1", &[&STALLED[..], &["seed=1"]].concat());
    let shown = scene.ok(&[
        "report",
        "lora-s1",
        "stalled-s1",
        "--names",
        "folder",
        "--output",
        "page.html",
    ]);
    for part in [
        "1, 1 of them collapsed",
        "Collapsed runs",
        "never left it, steps 1 to 30",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let page = std::fs::read_to_string(scene.path("page.html")).expect("a page");
    assert!(page.contains("never left it") && page.contains("<td>collapsed</td>"));
    let json = scene.ok(&[
        "report",
        "lora-s1",
        "stalled-s1",
        "--names",
        "folder",
        "--json",
    ]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["arms"][0]["collapsed"], Value::Array(vec![]));
    assert_eq!(json["arms"][1]["collapsed"], serde_json::json!([1]));
    assert_eq!(json["arms"][1]["runs"][0]["collapse"]["kind"], "not_left");
}

/// The exported bias of the classifier after one step of next to nothing.
fn bias(scene: &Scene, run: &str, sets: &[&str]) -> Vec<f32> {
    let tiny = ["train.steps=1", "train.learning_rate=1e-30", STALLED[0]];
    let folder = scene.train(run, &[&tiny[..], sets].concat());
    let bytes =
        std::fs::read(folder.join("adapter/adapter_model.safetensors")).expect("an adapter");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let bias = tensors
        .tensor("base_model.model.classifier.bias")
        .expect("a bias");
    let floats = bias.data().as_chunks::<4>().0.iter();
    floats.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn a_fresh_head_starts_at_the_labels() {
    let scene = Scene::new();
    let text = std::fs::read_to_string(scene.path("train.csv")).expect("the data");
    let commas = text.lines().filter(|line| line.ends_with(",comma")).count() as f32;
    let others = text.lines().count() as f32 - 1.0 - commas;
    let half = 0.5 * (commas / others).ln();
    let found = bias(&scene, "labels", &[]);
    assert!(
        (found[0] - half).abs() < 1e-6 && (found[1] + half).abs() < 1e-6,
        "{found:?}, not {half}"
    );
    assert_eq!(bias(&scene, "zero", &["model.head_bias=zero"]), [0.0, 0.0]);

    // Values: their mean.
    let values = "text,label\na plane,1.5\na man,2.5\na flute,5\n";
    scene.write("values.csv", values);
    let data = "data={ train = \"values.csv\", validation = \"values.csv\", problem = \"regression\", columns = { text = \"text\" } }";
    assert_eq!(bias(&scene, "mean", &[data]), [3.0]);
    let far = "the labels' mean, 3.0000, is far from 0";
    let tiny = ["train.steps=1", STALLED[0], data];
    assert!(!said(&scene, "near", &tiny).contains(far));
    let zero = [&tiny[..], &["model.head_bias=zero"]].concat();
    assert!(said(&scene, "far", &zero).contains(far));
}

#[test]
fn a_word_that_is_no_start_is_refused() {
    let scene = Scene::new();
    let ran = scene.run(&["train", "recipe.toml", "--set", "model.head_bias=mean"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(
        said.contains("head_bias") && said.contains("labels"),
        "{said}"
    );
}
