//! AdamW over the parameters that train: the head, and the adapters of the active modules.

use std::ops::Range;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::adapter::{Tensors, components};
use crate::kernel::{AdamWStep, Kernels, Moments};
use crate::recipe::{LearningRateSchedule, OptimizerState};

/// The numbers of the optimiser, from the recipe's `[train]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Peak learning rate of the adapters.
    pub rate: f64,
    /// LoRA+: what the rates of B, and of the head's vectors, are multiplied by (Hayou et al. 2024).
    pub loraplus_lr_ratio: f64,
    /// LoRA+: the peak rate of what stands beside tables of embeddings, A and B alike; none without LoRA+.
    pub loraplus_lr_embedding: Option<f64>,
    /// Peak learning rate of the head.
    pub head_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// ε beside the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of everything that trains, as in PyTorch's `AdamW`.
    pub weight_decay: f64,
    /// How the rates move over the run.
    pub schedule: LearningRateSchedule,
    /// Steps over which they rise from zero.
    pub warmup_steps: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// What becomes of a module's state when it goes inactive.
    pub state: OptimizerState,
}

/// Moments of a group of tensors that are updated together, and how often they were.
#[derive(Clone, Debug)]
pub struct GroupState<B: Kernels> {
    /// Updates so far: `t` of the bias correction.
    pub steps: u64,
    /// Of a pair of which components have been pruned, `t` of each: a component that comes back begins
    /// anew. Empty for all others.
    pub components: Vec<u64>,
    /// First and second moment of each tensor.
    pub moments: Vec<[Tensor<B, 2>; 2]>,
    /// The last update; none where nobody knows, as of the head.
    pub last: Option<LastUpdate>,
}

/// When a module's parameters were last updated, and how fast: what its size can be computed from afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastUpdate {
    /// The run's step, counted from 0.
    pub step: u64,
    /// The learning rates of the first tensor and of the others.
    pub rates: [f64; 2],
    /// Which components it was of, where not of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<bool>>,
}

impl<B: Kernels> GroupState<B> {
    fn new<'a>(values: impl IntoIterator<Item = &'a Tensor<B, 2>>) -> Self {
        let zeros = |value: &Tensor<B, 2>| value.zeros_like();
        let moments = values
            .into_iter()
            .map(|value| [zeros(value), zeros(value)])
            .collect();
        GroupState {
            steps: 0,
            components: Vec::new(),
            moments,
            last: None,
        }
    }
}

impl OptimizerConfig {
    /// The peak learning rate of what stands beside tables of embeddings.
    fn embedding_peak(&self) -> f64 {
        self.loraplus_lr_embedding.unwrap_or(self.rate)
    }

    /// The peak learning rate of a module's A, and what that of what else it trains is a multiple of it by.
    fn peak_and_ratio(&self, is_embedding: bool) -> (f64, f64) {
        match is_embedding {
            true => (self.embedding_peak(), 1.0),
            false => (self.rate, self.loraplus_lr_ratio),
        }
    }
}

/// AdamW with a state per module, made when the module is first updated.
#[derive(Clone, Debug)]
pub struct Optimizer<B: Kernels> {
    config: OptimizerConfig,
    /// Which modules stand beside tables of embeddings.
    embeddings: Vec<bool>,
    /// One per module; none before its first update, or after `reset` dropped it.
    pub modules: Vec<Option<GroupState<B>>>,
    /// The head's.
    pub head: Option<GroupState<B>>,
}

impl<B: Kernels> Optimizer<B> {
    /// An optimiser before its first step, of so many modules, all of them linear layers.
    pub fn new(config: OptimizerConfig, modules: usize) -> Self {
        Optimizer {
            config,
            embeddings: vec![false; modules],
            modules: vec![None; modules],
            head: None,
        }
    }

    /// The same, told which of its modules stand beside tables of embeddings.
    pub fn with_embeddings(mut self, embeddings: Vec<bool>) -> Self {
        self.embeddings = embeddings;
        self
    }

