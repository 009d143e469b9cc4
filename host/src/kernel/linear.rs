//! Linear layers over frozen weights, plain and with a LoRA side path.

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_flex::Flex;
use rayon::prelude::*;

use super::cpu::{View, into_values, tensor, written};
use super::dropout::{self, Dropout};
use super::gemm::{Into, Matrix, add_product, multiply, product};
use super::record::{input, is_tracked, plain, record, unwrap};
use super::{Ad, Kernels};

/// A LoRA pair as it enters one forward pass; tracked where the module is active.
#[derive(Clone, Debug)]
pub struct Lora<B: Backend> {
    /// `A: [rank, in]`.
    pub a: Tensor<Ad<B>, 2>,
    /// `B: [out, rank]`.
    pub b: Tensor<Ad<B>, 2>,
    /// `s = alpha / rank`.
    pub scale: f32,
    /// Dropout of the side path's input.
    pub dropout: Dropout,
}

/// By burn's own operations.
pub fn composed<B: Backend>(
    x: Tensor<Ad<B>, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
) -> Tensor<Ad<B>, 2> {
    let y = x.matmul(Tensor::from_inner(weight.clone()).transpose());
    match bias {
        Some(bias) => y + Tensor::from_inner(bias.clone()).unsqueeze(),
        None => y,
    }
}

/// By burn's own operations.
pub fn composed_lora<B: Kernels>(
    x: Tensor<Ad<B>, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
    lora: Lora<B>,
) -> (Tensor<Ad<B>, 2>, Tensor<B, 2>) {
    let y = composed(x.clone(), weight, bias);
    let xa = dropout::composed(x, lora.dropout).matmul(lora.a.transpose());
    let delta = xa.clone().matmul(lora.b.transpose()) * lora.scale;
    (y + delta, xa.inner())
}

/// By hand. Keeps nothing but the frozen weight.
pub fn cpu(
    x: Tensor<Ad<Flex>, 2>,
    weight: &Tensor<Flex, 2>,
    bias: Option<&Tensor<Flex, 1>>,
) -> Tensor<Ad<Flex>, 2> {
    let output = forward(x.clone().inner(), weight, bias);
    let state = || weight.clone();
    record([input(x)], output, state, |weight, gradient, _| {
        let gradient = View::new(plain::<Flex, 2>(gradient));
        let [outputs, inputs] = weight.dims();
        let tokens = gradient.values().len() / outputs;
        let weight = View::new(weight);
        let through = product(
            1.0,
            Matrix::new(gradient.values(), tokens, outputs),
            Matrix::new(weight.values(), outputs, inputs),
        );
        [Some(unwrap(tensor(through, [tokens, inputs])))]
    })
}

fn forward(
    x: Tensor<Flex, 2>,
    weight: &Tensor<Flex, 2>,
    bias: Option<&Tensor<Flex, 1>>,
) -> Tensor<Flex, 2> {
    let [tokens, inputs] = x.dims();
    let outputs = weight.dims()[0];
    let (x, weight) = (View::new(x), View::new(weight.clone()));
    let x = Matrix::new(x.values(), tokens, inputs);
    let weight = Matrix::new(weight.values(), outputs, inputs);
    let Some(bias) = bias else {
        return tensor(product(1.0, x, weight.t()), [tokens, outputs]);
    };
    let bias = View::new(bias.clone());
    // The bias first, so that the product adds to it and the output is passed over once.
    // SAFETY: every row is written with the bias.
    let mut y = unsafe {
        written(tokens * outputs, |y| {
            y.par_chunks_mut(outputs * 64).for_each(|rows| {
                for row in rows.chunks_exact_mut(outputs) {
                    row.write_copy_of_slice(bias.values());
                }
            });
        })
    };
    // SAFETY: `y` is `tokens × outputs` and initialised.
    unsafe { multiply(y.as_mut_ptr(), Into::Sum, 1.0, x, weight.t()) };
    tensor(y, [tokens, outputs])
}

