//! Rank pruning: whole runs with the allocator `rank-budget`, and what they export.

use std::path::Path;

use dynalora_tests::{Golden, Scene, minilm, module_paths};
use serde_json::Value;

/// The tiny recipe with `rank-budget`, by its own measurements: eleven modules of rank 4, 40 steps.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"\n\n[train]\nsteps = 12",
        "[allocator]\nplugin = \"rank-budget\"\ntarget_r = \"25%\"\ntinit = 8\ntfinal = 12\n\n[train]\nsteps = 40",
    );
    scene
}

fn numbers(value: &Value) -> Vec<u64> {
    let list = value.as_array().expect("a list");
    list.iter().filter_map(Value::as_u64).collect()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a run's file");
    serde_json::from_str(&text).expect("JSON")
}

/// The run's last checkpoint: which components of each module remain, and the folder.
fn last_checkpoint(run: &Path) -> (Vec<Vec<bool>>, std::path::PathBuf) {
    let checkpoints = run.join("checkpoints");
    let pointers = json(&checkpoints.join("pointers.json"));
    let folder = checkpoints.join(pointers["last"]["checkpoint"].as_str().expect("a name"));
    let state = json(&folder.join("progress.json"));
    let components = serde_json::from_value(state["allocation"]["components"].clone());
    (components.expect("flags"), folder)
}

#[test]
fn ranks_follow_the_schedule_and_what_is_pruned_is_zero() {
    let scene = scene();
    let run = scene.train("run", &["train.weight_decay=0.1"]);
    let records = scene.records("run", "allocations.jsonl");
    let steps: Vec<u64> = records
        .iter()
        .filter_map(|record| record["step"].as_u64())
        .collect();
    assert_eq!(steps, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]);
    let modules = module_paths(&records[0]);
    assert_eq!(modules.len(), 11);
    for (record, step) in records.iter().zip(steps) {
        // From 44 to 11 between steps 8 and 28, by the cube of what is left of the way.
        let left = 28 - step.clamp(8, 28);
        let budget = 11 + 33 * left.pow(3) / 8000;
        let ranks = numbers(&record["ranks"]);
        assert_eq!(ranks.iter().sum::<u64>(), budget, "after step {step}");
        assert!(ranks.iter().all(|rank| *rank <= 4));
        let active = record["active"].as_array().expect("a mask");
        for (rank, active) in ranks.iter().zip(active) {
            assert_eq!(*rank > 0, active == true);
        }
        assert_eq!(record["scores"], serde_json::json!([]));
    }
    // In the end nothing moves.
    let last = numbers(&records[9]["ranks"]);
    assert_eq!(numbers(&records[7]["ranks"]), last);
    assert!(
        last.iter().any(|rank| *rank != last[0]),
        "{last:?} are all equal"
    );
    // What trains is counted by rank: hidden 32, intermediate 64.
    let metrics = scene.records("run", "metrics.jsonl");
    let step = metrics
        .iter()
        .rfind(|record| record["kind"] == "step")
        .expect("steps");
    let width = |path: &str| match path.rsplit_once("layer.") {
        Some((_, rest)) if rest.ends_with("intermediate.dense") => 96,
        Some((_, rest)) if &rest[2..] == "output.dense" => 96,
        _ => 64,
    };
    let parameters: u64 = modules
        .iter()
        .zip(&last)
        .map(|(path, rank)| width(path) * rank)
        .sum();
    assert_eq!(step["active_parameters"].as_u64(), Some(parameters));

    let (components, folder) = last_checkpoint(&run);
    let state = Golden::open(&folder.join("state.safetensors"));
    for ((module, remaining), rank) in modules.iter().zip(&components).zip(&last) {
        assert_eq!(
            remaining.iter().filter(|remains| **remains).count() as u64,
            *rank
        );
        let part = |part: &str| state.floats(&format!("{module}.{part}"));
        let column = |values: &[f32], k: usize| -> Vec<f32> {
            values.iter().skip(k).step_by(4).copied().collect()
        };
        for (k, remains) in remaining.iter().enumerate() {
            let zero = |values: Vec<f32>| values.iter().all(|value| *value == 0.0);
            assert_eq!(zero(column(&part("lora_B"), k)), !remains, "{module} {k}");
            for moment in ["exp_avg", "exp_avg_sq"] {
                let of_b = column(&part(&format!("lora_B.{moment}")), k);
                assert_eq!(zero(of_b), !remains, "{module} {k} {moment}");
                let of_a = part(&format!("lora_A.{moment}"));
                let row = of_a.chunks(of_a.len() / 4).nth(k).expect("a row").to_vec();
                assert_eq!(zero(row), !remains, "{module} {k} {moment}");
            }
            // Their A stays: a component can come back.
            let of_a = part("lora_A");
            assert!(!zero(
                of_a.chunks(of_a.len() / 4).nth(k).expect("a row").to_vec()
            ));
        }
    }
}

