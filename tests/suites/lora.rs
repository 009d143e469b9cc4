//! LoRA as PEFT's users have it: ranks and scales of some modules, rates of A and B.

use std::path::Path;

use dynalora_tests::drawn::difference;
use dynalora_tests::{Scene, contains, fixture, said};
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

/// Whatever allocators decide of modules with these `own` keys (pruned, grown, shared, scaled, dropped, inactive), what is
/// exported answers as the run did; and modules that are tried out without, before they have learnt, are as the model came.
fn assert_meets_allocators(scene: &Scene, own: &[&str]) {
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
            &[
                "allocation.unit=layer",
                "train.cache_frozen_prefix=true",
                "model.hidden_dropout=0",
                "model.attention_dropout=0",
            ],
        ),
    ] {
        let allocator = format!("allocator={{ plugin = \"{allocator}\" }}");
        let sets = [&[allocator.as_str(), LAST], own, more].concat();
        scene.train(run, &sets);
        assert_exported_and_merged(scene, run);
    }
    let sets = [
        "scorer={ plugin = \"trial\", held_back = 8 }",
        "train.learning_rate=1e-30",
        LAST,
    ];
    scene.train("trial", &[&sets[..], own].concat());
    let records = scene.records("trial", "allocations.jsonl");
    let scores = records[1]["scores"].as_array().expect("scores");
    assert!(
        scores
            .iter()
            .all(|score| score.as_f64().is_some_and(|score| score < 1e-6)),
        "{scores:?}"
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
    assert_meets_allocators(&Scene::new(), &[PISSA]);
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
    assert_meets_allocators(&Scene::new(), &[DORA, BIAS]);
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
        (
            &["adapter.bias=some"],
            &["adapter.bias", "It can be \"none\", \"lora_only\""],
        ),
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
    // What is refused is not offered.
    let output = scene.run(&["train", "recipe.toml", "--set", "adapter.bias=some"]);
    assert!(!said(&output).contains("\"all\""));
}

const EVA: &str = "adapter.init_lora_weights=eva";

/// What the record of a run's first choice says of EVA.
fn eva(scene: &Scene, run: &str) -> (Vec<String>, Vec<u64>, Value) {
    let first = scene.records(run, "allocations.jsonl").remove(0);
    let found = first["eva"].clone();
    let strings = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|it| it.as_str().expect("text").to_owned())
            .collect()
    };
    let ranks = found["ranks"].as_array().expect("a list").iter();
    let ranks: Vec<u64> = ranks.map(|it| it.as_u64().expect("a rank")).collect();
    let paths = strings(&found["modules"]);
    // Those that train are those that got a rank, with that rank.
    let remaining = paths.iter().zip(&ranks).filter(|(_, rank)| **rank > 0);
    let (named, own): (Vec<String>, Vec<u64>) =
        remaining.map(|(path, rank)| (path.clone(), *rank)).unzip();
    assert_eq!(strings(&first["modules"]), named);
    let all = first["active"]
        .as_array()
        .expect("a list")
        .iter()
        .all(|it| it == true);
    if all {
        assert_eq!(first["ranks"], json!(own));
    }
    (paths, ranks, found)
}

