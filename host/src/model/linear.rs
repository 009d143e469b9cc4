//! The one type every linear layer goes through.

use burn::tensor::Tensor;

use super::Weights;
use crate::adapter::{LinearInfo, Pass};
use crate::error::Result;
use crate::kernel::{Ad, Kernels};

/// A frozen linear layer, with an adapter beside it if it is a module.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// `W: [out, in]`.
    weight: Tensor<B, 2>,
    /// `b: [out]`.
    bias: Tensor<B, 1>,
    /// Its index among the adapted modules.
    module: Option<usize>,
}

impl<B: Kernels> Linear<B> {
    /// Loads `{prefix}{path}.weight` and `.bias`.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        info: &LinearInfo,
        module: Option<usize>,
        device: &B::Device,
    ) -> Result<Self> {
        let name = format!("{prefix}{}", info.path);
        Ok(Linear {
            weight: weights.tensor(
                &format!("{name}.weight"),
                [info.outputs, info.inputs],
                device,
            )?,
            bias: weights.tensor(&format!("{name}.bias"), [info.outputs], device)?,
            module,
        })
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub fn forward(&self, x: Tensor<Ad<B>, 2>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        match self.module {
            Some(module) => pass.adapted(module, x, &self.weight, Some(&self.bias)),
            None => B::frozen_linear(x, &self.weight, Some(&self.bias)),
        }
    }
}
