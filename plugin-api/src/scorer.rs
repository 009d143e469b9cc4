//! Scorers: from what the host measures of each module to one importance score per module.

use crate::{
    LedgerEntry, Needs, Numbers, Observation, Result, Start, TrialLosses, TrialRequest, Trials,
    Upcoming, Wants,
};

/// What a scorer is told when scores are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ScoreRequest {
    /// Optimiser steps finished.
    pub step: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// Which reallocation this is, from 0.
    pub reallocation: u64,
    /// A function of the run's seed and [`reallocation`](Self::reallocation) alone.
    pub seed: u64,
    /// Which modules are active now.
    pub active: Vec<bool>,
    /// The rank of each module now: its components that train, 0 where inactive.
    pub ranks: Vec<u32>,
    /// History, one entry per module.
    pub ledger: Vec<LedgerEntry>,
    /// What the [trials](Scorer::trials) gave; none where none were asked for.
    pub trials: Option<TrialLosses>,
}

/// Turns signals into one importance score per module.
///
/// The host calls [`observe`](Scorer::observe) after the steps that it [`wants`](Scorer::wants), up to the last
/// reallocation. At each reallocation it asks for [`trials`](Scorer::trials), then for
/// [`scores`](Scorer::scores) and [`numbers`](Scorer::numbers), and says [`reallocated`](Scorer::reallocated) once
/// the allocator's answer is in force.
pub trait Scorer: Send {
    /// What to measure. Asked once, before the first step.
    fn needs(&self) -> Needs;

    /// Told of the run, once, before the first step and before [`load`](Scorer::load). An error refuses the run,
    /// which has then cost nothing; the sentences of the answer are warnings for the person who starts it.
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        let _ = start;
        Ok(Vec::new())
    }

    /// What of its needs it wants of the step about to run; by default all. A step of which it wants nothing costs
    /// nothing, and it is not told of it.
    fn wants(&self, upcoming: &Upcoming) -> Wants {
        let _ = upcoming;
        Wants::ALL
    }

    /// Takes in what was measured: before the first step, of a calibration pass or of an optimiser step
    /// ([`Observation::moment`]).
    fn observe(&mut self, observation: &Observation) -> Result<()>;

    /// Trial passes to make before scores are asked for; by default none. Needs
    /// [`Needs::held_back`](crate::Needs::held_back).
    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        let _ = request;
        Ok(Trials::default())
    }

    /// One score per module: finite, not negative; larger means more important.
    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>>;

    /// Numbers of its own to be recorded beside the scores just given, under their names.
    fn numbers(&self) -> Result<Numbers> {
        Ok(Numbers::new())
    }

    /// Told after each reallocation which modules are active now. A scorer with `window = "period"` starts afresh.
    fn reallocated(&mut self, active: &[bool]) -> Result<()> {
        let _ = active;
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
