//! Attention by burn's own operations.

use std::sync::OnceLock;

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use burn_backend::Backend;

use super::super::dropout::{self, Dropout, Elements};
use super::super::{Ad, Kernels};
use super::{AttentionLayout, Projected, Sequences};

/// Sequences padded into a rectangle, on the device.
#[derive(Clone, Debug)]
pub(super) struct Rectangle<B: Backend> {
    /// The token that each cell of the queries' rectangle holds, row by row; token 0 where it is padding. None where
    /// sequences are of one length, so that they lie as they are to: nothing is copied to the device for those, nor
    /// moved on it.
    queries: Option<Tensor<Ad<B>, 1, Int>>,
    /// The same of keys and values.
    pairs: Option<Tensor<Ad<B>, 1, Int>>,
    /// What is added to each score, `[sequences, 1, queries, keys]`: nothing, or so much that it counts for nothing.
    /// None where it is nothing everywhere.
    bias: Option<Tensor<Ad<B>, 4>>,
    /// The cell that each query lies in; none where they lie one after the other.
    packed: Option<Tensor<Ad<B>, 1, Int>>,
    /// Keys of each sequence, `[sequences]`, once dropout asks for them.
    lengths: OnceLock<Tensor<B, 1, Int>>,
    /// The row of relative positions of each cell, `[1, 1, queries, keys]`, where there are any.
    buckets: Option<Tensor<Ad<B>, 4, Int>>,
}

impl<B: Backend> Rectangle<B> {
    pub fn of(layout: &AttentionLayout<B>, device: &B::Device) -> Self {
        let count = layout.pairs.count();
        let (rows, columns) = (layout.queries.longest(), layout.pairs.longest());
        let indices = |values: Vec<i64>| {
            let len = values.len();
            Tensor::from_data(TensorData::new(values, [len]), device)
        };
        let padded = |sequences: &Sequences, longest: usize| {
            if sequences.tokens() == count * longest {
                return None;
            }
            let mut cells = vec![0i64; count * longest];
            for i in 0..count {
                for (position, token) in sequences.range(i).enumerate() {
                    cells[i * longest + position] = token as i64;
                }
            }
            Some(indices(cells))
        };
        let mut bias = vec![-1e9f32; count * rows * columns];
        let mut packed = Vec::with_capacity(layout.queries.tokens());
        for i in 0..count {
            let (queries, keys) = (layout.queries.range(i).len(), layout.pairs.range(i).len());
            for row in 0..queries {
                let seen = layout.shape.seen(row, queries, keys);
                bias[(i * rows + row) * columns..][seen].fill(0.0);
                packed.push((i * rows + row) as i64);
            }
        }
        let hides = bias.iter().any(|bias| *bias != 0.0);
        let bias = TensorData::new(bias, [count, 1, rows, columns]);
        let queries = padded(&layout.queries, rows);
        let buckets = layout.buckets.as_ref().map(|buckets| {
            let of_row = |row| buckets.of_query(row, columns).iter();
            let cells = (0..rows).flat_map(of_row).map(|row| i64::from(*row));
            let cells: Vec<i64> = cells.collect();
            Tensor::from_data(TensorData::new(cells, [1, 1, rows, columns]), device)
        });
        Rectangle {
            packed: queries.is_some().then(|| indices(packed)),
            pairs: match layout.queries == layout.pairs {
                true => queries.clone(),
                false => padded(&layout.pairs, columns),
            },
            queries,
            bias: hides.then(|| Tensor::from_data(bias, device)),
            buckets,
            lengths: OnceLock::new(),
        }
    }
}

/// Keys of each sequence, `[sequences]`; nothing is copied to the device where all have as many.
fn lengths<B: Backend>(layout: &AttentionLayout<B>, device: &B::Device) -> Tensor<B, 1, Int> {
    let (count, longest) = (layout.pairs.count(), layout.pairs.longest());
    if layout.pairs.tokens() == count * longest {
        return Tensor::full([count], longest as i64, device);
    }
    let lengths = (0..count).map(|i| layout.pairs.range(i).len() as i64);
    let lengths: Vec<i64> = lengths.collect();
    Tensor::from_data(TensorData::new(lengths, [count]), device)
}

