//! Losses and gradients that are not finite, and plugins that fail: what is said of them, and what is done.

use super::Training;
use super::record::Made;
use super::step::StepResult;
use super::trainee::{read, upload};
use crate::adapter::{Observe, Pass};
use crate::allocation::not_finite;
use crate::data::Batch;
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::plugin;
use crate::recipe::{OnNonfinite, OnPluginFault};
use crate::run::AllocationRecord;

/// Steps in a row after which leaving their updates out is given up: nothing changes any more by then.
const MOST_SKIPPED: u64 = 10;

impl<B: Kernels> Training<'_, B> {
    /// Whether the step's update is left out, because its loss or gradient is not finite; an error where the
    /// recipe wants the run to stop for that, with the last good state saved.
    pub(super) fn skips(
        &mut self,
        batches: &[Batch],
        plan_seed: u64,
        result: &StepResult<B>,
    ) -> Result<bool> {
        let step = self.progress.step + 1;
        if let Some(scale) = &mut self.progress.loss_scale
            && scale.lowered_by(result)
        {
            tracing::warn!(
                "step {step}: a gradient is not finite in f16; its update is left out, and the loss is scaled by {} now",
                scale.scale
            );
            return Ok(true);
        }
        let what = match result.loss.is_finite() && result.gradient_norm.is_finite() {
            false => self.describe(batches, plan_seed, result)?,
            // Nor what plugins would see, were it only that a sum of squares is too large.
            true => match not_finite(&self.rest.modules, &result.observation) {
                Some(what) => what,
                None => {
                    if let Some(scale) = &mut self.progress.loss_scale {
                        scale.held();
                    }
                    return Ok(false);
                }
            },
        };
        let policy = self.recipe.train.on_nonfinite;
        if policy == OnNonfinite::Skip && self.progress.skipped_in_a_row < MOST_SKIPPED {
            tracing::warn!("step {step}: {what}; its update is left out");
            return Ok(true);
        }
        let again = match policy {
            OnNonfinite::Skip => format!(", as in the {MOST_SKIPPED} steps before"),
            OnNonfinite::Stop => String::new(),
        };
        // Nothing has been updated yet: what is saved is the last good state.
        self.save(None)?;
        let saved = self.progress.allocation.clone();
        if self.ranks.leads() {
            self.export(&saved)?;
        }
        self.display.end();
        Err(
            Error::diverged(format!("step {step}: {what}{again}: the run has diverged"))
                .help(self.after_divergence()),
        )
    }

    /// What becomes of a run in which a plugin has failed: it goes on without plugins, or ends, once its state after the
    /// step is saved; `made` is the step, if it is not recorded yet. Before the first step there is nothing to save.
    pub(super) fn endure(&mut self, outcome: Result<()>, made: Option<&Made>) -> Result<()> {
        // Or other ranks were waited for in vain in a trial.
        let alone = self.ranks.gave_up().is_some() && self.ranks.leads();
        let error = match outcome {
            Err(error) if (error.kind == Kind::Plugin || alone) && self.progress.step > 0 => error,
            other => return other,
        };
        if !alone && self.recipe.allocation.on_plugin_fault == OnPluginFault::Keep {
            return self.give_up(&error);
        }
        if let Some(made) = made {
            self.record(made)?;
        }
        // A resumed run that fails where it failed before has it already.
        if self.saved.0 < self.progress.step {
            let state = self.controller.state_after_fault();
            self.save_with(state, None)?;
        }
        if alone {
            return Err(self.rescued(error));
        }
        Err(self.stopped_by(error))
    }

    /// Goes on without plugins, and says so.
    pub(super) fn give_up(&mut self, error: &Error) -> Result<()> {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        let said = format!("{error}{}", cause.unwrap_or_default());
        tracing::warn!(
            "{said}; the modules that are active stay so to the end of the run, and no plugin is asked any more"
        );
        self.controller.give_up(said.clone());
        let details = self.controller.details().clone();
        self.writer.allocation(&AllocationRecord {
            frozen: details.frozen,
            rates: details.rates,
            scales: details.scales,
            shared: details.shared,
            step: self.progress.step,
            active: self.controller.active().to_vec(),
            ranks: self.controller.ranks(),
            ledger: self.controller.ledger().to_vec(),
            fault: Some(said),
            ..AllocationRecord::default()
        })
    }

    /// A plugin's fault that has ended the run, which is saved.
    pub(super) fn stopped_by(&mut self, error: Error) -> Error {
        self.display.end();
        let step = self.progress.step;
        let mut error = error.and_help(format!(
            "the run is saved as it was after step {step}; with allocation.on_plugin_fault = \"keep\" it goes on \
             without the plugin"
        ));
        let manifests = self.rest.plugins.iter().map(|found| &found.manifest);
        for versions in manifests.filter_map(plugin::versions) {
            error = error.and_help(versions);
        }
        error
    }

    /// What to do after a divergence.
    pub(super) fn after_divergence(&self) -> String {
        format!(
            "{} has the last checkpoint before it. Start again with a lower train.learning_rate, a longer train.warmup \
             or train.max_grad_norm set: dynalora train RECIPE --force --set train.learning_rate={:e}; \
             train.on_nonfinite = \"skip\" leaves single bad steps out",
            self.writer.run().dir().display(),
            self.recipe.train.learning_rate / 3.0
        )
    }

    /// What is not finite, and the first module in which it shows.
    fn describe(
        &self,
        batches: &[Batch],
        plan_seed: u64,
        result: &StepResult<B>,
    ) -> Result<String> {
        let modules = &self.rest.modules;
        if result.loss.is_finite() {
            let norms = result.gradient_norms.iter();
            let mut active = norms.zip(self.controller.active()).zip(modules);
            let first = active.find_map(|((norm, active), module)| {
                (*active && norm.is_some_and(|norm| !norm.is_finite())).then_some(&module.path)
            });
            let of = first.map_or("the head".to_owned(), Clone::clone);
            return Ok(format!("the gradient of {of} is not finite"));
        }
        let loss = format!("the loss is {}", result.loss);
        for (module, values) in modules.iter().zip(self.trainee.adapters.pairs()) {
            for tensor in values.iter() {
                if read(tensor.clone())?.iter().any(|value| !value.is_finite()) {
                    return Ok(format!(
                        "{loss}: the adapter of {} is not finite",
                        module.path
                    ));
                }
            }
        }
        // Once more, looking at what comes out of each module.
        let nothing = vec![false; modules.len()];
        let observe = Observe {
            activation: true,
            ..Observe::default()
        };
        for batch in batches {
            let adapters = &self.trainee.adapters;
            let mut pass = Pass::train(adapters, &self.trainee.head, &nothing, observe, plan_seed);
            let input = upload::<B>(batch, self.device);
            self.trainee.model.forward(&input, &mut pass);
            for (module, observed) in modules.iter().zip(pass.observed) {
                let sums = observed.and_then(|observed| observed.activation);
                let sums = sums.map_or(Ok(Vec::new()), read)?;
                if sums.iter().any(|sum| !sum.is_finite()) {
                    return Ok(format!(
                        "{loss}, and the output of {} is not finite",
                        module.path
                    ));
                }
            }
        }
        Ok(format!("{loss}, though every module's output is finite"))
    }
}
