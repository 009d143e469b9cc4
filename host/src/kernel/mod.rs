//! Fused operations, one file each: hand-written CPU code, and burn's own composition for every other
//! backend. Nothing outside this folder touches a raw buffer.
//!
//! Two kinds of tensor meet here, and the types keep them apart: frozen weights are tensors of the plain
//! backend `B` and can never be tracked; what flows through the model is a tensor of [`Ad<B>`], recorded
//! only above the lowest active module. Activations are packed, `[tokens, features]`, with no padding.

mod activation;
mod adamw;
mod attention;
mod bf16;
mod columns;
mod cpu;
mod cross_entropy;
mod dropout;
mod gemm;
mod linear;
mod lookup;
mod matrix;
mod means;
mod measure;
mod norm;
mod panels;
mod record;
mod rotary;
mod scaled;
pub mod simd;
mod tap;
#[cfg(test)]
mod tests;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod upload;

use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_backend::{Backend, FloatDType};
use burn_flex::Flex;

pub use activation::Activation;
pub use adamw::{AdamWStep, Moments};
pub use attention::{AttentionLayout, AttentionShape, Buckets, Projected, Sequences};
pub use bf16::native as bf16_is_native;
pub use cross_entropy::Targets;
pub use dropout::{Dropout, Elements};
pub use linear::{Branch, Frozen, Lora, Outputs};
pub use measure::taken as reductions_taken;
pub use norm::{Norm, NormKind};
pub use record::is_tracked;
pub use rotary::Angles;
pub use tap::tap;

/// The backend that records what is needed for gradients.
pub type Ad<B> = Autodiff<B>;

/// The CPU by burn's own composition of every operation: what runs on a GPU, where there is none. It is for tests, and
/// slow; that burn's [`Autodiff`] wraps it twice makes it a backend of its own, and records nothing in the inner one.
pub type Composed = Autodiff<Flex>;

/// What products with a frozen weight are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Both sides rounded to bf16, summed up in f32.
    Bf16,
    /// The same in IEEE's half precision, whose largest value is 65,504.
    F16,
}

impl Precision {
    /// The type that values are rounded to, if they are.
    pub fn half(self) -> Option<FloatDType> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Some(FloatDType::BF16),
            Precision::F16 => Some(FloatDType::F16),
        }
    }
}

/// A backend with dynalora's fused operations. Every method has a default composed of burn's own
/// operations, which serves GPUs, where burn fuses it; the CPU overrides all of them.
pub trait Kernels: Backend {
    /// A frozen weight laid out for the way products read it; nothing where the backend lays it out itself.
    type Packed: Clone + std::fmt::Debug + Send + Sync + 'static;

    /// Lays out a frozen weight `[out, in]` for products in this precision.
    fn pack(weight: &Tensor<Self, 2>, precision: Precision) -> Self::Packed;

    /// Whether products with frozen weights can be computed in this precision.
    fn computes(precision: Precision, device: &Self::Device) -> bool {
        let half = precision.half();
        half.is_none_or(|half| Self::supports_dtype(device, half.into()))
    }

    /// `y = x·Wᵀ + b + s·(dropout(x)·Aᵀ)·Bᵀ` (Hu et al. 2021, eq. 3) of each of up to three layers that
    /// read the same `x [tokens, in]`, side by side. The pair is a side path: `W + s·BA` is never formed.
    fn linears(x: Tensor<Ad<Self>, 2>, branches: Vec<Branch<'_, Self>>) -> Outputs<Self> {
        linear::composed(x, branches)
    }

    /// `diag(rows)·M·diag(columns)` of a frozen matrix, with `rows [n, 1]` and `columns [m, 1]` (VeRA's
    /// `Λ_b·B·Λ_d`; Kopiczko et al. 2024, eq. 2).
    fn scaled(
        matrix: &Tensor<Self, 2>,
        rows: Tensor<Ad<Self>, 2>,
        columns: Tensor<Ad<Self>, 2>,
    ) -> Tensor<Ad<Self>, 2> {
        scaled::composed(matrix, rows, columns)
    }

