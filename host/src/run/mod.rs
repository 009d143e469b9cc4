//! The run directory: everything one training produced, and how it is read back.
//!
//! | in the folder | what it is |
//! | --- | --- |
//! | `recipe.toml` | the resolved recipe |
//! | `provenance.json` | [`Provenance`]: what made it, sitting by sitting |
//! | `metrics.jsonl` | [`MetricRecord`]s |
//! | `allocations.jsonl` | [`AllocationRecord`]s, the initial choice first |
//! | `signals.jsonl` | [`SignalRecord`]s, where the recipe's `train.log_signals` asks for them |
//! | `checkpoints/step-000120/` | a checkpoint; the last few and the best are kept |
//! | `checkpoints/pointers.json` | which is the last and which the best, for people and scripts |
//! | `adapter/` | the trained adapter in PEFT's format |
//! | `summary.json` | the closing [`Summary`] |
//! | `tensorboard/` | event files, where the recipe's `train.report_to` asks for them |
//! | `.lock` | held while a training writes here |

mod checkpoint;
mod folder;
mod found;
mod mlflow;
mod module_path;
mod provenance;
mod recipe;
mod record;
mod reports;
mod scalars;
mod tensorboard;
mod writer;

use std::path::{Path, PathBuf};

pub use checkpoint::{Checkpoint, PendingCheckpoint, damaged};
pub use found::State;
pub use module_path::{layer, role, short};
pub use provenance::{
    Input, Machine, Program, Provenance, Sitting, provenance_of, weights as weights_input,
};
pub(crate) use record::numbers;
pub use record::{
    AllocationRecord, Best, EvaRecord, EvalRecord, MetricRecord, Observed, PluginNumbers,
    Reduction, SignalRecord, Stall, StallKind, StepRecord, Summary,
};
pub use writer::{Opening, Writer};

use crate::error::{Error, Result};
use crate::file;

/// Refuses `now` if it says another thing than `own`, the text of the recipe at `path` of a run that is yet to start.
pub(crate) fn check_recipe(path: &Path, own: &str, now: &str) -> Result<()> {
    recipe::check(path, own, now, false)
}

