//! What is saved of a run: checkpoints along the way, the adapter at the end.

use burn::tensor::Tensor;

use super::checkpoint;
use super::optimizer::GroupState;
use super::stop::Signal;
use super::trainee::read;
use super::{Training, peak_memory};
use crate::allocation::{self, State};
use crate::error::{Error, Kind, Result};
use crate::export;
use crate::kernel::Kernels;
use crate::recipe::OnPluginFault;
use crate::run::Best;

impl<B: Kernels> Training<'_, B> {
    /// Whether a checkpoint is due after the step just finished, in a run that was `asked` to stop or not.
    pub(super) fn checkpoint_due(&self, asked: Option<Signal>) -> Result<bool> {
        let (step, at) = self.saved;
        if step >= self.progress.step {
            return Ok(false);
        }
        if asked.is_some() || self.is_due(self.recipe.checkpoint.every) {
            return Ok(true);
        }
        match self.recipe.checkpoint.minutes {
            // By one clock.
            Some(minutes) => self
                .ranks
                .told(|| Ok(at.elapsed().as_secs_f64() >= 60.0 * minutes)),
            None => Ok(false),
        }
    }

    /// Makes a checkpoint of the state after the last step; the best one where `best` says by what.
    pub(super) fn save(&mut self, best: Option<(String, f64)>) -> Result<()> {
        match self.controller.state() {
            Ok(state) => self.save_with(state, best),
            Err(error) if error.kind == Kind::Plugin && self.progress.step > 0 => {
                if self.recipe.allocation.on_plugin_fault == OnPluginFault::Keep {
                    self.give_up(&error)?;
                    let state = self.controller.state()?;
                    return self.save_with(state, best);
                }
                let state = self.controller.state_after_fault();
                self.save_with(state, best)?;
                Err(self.stopped_by(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a checkpoint with this state of the allocation.
    pub(super) fn save_with(&mut self, state: State, best: Option<(String, f64)>) -> Result<()> {
        self.refuse_infinite()?;
        self.progress.seconds = self.seconds();
        self.progress.peak_memory = self.progress.peak_memory.max(peak_memory());
        self.progress.allocation = state;
        let states = &self.optimizer.modules;
        let steps = |state: &Option<GroupState<B>>| state.as_ref().map(|state| state.steps);
        self.progress.module_updates = states.iter().map(steps).collect();
        let components = |state: &Option<GroupState<B>>| match state {
            Some(state) => state.components.clone(),
            None => Vec::new(),
        };
        self.progress.component_updates = states.iter().map(components).collect();
        let last =
            |state: &Option<GroupState<B>>| state.as_ref().and_then(|state| state.last.clone());
        self.progress.last_updates = states.iter().map(last).collect();
        self.progress.head_updates = self.optimizer.head.as_ref().map(|state| state.steps);
        if !self.ranks.leads() {
            self.saved = (self.progress.step, std::time::Instant::now());
            return Ok(());
        }
        let pending = self.writer.begin_checkpoint(self.progress.step)?;
        checkpoint::write(
            pending.path(),
            &self.trainee,
            &self.optimizer,
            &self.progress,
        )?;
        self.writer.commit_checkpoint(pending, best)?;
        self.saved = (self.progress.step, std::time::Instant::now());
        Ok(())
    }

    /// Refuses to keep values that no later step could mend.
    fn refuse_infinite(&self) -> Result<()> {
        let finite = |tensor: &Tensor<B, 2>| -> Result<bool> {
            Ok(read(tensor.clone())?.iter().all(|value| value.is_finite()))
        };
        let adapters = &self.trainee.adapters;
        for (module, values) in adapters.modules.iter().zip(adapters.pairs()) {
            for value in values.iter() {
                if !finite(value)? {
                    return Err(self.infinite(&format!("the adapter of {}", module.path)));
                }
            }
        }
        for (tensor, value) in self
            .trainee
            .model
            .head
            .tensors()
            .iter()
            .zip(&self.trainee.head)
        {
            if !finite(value)? {
                return Err(self.infinite(&format!("the head's {}", tensor.name)));
            }
        }
        Ok(())
    }

    fn infinite(&self, what: &str) -> Error {
        Error::diverged(format!(
            "{what} has values that are not finite after step {}: the run has diverged",
            self.progress.step
        ))
        .help(self.after_divergence())
    }

    /// Exports the adapter in the format of PEFT as it is in the state `allocation`; of each module only the components
    /// that remain, or that have been frozen at other values than zero.
    pub(super) fn export(&mut self, allocation: &allocation::State) -> Result<()> {
        let allocation::State {
            details,
            components,
            ..
        } = allocation;
        let adapters = &mut self.trainee.adapters;
        adapters.put_to_use(&details.scales, &details.shared);
        let mut components = components.clone();
        for (module, remaining) in components.iter_mut().flatten().enumerate() {
            if details.frozen {
                for (part, of_rows) in adapters.learnt(module) {
                    keep_frozen(remaining, &read(part)?, of_rows);
                }
            }
        }
        let head = self.trainee.model.head.tensors().into_iter();
        let head: Vec<_> = head.zip(self.trainee.head.iter().cloned()).collect();
        let fresh = self.writer.begin_adapter()?;
        export::write(
            &fresh,
            &self.rest.pretrained.config,
            &self.recipe.model.name,
            &self.trainee.adapters,
            components.as_deref(),
            &self.linears,
            &head,
        )?;
        self.rest.data.learnt(&self.recipe.model).write(&fresh)?;
        self.writer.commit_adapter()
    }

    /// Exports the best checkpoint where an evaluation picked one, which comes back, else the last state.
    pub(super) fn export_best(&mut self) -> Result<Option<Best>> {
        self.progress.peak_memory = self.progress.peak_memory.max(peak_memory());
        let mut allocation = self.controller.state()?;
        if !self.ranks.leads() {
            return Ok(None);
        }
        let best = checkpoint::read_best(
            self.writer.run(),
            &self.progress,
            &mut self.trainee,
            &mut self.optimizer,
            self.device,
        )?;
        let best = best.map(|(progress, best)| {
            allocation = progress.allocation;
            best
        });
        self.export(&allocation)?;
        Ok(best)
    }
}

/// Lets those components remain too of which anything is not zero, of values whose rows they are, or else columns.
fn keep_frozen(remaining: &mut [bool], values: &[f32], of_rows: bool) {
    let rank = remaining.len();
    let width = values.len() / rank.max(1);
    for (k, remains) in remaining.iter_mut().enumerate() {
        let (first, step) = match of_rows {
            true => (k * width, 1),
            false => (k, rank),
        };
        let mut own = values.iter().skip(first).step_by(step).take(width);
        *remains |= own.any(|value| *value != 0.0);
    }
}
