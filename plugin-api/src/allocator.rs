//! Allocators: from scores, history and a budget to the modules that train next.

use std::collections::BTreeMap;

use crate::scorer::refuse_state;
use crate::{
    LedgerEntry, ModuleInfo, Needs, Observation, Result, Start, TrialLosses, TrialRequest, Trials,
    Upcoming, Wants,
};

/// Numbers of a plugin's own, by name: one value, or one per module. They are recorded and reported.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Everything an allocator may base its choice on.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AllocationRequest {
    /// The modules to choose from, in forward order.
    pub modules: Vec<ModuleInfo>,
    /// The scorer's answer, one per module, as it came: finite and not negative, not normalised. Zeros
    /// where there is no scorer, which only an allocator whose [`needs`](Allocator::needs) say so can do
    /// without.
    pub scores: Vec<f64>,
    /// History, one entry per module.
    pub ledger: Vec<LedgerEntry>,
    /// Which modules are active now.
    pub active: Vec<bool>,
    /// The rank of each module now: its components that train, 0 where inactive.
    pub ranks: Vec<u32>,
    /// Optimiser steps finished.
    pub step: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// Which reallocation this is, from 0.
    pub reallocation: u64,
    /// A function of the run's seed and [`reallocation`](Self::reallocation) alone, so that a resumed
    /// run draws the same modules. The only source of randomness an allocator may use.
    pub seed: u64,
    /// What the [trials](Allocator::trials) gave; none where none were asked for.
    pub trials: Option<TrialLosses>,
}

impl AllocationRequest {
    /// `ŷ`: the scores divided by their sum; equal shares where every score is zero.
    pub fn normalised_scores(&self) -> Vec<f64> {
        // Dividing by the largest first keeps the sum finite for huge scores and non-zero for
        // subnormal ones.
        let largest = self.scores.iter().copied().fold(0.0, f64::max);
        if largest <= 0.0 {
            return vec![1.0 / self.scores.len().max(1) as f64; self.scores.len()];
        }
        let scaled: Vec<f64> = self.scores.iter().map(|score| score / largest).collect();
        let sum: f64 = scaled.iter().sum();
        scaled.iter().map(|score| score / sum).collect()
    }

    /// The modules from the largest score to the smallest; equal scores stay in module order.
    pub fn ranking(&self) -> Vec<usize> {
        // Adding zero makes the two zeros one, which a total order tells apart.
        let score = |module: &usize| self.scores[*module] + 0.0;
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        order
    }
}

/// What becomes of the components of an active module that are not among those that remain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pruning {
    /// Their column of B is set to zero, and they are not updated. One that is back among those that remain trains
    /// on from there, as a fresh LoRA component begins.
    #[default]
    Prune,
    /// They keep their values and their share of the output, and are not updated.
    Freeze,
}

impl Pruning {
    /// Its name, as it crosses.
    pub fn name(self) -> &'static str {
        match self {
            Pruning::Prune => "prune",
            Pruning::Freeze => "freeze",
        }
    }

    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "prune" => Some(Pruning::Prune),
            "freeze" => Some(Pruning::Freeze),
            _ => None,
        }
    }
}

/// An allocator's answer. It stands for itself: what it leaves out is back at its default, whatever the answer
/// before it said.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Allocation {
    /// One flag per module; at least one is true.
    pub active: Vec<bool>,
    /// Which components of each module's pair remain, one flag for each of its `r_max`: some of an
    /// active module's, none of an inactive one's. None where nothing is pruned. Under `unit = "layer"` a layer's
    /// are those of its members, one module after the other.
    ///
    /// Component k is row k of A and column k of B. [`pruning`](Self::pruning) says what becomes of the others.
    pub components: Option<Vec<Vec<bool>>>,
    /// What becomes of the components that do not remain.
    pub pruning: Pruning,
    /// Factors on the learning rate of each module's A and B (of VeRA's λ_d and λ_b), as LoRA+ has them (Hayou et
    /// al. 2024); 1 where none are given.
    pub rates: Option<Vec<[f64; 2]>>,
    /// A factor on the scale `alpha/r` of each module; 1 where none are given.
    pub scales: Option<Vec<f64>>,
    /// The module whose pair each module uses: itself, or another of the same shape, which then trains for both
    /// (Zhou et al. 2024, LoRA-drop). Itself where none are given.
    pub shared: Option<Vec<usize>>,
    /// To be asked again after so many steps. Only under the schedule `{ kind = "allocator" }`; none: never again.
    pub ask_again: Option<u64>,
}

