//! The run directory: everything one training produced, and how it is read back.
//!
//! | in the folder | what it is |
//! | --- | --- |
//! | `recipe.toml` | the resolved recipe |
//! | `metrics.jsonl` | [`MetricRecord`]s |
//! | `allocations.jsonl` | [`AllocationRecord`]s, the initial choice first |
//! | `checkpoints/step-000120/` | a checkpoint; only the last and the best are kept |
//! | `checkpoints/pointers.json` | which checkpoint is the last and which the best |
//! | `adapter/` | the trained adapter in PEFT's format |
//! | `summary.json` | the closing [`Summary`] |
//! | `.lock` | held while a training writes here |

mod checkpoint;
mod record;
mod writer;

use std::path::{Path, PathBuf};

pub use checkpoint::{Checkpoint, PendingCheckpoint};
pub use record::{AllocationRecord, Best, EvalRecord, MetricRecord, StepRecord, Summary};
pub use writer::Writer;

use crate::error::{Error, Result};
use crate::file;

/// A run directory, to be read. Opening one changes nothing in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// The run in `dir`, which must hold one.
    pub fn open(dir: &Path) -> Result<Self> {
        let run = Run {
            dir: dir.to_owned(),
        };
        if run.recipe_path().is_file() {
            return Ok(run);
        }
        let (path, help) = (
            dir.display(),
            "give the folder that a recipe names as `output`",
        );
        Err(match dir {
            _ if !dir.exists() => Error::user(format!("there is no run at {path}: no such folder")),
            _ if !dir.is_dir() => Error::user(format!("{path} is not a run: it is a file")),
            _ => Error::user(format!("{path} is not a run: it has no recipe.toml")),
        }
        .help(help))
    }

    /// Starts a run in `dir`, which must be empty or not exist yet, with the resolved recipe's text.
    pub fn create(dir: &Path, recipe: &str) -> Result<Writer> {
        Writer::create(
            Run {
                dir: dir.to_owned(),
            },
            recipe,
        )
    }

    /// Goes on with the run in `dir` from its last checkpoint, or from the start where it has none.
    /// Records of later steps are dropped: they will be made again.
    pub fn resume(dir: &Path) -> Result<(Writer, Option<Checkpoint>)> {
        Writer::resume(Run::open(dir)?)
    }

    /// Takes away a run in which nothing was recorded or saved yet, so that the corrected recipe finds
    /// its folder free. Says whether it did.
    pub fn remove_unstarted(&self) -> bool {
        let recorded = std::fs::metadata(self.metrics_path()).is_ok_and(|file| file.len() > 0);
        let saved = std::fs::read_dir(self.checkpoints_dir())
            .is_ok_and(|mut checkpoints| checkpoints.next().is_some());
        // `create` found the folder empty: all that is in it is the run's.
        !recorded && !saved && std::fs::remove_dir_all(&self.dir).is_ok()
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the resolved recipe lies.
    pub fn recipe_path(&self) -> PathBuf {
        self.dir.join("recipe.toml")
    }

    /// Where the adapter is exported to.
    pub fn adapter_dir(&self) -> PathBuf {
        self.dir.join("adapter")
    }

    fn metrics_path(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    fn allocations_path(&self) -> PathBuf {
        self.dir.join("allocations.jsonl")
    }

    fn summary_path(&self) -> PathBuf {
        self.dir.join("summary.json")
    }

    fn checkpoints_dir(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// The resolved recipe's text.
    pub fn recipe(&self) -> Result<String> {
        let path = self.recipe_path();
        std::fs::read_to_string(&path).map_err(|error| file::cannot_read(&path, error))
    }

    /// Refuses a resolved recipe other than the one this run was started with: the outcome would be
    /// neither run's.
    pub fn check_recipe(&self, recipe: &str) -> Result<()> {
        let own = self.recipe()?;
        let mut now = recipe.lines().map(str::trim_end);
        for (at, then) in own.lines().map(str::trim_end).enumerate() {
            match now.next() {
                Some(now) if now == then => {}
                now => return Err(self.other_recipe(at + 1, Some(then), now)),
            }
        }
        match now.next() {
            Some(now) => Err(self.other_recipe(own.lines().count() + 1, None, Some(now))),
            None => Ok(()),
        }
    }

    fn other_recipe(&self, line: usize, then: Option<&str>, now: Option<&str>) -> Error {
        let shown =
            |line: Option<&str>| line.map_or("nothing more".to_owned(), |line| format!("`{line}`"));
        Error::user(format!(
            "{}, line {line}: the run was started with {}, the recipe given now has {}",
            self.recipe_path().display(),
            shown(then),
            shown(now)
        ))
        .help("resume with the recipe the run was started with, or give another `output` for a new run")
    }

    /// What was recorded of training and evaluation, in order. A line being written is left out.
    pub fn metrics(&self) -> Result<Vec<MetricRecord>> {
        file::read_lines(&self.metrics_path())
    }

    /// What was recorded of allocations, in order. A line being written is left out.
    pub fn allocations(&self) -> Result<Vec<AllocationRecord>> {
        file::read_lines(&self.allocations_path())
    }

    /// The closing account; none if the run has not come to its end.
    pub fn summary(&self) -> Result<Option<Summary>> {
        file::read_json(&self.summary_path())
    }

    /// The last checkpoint; none if none was made yet.
    pub fn last(&self) -> Result<Option<Checkpoint>> {
        checkpoint::last(&self.checkpoints_dir())
    }

    /// The best checkpoint and what it was judged by; none if no evaluation has picked one yet.
    pub fn best(&self) -> Result<Option<(Checkpoint, Best)>> {
        checkpoint::best(&self.checkpoints_dir())
    }
}

#[cfg(test)]
mod tests;