/// By burn's own operations: sequences padded into a rectangle, the padding masked, the result packed again.
pub fn composed<B: Kernels>(
    projected: Projected<B>,
    positions: Option<Tensor<Ad<B>, 2>>,
    layout: &AttentionLayout<B>,
    dropout: Dropout,
) -> Tensor<Ad<B>, 2> {
    let shape = layout.shape;
    let (q_width, kv_width) = (shape.query_width(), shape.pair_width());
    let device = match &projected {
        Projected::Joint(all) => all.device(),
        Projected::Split { pairs, .. } => pairs.device(),
    };
    let count = layout.pairs.count();
    let (rows, columns) = (layout.queries.longest(), layout.pairs.longest());
    let rectangle = layout
        .rectangle
        .get_or_init(|| Rectangle::of(layout, &device));
    let moved = |x: Tensor<Ad<B>, 2>, cells: &Option<Tensor<Ad<B>, 1, Int>>| match cells {
        Some(cells) => x.select(0, cells.clone()),
        None => x,
    };
    let pairs = q_width..q_width + 2 * kv_width;
    // All that lies alike is moved at once.
    let (q, kv) = match projected {
        Projected::Joint(x) if layout.queries == layout.pairs => {
            let x = moved(x, &rectangle.pairs);
            (x.clone().slice_dim(1, 0..q_width), x.slice_dim(1, pairs))
        }
        Projected::Joint(x) => (
            moved(x.clone().slice_dim(1, 0..q_width), &rectangle.queries),
            moved(x.slice_dim(1, pairs), &rectangle.pairs),
        ),
        Projected::Split { queries, pairs } => (
            moved(queries, &rectangle.queries),
            moved(pairs, &rectangle.pairs),
        ),
    };
    let k = kv.clone().slice_dim(1, 0..kv_width);
    let v = kv.slice_dim(1, kv_width..2 * kv_width);
    let split = |x: Tensor<Ad<B>, 2>, longest: usize, heads: usize| {
        let x = x
            .reshape([count, longest, heads, shape.head_size])
            .swap_dims(1, 2);
        let groups = shape.heads / heads;
        if groups == 1 {
            return x;
        }
        x.reshape([count, heads, 1, longest * shape.head_size])
            .repeat_dim(2, groups)
            .reshape([count, shape.heads, longest, shape.head_size])
    };
    let q = split(q, rows, shape.heads);
    let k = split(k, columns, shape.pair_heads);
    let v = split(v, columns, shape.pair_heads);
    let mut scores = q.clone().matmul(k.clone().transpose());
    if let (Some(positions), Some(buckets)) = (positions, &rectangle.buckets) {
        let table = positions.dims()[0];
        let part = |which: usize| -> Tensor<Ad<B>, 4> {
            let columns = which * q_width..(which + 1) * q_width;
            let part = positions.clone().slice_dim(1, columns);
            part.reshape([1, table, shape.heads, shape.head_size])
                .swap_dims(1, 2)
        };
        let cells = buckets
            .clone()
            .repeat_dim(0, count)
            .repeat_dim(1, shape.heads);
        let of_queries = q.matmul(part(0).transpose()).gather(3, cells.clone());
        let of_keys = k
            .matmul(part(1).transpose())
            .gather(3, cells.swap_dims(2, 3));
        scores = scores + of_queries + of_keys.swap_dims(2, 3);
    }
    let scores = scores * shape.scale;
    let scores = match shape.soft_cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    let scores = match &rectangle.bias {
        Some(bias) => scores + bias.clone(),
        None => scores,
    };
    let elements = || Elements::ByHead {
        lengths: rectangle
            .lengths
            .get_or_init(|| lengths(layout, &device))
            .clone(),
        shape: [count, shape.heads, rows, columns],
    };
    let weights = dropout::composed(softmax(scores, 3), elements, dropout);
    let y = weights
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([count * rows, q_width]);
    moved(y, &rectangle.packed)
}