#[test]
fn the_adapter_is_exported_at_its_ranks_and_predicts_the_same() {
    let scene = scene();
    let run = scene.train("run", &["evaluation.every=40"]);
    let records = scene.records("run", "allocations.jsonl");
    let ranks = numbers(&records[9]["ranks"]);
    let config = json(&run.join("adapter/adapter_config.json"));
    let tensors = Golden::open(&run.join("adapter/adapter_model.safetensors"));
    let names = tensors.names();
    let targets = config["target_modules"].as_array().expect("paths");
    let modules = records[0]["modules"].as_array().expect("paths");
    for (module, rank) in modules.iter().filter_map(Value::as_str).zip(&ranks) {
        let path = format!("bert.{module}");
        let [a, b] =
            ["lora_A", "lora_B"].map(|part| format!("base_model.model.{path}.{part}.weight"));
        let target = targets.contains(&Value::from(path.as_str()));
        assert_eq!(
            (target, names.contains(&a)),
            (*rank > 0, *rank > 0),
            "{path}"
        );
        let (own, alpha) = (
            &config["rank_pattern"][&path],
            &config["alpha_pattern"][&path],
        );
        match *rank {
            0 | 4 => assert!(own.is_null() && alpha.is_null(), "{path}"),
            rank => {
                // alpha / rank is 16 / 4 everywhere.
                assert_eq!((own, alpha), (&rank.into(), &(4 * rank).into()), "{path}");
            }
        }
        if *rank > 0 {
            let width = tensors.floats(&a).len() + tensors.floats(&b).len();
            assert_eq!(width as u64 % rank, 0);
            assert!(
                [64, 96].contains(&(width as u64 / rank)),
                "{path}: {width} at {rank}"
            );
        }
    }
    assert!(
        config["rank_pattern"]
            .as_object()
            .is_some_and(|some| !some.is_empty())
    );

    // The run's own evaluation was of the pruned pairs at full width.
    let evaluation = scene
        .records("run", "metrics.jsonl")
        .pop()
        .expect("an evaluation");
    let run = run.to_str().expect("UTF-8");
    for target in [run.to_owned(), format!("{run}/adapter")] {
        let scores: Value =
            serde_json::from_str(&scene.ok(&["evaluate", &target, "--json"])).expect("JSON");
        assert_eq!(scores[0]["metrics"], evaluation["metrics"]);
        let [ours, theirs] =
            [&scores[0], &evaluation].map(|of| of["loss"].as_f64().expect("a loss"));
        assert!((ours - theirs).abs() < 1e-6, "{ours}, not {theirs}");
    }
}

