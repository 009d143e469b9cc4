//! The model, the training step and the signals against PyTorch, Transformers and PEFT, on the backend `B`.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use burn_flex::FlexDevice;
use dynalora::adapter::{Adapters, Config, LoraConfig, Pass};
use dynalora::allocation::{Signal, Wanted};
use dynalora::data::image::{Images, Processor};
use dynalora::data::{Batch, Encoded, Encoder, Label, Places, words};
use dynalora::export;
use dynalora::model::{Model, Pretrained};
use dynalora::recipe::{
    AdapterConfig, LearningRateSchedule, ModelConfig, OptimizerState, Precision, Problem,
};
use dynalora::train::eva;
use dynalora::train::optimizer::{Optimizer, OptimizerConfig};
use dynalora::train::prefix::PrefixCache;
use dynalora::train::step::{self, Prefix, StepPlan, StepResult};
use dynalora::train::trainee::{Trainee, read, upload};
use dynalora_plugin_api::ModuleInfo;
use dynalora_tests::words::sentence;
use dynalora_tests::{Golden, Run, Training, fixture, minilm, model_folder, plan};

use super::{B, EXACT};

const DEVICE: FlexDevice = FlexDevice;

/// What a golden file's models read.
struct Inputs(Encoded);

impl Inputs {
    /// The texts of a golden file.
    fn texts(path: &Path, of: &str) -> Self {
        let golden = Golden::open(path);
        let offsets = golden.integers(&format!("{of}.offsets"));
        Inputs(Encoded {
            ids: golden.integers(&format!("{of}.ids")),
            type_ids: golden.integers(&format!("{of}.type_ids")),
            offsets: offsets.into_iter().map(|offset| offset as usize).collect(),
            ..Encoded::default()
        })
    }

    /// The fixtures' sentences in words, of at most so many tokens.
    fn words(folder: &Path, most: usize, tags: u32) -> Self {
        let texts = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
        let texts = texts.lines().enumerate();
        let sentences = texts.map(|(number, text)| sentence(number, text, tags));
        let sentences: Vec<words::Sentence> = sentences.collect();
        let encoder = Encoder::open(&folder.join("tokenizer.json"), most).expect("a tokenizer");
        let names: Vec<String> = (0..tags).map(|tag| format!("B-{tag}")).collect();
        let of = ("sentences", &Places::default());
        Inputs(words::encode(&encoder, &sentences, &names, of).expect("sentences in words"))
    }

