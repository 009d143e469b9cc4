//! What there is of CUDA: driver, devices, run-time compiler, headers. Only looked for; nothing is started on a device.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};
use serde::Serialize;

/// All that burn needs to compute with CUDA, and what of it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// The newest CUDA that the driver can do, such as `13.0`; none without a driver.
    pub driver: Option<String>,
    /// The devices that the driver reports, by their index.
    pub devices: Vec<CudaDevice>,
    /// The run-time compiler: a name that the system finds, or a path.
    pub compiler: Option<String>,
    /// The folder whose `include` has the toolkit's headers.
    pub toolkit: Option<PathBuf>,
    /// What is not there, the most important first.
    pub missing: Vec<Missing>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its compute capability: `9.0`.
    pub compute_capability: String,
}

/// Something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// In a clause: "no CUDA driver was found".
    pub what: String,
    /// How to get it.
    pub help: String,
}

impl Cuda {
    /// Looks for all of it.
    pub fn look() -> Cuda {
        let mut cuda = Cuda::default();
        let mut miss = |what: String, help: &str| {
            cuda.missing.push(Missing {
                what,
                help: help.to_owned(),
            });
        };
        match driver() {
            Err(what) => miss(what, "install NVIDIA's driver, which has libcuda.so.1"),
            Ok((version, devices)) => {
                if devices.is_empty() {
                    miss(
                        "the driver reports no CUDA device".to_owned(),
                        "check `nvidia-smi`, CUDA_VISIBLE_DEVICES and, in a container, that devices are passed in",
                    );
                }
                (cuda.driver, cuda.devices) = (Some(version), devices);
            }
        }
        match compiler() {
            Some(found) => cuda.compiler = Some(found),
            None => miss(
                "CUDA's run-time compiler (libnvrtc.so) was not found".to_owned(),
                "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` in the Python environment that is active",
            ),
        }
        match toolkit() {
            Ok(found) => {
                // Without one of these some kernels do not compile, and others, which are slower, are taken in silence.
                for (header, package) in HEADERS {
                    if !found.join("include").join(header).exists() {
                        let what = format!("CUDA's headers in {} lack {header}", found.display());
                        miss(
                            what,
                            &format!(
                                "`pip install {package}` where that is from, or install the CUDA toolkit"
                            ),
                        );
                    }
                }
                cuda.toolkit = Some(found);
            }
            Err(Some(wheel)) => miss(
                "CUDA's headers are where the program does not look".to_owned(),
                &format!("set CUDA_PATH={}", wheel.display()),
            ),
            Err(None) => miss(
                "CUDA's headers were not found".to_owned(),
                "install the CUDA toolkit, or `pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl`, and set CUDA_PATH to the folder that has `include`",
            ),
        }
        cuda
    }
}

/// What kernels include of the toolkit, and the package for Python that has it.
const HEADERS: [(&str, &str); 2] = [
    ("cuda_runtime.h", "nvidia-cuda-runtime"),
    ("crt/mma.h", "nvidia-cuda-crt"),
];

/// A library by the first of these names that the system finds.
fn load(names: &[&str]) -> Option<(Library, String)> {
    names.iter().find_map(|name| {
        // SAFETY: loading NVIDIA's libraries runs their own initialisers, which every CUDA program trusts.
        let library = unsafe { Library::new(*name) }.ok()?;
        Some((library, (*name).to_owned()))
    })
}

const DRIVER: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so.1", "libcuda.so"]
};

