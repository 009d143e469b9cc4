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
const AT_LEVEL: f64 = 0.95;
/// … and one with less than this share has left it. What lies between begins nothing and ends nothing.
const LEFT: f64 = 0.85;
/// A run that has never left the level has stalled when this share of it has gone by so: an honest start takes a while.
/// Plain LoRA on CoLA, which ends at 0.57 times the entropy, stands at 1.03, 1.00, 0.99, 0.94, 0.91, 0.86 in its first
/// six tenths; the collapse of STS-B in docs/finding.md at 1.05, 1.00, 1.01, 0.99, 0.96 from the second on.
const START: f64 = 0.5;

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
        let kind = match self.learnt {
            true => StallKind::FellBack,
            false => StallKind::NotLeft,
        };
        let gone = (seen.step - self.since) as f64;
        if kind == StallKind::NotLeft && (self.at_level < 2 || gone < START * total_steps as f64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of a hundred steps of 32 examples, in which the loss is so many times the constant answer's in each tenth.
    fn run(shares: &[f64]) -> (Watch, Vec<(u64, Turn)>) {
        let mut watch = Watch::default();
        let mut turns = Vec::new();
        for (block, share) in shares.iter().enumerate() {
            for step in 10 * block as u64 + 1..=10 * (block as u64 + 1) {
                let seen = Seen {
                    step,
                    examples: 32,
                    loss: 64.0 * share,
                    constant_loss: 64.0,
                };
                if let Some(turn) = watch.step(seen, 100) {
                    turns.push((step, turn));
                }
            }
        }
        (watch, turns)
    }

    #[test]
    fn a_run_that_never_leaves_the_level_says_so_once() {
        // As uniform on STS-B, seed 4 (docs/finding.md).
        let (watch, turns) = run(&[3.1, 1.05, 1.0, 1.01, 0.99, 0.96, 0.95, 0.97, 0.93, 0.89]);
        let [(50, Turn::Stalled(stall))] = turns[..] else {
            panic!("{turns:?}")
        };
        assert_eq!(
            (stall.kind, stall.from, stall.to),
            (StallKind::NotLeft, 1, 50)
        );
        assert_eq!((stall.loss, stall.constant_loss), (1.98, 2.0));
        let [stall] = watch.stalls(100)[..] else {
            panic!()
        };
        assert_eq!((stall.from, stall.to, stall.loss), (1, 100, 1.78));
    }

    #[test]
    fn an_honest_slow_start_is_none() {
        // LoRA's: far above the level while the mean is learnt on STS-B, at it for a while on CoLA.
        for shares in [
            [3.0, 1.0, 0.5, 0.4, 0.3, 0.3, 0.3],
            [1.03, 1.0, 0.99, 0.94, 0.91, 0.86, 0.75],
        ] {
            let (watch, turns) = run(&shares);
            assert_eq!((turns, watch.stalls(70)), (vec![], vec![]));
        }
    }

    #[test]
    fn falling_back_and_leaving_again_are_told_apart() {
        let (watch, turns) = run(&[1.0, 0.7, 1.0, 0.9, 0.5, 0.4, 0.95, 1.0, 1.0, 1.0]);
        let kinds: Vec<_> = turns
            .iter()
            .map(|(step, turn)| match turn {
                Turn::Stalled(stall) => (*step, Some(stall.kind), stall.from),
                Turn::Left(stall) => (*step, None, stall.from),
            })
            .collect();
        let fell = Some(StallKind::FellBack);
        assert_eq!(kinds, [(30, fell, 21), (50, None, 21), (70, fell, 61)]);
        let stretches: Vec<_> = watch.stalls(103).iter().map(|s| (s.from, s.to)).collect();
        assert_eq!(stretches, [(21, 40), (61, 103)]);
    }

    #[test]
    fn an_interruption_changes_nothing() {
        let shares = [1.0, 0.7, 1.0, 0.9, 0.5, 0.4, 0.95];
        let (whole, _) = run(&shares);
        let mut resumed = Watch::default();
        for step in 1..=70u64 {
            let text = serde_json::to_string(&resumed).unwrap();
            resumed = serde_json::from_str(&text).unwrap();
            assert!(resumed.is_possible(step - 1), "{text}");
            let seen = Seen {
                step,
                examples: 32,
                loss: 64.0 * shares[(step as usize - 1) / 10],
                constant_loss: 64.0,
            };
            resumed.step(seen, 100);
        }
        assert_eq!(whole, resumed);
    }

    #[test]
    fn short_runs_and_labels_without_a_difference_say_nothing() {
        let step = |examples, constant_loss| {
            let mut watch = Watch::default();
            let turns = (1..=20).filter_map(|step| {
                let seen = Seen {
                    step,
                    examples,
                    loss: 5.0,
                    constant_loss,
                };
                watch.step(seen, 20)
            });
            turns.count()
        };
        // Eighty examples are less than a block.
        assert_eq!((step(4, 5.0), step(400, 5.0), step(400, 0.0)), (0, 1, 0));
    }

    #[test]
    fn states_that_no_run_comes_to_are_refused() {
        let (watch, _) = run(&[1.0; 6]);
        assert!(watch.is_possible(60) && !watch.is_possible(20));
        let mut bad = watch.clone();
        bad.open.loss = f64::NAN;
        assert!(!bad.is_possible(60));
        let mut bad = watch.clone();
        bad.stalls.clear();
        assert!(!bad.is_possible(60));
        let mut bad = watch;
        bad.stalls[0].from = 0;
        assert!(!bad.is_possible(60));
    }
}
