//! Pretrained models with a head: loading, and the forward pass.

pub mod architecture;
mod base;
mod block;
mod described;
mod embeddings;
mod family;
pub mod fetch;
mod head;
mod linear;
mod norm;
mod weights;

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;

use crate::adapter::{Adapted, Adapters, LinearInfo, Pass, Weight};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Branch, Frozen, Kernels, Precision, Sequences, Targets};
use crate::recipe::{self, AdapterConfig, ModelConfig, Problem};

use architecture::{Embeddings, Table};

pub use architecture::Architecture;
pub use base::{Base, Input, Past, whole_numbers};
pub use block::Around;
pub use embeddings::Tokens;
pub use fetch::ModelFolder;
pub use head::{Head, HeadStart, HeadTensor, head_parameters};
pub use linear::Linear;
use weights::Header;
pub use weights::{Advice, Saved, Weights, save};

use linear::Source;
use norm::require_norm;

/// What a model folder holds, read but not yet on a device: enough to plan a run.
pub struct Pretrained {
    /// Parts and sizes.
    pub config: Architecture,
    /// The weights, of which the base model's are known to be there.
    pub weights: Weights,
    /// What the base model's tensor names start with: `bert.` or nothing.
    prefix: String,
    /// Whether BERT's pooler is there and stays frozen.
    frozen_pooler: bool,
    /// What products with frozen weights are computed in.
    precision: Precision,
}

impl Pretrained {
    /// Opens a model folder, to give sequences a class or a value. `recipe` may replace the probabilities of dropout,
    /// and decides about BERT's pooler: left open, it stays frozen where the checkpoint has one and trains where it has
    /// not.
    pub fn open(folder: &ModelFolder, recipe: &ModelConfig) -> Result<Self> {
        Self::open_for(folder, recipe, Problem::Classification)
    }

    /// The same, with the head that the `problem` asks for.
    pub fn open_for(folder: &ModelFolder, recipe: &ModelConfig, problem: Problem) -> Result<Self> {
        let config = family::read(&folder.config)?;
        let mut config = match problem {
            Problem::TokenClassification => labelling_tokens(config)?,
            Problem::Classification | Problem::Regression | Problem::CausalLm => config,
        };
        replace_dropout(&mut config, recipe);
        let train_pooler = recipe.train_pooler;
        if train_pooler.is_some() && config.pooler().is_none() {
            let (why, help) = match problem {
                Problem::TokenClassification => (
                    format!("data.problem is \"{problem}\": that head has no pooler"),
                    "leave the key out",
                ),
                _ => (
                    format!(
                        "{} is no BERT: its head has no pooler",
                        folder.dir.display()
                    ),
                    "leave the key out: every layer of this family's head trains",
                ),
            };
            return Err(Error::user(format!("model.train_pooler is given, but {why}")).help(help));
        }
        let weights = Weights::open(&folder.weights)?;
        let weights = match config.stored {
            [] => weights,
            _ => weights.renamed(|name| config.renamed(name))?,
        };
        let prefix = format!("{}.", config.prefix);
        // A checkpoint saved with a head has the prefix, a bare base model has none.
        let first = match &config.embeddings {
            Embeddings::Words(words) => words.words.name,
            Embeddings::Patches(patches) => patches.projection,
        };
        let prefix = if weights.contains(&format!("{prefix}{first}.weight")) {
            prefix
        } else {
            String::new()
        };
        let pretrained = Pretrained {
            precision: match recipe.precision {
                // Where a GPU's products are tf32, those of f32 are.
                recipe::Precision::F32 | recipe::Precision::Tf32 => Precision::F32,
                recipe::Precision::Bf16 => Precision::Bf16,
                recipe::Precision::F16 => Precision::F16,
            },
            config,
            weights,
            prefix,
            frozen_pooler: false,
        };
        pretrained.require_base()?;
        let has_pooler = pretrained.has_pooler();
        if train_pooler == Some(false) && !has_pooler {
            return Err(Error::user(format!(
                "model.train_pooler is false, but {} has no pooler to keep frozen",
                folder.dir.display()
            ))
            .help("leave the key out, or set it to true"));
        }
        let frozen = has_pooler && train_pooler != Some(true);
        pretrained.freeze_pooler(frozen)
    }

