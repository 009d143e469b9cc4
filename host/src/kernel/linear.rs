//! Linear layers over frozen weights, with LoRA side paths where they carry one.

use burn::tensor::Tensor;
use burn_backend::{Backend, FloatDType};
use burn_flex::Flex;

use super::cpu::{Disjoint, View, tensor};
use super::dropout::{self, Dropout};
use super::gemm::{Left, Out, Start, Term, multiply, product};
use super::matrix::Matrix;
use super::panels::Panels;
use super::record::{input, is_tracked, plain, record, unwrap};
use super::{Ad, Kernels, Precision};

/// A frozen linear layer `y = x·Wᵀ + b`, its weight laid out for the way the backend reads it.
#[derive(Clone, Debug)]
pub struct Frozen<B: Kernels> {
    /// `W: [out, in]`, in the type that it is rounded to where the backend has no layout of its own.
    pub weight: Tensor<B, 2>,
    /// `b: [out]`.
    pub bias: Option<Tensor<B, 1>>,
    packed: B::Packed,
}

impl<B: Kernels> Frozen<B> {
    /// Whether the backend has a layout of its own for weights.
    pub const LAID_OUT: bool = size_of::<B::Packed>() > 0;

    /// Lays the weight out.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, precision: Precision) -> Self {
        Frozen {
            packed: B::pack(&weight, precision),
            weight: match precision.half() {
                Some(half) if !Self::LAID_OUT => weight.cast(half),
                _ => weight,
            },
            bias,
        }
    }

    /// As [`new`](Self::new), without the weight's own values where the backend has laid them out anew: they would be
    /// in memory twice. `weight` then has its shape alone, and NaN for whoever reads it all the same.
    pub fn lean(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, precision: Precision) -> Self {
        let mut frozen = Frozen::new(weight, bias, precision);
        if Self::LAID_OUT {
            let (shape, device) = (frozen.weight.dims(), frozen.weight.device());
            let nothing = Tensor::<B, 2>::full([1, 1], f32::NAN, &device);
            frozen.weight = nothing.expand(shape);
        }
        frozen
    }

    /// The same layer without its bias; the weight is shared.
    pub fn without_bias(&self) -> Self {
        Frozen {
            weight: self.weight.clone(),
            bias: None,
            packed: self.packed.clone(),
        }
    }

    /// The weight as the backend reads it.
    pub fn packed(&self) -> &B::Packed {
        &self.packed
    }
}

/// A LoRA pair, or a VeRA module's A and `Λ_b·B·Λ_d`, as it enters one forward pass; tracked where the module
/// is active, A only where it trains.
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

/// One of the linear layers that read the same input.
#[derive(Clone, Debug)]
pub struct Branch<'a, B: Kernels> {
    /// The layer.
    pub frozen: &'a Frozen<B>,
    /// Its adapter, if it carries one.
    pub lora: Option<Lora<B>>,
}

/// What [`Kernels::linears`] computes.
#[derive(Clone, Debug)]
pub struct Outputs<B: Kernels> {
    /// The branches' outputs side by side, `[tokens, Σ out]`.
    pub y: Tensor<Ad<B>, 2>,
    /// `dropout(x)·Aᵀ`, `[tokens, rank]`, of each adapter, detached, for the signals; none also where an
    /// inactive pair's B is all zero, so that it adds nothing.
    pub side: Vec<Option<Tensor<B, 2>>>,
}

/// By burn's own operations.
pub fn composed<B: Kernels>(x: Tensor<Ad<B>, 2>, branches: Vec<Branch<'_, B>>) -> Outputs<B> {
    let mut side = Vec::new();
    let mut outputs = Vec::new();
    let input = Input::new(x.clone(), branches[0].frozen);
    for Branch { frozen, lora } in branches {
        let mut y = input.times(frozen);
        if let Some(bias) = &frozen.bias {
            y = y + Tensor::from_inner(bias.clone()).unsqueeze();
        }
        side.push(lora.map(|lora| {
            let dropped = dropout::composed_in_a_row(x.clone(), lora.dropout);
            let xa = dropped.matmul(lora.a.transpose());
            y = y.clone() + xa.clone().matmul(lora.b.transpose()) * lora.scale;
            xa.inner()
        }));
        outputs.push(y);
    }
    let y = if outputs.len() == 1 {
        outputs.remove(0)
    } else {
        Tensor::cat(outputs, 1)
    };
    Outputs { y, side }
}

