//! Softmax attention within packed sequences.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{Disjoint, View, tensor};
use super::dropout::{self, Dropout, hash};
use super::gemm::{Segment, Start, sweep};
use super::matrix::Matrix;
use super::panels::{narrowest, pack, panel_width};
use super::record::{input, plain, record, unwrap};
use super::simd::{LANES, Level, exp, fma, level, map_sum, max_of, tanh, vectorised};
use super::{Ad, Kernels};

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

    /// `count` sequences of one token each.
    pub fn single(count: usize) -> Self {
        Sequences {
            offsets: (0..=count).collect(),
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
    pub fn range(&self, i: usize) -> Range<usize> {
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

/// The sizes of multi-head attention, and what a token sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Number of heads of the queries.
    pub heads: usize,
    /// Number of heads of the keys and values, a divisor of `heads`: each serves a group of query heads
    /// (Ainslie et al. 2023).
    pub pair_heads: usize,
    /// Features of one head.
    pub head_size: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Whether a token sees only itself and those before it. The queries are the last ones of their sequence, and the
    /// first ones where they see all.
    pub causal: bool,
    /// How far from a token those lie that it sees at most, where there is a limit (Beltagy et al. 2020).
    pub reach: Option<usize>,
    /// What no scaled score s exceeds, where there is a limit c: `c·tanh(s/c)` (Gemma Team 2024).
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// As many heads of keys as of queries, every token seeing every other, scores scaled by the inverse square root of
    /// a head's size.
    pub fn full(heads: usize, head_size: usize) -> Self {
        AttentionShape {
            heads,
            pair_heads: heads,
            head_size,
            scale: 1.0 / (head_size as f32).sqrt(),
            causal: false,
            reach: None,
            soft_cap: None,
        }
    }

    /// Which of so many `keys` the query number `i` of so many sees.
    fn seen(self, i: usize, queries: usize, keys: usize) -> Range<usize> {
        let (at, end) = match self.causal {
            true => (keys - queries + i, keys - queries + i + 1),
            false => (i, keys),
        };
        match self.reach {
            None => 0..end,
            Some(reach) => at.saturating_sub(reach)..end.min(at.saturating_add(reach + 1)),
        }
    }

    /// Features of a token's queries.
    pub fn query_width(self) -> usize {
        self.heads * self.head_size
    }

    /// Features of a token's keys, and of its values.
    pub fn pair_width(self) -> usize {
        self.pair_heads * self.head_size
    }
}

/// Which row of a table a pair of a query and a key has, by how far the query is behind the key.
#[derive(Clone, Debug)]
pub struct Buckets {
    /// Of the distances `longest - 1` down to `1 - longest`, so that a query's keys lie in order.
    rows: Arc<[u32]>,
    longest: usize,
}

impl Buckets {
    /// Of sequences of up to so many tokens; `row` gives that of a distance, and never falls as it grows.
    pub fn new(longest: usize, row: impl Fn(isize) -> usize) -> Self {
        let most = longest as isize - 1;
        let rows: Vec<u32> = (-most..=most)
            .rev()
            .map(|distance| row(distance) as u32)
            .collect();
        assert!(
            rows.is_sorted_by(|a, b| a >= b),
            "rows never fall as distances grow"
        );
        Buckets {
            rows: rows.into(),
            longest,
        }
    }

    /// The rows of the query at this position and each of so many keys.
    fn of_query(&self, at: usize, keys: usize) -> &[u32] {
        &self.rows[self.longest - 1 - at..][..keys]
    }

    /// The rows that so many queries and keys have between them.
    fn span(&self, queries: usize, keys: usize) -> Range<usize> {
        if queries == 0 || keys == 0 {
            return 0..0;
        }
        let first = self.of_query(0, keys)[keys - 1] as usize;
        first..self.of_query(queries - 1, 1)[0] as usize + 1
    }
}

/// Which queries meet which keys: the same in all layers of a pass that attend alike.
#[derive(Clone, Debug)]
pub struct AttentionLayout<B: Backend> {
    /// The queries of each sequence.
    pub queries: Sequences,
    /// Its keys and values.
    pub pairs: Sequences,
    /// Heads.
    pub shape: AttentionShape,
    /// Where pairs have their row of a table of relative positions, where there is one.
    pub buckets: Option<Buckets>,
    /// What burn's own operations need of it on the device: made when it is first asked for, once for all layers.
    rectangle: Arc<OnceLock<Rectangle<B>>>,
}

impl<B: Backend> AttentionLayout<B> {
    /// Queries of some tokens, keys and values of all.
    pub fn new(queries: Sequences, pairs: Sequences, shape: AttentionShape) -> Self {
        AttentionLayout {
            queries,
            pairs,
            shape,
            buckets: None,
            rectangle: Arc::default(),
        }
    }
}

/// Sequences padded into a rectangle, on the device.
#[derive(Clone, Debug)]
struct Rectangle<B: Backend> {
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
    /// The row of relative positions of each cell, `[1, 1, queries, keys]`, where there are any.
    buckets: Option<Tensor<Ad<B>, 4, Int>>,
}

impl<B: Backend> Rectangle<B> {
    fn of(layout: &AttentionLayout<B>, device: &B::Device) -> Self {
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
        }
    }
}

/// What attention reads.
#[derive(Clone, Debug)]
pub enum Projected<B: Kernels> {
    /// Queries, keys and values of every token, side by side: `[tokens, q | k | v]`.
    Joint(Tensor<Ad<B>, 2>),
    /// Queries of some tokens, `[queries, q]`, and keys and values of all, `[tokens, k | v]`.
    Split {
        /// The queries.
        queries: Tensor<Ad<B>, 2>,
        /// Keys and values.
        pairs: Tensor<Ad<B>, 2>,
    },
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
    let weights = dropout::composed(softmax(scores, 3), dropout);
    let y = weights
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([count * rows, q_width]);
    moved(y, &rectangle.packed)
}

/// By hand: each sequence and head is a task of its own that reads its rows where they lie, in products that
/// end in the micro-kernel of [`gemm`](super::gemm). The weights are computed again in the backward pass;
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
        head_backward(level, head, scratch, gradient.values(), out);
    });
    let mut read = read.into_iter();
    gradients.map(|mut values| {
        let dims = read.next().expect("a gradient for each part").dims();
        // SAFETY: the tasks wrote every head of every token, of all that the part holds; positions were written before.
        unsafe { values.set_len(dims[0] * dims[1]) };
        Some(unwrap(tensor(values, dims)))
    })
}