    /// The learning rate of the adapters at the run's step `step`, counted from 0: of LoRA+ that of A.
    pub fn rate(&self, step: u64) -> f64 {
        self.config.rate * self.factor(step)
    }

    /// The learning rates of A, and of B and what else a module trains, at that step.
    pub fn rates(&self, step: u64) -> [f64; 2] {
        let rate = self.rate(step);
        [rate, rate * self.config.loraplus_lr_ratio]
    }

    /// The learning rate of what stands beside tables of embeddings at that step.
    pub fn embedding_rate(&self, step: u64) -> f64 {
        self.config.embedding_peak() * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        self.config
            .schedule
            .factor(step, self.config.warmup_steps, self.config.total_steps)
    }

    /// Updates the tensors of an active module at the run's step `step` (from 0), at the rate times `factors`: one for A,
    /// one for the others. Of a LoRA pair some of whose components do not train those are not touched; `remaining` says
    /// which the others are.
    #[allow(clippy::too_many_arguments)]
    pub fn update_module(
        &mut self,
        module: usize,
        step: u64,
        factors: [f64; 2],
        remaining: Option<&[bool]>,
        values: &mut Tensors<Tensor<B, 2>>,
        gradients: Tensors<Tensor<B, 2>>,
        gradient_scale: f32,
    ) {
        let state = self.modules[module].get_or_insert_with(|| GroupState::new(values.iter()));
        // `local`: the module's schedule is paused while it is inactive.
        let at = if self.config.state == OptimizerState::Local {
            state.steps
        } else {
            step
        };
        let factor =
            self.config
                .schedule
                .factor(at, self.config.warmup_steps, self.config.total_steps);
        if let (Some(remaining), true) = (remaining, state.components.is_empty()) {
            state.components = vec![state.steps; remaining.len()];
        }
        state.steps += 1;
        let (peak, ratio) = self.config.peak_and_ratio(self.embeddings[module]);
        let mut rates = factors.map(|own| peak * factor * own);
        rates[1] *= ratio;
        let some = remaining.filter(|remaining| remaining.contains(&false));
        state.last = Some(LastUpdate {
            step,
            rates,
            components: some.map(<[bool]>::to_vec),
        });
        let adamw = |t, i: usize| adamw_step(&self.config, rates[i.min(1)], t, gradient_scale);
        let remains = |k: usize| remaining.is_none_or(|remaining| remaining[k]);
        for (k, t) in state.components.iter_mut().enumerate() {
            *t += u64::from(remains(k));
        }
        let rank = state.components.len();
        let whole = (0..rank).all(|k| remains(k) && state.components[k] == state.components[0]);
        let t = state.components.first().copied().unwrap_or(state.steps);
        let all = values.iter_mut().zip(gradients.iter());
        for (i, ((value, gradient), moments)) in all.zip(&mut state.moments).enumerate() {
            // Components are the pair's.
            let t = if i < 2 { t } else { state.steps };
            if i >= 2 || whole {
                update(value, moments, gradient.clone(), adamw(t, i));
            }
        }
        if whole {
            return;
        }
        let pair = &mut values.pair;
        for run in runs(&state.components, remains) {
            let t = state.components[run.start];
            for (i, gradient) in gradients.pair.iter().enumerate() {
                // Components are rows of A and columns of B.
                let part = |tensor: &Tensor<B, 2>| tensor.clone().slice_dim(i, run.clone());
                let mut value = part(&pair[i]);
                let mut moments = state.moments[i].each_ref().map(part);
                update(&mut value, &mut moments, part(gradient), adamw(t, i));
                let put = |whole: &mut Tensor<B, 2>, part: Tensor<B, 2>| {
                    let mut ranges = whole.dims().map(|n| 0..n);
                    ranges[i] = run.clone();
                    *whole = whole.clone().slice_assign(ranges, part);
                };
                put(&mut pair[i], value);
                let [first, second] = moments;
                put(&mut state.moments[i][0], first);
                put(&mut state.moments[i][1], second);
            }
        }
    }

