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
