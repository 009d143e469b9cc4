//! Whole runs of the built program with its real plugins.

use std::path::Path;

use dynalora_tests::{Golden, Scene, module_paths};
use serde_json::Value;

fn adapter(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
}

fn active(record: &Value) -> Vec<bool> {
    record["active"]
        .as_array()
        .expect("a mask")
        .iter()
        .map(|v| v == &Value::Bool(true))
        .collect()
}

#[test]
fn every_scorer_and_allocator_is_a_word_away() {
    let scene = Scene::new();
    for scorer in ["activation", "gradient"] {
        for (allocator, k) in [
            ("top-k", true),
            ("multinomial", true),
            ("discounted", true),
            ("uniform", true),
            ("threshold", false),
        ] {
            if !k {
                scene.edit("k = \"50%\"", "p = 0.5");
            }
            let name = format!("{scorer}-{allocator}");
            let sets = [
                format!("scorer.plugin={scorer}"),
                format!("allocator.plugin={allocator}"),
            ];
            scene.train(&name, &[&sets[0], &sets[1]]);
            let records = scene.records(&name, "allocations.jsonl");
            // The initial choice, and reallocations after steps 4 and 8; none after the last step.
            let steps: Vec<_> = records
                .iter()
                .map(|record| record["step"].as_u64())
                .collect();
            assert_eq!(steps, [Some(0), Some(4), Some(8)], "{name}");
            // query, value and two `dense` in each of two layers; the pooler, which is a `dense` too; and
            // the feed-forward's first.
            let modules = records[0]["modules"].as_array().expect("paths").len();
            assert!(active(&records[0]).iter().all(|active| *active));
            for record in &records[1..] {
                let chosen = active(record).iter().filter(|active| **active).count();
                if k {
                    let half = (modules as f64 / 2.0).round() as usize;
                    assert_eq!(chosen, half, "{name} of {modules}");
                } else {
                    assert!((1..modules).contains(&chosen), "{name}");
                }
                for (active, rank) in active(record)
                    .iter()
                    .zip(record["ranks"].as_array().expect("ranks"))
                {
                    assert_eq!(rank.as_u64() == Some(4), *active);
                }
            }
            assert!(
                scene
                    .path(&name)
                    .join("adapter/adapter_config.json")
                    .is_file()
            );
        }
        scene.edit("k = \"50%\"", "k = \"50%\"");
    }
}

