//! Scorers: from what the host measures of each module to one importance score per module.

use abi_stable::StableAbi;
use serde::{Deserialize, Serialize};

use crate::{Result, Start};

/// A number the host measures per module and optimiser step, on the device.
///
/// Norms run over the real tokens of the whole step (every micro-batch of it), padding excluded. A module that
/// sees one token a sequence, as a pooler does, is measured as if that one stood for all of them, so that its
/// norms compare with the others'.
#[repr(u8)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, StableAbi,
)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Sum of |y| over the module's output `y = (W + ΔW)x`.
    ActivationL1,
    /// Frobenius norm of the module's output `y = (W + ΔW)x`.
    ActivationL2,
    /// Frobenius norm of the adapter's share `ΔW·x` (Zhou et al. 2024, LoRA-drop, eq. 3, before squaring).
    DeltaL2,
    /// Sum of |g| over the accumulated gradient of the adapter's parameters.
    GradientL1,
    /// Euclidean norm of the accumulated gradient of the adapter's parameters.
    GradientL2,
    /// Frobenius norm of the adapter's weight: LoRA's `ΔW = s·BA`, VeRA's `ΔW = Λ_b·B·Λ_d·A`.
    WeightL2,
    InputL2,
    OutputGradientL2,
    GradientDotWeight,
    GradientDotWeightAbs,
    Fisher,
    UpdateL2,
    FrozenWeightL1,
    FrozenWeightL2,
}

/// Values that can be copied to a scorer whole, which costs a device-to-host copy a step.
#[repr(u8)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, StableAbi,
)]
#[serde(rename_all = "snake_case")]
pub enum RawValue {
    /// The module's output, `[tokens, out_features]`, row-major, of the step's last micro-batch.
    Activation,
    /// The gradient of every adapter parameter, accumulated over the step: LoRA's A, then B; VeRA's λ_d, then λ_b.
    Gradient,
    /// Every adapter parameter, in the same order.
    Weight,
    InputColumnL2,
    FrozenWeight,
}

/// The name a signal has in configs and messages, such as `activation_l2`.
impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// The name a raw value has in configs and messages, such as `activation`.
impl std::fmt::Display for RawValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// What a plugin asks the host to measure. The host computes nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Reductions wanted at every step.
    pub signals: Vec<Signal>,
    /// Raw values wanted at the steps for which [`Scorer::wants_raw`] says yes; at every step for an
    /// allocator.
    pub raw: Vec<RawValue>,
    /// Whether [`Observation::components`] are wanted, at every step.
    pub components: bool,
    /// Of an allocator: whether it reads no scores, so that a recipe need not name a scorer. One that
    /// measures need not either.
    #[serde(default)]
    pub no_scores: bool,
}

impl Needs {
    /// Whether anything is to be measured.
    pub fn measures(&self) -> bool {
        !self.signals.is_empty() || !self.raw.is_empty() || self.components
    }
}

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

/// What the host measured during one optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Optimiser steps finished, this one included: the first observation has step 1.
    pub step: u64,
    /// Real tokens the step saw.
    pub tokens: u64,
    /// Which modules were active during the step.
    pub active: Vec<bool>,
    /// The signals asked for in [`Needs::signals`].
    pub signals: Vec<Measured>,
    /// The raw values asked for, if this was a step for them.
    pub raw: Vec<Raw>,
    /// The sensitivity of each component of each module's pair, finite and not negative; empty for a
    /// module without gradient (inactive, outside a probe), and altogether unless
    /// [`Needs::components`] asks for it.
    ///
    /// Component k is row k of A and column k of B, the k-th of a module's `r_max` terms `bₖ·aₖᵀ`. Its
    /// sensitivity is the mean of |w·∂L/∂w| over the row plus that over the column (Zhang et al. 2023,
    /// AdaLoRA, section 3.2, with A and B as they entered the step). Of a pruned component, whose column
    /// is zero, it is η·|∂L/∂B| averaged over the column: what it would be after one more step of
    /// Adam's, which moves each entry by about the learning rate η.
    pub components: Vec<Vec<f32>>,
}

impl Observation {
    /// The values of `signal`, one per module; an error if the scorer never asked for it.
    pub fn signal(&self, signal: Signal) -> Result<&[Option<f32>]> {
        self.signals
            .iter()
            .find(|measured| measured.signal == signal)
            .map(|measured| measured.values.as_slice())
            .ok_or_else(|| {
                format!("the observation lacks {signal:?}: list it in Needs::signals").into()
            })
    }
}

/// Turns signals into one importance score per module.
///
/// The host calls [`observe`](Scorer::observe) after every optimiser step and
/// [`scores`](Scorer::scores) at each reallocation, then [`reallocated`](Scorer::reallocated) once the
/// answer is in force.
pub trait Scorer: Send {
    /// What to measure. Asked once, before the first step.
    fn needs(&self) -> Needs;

    /// Told of the run, once, before the first step and before [`load`](Scorer::load). An error refuses the run,
    /// which has then cost nothing; the sentences of the answer are warnings for the person who starts it.
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        let _ = start;
        Ok(Vec::new())
    }

    /// Whether the raw values in [`Needs::raw`] are wanted at `step` (counted from 1).
    fn wants_raw(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// Takes in one step's measurements.
    fn observe(&mut self, observation: &Observation) -> Result<()>;

    /// One score per module: finite, not negative; larger means more important.
    fn scores(&mut self) -> Result<Vec<f64>>;

    /// Told after each reallocation, where a scorer with `window = "period"` starts afresh.
    fn reallocated(&mut self) -> Result<()> {
        Ok(())
    }

    /// The state to keep in a checkpoint; empty where there is none.
    fn save(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Takes back what [`save`](Scorer::save) gave. Called on a fresh scorer, before any step.
    fn load(&mut self, state: &[u8]) -> Result<()> {
        refuse_state(state)
    }
}

/// For a plugin that keeps no state: any bytes handed back to it were another plugin's.
pub(crate) fn refuse_state(state: &[u8]) -> Result<()> {
    if state.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this plugin keeps no state but was given {} bytes of it",
        state.len()
    )
    .into())
}