    /// What the checkpoint's names of the base model's tensors begin with; nothing in one of a bare model.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a tensor of a bare checkpoint is of the base model.
    pub fn is_of_base(&self, name: &str) -> bool {
        let config = &self.config;
        let parts = config.embeddings.paths().into_iter();
        let parts = parts.chain(config.final_norm.map(|norm| norm.name));
        let parts = parts.chain([config.layer_path]).chain(config.pooler());
        let parts = parts.chain(config.unread.iter().copied());
        let relative = config.block.attention.relative.iter();
        let parts = parts.chain(relative.flat_map(|relative| {
            let norm = relative.norm.map(|norm| norm.name);
            [relative.table.name].into_iter().chain(norm)
        }));
        let mut parts = parts.filter_map(|part| name.strip_prefix(part));
        parts.any(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Where the base model's linear layers lie.
    fn source(&self) -> Source<'_> {
        Source {
            weights: &self.weights,
            prefix: &self.prefix,
            layout: self.config.weights,
            precision: self.precision,
        }
    }

    /// Whether the checkpoint has a pooler.
    pub fn has_pooler(&self) -> bool {
        let of = |path| {
            self.weights
                .contains(&format!("{}{path}.weight", self.prefix))
        };
        self.config.pooler().is_some_and(of)
    }

    /// The same model with its pooler frozen, or part of the head that trains.
    pub fn freeze_pooler(mut self, frozen: bool) -> Result<Self> {
        self.frozen_pooler = frozen;
        if let (true, Some(pooler)) = (frozen, self.config.pooler()) {
            let hidden = self.config.hidden;
            let name = format!("{}{pooler}", self.prefix);
            self.weights
                .require(&format!("{name}.weight"), &[hidden, hidden])?;
            self.weights.require(&format!("{name}.bias"), &[hidden])?;
        }
        Ok(self)
    }

    /// Whether the pooler is the checkpoint's and frozen.
    pub fn frozen_pooler(&self) -> bool {
        self.frozen_pooler
    }

    /// Refuses a checkpoint that lacks a tensor of the base model, or has it in another shape. Layer by layer, so
    /// that sizes that nothing stands behind are found out before anything grows with them.
    fn require_base(&self) -> Result<()> {
        let Pretrained {
            config,
            weights,
            prefix,
            ..
        } = self;
        let (source, hidden) = (self.source(), config.hidden);
        embeddings::require(&config.embeddings, source, hidden)?;
        if let Some(norm) = &config.final_norm {
            require_norm(source, norm.name, norm, hidden)?;
        }
        let block = &config.block;
        if let Some(relative) = &block.attention.relative {
            let Table { name, entries } = relative.table;
            weights.require(&format!("{prefix}{name}.weight"), &[entries, hidden])?;
            let norm = relative.norm.as_ref();
            norm.map_or(Ok(()), |norm| require_norm(source, norm.name, norm, hidden))?;
        }
        let of_heads = block.attention.head_norms.iter().flatten();
        let of_heads = of_heads.map(|norm| (norm, block.attention.shape.head_size));
        for layer in 0..config.layers {
            for (linear, part) in config.linears_of(layer).zip(block.linears()) {
                source.require(&linear, part.bias)?;
            }
            let of_layer = block.norms_of(layer).map(|norm| (norm, hidden));
            for (norm, features) in of_layer.chain(of_heads.clone()) {
                let path = format!("{}.{layer}.{}", config.layer_path, norm.name);
                require_norm(source, &path, norm, features)?;
            }
        }
        let start = format!("{prefix}{}.", config.layer_path);
        let beyond = weights.names().find(|name| {
            let layer = name
                .strip_prefix(&start)
                .and_then(|rest| rest.split('.').next());
            let layer = layer.and_then(|layer| layer.parse::<usize>().ok());
            layer.is_some_and(|layer| layer >= config.layers)
        });
        if let Some(name) = beyond {
            tracing::warn!(
                "the checkpoint has {name}, but its config.json speaks of {} layers: those beyond are not used",
                config.layers
            );
        }
        Ok(())
    }

    /// Every table of embeddings and every linear layer that can carry an adapter, in forward order.
    pub fn linears(&self) -> Vec<LinearInfo> {
        self.config.linears(self.frozen_pooler)
    }

    /// The frozen weight of a module, `[out, in]`, as the checkpoint has it.
    pub fn frozen_weight<B: Kernels>(
        &self,
        module: &ModuleInfo,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let sizes @ [inputs, outputs] =
            [module.in_features, module.out_features].map(|size| size as usize);
        if self.config.tables().any(|table| table.path == module.path) {
            let name = format!("{}{}.weight", self.prefix, module.path);
            let table = self.weights.tensor(&name, [inputs, outputs], device)?;
            return Ok(table.transpose());
        }
        self.source().weight(&module.path, sizes, device)
    }

    /// Puts adapters on the layers of this model, loaded: see [`Adapters::put_on`].
    pub fn put_on<B: Kernels>(
        &self,
        adapters: &mut Adapters<B>,
        model: &Model<B>,
        device: &B::Device,
    ) -> Result<()> {
        let weight = |module: &ModuleInfo| {
            let weight = self.frozen_weight::<burn_flex::Flex>(module, &Default::default())?;
            let values = weight.into_data().into_vec();
            values.map_err(|error| Error::failure(format!("{}: {error:?}", module.path)))
        };
        adapters.put_on(&model.under_modules(), weight, device)
    }

    /// Name and shape of the head that predicts tokens, which may be the table of word embeddings; an error for a model
    /// that predicts none.
    fn language_head_tensor(&self) -> Result<(String, [usize; 2])> {
        let Some(head) = self.config.language_head else {
            return Err(Error::user(format!(
                "data.problem is \"causal-lm\", but the model is a {}, which predicts no next token",
                self.config.family
            ))
            .help("take a decoder, such as a llama or a gpt2 (docs/models.md has all), or another problem"));
        };
        let shape = [self.config.vocabulary(), self.config.hidden];
        let name = match self.config.words().filter(|_| head.tied) {
            Some(words) => format!("{}{}.weight", self.prefix, words.words.name),
            None => format!("{}.weight", head.name),
        };
        Ok((name, shape))
    }

    /// Refuses a model that predicts no tokens.
    pub fn require_language_head(&self) -> Result<()> {
        let (name, shape) = self.language_head_tensor()?;
        self.weights.require(&name, &shape)
    }

    /// Bytes of the checkpoint's values in memory: linear layers in the precision of the products, on the CPU also in the
    /// checkpoint's own, all else in f32. A table of word embeddings that predicts tokens too is there twice where that is
    /// not the same: its rows are looked up, and it is laid out for products.
    pub fn bytes(&self, predicts_tokens: bool, on_cpu: bool) -> Result<u64> {
        let halves = self.precision.half().is_some();
        let width = |name: &str| {
            if halves || on_cpu && self.weights.is_half(name) {
                2
            } else {
                4
            }
        };
        let mut bytes = 4 * self.weights.parameters();
        for linear in self.linears().iter().filter(|it| !it.is_embedding) {
            let name = format!("{}{}.weight", self.prefix, linear.path);
            bytes -= (4 - width(&name)) * (linear.inputs * linear.outputs) as u64;
        }
        if predicts_tokens {
            let (name, [outputs, inputs]) = self.language_head_tensor()?;
            let head = (outputs * inputs) as u64;
            match self.config.language_head.is_some_and(|head| head.tied) {
                true if on_cpu || halves => bytes += width(&name) * head,
                true => {}
                false => bytes -= (4 - width(&name)) * head,
            }
        }
        Ok(bytes)
    }

    /// The head that predicts tokens: a matrix of its own, or the table of word embeddings.
    fn language_head<B: Kernels>(&self, base: &Base<B>, device: &B::Device) -> Result<Frozen<B>> {
        let (name, shape) = self.language_head_tensor()?;
        let tied = self.config.language_head.is_some_and(|head| head.tied);
        let weight = match base.words().filter(|_| tied && !Frozen::<B>::LAID_OUT) {
            Some(words) => words,
            // Also of a table that is there already: it is laid out anew, and rows of it that no text has asked for would
            // be touched for that, and stay in memory.
            None => self.weights.tensor(&name, shape, device)?,
        };
        Ok(Frozen::lean(weight, None, self.precision))
    }

    /// The modules that a recipe's `[adapter]` selects and what each carries.
    pub fn adapted(&self, recipe: &AdapterConfig) -> Result<Adapted> {
        Adapted::new(recipe, &self.linears(), self.config.prefix)
    }
}

/// A model under the head that labels its tokens, which it must have.
fn labelling_tokens(config: Architecture) -> Result<Architecture> {
    let family = config.family;
    config.labelling_tokens().ok_or_else(|| {
        Error::user(format!(
            "data.problem is \"{}\", but the model is a {family}, which has no head that labels tokens",
            Problem::TokenClassification
        ))
        .help("take a model of texts that Transformers has a …ForTokenClassification of, or another problem")
    })
}

/// Puts the recipe's probabilities of dropout in place of the model's own.
fn replace_dropout(config: &mut Architecture, recipe: &ModelConfig) {
    let dropout = &mut config.dropout;
    if let Some(hidden) = recipe.hidden_dropout {
        (dropout.embeddings, dropout.hidden) = (hidden as f32, hidden as f32);
    }
    if let Some(attention) = recipe.attention_dropout {
        dropout.attention = attention as f32;
    }
    if let Some(classifier) = recipe.classifier_dropout {
        dropout.classifier = classifier as f32;
    }
}

/// Tokens of a batch that are predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextTokens {
    /// The token before each, from which it is predicted: where it lies in the batch.
    pub rows: Vec<usize>,
    /// Which they are.
    pub ids: Vec<u32>,
}

