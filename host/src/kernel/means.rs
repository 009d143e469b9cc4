//! Means over stretches of rows.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{Disjoint, View, tensor};
use super::record::{input, plain, record, unwrap};
use super::simd::{fma, vectorised};

/// By burn's own operations: a product with a matrix of the rows' shares.
pub fn composed<B: Backend>(x: Tensor<Ad<B>, 2>, ranges: &[Range<usize>]) -> Tensor<Ad<B>, 2> {
    let rows = x.dims()[0];
    let mut shares = vec![0f32; ranges.len() * rows];
    for (index, range) in ranges.iter().enumerate() {
        shares[index * rows..][range.clone()].fill(1.0 / range.len() as f32);
    }
    let shares = TensorData::new(shares, [ranges.len(), rows]);
    Tensor::<Ad<B>, 2>::from_data(shares, &x.device()).matmul(x)
}

/// By hand, each range a task of its own. Keeps nothing.
pub fn cpu(x: Tensor<Ad<Flex>, 2>, ranges: Vec<Range<usize>>) -> Tensor<Ad<Flex>, 2> {
    let [rows, width] = x.dims();
    let view = View::new(x.clone().inner());
    let mut output = vec![0f32; ranges.len() * width];
    let tasks = output.par_chunks_mut(width).zip(&ranges);
    tasks.for_each(|(out, range)| {
        let part = &view.values()[range.start * width..range.end * width];
        add(out, part, 1.0 / range.len() as f32);
    });
    let output = tensor(output, [ranges.len(), width]);
    let state = || (rows, ranges);
    record([input(x)], output, state, |(rows, ranges), gradient, _| {
        let gradient = View::new(plain::<Flex, 2>(gradient));
        let width = gradient.values().len() / ranges.len().max(1);
        let mut dx = vec![0f32; rows * width];
        let out = Disjoint::new(dx.as_mut_ptr());
        let tasks = gradient.values().par_chunks(width).zip(&ranges);
        tasks.for_each(|(gradient, range)| {
            // SAFETY: no two ranges have a row in common.
            let part = unsafe {
                let first = out.pointer(range.start * width);
                std::slice::from_raw_parts_mut(first, range.len() * width)
            };
            for row in part.chunks_exact_mut(width) {
                add(row, gradient, 1.0 / range.len() as f32);
            }
        });
        [Some(unwrap(tensor(dx, [rows, width])))]
    })
}

vectorised! {
    /// Adds a share of each row to `out`.
    fn add(out: &mut [f32], rows: &[f32], share: f32) {
        for row in rows.chunks_exact(out.len()) {
            for (out, value) in out.iter_mut().zip(row) {
                *out = fma::<FMA>(*value, share, *out);
            }
        }
    }
}