/// One head's rows in a part: its first value, and how far apart its rows are.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    stride: usize,
}

/// One head of keys and values of one sequence, with the query heads that it serves.
struct Head<'a> {
    queries: &'a [f32],
    pairs: &'a [f32],
    /// Of the sequence's first query of the first query head, of its keys and its values.
    places: [Place; 3],
    /// The same of the output, which has the queries' columns alone.
    output: Place,
    query_count: usize,
    len: usize,
    group: usize,
    size: usize,
    shape: AttentionShape,
    dropout: Dropout,
    /// Seeds the dropout of the first query head's weights.
    index: u32,
    relative: Option<Relative<'a>>,
}

/// A head's part of the relative positions.
struct Relative<'a> {
    values: &'a [f32],
    /// Of the first row that the sequence has, among the keys and among the queries.
    places: [Place; 2],
    buckets: &'a Buckets,
    /// The rows that it has.
    span: Range<usize>,
}

impl Relative<'_> {
    /// Room for one product with the rows, a row each.
    fn width(&self) -> usize {
        self.span.len().next_multiple_of(LANES)
    }

    /// The rows of keys (0) or of queries (1), `rows × size`.
    fn matrix(&self, which: usize, size: usize) -> Matrix<'_> {
        let Place { first, stride } = self.places[which];
        Matrix::strided(&self.values[first..], self.span.len(), size, stride)
    }
}

/// Query rows handled at once: a multiple of every tile, few enough that their weights stay in the L2.
const BLOCK: usize = 48;

