//! Normalisation of a sum with its residual.

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{View, into_values, tensor, written};
use super::record::{input, plain, record, unwrap};
use super::simd::{fma, sum_of, vectorised};

/// A frozen normalisation over the features of each token.
#[derive(Clone, Debug)]
pub struct Norm<B: Backend> {
    /// What is divided by.
    pub kind: NormKind,
    /// The scale γ: `[features]`.
    pub gamma: Tensor<B, 1>,
    /// The shift β: `[features]`.
    pub beta: Option<Tensor<B, 1>>,
    /// ε, under the root.
    pub epsilon: f32,
}

/// What a [`Norm`] takes out of a token's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance (Ba et al. 2016).
    Layer,
    /// The root of the mean square (Zhang & Sennrich 2019).
    RootMeanSquare,
}

/// By burn's own operations.
pub fn composed<B: Backend>(
    x: Tensor<Ad<B>, 2>,
    residual: Option<Tensor<Ad<B>, 2>>,
    norm: &Norm<B>,
) -> Tensor<Ad<B>, 2> {
    let x = match residual {
        Some(residual) => x + residual,
        None => x,
    };
    let x = match norm.kind {
        NormKind::Layer => x.clone() - x.mean_dim(1),
        NormKind::RootMeanSquare => x,
    };
    let square = x.clone().powi_scalar(2).mean_dim(1);
    let normalised = x / (square + norm.epsilon).sqrt();
    let scaled = normalised * Tensor::from_inner(norm.gamma.clone()).unsqueeze();
    match &norm.beta {
        Some(beta) => scaled + Tensor::from_inner(beta.clone()).unsqueeze(),
        None => scaled,
    }
}

/// Rows one thread takes at a time.
const ROWS: usize = 16;

/// By hand. Keeps the sum `x + residual`; mean and variance are computed again in the backward pass.
pub fn cpu(
    x: Tensor<Ad<Flex>, 2>,
    residual: Option<Tensor<Ad<Flex>, 2>>,
    norm: &Norm<Flex>,
) -> Tensor<Ad<Flex>, 2> {
    let [rows, width] = x.dims();
    let gamma = View::new(norm.gamma.clone());
    let beta = norm.beta.clone().map(View::new);
    let beta = beta.as_ref().map(View::values);
    let inner = x.clone().inner();
    let sum = match &residual {
        Some(residual) => {
            let (x, residual) = (View::new(inner), View::new(residual.clone().inner()));
            // SAFETY: the chunks cover the buffer and `add` writes all of each.
            let sum = unsafe {
                written(rows * width, |out| {
                    let chunk = ROWS * width;
                    out.par_chunks_mut(chunk)
                        .zip(x.values().par_chunks(chunk))
                        .zip(residual.values().par_chunks(chunk))
                        .for_each(|((out, x), residual)| {
                            add(out.write_copy_of_slice(x), residual);
                        });
                })
            };
            tensor(sum, [rows, width])
        }
        None => inner,
    };
    let view = View::new(sum.clone());
    // SAFETY: the chunks cover the buffer and `normalise` writes all of each.
    let output = unsafe {
        written(rows * width, |out| {
            let chunk = ROWS * width;
            out.par_chunks_mut(chunk)
                .zip(view.values().par_chunks(chunk))
                .for_each(|(out, x)| {
                    let out = out.write_copy_of_slice(x);
                    normalise(out, gamma.values(), beta, norm.kind, norm.epsilon);
                });
        })
    };
    let output = tensor(output, [rows, width]);
    let state = (sum, norm.clone());
    match residual {
        Some(residual) => record(
            [input(x), input(residual)],
            output,
            || state,
            |state, gradient, _| {
                let gradient = input_gradient(state, plain(gradient));
                [Some(unwrap(gradient.clone())), Some(unwrap(gradient))]
            },
        ),
        None => record(
            [input(x)],
            output,
            || state,
            |state, gradient, _| [Some(unwrap(input_gradient(state, plain(gradient))))],
        ),
    }
}

fn input_gradient(
    (sum, norm): (Tensor<Flex, 2>, Norm<Flex>),
    gradient: Tensor<Flex, 2>,
) -> Tensor<Flex, 2> {
    let chunk = ROWS * sum.dims()[1];
    let (sum, gamma) = (View::new(sum), View::new(norm.gamma));
    let mut gradient = into_values(gradient);
    gradient
        .values()
        .par_chunks_mut(chunk)
        .zip(sum.values().par_chunks(chunk))
        .for_each(|(gradient, x)| backward(gradient, x, gamma.values(), norm.kind, norm.epsilon));
    gradient.close()
}

vectorised! {
    fn add(out: &mut [f32], other: &[f32]) {
        for (out, other) in out.iter_mut().zip(other) {
            *out += other;
        }
    }
}

/// What is taken from a row, and what it is then multiplied by: mean and 1/√(variance + ε), or 0 and
/// 1/√(mean square + ε).
#[inline(always)]
fn moments(row: &[f32], kind: NormKind, epsilon: f32) -> (f32, f32) {
    let scale = 1.0 / row.len() as f32;
    let mean = match kind {
        NormKind::Layer => sum_of(row, |x| x) * scale,
        NormKind::RootMeanSquare => 0.0,
    };
    let square = sum_of(row, |x| (x - mean) * (x - mean)) * scale;
    (mean, 1.0 / (square + epsilon).sqrt())
}

vectorised! {
    /// Rows of `x` normalised in place.
    fn normalise(x: &mut [f32], gamma: &[f32], beta: Option<&[f32]>, kind: NormKind, epsilon: f32) {
        for row in x.chunks_exact_mut(gamma.len()) {
            let (mean, inverse) = moments(row, kind, epsilon);
            match beta {
                Some(beta) => {
                    for ((x, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
                        *x = fma::<FMA>((*x - mean) * inverse, *gamma, *beta);
                    }
                }
                None => {
                    for (x, gamma) in row.iter_mut().zip(gamma) {
                        *x = (*x - mean) * inverse * gamma;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// `dx = (g·γ - mean(g·γ) - x̂·mean(g·γ·x̂)) / σ`, without the first mean where none was taken out of x;
    /// written over `gradient`.
    fn backward(gradient: &mut [f32], x: &[f32], gamma: &[f32], kind: NormKind, epsilon: f32) {
        let width = gamma.len();
        for (gradient, x) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = moments(x, kind, epsilon);
            for (g, gamma) in gradient.iter_mut().zip(gamma) {
                *g *= gamma;
            }
            let scale = 1.0 / width as f32;
            let mean_gradient = match kind {
                NormKind::Layer => sum_of(gradient, |g| g) * scale,
                NormKind::RootMeanSquare => 0.0,
            };
            let mut lanes = [0f32; super::simd::LANES];
            for (g, x) in gradient.chunks(lanes.len()).zip(x.chunks(lanes.len())) {
                for ((lane, g), x) in lanes.iter_mut().zip(g).zip(x) {
                    *lane = fma::<FMA>(*g, (*x - mean) * inverse, *lane);
                }
            }
            let mean_product = lanes.iter().sum::<f32>() * scale;
            for (g, x) in gradient.iter_mut().zip(x) {
                let normalised = (*x - mean) * inverse;
                *g = inverse * (*g - mean_gradient - normalised * mean_product);
            }
        }
    }
}
