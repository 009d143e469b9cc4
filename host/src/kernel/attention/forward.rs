//! A head's output, block by block of its queries.

use std::ops::Range;

use super::super::cpu::Disjoint;
use super::super::gemm::Start;
use super::super::simd::{LANES, Level};
use super::head::{Head, Panelled, Relative, cut, member, panelled, panels_len, times};
use super::rows::{add_positions, cap_scores, drop_weights, softmax_rows};

/// Query rows handled at once: a multiple of every tile, few enough that their weights stay in the L2.
pub(super) const BLOCK: usize = 48;

/// Some queries of a head, and the keys that they are run against.
pub(super) struct Block {
    pub first: usize,
    pub rows: usize,
    pub met: Range<usize>,
    /// Of a row of weights: the keys in whole vectors.
    pub width: usize,
}

impl Block {
    /// All queries of a head, in blocks.
    pub fn all(level: Level, head: &Head<'_>) -> impl Iterator<Item = Block> {
        (0..head.query_count).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(head.query_count - first);
            let met = head.met(level, first, rows);
            let width = met.len().next_multiple_of(LANES);
            Block {
                first,
                rows,
                met,
                width,
            }
        })
    }
}

/// What relative positions give scores.
pub(super) struct Positions<'a> {
    pub relative: &'a Relative<'a>,
    /// The positions' keys, as queries are run against them.
    columns: Panelled,
    /// Products of the sequence's keys with the positions' queries, a row each.
    of_keys: &'a [f32],
}

impl<'a> Positions<'a> {
    pub fn new(
        level: Level,
        head: &Head<'_>,
        relative: &'a Relative<'a>,
        [keys_room, queries_room]: [&mut [f32]; 2],
        of_keys: &'a mut [f32],
    ) -> Self {
        let rows = panelled(level, relative.matrix(1, head.size).t(), true, queries_room);
        let keys = head.matrix(head.pairs, head.places[1], head.len);
        // SAFETY: the keys' own rows, into as many of `of_keys`.
        unsafe {
            let to = (of_keys.as_mut_ptr(), relative.width());
            let left = (keys.at(0, 0), head.places[1].stride, 1);
            times(level, left, [head.len, head.size], &rows, to, Start::Zero);
        }
        Positions {
            relative,
            columns: panelled(level, relative.matrix(0, head.size).t(), true, keys_room),
            of_keys,
        }
    }
}

/// The softmax of a block's scores: `left` are its queries, with how far apart they are. `of_queries` is room for
/// their products with positions; of the last two, `caps` becomes what a capped score changes by with its scaled one, where it is there.
pub(super) fn weigh(
    level: Level,
    head: &Head<'_>,
    block: &Block,
    left: (*const f32, usize),
    keys: &Panelled,
    positions: Option<(&Positions<'_>, &mut [f32])>,
    [weights, caps]: [&mut [f32]; 2],
) {
    let sizes = [block.rows, head.size];
    let left = (left.0, left.1, 1);
    // SAFETY: here and below, the block's own rows, into rows of this task's own.
    unsafe {
        let to = (weights.as_mut_ptr(), block.width);
        let columns = keys.columns(level, &block.met);
        times(level, left, sizes, &columns, to, Start::Zero);
    }
    if let Some((positions, of_queries)) = positions {
        let span_width = positions.relative.width();
        let of_queries = &mut of_queries[..block.rows * span_width];
        // SAFETY: as above.
        unsafe {
            let to = (of_queries.as_mut_ptr(), span_width);
            times(level, left, sizes, &positions.columns, to, Start::Zero);
        }
        let (relative, of_keys) = (positions.relative, positions.of_keys);
        add_positions(
            relative,
            weights,
            block.first,
            block.width,
            of_queries,
            of_keys,
        );
    }
    if let Some(cap) = head.shape.soft_cap {
        cap_scores(head, cap, weights, caps);
    }
    softmax_rows(head, weights, block.first, block.width, block.met.start);
}

/// The output of one head, into `out`.
pub(super) fn forward(level: Level, head: &Head<'_>, scratch: &mut Vec<f32>, out: Disjoint) {
    let (len, size) = (head.len, head.size);
    let [span_len, span_width] = head.span();
    let lens = [
        panels_len(level, size, len),
        panels_len(level, len, size),
        BLOCK * len.next_multiple_of(LANES),
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
    let positions = head.relative.as_ref().map(|relative| {
        let rooms = [near_room, far_room];
        Positions::new(level, head, relative, rooms, of_keys)
    });
    let [queries, keys, values] = head.places;
    let keys = head.matrix(head.pairs, keys, len).t();
    let keys = panelled(level, keys, true, keys_room);
    let values = head.matrix(head.pairs, values, len);
    let values = panelled(level, values, false, values_room);
    for of in 0..head.group {
        let (queries, output) = (member(queries, of, size), member(head.output, of, size));
        for block in Block::all(level, head) {
            let weights = &mut weights[..block.rows * block.width];
            let left = head.queries[queries.first + block.first * queries.stride..].as_ptr();
            let left = (left, queries.stride);
            let positions = positions.as_ref().map(|it| (it, &mut *of_queries));
            weigh(
                level,
                head,
                &block,
                left,
                &keys,
                positions,
                [weights, &mut []],
            );
            if !head.dropout.is_none() {
                let (seed, met) = (head.seed(of), &block.met);
                drop_weights(head, seed, weights, block.first, block.width, met);
            }
            // SAFETY: the block's rows of this head, which is nobody else's to write.
            unsafe {
                let to = out.pointer(output.first + block.first * output.stride);
                let (to, left) = ((to, output.stride), (weights.as_ptr(), block.width, 1));
                let sizes = [block.rows, block.met.len()];
                let values = values.rows(block.met.start);
                times(level, left, sizes, &values, to, Start::Zero);
            }
        }
    }
}