    /// The images of a golden file, from what the processor of the model in `folder` made of them.
    fn images(folder: &Path, pretrained: &Pretrained) -> Self {
        let golden = Golden::open(&folder.join("golden/pixels.safetensors"));
        let made = golden.floats("pixels");
        let file = folder.join("preprocessor_config.json");
        let processor = Processor::read(&file, None).expect("a processor's file");
        let byte = |value: &f32| ((value * 0.5 + 0.5) * 255.0).round() as u8;
        let images = Images {
            pixels: made.iter().map(byte).collect(),
            processor,
        };
        assert_eq!(images.normalised(), made);
        let tokens = pretrained.config.max_length;
        Inputs(Encoded {
            offsets: (0..=images.len()).map(|index| index * tokens).collect(),
            images: Some(images),
            ..Encoded::default()
        })
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    /// The examples at `indices`, packed.
    fn batch(&self, indices: &[usize], labels: Vec<Label>) -> Batch {
        Batch {
            labels,
            ..self.0.batch(indices)
        }
    }
}

/// The goldens do without dropout.
fn no_dropout() -> ModelConfig {
    ModelConfig {
        name: String::new(),
        revision: "main".to_owned(),
        max_length: Some(128),
        hidden_dropout: Some(0.0),
        attention_dropout: Some(0.0),
        classifier_dropout: Some(0.0),
        train_pooler: None,
        head_bias: Default::default(),
        precision: Default::default(),
    }
}

fn pretrained(folder: &Path) -> Pretrained {
    pretrained_for(folder, &no_dropout(), Problem::Classification)
}

fn pretrained_for(folder: &Path, config: &ModelConfig, problem: Problem) -> Pretrained {
    alone();
    let opened = Pretrained::open_for(&model_folder(folder), config, problem);
    opened.expect("the fixture is a whole model")
}

/// The same model under another `pad_token_id`.
fn padded_by(model: &Path, id: u64) -> Pretrained {
    let mut folder = model_folder(model);
    let text = std::fs::read_to_string(&folder.config).expect("a config");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["pad_token_id"] = id.into();
    let scene = tempfile::tempdir().expect("a temporary folder");
    folder.config = scene.path().join("config.json");
    std::fs::write(&folder.config, config.to_string()).expect("it writes");
    alone();
    let opened = Pretrained::open_for(&folder, &no_dropout(), Problem::Classification);
    opened.expect("the fixture is a whole model")
}

/// Lets no other test run beside, until this one's thread ends, where what a backend keeps for all threads (its graphs, its
/// generator) is not known to be kept apart: under load one test of many runs failed there, and never alone.
fn alone() {
    static ONE: Mutex<()> = Mutex::new(());
    thread_local! {
        static HELD: OnceCell<MutexGuard<'static, ()>> = const { OnceCell::new() };
    }
    if !EXACT {
        let take = || ONE.lock().unwrap_or_else(PoisonError::into_inner);
        HELD.with(|held| {
            held.get_or_init(take);
        });
    }
}

/// A model without adapters under the head of a golden file.
fn bare(pretrained: &Pretrained, golden: &Golden) -> Trainee<B> {
    let last = format!("{}.weight", pretrained.config.head.last);
    let outputs = golden.shape(&last)[0];
    let model = Model::<B>::load(pretrained, &[], outputs, &DEVICE).expect("the fixture loads");
    let head = model.head.tensors().into_iter().map(|tensor| {
        let values = burn::tensor::TensorData::new(
            golden.floats(&tensor.name),
            match tensor.shape[..] {
                [rows, columns] => [rows, columns],
                _ => [1, tensor.shape[0]],
            },
        );
        Tensor::from_data(values, &DEVICE)
    });
    let lora = Config::Lora(LoraConfig {
        rank: 1,
        alpha: 1.0,
        dropout: 0.0,
        start: None,
        use_dora: false,
        trains_bias: false,
        is_embedding: false,
    });
    let head = head.collect();
    Trainee {
        model,
        adapters: Adapters::new(lora, vec![], vec![], 0, &DEVICE),
        head,
    }
}

fn logits(trainee: &Trainee<B>, batch: &Batch) -> Vec<f32> {
    let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
    let output = trainee
        .model
        .forward(&upload::<B>(batch, &DEVICE), &mut pass);
    read(output.inner()).expect("f32 values")
}

fn hidden(trainee: &Trainee<B>, batch: &Batch) -> Vec<f32> {
    let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
    let base = &trainee.model.base;
    let input = upload::<B>(batch, &DEVICE);
    let output = base.prefix(&input, base.depth(), &mut pass);
    read(base.normed(output).inner()).expect("f32 values")
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    let difference = largest_difference(ours, theirs);
    assert!(
        difference <= tolerance,
        "{what}: off by {difference}, {tolerance} allowed"
    );
}

#[test]
fn tiny_models_of_every_family_and_precision_match_transformers() {
    // Half-precision weights are read exactly, so the tolerance is the same for all.
    for (folder, golden) in [
        ("tiny-bert", "tiny-bert"),
        ("tiny-bert-sharded", "tiny-bert"),
        ("tiny-bert-pretraining", "tiny-bert"),
        ("tiny-bert-f16", "tiny-bert-f16"),
        ("tiny-bert-bf16", "tiny-bert-bf16"),
        ("tiny-roberta", "tiny-roberta"),
        ("tiny-distilbert", "tiny-distilbert"),
        ("tiny-llama", "tiny-llama"),
        ("tiny-mistral", "tiny-mistral"),
        ("tiny-qwen2", "tiny-qwen2"),
        ("tiny-qwen3", "tiny-qwen3"),
        ("tiny-gpt2", "tiny-gpt2"),
        ("tiny-deberta", "tiny-deberta"),
        ("tiny-modernbert", "tiny-modernbert"),
        ("tiny-modernbert-biased", "tiny-modernbert-biased"),
        ("tiny-mistral-sliding", "tiny-mistral-sliding"),
        ("tiny-qwen2-sliding", "tiny-qwen2-sliding"),
        ("tiny-gemma2", "tiny-gemma2"),
        ("tiny-gemma3", "tiny-gemma3"),
        ("tiny-phi3", "tiny-phi3"),
    ] {
        let tokens_of = if golden.starts_with("tiny-bert") {
            "tiny-bert"
        } else {
            golden
        };
        let tokens = fixture(&format!("{tokens_of}/golden/tokens.safetensors"));
        let golden = Golden::open(&fixture(&format!("{golden}/golden/forward.safetensors")));
        let trainee = bare(&pretrained(&fixture(folder)), &golden);
        let sentences: Vec<usize> = golden
            .integers("sentences")
            .into_iter()
            .map(|index| index as usize)
            .collect();
        let texts = Inputs::texts(&tokens, "sentences");
        let batch = texts.batch(&sentences, vec![]);
        assert_close(
            folder,
            &logits(&trainee, &batch),
            &golden.floats("logits"),
            1e-4,
        );
        let first = upload::<B>(&texts.batch(&sentences[..1], vec![]), &DEVICE);
        for depth in 0..trainee.model.base.depth() {
            let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
            let states = trainee.model.base.prefix(&first, depth, &mut pass);
            let theirs = golden.floats(&format!("layers.{}.{depth}", sentences[0]));
            let ours = read(states.inner()).expect("f32 values");
            assert_close(&format!("{folder}, {depth} layers"), &ours, &theirs, 1e-4);
        }
        for index in sentences {
            let alone = hidden(&trainee, &texts.batch(&[index], vec![]));
            assert_close(
                folder,
                &alone,
                &golden.floats(&format!("hidden.{index}")),
                1e-4,
            );
        }
        let pairs = Inputs::texts(&tokens, "pairs");
        let all: Vec<usize> = (0..pairs.count()).collect();
        let ours = logits(&trainee, &pairs.batch(&all, vec![]));
        assert_close(folder, &ours, &golden.floats("pairs.logits"), 1e-4);
    }
}

/// Windows of a few tokens too, around a sequence that has one, and around one that has as many as there can be.
#[test]
fn sequences_of_one_token_and_of_the_most_match_transformers() {
    for name in [
        "tiny-bert",
        "tiny-roberta",
        "tiny-distilbert",
        "tiny-deberta",
        "tiny-modernbert",
        "tiny-modernbert-biased",
        "tiny-llama",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-gpt2",
        "tiny-mistral-sliding",
        "tiny-qwen2-sliding",
        "tiny-gemma2",
        "tiny-gemma3",
        "tiny-phi3",
    ] {
        let folder = fixture(name);
        let golden = Golden::open(&folder.join("golden/forward.safetensors"));
        let trainee = bare(&pretrained(&folder), &golden);
        let golden = Golden::open(&folder.join("golden/extremes.safetensors"));
        let offsets = golden.integers("offsets").into_iter();
        let texts = Inputs(Encoded {
            ids: golden.integers("ids"),
            type_ids: golden.integers("type_ids"),
            offsets: offsets.map(|offset| offset as usize).collect(),
            ..Encoded::default()
        });
        let ours = logits(&trainee, &texts.batch(&[0, 1], vec![]));
        assert_close(name, &ours, &golden.floats("logits"), 1e-4);
        for index in [0, 1] {
            let alone = hidden(&trainee, &texts.batch(&[index], vec![]));
            let theirs = golden.floats(&format!("hidden.{index}"));
            assert_close(name, &alone, &theirs, 1e-4);
        }
    }
}

#[test]
fn tiny_models_of_images_match_transformers() {
    for (name, goldens) in [
        ("tiny-vit", "tiny-vit"),
        ("tiny-deit", "tiny-deit"),
        ("tiny-clip", "tiny-clip"),
        ("tiny-clip-vision", "tiny-clip"),
    ] {
        let folder = fixture(goldens);
        let pretrained = pretrained(&fixture(name));
        let golden = Golden::open(&folder.join("golden/forward.safetensors"));
        let trainee = bare(&pretrained, &golden);
        let images = Inputs::images(&folder, &pretrained);
        let all: Vec<usize> = (0..images.count()).collect();
        let ours = logits(&trainee, &images.batch(&all, vec![]));
        assert_close(name, &ours, &golden.floats("logits"), 1e-4);
        for index in 0..4 {
            let alone = hidden(&trainee, &images.batch(&[index], vec![]));
            let theirs = golden.floats(&format!("hidden.{index}"));
            assert_close(name, &alone, &theirs, 1e-4);
        }
        let input = upload::<B>(&images.batch(&[0], vec![]), &DEVICE);
        for depth in 0..=trainee.model.base.depth() {
            let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
            let states = trainee.model.base.prefix(&input, depth, &mut pass);
            let theirs = golden.floats(&format!("layers.0.{depth}"));
            let ours = read(states.inner()).expect("f32 values");
            assert_close(&format!("{name}, {depth} layers"), &ours, &theirs, 1e-4);
        }
    }
}

#[test]
fn tiny_models_of_images_train_as_peft_does() {
    for model in ["tiny-vit", "tiny-deit", "tiny-clip"] {
        let goldens = format!("{model}/golden/all-linear");
        let case = Case::open(&fixture(model), &goldens, "");
        case.check_run("random_b", 1e-3);
        let trained = fixture(&goldens).join("trained");
        let trainee = adapted(&case.pretrained, &trained, case.outputs);
        let golden = Golden::open(&trained.join("logits.safetensors"));
        let images = golden.integers("images").into_iter();
        let images: Vec<usize> = images.map(|index| index as usize).collect();
        let ours = logits(&trainee, &case.inputs.batch(&images, vec![]));
        assert_close(model, &ours, &golden.floats("logits"), 1e-4);
    }
}

#[test]
fn minilm_matches_transformers_on_64_sentences() {
    let Some(folder) = minilm() else { return };
    let golden = Golden::open(&fixture("minilm/forward.safetensors"));
    let trainee = bare(&pretrained(&folder), &golden);
    let tokens = fixture("minilm/tokens.safetensors");
    let texts = Inputs::texts(&tokens, "sentences");
    let all: Vec<usize> = (0..texts.count()).collect();
    assert_eq!(all.len(), 64);
    let ours = logits(&trainee, &texts.batch(&all, vec![]));
    let theirs = golden.floats("logits");
    println!(
        "MiniLM logits: off by {:e}",
        largest_difference(&ours, &theirs)
    );
    assert_close("logits", &ours, &theirs, 1e-4);
    for index in [0, 3, 17, 31] {
        let alone = hidden(&trainee, &texts.batch(&[index], vec![]));
        assert_close(
            "hidden states",
            &alone,
            &golden.floats(&format!("hidden.{index}")),
            1e-4,
        );
    }
    let pairs = Inputs::texts(&tokens, "pairs");
    let all: Vec<usize> = (0..pairs.count()).collect();
    let ours = logits(&trainee, &pairs.batch(&all, vec![]));
    assert_close("pairs", &ours, &golden.floats("pairs.logits"), 1e-4);
}

#[test]
fn a_text_that_grows_token_by_token_is_the_one_that_is_read_at_once() {
    let mut slid = false;
    for name in [
        "tiny-llama",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-gpt2",
        "tiny-mistral-sliding",
        "tiny-qwen2-sliding",
        "tiny-gemma2",
        "tiny-gemma3",
        "tiny-phi3",
    ] {
        let pretrained = pretrained(&fixture(name));
        let trained = fixture(&format!("{name}/golden/causal-lm/trained"));
        let trainee = adapted(&pretrained, &trained, 0);
        let tokens = fixture(&format!("{name}/golden/tokens.safetensors"));
        let texts = Inputs::texts(&tokens, "sentences");
        let batch = texts.batch(&[3], vec![Label::Tokens(1)]);
        let ids = batch.ids.clone();
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        let (base, model) = (&trainee.model.base, &trainee.model);
        // The first five at once, then one by one.
        let (mut past, mut sum) = (base.past(), 0.0);
        for end in 1..ids.len() {
            let start = if end == 5 { 0 } else { end - 1 };
            let mut fresh = base.past();
            let past = if end < 5 { &mut fresh } else { &mut past };
            let start = if end < 5 { 0 } else { start };
            let logits = model.continued(&ids[start..end], past, &DEVICE, &mut pass);
            let logits = read(logits).expect("f32 values");
            let exps = logits.iter().map(|logit| f64::from(*logit).exp());
            sum += exps.sum::<f64>().ln() - f64::from(logits[ids[end] as usize]);
        }
        let loss = sum / (ids.len() - 1) as f64;
        let [whole] = losses(&trainee, &[batch])[..] else {
            panic!("one text");
        };
        assert!(
            (loss - f64::from(whole)).abs() < 1e-5 * loss,
            "{name}: {loss}, at once {whole}"
        );
        // Layers with a window know no more tokens than the next one sees.
        let attention = &pretrained.config.block.attention;
        for (layer, known) in past.known().into_iter().enumerate() {
            let reach = attention.local_in(layer).map(|local| local.reach);
            let tokens = ids.len() - 1;
            assert_eq!(
                known,
                reach.map_or(tokens, |reach| tokens.min(reach)),
                "{name}, layer {layer}"
            );
            slid |= known < tokens;
        }
    }
    assert!(slid, "no text is longer than a window");
}

/// A model with the adapter and the head that PEFT saved.
fn adapted(pretrained: &Pretrained, adapter: &Path, outputs: usize) -> Trainee<B> {
    let peft = export::read(adapter, &pretrained.config).expect("an adapter that PEFT wrote");
    let modules = peft
        .modules(&pretrained.linears())
        .expect("modules of this model");
    let model = Model::<B>::load(pretrained, &modules, outputs, &DEVICE).expect("a whole model");
    let head = peft.head(&model.head, &DEVICE).expect("a whole head");
    let mut adapters = peft.adapters(modules, &DEVICE).expect("a whole adapter");
    pretrained
        .put_on(&mut adapters, &model, &DEVICE)
        .expect("rows of some size");
    Trainee {
        model,
        adapters,
        head,
    }
}

/// One golden training: a model, its folder of goldens and what it reads.
struct Case {
    problem: Problem,
    pretrained: Pretrained,
    training: Training,
    folder: std::path::PathBuf,
    inputs: Inputs,
    outputs: usize,
}

impl Case {
    /// `tokens` is the file of the texts; images have none, and sentences in words are tokenised here.
    fn open(model: &Path, goldens: &str, tokens: &str) -> Self {
        let folder = fixture(goldens);
        let training = Training::open(&folder);
        let outputs = training.config["num_labels"].as_u64().expect("a number") as usize;
        let problem = match goldens.ends_with("/words") {
            true => Problem::TokenClassification,
            false => Problem::Classification,
        };
        let pretrained = match training.config["pad_token_id"].as_u64() {
            Some(id) => padded_by(model, id),
            None => pretrained_for(model, &no_dropout(), problem),
        };
        let most = training.config["max_length"].as_u64();
        let inputs = match tokens {
            _ if problem == Problem::TokenClassification => {
                Inputs::words(model, most.expect("a number") as usize, outputs as u32)
            }
            "" => Inputs::images(model, &pretrained),
            tokens => Inputs::texts(&fixture(tokens), "sentences"),
        };
        Case {
            problem,
            pretrained,
            training,
            folder,
            inputs,
            outputs,
        }
    }

