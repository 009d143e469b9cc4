//! Softmax attention within packed sequences.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{Disjoint, View, tensor};
use super::dropout::{self, Dropout, hash};
use super::record::{input, plain, record, unwrap};
use super::simd::{LANES, exp, fma, max_of, sum_of, vectorised};

/// Where each sequence lies among the packed tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// `offsets[i]..offsets[i + 1]` are the tokens of sequence `i`.
    offsets: Arc<[usize]>,
}

impl Sequences {
    /// Sequences between consecutive `offsets`, which start at 0 and never fall.
    pub fn new(offsets: &[usize]) -> Self {
        assert!(offsets.first() == Some(&0), "offsets start at 0");
        assert!(offsets.is_sorted(), "offsets never fall");
        Sequences {
            offsets: offsets.into(),
        }
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens in all.
    pub fn tokens(&self) -> usize {
        self.offsets[self.count()]
    }

    /// The tokens of sequence `i`.
    pub fn range(&self, i: usize) -> std::ops::Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        (0..self.count())
            .map(|i| self.range(i).len())
            .max()
            .unwrap_or(0)
    }

    /// The position of each sequence's first token.
    pub fn firsts(&self) -> &[usize] {
        &self.offsets[..self.count()]
    }
}

/// The sizes of multi-head attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of heads.
    pub heads: usize,
    /// Features of one head; scores are scaled by its inverse square root.
    pub head_size: usize,
}

impl AttentionShape {
    fn scale(self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }
}

/// By burn's own operations: sequences padded into a rectangle, the padding masked, the result packed again.
pub fn composed<B: Backend>(
    q: Tensor<Ad<B>, 2>,
    k: Tensor<Ad<B>, 2>,
    v: Tensor<Ad<B>, 2>,
    sequences: &Sequences,
    shape: AttentionShape,
    dropout: Dropout,
) -> Tensor<Ad<B>, 2> {
    let device = q.device();
    let (count, longest) = (sequences.count(), sequences.longest());
    let AttentionShape { heads, head_size } = shape;
    // Where each cell of the rectangle comes from (padding: token 0), where each token lies in it, and
    // what is added to the scores of each key.
    let mut padded = vec![0i64; count * longest];
    let mut packed = Vec::with_capacity(sequences.tokens());
    let mut bias = vec![-1e9f32; count * longest];
    for i in 0..count {
        for (position, token) in sequences.range(i).enumerate() {
            let cell = i * longest + position;
            padded[cell] = token as i64;
            bias[cell] = 0.0;
            packed.push(cell as i64);
        }
    }
    let indices = |values: Vec<i64>| {
        let len = values.len();
        Tensor::<Ad<B>, 1, Int>::from_data(TensorData::new(values, [len]), &device)
    };
    let padded = indices(padded);
    let split = |x: Tensor<Ad<B>, 2>| {
        x.select(0, padded.clone())
            .reshape([count, longest, heads, head_size])
            .swap_dims(1, 2)
    };
    let bias =
        Tensor::<Ad<B>, 4>::from_data(TensorData::new(bias, [count, 1, 1, longest]), &device);
    let scores = split(q).matmul(split(k).transpose()) * shape.scale() + bias;
    let weights = dropout::composed(softmax(scores, 3), dropout);
    let output = weights.matmul(split(v)).swap_dims(1, 2);
    output
        .reshape([count * longest, heads * head_size])
        .select(0, indices(packed))
}

#[derive(Clone, Debug)]
struct Saved {
    q: Tensor<Flex, 2>,
    k: Tensor<Flex, 2>,
    v: Tensor<Flex, 2>,
    sequences: Sequences,
    shape: AttentionShape,
    dropout: Dropout,
}

