//! What the host measures of each module against PyTorch's (`oracle/signals.py`), and what it promises of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use dynalora::adapter::Config;
use dynalora::allocation::{RawValue, Signal, Wanted};
use dynalora::data::{Batch, Label};
use dynalora::export;
use dynalora::model::{Model, Pretrained};
use dynalora::recipe::{LearningRateSchedule, ModelConfig, OptimizerState};
use dynalora::train::frozen;
use dynalora::train::optimizer::{Optimizer, OptimizerConfig};
use dynalora::train::step::{self, StepPlan, StepResult};
use dynalora::train::trainee::{Trainee, read};
use dynalora_plugin_api::Observation;
use dynalora_tests::{Golden, Training, fixture, minilm, model_folder, plan};
use serde::Deserialize;

const DEVICE: FlexDevice = FlexDevice;

/// Of how far off a value may be: so much of itself.
const TOLERANCE: f64 = 1e-4;

/// `signals.json`.
#[derive(Deserialize)]
struct Signals {
    frozen_weight_l1: Vec<f64>,
    frozen_weight_l2: Vec<f64>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    micro_batches: Vec<usize>,
    steps: Vec<Step>,
}

type Values = Vec<Option<f64>>;

#[derive(Deserialize)]
struct Step {
    step: u64,
    active: Vec<bool>,
    fisher: Values,
    input_l2: Values,
    input_column_l2: Vec<Vec<f64>>,
    output_gradient_l2: Values,
    gradient_dot_weight: Values,
    gradient_dot_weight_abs: Values,
    update_l2: Values,
}

/// What can be measured at every step.
const EVERY_STEP: [Signal; 12] = [
    Signal::ActivationL1,
    Signal::ActivationL2,
    Signal::DeltaL2,
    Signal::GradientL1,
    Signal::GradientL2,
    Signal::WeightL2,
    Signal::InputL2,
    Signal::OutputGradientL2,
    Signal::GradientDotWeight,
    Signal::GradientDotWeightAbs,
    Signal::Fisher,
    Signal::UpdateL2,
];

/// A model with its golden training.
struct Subject {
    pretrained: Pretrained,
    folder: PathBuf,
    training: Training,
    tokens: Golden,
}

impl Subject {
    fn open(model: &Path, goldens: &str, tokens: &str, dropout: f64) -> Self {
        let recipe = ModelConfig {
            name: String::new(),
            revision: "main".to_owned(),
            max_length: Some(128),
            hidden_dropout: Some(dropout),
            attention_dropout: Some(dropout),
            classifier_dropout: Some(dropout),
            train_pooler: None,
            head_bias: Default::default(),
            precision: Default::default(),
        };
        let folder = fixture(goldens);
        Subject {
            pretrained: Pretrained::open(&model_folder(model), &recipe).expect("a whole model"),
            training: Training::open(&folder),
            folder,
            tokens: Golden::open(&fixture(tokens)),
        }
    }

    fn tiny(goldens: &str, dropout: f64) -> Self {
        let tokens = "tiny-bert/golden/tokens.safetensors";
        let goldens = format!("tiny-bert/golden/{goldens}");
        Subject::open(&fixture("tiny-bert"), &goldens, tokens, dropout)
    }

    fn of(model: &str, goldens: &str) -> Self {
        let tokens = format!("{model}/golden/tokens.safetensors");
        let goldens = format!("{model}/golden/{goldens}");
        Subject::open(&fixture(model), &goldens, &tokens, 0.0)
    }

    fn number(&self, key: &str) -> f64 {
        self.training.config[key].as_f64().expect("a number")
    }

    fn trainee(&self) -> Trainee<Flex> {
        let model = &self.pretrained.config;
        let peft = export::read(&self.folder.join("random_b"), model).expect("an adapter");
        let modules = peft.modules(&self.pretrained.linears()).expect("modules");
        let outputs = self.number("num_labels") as usize;
        let model = Model::<Flex>::load(&self.pretrained, &modules, outputs, &DEVICE);
        let model = model.expect("a whole model");
        let mut adapters = peft.adapters(modules, &DEVICE).expect("an adapter");
        self.pretrained
            .put_on(&mut adapters, &model, &DEVICE)
            .expect("rows of some size");
        Trainee {
            head: peft.head(&model.head, &DEVICE).expect("a whole head"),
            adapters,
            model,
        }
    }