    /// `x ∘ factors + offsets`, a value of each for every column: `[1, columns]`; none where nothing is multiplied, or
    /// added.
    fn per_column(
        x: Tensor<Ad<Self>, 2>,
        factors: Option<Tensor<Ad<Self>, 2>>,
        offsets: Option<Tensor<Ad<Self>, 2>>,
    ) -> Tensor<Ad<Self>, 2> {
        columns::composed(x, factors, offsets)
    }

    /// The columns `ids` of a `matrix [rows, columns]`, one below the other: `[ids, rows]`. No gradient goes back into the
    /// column `still`.
    fn lookup(
        matrix: Tensor<Ad<Self>, 2>,
        ids: Tensor<Self, 1, Int>,
        still: Option<usize>,
    ) -> Tensor<Ad<Self>, 2> {
        lookup::composed(matrix, ids, still)
    }

    /// The activation function, element by element.
    fn activation(x: Tensor<Ad<Self>, 2>, function: Activation) -> Tensor<Ad<Self>, 2> {
        activation::composed(x, function)
    }

    /// `f(gate) ∘ up` of `[gate | up]`, from `[tokens, 2·inner]` to `[tokens, inner]`: SwiGLU with `Silu`
    /// (Shazeer 2020, eq. 6).
    fn gated(x: Tensor<Ad<Self>, 2>, function: Activation) -> Tensor<Ad<Self>, 2> {
        activation::composed_gated(x, function)
    }

    /// The normalised `x + residual`, `[tokens, features]`.
    fn add_norm(
        x: Tensor<Ad<Self>, 2>,
        residual: Option<Tensor<Ad<Self>, 2>>,
        norm: &Norm<Self>,
    ) -> Tensor<Ad<Self>, 2> {
        norm::composed(x, residual, norm)
    }

    /// Rotary position embedding (Su et al. 2021, eq. 34) of the heads in the first `columns` of `x`; the rest
    /// passes through. The two halves of a head are the pairs' parts, as in Transformers' `rotate_half`.
    fn rotate(
        x: Tensor<Ad<Self>, 2>,
        columns: usize,
        angles: &Angles<Self>,
    ) -> Tensor<Ad<Self>, 2> {
        rotary::composed(x, columns, angles)
    }

    /// The mean cross-entropy, in nats, of `softmax(x·Wᵀ + b)` against `targets`, one class for each row of
    /// `x [rows, hidden]`: a language-model head and its loss over a frozen W. Logits l are capped to `c·tanh(l/c)` where
    /// there is a `soft_cap` c. The CPU computes the logits a few rows at a time and never has all of them.
    fn linear_cross_entropy(
        x: Tensor<Ad<Self>, 2>,
        head: &Frozen<Self>,
        targets: Targets<'_, Self>,
        soft_cap: Option<f32>,
    ) -> Tensor<Ad<Self>, 1> {
        cross_entropy::composed(x, head, targets, soft_cap)
    }

    /// The mean over each of these ranges of rows, `[ranges, features]`. No two have a row in common, and none is empty.
    fn means(x: Tensor<Ad<Self>, 2>, ranges: Vec<std::ops::Range<usize>>) -> Tensor<Ad<Self>, 2> {
        means::composed(x, &ranges)
    }

    /// Multi-head softmax attention within each packed sequence, `[queries, heads · head size]`.
    fn packed_attention(
        projected: Projected<Self>,
        layout: &AttentionLayout<Self>,
        dropout: Dropout,
    ) -> Tensor<Ad<Self>, 2> {
        attention::composed(projected, None, layout, dropout)
    }

    /// The same with disentangled positions (He et al. 2021, eq. 4): a score is `q·k + q·p_k + p_q·k`, where keys and queries
    /// of relative `positions`, `[rows, k | q]`, have the row that the layout's buckets give the pair.
    fn disentangled_attention(
        projected: Projected<Self>,
        positions: Tensor<Ad<Self>, 2>,
        layout: &AttentionLayout<Self>,
        dropout: Dropout,
    ) -> Tensor<Ad<Self>, 2> {
        attention::composed(projected, Some(positions), layout, dropout)
    }

    /// Inverted dropout (Srivastava et al. 2014): zero with probability p, else `x / (1 - p)`.
    fn dropout(x: Tensor<Ad<Self>, 2>, dropout: Dropout) -> Tensor<Ad<Self>, 2> {
        dropout::composed_in_a_row(x, dropout)
    }

