//! Columns multiplied and moved, each by a value of its own.

use std::mem::MaybeUninit;

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{View, tensor, written};
use super::record::{input, is_tracked, plain, record, unwrap};
use super::simd::vectorised;

/// By burn's own operations.
pub fn composed<B: Backend>(
    x: Tensor<B, 2>,
    factors: Option<Tensor<B, 2>>,
    offsets: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let x = match factors {
        Some(factors) => x * factors,
        None => x,
    };
    match offsets {
        Some(offsets) => x + offsets,
        None => x,
    }
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    /// What was multiplied, where the factors have a gradient.
    x: Option<Tensor<Flex, 2>>,
    factors: Option<Tensor<Flex, 2>>,
}

/// By hand, in one pass.
pub fn cpu(
    x: Tensor<Ad<Flex>, 2>,
    factors: Option<Tensor<Ad<Flex>, 2>>,
    offsets: Option<Tensor<Ad<Flex>, 2>>,
) -> Tensor<Ad<Flex>, 2> {
    let [rows, width] = x.dims();
    let inner = x.clone().inner();
    let plainly = |row: &Option<Tensor<Ad<Flex>, 2>>| row.clone().map(Tensor::inner);
    let [by, to] = [plainly(&factors), plainly(&offsets)];
    let output = moved(&inner, by.clone(), to);
    let nothing = || Tensor::<Ad<Flex>, 2>::empty([0, 0], &x.device());
    let multiplies = factors.as_ref().is_some_and(is_tracked);
    let [factors, offsets] = [factors, offsets].map(|row| input(row.unwrap_or_else(nothing)));
    let state = || Saved {
        x: multiplies.then_some(inner),
        factors: by,
    };
    let output = tensor(output, [rows, width]);
    record([input(x), factors, offsets], output, state, backward)
}

/// Rows that one thread takes at a time, and those of one partial sum.
const ROWS: usize = 32;

/// `x ∘ factors + offsets`.
fn moved(
    x: &Tensor<Flex, 2>,
    factors: Option<Tensor<Flex, 2>>,
    offsets: Option<Tensor<Flex, 2>>,
) -> Vec<f32> {
    let width = x.dims()[1].max(1);
    let row = |row: Option<Tensor<Flex, 2>>, otherwise: f32| match row {
        Some(row) => View::new(row).values().to_vec(),
        None => vec![otherwise; width],
    };
    let (factors, offsets) = (row(factors, 1.0), row(offsets, 0.0));
    let x = View::new(x.clone());
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let out = out.par_chunks_mut(ROWS * width);
        let chunks = out.zip(x.values().par_chunks(ROWS * width));
        chunks.for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                of_row(out, x, &factors, &offsets);
            }
        });
    };
    // SAFETY: whole rows, each of which is written.
    unsafe { written(x.values().len(), fill) }
}

vectorised! {
    fn of_row(out: &mut [MaybeUninit<f32>], x: &[f32], factors: &[f32], offsets: &[f32]) {
        let values = x.iter().zip(factors).zip(offsets);
        for (out, ((x, factor), offset)) in out.iter_mut().zip(values) {
            out.write(x * factor + offset);
        }
    }
}

fn backward(
    saved: Saved,
    gradient: FloatTensor<Flex>,
    wanted: [bool; 3],
) -> [Option<FloatTensor<Flex>>; 3] {
    let gradient = plain::<Flex, 2>(gradient);
    let dims = gradient.dims();
    let of_factors = saved.x.filter(|_| wanted[1]);
    let of_factors = of_factors.map(|x| unwrap(sums(&gradient, Some(x))));
    let of_offsets = wanted[2].then(|| unwrap(sums(&gradient, None)));
    let of_x = wanted[0].then(|| match saved.factors {
        Some(factors) => unwrap(tensor(moved(&gradient, Some(factors), None), dims)),
        None => unwrap(gradient),
    });
    [of_x, of_factors, of_offsets]
}

/// `Σ g` of each column, or `Σ g∘x`, `[1, width]`. In parts of fixed size, so that it is the same for every number of threads.
fn sums(gradient: &Tensor<Flex, 2>, x: Option<Tensor<Flex, 2>>) -> Tensor<Flex, 2> {
    let width = gradient.dims()[1];
    let size = (ROWS * width).max(1);
    let gradient = View::new(gradient.clone());
    let x = x.map(View::new);
    let chunks = gradient.values().par_chunks(size).enumerate();
    let partial: Vec<Vec<f32>> = chunks
        .map(|(chunk, gradient)| {
            let mut sums = vec![0.0; width];
            let rows = gradient.chunks_exact(width.max(1));
            match &x {
                None => rows.for_each(|row| add(&mut sums, row)),
                Some(x) => {
                    let x = x.values()[chunk * size..].chunks_exact(width.max(1));
                    rows.zip(x)
                        .for_each(|(row, x)| add_products(&mut sums, row, x));
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0f64; width];
    for sums in &partial {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    tensor(
        total.into_iter().map(|sum| sum as f32).collect(),
        [1, width],
    )
}

vectorised! {
    fn add(sums: &mut [f32], row: &[f32]) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

vectorised! {
    fn add_products(sums: &mut [f32], row: &[f32], x: &[f32]) {
        for (sum, (value, x)) in sums.iter_mut().zip(row.iter().zip(x)) {
            *sum += value * x;
        }
    }
}
