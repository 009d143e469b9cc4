//! The gradients of a head's queries, keys, values and relative positions, block by block of its queries.

use super::super::cpu::Disjoint;
use super::super::gemm::Start;
use super::super::matrix::Matrix;
use super::super::simd::{LANES, Level};
use super::forward::{BLOCK, Block, Positions, weigh};
use super::head::{Head, Panelled, Place, cut, member, panelled, panels_len, times};
use super::rows::{drop_weights, position_slopes, scale_rows, score_slopes};

/// Where gradients go: of queries, keys, values and positions.
#[derive(Clone, Copy)]
struct Gradients([Disjoint; 4]);

impl Gradients {
    /// The `row` of a place, and how far apart rows are.
    ///
    /// # Safety
    /// The place is this task's own to write.
    unsafe fn to(self, which: usize, place: Place, row: usize) -> (*mut f32, usize) {
        // SAFETY: the caller's promise.
        let row = unsafe { self.0[which].pointer(place.first + row * place.stride) };
        (row, place.stride)
    }

    /// Zeros for each of so many rows.
    ///
    /// # Safety
    /// As of [`to`](Self::to).
    unsafe fn nothing(self, which: usize, place: Place, [rows, size]: [usize; 2]) {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.to(which, place, row).0, size) }.fill(0.0);
        }
    }
}

/// What every block of a head is run against.
struct Right<'a> {
    keys: Panelled,
    values: Panelled,
    key_rows: Panelled,
    positions: Option<(Positions<'a>, Panelled)>,
}

/// Working memory of a block.
struct Rooms<'a> {
    queries: &'a mut [f32],
    gradient: &'a mut [f32],
    weights: &'a mut [f32],
    dropped: &'a mut [f32],
    slopes: &'a mut [f32],
    caps: &'a mut [f32],
    of_queries: &'a mut [f32],
    /// What of the scores' slopes each position of each key has, summed up over blocks.
    back_to_keys: &'a mut [f32],
}

/// How long the parts of a head's working memory are, in the order in which [`backward`] cuts them.
fn lens(level: Level, head: &Head<'_>) -> [usize; 16] {
    let (len, size) = (head.len, head.size);
    let wide = panels_len(level, size, len);
    let tall = panels_len(level, len, size);
    let block = panels_len(level, BLOCK, size);
    let weights = BLOCK * len.next_multiple_of(LANES);
    let [span_len, span_width] = head.span();
    let span_wide = panels_len(level, size, span_len);
    let span_tall = panels_len(level, span_len, size);
    [
        wide,
        wide,
        tall,
        span_wide,
        span_wide,
        span_tall,
        span_tall,
        len * span_width,
        len * span_width,
        block,
        block,
        weights,
        weights,
        weights,
        head.shape.soft_cap.map_or(0, |_| weights),
        BLOCK * span_width,
    ]
}

