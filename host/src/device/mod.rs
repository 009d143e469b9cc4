//! Which device a run uses, and why.

mod cuda;

pub use cuda::{Cuda, CudaDevice, Missing};

use crate::error::{Error, Result};
use crate::recipe::Device;

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// burn-flex on all cores.
    Cpu,
    /// burn-cuda on the device of this index.
    Cuda(usize),
}

/// Settles what the recipe asks for. `auto` takes CUDA where driver, compiler library and device are there,
/// else the CPU. Returns the device and a sentence on which it is and why.
pub fn choose(wanted: Device) -> Result<(Chosen, String)> {
    match wanted {
        Device::Cpu => Ok((Chosen::Cpu, format!("CPU ({}), as asked for", cpu()))),
        Device::Cuda(index) => match cuda_devices() {
            Ok(count) if index < count => {
                Ok((Chosen::Cuda(index), format!("CUDA device {index}, as asked for")))
            }
            Ok(count) => Err(Error::user(format!(
                "device = \"cuda:{index}\", but the driver reports {count} CUDA device(s)"
            ))
            .help("indices count from 0; device = \"auto\" takes what is there")),
            Err(reason) => Err(Error::user(format!("device = \"cuda:{index}\", but {reason}"))
                .help("`dynalora devices` says what is there and how to get what is missing; device = \"auto\" or \"cpu\" does without")),
        },
        Device::Auto => Ok(match cuda_devices() {
            Ok(0) => (Chosen::Cpu, format!("CPU ({}): the driver reports no CUDA device", cpu())),
            Ok(_) => (Chosen::Cuda(0), "CUDA device 0: a usable driver and device were found".to_owned()),
            Err(reason) => (Chosen::Cpu, format!("CPU ({}): {reason}", cpu())),
        }),
    }
}

/// Threads and instructions of the CPU.
pub fn cpu() -> String {
    let threads = rayon::current_num_threads();
    let threads = if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    };
    format!("{threads}, {:?}", crate::kernel::simd::level())
}

/// How many CUDA devices can be used, or why none can. burn panics on threads of its own where something is missing, so
/// all that it needs is looked for first.
fn cuda_devices() -> Result<usize, String> {
    if !cfg!(feature = "cuda") {
        return Err("this program was built without the `cuda` feature".to_owned());
    }
    let cuda = Cuda::look();
    match cuda.missing.first() {
        None => Ok(cuda.devices.len()),
        Some(missing) => Err(missing.what.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device_and_says_why() {
        let (chosen, why) = choose(Device::Auto).expect("auto never fails");
        match chosen {
            Chosen::Cpu => assert!(why.starts_with("CPU") && why.contains(": "), "{why}"),
            Chosen::Cuda(0) => assert!(why.contains("found"), "{why}"),
            Chosen::Cuda(_) => panic!("auto takes the first device: {why}"),
        }
    }

    #[test]
    fn an_absent_device_is_the_users_to_change() {
        let error = choose(Device::Cuda(99)).expect_err("no machine has a hundred devices");
        assert_eq!(error.exit_code(), 2);
    }
}
