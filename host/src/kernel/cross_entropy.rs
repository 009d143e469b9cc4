//! A language-model head with its loss.

use burn::tensor::{Int, Tensor, activation};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::gemm::{Left, Out, Start, Term, multiply, product};
use super::linear::Input as Product;
use super::matrix::Matrix;
use super::record::{input, is_tracked, plain, record, unwrap};
use super::simd::{exp, fma, map_sum, max_of, tanh, vectorised};
use super::{Ad, Frozen, Kernels};

/// The class of each row.
#[derive(Clone, Debug)]
pub struct Targets<'a, B: Backend> {
    /// Which it is.
    pub classes: &'a [u32],
    /// The same on the device, `[rows]`, if they are there already.
    pub uploaded: Option<Tensor<B, 1, Int>>,
}

/// By burn's own operations, over all logits at once.
pub fn composed<B: Kernels>(
    x: Tensor<Ad<B>, 2>,
    head: &Frozen<B>,
    targets: Targets<'_, B>,
    soft_cap: Option<f32>,
) -> Tensor<Ad<B>, 1> {
    let device = x.device();
    let Targets { classes, uploaded } = targets;
    let rows = classes.len();
    let mut logits = Product::new(x, head).times(head);
    if let Some(bias) = &head.bias {
        logits = logits + Tensor::from_inner(bias.clone()).unsqueeze();
    }
    if let Some(cap) = soft_cap {
        logits = (logits / cap).tanh() * cap;
    }
    let uploaded = uploaded.or_else(|| B::whole_numbers(&[classes.to_vec()], &device).pop());
    let classes = uploaded.expect("a list gives a tensor").reshape([rows, 1]);
    let classes = Tensor::<Ad<B>, 2, Int>::from_inner(classes);
    activation::log_softmax(logits, 1)
        .gather(1, classes)
        .mean()
        .neg()
}

/// Logits of one chunk: 16 MB, which stay in the caches of most machines' second or third level.
const CHUNK: usize = 4 << 20;

/// By hand, some rows at a time. W is frozen, so that the gradient of `x` is all that the backward pass will
/// want; it is computed at once, while the logits are there, and scaled later.
pub fn cpu(
    x: Tensor<Ad<Flex>, 2>,
    head: &Frozen<Flex>,
    targets: &[u32],
    soft_cap: Option<f32>,
) -> Tensor<Ad<Flex>, 1> {
    let [rows, hidden] = x.dims();
    let [classes, _] = head.weight.dims();
    assert_eq!(rows, targets.len(), "one target for each row");
    let tracked = is_tracked(&x);
    let view = View::new(x.clone().inner());
    let bias = head.bias.clone().map(View::new);
    let start = bias
        .as_ref()
        .map_or(Start::Zero, |bias| Start::Bias(bias.values()));
    let mut dx = vec![0f32; if tracked { rows * hidden } else { 0 }];
    let mut loss = 0f64;
    let step = (CHUNK / classes).clamp(1, rows.max(1));
    for (chunk, targets) in targets.chunks(step).enumerate() {
        let first = chunk * step * hidden;
        let part = &view.values()[first..][..targets.len() * hidden];
        let part = Matrix::new(part, targets.len(), hidden);
        let part = Left::new(part, head.packed());
        let mut logits = product(start, &[Term::packed(&part, head.packed())]);
        let losses = logits.par_chunks_mut(classes).zip(targets).map_init(
            Vec::new,
            |caps, (row, target)| {
                let target = *target as usize;
                f64::from(match soft_cap {
                    None => slope(row, target),
                    Some(cap) => {
                        caps.resize(row.len(), 0.0);
                        capped_slope(row, target, cap, caps)
                    }
                })
            },
        );
        // Added up in order, so that threads do not change a bit.
        loss += losses.collect::<Vec<f64>>().iter().sum::<f64>();
        if tracked {
            let slopes = Matrix::new(&logits, targets.len(), classes);
            let slopes = Left::new(slopes, head.packed());
            let out = dx[first..].as_mut_ptr();
            // SAFETY: the chunk's own rows of `dx`.
            unsafe {
                let terms = [Term::transposed(&slopes, head.packed())];
                multiply(Out::new(out, hidden), Start::Zero, &terms);
            }
        }
    }
    let loss = (loss / rows.max(1) as f64) as f32;
    record(
        [input(x)],
        tensor(vec![loss], [1]),
        || tensor(dx, [rows, hidden]),
        |dx, gradient, _| {
            let rows = dx.dims()[0].max(1);
            let scale = plain::<Flex, 1>(gradient).into_scalar() / rows as f32;
            [Some(unwrap(dx * scale))]
        },
    )
}

vectorised! {
    /// A row's loss `ln Σ eˡ - l_target`; the logits become its gradient, `softmax(l) - 1[target]`.
    fn slope(logits: &mut [f32], target: usize) -> f32 {
        let max = max_of(logits);
        let of_target = logits[target] - max;
        let sum = map_sum(logits, |logit| exp::<FMA>(logit - max));
        let inverse = 1.0 / sum;
        for logit in logits.iter_mut() {
            *logit *= inverse;
        }
        logits[target] -= 1.0;
        sum.ln() - of_target
    }
}

vectorised! {
    /// The same of logits l that are capped first, `c·tanh(l/c)`; `caps` is room for what each changes by.
    fn capped_slope(logits: &mut [f32], target: usize, cap: f32, caps: &mut [f32]) -> f32 {
        for (logit, slope) in logits.iter_mut().zip(caps.iter_mut()) {
            let tanh = tanh::<FMA>(*logit / cap);
            *slope = fma::<FMA>(-tanh, tanh, 1.0);
            *logit = tanh * cap;
        }
        let loss = slope(logits, target);
        for (logit, slope) in logits.iter_mut().zip(&*caps) {
            *logit *= slope;
        }
        loss
    }
}
