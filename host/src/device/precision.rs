//! Which precisions products can be computed in on a device, as far as only the device can tell.

use super::{Chosen, Cuda};
use crate::error::{Error, Result};
use crate::kernel::{self, Kernels, bf16_is_native};
use crate::recipe::{Device, Precision};

/// The least compute capability that has tf32.
const TF32: f32 = 8.0;

impl Chosen {
    /// What a recipe calls it.
    fn kind(&self) -> Device {
        match self {
            Chosen::Cpu => Device::Cpu,
            Chosen::Cuda(index) => Device::Cuda(*index),
            // Which of wgpu's interfaces it has makes no difference here.
            Chosen::Wgpu(_) => Device::WebGpu(0),
        }
    }
}

/// Refuses a precision that the chosen device, which is called `name`, has not, and says where one is not what its name
/// says.
pub fn check_precision<B: Kernels>(
    wanted: Precision,
    chosen: &Chosen,
    name: &str,
    device: &B::Device,
) -> Result<()> {
    let has_tf32 = || match chosen {
        Chosen::Cuda(index) => has_tf32(*index),
        _ => false,
    };
    let computes = |precision: &Precision| match precision {
        Precision::F32 => true,
        Precision::Tf32 => has_tf32(),
        Precision::Bf16 => B::computes(kernel::Precision::Bf16, device),
        Precision::F16 => B::computes(kernel::Precision::F16, device),
    };
    let of_kind = Precision::of(chosen.kind());
    if !of_kind.contains(&wanted) || !computes(&wanted) {
        let others = of_kind.iter().filter(|precision| computes(precision));
        let others: Vec<_> = others
            .map(|precision| format!("\"{}\"", precision.name()))
            .collect();
        let wanted = wanted.name();
        return Err(Error::user(format!(
            "model.precision is \"{wanted}\", in which {name} cannot compute"
        ))
        .help(format!(
            "set model.precision to {}, or take another device",
            others.join(" or ")
        )));
    }
    match wanted {
        Precision::F32 if has_tf32() => tracing::warn!(
            "model.precision is \"f32\", but on {name} burn may take the tensor cores, whose products of f32 are tf32, \
             wherever that is faster: set model.precision = \"tf32\" to say so"
        ),
        Precision::Bf16 if *chosen == Chosen::Cpu && !bf16_is_native() => tracing::warn!(
            "model.precision is \"bf16\", but this CPU has no AVX512-BF16: results are the same, and slower than in f32"
        ),
        _ => {}
    }
    Ok(())
}

/// Whether the CUDA device of this index has tensor cores for tf32.
fn has_tf32(index: usize) -> bool {
    let cuda = Cuda::look();
    let device = cuda.devices.get(index);
    let capability = device.and_then(|device| device.compute_capability.parse::<f32>().ok());
    capability.is_some_and(|capability| capability >= TF32)
}