/// What frozen weights of one type are multiplied by, by burn's own operations.
pub struct Input<B: Kernels> {
    x: Tensor<Ad<B>, 2>,
    /// Rounded to the weights' type, where that is not f32.
    rounded: Option<Tensor<B, 2>>,
}

impl<B: Kernels> Input<B> {
    /// What `frozen`, and others of its type, will be multiplied by.
    pub fn new(x: Tensor<Ad<B>, 2>, frozen: &Frozen<B>) -> Self {
        let half = FloatDType::from(frozen.weight.dtype());
        let rounded = (half != FloatDType::F32).then(|| x.clone().inner().cast(half));
        Input { x, rounded }
    }

    /// `x·Wᵀ`. In half precision it is one operation of the graph, so that the gradients of an `x` that several weights are
    /// multiplied by are added up in f32; the gradient of the product is rounded as x is.
    pub fn times(&self, frozen: &Frozen<B>) -> Tensor<Ad<B>, 2> {
        let weight = frozen.weight.clone();
        let Some(rounded) = &self.rounded else {
            let weight = Tensor::from_inner(weight);
            return self.x.clone().matmul(weight.transpose());
        };
        let y = rounded.clone().matmul(weight.clone().transpose());
        record(
            [input(self.x.clone())],
            y.cast(FloatDType::F32),
            || weight,
            |weight, gradient, _| {
                let gradient = plain::<B, 2>(gradient).cast(weight.dtype());
                [Some(unwrap(gradient.matmul(weight).cast(FloatDType::F32)))]
            },
        )
    }
}

