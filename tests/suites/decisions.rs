//! What an allocator decides beside the mask: rates, scales, frozen components, ranks that grow, pairs that are shared.
//! Whole runs with a plugin that answers as it is told.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexDevice};
use dynalora::adapter::{Adapters, Config, Observe, Pass};
use dynalora::data::{Batch, Label};
use dynalora::model::{Model, Pretrained};
use dynalora::recipe::{AdapterConfig, ModelConfig};
use dynalora::train::trainee::{Trainee, read, upload};
use dynalora_tests::{Golden, Scene, fixture, library, model_folder, outside};
use serde_json::Value;

/// The library of `decider`, built once outside the workspace.
fn decider() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = include_str!("../fixtures/plugins/decider.rs");
        outside("decider", source).join(library("decider"))
    })
}

/// The tiny recipe with `decider`, which is first asked before step 1: eleven modules of rank 4, in each layer query,
/// value, attention output, feed-forward in and out, then the pooler.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"\n",
        &format!(
            "[allocator]\nplugin = {:?}\n",
            decider().display().to_string()
        ),
    );
    scene
}

const FIRST: &str = "allocation.initial=allocator";

/// `--set`s of these answers, and more.
fn sets<'a>(answers: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[FIRST, answers], more].concat()
}

fn adapter(run: &Path) -> Golden {
    Golden::open(&run.join("adapter/adapter_model.safetensors"))
}

