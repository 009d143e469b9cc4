//! Training: the loop, and what it is made of.

mod checkpoint;
pub mod cost;
pub mod evaluate;
mod machine;
pub mod optimizer;
pub mod prefix;
mod prepare;
mod progress;
pub mod schedule;
pub mod step;
pub mod trainee;

use std::collections::BTreeMap;
use std::time::Instant;

use dynalora_plugin_api::{ModuleInfo, Needs, RawValue, Signal};

pub use machine::peak_memory;
pub use prepare::{Prepared, Rest, check};
pub use progress::{Display, Verbosity, count, duration, size};

use crate::adapter::{Adapters, components};
use crate::allocation::Controller;
use crate::data::EpochPlan;
use crate::error::{Error, Result};
use crate::export;
use crate::kernel::Kernels;
use crate::model::Model;
use crate::recipe::{Every, Recipe};
use crate::run::{
    AllocationRecord, Checkpoint, EvalRecord, MetricRecord, StepRecord, Summary, Writer,
};
use checkpoint::Progress;
use cost::{LastLayer, Shape, Sizes};
use optimizer::{GroupState, Optimizer, OptimizerConfig};
use prefix::PrefixCache;
use progress::Status;
use step::{Prefix, StepPlan};
use trainee::Trainee;

/// Trains what `prepared` describes into the run that `writer` holds, from `from` if it was interrupted,
/// and returns the closing account. The adapter is exported at the end, of the best checkpoint where an
/// evaluation picked one.
pub fn train<B: Kernels>(
    prepared: Prepared,
    mut writer: Writer,
    from: Option<Checkpoint>,
    device_name: &str,
    device: &B::Device,
    display: &mut Display,
) -> Result<Summary> {
    let Prepared {
        recipe,
        mut controller,
        total_steps,
        ..
    } = prepared;
    let Rest {
        pretrained,
        data,
        modules,
        folder,
    } = &prepared.rest;
    let train = &recipe.train;
    let model = Model::<B>::load(pretrained, modules, data.outputs(), device)?;
    let mut trainee = Trainee {
        adapters: Adapters::new(
            (&recipe.adapter).into(),
            modules.clone(),
            recipe.seed,
            device,
        ),
        head: model.head.initial(recipe.seed, device),
        model,
    };
    let mut optimizer = Optimizer::new(optimizer_config(&recipe, total_steps), modules.len());
    let mut state = match &from {
        Some(checkpoint) => {
            let state = checkpoint::read(&checkpoint.path, &mut trainee, &mut optimizer, device)?;
            controller.restore(state.allocation.clone())?;
            state
        }
        None => {
            let paths = modules.iter().map(|module| module.path.clone()).collect();
            writer.allocation(&AllocationRecord::initial(
                paths,
                controller.active(),
                &controller.ranks(),
            ))?;
            Progress::start(controller.state()?)
        }
    };
    let parameters_of = |ranks: &[u32]| -> u64 {
        let of_rank = |(module, rank): (&ModuleInfo, &u32)| {
            module.parameters * u64::from(*rank) / u64::from(module.rank)
        };
        modules.iter().zip(ranks).map(of_rank).sum()
    };
    let linears = pretrained.linears();
    let shape = Shape {
        config: &pretrained.config,
        linears: &linears,
        modules,
        trains_a: trainee.adapters.config.trains_a(),
    };
    let layers = pretrained.config.layers;
    let empty_cache = || PrefixCache::new(train.cache_memory_mib << 20);
    let mut prefix_cache = train.cache_frozen_prefix.then(empty_cache);
    let deciding = recipe.evaluation.metric.unwrap_or(data.metrics[0]);
    let steps_per_epoch = data.steps_per_epoch(train);
    let (started, seconds_before) = (Instant::now(), state.seconds);
    let mut last_metrics = BTreeMap::new();
    display.start(total_steps, state.step);

    'run: for epoch in state.step / steps_per_epoch.. {
        let plan = EpochPlan::new(&data.train, train, recipe.seed, epoch);
        let done = (state.step % steps_per_epoch) as usize;
        for micro_batches in plan.steps(train.gradient_accumulation).skip(done) {
            if state.step == total_steps {
                break 'run;
            }
            let number = state.step + 1;
            let batches: Vec<_> = micro_batches
                .iter()
                .map(|batch| data.train.batch(batch))
                .collect();
            let nothing = Needs::default();
            let probing = controller.probing(number);
            let needs = if controller.measuring(number) {
                controller.needs()
            } else {
                &nothing
            };
            let prefix = prefix_cache.as_mut().and_then(|cache| {
                let depth = frozen_layers(modules, controller.active(), layers);
                let skipped = |module: &ModuleInfo| {
                    module.layer.is_some_and(|layer| (layer as usize) < depth)
                };
                // What is measured of the prefix has to be run.
                let run = probing || (reads_outputs(needs) && modules.iter().any(skipped));
                (depth > 0 && !run).then_some(Prefix { cache, depth })
            });
            let depth = prefix.as_ref().map_or(0, |prefix| prefix.depth);
            let plan = StepPlan {
                step: number,
                active: controller.active(),
                components: controller.components(),
                rate: optimizer.rate(state.step),
                probing,
                needs,
                raw: controller.wants_raw(number),
                seed: dropout_seed(recipe.seed, number),
            };
            let result = step::run(&trainee, &batches, &plan, prefix, device)?;
            if !(result.loss.is_finite() && result.gradient_norm.is_finite()) {
                // Nothing has been updated yet: what is saved is the last good state.
                state.allocation = controller.state()?;
                save(&writer, &trainee, &optimizer, &mut state, None)?;
                let components = controller.components();
                export(&writer, &recipe, &prepared.rest, &trainee, components)?;
                display.end();
                return Err(diverged(number, &result, &writer));
            }

            let last = LastLayer::AsRead {
                outputs: reads_outputs(needs),
            };
            let mut sizes = Sizes::default();
            for batch in &batches {
                sizes.add(&batch.offsets);
            }
            let run = cost::cost(shape, &plan.tracked(), sizes, depth, last);
            state.flops += run.forward + run.backward;
            if let Some(cache) = &mut prefix_cache {
                state.flops += cost::prefix(shape, cache.take_computed(), depth);
            }

            let rate = optimizer.rate(state.step);
            let clip = clip_coefficient(result.gradient_norm, train.max_grad_norm);
            for (module, gradients) in result.gradients.into_iter().enumerate() {
                if let (true, Some(gradients)) = (controller.active()[module], gradients) {
                    let remaining = controller.components().map(|all| all[module].as_slice());
                    let pair = &mut trainee.adapters.pairs[module];
                    optimizer.update_module(module, state.step, remaining, pair, gradients, clip);
                }
            }
            optimizer.update_head(state.step, &mut trainee.head, result.head_gradients, clip);

            let active = controller.active().iter().filter(|active| **active).count();
            let active_parameters = parameters_of(&controller.ranks());
            state.step = number;
            state.tokens += result.observation.tokens;
            state.seconds = seconds_before + started.elapsed().as_secs_f64();
            state.active_modules += active as u64;
            state.active_parameters += active_parameters;
            state.peak_parameters = state.peak_parameters.max(active_parameters);
            state.open_loss.0 += result.loss;
            state.open_loss.1 += 1;
            let unpruned = controller.components().is_none();
            if let Some(reallocation) = controller.after_step(&result.observation)? {
                for module in &reallocation.deactivated {
                    optimizer.deactivated(*module);
                }
                for (module, remaining) in controller.components().into_iter().flatten().enumerate()
                {
                    components::prune(&mut trainee.adapters.pairs[module], remaining);
                    optimizer.pruned(module, remaining);
                }
                if unpruned && controller.components().is_some() {
                    // Modules that were inactive already may have changed.
                    prefix_cache = prefix_cache.map(|_| empty_cache());
                }
                writer.allocation(&AllocationRecord::from(&reallocation))?;
                display.reallocated(&reallocation, modules.len());
            }
            let status = Status {
                step: number,
                epoch: number as f64 / steps_per_epoch as f64,
                loss: result.loss,
                rate,
                active,
                active_parameters,
                tokens: state.tokens,
                seconds: state.seconds,
            };
            display.step(&status);
            if number % train.log_every == 0 || number == total_steps {
                let (sum, count) = std::mem::take(&mut state.open_loss);
                let record = StepRecord {
                    step: number,
                    epoch: status.epoch,
                    loss: sum / count as f64,
                    learning_rate: rate,
                    grad_norm: result.gradient_norm,
                    active_modules: active,
                    active_parameters,
                    tokens: state.tokens,
                    seconds: state.seconds,
                    peak_memory: peak_memory(),
                    flops: state.flops,
                };
                writer.metric(&MetricRecord::Step(record.clone()))?;
                display.logged(&record);
            }

            let due = |every| is_due(every, number, steps_per_epoch, total_steps);
            let mut best = None;
            if due(recipe.evaluation.every) {
                let records = evaluate_all(&trainee, &prepared.rest, &recipe, &status, device)?;
                for (nth, record) in records.into_iter().enumerate() {
                    // The first split decides; MNLI has a second.
                    if nth == 0 {
                        let value = record
                            .metrics
                            .get(deciding.name())
                            .copied()
                            .unwrap_or(f64::NAN);
                        if state.best.is_none_or(|(_, best)| value > best) && value.is_finite() {
                            state.best = Some((number, value));
                            best = Some((deciding.name().to_owned(), value));
                        }
                        last_metrics = record.metrics.clone();
                    }
                    display.evaluated(&record);
                    writer.metric(&MetricRecord::Evaluation(record))?;
                }
            }
            if best.is_some() || due(recipe.checkpoint.every) || number == total_steps {
                state.seconds = seconds_before + started.elapsed().as_secs_f64();
                state.allocation = controller.state()?;
                save(&writer, &trainee, &optimizer, &mut state, best)?;
            }
        }
    }
    display.end();

    let mut components = controller.components().map(<[_]>::to_vec);
    if let Some((best, _)) = writer.run().best()? {
        let best = checkpoint::read(&best.path, &mut trainee, &mut optimizer, device)?;
        components = best.allocation.components;
    }
    export(
        &writer,
        &recipe,
        &prepared.rest,
        &trainee,
        components.as_deref(),
    )?;
    let head = trainee.model.head.tensors();
    let summary = Summary {
        steps: state.step,
        epochs: state.step as f64 / steps_per_epoch as f64,
        best: writer.run().best()?.map(|(_, best)| best),
        metrics: last_metrics,
        modules: modules.len(),
        adapter_parameters: modules.iter().map(|module| module.parameters).sum(),
        head_parameters: head
            .iter()
            .map(|t| t.shape.iter().product::<usize>() as u64)
            .sum(),
        active_parameters_mean: state.active_parameters as f64 / state.step.max(1) as f64,
        active_parameters_peak: state.peak_parameters,
        reallocations: reallocations(&controller)?,
        peak_memory: peak_memory(),
        seconds: state.seconds,
        tokens: state.tokens,
        flops: state.flops,
        device: device_name.to_owned(),
    };
    tracing::debug!(model = %folder.dir.display(), "trained");
    writer.summary(&summary)?;
    Ok(summary)
}

