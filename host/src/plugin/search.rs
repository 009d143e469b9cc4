//! Where plugins are looked for.

use std::path::{Path, PathBuf};

use super::Found;
use super::library::{Library, Look, look};
use crate::error::{Error, Result};

/// Folders added between the recipe's and the program's own.
const VARIABLE: &str = "DYNALORA_PLUGIN_PATH";

/// The folders that are searched, in order: `--plugin-dir`, the recipe's `plugin_dirs`,
/// `DYNALORA_PLUGIN_PATH`, the program's own folder and `plugins/` beside it, the user's data folder.
#[derive(Clone, Debug)]
pub struct PluginPath {
    folders: Vec<PathBuf>,
}

impl PluginPath {
    /// The search path. A folder that the command line or the recipe names must be there.
    pub fn new(command_line: &[PathBuf], recipe: &[PathBuf]) -> Result<Self> {
        let named = [
            ("--plugin-dir", command_line),
            ("plugin_dirs in the recipe", recipe),
        ];
        for (origin, folders) in named {
            if let Some(missing) = folders.iter().find(|folder| !folder.is_dir()) {
                return Err(Error::user(format!(
                    "{origin} names {}, which is not a folder",
                    missing.display()
                ))
                .help("create it, or correct the path"));
            }
        }
        let mut folders: Vec<PathBuf> = command_line.iter().chain(recipe).cloned().collect();
        if let Some(variable) = std::env::var_os(VARIABLE) {
            folders.extend(
                std::env::split_paths(&variable).filter(|path| !path.as_os_str().is_empty()),
            );
        }
        if let Some(own) = std::env::current_exe()
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            folders.extend([own.to_owned(), own.join("plugins")]);
        }
        if let Some(dirs) = directories::ProjectDirs::from("", "", "dynalora") {
            folders.push(dirs.data_dir().join("plugins"));
        }
        Ok(PluginPath { folders })
    }

    /// The folders in order.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Every plugin on the path, by name, and what looked like one but cannot be used.
    pub fn discover(&self) -> (Vec<Found>, Vec<Error>) {
        let (libraries, broken) = self.libraries();
        let found = libraries.into_iter().map(|library| Found {
            path: library.path,
            manifest: library.manifest,
        });
        (found.collect(), broken)
    }

    /// The plugin of this name. None, or more than one, is an error.
    pub(super) fn named(&self, name: &str) -> Result<Library> {
        let (libraries, broken) = self.libraries();
        let mut of_name = libraries
            .iter()
            .filter(|library| library.manifest.name == name);
        match (of_name.next(), of_name.next()) {
            (Some(first), Some(second)) => Err(Error::user(format!(
                "two plugins are called `{name}`: {} and {}",
                first.path.display(),
                second.path.display()
            ))
            .help("remove or rename one, or name the library by its path in the recipe")),
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(self.not_found(name, &libraries, &broken)),
        }
    }

    fn not_found(&self, name: &str, libraries: &[Library], broken: &[Error]) -> Error {
        let names: Vec<&str> = libraries
            .iter()
            .map(|library| library.manifest.name.as_str())
            .collect();
        let near = nearest(name, names.iter().copied())
            .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let found = match names.is_empty() {
            true => "no plugins at all".to_owned(),
            false => names.join(", "),
        };
        let folders: Vec<String> = self
            .folders
            .iter()
            .map(|folder| format!("  {}", folder.display()))
            .collect();
        let mut help = format!(
            "found: {found}{near}\nsearched:\n{}\n`cargo build` at the root of the source builds the shipped \
             plugins; --plugin-dir adds a folder",
            folders.join("\n")
        );
        for error in broken {
            help.push_str(&format!("\nnot usable: {error}"));
        }
        Error::user(format!("there is no plugin `{name}`")).help(help)
    }

    /// Every usable plugin, sorted by name, and what is broken.
    fn libraries(&self) -> (Vec<Library>, Vec<Error>) {
        let mut libraries: Vec<Library> = Vec::new();
        let mut broken = Vec::new();
        let mut seen: Vec<PathBuf> = Vec::new();
        for folder in &self.folders {
            for path in files(folder) {
                // The same file by two folders or a link is one.
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                if seen.contains(&whole) {
                    continue;
                }
                seen.push(whole);
                match look(&path) {
                    Look::Plugin(library) => libraries.push(library),
                    Look::Stranger => tracing::debug!("{} is no plugin", path.display()),
                    Look::Broken(error) => broken.push(error),
                }
            }
        }
        libraries.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        (libraries, broken)
    }
}

/// Files directly in `folder` that are named as libraries are on this system, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.starts_with(std::env::consts::DLL_PREFIX)
                && name.ends_with(std::env::consts::DLL_SUFFIX)
                && path.is_file()
        })
        .collect();
    files.sort();
    files
}

/// The name nearest to `name`, if one is near.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}