    /// Told which components of a module train on, the others being frozen at their values: under `reset` their
    /// state is dropped, as that of a module that goes inactive.
    pub fn frozen(&mut self, module: usize, remaining: &[bool]) {
        if self.config.state == OptimizerState::Reset {
            self.pruned(module, remaining);
        }
    }

    /// `‖θ_t − θ_{t−1}‖²`, `[1]`, of the update that a module's parameters, which `values` are now, got at the step
    /// before the run's step `step` (from 0); none where they got none there. It is computed from the moments that the
    /// update left behind, so that nothing has to be kept for it; of the components that remain.
    pub fn last_update(
        &self,
        module: usize,
        step: u64,
        values: &Tensors<Tensor<B, 2>>,
    ) -> Option<Tensor<B, 1>> {
        let state = self.modules[module].as_ref()?;
        let last = state.last.as_ref().filter(|last| last.step + 1 == step)?;
        let updated = |k: usize| {
            let components = last.components.as_ref();
            components.is_none_or(|all| all.get(k) == Some(&true))
        };
        let steps = |rate, t| adamw_step(&self.config, rate, t, 1.0);
        let sizes = |(i, value): (usize, &Tensor<B, 2>)| {
            let [first, second] = &state.moments[i];
            let moments = [value.clone(), first.clone(), second.clone()];
            let rate = last.rates[i.min(1)];
            if state.components.is_empty() || i >= 2 {
                return vec![update_squares(moments, steps(rate, state.steps))];
            }
            let runs =
                runs(&state.components, |k| state.components[k] > 0 && updated(k)).into_iter();
            let sizes = runs.map(|run| {
                let t = state.components[run.start];
                let part = |tensor: Tensor<B, 2>| tensor.slice_dim(i, run.clone());
                update_squares(moments.clone().map(part), steps(rate, t))
            });
            sizes.collect()
        };
        let sizes: Vec<Tensor<B, 1>> = values.iter().enumerate().flat_map(sizes).collect();
        (!sizes.is_empty()).then(|| Tensor::cat(sizes, 0).sum())
    }

    /// Told which components of a module remain: the state of the others is dropped.
    pub fn pruned(&mut self, module: usize, remaining: &[bool]) {
        let Some(state) = &mut self.modules[module] else {
            return;
        };
        if state.components.is_empty() {
            state.components = vec![state.steps; remaining.len()];
        }
        for (t, remains) in state.components.iter_mut().zip(remaining) {
            if !remains {
                *t = 0;
            }
        }
        let [[a1, a2], [b1, b2]] = [0, 1].map(|i| state.moments[i].clone());
        let ([a1, b1], [a2, b2]) = (
            components::keep([a1, b1], remaining),
            components::keep([a2, b2], remaining),
        );
        (state.moments[0], state.moments[1]) = ([a1, a2], [b1, b2]);
    }

    /// Updates the head, of whose tensors those in `vectors` are vectors: as PEFT's `create_loraplus_optimizer` and the
    /// authors' code have it, LoRA+'s ratio is theirs too.
    pub fn update_head(
        &mut self,
        step: u64,
        head: &mut [Tensor<B, 2>],
        vectors: &[bool],
        gradients: Vec<Tensor<B, 2>>,
        gradient_scale: f32,
    ) {
        let rate = self.config.head_rate * self.factor(step);
        let state = self
            .head
            .get_or_insert_with(|| GroupState::new(head.iter()));
        state.steps += 1;
        for (i, gradient) in gradients.into_iter().enumerate() {
            let rate = match vectors[i] {
                true => rate * self.config.loraplus_lr_ratio,
                false => rate,
            };
            let adamw = adamw_step(&self.config, rate, state.steps, gradient_scale);
            update(&mut head[i], &mut state.moments[i], gradient, adamw);
        }
    }

