//! Runs looked at while they train: curves, masks, speed and what is left, in a terminal.
//!
//! [`Board`] follows the files that runs write, of which it reads only what is new; [`frame`] draws it as far as a
//! [`View`] goes; [`live`] does both on a terminal until it is left. Nothing is ever written into a run.

mod board;
mod chart;
mod followed;
mod frame;
mod map;
mod screen;
mod tail;
mod view;

pub use board::Board;
pub use followed::{Choice, Followed};
pub use frame::{frame, text};
pub use screen::live;
pub use view::{Look, Rows, Value, View};

#[cfg(test)]
mod tests;
