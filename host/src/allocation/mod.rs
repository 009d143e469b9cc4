//! Which modules are active, and when that changes: schedule, units, ledger and the controller that
//! asks the scorer and the allocator and checks what they answer.

mod check;
mod controller;
mod initial;
mod ledger;
mod offer;
mod seed;
mod state;
mod unit;

pub use check::not_finite;
pub use controller::{
    Controller, InForce, Measuring, Named, Reallocation, Settings, TrialsAsked, TrialsMade, WouldBe,
};
pub use initial::draw as initial_units;
pub use ledger::Ledger;
pub use offer::{RawValue, Signal, Wanted};
pub use seed::{initial_seed, reallocation_seed};
pub use state::{Details, Fault, PluginState, State};
pub use unit::Units;
