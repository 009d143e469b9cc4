//! LoRA as PEFT's users have it: ranks and scales of some modules, rates of A and B.

use std::path::Path;

use dynalora_tests::drawn::difference;
use dynalora_tests::{Scene, contains, fixture};
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

const PISSA: &str = "adapter.init_lora_weights=pissa";

#[test]
fn pissa_starts_as_the_base_model_and_is_exported_as_plain_lora() {
    let scene = Scene::new();
    let plain = "allocation.schedule={ kind = \"never\" }";
    // Nothing has been learnt in a step of such a rate, and the base model is what it was.
    let still = ["train.steps=1", "train.learning_rate=1e-30", LAST];
    let lora = scene.train("lora", &[&still[..], &[plain]].concat());
    for (run, start) in [
        ("exact", PISSA),
        ("nearly", "adapter.init_lora_weights=pissa_niter_2"),
    ] {
        scene.train(run, &[&still[..], &[plain, start]].concat());
        let losses = ["lora", run].map(|run| {
            let records = scene.records(run, "metrics.jsonl");
            records[0]["loss"].as_f64().expect("a loss")
        });
        assert!((losses[0] - losses[1]).abs() < 1e-6, "{losses:?}");
        assert_exported_and_merged(&scene, run);
        let trained = format!("{run}-trained");
        scene.train(&trained, &[plain, start, LAST]);
        assert_exported_and_merged(&scene, &trained);
        let found = config(&scene.path(&trained));
        assert_eq!((&found["r"], &found["lora_alpha"]), (&json!(8), &json!(32)));
        assert_eq!(found["init_lora_weights"], true);
        assert_eq!(found["rank_pattern"], json!({}));
    }
    assert_eq!(config(&lora)["r"], 4);
    assert_ne!(
        difference(
            &scene.path("exact-trained"),
            &scene.path("nearly-trained"),
            &[]
        ),
        ""
    );
    let count = |set: &str| {
        let said = scene.ok(&["plan", "recipe.toml", "--json", "--set", set]);
        let plan: Value = serde_json::from_str(&said).expect("JSON");
        ["adapter_parameters", "start_values"].map(|key| plan[key].as_u64().expect("a number"))
    };
    let [parameters, none] = count("seed=1");
    assert_eq!((none, count(PISSA)), (0, [parameters; 2]));
}

/// What is pruned, grown, shared, scaled or dropped is what has been learnt, not what the model came with.
#[test]
fn pissa_meets_what_allocators_decide() {
    let scene = Scene::new();
    for (run, allocator, more) in [
        (
            "budget",
            "rank-budget\", target_r = \"50%",
            &["adapter.r_max=6"][..],
        ),
        (
            "grow",
            "grow\", rank = \"50%",
            &["adapter.rank_pattern={ query = 2 }"],
        ),
        ("drop", "drop\", threshold = 0.5, others = \"drop", &[]),
        ("share", "drop\", threshold = 0.5, others = \"share", &[]),
    ] {
        let allocator = format!("allocator={{ plugin = \"{allocator}\" }}");
        let sets = [&[allocator.as_str(), PISSA, LAST], more].concat();
        scene.train(run, &sets);
        assert_exported_and_merged(&scene, run);
    }
    // A module that is tried out without is as the model came.
    let sets = [
        "scorer={ plugin = \"trial\", held_back = 8 }",
        "train.learning_rate=1e-30",
        PISSA,
        LAST,
    ];
    scene.train("trial", &sets);
    let records = scene.records("trial", "allocations.jsonl");
    let scores = records[1]["scores"].as_array().expect("scores");
    assert!(
        scores
            .iter()
            .all(|score| score.as_f64().is_some_and(|score| score < 1e-6)),
        "{scores:?}"
    );
}

#[test]
fn pissa_is_refused_where_it_cannot_be() {
    let scene = Scene::new();
    for (sets, words) in [
        (
            &["adapter.rank=40"][..],
            &[
                "the rank of encoder.layer.0.attention.self.query is 40",
                "32 singular values",
            ][..],
        ),
        (
            &["adapter.dropout=0.1"],
            &["adapter.init_lora_weights", "drop out at random"],
        ),
        (
            &["adapter.kind=vera"],
            &["`adapter.init_lora_weights` belongs to kind = \"lora\""],
        ),
        (
            &["adapter.init_lora_weights=olora"],
            &["adapter.init_lora_weights", "pissa_niter_4"],
        ),
        (
            &["adapter.init_lora_weights=pissa_niter_0"],
            &["pissa_niter_4"],
        ),
    ] {
        refused(&scene, &[&[PISSA], sets].concat(), words);
    }
}

const DORA: &str = "adapter.use_dora=true";
const BIAS: &str = "adapter.bias=lora_only";

