//! Scores of the built scorers, as a run logs them, against PyTorch's: `oracle/scores.py`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use dynalora::allocation::{Ledger, PluginState, State};
use dynalora::recipe::Recipe;
use dynalora::run::{AllocationRecord, Run};
use dynalora_plugin_api::{Accumulated, Reduce, Window};
use dynalora_tests::{Scene, fixture, minilm};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::{Value, json};

/// `scores.json`.
#[derive(Deserialize)]
struct Scores {
    config: Value,
    k: u64,
    targets: Vec<f64>,
    batches: Vec<Vec<usize>>,
    modules: Vec<String>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    scorer: Scorer,
    losses: Vec<f64>,
    reallocations: Vec<Reallocation>,
}

#[derive(Deserialize)]
struct Scorer {
    plugin: String,
    norm: String,
    target: String,
    window: Value,
    reduce: String,
    shared: bool,
    probe_steps: u64,
    accumulation: usize,
}

#[derive(Debug, Deserialize)]
struct Reallocation {
    step: u64,
    scores: Vec<f64>,
    active: Vec<bool>,
}

/// The sentences in the order in which the oracle met them, to be read in order.
fn data(golden: &Scores) -> String {
    let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    let sentences: Vec<&str> = sentences.lines().collect();
    let epoch = sentences.len() / golden.batches[0].len();
    let mut text = "sentence,label\n".to_owned();
    for index in golden.batches[..epoch].concat() {
        let sentence = sentences[index].replace('"', "\"\"");
        writeln!(text, "\"{sentence}\",{}", golden.targets[index]).expect("a string");
    }
    text
}

fn recipe(model: &Path, golden: &Scores, case: &Case) -> String {
    let config = &golden.config;
    let scorer = &case.scorer;
    let steps: Vec<u64> = case.reallocations.iter().map(|r| r.step).collect();
    let window = match &scorer.window {
        Value::Object(ema) => format!("{{ ema = {} }}", ema["ema"]),
        window => window.to_string(),
    };
    let target = match scorer.plugin.as_str() {
        "activation" => format!("target = \"{}\"", scorer.target),
        _ if scorer.shared => "steps = \"shared\"".to_owned(),
        _ => "steps = \"own\"".to_owned(),
    };
    // `"all-linear"` and `["query", "value"]` are written in TOML as they are in JSON.
    format!(
        r#"
output = "run"
device = "cpu"
threads = 2
[model]
name = "{model}"
max_length = {max_length}
hidden_dropout = 0.0
attention_dropout = 0.0
classifier_dropout = 0.0
[data]
train = "train.csv"
labels = ["0", "1"]
[data.columns]
text = "sentence"
[adapter]
rank = {rank}
alpha = {alpha}
targets = {targets}
[allocation]
schedule = {{ kind = "at", steps = {steps:?} }}
probe_steps = {probe_steps}
[scorer]
plugin = "{plugin}"
norm = "{norm}"
window = {window}
reduce = "{reduce}"
one_in = 1
{target}
[allocator]
plugin = "top-k"
k = {k}
[train]
steps = {total}
batch_size = {batch_size}
gradient_accumulation = {accumulation}
order = "sequential"
learning_rate = {rate}
weight_decay = {decay}
warmup = {warmup}
log_every = 1
[evaluation]
every = "never"
[checkpoint]
every = "never"
"#,
        model = model.display(),
        max_length = config["max_length"],
        rank = config["rank"],
        alpha = config["alpha"],
        targets = config["target_modules"],
        probe_steps = scorer.probe_steps,
        plugin = scorer.plugin,
        norm = scorer.norm,
        reduce = scorer.reduce,
        k = golden.k,
        total = config["steps"],
        batch_size = golden.batches[0].len() / scorer.accumulation,
        accumulation = scorer.accumulation,
        rate = config["learning_rate"],
        decay = config["weight_decay"],
        warmup = config["warmup_steps"],
    )
}