thread_local! {
    /// Working memory of one thread, kept between tasks.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
                index: (sequence * shape.heads + pair_head * group) as u32,
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

impl Head<'_> {
    /// The rows of a matrix of this head in `values`, `rows × size`.
    fn matrix<'v>(&self, values: &'v [f32], place: Place, rows: usize) -> Matrix<'v> {
        Matrix::strided(&values[place.first..], rows, self.size, place.stride)
    }

    fn seed(&self, member: usize) -> u32 {
        hash(self.dropout.seed, self.index + member as u32).wrapping_mul(0x9e37_79b9)
    }

    /// Keys that the query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        self.shape.seen(i, self.query_count, self.len)
    }

    /// The keys that so many queries from the `first` on are run against: all of them, or, where there is a limit to how
    /// far they see, those that one of them sees, from the start of a panel on.
    fn met(&self, level: Level, first: usize, rows: usize) -> Range<usize> {
        if self.shape.reach.is_none() {
            return 0..self.len;
        }
        let width = panel_width(level);
        let start = self.seen(first).start / width * width;
        start..self.seen(first + rows - 1).end
    }
}

/// The place of member `member` of a group of query heads.
fn member(place: Place, member: usize, size: usize) -> Place {
    Place {
        first: place.first + member * size,
        ..place
    }
}

/// A right-hand matrix as the panels that products read: in place where its rows fill whole panels,
/// else copied into `room`.
struct Panelled {
    panel: *const f32,
    /// Between the rows of a panel, and between panels.
    strides: [usize; 2],
    columns: usize,
}

impl Panelled {
    /// Some of its columns, from the start of a panel on, in whole vectors.
    fn columns(&self, level: Level, span: &Range<usize>) -> Panelled {
        let panel = span.start / panel_width(level) * self.strides[1];
        let whole = span.len().next_multiple_of(level.lanes());
        Panelled {
            panel: self.panel.wrapping_add(panel),
            strides: self.strides,
            columns: whole.min(self.columns - span.start),
        }
    }

    /// The same without its first rows.
    fn rows(&self, first: usize) -> Panelled {
        Panelled {
            panel: self.panel.wrapping_add(first * self.strides[0]),
            ..*self
        }
    }
}

/// Room for a copy of a `rows × columns` matrix in panels.
fn panels_len(level: Level, rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(panel_width(level))
}

/// `padded` makes the columns whole vectors, zeros behind the matrix's own.
fn panelled(level: Level, matrix: Matrix<'_>, padded: bool, room: &mut [f32]) -> Panelled {
    let width = panel_width(level);
    let columns = matrix.width();
    if let (true, Some(stride)) = (columns.is_multiple_of(width), matrix.row_major()) {
        return Panelled {
            panel: matrix.at(0, 0),
            strides: [stride, width],
            columns,
        };
    }
    let rows = matrix.height();
    assert!(room.len() >= panels_len(level, rows, columns));
    let width = narrowest(level, columns);
    for first in (0..columns).step_by(width) {
        let part = matrix.columns(first, width.min(columns - first));
        // SAFETY: `room` holds all panels.
        unsafe { pack(level, part, 1.0, width, room.as_mut_ptr().add(first * rows)) };
    }
    Panelled {
        panel: room.as_ptr(),
        strides: [width, rows * width],
        columns: if padded {
            columns.next_multiple_of(level.lanes())
        } else {
            columns
        },
    }
}

/// `out (+)= left · right`; `left` in `rows` rows of `k` values with its two strides.
///
/// # Safety
/// `left` can be read and `out` written, in rows `stride` apart.
unsafe fn times(
    level: Level,
    left: (*const f32, usize, usize),
    [rows, k]: [usize; 2],
    right: &Panelled,
    (out, stride): (*mut f32, usize),
    start: Start<'_>,
) {
    let width = panel_width(level);
    for (index, first) in (0..right.columns).step_by(width).enumerate() {
        let segment = Segment {
            left: left.0,
            row_stride: left.1,
            column_stride: left.2,
            panel: right.panel.wrapping_add(index * right.strides[1]),
            panel_stride: right.strides[0],
            k,
        };
        let columns = width.min(right.columns - first);
        // SAFETY: the caller's promise.
        unsafe {
            sweep(
                level,
                rows,
                columns,
                [segment, Segment::NONE],
                out.add(first),
                stride,
                start,
            );
        }
    }
}

