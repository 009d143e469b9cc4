//! LoRA: a trainable low-rank pair beside each module (Hu et al. 2021).

use burn::tensor::{Tensor, TensorData};
use dynalora_plugin_api::ModuleInfo;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{sizes, stream, uniform};
use crate::kernel::Kernels;
use crate::recipe::InitLoraWeights;

/// Sizes of LoRA's pairs, as in PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// `r`: inner width of `B·A`.
    pub rank: u32,
    /// `lora_alpha`: the side path is scaled by `alpha / rank`.
    pub alpha: f64,
    /// `lora_dropout`: dropout of the side path's input while training.
    pub dropout: f64,
    /// `init_lora_weights`: what pairs start from, where that is not the base model as it is: PiSSA.
    pub start: Option<InitLoraWeights>,
    /// `use_dora`: whether the sizes of the rows of `W + s·BA` train apart from their directions.
    pub use_dora: bool,
    /// Whether the layer has a bias that trains too, as PEFT's `bias = "lora_only"` has it.
    pub trains_bias: bool,
    /// Whether it stands beside a table of embeddings.
    pub is_embedding: bool,
}

impl LoraConfig {
    /// `s = alpha / rank`.
    pub fn scale(&self) -> f32 {
        (self.alpha / f64::from(self.rank)) as f32
    }
}

/// `[A, B]` of a module as PEFT makes them: A uniform in `±1/√in` (Kaiming with a = √5), B zero.
pub fn fresh<B: Kernels>(module: &ModuleInfo, seed: u64, device: &B::Device) -> [Tensor<B, 2>; 2] {
    let [inputs, outputs, rank] = sizes(module);
    let bound = 1.0 / (inputs as f32).sqrt();
    [
        uniform(seed, &module.path, bound, [rank, inputs], device),
        Tensor::zeros([outputs, rank], device),
    ]
}

/// `[A, B]` beside a table of embeddings as PEFT makes them: A zero, B normal with σ = 1.
pub fn fresh_embedding<B: Kernels>(
    module: &ModuleInfo,
    seed: u64,
    device: &B::Device,
) -> [Tensor<B, 2>; 2] {
    let [entries, features, rank] = sizes(module);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream(&module.path));
    let values = (0..features * rank).map(|_| StandardNormal.sample(&mut random));
    let values: Vec<f32> = values.collect();
    [
        Tensor::zeros([rank, entries], device),
        Tensor::from_data(TensorData::new(values, [features, rank]), device),
    ]
}
