//! One AdamW update (Loshchilov & Hutter 2019, algorithm 2).

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, into_values};
use super::simd::vectorised;

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this update.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - β₁`, rounded once: of `β₁` as f32 the difference would be off in its fifth digit.
    pub rest1: f32,
    /// `1 - β₂`, rounded once.
    pub rest2: f32,
    /// ε beside the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay; multiplied by the rate.
    pub weight_decay: f32,
    /// `1 - β₁ᵗ`.
    pub correction1: f32,
    /// `1 - β₂ᵗ`.
    pub correction2: f32,
    /// What the gradient is multiplied by first: the clipping coefficient.
    pub gradient_scale: f32,
}

/// A parameter with its two moments.
pub type Moments<B> = [Tensor<B, 2>; 3];

/// By burn's own operations.
pub fn composed<B: Backend>(
    [value, first, second]: Moments<B>,
    gradient: Tensor<B, 2>,
    step: AdamWStep,
) -> Moments<B> {
    let gradient = gradient * step.gradient_scale;
    let first = first * step.beta1 + gradient.clone() * step.rest1;
    let second = second * step.beta2 + gradient.powi_scalar(2) * step.rest2;
    let root = second.clone().sqrt() / step.correction2.sqrt() + step.epsilon;
    let value = value * (1.0 - step.rate * step.weight_decay)
        - first.clone() / root * (step.rate / step.correction1);
    [value, first, second]
}

/// Elements one thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// By hand, in place.
pub fn cpu(parameter: Moments<Flex>, gradient: Tensor<Flex, 2>, step: AdamWStep) -> Moments<Flex> {
    let gradient = View::new(gradient);
    let [mut value, mut first, mut second] = parameter.map(into_values);
    value
        .values()
        .par_chunks_mut(CHUNK)
        .zip(first.values().par_chunks_mut(CHUNK))
        .zip(second.values().par_chunks_mut(CHUNK))
        .zip(gradient.values().par_chunks(CHUNK))
        .for_each(|(((value, first), second), gradient)| {
            update(value, first, second, gradient, step);
        });
    [value.close(), first.close(), second.close()]
}

vectorised! {
    fn update(value: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], step: AdamWStep) {
        let decay = 1.0 - step.rate * step.weight_decay;
        let (rate, root) = (step.rate / step.correction1, 1.0 / step.correction2.sqrt());
        for (((value, m), v), gradient) in value.iter_mut().zip(first).zip(second).zip(gradient) {
            let gradient = gradient * step.gradient_scale;
            *m = *m * step.beta1 + gradient * step.rest1;
            *v = *v * step.beta2 + gradient * gradient * step.rest2;
            *value = *value * decay - rate * *m / (v.sqrt() * root + step.epsilon);
        }
    }
}
