//! Rotary position embeddings.

use burn::tensor::{Tensor, TensorData};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::Ad;
use super::cpu::{View, into_values};
use super::record::{input, plain, record, unwrap};
use super::simd::{fma, vectorised};

/// By how much each token's features are turned: `[tokens, head size / 2]` each.
#[derive(Clone, Debug)]
pub struct Angles<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Angles<B> {
    /// Of tokens at these `positions`: `position · θ_i`, with one of the `frequencies` θ for each pair of a head's
    /// features (Su et al. 2021, eq. 15).
    pub fn new(positions: &[u32], frequencies: &[f64], device: &B::Device) -> Self {
        let half = frequencies.len();
        // Sequences share positions, of which there are fewer than tokens.
        let longest = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let table = |function: fn(f64) -> f64| {
            let angle = |position: usize, i: usize| position as f64 * frequencies[i];
            let values = (0..longest * half).map(|at| function(angle(at / half, at % half)) as f32);
            let values: Vec<f32> = values.collect();
            let mut rows = Vec::with_capacity(positions.len() * half);
            for position in positions {
                rows.extend_from_slice(&values[*position as usize * half..][..half]);
            }
            Tensor::from_data(TensorData::new(rows, [positions.len(), half]), device)
        };
        Angles {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }
}

/// By burn's own operations.
pub fn composed<B: Backend>(
    x: Tensor<Ad<B>, 2>,
    columns: usize,
    angles: &Angles<B>,
) -> Tensor<Ad<B>, 2> {
    let [tokens, width] = x.dims();
    let [_, half] = angles.cos.dims();
    let heads = x.clone().slice_dim(1, 0..columns);
    let heads = heads.reshape([tokens, columns / (2 * half), 2 * half]);
    let [left, right] = [0..half, half..2 * half].map(|part| heads.clone().slice_dim(2, part));
    let [cos, sin] = [&angles.cos, &angles.sin]
        .map(|table| Tensor::<Ad<B>, 2>::from_inner(table.clone()).unsqueeze_dim::<3>(1));
    let turned = Tensor::cat(
        vec![
            left.clone() * cos.clone() - right.clone() * sin.clone(),
            right * cos + left * sin,
        ],
        2,
    );
    let turned = turned.reshape([tokens, columns]);
    if columns == width {
        return turned;
    }
    Tensor::cat(vec![turned, x.slice_dim(1, columns..width)], 1)
}

/// By hand, in place where nobody else holds `x`. The gradient is turned back; nothing is kept but the angles.
pub fn cpu(x: Tensor<Ad<Flex>, 2>, columns: usize, angles: &Angles<Flex>) -> Tensor<Ad<Flex>, 2> {
    let output = turn(x.clone().inner(), columns, angles, 1.0);
    let state = || (columns, angles.clone());
    record(
        [input(x)],
        output,
        state,
        |(columns, angles), gradient, _| {
            let gradient = turn(plain(gradient), columns, &angles, -1.0);
            [Some(unwrap(gradient))]
        },
    )
}

fn turn(
    x: Tensor<Flex, 2>,
    columns: usize,
    angles: &Angles<Flex>,
    direction: f32,
) -> Tensor<Flex, 2> {
    let [_, width] = x.dims();
    let [_, half] = angles.cos.dims();
    let (cos, sin) = (View::new(angles.cos.clone()), View::new(angles.sin.clone()));
    let mut x = into_values(x);
    x.values()
        .par_chunks_mut(width)
        .zip(cos.values().par_chunks(half))
        .zip(sin.values().par_chunks(half))
        .for_each(|((row, cos), sin)| turn_row(&mut row[..columns], cos, sin, direction));
    x.close()
}

vectorised! {
    fn turn_row(heads: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(2 * half) {
            let (left, right) = head.split_at_mut(half);
            for (((l, r), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let sin = direction * sin;
                let (from, to) = (*l, *r);
                *l = fma::<FMA>(from, *cos, -(to * sin));
                *r = fma::<FMA>(to, *cos, from * sin);
            }
        }
    }
}