#[test]
fn eva_moves_ranks_to_where_they_explain_most() {
    let scene = Scene::new();
    let plain = "allocation.schedule={ kind = \"never\" }";
    let still = ["train.steps=1", "train.learning_rate=1e-30", plain, LAST];
    scene.train("lora", &still);
    // Of rank 2 a module can come to 12, and others to none.
    let far = [
        "adapter.rank=2",
        "adapter.eva.rho=6",
        "adapter.eva.tau=0.9",
        EVA,
    ];
    for (run, more) in [
        ("eva", &[EVA][..]),
        ("far", &far),
        (
            "stays",
            &[EVA, "adapter.eva.rho=1", "adapter.eva.whiten=true"],
        ),
        ("scaled", &[EVA, "adapter.eva.adjust_scaling_factors=false"]),
    ] {
        scene.train(run, &[&still[..], more].concat());
        let losses = ["lora", run].map(|run| {
            let records = scene.records(run, "metrics.jsonl");
            records[0]["loss"].as_f64().expect("a loss")
        });
        assert_eq!(losses[0], losses[1], "{run}: B starts at zero");
        assert_exported_and_merged(&scene, run);
        let trained = format!("{run}-trained");
        let sets = [&[plain, LAST][..], more].concat();
        scene.train(&trained, &sets);
        assert_exported_and_merged(&scene, &trained);
        let (paths, ranks, found) = eva(&scene, &trained);
        let rank = if run == "far" { 2 } else { 4 };
        assert_eq!(
            ranks.iter().sum::<u64>(),
            rank * paths.len() as u64,
            "{run}"
        );
        assert_eq!(
            ranks.iter().any(|own| *own != rank),
            run != "stays",
            "{run}: {ranks:?}"
        );
        assert_eq!(ranks.contains(&0), run == "far", "{run}: {ranks:?}");
        assert!(
            found["converged"]
                .as_array()
                .expect("a list")
                .iter()
                .all(|it| it == true)
        );
        let batches = found["batches"].as_u64().expect("a number");
        assert!(batches > 2 && found["examples"] == 8 * batches, "{found}");
        let explained = found["explained_variance"].as_array().expect("a list");
        for explained in explained {
            let shares = explained.as_array().expect("a list").iter();
            let shares: Vec<f64> = shares.map(|it| it.as_f64().expect("a share")).collect();
            assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
            assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-5, "{shares:?}");
        }
        // What is exported has the scales that the recipe gives, or those of the new ranks.
        let config = config(&scene.path(&trained));
        for (path, rank) in paths.iter().zip(&ranks).filter(|(_, rank)| **rank > 0) {
            let own = |pattern: &str, default: &str| {
                let own = config[pattern].get(format!("bert.{path}"));
                own.unwrap_or(&config[default]).as_f64().expect("a number")
            };
            assert_eq!(own("rank_pattern", "r"), *rank as f64);
            let scale = own("alpha_pattern", "lora_alpha") / *rank as f64;
            let expected = match run {
                "scaled" => 16.0 / *rank as f64,
                "far" => 8.0,
                _ => 4.0,
            };
            assert!((scale - expected).abs() < 1e-9, "{run}, {path}: {scale}");
        }
        // What is run for it counts.
        let flops = |run: &str| {
            scene.records(run, "metrics.jsonl")[0]["flops"]
                .as_u64()
                .expect("a number")
        };
        assert!(flops(run) > flops("lora"));
    }
    // Rows are there from the start, in orthogonal directions.
    let tensors =
        dynalora_tests::Golden::open(&scene.path("eva/adapter/adapter_model.safetensors"));
    let name = "base_model.model.bert.encoder.layer.1.output.dense.lora_A.weight";
    let (a, rank) = (tensors.floats(name), tensors.shape(name)[0]);
    for (i, row) in a.chunks_exact(64).enumerate() {
        for (j, other) in a.chunks_exact(64).enumerate() {
            let dot: f32 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            assert!(
                (dot - f32::from(u8::from(i == j))).abs() < 1e-4,
                "{i}, {j} of {rank}: {dot}"
            );
        }
    }
    assert!(
        scene
            .ok(&["plan", "recipe.toml", "--set", EVA])
            .contains("EVA will move ranks")
    );
    let said = scene.ok(&["plan", "recipe.toml", "--json", "--set", EVA]);
    let plan: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(plan["ranks_move"], true);
}

/// It goes by seed and recipe alone, on any number of threads, and a run that goes on does not look again.
#[test]
fn eva_is_found_once_and_the_same_again() {
    let scene = Scene::new();
    let sets = [
        EVA,
        "adapter.rank=2",
        "adapter.eva.rho=4",
        "adapter.eva.tau=0.9",
    ];
    let run = scene.train("run", &sets);
    let threads = scene.train("threads", &[&sets[..], &["threads=1"]].concat());
    assert_eq!(difference(&run, &threads, &[]), "");
    let seed = scene.train("seed", &[&sets[..], &["seed=4"]].concat());
    assert_ne!(difference(&run, &seed, &[]), "");
    scene.assert_resumes(
        "eva",
        &[&sets[..], &["train.steps=200", "checkpoint.every=1"]].concat(),
    );
    // Also where no checkpoint is left, and all is done again.
    let lost = scene.train("lost", &sets);
    std::fs::remove_file(lost.join("summary.json")).expect("a file");
    std::fs::remove_dir_all(lost.join("checkpoints")).expect("a folder");
    let output = format!("output={}", lost.display());
    let mut arguments = vec![
        "train",
        "recipe.toml",
        "--quiet",
        "--resume",
        "--set",
        &output,
    ];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let said = scene.run(&arguments);
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert_eq!(difference(&run, &lost, &[]), "");
}

