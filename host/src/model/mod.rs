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
pub use head::{Head, HeadTensor, head_parameters};
pub use linear::Linear;
pub use weights::{Saved, Weights, save};

/// What a model folder holds, read but not yet on a device: enough to plan a run.
pub struct Pretrained {
    /// Sizes.
    pub config: EncoderConfig,
    /// The mapped weights.
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
        let weights = Weights::open(&folder.weights)?;
        let prefix = format!("{}.", config.family.names().prefix);
        // A checkpoint saved with a head has the prefix, a bare encoder has none.
        let word = "embeddings.word_embeddings.weight";
        let prefix = if weights.contains(&format!("{prefix}{word}")) {
            prefix
        } else {
            String::new()
        };
        let has_pooler = weights.contains(&format!("{prefix}pooler.dense.weight"));
        if train_pooler == Some(false) && !has_pooler {
            return Err(Error::user(format!(
                "model.train_pooler is false, but {} has no pooler to keep frozen",
                folder.dir.display()
            ))
            .help("leave the key out, or set it to true"));
        }
        let frozen_pooler =
            config.family == Family::Bert && has_pooler && train_pooler != Some(true);
        Ok(Pretrained {
            config,
            weights,
            prefix,
            frozen_pooler,
        })
    }

    /// Every linear layer that can carry an adapter, in forward order.
    pub fn linears(&self) -> Vec<LinearInfo> {
        self.config.linears(self.frozen_pooler)
    }

    /// The modules that a recipe's `[adapter]` selects and what each carries.
    pub fn modules(&self, recipe: &AdapterConfig) -> Result<Vec<ModuleInfo>> {
        let (linears, config) = (self.linears(), recipe.into());
        let chosen = select(&recipe.targets, &linears)?;
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
        // What products read has been laid out anew; embeddings come back row by row.
        weights.release();
        Ok(Model {
            encoder,
            head: Head::new(config, pooler, outputs),
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