/// A model and its head on a device.
#[derive(Clone, Debug)]
pub struct Model<B: Kernels> {
    /// The frozen base model.
    pub base: Base<B>,
    /// The head, whose values come with each [`Pass`].
    pub head: Head<B>,
    /// The frozen head that predicts tokens, where that is what is asked.
    language_head: Option<Frozen<B>>,
    /// What its logits do not exceed.
    soft_cap: Option<f32>,
}

impl<B: Kernels> Model<B> {
    /// Puts a pretrained model on a device, with `modules` adapted and `outputs` logits; with none, it predicts tokens.
    pub fn load(
        pretrained: &Pretrained,
        modules: &[ModuleInfo],
        outputs: usize,
        device: &B::Device,
    ) -> Result<Self> {
        let linears = pretrained.linears();
        let module_of: Vec<Option<usize>> = linears
            .iter()
            .map(|linear| modules.iter().position(|module| module.path == linear.path))
            .collect();
        let base = Base::load(&pretrained.config, pretrained.source(), &module_of, device)?;
        let pooler = pretrained
            .frozen_pooler
            .then(|| {
                let last = linears.len() - 1;
                Linear::load(
                    pretrained.source(),
                    &linears[last],
                    true,
                    module_of[last],
                    device,
                )
            })
            .transpose()?;
        let language_head = (outputs == 0).then(|| pretrained.language_head(&base, device));
        Ok(Model {
            language_head: language_head.transpose()?,
            soft_cap: pretrained
                .config
                .language_head
                .and_then(|head| head.soft_cap),
            base,
            head: Head::load(pretrained, pooler, outputs, device)?,
        })
    }