vectorised! {
    /// Adds to the scores, from the query `first` on, what its position gives each key, of the products of `queries` and of
    /// `keys` with the rows that the sequence has.
    fn add_positions(
        relative: &Relative<'_>,
        scores: &mut [f32],
        first: usize,
        width: usize,
        queries: &[f32],
        keys: &[f32],
    ) {
        let (wide, start) = (relative.width(), relative.span.start as u32);
        let len = keys.len() / wide;
        let rows = scores.chunks_exact_mut(width).zip(queries.chunks_exact(wide));
        for (r, (scores, query)) in rows.enumerate() {
            let buckets = relative.buckets.of_query(first + r, len);
            let of_keys = keys.chunks_exact(wide);
            for ((score, bucket), key) in scores.iter_mut().zip(buckets).zip(of_keys) {
                let at = (bucket - start) as usize;
                *score += query[at] + key[at];
            }
        }
    }
}

vectorised! {
    /// The other way round: what of the scores' `slopes` each row has, of each query and added to what of each key it had.
    fn position_slopes(
        relative: &Relative<'_>,
        slopes: &[f32],
        first: usize,
        width: usize,
        queries: &mut [f32],
        keys: &mut [f32],
    ) {
        let (wide, start) = (relative.width(), relative.span.start as u32);
        let len = keys.len() / wide;
        queries.fill(0.0);
        let rows = slopes.chunks_exact(width).zip(queries.chunks_exact_mut(wide));
        for (r, (slopes, query)) in rows.enumerate() {
            let buckets = relative.buckets.of_query(first + r, len);
            let of_keys = keys.chunks_exact_mut(wide);
            for ((slope, bucket), key) in slopes.iter().zip(buckets).zip(of_keys) {
                let at = (bucket - start) as usize;
                query[at] += slope;
                key[at] += slope;
            }
        }
    }
}

vectorised! {
    /// Scores capped in place, scaled before; `slopes`, where it is there, becomes what each changes by with its scaled score.
    fn cap_scores(head: &Head<'_>, cap: f32, scores: &mut [f32], slopes: &mut [f32]) {
        let scale = head.shape.scale / cap;
        for score in scores.iter_mut() {
            *score = tanh::<FMA>(*score * scale);
        }
        for (slope, tanh) in slopes.iter_mut().zip(&*scores) {
            *slope = fma::<FMA>(-tanh, *tanh, 1.0);
        }
        for score in scores {
            *score *= cap;
        }
    }
}

vectorised! {
    /// Softmax of scaled scores of the keys from `start` on, row by row from the query `first` on, in place; zeros around
    /// what a row sees.
    fn softmax_rows(head: &Head<'_>, scores: &mut [f32], first: usize, width: usize, start: usize) {
        // What is capped was scaled before.
        let scale = if head.shape.soft_cap.is_some() { 1.0 } else { head.shape.scale };
        for (r, row) in scores.chunks_exact_mut(width).enumerate() {
            let seen = head.seen(first + r);
            let (row, after) = row.split_at_mut(seen.end - start);
            let (before, row) = row.split_at_mut(seen.start.saturating_sub(start));
            before.fill(0.0);
            after.fill(0.0);
            let max = max_of(row);
            let inverse = 1.0 / map_sum(row, |score| exp::<FMA>((score - max) * scale));
            for weight in row.iter_mut() {
                *weight *= inverse;
            }
        }
    }
}

vectorised! {
    /// Dropout of the weights of rows from the query `first` on, and of the `met` keys.
    fn drop_weights(
        head: &Head<'_>,
        seed: u32,
        weights: &mut [f32],
        first: usize,
        width: usize,
        met: &Range<usize>,
    ) {
        let (threshold, scale) = (head.dropout.threshold(), head.dropout.scale());
        for (r, row) in weights.chunks_exact_mut(width).enumerate() {
            let position = ((first + r) * head.len + met.start) as u32;
            for (j, weight) in row[..met.len()].iter_mut().enumerate() {
                let keep = hash(seed, position.wrapping_add(j as u32)) >= threshold;
                *weight = if keep { *weight * scale } else { 0.0 };
            }
        }
    }
}

vectorised! {
    /// `dS = P ∘ (dP - Σ_j P·dP)`, scaled as the scores were, over `slopes`, which holds dP of so many keys.
    fn score_slopes(head: &Head<'_>, weights: &[f32], slopes: &mut [f32], width: usize, keys: usize) {
        let rows = weights.chunks_exact(width).zip(slopes.chunks_exact_mut(width));
        for (weights, slopes) in rows {
            slopes[keys..].fill(0.0);
            let pairs = weights.as_chunks::<LANES>().0.iter().zip(slopes.as_chunks::<LANES>().0);
            let mut lanes = [0f32; LANES];
            for (w, s) in pairs {
                for ((lane, w), s) in lanes.iter_mut().zip(w).zip(s) {
                    *lane = fma::<FMA>(*w, *s, *lane);
                }
            }
            let mean: f32 = lanes.iter().sum();
            for (slope, weight) in slopes.iter_mut().zip(weights) {
                *slope = *weight * (*slope - mean) * head.shape.scale;
            }
        }
    }
}

