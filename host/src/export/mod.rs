//! Trained adapters as files that other tools read.

mod merge;
mod peft;
mod settings;
mod svd;

pub use merge::merge;
pub use peft::{CONFIG, Peft, read, write};