/// Lays down a run that stands before its first step with the adapter and the head that PEFT started from, so
/// that resuming it trains what the oracle trained.
fn start(scene: &Scene, golden: &Scores, scorer: &str, peft: &Path) {
    let mut recipe = Recipe::load(&scene.path("recipe.toml"), &[]).expect("a recipe");
    recipe.output = scene.path("run");
    std::fs::write(scene.path("recipe.toml"), recipe.to_toml().expect("TOML")).expect("written");
    let modules = golden.modules.clone();
    let rank = golden.config["rank"].as_u64().expect("a rank") as u32;
    let (active, ranks) = (vec![true; modules.len()], vec![rank; modules.len()]);
    let state = |name: &str, state: Vec<u8>| PluginState {
        name: name.to_owned(),
        state,
    };
    // Nothing has been added up yet, whatever the window.
    let nothing =
        Accumulated::new(Window::Run, Reduce::Mean, modules.len()).and_then(|totals| totals.save());
    let allocation = State {
        details: Default::default(),
        step: 0,
        reallocations: 0,
        modules: modules.clone(),
        active: active.clone(),
        components: None,
        last_choice: None,
        asked_for: None,
        owed: false,
        fault: None,
        ledger: Ledger::new(modules.len()),
        scorer: Some(state(scorer, nothing.expect("a state"))),
        allocator: Some(state("top-k", Vec::new())),
    };

    let mut writer =
        Run::create(&recipe.output, &recipe.to_toml().expect("TOML")).expect("a free folder");
    let first = AllocationRecord::initial(modules.clone(), &active, &ranks);
    writer.allocation(&first).expect("written");
    let pending = writer.begin_checkpoint(0).expect("a folder");
    let bytes = std::fs::read(peft.join("adapter_model.safetensors")).expect("a fixture");
    let start = SafeTensors::deserialize(&bytes).expect("a whole file");
    let tensors = start.iter().map(|(name, view)| {
        let name = name
            .strip_prefix("base_model.model.")
            .expect("PEFT's prefix");
        let (name, shape) = match name.strip_prefix("bert.") {
            Some(pair) => (pair.trim_end_matches(".weight"), view.shape().to_vec()),
            None => match view.shape() {
                [length] => (name, vec![1, *length]),
                shape => (name, shape.to_vec()),
            },
        };
        let view = TensorView::new(view.dtype(), shape, view.data()).expect("the same values");
        (name.to_owned(), view)
    });
    let state = pending.path().join("state.safetensors");
    safetensors::serialize_to_file(tensors, None, &state).expect("written");
    let progress = json!({
        "step": 0, "tokens": 0, "seconds": 0.0, "best": null, "active_modules": 0,
        "active_parameters": 0, "peak_parameters": 0, "open_loss": [0.0, 0],
        "module_updates": vec![Value::Null; modules.len()], "head_updates": null,
        "allocation": allocation,
    });
    std::fs::write(pending.path().join("progress.json"), progress.to_string()).expect("written");
    writer.commit_checkpoint(pending, None).expect("committed");
}

/// Runs every case with the built program and holds its log against the oracle's.
fn check(model: &Path, goldens: &str) {
    let path = fixture(goldens).join("scores.json");
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let golden: Scores = serde_json::from_str(&text).expect("scores");
    for (name, case) in &golden.cases {
        let scene = Scene::new();
        scene.write("train.csv", &data(&golden));
        scene.write("recipe.toml", &recipe(model, &golden, case));
        let peft = fixture(goldens).join("random_b");
        start(&scene, &golden, &case.scorer.plugin, &peft);
        scene.ok(&["train", "recipe.toml", "--resume", "--quiet"]);

        let losses = scene.records("run", "metrics.jsonl");
        assert_eq!(losses.len(), case.losses.len(), "{name}");
        for (record, expected) in losses.iter().zip(&case.losses) {
            let loss = record["loss"].as_f64().expect("a loss");
            let off = (loss - expected).abs() / expected;
            assert!(
                off < 1e-4,
                "{name}: the loss of step {} is off by {off:e}",
                record["step"]
            );
        }
        let records = scene.records("run", "allocations.jsonl");
        assert_eq!(records[0]["modules"], json!(golden.modules));
        assert_eq!(records.len(), 1 + case.reallocations.len(), "{name}");
        let mut furthest = 0f64;
        for (record, expected) in records[1..].iter().zip(&case.reallocations) {
            let found = Reallocation::deserialize(record).expect("a reallocation");
            assert_eq!(
                (found.step, found.scores.len()),
                (expected.step, golden.modules.len())
            );
            for (module, (score, expected)) in found.scores.iter().zip(&expected.scores).enumerate()
            {
                let off = (score - expected).abs() / expected;
                assert!(
                    off < 1e-4,
                    "{name}, step {}: {} scored {score}, not {expected}",
                    found.step,
                    golden.modules[module]
                );
                furthest = furthest.max(off);
            }
            assert_eq!(found.active, expected.active, "{name}, step {}", found.step);
        }
        println!("{goldens}, {name}: scores off by {furthest:e} at most");
    }
}

#[test]
fn a_tiny_models_scores_are_the_oracles() {
    check(&fixture("tiny-bert"), "tiny-bert/golden/all-linear");
}

#[test]
fn minilms_scores_are_the_oracles() {
    let Some(folder) = minilm() else { return };
    check(&folder, "minilm");
}
