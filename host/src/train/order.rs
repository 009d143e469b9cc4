//! Which examples each optimiser step meets: a function of the recipe and the step alone.

use crate::data::{Batch, Data, EpochPlan};
use crate::recipe::{Recipe, TrainConfig};

/// The steps of a run, from any of them on.
pub struct Steps<'a> {
    data: &'a Data,
    train: &'a TrainConfig,
    seed: u64,
    /// Steps of one epoch.
    per_epoch: u64,
    /// Steps of the run.
    total: u64,
    /// Steps given out so far.
    done: u64,
    /// The epoch at hand.
    plan: Option<(u64, EpochPlan)>,
}

impl<'a> Steps<'a> {
    /// The steps of `recipe` after the first `done` of `total`, so many of them `per_epoch`.
    pub fn new(data: &'a Data, recipe: &'a Recipe, per_epoch: u64, total: u64, done: u64) -> Self {
        Steps {
            data,
            train: &recipe.train,
            seed: recipe.seed,
            per_epoch,
            total,
            done,
            plan: None,
        }
    }
}

impl Iterator for Steps<'_> {
    /// The micro-batches of a step.
    type Item = Vec<Batch>;

    fn next(&mut self) -> Option<Vec<Batch>> {
        if self.done >= self.total {
            return None;
        }
        let (epoch, step) = (self.done / self.per_epoch, self.done % self.per_epoch);
        if self.plan.as_ref().is_none_or(|(at, _)| *at != epoch) {
            let plan = EpochPlan::new(&self.data.train, self.train, self.seed, epoch);
            self.plan = Some((epoch, plan));
        }
        let (_, plan) = self.plan.as_ref()?;
        let micro_batches = plan.step(step as usize, self.train.gradient_accumulation);
        self.done += 1;
        Some(
            micro_batches
                .iter()
                .map(|batch| self.data.train.batch(batch))
                .collect(),
        )
    }
}
