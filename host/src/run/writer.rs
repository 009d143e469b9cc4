//! The hand that writes a run, one process at a time.
//!
//! Nothing in the folder changes but its lock until there is something to record or to save: only then is a new run
//! founded, an old one replaced, or a resumed one's logs cut back to its checkpoint. What fails before leaves
//! everything as it was.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::Run;
use super::checkpoint::{self, Checkpoint, Commit, PendingCheckpoint, Whole};
use super::folder::{self, FRESH_ADAPTER, LOCK, REPLACING};
use super::provenance::{Provenance, Sitting, compare};
use super::record::{AllocationRecord, MetricRecord, SignalRecord, Summary};
use super::reports::{self, Reports};
use crate::error::{Error, Result};
use crate::file::{
    Extent, Lines, begins_with, cannot_write, cut, gone, read_lines, same_file, sync_folder,
    truncate_lines, write_atomically, write_json,
};
use crate::recipe::ReportTo;

/// What a run is written with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The resolved recipe's text.
    pub recipe: String,
    /// How many of the last checkpoints are kept.
    pub keep: usize,
    /// What else is written for.
    pub report_to: ReportTo,
    /// What trains; none leaves it unknown.
    pub sitting: Option<Sitting>,
    /// Whether a resumed run may go on with other inputs than it began with.
    pub accept_changes: bool,
}

impl<T: AsRef<str> + ?Sized> From<&T> for Opening {
    /// With a recipe's text alone.
    fn from(recipe: &T) -> Self {
        Opening {
            recipe: recipe.as_ref().to_owned(),
            keep: 2,
            report_to: ReportTo::default(),
            sitting: None,
            accept_changes: false,
        }
    }
}

/// What is to be done before the first write.
#[derive(Debug)]
enum Start {
    /// Nothing: it is done.
    Done,
    /// Nothing, ever: another process writes the run.
    Elsewhere,
    /// The folder is free, but for what an earlier start may have left.
    New,
    /// The folder holds a run that goes.
    Replace,
    /// The run goes on.
    Resume {
        /// The step it goes on from, and what the logs held then; none from the start.
        from: Option<(u64, BTreeMap<String, Extent>)>,
        /// What made it so far.
        provenance: Provenance,
    },
}

/// A run that is being trained.
#[derive(Debug)]
pub struct Writer {
    run: Run,
    opening: Opening,
    start: Start,
    /// Whether the folder is here because of this writer.
    made_folder: bool,
    metrics: Option<Lines>,
    allocations: Option<Lines>,
    /// Opened with the first record, for most runs have none.
    signals: Option<Lines>,
    /// What other programs are told.
    reports: Option<Reports>,
    /// Checkpoints that were seen to be damaged.
    damaged: Vec<PathBuf>,
    /// The system lets go of the lock with the file, however the process ends. None where another process writes.
    lock: Option<File>,
}

impl Writer {
    pub(super) fn create(run: Run, opening: Opening, replace: bool) -> Result<Self> {
        let check = |run: &Run| match replace {
            true => folder::refuse_foreign(run),
            false => folder::refuse_taken(run),
        };
        reports::check(&run, &opening)?;
        let dir = run.dir();
        let made_folder = !dir.exists();
        fs::create_dir_all(dir).map_err(|error| cannot_write(dir, error))?;
        check(&run)?;
        let lock = lock(&run)?;
        let start = if replace { Start::Replace } else { Start::New };
        let writer = Writer::new(run, opening, start, made_folder, Some(lock));
        // Again, now that nobody else can start here: two may have found it empty.
        check(&writer.run)?;
        Ok(writer)
    }

    pub(super) fn resume(run: Run, mut opening: Opening) -> Result<(Self, Option<Checkpoint>)> {
        reports::check(&run, &opening)?;
        let lock = lock(&run)?;
        let provenance = match run.provenance() {
            Err(error) if opening.accept_changes => {
                tracing::warn!("{error}: it is begun anew");
                None
            }
            read => read?,
        };
        let provenance = provenance.unwrap_or_default();
        if let Some(now) = &mut opening.sitting {
            let then = provenance.sittings.last();
            compare(&run.provenance_path(), then, now, opening.accept_changes)?;
        }
        let (last, damaged) = checkpoint::last(&run.checkpoints_dir())?;
        for (path, error) in &damaged {
            let before = last.as_ref().map(|whole| whole.last.step).unwrap_or(0);
            tracing::warn!(
                "the checkpoint {} is damaged and is passed over; the run goes on from the one before it, of step \
                 {before}: {error}",
                path.display()
            );
        }
        let (last, logs) = match last {
            Some(Whole { last, logs }) => (Some(last), logs),
            None => (None, BTreeMap::new()),
        };
        // Found out now, while nothing has been touched.
        for path in run.logs() {
            // A run that records no signals has no such log, and misses none.
            let recorded = path != run.signals_path() || logs.contains_key(&name(&path));
            let expected = recorded || path.exists();
            if expected && !log_is_known(&path, &logs)? {
                if last.is_some() {
                    tracing::warn!(
                        "{} is not what it was when the checkpoint was made: records were changed or are missing",
                        path.display()
                    );
                }
                read_lines::<serde_json::Value>(&path)?;
            }
        }
        let from = last.as_ref().map(|last| (last.step, logs));
        let start = Start::Resume { from, provenance };
        let mut writer = Writer::new(run, opening, start, false, Some(lock));
        writer.damaged = damaged.into_iter().map(|(path, _)| path).collect();
        Ok((writer, last))
    }