vectorised! {
    /// Each row's first `keys` values times those of `factors`.
    fn scale_rows(values: &mut [f32], factors: &[f32], width: usize, keys: usize) {
        let rows = values.chunks_exact_mut(width).zip(factors.chunks_exact(width));
        for (values, factors) in rows {
            for (value, factor) in values[..keys].iter_mut().zip(factors) {
                *value *= factor;
            }
        }
    }
}

/// The output of one head, into `out`.
fn forward(level: Level, head: &Head<'_>, scratch: &mut Vec<f32>, out: Disjoint) {
    let (len, size) = (head.len, head.size);
    let width = len.next_multiple_of(LANES);
    let [queries, keys, values] = head.places;
    let (span_len, span_width) = head
        .relative
        .as_ref()
        .map_or((0, 0), |relative| (relative.span.len(), relative.width()));
    let lens = [
        panels_len(level, size, len),
        panels_len(level, len, size),
        BLOCK * width,
        panels_len(level, size, span_len),
        panels_len(level, size, span_len),
        BLOCK * span_width,
        len * span_width,
    ];
    let [
        keys_room,
        values_room,
        weights,
        near_room,
        far_room,
        of_queries,
        of_keys,
    ] = cut(scratch, lens);
    let relative = head.relative.as_ref().map(|relative| {
        let room = (near_room, far_room);
        (relative, positions(level, head, relative, room, of_keys))
    });
    let keys = panelled(
        level,
        head.matrix(head.pairs, keys, len).t(),
        true,
        keys_room,
    );
    let values = panelled(
        level,
        head.matrix(head.pairs, values, len),
        false,
        values_room,
    );
    for of in 0..head.group {
        let (queries, output) = (member(queries, of, size), member(head.output, of, size));
        let seed = head.seed(of);
        for first in (0..head.query_count).step_by(BLOCK) {
            let rows = BLOCK.min(head.query_count - first);
            let met = head.met(level, first, rows);
            let width = met.len().next_multiple_of(LANES);
            let weights = &mut weights[..rows * width];
            let left = head.queries[queries.first + first * queries.stride..].as_ptr();
            // SAFETY: the block's rows of this head, which is nobody else's to write.
            unsafe {
                let to = (weights.as_mut_ptr(), width);
                times(
                    level,
                    (left, queries.stride, 1),
                    [rows, size],
                    &keys.columns(level, &met),
                    to,
                    Start::Zero,
                );
            }
            if let Some((relative, of_rows)) = &relative {
                let of_queries = &mut of_queries[..rows * span_width];
                // SAFETY: as above, into rows of this task's own.
                unsafe {
                    let to = (of_queries.as_mut_ptr(), span_width);
                    let left = (left, queries.stride, 1);
                    times(level, left, [rows, size], of_rows, to, Start::Zero);
                }
                add_positions(relative, weights, first, width, of_queries, of_keys);
            }
            if let Some(cap) = head.shape.soft_cap {
                cap_scores(head, cap, weights, &mut []);
            }
            softmax_rows(head, weights, first, width, met.start);
            if !head.dropout.is_none() {
                drop_weights(head, seed, weights, first, width, &met);
            }
            // SAFETY: as above.
            unsafe {
                let to = out.pointer(output.first + first * output.stride);
                times(
                    level,
                    (weights.as_ptr(), width, 1),
                    [rows, met.len()],
                    &values.rows(met.start),
                    (to, output.stride),
                    Start::Zero,
                );
            }
        }
    }
}

