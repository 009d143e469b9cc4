//! The one type every linear layer goes through.

use super::Weights;
use crate::adapter::LinearInfo;
use crate::error::Result;
use crate::kernel::{Frozen, Kernels};

/// A frozen linear layer, and which module it is. Run by [`Pass::linear`](crate::adapter::Pass::linear), which
/// has the adapters.
#[derive(Clone, Debug)]
pub struct Linear<B: Kernels> {
    /// Weight and bias.
    pub frozen: Frozen<B>,
    /// Its index among the adapted modules.
    pub module: Option<usize>,
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
        let weight = weights.tensor(
            &format!("{name}.weight"),
            [info.outputs, info.inputs],
            device,
        )?;
        let bias = weights.tensor(&format!("{name}.bias"), [info.outputs], device)?;
        Ok(Linear {
            frozen: Frozen::lean(weight, Some(bias)),
            module,
        })
    }

    /// What a pass needs of it.
    pub fn parts(&self) -> (&Frozen<B>, Option<usize>) {
        (&self.frozen, self.module)
    }
}
