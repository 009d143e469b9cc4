//! Runs below a folder, and how far each is.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Run, Summary};
use crate::error::Result;
use crate::file::cannot_read;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process trains in it now.
    Running,
    /// It has its closing account.
    Finished,
    /// It has, and ended with the loss of a constant answer.
    Collapsed,
    /// Nobody trains in it, and it goes on from a checkpoint by `--resume`.
    Interrupted,
    /// Nobody trains in it, and it begins anew by `--resume`.
    NotSaved,
}

impl State {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Collapsed => "collapsed",
            State::Interrupted => "interrupted",
            State::NotSaved => "not saved",
        }
    }
}

impl Run {
    /// The folders of runs below `folder`, at whatever depth, which may be one itself. None is looked for in a run.
    pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        search(folder, &mut found)?;
        Ok(found)
    }

    /// How far it is, given its closing account if it has one.
    pub fn state(&self, summary: Option<&Summary>) -> State {
        match summary {
            _ if self.is_at_work() => State::Running,
            Some(summary) if summary.collapse().is_some() => State::Collapsed,
            Some(_) => State::Finished,
            None if self.has_checkpoint() => State::Interrupted,
            None => State::NotSaved,
        }
    }
}

fn search(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if folder.join("recipe.toml").is_file() {
        found.push(folder.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).map_err(|error| cannot_read(folder, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| cannot_read(folder, error))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // A link could lead round in a circle.
        if !hidden && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            search(&entry.path(), found)?;
        }
    }
    Ok(())
}
