//! Activation functions of the feed-forward layers.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::{Tensor, activation as burn_activation};
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Ad;
use super::cpu::{View, into_values, tensor, written};
use super::record::{input, is_tracked, plain, record, unwrap};
use super::simd::{erf, exp, fma, vectorised};

/// Which function; the names are those of `hidden_act` in a Hugging Face `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·Φ(x)` with the exact error function (Hendrycks & Gimpel 2016).
    Gelu,
    /// The tanh approximation of GELU.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `max(x, 0)`.
    Relu,
    /// `x·sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `x·sigmoid(1.702·x)`, a rougher approximation of GELU.
    QuickGelu,
}

/// The slope of `QuickGelu`'s sigmoid.
const QUICK: f32 = 1.702;

/// √(2/π), of the tanh approximation.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// By burn's own operations.
pub fn composed<B: Backend>(x: Tensor<Ad<B>, 2>, function: Activation) -> Tensor<Ad<B>, 2> {
    match function {
        Activation::Gelu => gelu(x),
        Activation::GeluNew => {
            let inner = (x.clone() + x.clone().powi_scalar(3) * CUBIC) * SQRT_2_OVER_PI;
            x * (inner.tanh() + 1.0) * 0.5
        }
        Activation::Relu => burn_activation::relu(x),
        Activation::Silu => burn_activation::silu(x),
        Activation::QuickGelu => x.clone() * burn_activation::sigmoid(x * QUICK),
    }
}

/// GELU with its own slope: that of burn's is the approximation's, which is off by up to a thousandth, on every backend
/// but the CPU's. Keeps `x` alone for the backward pass.
fn gelu<B: Backend>(x: Tensor<Ad<B>, 2>) -> Tensor<Ad<B>, 2> {
    let inner = x.clone().inner();
    let output = burn_activation::gelu(inner.clone());
    record(
        [input(x)],
        output,
        || inner,
        |x, gradient, _| {
            let gradient: Tensor<B, 2> = plain(gradient);
            let below = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
            let density =
                (x.clone().square() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
            [Some(unwrap(gradient * (below + x * density)))]
        },
    )
}

/// By burn's own operations.
pub fn composed_gated<B: Backend>(x: Tensor<Ad<B>, 2>, function: Activation) -> Tensor<Ad<B>, 2> {
    let [gate, up]: [Tensor<Ad<B>, 2>; 2] = x.chunk(2, 1).try_into().expect("two halves");
    composed(gate, function) * up
}

/// Elements one thread takes at a time: 64 KiB in and 64 KiB out, within its L2.
const CHUNK: usize = 16 * 1024;

/// By hand. Keeps `x` for the backward pass and nothing else.
pub fn cpu(x: Tensor<Ad<Flex>, 2>, function: Activation) -> Tensor<Ad<Flex>, 2> {
    let dims = x.dims();
    let inner = x.clone().inner();
    let output = if is_tracked(&x) {
        let view = View::new(inner.clone());
        let values = view.values();
        // SAFETY: the chunks cover the buffer and `forward` writes all of each.
        let output = unsafe {
            written(values.len(), |out| {
                out.par_chunks_mut(CHUNK)
                    .zip(values.par_chunks(CHUNK))
                    .for_each(|(out, x)| {
                        let out = out.write_copy_of_slice(x);
                        forward(out, function);
                    });
            })
        };
        tensor(output, dims)
    } else {
        // Nobody will ask for `x` again: write over it.
        let parent = input(x);
        let mut buffer = into_values(inner);
        drop(parent);
        buffer
            .values()
            .par_chunks_mut(CHUNK)
            .for_each(|out| forward(out, function));
        return Tensor::from_inner(buffer.close());
    };
    record(
        [input(x)],
        output,
        || (inner, function),
        |(x, function), gradient, _| {
            let x = View::new(x);
            let mut gradient = into_values(plain::<Flex, 2>(gradient));
            let pairs = gradient
                .values()
                .par_chunks_mut(CHUNK)
                .zip(x.values().par_chunks(CHUNK));
            pairs.for_each(|(gradient, x)| backward(gradient, x, function));
            [Some(unwrap(gradient.close()))]
        },
    )
}

/// By hand, gate and up-projection side by side in each row. Keeps `x` for the backward pass.
pub fn cpu_gated(x: Tensor<Ad<Flex>, 2>, function: Activation) -> Tensor<Ad<Flex>, 2> {
    let [tokens, width] = x.dims();
    let inner = width / 2;
    let saved = x.clone().inner();
    let view = View::new(saved.clone());
    // SAFETY: the rows cover the buffer: each is written as a copy of its gate first.
    let output = unsafe {
        written(tokens * inner, |out| {
            out.par_chunks_mut(inner)
                .zip(view.values().par_chunks(width))
                .for_each(|(out, x)| {
                    let (gate, up) = x.split_at(inner);
                    let out = out.write_copy_of_slice(gate);
                    forward(out, function);
                    scale(out, up);
                });
        })
    };
    record(
        [input(x)],
        tensor(output, [tokens, inner]),
        || (saved, function),
        |(x, function), gradient, _| {
            let [tokens, width] = x.dims();
            let inner = width / 2;
            let (x, gradient) = (View::new(x), View::new(plain::<Flex, 2>(gradient)));
            // SAFETY: as above, with both halves of each row.
            let dx = unsafe {
                written(tokens * width, |out| {
                    out.par_chunks_mut(width)
                        .zip(x.values().par_chunks(width))
                        .zip(gradient.values().par_chunks(inner))
                        .for_each(|((out, x), gradient)| {
                            let (gate, up) = x.split_at(inner);
                            let (of_gate, of_up) = out.split_at_mut(inner);
                            let of_up = of_up.write_copy_of_slice(gate);
                            forward(of_up, function);
                            scale(of_up, gradient);
                            let of_gate = of_gate.write_copy_of_slice(gradient);
                            scale(of_gate, up);
                            backward(of_gate, gate, function);
                        });
                })
            };
            [Some(unwrap(tensor(dx, [tokens, width])))]
        },
    )
}

vectorised! {
    fn scale(x: &mut [f32], factors: &[f32]) {
        for (x, factor) in x.iter_mut().zip(factors) {
            *x *= factor;
        }
    }
}

vectorised! {
    /// `x ← f(x)`.
    fn forward(x: &mut [f32], function: Activation) {
        match function {
            Activation::Gelu => x.iter_mut().for_each(|x| *x *= normal_cdf::<FMA>(*x)),
            Activation::GeluNew => x.iter_mut().for_each(|x| *x *= tanh_gate::<FMA>(*x)),
            Activation::Relu => x.iter_mut().for_each(|x| *x = if *x > 0.0 { *x } else { 0.0 }),
            Activation::Silu => x.iter_mut().for_each(|x| *x /= 1.0 + exp::<FMA>(-*x)),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x /= 1.0 + exp::<FMA>(-QUICK * *x)),
        }
    }
}

