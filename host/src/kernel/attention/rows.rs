//! What is done to rows of scores and weights.

use std::ops::Range;

use super::super::dropout::hash;
use super::super::simd::{LANES, exp, fma, map_sum, max_of, tanh, vectorised};
use super::head::{Head, Relative};

vectorised! {
    /// Adds to the scores, from the query `first` on, what its position gives each key, of the products of `queries` and of
    /// `keys` with the rows that the sequence has.
    pub(super) fn add_positions(
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
    pub(super) fn position_slopes(
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
    pub(super) fn cap_scores(head: &Head<'_>, cap: f32, scores: &mut [f32], slopes: &mut [f32]) {
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
    pub(super) fn softmax_rows(head: &Head<'_>, scores: &mut [f32], first: usize, width: usize, start: usize) {
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
    pub(super) fn drop_weights(
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
    pub(super) fn score_slopes(head: &Head<'_>, weights: &[f32], slopes: &mut [f32], width: usize, keys: usize) {
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
    pub(super) fn scale_rows(values: &mut [f32], factors: &[f32], width: usize, keys: usize) {
        let rows = values.chunks_exact_mut(width).zip(factors.chunks_exact(width));
        for (values, factors) in rows {
            for (value, factor) in values[..keys].iter_mut().zip(factors) {
                *value *= factor;
            }
        }
    }
}
