//! Dropout whose mask is a function of a seed and a position, computed again in the backward pass
//! instead of stored, and the same for every number of threads.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub mod gpu;

use burn::tensor::{Int, Tensor, TensorData};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::into_values;
use super::record::{input, is_tracked, plain, record, unwrap};
use super::simd::vectorised;
use super::{Ad, Kernels};

/// A dropout site: probability and the seed of its mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in [0, 1).
    pub probability: f32,
    /// Decides the mask, together with an element's position.
    pub seed: u32,
    /// How many rows lie before the first, or how many sequences before the first of attention's: more than none in a
    /// part of a batch, which drops what the whole one drops of it.
    pub first: u32,
}

impl Dropout {
    /// No dropout: evaluation, or p = 0.
    pub const NONE: Dropout = Dropout {
        probability: 0.0,
        seed: 0,
        first: 0,
    };

    /// Whether anything is dropped at all.
    pub fn is_none(self) -> bool {
        self.probability <= 0.0
    }

    /// What kept elements are multiplied by.
    #[inline(always)]
    pub fn scale(self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// Elements whose 24-bit hash is below this are dropped.
    #[inline(always)]
    pub fn threshold(self) -> u32 {
        (self.probability as f64 * (1u32 << 24) as f64) as u32
    }
}

/// A 24-bit hash of a position under a seed: the finaliser of MurmurHash3.
#[inline(always)]
pub fn hash(seed: u32, position: u32) -> u32 {
    let mut h = position ^ seed;
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    h & 0x00ff_ffff
}

/// The seed of a head's weights in attention; heads are counted through all sequences.
#[inline(always)]
pub fn seed_of_head(seed: u32, head: u32) -> u32 {
    hash(seed, head).wrapping_mul(0x9e37_79b9)
}

/// Which elements a mask is for, and so what their seeds and positions are.
#[derive(Clone, Debug)]
pub enum Elements<B: Backend> {
    /// Rows of so many columns, one after the other.
    InARow([usize; 2]),
    /// Attention weights `[sequences, heads, queries, keys]`: each head has a seed, and the pairs of each sequence lie one
    /// after the other without what pads them.
    ByHead {
        /// Keys of each sequence, `[sequences]`.
        lengths: Tensor<B, 1, Int>,
        /// With the padding.
        shape: [usize; 4],
    },
}

impl<B: Backend> Elements<B> {
    /// How many they are.
    pub fn count(&self) -> usize {
        match self {
            Elements::InARow([rows, columns]) => rows * columns,
            Elements::ByHead { shape, .. } => shape.iter().product(),
        }
    }

    /// How many lie before the first in the batch, of elements in a row, or how many heads before the first one.
    pub fn before(&self, dropout: Dropout) -> u32 {
        let each = match self {
            Elements::InARow([_, columns]) => *columns,
            Elements::ByHead { shape, .. } => shape[1],
        };
        dropout.first.wrapping_mul(each as u32)
    }
}

/// By burn's own operations. The mask is the CPU's, and burn keeps it for the way back.
pub fn composed<B: Kernels, const D: usize>(
    x: Tensor<Ad<B>, D>,
    elements: impl FnOnce() -> Elements<B>,
    dropout: Dropout,
) -> Tensor<Ad<B>, D> {
    if dropout.is_none() || x.shape().num_elements() == 0 {
        return x;
    }
    let kept = B::kept(&elements(), dropout, &x.device());
    let kept = kept.reshape(x.shape());
    x * Tensor::from_inner(kept)
}

/// The same of elements that lie one after the other.
pub fn composed_in_a_row<B: Kernels>(x: Tensor<Ad<B>, 2>, dropout: Dropout) -> Tensor<Ad<B>, 2> {
    let dims = x.dims();
    composed(x, || Elements::InARow(dims), dropout)
}

/// [`Kernels::kept`], made on the host: for backends without kernels of their own, which only tests have.
pub fn kept<B: Backend>(
    elements: &Elements<B>,
    dropout: Dropout,
    device: &B::Device,
) -> Tensor<B, 1> {
    let (threshold, scale) = (dropout.threshold(), dropout.scale());
    let before = elements.before(dropout);
    let factor = |seed: u32, position: u32| match hash(seed, position) >= threshold {
        true => scale,
        false => 0.0,
    };
    let factors: Vec<f32> = match elements {
        Elements::InARow(_) => (0..elements.count() as u32)
            .map(|position| factor(dropout.seed, before.wrapping_add(position)))
            .collect(),
        Elements::ByHead { lengths, shape } => {
            let lengths: Vec<i64> = lengths.to_data().iter::<i64>().collect();
            let [sequences, heads, queries, keys] = *shape;
            let mut factors = Vec::with_capacity(elements.count());
            for head in 0..sequences * heads {
                let length = lengths[head / heads] as u32;
                let seed = seed_of_head(dropout.seed, before.wrapping_add(head as u32));
                for query in 0..queries as u32 {
                    let start = query * length;
                    factors.extend((0..keys as u32).map(|key| factor(seed, start + key)));
                }
            }
            factors
        }
    };
    let count = factors.len();
    Tensor::from_data(TensorData::new(factors, [count]), device)
}

/// Elements one thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// By hand: nothing is kept but the seed.
pub fn cpu(x: Tensor<Ad<Flex>, 2>, dropout: Dropout) -> Tensor<Ad<Flex>, 2> {
    if dropout.is_none() {
        return x;
    }
    let inner = x.clone().inner();
    if !is_tracked(&x) {
        drop(x);
        return Tensor::from_inner(drop_out(inner, dropout));
    }
    let parent = input(x);
    // The primitive inside `parent` shares the buffer, so this writes a new one.
    let output = drop_out(inner, dropout);
    record(
        [parent],
        output,
        || dropout,
        |dropout, gradient, _| [Some(unwrap(drop_out(plain::<Flex, 2>(gradient), dropout)))],
    )
}

/// The mask and scale applied; in place where the buffer is nobody else's.
pub fn drop_out(x: Tensor<Flex, 2>, dropout: Dropout) -> Tensor<Flex, 2> {
    let before = dropout.first.wrapping_mul(x.dims()[1] as u32);
    let mut buffer = into_values(x);
    buffer
        .values()
        .par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, values)| {
            let start = before.wrapping_add((chunk * CHUNK) as u32);
            mask(values, start, dropout);
        });
    buffer.close()
}

vectorised! {
    /// Drops elements of `values`, whose first has position `start`.
    fn mask(values: &mut [f32], start: u32, dropout: Dropout) {
        let (threshold, scale, seed) = (dropout.threshold(), dropout.scale(), dropout.seed);
        for (i, value) in values.iter_mut().enumerate() {
            let keep = hash(seed, start.wrapping_add(i as u32)) >= threshold;
            *value = if keep { *value * scale } else { 0.0 };
        }
    }
}

/// [`drop_out`], or `x` itself where nothing is dropped.
pub fn drop_out_if_any(x: Tensor<Flex, 2>, dropout: Dropout) -> Tensor<Flex, 2> {
    if dropout.is_none() {
        x
    } else {
        drop_out(x, dropout)
    }
}
