//! Adapters as wgpu lists them, and burn started on one.

use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use burn_wgpu::{RuntimeOptions, WgpuDevice, WgpuSetup};
use wgpu::{Backend, Backends, DeviceType, Features};

use super::{Adapter, Interface, Kind};
use crate::device::tuning::keep_tuning;

/// What `dynalora` computes with. OpenGL is left out: its shaders lack what burn's kernels need.
const BACKENDS: Backends = Backends::VULKAN
    .union(Backends::METAL)
    .union(Backends::DX12);

/// All adapters.
pub fn all() -> Vec<Adapter> {
    listed().1.into_iter().map(|(adapter, _)| adapter).collect()
}

/// Starts burn on an adapter; once in a process, however often it is asked for.
pub fn open(adapter: &Adapter) -> Result<WgpuDevice, String> {
    static OPEN: Mutex<Vec<(String, WgpuDevice)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = open.iter().find(|(name, _)| *name == adapter.device) {
        return Ok(device.clone());
    }
    let (instance, adapters) = listed();
    let found = adapters.into_iter().find(|(found, _)| found == adapter);
    let (_, found) = found.ok_or("it is gone")?;
    let info = found.get_info();
    // As cubecl asks for one, but for what is experimental, which no kernel in WGSL uses.
    let features = found.features() - Features::MAPPABLE_PRIMARY_BUFFERS;
    let wanted = wgpu::DeviceDescriptor {
        required_features: features - Features::all_experimental_mask(),
        required_limits: found.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    };
    let (device, queue) = now(found.request_device(&wanted)).map_err(|error| error.to_string())?;
    let setup = WgpuSetup {
        instance,
        adapter: found,
        device,
        queue,
        backend: info.backend,
    };
    keep_tuning(&format!("{} {}", adapter.interface.name(), adapter.name));
    let device = burn_wgpu::init_device(setup, RuntimeOptions::default());
    open.push((adapter.device.clone(), device.clone()));
    Ok(device)
}

/// All adapters with what wgpu has of them.
fn listed() -> (wgpu::Instance, Vec<(Adapter, wgpu::Adapter)>) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: BACKENDS,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut listed: Vec<(Adapter, wgpu::Adapter)> = Vec::new();
    for adapter in now(instance.enumerate_adapters(BACKENDS)) {
        let info = adapter.get_info();
        let interface = match info.backend {
            Backend::Vulkan => Interface::Vulkan,
            Backend::Metal => Interface::Metal,
            Backend::Dx12 => Interface::Dx12,
            Backend::Noop | Backend::Gl | Backend::BrowserWebGpu => continue,
        };
        let before = listed.iter().filter(|(it, _)| it.interface == interface);
        let found = Adapter {
            device: match interface {
                Interface::Vulkan => format!("vulkan:{}", before.count()),
                Interface::Metal => format!("metal:{}", before.count()),
                Interface::Dx12 => format!("webgpu:{}", listed.len()),
            },
            interface,
            name: info.name,
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            kind: match info.device_type {
                DeviceType::DiscreteGpu => Kind::Discrete,
                DeviceType::IntegratedGpu => Kind::Integrated,
                DeviceType::VirtualGpu => Kind::Virtual,
                DeviceType::Cpu => Kind::Software,
                DeviceType::Other => Kind::Unknown,
            },
            memory: memory(&adapter),
        };
        listed.push((found, adapter));
    }
    (instance, listed)
}

/// The size of an adapter's own memory, which only Vulkan tells.
#[cfg(any(target_os = "linux", windows))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the adapter is only asked what it is; nothing of it is kept or destroyed.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (device, instance) = (vulkan.raw_physical_device(), vulkan.shared_instance());
    // SAFETY: the device is one of this instance's.
    let properties = unsafe {
        let instance = instance.raw_instance();
        instance.get_physical_device_memory_properties(device)
    };
    let heaps = properties.memory_heaps.iter();
    let heaps = heaps.take(properties.memory_heap_count as usize);
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    let local = heaps.filter(|heap| heap.flags.as_raw() & 1 != 0);
    Some(local.map(|heap| heap.size).sum())
}

#[cfg(not(any(target_os = "linux", windows)))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// What a future of wgpu comes to, which is there at once everywhere but in a browser.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(found) => found,
        Poll::Pending => unreachable!("wgpu answers at once outside of browsers"),
    }
}
