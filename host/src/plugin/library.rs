//! One plugin library: opened, its layout and version checked.

use std::path::{Path, PathBuf};

use abi_stable::library::{LibraryError, lib_header_from_path};
use dynalora_plugin_api::Manifest;
use dynalora_plugin_api::abi::host::manifest;
use dynalora_plugin_api::abi::{API_VERSION, Root, SYMBOL};

use crate::error::{Error, Result};

/// A library that was found to be a plugin of this host's version. It stays loaded until the process ends.
#[derive(Clone)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// What it exports.
    pub root: Root,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// What the first look at a file tells.
pub enum Look {
    /// A plugin for this host.
    Plugin(Library),
    /// Some other library.
    Stranger,
    /// It should be a plugin, but cannot be used.
    Broken(Error),
}

impl Library {
    /// Opens the plugin at `path`, or says what is wrong with the file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::user(format!("there is no plugin library {}", path.display()))
                .help("name a plugin by its name, or by the path of its built library (.so, .dylib, .dll)"));
        }
        match look(path) {
            Look::Plugin(library) => Ok(library),
            Look::Broken(error) => Err(error),
            Look::Stranger => Err(Error::user(format!(
                "{} is a library, but no dynalora plugin: it does not export {SYMBOL}",
                path.display()
            ))
            .help("end the plugin's source with one export_plugin! line and build it as a cdylib")),
        }
    }
}

/// Looks at a file without trusting it more than loading a library has to.
pub fn look(path: &Path) -> Look {
    if is_cut_short(path) {
        return Look::Broken(
            Error::user(format!(
                "{} cannot be loaded as a library: the file is cut short",
                path.display()
            ))
            .help("build or copy the plugin again"),
        );
    }
    let header = match lib_header_from_path(path) {
        Ok(header) => header,
        Err(LibraryError::GetSymbolError { .. }) => return Look::Stranger,
        Err(LibraryError::OpenError { err, .. }) => {
            return Look::Broken(
                Error::user(format!(
                    "{} cannot be loaded as a library: {err}",
                    path.display()
                ))
                .help("the file is damaged or built for another system: build the plugin again"),
            );
        }
        Err(error) => return Look::Broken(mismatch(path, &error)),
    };
    let root = match header.init_root_module::<Root>() {
        Ok(root) => root,
        Err(error) => return Look::Broken(mismatch(path, &error)),
    };
    let manifest = match manifest(root) {
        Ok(manifest) => manifest,
        Err(error) => {
            return Look::Broken(
                Error::user(format!(
                    "the plugin {} does not describe itself: {error}",
                    path.display()
                ))
                .help("this is a mistake in the plugin: tell its author"),
            );
        }
    };
    if minor(&manifest.api_version) != minor(API_VERSION) {
        return Look::Broken(
            Error::user(format!(
                "the plugin {} was built against dynalora-plugin-api {}, this program against {API_VERSION}",
                path.display(),
                manifest.api_version
            ))
            .help(rebuild()),
        );
    }
    // One spelling of a file, so that two ways to it are seen to be one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Look::Plugin(Library {
        path,
        root,
        manifest,
    })
}

/// Whether an ELF file ends before a segment that would be mapped: loading it would not fail but kill the
/// process with SIGBUS.
fn is_cut_short(path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else {
        return false;
    };
    // 64-bit little-endian ELF; others are left to the system's loader.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut value = [0; 8];
        value[..len].copy_from_slice(bytes.get(at..at + len)?);
        Some(u64::from_le_bytes(value))
    };
    let whole = || -> Option<bool> {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        for index in 0..count {
            let entry = usize::try_from(table.checked_add(index * size)?).ok()?;
            let end = number(entry + 0x08, 8)?.checked_add(number(entry + 0x20, 8)?)?;
            if end > bytes.len() as u64 {
                return Some(false);
            }
        }
        Some(true)
    };
    whole() != Some(true)
}

/// Major and minor number: what both sides must share.
fn minor(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    Some((parts.next()?, parts.next()?))
}

fn mismatch(path: &Path, error: &LibraryError) -> Error {
    // abi_stable's account of a layout can be pages long; its first line says what differs.
    let account = error.to_string();
    let first = account
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("unknown")
        .trim();
    Error::user(format!(
        "the plugin {} does not fit this program: {first}",
        path.display()
    ))
    .help(rebuild())
}

fn rebuild() -> String {
    format!(
        "build the plugin again with dynalora-plugin-api = \"{API_VERSION}\", or take the dynalora it was built for"
    )
}
