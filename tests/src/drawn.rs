//! Random recipes over all keys that decide a run, and the small inputs that they train on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dynalora_plugin_api::Random;
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};

use crate::fixture;
use crate::hub::cached;
use crate::pictures::write_stripes;

/// A recipe as dotted keys with their values in TOML; what is not there has its default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn(pub BTreeMap<String, String>);

/// Where `HF_HOME` is, in the folder of the [`inputs`].
pub const HOME: &str = "hf";

/// Models that read images.
const IMAGES: [&str; 3] = ["tiny-vit", "tiny-deit", "tiny-clip"];

/// The family without a head that gives each word a tag: a recipe that asks for one is refused.
const WITHOUT_TAGS: &str = "gemma3";

/// Allocators that choose components, which only LoRA's pairs have.
const CHOOSE_RANKS: [&str; 2] = ["rank-budget", "grow"];

/// A source of choices.
pub struct Choice(Random);

impl Choice {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Choice(Random::new(seed))
    }

    /// One of `items`.
    pub fn of<T: Clone>(&mut self, items: &[T]) -> T {
        items[(self.0.bits() % items.len() as u64) as usize].clone()
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.0.bits().is_multiple_of(times)
    }

    /// A whole number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.bits() % (most - least + 1)
    }

    /// A number from 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }
}

impl Drawn {
    /// Sets a key; the value is written as TOML writes it.
    pub fn set(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.0.insert(key.to_owned(), value.to_string());
        self
    }

    /// Drops a key, and every key of the table if that is what it names.
    pub fn drop(&mut self, key: &str) -> &mut Self {
        let table = format!("{key}.");
        self.0.retain(|k, _| k != key && !k.starts_with(&table));
        self
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A key's whole number, or what it is where it is left out.
    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.get(key)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    }

    /// The recipe's text, with `output` as its first key.
    pub fn recipe(&self, output: &Path) -> String {
        let mut tables = BTreeMap::<&str, String>::new();
        for (key, value) in &self.0 {
            let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
            let text = tables.entry(table).or_default();
            text.push_str(&format!("{key} = {value}\n"));
        }
        let mut text = format!(
            "output = {:?}\ndevice = \"cpu\"\n",
            output.display().to_string()
        );
        for (table, keys) in tables {
            if !table.is_empty() {
                text.push_str(&format!("[{table}]\n"));
            }
            text.push_str(&keys);
        }
        text
    }

    /// Whether nothing of the recipe drops out.
    pub fn has_no_dropout(&self) -> bool {
        let zero = |key| self.get(key) == Some("0.0");
        zero("model.hidden_dropout")
            && zero("model.attention_dropout")
            && zero("model.classifier_dropout")
            && self.get("adapter.dropout").is_none()
    }

    /// Makes sure that nothing drops out.
    pub fn without_dropout(&mut self) -> &mut Self {
        for key in ["hidden", "attention", "classifier"] {
            self.set(&format!("model.{key}_dropout"), "0.0");
        }
        self.drop("adapter.dropout")
    }

    /// Makes sure that pairs do not start by EVA.
    pub fn without_eva(&mut self) -> &mut Self {
        if self.get("adapter.init_lora_weights") == Some("\"eva\"") {
            self.drop("adapter.init_lora_weights").drop("adapter.eva");
        }
        self
    }

    /// A recipe on the inputs in `folder`, which [`inputs`] has made.
    pub fn draw(choice: &mut Choice, folder: &Path) -> Self {
        let mut drawn = Drawn::default();
        let c = choice;
        drawn.set("seed", c.between(0, 99));
        drawn.set("threads", c.between(1, 2));
        drawn.model(c, folder).data(c, folder).adapter(c);
        drawn.allocation(c).scorer(c).train(c).of_peft(c);
        drawn.tables(c)
    }

