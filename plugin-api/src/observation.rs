//! What the host tells a plugin of a step.

use serde::{Deserialize, Serialize};

use crate::{RawValue, Result, Signal};

/// One signal of one step: a value per module, `None` where there was nothing to measure
/// (the gradient of an inactive module outside a probe).
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Which signal.
    pub signal: Signal,
    /// One value per module, finite where present.
    pub values: Vec<Option<f32>>,
}

/// One raw value of one step: a buffer per module, empty where there was nothing to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// Which value.
    pub value: RawValue,
    /// One buffer per module.
    pub buffers: Vec<Vec<f32>>,
}

/// When something was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Moment {
    /// Before anything ran: what is measured once, such as norms of the frozen weights.
    Start,
    /// A pass before the first step, by which nothing was updated (`allocation.calibration_steps`).
    Calibration,
    /// An optimiser step.
    #[default]
    Step,
    /// A moment that this version of the crate does not know.
    #[serde(other)]
    Other,
}

impl Moment {
    /// Its name, as it crosses.
    pub fn name(self) -> &'static str {
        match self {
            Moment::Start => "start",
            Moment::Calibration => "calibration",
            Moment::Step => "step",
            Moment::Other => "other",
        }
    }

    /// The moment of this name.
    pub fn named(name: &str) -> Self {
        match name {
            "start" => Moment::Start,
            "calibration" => Moment::Calibration,
            "step" => Moment::Step,
            _ => Moment::Other,
        }
    }
}

/// The main metric of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Metric {
    /// The optimiser step after which it was taken.
    pub step: u64,
    /// Its name, such as `matthews`.
    pub name: String,
    /// Its value.
    pub value: f64,
}

impl Metric {
    /// A metric of this name and value, taken after `step`.
    pub fn new(step: u64, name: impl Into<String>, value: f64) -> Self {
        Metric {
            step,
            name: name.into(),
            value,
        }
    }
}

/// What the host measured during one optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Observation {
    /// When this was.
    pub moment: Moment,
    /// Optimiser steps finished, this one included: the first step's observation has 1. 0 before.
    pub step: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// Real tokens the step saw.
    pub tokens: u64,
    /// Examples the step saw; 0 from a host that does not say.
    pub examples: u64,
    /// Mean loss over the step's examples.
    pub loss: f64,
    /// The adapters' learning rate at the step.
    pub learning_rate: f64,
    /// The main metric of the latest evaluation; none before the first.
    pub metric: Option<Metric>,
    /// Whether the step also computed the gradients of inactive modules.
    pub probing: bool,
    /// Which modules were active during the step.
    pub active: Vec<bool>,
    /// The signals asked for in [`Needs::signals`](crate::Needs::signals), if they were wanted of this step.
    pub signals: Vec<Measured>,
    /// The raw values asked for, if they were wanted of this step.
    pub raw: Vec<Raw>,
    /// The sensitivity of each component of each module's pair, finite and not negative; empty for a
    /// module without gradient (inactive, outside a probe), and altogether unless
    /// [`Needs::components`](crate::Needs::components) asks for it.
    ///
    /// Component k is row k of A and column k of B, the k-th of a module's `r_max` terms `bₖ·aₖᵀ`. Its
    /// sensitivity is the mean of |w·∂L/∂w| over the row plus that over the column (Zhang et al. 2023,
    /// AdaLoRA, section 3.2, with A and B as they entered the step). Of a pruned component, whose column
    /// is zero, it is η·|∂L/∂B| averaged over the column: what it would be after one more step of
    /// Adam's, which moves each entry by about the learning rate η.
    pub components: Vec<Vec<f32>>,
}

impl Observation {
    /// The values of `signal`, one per module; an error if they were not asked for, or not wanted of this step.
    pub fn signal(&self, signal: &Signal) -> Result<&[Option<f32>]> {
        self.measured(signal).ok_or_else(|| {
            format!(
                "the observation of step {} lacks `{signal}`: list it in Needs::signals, and want it of this step",
                self.step
            )
            .into()
        })
    }

    /// The values of `signal`, one per module; none if they were not wanted of this step.
    pub fn measured(&self, signal: &Signal) -> Option<&[Option<f32>]> {
        let mut signals = self.signals.iter();
        let measured = signals.find(|measured| measured.signal == *signal);
        measured.map(|measured| measured.values.as_slice())
    }

    /// The buffers of a raw value, one per module; none if they were not wanted of this step.
    pub fn raw(&self, value: &RawValue) -> Option<&[Vec<f32>]> {
        let mut raw = self.raw.iter();
        let found = raw.find(|raw| raw.value == *value);
        found.map(|raw| raw.buffers.as_slice())
    }
}
