//! AdamW over the parameters that train: the head, and the adapters of the active modules.

use burn::tensor::Tensor;

use super::schedule::LearningRateSchedule;
use crate::kernel::{AdamWStep, Kernels};
use crate::recipe::OptimizerState;

/// The numbers of the optimiser, from the recipe's `[train]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Peak learning rate of the adapters.
    pub rate: f64,
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
    /// First and second moment of each tensor.
    pub moments: Vec<[Tensor<B, 2>; 2]>,
}

impl<B: Kernels> GroupState<B> {
    fn new(values: &[Tensor<B, 2>]) -> Self {
        let zeros = |value: &Tensor<B, 2>| value.zeros_like();
        let moments = values
            .iter()
            .map(|value| [zeros(value), zeros(value)])
            .collect();
        GroupState { steps: 0, moments }
    }
}

/// AdamW with a state per module, made when the module is first updated.
#[derive(Clone, Debug)]
pub struct Optimizer<B: Kernels> {
    config: OptimizerConfig,
    /// One per module; none before its first update, or after `reset` dropped it.
    pub modules: Vec<Option<GroupState<B>>>,
    /// The head's.
    pub head: Option<GroupState<B>>,
}

impl<B: Kernels> Optimizer<B> {
    /// An optimiser before its first step.
    pub fn new(config: OptimizerConfig, modules: usize) -> Self {
        Optimizer {
            config,
            modules: vec![None; modules],
            head: None,
        }
    }

    /// The learning rate of the adapters at the run's step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        self.config.rate * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        self.config
            .schedule
            .factor(step, self.config.warmup_steps, self.config.total_steps)
    }

    /// Updates the two tensors of an active module at the run's step `step` (from 0). At less than full rank
    /// only the first `rank` components are touched: rows of the first tensor, and columns of the second
    /// where it has one for each (VeRA's `λ_b [out, 1]` has not).
    pub fn update_module(
        &mut self,
        module: usize,
        step: u64,
        rank: usize,
        pair: &mut [Tensor<B, 2>; 2],
        gradients: [Tensor<B, 2>; 2],
        gradient_scale: f32,
    ) {
        let state = self.modules[module].get_or_insert_with(|| GroupState::new(pair));
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
        state.steps += 1;
        let adamw = adamw_step(
            &self.config,
            self.config.rate * factor,
            state.steps,
            gradient_scale,
        );
        let [inputs, outputs] = [pair[0].dims()[1], pair[1].dims()[0]];
        let shapes = [[rank, inputs], [outputs, rank.min(pair[1].dims()[1])]];
        for (i, gradient) in gradients.into_iter().enumerate() {
            let part = |tensor: &Tensor<B, 2>| tensor.clone().slice(shapes[i].map(|n| 0..n));
            if pair[i].dims() == shapes[i] {
                update(&mut pair[i], &mut state.moments[i], gradient, adamw);
                continue;
            }
            let mut value = part(&pair[i]);
            let mut moments = state.moments[i].each_ref().map(part);
            update(&mut value, &mut moments, part(&gradient), adamw);
            let put = |whole: &mut Tensor<B, 2>, part: Tensor<B, 2>| {
                *whole = whole.clone().slice_assign(shapes[i].map(|n| 0..n), part);
            };
            put(&mut pair[i], value);
            let [first, second] = moments;
            put(&mut state.moments[i][0], first);
            put(&mut state.moments[i][1], second);
        }
    }

    /// Updates the head.
    pub fn update_head(
        &mut self,
        step: u64,
        head: &mut [Tensor<B, 2>],
        gradients: Vec<Tensor<B, 2>>,
        gradient_scale: f32,
    ) {
        let rate = self.config.head_rate * self.factor(step);
        let state = self.head.get_or_insert_with(|| GroupState::new(head));
        state.steps += 1;
        let adamw = adamw_step(&self.config, rate, state.steps, gradient_scale);
        for (i, gradient) in gradients.into_iter().enumerate() {
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

fn adamw_step(config: &OptimizerConfig, rate: f64, steps: u64, gradient_scale: f32) -> AdamWStep {
    AdamWStep {
        rate: rate as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        epsilon: config.epsilon as f32,
        weight_decay: config.weight_decay as f32,
        correction1: (1.0 - config.beta1.powf(steps as f64)) as f32,
        correction2: (1.0 - config.beta2.powf(steps as f64)) as f32,
        gradient_scale,
    }
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