    /// The sentences of a step, cut into batches of these sizes.
    fn batches(&self, step: usize, sizes: &[usize]) -> Vec<Batch> {
        let ids = self.tokens.integers("sentences.ids");
        let types = self.tokens.integers("sentences.type_ids");
        let offsets = self.tokens.integers("sentences.offsets");
        let mut rest = &self.training.batches[step - 1][..];
        let batches = sizes.iter().map(|size| {
            let (indices, others) = rest.split_at(*size);
            rest = others;
            let mut batch = Batch {
                images: None,
                words: None,
                ids: Vec::new(),
                type_ids: Vec::new(),
                positions: Vec::new(),
                offsets: vec![0],
                labels: Vec::new(),
                indices: indices.to_vec(),
            };
            for index in indices {
                let range = offsets[*index] as usize..offsets[index + 1] as usize;
                batch.ids.extend(&ids[range.clone()]);
                batch.type_ids.extend(&types[range.clone()]);
                batch.positions.extend(0..range.len() as u32);
                batch.offsets.push(batch.ids.len());
                let target = self.training.targets[*index];
                batch.labels.push(match self.number("num_labels") as usize {
                    1 => Label::Value(target as f32),
                    _ => Label::Class(target as u32),
                });
            }
            batch
        });
        batches.collect()
    }

    fn optimizer(&self, modules: usize) -> Optimizer<Flex> {
        let config = OptimizerConfig {
            rate: self.number("learning_rate"),
            loraplus_lr_ratio: 1.0,
            loraplus_lr_embedding: None,
            head_rate: self.number("learning_rate"),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: self.number("eps"),
            weight_decay: self.number("weight_decay"),
            schedule: LearningRateSchedule::Linear,
            warmup_steps: self.number("warmup_steps") as u64,
            total_steps: self.number("steps") as u64,
            state: OptimizerState::Global,
        };
        Optimizer::new(config, modules)
    }

    /// Holds the signals of every case against the oracle's.
    fn check(&self) {
        let path = self.folder.join("signals.json");
        let text = std::fs::read_to_string(&path).expect("a fixture");
        let golden: Signals = serde_json::from_str(&text).expect("signals");
        let mut furthest = self.check_frozen(&golden);
        for (name, case) in &golden.cases {
            let mut trainee = self.trainee();
            let mut optimizer = self.optimizer(trainee.adapters.modules.len());
            for expected in &case.steps {
                let batches = self.batches(expected.step as usize, &case.micro_batches);
                let result = run(&trainee, Some(&optimizer), &batches, expected, &EVERY_STEP);
                let off = check_step(name, &result.observation, expected);
                furthest = furthest.max(off);
                update(&mut trainee, &mut optimizer, expected, result);
            }
        }
        println!("{}: off by {furthest:e} at most", path.display());
    }

    fn check_frozen(&self, golden: &Signals) -> f64 {
        let trainee = self.trainee();
        let modules = &trainee.adapters.modules;
        let wanted = Wanted {
            signals: vec![Signal::FrozenWeightL1, Signal::FrozenWeightL2],
            raw: vec![RawValue::FrozenWeight],
            ..Wanted::default()
        };
        assert!(!wanted.once().is_nothing());
        let (signals, raw) = frozen::measure::<Flex>(&self.pretrained, modules, &wanted, &DEVICE)
            .expect("the checkpoint is whole");
        let mut furthest = 0f64;
        for (measured, expected) in signals
            .iter()
            .zip([&golden.frozen_weight_l1, &golden.frozen_weight_l2])
        {
            for (value, expected) in measured.values.iter().zip(expected) {
                let off = (f64::from(value.expect("of every module")) - expected).abs() / expected;
                assert!(off < TOLERANCE, "{}: {off:e}", measured.signal);
                furthest = furthest.max(off);
            }
        }
        for ((module, weight), l2) in modules
            .iter()
            .zip(&raw[0].buffers)
            .zip(&golden.frozen_weight_l2)
        {
            let values = (module.in_features * module.out_features) as usize;
            assert_eq!(weight.len(), values);
            let squares: f64 = weight.iter().map(|value| f64::from(*value).powi(2)).sum();
            assert!((squares.sqrt() - l2).abs() < 1e-6 * l2, "{}", module.path);
        }
        furthest
    }
}

fn run(
    trainee: &Trainee<Flex>,
    optimizer: Option<&Optimizer<Flex>>,
    batches: &[Batch],
    at: &Step,
    signals: &[Signal],
) -> StepResult<Flex> {
    let wanted = Wanted {
        signals: signals.to_vec(),
        raw: vec![RawValue::InputColumnL2],
        ..Wanted::default()
    };
    let plan = StepPlan {
        step: at.step,
        ..plan(&at.active, &wanted)
    };
    step::run(trainee, batches, &plan, None, optimizer, &DEVICE).expect("a step")
}