/// Lays out a frozen weight as the CPU reads it: its transpose, for `x·Wᵀ`.
pub fn pack(weight: &Tensor<Flex, 2>, precision: Precision) -> Panels {
    let [outputs, inputs] = weight.dims();
    let weight = View::new(weight.clone());
    let weight = Matrix::new(weight.values(), outputs, inputs).t();
    match precision {
        Precision::F32 => Panels::new(weight),
        Precision::Bf16 => Panels::rounded(weight),
        Precision::F16 => unreachable!("the CPU has no kernel for it, and is asked before"),
    }
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved {
    /// The layers' input; only a module whose A trains needs it.
    x: Option<Tensor<Flex, 2>>,
    branches: Vec<(Frozen<Flex>, Option<SavedPair>)>,
}

#[derive(Clone, Debug)]
struct SavedPair {
    a: Tensor<Flex, 2>,
    b: Tensor<Flex, 2>,
    /// `dropout(x)·Aᵀ`, `[tokens, rank]`.
    xa: Tensor<Flex, 2>,
    scale: f32,
    dropout: Dropout,
    /// Whether B is all zero. Such a pair adds nothing either way, and is left out of both sums whether or not it
    /// trains: another number of terms can sum in another order, and a step that only measures an inactive module's
    /// gradient must give the bits of one that does not.
    silent: bool,
}

/// By hand. Of a module whose A trains the input is kept, of any other the rank-wide `x·Aᵀ` alone.
pub fn cpu(x: Tensor<Ad<Flex>, 2>, branches: Vec<Branch<'_, Flex>>) -> Outputs<Flex> {
    // The graph's operations have a fixed number of inputs: x, and A and B of each branch.
    match branches.len() {
        1 => cpu_of::<3>(x, branches),
        2 => cpu_of::<5>(x, branches),
        3 => cpu_of::<7>(x, branches),
        more => panic!("{more} linear layers over one input"),
    }
}

fn cpu_of<const N: usize>(
    x: Tensor<Ad<Flex>, 2>,
    branches: Vec<Branch<'_, Flex>>,
) -> Outputs<Flex> {
    let [tokens, inputs] = x.dims();
    let inner = x.clone().inner();
    let view = View::new(inner.clone());
    let left = Matrix::new(view.values(), tokens, inputs);
    let read = Left::new(left, &branches[0].frozen.packed);
    let widths = branches.iter().map(|branch| branch.frozen.weight.dims()[0]);
    let width: usize = widths.sum();

    let mut y: Vec<f32> = Vec::with_capacity(tokens * width);
    let out = Disjoint::new(y.as_mut_ptr());
    let nothing = Tensor::<Ad<Flex>, 2>::empty([0, 0], &x.device());
    let mut graph_inputs = vec![input(x)];
    let (mut saved, mut side, mut keeps_x) = (Vec::new(), Vec::new(), false);
    let mut first = 0;
    for Branch { frozen, lora } in branches {
        let outputs = frozen.weight.dims()[0];
        let bias = frozen.bias.clone().map(View::new);
        let start = bias
            .as_ref()
            .map_or(Start::Zero, |bias| Start::Bias(bias.values()));
        // SAFETY: the branch's own columns of every row lie within the capacity.
        let out = Out::new(unsafe { out.pointer(first) }, width);
        let [a, b] = lora.as_ref().map_or_else(
            || [nothing.clone(), nothing.clone()],
            |lora| [lora.a.clone(), lora.b.clone()],
        );
        let trains = is_tracked(&a) || is_tracked(&b);
        keeps_x |= is_tracked(&a);
        let pair = lora.and_then(|lora| {
            let (a, b) = (lora.a.inner(), lora.b.inner());
            let silent = View::new(b.clone()).values().iter().all(|b| *b == 0.0);
            if silent && !trains {
                return None;
            }
            let xa = project(inner.clone(), &a, lora.dropout);
            Some(SavedPair {
                a,
                b,
                xa,
                scale: lora.scale,
                dropout: lora.dropout,
                silent,
            })
        });
        let views = pair
            .as_ref()
            .map(|pair| [&pair.xa, &pair.b].map(|tensor| View::new(tensor.clone())));
        let mut terms = vec![Term::packed(&read, &frozen.packed)];
        if let (Some(pair), Some([xa, b])) = (pair.as_ref().filter(|pair| !pair.silent), &views) {
            let rank = pair.xa.dims()[1];
            let xa = Matrix::new(xa.values(), tokens, rank);
            let b = Matrix::new(b.values(), outputs, rank).t();
            terms.push(Term::plain(pair.scale, xa, b));
        }
        // SAFETY: as above, and nobody else writes them.
        unsafe { multiply(out, start, &terms) };
        graph_inputs.extend([input(a), input(b)]);
        side.push(pair.as_ref().map(|pair| pair.xa.clone()));
        saved.push((frozen.clone(), pair));
        first += outputs;
    }
    // SAFETY: the branches wrote all columns of every row.
    unsafe { y.set_len(tokens * width) };
    let y = tensor(y, [tokens, width]);
    let state = || Saved {
        x: keeps_x.then_some(inner),
        branches: saved,
    };
    let graph_inputs: [_; N] = graph_inputs.try_into().expect("two inputs for each branch");
    Outputs {
        y: record(graph_inputs, y, state, backward),
        side,
    }
}

/// `dropout(x)·Aᵀ`.
fn project(x: Tensor<Flex, 2>, a: &Tensor<Flex, 2>, dropout: Dropout) -> Tensor<Flex, 2> {
    let ([tokens, inputs], [rank, _]) = (x.dims(), a.dims());
    let x = View::new(dropout::drop_out_if_any(x, dropout));
    let a = View::new(a.clone());
    let x = Matrix::new(x.values(), tokens, inputs);
    let a = Matrix::new(a.values(), rank, inputs);
    let xa = product(Start::Zero, &[Term::plain(1.0, x, a.t())]);
    tensor(xa, [tokens, rank])
}

type Primitive = burn_backend::tensor::FloatTensor<Flex>;

fn backward<const N: usize>(
    saved: Saved,
    gradient: Primitive,
    wanted: [bool; N],
) -> [Option<Primitive>; N] {
    let gradient = plain::<Flex, 2>(gradient);
    let [tokens, width] = gradient.dims();
    let gradient = View::new(gradient);
    let all = Matrix::new(gradient.values(), tokens, width);
    let inputs = saved.branches[0].0.weight.dims()[1];
    let mut found: [Option<Primitive>; N] = std::array::from_fn(|_| None);

    // What the input's gradient is the sum of, by branch.
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut first = 0;
    for (index, (frozen, pair)) in saved.branches.into_iter().enumerate() {
        let outputs = frozen.weight.dims()[0];
        let gradient = all.columns(first, outputs);
        first += outputs;
        let (want_a, want_b) = (wanted[1 + 2 * index], wanted[2 + 2 * index]);
        let mut side = None;
        if let Some(pair) = pair {
            let rank = pair.xa.dims()[1];
            if want_b {
                let xa = View::new(pair.xa);
                let xa = Matrix::new(xa.values(), tokens, rank);
                found[2 + 2 * index] = Some(unwrap(gradient_of_b(gradient, xa, pair.scale)));
            }
            if want_a || wanted[0] {
                // The gradient of dropout(x)·Aᵀ, [tokens, rank].
                let b = View::new(pair.b);
                let b = Matrix::new(b.values(), outputs, rank);
                let dxa = product(Start::Zero, &[Term::plain(pair.scale, gradient, b)]);
                if want_a {
                    let x = saved
                        .x
                        .clone()
                        .expect("a module whose A trains kept its input");
                    let x = View::new(dropout::drop_out_if_any(x, pair.dropout));
                    let x = Matrix::new(x.values(), tokens, inputs);
                    let dxa = Matrix::new(&dxa, tokens, rank);
                    let da = product(Start::Zero, &[Term::plain(1.0, dxa.t(), x)]);
                    found[1 + 2 * index] = Some(unwrap(tensor(da, [rank, inputs])));
                }
                if !pair.silent {
                    side = Some((dxa, View::new(pair.a), pair.dropout));
                }
            }
        }
        parts.push(Part {
            gradient,
            frozen,
            side,
        });
    }
    if !wanted[0] {
        return found;
    }

    let reads: Vec<Left<'_>> = parts
        .iter()
        .map(|part| Left::new(part.gradient, &part.frozen.packed))
        .collect();
    let mut terms: Vec<Term<'_>> = Vec::new();
    // A side path without dropout is a term like any other; with it, its part passes the mask first.
    let mut masked: Option<Vec<f32>> = None;
    for (part, read) in parts.iter().zip(&reads) {
        terms.push(Term::transposed(read, &part.frozen.packed));
        let Some((dxa, a, dropout)) = &part.side else {
            continue;
        };
        let rank = dxa.len() / tokens.max(1);
        let a = Matrix::new(a.values(), a.values().len() / inputs, inputs);
        let side = Term::plain(1.0, Matrix::new(dxa, tokens, rank), a);
        if dropout.is_none() {
            terms.push(side);
            continue;
        }
        let side = tensor(product(Start::Zero, &[side]), [tokens, inputs]);
        let side = View::new(dropout::drop_out(side, *dropout));
        match &mut masked {
            Some(sum) => sum
                .iter_mut()
                .zip(side.values())
                .for_each(|(sum, side)| *sum += side),
            None => masked = Some(side.values().to_vec()),
        }
    }
    let dx = match masked {
        Some(mut sum) => {
            // SAFETY: `sum` has the product's size and is initialised.
            unsafe { multiply(Out::new(sum.as_mut_ptr(), inputs), Start::Sum, &terms) };
            sum
        }
        None => product(Start::Zero, &terms),
    };
    found[0] = Some(unwrap(tensor(dx, [tokens, inputs])));
    found
}

/// One branch's part in the gradient of the input.
struct Part<'a> {
    gradient: Matrix<'a>,
    frozen: Frozen<Flex>,
    /// The gradient of `dropout(x)·Aᵀ`, A, and the dropout between.
    side: Option<(Vec<f32>, View, Dropout)>,
}

/// `s·Gᵀ·XA`, `[out, rank]`, computed as its transpose, in which the long side runs along the vectors.
fn gradient_of_b(gradient: Matrix<'_>, xa: Matrix<'_>, scale: f32) -> Tensor<Flex, 2> {
    let (outputs, rank) = (gradient.width(), xa.width());
    let transposed = product(Start::Zero, &[Term::plain(1.0, xa.t(), gradient)]);
    let mut db = vec![0.0; outputs * rank];
    for (r, row) in transposed.chunks_exact(outputs).enumerate() {
        for (o, value) in row.iter().enumerate() {
            db[o * rank + r] = scale * value;
        }
    }
    tensor(db, [outputs, rank])
}
