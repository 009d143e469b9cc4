//! The runs that are looked at.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::followed::Followed;
use crate::error::{Error, Result};
use crate::run::Run;

/// Runs, and the folders in which others may turn up.
#[derive(Debug)]
pub struct Board {
    folders: Vec<PathBuf>,
    /// The runs, as the folders were named, by their names in each.
    pub runs: Vec<Followed>,
    looked: Instant,
}

/// How long new runs may stay unseen.
const LOOKS_APART: Duration = Duration::from_secs(3);

impl Board {
    /// The runs in `folders`, each of which is one or holds some, read as far as they are.
    pub fn open(folders: &[PathBuf]) -> Result<Self> {
        for folder in folders {
            let path = folder.display();
            if !folder.exists() {
                return Err(Error::user(format!("there is no folder {path}")).help(
                    "name the folder of a run, as a recipe's `output`, or one that holds runs",
                ));
            }
            if !folder.is_dir() {
                return Err(Error::user(format!("{path} is a file, not a folder of runs"))
                    .help("of a recipe, name its `output`; of a sweep, the folder that its runs are in"));
            }
        }
        let mut board = Board {
            folders: folders.to_vec(),
            runs: Vec::new(),
            looked: Instant::now(),
        };
        board.search()?;
        board.read();
        Ok(board)
    }

    /// Reads what is new, and looks for new runs now and then.
    pub fn refresh(&mut self) {
        if self.looked.elapsed() >= LOOKS_APART {
            self.looked = Instant::now();
            if let Err(error) = self.search() {
                // A folder may go while it is read.
                tracing::debug!("{error}");
            }
        }
        self.read();
    }

    fn read(&mut self) {
        for run in &mut self.runs {
            run.refresh();
        }
    }

    fn search(&mut self) -> Result<()> {
        for folder in self.folders.clone() {
            let mut found = Run::find(&folder)?;
            found.sort();
            for path in found {
                if self.runs.iter().all(|run| run.folder() != path) {
                    let run = Followed::new(&path, name(&folder, &path))?;
                    self.runs.push(run);
                }
            }
        }
        Ok(())
    }
}

/// A run's path in the folder that it was found in; the folder's own name where it is the run.
fn name(folder: &Path, run: &Path) -> String {
    let inside = run.strip_prefix(folder).unwrap_or(run);
    if !inside.as_os_str().is_empty() {
        return inside.display().to_string();
    }
    let whole = std::path::absolute(run).unwrap_or_else(|_| run.to_owned());
    let last = whole.file_name().unwrap_or(whole.as_os_str());
    last.to_string_lossy().into_owned()
}
