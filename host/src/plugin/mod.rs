//! Plugins: where they are looked for, how they are loaded and checked. The only module that knows that
//! plugins are dynamic libraries; what it gives out are plugin-api's plain traits.
//!
//! A lookup reads static manifests alone ([`label`]); what was found is described in a child ([`probe`]); and only
//! then is that one library loaded: into this process, where [`guard`] keeps it from standard output and from ending
//! the program unheard, or into a child ([`isolated`], which answers as [`serve`] says and has given up what [`jail`]
//! takes).

mod elf;
pub mod guard;
#[cfg(unix)]
mod isolated;
#[cfg(unix)]
mod jail;
mod label;
mod library;
mod probe;
mod search;
#[cfg(unix)]
mod serve;
mod trust;

use std::path::{Path, PathBuf};

use dynalora_plugin_api::abi::host::{Carrier, InProcess, RemoteAllocator, RemoteScorer};
use dynalora_plugin_api::abi::{API_VERSION, text};
use dynalora_plugin_api::conformance::{self, Report};
use dynalora_plugin_api::{Allocator, Kind, Manifest, ModuleInfo, Scorer};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::recipe::Isolation;
use library::Candidate;
pub use probe::{by_program as describe_in_children_of, by_this_program as describe_in_children};
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

/// Makes the scorer `name` (a manifest name, or a library's path) over `modules`, here or in a process of its own. What is
/// `carried` is called.
pub fn load_scorer(
    path: &PluginPath,
    name: &str,
    parameters: &Value,
    isolation: Option<&Isolation>,
    modules: &[ModuleInfo],
    carried: impl FnOnce(Box<dyn Carrier>) -> Box<dyn Carrier>,
) -> Result<Loaded<dyn Scorer>> {
    let candidate = find(path, name, Kind::Scorer)?;
    let (manifest, carrier) = candidate.make(Kind::Scorer, parameters, isolation, modules)?;
    let scorer = RemoteScorer::new(carried(carrier))
        .map_err(|error| refused(&manifest, parameters, error))?;
    Ok(Loaded {
        manifest,
        path: candidate.path,
        plugin: Box::new(scorer),
    })
}

/// Makes the allocator `name` (a manifest name, or a library's path) over `modules`, here or in a process of its own.
/// What is `carried` is called.
pub fn load_allocator(
    path: &PluginPath,
    name: &str,
    parameters: &Value,
    isolation: Option<&Isolation>,
    modules: &[ModuleInfo],
    carried: impl FnOnce(Box<dyn Carrier>) -> Box<dyn Carrier>,
) -> Result<Loaded<dyn Allocator>> {
    let candidate = find(path, name, Kind::Allocator)?;
    let (manifest, carrier) = candidate.make(Kind::Allocator, parameters, isolation, modules)?;
    let allocator = RemoteAllocator::new(carried(carrier), modules)
        .map_err(|error| refused(&manifest, parameters, error))?;
    Ok(Loaded {
        manifest,
        path: candidate.path,
        plugin: Box::new(allocator),
    })
}

impl Candidate {
    /// The plugin of this kind in it, made, and what it says of itself.
    fn make(
        &self,
        kind: Kind,
        parameters: &Value,
        isolation: Option<&Isolation>,
        modules: &[ModuleInfo],
    ) -> Result<(Manifest, Box<dyn Carrier>)> {
        // In a child, even where it is loaded here next.
        let manifests = self.describe()?;
        let manifest = manifests.into_iter().find(|it| it.kind == kind);
        // Seen to be there by its static manifest, and held against it.
        let manifest = manifest.ok_or_else(|| {
            Error::failure(format!("{} describes no {kind}", self.path.display()))
        })?;
        let given = parameters.to_string();
        let carrier: Box<dyn Carrier> = match isolation {
            None => {
                let table = self.load_here()?.table;
                let made = InProcess::new(table, kind, &given, modules);
                Box::new(made.map_err(|error| refused(&manifest, parameters, error))?)
            }
            Some(isolation) => self.isolate(&manifest, &given, isolation, modules).map_err(
                |fault| match fault {
                    Fault::Refused(error) => refused(&manifest, parameters, error),
                    Fault::Ended(error) => Error::user(format!(
                        "the {kind} `{}` cannot be had in a process of its own: {error}",
                        manifest.name
                    ))
                    .help(format!(
                        "{kind}.isolation has its limits, and what it must not do is in docs/plugins.md; \
                         isolation = \"none\" runs it in this process"
                    )),
                },
            )?,
        };
        Ok((manifest, carrier))
    }

