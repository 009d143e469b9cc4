//! Reductions behind the signals.

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::simd::{sum_of, vectorised};

/// By burn's own operations.
pub fn composed<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    Tensor::cat(vec![x.clone().abs().sum(), x.powi_scalar(2).sum()], 0)
}

/// Elements in one partial sum. Fixed, so that the result does not depend on the number of threads.
const CHUNK: usize = 16 * 1024;

/// By hand, in one pass.
pub fn cpu(x: Tensor<Flex, 2>) -> Tensor<Flex, 1> {
    let view = View::new(x);
    let partial: Vec<[f32; 2]> = view.values().par_chunks(CHUNK).map(sums).collect();
    // In f64, as there may be thousands of partial sums.
    let total = |i: usize| partial.iter().map(|sums| sums[i] as f64).sum::<f64>() as f32;
    tensor(vec![total(0), total(1)], [2])
}

vectorised! {
    fn sums(x: &[f32]) -> [f32; 2] {
        [sum_of(x, f32::abs), sum_of(x, |x| x * x)]
    }
}