    /// Told that a module went inactive: under `reset` its state is dropped.
    pub fn deactivated(&mut self, module: usize) {
        if self.config.state == OptimizerState::Reset {
            self.modules[module] = None;
        }
    }
}

/// The components that remain, as runs of neighbours that have been updated equally often.
fn runs(updates: &[u64], remains: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for k in (0..updates.len()).filter(|k| remains(*k)) {
        match runs.last_mut() {
            Some(run) if run.end == k && updates[run.start] == updates[k] => run.end += 1,
            _ => runs.push(k..k + 1),
        }
    }
    runs
}

fn adamw_step(config: &OptimizerConfig, rate: f64, steps: u64, gradient_scale: f32) -> AdamWStep {
    AdamWStep {
        rate: rate as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        rest1: (1.0 - config.beta1) as f32,
        rest2: (1.0 - config.beta2) as f32,
        epsilon: config.epsilon as f32,
        weight_decay: config.weight_decay as f32,
        correction1: (1.0 - config.beta1.powf(steps as f64)) as f32,
        correction2: (1.0 - config.beta2.powf(steps as f64)) as f32,
        gradient_scale,
    }
}

/// `‖Δθ‖²` of the update that has left these values: with `u = m̂/(√v̂ + ε)`,
/// `Δθ = −η·(u + λ·θ_{t−1})` where `θ_{t−1} = (θ_t + η·u)/(1 − η·λ)`.
fn update_squares<B: Kernels>([value, first, second]: Moments<B>, step: AdamWStep) -> Tensor<B, 1> {
    let root = second.sqrt() / step.correction2.sqrt() + step.epsilon;
    let update = first / root * (step.rate / step.correction1);
    let decay = step.rate * step.weight_decay;
    let change = (update + value * decay) / (1.0 - decay);
    change.powi_scalar(2).sum()
}