fn optimizer_config(recipe: &Recipe, total_steps: u64) -> OptimizerConfig {
    let train = &recipe.train;
    OptimizerConfig {
        rate: train.learning_rate,
        head_rate: train.head_rate(),
        beta1: train.beta1,
        beta2: train.beta2,
        epsilon: train.epsilon,
        weight_decay: train.weight_decay,
        schedule: train.lr_schedule,
        warmup_steps: train.warmup.steps(total_steps),
        total_steps,
        state: recipe.allocation.optimizer_state,
    }
}

/// Layers below the lowest active module, of `layers` in all.
fn frozen_layers(modules: &[ModuleInfo], active: &[bool], layers: usize) -> usize {
    let active = modules.iter().zip(active).filter(|(_, active)| **active);
    active
        .map(|(module, _)| module.layer.map_or(layers, |layer| layer as usize))
        .min()
        .unwrap_or(layers)
}

/// Whether a scorer wants something of the modules' outputs.
fn reads_outputs(needs: &Needs) -> bool {
    let outputs = [Signal::ActivationL1, Signal::ActivationL2, Signal::DeltaL2];
    needs.signals.iter().any(|signal| outputs.contains(signal))
        || needs.raw.contains(&RawValue::Activation)
}

/// The seed of a step's dropout: a function of the run's seed and the step, so that a resumed run drops
/// the same elements.
fn dropout_seed(seed: u64, step: u64) -> u64 {
    let mixed =
        (seed ^ 0x6472_6f70_6f75_7400).wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32
}