fn update(
    trainee: &mut Trainee<Flex>,
    optimizer: &mut Optimizer<Flex>,
    at: &Step,
    result: StepResult<Flex>,
) {
    let clip = (1.0 / (result.gradient_norm + 1e-6)).min(1.0) as f32;
    let step = at.step - 1;
    for (module, gradients) in result.gradients.into_iter().enumerate() {
        if let Some(gradients) = gradients {
            let pair = trainee.adapters.pair_mut(module);
            optimizer.update_module(module, step, [1.0; 2], None, pair, gradients, clip);
        }
    }
    let vectors = trainee.model.head.vectors();
    let head = &mut trainee.head;
    optimizer.update_head(step, head, &vectors, result.head_gradients, clip);
}

/// The furthest that a value is off, as a part of what it should be.
fn check_step(case: &str, observation: &Observation, golden: &Step) -> f64 {
    let mut furthest = 0f64;
    let all = [
        (Signal::Fisher, &golden.fisher),
        (Signal::InputL2, &golden.input_l2),
        (Signal::OutputGradientL2, &golden.output_gradient_l2),
        (Signal::GradientDotWeight, &golden.gradient_dot_weight),
        (
            Signal::GradientDotWeightAbs,
            &golden.gradient_dot_weight_abs,
        ),
        (Signal::UpdateL2, &golden.update_l2),
    ];
    for (signal, expected) in all {
        let values = observation
            .signal(&signal.name())
            .expect("it was asked for");
        assert_eq!(values.len(), expected.len());
        for (module, (value, expected)) in values.iter().zip(expected).enumerate() {
            let at = format!(
                "{case}, step {}: {signal:?} of module {module}",
                golden.step
            );
            assert_eq!(value.is_some(), expected.is_some(), "{at}");
            let (Some(value), Some(expected)) = (value, expected) else {
                continue;
            };
            // Products of either sign all but cancel: their sum is as exact as the sum of their sizes.
            let size = match signal {
                Signal::GradientDotWeight => golden.gradient_dot_weight_abs[module].unwrap_or(0.0),
                _ => expected.abs(),
            };
            let off = (f64::from(*value) - expected).abs() / size.max(f64::MIN_POSITIVE);
            assert!(
                off < TOLERANCE,
                "{at} is {value}, not {expected}: off by {off:e}"
            );
            furthest = furthest.max(off);
        }
    }
    let columns = &observation.raw[0].buffers;
    for (module, (columns, expected)) in columns.iter().zip(&golden.input_column_l2).enumerate() {
        assert!(columns.len() >= expected.len());
        for (value, expected) in columns.iter().zip(expected) {
            // A table's entries that no token has are 0.
            let size = expected.abs().max(f64::MIN_POSITIVE);
            let off = (f64::from(*value) - expected).abs() / size;
            assert!(
                off < TOLERANCE,
                "{case}: a column of module {module} is off by {off:e}"
            );
            furthest = furthest.max(off);
        }
    }
    furthest
}

#[test]
fn tiny_models_signals_are_pytorchs() {
    for goldens in [
        "all-linear",
        "regression",
        "vera",
        "dora",
        "bias",
        "embeddings",
        "embeddings-dora",
    ] {
        Subject::tiny(goldens, 0.0).check();
    }
    for model in ["tiny-llama", "tiny-gpt2", "tiny-modernbert", "tiny-gemma2"] {
        Subject::of(model, "all-linear").check();
    }
}

#[test]
fn minilms_signals_are_pytorchs() {
    let Some(folder) = minilm() else { return };
    Subject::open(&folder, "minilm", "minilm/tokens.safetensors", 0.0).check();
}

/// The values of one signal of a step over these batches.
fn values(
    subject: &Subject,
    trainee: &Trainee<Flex>,
    batches: &[Batch],
    signal: Signal,
    components: Option<&[Vec<bool>]>,
    (active, probing): (&[bool], bool),
) -> Vec<Option<f32>> {
    let wanted = Wanted {
        signals: vec![signal],
        ..Wanted::default()
    };
    let plan = StepPlan {
        components,
        probing,
        seed: 7,
        ..plan(active, &wanted)
    };
    let optimizer = subject.optimizer(trainee.adapters.modules.len());
    let result = step::run(trainee, batches, &plan, None, Some(&optimizer), &DEVICE);
    let result = result.expect("a step");
    result
        .observation
        .signal(&signal.name())
        .expect("asked for")
        .to_vec()
}