vectorised! {
    /// `g ← g·f′(x)`.
    fn backward(gradient: &mut [f32], x: &[f32], function: Activation) {
        let pairs = gradient.iter_mut().zip(x);
        match function {
            Activation::Gelu => pairs.for_each(|(g, &x)| {
                // Φ(x) + x·φ(x)
                const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
                let density = FRAC_1_SQRT_2PI * exp::<FMA>(-0.5 * x * x);
                *g *= fma::<FMA>(x, density, normal_cdf::<FMA>(x));
            }),
            Activation::GeluNew => pairs.for_each(|(g, &x)| {
                // The gate σ(2u), u = √(2/π)(x + c·x³): x·2u′·σ(1 - σ) + σ
                let gate = tanh_gate::<FMA>(x);
                let slope = 2.0 * SQRT_2_OVER_PI * fma::<FMA>(3.0 * CUBIC * x, x, 1.0);
                *g *= fma::<FMA>(x * slope, gate * (1.0 - gate), gate);
            }),
            Activation::Relu => pairs.for_each(|(g, &x)| *g = if x > 0.0 { *g } else { 0.0 }),
            Activation::Silu => pairs.for_each(|(g, &x)| {
                let gate = 1.0 / (1.0 + exp::<FMA>(-x));
                *g *= fma::<FMA>(x * gate, 1.0 - gate, gate);
            }),
            Activation::QuickGelu => pairs.for_each(|(g, &x)| {
                let gate = 1.0 / (1.0 + exp::<FMA>(-QUICK * x));
                *g *= fma::<FMA>(QUICK * x * gate, 1.0 - gate, gate);
            }),
        }
    }
}

#[inline(always)]
fn normal_cdf<const FMA: bool>(x: f32) -> f32 {
    fma::<FMA>(0.5, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), 0.5)
}

/// `(1 + tanh u)/2 = σ(2u)`, with `u = √(2/π)(x + c·x³)`.
#[inline(always)]
fn tanh_gate<const FMA: bool>(x: f32) -> f32 {
    let u = SQRT_2_OVER_PI * x * fma::<FMA>(CUBIC * x, x, 1.0);
    1.0 / (1.0 + exp::<FMA>(-2.0 * u))
}
