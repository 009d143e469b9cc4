//! Softmax attention within packed sequences: what meets what, and two ways to compute it.

mod backward;
mod composed;
mod cpu;
mod forward;
mod head;
mod rows;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use burn_backend::Backend;

use super::{Ad, Kernels};
use composed::Rectangle;
pub use composed::composed;
pub use cpu::cpu;

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
