//! `[adapter.eva]`: how pairs start from what their modules read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Document;
use crate::error::Result;

/// LoRA's start under `init_lora_weights = "eva"`, by the names of PEFT's `EvaConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaConfig {
    /// The most that a module's rank can become, as a multiple of its own: ranks move to where they explain most of the
    /// variance of what modules read, and their sum stays. 1: they stay where they are.
    pub rho: f64,
    /// The cosine between a direction before and after a batch from which on it has converged.
    pub tau: f64,
    /// Whether tokens count alone that an answer is learnt of: those that are predicted, or begin a word with a tag.
    pub use_label_mask: bool,
    /// Whether each row of A is divided by the root of its singular value.
    pub whiten: bool,
    /// Whether a module keeps its scale when its rank changes; else that is of the new rank.
    pub adjust_scaling_factors: bool,
    /// The most batches that are read: those of the run's first steps.
    pub max_batches: u64,
}

impl Default for EvaConfig {
    fn default() -> Self {
        EvaConfig {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            whiten: false,
            adjust_scaling_factors: true,
            max_batches: 512,
        }
    }
}

impl EvaConfig {
    /// Whether ranks move between modules.
    pub fn redistributes(&self) -> bool {
        self.rho > 1.0
    }

    /// The largest rank that a module of this rank can get.
    pub fn most(&self, rank: u32) -> usize {
        // As Python rounds.
        (f64::from(rank) * self.rho).round_ties_even() as usize
    }

    pub(super) fn validate(&self, at: &Document) -> Result<()> {
        at.check(
            "adapter.eva.rho",
            (1.0..=65_536.0).contains(&self.rho),
            self.rho,
            "a number of at least 1",
        )?;
        at.check(
            "adapter.eva.tau",
            (0.0..=1.0).contains(&self.tau),
            self.tau,
            "a cosine from 0 to 1",
        )?;
        at.check_count("adapter.eva.max_batches", self.max_batches)
    }
}