    /// Lists of whole numbers on a device, `[values]` each. On a GPU they are copied there at once.
    fn whole_numbers(lists: &[Vec<u32>], device: &Self::Device) -> Vec<Tensor<Self, 1, Int>> {
        let lists = lists.iter().map(|list| {
            let values: Vec<i64> = list.iter().map(|value| i64::from(*value)).collect();
            Tensor::from_data(TensorData::new(values, [list.len()]), device)
        });
        lists.collect()
    }

    /// What dropout multiplies these elements by, 0 or `1 / (1 - p)`: a function of its seed, the same on every device.
    fn kept(elements: &Elements<Self>, dropout: Dropout, device: &Self::Device) -> Tensor<Self, 1> {
        dropout::kept(elements, dropout, device)
    }

    /// `[Σ|x|, Σx²]` over some columns of all rows.
    fn sums(x: Tensor<Self, 2>, columns: std::ops::Range<usize>) -> Tensor<Self, 1> {
        measure::composed(x, columns)
    }

    /// `[Σ|x|, Σx²]` of each of these matrices, in groups: which of them a group has, and their sums one after the
    /// other. Where launches cost more than copies, those of one size are one group.
    fn sums_of(tensors: &[Tensor<Self, 2>]) -> Vec<(Vec<usize>, Tensor<Self, 1>)> {
        measure::composed_of(tensors)
    }

    /// `[Σ ab, Σ |ab|]` of two matrices of the same shape.
    fn products(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        measure::composed_products(a, b)
    }

    /// `Σ x²` of each column, `[columns]`.
    fn column_squares(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        measure::composed_column_squares(x)
    }

    /// `Σ_e ‖narrow_eᵀ·wide_e‖²` over the examples e, whose rows lie between consecutive offsets in `examples`, of
    /// `narrow [rows, rank]` and some columns of `wide [rows, width]`: with a layer's input on one side and its
    /// output's gradient on the other, the squared norms of the examples' own gradients.
    fn example_squares(
        narrow: Tensor<Self, 2>,
        wide: Tensor<Self, 2>,
        columns: std::ops::Range<usize>,
        examples: &[usize],
    ) -> Tensor<Self, 1> {
        measure::composed_example_squares(narrow, wide, columns, examples)
    }

    /// One AdamW update of a parameter and its moments.
    fn adamw(
        parameter: Moments<Self>,
        gradient: Tensor<Self, 2>,
        step: AdamWStep,
    ) -> Moments<Self> {
        adamw::composed(parameter, gradient, step)
    }
}

impl Kernels for Flex {
    type Packed = std::sync::Arc<panels::Panels>;

    fn pack(weight: &Tensor<Self, 2>, precision: Precision) -> Self::Packed {
        linear::pack(weight, precision).into()
    }

    fn computes(precision: Precision, _: &Self::Device) -> bool {
        precision != Precision::F16
    }

    fn linears(x: Tensor<Ad<Self>, 2>, branches: Vec<Branch<'_, Self>>) -> Outputs<Self> {
        linear::cpu(x, branches)
    }

    fn scaled(
        matrix: &Tensor<Self, 2>,
        rows: Tensor<Ad<Self>, 2>,
        columns: Tensor<Ad<Self>, 2>,
    ) -> Tensor<Ad<Self>, 2> {
        scaled::cpu(matrix, rows, columns)
    }

    fn per_column(
        x: Tensor<Ad<Self>, 2>,
        factors: Option<Tensor<Ad<Self>, 2>>,
        offsets: Option<Tensor<Ad<Self>, 2>>,
    ) -> Tensor<Ad<Self>, 2> {
        columns::cpu(x, factors, offsets)
    }

    fn lookup(
        matrix: Tensor<Ad<Self>, 2>,
        ids: Tensor<Self, 1, Int>,
        still: Option<usize>,
    ) -> Tensor<Ad<Self>, 2> {
        lookup::cpu(matrix, ids, still)
    }

    fn activation(x: Tensor<Ad<Self>, 2>, function: Activation) -> Tensor<Ad<Self>, 2> {
        activation::cpu(x, function)
    }