#[test]
fn fisher_of_one_example_is_its_gradient_squared_with_dropout_and_with_pruned_components() {
    for (goldens, pruned) in [
        ("all-linear", false),
        ("all-linear", true),
        ("vera", false),
        ("dora", false),
        ("dora", true),
        ("bias", false),
    ] {
        let subject = Subject::tiny(goldens, 0.1);
        let mut trainee = subject.trainee();
        match &mut trainee.adapters.config {
            Config::Lora(lora) => lora.dropout = 0.3,
            Config::Vera(vera) => vera.dropout = 0.3,
        }
        let modules = trainee.adapters.modules.len();
        let rank = trainee.adapters.config.rank() as usize;
        let remaining = |module: usize| {
            (0..rank)
                .map(move |k| !(module + k).is_multiple_of(3))
                .collect()
        };
        let components: Vec<Vec<bool>> = (0..modules).map(remaining).collect();
        let components = pruned.then_some(&components[..]);
        let all = vec![true; modules];
        let one = subject.batches(1, &[1]);
        let of = |signal| values(&subject, &trainee, &one, signal, components, (&all, false));
        let pairs = of(Signal::Fisher).into_iter().zip(of(Signal::GradientL2));
        for (module, (fisher, norm)) in pairs.enumerate() {
            let (fisher, norm) = (fisher.expect("measured"), norm.expect("measured"));
            let off = (fisher - norm * norm).abs() / fisher;
            assert!(
                norm > 0.0 && off < 1e-4,
                "{goldens}, module {module}: {off:e}"
            );
        }
    }
}

#[test]
fn what_comes_back_is_measured_where_a_gradient_passes_and_of_all_while_probing() {
    let subject = Subject::tiny("all-linear", 0.0);
    let trainee = subject.trainee();
    let modules = &trainee.adapters.modules;
    // One of the upper layer is active: below it nothing comes back.
    let only = modules
        .iter()
        .position(|m| m.path.ends_with("1.attention.self.value"));
    let only = only.expect("a module");
    let active: Vec<bool> = (0..modules.len()).map(|module| module == only).collect();
    let batches = subject.batches(1, &[8]);
    let of = |signal, probing| {
        values(
            &subject,
            &trainee,
            &batches,
            signal,
            None,
            (&active, probing),
        )
    };
    for signal in [
        Signal::Fisher,
        Signal::GradientDotWeight,
        Signal::GradientL2,
    ] {
        let found: Vec<bool> = of(signal, false).iter().map(Option::is_some).collect();
        assert_eq!(found, active, "{signal:?}");
        assert!(of(signal, true).iter().all(Option::is_some), "{signal:?}");
    }
    let found = of(Signal::OutputGradientL2, false);
    for (module, value) in modules.iter().zip(&found) {
        let above = module.layer != Some(0) && !["query", "key"].contains(&module.role.as_str());
        assert_eq!(value.is_some(), above, "{}", module.path);
    }
    let probed = of(Signal::OutputGradientL2, true);
    for (value, probed) in found.iter().zip(&probed) {
        let probed = probed.expect("measured while probing");
        assert!(value.is_none_or(|value| (value - probed).abs() < 1e-6 * probed));
    }
}

#[test]
fn measuring_changes_no_bit_of_a_step() {
    for goldens in ["all-linear", "dora", "bias"] {
        measuring_changes_no_bit(goldens);
    }
}

fn measuring_changes_no_bit(goldens: &str) {
    let subject = Subject::tiny(goldens, 0.1);
    let mut trainee = subject.trainee();
    if let Config::Lora(lora) = &mut trainee.adapters.config {
        lora.dropout = 0.2;
    }
    let batches = subject.batches(2, &[5, 3]);
    let modules = trainee.adapters.modules.len();
    let active: Vec<bool> = (0..modules).map(|module| module % 3 != 0).collect();
    let bits = |signals: &[Signal], raw: &[RawValue]| {
        let wanted = Wanted {
            signals: signals.to_vec(),
            raw: raw.to_vec(),
            ..Wanted::default()
        };
        let plan = StepPlan {
            seed: 3,
            ..plan(&active, &wanted)
        };
        let result = step::run(&trainee, &batches, &plan, None, None, &DEVICE).expect("a step");
        let tensors = result.gradients.into_iter().flatten().flatten();
        let tensors = tensors.chain(result.head_gradients);
        let values = tensors.flat_map(|tensor| read(tensor).expect("f32 values"));
        let bits: Vec<u32> = values.map(f32::to_bits).collect();
        (result.loss.to_bits(), bits)
    };
    let raw = [RawValue::Activation, RawValue::InputColumnL2];
    assert_eq!(bits(&[], &[]), bits(&EVERY_STEP, &raw));
}
