//! Reductions behind the signals.

use std::ops::Range;

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::simd::{sum_of, vectorised};

/// By burn's own operations.
pub fn composed<B: Backend>(x: Tensor<B, 2>, columns: Range<usize>) -> Tensor<B, 1> {
    let x = x.slice_dim(1, columns);
    Tensor::cat(vec![x.clone().abs().sum(), x.powi_scalar(2).sum()], 0)
}

/// Rows in one partial sum. Fixed, so that the result does not depend on the number of threads.
const ROWS: usize = 32;

/// By hand, in one pass.
pub fn cpu(x: Tensor<Flex, 2>, columns: Range<usize>) -> Tensor<Flex, 1> {
    let width = x.dims()[1];
    let view = View::new(x);
    let partial: Vec<[f64; 2]> = view
        .values()
        .par_chunks((ROWS * width).max(1))
        .map(|rows| {
            let mut sums = [0.0; 2];
            for row in rows.chunks_exact(width) {
                let [absolute, squares] = of_row(&row[columns.clone()]);
                // In f64, as there may be thousands of partial sums.
                sums[0] += f64::from(absolute);
                sums[1] += f64::from(squares);
            }
            sums
        })
        .collect();
    let total = |i: usize| partial.iter().map(|sums| sums[i]).sum::<f64>() as f32;
    tensor(vec![total(0), total(1)], [2])
}

vectorised! {
    fn of_row(x: &[f32]) -> [f32; 2] {
        [sum_of(x, f32::abs), sum_of(x, |x| x * x)]
    }
}
