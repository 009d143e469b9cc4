//! Where burn keeps which of its kernels were the fastest.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use std::sync::Once;

/// Has burn keep in the program's own cache which kernels were the fastest on the device that is called this, for the
/// next process on it; burn's own place is below whichever Rust project the current folder lies in, and knows GPUs by
/// their index alone. To be called before burn starts on a device, and then does something once. Settings of the user's
/// own, in a `cubecl.toml`, are left as they are.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub fn keep_tuning(device: &str) {
    use cubecl_runtime::config::cache::CacheConfig;
    use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if matches!(config.autotune.cache, CacheConfig::Target) {
            config.autotune.cache = CacheConfig::File(place(device));
        }
        CubeClRuntimeConfig::set(config);
    });
}

/// A folder for a device that can be written to: in the cache, or, where that cannot, among the temporary ones.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn place(device: &str) -> std::path::PathBuf {
    let letters = device.chars().map(|letter| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' => letter,
        _ => '-',
    });
    let name: String = letters.collect();
    let kept = crate::cache::dir().map(|dir| dir.join("gpu").join(&name));
    let writable = |place: &std::path::PathBuf| {
        std::fs::create_dir_all(place).is_ok() && tempfile::tempfile_in(place).is_ok()
    };
    let kept = kept.ok().filter(writable);
    kept.unwrap_or_else(|| std::env::temp_dir().join("dynalora-gpu").join(name))
}

/// Does nothing: there is no GPU.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
pub fn keep_tuning(_: &str) {}
