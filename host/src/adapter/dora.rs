//! DoRA: the size of each row of a weight trains apart from its direction (Liu et al. 2024, eq. 5).
//!
//! ```text
//! y = m/‖V‖ ∘ (V·x) + b,   V = W + s·BA
//! ```
//!
//! `‖V‖ [out]` are the norms of V's rows, through which no gradient flows (there, section 4.3), and m starts at `‖W‖`.
//! V itself is never formed: with r rows of A for r tokens, a row's
//!
//! ```text
//! ‖V‖² = ‖W‖² + 2s·B(A·Wᵀ) + s²·B(AAᵀ)Bᵀ
//! ```
//!
//! costs what running r tokens through the layer does.

use burn::tensor::{Tensor, TensorData};

use crate::kernel::{Branch, Frozen, Kernels};

/// A frozen weight `W [out, in]` under a module.
#[derive(Clone, Debug)]
pub enum Weight<B: Kernels> {
    /// Of a linear layer.
    Layer(Frozen<B>),
    /// A table of embeddings, `[in, out]`.
    Table(Tensor<B, 2>),
}

impl<B: Kernels> Weight<B> {
    /// The same without its bias.
    pub fn without_bias(&self) -> Self {
        match self {
            Weight::Layer(frozen) => Weight::Layer(frozen.without_bias()),
            table => table.clone(),
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Weight::Layer(frozen) => frozen.weight.dims(),
            Weight::Table(table) => {
                let [inputs, outputs] = table.dims();
                [outputs, inputs]
            }
        }
    }

    /// The bias beside it, `[out]`.
    pub fn bias(&self) -> Option<Tensor<B, 1>> {
        match self {
            Weight::Layer(frozen) => frozen.bias.clone(),
            Weight::Table(_) => None,
        }
    }

    /// `x·Wᵀ`, with the bias if there is one: `[rows, out]` of `[rows, in]`.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Weight::Layer(frozen) => {
                let branch = Branch { frozen, lora: None };
                B::linears(Tensor::from_inner(x), vec![branch]).y.inner()
            }
            Weight::Table(table) => x.matmul(table.clone()),
        }
    }
}

/// What V's rows are the sums of, each `[out, 1]`.
#[derive(Clone, Debug)]
pub struct Rows<B: Kernels> {
    /// `‖V‖`.
    pub norms: Tensor<B, 2>,
    /// `s·W·(BA)`.
    across: Tensor<B, 2>,
    /// `s²·‖BA‖²`.
    share: Tensor<B, 2>,
}

impl<B: Kernels> Rows<B> {
    /// Of a weight without its bias, whose rows have the norms `of_weight`, under a pair.
    pub fn of(
        weight: &Weight<B>,
        of_weight: &Tensor<B, 2>,
        [a, b]: &[Tensor<B, 2>; 2],
        scale: f32,
    ) -> Self {
        let of_a = weight.products(a.clone());
        let across = (of_a.transpose() * b.clone()).sum_dim(1) * scale;
        let gram = a.clone().matmul(a.clone().transpose());
        let share = (b.clone().matmul(gram) * b.clone()).sum_dim(1) * (scale * scale);
        let squares = of_weight.clone() * of_weight.clone() + across.clone() * 2.0 + share.clone();
        Rows {
            norms: squares.clamp_min(0.0).sqrt(),
            across,
            share,
        }
    }

    /// `‖ΔW‖²` of `ΔW = m/‖V‖ ∘ V − W`, `[1]`.
    pub fn change_squares(
        &self,
        of_weight: &Tensor<B, 2>,
        magnitude: &Tensor<B, 2>,
    ) -> Tensor<B, 1> {
        let norms = self.norms.clone();
        let factors = magnitude.clone() / norms.clone();
        // So that nothing is lost where m is nearly the norm.
        let beyond = (magnitude.clone() - norms.clone()) / norms;
        let of_weight = of_weight.clone() * of_weight.clone() * beyond.clone() * beyond.clone();
        let across = self.across.clone() * factors.clone() * beyond * 2.0;
        let share = self.share.clone() * factors.clone() * factors;
        (of_weight + across + share).sum().clamp_min(0.0)
    }
}

/// The norms of a weight's rows, `[out, 1]`, which lie one after the other in `weight`; or the first row that is zero,
/// which has no direction.
pub fn row_norms<B: Kernels>(
    weight: &[f32],
    outputs: usize,
    device: &B::Device,
) -> Result<Tensor<B, 2>, usize> {
    let rows = weight.chunks_exact((weight.len() / outputs.max(1)).max(1));
    let square = |row: &[f32]| row.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
    let norms: Vec<f32> = rows.map(|row| square(row).sqrt() as f32).collect();
    match norms.iter().position(|norm| *norm == 0.0) {
        Some(row) => Err(row),
        None => Ok(Tensor::from_data(
            TensorData::new(norms, [outputs, 1]),
            device,
        )),
    }
}