/// A run directory, to be read. Opening one changes nothing in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// The run in `dir`, which must hold one.
    pub fn open(dir: &Path) -> Result<Self> {
        let run = Run::at(dir);
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

    /// Starts a run in `dir`, which must be free: it does not exist yet, is empty, or holds only what a start left that
    /// was cut short.
    pub fn create(dir: &Path, opening: impl Into<Opening>) -> Result<Writer> {
        Writer::create(Run::at(dir), opening.into(), false)
    }

    /// Starts a run in `dir`, in the place of the one that it holds, if it does. The old one goes when the new one has
    /// something to write, and only if all that is there is a run's own.
    pub fn replace(dir: &Path, opening: impl Into<Opening>) -> Result<Writer> {
        Writer::create(Run::at(dir), opening.into(), true)
    }

    /// Goes on with the run in `dir` from its last checkpoint that is whole, or from the start where it has none.
    /// Records of later steps are dropped when the first new one is written: they will be made again.
    pub fn resume(dir: &Path, opening: impl Into<Opening>) -> Result<(Writer, Option<Checkpoint>)> {
        Writer::resume(Run::open(dir)?, opening.into())
    }

    /// Trains along with another process, which writes the run in `dir`.
    pub fn along(dir: &Path, opening: impl Into<Opening>) -> Writer {
        Writer::idle(Run::at(dir), opening.into())
    }

    fn at(dir: &Path) -> Self {
        Run {
            dir: dir.to_owned(),
        }
    }

    /// Refuses what [`create`](Self::create) or, with `replace`, [`replace`](Self::replace) would refuse, and changes
    /// nothing.
    pub fn check_free(dir: &Path, replace: bool) -> Result<()> {
        let run = Run::at(dir);
        if !replace {
            return folder::refuse_taken(&run);
        }
        folder::refuse_foreign(&run)?;
        match dir.join(folder::LOCK).exists() {
            true => writer::lock(&run).map(|_| ()),
            false => Ok(()),
        }
    }

    /// Whether `dir` is there and holds nothing but what a start left that was cut short before there was anything to
    /// lose: a run to resume that has to be started.
    pub fn is_cut_short(dir: &Path) -> Result<bool> {
        Ok(dir.is_dir() && folder::Survey::of(&Run::at(dir))?.is_vacant())
    }

    /// The closing account of a run to which nothing is left to do: it is there, and so is the adapter.
    pub fn finished(&self) -> Option<Summary> {
        let summary = match self.summary() {
            Ok(summary) => summary?,
            Err(error) => {
                tracing::warn!("{error}: it is written anew");
                return None;
            }
        };
        let adapter = self.adapter_dir().join("adapter_config.json");
        adapter.is_file().then_some(summary)
    }

    /// Takes away a run in which nothing was recorded or saved yet but the choice it starts with, so that the
    /// corrected recipe finds its folder free. Says whether it did.
    pub fn remove_unstarted(&self) -> bool {
        // Whoever works in it now does not want to lose it.
        let Ok(_lock) = writer::lock(self) else {
            return false;
        };
        let recorded = std::fs::metadata(self.metrics_path()).is_ok_and(|file| file.len() > 0);
        let chosen = self.allocations().map_or(2, |records| records.len());
        let more = [self.adapter_dir(), self.summary_path()];
        if recorded
            || chosen > 1
            || checkpoint::any(&self.checkpoints_dir())
            || more.iter().any(|path| path.exists())
            || folder::refuse_foreign(self).is_err()
        {
            return false;
        }
        let cleared = folder::clear(self)
            .and_then(|()| folder::remove(&self.dir.join(folder::REPLACING)))
            .and_then(|()| folder::remove(&self.dir.join(folder::LOCK)));
        // Only if it is empty.
        cleared.is_ok() && std::fs::remove_dir(&self.dir).is_ok()
    }

    /// Whether a process trains in it now, as far as the file system has locks.
    pub fn is_at_work(&self) -> bool {
        let lock = std::fs::File::open(self.dir.join(folder::LOCK));
        lock.is_ok_and(|lock| {
            matches!(
                lock.try_lock_shared(),
                Err(std::fs::TryLockError::WouldBlock)
            )
        })
    }

    /// Whether there is a checkpoint to go on from.
    pub fn has_checkpoint(&self) -> bool {
        checkpoint::any(&self.checkpoints_dir())
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

    /// Where training and evaluations are recorded.
    pub fn metrics_path(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    /// Where allocations are recorded.
    pub fn allocations_path(&self) -> PathBuf {
        self.dir.join("allocations.jsonl")
    }

    fn signals_path(&self) -> PathBuf {
        self.dir.join("signals.jsonl")
    }

    fn tensorboard_dir(&self) -> PathBuf {
        self.dir.join("tensorboard")
    }

    /// The logs that there are or may be.
    fn logs(&self) -> [PathBuf; 3] {
        [
            self.metrics_path(),
            self.allocations_path(),
            self.signals_path(),
        ]
    }

    /// Where the closing account lies.
    pub fn summary_path(&self) -> PathBuf {
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
    /// neither run's. Where the run's data, model and plugins lie may change if they are known by their digests,
    /// which [`resume`](Self::resume) compares.
    pub fn check_recipe(&self, recipe: &str) -> Result<()> {
        let inputs_known = self.provenance().is_ok_and(|known| known.is_some());
        recipe::check(&self.recipe_path(), &self.recipe()?, recipe, inputs_known)
    }

    /// What made the run; none in runs of older versions.
    pub fn provenance(&self) -> Result<Option<Provenance>> {
        Provenance::read(&self.provenance_path())
    }

    fn provenance_path(&self) -> PathBuf {
        self.dir.join("provenance.json")
    }

    /// What was recorded of training and evaluation, in order. A line being written is left out.
    pub fn metrics(&self) -> Result<Vec<MetricRecord>> {
        file::read_lines(&self.metrics_path())
    }

    /// What was recorded of allocations, in order. A line being written is left out.
    pub fn allocations(&self) -> Result<Vec<AllocationRecord>> {
        file::read_lines(&self.allocations_path())
    }

    /// What was recorded of what plugins were told, in order; none where the recipe did not ask for it. A line being
    /// written is left out.
    pub fn signals(&self) -> Result<Option<Vec<SignalRecord>>> {
        let path = self.signals_path();
        match path.exists() {
            true => file::read_lines(&path).map(Some),
            false => Ok(None),
        }
    }

    /// The closing account; none if the run has not come to its end.
    pub fn summary(&self) -> Result<Option<Summary>> {
        file::read_json(&self.summary_path())
    }

    /// The last checkpoint that is whole; none if none was made yet, an error if all are damaged.
    pub fn last(&self) -> Result<Option<Checkpoint>> {
        let (last, _) = checkpoint::last(&self.checkpoints_dir())?;
        Ok(last.map(|whole| whole.last))
    }

    /// The best checkpoint that is whole, up to `step`, and what it was judged by; none if no evaluation has picked one
    /// yet, or if it is lost.
    pub fn best(&self, step: u64) -> Option<(Checkpoint, Best)> {
        let (best, damaged) = checkpoint::best(&self.checkpoints_dir(), step);
        for error in damaged {
            tracing::warn!("the best checkpoint is damaged: {error}");
        }
        best
    }
}

#[cfg(test)]
mod tests;
