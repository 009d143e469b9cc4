//! One plugin library: its static manifest read, its file checked, described in a child, and only then loaded.

use std::path::{Path, PathBuf};

use abi_stable::library::{LibraryError, lib_header_from_path};
use dynalora_plugin_api::Manifest;
use dynalora_plugin_api::abi::host::manifest;
use dynalora_plugin_api::abi::{API_VERSION, Root, SYMBOL, TABLE_SYMBOL, Table, text};

use super::label::{self, Label, Said};
use super::{elf, guard, probe, trust};
use crate::error::{Error, Result};

/// A file that says that it is a plugin of this host's version. Nothing of it has been run.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The file, absolute and without links.
    pub path: PathBuf,
    /// The folder it was found in, which a link may have led out of.
    pub folder: Option<PathBuf>,
    /// What it says of itself.
    pub label: Label,
}

/// A library that was found to be a plugin of this host's version. It stays loaded until the process ends.
pub struct Library {
    /// What it exports.
    pub table: Table,
    /// What each of its plugins says of itself.
    pub manifests: Vec<Manifest>,
}

/// What the first look at a file tells.
pub enum Look {
    /// A plugin for this host, so far as can be told without running it.
    Plugin(Candidate),
    /// Some other library.
    Stranger,
    /// It should be a plugin, but cannot be used: its name, where it has one, and why.
    Broken(Option<String>, Error),
}

impl Candidate {
    /// The plugin at `path`, or what is wrong with the file.
    pub fn open(path: &Path) -> Result<Self> {
        // A name without a folder would be looked for in the system's.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if !path.is_file() {
            return Err(Error::user(format!("there is no plugin library {}", path.display()))
                .help("name a plugin by its name, or by the path of its built library (.so, .dylib, .dll)"));
        }
        match look(&path) {
            Look::Plugin(candidate) => Ok(candidate),
            Look::Broken(_, error) => Err(error),
            Look::Stranger => Err(Error::user(format!(
                "{} is no dynalora plugin: it has no static manifest",
                path.display()
            ))
            .help(format!(
                "end the plugin's source with one export_plugin! line and build it as a cdylib, with \
                 dynalora-plugin-api = \"{API_VERSION}\""
            ))),
        }
    }

    /// What each plugin says of itself, all of it: its code is run, in a child of this program where one can be had.
    pub fn describe(&self) -> Result<Vec<Manifest>> {
        trust::warn_of(&self.path, self.folder.as_deref());
        match probe::describe(&self.path) {
            Some(Ok(manifests)) => self.agree(manifests),
            Some(Err(probe::Fault::Refused(error))) => Err(error),
            Some(Err(probe::Fault::Ended(why))) => Err(unusable(&self.path, &why).help(
                "the file is damaged, which a copy or a build mends, or its plugin must not do this: tell its author",
            )),
            None => self.load_here().map(|library| library.manifests),
        }
    }

    /// Loads the library into this process, come what may.
    pub fn load_here(&self) -> Result<Library> {
        let path = &self.path;
        guard::expect_no_exit(&self.label.name);
        let (table, version) = self.exported()?;
        let manifests = self.label.kinds.iter().map(|kind| {
            manifest(table, *kind, &version).map_err(|error| {
                Error::user(format!(
                    "the plugin {} does not describe itself: {error}",
                    path.display()
                ))
                .help("this is a mistake in the plugin: tell its author")
            })
        });
        Ok(Library {
            table,
            manifests: self.agree(manifests.collect::<Result<_>>()?)?,
        })
    }

    /// The functions that the library exports, by abi_stable from Rust and under a plain symbol from other
    /// languages, and the version of its plugin.
    fn exported(&self) -> Result<(Table, String)> {
        let path = &self.path;
        let header = match lib_header_from_path(path) {
            Ok(header) => header,
            Err(LibraryError::OpenError { err, .. }) => {
                return Err(unusable(path, &err.to_string()));
            }
            Err(LibraryError::GetSymbolError { .. }) => {
                let table = plain_table(path).map_err(|why| unusable(path, &why))?;
                return Ok((table, self.label.version.clone()));
            }
            Err(error) => return Err(mismatch(path, &error)),
        };
        let root = header
            .init_root_module::<Root>()
            .map_err(|error| mismatch(path, &error))?;
        Ok((root.table(), root.version().to_string()))
    }

    /// Refuses a library that is another than its static manifest says.
    fn agree(&self, manifests: Vec<Manifest>) -> Result<Vec<Manifest>> {
        let Label { name, kinds, .. } = &self.label;
        let strange = manifests
            .iter()
            .find(|manifest| manifest.name != *name || !kinds.contains(&manifest.kind));
        match strange {
            None if manifests.len() == kinds.len() => Ok(manifests),
            None => Err(unusable(
                &self.path,
                "it describes other plugins than its static manifest says",
            )),
            Some(manifest) => Err(unusable(
                &self.path,
                &format!(
                    "its static manifest says {} `{name}`, but it calls itself {} `{}`",
                    self.label.kind_words(),
                    manifest.kind,
                    manifest.name
                ),
            )),
        }
    }
}

