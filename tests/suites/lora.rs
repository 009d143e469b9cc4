//! LoRA as PEFT's users have it: ranks and scales of some modules, rates of A and B.

use std::path::Path;

use dynalora_tests::drawn::difference;
use dynalora_tests::{Scene, contains};
use serde_json::{Value, json};

/// One evaluation, at the end, so that what is exported is the last state.
const LAST: &str = "evaluation.every=\"never\"";

fn config(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("adapter/adapter_config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

/// Refused as a mistake of the user's, in these words.
fn refused(scene: &Scene, sets: &[&str], words: &[&str]) {
    let mut arguments = vec!["train", "recipe.toml"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let output = scene.run(&arguments);
    contains(&output, words);
    assert_eq!(output.status.code(), Some(2));
}

/// The loss that a run's adapter, or a model's folder in its place, comes to.
fn loss(scene: &Scene, run: &str) -> f64 {
    let run = scene.path(run).display().to_string();
    let said = scene.ok(&["evaluate", &run, "--json"]);
    let scores: Value = serde_json::from_str(&said).expect("JSON");
    scores[0]["loss"].as_f64().expect("a number")
}

/// What is exported answers as the run did, and so does the base model that it is merged into.
fn assert_exported_and_merged(scene: &Scene, run: &str) {
    let records = scene.records(run, "metrics.jsonl");
    let evaluation = records.iter().rfind(|it| it["kind"] == "evaluation");
    let theirs = evaluation.expect("an evaluation")["loss"].as_f64();
    let theirs = theirs.expect("a loss");
    let ours = loss(scene, run);
    assert!((ours - theirs).abs() < 2e-6, "{run}: {ours}, not {theirs}");
    let (folder, merged) = (scene.path(run), scene.path(&format!("{run}-merged")));
    let (folder, merged) = (folder.display().to_string(), merged.display().to_string());
    scene.ok(&["merge", &folder, "--output", &merged]);
    // Nothing moves in a step of such a rate.
    let again = format!("{run}-again");
    scene.train(
        &again,
        &[
            &format!("model.name={merged}"),
            "train.steps=1",
            "train.learning_rate=1e-30",
            "train.weight_decay=0",
        ],
    );
    let again = loss(scene, &again);
    assert!(
        (again - ours).abs() < 1e-5 * ours,
        "{run}: merged {again}, not {ours}"
    );
}

const PATTERNS: [&str; 2] = [
    "adapter.rank_pattern={ 'layer.1.attention.self.query' = 1, 'self.*' = 6, 'pooler.*' = 2 }",
    "adapter.alpha_pattern={ 'bert.encoder.layer.0.*dense' = 3 }",
];

#[test]
fn modules_have_ranks_and_scales_of_their_own() {
    let scene = Scene::new();
    let sets = [PATTERNS[0], PATTERNS[1], LAST];
    let run = scene.train("run", &sets);
    let found = config(&run);
    assert_eq!((&found["r"], &found["lora_alpha"]), (&json!(4), &json!(16)));
    let ranks = found["rank_pattern"].as_object().expect("a table");
    let expected = [
        ("encoder.layer.0.attention.self.query", 6),
        ("encoder.layer.0.attention.self.value", 6),
        ("encoder.layer.1.attention.self.query", 1),
        ("encoder.layer.1.attention.self.value", 6),
        ("pooler.dense", 2),
    ];
    assert_eq!(ranks.len(), expected.len());
    for (path, rank) in expected {
        assert_eq!(ranks[&format!("bert.{path}")], rank, "{path}");
    }
    let alphas = found["alpha_pattern"].as_object().expect("a table");
    assert_eq!(alphas.len(), 3);
    assert!(alphas.values().all(|alpha| *alpha == 3));
    let records = scene.records("run", "allocations.jsonl");
    assert_eq!(
        records[0]["ranks"],
        json!([6, 6, 4, 4, 4, 1, 6, 4, 4, 4, 2])
    );
    assert_exported_and_merged(&scene, "run");
    // What the run's folder keeps says the same.
    let kept = std::fs::read_to_string(run.join("recipe.toml")).expect("a recipe");
    scene.write("kept.toml", &kept);
    let output = format!("output={}", scene.path("kept").display());
    scene.ok(&["train", "kept.toml", "--set", &output, "--quiet"]);
    assert_eq!(difference(&run, &scene.path("kept"), &[]), "");
}

#[test]
fn a_pattern_over_all_modules_is_another_default() {
    let scene = Scene::new();
    let by_hand = scene.train("by-hand", &["adapter.rank=2", "adapter.alpha=6"]);
    let patterns = [
        "adapter.rank=7",
        "adapter.rank_pattern={ '.*' = 2 }",
        "adapter.alpha_pattern={ query = 6, dense = 6, value = 6 }",
    ];
    let patterns = scene.train("patterns", &patterns);
    assert_eq!(difference(&by_hand, &patterns, &[]), "");
}

#[test]
fn modules_grow_from_ranks_of_their_own() {
    let scene = Scene::new();
    let plain = [
        "allocation.schedule={ kind = \"never\" }",
        PATTERNS[0],
        PATTERNS[1],
        LAST,
    ];
    let narrow = scene.train("narrow", &plain);
    let wide = scene.train("wide", &[&plain[..], &["adapter.r_max=6"]].concat());
    let (narrow, wide) = (config(&narrow), config(&wide));
    assert_eq!(wide["r"], 6);
    // The same pairs with the same scales, named by what differs from another default.
    for module in [
        "encoder.layer.1.attention.self.query",
        "encoder.layer.0.output.dense",
    ] {
        let of = |config: &Value| {
            let own = |pattern: &str, default: &str| {
                let own = config[pattern].get(format!("bert.{module}"));
                own.unwrap_or(&config[default]).as_f64().expect("a number")
            };
            (own("rank_pattern", "r"), own("alpha_pattern", "lora_alpha"))
        };
        assert_eq!(of(&narrow), of(&wide), "{module}");
    }
    let ranks = json!([6, 6, 4, 4, 4, 1, 6, 4, 4, 4, 2]);
    for run in ["narrow", "wide"] {
        let records = scene.records(run, "allocations.jsonl");
        assert_eq!(records[0]["ranks"], ranks, "{run}");
    }
    assert_eq!(
        scene.records("narrow", "metrics.jsonl")[0]["active_parameters"],
        scene.records("wide", "metrics.jsonl")[0]["active_parameters"]
    );
    assert_exported_and_merged(&scene, "wide");
    // A budget of ranks over pairs of different widths.
    let budget = [
        "allocator={ plugin = \"rank-budget\", target_r = \"50%\" }",
        "scorer={ plugin = \"activation\" }",
        PATTERNS[0],
        LAST,
    ];
    scene.train("budget", &budget);
    let records = scene.records("budget", "allocations.jsonl");
    let last = records.last().expect("a record")["ranks"]
        .as_array()
        .expect("a list")
        .clone();
    let sum = |ranks: &[Value]| ranks.iter().filter_map(Value::as_u64).sum::<u64>();
    let first = records[0]["ranks"].as_array().expect("a list");
    assert_eq!((sum(first), sum(&last)), (45, 23));
    assert!(
        last.iter()
            .zip(first)
            .all(|(last, first)| last.as_u64() <= first.as_u64())
    );
    assert_exported_and_merged(&scene, "budget");
}

#[test]
fn patterns_that_decide_nothing_or_cannot_be_are_refused() {
    let scene = Scene::new();
    for (set, words) in [
        (
            "adapter.rank_pattern={ key = 2 }",
            &["`adapter.rank_pattern` has \"key\"", "matches none"][..],
        ),
        (
            "adapter.alpha_pattern={ '.*' = 2, query = 3 }",
            &["`adapter.alpha_pattern` has \"query\"", "before it decides"],
        ),
        (
            "adapter.rank_pattern={ query = 0 }",
            &["`adapter.rank_pattern.query` is 0", "from 1 to 65536"],
        ),
        (
            "adapter.alpha_pattern={ query = 0 }",
            &["`adapter.alpha_pattern.query` is 0", "above 0"],
        ),
        (
            "adapter.rank_pattern={ '(' = 2 }",
            &["the pattern \"(\" cannot be read"],
        ),
        (
            "adapter.rank_pattern=3",
            &["regular expressions over module paths"],
        ),
        (
            "adapter.rank_pattern={ query = 2.5 }",
            &["adapter.rank_pattern"],
        ),
    ] {
        refused(&scene, &[set], words);
    }
    refused(
        &scene,
        &["adapter.rank_pattern={ query = 9 }", "adapter.r_max=8"],
        &["`adapter.rank_pattern.query` is 9", "to `r_max`, 8"],
    );
    refused(
        &scene,
        &["adapter.kind=vera", "adapter.rank_pattern={ query = 9 }"],
        &["`adapter.rank_pattern` belongs to kind = \"lora\""],
    );
}

#[test]
fn loraplus_gives_b_a_rate_of_its_own() {
    let scene = Scene::new();
    let plain = scene.train("plain", &[]);
    let one = scene.train("one", &["train.loraplus_lr_ratio=1"]);
    assert_eq!(difference(&plain, &one, &[]), "");
    let more = scene.train("more", &["train.loraplus_lr_ratio=4"]);
    assert_ne!(difference(&plain, &more, &[]), "");
    refused(
        &scene,
        &["train.loraplus_lr_ratio=0"],
        &["`train.loraplus_lr_ratio` is 0", "above 0"],
    );
    refused(
        &scene,
        &["adapter.kind=vera", "train.loraplus_lr_ratio=4"],
        &["`train.loraplus_lr_ratio` is given for VeRA"],
    );
}
