//! What a plugin is told about the things it scores and chooses.

use serde::{Deserialize, Serialize};

/// One adapted linear layer of the base model, or, under `unit = "layer"`, all the adapted linears of
/// one transformer layer seen as one.
///
/// A plugin meets modules in the order of the model's forward pass, and that order never changes
/// within a run: position `i` in every slice it is given speaks of the same module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModuleInfo {
    /// Path in the base model, such as `encoder.layer.3.attention.self.query`.
    pub path: String,
    /// Index of the transformer layer, from 0 at the input; none for a module outside the layers.
    pub layer: Option<u32>,
    /// What the module does there: the last part of its path, such as `query`.
    pub role: String,
    /// Width of the input, in features.
    pub in_features: u64,
    /// Width of the output, in features.
    pub out_features: u64,
    /// The largest rank its adapter can have (`r_max`).
    pub rank: u32,
    /// Trainable parameters of its adapter at that rank.
    pub parameters: u64,
    /// Floating-point operations of the module's forward pass for one token, adapter included.
    pub forward_flops: u64,
    /// Floating-point operations of its backward pass for one token while it is active.
    pub backward_flops: u64,
    /// Under `unit = "layer"`, the modules of the layer in forward order; empty for a single module.
    pub members: Vec<Member>,
}

/// A module that is a part of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Member {
    /// Its path in the base model.
    pub path: String,
    /// The largest rank its adapter can have.
    pub rank: u32,
}

impl Member {
    /// A module of this path and rank.
    pub fn new(path: impl Into<String>, rank: u32) -> Self {
        Member {
            path: path.into(),
            rank,
        }
    }
}

impl ModuleInfo {
    /// A plausible module, for asking a plugin what it would need.
    pub(crate) fn example() -> Self {
        ModuleInfo {
            path: "layer.0.query".into(),
            layer: Some(0),
            role: "query".into(),
            in_features: 8,
            out_features: 8,
            rank: 1,
            parameters: 16,
            forward_flops: 160,
            backward_flops: 320,
            members: Vec::new(),
        }
    }

    /// How many components its adapter can have: of a layer, those of all its members.
    pub fn components(&self) -> usize {
        match self.members.len() {
            0 => self.rank as usize,
            _ => self.members.iter().map(|member| member.rank as usize).sum(),
        }
    }
}

/// What has happened to one module since the start of the run. It outlives reallocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Optimiser steps that have updated the module: `c` in the discounted allocator's `ŷ / (c + ε)`.
    pub steps_active: u64,
    /// Reallocations that have chosen it.
    pub times_chosen: u64,
    /// The optimiser step after which it was last chosen; none if it never was.
    pub last_chosen: Option<u64>,
}
