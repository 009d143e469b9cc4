//! Trial passes: the loss as it would be with modules scaled or off.

use serde::{Deserialize, Serialize};

/// One question: the loss with the adapters changed like this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Trial {
    /// A factor on each module's share `ΔW·x` of its output: 1 as it is, 0 off. Empty: 1 for all.
    pub factors: Vec<f32>,
    /// Which components of each module's pair are applied; all of them where none are given.
    pub components: Option<Vec<Vec<bool>>>,
}

impl Trial {
    /// A trial with these factors, one per module.
    pub fn scaled(factors: Vec<f32>) -> Self {
        Trial {
            factors,
            components: None,
        }
    }

    /// A trial with one of so many modules off.
    pub fn without(module: usize, modules: usize) -> Self {
        let mut factors = vec![1.0; modules];
        factors[module] = 0.0;
        Trial::scaled(factors)
    }

    /// A trial with these components applied, and no others.
    pub fn of_components(components: Vec<Vec<bool>>) -> Self {
        Trial {
            factors: Vec::new(),
            components: Some(components),
        }
    }
}

/// Trials to make before a reallocation, all on the same examples and each a forward pass over them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Trials {
    /// On how many of the examples held back ([`Needs::held_back`](crate::Needs::held_back)), drawn by seed for
    /// each reallocation; 0 for all.
    pub examples: u64,
    /// The trials. The loss without any change is measured as well, where there is at least one.
    pub trials: Vec<Trial>,
}

impl Trials {
    /// These trials on so many of the examples held back; 0 for all.
    pub fn new(examples: u64, trials: Vec<Trial>) -> Self {
        Trials { examples, trials }
    }
}

/// What the trials gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrialLosses {
    /// On how many examples.
    pub examples: u64,
    /// Mean loss with nothing changed.
    pub baseline: f64,
    /// Mean loss of each trial.
    pub losses: Vec<f64>,
}

impl TrialLosses {
    /// Losses of trials on so many examples, beside the loss with nothing changed.
    pub fn new(examples: u64, baseline: f64, losses: Vec<f64>) -> Self {
        TrialLosses {
            examples,
            baseline,
            losses,
        }
    }
}

/// A reallocation that is about to be made, when a plugin says which trials it wants.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TrialRequest {
    /// Optimiser steps finished.
    pub step: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// Which reallocation this will be, from 0.
    pub reallocation: u64,
    /// A function of the run's seed and [`reallocation`](Self::reallocation) alone.
    pub seed: u64,
    /// Which modules are active now.
    pub active: Vec<bool>,
    /// Their ranks now.
    pub ranks: Vec<u32>,
}