#[test]
fn the_control_draws_the_same_modules_without_a_scorer() {
    let scene = Scene::new();
    let uniform = "allocator.plugin=uniform";
    scene.train("measured", &[uniform]);
    scene.edit("[scorer]\nplugin = \"activation\"\n", "");
    scene.train("unmeasured", &[uniform]);
    let [measured, unmeasured] =
        ["measured", "unmeasured"].map(|name| scene.records(name, "allocations.jsonl"));
    assert_eq!(measured.len(), unmeasured.len());
    for (measured, unmeasured) in measured.iter().zip(&unmeasured).skip(1) {
        assert_eq!(active(measured), active(unmeasured));
        let scores = |record: &Value| record["scores"].as_array().map_or(0, Vec::len);
        assert!(scores(measured) > 0 && scores(unmeasured) == 0);
    }
    // Nobody else does without.
    let refused = scene.run(&[
        "train",
        "recipe.toml",
        "--set",
        "allocator.plugin=top-k",
        "--set",
        "output=refused",
    ]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn an_inactive_module_stays_as_it_is() {
    let scene = Scene::new();
    let set = "allocation.schedule={ kind = \"once\", after = 6 }";
    let run = scene.train(
        "run",
        &[
            set,
            "checkpoint.every=6",
            "allocation.unit=layer",
            "allocator.k=1",
        ],
    );
    let records = scene.records("run", "allocations.jsonl");
    assert_eq!(records.len(), 2);
    let modules = module_paths(&records[0]);
    let chosen = active(&records[1]);
    // A whole unit: one layer's modules, or the pooler alone.
    let layer = |path: &str| {
        path.rsplit_once("layer.")
            .map(|(_, rest)| rest[..1].to_owned())
    };
    let first = chosen
        .iter()
        .position(|active| *active)
        .expect("one is active");
    for (module, active) in modules.iter().zip(&chosen) {
        assert_eq!(*active, layer(module) == layer(modules[first]), "{module}");
    }
    // The ledger counts the updates: six for all, six more for the chosen.
    let metrics = scene.records("run", "metrics.jsonl");
    let last = metrics
        .iter()
        .rfind(|record| record["kind"] == "step")
        .expect("steps");
    let count = chosen.iter().filter(|active| **active).count() as u64;
    assert_eq!(last["active_modules"].as_u64(), Some(count));
    assert!(run.join("summary.json").is_file());
}

/// What VeRA and the dynamic allocation of it have in a recipe.
const VERA: [&str; 3] = [
    "adapter.kind=vera",
    "train.learning_rate=0.05",
    "adapter.d_initial=0.5",
];

#[test]
fn vera_takes_every_scorer() {
    let scene = Scene::new();
    for (name, scorer) in [
        ("output", &["scorer.plugin=activation"][..]),
        (
            "delta",
            &["scorer.plugin=activation", "scorer.target=delta"][..],
        ),
        ("gradient", &["scorer.plugin=gradient"][..]),
    ] {
        let run = scene.train(name, &[&VERA[..], scorer].concat());
        let records = scene.records(name, "allocations.jsonl");
        assert_eq!(records.len(), 3, "{name}");
        for record in &records[1..] {
            let chosen = active(record).iter().filter(|active| **active).count();
            assert_eq!(chosen, 6, "{name}");
            let scores = record["scores"].as_array().expect("scores");
            // By the second reallocation half of the modules have been left for four steps, not before.
            let positive = scores.iter().filter(|score| score.as_f64() > Some(0.0));
            assert_eq!(positive.count(), 11, "{name}: {scores:?}");
        }
        let config = std::fs::read_to_string(run.join("adapter/adapter_config.json"));
        let config: Value = serde_json::from_str(&config.expect("a file")).expect("JSON");
        assert_eq!(
            (&config["peft_type"], &config["r"]),
            (&"VERA".into(), &4.into())
        );
        assert_eq!(config["save_projection"], true);
        // What is written is read back: the best checkpoint's value is found again.
        let summary = std::fs::read_to_string(run.join("summary.json")).expect("a file");
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        let run = run.to_str().expect("a UTF-8 path");
        let scores: Value =
            serde_json::from_str(&scene.ok(&["evaluate", run, "--json"])).expect("JSON");
        assert_eq!(scores[0]["metrics"]["accuracy"], summary["best"]["value"]);
        scene.ok(&["predict", run, "One, two, three."]);
    }
}

#[test]
fn inactive_vectors_stay_bit_for_bit() {
    let scene = Scene::new();
    let fixed = [
        "allocation.schedule={ kind = \"once\", after = 6 }",
        "train.lr_schedule=constant",
        "train.warmup=0",
        "evaluation.every=never",
        "allocator.k=4",
    ];
    for scorer in ["scorer.plugin=activation", "scorer.plugin=gradient"] {
        // The same seven steps, the last with four modules active, with which one run goes on.
        let name = |part: &str| format!("{part}-{}", &scorer[14..]);
        let sets = [&VERA[..], &fixed, &[scorer]].concat();
        let seven = scene.train(&name("seven"), &[&sets[..], &["train.steps=7"]].concat());
        let twelve = scene.train(&name("twelve"), &sets);
        let record = scene
            .records(&name("twelve"), "allocations.jsonl")
            .remove(1);
        let chosen = active(&record);
        assert_eq!(chosen.iter().filter(|active| **active).count(), 4);
        let tensors = "adapter/adapter_model.safetensors";
        let [before, after] = [seven, twelve].map(|run| Golden::open(&run.join(tensors)));
        let first = scene
            .records(&name("twelve"), "allocations.jsonl")
            .remove(0);
        let modules = first["modules"].as_array().expect("paths");
        for (module, active) in modules.iter().zip(chosen) {
            let module = module.as_str().expect("a path");
            for part in ["vera_lambda_d", "vera_lambda_b"] {
                let tensor = format!("base_model.model.bert.{module}.{part}");
                let bits = |file: &Golden| -> Vec<u32> {
                    file.floats(&tensor).into_iter().map(f32::to_bits).collect()
                };
                assert_eq!(bits(&before) != bits(&after), active, "{tensor}");
            }
        }
        for shared in ["base_model.vera_A", "base_model.vera_B"] {
            assert_eq!(before.floats(shared), after.floats(shared));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_adapter_bit_for_bit() {
    let scene = Scene::new();
    // With every source of chance: dropout, sampling, a random start.
    let sets = [
        "allocator.plugin=multinomial",
        "allocation.initial=random",
        "adapter.dropout=0.1",
    ];
    let first = adapter(&scene.train("first", &sets));
    assert!(first == adapter(&scene.train("second", &sets)));
    let mut other = sets.to_vec();
    other.push("seed=4");
    assert!(first != adapter(&scene.train("other", &other)));
}

#[test]
fn a_killed_run_resumes_to_the_same_adapter_bit_for_bit() {
    let scene = Scene::new();
    for (policy, kind) in [
        ("global", "lora"),
        ("local", "lora"),
        ("reset", "lora"),
        ("global", "vera"),
        ("reset", "vera"),
    ] {
        let sets = [
            &*format!("allocation.optimizer_state={policy}"),
            &*format!("adapter.kind={kind}"),
            "train.steps=400",
            "checkpoint.every=20",
            "evaluation.every=50",
            "scorer.plugin=gradient",
            "allocator.plugin=discounted",
        ];
        scene.assert_resumes(&format!("{policy}-{kind}"), &sets);
    }
}

#[test]
fn a_run_is_evaluated_and_predicts() {
    let scene = Scene::new();
    let run = scene.train(
        "run",
        &["train.steps=60", "allocation.schedule={ kind = \"never\" }"],
    );
    let run = run.to_str().expect("a UTF-8 path");
    let summary: Value = serde_json::from_str(
        &std::fs::read_to_string(format!("{run}/summary.json")).expect("there"),
    )
    .expect("JSON");
    let scores: Value =
        serde_json::from_str(&scene.ok(&["evaluate", run, "--json"])).expect("JSON");
    // The adapter is the best checkpoint's, so evaluation finds the best value again.
    let accuracy = scores[0]["metrics"]["accuracy"].as_f64().expect("a number");
    assert_eq!(Some(accuracy), summary["best"]["value"].as_f64());
    // The adapter's own folder is as good as the run's.
    let again = scene.ok(&["evaluate", &format!("{run}/adapter"), "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&again).expect("JSON"), scores);

    let lines = scene.ok(&["predict", run, "One, two, three.", "Nothing", "--json"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON lines"))
        .collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert!(["comma", "none"].contains(&line["label"].as_str().expect("a label")));
        let probabilities = line["probabilities"].as_array().expect("a list");
        let sum: f64 = probabilities
            .iter()
            .filter_map(|pair| pair[1].as_f64())
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
}

/// `dynalora plan --json` with more arguments.
fn plan(scene: &Scene, arguments: &[&str]) -> Value {
    let arguments = [&["plan", "recipe.toml", "--json"], arguments].concat();
    serde_json::from_str(&scene.ok(&arguments)).expect("JSON")
}

#[test]
fn a_plan_counts_modules_parameters_operations_and_memory() {
    let scene = Scene::new();
    let whole = plan(&scene, &[]);
    // Hidden 32, intermediate 64, rank 4: query, value, output projection 256 each, feed-forward 384
    // each, in two layers; the pooler 256.
    assert_eq!(whole["modules"].as_array().expect("a list").len(), 11);
    assert_eq!(whole["adapter_parameters"], 2 * (3 * 256 + 2 * 384) + 256);
    assert_eq!(whole["active_parameters"], whole["adapter_parameters"]);
    assert_eq!(whole["active_modules"], 11);
    assert_eq!(whole["lowest_active_layer"], 0);
    // Embeddings of 200 words, 64 positions and 2 types, their norm; in each layer four projections,
    // the feed-forward and two norms; the pooler.
    let layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64;
    let base = (200 + 64 + 2) * 32 + 64 + 2 * layer + (32 * 32 + 32);
    assert_eq!(whole["base_parameters"], base);
    // The training file has two labels: weight and bias of each.
    assert_eq!(whole["labels"], serde_json::json!(["comma", "none"]));
    assert_eq!(whole["outputs"], 2);
    assert_eq!(whole["head_parameters"], 2 * 33);

    // Forward, one token of 64: products of 2·in·out, pairs of 2·rank·(in + out) beside all but the key,
    // attention 4·64·32; the pooler for one token of each sequence.
    let pairs = 3 * 512 + 2 * 768;
    let attention = 4 * 64 * 32;
    let products = 4 * 2048 + 2 * 4096;
    let forward = 2 * (products + pairs + attention) + (2048 + 512) / 64;
    assert_eq!(whole["forward_flops"], forward);
    // Backward. In the upper layer every input wants its gradient, which costs as much as the forward
    // pass, attention twice that, and the pairs' own gradients as much as they did forward. In the lower
    // one nothing is wanted below the attention: no product of query, key and value, no x·Aᵀ of theirs.
    let upper = products + 2 * pairs + 2 * attention;
    let lower = upper - 3 * 2048 - 2 * 256;
    let pooler = (2048 + 2 * 512) / 64;
    assert_eq!(whole["backward_flops"], upper + lower + pooler);

    // f32: values, gradients, two moments.
    let memory = &whole["memory"];
    let trained = 3328 + 66;
    assert_eq!(whole["tokens"], 8 * 64);
    assert_eq!(memory["weights"], 4 * base);
    for (part, expected) in [
        ("adapters", 4 * trained),
        ("gradients", 4 * trained),
        ("optimizer", 8 * trained),
    ] {
        assert_eq!(memory[part], expected, "{part}");
    }
    let parts = [
        "process",
        "weights",
        "adapters",
        "gradients",
        "optimizer",
        "activations",
    ];
    let sum: u64 = parts.iter().filter_map(|part| memory[part].as_u64()).sum();
    assert_eq!(memory["total"], sum);

    // Kept of each of 512 tokens for the way back: in the lower layer its input, queries, keys and values, what the
    // attention gives, two sums before norms and the input of the feed-forward (8 · 32), and its inner values before
    // and after the activation (2 · 64); of the upper one, for all tokens its input, keys and values, for the first of
    // each sequence all else, with its queries. Five pairs a layer: 4 values each. The pooler's input and pair. Beside
    // it the largest working set.
    let (tokens, firsts) = (8 * 64, 8);
    let of_lower = tokens * (8 * 32 + 2 * 64 + 5 * 4);
    let of_upper = tokens * (3 * 32 + 4) + firsts * (6 * 32 + 2 * 64 + 4 * 4);
    let kept = of_lower + of_upper + firsts * (32 + 4);
    assert_eq!(
        memory["activations"],
        4 * (kept + tokens * (2 * 64 + 4 * 32))
    );

    // The upper three are the feed-forward of the upper layer and the pooler. The inner one's input wants
    // no gradient: its own two products and the way to x·Aᵀ remain.
    let three = plan(&scene, &["--active", "3"]);
    assert_eq!(three["active_parameters"], 2 * 384 + 256);
    assert_eq!(three["lowest_active_layer"], 1);
    assert_eq!(three["forward_flops"], forward);
    let inner = 512 + 768;
    let outer = 4096 + 2 * 768;
    assert_eq!(three["backward_flops"], inner + outer + pooler);
    assert_eq!(three["memory"]["gradients"], 4 * (1024 + 66));
    assert_eq!(three["memory"]["optimizer"], memory["optimizer"]);
    assert!(three["memory"]["activations"].as_u64() < memory["activations"].as_u64());
    let reset = plan(
        &scene,
        &["--active", "3", "--set", "allocation.optimizer_state=reset"],
    );
    assert_eq!(reset["memory"]["optimizer"], 8 * (1024 + 66));
    // The pooler alone: nothing of a layer is reached.
    let one = plan(&scene, &["--active", "1"]);
    assert_eq!(one["lowest_active_layer"], Value::Null);
    assert_eq!(one["backward_flops"], (256 + 512) / 64);

    // By layers: the pooler and the upper layer, which is then the first that is reached.
    let layers = plan(&scene, &["--active", "2", "--set", "allocation.unit=layer"]);
    assert_eq!(layers["active_modules"], 6);
    assert_eq!(layers["lowest_active_layer"], 1);
    assert_eq!(layers["backward_flops"], lower + pooler);
    // Nothing was trained.
    assert!(!scene.path("run").exists());
}

#[test]
fn a_plan_counts_veras_vectors_and_shared_matrices() {
    let scene = Scene::new();
    let lora = plan(&scene, &[]);
    let whole = plan(&scene, &["--set", "adapter.kind=vera"]);
    // Rank 4: λ_d of 4 and λ_b of 32, or 64 where the feed-forward widens.
    let adapters = 2 * (4 * 36 + 68) + 36;
    assert_eq!(whole["adapter_parameters"], adapters);
    assert_eq!(whole["active_parameters"], adapters);
    // A and B at widths 32 and 64.
    assert_eq!(whole["projection_values"], 4 * (32 + 64) * 2);
    assert_eq!(lora["projection_values"], 0);
    let trained = adapters + 66;
    let memory = &whole["memory"];
    assert_eq!(memory["adapters"], 4 * (trained + 768));
    assert_eq!(memory["gradients"], 4 * trained);
    assert_eq!(memory["optimizer"], 8 * trained);
    // B scaled of each module, once, beside what every token leaves; no module's input, for A does not train: in the
    // lower layer four values of 32 and one of 64, in the upper one that of the value projection for all tokens, of the
    // others for the first of each sequence, as of the pooler.
    let scaled = 4 * 4 * (2 * (4 * 32 + 64) + 32);
    let (rows, firsts) = (8 * 64, 8);
    let inputs = 4 * (rows * (3 * 32 + 64) + rows * 32 + firsts * (3 * 32 + 64) + firsts * 32);
    let kept = |plan: &Value| plan["memory"]["activations"].as_u64().expect("a number");
    assert_eq!(kept(&whole), kept(&lora) + scaled - inputs);

    assert_eq!(whole["forward_flops"], lora["forward_flops"]);
    // The gradients of both vectors come of one product of B's size. Where the input wants none (query and
    // value of the lower layer), it is the only one.
    let pairs = 3 * 512 + 2 * 768;
    let own = 4 * 256 + 512;
    let products = 4 * 2048 + 2 * 4096;
    let upper = products + pairs + own + 2 * 4 * 64 * 32;
    let lower = upper - 3 * 2048 - 2 * 512;
    let pooler = (2048 + 512 + 256) / 64;
    assert_eq!(whole["backward_flops"], upper + lower + pooler);
}

#[test]
fn a_plan_knows_the_classes_and_the_modules_a_run_starts_with() {
    let scene = Scene::new();
    // Named in the recipe, the data is not needed.
    scene.edit(
        "[data.columns]",
        "labels = [\"a\", \"b\", \"c\"]\n[data.columns]",
    );
    std::fs::rename(scene.path("train.csv"), scene.path("away.csv")).expect("it is there");
    let classes = plan(&scene, &[]);
    assert_eq!(
        (&classes["outputs"], &classes["head_parameters"]),
        (&3.into(), &(3 * 33).into())
    );
    scene.edit("[data.columns]", "problem = \"regression\"\n[data.columns]");
    let value = plan(&scene, &[]);
    assert_eq!(
        (&value["outputs"], &value["head_parameters"]),
        (&1.into(), &33.into())
    );
    assert!(
        scene
            .ok(&["plan", "recipe.toml"])
            .contains("33 parameters, one value")
    );
    let own =
        "train = \"train.csv\"\nvalidation = \"dev.csv\"\n[data.columns]\ntext = \"sentence\"";
    scene.edit(own, "task = \"mnli\"\ndir = \"nowhere\"");
    let task = plan(&scene, &[]);
    assert_eq!(
        task["labels"],
        serde_json::json!(["entailment", "neutral", "contradiction"])
    );
    assert_eq!(task["head_parameters"], 3 * 33);
    std::fs::rename(scene.path("away.csv"), scene.path("train.csv")).expect("it is there");

    // The plan's choice is the run's.
    scene.edit("k = \"50%\"", "k = \"50%\"");
    for (number, sets) in [
        &["allocation.initial=random"][..],
        &[
            "allocation.initial=random",
            "allocation.initial_k=2",
            "seed=8",
        ],
        &[
            "allocation.initial=random",
            "allocation.unit=layer",
            "allocation.initial_k=1",
        ],
    ]
    .iter()
    .enumerate()
    {
        let run = format!("run-{number}");
        scene.train(&run, sets);
        let first = scene.records(&run, "allocations.jsonl").remove(0);
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let planned = plan(&scene, &sets);
        assert_eq!(planned["active"], first["active"], "{sets:?}");
        let chosen = active(&first).iter().filter(|active| **active).count();
        assert_eq!(planned["active_modules"], chosen);
        assert!(chosen < 11);
    }
}

#[test]
fn a_diverged_run_stops_with_its_last_good_state() {
    let scene = Scene::new();
    let output = format!("output={}", scene.path("run").display());
    let sets = [
        "train.learning_rate=1e30",
        "train.lr_schedule=constant",
        "train.warmup=0",
    ];
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--set", &output];
    for set in &sets {
        arguments.extend(["--set", set]);
    }
    let result = scene.run(&arguments);
    let said = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{said}");
    assert!(
        said.contains("diverged") && said.contains("learning_rate"),
        "{said}"
    );
    assert!(
        scene
            .path("run")
            .join("checkpoints/pointers.json")
            .is_file()
    );
    assert!(
        scene
            .path("run")
            .join("adapter/adapter_config.json")
            .is_file()
    );
}

/// What a cached prefix needs: no dropout, and modules above it alone.
const UPPER_ONLY: [&str; 5] = [
    "model.hidden_dropout=0.0",
    "model.attention_dropout=0.0",
    "allocation.schedule={ kind = \"never\" }",
    "adapter.targets=[\"glob:encoder.layer.1.*.*.query\", \"glob:encoder.layer.1.output.*\"]",
    "train.steps=24",
];

#[test]
fn a_cached_prefix_changes_nothing() {
    let scene = Scene::new();
    for kind in ["adapter.kind=lora", "adapter.kind=vera"] {
        let sets = [&UPPER_ONLY[..], &[kind]].concat();
        let without = adapter(&scene.train(&format!("without-{kind}"), &sets));
        for memory in ["train.cache_memory_mib=512", "train.cache_memory_mib=0"] {
            let sets = [&sets[..], &["train.cache_frozen_prefix=true", memory]].concat();
            let run = scene.train(&format!("{memory}-{kind}").replace('=', "-"), &sets);
            assert!(adapter(&run) == without, "{memory}, {kind}");
        }
    }
}

#[test]
fn a_cached_prefix_is_refused_with_dropout() {
    let scene = Scene::new();
    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--set",
        "train.cache_frozen_prefix=true",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("model.hidden_dropout is 0.1"), "{said}");
}