/// The keys of the relative positions as the panels that queries are run against, and in `of_keys` the products of the
/// sequence's keys with the positions' queries.
fn positions(
    level: Level,
    head: &Head<'_>,
    relative: &Relative<'_>,
    (keys_room, queries_room): (&mut [f32], &mut [f32]),
    of_keys: &mut [f32],
) -> Panelled {
    let rows = panelled(level, relative.matrix(1, head.size).t(), true, queries_room);
    let keys = head.matrix(head.pairs, head.places[1], head.len);
    // SAFETY: the keys' own rows, into as many of `of_keys`.
    unsafe {
        let to = (of_keys.as_mut_ptr(), relative.width());
        let left = (keys.at(0, 0), head.places[1].stride, 1);
        times(level, left, [head.len, head.size], &rows, to, Start::Zero);
    }
    panelled(level, relative.matrix(0, head.size).t(), true, keys_room)
}

/// `scratch` cut into parts of these lengths.
fn cut<const N: usize>(scratch: &mut Vec<f32>, lens: [usize; N]) -> [&mut [f32]; N] {
    let all: usize = lens.iter().sum();
    if scratch.len() < all {
        scratch.resize(all, 0.0);
    }
    let mut rest = scratch.as_mut_slice();
    lens.map(|len| rest.split_off_mut(..len).expect("room for every part"))
}