    fn gated(x: Tensor<Ad<Self>, 2>, function: Activation) -> Tensor<Ad<Self>, 2> {
        activation::cpu_gated(x, function)
    }

    fn add_norm(
        x: Tensor<Ad<Self>, 2>,
        residual: Option<Tensor<Ad<Self>, 2>>,
        norm: &Norm<Self>,
    ) -> Tensor<Ad<Self>, 2> {
        norm::cpu(x, residual, norm)
    }

    fn rotate(
        x: Tensor<Ad<Self>, 2>,
        columns: usize,
        angles: &Angles<Self>,
    ) -> Tensor<Ad<Self>, 2> {
        rotary::cpu(x, columns, angles)
    }

    fn linear_cross_entropy(
        x: Tensor<Ad<Self>, 2>,
        head: &Frozen<Self>,
        targets: Targets<'_, Self>,
        soft_cap: Option<f32>,
    ) -> Tensor<Ad<Self>, 1> {
        cross_entropy::cpu(x, head, targets.classes, soft_cap)
    }

    fn means(x: Tensor<Ad<Self>, 2>, ranges: Vec<std::ops::Range<usize>>) -> Tensor<Ad<Self>, 2> {
        means::cpu(x, ranges)
    }

    fn packed_attention(
        projected: Projected<Self>,
        layout: &AttentionLayout<Self>,
        dropout: Dropout,
    ) -> Tensor<Ad<Self>, 2> {
        attention::cpu(projected, None, layout, dropout)
    }

    fn disentangled_attention(
        projected: Projected<Self>,
        positions: Tensor<Ad<Self>, 2>,
        layout: &AttentionLayout<Self>,
        dropout: Dropout,
    ) -> Tensor<Ad<Self>, 2> {
        attention::cpu(projected, Some(positions), layout, dropout)
    }

    fn dropout(x: Tensor<Ad<Self>, 2>, dropout: Dropout) -> Tensor<Ad<Self>, 2> {
        dropout::cpu(x, dropout)
    }

    fn sums(x: Tensor<Self, 2>, columns: std::ops::Range<usize>) -> Tensor<Self, 1> {
        measure::cpu(x, columns)
    }

    fn sums_of(tensors: &[Tensor<Self, 2>]) -> Vec<(Vec<usize>, Tensor<Self, 1>)> {
        measure::cpu_of(tensors)
    }

    fn products(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        measure::cpu_products(a, b)
    }

    fn column_squares(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        measure::cpu_column_squares(x)
    }

    fn example_squares(
        narrow: Tensor<Self, 2>,
        wide: Tensor<Self, 2>,
        columns: std::ops::Range<usize>,
        examples: &[usize],
    ) -> Tensor<Self, 1> {
        measure::cpu_example_squares(narrow, wide, columns, examples)
    }

    fn adamw(
        parameter: Moments<Self>,
        gradient: Tensor<Self, 2>,
        step: AdamWStep,
    ) -> Moments<Self> {
        adamw::cpu(parameter, gradient, step)
    }
}

impl Kernels for Composed {
    type Packed = ();

    fn pack(_: &Tensor<Self, 2>, _: Precision) {}
}

#[cfg(feature = "cuda")]
impl Kernels for burn_cuda::Cuda {
    type Packed = ();

    fn pack(_: &Tensor<Self, 2>, _: Precision) {}

    fn kept(elements: &Elements<Self>, dropout: Dropout, device: &Self::Device) -> Tensor<Self, 1> {
        dropout::gpu::kept(elements, dropout, device)
    }

    fn whole_numbers(lists: &[Vec<u32>], device: &Self::Device) -> Vec<Tensor<Self, 1, Int>> {
        upload::whole_numbers(lists, device)
    }
}

#[cfg(feature = "wgpu")]
impl Kernels for burn_wgpu::Wgpu {
    type Packed = ();

    fn pack(_: &Tensor<Self, 2>, _: Precision) {}

    fn kept(elements: &Elements<Self>, dropout: Dropout, device: &Self::Device) -> Tensor<Self, 1> {
        dropout::gpu::kept(elements, dropout, device)
    }

    fn whole_numbers(lists: &[Vec<u32>], device: &Self::Device) -> Vec<Tensor<Self, 1, Int>> {
        upload::whole_numbers(lists, device)
    }
}
