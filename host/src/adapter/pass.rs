//! One forward pass through the adapted model: what trains in it, what is dropped, what is measured.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{Adapters, Projections};
use crate::kernel::{Ad, Branch, Dropout, Frozen, Kernels, Lora, Outputs};

/// Which reductions a pass takes of each module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observe {
    /// Σ|y| and Σy² of the module's output.
    pub activation: bool,
    /// Σδ² of the adapter's share of it.
    pub delta: bool,
    /// The output itself.
    pub raw_activation: bool,
}

/// What was measured of one module in one pass; all on the device.
#[derive(Clone, Debug)]
pub struct Observed<B: Kernels> {
    /// `[Σ|y|, Σy²]`.
    pub activation: Option<Tensor<B, 1>>,
    /// `[Σδ²]`.
    pub delta: Option<Tensor<B, 1>>,
    /// The output, `[tokens, out]`.
    pub raw_activation: Option<Tensor<B, 2>>,
}

/// One forward pass. Made for each batch, used up by it.
#[derive(Debug)]
pub struct Pass<B: Kernels> {
    /// The two tensors that each module trains, tracked where they are to have a gradient.
    pub pairs: Vec<[Tensor<Ad<B>, 2>; 2]>,
    /// The trained tensors of the head.
    pub head: Vec<Tensor<Ad<B>, 2>>,
    /// What was measured, one entry per module, in the order the modules ran.
    pub observed: Vec<Option<Observed<B>>>,
    projections: Option<Projections<B>>,
    scale: f32,
    adapter_dropout: f32,
    observe: Observe,
    /// The seed of this pass's dropout; none in evaluation.
    seed: Option<u32>,
    /// Dropout sites passed so far.
    sites: u32,
}

impl<B: Kernels> Pass<B> {
    /// A pass for evaluation: nothing is tracked, dropped or measured.
    pub fn evaluate(adapters: &Adapters<B>, head: &[Tensor<B, 2>]) -> Self {
        let nothing = vec![false; adapters.modules.len()];
        Self::new(adapters, head, &nothing, false, Observe::default(), None)
    }

    /// A pass for training: gradients for the modules in `tracked` and for the head, dropout by `seed`.
    pub fn train(
        adapters: &Adapters<B>,
        head: &[Tensor<B, 2>],
        tracked: &[bool],
        observe: Observe,
        seed: u32,
    ) -> Self {
        Self::new(adapters, head, tracked, true, observe, Some(seed))
    }

    fn new(
        adapters: &Adapters<B>,
        head: &[Tensor<B, 2>],
        tracked: &[bool],
        head_tracked: bool,
        observe: Observe,
        seed: Option<u32>,
    ) -> Self {
        let enter = |tensor: &Tensor<B, 2>, tracked: bool| {
            let tensor = Tensor::<Ad<B>, 2>::from_inner(tensor.clone());
            if tracked {
                tensor.require_grad()
            } else {
                tensor
            }
        };
        let pairs = adapters.pairs.iter().zip(tracked);
        Pass {
            pairs: pairs
                .map(|(pair, tracked)| pair.each_ref().map(|tensor| enter(tensor, *tracked)))
                .collect(),
            head: head
                .iter()
                .map(|tensor| enter(tensor, head_tracked))
                .collect(),
            observed: vec![None; adapters.modules.len()],
            projections: adapters.projections.clone(),
            scale: adapters.config.scale(),
            adapter_dropout: adapters.config.dropout(),
            observe,
            seed,
            sites: 0,
        }
    }

    /// The next dropout site of this pass, with `probability` while training.
    pub fn dropout(&mut self, probability: f32) -> Dropout {
        let Some(seed) = self.seed.filter(|_| probability > 0.0) else {
            // Not counted, so that the masks are the same where layers without dropout are skipped.
            return Dropout::NONE;
        };
        self.sites += 1;
        // An odd multiplier spreads neighbouring sites over the seeds.
        Dropout {
            probability,
            seed: seed.wrapping_add(self.sites.wrapping_mul(0x9e37_79b9)),
        }
    }

    /// Whether outputs of modules are measured in this pass, so that all tokens' are needed.
    pub fn observes_outputs(&self) -> bool {
        self.observe != Observe::default()
    }