/// Takes the tensors out while they are updated, so that nobody else holds their buffers and the CPU
/// writes in place.
fn update<B: Kernels>(
    value: &mut Tensor<B, 2>,
    moments: &mut [Tensor<B, 2>; 2],
    gradient: Tensor<B, 2>,
    step: AdamWStep,
) {
    let empty = Tensor::empty([1, 1], &value.device());
    let [first, second] = moments
        .each_mut()
        .map(|moment| std::mem::replace(moment, empty.clone()));
    let taken = std::mem::replace(value, empty);
    let [updated, first, second] = B::adamw([taken, first, second], gradient, step);
    *value = updated;
    *moments = [first, second];
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    type Pair = Tensors<Tensor<Flex, 2>>;

    const RANK: usize = 4;

    fn optimizer(state: OptimizerState) -> Optimizer<Flex> {
        let config = OptimizerConfig {
            rate: 0.01,
            loraplus_lr_ratio: 1.0,
            loraplus_lr_embedding: None,
            head_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            schedule: LearningRateSchedule::Constant,
            warmup_steps: 0,
            total_steps: 100,
            state,
        };
        Optimizer::new(config, 1)
    }

    /// A [4, 3], B [5, 4] and DoRA's m [5, 1] of values that differ, by a number.
    fn pair(number: u32) -> Pair {
        let values = |rows: usize, columns: usize, salt: u32| {
            let value = |i: usize| ((i as u32 * 37 + number * 101 + salt) % 61) as f32 / 61.0 - 0.4;
            let values: Vec<f32> = (0..rows * columns).map(value).collect();
            Tensor::from_data(TensorData::new(values, [rows, columns]), &FlexDevice)
        };
        Tensors {
            pair: [values(RANK, 3, 0), values(5, RANK, 7)],
            magnitude: Some(values(5, 1, 13)),
            bias: None,
        }
    }

    /// Row k of A and column k of B.
    fn component(pair: &Pair, k: usize) -> Vec<f32> {
        let [a, b] = &pair.pair;
        let parts = [
            a.clone().slice_dim(0, k..k + 1),
            b.clone().slice_dim(1, k..k + 1),
        ];
        let values = parts.map(|part| part.into_data().into_vec::<f32>().unwrap());
        values.concat()
    }

    #[test]
    fn only_components_that_remain_are_updated_as_if_the_others_were_not_there() {
        let remaining = [true, false, true, true];
        let (mut whole, mut part) = (pair(1), pair(1));
        let mut optimizers = [(); 2].map(|()| optimizer(OptimizerState::Global));
        components::prune(&mut part.pair, None, (&remaining, 1));
        let pruned = component(&part, 1);
        assert_eq!(pruned[3..], [0.0; 5]);
        assert_ne!(pruned[..3], [0.0; 3]);
        for step in 0..5 {
            let gradients = pair(10 + step as u32);
            optimizers[0].update_module(
                0,
                step,
                [1.0; 2],
                None,
                &mut whole,
                gradients.clone(),
                0.5,
            );
            optimizers[1].update_module(
                0,
                step,
                [1.0; 2],
                Some(&remaining),
                &mut part,
                gradients,
                0.5,
            );
            for k in [0, 2, 3] {
                assert_eq!(
                    component(&part, k),
                    component(&whole, k),
                    "step {step}, {k}"
                );
            }
            // Neither by its gradient nor by weight decay.
            assert_eq!(component(&part, 1), pruned);
        }
        let state = optimizers[1].modules[0].as_ref().unwrap();
        assert_eq!((state.steps, &state.components), (5, &vec![5, 0, 5, 5]));
    }

    #[test]
    fn a_component_that_comes_back_begins_anew() {
        let mut ours = pair(1);
        let mut optimizer = self::optimizer(OptimizerState::Global);
        for step in 0..5 {
            optimizer.update_module(
                0,
                step,
                [1.0; 2],
                None,
                &mut ours,
                pair(10 + step as u32),
                1.0,
            );
        }
        let mut step = 5;
        for remaining in [[true, false, true, true], [true, true, true, false]] {
            components::prune(&mut ours.pair, None, (&remaining, 1));
            optimizer.pruned(0, &remaining);
            for _ in 0..3 {
                let gradients = pair(10 + step as u32);
                optimizer.update_module(
                    0,
                    step,
                    [1.0; 2],
                    Some(&remaining),
                    &mut ours,
                    gradients,
                    1.0,
                );
                step += 1;
            }
        }
        let state = optimizer.modules[0].as_ref().unwrap();
        assert_eq!((state.steps, &state.components), (11, &vec![11, 3, 11, 0]));

        // The second, as a fresh optimiser would have moved it from where it was pruned.
        let mut fresh = pair(1);
        let mut older = self::optimizer(OptimizerState::Global);
        for step in 0..5 {
            older.update_module(
                0,
                step,
                [1.0; 2],
                None,
                &mut fresh,
                pair(10 + step as u32),
                1.0,
            );
        }
        components::prune(&mut fresh.pair, None, (&[true, false, true, true], 1));
        let mut fresh_optimizer = self::optimizer(OptimizerState::Global);
        for step in 8..11 {
            fresh_optimizer.update_module(
                0,
                step,
                [1.0; 2],
                None,
                &mut fresh,
                pair(10 + step as u32),
                1.0,
            );
        }
        assert_eq!(component(&ours, 1), component(&fresh, 1));
        // The others never noticed.
        let mut whole = pair(1);
        let mut unpruned = self::optimizer(OptimizerState::Global);
        for step in 0..11 {
            unpruned.update_module(
                0,
                step,
                [1.0; 2],
                None,
                &mut whole,
                pair(10 + step as u32),
                1.0,
            );
        }
        for k in [0, 2] {
            assert_eq!(component(&ours, k), component(&whole, k));
        }
    }

    #[test]
    fn each_tensor_has_its_own_factor_on_the_rate() {
        // AdamW without decay: what a parameter moves by is the rate times the same step.
        let moved = |factors: [f64; 2], remaining: Option<&[bool]>| {
            let mut config = optimizer(OptimizerState::Global).config;
            (config.weight_decay, config.epsilon) = (0.0, 1e-3);
            let (mut optimizer, mut pair) = (Optimizer::new(config, 1), self::pair(1));
            for step in 0..3 {
                let gradients = self::pair(10 + step as u32);
                optimizer.update_module(0, step, factors, remaining, &mut pair, gradients, 1.0);
            }
            let start = self::pair(1);
            let values = |tensor: Tensor<Flex, 2>| tensor.into_data().into_vec::<f32>().unwrap();
            [0, 1].map(|i| values(pair.pair[i].clone() - start.pair[i].clone()))
        };
        for remaining in [None, Some(&[true, false, true, true][..])] {
            let [a, b] = moved([1.0, 1.0], remaining);
            let [slow, fast] = moved([0.5, 16.0], remaining);
            for (plain, factored, factor) in [(&a, &slow, 0.5), (&b, &fast, 16.0)] {
                for (plain, factored) in plain.iter().zip(factored) {
                    assert!(
                        (plain * factor - factored).abs() < 1e-5,
                        "{plain} {factored}"
                    );
                }
            }
            let [still, same] = moved([0.0, 1.0], remaining);
            assert!(still.iter().all(|moved| *moved == 0.0));
            assert_eq!(same, b);
        }
    }

    #[test]
    fn frozen_components_keep_their_state_until_they_train_on() {
        for state in [OptimizerState::Global, OptimizerState::Reset] {
            let mut ours = pair(1);
            let mut optimizer = self::optimizer(state);
            let mut step = 0;
            for remaining in [[true; 4], [true, false, true, true], [true; 4]] {
                optimizer.frozen(0, &remaining);
                let before = component(&ours, 1);
                for _ in 0..2 {
                    let gradients = pair(10 + step as u32);
                    optimizer.update_module(
                        0,
                        step,
                        [1.0; 2],
                        Some(&remaining),
                        &mut ours,
                        gradients,
                        1.0,
                    );
                    step += 1;
                }
                assert_eq!(component(&ours, 1) == before, !remaining[1]);
            }
            let state = optimizer.modules[0].as_ref().unwrap();
            let again = if optimizer.config.state == OptimizerState::Reset {
                2
            } else {
                4
            };
            assert_eq!(state.components, [6, again, 6, 6]);
        }
    }

    #[test]
    fn the_size_of_the_last_update_is_what_the_parameters_moved_by() {
        let remaining = [true, false, true, true];
        let mut optimizer = self::optimizer(OptimizerState::Global);
        let mut ours = pair(1);
        let squares = |tensor: Tensor<Flex, 1>| tensor.into_data().into_vec::<f32>().unwrap()[0];
        assert!(optimizer.last_update(0, 0, &ours).is_none());
        for step in 0..8 {
            let pruned = step >= 4;
            if step == 4 {
                components::prune(&mut ours.pair, None, (&remaining, 1));
                optimizer.pruned(0, &remaining);
            }
            let before = ours.clone();
            let gradients = pair(10 + step as u32);
            let remaining = pruned.then_some(&remaining[..]);
            optimizer.update_module(0, step, [1.0; 2], remaining, &mut ours, gradients, 0.5);
            let moved: f32 = ours
                .iter()
                .zip(before)
                .map(|(now, before)| squares((now.clone() - before).powi_scalar(2).sum()))
                .sum();
            let found = squares(optimizer.last_update(0, step + 1, &ours).unwrap());
            assert!((found - moved).abs() < 1e-4 * moved, "{found}, not {moved}");
            // Of another step than the one before there is none.
            assert!(optimizer.last_update(0, step + 2, &ours).is_none());
        }
    }

    #[test]
    fn runs_are_of_neighbours_updated_equally_often() {
        let remains = |k: usize| k != 3;
        assert_eq!(runs(&[5, 5, 2, 0, 2, 2], remains), [0..2, 2..3, 4..6]);
        assert!(runs(&[1, 1], |_| false).is_empty());
    }
}
