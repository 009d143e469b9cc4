//! What is recorded of a run: its steps, its evaluations, its end.

use std::time::Instant;

use burn::tensor::Tensor;
use dynalora_plugin_api::{ModuleInfo, Sizes};

use super::constant::Constant;
use super::evaluate::Among;
use super::progress::Status;
use super::stall::{Seen, Turn};
use super::step::StepResult;
use super::stop::Stop;
use super::{Training, evaluate, peak_memory};
use crate::adapter::parameters_at;
use crate::allocation::{Reallocation, Signal, Wanted};
use crate::data::Batch;
use crate::error::Result;
use crate::kernel::Kernels;
use crate::run::{
    AllocationRecord, Best, EvalRecord, MetricRecord, PluginNumbers, StepRecord, Summary,
};

/// What a step was, for its record.
pub(super) struct Made {
    pub loss: f64,
    /// What the best constant answer loses on its examples in all.
    pub constant_loss: f64,
    pub examples: u64,
    pub gradient_norm: f64,
    pub rate: f64,
    /// Modules that were updated, and their parameters.
    pub active: usize,
    pub active_parameters: u64,
    pub tokens: u64,
    pub flops: u64,
    /// Whether its update was left out.
    pub skipped: bool,
}

impl<B: Kernels> Training<'_, B> {
    /// The parameters of all modules that are active at these ranks.
    fn parameters_at(&self, ranks: &[u32]) -> u64 {
        let of_rank = |(module, rank): (&ModuleInfo, &u32)| parameters_at(module, *rank);
        let details = self.controller.details();
        // A pair that several modules use counts once.
        let modules = self.rest.modules.iter().zip(ranks).enumerate();
        let active = self.controller.active();
        let owners =
            modules.filter(|(module, _)| active[*module] && details.owner(*module) == *module);
        owners.map(|(_, it)| of_rank(it)).sum()
    }

    /// The operations of a step over `batches`: `tracked` modules have gradients, what is `wanted` is measured (inputs
    /// at the price of outputs, of which a linear or two are spared), and the first `depth` layers were not run but for what their cache lacked.
    pub(super) fn flops(
        &mut self,
        batches: &[Batch],
        tracked: &[bool],
        wanted: &Wanted,
        depth: usize,
    ) -> Result<u64> {
        let mut sizes = Sizes::default();
        for batch in batches {
            sizes.add(&batch.offsets);
        }
        let computed = self.cache.as_mut().map(|cache| cache.take_computed());
        let computed = match computed {
            Some(own) => {
                let all = [own.sequences, own.tokens, own.pairs];
                let [sequences, tokens, pairs] = self.ranks.total(all)?;
                let mut all = Sizes::default();
                (all.sequences, all.tokens, all.pairs) = (sequences, tokens, pairs);
                all
            }
            None => Sizes::default(),
        };
        let fisher = match wanted.any(&[Signal::Fisher]) {
            true => self.costs.fisher(tracked, sizes),
            false => 0,
        };
        let outputs = wanted.outputs();
        Ok(self.costs.step(tracked, sizes, outputs, depth, computed) + fisher)
    }

    /// What the step that is about to be applied is.
    pub(super) fn made(
        &self,
        batches: &[Batch],
        result: &StepResult<B>,
        flops: u64,
        skipped: bool,
    ) -> Made {
        let constant = |constant: &Constant| {
            let labels = batches.iter().map(|batch| batch.expected());
            labels.map(|labels| constant.loss_on(&labels)).sum()
        };
        let active = self.controller.active().iter().filter(|active| **active);
        Made {
            loss: result.loss,
            constant_loss: self.constant.as_ref().map_or(0.0, constant),
            examples: result.weight,
            gradient_norm: result.gradient_norm,
            rate: self.optimizer.rate(self.progress.step),
            active: active.count(),
            active_parameters: self.parameters_at(&self.controller.ranks()),
            tokens: result.observation.tokens,
            flops,
            skipped,
        }
    }

    /// Counts a finished step, and says what it brought to light of whether anything is learnt.
    pub(super) fn count(&mut self, made: &Made) -> Option<Turn> {
        let seconds = self.seconds();
        let progress = &mut self.progress;
        progress.step += 1;
        let mut turn = None;
        if !made.skipped {
            let seen = Seen {
                step: progress.step,
                examples: made.examples,
                loss: made.loss * made.examples as f64,
                constant_loss: made.constant_loss,
            };
            progress.open_loss.0 += seen.loss;
            progress.open_loss.1 += seen.examples;
            progress.open_constant_loss += seen.constant_loss;
            turn = progress.watch.step(seen, self.total_steps);
        }
        progress.tokens += made.tokens;
        progress.flops += made.flops;
        progress.seconds = seconds;
        progress.skipped += u64::from(made.skipped);
        progress.skipped_in_a_row = match made.skipped {
            true => progress.skipped_in_a_row + 1,
            false => 0,
        };
        progress.active_modules += made.active as u64;
        progress.active_parameters += made.active_parameters;
        progress.peak_parameters = progress.peak_parameters.max(made.active_parameters);
        turn
    }

    /// Shows the step, and records it where a record is due.
    pub(super) fn record(&mut self, made: &Made) -> Result<()> {
        let step = self.progress.step;
        self.display.step(&Status {
            step,
            epoch: self.epoch(),
            loss: made.loss,
            rate: made.rate,
            active: made.active,
            active_parameters: made.active_parameters,
            tokens: self.progress.tokens,
            seconds: self.progress.seconds,
        });
        if !step.is_multiple_of(self.recipe.train.log_every) && step != self.total_steps {
            return Ok(());
        }
        let (sum, examples) = std::mem::take(&mut self.progress.open_loss);
        let constant_loss = std::mem::take(&mut self.progress.open_constant_loss);
        let record = StepRecord {
            step,
            epoch: self.epoch(),
            // Not a number where every step since the last record was skipped.
            loss: sum / examples as f64,
            learning_rate: made.rate,
            grad_norm: made.gradient_norm,
            active_modules: made.active,
            active_parameters: made.active_parameters,
            tokens: self.progress.tokens,
            seconds: self.progress.seconds,
            peak_memory: peak_memory(),
            flops: self.progress.flops,
            skipped: self.progress.skipped,
            constant_loss: (self.constant.is_some() && examples > 0)
                .then(|| constant_loss / examples as f64),
        };
        self.writer.metric(&MetricRecord::Step(record.clone()))?;
        self.display.logged(&record);
        Ok(())
    }

    /// Evaluates where that is owed, and says whether the result is the best so far: the metric that decides and
    /// its value. What was asked to stop meanwhile still owes it.
    pub(super) fn evaluate(&mut self, stop: &Stop) -> Result<Option<(String, f64)>> {
        if !self.progress.evaluation_owed {
            return Ok(None);
        }
        let (step, epoch) = (self.progress.step, self.epoch());
        let data = &self.rest.data;
        let mut records = Vec::new();
        for (split, examples) in &data.validation {
            let started = Instant::now();
            let tokens = self.recipe.evaluation.batch_tokens;
            let among = Among {
                ranks: self.ranks,
                asked: &|| stop.signal().is_some(),
            };
            let (trainee, metrics) = (&self.trainee, &data.metrics);
            let found = evaluate::until(&among, trainee, examples, metrics, tokens, self.device);
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    // The steps before are not lost for it.
                    if self.saved.0 < step && self.ranks.leads() {
                        self.save(None)?;
                    }
                    return Err(error);
                }
            };
            let Some((loss, metrics)) = found else {
                return Ok(None);
            };
            let metrics = metrics.iter();
            records.push(EvalRecord {
                step,
                epoch,
                split: split.clone(),
                examples: examples.len() as u64,
                loss,
                metrics: metrics
                    .map(|(metric, value)| (metric.name().to_owned(), *value))
                    .collect(),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        self.progress.evaluation_owed = false;
        let deciding = self.recipe.evaluation.metric.unwrap_or(data.metrics[0]);
        // The first split decides; MNLI has a second.
        let best = records.first().and_then(|record| {
            let value = *record.metrics.get(deciding.name())?;
            let better = self
                .progress
                .best
                .is_none_or(|(_, best)| deciding.is_better(value, best));
            (value.is_finite() && better).then(|| (deciding.name().to_owned(), value))
        });
        if let Some((_, value)) = best {
            self.progress.best = Some((step, value));
        }
        if let Some(record) = records.first() {
            self.progress.metrics = record.metrics.clone();
            let main = self.rest.data.metrics.first();
            self.progress.evaluated = main.map(|metric| (step, metric.to_string()));
        }
        for record in records {
            self.display.evaluated(&record);
            self.writer.metric(&MetricRecord::Evaluation(record))?;
        }
        Ok(best)
    }

    /// The closing account.
    pub(super) fn summary(&self, best: Option<Best>, device_name: &str) -> Summary {
        let progress = &self.progress;
        let values = |tensor: &Tensor<B, 2>| tensor.dims().iter().product::<usize>() as u64;
        let modules = &self.rest.modules;
        Summary {
            steps: progress.step,
            epochs: self.epoch(),
            best,
            metrics: progress.metrics.clone(),
            modules: modules.len(),
            adapter_parameters: modules.iter().map(|module| module.parameters).sum(),
            head_parameters: self.trainee.head.iter().map(values).sum(),
            active_parameters_mean: progress.active_parameters as f64 / progress.step.max(1) as f64,
            active_parameters_peak: progress.peak_parameters,
            reallocations: self.controller.reallocations(),
            peak_memory: progress.peak_memory,
            seconds: progress.seconds,
            tokens: progress.tokens,
            flops: progress.flops,
            skipped: progress.skipped,
            plugin_fault: self.controller.fault().map(|fault| fault.error.clone()),
            stalls: Some(progress.watch.stalls(progress.step)),
            device: device_name.to_owned(),
            reduction: self.ranks.reduction(),
        }
    }
}

impl From<&Reallocation> for AllocationRecord {
    fn from(reallocation: &Reallocation) -> Self {
        AllocationRecord {
            step: reallocation.step,
            index: Some(reallocation.index),
            modules: Vec::new(),
            scores: reallocation.scores.clone(),
            active: reallocation.active.clone(),
            ranks: reallocation.ranks.clone(),
            ledger: reallocation.ledger.clone(),
            frozen: reallocation.details.frozen,
            rates: reallocation.details.rates.clone(),
            scales: reallocation.details.scales.clone(),
            shared: reallocation.details.shared.clone(),
            numbers: PluginNumbers {
                scorer: reallocation.scorer_numbers.clone(),
                allocator: reallocation.allocator_numbers.clone(),
            },
            eva: None,
            fault: None,
        }
    }
}
