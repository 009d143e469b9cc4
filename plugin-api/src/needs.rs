//! What a plugin asks the host to measure, and when.

use serde::{Deserialize, Serialize};

use crate::{RawValue, Signal};

/// What a plugin asks the host to measure. The host computes nothing else, and refuses, by name and before the run
/// begins, what it does not offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Needs {
    /// Reductions wanted at the steps for which [`Wants::signals`] says so.
    pub signals: Vec<Signal>,
    /// Raw values wanted at the steps for which [`Wants::raw`] says so.
    pub raw: Vec<RawValue>,
    /// Whether [`Observation::components`](crate::Observation::components) are wanted, at the steps for which
    /// [`Wants::components`] says so.
    pub components: bool,
    /// Whether to be told of steps although nothing is measured of the modules: of loss, learning rate, metric.
    pub steps: bool,
    /// Of an allocator: whether it reads scores. One that does not, or that measures by itself, needs no scorer.
    pub scores: bool,
    /// Training examples that the host holds back, by the run's seed, for [trials](crate::Trials); they are never
    /// trained on. 0: no trials.
    pub held_back: u64,
}

impl Default for Needs {
    fn default() -> Self {
        Needs {
            signals: Vec::new(),
            raw: Vec::new(),
            components: false,
            steps: false,
            scores: true,
            held_back: 0,
        }
    }
}

impl Needs {
    /// The names of the fields: what a host of this version can be asked for.
    pub const FIELDS: [&'static str; 6] = [
        "signals",
        "raw",
        "components",
        "steps",
        "scores",
        "held_back",
    ];

    /// These signals.
    pub fn signals(signals: impl IntoIterator<Item = Signal>) -> Self {
        Needs {
            signals: signals.into_iter().collect(),
            ..Needs::default()
        }
    }

    /// These raw values as well.
    pub fn and_raw(mut self, raw: impl IntoIterator<Item = RawValue>) -> Self {
        self.raw.extend(raw);
        self
    }

    /// The components' sensitivities as well.
    pub fn and_components(mut self) -> Self {
        self.components = true;
        self
    }

    /// To be told of steps, whatever is measured.
    pub fn and_steps(mut self) -> Self {
        self.steps = true;
        self
    }

    /// So many training examples held back for trials as well.
    pub fn and_held_back(mut self, examples: u64) -> Self {
        self.held_back = examples;
        self
    }

    /// No scores: for an allocator that reads none.
    pub fn without_scores(mut self) -> Self {
        self.scores = false;
        self
    }

    /// Whether anything is to be measured of the modules.
    pub fn measures(&self) -> bool {
        !self.signals.is_empty() || !self.raw.is_empty() || self.components
    }

    /// Whether the plugin is told of steps at all.
    pub fn observes(&self) -> bool {
        self.measures() || self.steps
    }
}

/// The step that is about to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Upcoming {
    /// Its number, from 1.
    pub step: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// The step after which modules were last chosen; none before the first reallocation.
    pub previous_reallocation: Option<u64>,
    /// The step after which they are chosen next: never less than [`step`](Self::step).
    pub next_reallocation: Option<u64>,
    /// Whether any module is inactive.
    pub some_inactive: bool,
    /// Whether it is among the last `probe_steps` before that: then the gradients of inactive modules are computed
    /// as well, if gradients are wanted of it.
    pub probing: bool,
}

/// What of its [`Needs`] a plugin wants of one step. Nothing at all: it is not told of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Wants {
    /// To be told of the step: loss, learning rate, mask.
    pub step: bool,
    /// The signals.
    pub signals: bool,
    /// The raw values.
    pub raw: bool,
    /// The components' sensitivities.
    pub components: bool,
}

impl Wants {
    /// All that the needs name.
    pub const ALL: Wants = Wants {
        step: true,
        signals: true,
        raw: true,
        components: true,
    };

    /// Nothing.
    pub const NOTHING: Wants = Wants {
        step: false,
        signals: false,
        raw: false,
        components: false,
    };

    /// The signals, and no raw values.
    pub const SIGNALS: Wants = Wants {
        step: true,
        signals: true,
        raw: false,
        components: false,
    };

    /// All where `wanted`, else nothing.
    pub fn all_if(wanted: bool) -> Self {
        match wanted {
            true => Wants::ALL,
            false => Wants::NOTHING,
        }
    }

    /// Whether the plugin is told of the step.
    pub fn anything(self) -> bool {
        self.step || self.signals || self.raw || self.components
    }
}