/// The gradients of one head's queries, keys and values, into `out`.
fn head_backward(
    level: Level,
    head: &Head<'_>,
    scratch: &mut Vec<f32>,
    gradient: &[f32],
    out: [Disjoint; 4],
) {
    let (len, size) = (head.len, head.size);
    let width = len.next_multiple_of(LANES);
    let wide = panels_len(level, size, len);
    let tall = panels_len(level, len, size);
    let block = panels_len(level, BLOCK, size);
    let weights_len = BLOCK * width;
    let caps_len = head.shape.soft_cap.map_or(0, |_| weights_len);
    let (span_len, span_width) = head
        .relative
        .as_ref()
        .map_or((0, 0), |relative| (relative.span.len(), relative.width()));
    let lens = [
        wide,
        wide,
        tall,
        block,
        block,
        weights_len,
        weights_len,
        weights_len,
        caps_len,
        panels_len(level, size, span_len),
        panels_len(level, size, span_len),
        panels_len(level, span_len, size),
        panels_len(level, span_len, size),
        BLOCK * span_width,
        len * span_width,
        len * span_width,
    ];
    let [
        keys_room,
        values_room,
        rows_room,
        queries_room,
        gradient_room,
        weights,
        dropped,
        slopes,
        caps,
        near_room,
        far_room,
        near_rows,
        far_rows,
        of_queries,
        of_keys,
        back_to_keys,
    ] = cut(scratch, lens);
    back_to_keys.fill(0.0);
    let relative = head.relative.as_ref().map(|relative| {
        let room = (near_room, far_room);
        let of_rows = positions(level, head, relative, room, of_keys);
        let keys = panelled(level, relative.matrix(0, size), false, near_rows);
        (relative, of_rows, keys)
    });
    let [queries, keys, values] = head.places;
    let key_rows = head.matrix(head.pairs, keys, len);
    let key_columns = panelled(level, key_rows.t(), true, keys_room);
    let value_columns = panelled(
        level,
        head.matrix(head.pairs, values, len).t(),
        true,
        values_room,
    );
    let key_rows = panelled(level, key_rows, false, rows_room);
    // SAFETY: this head's columns of the sequence's rows are nobody else's to write.
    let to = |which: usize, place: Place, row: usize| unsafe {
        (
            out[which].pointer(place.first + row * place.stride),
            place.stride,
        )
    };
    let nothing = |which: usize, place: Place| {
        for row in 0..len {
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(to(which, place, row).0, size) }.fill(0.0);
        }
    };
    let mut start = Start::Zero;
    // Some keys may meet no query, and no block of queries may meet them all.
    if head.query_count == 0 || head.shape.reach.is_some() {
        nothing(1, keys);
        nothing(2, values);
        start = Start::Sum;
    }
    for of in 0..head.group {
        let (queries, output) = (member(queries, of, size), member(head.output, of, size));
        let seed = head.seed(of);
        for first in (0..head.query_count).step_by(BLOCK) {
            let rows = BLOCK.min(head.query_count - first);
            let met = head.met(level, first, rows);
            let width = met.len().next_multiple_of(LANES);
            let [weights, dropped, slopes] =
                [&mut *weights, &mut *dropped, &mut *slopes].map(|part| &mut part[..rows * width]);
            let query_at = queries.first + first * queries.stride;
            let gradient_at = output.first + first * output.stride;
            let query_block =
                Matrix::strided(&head.queries[query_at..], rows, size, queries.stride);
            let gradient_block =
                Matrix::strided(&gradient[gradient_at..], rows, size, output.stride);
            // P, and P after dropout; dP = dO·Vᵀ, through the dropout.
            // SAFETY: here and below, the block's own rows, read and written within their parts.
            unsafe {
                times(
                    level,
                    (query_block.at(0, 0), queries.stride, 1),
                    [rows, size],
                    &key_columns.columns(level, &met),
                    (weights.as_mut_ptr(), width),
                    Start::Zero,
                );
                times(
                    level,
                    (gradient_block.at(0, 0), output.stride, 1),
                    [rows, size],
                    &value_columns.columns(level, &met),
                    (slopes.as_mut_ptr(), width),
                    Start::Zero,
                );
            }
            if let Some((relative, of_rows, _)) = &relative {
                let of_queries = &mut of_queries[..rows * span_width];
                // SAFETY: as above.
                unsafe {
                    let to = (of_queries.as_mut_ptr(), span_width);
                    let left = (query_block.at(0, 0), queries.stride, 1);
                    times(level, left, [rows, size], of_rows, to, Start::Zero);
                }
                add_positions(relative, weights, first, width, of_queries, of_keys);
            }
            if let Some(cap) = head.shape.soft_cap {
                cap_scores(head, cap, weights, &mut caps[..rows * width]);
            }
            softmax_rows(head, weights, first, width, met.start);
            let dropped = if head.dropout.is_none() {
                &*weights
            } else {
                dropped.copy_from_slice(weights);
                drop_weights(head, seed, dropped, first, width, &met);
                drop_weights(head, seed, slopes, first, width, &met);
                &*dropped
            };
            score_slopes(head, weights, slopes, width, met.len());
            if head.shape.soft_cap.is_some() {
                scale_rows(slopes, caps, width, met.len());
            }
            let query_block = panelled(level, query_block, false, queries_room);
            let gradient_block = panelled(level, gradient_block, false, gradient_room);
            // dQ = dS·K; dK += dSᵀ·Q and dV += Pᵀ·dO.
            // SAFETY: as above.
            unsafe {
                times(
                    level,
                    (slopes.as_ptr(), width, 1),
                    [rows, met.len()],
                    &key_rows.rows(met.start),
                    to(0, queries, first),
                    Start::Zero,
                );
                times(
                    level,
                    (slopes.as_ptr(), 1, width),
                    [met.len(), rows],
                    &query_block,
                    to(1, keys, met.start),
                    start,
                );
                times(
                    level,
                    (dropped.as_ptr(), 1, width),
                    [met.len(), rows],
                    &gradient_block,
                    to(2, values, met.start),
                    start,
                );
            }
            start = Start::Sum;
            if let Some((relative, _, keys)) = &relative {
                let of_queries = &mut of_queries[..rows * span_width];
                position_slopes(relative, slopes, first, width, of_queries, back_to_keys);
                // dQ += G·P_k and dP_k += Gᵀ·Q.
                // SAFETY: as above; this head's positions are nobody else's to add to.
                unsafe {
                    let left = (of_queries.as_ptr(), span_width, 1);
                    let to_queries = to(0, queries, first);
                    times(level, left, [rows, span_len], keys, to_queries, Start::Sum);
                    let left = (of_queries.as_ptr(), 1, span_width);
                    let to_keys = to(3, relative.places[0], 0);
                    times(
                        level,
                        left,
                        [span_len, rows],
                        &query_block,
                        to_keys,
                        Start::Sum,
                    );
                }
            }
        }
    }
    if let Some((relative, ..)) = &relative {
        let queries = panelled(level, relative.matrix(1, size), false, far_rows);
        // dK += H·P_q and dP_q += Hᵀ·K.
        // SAFETY: as above.
        unsafe {
            let left = (back_to_keys.as_ptr(), span_width, 1);
            times(
                level,
                left,
                [len, span_len],
                &queries,
                to(1, keys, 0),
                Start::Sum,
            );
            let left = (back_to_keys.as_ptr(), 1, span_width);
            let to_queries = to(3, relative.places[1], 0);
            times(
                level,
                left,
                [span_len, len],
                &key_rows,
                to_queries,
                Start::Sum,
            );
        }
    }
}
