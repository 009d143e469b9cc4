//! Sweeps: arms × points × seeds from one file, each run a process of its own.
//!
//! [`File`] is what was written, [`runs`] what is to be trained, [`train`] trains it on this machine and [`launch`] by an
//! engine on others. What comes of it is a matter of the report.

mod board;
mod file;
mod jobs;
mod launch;
mod plan;
mod points;
mod seeds;
mod tally;

pub use file::{ArmConfig, File, Sweep};
pub use jobs::{Jobs, Outcome, State, command, state, train};
pub use launch::{
    Engine, HqConfig, Launch, Launcher, Setting, SlurmConfig, check_not_launched, launch, preview,
};
pub use plan::{Asked, Planned, runs};
pub use points::{RandomConfig, Settings};
pub use seeds::Seeds;
