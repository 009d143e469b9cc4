//! `[model]`: the pretrained model that is adapted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::DataConfig;
use super::document::Document;
use super::words::Device;
use crate::error::Result;

/// The pretrained model, and how it differs from its own `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face folder or a GGUF file, relative to the recipe, or a Hub id such as
    /// `sentence-transformers/all-MiniLM-L6-v2`. A folder of that name wins over the Hub.
    pub name: String,
    /// The branch, tag or commit to take from the Hub.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The longest text in tokens, special tokens included, 128 by default; what is longer is cut off. An image has as
    /// many as the model makes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// What products with frozen weights are computed in: `bf16` and, on GPUs, `f16` round both sides and sum up in f32, as
    /// PyTorch's autocast does, and keep the weights in half the memory; `f16` scales the loss. Adapters, attention, norms,
    /// the loss and the optimiser stay in f32. `tf32` is what CUDA's tensor cores make of f32.
    #[serde(default)]
    pub precision: Precision,
    /// Dropout after embeddings and sublayers, in place of the `config.json`'s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_dropout: Option<f64>,
    /// Dropout of attention weights, in place of the `config.json`'s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_dropout: Option<f64>,
    /// Dropout before the head, in place of the `config.json`'s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier_dropout: Option<f64>,
    /// Of BERT alone: whether the pooler below the head trains fully, as the head does, from the checkpoint's
    /// weights on. Left out: only where the checkpoint has no weights for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_pooler: Option<bool>,
    /// What the bias of a fresh head answers before the first step.
    #[serde(default)]
    pub head_bias: HeadBias,
}

/// What products with frozen weights are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// On CUDA: 10 bits of a factor's 23, on tensor cores.
    Tf32,
    /// Values of bf16, summed up in single precision: twice as fast where the CPU has AVX512-BF16.
    Bf16,
    /// On GPUs: values of IEEE's half precision, summed up in single precision, under a loss that is scaled.
    F16,
}

impl Precision {
    /// Those that a device can have: WGSL has no bf16, the CPU's kernels no f16, and tf32 is NVIDIA's.
    pub fn of(device: Device) -> &'static [Precision] {
        use Precision::{Bf16, F16, F32, Tf32};
        match device {
            Device::Auto | Device::Cuda(_) => &[F32, Tf32, Bf16, F16],
            Device::Cpu => &[F32, Bf16],
            Device::Vulkan(_) | Device::Metal(_) | Device::WebGpu(_) => &[F32, F16],
        }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }
}

/// Where the last bias of a fresh head starts; one that the checkpoint has is taken as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadBias {
    /// At the answer that is best for all training examples alike, the mean of their values or the logarithms of their
    /// classes' frequencies, so that the first steps need not learn it by moving the encoder.
    #[default]
    Labels,
    /// At 0, as Transformers initialises a head.
    Zero,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// The longest text where the recipe does not say it.
pub(super) const MAX_LENGTH: usize = 128;

impl ModelConfig {
    /// The longest input in tokens that the recipe allows: whatever the model reads, where the data are images.
    pub fn longest(&self) -> usize {
        self.max_length.unwrap_or(usize::MAX)
    }

    /// Writes out what was left open.
    pub(super) fn fill(&mut self, data: &DataConfig) {
        if !data.is_images() {
            self.max_length.get_or_insert(MAX_LENGTH);
        }
    }

    /// Refuses a precision that the device never has.
    pub(super) fn validate_precision(&self, device: Device, at: &Document) -> Result<()> {
        let possible = Precision::of(device);
        let names: Vec<String> = possible
            .iter()
            .map(|precision| format!("\"{}\"", precision.name()))
            .collect();
        at.check(
            "model.precision",
            possible.contains(&self.precision),
            self.precision,
            &format!("one of {} where device is \"{device}\"", names.join(", ")),
        )
    }

    pub(super) fn validate(&self, data: &DataConfig, at: &Document) -> Result<()> {
        at.check(
            "model.name",
            !self.name.trim().is_empty(),
            &self.name,
            "a folder or a Hub id",
        )?;
        let revision = !self.revision.trim().is_empty();
        at.check(
            "model.revision",
            revision,
            &self.revision,
            "a branch, a tag or a commit",
        )?;
        // Two of the tokens are special ones.
        match self.max_length {
            Some(length) if data.is_images() => at.check(
                "model.max_length",
                false,
                length,
                "left out where the data are images: each has as many tokens as the model makes of it",
            )?,
            Some(length) => {
                at.check("model.max_length", length >= 3, length, "at least 3 tokens")?;
            }
            None => {}
        }
        for (key, dropout) in [
            ("model.hidden_dropout", self.hidden_dropout),
            ("model.attention_dropout", self.attention_dropout),
            ("model.classifier_dropout", self.classifier_dropout),
        ] {
            at.check_dropout(key, dropout.unwrap_or(0.0))?;
        }
        Ok(())
    }
}