    /// The plugin in a child.
    #[cfg(unix)]
    fn isolate(
        &self,
        manifest: &Manifest,
        parameters: &str,
        isolation: &Isolation,
        modules: &[ModuleInfo],
    ) -> std::result::Result<Box<dyn Carrier>, Fault> {
        let limits = isolated::Limits {
            timeout: std::time::Duration::from_secs_f64(isolation.timeout_seconds),
            memory_mib: isolation.memory_mib,
        };
        let made = isolated::Isolated::new(&self.path, manifest.kind, parameters, modules, limits);
        made.map(|isolated| Box::new(isolated) as Box<dyn Carrier>)
    }

    #[cfg(not(unix))]
    fn isolate(
        &self,
        _: &Manifest,
        _: &str,
        _: &Isolation,
        _: &[ModuleInfo],
    ) -> std::result::Result<Box<dyn Carrier>, Fault> {
        Err(Fault::Ended(
            "there is no isolation on this system, but on Linux and other kinds of Unix".into(),
        ))
    }
}

/// Why there is no plugin in a process of its own.
enum Fault {
    /// It says no, or the library does.
    Refused(dynalora_plugin_api::Error),
    /// The process is no more, or never was.
    Ended(dynalora_plugin_api::Error),
}

/// In a child of this program: answers what the plugin of the library at `path` is asked, on standard input and
/// output, until nobody asks any more.
pub fn serve_here(path: &Path, memory_mib: u64) -> Result<()> {
    #[cfg(unix)]
    return serve::serve(path, memory_mib)
        .map_err(|error| Error::failure(format!("nobody is left to answer to: {error}")));
    #[cfg(not(unix))]
    {
        let _ = (path, memory_mib);
        Err(Error::failure("there is no isolation on this system"))
    }
}

/// Which versions of plugin-api met, where they differ: what a newer one asks for may be why it was refused.
pub fn versions(manifest: &Manifest) -> Option<String> {
    let Manifest {
        name, api_version, ..
    } = manifest;
    (api_version != API_VERSION).then(|| {
        format!(
            "`{name}` was built with dynalora-plugin-api {api_version}, this program with {API_VERSION}"
        )
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

/// What a library may take to describe itself, in MiB.
#[cfg(unix)]
const MEMORY_TO_DESCRIBE: u64 = 4096;

/// In a child of this program: what the library at `path` says of itself, as JSON.
pub fn describe_here(path: &Path) -> Result<String> {
    guard::leave_no_core();
    // Whatever is on the path is asked, by who only wants a list.
    #[cfg(unix)]
    jail::enter(MEMORY_TO_DESCRIBE);
    let described = Candidate::open(path).and_then(|candidate| candidate.load_here());
    let answer: probe::Answer = described.map(|library| library.manifests).map_err(|error| {
        let help = miette::Diagnostic::help(&error).map_or(String::new(), |help| help.to_string());
        [error.to_string(), help]
    });
    serde_json::to_string(&answer)
        .map_err(|error| Error::failure(format!("a manifest cannot be written as JSON: {error}")))
}

/// Runs the conformance checks on each plugin of a library, here or in processes of its own. `parameters` are made up
/// from its schema where none are given.
pub fn check(
    path: &Path,
    parameters: Option<&Value>,
    isolation: Option<&Isolation>,
) -> Result<Vec<Report>> {
    type Made = dynalora_plugin_api::Result<Box<dyn Carrier>>;
    let candidate = Candidate::open(path)?;
    let manifests = candidate.describe()?;
    let table = match isolation {
        None => Some(candidate.load_here()?.table),
        Some(_) => None,
    };
    let make = |manifest: &Manifest, parameters: &Value, modules: &[ModuleInfo]| -> Made {
        let parameters = parameters.to_string();
        match (table, isolation) {
            (Some(table), _) => {
                let made = InProcess::new(table, manifest.kind, &parameters, modules)?;
                Ok(Box::new(made))
            }
            (None, isolation) => candidate
                .isolate(
                    manifest,
                    &parameters,
                    isolation.unwrap_or(&Isolation::default()),
                    modules,
                )
                .map_err(|fault| match fault {
                    Fault::Refused(error) | Fault::Ended(error) => error,
                }),
        }
    };
    let reports = manifests.into_iter().map(|manifest| {
        let about = manifest.clone();
        conformance::check(manifest, parameters.cloned(), &|parameters, modules| {
            make(&about, parameters, modules)
        })
    });
    Ok(reports.collect())
}

fn find(path: &PluginPath, name: &str, kind: Kind) -> Result<Candidate> {
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
    Ok(candidate)
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
    let versions = versions(manifest).map_or(String::new(), |versions| format!("\n{versions}"));
    Error::user(format!("the {table} `{name}` refuses [{table}]: {error}")).help(format!(
        "{keys}{hint}; `dynalora plugins info {name}` describes them{versions}"
    ))
}
