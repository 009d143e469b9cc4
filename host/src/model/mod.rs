//! Pretrained encoders with a head: loading, and the forward pass.

mod config;
mod encoder;
pub mod fetch;
mod head;
mod linear;
mod weights;

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;

use crate::adapter::{LinearInfo, Pass, select};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels, Sequences};
use crate::recipe::{AdapterConfig, ModelConfig};

pub use config::{EncoderConfig, Family};
pub use encoder::{Encoder, Input};
pub use fetch::ModelFolder;
pub use head::{Head, HeadStart, HeadTensor, head_parameters};
pub use linear::Linear;
pub use weights::{Advice, Saved, Weights, save};

use encoder::norm_names;

/// What a model folder holds, read but not yet on a device: enough to plan a run.
pub struct Pretrained {
    /// Sizes.
    pub config: EncoderConfig,
    /// The weights, of which the encoder's are known to be there.
    pub weights: Weights,
    /// What the encoder's tensor names start with: `bert.` or nothing.
    prefix: String,
    /// Whether BERT's pooler is there and stays frozen.
    frozen_pooler: bool,
}

impl Pretrained {
    /// Opens a model folder. `recipe` may replace the probabilities of dropout, and decides about BERT's
    /// pooler: left open, it stays frozen where the checkpoint has one and trains where it has not.
    pub fn open(folder: &ModelFolder, recipe: &ModelConfig) -> Result<Self> {
        let mut config = EncoderConfig::read(&folder.config)?;
        for (probability, replacement) in [
            (&mut config.hidden_dropout, recipe.hidden_dropout),
            (&mut config.attention_dropout, recipe.attention_dropout),
            (&mut config.classifier_dropout, recipe.classifier_dropout),
        ] {
            if let Some(replacement) = replacement {
                *probability = replacement as f32;
            }
        }
        let train_pooler = recipe.train_pooler;
        if train_pooler.is_some() && config.family != Family::Bert {
            return Err(Error::user(format!(
                "model.train_pooler is given, but {} is no BERT: its head has no pooler",
                folder.dir.display()
            ))
            .help("leave the key out: every layer of this family's head trains"));
        }
        let weights = Weights::open(&folder.weights)?;
        let prefix = format!("{}.", config.family.names().prefix);
        // A checkpoint saved with a head has the prefix, a bare encoder has none.
        let word = "embeddings.word_embeddings.weight";
        let prefix = if weights.contains(&format!("{prefix}{word}")) {
            prefix
        } else {
            String::new()
        };
        let pretrained = Pretrained {
            config,
            weights,
            prefix,
            frozen_pooler: false,
        };
        pretrained.require_encoder()?;
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

    /// Whether the checkpoint has a pooler.
    pub fn has_pooler(&self) -> bool {
        let name = format!("{}pooler.dense.weight", self.prefix);
        self.config.family == Family::Bert && self.weights.contains(&name)
    }

    /// The same model with its pooler frozen, or part of the head that trains.
    pub fn freeze_pooler(mut self, frozen: bool) -> Result<Self> {
        self.frozen_pooler = frozen;
        if frozen {
            let hidden = self.config.hidden;
            let name = format!("{}pooler.dense", self.prefix);
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

    /// Refuses a checkpoint that lacks a tensor of the encoder, or has it in another shape. Layer by layer, so
    /// that sizes that nothing stands behind are found out before anything grows with them.
    fn require_encoder(&self) -> Result<()> {
        let Pretrained {
            config,
            weights,
            prefix,
            ..
        } = self;
        let hidden = config.hidden;
        let norm = |name: &str| {
            let names = norm_names(weights, name);
            names
                .iter()
                .try_for_each(|name| weights.require(name, &[hidden]))
        };
        let embeddings = [
            ("word_embeddings", config.vocabulary),
            ("position_embeddings", config.positions),
            ("token_type_embeddings", config.token_types),
        ];
        for (name, entries) in embeddings.into_iter().filter(|(_, entries)| *entries > 0) {
            let name = format!("{prefix}embeddings.{name}.weight");
            weights.require(&name, &[entries, hidden])?;
        }
        norm(&format!("{prefix}embeddings.LayerNorm"))?;
        let names = config.family.names();
        for layer in 0..config.layers {
            for linear in config.linears_of(layer) {
                let name = format!("{prefix}{}", linear.path);
                weights.require(&format!("{name}.weight"), &[linear.outputs, linear.inputs])?;
                weights.require(&format!("{name}.bias"), &[linear.outputs])?;
            }
            for which in names.norms {
                norm(&format!("{prefix}{}.{layer}.{which}", names.layers))?;
            }
        }
        let start = format!("{prefix}{}.", names.layers);
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

    /// Every linear layer that can carry an adapter, in forward order.
    pub fn linears(&self) -> Vec<LinearInfo> {
        self.config.linears(self.frozen_pooler)
    }

    /// The frozen weight of a module, `[out, in]`, as the checkpoint has it.
    pub fn frozen_weight<B: Kernels>(
        &self,
        module: &ModuleInfo,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let name = format!("{}{}.weight", self.prefix, module.path);
        let shape = [module.out_features, module.in_features].map(|size| size as usize);
        self.weights.tensor(&name, shape, device)
    }

    /// The modules that a recipe's `[adapter]` selects and what each carries.
    pub fn modules(&self, recipe: &AdapterConfig) -> Result<Vec<ModuleInfo>> {
        let (linears, config) = (self.linears(), recipe.into());
        let chosen = select(recipe, &linears, self.config.family.names().prefix)?;
        let modules = linears.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        Ok(modules.map(|(linear, _)| linear.module(&config)).collect())
    }
}

/// An encoder and its head on a device.
#[derive(Clone, Debug)]
pub struct Model<B: Kernels> {
    /// The frozen encoder.
    pub encoder: Encoder<B>,
    /// The head, whose values come with each [`Pass`].
    pub head: Head<B>,
}

impl<B: Kernels> Model<B> {
    /// Puts a pretrained model on a device, with `modules` adapted and `outputs` logits.
    pub fn load(
        pretrained: &Pretrained,
        modules: &[ModuleInfo],
        outputs: usize,
        device: &B::Device,
    ) -> Result<Self> {
        let Pretrained {
            config,
            weights,
            prefix,
            ..
        } = pretrained;
        let linears = pretrained.linears();
        let module_of: Vec<Option<usize>> = linears
            .iter()
            .map(|linear| modules.iter().position(|module| module.path == linear.path))
            .collect();
        let encoder = Encoder::load(config, weights, prefix, &linears, &module_of, device)?;
        let pooler = pretrained
            .frozen_pooler
            .then(|| {
                let last = linears.len() - 1;
                Linear::load(weights, prefix, &linears[last], module_of[last], device)
            })
            .transpose()?;
        Ok(Model {
            encoder,
            head: Head::load(pretrained, pooler, outputs, device)?,
        })
    }

    /// Logits `[sequences, outputs]`.
    pub fn forward(&self, input: &Input<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let x = self.encoder.prefix(input, 0, pass);
        self.forward_from(x, 0, &input.sequences, pass)
    }

    /// Logits `[sequences, outputs]` from the hidden states of all tokens after the first `depth` layers.
    pub fn forward_from(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let firsts = self.encoder.firsts(x, depth, sequences, pass);
        self.head.forward(firsts, pass)
    }
}
