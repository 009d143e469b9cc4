//! What is measured once, before the first step: the frozen weights of the modules.

use burn::tensor::Tensor;
use dynalora_plugin_api::{Measured, ModuleInfo, Needs, Raw, RawValue, Signal};

use super::readout::{Readout, sums};
use super::trainee::read;
use crate::error::Result;
use crate::kernel::Kernels;
use crate::model::Pretrained;

/// The signals that are measured once.
const SIGNALS: [Signal; 2] = [Signal::FrozenWeightL1, Signal::FrozenWeightL2];

/// Whether any of that is asked for.
pub fn wanted(needs: &Needs) -> bool {
    needs.signals.iter().any(|signal| SIGNALS.contains(signal))
        || needs.raw.contains(&RawValue::FrozenWeight)
}

/// Measures what is asked for of the checkpoint's weights `W [out, in]`, one at a time: the model keeps its own laid
/// out for its products, and not as they were.
pub fn measure<B: Kernels>(
    pretrained: &Pretrained,
    modules: &[ModuleInfo],
    needs: &Needs,
    device: &B::Device,
) -> Result<(Vec<Measured>, Vec<Raw>)> {
    let asked = |signal: &Signal| SIGNALS.contains(signal);
    let signals: Vec<Signal> = needs.signals.iter().copied().filter(asked).collect();
    let whole = needs.raw.contains(&RawValue::FrozenWeight);
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
        signal,
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
        value: RawValue::FrozenWeight,
        buffers,
    });
    Ok((measured.collect(), raw.into_iter().collect()))
}