    fn batch(&self, step: usize) -> Batch {
        let indices = &self.training.batches[step];
        if self.problem == Problem::TokenClassification {
            return self.inputs.0.batch(indices);
        }
        let label = |index: &usize| match self.outputs {
            0 => Label::Tokens(self.ignored()),
            1 => Label::Value(self.training.targets[*index] as f32),
            _ => Label::Class(self.training.targets[*index] as u32),
        };
        self.inputs
            .batch(indices, indices.iter().map(label).collect())
    }

    /// How many tokens of a sentence are not predicted.
    fn ignored(&self) -> u32 {
        self.training.config["ignored"].as_u64().expect("a number") as u32
    }

    fn trainee(&self, run: &str) -> Trainee<B> {
        // The runs with a mask start as `random_b` does.
        let start = if run == "zero_b" {
            "zero_b"
        } else {
            "random_b"
        };
        adapted(&self.pretrained, &self.folder.join(start), self.outputs)
    }

    fn step(&self, trainee: &Trainee<B>, number: usize, active: &[bool]) -> StepResult<B> {
        let wanted = Wanted {
            signals: Signal::ALL.to_vec(),
            ..Wanted::default()
        };
        let plan = StepPlan {
            step: number as u64,
            ..plan(active, &wanted)
        };
        step::run(
            trainee,
            &[self.batch(number - 1)],
            &plan,
            None,
            None,
            &DEVICE,
        )
        .expect("a step")
    }

    fn optimizer(&self, modules: usize) -> Optimizer<B> {
        let number = |key: &str| self.training.config[key].as_f64().expect("a number");
        let config = OptimizerConfig {
            rate: number("learning_rate"),
            loraplus_lr_ratio: self.training.config["loraplus_lr_ratio"]
                .as_f64()
                .unwrap_or(1.0),
            loraplus_lr_embedding: self.training.config["loraplus_lr_embedding"].as_f64(),
            head_rate: number("learning_rate"),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
            schedule: LearningRateSchedule::Linear,
            warmup_steps: number("warmup_steps") as u64,
            total_steps: number("steps") as u64,
            state: OptimizerState::Global,
        };
        Optimizer::new(config, modules)
    }

