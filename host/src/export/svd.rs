//! Adapters of PEFT's AdaLoRA (Zhang et al. 2023), whose shares `s·B·diag(E)·A` are in the form of an SVD, read as
//! LoRA: `B·diag(E)` is its B, and A is its A. What AdaLoRA does beside, its penalty on how far A and B are from
//! orthogonal and its budget, ends with it.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::adapter::LoraConfig;
use crate::error::Result;
use crate::kernel::Kernels;
use crate::model::Weights;

/// PEFT's `AdaLoraConfig`, as far as an adapter's answers depend on it.
pub struct Svd {
    /// `init_r`: the rank that all modules started with.
    pub init_r: u32,
    /// `lora_alpha`; the rank itself where it is not above 0.
    pub alpha: f64,
    /// `lora_dropout`.
    pub dropout: f64,
    /// `rank_pattern`: how many components of a module remain, by its path, where any were pruned.
    pub remaining: BTreeMap<String, u32>,
}

impl Svd {
    /// How many components of the module at `path` remain, family's prefix included.
    pub fn rank(&self, path: &str) -> u32 {
        self.remaining.get(path).copied().unwrap_or(self.init_r)
    }

    /// LoRA's sizes of the module at `path`, family's prefix included.
    pub fn of(&self, path: &str) -> LoraConfig {
        self.with_rank(self.rank(path))
    }

    /// LoRA's sizes of a module of which so many components remain.
    pub fn with_rank(&self, rank: u32) -> LoraConfig {
        let alpha = match self.alpha > 0.0 {
            true => self.alpha,
            false => f64::from(rank),
        };
        // By the rank at the start, whatever remains, and by a little more, as PEFT's `SVDLinear` has it.
        let scale = alpha / (f64::from(self.init_r) + 1e-5);
        LoraConfig {
            rank,
            alpha: scale * f64::from(rank),
            dropout: self.dropout,
            start: None,
            use_dora: false,
            trains_bias: false,
            is_embedding: false,
        }
    }
}

/// Names and shapes of a module's A, E and B in the file; `module` is the path that they lie under.
pub fn tensors(module: &str, [inputs, outputs, rank]: [usize; 3]) -> [(String, Vec<usize>); 3] {
    [
        (format!("{module}.lora_A"), vec![rank, inputs]),
        (format!("{module}.lora_E"), vec![rank, 1]),
        (format!("{module}.lora_B"), vec![outputs, rank]),
    ]
}

/// LoRA's A and B of such a module.
pub fn pair<B: Kernels>(
    weights: &Weights,
    module: &str,
    sizes: [usize; 3],
    device: &B::Device,
) -> Result<[Tensor<B, 2>; 2]> {
    let read = |(name, shape): (String, Vec<usize>)| {
        weights.tensor::<B, 2>(&name, [shape[0], shape[1]], device)
    };
    let [a, e, b] = tensors(module, sizes).map(read);
    Ok([a?, b? * e?.transpose()])
}
