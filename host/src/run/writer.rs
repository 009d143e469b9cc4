//! The hand that writes a run, one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::Run;
use super::checkpoint::{self, Checkpoint, PendingCheckpoint};
use super::record::{AllocationRecord, MetricRecord, Summary};
use crate::error::{Error, Result};
use crate::file::{Lines, cannot_read, cannot_write, truncate_lines, write_atomically, write_json};

/// A run that is being trained.
#[derive(Debug)]
pub struct Writer {
    run: Run,
    metrics: Lines,
    allocations: Lines,
    /// The system lets go of the lock with the file, however the process ends.
    _lock: File,
}

impl Writer {
    pub(super) fn create(run: Run, recipe: &str) -> Result<Self> {
        let dir = run.dir();
        fs::create_dir_all(dir).map_err(|error| cannot_write(dir, error))?;
        refuse_taken(&run)?;
        let lock = lock(dir)?;
        // Again, now that nobody else can start here: two may have found it empty.
        refuse_taken(&run)?;
        let checkpoints = run.checkpoints_dir();
        fs::create_dir_all(&checkpoints).map_err(|error| cannot_write(&checkpoints, error))?;
        // Last, for it is what makes the folder a run.
        write_atomically(&run.recipe_path(), recipe.as_bytes())?;
        Writer::open(run, lock)
    }

    pub(super) fn resume(run: Run) -> Result<(Self, Option<Checkpoint>)> {
        let lock = lock(run.dir())?;
        let last = run.last()?;
        let step = last.as_ref().map(|checkpoint| checkpoint.step);
        for path in [run.metrics_path(), run.allocations_path()] {
            match step {
                Some(step) => truncate_lines(&path, step)?,
                // From the start again, the records of step 0 included.
                None if path.exists() => write_atomically(&path, b"")?,
                None => {}
            }
        }
        Ok((Writer::open(run, lock)?, last))
    }

    fn open(run: Run, lock: File) -> Result<Self> {
        let metrics = Lines::open(run.metrics_path())?;
        let allocations = Lines::open(run.allocations_path())?;
        Ok(Writer {
            run,
            metrics,
            allocations,
            _lock: lock,
        })
    }

    /// The run, to be read.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Adds a record to `metrics.jsonl`.
    pub fn metric(&mut self, record: &MetricRecord) -> Result<()> {
        self.metrics.add(record)
    }

    /// Adds a record to `allocations.jsonl`.
    pub fn allocation(&mut self, record: &AllocationRecord) -> Result<()> {
        self.allocations.add(record)
    }

    /// Starts a checkpoint of `step`.
    pub fn begin_checkpoint(&self, step: u64) -> Result<PendingCheckpoint> {
        checkpoint::begin(&self.run.checkpoints_dir(), step)
    }

    /// Makes a checkpoint the run's last; its best as well where `best` gives the metric's name and
    /// value. Whatever is neither any more is removed. Records of its step and before must have been
    /// added by now: a resumed run does not make them again.
    pub fn commit_checkpoint(
        &self,
        pending: PendingCheckpoint,
        best: Option<(String, f64)>,
    ) -> Result<Checkpoint> {
        self.metrics.sync()?;
        self.allocations.sync()?;
        checkpoint::commit(&self.run.checkpoints_dir(), pending, best)
    }

    /// Writes the closing account.
    pub fn summary(&self, summary: &Summary) -> Result<()> {
        write_json(&self.run.summary_path(), summary)
    }
}

/// Refuses a folder with anything in it but a lock.
fn refuse_taken(run: &Run) -> Result<()> {
    let dir = run.dir();
    let path = dir.display();
    if run.recipe_path().exists() {
        return Err(Error::user(format!("{path} already holds a run")).help(
            "go on with it by --resume, give another `output` (--set output=…), or remove the folder",
        ));
    }
    for entry in fs::read_dir(dir).map_err(|error| cannot_read(dir, error))? {
        let name = entry.map_err(|error| cannot_read(dir, error))?.file_name();
        if name != LOCK && !(name == "checkpoints" && is_empty(&dir.join(&name))) {
            return Err(Error::user(format!(
                "{path} is not empty: it holds `{}`",
                name.to_string_lossy()
            ))
            .help("give an `output` that is empty or does not exist yet (--set output=…)"));
        }
    }
    Ok(())
}

/// Whether a folder is there with nothing in it, as a start that was cut short leaves one.
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

const LOCK: &str = ".lock";

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| cannot_write(&path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(
                Error::user(format!("another process is training in {}", dir.display()))
                    .help("wait for it to end, or give another `output`"),
            );
        }
        // Some network file systems have no locks; a run there goes unguarded.
        Err(TryLockError::Error(error)) => {
            tracing::warn!("{} cannot be locked: {error}", path.display())
        }
    }
    Ok(file)
}