    /// Gradients of step 1 by PEFT's names, against the golden file: 1e-4 of each tensor's norm.
    fn check_gradients(&self, trainee: &Trainee<B>, result: &StepResult<B>, file: &str) {
        let golden = Golden::open(&self.folder.join(file));
        let prefix = self.pretrained.config.prefix;
        let mut ours: Vec<(String, Vec<f32>)> = Vec::new();
        for (module, gradients) in result.gradients.iter().enumerate() {
            let gradients = gradients.clone().expect("every module is active");
            let names = saved_names(&trainee.adapters, prefix, module);
            for (name, gradient) in names.zip(gradients) {
                ours.push((name, read(gradient).expect("f32 values")));
            }
        }
        for (tensor, gradient) in trainee
            .model
            .head
            .tensors()
            .iter()
            .zip(&result.head_gradients)
        {
            let values = read(gradient.clone()).expect("f32 values");
            ours.push((format!("base_model.model.{}", tensor.name), values));
        }
        let names = golden.names();
        for (name, values) in &ours {
            let norm = |values: &[f32]| {
                values
                    .iter()
                    .map(|value| f64::from(*value).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            if !names.contains(name) {
                // B is zero, and so is A's gradient.
                assert_eq!(norm(values), 0.0, "{name}");
                continue;
            }
            let theirs = golden.floats(name);
            let difference: Vec<f32> = values.iter().zip(&theirs).map(|(a, b)| a - b).collect();
            let relative = norm(&difference) / norm(&theirs);
            assert!(relative <= 1e-4, "{name}: off by {relative:e} of its norm");
        }
        assert!(
            names
                .iter()
                .all(|name| ours.iter().any(|(own, _)| own == name)),
            "{names:?}"
        );
    }

    /// A whole run with PEFT's start and batches: losses, norms and the final parameters.
    fn check_run(&self, name: &str, tolerance: f64) {
        self.check_run_of(self.trainee(name), name, tolerance);
    }

    /// The same, of a trainee that starts as PEFT's; what it ends as.
    fn check_run_of(&self, mut trainee: Trainee<B>, name: &str, tolerance: f64) -> Trainee<B> {
        let golden: &Run = &self.training.runs[name];
        let modules = trainee.adapters.modules.len();
        let embeddings = (0..modules).map(|it| trainee.adapters.own(it).is_embedding());
        let mut optimizer = self
            .optimizer(modules)
            .with_embeddings(embeddings.collect());
        let mut furthest = 0f64;
        for number in 1..=golden.losses.len() {
            let active: Vec<bool> = match golden.active_layers.get(number - 1) {
                Some(layers) => {
                    let modules = trainee.adapters.modules.iter();
                    modules
                        .map(|m| m.layer.is_some_and(|layer| layers.contains(&layer)))
                        .collect()
                }
                None => vec![true; modules],
            };
            let result = self.step(&trainee, number, &active);
            let expected = golden.losses[number - 1];
            furthest = furthest.max((result.loss - expected).abs() / expected.abs().max(1.0));
            let norm = golden.gradient_norms[number - 1];
            let off = (result.gradient_norm - norm).abs() / norm;
            assert!(
                off < 1e-3,
                "{name}, step {number}: gradient norm off by {off:e}"
            );
            if number == 1
                && self
                    .folder
                    .join(name)
                    .join("gradients.safetensors")
                    .exists()
            {
                assert!((result.loss - expected).abs() <= 1e-4 * expected.abs());
                self.check_gradients(&trainee, &result, &format!("{name}/gradients.safetensors"));
            }
            if let Some(signals) = golden.signals.get(number - 1) {
                check_signals(name, &result, signals);
            }
            let clip = (1.0 / (result.gradient_norm + 1e-6)).min(1.0) as f32;
            let at = number as u64 - 1;
            for (module, gradients) in result.gradients.into_iter().enumerate() {
                if let Some(gradients) = gradients {
                    let pair = trainee.adapters.pair_mut(module);
                    optimizer.update_module(module, at, [1.0; 2], None, pair, gradients, clip);
                }
            }
            let vectors = trainee.model.head.vectors();
            let head = &mut trainee.head;
            optimizer.update_head(at, head, &vectors, result.head_gradients, clip);
        }
        println!(
            "{} {name}: losses off by {furthest:e} at most",
            self.folder.display()
        );
        assert!(furthest <= tolerance, "{name}: losses off by {furthest:e}");
        self.check_final(&trainee, golden);
        trainee
    }

    fn check_final(&self, trainee: &Trainee<B>, golden: &Run) {
        let prefix = self.pretrained.config.prefix;
        let mut ours: Vec<(String, Tensor<B, 2>)> = Vec::new();
        for (module, values) in trainee.adapters.pairs().iter().enumerate() {
            let names = saved_names(&trainee.adapters, prefix, module);
            ours.extend(names.zip(values.iter().cloned()));
        }
        for (tensor, value) in trainee.model.head.tensors().iter().zip(&trainee.head) {
            ours.push((format!("base_model.model.{}", tensor.name), value.clone()));
        }
        assert_eq!(ours.len(), golden.final_l2.len());
        for (name, tensor) in ours {
            let values = read(tensor).expect("f32 values");
            let norm = values
                .iter()
                .map(|value| f64::from(*value).powi(2))
                .sum::<f64>()
                .sqrt();
            let expected = golden.final_l2[&name];
            let off = (norm - expected).abs() / expected;
            assert!(off < 1e-4, "{name}: final norm off by {off:e}");
        }
    }
}

/// In half precision a run stays near that in f32, and whatever the loss is scaled by, nothing that comes out of a step is.
#[test]
fn half_precision_stays_near_f32() {
    let tokens = |model: &str| format!("{model}/golden/tokens.safetensors");
    for precision in [Precision::Bf16, Precision::F16] {
        if EXACT && precision == Precision::F16 {
            // A precision of GPUs.
            continue;
        }
        for (model, goldens) in [("tiny-bert", "all-linear"), ("tiny-llama", "causal-lm")] {
            let case = Case::open(
                &fixture(model),
                &format!("{model}/golden/{goldens}"),
                &tokens(model),
            );
            let config = ModelConfig {
                precision,
                ..no_dropout()
            };
            let pretrained = pretrained_for(&fixture(model), &config, case.problem);
            let case = Case { pretrained, ..case };
            case.check_half(precision);
        }
    }
}

impl Case {
    /// A few steps against PEFT's in f32: further off than rounding in f32 is, and no further than rounding both sides of
    /// a product is.
    fn check_half(&self, precision: Precision) {
        let golden: &Run = &self.training.runs["random_b"];
        let mut trainee = self.trainee("random_b");
        let modules = trainee.adapters.modules.len();
        let (mut optimizer, active) = (self.optimizer(modules), vec![true; modules]);
        let mut furthest = [0f64; 2];
        for number in 1..=5 {
            let step = |scale: f32| {
                let wanted = Wanted {
                    signals: Signal::ALL.to_vec(),
                    ..Wanted::default()
                };
                let plan = StepPlan {
                    step: number as u64,
                    loss_scale: scale,
                    ..plan(&active, &wanted)
                };
                let batches = [self.batch(number - 1)];
                step::run(&trainee, &batches, &plan, None, None, &DEVICE).expect("a step")
            };
            let [plain, result] = [1.0, 65_536.0].map(step);
            let near = |what: &str, a: f64, b: f64, most: f64| {
                let off = (a - b).abs() / b.abs().max(1e-3);
                assert!(off <= most, "{precision:?}, step {number}: {what} {a}, {b}");
                off
            };
            near("loss", result.loss, plain.loss, 1e-6);
            near("norm", result.gradient_norm, plain.gradient_norm, 2e-2);
            for (scaled, plain) in result
                .observation
                .signals
                .iter()
                .zip(&plain.observation.signals)
            {
                for (scaled, plain) in scaled.values.iter().zip(&plain.values) {
                    let both = scaled
                        .zip(*plain)
                        .map(|(a, b)| (f64::from(a), f64::from(b)));
                    if let Some((a, b)) = both.filter(|_| plain.is_some()) {
                        near("signal", a, b, 0.1);
                    }
                }
            }
            let (loss, norm) = (golden.losses[number - 1], golden.gradient_norms[number - 1]);
            furthest[0] = furthest[0].max(near("loss", result.loss, loss, 1e-2));
            furthest[1] = furthest[1].max(near("norm", result.gradient_norm, norm, 5e-2));
            let clip = (1.0 / (result.gradient_norm + 1e-6)).min(1.0) as f32;
            let at = number as u64 - 1;
            for (module, gradients) in result.gradients.into_iter().enumerate() {
                let pair = trainee.adapters.pair_mut(module);
                let gradients = gradients.expect("every module is active");
                optimizer.update_module(module, at, [1.0; 2], None, pair, gradients, clip);
            }
            let vectors = trainee.model.head.vectors();
            let head = &mut trainee.head;
            optimizer.update_head(at, head, &vectors, result.head_gradients, clip);
        }
        println!(
            "{} in {precision:?}: losses and norms off by {furthest:?} at most",
            self.folder.display()
        );
        assert!(furthest[1] > 1e-5, "{precision:?} is rounded: {furthest:?}");
    }
}

/// PEFT's names of a module's tensors.
fn saved_names(
    adapters: &Adapters<B>,
    prefix: &str,
    module: usize,
) -> impl Iterator<Item = String> {
    let start = format!(
        "base_model.model.{prefix}.{}",
        adapters.modules[module].path
    );
    let parts = adapters.own(module).parts().into_iter();
    parts.map(move |part| match part {
        "lora_A" | "lora_B" => format!("{start}.{part}.weight"),
        part => format!("{start}.{part}"),
    })
}

fn check_signals(run: &str, result: &StepResult<B>, golden: &dynalora_tests::Signals) {
    let observation = &result.observation;
    assert_eq!(
        (observation.step, observation.tokens),
        (golden.step, golden.tokens)
    );
    for (signal, expected) in [
        (Signal::ActivationL1, &golden.activation_l1),
        (Signal::ActivationL2, &golden.activation_l2),
        (Signal::DeltaL2, &golden.delta_l2),
        (Signal::GradientL1, &golden.gradient_l1),
        (Signal::GradientL2, &golden.gradient_l2),
        (Signal::WeightL2, &golden.weight_l2),
    ] {
        let values = observation
            .signal(&signal.name())
            .expect("it was asked for");
        assert_eq!(values.len(), expected.len());
        for (module, (value, expected)) in values.iter().zip(expected).enumerate() {
            let value = f64::from(value.expect("every module is active"));
            let off = (value - expected).abs();
            assert!(
                off <= 2e-4 * expected.abs() + 1e-7,
                "{run}, step {}: {signal:?} of module {module} is {value}, not {expected}",
                golden.step
            );
        }
    }
}

#[test]
fn tiny_models_train_as_peft_does() {
    for (model, task) in [
        ("tiny-bert", "query-value"),
        ("tiny-bert", "all-linear"),
        ("tiny-bert", "regression"),
        ("tiny-bert", "rank-pattern-trained"),
        ("tiny-bert", "loraplus"),
        ("tiny-bert", "dora"),
        ("tiny-bert", "bias"),
        ("tiny-bert", "embeddings"),
        ("tiny-bert", "embeddings-dora"),
        ("tiny-gemma2", "embeddings"),
        ("tiny-distilbert", "dora"),
        ("tiny-llama", "dora"),
        ("tiny-gpt2", "dora"),
        ("tiny-roberta", "query-value"),
        ("tiny-distilbert", "query-value"),
        ("tiny-llama", "all-linear"),
        ("tiny-gpt2", "all-linear"),
        ("tiny-deberta", "all-linear"),
        ("tiny-modernbert", "all-linear"),
        ("tiny-modernbert-biased", "all-linear"),
        ("tiny-gemma2", "all-linear"),
    ] {
        let tokens = format!("{model}/golden/tokens.safetensors");
        Case::open(&fixture(model), &format!("{model}/golden/{task}"), &tokens)
            .check_run("random_b", 1e-3);
    }
}

/// The bits of everything that a step gives.
fn bits(result: StepResult<B>) -> Vec<u32> {
    let gradients = result.gradients.into_iter().flatten().flatten();
    let all = gradients.chain(result.head_gradients);
    let values = all.flat_map(|gradient| read(gradient).expect("f32 values"));
    let signals = result.observation.signals.into_iter();
    let signals = signals.flat_map(|signal| signal.values).flatten();
    let mut bits: Vec<u32> = values.chain(signals).map(f32::to_bits).collect();
    bits.extend([result.loss, result.gradient_norm].map(|value| (value as f32).to_bits()));
    bits
}

#[test]
fn nothing_is_run_twice_where_all_layers_are_kept() {
    let tokens = "tiny-bert/golden/tokens.safetensors";
    let case = Case::open(&fixture("tiny-bert"), "tiny-bert/golden/all-linear", tokens);
    let trainee = case.trainee("random_b");
    let wanted = Wanted::default();
    // The pooler, behind both layers.
    let modules = trainee.adapters.modules.iter();
    let active: Vec<bool> = modules.map(|module| module.layer.is_none()).collect();
    assert!(active.contains(&true));
    let step = |checkpointing| {
        let plan = StepPlan {
            checkpointing,
            ..plan(&active, &wanted)
        };
        let mut cache = PrefixCache::new(1 << 20);
        let prefix = Prefix {
            cache: &mut cache,
            depth: 2,
        };
        let batches = [case.batch(0)];
        let result = step::run(&trainee, &batches, &plan, Some(prefix), None, &DEVICE);
        bits(result.expect("a step"))
    };
    assert!(step(false) == step(true));
}

#[test]
fn running_layers_twice_changes_no_bit() {
    for (model, task) in [
        ("tiny-bert", "all-linear"),
        ("tiny-distilbert", "query-value"),
        ("tiny-llama", "all-linear"),
        ("tiny-llama", "causal-lm-response"),
        ("tiny-qwen3", "causal-lm"),
        ("tiny-gpt2", "causal-lm"),
        ("tiny-deberta", "all-linear"),
        ("tiny-modernbert", "all-linear"),
        ("tiny-modernbert-biased", "all-linear"),
        ("tiny-gemma2", "all-linear"),
        ("tiny-gemma3", "causal-lm"),
        ("tiny-phi3", "causal-lm"),
        ("tiny-vit", "all-linear"),
        ("tiny-clip", "all-linear"),
        ("tiny-bert", "words"),
        ("tiny-gpt2", "words"),
        ("tiny-bert", "dora"),
        ("tiny-distilbert", "dora"),
        ("tiny-bert", "embeddings"),
        ("tiny-bert", "embeddings-dora"),
        ("tiny-gpt2", "embeddings"),
    ] {
        let tokens = match model {
            "tiny-vit" | "tiny-clip" => String::new(),
            _ => format!("{model}/golden/tokens.safetensors"),
        };
        let goldens = format!("{model}/golden/{task}");
        let mut case = Case::open(&fixture(model), &goldens, &tokens);
        // Masks that a backend draws for itself are drawn for all tests of this process.
        let dropout = ModelConfig {
            hidden_dropout: Some(0.2),
            attention_dropout: Some(0.1),
            ..no_dropout()
        };
        case.pretrained = pretrained_for(&fixture(model), &dropout, case.problem);
        let trainee = case.trainee("random_b");
        let wanted = Wanted {
            signals: Signal::ALL.to_vec(),
            ..Wanted::default()
        };
        let modules = &trainee.adapters.modules;
        let layers = modules.iter().map(|module| module.layer != Some(0));
        for active in [vec![true; modules.len()], layers.collect()] {
            let step = |checkpointing| {
                let plan = StepPlan {
                    seed: 5,
                    checkpointing,
                    ..plan(&active, &wanted)
                };
                let batches = [case.batch(0), case.batch(1)];
                bits(step::run(&trainee, &batches, &plan, None, None, &DEVICE).expect("a step"))
            };
            let (whole, twice) = (step(false), step(true));
            assert!(whole.len() > 1000, "{model}, {task}");
            if EXACT {
                assert!(whole == twice, "{model}, {task}");
                continue;
            }
            let floats = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
            let (whole, twice): (Vec<f32>, Vec<f32>) = (floats(whole), floats(twice));
            for (one, other) in whole.iter().zip(&twice) {
                let close = (one - other).abs() <= 1e-6 + 1e-4 * one.abs();
                assert!(close, "{model}, {task}: {one} is {other}");
            }
        }
    }
}

#[test]
fn words_are_given_classes_as_with_peft() {
    for model in [
        "tiny-bert",
        "tiny-distilbert",
        "tiny-deberta",
        "tiny-llama",
        "tiny-gpt2",
        "tiny-gemma2",
        "tiny-modernbert",
    ] {
        let goldens = format!("{model}/golden/words");
        let case = Case::open(&fixture(model), &goldens, "");
        case.check_run("random_b", 1e-5);

        let trained = fixture(&goldens).join("trained");
        let trainee = adapted(&case.pretrained, &trained, case.outputs);
        let golden = Golden::open(&trained.join("logits.safetensors"));
        let sentences = golden.integers("sentences").into_iter();
        let sentences: Vec<usize> = sentences.map(|index| index as usize).collect();
        let batch = case.inputs.0.batch(&sentences);
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        let input = upload::<B>(&batch, &DEVICE);
        let x = trainee.model.base.prefix(&input, 0, &mut pass);
        let ours = trainee.answers(x, 0, &input.sequences, &batch, &mut pass);
        let ours = read(ours.inner()).expect("f32 values");
        let theirs = golden.floats("logits");
        assert_close(&goldens, &ours, &theirs, 1e-4);
        // The head over all tokens has the same rows, and others.
        let all = logits(&trainee, &batch);
        assert_eq!(all.len(), batch.tokens() * case.outputs);
        let rows = batch.word_rows().expect("words").into_iter();
        let rows = rows.flat_map(|row| &all[row * case.outputs..(row + 1) * case.outputs]);
        let rows: Vec<f32> = rows.copied().collect();
        assert_close(&goldens, &rows, &ours, 1e-6);
    }
}

#[test]
fn the_fisher_information_of_a_sentence_is_that_of_the_sum_of_its_words_losses() {
    let case = Case::open(&fixture("tiny-bert"), "tiny-bert/golden/words", "");
    let trainee = case.trainee("random_b");
    let active = vec![true; trainee.adapters.modules.len()];
    let wanted = Wanted {
        signals: vec![Signal::Fisher],
        ..Wanted::default()
    };
    let step = |indices: &[usize]| {
        let batches = [case.inputs.0.batch(indices)];
        let plan = plan(&active, &wanted);
        step::run(&trainee, &batches, &plan, None, None, &DEVICE).expect("a step")
    };
    let sentences = [3, 17, 31];
    let together = step(&sentences);
    for module in 0..active.len() {
        let alone = sentences.map(|index| {
            let result = step(&[index]);
            assert_ne!(result.weight, 1);
            let norm = result.gradient_norms[module].expect("it is active");
            (norm * result.weight as f64).powi(2)
        });
        let expected: f64 = alone.iter().sum();
        let found = together.observation.signals[0].values[module].expect("it is measured");
        let off = (f64::from(found) - expected).abs() / expected;
        assert!(off < 1e-4, "module {module}: {found}, not {expected}");
    }
}

/// The mean loss of each sentence's predicted tokens.
fn losses(trainee: &Trainee<B>, batches: &[Batch]) -> Vec<f32> {
    let losses = batches.iter().map(|batch| {
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        let input = upload::<B>(batch, &DEVICE);
        let x = trainee.model.base.prefix(&input, 0, &mut pass);
        let tokens = batch.next_tokens().expect("tokens are predicted");
        let sequences = &input.sequences;
        let loss = trainee
            .model
            .next_tokens(x, 0, sequences, &tokens, &mut pass);
        read(loss.inner()).expect("f32 values")[0]
    });
    losses.collect()
}

#[test]
fn decoders_learn_to_predict_tokens_as_with_peft() {
    for (model, task) in [
        ("tiny-llama", "causal-lm"),
        ("tiny-llama", "causal-lm-response"),
        ("tiny-mistral", "causal-lm"),
        ("tiny-qwen2", "causal-lm"),
        ("tiny-qwen3", "causal-lm"),
        ("tiny-gpt2", "causal-lm"),
        ("tiny-mistral-sliding", "causal-lm"),
        ("tiny-qwen2-sliding", "causal-lm"),
        ("tiny-gemma2", "causal-lm"),
        ("tiny-gemma3", "causal-lm"),
        ("tiny-phi3", "causal-lm"),
        // Tables that are the head as well, one of which has an entry that does not train.
        ("tiny-gpt2", "embeddings"),
        ("tiny-llama", "embeddings"),
        ("tiny-gemma2", "embeddings-dora"),
    ] {
        let tokens = format!("{model}/golden/tokens.safetensors");
        let goldens = format!("{model}/golden/{task}");
        let case = Case::open(&fixture(model), &goldens, &tokens);
        case.check_run("random_b", 1e-3);

        let trained = fixture(&goldens).join("trained");
        let trainee = adapted(&case.pretrained, &trained, 0);
        let golden = Golden::open(&trained.join("losses.safetensors"));
        let label = Label::Tokens(case.ignored());
        let sentences = golden.integers("sentences").into_iter();
        let batch = |index: u32| case.inputs.batch(&[index as usize], vec![label]);
        let batches: Vec<Batch> = sentences.map(batch).collect();
        let ours = losses(&trainee, &batches);
        assert_close(&goldens, &ours, &golden.floats("losses"), 1e-4);
    }
}

#[test]
fn vera_trains_as_pefts_does() {
    let tokens = "tiny-bert/golden/tokens.safetensors";
    Case::open(&fixture("tiny-bert"), "tiny-bert/golden/vera", tokens).check_run("random_b", 1e-5);
}

pub fn vera_on_minilm_trains_as_pefts_does_for_50_steps() {
    let Some(folder) = minilm() else { return };
    let case = Case::open(&folder, "minilm/vera", "minilm/tokens.safetensors");
    for run in ["zero_b", "random_b", "upper_layers", "rotating_layers"] {
        case.check_run(run, 1e-5);
    }
}

#[test]
fn an_adapter_that_peft_trained_gives_its_logits_here() {
    for (model, task, outputs) in [
        ("tiny-bert", "all-linear", 2),
        ("tiny-bert", "regression", 1),
        ("tiny-bert", "vera", 2),
        ("tiny-bert", "dora", 2),
        ("tiny-bert", "bias", 2),
        ("tiny-bert", "embeddings", 2),
        ("tiny-bert", "embeddings-dora", 2),
        ("tiny-gemma2", "embeddings", 2),
        ("tiny-distilbert", "dora", 2),
        ("tiny-llama", "dora", 2),
        ("tiny-gpt2", "dora", 2),
        ("tiny-roberta", "query-value", 2),
        ("tiny-distilbert", "query-value", 2),
        ("tiny-llama", "all-linear", 2),
        ("tiny-gpt2", "all-linear", 2),
        ("tiny-deberta", "all-linear", 2),
        ("tiny-modernbert", "all-linear", 2),
        ("tiny-modernbert-biased", "all-linear", 2),
        ("tiny-gemma2", "all-linear", 2),
    ] {
        let trained = fixture(&format!("{model}/golden/{task}/trained"));
        let trainee = adapted(&pretrained(&fixture(model)), &trained, outputs);
        let golden = Golden::open(&trained.join("logits.safetensors"));
        let tokens = fixture(&format!("{model}/golden/tokens.safetensors"));
        let sentences = golden
            .integers("sentences")
            .into_iter()
            .map(|index| index as usize);
        let batch =
            Inputs::texts(&tokens, "sentences").batch(&sentences.collect::<Vec<_>>(), vec![]);
        assert_close(
            task,
            &logits(&trainee, &batch),
            &golden.floats("logits"),
            1e-4,
        );
    }
}

pub fn minilm_trains_as_peft_does_for_50_steps() {
    let Some(folder) = minilm() else { return };
    let case = Case::open(&folder, "minilm", "minilm/tokens.safetensors");
    for run in ["zero_b", "random_b", "upper_layers", "rotating_layers"] {
        case.check_run(run, 1e-3);
    }
}

#[test]
fn gradients_accumulate_over_micro_batches_as_in_peft() {
    let Some(folder) = minilm() else { return };
    let case = Case::open(&folder, "minilm", "minilm/tokens.safetensors");
    let trainee = case.trainee("random_b");
    let wanted = Wanted::default();
    let active = vec![true; trainee.adapters.modules.len()];
    let plan = plan(&active, &wanted);
    let batches = [case.batch(0), case.batch(1)];
    let result = step::run(&trainee, &batches, &plan, None, None, &DEVICE).expect("a step");
    let losses = &case.training.runs["random_b"]
        .accumulated
        .as_ref()
        .expect("goldens")
        .losses;
    assert!((result.loss - (losses[0] + losses[1]) / 2.0).abs() < 1e-4);
    case.check_gradients(
        &trainee,
        &result,
        "random_b/gradients_accumulated.safetensors",
    );
}

#[test]
fn an_inactive_module_costs_no_gradient_and_nothing_below_is_recorded() {
    let tokens = "tiny-bert/golden/tokens.safetensors";
    let case = Case::open(
        &fixture("tiny-bert"),
        "tiny-bert/golden/query-value",
        tokens,
    );
    let trainee = case.trainee("random_b");
    let modules = &trainee.adapters.modules;
    let upper: Vec<bool> = modules
        .iter()
        .map(|module| module.layer == Some(1))
        .collect();
    let result = case.step(&trainee, 1, &upper);
    for (active, gradients) in upper.iter().zip(&result.gradients) {
        assert_eq!(*active, gradients.is_some());
    }
    // With the head alone nothing of the encoder is recorded.
    let mut pass = Pass::train(
        &trainee.adapters,
        &trainee.head,
        &vec![false; modules.len()],
        Default::default(),
        0,
    );
    let input = upload::<B>(&case.batch(0), &DEVICE);
    let base = &trainee.model.base;
    let hidden = base.prefix(&input, base.depth(), &mut pass);
    assert!(!dynalora::kernel::is_tracked(&hidden));
}

/// Components of every module, of which each third is pruned, and one module whole.
fn every_third(trainee: &Trainee<B>) -> Vec<Vec<bool>> {
    let rank = trainee.adapters.config.rank() as usize;
    let modules = 0..trainee.adapters.modules.len();
    modules
        .map(|module| {
            (0..rank)
                .map(|k| module != 1 && (module + k) % 3 != 0)
                .collect()
        })
        .collect()
}

#[test]
fn components_are_measured_by_pefts_gradients_and_pruned_ones_train_nothing() {
    let Some(folder) = minilm() else { return };
    let case = Case::open(&folder, "minilm", "minilm/tokens.safetensors");
    let wanted = Wanted {
        components: true,
        ..Wanted::default()
    };
    let rate = 3e-3;
    // Of `random_b` every component is measured by A and B as they are. In `zero_b` B is zero, so that any
    // component may be a pruned one.
    for (run, masked) in [("random_b", false), ("zero_b", true)] {
        let trainee = case.trainee(run);
        let modules = trainee.adapters.modules.len();
        let components = masked.then(|| every_third(&trainee));
        let all = vec![true; modules];
        let plan = StepPlan {
            components: components.as_deref(),
            rates: [rate; 2],
            ..plan(&all, &wanted)
        };
        let result =
            step::run(&trainee, &[case.batch(0)], &plan, None, None, &DEVICE).expect("a step");
        let adapter = Golden::open(&case.folder.join(run).join("adapter_model.safetensors"));
        let golden = Golden::open(&case.folder.join(run).join("gradients.safetensors"));
        let names = golden.names();
        let rank = trainee.adapters.config.rank() as usize;
        let mut squares = 0.0;
        for name in names.iter().filter(|name| !name.contains("lora_")) {
            squares += golden
                .floats(name)
                .iter()
                .map(|g| f64::from(g * g))
                .sum::<f64>();
        }
        for (index, module) in trainee.adapters.modules.iter().enumerate() {
            let [a, b] = ["lora_A", "lora_B"]
                .map(|part| format!("base_model.model.bert.{}.{part}.weight", module.path));
            let stored = |name: &String| -> (Vec<f32>, Vec<f32>) {
                let weights = adapter.floats(name);
                // The gradient of A is left out where it is zero.
                let gradients = match names.contains(name) {
                    true => golden.floats(name),
                    false => vec![0.0; weights.len()],
                };
                (weights, gradients)
            };
            let ((a, of_a), (b, of_b)) = (stored(&a), stored(&b));
            let (inputs, outputs) = (a.len() / rank, b.len() / rank);
            let ours = &result.observation.components[index];
            assert_eq!(ours.len(), rank);
            for (k, ours) in ours.iter().enumerate() {
                let remains = components.as_ref().is_none_or(|all| all[index][k]);
                let row = k * inputs..(k + 1) * inputs;
                let of_row: f64 = row.map(|i| f64::from(a[i] * of_a[i]).abs()).sum();
                let column = || (k..b.len()).step_by(rank);
                let size = |i: usize| match remains {
                    true => f64::from(b[i]).abs(),
                    false => rate,
                };
                let of_column: f64 = column().map(|i| size(i) * f64::from(of_b[i]).abs()).sum();
                let theirs = of_row / inputs as f64 + of_column / outputs as f64;
                let off = (f64::from(*ours) - theirs).abs();
                assert!(
                    off <= 1e-4 * theirs + 1e-12,
                    "{run}, {}, {k}: {ours}, not {theirs}",
                    module.path
                );
                assert_eq!(*ours == 0.0, masked && remains);
                if remains {
                    squares += column().map(|i| f64::from(of_b[i]).powi(2)).sum::<f64>();
                    squares += (k * inputs..(k + 1) * inputs)
                        .map(|i| f64::from(of_a[i]).powi(2))
                        .sum::<f64>();
                }
            }
            let [ours_a, ours_b] = result.gradients[index]
                .clone()
                .expect("every module is active")
                .pair;
            let (ours_a, ours_b) = (read(ours_a).expect("f32"), read(ours_b).expect("f32"));
            for k in (0..rank).filter(|k| components.as_ref().is_some_and(|all| !all[index][*k])) {
                assert!(
                    ours_a[k * inputs..(k + 1) * inputs]
                        .iter()
                        .all(|g| *g == 0.0)
                );
                assert!((k..ours_b.len()).step_by(rank).all(|i| ours_b[i] == 0.0));
            }
        }
        let off = (result.gradient_norm - squares.sqrt()).abs();
        assert!(
            off <= 1e-4 * squares.sqrt(),
            "{run}: norm {}",
            result.gradient_norm
        );
    }
}

#[test]
fn an_adapter_with_ranks_and_alphas_of_its_own_gives_pefts_logits() {
    let folder = fixture("tiny-bert/golden/rank-pattern");
    let pretrained = pretrained(&fixture("tiny-bert"));
    let trainee = adapted(&pretrained, &folder, 2);
    let ranks = |role: &str| -> Vec<u32> {
        let modules = trainee.adapters.modules.iter();
        modules
            .filter(|m| m.path.ends_with(role))
            .map(|m| m.rank)
            .collect()
    };
    assert_eq!(ranks("self.query"), [3, 1]);
    assert_eq!(ranks("attention.output.dense"), [4, 4]);
    assert_eq!(ranks("intermediate.dense"), [2, 2]);
    assert_logits_of(&trainee, &folder);
}

/// PiSSA starts at the same components as PEFT's, learns what it learns, and what is exported is PEFT's own conversion of
/// it to plain LoRA.
#[test]
fn pissa_trains_and_is_exported_as_pefts() {
    let tokens = "tiny-bert/golden/tokens.safetensors";
    let case = Case::open(&fixture("tiny-bert"), "tiny-bert/golden/pissa", tokens);
    let adapter: AdapterConfig = toml::from_str(
        "rank = 4\nalpha = 8\ntargets = \"all-linear\"\ninit_lora_weights = \"pissa\"",
    )
    .expect("an [adapter]");
    let mut trainee = adapted(&case.pretrained, &case.folder.join("start"), 2);
    let theirs = trainee.adapters;
    let found = case.pretrained.adapted(&adapter).expect("modules");
    assert_eq!(found.modules.len(), theirs.modules.len());
    trainee.adapters = Adapters::new((&adapter).into(), found.modules, found.configs, 0, &DEVICE);
    let weight = |module: &ModuleInfo| {
        let weight = case.pretrained.frozen_weight::<B>(module, &DEVICE)?;
        read(weight)
    };
    trainee
        .adapters
        .start_from(weight, None, 0, &DEVICE)
        .expect("singular values");
    for (module, info) in theirs.modules.iter().enumerate() {
        let product = |adapters: &Adapters<B>| {
            let [a, b] = adapters.pairs()[module].pair.clone();
            read(b.matmul(a) * adapters.scale(module)).expect("f32 values")
        };
        assert_close(
            &info.path,
            &product(&trainee.adapters),
            &product(&theirs),
            2e-5,
        );
        // Nothing has been learnt yet.
        let [a, b] = trainee.adapters.factors(module);
        let share = read(b.matmul(a)).expect("f32 values");
        assert!(share.iter().all(|value| *value == 0.0), "{}", info.path);
    }
    let trainee = case.check_run_of(trainee, "start", 1e-4);
    // As with PEFT's, on the base model as it was published.
    let trained = case.folder.join("trained");
    assert_logits_of(&adapted(&case.pretrained, &trained, 2), &trained);
    assert_logits_of(&trainee, &trained);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let head = trainee.model.head.tensors().into_iter().zip(trainee.head);
    export::write(
        folder.path(),
        &case.pretrained.config,
        "tiny-bert",
        &trainee.adapters,
        None,
        &case.pretrained.linears(),
        &head.collect::<Vec<_>>(),
    )
    .expect("it writes");
    let ours = export::read(folder.path(), &case.pretrained.config).expect("it reads");
    let theirs = export::read(&trained, &case.pretrained.config).expect("it reads");
    assert_eq!(ours.config(), theirs.config());
    assert_logits_of(&adapted(&case.pretrained, folder.path(), 2), &trained);
}

/// The `[adapter]` of a golden training by EVA.
fn adapter_by_eva(case: &Case) -> AdapterConfig {
    let config = &case.training.config;
    let mut adapter = serde_json::Map::new();
    for (ours, theirs) in [
        ("rank", "rank"),
        ("alpha", "alpha"),
        ("targets", "target_modules"),
        ("init_lora_weights", "init_lora_weights"),
        ("rank_pattern", "rank_pattern"),
        ("alpha_pattern", "alpha_pattern"),
        ("eva", "eva"),
    ] {
        if let Some(value) = config.get(theirs) {
            adapter.insert(ours.to_owned(), value.clone());
        }
    }
    let text = toml::to_string(&adapter).expect("TOML");
    toml::from_str(&text).expect("an [adapter]")
}

/// The same start by EVA as PEFT's: the directions, the ranks and the scales, after as many batches. From there it learns
/// what PEFT learns.
#[test]
fn eva_starts_where_pefts_does() {
    for (model, name) in [
        ("tiny-bert", "eva"),
        ("tiny-bert", "eva-whitened"),
        ("tiny-llama", "eva"),
    ] {
        let tokens = format!("{model}/golden/tokens.safetensors");
        let goldens = format!("{model}/golden/{name}");
        let case = Case::open(&fixture(model), &goldens, &tokens);
        let recipe = adapter_by_eva(&case);
        let found = case.pretrained.adapted(&recipe).expect("modules");
        let asked = eva::Asked {
            eva: recipe.eva().expect("EVA"),
            seed: 3,
            ranks: found.modules.iter().map(|module| module.rank).collect(),
        };
        let theirs = adapted(&case.pretrained, &case.folder.join("start"), case.outputs);
        let (modules, load) = (found.modules.clone(), |modules: &[ModuleInfo]| {
            Model::<B>::load(&case.pretrained, modules, case.outputs, &DEVICE).expect("a model")
        });
        let trainee = Trainee {
            model: load(&modules),
            adapters: Adapters::new((&recipe).into(), modules, found.configs.clone(), 0, &DEVICE),
            head: theirs.head.clone(),
        };
        // One epoch again and again, as PEFT reads it.
        let epoch = case.inputs.count().div_ceil(8);
        let batches = (0..).map(|step| case.batch(step % epoch));
        let start = eva::find(&asked, &trainee, batches, &DEVICE).expect("directions");
        let read_by_peft = case.training.config["eva_batches"].as_u64();
        println!(
            "{goldens}: {} batches, PEFT {read_by_peft:?}; ranks {:?}",
            start.record.batches, start.record.ranks
        );
        assert!(start.record.converged.iter().all(|it| *it));
        let (prefix, vectors) = (
            case.pretrained.config.prefix,
            start.vectors.expect("directions"),
        );
        // Modules that read the same tie, and PyTorch's sort leaves ties in any order: among these the ranks are the same.
        let ranks: Vec<u32> = theirs.adapters.modules.iter().map(|it| it.rank).collect();
        assert_eq!(ranks.len(), vectors.len());
        let mut starts = Vec::new();
        for (module, rank) in ranks.iter().enumerate() {
            let explained = &start.record.explained_variance;
            let same: Vec<usize> = (0..ranks.len())
                .filter(|other| explained[*other] == explained[module])
                .collect();
            let sorted = |of: &[u32]| {
                let mut ranks: Vec<u32> = same.iter().map(|module| of[*module]).collect();
                ranks.sort_unstable();
                ranks
            };
            assert_eq!(
                sorted(&start.record.ranks),
                sorted(&ranks),
                "{goldens}, {same:?}"
            );
            let longest = same
                .iter()
                .map(|module| &vectors[*module])
                .max_by_key(|it| it.len());
            let width = found.modules[module].in_features as usize;
            starts.push(longest.expect("itself")[..*rank as usize * width].to_vec());
        }
        let found = found.redistributed(&recipe, prefix, &ranks);
        assert_eq!(found.modules, theirs.adapters.modules, "{goldens}");
        let mut adapters = Adapters::new(
            (&recipe).into(),
            found.modules.clone(),
            found.configs,
            0,
            &DEVICE,
        );
        adapters.start_at(&starts, &DEVICE);
        let (mut furthest, mut apart) = (0f32, 0f32);
        for (module, info) in found.modules.iter().enumerate() {
            let scales = [&adapters, &theirs.adapters].map(|it| it.scale(module));
            assert!(
                (scales[0] - scales[1]).abs() < 1e-6,
                "{}: {scales:?}",
                info.path
            );
            let [a, b] = &adapters.pairs()[module].pair;
            let of_peft = &theirs.adapters.pairs()[module].pair[0];
            let span = |a: &Tensor<B, 2>| {
                read(a.clone().transpose().matmul(a.clone())).expect("f32 values")
            };
            // Of whitened rows as well, which are shorter the more there is along them.
            let largest = span(of_peft).iter().fold(0f32, |most, x| most.max(x.abs()));
            furthest = furthest.max(largest_difference(&span(a), &span(of_peft)) / largest);
            let values = |a: &Tensor<B, 2>| read(a.clone()).expect("f32 values");
            apart = apart.max(largest_difference(&values(a), &values(of_peft)));
            assert!(values(b).iter().all(|x| *x == 0.0));
        }
        println!("{goldens}: subspaces off by {furthest:e}, vectors by {apart:e}");
        assert_eq!(Some(start.record.batches), read_by_peft, "{goldens}");
        assert!(furthest < 1e-3, "{goldens}: off by {furthest:e}");
        if case.training.runs.contains_key("start") {
            let ours = Trainee {
                model: load(&found.modules),
                adapters,
                head: theirs.head.clone(),
            };
            case.check_run_of(ours, "start", 1e-3);
            let trainee = case.check_run_of(theirs, "start", 1e-4);
            assert_logits_of(&trainee, &case.folder.join("trained"));
        }
    }
}

/// AdaLoRA's pairs, of which some components remain or none, answer as with PEFT, and go on as PEFT's LoRA with the same
/// shares does.
#[test]
fn adaloras_pairs_are_read_as_lora_and_go_on_as_pefts() {
    let tokens = "tiny-bert/golden/tokens.safetensors";
    let case = Case::open(&fixture("tiny-bert"), "tiny-bert/golden/adalora", tokens);
    let folder = case.folder.join("adapter");
    let pretrained = pretrained(&fixture("tiny-bert"));
    let peft = export::read(&folder, &pretrained.config).expect("an adapter of PEFT's");
    let pretrained = peft.fit(pretrained).expect("the adapter of this model");
    let trainee = adapted(&pretrained, &folder, 2);
    let ranks: Vec<u32> = trainee.adapters.modules.iter().map(|it| it.rank).collect();
    assert!(ranks.contains(&1) && ranks.contains(&3) && !ranks.contains(&0));
    let paths = trainee.adapters.modules.iter().map(|it| it.path.clone());
    assert_eq!(paths.collect::<Vec<_>>(), case.training.modules);
    assert!(ranks.len() < pretrained.linears().len());
    assert_logits_of(&trainee, &folder);
    // What is exported of it is LoRA, with the same answers.
    let written = tempfile::tempdir().expect("a temporary folder");
    let head = trainee
        .model
        .head
        .tensors()
        .into_iter()
        .zip(trainee.head.clone());
    export::write(
        written.path(),
        &pretrained.config,
        "tiny-bert",
        &trainee.adapters,
        None,
        &pretrained.linears(),
        &head.collect::<Vec<_>>(),
    )
    .expect("it writes");
    assert_logits_of(&adapted(&pretrained, written.path(), 2), &folder);
    case.check_run_of(trainee, "adapter", 1e-4);
}

/// What a recipe's patterns give each module is what PEFT's give it.
#[test]
fn a_recipes_ranks_and_alphas_are_those_of_pefts() {
    let pretrained = pretrained(&fixture("tiny-bert"));
    let folder = fixture("tiny-bert/golden/rank-pattern-trained");
    let training = Training::open(&folder);
    for use_rslora in [false, true] {
        let table = |key: &str| {
            let patterns = training.config[key].as_object().expect("a table");
            let lines = patterns
                .iter()
                .map(|(key, value)| format!("'{key}' = {value}"));
            format!("{key} = {{ {} }}", lines.collect::<Vec<_>>().join(", "))
        };
        let recipe = format!(
            "rank = 4\nalpha = 8\ntargets = \"all-linear\"\nuse_rslora = {use_rslora}\n{}\n{}",
            table("rank_pattern"),
            table("alpha_pattern")
        );
        let recipe = toml::from_str(&recipe).expect("an [adapter]");
        let ours = pretrained.adapted(&recipe).expect("modules");
        let peft = match use_rslora {
            false => adapted(&pretrained, &folder.join("random_b"), 2),
            true => adapted(&pretrained, &fixture("tiny-bert/golden/rank-stabilised"), 2),
        };
        assert_eq!(ours.modules, peft.adapters.modules);
        for (module, config) in ours.configs.iter().enumerate() {
            let (ours, theirs) = (config.scale(), peft.adapters.scale(module));
            assert!(
                (ours - theirs).abs() <= f32::EPSILON * theirs,
                "{ours}, not {theirs}"
            );
        }
    }
}

/// Holds a model of the tiny BERT's tokens against an adapter's `logits.safetensors`.
fn assert_logits_of(trainee: &Trainee<B>, folder: &Path) {
    let golden = Golden::open(&folder.join("logits.safetensors"));
    let sentences: Vec<usize> = golden
        .integers("sentences")
        .iter()
        .map(|i| *i as usize)
        .collect();
    let tokens = Inputs::texts(&fixture("tiny-bert/golden/tokens.safetensors"), "sentences");
    let ours = logits(trainee, &tokens.batch(&sentences, vec![]));
    assert_close("logits", &ours, &golden.floats("logits"), 1e-4);
}

#[test]
fn adapters_with_a_stabilised_rank_or_a_saved_pooler_are_read() {
    for name in ["rank-stabilised", "saved-pooler"] {
        let folder = fixture("tiny-bert/golden").join(name);
        let pretrained = pretrained(&fixture("tiny-bert"));
        let peft = export::read(&folder, &pretrained.config).expect("an adapter of PEFT's");
        let pretrained = peft.fit(pretrained).expect("the adapter of this model");
        assert_logits_of(&adapted(&pretrained, &folder, 2), &folder);
    }
}

#[test]
fn a_head_in_the_checkpoint_is_where_training_starts() {
    for name in ["tiny-bert-pretraining", "tiny-roberta", "tiny-distilbert"] {
        // The checkpoint and, as a second shard, the head that Transformers computed the golden logits with.
        let goldens = fixture(name.trim_end_matches("-pretraining")).join("golden");
        let golden = Golden::open(&goldens.join("forward.safetensors"));
        let scene = tempfile::tempdir().expect("a temporary folder");
        let copy = |from: &str, to: &str| {
            let from = fixture(name).join(from);
            std::fs::copy(from, scene.path().join(to)).expect("it copies");
        };
        copy("config.json", "config.json");
        copy("tokenizer.json", "tokenizer.json");
        copy("model.safetensors", "1.safetensors");
        let head: Vec<_> = golden
            .names()
            .into_iter()
            .filter(|name| name.contains("classifier"))
            .map(|name| (golden.bytes(&name), golden.shape(&name), name))
            .collect();
        let views = head.iter().map(|(bytes, shape, name)| {
            let dtype = safetensors::Dtype::F32;
            let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
            (name.as_str(), view.expect("bytes of that shape"))
        });
        let second = scene.path().join("2.safetensors");
        safetensors::serialize_to_file(views, None, &second).expect("it writes");
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        std::fs::write(scene.path().join("model.safetensors.index.json"), index)
            .expect("it writes");

        let pretrained = pretrained(scene.path());
        let model = Model::<B>::load(&pretrained, &[], 2, &DEVICE).expect("a whole model");
        let mut trainee = bare(&pretrained, &golden);
        trainee.head = model.head.initial(7, Some(&[9.0, 9.0]), &DEVICE);
        let sentences: Vec<usize> = golden
            .integers("sentences")
            .iter()
            .map(|i| *i as usize)
            .collect();
        let tokens = Inputs::texts(&goldens.join("tokens.safetensors"), "sentences");
        let ours = logits(&trainee, &tokens.batch(&sentences, vec![]));
        assert_close(name, &ours, &golden.floats("logits"), 1e-4);
    }
}