    /// What is frozen under the adapted modules, in their order.
    fn under_modules(&self) -> Vec<Weight<B>> {
        let linears = self.base.linears().chain(self.head.pooler());
        let linears = linears
            .filter_map(|linear| Some((linear.module?, Weight::Layer(linear.frozen.clone()))));
        let mut found: Vec<_> = self.base.tables().chain(linears).collect();
        found.sort_by_key(|(module, _)| *module);
        found.into_iter().map(|(_, weight)| weight).collect()
    }

    /// Logits `[sequences, outputs]`; of a head that labels tokens `[tokens, outputs]`.
    pub fn forward(&self, input: &Input<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let x = self.base.prefix(input, 0, pass);
        self.forward_from(x, 0, &input.sequences, pass)
    }

    /// [`forward`](Self::forward) from the hidden states of all tokens after the first `depth` layers.
    pub fn forward_from(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let picked = self.base.picked(x, depth, sequences, pass);
        self.head.forward(picked, pass)
    }

    /// Logits `[rows, outputs]` of the tokens that lie in these `rows` of the batch, from the hidden states of all tokens
    /// after the first `depth` layers. The others never reach the head.
    pub fn of_tokens(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        rows: &[usize],
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let x = self.base.some(x, depth, sequences, rows, pass);
        self.head.forward(x, pass)
    }

    /// The logits of what follows the last of a text's next tokens, `[1, vocabulary]`; the tokens are added to its
    /// `past`.
    pub fn continued(
        &self,
        ids: &[u32],
        past: &mut Past<B>,
        device: &B::Device,
        pass: &mut Pass<B>,
    ) -> Tensor<B, 2> {
        let x = self.base.extend(ids, past, device, pass);
        let x = x.slice_dim(0, ids.len() - 1..ids.len());
        let head = self.language_head.as_ref();
        let branch = Branch {
            frozen: head.expect("loaded to predict tokens"),
            lora: None,
        };
        let logits = B::linears(x, vec![branch]).y.inner();
        match self.soft_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The mean loss, in nats, of the predicted `tokens`, from the hidden states of all tokens after the first `depth`
    /// layers. The others never reach the head.
    pub fn next_tokens(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        tokens: &NextTokens,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 1> {
        let x = self.base.some(x, depth, sequences, &tokens.rows, pass);
        let head = self.language_head.as_ref();
        B::linear_cross_entropy(
            x,
            head.expect("loaded to predict tokens"),
            Targets {
                classes: &tokens.ids,
                uploaded: pass.uploaded.classes.clone(),
            },
            self.soft_cap,
        )
    }
}