/// What gradients are multiplied by so that their norm is at most `max` (0: never clipped), as PyTorch's
/// `clip_grad_norm_` does.
fn clip_coefficient(norm: f64, max: f64) -> f32 {
    if max <= 0.0 {
        1.0
    } else {
        (max / (norm + 1e-6)).min(1.0) as f32
    }
}

/// Whether something recurring is due after step `number`. The last step is always the end of an epoch.
fn is_due(every: Every, number: u64, steps_per_epoch: u64, total_steps: u64) -> bool {
    match every {
        Every::Epoch => number.is_multiple_of(steps_per_epoch) || number == total_steps,
        Every::Steps(steps) => number.is_multiple_of(steps) || number == total_steps,
        Every::Never => false,
    }
}

fn reallocations(controller: &Controller) -> Result<u64> {
    Ok(controller.state()?.reallocations)
}

fn save<B: Kernels>(
    writer: &Writer,
    trainee: &Trainee<B>,
    optimizer: &Optimizer<B>,
    state: &mut Progress,
    best: Option<(String, f64)>,
) -> Result<()> {
    state.module_updates = optimizer
        .modules
        .iter()
        .map(|state| state.as_ref().map(|state| state.steps))
        .collect();
    let components = |state: &Option<GroupState<B>>| match state {
        Some(state) => state.components.clone(),
        None => Vec::new(),
    };
    state.component_updates = optimizer.modules.iter().map(components).collect();
    state.head_updates = optimizer.head.as_ref().map(|state| state.steps);
    let pending = writer.begin_checkpoint(state.step)?;
    checkpoint::write(pending.path(), trainee, optimizer, state)?;
    writer.commit_checkpoint(pending, best)?;
    Ok(())
}

