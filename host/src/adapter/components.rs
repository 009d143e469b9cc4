//! Single components of a LoRA pair. Component k is row k of `A [rank, in]` and column k of
//! `B [out, rank]`; one that does not remain is pruned: its column of B is zero and it is not updated. Beside a table of
//! embeddings, where A is what starts at zero, its row of A is.

use burn::tensor::{Tensor, TensorData};

use crate::kernel::Kernels;

/// Sets the components that do not remain to zero in the tensor of this number, which is zero at the start; of a pair with
/// a `start` they are put back to it.
pub fn prune<B: Kernels>(
    pair: &mut [Tensor<B, 2>; 2],
    start: Option<&[Tensor<B, 2>; 2]>,
    (remaining, zero): (&[bool], usize),
) {
    if let Some(start) = start {
        let others: Vec<bool> = remaining.iter().map(|remains| !remains).collect();
        let kept = keep(pair.clone(), remaining);
        let [a, b] = keep(start.clone(), &others);
        *pair = [kept[0].clone() + a, kept[1].clone() + b];
        return;
    }
    let part = &mut pair[zero];
    *part = part.clone() * along(zero, flags(remaining, &part.device()));
}

/// A row of values of the components as it lies in A, tensor 0, or in B, 1.
fn along<B: Kernels>(tensor: usize, row: Tensor<B, 2>) -> Tensor<B, 2> {
    match tensor {
        0 => row.transpose(),
        _ => row,
    }
}

/// What belongs to the components that remain, of something in the shape of A and B; zero elsewhere.
pub fn keep<B: Kernels>([a, b]: [Tensor<B, 2>; 2], remaining: &[bool]) -> [Tensor<B, 2>; 2] {
    let flags = flags(remaining, &a.device());
    [a * flags.clone().transpose(), b * flags]
}

/// The sensitivity of each component, `[rank]`: the mean of |w·∂L/∂w| over its row of A plus that over
/// its column of B (Zhang et al. 2023, AdaLoRA, section 3.2).
///
/// A pruned component's column is zero, but not in AdaLoRA, where pruned ones train on between two
/// reallocations: Adam's first step moves every entry by the learning rate. The column is taken as if it
/// were that far from zero: `rate·|∂L/∂B|`. So is that of one that has not grown yet; a frozen component has a
/// column as it is. What is said of B's column is so of what lies in the tensor `zero`: of A's row beside a table of
/// embeddings.
pub fn sensitivity<B: Kernels>(
    [a, b]: &[Tensor<B, 2>; 2],
    [of_a, of_b]: &[Tensor<B, 2>; 2],
    remaining: Option<&[bool]>,
    (zero, rate): (usize, f64),
) -> Tensor<B, 1> {
    let rank = a.dims()[0];
    let mut sizes = [a, b].map(|tensor| tensor.clone().abs());
    if let Some(remaining) = remaining {
        let others: Vec<bool> = remaining.iter().map(|remains| !remains).collect();
        let size = &mut sizes[zero];
        let nothing = size.clone().sum_dim(1 - zero).equal_elem(0.0).float();
        let others = along(zero, flags(&others, &size.device()));
        *size = size.clone() + others * nothing * rate;
    }
    let [of_rows, of_columns] = sizes;
    let rows = (of_rows * of_a.clone().abs()).mean_dim(1);
    let columns = (of_columns * of_b.clone().abs()).mean_dim(0);
    rows.reshape([rank]) + columns.reshape([rank])
}

/// The pair of the components that remain alone, a pair of that rank.
pub fn extract<B: Kernels>([a, b]: &[Tensor<B, 2>; 2], remaining: &[bool]) -> [Tensor<B, 2>; 2] {
    let indices: Vec<i64> = (0..)
        .zip(remaining)
        .filter_map(|(k, remains)| remains.then_some(k))
        .collect();
    let rank = indices.len();
    let indices = Tensor::from_data(TensorData::new(indices, [rank]), &a.device());
    [
        a.clone().select(0, indices.clone()),
        b.clone().select(1, indices),
    ]
}

/// 1 where true, 0 where false: `[1, rank]`.
fn flags<B: Kernels>(values: &[bool], device: &B::Device) -> Tensor<B, 2> {
    let values: Vec<f32> = values
        .iter()
        .map(|value| f32::from(u8::from(*value)))
        .collect();
    let rank = values.len();
    Tensor::from_data(TensorData::new(values, [1, rank]), device)
}
