//! What hangs on a linear layer: the LoRA pairs of all adapted modules.

pub mod components;
mod pass;
mod targets;

use burn::tensor::{Tensor, TensorData};
use dynalora_plugin_api::ModuleInfo;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kernel::Kernels;

pub use pass::{Observe, Observed, Pass};
pub use targets::select;

/// Sizes of the adapters of a run, as in PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// `r`: inner width of `B·A`.
    pub rank: u32,
    /// `lora_alpha`: the side path is scaled by `alpha / rank`.
    pub alpha: f64,
    /// `lora_dropout`: dropout of the side path's input while training.
    pub dropout: f64,
}

impl LoraConfig {
    /// `s = alpha / rank`.
    pub fn scale(&self) -> f32 {
        (self.alpha / f64::from(self.rank)) as f32
    }
}

/// One linear layer of a base model, before anyone decides whether to adapt it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Path in the base model, without the family's prefix: `encoder.layer.3.attention.self.query`.
    pub path: String,
    /// Index of its transformer layer; none outside the layers.
    pub layer: Option<u32>,
    /// Features in and out.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
}

impl LinearInfo {
    /// The last part of the path.
    pub fn role(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// What a plugin is told of this layer once it carries a LoRA pair of `rank`.
    ///
    /// Forward: `2·in·out` for the frozen product and `2·r·(in + out)` for the side path. Backward of an
    /// active module: the same again for the input's gradient, and `2·r·(in + out)` for A and B.
    pub fn module(&self, rank: u32) -> ModuleInfo {
        let (inputs, outputs) = (self.inputs as u64, self.outputs as u64);
        let pair = u64::from(rank) * (inputs + outputs);
        ModuleInfo {
            path: self.path.clone(),
            layer: self.layer,
            role: self.role().to_owned(),
            in_features: inputs,
            out_features: outputs,
            rank,
            parameters: pair,
            forward_flops: 2 * inputs * outputs + 2 * pair,
            backward_flops: 2 * inputs * outputs + 4 * pair,
        }
    }
}

/// The values of every module's pair, active or not.
#[derive(Clone, Debug)]
pub struct Adapters<B: Kernels> {
    /// Sizes.
    pub config: LoraConfig,
    /// The modules in forward order.
    pub modules: Vec<ModuleInfo>,
    /// `[A, B]` of each: `A [rank, in]`, `B [out, rank]`.
    pub pairs: Vec<[Tensor<B, 2>; 2]>,
}

impl<B: Kernels> Adapters<B> {
    /// Fresh pairs, as PEFT makes them: A uniform in `±1/√in` (Kaiming with a = √5), B zero, so that the
    /// adapted model starts as the pretrained one. Each module draws from a stream of its own, so that
    /// its start does not depend on which others are adapted.
    pub fn new(
        config: LoraConfig,
        modules: Vec<ModuleInfo>,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let pairs = modules
            .iter()
            .map(|module| {
                let [inputs, outputs, rank] =
                    [module.in_features, module.out_features, module.rank.into()]
                        .map(|size| size as usize);
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(stream(&module.path));
                let bound = 1.0 / (inputs as f32).sqrt();
                let a: Vec<f32> = (0..rank * inputs)
                    .map(|_| random.random_range(-bound..bound))
                    .collect();
                [
                    Tensor::from_data(TensorData::new(a, [rank, inputs]), device),
                    Tensor::zeros([outputs, rank], device),
                ]
            })
            .collect();
        Adapters {
            config,
            modules,
            pairs,
        }
    }
}

/// A name's stream of random numbers: FNV-1a, whose values never change between releases.
pub fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