    /// Tables of embeddings among the modules.
    fn tables(&mut self, c: &mut Choice) -> Self {
        let plain = self.get("adapter.kind").is_none()
            && !(self.get("adapter.init_lora_weights")).is_some_and(|it| it.contains("pissa"))
            && !self.reads_images();
        if c.once_in(3) && plain {
            let name = self.get("model.name").unwrap_or_default();
            let tables: &[&str] = match self.decoder() {
                Some(roles) if roles.contains(&"c_attn") => &["wte", "wpe"],
                Some(_) => &["embed_tokens"],
                None if name.contains("modernbert") => &["tok_embeddings"],
                None if name.contains("deberta") => &["word_embeddings"],
                None => &["word_embeddings", "position_embeddings"],
            };
            let tables = &tables[..c.between(1, tables.len() as u64) as usize];
            let targets = self.get("adapter.targets").unwrap_or_default();
            let linears = targets.trim_matches(['[', ']']);
            let targets = format!(
                "[{linears}, {}]",
                tables
                    .iter()
                    .map(|it| format!("{it:?}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            self.set("adapter.targets", targets);
            // In no layer, they are left out where layers are named.
            let are_left = self.get("adapter.layers_to_transform").is_none();
            if are_left && self.get("train.loraplus_lr_ratio").is_some() && c.once_in(2) {
                self.set("train.loraplus_lr_embedding", "1e-3");
            }
        }
        self.clone()
    }

    /// What PEFT's users have beside.
    fn of_peft(&mut self, c: &mut Choice) -> &mut Self {
        let lora = self.get("adapter.kind").is_none();
        if c.once_in(4) && lora {
            self.set("adapter.use_rslora", "true");
        }
        if c.once_in(4) && lora {
            self.set("train.loraplus_lr_ratio", c.of(&["4.0", "0.5"]));
        }
        // Two or three modules of many.
        let many = self
            .get("adapter.targets")
            .is_some_and(|targets| targets.contains("value"));
        if c.once_in(4) && many {
            self.set("adapter.exclude_modules", "[\"value\"]");
        }
        // No count that is drawn is above two: so many modules, or layers where these are chosen, are always left. The
        // pooler, which is in no layer, is not.
        let deep = (self.get("model.name")).is_some_and(|name| name.contains("deep-bert"));
        let one_of_a_layer = matches!(
            self.get("adapter.targets"),
            Some(
                "[\"query\"]"
                    | "[\"q_lin\"]"
                    | "[\"q_proj\"]"
                    | "[\"c_attn\"]"
                    | "[\"Wqkv\"]"
                    | "[\"query_proj\"]"
            )
        );
        let two_layers = one_of_a_layer || self.get("allocation.unit").is_some();
        if c.once_in(4) {
            let layers = match (deep, two_layers) {
                (true, true) => c.of(&["[0, 3]", "[1, 2]", "[1, 2, 3]"]),
                (true, false) => c.of(&["[0, 3]", "[1, 2]", "3"]),
                (false, true) => "[0, 1]",
                (false, false) => c.of(&["0", "1", "[1]"]),
            };
            self.set("adapter.layers_to_transform", layers);
        }
        if c.once_in(4) && lora && self.get("adapter.dropout").is_none() {
            let starts = ["\"pissa\"", "\"pissa_niter_2\""];
            self.set("adapter.init_lora_weights", c.of(&starts));
        }
        if c.once_in(3) && lora {
            self.set("adapter.use_dora", "true");
        }
        // Of other decoders than GPT-2 and of plain ModernBERT no layer has a bias, and that is refused.
        let name = self.get("model.name").unwrap_or_default();
        let biased = match name.contains("modernbert") {
            true => name.contains("biased"),
            false => self.decoder().is_none_or(|roles| roles.contains(&"c_attn")),
        };
        if c.once_in(4) && lora && biased {
            self.set("adapter.bias", "\"lora_only\"");
        }
        if c.once_in(4) && lora && self.get("adapter.init_lora_weights").is_none() {
            // Where modules are few, all of them have to keep a rank.
            let few = two_layers
                || self.get("adapter.layers_to_transform").is_some()
                || self.get("adapter.exclude_modules").is_some();
            self.eva(c, few);
        }
        // An expression that matches nothing is refused; which layers are there is seen above.
        let upper = match self.get("adapter.layers_to_transform") {
            None => "'.*\\.1\\..*' = 3, ",
            Some(_) => "",
        };
        if c.once_in(3) && lora {
            let ranks = format!("{{ {upper}'.*' = {} }}", c.between(1, 4));
            self.set("adapter.rank_pattern", ranks);
        }
        if c.once_in(4) && lora {
            let alphas = format!("{{ {upper}'.*' = {} }}", c.of(&["2.0", "24.0"]));
            self.set("adapter.alpha_pattern", alphas);
        }
        self
    }

    /// Pairs that start from what their modules read.
    fn eva(&mut self, c: &mut Choice, few: bool) -> &mut Self {
        self.set("adapter.init_lora_weights", "\"eva\"");
        if few || self.get("adapter.r_max").is_some() {
            self.set("adapter.eva.rho", "1.0");
        } else if c.once_in(2) {
            self.set("adapter.eva.rho", c.of(&["1.0", "1.5"]));
        }
        if c.once_in(2) {
            self.set("adapter.eva.tau", c.of(&["0.9", "1.0"]));
        }
        for key in ["use_label_mask", "adjust_scaling_factors"] {
            if c.once_in(3) {
                self.set(&format!("adapter.eva.{key}"), "false");
            }
        }
        // A pooler reads one token of an example, and a batch may have one.
        self.set("adapter.eva.max_batches", c.between(16, 24))
    }

    fn model(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        let family = c.of(&[
            "tiny-bert",
            "deep-bert",
            "tiny-roberta",
            "tiny-distilbert",
            "tiny-llama",
            "tiny-qwen3",
            "tiny-gpt2",
            "tiny-deberta",
            "tiny-modernbert",
            "tiny-modernbert-biased",
            "tiny-mistral-sliding",
            "tiny-gemma2",
            "tiny-gemma3",
            "tiny-phi3",
            "chat-tiny-llama",
            "formats/bin-tied",
            "formats/llama",
            "tiny-vit",
            "tiny-deit",
            "tiny-clip",
        ]);
        let path = match family {
            "deep-bert" | "chat-tiny-llama" => folder.join(family),
            _ => fixture(family),
        };
        self.set("model.name", format!("{:?}", path.display().to_string()));
        // An image has as many tokens as it has.
        if !IMAGES.contains(&family) {
            let lengths = match family {
                // What is asked has to leave room for the answer.
                "chat-tiny-llama" => [48, 56, 64],
                _ => [16, 24, 48],
            };
            self.set("model.max_length", c.of(&lengths));
        }
        // What the models' own files say is 0.1.
        if c.once_in(2) {
            self.without_dropout();
        } else {
            for key in ["hidden", "attention", "classifier"] {
                if c.once_in(2) {
                    self.set(&format!("model.{key}_dropout"), c.of(&["0.0", "0.2"]));
                }
            }
        }
        if c.once_in(3) {
            self.set("model.head_bias", c.of(&["\"labels\"", "\"zero\""]));
        }
        if c.once_in(4) {
            self.set("model.precision", "\"bf16\"");
        }
        if family.ends_with("-bert") && c.once_in(3) {
            self.set("model.train_pooler", c.once_in(2));
        }
        self
    }

    fn data(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        if self.reads_images() {
            return self.images(c, folder);
        }
        let name = self.get("model.name").unwrap_or_default();
        let labels_words = !name.contains(WITHOUT_TAGS);
        if c.once_in(5) && labels_words {
            return self.words(c, folder);
        }
        let decoder = self.decoder().is_some();
        let problem = match decoder && c.once_in(2) {
            true => "language",
            false => c.of(&["comma", "comma", "value", "pairs"]),
        };
        if problem == "language" {
            return self.language(c, folder);
        }
        for part in ["train", "validation"] {
            let file = folder.join(format!("{problem}-{part}.csv"));
            self.set(
                &format!("data.{part}"),
                format!("{:?}", file.display().to_string()),
            );
        }
        if c.once_in(6) {
            // The same files, in the Hub's cache.
            self.drop("data.train").drop("data.validation");
            self.set("data.hub", format!("\"owner/{problem}\""));
        }
        self.set("data.columns.text", "\"sentence\"");
        match problem {
            "value" => self.set("data.problem", "\"regression\""),
            "pairs" => self
                .set("data.columns.text_pair", "\"second\"")
                .set("data.problem", "\"classification\""),
            _ => self.set("data.problem", "\"classification\""),
        };
        if c.once_in(3) {
            self.set("data.limit", c.between(13, 40));
        }
        self
    }

    /// Sentences in words, each of which has a tag.
    fn words(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        let kind = c.of(&["conll", "jsonl"]);
        for part in ["train", "validation"] {
            let file = folder.join(format!("words-{part}.{kind}"));
            self.set(
                &format!("data.{part}"),
                format!("{:?}", file.display().to_string()),
            );
        }
        self.set("data.problem", "\"token-classification\"");
        // Of a head that has none.
        self.drop("model.train_pooler");
        if c.once_in(3) {
            self.set("data.limit", c.between(13, 40));
        }
        if c.once_in(4) {
            let labels = "[\"O\", \"I-END\", \"B-UP\", \"I-UP\", \"B-END\"]";
            self.set("data.labels", labels);
        }
        self
    }

    /// Images in a folder per class.
    fn images(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        self.set("data.format", "\"images\"");
        let stripes = folder.join("stripes");
        if c.once_in(2) {
            self.set("data.dir", format!("{:?}", stripes.display().to_string()));
        } else {
            for part in ["train", "validation"] {
                let part_of = stripes.join(part).display().to_string();
                self.set(&format!("data.{part}"), format!("{part_of:?}"));
            }
        }
        if c.once_in(3) {
            self.set("data.limit", c.between(13, 40));
        }
        self
    }

    /// Conversations, for a model that has a chat template.
    fn chat(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        for part in ["train", "validation"] {
            let file = folder.join(format!("chats-{part}.jsonl"));
            self.set(
                &format!("data.{part}"),
                format!("{:?}", file.display().to_string()),
            );
        }
        self.set("data.problem", "\"causal-lm\"");
        self.set("data.columns.messages", "\"messages\"");
        if c.once_in(3) {
            self.set("data.limit", c.between(13, 20));
        }
        self
    }

    fn reads_images(&self) -> bool {
        let name = self.get("model.name");
        name.is_some_and(|name| IMAGES.iter().any(|family| name.contains(family)))
    }

    /// Documents of which all is predicted, answers to short prompts, or those of conversations.
    fn language(&mut self, c: &mut Choice, folder: &Path) -> &mut Self {
        if self
            .get("model.name")
            .is_some_and(|name| name.contains("chat-"))
        {
            return self.chat(c, folder);
        }
        for part in ["train", "validation"] {
            let file = folder.join(format!("comma-{part}.csv"));
            self.set(
                &format!("data.{part}"),
                format!("{:?}", file.display().to_string()),
            );
        }
        self.set("data.problem", "\"causal-lm\"");
        if c.once_in(2) {
            self.set("data.columns.text", "\"label\"");
            self.set("data.columns.response", "\"sentence\"");
        } else {
            self.set("data.columns.text", "\"sentence\"");
        }
        if c.once_in(3) {
            self.set("data.limit", c.between(13, 40));
        }
        self
    }

    /// The roles of the model's linear layers, if it is no relative of BERT's with their names.
    fn roles(&self) -> Option<&'static [&'static str]> {
        let is = |family: &str| (self.get("model.name")).is_some_and(|name| name.contains(family));
        match self.reads_images() {
            true if is("clip") => Some(&["q_proj", "fc1", "out_proj"]),
            true => Some(&["q_proj", "fc1", "o_proj"]),
            false if is("deberta") => Some(&["query_proj", "value_proj", "key_proj"]),
            false if is("modernbert") => Some(&["Wqkv", "Wi", "Wo"]),
            false => self.decoder(),
        }
    }

    /// The roles of the model's linear layers, if it is a decoder.
    fn decoder(&self) -> Option<&'static [&'static str]> {
        let name = self.get("model.name")?;
        let is = |family: &str| name.contains(family);
        match () {
            () if ["llama", "qwen3", "mistral", "gemma"]
                .iter()
                .any(|of| is(of)) =>
            {
                Some(&["q_proj", "down_proj", "up_proj"])
            }
            () if is("tiny-gpt2") || is("formats/bin-tied") => Some(&["c_attn", "c_proj", "c_fc"]),
            () => None,
        }
    }

    fn adapter(&mut self, c: &mut Choice) -> &mut Self {
        let vera = c.once_in(3);
        if vera {
            self.set("adapter.kind", "\"vera\"");
            self.set("adapter.rank", c.of(&[4, 9, 16]));
            if c.once_in(3) {
                self.set("adapter.d_initial", c.of(&["0.5", "1.0"]));
            }
        } else {
            self.set("adapter.rank", c.of(&[1, 2, 4, 7]));
            if c.once_in(2) {
                self.set("adapter.alpha", c.of(&["4.0", "32.0"]));
            }
            if c.once_in(4) {
                self.set("adapter.r_max", c.of(&[7, 8, 12]));
            }
        }
        if !self.has_no_dropout() && c.once_in(2) {
            self.set("adapter.dropout", c.of(&["0.1", "0.5"]));
        }
        // Names of all three families; what a model lacks is left out where others are there.
        let distil = self
            .get("model.name")
            .is_some_and(|name| name.contains("distil"));
        if let Some(roles) = self.roles() {
            let targets = match c.between(0, 3) {
                0 => "\"all-linear\"".to_owned(),
                count => format!("{:?}", &roles[..count as usize]),
            };
            return self.set("adapter.targets", targets);
        }
        let targets = match (c.between(0, 4), distil) {
            (0, _) => "\"all-linear\"",
            (1, false) => "[\"query\"]",
            (1, true) => "[\"q_lin\"]",
            (2, false) => "[\"dense\"]",
            (2, true) => "[\"out_lin\", \"lin1\", \"lin2\"]",
            (_, false) => "[\"query\", \"value\", \"dense\"]",
            (_, true) => "[\"q_lin\", \"v_lin\", \"lin2\"]",
        };
        self.set("adapter.targets", targets)
    }

    fn allocation(&mut self, c: &mut Choice) -> &mut Self {
        if c.once_in(8) {
            return self;
        }
        let schedule = match c.between(0, 3) {
            0 => format!("{{ kind = \"once\", after = {} }}", c.between(1, 7)),
            1 => {
                let first = c.between(1, 4);
                let second = first + c.between(1, 4);
                let third = second + c.between(1, 5);
                format!("{{ kind = \"at\", steps = [{first}, {second}, {third}] }}")
            }
            _ => format!("{{ kind = \"periodic\", every = {} }}", c.between(1, 5)),
        };
        self.set("allocation.schedule", schedule);
        if c.once_in(3) {
            self.set("allocation.unit", "\"layer\"");
        }
        if c.once_in(2) {
            self.set(
                "allocation.optimizer_state",
                c.of(&["\"local\"", "\"reset\""]),
            );
        }
        if c.once_in(2) {
            self.set("allocation.probe_steps", c.between(0, 4));
        }
        let allocators = [
            "top-k",
            "multinomial",
            "discounted",
            "uniform",
            "threshold",
            "rank-budget",
            "grow",
            "cyclic",
            "lisa",
            "drop",
        ];
        let mut allocator = c.of(&allocators);
        // Ranks are pruned of LoRA's modules alone.
        if CHOOSE_RANKS.contains(&allocator) && self.get("adapter.kind").is_some() {
            allocator = "uniform";
        }
        self.set("allocator.plugin", format!("{allocator:?}"));
        if c.once_in(6) {
            self.set("allocator.isolation", "\"process\"");
        }
        if c.once_in(3) {
            // Where nothing fails it changes nothing.
            self.set("allocation.on_plugin_fault", "\"keep\"");
        }
        let k = match self.get("allocation.unit") {
            Some(_) => c.of(&["1", "2", "\"50%\""]),
            None => c.of(&["1", "2", "\"25%\"", "\"50%\"", "\"80%\""]),
        };
        match allocator {
            "threshold" => {
                self.set("allocator.p", c.of(&["0.2", "0.5", "0.9"]));
            }
            "rank-budget" => {
                self.drop("allocation.unit");
                self.set("allocator.target_r", c.of(&["\"50%\"", "\"75%\"", "1"]));
                self.set("allocator.tinit", c.between(0, 3));
                self.set("allocator.tfinal", c.between(0, 3));
            }
            "grow" => {
                self.drop("allocation.unit");
                self.set("allocator.rank", c.of(&["\"50%\"", "1"]));
                self.set("allocator.b", c.between(1, 3));
                self.set("allocator.k", c.between(1, 2));
            }
            "lisa" => {
                self.set("allocator.gamma", c.of(&["1", "\"50%\""]));
                if c.once_in(2) {
                    self.set("allocator.weights", "\"score\"");
                }
            }
            "drop" => {
                self.drop("allocation.unit");
                self.set("allocator.threshold", c.of(&["0.5", "0.9"]));
                // Vectors of VeRA's are not shared.
                let vera = self
                    .get("adapter.kind")
                    .is_some_and(|kind| kind.contains("vera"));
                if vera || c.once_in(2) {
                    self.set("allocator.others", "\"drop\"");
                }
                if c.once_in(2) {
                    self.set("allocator.per", "\"role\"");
                }
            }
            "cyclic" => {
                self.set("allocator.k", k);
                self.set("allocator.order", c.of(&["\"random\"", "\"ascending\""]));
            }
            _ => {
                self.set("allocator.k", k);
                if allocator == "discounted" && c.once_in(2) {
                    self.set("allocator.epsilon", c.of(&["0.5", "1.0"]));
                }
                if k.ends_with("%\"") && c.once_in(3) {
                    let by = c.of(&["\"parameters\"", "\"flops\"", "\"memory\""]);
                    self.set("allocator.by", by);
                }
            }
        }
        if c.once_in(4) {
            self.set("allocation.initial", "\"allocator\"");
            if c.once_in(2) {
                self.set("allocation.calibration_steps", c.between(1, 2));
            }
        } else if !CHOOSE_RANKS.contains(&allocator) && c.once_in(3) {
            self.set("allocation.initial", "\"random\"");
            if c.once_in(2) || self.get("allocator.k").is_none() {
                self.set("allocation.initial_k", c.of(&["1", "\"50%\""]));
            }
        }
        self
    }

    fn scorer(&mut self, c: &mut Choice) -> &mut Self {
        let allocator = self.get("allocator.plugin").map(str::to_owned);
        let without = match allocator.as_deref() {
            None => return self,
            Some("\"rank-budget\"" | "\"grow\"") => true,
            Some("\"uniform\"" | "\"cyclic\"") => c.once_in(2),
            Some("\"lisa\"") if self.get("allocator.weights").is_none() => c.once_in(2),
            Some(_) => false,
        };
        if without {
            return self;
        }
        let scorers = [
            "activation",
            "gradient",
            "sensitivity",
            "fisher",
            "trial",
            "table",
        ];
        let scorer = c.of(&scorers);
        self.set("scorer.plugin", format!("{scorer:?}"));
        if c.once_in(6) {
            self.set("scorer.isolation", "\"process\"");
        }
        match scorer {
            "sensitivity" | "fisher" => {
                if c.once_in(2) {
                    self.set("scorer.per_parameter", "true");
                }
                return self;
            }
            "table" => {
                self.set("scorer.scores", "{ \"**\" = 1.0 }");
                return self;
            }
            "trial" => {
                self.set("scorer.held_back", c.between(1, 6));
                if c.once_in(2) {
                    self.set("scorer.by", "\"layer\"");
                }
                if c.once_in(2) {
                    self.set("scorer.method", "\"reinforced\"");
                    self.set("scorer.interval", c.between(1, 3));
                }
                return self;
            }
            _ => {}
        }
        if c.once_in(3) {
            self.set("scorer.norm", "\"l1\"");
        }
        if c.once_in(2) {
            self.set("scorer.window", c.of(&["\"period\"", "{ ema = 0.5 }"]));
        }
        if scorer == "activation" && self.get("scorer.norm").is_none() && c.once_in(3) {
            self.set("scorer.target", "\"delta\"");
        }
        if c.once_in(2) {
            self.set("scorer.one_in", c.between(1, 4));
        }
        let average = |window: &str| window.contains("ema");
        if !self.get("scorer.window").is_some_and(average) && c.once_in(3) {
            self.set("scorer.reduce", "\"sum\"");
        }
        if scorer == "gradient" && c.once_in(3) {
            self.set("scorer.steps", "\"own\"");
        }
        self
    }

    fn train(&mut self, c: &mut Choice) -> &mut Self {
        let mut steps = c.between(6, 16);
        if c.once_in(5) {
            self.set("train.epochs", c.between(1, 2));
            steps = 12;
        } else {
            self.set("train.steps", steps);
        }
        if c.once_in(4) {
            let longest = self.number("model.max_length", 48);
            self.set("train.tokens_per_batch", longest * c.between(1, 5));
        } else {
            self.set("train.batch_size", c.of(&[1, 3, 5, 8]));
        }
        if c.once_in(3) {
            self.set("train.gradient_accumulation", c.between(2, 3));
        }
        if c.once_in(2) {
            self.set(
                "train.order",
                c.of(&["\"length-grouped\"", "\"sequential\""]),
            );
        }
        self.set("train.learning_rate", c.of(&["5e-3", "1e-3"]));
        if c.once_in(4) {
            self.set("train.head_learning_rate", "1e-2");
        }
        if c.once_in(2) {
            self.set("train.lr_schedule", c.of(&["\"cosine\"", "\"constant\""]));
        }
        if c.once_in(2) {
            self.set("train.warmup", c.of(&["0", "2", "0.3"]));
        }
        if c.once_in(3) {
            self.set("train.weight_decay", c.of(&["0.1", "0.01"]));
        }
        if c.once_in(3) {
            self.set("train.max_grad_norm", c.of(&["0.0", "0.1"]));
        }
        self.set("train.log_every", c.of(&[1, 1, 3]));
        if c.once_in(4) {
            self.set("train.log_signals", "true");
        }
        if c.once_in(4) {
            let programs = [
                "\"tensorboard\"",
                "\"mlflow\"",
                "[\"mlflow\", \"tensorboard\"]",
            ];
            self.set("train.report_to", c.of(&programs));
        }
        if self.has_no_dropout() && c.once_in(2) {
            self.set("train.cache_frozen_prefix", "true");
            if c.once_in(2) {
                self.set("train.cache_memory_mib", 0);
            }
        }
        if c.once_in(4) {
            self.set("train.gradient_checkpointing", "true");
        }
        if c.once_in(4) {
            self.set("checkpoint.keep", c.between(1, 3));
        }
        if c.once_in(6) {
            self.set("checkpoint.minutes", "0.001");
        }
        if c.once_in(4) {
            self.set("train.on_nonfinite", "\"skip\"");
        }
        self.set(
            "checkpoint.every",
            c.of(&["1", "2", "3", "\"epoch\"", "5", "\"never\""]),
        );
        match c.between(0, 3) {
            0 => self.set("evaluation.every", "\"never\""),
            1 => self.set("evaluation.every", c.between(1, steps)),
            2 => self.set("evaluation.batch_tokens", 64),
            _ => self,
        }
    }
}

/// Writes the tables and images that drawn recipes train on into `folder`, and a BERT of four layers.
pub fn inputs(folder: &Path) {
    let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    let lines: Vec<String> = sentences
        .lines()
        .map(|line| line.replace('"', "\"\""))
        .collect();
    let write = |name: &str, header: &str, row: &dyn Fn(usize, &str) -> String| {
        for (part, range) in [("train", 0..45), ("validation", 45..64)] {
            let rows: String = range.map(|n| row(n, &lines[n])).collect();
            std::fs::write(
                folder.join(format!("{name}-{part}.csv")),
                format!("{header}\n{rows}"),
            )
            .expect("a temporary file");
            let file = (
                &*format!("data/{part}.csv"),
                format!("{header}\n{rows}").into(),
            );
            cached(&folder.join(HOME), &format!("owner/{name}"), &[file]);
        }
    };
    let comma = |line: &str| if line.contains(',') { "comma" } else { "none" };
    write("comma", "sentence,label", &|_, line| {
        format!("\"{line}\",{}\n", comma(line))
    });
    write("value", "sentence,label", &|_, line| {
        format!("\"{line}\",{:.3}\n", line.len() as f64 / 100.0)
    });
    write("pairs", "sentence,second,label", &|n, line| {
        let second = &lines[(n * 7 + 3) % lines.len()];
        let longer = if line.len() > second.len() {
            "first"
        } else {
            "second"
        };
        format!("\"{line}\",\"{second}\",{longer}\n")
    });
    chats(&lines, folder);
    words(&lines, folder);
    write_stripes(&folder.join("stripes/train"), 22, 0);
    write_stripes(&folder.join("stripes/validation"), 9, 1000);
    deepen(&fixture("tiny-bert"), &folder.join("deep-bert"));
}

/// Writes sentences in words, in CoNLL's columns and as lists, with tags of what is written large and of what ends with a mark.
fn words(lines: &[String], folder: &Path) {
    for (part, range) in [("train", 0..45), ("validation", 45..64)] {
        let (mut columns, mut lists) = (String::new(), String::new());
        for line in &lines[range] {
            let words: Vec<&str> = line.split_whitespace().collect();
            let tags = crate::words::tags(&words);
            for (word, tag) in words.iter().zip(&tags) {
                columns.push_str(&format!("{word} {tag}\n"));
            }
            columns.push('\n');
            let row = serde_json::json!({ "tokens": words, "ner_tags": tags });
            lists.push_str(&format!("{row}\n"));
        }
        for (kind, text) in [("conll", columns), ("jsonl", lists)] {
            let file = folder.join(format!("words-{part}.{kind}"));
            std::fs::write(file, text).expect("a temporary file");
        }
    }
}

/// Writes conversations of one answer or two, and a decoder that has a template for them.
fn chats(lines: &[String], folder: &Path) {
    for (part, range) in [("train", 0..30), ("validation", 30..42)] {
        let rows = range.map(|n| {
            let mut messages = Vec::new();
            let short = ["Go on."].into_iter().filter(|_| n % 2 == 1);
            for answer in short.chain([lines[n].as_str()]) {
                messages.push(serde_json::json!({"role": "user", "content": "And?"}));
                messages.push(serde_json::json!({"role": "assistant", "content": answer}));
            }
            format!("{}\n", serde_json::json!({ "messages": messages }))
        });
        let file = folder.join(format!("chats-{part}.jsonl"));
        std::fs::write(file, rows.collect::<String>()).expect("a temporary file");
    }
    let model = folder.join("chat-tiny-llama");
    std::fs::create_dir_all(&model).expect("a temporary folder");
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(fixture("tiny-llama").join(file), model.join(file)).expect("a fixture");
    }
    let template = "{% for m in messages %}{{ m.role[:1] + ': ' + m.content + ' . ' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'a: ' }}{% endif %}";
    std::fs::write(model.join("chat_template.jinja"), template).expect("a temporary file");
}