/// What the backward pass of the side path needs.
#[derive(Clone, Debug)]
struct Saved {
    /// The layer's input; only an active module needs it (for dA).
    x: Option<Tensor<Flex, 2>>,
    weight: Tensor<Flex, 2>,
    a: Tensor<Flex, 2>,
    b: Tensor<Flex, 2>,
    /// `dropout(x)·Aᵀ`, `[tokens, rank]`.
    xa: Tensor<Flex, 2>,
    scale: f32,
    dropout: Dropout,
}

/// By hand. Of an active module the input is kept, of an inactive one the rank-wide `x·Aᵀ` alone.
pub fn cpu_lora(
    x: Tensor<Ad<Flex>, 2>,
    weight: &Tensor<Flex, 2>,
    bias: Option<&Tensor<Flex, 1>>,
    lora: Lora<Flex>,
) -> (Tensor<Ad<Flex>, 2>, Tensor<Flex, 2>) {
    let [tokens, inputs] = x.dims();
    let outputs = weight.dims()[0];
    let rank = lora.a.dims()[0];
    let inner = x.clone().inner();
    let (a, b) = (lora.a.clone().inner(), lora.b.clone().inner());

    let y = forward(inner.clone(), weight, bias);
    let dropped = View::new(dropout::drop_out_if_any(inner.clone(), lora.dropout));
    let (a_view, b_view) = (View::new(a.clone()), View::new(b.clone()));
    let xa = product(
        1.0,
        Matrix::new(dropped.values(), tokens, inputs),
        Matrix::new(a_view.values(), rank, inputs).t(),
    );
    drop(dropped);
    let mut y = into_values(y);
    add_product(
        y.values(),
        lora.scale,
        Matrix::new(&xa, tokens, rank),
        Matrix::new(b_view.values(), outputs, rank).t(),
    );
    let xa = tensor(xa, [tokens, rank]);
    let active = is_tracked(&lora.a) || is_tracked(&lora.b);
    let state = || Saved {
        x: active.then_some(inner),
        weight: weight.clone(),
        a,
        b,
        xa: xa.clone(),
        scale: lora.scale,
        dropout: lora.dropout,
    };
    let inputs = [input(x), input(lora.a), input(lora.b)];
    (record(inputs, y.close(), state, lora_backward), xa)
}

type Primitive = burn_backend::tensor::FloatTensor<Flex>;

fn lora_backward(saved: Saved, gradient: Primitive, wanted: [bool; 3]) -> [Option<Primitive>; 3] {
    let [want_x, want_a, want_b] = wanted;
    let [outputs, inputs] = saved.weight.dims();
    let [tokens, rank] = saved.xa.dims();
    let gradient = View::new(plain::<Flex, 2>(gradient));
    let gradient = Matrix::new(gradient.values(), tokens, outputs);
    let (a, b) = (View::new(saved.a), View::new(saved.b));

    let db = want_b.then(|| {
        let xa = View::new(saved.xa);
        let xa = Matrix::new(xa.values(), tokens, rank);
        tensor(product(saved.scale, gradient.t(), xa), [outputs, rank])
    });
    // The gradient of x·Aᵀ, [tokens, rank].
    let dxa = product(
        saved.scale,
        gradient,
        Matrix::new(b.values(), outputs, rank),
    );
    let dxa = Matrix::new(&dxa, tokens, rank);
    let da = want_a.then(|| {
        let x = saved.x.expect("an active module kept its input");
        let x = View::new(dropout::drop_out_if_any(x, saved.dropout));
        let x = Matrix::new(x.values(), tokens, inputs);
        tensor(product(1.0, dxa.t(), x), [rank, inputs])
    });
    let dx = want_x.then(|| {
        let weight = View::new(saved.weight);
        let weight = Matrix::new(weight.values(), outputs, inputs);
        let a = Matrix::new(a.values(), rank, inputs);
        if saved.dropout.is_none() {
            let mut dx = product(1.0, gradient, weight);
            add_product(&mut dx, 1.0, dxa, a);
            return tensor(dx, [tokens, inputs]);
        }
        let side = tensor(product(1.0, dxa, a), [tokens, inputs]);
        let side = View::new(dropout::drop_out(side, saved.dropout));
        let mut dx = side.values().to_vec();
        add_product(&mut dx, 1.0, gradient, weight);
        tensor(dx, [tokens, inputs])
    });
    [dx.map(unwrap), da.map(unwrap), db.map(unwrap)]
}
