//! Trained adapters as files that other tools read.

mod pattern;
mod peft;
mod settings;

pub use peft::{Peft, read, write};
