//! Which device a run uses, and why.

mod cuda;
mod precision;
mod tuning;
mod wgpu;

pub use cuda::{Cuda, CudaDevice, Missing};
pub use precision::check_precision;
#[cfg(feature = "wgpu")]
pub use wgpu::open;
pub use wgpu::{Adapter, Interface, Kind, Wgpu};

use crate::error::{Error, Result};
use crate::recipe::Device;

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// burn-flex on all cores.
    Cpu,
    /// burn-cuda on the device of this index.
    Cuda(usize),
    /// burn-wgpu on this adapter.
    Wgpu(Adapter),
}

/// Settles what the recipe asks for. `auto` takes CUDA where driver, compiler library and device are there, else the
/// first adapter of wgpu that is [worth taking](Adapter::is_worth_taking), else the CPU. Returns the device and a
/// sentence on which it is and why. burn panics on threads of its own where something is missing, so all that it needs
/// is looked for first.
pub fn choose(wanted: Device) -> Result<(Chosen, String)> {
    match wanted {
        Device::Cpu => Ok((Chosen::Cpu, format!("CPU ({}), as asked for", cpu()))),
        Device::Auto => Ok(automatic()),
        Device::Cuda(index) => match cuda_devices() {
            Ok(devices) if index < devices.len() => {
                Ok((cuda(&devices, index), format!("CUDA device {index}, as asked for")))
            }
            Ok(devices) => Err(Error::user(format!(
                "device = \"cuda:{index}\", but the driver reports {} CUDA device(s)",
                devices.len()
            ))
            .help("indices count from 0; device = \"auto\" takes what is there")),
            Err(reason) => Err(Error::user(format!("device = \"cuda:{index}\", but {reason}"))
                .help("`dynalora devices` says what is there and how to get what is missing; device = \"auto\" or \"cpu\" does without")),
        },
        Device::Vulkan(index) => adapter(wanted, Some(Interface::Vulkan), index),
        Device::Metal(index) => adapter(wanted, Some(Interface::Metal), index),
        Device::WebGpu(index) => adapter(wanted, None, index),
    }
}

/// What `auto` takes.
fn automatic() -> (Chosen, String) {
    let mut reasons = Vec::new();
    match cuda_devices() {
        Ok(devices) if devices.is_empty() => {
            reasons.push("the driver reports no CUDA device".to_owned());
        }
        Ok(devices) => {
            let why = "CUDA device 0: a usable driver and device were found";
            return (cuda(&devices, 0), why.to_owned());
        }
        Err(reason) => reasons.push(reason),
    }
    let Wgpu { adapters, missing } = Wgpu::look();
    reasons.extend(missing.into_iter().map(|missing| missing.what));
    for adapter in adapters {
        if !adapter.is_worth_taking() {
            reasons.push(format!(
                "{} ({}) is {} and only taken by name",
                adapter.device,
                adapter.name,
                adapter.kind.words()
            ));
            continue;
        }
        match starts(&adapter) {
            Ok(()) => {
                let why = format!("{}: {}", described(&adapter), reasons.join("; "));
                return (Chosen::Wgpu(adapter), why);
            }
            Err(error) => reasons.push(format!("{} does not start: {error}", adapter.device)),
        }
    }
    (
        Chosen::Cpu,
        format!("CPU ({}): {}", cpu(), reasons.join("; ")),
    )
}

/// The adapter of this index among those of an interface, or among all.
fn adapter(wanted: Device, interface: Option<Interface>, index: usize) -> Result<(Chosen, String)> {
    const WITHOUT: &str = "device = \"auto\" or \"cpu\" does without";
    let refused = |why: &str| Error::user(format!("device = \"{wanted}\", but {why}"));
    if interface == Some(Interface::Metal) && !cfg!(target_vendor = "apple") {
        let help = format!("device = \"webgpu\" is any GPU of this system; {WITHOUT}");
        return Err(refused("only Apple's systems have Metal").help(help));
    }
    let Wgpu { adapters, missing } = Wgpu::look();
    if let Some(missing) = missing.first() {
        let help = format!("{}; {WITHOUT}", missing.help);
        return Err(refused(&missing.what).help(help));
    }
    let of_interface =
        |adapter: &Adapter| interface.is_none_or(|interface| adapter.interface == interface);
    let mut adapters: Vec<Adapter> = adapters.into_iter().filter(of_interface).collect();
    if index >= adapters.len() {
        let of = interface.map_or("", Interface::name);
        let why = match adapters.len() {
            0 => format!("{of} has no adapter here"),
            1 => format!("there is one {of} adapter"),
            more => format!("there are {more} {of} adapters"),
        };
        let help = "`dynalora devices` lists them, with indices from 0";
        return Err(refused(&why.replace("  ", " ")).help(format!("{help}; {WITHOUT}")));
    }
    let adapter = adapters.swap_remove(index);
    if let Err(error) = starts(&adapter) {
        let why = format!("{} does not start: {error}", adapter.name);
        return Err(refused(&why).help(format!("its driver may be too old; {WITHOUT}")));
    }
    let why = format!("{}, as asked for", described(&adapter));
    Ok((Chosen::Wgpu(adapter), why))
}

fn described(adapter: &Adapter) -> String {
    format!(
        "{} ({}, {})",
        adapter.device,
        adapter.name,
        adapter.kind.words()
    )
}

/// Starts burn on an adapter.
#[cfg(feature = "wgpu")]
fn starts(adapter: &Adapter) -> Result<(), String> {
    open(adapter).map(drop)
}

#[cfg(not(feature = "wgpu"))]
fn starts(_: &Adapter) -> Result<(), String> {
    Err("this program was built without the `wgpu` feature".to_owned())
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

/// The CUDA devices that can be used, or why none can.
fn cuda_devices() -> Result<Vec<CudaDevice>, String> {
    if !cfg!(feature = "cuda") {
        return Err("this program was built without the `cuda` feature".to_owned());
    }
    let cuda = Cuda::look();
    match cuda.missing.first() {
        None => Ok(cuda.devices),
        Some(missing) => Err(missing.what.clone()),
    }
}

fn cuda(devices: &[CudaDevice], index: usize) -> Chosen {
    tuning::keep_tuning(&format!("CUDA {}", devices[index].name));
    Chosen::Cuda(index)
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
            Chosen::Wgpu(adapter) => assert!(adapter.is_worth_taking(), "{why}"),
        }
    }

    #[test]
    fn auto_takes_no_adapter_that_may_be_slower_than_the_cpu() {
        let worth = |interface, kind| {
            let adapter = Adapter {
                device: String::new(),
                interface,
                name: "an adapter".to_owned(),
                driver: String::new(),
                kind,
                memory: None,
            };
            adapter.is_worth_taking()
        };
        for interface in [Interface::Vulkan, Interface::Metal, Interface::Dx12] {
            assert!(worth(interface, Kind::Discrete));
            let apples = interface == Interface::Metal;
            assert_eq!(worth(interface, Kind::Integrated), apples);
            for kind in [Kind::Software, Kind::Virtual, Kind::Unknown] {
                assert!(!worth(interface, kind));
            }
        }
    }

    #[test]
    fn an_absent_device_is_the_users_to_change() {
        for device in [
            Device::Cuda(99),
            Device::Vulkan(99),
            Device::Metal(99),
            Device::WebGpu(99),
        ] {
            let error = choose(device).expect_err("no machine has a hundred devices");
            assert_eq!(error.exit_code(), 2);
            let said = error.to_string();
            assert!(said.contains(&format!("\"{device}\", but ")), "{said}");
        }
    }
}
