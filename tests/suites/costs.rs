//! What modules cost: the cost model against what the kernels really keep, and budgets by it in whole runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexDevice};
use dynalora::adapter::{Adapters, Config, Observe, Pass};
use dynalora::allocation::Wanted;
use dynalora::data::{Batch, Label};
use dynalora::model::{Model, Pretrained};
use dynalora::recipe::{AdapterConfig, ModelConfig, Recipe};
use dynalora::train::cost::{HeadKind, LastLayer, Shape, Sizes, Steps, kept_by_a_layer, prefix};
use dynalora::train::costs;
use dynalora::train::step::{self, StepPlan};
use dynalora::train::trainee::{Trainee, upload};
use dynalora_plugin_api::{Cost, CostModel, ModuleInfo, Random};
use dynalora_tests::{Scene, fixture, minilm, model_folder, plan};
use serde_json::Value;

/// The system's allocator, counting the bytes that are alive.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
/// The most that were alive since it was last set.
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all of it is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = LIVE.fetch_add(layout.size(), Relaxed);
        PEAK.fetch_max(before + layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they all allocate.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const DEVICE: FlexDevice = FlexDevice;

/// So many sequences of so many tokens.
fn batch(sequences: usize, length: usize) -> Batch {
    let tokens = sequences * length;
    Batch {
        ids: (0..tokens).map(|token| token as u32 % 150 + 10).collect(),
        images: None,
        words: None,
        type_ids: vec![0; tokens],
        positions: (0..tokens).map(|token| (token % length) as u32).collect(),
        offsets: (0..=sequences).map(|end| end * length).collect(),
        labels: vec![Label::Class(0); sequences],
        indices: (0..sequences).collect(),
    }
}

/// A model of the fixtures with these adapters, none of which adds nothing.
fn trainee(pretrained: &Pretrained, adapter: &AdapterConfig) -> Trainee<Flex> {
    let found = pretrained.adapted(adapter).expect("modules");
    let modules = found.modules;
    let model = Model::<Flex>::load(pretrained, &modules, 2, &DEVICE).expect("a model");
    let count = modules.len();
    let mut adapters = Adapters::new(Config::from(adapter), modules, found.configs, 0, &DEVICE);
    pretrained
        .put_on(&mut adapters, &model, &DEVICE)
        .expect("rows of some size");
    for module in 0..count {
        let [_, b] = &mut adapters.pair_mut(module).pair;
        *b = Tensor::ones(b.shape(), &DEVICE) * 0.01;
    }
    Trainee {
        head: model.head.initial(0, None, &DEVICE),
        model,
        adapters,
    }
}

/// Bytes that a forward pass leaves alive, and those that a whole step leaves in the model.
fn measured(trainee: &Trainee<Flex>, batch: &Batch, active: &[bool]) -> [usize; 2] {
    let step = || {
        let before = LIVE.load(Relaxed);
        let observe = Observe::default();
        let mut pass = Pass::train(&trainee.adapters, &trainee.head, active, observe, 1);
        let logits = trainee
            .model
            .forward(&upload::<Flex>(batch, &DEVICE), &mut pass);
        let kept = LIVE.load(Relaxed) - before;
        let gradients = logits.sum().backward();
        drop((gradients, pass));
        kept
    };
    // The first makes the threads' working memory.
    let before = LIVE.load(Relaxed);
    step();
    let after = LIVE.load(Relaxed);
    [step(), after.saturating_sub(before)]
}

/// The last so many modules, the first so many, and some drawn.
fn masks(count: usize) -> Vec<Vec<bool>> {
    let mut random = Random::new(7);
    let upper = (0..=count).map(|first| (0..count).map(|module| module >= first).collect());
    let lower = (1..count).map(|end| (0..count).map(|module| module < end).collect());
    let mut masks: Vec<Vec<bool>> = upper.chain(lower).collect();
    for _ in 0..10 {
        masks.push((0..count).map(|_| random.uniform() < 0.3).collect());
    }
    masks
}

#[test]
fn what_is_kept_for_the_way_back_is_what_the_model_says() {
    let _alone = alone();
    for (folder, adapter) in [
        (
            "tiny-bert",
            r#"rank = 4
targets = ["query", "value", "dense"]"#,
        ),
        (
            "tiny-bert",
            r#"rank = 8
targets = ["all-linear"]
dropout = 0.1"#,
        ),
        (
            "tiny-roberta",
            r#"kind = "vera"
rank = 16
targets = ["all-linear"]"#,
        ),
        (
            "tiny-distilbert",
            r#"rank = 8
targets = ["q_lin", "lin1", "lin2"]"#,
        ),
        (
            "tiny-bert",
            r#"rank = 4
init_lora_weights = "pissa"
targets = ["query", "value", "dense"]"#,
        ),
        (
            "tiny-bert",
            r#"rank = 4
use_dora = true
bias = "lora_only"
targets = ["query", "value", "dense"]"#,
        ),
        (
            "tiny-llama",
            r#"rank = 4
use_dora = true
targets = ["q_proj", "v_proj", "up_proj", "down_proj"]"#,
        ),
        (
            "tiny-deberta",
            r#"rank = 4
targets = ["all-linear"]"#,
        ),
        (
            "tiny-modernbert",
            r#"rank = 8
targets = ["all-linear"]"#,
        ),
        (
            "tiny-modernbert-biased",
            r#"rank = 4
targets = ["Wqkv", "Wo"]"#,
        ),
        (
            "tiny-gemma2",
            r#"rank = 4
targets = ["all-linear"]"#,
        ),
        (
            "tiny-gemma3",
            r#"rank = 4
targets = ["q_proj", "v_proj"]"#,
        ),
        (
            "tiny-bert",
            r#"rank = 4
targets = ["word_embeddings", "position_embeddings", "query", "dense"]"#,
        ),
        (
            "tiny-gpt2",
            r#"rank = 4
targets = ["wte", "c_attn"]"#,
        ),
        (
            "tiny-bert",
            r#"rank = 8
use_dora = true
targets = ["word_embeddings", "value"]"#,
        ),
    ] {
        let recipe: ModelConfig = toml::from_str("name = \"fixture\"").expect("a model");
        let folder = model_folder(&fixture(folder));
        let pretrained = Pretrained::open(&folder, &recipe).expect("a whole model");
        let adapter: AdapterConfig = toml::from_str(adapter).expect("an adapter");
        let trainee = trainee(&pretrained, &adapter);
        let linears = pretrained.linears();
        let model = Shape {
            config: &pretrained.config,
            linears: &linears,
            modules: &trainee.adapters.modules,
            adapter: &trainee.adapters.config,
            head: HeadKind::Sequence,
            checkpointing: false,
        }
        .model(LastLayer::AsRead { outputs: false });
        let batch = batch(100, 40);
        let mut sizes = Sizes::default();
        sizes.add(&batch.offsets);
        let count = trainee.adapters.modules.len();
        // What the head keeps, whatever is active.
        let [of_head, _] = measured(&trainee, &batch, &vec![false; count]);
        let (mut worst, mut most) = (0.0_f64, 0);
        for mask in masks(count) {
            let [kept, _] = measured(&trainee, &batch, &mask);
            let said = model.at(&mask, sizes, ..).activations as f64;
            let kept = kept as f64 - of_head as f64;
            let whole = model.at(&vec![true; count], sizes, ..).activations as f64;
            // Of the whole: what few modules keep is as small as the bookkeeping.
            worst = worst.max((kept - said).abs() / whole);
            most = most.max(said as u64);
        }
        println!(
            "{}: off by {:.2} % of {most} bytes at most",
            folder.dir.display(),
            100.0 * worst
        );
        // The rest is what burn's own operations keep of the head, a row a sequence.
        assert!(worst < 0.015, "{worst}");
    }
}

#[test]
fn frozen_weights_are_in_memory_once() {
    let _alone = alone();
    let recipe: ModelConfig = toml::from_str("name = \"fixture\"").expect("a model");
    let adapter = r#"rank = 4
targets = ["query", "value", "dense"]"#;
    let adapter: AdapterConfig = toml::from_str(adapter).expect("an adapter");
    let batch = batch(4, 8);
    let mut loaded = Vec::new();
    for name in ["tiny-bert", "tiny-bert-bf16"] {
        let folder = model_folder(&fixture(name));
        let pretrained = Pretrained::open(&folder, &recipe).expect("a whole model");
        let modules = pretrained.adapted(&adapter).expect("modules").modules;
        let load = || Model::<Flex>::load(&pretrained, &modules, 2, &DEVICE).expect("a model");
        let said = pretrained.bytes(false, true).expect("no language head");
        // What a thread of the pool makes or lets go of meanwhile is not the model's: the least of several.
        let least = (0..8).map(|_| {
            let before = LIVE.load(Relaxed);
            let model = load();
            let bytes = LIVE.load(Relaxed).saturating_sub(before);
            drop(model);
            bytes
        });
        loaded.push([least.min().expect("eight"), said as usize]);
        // Threads' working memory, and then nothing: the way back reads what the way there has.
        let warm = trainee(&pretrained, &adapter);
        measured(&warm, &batch, &vec![true; modules.len()]);
        for mask in masks(modules.len()) {
            let left = (0..4).map(|_| measured(&trainee(&pretrained, &adapter), &batch, &mask)[1]);
            let left = left.min().expect("four");
            assert!(left <= 2048, "{name}, {mask:?}: {left} bytes stay");
        }
    }
    // Beside the weights, both have what so small a model's names and shapes take.
    let [floats, halves] = loaded[..] else {
        panic!("two models");
    };
    let saved = floats[0].saturating_sub(halves[0]);
    assert!(saved.abs_diff(floats[1] - halves[1]) <= 2048, "{saved}");
    assert!(
        (floats[1]..floats[1] + 16_384).contains(&floats[0]),
        "{floats:?}"
    );
}

/// What the runs of a scene cost, whose texts are all cut at 8 tokens.
struct Prices {
    modules: Vec<ModuleInfo>,
    model: CostModel,
}

impl Prices {
    fn of(run: &Path) -> Self {
        let recipe = Recipe::load(&run.join("recipe.toml"), &[]).expect("a run's recipe");
        let folder = model_folder(Path::new(&recipe.model.name));
        let pretrained = Pretrained::open(&folder, &recipe.model).expect("a model");
        let modules = pretrained
            .adapted(&recipe.adapter)
            .expect("modules")
            .modules;
        let mut sizes = Sizes::default();
        (0..48).for_each(|_| sizes.add_sequence(8));
        let steps = Steps {
            sizes,
            batches: 6,
            steps: 6,
        };
        let model = costs(&recipe, &pretrained, &modules, steps, 2);
        Prices { modules, model }
    }

    /// How much of what all modules cost above none these do.
    fn share(&self, active: &[bool], of: fn(&Cost) -> u64) -> f64 {
        let [none, all, cost] = [self.model.none(), self.model.all(), self.model.cost(active)]
            .map(|cost| of(&cost) as f64);
        (cost - none) / (all - none)
    }
}

/// The masks that a run was in.
fn chosen(scene: &Scene, run: &str) -> Vec<Vec<bool>> {
    let records = scene.records(run, "allocations.jsonl");
    let flags = |record: &Value| -> Vec<bool> {
        let active = record["active"].as_array().expect("a mask");
        active.iter().map(|active| active == true).collect()
    };
    records.iter().map(flags).collect()
}

/// FLOPs of each epoch of 6 steps.
fn epochs(scene: &Scene, run: &str) -> Vec<u64> {
    let records = scene.records(run, "metrics.jsonl");
    let steps = records.iter().filter(|record| record["kind"] == "step");
    let flops: Vec<u64> = steps
        .filter_map(|record| record["flops"].as_u64())
        .collect();
    let ends: Vec<u64> = flops
        .chunks(6)
        .map(|epoch| epoch[epoch.len() - 1])
        .collect();
    let starts = std::iter::once(&0).chain(&ends);
    ends.iter()
        .zip(starts)
        .map(|(end, start)| end - start)
        .collect()
}

const EVEN: [&str; 4] = [
    "model.max_length=8",
    "train.steps=24",
    "allocation.initial=random",
    "allocation.schedule={ kind = \"periodic\", every = 6 }",
];

#[test]
fn a_run_keeps_within_its_share_of_the_flops() {
    let _alone = alone();
    let scene = Scene::new();
    scene.edit("[scorer]\nplugin = \"activation\"\n", "");
    let lora = scene.train(
        "lora",
        &[EVEN[0], EVEN[1], "allocation.schedule={ kind = \"never\" }"],
    );
    let prices = Prices::of(&lora);
    let [forward, whole] = [prices.model.none(), prices.model.all()].map(|cost| 6 * cost.flops());
    // What it recorded is what the model says, to the last operation.
    assert_eq!(epochs(&scene, "lora"), [whole; 4]);
    let mut used = 0.0_f64;
    for (seed, unit) in [
        (0, "module"),
        (1, "module"),
        (2, "module"),
        (3, "layer"),
        (4, "layer"),
    ] {
        let name = format!("uniform-{seed}");
        let (seed, unit) = (format!("seed={seed}"), format!("allocation.unit={unit}"));
        let mut sets = EVEN.to_vec();
        sets.extend([
            "allocator.plugin=uniform",
            "allocator.by=flops",
            "allocator.k=60%",
            &seed,
            &unit,
        ]);
        scene.train(&name, &sets);
        let masks = chosen(&scene, &name);
        assert_eq!(masks.len(), 4);
        for (flops, mask) in epochs(&scene, &name).into_iter().zip(&masks) {
            // Nothing is measured: what a step costs is the choice alone.
            let share = (flops - forward) as f64 / (whole - forward) as f64;
            let said = prices.share(mask, Cost::flops);
            assert!((share - said).abs() < 1e-9, "{share}, said {said}");
            let units: std::collections::BTreeSet<_> = mask
                .iter()
                .zip(&prices.modules)
                .filter(|(on, _)| **on)
                .map(|(_, module)| module.layer)
                .collect();
            let alone = mask.iter().filter(|on| **on).count() == 1
                || (unit.ends_with("layer") && units.len() == 1);
            assert!(share <= 0.6 || alone, "{name}: {share}");
            if share <= 0.6 {
                used = used.max(share);
            }
        }
    }
    assert!(used > 0.3, "{used}");
}

#[test]
fn a_share_of_the_memory_and_other_allocators() {
    let _alone = alone();
    let scene = Scene::new();
    for (at, (allocator, by)) in [
        ("top-k", "memory"),
        ("multinomial", "memory"),
        ("discounted", "flops"),
        ("uniform", "memory"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("run-{at}");
        let sets = [
            format!("allocator.plugin={allocator}"),
            format!("allocator.by={by}"),
        ];
        let mut all = EVEN.to_vec();
        all.extend(sets.iter().map(String::as_str));
        let run = scene.train(&name, &all);
        let prices = Prices::of(&run);
        let of = match by {
            "flops" => Cost::flops as fn(&Cost) -> u64,
            _ => Cost::memory,
        };
        for mask in chosen(&scene, &name) {
            let share = prices.share(&mask, of);
            let count = mask.iter().filter(|on| **on).count();
            assert!(share <= 0.5 || count == 1, "{allocator}: {share} of {by}");
        }
        // `plan` knows the very choice that the run starts with: it reads the data for it.
        let mut arguments = vec!["plan", "recipe.toml", "--json"];
        all.iter().for_each(|set| arguments.extend(["--set", set]));
        let plan: Value = serde_json::from_str(&scene.ok(&arguments)).expect("JSON");
        let first = &chosen(&scene, &name)[0];
        assert_eq!(plan["active"], serde_json::json!(first));
        let said = plan[format!("share_of_{by}")].as_f64().expect("a share");
        assert!((said - prices.share(first, of)).abs() < 1e-9);
    }
    scene.assert_resumes("flops", &["allocator.by=flops", "train.steps=40"]);
}

#[test]
fn a_count_by_costs_is_refused() {
    let _alone = alone();
    let scene = Scene::new();
    for by in ["flops", "memory"] {
        let by = format!("allocator.by={by}");
        let output = scene.run(&[
            "train",
            "recipe.toml",
            "--set",
            &by,
            "--set",
            "allocator.k=3",
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("takes a share"), "{said}");
        assert!(!scene.path("run").exists());
    }
}

#[test]
fn running_layers_twice_saves_what_the_model_says() {
    let _alone = alone();
    let place = tempfile::tempdir().expect("a temporary folder");
    dynalora_tests::drawn::inputs(place.path());
    let recipe: ModelConfig = toml::from_str("name = \"fixture\"").expect("a model");
    let folder = model_folder(&place.path().join("deep-bert"));
    let pretrained = Pretrained::open(&folder, &recipe).expect("a whole model");
    let adapter = "rank = 4\ntargets = [\"query\", \"value\", \"dense\"]";
    let adapter: AdapterConfig = toml::from_str(adapter).expect("an adapter");
    let trainee = trainee(&pretrained, &adapter);
    let linears = pretrained.linears();
    let shape = |checkpointing| Shape {
        config: &pretrained.config,
        linears: &linears,
        modules: &trainee.adapters.modules,
        adapter: &trainee.adapters.config,
        head: HeadKind::Sequence,
        checkpointing,
    };
    let batch = batch(100, 40);
    let mut sizes = Sizes::default();
    sizes.add(&batch.offsets);
    let wanted = Wanted::default();
    for lowest in [0, 1] {
        let modules = trainee.adapters.modules.iter();
        let active = modules.map(|module| module.layer.is_none_or(|layer| layer >= lowest));
        let active: Vec<bool> = active.collect();
        let peak = |checkpointing| {
            let plan = StepPlan {
                checkpointing,
                ..plan(&active, &wanted)
            };
            let batches = std::slice::from_ref(&batch);
            let step = || step::run(&trainee, batches, &plan, None, None, &DEVICE);
            // The first makes the threads' working memory.
            step().expect("a step");
            let before = LIVE.load(Relaxed);
            PEAK.store(before, Relaxed);
            step().expect("a step");
            PEAK.load(Relaxed) - before
        };
        let (without, with) = (peak(false) as f64, peak(true) as f64);
        let costs = |checkpointing| {
            let last = LastLayer::AsRead { outputs: false };
            shape(checkpointing).model(last).at(&active, sizes, ..)
        };
        let kept = costs(true).activations + kept_by_a_layer(shape(true), sizes);
        let said = costs(false).activations as f64 - kept as f64;
        println!("from layer {lowest}: {without} bytes, {with} with it, {said} less said");
        assert!(with < without && said > 0.0);
        assert!((without - with - said).abs() < 0.1 * without);
        // All layers but the last once more, from the lowest on.
        let again = costs(true).backward - costs(false).backward;
        let depth = 3 - u64::from(lowest);
        assert_eq!(again, depth * prefix(shape(false), sizes, 1));
        assert_eq!(costs(true).forward, costs(false).forward);
    }
}

#[test]
fn a_plan_says_what_a_run_takes() {
    let Some(model) = minilm() else { return };
    let _alone = alone();
    let scene = Scene::new();
    // Each as long as a sequence may be, so that steps are what is planned for.
    let words = "the small brown dog sees a bird and runs after it over the wet grass ".repeat(12);
    let rows = (0..64).map(|row| format!("{words},{}\n", row % 2));
    let data: String = std::iter::once("sentence,label\n".to_owned())
        .chain(rows)
        .collect();
    scene.write("long.csv", &data);
    let file = format!(
        "output = \"run\"\ndevice = \"cpu\"\nthreads = 2\n[data]\ntrain = \"long.csv\"\ncolumns = {{ text = \"sentence\", label = \"label\" }}\n\
         [model]\nname = {model:?}\nmax_length = 128\n[adapter]\ntargets = [\"query\", \"value\"]\n\
         [allocation]\nschedule = {{ kind = \"never\" }}\n[train]\nbatch_size = 16\nsteps = 3\n"
    );
    scene.write("recipe.toml", &file);
    for (name, sets) in [
        ("query and value", &[][..]),
        ("all", &["adapter.targets=\"all-linear\""]),
        ("upper", &["adapter.layers_to_transform=[3, 4, 5]"]),
        ("halves", &["model.precision=bf16"]),
        (
            "twice",
            &[
                "train.gradient_checkpointing=true",
                "adapter.targets=\"all-linear\"",
            ],
        ),
    ] {
        let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let planned = scene.ok(&[&["plan", "recipe.toml", "--json"], &arguments[..]].concat());
        let planned: Value = serde_json::from_str(&planned).expect("JSON");
        let summary = scene.train(name, sets).join("summary.json");
        let summary = std::fs::read_to_string(summary).expect("a summary");
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        let [said, taken] = [&planned["memory"]["total"], &summary["peak_memory"]]
            .map(|bytes| bytes.as_f64().expect("bytes"));
        println!(
            "{name}: planned {:.0} MB, taken {:.0}",
            said / 1e6,
            taken / 1e6
        );
        // Seen: at most 0.07. What an allocator keeps is another machine's own.
        assert!(
            (said / taken - 1.0).abs() < 0.15,
            "{name}: planned {said}, taken {taken}"
        );
    }
}