    /// The outputs, side by side, of up to three layers that read the same `x`: each frozen layer, and its
    /// pair beside it where it is a module.
    pub fn linear(
        &mut self,
        x: Tensor<Ad<B>, 2>,
        layers: &[(&Frozen<B>, Option<usize>)],
    ) -> Tensor<Ad<B>, 2> {
        let branches: Vec<Branch<'_, B>> = layers
            .iter()
            .map(|(frozen, module)| Branch {
                frozen,
                lora: module.map(|index| self.lora(index, frozen.weight.dims())),
            })
            .collect();
        let loras = branches.iter().map(|branch| branch.lora.as_ref());
        let second: Vec<_> = loras.map(|lora| lora.map(|lora| lora.b.clone())).collect();
        let Outputs { y, side } = B::linears(x, branches);
        if self.observes_outputs() {
            let mut first = 0;
            for (((frozen, module), side), b) in layers.iter().zip(side).zip(second) {
                let outputs = frozen.weight.dims()[0];
                if let Some(module) = module {
                    let share = side.zip(b.map(Tensor::inner));
                    self.measure(*module, y.clone().inner(), first..first + outputs, share);
                }
                first += outputs;
            }
        }
        y
    }

    /// The output of a layer for `few` of the tokens in `all`. Measured is the output for all of them, beside
    /// the graph, so that the backward pass still goes through the few alone.
    pub fn linear_of_few(
        &mut self,
        few: Tensor<Ad<B>, 2>,
        all: Tensor<Ad<B>, 2>,
        layer: (&Frozen<B>, Option<usize>),
    ) -> Tensor<Ad<B>, 2> {
        if let (true, (frozen, Some(index))) = (self.observes_outputs(), layer) {
            let sites = self.sites;
            let mut lora = self.lora(index, frozen.weight.dims());
            self.sites = sites;
            let b = lora.b.inner();
            lora.a = Tensor::from_inner(lora.a.inner());
            lora.b = Tensor::from_inner(b.clone());
            let all = Tensor::from_inner(all.inner());
            let lora = Some(lora);
            let Outputs { y, mut side } = B::linears(all, vec![Branch { frozen, lora }]);
            let columns = 0..y.dims()[1];
            let share = side.remove(0).map(|xa| (xa, b));
            self.measure(index, y.inner(), columns, share);
        }
        let observe = std::mem::take(&mut self.observe);
        let y = self.linear(few, &[layer]);
        self.observe = observe;
        y
    }

    /// The side path of module `index`, whose weight has these dimensions.
    fn lora(&mut self, index: usize, dims: [usize; 2]) -> Lora<B> {
        let pair = self.pairs[index].clone();
        let [a, b] = match &self.projections {
            None => pair,
            Some(projections) => projections.factors(dims, pair),
        };
        Lora {
            a,
            b,
            scale: self.scale,
            dropout: self.dropout(self.adapter_dropout),
        }
    }

    /// Takes the reductions of module `index`, whose output is in `columns` of `y`; `share` is what its
    /// adapter's part is the product of, if it has any.
    fn measure(
        &mut self,
        index: usize,
        y: Tensor<B, 2>,
        columns: Range<usize>,
        share: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
    ) {
        let Observe {
            activation,
            delta,
            raw_activation,
        } = self.observe;
        self.observed[index] = Some(Observed {
            activation: activation.then(|| B::sums(y.clone(), columns.clone())),
            delta: delta.then(|| match share {
                Some((xa, b)) => delta_squares(xa, b, self.scale),
                None => Tensor::zeros([1], &y.device()),
            }),
            raw_activation: raw_activation.then(|| y.slice_dim(1, columns)),
        });
    }
}

/// `‖s·XAᵀ·Bᵀ‖²` from the two `rank × rank` Gram matrices, `s²·Σ (XAᵀ)ᵀ(XAᵀ) ∘ BᵀB`, so that the
/// adapter's share is never written out.
fn delta_squares<B: Kernels>(xa: Tensor<B, 2>, b: Tensor<B, 2>, scale: f32) -> Tensor<B, 1> {
    let of_input = xa.clone().transpose().matmul(xa);
    let of_output = b.clone().transpose().matmul(b);
    // Rounding can leave a zero share a hair below zero.
    (of_input * of_output).sum().clamp_min(0.0) * (scale * scale)
}
