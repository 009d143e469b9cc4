//! Which device a run uses, and why.

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
                .help("install the NVIDIA driver and the CUDA runtime compiler, or set device = \"auto\" or \"cpu\"")),
        },
        Device::Auto => Ok(match cuda_devices() {
            Ok(0) => (Chosen::Cpu, format!("CPU ({}): the driver reports no CUDA device", cpu())),
            Ok(_) => (Chosen::Cuda(0), "CUDA device 0: a usable driver and device were found".to_owned()),
            Err(reason) => (Chosen::Cpu, format!("CPU ({}): {reason}", cpu())),
        }),
    }
}

fn cpu() -> String {
    let threads = rayon::current_num_threads();
    let threads = if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    };
    format!("{threads}, {:?}", crate::kernel::simd::level())
}

/// How many CUDA devices can be used, or why none can. burn panics on a thread of its own where the
/// driver is missing, so this asks the driver first.
#[cfg(feature = "cuda")]
fn cuda_devices() -> Result<usize, String> {
    use libloading::{Library, Symbol};
    use std::ffi::c_int;

    let names: &[&str] = if cfg!(windows) {
        &["nvcuda.dll"]
    } else {
        &["libcuda.so.1", "libcuda.so"]
    };
    // SAFETY: loading the driver runs its own initialisers, which every CUDA program trusts.
    let load = |name: &&str| unsafe { Library::new(*name) }.ok();
    let driver = names
        .iter()
        .find_map(load)
        .ok_or_else(|| format!("no CUDA driver was found ({} is missing)", names[0]))?;
    let compiler = [
        "libnvrtc.so",
        "libnvrtc.so.13",
        "libnvrtc.so.12",
        "nvrtc64_120_0.dll",
    ];
    if !compiler.iter().any(|name| load(name).is_some()) {
        return Err(
            "a CUDA driver is there, but not its run-time compiler (libnvrtc.so)".to_owned(),
        );
    }
    // SAFETY: these are the signatures of cuInit and cuDeviceGetCount in the CUDA driver API.
    unsafe {
        let init: Symbol<'_, unsafe extern "C" fn(u32) -> c_int> = driver
            .get(b"cuInit\0")
            .map_err(|error| format!("the CUDA driver is damaged: {error}"))?;
        let count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> = driver
            .get(b"cuDeviceGetCount\0")
            .map_err(|error| format!("the CUDA driver is damaged: {error}"))?;
        let status = init(0);
        if status != 0 {
            return Err(format!("the CUDA driver does not start (error {status})"));
        }
        let mut devices: c_int = 0;
        let status = count(&mut devices);
        if status != 0 {
            return Err(format!(
                "the CUDA driver cannot count its devices (error {status})"
            ));
        }
        Ok(devices.max(0) as usize)
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Result<usize, String> {
    Err("this program was built without the `cuda` feature".to_owned())
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