fn config(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("adapter/adapter_config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

/// All values of the tensors whose names end so.
fn parts(run: &Path, part: &str) -> Vec<f32> {
    let adapter = adapter(run);
    let names = adapter.names();
    let names = names.iter().filter(|name| name.ends_with(part));
    names.flat_map(|name| adapter.floats(name)).collect()
}

fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The exported adapter, opened again, says what the run's own last evaluation said.
fn assert_exported(scene: &Scene, run: &Path) {
    let name = run
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let records = scene.records(name, "metrics.jsonl");
    let evaluation = records.iter().rfind(|it| it["kind"] == "evaluation");
    let theirs = evaluation.expect("an evaluation")["loss"]
        .as_f64()
        .expect("a loss");
    let adapter = format!("{}/adapter", run.display());
    let scores: Value =
        serde_json::from_str(&scene.ok(&["evaluate", &adapter, "--json"])).expect("JSON");
    let ours = scores[0]["loss"].as_f64().expect("a loss");
    assert!((ours - theirs).abs() < 1e-6, "{ours}, not {theirs}");
}

/// One evaluation, at the end, so that what is exported is the last state.
const LAST: &str = "evaluation.every=\"never\"";

#[test]
fn rates_hold_for_a_and_for_b() {
    let scene = scene();
    let train = |name: &str, a: &str, b: &str| {
        let rates = vec![format!("[{a}, {b}]"); 11].join(", ");
        let answers = format!("allocator.answers=[{{ rates = [{rates}] }}]");
        scene.train(name, &sets(&answers, &[LAST]))
    };
    let (plain, fast) = (train("plain", "1.0", "1.0"), train("fast", "1.0", "16.0"));
    let (of_b, of_a) = (train("b", "0.0", "1.0"), train("a", "1.0", "0.0"));
    let untouched = train("none", "0.0", "0.0");
    // What has a factor of 0 stays where it was; with A alone B is zero, and A has no gradient.
    let [a, b] = ["lora_A.weight", "lora_B.weight"];
    assert_eq!(parts(&of_b, a), parts(&untouched, a));
    assert!(parts(&of_a, b).iter().all(|value| *value == 0.0));
    assert_ne!(parts(&of_b, b), parts(&untouched, b));
    // A factor of 1 is none.
    let without = scene.train("without", &sets("allocator.answers=[{}]", &[LAST]));
    for part in [a, b] {
        assert_eq!(parts(&plain, part), parts(&without, part));
    }
    assert!(distance(&parts(&fast, b), &parts(&plain, b)) > 1e-3);
    let record = &scene.records("fast", "allocations.jsonl")[1];
    assert_eq!(record["rates"][3], serde_json::json!([1.0, 16.0]));
    assert!(
        scene.records("without", "allocations.jsonl")[1]
            .get("rates")
            .is_none()
    );
    assert_exported(&scene, &fast);
}

#[test]
fn a_factor_on_the_scale_is_one_on_alpha() {
    let scene = scene();
    let of = |first: &str, second: &str| {
        let list = |factor: &str| [factor; 11].join(", ");
        format!(
            "allocator.answers=[{{ scales = [{}] }}, {{ scales = [{}] }}]",
            list(first),
            list(second)
        )
    };
    let twice = of("2.0", "2.0");
    let doubled = scene.train("doubled", &sets(&twice, &[LAST]));
    let alpha = scene.train(
        "alpha",
        &sets("allocator.answers=[{}]", &[LAST, "adapter.alpha=32"]),
    );
    for part in ["lora_A.weight", "lora_B.weight"] {
        assert_eq!(parts(&doubled, part), parts(&alpha, part), "{part}");
    }
    let path = "bert.encoder.layer.0.attention.self.query";
    assert_eq!(config(&doubled)["alpha_pattern"][path], 32);
    assert_eq!(config(&doubled)["lora_alpha"], 16);
    assert!(
        config(&doubled)["rank_pattern"]
            .as_object()
            .is_some_and(|it| it.is_empty())
    );
    assert_exported(&scene, &doubled);

    // Each its own, and some off.
    let odd =
        "allocator.answers=[{ scales = [0.1, 0.3, 1.0, 0.0, 2.0, 3.5, 1.0, 0.7, 1.0, 0.5, 1.5] }]";
    let odd = scene.train("odd", &sets(odd, &[LAST]));
    assert_eq!(config(&odd)["alpha_pattern"][path], 1.6);
    assert_exported(&scene, &odd);
}

#[test]
fn a_cached_prefix_is_computed_again_where_a_scale_below_it_changes() {
    let scene = scene();
    // All train, then the upper layer alone under other scales of the lower, then under others again.
    let lists = ["1.0", "3.0", "0.2"].map(|factor| {
        let lower = [factor; 5].join(", ");
        format!("scales = [{lower}, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]")
    });
    let answers = format!(
        "allocator.answers=[{{}}, {{ active = [5, 6, 10], {} }}, {{ active = [5, 6, 10], {} }}, {{ active = [5], {} }}]",
        lists[1], lists[2], lists[0]
    );
    let more = [
        LAST,
        "train.steps=24",
        "allocation.schedule={ kind = \"periodic\", every = 6 }",
        "model.hidden_dropout=0.0",
        "model.attention_dropout=0.0",
    ];
    let plain = scene.train("plain", &sets(&answers, &more));
    let more = [&more[..], &["train.cache_frozen_prefix=true"]].concat();
    let cached = scene.train("cached", &sets(&answers, &more));
    for part in ["lora_A.weight", "lora_B.weight"] {
        assert_eq!(parts(&plain, part), parts(&cached, part));
    }
}

/// Row k of A and column k of B of each module that is exported at rank `rank`.
fn component(run: &Path, k: usize, rank: usize) -> Vec<f32> {
    let adapter = adapter(run);
    let mut values = Vec::new();
    for name in adapter.names() {
        let all = adapter.floats(&name);
        if name.ends_with("lora_A.weight") {
            let width = all.len() / rank;
            values.extend(&all[k * width..(k + 1) * width]);
        } else if name.ends_with("lora_B.weight") {
            values.extend(all.iter().skip(k).step_by(rank));
        }
    }
    values
}

#[test]
fn frozen_components_keep_their_values_and_their_share() {
    let scene = scene();
    let three = ["[0, 1, 3]"; 11].join(", ");
    let answers = format!("allocator.answers=[{{}}, {{ components = [{three}], freeze = true }}]");
    let more = |steps| {
        [
            LAST,
            steps,
            "train.lr_schedule=constant",
            "train.warmup=1",
            "train.weight_decay=0.1",
        ]
    };
    let short = scene.train("short", &sets(&answers, &more("train.steps=4")));
    let long = scene.train("long", &sets(&answers, &more("train.steps=11")));
    // The third of four: as it was after step 4, and not zero.
    let frozen = component(&long, 2, 4);
    assert_eq!(component(&short, 2, 4), frozen);
    assert!(frozen.iter().filter(|value| **value == 0.0).count() * 10 < frozen.len());
    for k in [0, 1, 3] {
        assert_ne!(component(&short, k, 4), component(&long, k, 4));
    }
    assert_exported(&scene, &long);
    let records = scene.records("long", "allocations.jsonl");
    assert_eq!(records[2]["ranks"], serde_json::json!(vec![3; 11]));
    assert_eq!(records[2]["frozen"], true);
    // Of a pruned one nothing is left in the file.
    let pruned = answers.replace("freeze = true", "freeze = false");
    let pruned = scene.train("pruned", &sets(&pruned, &more("train.steps=11")));
    assert_eq!(
        config(&pruned)["rank_pattern"]
            .as_object()
            .map(|it| it.len()),
        Some(11)
    );
}

#[test]
fn modules_grow_from_their_rank_to_r_max() {
    let scene = scene();
    // As wide as they could grow, and never do: plain LoRA of the initial rank.
    let never = "allocation.schedule={ kind = \"never\" }";
    let plain = scene.train("plain", &[LAST, never]);
    let wide = scene.train("wide", &[LAST, never, "adapter.r_max=6"]);
    for part in ["lora_A.weight", "lora_B.weight"] {
        let far = distance(&parts(&plain, part), &parts(&wide, part));
        assert!(far < 1e-4, "{part} is off by {far}");
    }
    let path = "bert.encoder.layer.0.attention.self.query";
    let (rank, alpha) = (
        &config(&wide)["rank_pattern"][path],
        &config(&wide)["alpha_pattern"][path],
    );
    assert_eq!((rank, alpha), (&4.into(), &16.into()));
    assert_eq!(
        scene.records("plain", "metrics.jsonl")[0]["active_parameters"],
        scene.records("wide", "metrics.jsonl")[0]["active_parameters"]
    );
    assert_exported(&scene, &wide);

    // The first grows to 6, the second shrinks to 2, the others stay; then back to what they start with.
    let rest = ["[0, 1, 2, 3]"; 9].join(", ");
    let answers = format!(
        "allocator.answers=[{{}}, {{ components = [[0, 1, 2, 3, 4, 5], [1, 2], {rest}] }}]"
    );
    let grown = scene.train("grown", &sets(&answers, &[LAST, "adapter.r_max=6"]));
    let records = scene.records("grown", "allocations.jsonl");
    assert_eq!(records[1]["ranks"], serde_json::json!(vec![4; 11]));
    assert_eq!(
        records[2]["ranks"],
        serde_json::json!([6, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4])
    );
    let found = config(&grown);
    assert_eq!((&found["r"], &found["lora_alpha"]), (&6.into(), &24.into()));
    let value = "bert.encoder.layer.0.attention.self.value";
    assert_eq!(found["rank_pattern"].get(path), None);
    assert_eq!(found["rank_pattern"][value], 2);
    assert_eq!(found["alpha_pattern"][value], 8);
    assert_exported(&scene, &grown);
    let back = answers.replace("] }]", "] }, {}]");
    let back = scene.train(
        "back",
        &sets(&back, &[LAST, "adapter.r_max=6", "train.steps=16"]),
    );
    let records = scene.records("back", "allocations.jsonl");
    assert_eq!(records[3]["ranks"], serde_json::json!(vec![4; 11]));
    assert_exported(&scene, &back);
}

#[test]
fn a_layer_answers_for_the_components_of_its_modules() {
    let scene = scene();
    // Of each layer's 5 · 4 components: none of the lower layer's in the end.
    let upper = "[0, 1, 2, 3, 4, 8, 9, 13, 14, 15, 16, 19]";
    let all = "[0, 1, 2, 3]";
    let answers = format!("allocator.answers=[{{}}, {{ components = [[], {upper}, {all}] }}]");
    let run = scene.train("run", &sets(&answers, &[LAST, "allocation.unit=layer"]));
    let record = &scene.records("run", "allocations.jsonl")[2];
    let ranks = serde_json::json!([0, 0, 0, 0, 0, 4, 1, 2, 3, 2, 4]);
    assert_eq!(record["ranks"], ranks);
    assert_exported(&scene, &run);
    let refused = answers.replace("[0, 1, 2, 3, 4, 8", "[0, 1, 2, 3, 8");
    let mut arguments = vec!["train", "recipe.toml", "--set", "output=refused"];
    let sets = sets(&refused, &["allocation.unit=layer"]);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let output = scene.run(&arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    let flat: String = said
        .split_whitespace()
        .filter(|word| *word != "│")
        .collect();
    assert!(
        flat.contains("layer.1.attention.self.valuekeepsnone"),
        "{said}"
    );
}

#[test]
fn a_shared_pair_trains_for_all_who_use_it() {
    let scene = scene();
    // Query, value and attention output of the upper layer use those of the lower.
    let answers = "allocator.answers=[{ shared = [0, 1, 2, 3, 4, 0, 1, 2, 8, 9, 10] }, { active = [0, 5, 10], \
                   shared = [5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], \
                   scales = [0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0] }]";
    let once = answers
        .split(", { active")
        .next()
        .expect("a part")
        .to_owned()
        + "]";
    let run = scene.train("run", &sets(&once, &[LAST]));
    let adapter = adapter(&run);
    for role in [
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
    ] {
        for part in ["lora_A", "lora_B"] {
            let of = |layer: usize| {
                adapter.floats(&format!(
                    "base_model.model.bert.encoder.layer.{layer}.{role}.{part}.weight"
                ))
            };
            assert_eq!(of(0), of(1), "{role} {part}");
        }
    }
    let step = &scene.records("run", "metrics.jsonl")[0];
    // Three pairs of 256 less than 3,328.
    assert_eq!(step["active_parameters"], 3328 - 3 * 256);
    assert_exported(&scene, &run);
    // The owner changes, and the lower query then uses the upper one's own, which has not trained yet.
    let changed = scene.train("changed", &sets(answers, &[LAST]));
    assert_exported(&scene, &changed);
    assert_eq!(
        scene.records("changed", "allocations.jsonl")[2]["shared"][0],
        5
    );
    let vera = scene.run(&[
        "train",
        "recipe.toml",
        "--set",
        "output=vera",
        "--set",
        FIRST,
        "--set",
        answers,
        "--set",
        "adapter.kind=vera",
    ]);
    assert_eq!(vera.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&vera.stderr).contains("VeRA"));
}

#[test]
fn gradients_of_all_who_use_a_pair_add_up() {
    let recipe: ModelConfig = toml::from_str("name = \"fixture\"").expect("a model");
    let folder = model_folder(&fixture("tiny-bert"));
    let pretrained = Pretrained::open(&folder, &recipe).expect("a whole model");
    let adapter: AdapterConfig =
        toml::from_str("rank = 4\ntargets = [\"query\", \"value\", \"dense\"]")
            .expect("an adapter");
    let found = pretrained.adapted(&adapter).expect("modules");
    let modules = found.modules;
    let model = Model::<Flex>::load(&pretrained, &modules, 2, &FlexDevice).expect("a model");
    let count = modules.len();
    let config = Config::from(&adapter);
    let mut adapters = Adapters::new(config, modules, found.configs, 0, &FlexDevice);
    for module in 0..count {
        let [_, b] = &mut adapters.pair_mut(module).pair;
        *b = Tensor::ones(b.shape(), &FlexDevice) * 0.05;
    }
    // The upper query has the lower one's values.
    let of_lower = adapters.pairs()[0].clone();
    *adapters.pair_mut(5) = of_lower;
    let mut trainee = Trainee {
        head: model.head.initial(0, None, &FlexDevice),
        model,
        adapters,
    };
    let tokens = 3 * 7;
    let batch = Batch {
        images: None,
        words: None,
        ids: (0..tokens).map(|token| token * 5 % 150 + 10).collect(),
        type_ids: vec![0; tokens as usize],
        positions: (0..tokens).map(|token| token % 7).collect(),
        offsets: vec![0, 7, 14, 21],
        labels: vec![Label::Class(0); 3],
        indices: vec![0, 1, 2],
    };
    let gradients = |trainee: &Trainee<Flex>| {
        let active = vec![true; count];
        let adapters = &trainee.adapters;
        let mut pass = Pass::train(adapters, &trainee.head, &active, Observe::default(), 1);
        let input = upload::<Flex>(&batch, &FlexDevice);
        let logits = trainee.model.forward(&input, &mut pass);
        let values = read(logits.clone().inner()).expect("logits");
        let mut found = logits.powi_scalar(2).sum().backward();
        let mut of = |module: usize| {
            pass.pairs[module].pair.each_ref().map(|tensor| {
                let gradient: Option<Tensor<Flex, 2>> = tensor.grad_remove(&mut found);
                gradient.map(|gradient| read(gradient).expect("a gradient"))
            })
        };
        (values, of(0), of(5))
    };
    let (logits, lower, upper) = gradients(&trainee);
    let mut shared: Vec<usize> = (0..count).collect();
    shared[5] = 0;
    trainee.adapters.put_to_use(&[], &shared);
    let (same, both, none) = gradients(&trainee);
    assert_eq!(logits, same);
    for i in 0..2 {
        assert!(none[i].is_none());
        let [lower, upper, both] =
            [&lower[i], &upper[i], &both[i]].map(|it| it.clone().expect("a gradient"));
        let sum: Vec<f32> = lower.iter().zip(&upper).map(|(a, b)| a + b).collect();
        let size = sum.iter().fold(0.0_f32, |most, it| most.max(it.abs()));
        assert!(size > 0.0 && distance(&sum, &both) < 1e-5 * size);
    }
}

#[test]
fn killed_runs_resume_with_what_was_decided_bit_for_bit() {
    let scene = scene();
    let rates = ["[0.5, 4.0]"; 11].join(", ");
    let scales = "[0.1, 0.3, 1.0, 0.5, 2.0, 3.5, 1.0, 0.7, 1.0, 0.5, 1.5]";
    let some = ["[0, 2]"; 11].join(", ");
    let all = ["[0, 1, 2, 3, 4, 5]"; 11].join(", ");
    let owners = "[0, 1, 2, 3, 4, 0, 1, 2, 8, 9, 10]";
    for (name, policy, answers, more) in [
        (
            "rates",
            "global",
            format!(
                "{{ rates = [{rates}], scales = {scales} }}, {{ active = [5, 6, 10], scales = {scales} }}"
            ),
            "train.cache_frozen_prefix=true",
        ),
        (
            "frozen",
            "reset",
            format!(
                "{{}}, {{ components = [{some}], freeze = true }}, {{}}, {{ components = [{some}] }}"
            ),
            "adapter.dropout=0.1",
        ),
        (
            "grown",
            "local",
            format!("{{}}, {{ components = [{all}] }}, {{ components = [{some}], freeze = true }}"),
            "adapter.r_max=6",
        ),
        (
            "shared",
            "reset",
            format!("{{ shared = {owners} }}, {{}}, {{ shared = {owners}, scales = {scales} }}"),
            "adapter.dropout=0.1",
        ),
    ] {
        // Again and again, so that it is killed in the middle of any of them.
        let answers = vec![answers; 30].join(", ");
        let answers = format!("allocator.answers=[{answers}]");
        let policy = format!("allocation.optimizer_state={policy}");
        let dropout = ["model.hidden_dropout=0.0", "model.attention_dropout=0.0"];
        let sets = [
            FIRST,
            &answers,
            &policy,
            more,
            dropout[0],
            dropout[1],
            "train.steps=300",
            "checkpoint.every=20",
            "evaluation.every=50",
        ];
        scene.assert_resumes(name, &sets);
    }
}
