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

/// The gradients of one head's queries, keys and values, into `out`.
pub(super) fn backward(
    level: Level,
    head: &Head<'_>,
    scratch: &mut Vec<f32>,
    gradient: &[f32],
    out: [Disjoint; 4],
) {
    let (len, size) = (head.len, head.size);
    let wide = panels_len(level, size, len);
    let tall = panels_len(level, len, size);
    let block = panels_len(level, BLOCK, size);
    let weights_len = BLOCK * len.next_multiple_of(LANES);
    let [span_len, span_width] = head.span();
    let span_wide = panels_len(level, size, span_len);
    let span_tall = panels_len(level, span_len, size);
    let lens = [
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
        weights_len,
        weights_len,
        weights_len,
        head.shape.soft_cap.map_or(0, |_| weights_len),
        BLOCK * span_width,
    ];
    let [
        keys_room,
        values_room,
        rows_room,
        near_room,
        far_room,
        near_rows,
        far_rows,
        of_keys,
        back_to_keys,
        queries_room,
        gradient_room,
        weights,
        dropped,
        slopes,
        caps,
        of_queries,
    ] = cut(scratch, lens);
    back_to_keys.fill(0.0);
    let [queries, keys, values] = head.places;
    let key_rows = head.matrix(head.pairs, keys, len);
    let value_rows = head.matrix(head.pairs, values, len);
    let right = Right {
        keys: panelled(level, key_rows.t(), true, keys_room),
        values: panelled(level, value_rows.t(), true, values_room),
        key_rows: panelled(level, key_rows, false, rows_room),
        positions: head.relative.as_ref().map(|relative| {
            let rooms = [near_room, far_room];
            let positions = Positions::new(level, head, relative, rooms, of_keys);
            let keys = panelled(level, relative.matrix(0, size), false, near_rows);
            (positions, keys)
        }),
    };
    let mut rooms = Rooms {
        queries: queries_room,
        gradient: gradient_room,
        weights,
        dropped,
        slopes,
        caps,
        of_queries,
        back_to_keys,
    };
    let out = Gradients(out);
    let mut start = Start::Zero;
    // Some keys may meet no query, and no block of queries may meet them all.
    if head.query_count == 0 || head.shape.reach.is_some() {
        // SAFETY: this head's columns of the sequence's rows are nobody else's to write.
        unsafe {
            out.nothing(1, keys, [len, size]);
            out.nothing(2, values, [len, size]);
        }
        start = Start::Sum;
    }
    for of in 0..head.group {
        let places = [queries, head.output].map(|place| member(place, of, size));
        for block in Block::all(level, head) {
            let at = |place: Place| place.first + block.first * place.stride;
            let left = [
                Matrix::strided(
                    &head.queries[at(places[0])..],
                    block.rows,
                    size,
                    queries.stride,
                ),
                Matrix::strided(
                    &gradient[at(places[1])..],
                    block.rows,
                    size,
                    head.output.stride,
                ),
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
    if let Some((positions, _)) = &right.positions {
        let relative = positions.relative;
        let queries = panelled(level, relative.matrix(1, size), false, far_rows);
        let back = rooms.back_to_keys.as_ptr();
        // dK += H·P_q and dP_q += Hᵀ·K.
        // SAFETY: as above; this head's positions are nobody else's to add to.
        unsafe {
            let to_keys = out.to(1, keys, 0);
            let left = (back, span_width, 1);
            times(level, left, [len, span_len], &queries, to_keys, Start::Sum);
            let to_queries = out.to(3, relative.places[1], 0);
            let (left, sizes) = ((back, 1, span_width), [span_len, len]);
            times(level, left, sizes, &right.key_rows, to_queries, Start::Sum);
        }
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
    let size = head.size;
    let [weights, dropped, slopes] = [&mut *rooms.weights, &mut *rooms.dropped, &mut *rooms.slopes]
        .map(|part| &mut part[..rows * width]);
    let caps = match head.shape.soft_cap {
        Some(_) => &mut rooms.caps[..rows * width],
        None => &mut [],
    };
    // P, and P after dropout; dP = dO·Vᵀ, through the dropout.
    let lefts = [0, 1].map(|which| (left[which].at(0, 0), places[which].stride));
    let positions = right
        .positions
        .as_ref()
        .map(|(it, _)| (it, &mut *rooms.of_queries));
    weigh(
        level,
        head,
        block,
        lefts[0],
        &right.keys,
        positions,
        [weights, caps],
    );
    // SAFETY: here and below, the block's own rows, read and written within their parts.
    unsafe {
        let to = (slopes.as_mut_ptr(), width);
        let (left, values) = (
            (lefts[1].0, lefts[1].1, 1),
            right.values.columns(level, met),
        );
        times(level, left, [rows, size], &values, to, Start::Zero);
    }
    let dropped = if head.dropout.is_none() {
        &*weights
    } else {
        let seed = head.seed(of);
        dropped.copy_from_slice(weights);
        drop_weights(head, seed, dropped, first, width, met);
        drop_weights(head, seed, slopes, first, width, met);
        &*dropped
    };
    score_slopes(head, weights, slopes, width, met.len());
    if head.shape.soft_cap.is_some() {
        scale_rows(slopes, caps, width, met.len());
    }
    let [queries, gradient] = left;
    let queries = panelled(level, queries, false, rooms.queries);
    let gradient = panelled(level, gradient, false, rooms.gradient);
    let (across, down) = ((slopes.as_ptr(), width, 1), (slopes.as_ptr(), 1, width));
    let [_, keys, values] = head.places;
    // dQ = dS·K; dK += dSᵀ·Q and dV += Pᵀ·dO.
    // SAFETY: as above; this head's columns of the sequence's rows are nobody else's to write.
    unsafe {
        let (to, key_rows) = (out.to(0, places[0], first), right.key_rows.rows(met.start));
        times(level, across, [rows, met.len()], &key_rows, to, Start::Zero);
        let to = out.to(1, keys, met.start);
        times(level, down, [met.len(), rows], &queries, to, start);
        let (left, to) = ((dropped.as_ptr(), 1, width), out.to(2, values, met.start));
        times(level, left, [met.len(), rows], &gradient, to, start);
    }
    let Some((positions, keys)) = &right.positions else {
        return;
    };
    let relative = positions.relative;
    let [span_len, span_width] = head.span();
    let of_queries = &mut rooms.of_queries[..rows * span_width];
    position_slopes(
        relative,
        slopes,
        first,
        width,
        of_queries,
        rooms.back_to_keys,
    );
    // dQ += G·P_k and dP_k += Gᵀ·Q.
    // SAFETY: as above; this head's positions are nobody else's to add to.
    unsafe {
        let (left, to) = (
            (of_queries.as_ptr(), span_width, 1),
            out.to(0, places[0], first),
        );
        times(level, left, [rows, span_len], keys, to, Start::Sum);
        let (left, to) = (
            (of_queries.as_ptr(), 1, span_width),
            out.to(3, relative.places[0], 0),
        );
        times(level, left, [span_len, rows], &queries, to, Start::Sum);
    }
}
