//! What modules make of their layers in one pass.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::kernel::{Ad, Branch, Frozen, Kernels, Lora, Outputs};

/// What stands beside one layer.
#[derive(Clone, Debug)]
pub(super) struct Side<B: Kernels> {
    /// The pair.
    pub lora: Lora<B>,
    /// DoRA's.
    pub magnitude: Option<Magnitude<B>>,
    /// The bias in place of the layer's own, `[1, out]`, where it trains.
    pub bias: Option<Tensor<Ad<B>, 2>>,
    /// How fast it moves with the tensor that trains: see [`Adapters::factor`](super::Adapters::factor).
    pub factor: f32,
}

/// What DoRA multiplies a layer's output by.
#[derive(Clone, Debug)]
pub(super) struct Magnitude<B: Kernels> {
    /// `m/‖W + s·BA‖`, `[1, out]`; tracked where m is.
    pub factors: Tensor<Ad<B>, 2>,
    /// How fast they move with m, `[1, out]`.
    pub slope: Tensor<B, 2>,
}

impl<B: Kernels> Side<B> {
    /// Whether there is more than a pair.
    fn is_more(&self) -> bool {
        self.magnitude.is_some() || self.bias.is_some()
    }

    /// Whether what DoRA multiplies is not what goes through the layer.
    fn drops(&self) -> bool {
        self.magnitude.is_some() && !self.lora.dropout.is_none()
    }
}

/// A layer and what stands beside it.
pub(super) type Layer<'a, B> = (&'a Frozen<B>, Option<Side<B>>);

/// What came of layers that read the same.
pub(super) struct Ran<B: Kernels> {
    /// Their outputs side by side, `[tokens, Σ out]`.
    pub y: Tensor<Ad<B>, 2>,
    /// `dropout(x)·Aᵀ` of each pair, as [`Outputs::side`].
    pub xa: Vec<Option<Tensor<B, 2>>>,
    /// What each DoRA multiplied, `(W + s·BA)·dropout(x)`: some columns of a tensor. Empty where nobody asks.
    pub before: Vec<Option<(Tensor<B, 2>, Range<usize>)>>,
}

/// Runs up to three layers that read the same `x`; `asked` for what DoRA multiplies.
pub(super) fn run<B: Kernels>(x: Tensor<Ad<B>, 2>, layers: &[Layer<'_, B>], asked: bool) -> Ran<B> {
    let sides = || layers.iter().filter_map(|(_, side)| side.as_ref());
    if !sides().any(Side::is_more) {
        let branches = layers.iter().map(|(frozen, side)| branch(frozen, side));
        let Outputs { y, side } = B::linears(x, branches.collect());
        return Ran {
            y,
            xa: side,
            before: vec![None; layers.len()],
        };
    }
    match layers {
        [(frozen, Some(side))] if side.drops() => dropped(x, frozen, side, asked),
        [_] => multiplied(x, layers, asked),
        _ if sides().any(Side::drops) => {
            let each = layers.iter().map(|layer| {
                let layer = std::slice::from_ref(layer);
                run(x.clone(), layer, asked)
            });
            let (mut outputs, mut xa, mut before) = (Vec::new(), Vec::new(), Vec::new());
            for ran in each {
                outputs.push(ran.y);
                xa.extend(ran.xa);
                before.extend(ran.before);
            }
            let y = Tensor::cat(outputs, 1);
            Ran { y, xa, before }
        }
        _ => multiplied(x, layers, asked),
    }
}

fn branch<'a, B: Kernels>(frozen: &'a Frozen<B>, side: &Option<Side<B>>) -> Branch<'a, B> {
    Branch {
        frozen,
        lora: side.as_ref().map(|side| side.lora.clone()),
    }
}

/// The frozen layer's bias in place of which another stands, or behind what is multiplied: `[1, out]`.
fn offset<B: Kernels>(frozen: &Frozen<B>, side: &Side<B>) -> Option<Tensor<Ad<B>, 2>> {
    let own = || Some(Tensor::from_inner(frozen.bias.clone()?.unsqueeze()));
    side.bias.clone().or_else(own)
}

