//! Whether a run learns anything of its inputs: its loss beside that of the best constant answer on the same examples.
//!
//! A loss that stands at the variance or the entropy of the labels looks like a loss: it is finite, it fluctuates with
//! the batches, and nothing but the metric at the end says that the model answers the same to everything. So
//! consecutive blocks of a tenth of the run each are held against [`Constant`](super::constant::Constant), on the very
//! examples of the block, which takes the noise of the labels out of the comparison.

use serde::{Deserialize, Serialize};

use crate::recipe::{HeadBias, Recipe};
use crate::run::{Stall, StallKind};

/// A block is a tenth of the run …
const BLOCKS: u64 = 10;
/// … and has at least so many examples.
const LEAST_EXAMPLES: u64 = 256;
/// A block with this share of the constant answer's loss or more is at the level …
const AT_LEVEL: f64 = 0.9;
/// … and one with less than this share has left it. What lies between changes nothing.
const LEFT: f64 = 0.8;
/// A run that has never left the level is said to have stalled after so many blocks: an honest start takes a while.
const START: u64 = 3;

/// What is known of the blocks so far; a part of every checkpoint, so that a resumed run says the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    open: Block,
    /// Whether a block has left the level.
    learnt: bool,
    /// Consecutive blocks at the level, and the step before the first of them.
    at_level: u64,
    since: u64,
    /// The stretches, the last of which may be going on.
    stalls: Vec<Stall>,
    /// Whether it is.
    stalled: bool,
}

/// Sums over the steps of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Block {
    steps: u64,
    examples: u64,
    loss: f64,
    constant_loss: f64,
}

/// A step as the watch takes it in.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its number, from 1.
    pub step: u64,
    /// Its examples.
    pub examples: u64,
    /// The sum of their losses.
    pub loss: f64,
    /// What the best constant answer loses on them.
    pub constant_loss: f64,
}

/// What a step has brought to light.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// A stretch at the level, just found to be one.
    Stalled(Stall),
    /// The stretch that was going on is over.
    Left(Stall),
}

/// What to try against a stretch at the level, by what `recipe` says; `frozen_pooler` is whether BERT's is.
pub fn advice(recipe: &Recipe, frozen_pooler: bool) -> String {
    let mut ways = Vec::new();
    if recipe.model.head_bias == HeadBias::Zero {
        ways.push("model.head_bias = \"labels\"");
    }
    ways.push("a lower train.learning_rate");
    if frozen_pooler {
        ways.push("model.train_pooler = true");
    }
    ways.push("more active modules");
    let (last, first) = ways.split_last().expect("there are some");
    format!("Try {}, or {last}", first.join(", "))
}

impl Watch {
    /// Takes in a step of a run of `total_steps`.
    pub fn step(&mut self, seen: Seen, total_steps: u64) -> Option<Turn> {
        let block = &mut self.open;
        block.steps += 1;
        block.examples += seen.examples;
        block.loss += seen.loss;
        block.constant_loss += seen.constant_loss;
        if block.steps < total_steps.div_ceil(BLOCKS) || block.examples < LEAST_EXAMPLES {
            return None;
        }
        let block = std::mem::take(&mut self.open);
        // Labels that are all the same leave nothing to learn.
        if block.constant_loss <= 0.0 {
            return None;
        }
        let share = block.loss / block.constant_loss;
        if share < LEFT {
            self.learnt = true;
            self.at_level = 0;
            let was_stalled = std::mem::take(&mut self.stalled);
            return self
                .stalls
                .last()
                .filter(|_| was_stalled)
                .map(|stall| Turn::Left(*stall));
        }
        // A loss that is not a number has left nothing.
        if share < AT_LEVEL && !self.stalled {
            self.at_level = 0;
            return None;
        }
        if self.at_level == 0 {
            self.since = seen.step - block.steps;
        }
        self.at_level += 1;
        let (kind, patience) = match self.learnt {
            true => (StallKind::FellBack, 1),
            false => (StallKind::NotLeft, START),
        };
        if self.at_level < patience {
            return None;
        }
        let stall = Stall {
            kind,
            from: self.since + 1,
            to: seen.step,
            loss: block.loss / block.examples as f64,
            constant_loss: block.constant_loss / block.examples as f64,
        };
        match (self.stalled, self.stalls.last_mut()) {
            (true, Some(last)) => {
                *last = stall;
                None
            }
            _ => {
                self.stalled = true;
                self.stalls.push(stall);
                Some(Turn::Stalled(stall))
            }
        }
    }

    /// The stretches of a run that ends after `step`; one that was still going on lasts to the end.
    pub fn stalls(&self, step: u64) -> Vec<Stall> {
        let mut stalls = self.stalls.clone();
        if let Some(last) = stalls.last_mut().filter(|_| self.stalled) {
            last.to = step;
        }
        stalls
    }

    /// Whether this can have come of `step` steps.
    pub fn is_possible(&self, step: u64) -> bool {
        let Block {
            steps,
            examples,
            loss,
            constant_loss,
        } = self.open;
        let finite = |numbers: [f64; 2]| numbers.iter().all(|number| number.is_finite());
        let ordered = self.stalls.iter().all(|stall| {
            (1..=stall.to).contains(&stall.from)
                && stall.to <= step
                && finite([stall.loss, stall.constant_loss])
        });
        steps <= step
            && examples < 1 << 62
            && finite([loss, constant_loss])
            && self.at_level <= step
            && self.since <= step
            && self.stalls.len() as u64 <= step
            && self.stalled <= !self.stalls.is_empty()
            && ordered
    }
}
