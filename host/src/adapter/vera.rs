//! VeRA: two trainable vectors beside each module, around two frozen random matrices that all modules share
//! (Kopiczko et al. 2024, eq. 2): `ΔW = Λ_b·B·Λ_d·A`.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;

use super::{sizes, uniform};
use crate::kernel::{Ad, Kernels};

/// Sizes of VeRA's adapters, as in PEFT's `VeraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct VeraConfig {
    /// `r`: rows of A, columns of B, elements of `λ_d`.
    pub rank: u32,
    /// `d_initial`: what every element of `λ_d` is at the start.
    pub d_initial: f64,
    /// `vera_dropout`: dropout of the side path's input while training.
    pub dropout: f64,
    /// `projection_prng_key`: the seed of A and B. The same key gives other matrices than PyTorch's generator.
    pub projection_prng_key: u64,
}

impl VeraConfig {
    /// `[λ_d, λ_b]` of a module as PEFT makes them: `d_initial` and zero.
    pub fn fresh<B: Kernels>(&self, module: &ModuleInfo, device: &B::Device) -> [Tensor<B, 2>; 2] {
        let [_, outputs, rank] = sizes(module);
        [
            Tensor::full([rank, 1], self.d_initial, device),
            Tensor::zeros([outputs, 1], device),
        ]
    }

    /// Shapes of the whole A and B: as wide as the widest of `modules`.
    pub fn projection_shapes(&self, modules: &[ModuleInfo]) -> [[usize; 2]; 2] {
        let widest = |size: fn(&ModuleInfo) -> u64| modules.iter().map(size).max().unwrap_or(0);
        let rank = self.rank as usize;
        let inputs = widest(|module| module.in_features) as usize;
        let outputs = widest(|module| module.out_features) as usize;
        [[rank, inputs], [outputs, rank]]
    }

    /// The sum of the widths at which [`Projections`] keeps A and B for `modules`.
    pub fn projected_widths(&self, modules: &[ModuleInfo]) -> u64 {
        let [inputs, outputs] = widths(modules);
        inputs.iter().chain(&outputs).sum::<usize>() as u64
    }
}

/// A and B, frozen, each once for every width at which a module reads it.
#[derive(Clone, Debug)]
pub struct Projections<B: Kernels> {
    /// The first columns of A, `[rank, in]`, by their number.
    a: BTreeMap<usize, Tensor<B, 2>>,
    /// The first rows of B, `[out, rank]`, by their number.
    b: BTreeMap<usize, Tensor<B, 2>>,
}

impl<B: Kernels> Projections<B> {
    /// Cuts the whole A and B to the widths of `modules`, the widest of which is theirs.
    pub fn new([a, b]: [Tensor<B, 2>; 2], modules: &[ModuleInfo]) -> Self {
        let [inputs, outputs] = widths(modules);
        Projections {
            a: cut(&a, 1, inputs),
            b: cut(&b, 0, outputs),
        }
    }

    /// Random matrices as PEFT draws them: uniform in `±√(6 / fan in)` (Kaiming; He et al. 2015, eq. 10).
    pub fn draw(config: &VeraConfig, modules: &[ModuleInfo], device: &B::Device) -> Self {
        let draw = |name: &str, shape: [usize; 2]| {
            let bound = (6.0 / shape[1].max(1) as f32).sqrt();
            uniform(config.projection_prng_key, name, bound, shape, device)
        };
        let [a, b] = config.projection_shapes(modules);
        Projections::new([draw("vera_A", a), draw("vera_B", b)], modules)
    }

    /// The whole A and B; none without modules.
    pub fn whole(&self) -> Option<[&Tensor<B, 2>; 2]> {
        Some([self.a.last_key_value()?.1, self.b.last_key_value()?.1])
    }

    /// B `[out, rank]` of a module with so many outputs.
    pub fn b(&self, outputs: usize) -> &Tensor<B, 2> {
        &self.b[&outputs]
    }

    /// A and `Λ_b·B·Λ_d` of a module with these sizes, as if they were LoRA's pair: the kernels are the same,
    /// and of the second's gradient, which needs the one product that the vectors' gradients need anyway,
    /// they take the vectors' shares.
    pub fn factors(
        &self,
        [outputs, inputs]: [usize; 2],
        [d, b]: [Tensor<Ad<B>, 2>; 2],
    ) -> [Tensor<Ad<B>, 2>; 2] {
        let a = Tensor::from_inner(self.a[&inputs].clone());
        [a, B::scaled(&self.b[&outputs], b, d)]
    }
}

/// The numbers of inputs and of outputs that occur.
fn widths(modules: &[ModuleInfo]) -> [BTreeSet<usize>; 2] {
    [
        modules.iter().map(|m| m.in_features as usize).collect(),
        modules.iter().map(|m| m.out_features as usize).collect(),
    ]
}

/// The first so many rows or columns of a matrix, laid out on their own for every number there is.
fn cut<B: Kernels>(
    whole: &Tensor<B, 2>,
    dim: usize,
    widths: BTreeSet<usize>,
) -> BTreeMap<usize, Tensor<B, 2>> {
    let cut = |width: usize| {
        if width == whole.dims()[dim] {
            whole.clone()
        } else {
            // A slice is a view, which the CPU's kernels would copy at each use.
            whole.clone().slice_dim(dim, 0..width).mul_scalar(1.0)
        }
    };
    widths
        .into_iter()
        .map(|width| (width, cut(width)))
        .collect()
}