    /// A hand that writes nothing, of a process that trains along with the one that does.
    pub(super) fn idle(run: Run, opening: Opening) -> Self {
        Writer::new(run, opening, Start::Elsewhere, false, None)
    }

    fn new(
        run: Run,
        opening: Opening,
        start: Start,
        made_folder: bool,
        lock: Option<File>,
    ) -> Self {
        Writer {
            run,
            opening,
            start,
            made_folder,
            metrics: None,
            allocations: None,
            signals: None,
            reports: None,
            damaged: Vec::new(),
            lock,
        }
    }

    /// The run, to be read.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Does what has been put off until there is something to write, and makes sure that the folder is still the
    /// one that was opened.
    fn settle(&mut self) -> Result<()> {
        self.check_there()?;
        if matches!(self.start, Start::Done | Start::Elsewhere) {
            return Ok(());
        }
        let dir = self.run.dir().to_owned();
        let sitting = |from_step| {
            let mut sitting = self.opening.sitting.clone()?;
            sitting.from_step = from_step;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            sitting.started = now.map_or(0, |now| now.as_secs());
            Some(sitting)
        };
        let (mut provenance, from) = match &self.start {
            Start::Done | Start::Elsewhere => return Ok(()),
            Start::New if !dir.join(REPLACING).exists() => (Provenance::default(), None),
            Start::New | Start::Replace => {
                folder::clear(&self.run)?;
                (Provenance::default(), None)
            }
            Start::Resume { from, provenance } => (provenance.clone(), from.clone()),
        };
        if let Start::Resume { .. } = self.start {
            for path in self.run.logs() {
                match &from {
                    Some((step, logs)) => match logs.get(&name(&path)) {
                        Some(extent) if log_is_known(&path, logs)? => cut(&path, extent)?,
                        _ => truncate_lines(&path, *step)?,
                    },
                    // From the start again, the records of step 0 included.
                    None if path.exists() => write_atomically(&path, b"")?,
                    None => {}
                }
            }
        }
        let checkpoints = self.run.checkpoints_dir();
        fs::create_dir_all(&checkpoints).map_err(|error| cannot_write(&checkpoints, error))?;
        let from = from.map(|(step, _)| step);
        if let Some(sitting) = sitting(from.unwrap_or(0)) {
            provenance.sittings.push(sitting);
            write_json(&self.run.provenance_path(), &provenance)?;
        } else {
            folder::remove(&self.run.provenance_path())?;
        }
        // Last, for it is what makes the folder a run.
        let recipe = &self.opening.recipe;
        if fs::read(self.run.recipe_path()).ok().as_deref() != Some(recipe.as_bytes()) {
            write_atomically(&self.run.recipe_path(), recipe.as_bytes())?;
        }
        folder::remove(&dir.join(REPLACING))?;
        self.metrics = Some(Lines::open(self.run.metrics_path())?);
        self.allocations = Some(Lines::open(self.run.allocations_path())?);
        let signals = self.run.signals_path();
        self.signals = signals.exists().then(|| Lines::open(signals)).transpose()?;
        self.reports = Reports::open(&self.run, &self.opening, from)?;
        self.start = Start::Done;
        Ok(())
    }

