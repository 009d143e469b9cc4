//! Columns of a matrix that trains, looked up.

use burn::tensor::{Int, Tensor};
use burn_backend::tensor::FloatTensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, tensor};
use super::record::{input, plain, record, unwrap};
use super::{Ad, Kernels};

/// By burn's own operations.
pub fn composed<B: Kernels>(
    matrix: Tensor<Ad<B>, 2>,
    ids: Tensor<B, 1, Int>,
    still: Option<usize>,
) -> Tensor<Ad<B>, 2> {
    let found = matrix
        .transpose()
        .select(0, Tensor::from_inner(ids.clone()));
    let Some(still) = still else {
        return found;
    };
    let moves = ids.not_equal_elem(still as i64).float().unsqueeze_dim(1);
    let moves: Tensor<Ad<B>, 2> = Tensor::from_inner(moves);
    found.clone() * moves.clone() + found.detach() * (moves.neg() + 1.0)
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    ids: Vec<usize>,
    still: Option<usize>,
    dims: [usize; 2],
}

/// By hand. The gradient of each row of the matrix is one task, so that threads change no bit of it.
pub fn cpu(
    matrix: Tensor<Ad<Flex>, 2>,
    ids: Tensor<Flex, 1, Int>,
    still: Option<usize>,
) -> Tensor<Ad<Flex>, 2> {
    let dims @ [rows, width] = matrix.dims();
    let ids: Vec<usize> = ids
        .into_data()
        .iter::<i64>()
        .map(|id| id as usize)
        .collect();
    let view = View::new(matrix.clone().inner());
    let found = ids
        .iter()
        .flat_map(|id| (0..rows).map(|row| view.values()[row * width + *id]));
    let output = tensor(found.collect(), [ids.len(), rows]);
    let saved = || Saved { ids, still, dims };
    record([input(matrix)], output, saved, backward)
}

fn backward(
    saved: Saved,
    gradient: FloatTensor<Flex>,
    _: [bool; 1],
) -> [Option<FloatTensor<Flex>>; 1] {
    let Saved {
        ids,
        still,
        dims: dims @ [rows, width],
    } = saved;
    let gradient = View::new(plain::<Flex, 2>(gradient));
    let mut sums = vec![0f32; rows * width];
    let tasks = sums.par_chunks_mut(width.max(1)).enumerate();
    tasks.for_each(|(row, sums)| {
        for (id, values) in ids.iter().zip(gradient.values().chunks_exact(rows)) {
            if Some(*id) != still {
                sums[*id] += values[row];
            }
        }
    });
    [Some(unwrap(tensor(sums, dims)))]
}
