//! Layer normalisation of a sum with its residual.

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{View, into_values, tensor, written};
use super::record::{input, plain, record, unwrap};
use super::simd::{fma, sum_of, vectorised};

/// By burn's own operations.
pub fn composed<B: Backend>(
    x: Tensor<Ad<B>, 2>,
    residual: Option<Tensor<Ad<B>, 2>>,
    gamma: &Tensor<B, 1>,
    beta: &Tensor<B, 1>,
    epsilon: f32,
) -> Tensor<Ad<B>, 2> {
    let x = match residual {
        Some(residual) => x + residual,
        None => x,
    };
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let normalised = centred / (variance + epsilon).sqrt();
    normalised * Tensor::from_inner(gamma.clone()).unsqueeze()
        + Tensor::from_inner(beta.clone()).unsqueeze()
}

/// Rows one thread takes at a time.
const ROWS: usize = 16;

/// By hand. Keeps the sum `x + residual`; mean and variance are computed again in the backward pass.
pub fn cpu(
    x: Tensor<Ad<Flex>, 2>,
    residual: Option<Tensor<Ad<Flex>, 2>>,
    gamma: &Tensor<Flex, 1>,
    beta: &Tensor<Flex, 1>,
    epsilon: f32,
) -> Tensor<Ad<Flex>, 2> {
    let [rows, width] = x.dims();
    let gammas = View::new(gamma.clone());
    let betas = View::new(beta.clone());
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
                    normalise(out, gammas.values(), betas.values(), epsilon);
                });
        })
    };
    let output = tensor(output, [rows, width]);
    let state = (sum, gamma.clone(), epsilon);
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
    (sum, gamma, epsilon): (Tensor<Flex, 2>, Tensor<Flex, 1>, f32),
    gradient: Tensor<Flex, 2>,
) -> Tensor<Flex, 2> {
    let chunk = ROWS * sum.dims()[1];
    let (sum, gamma) = (View::new(sum), View::new(gamma));
    let mut gradient = into_values(gradient);
    gradient
        .values()
        .par_chunks_mut(chunk)
        .zip(sum.values().par_chunks(chunk))
        .for_each(|(gradient, x)| backward(gradient, x, gamma.values(), epsilon));
    gradient.close()
}

vectorised! {
    fn add(out: &mut [f32], other: &[f32]) {
        for (out, other) in out.iter_mut().zip(other) {
            *out += other;
        }
    }
}

/// Mean and 1/√(variance + ε) of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let scale = 1.0 / row.len() as f32;
    let mean = sum_of(row, |x| x) * scale;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) * scale;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

vectorised! {
    /// Rows of `x` normalised in place.
    fn normalise(x: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
        for row in x.chunks_exact_mut(gamma.len()) {
            let (mean, inverse) = moments(row, epsilon);
            for ((x, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
                *x = fma::<FMA>((*x - mean) * inverse, *gamma, *beta);
            }
        }
    }
}

vectorised! {
    /// `dx = (g·γ - mean(g·γ) - x̂·mean(g·γ·x̂)) / σ`, written over `gradient`.
    fn backward(gradient: &mut [f32], x: &[f32], gamma: &[f32], epsilon: f32) {
        let width = gamma.len();
        for (gradient, x) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = moments(x, epsilon);
            for (g, gamma) in gradient.iter_mut().zip(gamma) {
                *g *= gamma;
            }
            let scale = 1.0 / width as f32;
            let mean_gradient = sum_of(gradient, |g| g) * scale;
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
