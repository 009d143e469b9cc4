//! Trained adapters as files that other tools read.

mod merge;
mod peft;
mod settings;

pub use merge::merge;
pub use peft::{CONFIG, Peft, TENSORS, read, write};