fn export<B: Kernels>(
    writer: &Writer,
    recipe: &Recipe,
    prepared: &Rest,
    trainee: &Trainee<B>,
    components: Option<&[Vec<bool>]>,
) -> Result<()> {
    let head: Vec<_> = trainee
        .model
        .head
        .tensors()
        .into_iter()
        .zip(trainee.head.iter().cloned())
        .collect();
    // Written beside and renamed, so that nobody meets half an adapter.
    let (folder, fresh) = (
        writer.run().adapter_dir(),
        writer.run().dir().join(".adapter"),
    );
    let cannot_write =
        |error| Error::failure(format!("cannot write {}", folder.display())).because(error);
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).map_err(cannot_write)?;
    }
    std::fs::create_dir_all(&fresh).map_err(cannot_write)?;
    export::write(
        &fresh,
        prepared.pretrained.config.family,
        &recipe.model.name,
        &trainee.adapters,
        components,
        &prepared.pretrained.linears(),
        &head,
    )?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(cannot_write)?;
    }
    std::fs::rename(&fresh, &folder).map_err(cannot_write)
}

fn evaluate_all<B: Kernels>(
    trainee: &Trainee<B>,
    prepared: &Rest,
    recipe: &Recipe,
    status: &Status,
    device: &B::Device,
) -> Result<Vec<EvalRecord>> {
    let data = &prepared.data;
    let records = data.validation.iter().map(|(split, examples)| {
        let started = Instant::now();
        let tokens = recipe.evaluation.batch_tokens;
        let (loss, metrics) = evaluate::evaluate(trainee, examples, &data.metrics, tokens, device)?;
        Ok(EvalRecord {
            step: status.step,
            epoch: status.epoch,
            split: split.clone(),
            examples: examples.len() as u64,
            loss,
            metrics: metrics
                .iter()
                .map(|(m, value)| (m.name().to_owned(), *value))
                .collect(),
            seconds: started.elapsed().as_secs_f64(),
        })
    });
    records.collect()
}

fn diverged<B: Kernels>(step: u64, result: &step::StepResult<B>, writer: &Writer) -> Error {
    let (what, value) = if result.loss.is_finite() {
        ("gradient norm", result.gradient_norm)
    } else {
        ("loss", result.loss)
    };
    Error::failure(format!(
        "the {what} of step {step} is {value}: the run has diverged"
    ))
    .help(format!(
        "the state after step {} is saved in {}; lower train.learning_rate, raise train.warmup, or \
         set train.max_grad_norm",
        step - 1,
        writer.run().dir().display()
    ))
}