/// All layers at once, and then their columns.
fn multiplied<B: Kernels>(x: Tensor<Ad<B>, 2>, layers: &[Layer<'_, B>], asked: bool) -> Ran<B> {
    let device = x.device();
    let more = |side: &Option<Side<B>>| side.as_ref().is_some_and(Side::is_more);
    let bare: Vec<Option<Frozen<B>>> = layers
        .iter()
        .map(|(frozen, side)| more(side).then(|| frozen.without_bias()))
        .collect();
    let branches = layers.iter().zip(&bare);
    let branches =
        branches.map(|((frozen, side), bare)| branch(bare.as_ref().unwrap_or(frozen), side));
    let Outputs { y, side: xa } = B::linears(x, branches.collect());
    let joined = |found: Vec<Option<Tensor<Ad<B>, 2>>>, otherwise: f32| {
        if found.iter().all(Option::is_none) {
            return None;
        }
        let widths = layers.iter().map(|(frozen, _)| frozen.weight.dims()[0]);
        let all = found.into_iter().zip(widths).map(|(found, width)| {
            found.unwrap_or_else(|| Tensor::full([1, width], otherwise, &device))
        });
        Some(Tensor::cat(all.collect(), 1))
    };
    let magnitude = |side: &Option<Side<B>>| side.as_ref()?.magnitude.clone();
    let factor = |(_, side): &Layer<'_, B>| Some(magnitude(side)?.factors);
    let factors = joined(layers.iter().map(factor).collect(), 1.0);
    let shift = |(frozen, side): &Layer<'_, B>| {
        offset(frozen, side.as_ref().filter(|side| side.is_more())?)
    };
    let offsets = joined(layers.iter().map(shift).collect(), 0.0);
    let mut first = 0;
    let before = layers.iter().map(|(frozen, side)| {
        let columns = first..first + frozen.weight.dims()[0];
        first = columns.end;
        magnitude(side).filter(|_| asked)?;
        Some((y.clone().inner(), columns))
    });
    let before = before.collect();
    Ran {
        y: B::per_column(y, factors, offsets),
        xa,
        before,
    }
}

/// One layer whose pair drops out. As PEFT has it, the layer itself reads all of x, and what DoRA adds to it what is left
/// of it: `W·x + b + (m/‖V‖ − 1)∘W·x' + m/‖V‖ ∘ s·BA·x'` with `x' = dropout(x)`.
fn dropped<B: Kernels>(
    x: Tensor<Ad<B>, 2>,
    frozen: &Frozen<B>,
    side: &Side<B>,
    asked: bool,
) -> Ran<B> {
    let Lora {
        a,
        b,
        scale,
        dropout,
    } = side.lora.clone();
    let bare = frozen.without_bias();
    let through = |x| {
        let branch = Branch {
            frozen: &bare,
            lora: None,
        };
        B::linears(x, vec![branch]).y
    };
    let left = B::dropout(x.clone(), dropout);
    let of_weight = through(left.clone());
    let xa = left.matmul(a.transpose());
    let share = xa.clone().matmul(b.transpose()) * scale;
    let magnitude = side.magnitude.as_ref().expect("DoRA's");
    let factors = magnitude.factors.clone();
    let columns = 0..of_weight.dims()[1];
    let before = asked.then(|| of_weight.clone().inner() + share.clone().inner());
    let beyond = B::per_column(of_weight, Some(factors.clone() - 1.0), offset(frozen, side));
    Ran {
        y: through(x) + beyond + B::per_column(share, Some(factors), None),
        xa: vec![Some(xa.inner())],
        before: vec![before.map(|before| (before, columns))],
    }
}

impl<B: Kernels> Side<B> {
    /// `‖ΔW·x‖²` of a layer whose output is in `columns` of `y`, `[1]`: all but what the layer itself makes of `x` and
    /// its bias.
    pub fn share_squares(
        &self,
        x: Tensor<B, 2>,
        frozen: &Frozen<B>,
        y: Tensor<B, 2>,
        columns: Range<usize>,
    ) -> Tensor<B, 1> {
        let bare = frozen.without_bias();
        let branch = Branch {
            frozen: &bare,
            lora: None,
        };
        let of_weight = B::linears(Tensor::from_inner(x), vec![branch]).y.inner();
        let mut share = y.slice_dim(1, columns) - of_weight;
        if let Some(bias) = offset(frozen, self) {
            share = share - bias.inner();
        }
        let columns = 0..share.dims()[1];
        B::sums(share, columns).slice_dim(0, 1..2)
    }
}
