//! Reductions behind the signals.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::gemm::{Start, Term, product};
use super::matrix::Matrix;
use super::simd::{sum_of, vectorised};

/// Reductions that the CPU has taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// How many reductions this process has taken on the CPU: what nobody asked for is not among them.
pub fn taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

fn take() {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

/// By burn's own operations.
pub fn composed<B: Backend>(x: Tensor<B, 2>, columns: Range<usize>) -> Tensor<B, 1> {
    let x = x.slice_dim(1, columns);
    Tensor::cat(vec![x.clone().abs().sum(), x.powi_scalar(2).sum()], 0)
}

/// Rows in one partial sum. Fixed, so that the result does not depend on the number of threads.
const ROWS: usize = 32;

/// By hand, in one pass.
pub fn cpu(x: Tensor<Flex, 2>, columns: Range<usize>) -> Tensor<Flex, 1> {
    take();
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

/// By burn's own operations: two reductions for all matrices of one size.
pub fn composed_of<B: Backend>(tensors: &[Tensor<B, 2>]) -> Vec<(Vec<usize>, Tensor<B, 1>)> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let [rows, columns] = tensor.dims();
        groups.entry(rows * columns).or_default().push(index);
    }
    let groups = groups.into_iter().map(|(size, members)| {
        let rows = members
            .iter()
            .map(|index| tensors[*index].clone().reshape([1, size]));
        let rows = Tensor::cat(rows.collect(), 0);
        let sums = vec![
            rows.clone().abs().sum_dim(1),
            rows.powi_scalar(2).sum_dim(1),
        ];
        let sums = Tensor::cat(sums, 1).reshape([2 * members.len()]);
        (members, sums)
    });
    groups.collect()
}

/// By hand, each for itself.
pub fn cpu_of(tensors: &[Tensor<Flex, 2>]) -> Vec<(Vec<usize>, Tensor<Flex, 1>)> {
    let tensors = tensors.iter().enumerate();
    let of_each = tensors.map(|(index, tensor)| {
        let columns = 0..tensor.dims()[1];
        (vec![index], cpu(tensor.clone(), columns))
    });
    of_each.collect()
}

/// By burn's own operations.
pub fn composed_products<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 1> {
    let products = a * b;
    Tensor::cat(vec![products.clone().sum(), products.abs().sum()], 0)
}

/// Elements in one partial sum.
const CHUNK: usize = 4 * 1024;

/// By hand, in one pass. Partial sums in f64: the products of either sign may all but cancel.
pub fn cpu_products(a: Tensor<Flex, 2>, b: Tensor<Flex, 2>) -> Tensor<Flex, 1> {
    take();
    let (a, b) = (View::new(a), View::new(b));
    let chunks = a
        .values()
        .par_chunks(CHUNK)
        .zip(b.values().par_chunks(CHUNK));
    let partial: Vec<[f64; 2]> = chunks
        .map(|(a, b)| {
            let mut sums = [0.0; 2];
            for (a, b) in a.iter().zip(b) {
                let product = f64::from(*a) * f64::from(*b);
                sums[0] += product;
                sums[1] += product.abs();
            }
            sums
        })
        .collect();
    let total = |i: usize| partial.iter().map(|sums| sums[i]).sum::<f64>() as f32;
    tensor(vec![total(0), total(1)], [2])
}

/// By burn's own operations.
pub fn composed_column_squares<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    let width = x.dims()[1];
    x.powi_scalar(2).sum_dim(0).reshape([width])
}

/// By hand, in one pass.
pub fn cpu_column_squares(x: Tensor<Flex, 2>) -> Tensor<Flex, 1> {
    take();
    let width = x.dims()[1];
    let view = View::new(x);
    let partial: Vec<Vec<f32>> = view
        .values()
        .par_chunks((ROWS * width).max(1))
        .map(|rows| {
            let mut sums = vec![0.0; width];
            for row in rows.chunks_exact(width.max(1)) {
                add_squares(&mut sums, row);
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
    tensor(total.into_iter().map(|sum| sum as f32).collect(), [width])
}

vectorised! {
    fn add_squares(sums: &mut [f32], row: &[f32]) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value * value;
        }
    }
}

/// By burn's own operations.
pub fn composed_example_squares<B: Backend>(
    narrow: Tensor<B, 2>,
    wide: Tensor<B, 2>,
    columns: Range<usize>,
    examples: &[usize],
) -> Tensor<B, 1> {
    let wide = wide.slice_dim(1, columns);
    let of_examples = examples.windows(2).map(|ends| {
        let rows = |x: &Tensor<B, 2>| x.clone().slice_dim(0, ends[0]..ends[1]);
        let product = rows(&narrow).transpose().matmul(rows(&wide));
        product.powi_scalar(2).sum()
    });
    let of_examples: Vec<Tensor<B, 1>> = of_examples.collect();
    Tensor::cat(of_examples, 0).sum()
}

/// By hand, an example at a time.
pub fn cpu_example_squares(
    narrow: Tensor<Flex, 2>,
    wide: Tensor<Flex, 2>,
    columns: Range<usize>,
    examples: &[usize],
) -> Tensor<Flex, 1> {
    take();
    let ([rows, rank], [_, width]) = (narrow.dims(), wide.dims());
    let (narrow, wide) = (View::new(narrow), View::new(wide));
    let narrow = Matrix::new(narrow.values(), rows, rank);
    let wide = Matrix::new(wide.values(), rows, width).columns(columns.start, columns.len());
    let of_examples = examples.windows(2).map(|ends| {
        let (first, count) = (ends[0], ends[1] - ends[0]);
        let (narrow, wide) = (narrow.rows(first, count), wide.rows(first, count));
        let own = product(Start::Zero, &[Term::plain(1.0, narrow.t(), wide)]);
        let [_, squares] = of_row(&own);
        f64::from(squares)
    });
    tensor(vec![of_examples.sum::<f64>() as f32], [1])
}