#[test]
fn dora_and_biases_start_as_the_base_model_and_are_exported_and_merged() {
    let scene = Scene::new();
    let plain = "allocation.schedule={ kind = \"never\" }";
    let still = ["train.steps=1", "train.learning_rate=1e-30", LAST];
    scene.train("lora", &[&still[..], &[plain]].concat());
    let first = |run: &str| {
        let records = scene.records(run, "metrics.jsonl");
        records[0]["loss"].as_f64().expect("a loss")
    };
    for (run, sets) in [
        ("dora", &[DORA][..]),
        ("bias", &[BIAS]),
        ("both", &[DORA, BIAS]),
        ("pissa", &[DORA, PISSA]),
        ("dropout", &[DORA, BIAS, "adapter.dropout=0.2"]),
    ] {
        let begun = format!("{run}-still");
        scene.train(&begun, &[&still[..], &[plain], sets].concat());
        let (ours, theirs) = (first(&begun), first("lora"));
        assert!((ours - theirs).abs() < 1e-5, "{run}: {ours}, not {theirs}");
        scene.train(run, &[&[plain, LAST], sets].concat());
        assert_exported_and_merged(&scene, run);
        let found = config(&scene.path(run));
        assert_eq!(found["use_dora"], sets.contains(&DORA), "{run}");
        let bias = match sets.contains(&BIAS) {
            true => "lora_only",
            false => "none",
        };
        assert_eq!(found["bias"], bias, "{run}");
        assert_ne!(difference(&scene.path(&begun), &scene.path(run), &[]), "");
    }
    // A vector of each for every module of 32 outputs but two, which have 64.
    let count = |set: &str| {
        let said = scene.ok(&["plan", "recipe.toml", "--json", "--set", set]);
        let plan: Value = serde_json::from_str(&said).expect("JSON");
        plan["adapter_parameters"].as_u64().expect("a number")
    };
    let outputs = 9 * 32 + 2 * 64;
    assert_eq!(count(DORA), count("seed=1") + outputs);
    assert_eq!(count(BIAS), count("seed=1") + outputs);
}

/// Modules that are pruned, shared, scaled, dropped or inactive keep their sizes and biases, and what is exported has them.
#[test]
fn dora_and_biases_meet_what_allocators_decide() {
    let scene = Scene::new();
    for (run, allocator, more) in [
        (
            "budget",
            "rank-budget\", target_r = \"50%",
            &["adapter.r_max=6"][..],
        ),
        (
            "grow",
            "grow\", rank = \"50%",
            &["adapter.rank_pattern={ query = 2 }"],
        ),
        ("drop", "drop\", threshold = 0.5, others = \"drop", &[]),
        ("share", "drop\", threshold = 0.5, others = \"share", &[]),
        ("uniform", "uniform\", k = \"50%", &[]),
        (
            "layers",
            "uniform\", k = \"50%",
            &["allocation.unit=layer", "train.cache_frozen_prefix=true"],
        ),
    ] {
        let allocator = format!("allocator={{ plugin = \"{allocator}\" }}");
        let sets = [&[allocator.as_str(), DORA, BIAS, LAST], more].concat();
        scene.train(run, &sets);
        assert_exported_and_merged(&scene, run);
    }
    // A module that is tried out without is as the model came.
    let sets = [
        "scorer={ plugin = \"trial\", held_back = 8 }",
        "train.learning_rate=1e-30",
        DORA,
        BIAS,
        LAST,
    ];
    scene.train("trial", &sets);
    let records = scene.records("trial", "allocations.jsonl");
    let scores = records[1]["scores"].as_array().expect("scores");
    assert!(
        scores
            .iter()
            .all(|score| score.as_f64().is_some_and(|score| score < 1e-6)),
        "{scores:?}"
    );
}

#[test]
fn dora_and_biases_are_refused_where_they_cannot_be() {
    let scene = Scene::new();
    let llama = "adapter.targets=[\"q_proj\", \"down_proj\"]";
    let model = format!("model.name={}", fixture("tiny-llama").display());
    for (sets, words) in [
        (
            &["adapter.kind=vera", DORA][..],
            &["`adapter.use_dora` belongs to kind = \"lora\""][..],
        ),
        (
            &["adapter.kind=vera", BIAS],
            &["`adapter.bias` belongs to kind = \"lora\""],
        ),
        (
            &["adapter.bias=all"],
            &[
                "`adapter.bias` is \"all\"",
                "belong to no module",
                "lora_only",
            ],
        ),
        (&["adapter.bias=some"], &["adapter.bias", "lora_only"]),
        (
            &[&model, llama, BIAS],
            &[
                "adapter.bias is \"lora_only\"",
                "has a bias",
                "adapter.targets",
            ],
        ),
    ] {
        refused(&scene, sets, words);
    }
}
