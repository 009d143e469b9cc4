//! What there is of GPUs behind Vulkan, Metal and DirectX 12, as wgpu sees them. A feature of the program.

use serde::Serialize;

use super::Missing;

#[cfg(feature = "wgpu")]
mod adapters;
#[cfg(feature = "wgpu")]
pub use adapters::open;

/// All adapters, and what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wgpu {
    /// In the order that the system gives, which is that of the indices.
    pub adapters: Vec<Adapter>,
    /// What is not there.
    pub missing: Vec<Missing>,
}

/// A GPU behind one interface; behind two it is listed twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// Its name in a recipe, `vulkan:0`: its index is that among those of its interface. Of DirectX 12, which has no
    /// name there, `webgpu:0`, by the index among all.
    pub device: String,
    /// Its interface.
    pub interface: Interface,
    /// What it calls itself.
    pub name: String,
    /// Its driver and that one's version, in the driver's words.
    pub driver: String,
    /// What it is.
    pub kind: Kind,
    /// Its own memory in bytes, or of the system's what it may use as its own; where the interface tells.
    pub memory: Option<u64>,
}

/// How a program talks to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// Vulkan.
    Vulkan,
    /// Apple's Metal.
    Metal,
    /// DirectX 12.
    Dx12,
}

/// What an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor; all of Apple's are.
    Integrated,
    /// A part of another machine's.
    Virtual,
    /// A driver that computes on the CPU.
    Software,
    /// The driver does not say.
    Unknown,
}

impl Interface {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Interface::Vulkan => "Vulkan",
            Interface::Metal => "Metal",
            Interface::Dx12 => "DirectX 12",
        }
    }
}

impl Kind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Kind::Discrete => "a discrete GPU",
            Kind::Integrated => "an integrated GPU",
            Kind::Virtual => "a virtual GPU",
            Kind::Software => "software on the CPU",
            Kind::Unknown => "of unknown kind",
        }
    }
}

impl Adapter {
    /// Whether `auto` may take it. What computes on the CPU is slower than the program's own kernels there; integrated
    /// GPUs may be, but for Apple's.
    pub fn is_worth_taking(&self) -> bool {
        match self.kind {
            Kind::Discrete => true,
            Kind::Integrated => self.interface == Interface::Metal,
            Kind::Virtual | Kind::Software | Kind::Unknown => false,
        }
    }
}

impl Wgpu {
    /// Looks for all of it. Nothing is started on an adapter.
    #[cfg(feature = "wgpu")]
    pub fn look() -> Wgpu {
        let adapters = adapters::all();
        let missing = match adapters.is_empty() {
            true => vec![nothing()],
            false => Vec::new(),
        };
        Wgpu { adapters, missing }
    }

    /// Says that the program cannot look.
    #[cfg(not(feature = "wgpu"))]
    pub fn look() -> Wgpu {
        Wgpu {
            adapters: Vec::new(),
            missing: vec![Missing {
                what: "this program was built without the `wgpu` feature".to_owned(),
                help: "build it with `--features dynalora/wgpu` for Vulkan, Metal and DirectX 12"
                    .to_owned(),
            }],
        }
    }
}

/// Why no adapter was found.
#[cfg(feature = "wgpu")]
fn nothing() -> Missing {
    let missing = |what: &str, help: &str| Missing {
        what: what.to_owned(),
        help: help.to_owned(),
    };
    if cfg!(target_os = "macos") {
        return missing(
            "Metal has no GPU",
            "a virtual machine needs one that is passed in",
        );
    }
    if cfg!(windows) {
        return missing(
            "neither Vulkan nor DirectX 12 has a GPU",
            "install the GPU's driver",
        );
    }
    // SAFETY: the loader's own initialisers, which every program that uses Vulkan trusts.
    match unsafe { libloading::Library::new("libvulkan.so.1") } {
        Err(_) => missing(
            "no Vulkan loader was found (libvulkan.so.1 is missing)",
            "install libvulkan1 (Fedora and Arch: vulkan-loader, vulkan-icd-loader) and a driver: mesa-vulkan-drivers \
             for GPUs of AMD and Intel, and for none (software on the CPU, to test with), NVIDIA's own for theirs",
        ),
        Ok(_) => missing(
            "Vulkan's loader finds no driver with an adapter",
            "install one: mesa-vulkan-drivers for GPUs of AMD and Intel, and for none (software on the CPU, to test \
             with), NVIDIA's own for theirs; check VK_DRIVER_FILES and, in a container, that devices are passed in",
        ),
    }
}