/// What plugins choose among has the ranks that EVA gave, and grows, shrinks and is tried out like any other.
#[test]
fn eva_meets_what_allocators_decide() {
    let scene = Scene::new();
    let base = [EVA, "adapter.eva.tau=0.9", LAST];
    for (run, more) in [
        (
            "budget",
            &["allocator={ plugin = \"rank-budget\", target_r = \"50%\" }"][..],
        ),
        (
            "grow",
            &[
                "allocator={ plugin = \"grow\", rank = \"50%\" }",
                "adapter.r_max=6",
                "adapter.eva.rho=1",
            ],
        ),
        (
            "layers",
            &[
                "allocation.unit=layer",
                "allocator={ plugin = \"top-k\", k = 1 }",
            ],
        ),
        ("trial", &["scorer={ plugin = \"trial\", held_back = 8 }"]),
        ("signals", &["train.log_signals=true", "adapter.eva.rho=3"]),
        (
            "random",
            &[
                "allocation.initial=random",
                "adapter.rank_pattern={ query = 6, '.*' = 3 }",
            ],
        ),
    ] {
        scene.train(run, &[&base[..], more].concat());
        assert_exported_and_merged(&scene, run);
        eva(&scene, run);
    }
    let folder = scene.path("signals").display().to_string();
    let replayed = ["plugins", "replay", "uniform", "--set", "k=50%", "--run"];
    scene.ok(&[&replayed[..], &[&folder]].concat());
    let folder = scene.path("random").display().to_string();
    scene.ok(&[&replayed[..], &[&folder]].concat());
}

#[test]
fn eva_is_refused_where_it_cannot_be() {
    let scene = Scene::new();
    for (sets, words) in [
        (
            &[EVA, "adapter.rank=17"][..],
            &[
                "the rank of encoder.layer.0.attention.self.query can become 34",
                "32 directions",
            ][..],
        ),
        (
            &[EVA, "adapter.kind=vera"],
            &["`adapter.init_lora_weights` belongs to kind = \"lora\""],
        ),
        (
            &["adapter.eva.rho=2"],
            &["`adapter.eva` is given, but pairs do not start by EVA"],
        ),
        (
            &["adapter.eva.rho=2", "adapter.kind=vera"],
            &["`adapter.eva` belongs to kind"],
        ),
        (
            &[EVA, "adapter.r_max=8"],
            &["`adapter.r_max` is given", "adapter.eva.rho = 1"],
        ),
        (
            &[EVA, "adapter.eva.rho=0.5"],
            &["`adapter.eva.rho` is 0.5", "at least 1"],
        ),
        (&[EVA, "adapter.eva.tau=1.5"], &["`adapter.eva.tau` is 1.5"]),
        (
            &[EVA, "adapter.eva.max_batches=0"],
            &["`adapter.eva.max_batches` is 0"],
        ),
        (
            &[EVA, "adapter.eva.label_mask_value=-100"],
            &["adapter.eva.label_mask_value"],
        ),
        // The pooler reads one token of each of eight examples, and 16 are wanted.
        (
            &[EVA, "adapter.rank=8", "adapter.eva.max_batches=1"],
            &[
                "pooler.dense read fewer than 16 tokens in 1 batches",
                "adapter.eva.max_batches",
            ],
        ),
    ] {
        refused(&scene, sets, words);
    }
    // What still moves is said.
    let output = scene.path("moving").display().to_string();
    let output = format!("output={output}");
    let said = scene.run(&[
        "train",
        "recipe.toml",
        "--set",
        EVA,
        "--set",
        "adapter.eva.max_batches=3",
        "--set",
        &output,
    ]);
    contains(&said, &["still moving after 3 batches", "adapter.eva.tau"]);
    assert!(said.status.success());
}

const TABLES: &str =
    "adapter.targets=[\"word_embeddings\",\"token_type_embeddings\",\"query\",\"value\"]";