impl Allocation {
    /// An allocation of the modules at `indices`, out of `modules`, with nothing pruned.
    pub fn of(indices: impl IntoIterator<Item = usize>, modules: usize) -> Self {
        let mut active = vec![false; modules];
        for index in indices {
            active[index] = true;
        }
        Allocation {
            active,
            ..Allocation::default()
        }
    }

    /// An allocation in which these components remain: a module is active where one of its own does.
    pub fn of_components(components: Vec<Vec<bool>>) -> Self {
        Allocation {
            active: components
                .iter()
                .map(|module| module.contains(&true))
                .collect(),
            components: Some(components),
            ..Allocation::default()
        }
    }
}

/// Chooses which modules receive gradient updates until the next reallocation.
///
/// The host calls [`observe`](Allocator::observe) after the steps that it [`wants`](Allocator::wants), if its
/// [`needs`](Allocator::needs) ask for anything, up to the last reallocation. At each reallocation it asks for
/// [`trials`](Allocator::trials), then to [`allocate`](Allocator::allocate), then for
/// [`numbers`](Allocator::numbers).
pub trait Allocator: Send {
    /// What to measure for [`observe`](Allocator::observe), beside what the scorer needs, and whether
    /// scores are read at all; by default nothing, and they are. Asked once, before the first step.
    /// Measurements are of single modules: an allocator that needs any but components cannot choose among layers.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Told of the run, once, before the first step and before [`load`](Allocator::load). An error refuses the run,
    /// which has then cost nothing; the sentences of the answer are warnings for the person who starts it.
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        let _ = start;
        Ok(Vec::new())
    }

    /// What of its needs it wants of the step about to run; by default all.
    fn wants(&self, upcoming: &Upcoming) -> Wants {
        let _ = upcoming;
        Wants::ALL
    }

    /// Takes in what was measured: before the first step, of a calibration pass or of an optimiser step
    /// ([`Observation::moment`]).
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let _ = observation;
        Ok(())
    }

    /// Trial passes to make before it is asked to allocate; by default none. Needs
    /// [`Needs::held_back`](crate::Needs::held_back).
    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        let _ = request;
        Ok(Trials::default())
    }

    /// The choice. The host checks it and refuses one that breaks a rule of [`Allocation`].
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation>;

    /// Numbers of its own to be recorded beside the choice just made, under their names.
    fn numbers(&self) -> Result<Numbers> {
        Ok(Numbers::new())
    }

    /// The state to keep in a checkpoint; empty where there is none.
    fn save(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Takes back what [`save`](Allocator::save) gave. Called on a fresh allocator, before any request.
    fn load(&mut self, state: &[u8]) -> Result<()> {
        refuse_state(state)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::request;

    #[test]
    fn shares_sum_to_one_at_every_size() {
        for (scores, shares) in [
            ([1.0, 3.0, 4.0], [0.125, 0.375, 0.5]),
            ([0.0, 0.0, 0.0], [1.0 / 3.0; 3]),
            ([f64::MAX, f64::MAX, 0.0], [0.5, 0.5, 0.0]),
            ([5e-324, 1e-323, 5e-324], [0.25, 0.5, 0.25]),
        ] {
            assert_eq!(request(&scores).normalised_scores(), shares);
        }
    }

    #[test]
    fn the_ranking_keeps_module_order_among_equals() {
        let scores = [1.0, f64::MAX, 0.0, 5e-324, -0.0, 1.0, 1.0_f64.next_up()];
        assert_eq!(request(&scores).ranking(), [1, 6, 0, 5, 3, 2, 4]);
    }
}
