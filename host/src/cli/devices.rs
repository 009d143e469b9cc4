//! `dynalora devices`

use serde::Serialize;

use super::{Common, print, print_json, table};
use crate::device::{self, Adapter, Cuda, Wgpu};
use crate::error::Result;
use crate::number::size;
use crate::recipe::Device;

/// Arguments of `dynalora devices`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Devices {
    /// What `device = "auto"` takes, and why.
    auto: String,
    /// Threads and instructions.
    cpu: String,
    /// Whether the program can compute with CUDA at all.
    built_with_cuda: bool,
    cuda: Cuda,
    /// Whether the program can compute with wgpu at all.
    built_with_wgpu: bool,
    wgpu: Wgpu,
}

/// Says which devices there are, and what is missing of those that are not.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let (_, auto) = device::choose(Device::Auto)?;
    let devices = Devices {
        auto,
        cpu: device::cpu(),
        built_with_cuda: cfg!(feature = "cuda"),
        cuda: Cuda::look(),
        built_with_wgpu: cfg!(feature = "wgpu"),
        wgpu: Wgpu::look(),
    };
    if arguments.json {
        return print_json(&devices);
    }
    print(&shown(&devices))
}

fn shown(devices: &Devices) -> String {
    let Devices { cuda, wgpu, .. } = devices;
    let mut table = table(&["device", "", "memory"]);
    table.add_row(["cpu", &devices.cpu, ""]);
    for (index, device) in cuda.devices.iter().enumerate() {
        let what = format!(
            "{}, compute capability {}",
            device.name, device.compute_capability
        );
        table.add_row([format!("cuda:{index}"), what, size(device.memory)]);
    }
    for adapter in &wgpu.adapters {
        let Adapter { name, driver, .. } = adapter;
        let interface = adapter.interface.name();
        let what = format!("{name}, {} by {interface}, {driver}", adapter.kind.words());
        let memory = adapter.memory.map_or(String::new(), size);
        table.add_row([adapter.device.clone(), what, memory]);
    }
    let mut text = format!(
        "{}\n\ndevice = \"auto\": {}\n",
        table.trim_fmt(),
        devices.auto
    );
    if !devices.built_with_cuda {
        text.push_str("cuda: this program was built without it; build with the feature `cuda`, which is on by default\n");
    }
    let there = [
        cuda.driver
            .as_ref()
            .map(|version| format!("a driver for CUDA {version}")),
        cuda.compiler
            .as_ref()
            .map(|compiler| format!("the run-time compiler ({compiler})")),
        cuda.toolkit
            .as_ref()
            .map(|toolkit| format!("headers in {}", toolkit.display())),
    ];
    let there: Vec<String> = there.into_iter().flatten().collect();
    if !there.is_empty() {
        text.push_str(&format!("cuda: there is {}\n", there.join(", ")));
    }
    for missing in &cuda.missing {
        text.push_str(&format!("cuda: {}: {}\n", missing.what, missing.help));
    }
    for missing in &wgpu.missing {
        text.push_str(&format!("wgpu: {}: {}\n", missing.what, missing.help));
    }
    text.trim_end().to_owned()
}