/// Tables of embeddings are modules like others: chosen, pruned, grown, shared, scaled, exported, merged, gone on from.
#[test]
fn tables_of_embeddings_are_modules() {
    let scene = Scene::new();
    let run = scene.train("run", &[TABLES, LAST]);
    let found = config(&run);
    let targets = found["target_modules"].as_array().expect("a list");
    assert!(targets.contains(&json!("word_embeddings")), "{targets:?}");
    assert_exported_and_merged(&scene, "run");
    scene.assert_resumes("tables", &[TABLES]);
    assert_meets_allocators(&scene, &[TABLES]);
    for (run, sets) in [
        (
            "eva",
            &["adapter.init_lora_weights=eva", "adapter.eva.rho=1.5"][..],
        ),
        (
            "fisher",
            &["scorer={ plugin = \"fisher\" }", "allocation.probe_steps=2"],
        ),
        (
            "grown",
            &[
                "allocator={ plugin = \"grow\", rank = \"50%\" }",
                "adapter.rank_pattern={ word_embeddings = 2 }",
                "adapter.r_max=5",
            ],
        ),
        ("dora", &["adapter.use_dora=true", "scorer.target=delta"]),
        (
            "rslora",
            &[
                "adapter.use_rslora=true",
                "train.loraplus_lr_ratio=4",
                "train.loraplus_lr_embedding=1e-3",
            ],
        ),
    ] {
        scene.train(run, &[&[TABLES, LAST][..], sets].concat());
        assert_exported_and_merged(&scene, run);
    }
    // Their ranks stay with them.
    let eva = &scene.records("eva", "allocations.jsonl")[0]["eva"];
    assert_eq!(eva["ranks"].as_array().expect("ranks")[..2], [4, 4]);
    assert_eq!(eva["explained_variance"][0], json!([]));
    // All of it alone, and again from where it ended.
    let alone = ["adapter.targets=word_embeddings", LAST];
    let alone = [&alone[..], &["allocation.schedule={ kind = \"never\" }"]].concat();
    scene.train("alone", &alone);
    let on = [
        "adapter.from=alone",
        "train.steps=1",
        "train.learning_rate=1e-30",
    ];
    scene.train("on", &[&alone, &on[..]].concat());
    let (first, on) = (loss(&scene, "alone"), loss(&scene, "on"));
    assert!((first - on).abs() < 1e-6, "{first}, then {on}");
}

/// What changes how a run is computed changes none of its bits where tables train, and then do not.
#[test]
fn tables_change_no_bit_with_what_must_change_none() {
    let scene = Scene::new();
    let dropouts = ["hidden", "attention", "classifier"];
    let dropouts = dropouts.map(|key| format!("model.{key}_dropout=0"));
    let common: Vec<&str> = dropouts.iter().map(String::as_str).collect();
    // From the first step on they are inactive now and then, and what they have learnt stays below.
    let common = [
        &common[..],
        &[
            TABLES,
            LAST,
            "allocator={ plugin = \"uniform\", k = 2 }",
            "allocation.schedule={ kind = \"periodic\", every = 1 }",
            "train.steps=24",
        ],
    ]
    .concat();
    let plain = scene.train("plain", &common);
    let masks = scene.records("plain", "allocations.jsonl");
    let of_table = masks.iter().skip(1).map(|it| it["active"][0] == true);
    let of_table: Vec<bool> = of_table.collect();
    assert!(of_table.contains(&true) && of_table.contains(&false));
    for (run, set) in [
        ("cached", "train.cache_frozen_prefix=true"),
        ("twice", "train.gradient_checkpointing=true"),
        ("one", "threads=1"),
    ] {
        let other = scene.train(run, &[&common[..], &[set]].concat());
        let weights = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors"));
        let (ours, theirs) = (
            weights(&other).expect("a file"),
            weights(&plain).expect("a file"),
        );
        assert!(ours == theirs, "{run}");
    }
    // In parts a batch gives the same but for rounding.
    let parts = ["train.batch_size=4", "train.gradient_accumulation=2"];
    scene.train("parts", &[&common[..], &parts[..]].concat());
    let [whole, parts] = ["plain", "parts"].map(|run| {
        let records = scene.records(run, "metrics.jsonl");
        records[0]["loss"].as_f64().expect("a loss")
    });
    assert!((whole - parts).abs() < 1e-5, "{whole}, in parts {parts}");
}

#[test]
fn what_tables_of_embeddings_do_not_have_is_refused() {
    let scene = Scene::new();
    let word = "embeddings.word_embeddings, a table of embeddings";
    for (sets, words) in [
        (&["adapter.kind=vera"][..], &[word, "\"vera\""][..]),
        (&[PISSA], &[word, "\"pissa\""]),
        (
            &[
                "adapter.targets=word_embeddings",
                "adapter.init_lora_weights=eva",
            ],
            &[word, "\"eva\"", "none is a target"],
        ),
        (
            &["adapter.targets=word_embeddings", "adapter.dropout=0.1"],
            &[word, "nothing drops out"],
        ),
        (
            &["adapter.targets=word_embeddings", "adapter.bias=lora_only"],
            &["none of the 1 adapted layers has a bias"],
        ),
        (
            &["train.loraplus_lr_embedding=1e-3"],
            &["without `train.loraplus_lr_ratio`"],
        ),
        (
            &[
                "adapter.targets=query",
                "train.loraplus_lr_ratio=4",
                "train.loraplus_lr_embedding=1e-3",
            ],
            &["none of the 2 adapted modules is a table"],
        ),
        (
            &["adapter.targets=wte"],
            &[
                "\"wte\" matches no linear layer",
                "embeddings.word_embeddings",
            ],
        ),
    ] {
        let sets = [&[TABLES][..], sets].concat();
        refused(&scene, &sets, words);
    }
}
