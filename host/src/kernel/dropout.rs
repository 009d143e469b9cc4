//! Dropout whose mask is a function of a seed and a position, computed again in the backward pass
//! instead of stored, and the same for every number of threads.

use burn::tensor::{Distribution, Tensor};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::into_values;
use super::record::{input, is_tracked, plain, record, unwrap};
use super::simd::vectorised;

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

/// By burn's own operations. The mask is the backend's own draw for the site's seed, and burn keeps it.
pub fn composed<B: Backend, const D: usize>(x: Tensor<B, D>, dropout: Dropout) -> Tensor<B, D> {
    if dropout.is_none() {
        return x;
    }
    // A part of a batch draws its own.
    let seed = u64::from(dropout.first) << 32 | u64::from(dropout.seed);
    B::seed(&x.device(), seed);
    let keep = Distribution::Bernoulli(f64::from(1.0 - dropout.probability));
    let mask = Tensor::random(x.shape(), keep, &x.device());
    x * mask * dropout.scale()
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