#[test]
fn the_best_checkpoint_is_exported_at_its_own_ranks() {
    let scene = scene();
    // The learning rate is at its peak late: the best is not the last.
    let run = scene.train("run", &["evaluation.every=4"]);
    let best = json(&run.join("summary.json"))["best"]["step"]
        .as_u64()
        .expect("a best");
    let records = scene.records("run", "allocations.jsonl");
    let record = records
        .iter()
        .rfind(|record| record["step"].as_u64().is_some_and(|step| step <= best))
        .expect("an allocation");
    let tensors = Golden::open(&run.join("adapter/adapter_model.safetensors"));
    let modules = records[0]["modules"].as_array().expect("paths");
    let mut found = Vec::new();
    for module in modules.iter().filter_map(Value::as_str) {
        let name = format!("base_model.model.bert.{module}.lora_A.weight");
        let inputs = match module.strip_prefix("encoder.layer.") {
            Some(rest) if &rest[2..] == "output.dense" => 64,
            _ => 32,
        };
        let rank = match tensors.names().contains(&name) {
            true => tensors.floats(&name).len() as u64 / inputs,
            false => 0,
        };
        found.push(rank);
    }
    assert_eq!(found, numbers(&record["ranks"]), "best at step {best}");
}

#[test]
fn a_killed_run_resumes_with_its_masks_bit_for_bit() {
    let scene = scene();
    for policy in ["global", "local", "reset"] {
        let state = format!("allocation.optimizer_state={policy}");
        let sets = [
            state.as_str(),
            "train.steps=400",
            "checkpoint.every=20",
            "evaluation.every=50",
            "allocator.tinit=4",
            "adapter.dropout=0.1",
        ];
        scene.assert_resumes(policy, &sets);
        // Ranks rise and fall: components have come back.
        let records = scene.records(&format!("whole-{policy}"), "allocations.jsonl");
        let ranks: Vec<Vec<u64>> = records.iter().map(|r| numbers(&r["ranks"])).collect();
        let rises = ranks.windows(2).any(|pair| {
            pair[0]
                .iter()
                .zip(&pair[1])
                .any(|(before, after)| after > before)
        });
        assert!(rises, "no rank ever rose");
    }
}

#[test]
fn what_rank_budget_cannot_do_is_refused() {
    let scene = scene();
    let refused = |sets: &[&str], words: &[&str]| {
        let mut arguments = vec!["train", "recipe.toml", "--quiet"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        let output = scene.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let flat = said.split_whitespace().filter(|word| *word != "│");
        let flat = flat.collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{word:?} is missing:\n{said}");
        }
    };
    refused(
        &["allocation.unit=layer"],
        &["rank-budget", "chooses among layers", "unit = \"module\""],
    );
    refused(
        &["allocator.target_r=5"],
        &["target_r", "mean rank of 5", "which is 4"],
    );
    refused(
        &["allocator.tinit=30"],
        &["rank-budget", "tinit", "none of the run's 40 steps"],
    );
    // The other allocators do need a scorer.
    scene.edit("[scorer]\nplugin = \"activation\"\n", "");
    refused(&["output=other"], &["there is no scorer", "[scorer]"]);
}

#[test]
fn minilm_is_pruned_by_the_schedule() {
    let Some(folder) = minilm() else { return };
    let scene = scene();
    let model = format!("model.name={}", folder.display());
    let run = scene.train(
        "run",
        &[
            &model,
            "train.steps=16",
            "allocator.tinit=0",
            "allocator.tfinal=4",
        ],
    );
    let records = scene.records("run", "allocations.jsonl");
    let modules = records[0]["modules"].as_array().expect("paths").len() as u64;
    for record in &records[1..] {
        let step = record["step"].as_u64().expect("a step");
        let left = 12 - step.min(12);
        let budget = modules + 3 * modules * left.pow(3) / 1728;
        let ranks = numbers(&record["ranks"]);
        // Where b(t) is a whole number, rounding may take one off.
        let sum = ranks.iter().sum::<u64>();
        assert!(
            sum == budget || sum + 1 == budget,
            "{sum}, not {budget}, after step {step}"
        );
    }
    let config = json(&run.join("adapter/adapter_config.json"));
    assert!(
        config["rank_pattern"]
            .as_object()
            .is_some_and(|some| !some.is_empty())
    );
}
