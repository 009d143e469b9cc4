//! Without MPI there is no group.

use crate::error::{Error, Result};

/// There is none.
pub enum Group {}

impl Group {
    /// Refuses to be one of several.
    pub fn join(launcher: &str, count: usize) -> Result<Self> {
        Err(Error::user(format!(
            "{launcher} has started {count} processes of this program, which was built without MPI: each would train the \
             whole run"
        ))
        .help(
            "build it with `--features mpi` (docs/scaling.md has what that takes); or start one process; or, where each \
             trains a run of its own, pass --alone",
        ))
    }

    pub fn rank(&self) -> usize {
        match *self {}
    }

    pub fn count(&self) -> usize {
        match *self {}
    }

    pub fn cores(&self) -> f64 {
        match *self {}
    }

    pub fn sum(&self, _: Vec<f32>, _: impl FnMut() -> bool) -> Result<Option<Vec<f32>>> {
        match *self {}
    }

    pub fn broadcast(&self, _: Vec<u8>, _: impl FnMut() -> bool) -> Result<Option<Vec<u8>>> {
        match *self {}
    }

    pub fn leave(&self) {
        match *self {}
    }

    pub fn abort(&self, _: u8) {
        match *self {}
    }
}
