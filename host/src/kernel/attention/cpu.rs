//! Attention by hand, on the CPU.

use std::cell::RefCell;

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::super::Ad;
use super::super::cpu::{Disjoint, View, tensor};
use super::super::dropout::Dropout;
use super::super::record::{input, plain, record, unwrap};
use super::super::simd::level;
use super::backward::backward as of_head;
use super::forward::forward;
use super::head::{Head, Place, Relative};
use super::{AttentionLayout, Projected};

thread_local! {
    /// Working memory of one thread, kept between tasks.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// By hand: each sequence and head is a task of its own that reads its rows where they lie, in products that
/// end in the micro-kernel of `gemm`. The weights are computed again in the backward pass;
/// only queries, keys and values are kept.
pub fn cpu(
    projected: Projected<Flex>,
    positions: Option<Tensor<Ad<Flex>, 2>>,
    layout: &AttentionLayout<Flex>,
    dropout: Dropout,
) -> Tensor<Ad<Flex>, 2> {
    let parts: Vec<Tensor<Flex, 2>> = match &projected {
        Projected::Joint(all) => vec![all.clone().inner()],
        Projected::Split { queries, pairs } => {
            vec![queries.clone().inner(), pairs.clone().inner()]
        }
    };
    let saved = Saved {
        parts,
        positions: positions.clone().map(Tensor::inner),
        layout: layout.clone(),
        dropout,
    };
    let dims = [layout.queries.tokens(), layout.shape.query_width()];
    let mut output = Vec::with_capacity(dims[0] * dims[1]);
    let out = Disjoint::new(output.as_mut_ptr());
    let level = level();
    saved.for_each_head(|head, scratch| forward(level, head, scratch, out));
    // SAFETY: the tasks wrote every head of every query.
    unsafe { output.set_len(dims[0] * dims[1]) };
    let output = tensor(output, dims);
    match (projected, positions) {
        (Projected::Joint(all), None) => record([input(all)], output, || saved, backward::<1>),
        (Projected::Joint(all), Some(positions)) => record(
            [input(all), input(positions)],
            output,
            || saved,
            backward::<2>,
        ),
        (Projected::Split { queries, pairs }, None) => record(
            [input(queries), input(pairs)],
            output,
            || saved,
            backward::<2>,
        ),
        (Projected::Split { queries, pairs }, Some(positions)) => record(
            [input(queries), input(pairs), input(positions)],
            output,
            || saved,
            backward::<3>,
        ),
    }
}

/// What attention reads, joint or split.
#[derive(Clone, Debug)]
struct Saved {
    parts: Vec<Tensor<Flex, 2>>,
    /// Keys and queries of relative positions, `[rows, k | q]`.
    positions: Option<Tensor<Flex, 2>>,
    layout: AttentionLayout<Flex>,
    dropout: Dropout,
}

type Primitive = burn_backend::tensor::FloatTensor<Flex>;

fn backward<const N: usize>(
    saved: Saved,
    gradient: Primitive,
    _: [bool; N],
) -> [Option<Primitive>; N] {
    let gradient = View::new(plain::<Flex, 2>(gradient));
    let read: Vec<&Tensor<Flex, 2>> = saved.parts.iter().chain(&saved.positions).collect();
    let mut gradients: [Vec<f32>; N] =
        std::array::from_fn(|i| Vec::with_capacity(read[i].shape().num_elements()));
    let pairs = saved.parts.len() - 1;
    if saved.positions.is_some() {
        // To which every sequence adds its share.
        let len = read[N - 1].shape().num_elements();
        gradients[N - 1].resize(len, 0.0);
    }
    let out: [Disjoint; N] = std::array::from_fn(|i| Disjoint::new(gradients[i].as_mut_ptr()));
    let (level, out) = (level(), [out[0], out[pairs], out[pairs], out[N - 1]]);
    saved.for_each_head(|head, scratch| {
        of_head(level, head, scratch, gradient.values(), out);
    });
    let mut read = read.into_iter();
    gradients.map(|mut values| {
        let dims = read.next().expect("a gradient for each part").dims();
        // SAFETY: the tasks wrote every head of every token, of all that the part holds; positions were written before.
        unsafe { values.set_len(dims[0] * dims[1]) };
        Some(unwrap(tensor(values, dims)))
    })
}

impl Saved {
    fn for_each_head(&self, run: impl Fn(&Head<'_>, &mut Vec<f32>) + Sync) {
        let views: Vec<View> = self.parts.iter().cloned().map(View::new).collect();
        let positions = self.positions.clone().map(View::new);
        let AttentionLayout {
            queries,
            pairs,
            shape,
            buckets,
            ..
        } = &self.layout;
        let (q_width, kv_width) = (shape.query_width(), shape.pair_width());
        let joint = views.len() == 1;
        let strides = if joint {
            [q_width + 2 * kv_width; 2]
        } else {
            [q_width, 2 * kv_width]
        };
        let keys_at = if joint { q_width } else { 0 };
        let group = shape.heads / shape.pair_heads;
        let of_sequence = |sequence: usize, pair_head: usize| {
            let (query, key) = (queries.range(sequence), pairs.range(sequence));
            let q_column = pair_head * group * shape.head_size;
            let k_column = keys_at + pair_head * shape.head_size;
            let place = |row: usize, stride: usize, column: usize| Place {
                first: row * stride + column,
                stride,
            };
            let head = Head {
                queries: views[0].values(),
                pairs: views[views.len() - 1].values(),
                places: [
                    place(query.start, strides[0], q_column),
                    place(key.start, strides[1], k_column),
                    place(key.start, strides[1], k_column + kv_width),
                ],
                output: place(query.start, q_width, q_column),
                query_count: query.len(),
                len: key.len(),
                group,
                size: shape.head_size,
                shape: *shape,
                dropout: self.dropout,
                index: (self.dropout.first as usize + sequence).wrapping_mul(shape.heads) as u32
                    + (pair_head * group) as u32,
                relative: positions
                    .as_ref()
                    .zip(buckets.as_ref())
                    .map(|(view, buckets)| {
                        let span = buckets.span(query.len(), key.len());
                        let place = |column| place(span.start, 2 * q_width, column);
                        Relative {
                            values: view.values(),
                            places: [place(q_column), place(q_width + q_column)],
                            buckets,
                            span,
                        }
                    }),
            };
            SCRATCH.with_borrow_mut(|scratch| run(&head, scratch));
        };
        let (count, heads) = (pairs.count(), shape.pair_heads);
        match positions {
            None => (0..count * heads)
                .into_par_iter()
                .for_each(|index| of_sequence(index / heads, index % heads)),
            // Sequences share the gradient of a head's positions.
            Some(_) => (0..heads)
                .into_par_iter()
                .for_each(|head| (0..count).for_each(|sequence| of_sequence(sequence, head))),
        }
    }
}
