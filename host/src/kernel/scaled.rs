//! A frozen matrix with trainable factors for its rows and columns.

use burn::tensor::Tensor;
use burn_backend::tensor::FloatTensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::record::{input, plain, record, unwrap};
use super::{Ad, Kernels};

/// By burn's own operations.
pub fn composed<B: Kernels>(
    matrix: &Tensor<B, 2>,
    rows: Tensor<Ad<B>, 2>,
    columns: Tensor<Ad<B>, 2>,
) -> Tensor<Ad<B>, 2> {
    Tensor::from_inner(matrix.clone()) * rows * columns.transpose()
}

/// What the backward pass needs. The matrix is shared, not copied.
#[derive(Clone, Debug)]
struct Saved {
    matrix: Tensor<Flex, 2>,
    rows: Tensor<Flex, 2>,
    columns: Tensor<Flex, 2>,
}

/// By hand, in one pass each way.
pub fn cpu(
    matrix: &Tensor<Flex, 2>,
    rows: Tensor<Ad<Flex>, 2>,
    columns: Tensor<Ad<Flex>, 2>,
) -> Tensor<Ad<Flex>, 2> {
    let dims = matrix.dims();
    let saved = Saved {
        matrix: matrix.clone(),
        rows: rows.clone().inner(),
        columns: columns.clone().inner(),
    };
    let [m, r, c] = saved.views();
    let mut scaled = vec![0.0; m.values().len()];
    scaled
        .par_chunks_mut(dims[1].max(1))
        .zip(m.values().par_chunks(dims[1].max(1)))
        .zip(r.values())
        .for_each(|((scaled, row), factor)| {
            for ((scaled, value), column) in scaled.iter_mut().zip(row).zip(c.values()) {
                *scaled = factor * value * column;
            }
        });
    let output = tensor(scaled, dims);
    record([input(rows), input(columns)], output, || saved, backward)
}

impl Saved {
    fn views(&self) -> [View; 3] {
        [&self.matrix, &self.rows, &self.columns].map(|tensor| View::new(tensor.clone()))
    }
}

fn backward(
    saved: Saved,
    gradient: FloatTensor<Flex>,
    _: [bool; 2],
) -> [Option<FloatTensor<Flex>>; 2] {
    let [matrix, rows, columns] = saved.views();
    let gradient = View::new(plain::<Flex, 2>(gradient));
    let width = columns.values().len();
    // d rows[i] = Σⱼ G·M·columns[j], d columns[j] = Σᵢ G·M·rows[i].
    let mut of_rows = Vec::with_capacity(rows.values().len());
    let mut of_columns = vec![0.0; width];
    let mut products = vec![0.0; width];
    let lines = gradient.values().chunks_exact(width.max(1));
    let lines = lines.zip(matrix.values().chunks_exact(width.max(1)));
    for ((gradient, matrix), row) in lines.zip(rows.values()) {
        for ((product, g), m) in products.iter_mut().zip(gradient).zip(matrix) {
            *product = g * m;
        }
        let weighed = products.iter().zip(columns.values());
        of_rows.push(weighed.map(|(product, column)| product * column).sum());
        for (sum, product) in of_columns.iter_mut().zip(&products) {
            *sum += product * row;
        }
    }
    let count = of_rows.len();
    [
        Some(unwrap(tensor(of_rows, [count, 1]))),
        Some(unwrap(tensor(of_columns, [width, 1]))),
    ]
}