/// The driver's version and its devices, or why there are none.
fn driver() -> Result<(String, Vec<CudaDevice>), String> {
    let (driver, _) = load(DRIVER)
        .ok_or_else(|| format!("no CUDA driver was found ({} is missing)", DRIVER[0]))?;
    let damaged = |error: libloading::Error| format!("the CUDA driver is damaged: {error}");
    // SAFETY: these are the signatures of the CUDA driver API, and every pointer is to memory of the size that they say.
    unsafe {
        let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_int> =
            driver.get(b"cuInit\0").map_err(damaged)?;
        let version_of: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
            driver.get(b"cuDriverGetVersion\0").map_err(damaged)?;
        let count_of: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
            driver.get(b"cuDeviceGetCount\0").map_err(damaged)?;
        let name_of: Symbol<'_, unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int> =
            driver.get(b"cuDeviceGetName\0").map_err(damaged)?;
        let memory_of: Symbol<'_, unsafe extern "C" fn(*mut usize, c_int) -> c_int> =
            driver.get(b"cuDeviceTotalMem_v2\0").map_err(damaged)?;
        let attribute_of: Symbol<'_, unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int> =
            driver.get(b"cuDeviceGetAttribute\0").map_err(damaged)?;
        let done = |status: c_int, what: &str| match status {
            0 => Ok(()),
            status => Err(format!("the CUDA driver {what} (error {status})")),
        };
        // Without a device it does not start either.
        match init(0) {
            NO_DEVICE => return Ok(("unknown".to_owned(), Vec::new())),
            status => done(status, "does not start")?,
        }
        let (mut version, mut count) = (0, 0);
        done(version_of(&raw mut version), "has no version")?;
        done(count_of(&raw mut count), "cannot count its devices")?;
        let device = |index: c_int| -> Result<CudaDevice, String> {
            let mut name = [0 as c_char; 256];
            done(
                name_of(name.as_mut_ptr(), 256, index),
                "cannot name a device",
            )?;
            name[255] = 0;
            let mut memory = 0;
            done(
                memory_of(&raw mut memory, index),
                "cannot tell a device's memory",
            )?;
            let (mut major, mut minor) = (0, 0);
            let what = "cannot tell a device's compute capability";
            done(attribute_of(&raw mut major, CAPABILITY_MAJOR, index), what)?;
            done(attribute_of(&raw mut minor, CAPABILITY_MINOR, index), what)?;
            Ok(CudaDevice {
                name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
                memory: memory as u64,
                compute_capability: format!("{major}.{minor}"),
            })
        };
        let devices = (0..count.max(0)).map(device).collect::<Result<_, _>>()?;
        Ok((
            format!("{}.{}", version / 1000, version % 1000 / 10),
            devices,
        ))
    }
}

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`; a device's number is its ordinal.
const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
const CAPABILITY_MINOR: c_int = 76;

/// The run-time compiler as the system finds it, or as Python's package has it: that one is loaded here and stays, so that
/// whoever asks for it by its name has it.
fn compiler() -> Option<String> {
    const NAMES: &[&str] = if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
    } else {
        &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]
    };
    if let Some((_, name)) = load(NAMES) {
        return Some(name);
    }
    for folder in ["cu13/lib", "cuda_nvrtc/lib"] {
        for path in NAMES
            .iter()
            .flat_map(|name| of_python(&format!("{folder}/{name}")))
        {
            // SAFETY: as above; the path is that of NVIDIA's own package.
            if let Ok(library) = unsafe { Library::new(&path) } {
                std::mem::forget(library);
                return Some(path.display().to_string());
            }
        }
    }
    None
}

/// Where cubecl looks for headers; otherwise where Python's package has them, if it does.
fn toolkit() -> Result<PathBuf, Option<PathBuf>> {
    let has_headers = |folder: &Path| folder.join("include").is_dir();
    let named = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let places = match named {
        // It looks nowhere else then.
        Some(named) => vec![named],
        None => ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).to_vec(),
    };
    let by_nvcc = || std::env::var_os("CUDA_PATH").is_none() && Path::new("/usr/bin/nvcc").exists();
    let found = places.into_iter().find(|place| has_headers(place));
    if let Some(found) = found.or_else(|| by_nvcc().then(|| PathBuf::from("/usr"))) {
        return Ok(found);
    }
    let wheels = ["cu13", "cuda_runtime"]
        .iter()
        .flat_map(|folder| of_python(folder));
    Err(wheels.into_iter().find(|folder| has_headers(folder)))
}

/// Files of NVIDIA's packages for Python, in the environment that is active and where the system's Python has its own.
fn of_python(file: &str) -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .collect();
    homes.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    homes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut found = Vec::new();
    for home in homes {
        let versions = std::fs::read_dir(home.join("lib"))
            .into_iter()
            .flatten()
            .flatten();
        let versions = versions.map(|entry| entry.path()).filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        });
        for version in versions {
            for packages in ["site-packages", "dist-packages"] {
                let path = version.join(packages).join("nvidia").join(file);
                if path.exists() {
                    found.push(path);
                }
            }
        }
    }
    found
}