/// The table that a library in another language exports.
fn plain_table(path: &Path) -> std::result::Result<Table, String> {
    // SAFETY: it runs what the library runs when it is loaded, which `lib_header_from_path` has done before.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // It stays loaded, as the others do.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: as the static manifest's version of the boundary says, the symbol is a table. Where it is none of
    // three functions, that is seen as far as it can be.
    let table = unsafe { library.get::<*const [usize; 3]>(TABLE_SYMBOL) }.map_err(|_| {
        format!("it has a static manifest, but exports no plugin ({SYMBOL} or {TABLE_SYMBOL})")
    })?;
    if !table.is_aligned() {
        return Err(format!("{TABLE_SYMBOL} is no table of functions"));
    }
    // SAFETY: as above; aligned.
    let functions: [usize; 3] = unsafe { **table };
    match functions.contains(&0) {
        true => Err(format!("a function in {TABLE_SYMBOL} is missing")),
        // SAFETY: none of the three is null.
        false => Ok(unsafe { std::mem::transmute::<[usize; 3], Table>(functions) }),
    }
}

/// Looks at a file without running anything in it.
pub fn look(path: &Path) -> Look {
    let label = match label::read(path) {
        Ok(Said::Plugin(label)) => label,
        Ok(Said::Nothing) => return Look::Stranger,
        Ok(Said::Older) => {
            let error = Error::user(format!(
                "the plugin {} was built with a dynalora-plugin-api from before 1.0, and has no static manifest",
                path.display()
            ));
            return Look::Broken(None, error.help(rebuild()));
        }
        Ok(Said::Damaged(why)) => return Look::Broken(None, unusable(path, &why)),
        Err(error) => {
            let error = Error::user(format!("the library {} cannot be read", path.display()))
                .because(error)
                .help("see to it that you may read it, or remove it from the plugin path");
            return Look::Broken(None, error);
        }
    };
    let broken = |error| Look::Broken(Some(label.name.clone()), error);
    if !fits(&label.api_version) {
        let error = Error::user(format!(
            "the plugin {} was built against dynalora-plugin-api {}, this program against {API_VERSION}",
            path.display(),
            label.api_version
        ));
        return broken(error.help(rebuild()));
    }
    if !["unwind", "none"].contains(&label.panic.as_str()) {
        let error = Error::user(format!(
            "the plugin {} was built with panic = \"{}\": a panic in it would end this program",
            path.display(),
            label.panic
        ));
        return broken(
            error.help("remove `panic` from the profile in its Cargo.toml, and build it again"),
        );
    }
    match std::fs::read(path) {
        Ok(bytes) => {
            if let Some(fault) = elf::fault(&bytes) {
                return broken(unusable(path, &fault));
            }
        }
        Err(error) => return broken(unusable(path, &error.to_string())),
    }
    // One spelling of a file, so that two ways to it are seen to be one.
    let folder = path
        .parent()
        .map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.to_owned()));
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Look::Plugin(Candidate {
        path,
        folder,
        label,
    })
}

/// Whether a plugin of this version of plugin-api can be asked at all: both sides share the major number. What else
/// a plugin wants and is not to be had is refused by its name.
fn fits(version: &str) -> bool {
    let major = |version: &str| {
        version
            .split('.')
            .next()
            .and_then(|it| it.parse::<u64>().ok())
    };
    major(version).is_some() && major(version) == major(API_VERSION)
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::user(format!(
        "{} cannot be loaded as a plugin: {}",
        path.display(),
        text::shown(why, text::LONGEST)
    ))
    .help("the file is damaged or built for another system: build or copy the plugin again")
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
        "the plugin {} does not fit this program: {}",
        path.display(),
        text::line(first, 500)
    ))
    .help(rebuild())
}

fn rebuild() -> String {
    format!(
        "build the plugin again with dynalora-plugin-api = \"{API_VERSION}\", or take the dynalora it was built for"
    )
}