/// Copies a BERT of two layers to one of four: the layers, and once more in the other order.
fn deepen(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a temporary folder");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).expect("a fixture");
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a fixture");
    let deep = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4");
    assert_ne!(config, deep);
    std::fs::write(to.join("config.json"), deep).expect("a temporary file");
    let bytes = std::fs::read(from.join("model.safetensors")).expect("a fixture");
    let model = SafeTensors::deserialize(&bytes).expect("a fixture");
    let mut tensors: Vec<(String, TensorView<'_>)> = Vec::new();
    for (name, view) in model.tensors() {
        for (layer, copy) in [("layer.0.", "layer.3."), ("layer.1.", "layer.2.")] {
            if name.contains(layer) {
                tensors.push((name.replace(layer, copy), view.clone()));
            }
        }
        tensors.push((name, view));
    }
    let bytes = serialize(tensors, None).expect("tensors");
    std::fs::write(to.join("model.safetensors"), bytes).expect("a temporary file");
}

/// A run's file without what differs from time to time: seconds, memory and, where `strip` names them, other
/// fields.
pub fn records(run: &Path, file: &str, strip: &[&str]) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join(file)).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
            let fields = record.as_object_mut().expect("objects");
            for field in ["seconds", "peak_memory"].iter().chain(strip) {
                fields.remove(*field);
            }
            record
        })
        .collect()
}

/// The bytes of a run's exported adapter.
pub fn adapter(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap_or_default()
}

/// Where two runs differ: in the adapter's bytes, the metrics or the allocations, `strip` left out; empty where
/// they do not.
pub fn difference(a: &Path, b: &Path, strip: &[&str]) -> String {
    for file in ["allocations.jsonl", "metrics.jsonl"] {
        let (a, b) = (records(a, file, strip), records(b, file, strip));
        if a.len() != b.len() {
            return format!("{file}: {} records and {}", a.len(), b.len());
        }
        if let Some(n) = (0..a.len()).find(|&n| a[n] != b[n]) {
            return format!("{file}, line {}:\n  {}\n  {}", n + 1, a[n], b[n]);
        }
    }
    if adapter(a) != adapter(b) {
        return "adapter_model.safetensors differs, the records do not".to_owned();
    }
    if adapter(a).is_empty() {
        return "there is no adapter".to_owned();
    }
    String::new()
}

/// Every file below `folder` with its content, the lock aside.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|name| name != ".lock") {
                let content = std::fs::read(&path).expect("a file");
                found.insert(path, content);
            }
        }
    }
    found
}
