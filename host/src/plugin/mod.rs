//! Plugins: where they are looked for, how they are loaded and checked. The only module that knows that
//! plugins are dynamic libraries; what it gives out are plugin-api's plain traits.
//!
//! A lookup reads static manifests alone ([`label`]); what was found is described in a child ([`probe`]); and only
//! then is that one library loaded. [`guard`] keeps it from standard output and from ending the program unheard.

mod elf;
pub mod guard;
mod label;
mod library;
mod probe;
mod search;
mod trust;

use std::path::{Path, PathBuf};

use dynalora_plugin_api::abi::host::{RemoteAllocator, RemoteScorer};
use dynalora_plugin_api::abi::text;
use dynalora_plugin_api::conformance::{self, Report};
use dynalora_plugin_api::{Allocator, Kind, Manifest, ModuleInfo, Scorer};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use library::{Candidate, Library};
pub use probe::by_this_program as describe_in_children;
pub use search::PluginPath;

/// A plugin library that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The library.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// A loaded plugin.
pub struct Loaded<P: ?Sized> {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The library it came from.
    pub path: PathBuf,
    /// The plugin.
    pub plugin: Box<P>,
}

/// Makes the scorer `name` (a manifest name, or a library's path) over `modules`.
pub fn load_scorer(
    path: &PluginPath,
    name: &str,
    parameters: &Value,
    modules: &[ModuleInfo],
) -> Result<Loaded<dyn Scorer>> {
    let (library, manifest) = find(path, name, Kind::Scorer)?;
    let scorer = RemoteScorer::in_process(library.table, &parameters.to_string(), modules)
        .map_err(|error| refused(&manifest, parameters, error))?;
    Ok(Loaded {
        manifest,
        path: library.path,
        plugin: Box::new(scorer),
    })
}

/// Makes the allocator `name` (a manifest name, or a library's path) over `modules`.
pub fn load_allocator(
    path: &PluginPath,
    name: &str,
    parameters: &Value,
    modules: &[ModuleInfo],
) -> Result<Loaded<dyn Allocator>> {
    let (library, manifest) = find(path, name, Kind::Allocator)?;
    let allocator = RemoteAllocator::in_process(library.table, &parameters.to_string(), modules)
        .map_err(|error| refused(&manifest, parameters, error))?;
    Ok(Loaded {
        manifest,
        path: library.path,
        plugin: Box::new(allocator),
    })
}

/// What the plugins of the library `name` (a manifest name, or a library's path) say of themselves.
pub fn describe(path: &PluginPath, name: &str) -> Result<Vec<Found>> {
    let candidate = candidate(path, name)?;
    let found = candidate.describe()?.into_iter().map(|manifest| Found {
        manifest,
        path: candidate.path.clone(),
    });
    Ok(found.collect())
}

/// In a child of this program: what the library at `path` says of itself, as JSON.
pub fn describe_here(path: &Path) -> Result<String> {
    guard::leave_no_core();
    let described = Candidate::open(path).and_then(|candidate| candidate.load_here());
    let answer: probe::Answer = described.map(|library| library.manifests).map_err(|error| {
        let help = miette::Diagnostic::help(&error).map_or(String::new(), |help| help.to_string());
        [error.to_string(), help]
    });
    serde_json::to_string(&answer)
        .map_err(|error| Error::failure(format!("a manifest cannot be written as JSON: {error}")))
}

/// Runs the conformance checks on each plugin of a library. `parameters` are made up from its schema where none are
/// given.
pub fn check(path: &Path, parameters: Option<&Value>) -> Result<Vec<Report>> {
    let library = Candidate::open(path)?.load()?;
    let table = library.table;
    let reports = library
        .manifests
        .into_iter()
        .map(|manifest| match manifest.kind {
            Kind::Scorer => {
                conformance::check_scorer(manifest, parameters.cloned(), &|parameters, modules| {
                    let parameters = parameters.to_string();
                    Ok(Box::new(RemoteScorer::in_process(
                        table,
                        &parameters,
                        modules,
                    )?))
                })
            }
            Kind::Allocator => conformance::check_allocator(
                manifest,
                parameters.cloned(),
                &|parameters, modules| {
                    let parameters = parameters.to_string();
                    Ok(Box::new(RemoteAllocator::in_process(
                        table,
                        &parameters,
                        modules,
                    )?))
                },
            ),
        });
    Ok(reports.collect())
}

fn find(path: &PluginPath, name: &str, kind: Kind) -> Result<(Library, Manifest)> {
    let candidate = candidate(path, name)?;
    if !candidate.label.kinds.contains(&kind) {
        return Err(Error::user(format!(
            "`{name}` is {}, where {} is needed ({})",
            article(candidate.label.kinds[0]),
            article(kind),
            candidate.path.display()
        ))
        .help(format!(
            "`dynalora plugins list` shows every {kind}; name it in [{kind}]"
        )));
    }
    let library = candidate.load()?;
    match library.manifest(kind).cloned() {
        Some(manifest) => Ok((library, manifest)),
        // Seen to be there by its static manifest, and held against it.
        None => Err(Error::failure(format!("{name} describes no {kind}"))),
    }
}

/// The library of a manifest name or a path; nothing of it is run.
fn candidate(path: &PluginPath, name: &str) -> Result<Candidate> {
    match is_path(name) {
        true => Candidate::open(Path::new(name)),
        false => path.named(name),
    }
}

/// Whether a recipe names a library's path rather than a plugin's name.
fn is_path(name: &str) -> bool {
    let extension = Path::new(name)
        .extension()
        .and_then(|extension| extension.to_str());
    name.contains(['/', '\\']) || matches!(extension, Some("so" | "dylib" | "dll"))
}

fn article(kind: Kind) -> &'static str {
    match kind {
        Kind::Scorer => "a scorer",
        Kind::Allocator => "an allocator",
    }
}

/// A plugin did not take its parameters.
fn refused(manifest: &Manifest, parameters: &Value, error: dynalora_plugin_api::Error) -> Error {
    let name = &manifest.name;
    let table = manifest.kind.to_string();
    let known: Vec<&str> = manifest.parameters["properties"]
        .as_object()
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let unknown = parameters
        .as_object()
        .and_then(|given| given.keys().find(|key| !known.contains(&key.as_str())))
        .and_then(|key| search::nearest(key, known.iter().copied()).map(|near| (key, near)));
    let hint = match unknown {
        Some((key, near)) => format!("; did you mean `{near}` instead of `{key}`?"),
        None => String::new(),
    };
    let keys = match known.is_empty() {
        true => "it takes no parameters".to_owned(),
        false => format!("its parameters are {}", text::line(&known.join(", "), 500)),
    };
    Error::user(format!("the {table} `{name}` refuses [{table}]: {error}")).help(format!(
        "{keys}{hint}; `dynalora plugins info {name}` describes them"
    ))
}
