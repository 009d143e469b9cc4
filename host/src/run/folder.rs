//! What lies in a folder that a run is to be written into, and what of it is a run's own.

use std::fs;
use std::path::Path;

use super::Run;
use super::checkpoint;
use super::tensorboard;
use crate::error::{Error, Result};
use crate::file::{cannot_read, cannot_write, sync_folder};

/// Held while a training writes.
pub(super) const LOCK: &str = ".lock";
/// There while the remains of an older run are being removed.
pub(super) const REPLACING: &str = ".replacing";
/// An adapter in the making.
pub(super) const FRESH_ADAPTER: &str = ".adapter";

/// A look into a folder.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Whether it holds a recipe, which is what makes it a run.
    pub is_run: bool,
    /// Something that no run puts there.
    pub foreign: Option<String>,
    /// Something that only a run that has begun puts there.
    pub begun: Option<String>,
    /// Whether an older run was being removed.
    pub replacing: bool,
}

impl Survey {
    /// Looks into a folder; one that is not there is empty.
    pub fn of(run: &Run) -> Result<Self> {
        let dir = run.dir();
        let mut survey = Survey::default();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(survey),
            Err(error) => return Err(cannot_read(dir, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| cannot_read(dir, error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match (name.as_str(), name.strip_suffix(".partial")) {
                ("recipe.toml", _) => survey.is_run = true,
                (REPLACING, _) => survey.replacing = true,
                (LOCK | "provenance.json", _) | (_, Some("recipe.toml" | "provenance.json")) => {}
                ("checkpoints", _) => {
                    let path = dir.join(&name);
                    survey.foreign = survey.foreign.or(foreign(&path, checkpoint::is_own));
                    if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
                        survey.begun.get_or_insert(name);
                    }
                }
                ("adapter" | FRESH_ADAPTER, _) => {
                    let own =
                        |name: &str| name.ends_with(".json") || name.ends_with(".safetensors");
                    // A temporary file of one that was being written.
                    let own = |entry: &str| own(entry) || name == FRESH_ADAPTER;
                    survey.foreign = survey.foreign.or(foreign(&dir.join(&name), own));
                    survey.begun.get_or_insert(name);
                }
                ("tensorboard", _) => {
                    let own = foreign(&dir.join(&name), tensorboard::is_own);
                    survey.foreign = survey.foreign.or(own);
                    survey.begun.get_or_insert(name);
                }
                ("metrics.jsonl" | "allocations.jsonl" | "signals.jsonl" | "summary.json", _)
                | (
                    _,
                    Some("metrics.jsonl" | "allocations.jsonl" | "signals.jsonl" | "summary.json"),
                ) => {
                    survey.begun.get_or_insert(name);
                }
                _ => survey.foreign = Some(name),
            }
        }
        Ok(survey)
    }

    /// Whether a new run may be started here and nothing is lost by it: nothing is there, or what a start left
    /// that was cut short.
    pub fn is_vacant(&self) -> bool {
        let remains = self.begun.is_some() && !self.replacing;
        !self.is_run && self.foreign.is_none() && !remains
    }
}

/// The first entry of a folder that is not the run's own.
fn foreign(folder: &Path, is_own: impl Fn(&str) -> bool) -> Option<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let name = names.find(|name| !is_own(name))?;
    let folder = folder.file_name().unwrap_or_default().display();
    Some(format!("{folder}/{name}"))
}

/// Refuses a folder in which a new run would harm something.
pub(super) fn refuse_taken(run: &Run) -> Result<()> {
    let (survey, path) = (Survey::of(run)?, run.dir().display());
    if survey.is_vacant() {
        return Ok(());
    }
    if survey.is_run {
        return Err(Error::user(format!("{path} already holds a run")).help(
            "go on with it by --resume, start anew in its place by --force, or give another `output` (--set \
             output=…)",
        ));
    }
    if let Some(name) = survey.foreign {
        return Err(not_empty(run, &name)
            .help("give an `output` that is empty or does not exist yet (--set output=…)"));
    }
    Err(Error::user(format!(
        "{path} holds parts of a run (`{}`), but no recipe.toml",
        survey.begun.unwrap_or_default()
    ))
    .help(
        "restore its recipe.toml from a copy and go on by --resume, or remove what is left and start anew by \
         --force",
    ))
}

/// Refuses a folder that holds anything but a run's own files.
pub(super) fn refuse_foreign(run: &Run) -> Result<()> {
    match Survey::of(run)?.foreign {
        None => Ok(()),
        Some(name) => Err(not_empty(run, &name).help(
            "--force removes a run's own files alone: move the others away, or give another `output` (--set \
             output=…)",
        )),
    }
}

fn not_empty(run: &Run, name: &str) -> Error {
    Error::user(format!(
        "{} is not empty: it holds `{name}`",
        run.dir().display()
    ))
}

/// Removes the run's own files but the lock, the recipe first: from then on there is no run here. A crash on the way
/// leaves a mark by which the next start knows that the rest is to go.
pub(super) fn clear(run: &Run) -> Result<()> {
    let dir = run.dir();
    let mark = dir.join(REPLACING);
    fs::write(&mark, b"")
        .and_then(|()| sync_folder(Some(dir)))
        .map_err(|error| cannot_write(&mark, error))?;
    remove(&run.recipe_path())?;
    remove(&dir.join("recipe.toml.partial"))?;
    sync_folder(Some(dir)).map_err(|error| cannot_write(dir, error))?;
    for name in [
        "summary.json",
        "adapter",
        FRESH_ADAPTER,
        "metrics.jsonl",
        "allocations.jsonl",
        "signals.jsonl",
        "tensorboard",
        "checkpoints",
        "provenance.json",
    ] {
        remove(&dir.join(name))?;
        remove(&dir.join(format!("{name}.partial")))?;
    }
    Ok(())
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(cannot_write(path, error))
        }
        _ => Ok(()),
    }
}
