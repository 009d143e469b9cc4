//! Trained adapters as files that other tools read.

mod peft;

pub use peft::{Peft, read, write};