impl<'a> Right<'a> {
    /// Lays out a head's keys and values, and its positions if it has them, each part in a room of its own.
    fn new(level: Level, head: &'a Head<'a>, rooms: [&'a mut [f32]; 7]) -> Self {
        let [keys, values, rows, near, far, near_rows, of_keys] = rooms;
        let (len, size) = (head.len, head.size);
        let [_, of_pairs @ ..] = head.places;
        let [key_rows, value_rows] = of_pairs.map(|place| head.matrix(head.pairs, place, len));
        Right {
            keys: panelled(level, key_rows.t(), true, keys),
            values: panelled(level, value_rows.t(), true, values),
            key_rows: panelled(level, key_rows, false, rows),
            positions: head.relative.as_ref().map(|relative| {
                let positions = Positions::new(level, head, relative, [near, far], of_keys);
                let keys = panelled(level, relative.matrix(0, size), false, near_rows);
                (positions, keys)
            }),
        }
    }
}

/// The gradients of one head's queries, keys and values, into `out`.
pub(super) fn backward(
    level: Level,
    head: &Head<'_>,
    scratch: &mut Vec<f32>,
    gradient: &[f32],
    out: [Disjoint; 4],
) {
    let [
        keys,
        values,
        rows,
        near,
        far,
        near_rows,
        far_rows,
        of_keys,
        back_to_keys,
        queries,
        gradient_room,
        weights,
        dropped,
        slopes,
        caps,
        of_queries,
    ] = cut(scratch, lens(level, head));
    back_to_keys.fill(0.0);
    let laid_out = [keys, values, rows, near, far, near_rows, of_keys];
    let right = Right::new(level, head, laid_out);
    let mut rooms = Rooms {
        queries,
        gradient: gradient_room,
        weights,
        dropped,
        slopes,
        caps,
        of_queries,
        back_to_keys,
    };
    let out = Gradients(out);
    let mut start = cleared(head, out);
    let ([queries, ..], size) = (head.places, head.size);
    for of in 0..head.group {
        let places = [queries, head.output].map(|place| member(place, of, size));
        for block in Block::all(level, head) {
            let rows = |values, place: Place, stride| {
                let values: &[f32] = values;
                let first = place.first + block.first * place.stride;
                Matrix::strided(&values[first..], block.rows, size, stride)
            };
            let left = [
                rows(head.queries, places[0], queries.stride),
                rows(gradient, places[1], head.output.stride),
            ];
            of_block(
                level,
                head,
                &block,
                (of, places, left),
                &right,
                &mut rooms,
                (out, start),
            );
            start = Start::Sum;
        }
    }
    if right.positions.is_some() {
        of_positions(level, head, &right, (rooms.back_to_keys, far_rows), out);
    }
}

/// What the first products are added to. Some keys may meet no query, and no block of queries may meet them all: they are
/// cleared then.
fn cleared(head: &Head<'_>, out: Gradients) -> Start<'static> {
    if head.query_count > 0 && head.shape.reach.is_none() {
        return Start::Zero;
    }
    let ([_, keys, values], rows) = (head.places, [head.len, head.size]);
    // SAFETY: this head's columns of the sequence's rows are nobody else's to write.
    unsafe {
        out.nothing(1, keys, rows);
        out.nothing(2, values, rows);
    }
    Start::Sum
}

/// What the positions' queries give the keys, and take from them, when all blocks have been run.
fn of_positions(
    level: Level,
    head: &Head<'_>,
    right: &Right<'_>,
    (back_to_keys, room): (&[f32], &mut [f32]),
    out: Gradients,
) {
    let Some((positions, _)) = &right.positions else {
        return;
    };
    let ([_, keys, _], len) = (head.places, head.len);
    let [span_len, span_width] = head.span();
    let relative = positions.relative;
    let queries = panelled(level, relative.matrix(1, head.size), false, room);
    let back = back_to_keys.as_ptr();
    // dK += H·P_q and dP_q += Hᵀ·K.
    // SAFETY: this head's columns of the sequence's rows, and its positions, are nobody else's to add to.
    unsafe {
        let to_keys = out.to(1, keys, 0);
        let left = (back, span_width, 1);
        times(level, left, [len, span_len], &queries, to_keys, Start::Sum);
        let to_queries = out.to(3, relative.places[1], 0);
        let (left, sizes) = ((back, 1, span_width), [span_len, len]);
        times(level, left, sizes, &right.key_rows, to_queries, Start::Sum);
    }
}

/// P of a block of queries, P after dropout, and how the loss changes with the scores, into their rooms: `lefts` are the
/// queries and the gradients of their outputs, with how far apart they are.
fn weigh_block(
    level: Level,
    head: &Head<'_>,
    block: &Block,
    (of, lefts): (usize, [(*const f32, usize); 2]),
    right: &Right<'_>,
    rooms: &mut Rooms<'_>,
) {
    let Block {
        first,
        rows,
        width,
        ref met,
    } = *block;
    let [weights, dropped, slopes] = [&mut *rooms.weights, &mut *rooms.dropped, &mut *rooms.slopes]
        .map(|part| &mut part[..rows * width]);
    let caps = match head.shape.soft_cap {
        Some(_) => &mut rooms.caps[..rows * width],
        None => &mut [],
    };
    let positions = right
        .positions
        .as_ref()
        .map(|(it, _)| (it, &mut *rooms.of_queries));
    let into = [&mut *weights, &mut *caps];
    weigh(level, head, block, lefts[0], &right.keys, positions, into);
    // dP = dO·Vᵀ, through the dropout.
    // SAFETY: the block's own rows, read and written within their parts.
    unsafe {
        let to = (slopes.as_mut_ptr(), width);
        let left = (lefts[1].0, lefts[1].1, 1);
        let values = right.values.columns(level, met);
        times(level, left, [rows, head.size], &values, to, Start::Zero);
    }
    if !head.dropout.is_none() {
        let seed = head.seed(of);
        dropped.copy_from_slice(weights);
        drop_weights(head, seed, dropped, first, width, met);
        drop_weights(head, seed, slopes, first, width, met);
    }
    score_slopes(head, weights, slopes, width, met.len());
    if head.shape.soft_cap.is_some() {
        scale_rows(slopes, caps, width, met.len());
    }
}

/// What a block of queries, those of member `of` of the group, adds: `left` are its queries and the gradients of its
/// outputs, which lie at `places`.
fn of_block(
    level: Level,
    head: &Head<'_>,
    block: &Block,
    (of, places, left): (usize, [Place; 2], [Matrix<'_>; 2]),
    right: &Right<'_>,
    rooms: &mut Rooms<'_>,
    (out, start): (Gradients, Start<'_>),
) {
    let Block {
        first,
        rows,
        width,
        ref met,
    } = *block;
    let lefts = [0, 1].map(|which| (left[which].at(0, 0), places[which].stride));
    weigh_block(level, head, block, (of, lefts), right, rooms);
    let dropped = match head.dropout.is_none() {
        true => rooms.weights.as_ptr(),
        false => rooms.dropped.as_ptr(),
    };
    let [queries, gradient] = left;
    let queries = panelled(level, queries, false, rooms.queries);
    let gradient = panelled(level, gradient, false, rooms.gradient);
    let slopes = rooms.slopes.as_ptr();
    let (across, down) = ((slopes, width, 1), (slopes, 1, width));
    let [_, keys, values] = head.places;
    // dQ = dS·K; dK += dSᵀ·Q and dV += Pᵀ·dO.
    // SAFETY: the block's own rows of the working memory; this head's columns of the sequence's rows are nobody else's to
    // write.
    unsafe {
        let (to, key_rows) = (out.to(0, places[0], first), right.key_rows.rows(met.start));
        times(level, across, [rows, met.len()], &key_rows, to, Start::Zero);
        let to = out.to(1, keys, met.start);
        times(level, down, [met.len(), rows], &queries, to, start);
        let (left, to) = ((dropped, 1, width), out.to(2, values, met.start));
        times(level, left, [met.len(), rows], &gradient, to, start);
    }
    if right.positions.is_some() {
        positions_of_block(level, head, block, (places[0], &queries), right, rooms, out);
    }
}

/// What a block adds by the positions' keys, once its scores' slopes are in their room; what it adds by their queries is
/// summed up.
fn positions_of_block(
    level: Level,
    head: &Head<'_>,
    block: &Block,
    (place, queries): (Place, &Panelled),
    right: &Right<'_>,
    rooms: &mut Rooms<'_>,
    out: Gradients,
) {
    let Some((positions, keys)) = &right.positions else {
        return;
    };
    let Block {
        first, rows, width, ..
    } = *block;
    let relative = positions.relative;
    let [span_len, span_width] = head.span();
    let of_queries = &mut rooms.of_queries[..rows * span_width];
    let slopes = &mut rooms.slopes[..rows * width];
    let back = &mut *rooms.back_to_keys;
    position_slopes(relative, slopes, first, width, of_queries, back);
    // dQ += G·P_k and dP_k += Gᵀ·Q.
    // SAFETY: as of `of_block`; this head's positions are nobody else's to add to.
    unsafe {
        let (left, to) = (
            (of_queries.as_ptr(), span_width, 1),
            out.to(0, place, first),
        );
        times(level, left, [rows, span_len], keys, to, Start::Sum);
        let (left, to) = (
            (of_queries.as_ptr(), 1, span_width),
            out.to(3, relative.places[0], 0),
        );
        times(level, left, [span_len, rows], queries, to, Start::Sum);
    }
}
