//! Trained adapters as files that other tools read.

mod pattern;
mod peft;

pub use peft::{Peft, read, write};
