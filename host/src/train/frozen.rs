//! What is measured once, before the first step: the frozen weights of the modules.

use burn::tensor::Tensor;
use dynalora_plugin_api::{Measured, ModuleInfo, Raw};

use super::readout::{Readout, sums};
use super::trainee::read;
use crate::allocation::{RawValue, Signal, Wanted};
use crate::error::Result;
use crate::kernel::Kernels;
use crate::model::Pretrained;

/// Measures what is asked for of the checkpoint's weights `W [out, in]`, one at a time: the model keeps its own laid
/// out for its products, and not as they were.
pub fn measure<B: Kernels>(
    pretrained: &Pretrained,
    modules: &[ModuleInfo],
    wanted: &Wanted,
    device: &B::Device,
) -> Result<(Vec<Measured>, Vec<Raw>)> {
    let Wanted { signals, raw, .. } = wanted.once();
    let whole = raw.contains(&RawValue::FrozenWeight);
    let mut readout = Readout::default();
    let (mut places, mut buffers) = (Vec::new(), Vec::new());
    for module in modules {
        let weight: Tensor<B, 2> = pretrained.frozen_weight(module, device)?;
        if !signals.is_empty() {
            places.push(readout.push(sums(&weight)));
        }
        if whole {
            buffers.push(read(weight)?);
        }
    }
    let values = match signals.is_empty() {
        true => Vec::new(),
        false => readout.values()?,
    };
    let measured = signals.into_iter().map(|signal| Measured {
        signal: signal.name(),
        values: places
            .iter()
            .map(|at| {
                Some(match signal {
                    Signal::FrozenWeightL1 => values[*at],
                    _ => values[at + 1].sqrt(),
                })
            })
            .collect(),
    });
    let raw = whole.then_some(Raw {
        value: RawValue::FrozenWeight.name(),
        buffers,
    });
    Ok((measured.collect(), raw.into_iter().collect()))
}