/// By hand: each sequence and head is a task of its own that reads its rows where they lie. The weights
/// are computed again in the backward pass; only q, k and v are kept.
pub fn cpu(
    q: Tensor<Ad<Flex>, 2>,
    k: Tensor<Ad<Flex>, 2>,
    v: Tensor<Ad<Flex>, 2>,
    sequences: &Sequences,
    shape: AttentionShape,
    dropout: Dropout,
) -> Tensor<Ad<Flex>, 2> {
    let dims = q.dims();
    let saved = Saved {
        q: q.clone().inner(),
        k: k.clone().inner(),
        v: v.clone().inner(),
        sequences: sequences.clone(),
        shape,
        dropout,
    };
    let mut output = Vec::with_capacity(dims[0] * dims[1]);
    let out = Disjoint::new(output.as_mut_ptr());
    for_each_head(&saved, |task, scratch| forward(task, scratch, out));
    // SAFETY: the tasks wrote every head of every token.
    unsafe { output.set_len(dims[0] * dims[1]) };
    let output = tensor(output, dims);
    record(
        [input(q), input(k), input(v)],
        output,
        || saved,
        |saved, gradient, _| {
            let dims = saved.q.dims();
            let gradient = View::new(plain::<Flex, 2>(gradient));
            let mut gradients: [Vec<f32>; 3] =
                std::array::from_fn(|_| Vec::with_capacity(dims[0] * dims[1]));
            let out = gradients
                .each_mut()
                .map(|values| Disjoint::new(values.as_mut_ptr()));
            for_each_head(&saved, |task, scratch| {
                backward(task, scratch, gradient.values(), out)
            });
            gradients.map(|mut values| {
                // SAFETY: the tasks wrote every head of every token, in each of the three.
                unsafe { values.set_len(dims[0] * dims[1]) };
                Some(unwrap(tensor(values, dims)))
            })
        },
    )
}

/// One head of one sequence.
struct Task<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// First token, number of tokens.
    start: usize,
    len: usize,
    /// First column of the head, its size and the width of a row of all heads.
    column: usize,
    head_size: usize,
    width: usize,
    scale: f32,
    dropout: Dropout,
    /// Seed of the dropout of this head's weights.
    seed: u32,
}

impl Task<'_> {
    /// `len` rounded up to whole lanes.
    fn padded(&self) -> usize {
        self.len.next_multiple_of(LANES)
    }
}

thread_local! {
    /// Working memory of one thread, kept between tasks.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn for_each_head(saved: &Saved, run: impl Fn(&Task<'_>, &mut Vec<f32>) + Sync) {
    let [q, k, v] = [&saved.q, &saved.k, &saved.v].map(|x| View::new(x.clone()));
    let AttentionShape { heads, head_size } = saved.shape;
    (0..saved.sequences.count() * heads)
        .into_par_iter()
        .for_each(|index| {
            let (sequence, head) = (index / heads, index % heads);
            let range = saved.sequences.range(sequence);
            let task = Task {
                q: q.values(),
                k: k.values(),
                v: v.values(),
                start: range.start,
                len: range.len(),
                column: head * head_size,
                head_size,
                width: heads * head_size,
                scale: saved.shape.scale(),
                dropout: saved.dropout,
                seed: hash(saved.dropout.seed, index as u32).wrapping_mul(0x9e37_79b9),
            };
            SCRATCH.with_borrow_mut(|scratch| run(&task, scratch));
        });
}

/// Query rows handled at once: with one vector of keys each, their sums stay in registers.
const BLOCK: usize = 4;

/// The head's columns of `values`, transposed into `out [head_size, padded]`, zeros behind the last token.
#[inline(always)]
fn transpose(task: &Task<'_>, values: &[f32], out: &mut [f32]) {
    let padded = out.len() / task.head_size;
    for row in out.chunks_exact_mut(padded) {
        row[task.len..].fill(0.0);
    }
    for j in 0..task.len {
        let from = (task.start + j) * task.width + task.column;
        for (d, value) in values[from..from + task.head_size].iter().enumerate() {
            out[d * padded + j] = *value;
        }
    }
}

