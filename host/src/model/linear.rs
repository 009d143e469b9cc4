//! The one type every linear layer goes through.

use super::Weights;
use super::architecture::WeightLayout;
use crate::adapter::LinearInfo;
use crate::error::Result;
use crate::kernel::{Frozen, Kernels, Precision};

/// A frozen linear layer, and which module it is. Run by [`Pass::linear`](crate::adapter::Pass::linear), which
/// has the adapters.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// Weight and bias.
    pub frozen: Frozen<B>,
    /// Its index among the adapted modules.
    pub module: Option<usize>,
}

/// Where a checkpoint has a model's linear layers.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The checkpoint.
    pub weights: &'a Weights,
    /// What names of the body begin with.
    pub prefix: &'a str,
    /// How weights lie.
    pub layout: WeightLayout,
    /// What products with them are computed in.
    pub precision: Precision,
}

impl Source<'_> {
    /// The shape of a layer's weight in the checkpoint.
    pub fn shape(self, inputs: usize, outputs: usize) -> [usize; 2] {
        match self.layout {
            WeightLayout::OutIn => [outputs, inputs],
            WeightLayout::InOut => [inputs, outputs],
        }
    }

    /// Refuses a checkpoint that has not `{prefix}{path}.weight`, and `.bias` if there is one.
    pub fn require(self, info: &LinearInfo, bias: bool) -> Result<()> {
        let name = format!("{}{}", self.prefix, info.path);
        let shape = self.shape(info.inputs, info.outputs);
        self.weights.require(&format!("{name}.weight"), &shape)?;
        match bias {
            true => self
                .weights
                .require(&format!("{name}.bias"), &[info.outputs]),
            false => Ok(()),
        }
    }

    /// The weight `[out, in]` of the layer at `path`.
    pub fn weight<B: Kernels>(
        self,
        path: &str,
        [inputs, outputs]: [usize; 2],
        device: &B::Device,
    ) -> Result<burn::tensor::Tensor<B, 2>> {
        let name = format!("{}{path}.weight", self.prefix);
        let weight = self
            .weights
            .tensor(&name, self.shape(inputs, outputs), device)?;
        Ok(match self.layout {
            WeightLayout::OutIn => weight,
            WeightLayout::InOut => weight.transpose(),
        })
    }
}

impl<B: Kernels> Linear<B> {
    /// Loads `{prefix}{path}.weight`, and `.bias` if there is one.
    pub fn load(
        source: Source<'_>,
        info: &LinearInfo,
        bias: bool,
        module: Option<usize>,
        device: &B::Device,
    ) -> Result<Self> {
        let weight = source.weight(&info.path, [info.inputs, info.outputs], device)?;
        let name = format!("{}{}.bias", source.prefix, info.path);
        let bias = bias.then(|| source.weights.tensor(&name, [info.outputs], device));
        Ok(Linear {
            frozen: Frozen::lean(weight, bias.transpose()?, source.precision),
            module,
        })
    }

    /// What a pass needs of it.
    pub fn parts(&self) -> (&Frozen<B>, Option<usize>) {
        (&self.frozen, self.module)
    }
}
