//! What is wrong with the rows of one file, gathered into one error.

use std::path::Path;

use crate::error::{Error, Result};

/// How many malformed rows an error shows.
const SHOWN: usize = 5;

/// The malformed rows of one file: the first few in words, all of them as a number.
pub(super) struct Problems<'a> {
    path: &'a Path,
    /// What a place in the file is called: a line, or a row of a Parquet file.
    unit: &'static str,
    first: Vec<String>,
    total: usize,
}

impl<'a> Problems<'a> {
    pub(super) fn new(path: &'a Path, unit: &'static str) -> Self {
        Problems {
            path,
            unit,
            first: Vec::new(),
            total: 0,
        }
    }

    /// Notes that the row at `line` is malformed, and how.
    pub(super) fn push(&mut self, line: usize, what: impl std::fmt::Display) {
        self.total += 1;
        if self.first.len() < SHOWN {
            self.first.push(format!("  {} {line}: {what}", self.unit));
        }
    }

    /// An error if anything was noted; `help` says what to do about it.
    pub(super) fn finish(self, help: &str) -> Result<()> {
        if self.total == 0 {
            return Ok(());
        }
        let more = match self.total - self.first.len() {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        let rows = if self.total == 1 { "row" } else { "rows" };
        Err(Error::user(format!(
            "{}: {} malformed {rows}\n{}{more}",
            self.path.display(),
            self.total,
            self.first.join("\n")
        ))
        .help(help))
    }
}