/// `out[r][j] = Σ_d rows[r][d]·transposed[d][j]` for up to [`BLOCK`] rows of `values` from token `i`.
#[inline(always)]
fn row_products<const FMA: bool>(
    task: &Task<'_>,
    values: &[f32],
    i: usize,
    transposed: &[f32],
    out: &mut [f32],
) {
    let padded = transposed.len() / task.head_size;
    // Past the last row the last is repeated, and its result thrown away.
    let rows: [&[f32]; BLOCK] = std::array::from_fn(|r| {
        let row = (i + r).min(task.len - 1);
        &values[(task.start + row) * task.width + task.column..][..task.head_size]
    });
    for j in (0..padded).step_by(LANES) {
        let mut sums = [[0f32; LANES]; BLOCK];
        for d in 0..task.head_size {
            let column: &[f32; LANES] = transposed[d * padded + j..][..LANES]
                .try_into()
                .expect("whole lanes");
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let value = row[d];
                for (sum, other) in sums.iter_mut().zip(column) {
                    *sum = fma::<FMA>(value, *other, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * padded + j..][..LANES].copy_from_slice(sums);
        }
    }
}

/// `out[r][d] = Σ_j weights[r][j]·rows[j][d]` over the tokens of the sequence, into the head's columns of
/// rows `i..i + BLOCK` of `out`.
#[inline(always)]
fn weighted_rows<const FMA: bool>(
    task: &Task<'_>,
    weights: &[f32],
    values: &[f32],
    i: usize,
    out: Disjoint,
) {
    let padded = weights.len() / BLOCK;
    let rows = BLOCK.min(task.len - i);
    let mut d = 0;
    while d < task.head_size {
        let lanes = LANES.min(task.head_size - d);
        let mut sums = [[0f32; LANES]; BLOCK];
        for j in 0..task.len {
            let row = &values[(task.start + j) * task.width + task.column + d..][..lanes];
            if lanes == LANES {
                let row: &[f32; LANES] = row.try_into().expect("whole lanes");
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = weights[r * padded + j];
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum = fma::<FMA>(weight, *value, *sum);
                    }
                }
            } else {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = weights[r * padded + j];
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum = fma::<FMA>(weight, *value, *sum);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(rows) {
            // SAFETY: this head of this token belongs to this task alone.
            let out =
                unsafe { out.slice((task.start + i + r) * task.width + task.column + d, lanes) };
            out.copy_from_slice(&sums[..lanes]);
        }
        d += lanes;
    }
}

/// Softmax of scaled scores, row by row, in place; zeros in the padding.
#[inline(always)]
fn softmax_rows<const FMA: bool>(task: &Task<'_>, scores: &mut [f32]) {
    let padded = scores.len() / BLOCK;
    for row in scores.chunks_exact_mut(padded) {
        let (row, padding) = row.split_at_mut(task.len);
        padding.fill(0.0);
        let max = max_of(row);
        for score in row.iter_mut() {
            *score = exp::<FMA>((*score - max) * task.scale);
        }
        let inverse = 1.0 / sum_of(row, |x| x);
        for weight in row.iter_mut() {
            *weight *= inverse;
        }
    }
}

/// Dropout of the weights of rows `i..i + BLOCK`.
#[inline(always)]
fn drop_weights(task: &Task<'_>, weights: &mut [f32], i: usize) {
    let padded = weights.len() / BLOCK;
    let (threshold, scale) = (task.dropout.threshold(), task.dropout.scale());
    for (r, row) in weights.chunks_exact_mut(padded).enumerate() {
        let first = ((i + r) * task.len) as u32;
        for (j, weight) in row[..task.len].iter_mut().enumerate() {
            let keep = hash(task.seed, first.wrapping_add(j as u32)) >= threshold;
            *weight = if keep { *weight * scale } else { 0.0 };
        }
    }
}

vectorised! {
    fn forward(task: &Task<'_>, scratch: &mut Vec<f32>, out: Disjoint) {
        let padded = task.padded();
        scratch.resize((task.head_size + BLOCK) * padded, 0.0);
        let (keys, weights) = scratch.split_at_mut(task.head_size * padded);
        transpose(task, task.k, keys);
        for i in (0..task.len).step_by(BLOCK) {
            row_products::<FMA>(task, task.q, i, keys, weights);
            softmax_rows::<FMA>(task, weights);
            if !task.dropout.is_none() {
                drop_weights(task, weights, i);
            }
            weighted_rows::<FMA>(task, weights, task.v, i, out);
        }
    }
}

vectorised! {
    /// dq, dk and dv of one head, into `out`.
    fn backward(task: &Task<'_>, scratch: &mut Vec<f32>, gradient: &[f32], out: [Disjoint; 3]) {
        let (padded, size) = (task.padded(), task.head_size);
        scratch.resize(2 * size * padded + 3 * BLOCK * padded + 2 * size * task.len, 0.0);
        let (keys, rest) = scratch.split_at_mut(size * padded);
        let (values, rest) = rest.split_at_mut(size * padded);
        let (weights, rest) = rest.split_at_mut(BLOCK * padded);
        let (dropped, rest) = rest.split_at_mut(BLOCK * padded);
        let (slopes, rest) = rest.split_at_mut(BLOCK * padded);
        let (dk, dv) = rest[..2 * size * task.len].split_at_mut(size * task.len);
        dk.fill(0.0);
        dv.fill(0.0);
        transpose(task, task.k, keys);
        transpose(task, task.v, values);
        for i in (0..task.len).step_by(BLOCK) {
            // P, and P after dropout.
            row_products::<FMA>(task, task.q, i, keys, weights);
            softmax_rows::<FMA>(task, weights);
            dropped.copy_from_slice(weights);
            // dP = dO·Vᵀ, through the dropout.
            row_products::<FMA>(task, gradient, i, values, slopes);
            if !task.dropout.is_none() {
                drop_weights(task, dropped, i);
                drop_weights(task, slopes, i);
            }
            // dS = P ∘ (dP - Σ_j P·dP), scaled as the scores were.
            for (weights, slopes) in weights.chunks_exact(padded).zip(slopes.chunks_exact_mut(padded)) {
                let mut lanes = [0f32; LANES];
                for (w, s) in weights.as_chunks::<LANES>().0.iter().zip(slopes.as_chunks::<LANES>().0) {
                    for ((lane, w), s) in lanes.iter_mut().zip(w).zip(s) {
                        *lane = fma::<FMA>(*w, *s, *lane);
                    }
                }
                let mean: f32 = lanes.iter().sum();
                for (slope, weight) in slopes.iter_mut().zip(weights) {
                    *slope = *weight * (*slope - mean) * task.scale;
                }
            }
            weighted_rows::<FMA>(task, slopes, task.k, i, out[0]);
            // dK += dSᵀ·Q and dV += Pᵀ·dO, four query rows at once.
            outer_sums::<FMA>(task, slopes, task.q, i, dk);
            outer_sums::<FMA>(task, dropped, gradient, i, dv);
        }
        for j in 0..task.len {
            let to = (task.start + j) * task.width + task.column;
            for (out, sums) in [(out[1], &*dk), (out[2], &*dv)] {
                // SAFETY: this head of this token belongs to this task alone.
                unsafe { out.slice(to, size) }.copy_from_slice(&sums[j * size..][..size]);
            }
        }
    }
}

/// `sums[j][d] += Σ_r weights[r][j]·rows[i + r][d]`.
#[inline(always)]
fn outer_sums<const FMA: bool>(
    task: &Task<'_>,
    weights: &[f32],
    values: &[f32],
    i: usize,
    sums: &mut [f32],
) {
    let padded = weights.len() / BLOCK;
    let size = task.head_size;
    let rows = BLOCK.min(task.len - i);
    let row = |r: usize| {
        &values[(task.start + (i + r).min(task.len - 1)) * task.width + task.column..][..size]
    };
    let [r0, r1, r2, r3] = std::array::from_fn(row);
    for (j, sum) in sums.chunks_exact_mut(size).enumerate() {
        // The repeated rows past the last count for nothing.
        let weight = |r: usize| {
            if r < rows {
                weights[r * padded + j]
            } else {
                0.0
            }
        };
        let [w0, w1, w2, w3] = std::array::from_fn(weight);
        for ((((sum, a), b), c), d) in sum.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
            let first = fma::<FMA>(w1, *b, fma::<FMA>(w0, *a, *sum));
            *sum = fma::<FMA>(w3, *d, fma::<FMA>(w2, *c, first));
        }
    }
}
