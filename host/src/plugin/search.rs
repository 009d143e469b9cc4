//! Where plugins are looked for.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use dynalora_plugin_api::Manifest;

use super::Found;
use super::library::{Candidate, Look, look};
use crate::error::{Error, Result};

/// Folders added between the recipe's and the program's own.
const VARIABLE: &str = "DYNALORA_PLUGIN_PATH";

/// The folders that are searched, in order: `--plugin-dir`, the recipe's `plugin_dirs`,
/// `DYNALORA_PLUGIN_PATH`, the program's own folder, `plugins/` in it and `../lib/dynalora/plugins` from it, where an
/// installed program has them, the user's data folder.
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
            // Without `..` in it, for what is shown.
            folders.extend(
                own.parent()
                    .map(|prefix| prefix.join("lib/dynalora/plugins")),
            );
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

    /// Every plugin on the path, by name, and what looked like one but cannot be used. Each is run in a child, to
    /// describe itself.
    pub fn discover(&self) -> (Vec<Found>, Vec<Error>) {
        let Seen {
            candidates,
            mut broken,
        } = self.look();
        let mut found: Vec<(usize, &Candidate, Vec<Manifest>)> = Vec::new();
        for ((folder, candidate), described) in candidates.iter().zip(describe(&candidates)) {
            match described {
                Ok(manifests) => found.push((*folder, candidate, manifests)),
                Err(error) => broken.push((candidate.label.name.clone(), error)),
            }
        }
        // Stable: of one name, the folder that comes first comes first.
        found.sort_by(|(_, a, _), (_, b, _)| a.label.name.cmp(&b.label.name));
        let mut broken: Vec<Error> = broken.into_iter().map(|(_, error)| error).collect();
        let mut usable = Vec::new();
        for of_name in found.chunk_by(|(_, a, _), (_, b, _)| a.label.name == b.label.name) {
            let places = of_name
                .iter()
                .map(|(folder, candidate, _)| (*folder, candidate.path.as_path()));
            let (_, candidate, manifests) = &of_name[0];
            match choose(&candidate.label.name, places) {
                Ok(()) => usable.extend(manifests.iter().map(|manifest| Found {
                    path: candidate.path.clone(),
                    manifest: manifest.clone(),
                })),
                Err(error) => broken.push(error),
            }
        }
        (usable, broken)
    }

    /// The plugin of this name, in the first folder that has one. None, or more than one there, is an error.
    pub(super) fn named(&self, name: &str) -> Result<Candidate> {
        let seen = self.look();
        let of_name = || {
            seen.candidates
                .iter()
                .filter(|(_, candidate)| candidate.label.name == name)
        };
        let Some((folder, first)) = of_name().next() else {
            return Err(self.not_found(name, &seen));
        };
        choose(
            name,
            of_name().map(|(folder, candidate)| (*folder, candidate.path.as_path())),
        )?;
        tracing::debug!(
            "`{name}` is {}, in folder {folder} of the path",
            first.path.display()
        );
        for (_, error) in seen.broken.iter().filter(|(broken, _)| broken == name) {
            tracing::warn!("passed over: {error}; `{name}` is {}", first.path.display());
        }
        Ok(first.clone())
    }

    fn not_found(&self, name: &str, seen: &Seen) -> Error {
        let mut names: Vec<&str> = (seen.candidates.iter())
            .map(|(_, candidate)| candidate.label.name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
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
             plugins, `cargo xtask install` installs them; --plugin-dir adds a folder",
            folders.join("\n")
        );
        // Those of this name first; no more of them than fit on a screen.
        let (named, others): (Vec<_>, Vec<_>) =
            seen.broken.iter().partition(|(broken, _)| broken == name);
        let broken = || named.iter().chain(&others);
        for (_, error) in broken().take(SHOWN) {
            help.push_str(&format!("\nnot usable: {error}"));
        }
        if broken().count() > SHOWN {
            help.push_str(&format!(
                "\nand {} more; `dynalora plugins list` names them",
                broken().count() - SHOWN
            ));
        }
        Error::user(format!("there is no plugin `{name}`")).help(help)
    }

    /// Everything on the path that says that it is a plugin, in the order of the folders; nothing of it is run.
    fn look(&self) -> Seen {
        let mut found = Seen::default();
        let mut seen: HashSet<PathBuf> = HashSet::new();
        for (index, folder) in self.folders.iter().enumerate() {
            for path in files(folder) {
                // The same file by two folders or a link is one.
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                if !seen.insert(whole) {
                    continue;
                }
                match look(&path) {
                    Look::Plugin(candidate) => found.candidates.push((index, candidate)),
                    Look::Stranger => tracing::debug!("{} is no plugin", path.display()),
                    Look::Broken(name, error) => {
                        found.broken.push((name.unwrap_or_default(), error))
                    }
                }
            }
        }
        found
    }
}

/// How many broken libraries an error names.
const SHOWN: usize = 4;

/// What is on the path: libraries with the place of their folder, and the broken ones with the name they have.
#[derive(Default)]
struct Seen {
    candidates: Vec<(usize, Candidate)>,
    broken: Vec<(String, Error)>,
}

/// Of the libraries of one name, with the places of their folders, the first counts: two in its folder are an error,
/// one in a later folder is shadowed, which is said.
fn choose<'a>(name: &str, mut of_name: impl Iterator<Item = (usize, &'a Path)>) -> Result<()> {
    let Some((folder, first)) = of_name.next() else {
        return Ok(());
    };
    for (other, path) in of_name {
        if other == folder {
            return Err(Error::user(format!(
                "two plugins in one folder are called `{name}`: {} and {}",
                first.display(),
                path.display()
            ))
            .help("remove or rename one, or name the library by its path in the recipe"));
        }
        tracing::warn!(
            "two plugins are called `{name}`: {} is used, and {}, in a later folder, is not",
            first.display(),
            path.display()
        );
    }
    Ok(())
}

/// What each of the libraries says of itself, several asked at a time.
fn describe(candidates: &[(usize, Candidate)]) -> Vec<Result<Vec<Manifest>>> {
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    let share = candidates.len().div_ceil(workers).max(1);
    let ask = |(_, candidate): &(usize, Candidate)| candidate.describe();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (candidates.chunks(share))
            .map(|some| scope.spawn(move || some.iter().map(ask).collect::<Vec<_>>()))
            .collect();
        let lost = || {
            vec![Err(Error::failure(
                "a thread that describes plugins was lost",
            ))]
        };
        asked
            .into_iter()
            .flat_map(|asked| asked.join().unwrap_or_else(|_| lost()))
            .collect()
    })
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