    /// Refuses to write where the run no longer is.
    fn check_there(&self) -> Result<()> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        let path = self.run.dir().join(LOCK);
        let own = lock.metadata();
        let own = own.map_err(|error| cannot_write(&path, error))?;
        match fs::metadata(&path) {
            Ok(there) if same_file(&own, &there) => Ok(()),
            _ => Err(gone(&format!(
                "the run's folder {} is gone: it was moved, deleted or replaced",
                self.run.dir().display()
            ))),
        }
    }

    /// Adds a record to `metrics.jsonl`.
    pub fn metric(&mut self, record: &MetricRecord) -> Result<()> {
        self.settle()?;
        let log = self.metrics.as_mut();
        log.map_or(Ok(()), |log| log.add(record))?;
        let reports = self.reports.as_mut();
        reports.map_or(Ok(()), |reports| reports.metric(record))
    }

    /// Adds a record to `allocations.jsonl`.
    pub fn allocation(&mut self, record: &AllocationRecord) -> Result<()> {
        self.settle()?;
        if let Some(reports) = &mut self.reports {
            reports.allocation(record);
        }
        let log = self.allocations.as_mut();
        log.map_or(Ok(()), |log| log.add(record))
    }

    /// Adds a record to `signals.jsonl`.
    pub fn signals(&mut self, record: &SignalRecord) -> Result<()> {
        self.settle()?;
        if self.signals.is_none() && self.lock.is_some() {
            self.signals = Some(Lines::open(self.run.signals_path())?);
        }
        self.signals.as_mut().map_or(Ok(()), |log| log.add(record))
    }

    /// Starts a checkpoint of `step`.
    pub fn begin_checkpoint(&mut self, step: u64) -> Result<PendingCheckpoint> {
        self.settle()?;
        checkpoint::begin(&self.run.checkpoints_dir(), step)
    }

    /// Makes a checkpoint the run's last; its best as well where `best` gives the metric's name and
    /// value. The last few and the best are kept, others removed. Records of its step and before must have been
    /// added by now: a resumed run does not make them again.
    pub fn commit_checkpoint(
        &mut self,
        pending: PendingCheckpoint,
        best: Option<(String, f64)>,
    ) -> Result<Checkpoint> {
        self.settle()?;
        let mut extents = BTreeMap::new();
        let logs = [
            (self.run.metrics_path(), &self.metrics),
            (self.run.allocations_path(), &self.allocations),
            (self.run.signals_path(), &self.signals),
        ];
        for (path, log) in logs {
            if let Some(log) = log {
                log.sync()?;
                extents.insert(name(&path), log.extent());
            }
        }
        let commit = Commit {
            dir: &self.run.checkpoints_dir(),
            best,
            logs: extents,
            keep: self.opening.keep,
            damaged: &self.damaged,
        };
        checkpoint::commit(pending, commit)
    }

    /// An empty folder for the adapter's files, to be [put in its place](Self::commit_adapter).
    pub fn begin_adapter(&mut self) -> Result<PathBuf> {
        self.settle()?;
        let fresh = self.run.dir().join(FRESH_ADAPTER);
        folder::remove(&fresh)?;
        fs::create_dir(&fresh).map_err(|error| cannot_write(&fresh, error))?;
        Ok(fresh)
    }

    /// Makes what was written durable, and puts it in the place of the adapter there was: nobody meets half of one.
    pub fn commit_adapter(&mut self) -> Result<()> {
        self.settle()?;
        let (fresh, folder) = (self.run.dir().join(FRESH_ADAPTER), self.run.adapter_dir());
        checkpoint::sync_files(&fresh).map_err(|error| cannot_write(&fresh, error))?;
        folder::remove(&folder)?;
        fs::rename(&fresh, &folder)
            .and_then(|()| sync_folder(Some(self.run.dir())))
            .map_err(|error| cannot_write(&folder, error))
    }

    /// Writes the closing account, which declares the run finished.
    pub fn summary(&mut self, summary: &Summary) -> Result<()> {
        self.settle()?;
        if self.lock.is_none() {
            return Ok(());
        }
        let logs = [&self.metrics, &self.allocations, &self.signals];
        for log in logs.into_iter().flatten() {
            log.sync()?;
        }
        write_json(&self.run.summary_path(), summary)?;
        self.reports.as_mut().map_or(Ok(()), Reports::finish)
    }
}

impl Drop for Writer {
    /// A start that came to nothing leaves nothing.
    fn drop(&mut self) {
        if matches!(self.start, Start::New | Start::Replace)
            && self.made_folder
            && self.check_there().is_ok()
        {
            let _ = fs::remove_file(self.run.dir().join(LOCK));
            // Only if it is empty.
            let _ = fs::remove_dir(self.run.dir());
        }
    }
}

fn name(path: &std::path::Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether a log begins with what a checkpoint saw of it.
fn log_is_known(path: &std::path::Path, logs: &BTreeMap<String, Extent>) -> Result<bool> {
    match logs.get(&name(path)) {
        Some(extent) => begins_with(path, extent),
        None => Ok(false),
    }
}

/// Locks a run's folder for this process.
pub(super) fn lock(run: &Run) -> Result<File> {
    let dir = run.dir();
    let path = dir.join(LOCK);
    let cannot = |error| cannot_write(&path, error);
    // Whoever had it may have removed it between our opening and our locking it.
    for attempt in 0..8 {
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            // Whoever looks whether somebody trains here holds it for a moment.
            Err(TryLockError::WouldBlock) if attempt < 7 => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::user(format!(
                    "another process is training in {}",
                    dir.display()
                ))
                .help("wait for it to end, or give another `output`"));
            }
            // Some network file systems have no locks; a run there goes unguarded.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{} cannot be locked: {error}", path.display())
            }
        }
        let own = file.metadata().map_err(cannot)?;
        if fs::metadata(&path).is_ok_and(|there| same_file(&own, &there)) {
            return Ok(file);
        }
    }
    Err(Error::failure(format!(
        "{} is removed again and again by another program",
        path.display()
    ))
    .help("see what else works in the run's folder, and start again"))
}
