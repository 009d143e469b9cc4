//! Sweeps: arms × points × seeds from one file, each run a process of its own.
//!
//! [`File`] is what was written, [`runs`] what is to be trained, [`train`] trains it. What comes of it is a matter of the
//! report.

mod board;
mod file;
mod jobs;
mod plan;
mod points;
mod seeds;

pub use file::{ArmConfig, File, Sweep};
pub use jobs::{Jobs, Outcome, State, command, state, train};
pub use plan::{Asked, Planned, runs};
pub use points::{RandomConfig, Settings};
pub use seeds::Seeds;
