//! What a sweep has submitted, in its own folder: by it the sweep goes on when it is started again.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Launcher;
use crate::error::{Error, Result};
use crate::file::{cannot_write, read_json, write_json};

/// All that was submitted, the oldest first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub launcher: Launcher,
    pub submissions: Vec<Submission>,
}

/// One array of tasks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    /// What the engine calls it, as nothing else is called: written before it is submitted, so that it is found if the sweep
    /// is killed before it knows the number.
    pub name: String,
    pub job: Option<Job>,
    /// The runs by the tasks' numbers.
    pub runs: BTreeMap<u32, String>,
}

/// How an engine names an array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub id: String,
    /// Of Slurm, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl Record {
    /// That of the sweep with this folder; an empty one where there is none.
    pub fn load(folder: &Path, launcher: Launcher) -> Result<Record> {
        let record = read_json(&path(folder)).map_err(|error| {
            error.help("restore the file from a copy; or see that nothing of this sweep is queued any more, and remove it")
        })?;
        Ok(record.unwrap_or(Record {
            launcher,
            submissions: Vec::new(),
        }))
    }

    /// Writes it, or takes it away where there is nothing in it.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = path(folder);
        if !self.submissions.is_empty() {
            return write_json(&path, self);
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(cannot_write(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// The last submission with a task for `run`, and the task's number.
    pub fn find(&self, run: &str) -> Option<(usize, u32)> {
        let submissions = self.submissions.iter().enumerate().rev();
        submissions
            .filter_map(|(at, submission)| {
                let mut runs = submission.runs.iter();
                let (task, _) = runs.find(|(_, name)| *name == run)?;
                Some((at, *task))
            })
            .next()
    }

    /// How often `run` was submitted.
    pub fn tries(&self, run: &str) -> u32 {
        let submissions = self.submissions.iter();
        let with =
            submissions.filter(|submission| submission.runs.values().any(|name| name == run));
        with.count() as u32
    }

    /// Forgets these runs, and submissions in which there is no other.
    pub fn forget(&mut self, runs: &[&str]) {
        for submission in &mut self.submissions {
            submission
                .runs
                .retain(|_, name| !runs.contains(&name.as_str()));
        }
        self.submissions
            .retain(|submission| !submission.runs.is_empty());
    }

    /// The numbers of all jobs.
    pub fn jobs(&self) -> Vec<&Job> {
        let submissions = self.submissions.iter();
        submissions
            .filter_map(|submission| submission.job.as_ref())
            .collect()
    }
}

/// Where it lies.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("launched.json")
}

/// Held by the one sweep that submits and follows.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("launched.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|error| cannot_write(&path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::user(format!(
                "another `dynalora sweep` follows the runs beside {}",
                folder.display()
            ))
            .help(
                "one is enough: end it by Ctrl-C, which cancels nothing; or give another --output",
            ));
        }
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) => {
            tracing::warn!("{} cannot be locked: {error}", path.display());
        }
    }
    Ok(file)
}
