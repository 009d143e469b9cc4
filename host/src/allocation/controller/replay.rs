//! A recorded run, lived through again with other plugins: they are asked what they would choose, and what was chosen
//! then stays in force.

use dynalora_plugin_api::{LedgerEntry, Moment, Numbers, Observation};

use super::{Controller, Decided, TrialsMade, failed};
use crate::error::Result;
use crate::recipe::Schedule;

/// What was in force at a moment of a recorded run, per module in forward order.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// Optimiser steps finished.
    pub step: u64,
    /// Reallocations made.
    pub reallocations: u64,
    /// The step after which modules were chosen last; none before the first reallocation.
    pub last_choice: Option<u64>,
    /// The step after which they were chosen next; none after the last.
    pub next_choice: Option<u64>,
    /// Which modules were active.
    pub active: Vec<bool>,
    /// Their ranks.
    pub ranks: Vec<u32>,
    /// The ledger.
    pub ledger: Vec<LedgerEntry>,
}

/// What the plugins would have chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct WouldBe {
    /// The scorer's answer; none where there is no scorer.
    pub scores: Option<Vec<f64>>,
    /// Which modules would be active.
    pub active: Vec<bool>,
    /// The components that would remain of each unit, where any are pruned: their numbers.
    pub ranks: Option<Vec<u32>>,
    /// Numbers of the scorer's own.
    pub scorer_numbers: Numbers,
    /// Numbers of the allocator's own.
    pub allocator_numbers: Numbers,
}

impl Controller {
    /// Puts what was in force into force.
    pub fn put_back(&mut self, then: &InForce) {
        self.step = then.step;
        self.reallocations = then.reallocations;
        self.last_choice = then.last_choice;
        if let Schedule::Allocator { .. } = self.settings.schedule {
            self.asked_for = then.next_choice;
        }
        self.active.clone_from(&then.active);
        self.ledger = then.ledger.clone().into();
        // Which components remained is not recorded, but how many: all that a plugin is told.
        let modules = self.units.modules().iter().zip(&then.ranks);
        let pruned = modules
            .clone()
            .zip(&then.active)
            .any(|((module, rank), active)| *active && *rank != module.rank);
        self.components = pruned.then(|| {
            let first = |rank: u32, all: u32| (0..all).map(|k| k < rank).collect();
            modules
                .map(|(module, rank)| first(*rank, module.rank))
                .collect()
        });
    }

    /// Tells the plugins what they want of a recorded observation. Whether all that they want was recorded; none where
    /// they want nothing of it.
    pub fn observe_again(&mut self, recorded: &Observation) -> Result<Option<bool>> {
        let measuring = match recorded.moment {
            Moment::Step => self.upcoming(recorded.step),
            Moment::Start => self.at_the_start(),
            _ => self.before_the_first_step(),
        };
        if !measuring.is_told() {
            return Ok(None);
        }
        let mut signals = Vec::new();
        for signal in &measuring.wanted.signals {
            let name = signal.name();
            match recorded.signals.iter().find(|it| it.signal == name) {
                Some(measured) => signals.push(measured.clone()),
                None => return Ok(Some(false)),
            }
        }
        if measuring.wanted.components && recorded.components.is_empty() {
            return Ok(Some(false));
        }
        let mut told = recorded.clone();
        told.signals = signals;
        if !measuring.wanted.components {
            told.components.clear();
        }
        self.observe(&measuring, &told)?;
        Ok(Some(true))
    }

    /// What the plugins would choose now. Nothing is switched; they are told of the choice `in_force`.
    pub fn consider(&mut self, in_force: &[bool]) -> Result<WouldBe> {
        let Decided {
            scores,
            scorer_numbers,
            choice,
            allocator_numbers,
            ..
        } = self.decide(&TrialsMade::default())?;
        let step = self.step;
        if let Some(scorer) = &mut self.scorer {
            scorer.plugin.reallocated(in_force).map_err(|error| {
                let what = format!("could not take note of the reallocation after step {step}");
                failed("scorer", &scorer.name, what, error)
            })?;
        }
        let remaining = |own: &Vec<bool>| own.iter().map(|remains| u32::from(*remains)).sum();
        Ok(WouldBe {
            scores,
            active: choice.active,
            ranks: choice
                .components
                .map(|components| components.iter().map(remaining).collect()),
            scorer_numbers,
            allocator_numbers,
        })
    }
}
