//! What a plugin is told of the run before its first step.

use serde::{Deserialize, Serialize};

use crate::CostModel;

/// The run as it will be, known before its first step. A plugin that cannot work in it says so now
/// ([`Scorer::start`](crate::Scorer::start), [`Allocator::start`](crate::Allocator::start)), and not after hours.
///
/// Fields may be added: it crosses by names, and one that the host does not send has its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Start {
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// The kind of schedule: `never`, `once`, `periodic`, `at`, or `allocator`, where the allocator's answers say when
    /// it is asked again ([`Allocation::ask_again`](crate::Allocation::ask_again)).
    pub schedule: String,
    /// Whether modules are chosen before the first step (`initial = "allocator"`): that choice comes beside the
    /// reallocations below.
    pub first_choice: bool,
    /// How many passes without an update come before that.
    pub calibration_steps: u64,
    /// For how many steps before each reallocation the gradients of inactive modules are computed too, if a plugin wants
    /// gradients; 0: an inactive module has none.
    pub probe_steps: u64,
    /// The adapters' learning rate at its peak.
    pub learning_rate: f64,
    /// How many reallocations there will be; 0 where the allocator decides about it.
    pub reallocations: u64,
    /// The step after which the first comes; none where there is none.
    pub first_reallocation: Option<u64>,
    /// The step after which the last comes; none where there is none, or where the allocator decides about it.
    pub last_reallocation: Option<u64>,
    /// What an allocator chooses among. A scorer scores modules, whatever this is.
    pub unit: Unit,
    /// A function of the run's seed: the only source of randomness for what a plugin does at other times
    /// than in [`allocate`](crate::Allocator::allocate), which has a seed of its own.
    pub seed: u64,
    /// What choices of modules cost, in steps of this run's sizes: of layers where an allocator chooses among
    /// them, of modules for a scorer. None where the host tells of no costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<CostModel>,
}

/// What an allocator chooses among.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unit {
    /// Single modules.
    #[default]
    Module,
    /// Whole layers.
    Layer,
    /// Something that this version of the crate does not know.
    #[serde(other)]
    Other,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unit::Module => "module",
            Unit::Layer => "layer",
            Unit::Other => "other",
        })
    }
}

impl Start {
    /// A run of so many steps with a reallocation after every `every`th, as the host tells of it.
    pub fn periodic(total_steps: u64, every: u64) -> Self {
        let reallocations = total_steps.saturating_sub(1) / every.max(1);
        let some = |step: u64| (reallocations > 0).then_some(step);
        Start {
            total_steps,
            schedule: "periodic".to_owned(),
            probe_steps: 1,
            reallocations,
            first_reallocation: some(every),
            last_reallocation: some(reallocations * every),
            ..Start::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_not_sent_has_its_default() {
        let start: Start =
            serde_json::from_str(r#"{"total_steps": 9, "unit": "head", "warmup": 0.1}"#).unwrap();
        assert_eq!((start.total_steps, start.unit), (9, Unit::Other));
        assert_eq!((start.reallocations, start.last_reallocation), (0, None));
        let start = Start::periodic(12, 4);
        assert_eq!((start.reallocations, start.last_reallocation), (2, Some(8)));
        let text = serde_json::to_string(&start).unwrap();
        assert_eq!(serde_json::from_str::<Start>(&text).unwrap(), start);
    }
}
