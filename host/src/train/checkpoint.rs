//! What a run needs to go on exactly where it stopped.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use dynalora_plugin_api::ModuleInfo;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::optimizer::{GroupState, LastUpdate, Optimizer};
use super::scale::LossScale;
use super::stall::Watch;
use super::trainee::Trainee;
use crate::allocation;
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::{Saved, save};
use crate::run::{self, Best, Checkpoint, Run};

/// Everything but the tensors. Order of the data and dropout follow from the recipe's seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps finished.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Floating-point operations so far.
    #[serde(default)]
    pub flops: u64,
    /// Seconds spent training, evaluation included, over all sittings.
    pub seconds: f64,
    /// The best evaluation so far: step and value of the deciding metric.
    pub best: Option<(u64, f64)>,
    /// The step of the last evaluation, and the name of its main metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<(u64, String)>,
    /// Every metric of the last evaluation, by name.
    #[serde(default, deserialize_with = "run::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Largest memory that any sitting has taken, in bytes, where the system tells.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// Sum over the steps of the active modules, for their mean.
    pub active_modules: u64,
    /// Sum over the steps of the active adapter parameters.
    pub active_parameters: u64,
    /// The most adapter parameters that were active at once.
    pub peak_parameters: u64,
    /// Sum of the losses of all examples since the last record, and their number.
    pub open_loss: (f64, u64),
    /// What the best constant answer loses on these examples in all.
    #[serde(default)]
    pub open_constant_loss: f64,
    /// Whether anything is learnt, as far as it has been seen.
    #[serde(default)]
    pub watch: Watch,
    /// Steps whose update was left out because it was not finite, and how many of them the last ones are.
    #[serde(default)]
    pub skipped: u64,
    /// See [`skipped`](Self::skipped).
    #[serde(default)]
    pub skipped_in_a_row: u64,
    /// What the loss is scaled by in f16; none in other precisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Whether an evaluation was due after the last step and has not been made.
    #[serde(default)]
    pub evaluation_owed: bool,
    /// Updates of each module's optimiser state; none where it has no state.
    pub module_updates: Vec<Option<u64>>,
    /// Updates of each component of each module of which any has been pruned; empty lists for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub component_updates: Vec<Vec<u64>>,
    /// The last update of each module's parameters; none where it has no state.
    #[serde(default)]
    pub last_updates: Vec<Option<LastUpdate>>,
    /// Updates of the head's.
    pub head_updates: Option<u64>,
    /// Mask, ledger and the plugins' own state.
    pub allocation: allocation::State,
}

impl Progress {
    /// Refuses what cannot have come of `step` steps of a run of `total_steps` over `modules`: a checkpoint is input
    /// like any other, and what is added to these numbers must not run over.
    fn validate(&self, step: u64, modules: &[ModuleInfo]) -> Result<(), String> {
        const MOST: u64 = 1 << 62;
        let parameters: u64 = modules.iter().map(|module| module.parameters).sum();
        let count = modules.len() as u64;
        let allocation = &self.allocation;
        let ledger = allocation.ledger.entries();
        let updates = self.module_updates.iter().flatten();
        let mut updates = updates
            .chain(self.component_updates.iter().flatten())
            .chain(&self.head_updates);
        let (loss, losses) = self.open_loss;
        let rules = [
            ("step", self.step == step),
            ("tokens", self.tokens < MOST),
            ("flops", self.flops < MOST),
            ("seconds", (0.0..1e12).contains(&self.seconds)),
            (
                "best",
                self.best
                    .is_none_or(|(at, value)| at <= step && value.is_finite()),
            ),
            (
                "active_modules",
                self.active_modules <= step.saturating_mul(count),
            ),
            (
                "active_parameters",
                self.active_parameters <= step.saturating_mul(parameters),
            ),
            ("peak_parameters", self.peak_parameters <= parameters),
            ("open_loss", loss.is_finite() && losses < MOST),
            ("open_constant_loss", self.open_constant_loss.is_finite()),
            ("watch", self.watch.is_possible(step)),
            ("skipped", self.skipped <= step),
            ("skipped_in_a_row", self.skipped_in_a_row <= self.skipped),
            (
                "loss_scale",
                self.loss_scale.is_none_or(|scale| scale.is_possible(step)),
            ),
            ("module_updates", self.module_updates.len() == modules.len()),
            (
                "component_updates",
                self.component_updates.is_empty()
                    || self.component_updates.len() == modules.len()
                        && self
                            .component_updates
                            .iter()
                            .zip(modules)
                            .all(|(own, module)| {
                                own.is_empty() || own.len() == module.rank as usize
                            }),
            ),
            (
                "last_updates",
                (self.last_updates.is_empty() || self.last_updates.len() == modules.len())
                    && self.last_updates.iter().flatten().all(|last| {
                        last.step < step && last.rates.iter().all(|rate| rate.is_finite())
                    }),
            ),
            ("updates", updates.all(|updates| *updates <= step)),
            ("allocation.step", allocation.step == step),
            // One a step, and one before the first (`initial = "allocator"`).
            (
                "allocation.reallocations",
                allocation.reallocations <= step.saturating_add(1),
            ),
            (
                "allocation.ledger",
                ledger.iter().all(|entry| {
                    entry.steps_active <= step
                        && entry.times_chosen <= allocation.reallocations
                        && entry.last_chosen.is_none_or(|at| at <= step)
                }),
            ),
        ];
        match rules.iter().find(|(_, right)| !right) {
            None => Ok(()),
            Some((what, _)) => Err(format!(
                "`{what}` cannot be that of step {step} of a run of {count} modules"
            )),
        }
    }

    /// What the loss is multiplied by before the backward pass.
    pub fn loss_scale(&self) -> f32 {
        self.loss_scale.map_or(1.0, |scale| scale.scale)
    }

    /// Before the first step.
    pub fn start(allocation: allocation::State) -> Self {
        Progress {
            step: 0,
            tokens: 0,
            flops: 0,
            seconds: 0.0,
            best: None,
            evaluated: None,
            metrics: BTreeMap::new(),
            peak_memory: None,
            active_modules: 0,
            active_parameters: 0,
            peak_parameters: 0,
            open_loss: (0.0, 0),
            open_constant_loss: 0.0,
            watch: Watch::default(),
            skipped: 0,
            skipped_in_a_row: 0,
            loss_scale: None,
            evaluation_owed: false,
            module_updates: Vec::new(),
            component_updates: Vec::new(),
            last_updates: Vec::new(),
            head_updates: None,
            allocation,
        }
    }
}

const TENSORS: &str = "state.safetensors";
const PROGRESS: &str = "progress.json";
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Writes a checkpoint into `folder`, which must exist and be nobody's yet.
pub fn write<B: Kernels>(
    folder: &Path,
    trainee: &Trainee<B>,
    optimizer: &Optimizer<B>,
    progress: &Progress,
) -> Result<()> {
    let mut tensors = Vec::new();
    type Values<'a, B> = Vec<&'a Tensor<B, 2>>;
    let mut group = |names: &[String], values: Values<'_, B>, state: Option<&GroupState<B>>| {
        for (i, (name, value)) in names.iter().zip(values).enumerate() {
            tensors.push(Saved::new(name.clone(), value.dims().to_vec(), value)?);
            let Some(state) = state else { continue };
            for (moment, kind) in state.moments[i].iter().zip(MOMENTS) {
                tensors.push(Saved::new(
                    format!("{name}.{kind}"),
                    moment.dims().to_vec(),
                    moment,
                )?);
            }
        }
        Ok::<_, Error>(())
    };
    for (module, names) in module_names(trainee).iter().enumerate() {
        let values = trainee.adapters.pairs()[module].iter().collect();
        group(names, values, optimizer.modules[module].as_ref())?;
        if let Some(starts) = trainee.adapters.starts() {
            group(
                &names_of_start(names),
                starts[module].iter().collect(),
                None,
            )?;
        }
    }
    let head = trainee.head.iter().collect();
    group(&head_names(trainee), head, optimizer.head.as_ref())?;
    save(&folder.join(TENSORS), &tensors, &[])?;
    let path = folder.join(PROGRESS);
    let text = serde_json::to_string_pretty(progress)
        .map_err(|error| Error::failure(format!("{}: {error}", path.display())))?;
    std::fs::write(&path, text).map_err(|error| {
        Error::failure(format!("cannot write {}: {error}", path.display()))
            .help("check the folder's permissions and the space left on the disk")
    })
}

/// Reads the checkpoint that a run goes on from. Where its best checkpoint is lost, the best that is left counts, and
/// that is said.
pub fn resume<B: Kernels>(
    run: &Run,
    checkpoint: &Checkpoint,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    total_steps: u64,
    device: &B::Device,
) -> Result<Progress> {
    if checkpoint.step > total_steps {
        return Err(run::damaged(format!(
            "the checkpoint {} is of step {}, but the run ends at step {total_steps}",
            checkpoint.path.display(),
            checkpoint.step
        )));
    }
    let mut progress = read(checkpoint, trainee, optimizer, device)?;
    let left = run
        .best(checkpoint.step)
        .map(|(_, best)| (best.step, best.value));
    if progress.best != left {
        let lost = progress.best.map_or(0, |(step, _)| step);
        let instead = match left {
            Some((step, _)) => format!("that of step {step} counts as the best so far"),
            None => "the best of those to come counts".to_owned(),
        };
        tracing::warn!(
            "the best checkpoint of {}, of step {lost}, is gone or damaged: {instead}",
            run.dir().display()
        );
        progress.best = left;
    }
    Ok(progress)
}

/// Reads the best checkpoint of a run that has come to its end, if an evaluation picked one.
pub fn read_best<B: Kernels>(
    run: &Run,
    progress: &Progress,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    device: &B::Device,
) -> Result<Option<(Progress, Best)>> {
    let found = run.best(progress.step);
    match (found, progress.best) {
        (Some((checkpoint, best)), Some((step, _))) if best.step == step => {
            Ok(Some((read(&checkpoint, trainee, optimizer, device)?, best)))
        }
        (None, None) => Ok(None),
        (_, Some((step, _))) => Err(Error::failure(format!(
            "the best checkpoint of {}, of step {step}, is gone or damaged",
            run.dir().display()
        ))
        .help("restore it from a copy and go on by --resume; without a copy --resume takes the best that is left")),
        (Some((checkpoint, _)), None) => Err(run::damaged(format!(
            "{} calls itself the best, of which the run knows nothing",
            checkpoint.path.display()
        ))),
    }
}

/// Reads a checkpoint back into a trainee and optimiser.
fn read<B: Kernels>(
    checkpoint: &Checkpoint,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    device: &B::Device,
) -> Result<Progress> {
    let damaged = |file: &str, error: String| {
        run::damaged(format!("{}: {error}", checkpoint.path.join(file).display()))
    };
    let text = checkpoint.read(PROGRESS)?;
    let progress: Progress = serde_json::from_slice(&text)
        .map_err(|error| damaged(PROGRESS, format!("it is not a run's progress: {error}")))?;
    progress
        .validate(checkpoint.step, &trainee.adapters.modules)
        .map_err(|error| damaged(PROGRESS, error))?;
    let bytes = checkpoint.read(TENSORS)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| damaged(TENSORS, format!("it is not a safetensors file: {error}")))?;
    let mut number = 0;
    type Values<'a, B> = Vec<&'a mut Tensor<B, 2>>;
    let mut load = |names: &[String], values: Values<'_, B>, updates: Option<u64>| {
        let mut tensor = |name: &str, shape: [usize; 2]| {
            number += 1;
            let view = tensors.tensor(name);
            let view = view.map_err(|_| damaged(TENSORS, format!("it has no tensor {name}")))?;
            if view.shape() != shape || view.dtype() != Dtype::F32 {
                let (is, kind) = (view.shape(), view.dtype());
                return Err(damaged(
                    TENSORS,
                    format!("{name} is {kind:?} of {is:?}, the recipe asks for F32 of {shape:?}"),
                ));
            }
            let values = view.data().as_chunks::<4>().0.iter();
            let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Ok(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let mut moments = Vec::new();
        for (name, value) in names.iter().zip(values) {
            let shape = value.dims();
            if updates.is_some() {
                let [first, second] = MOMENTS.map(|kind| tensor(&format!("{name}.{kind}"), shape));
                moments.push([first?, second?]);
            }
            *value = tensor(name, shape)?;
        }
        Ok::<_, Error>(updates.map(|steps| GroupState {
            steps,
            components: Vec::new(),
            moments,
            last: None,
        }))
    };
    for (module, names) in module_names(trainee).iter().enumerate() {
        let updates = progress.module_updates[module];
        let values = trainee.adapters.pair_mut(module).iter_mut().collect();
        optimizer.modules[module] = load(names, values, updates)?;
        if let Some(start) = trainee.adapters.start_mut(module) {
            load(&names_of_start(names), start.iter_mut().collect(), None)?;
        }
        if let Some(state) = &mut optimizer.modules[module] {
            state.last = progress.last_updates.get(module).cloned().flatten();
        }
        let components = progress.component_updates.get(module);
        if let (Some(state), Some(components)) = (&mut optimizer.modules[module], components) {
            state.components.clone_from(components);
        }
    }
    let names = head_names(trainee);
    let head = trainee.head.iter_mut().collect();
    optimizer.head = load(&names, head, progress.head_updates)?;
    if number != tensors.len() {
        return Err(damaged(
            TENSORS,
            format!("it has {} tensors, the run has {number}", tensors.len()),
        ));
    }
    Ok(progress)
}

fn module_names<B: Kernels>(trainee: &Trainee<B>) -> Vec<Vec<String>> {
    let modules = trainee.adapters.modules.iter().enumerate();
    modules
        .map(|(index, module)| {
            let parts = trainee.adapters.own(index).parts().into_iter();
            parts
                .map(|part| format!("{}.{part}", module.path))
                .collect()
        })
        .collect()
}

/// What PiSSA's pair of these names started from.
fn names_of_start(names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("{name}.start")).collect()
}

fn head_names<B: Kernels>(trainee: &Trainee<B>) -> Vec<String> {
    trainee
        .model
        .head
        .tensors()
        .into_iter()
        .map(|tensor| tensor.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use dynalora_plugin_api::LedgerEntry;

    use super::*;
    use crate::allocation::{Ledger, State};

    #[test]
    fn numbers_that_no_run_comes_to_are_refused() {
        let mut module = ModuleInfo::default();
        module.path = "layer.0.query".to_owned();
        module.layer = Some(0);
        module.role = "query".to_owned();
        module.in_features = 8;
        module.out_features = 8;
        module.rank = 4;
        module.parameters = 64;
        module.forward_flops = 1;
        module.backward_flops = 1;
        let modules = [module];
        let mut good = Progress::start(State {
            step: 5,
            reallocations: 1,
            modules: vec!["layer.0.query".to_owned()],
            active: vec![true],
            components: None,
            details: Default::default(),
            last_choice: None,
            asked_for: None,
            ledger: Ledger::new(1),
            scorer: None,
            allocator: None,
            owed: false,
            fault: None,
        });
        good.step = 5;
        good.module_updates = vec![Some(5)];
        good.best = Some((4, 0.5));
        assert_eq!(good.validate(5, &modules), Ok(()));
        let bad = |change: &dyn Fn(&mut Progress)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.validate(5, &modules).unwrap_err()
        };
        for seconds in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(bad(&|p| p.seconds = seconds).contains("`seconds`"));
        }
        type Change<'a> = (&'a str, &'a dyn Fn(&mut Progress));
        let changes: [Change<'_>; 18] = [
            ("step", &|p| p.step = 6),
            ("tokens", &|p| p.tokens = u64::MAX),
            ("flops", &|p| p.flops = u64::MAX),
            ("best", &|p| p.best = Some((6, 0.5))),
            ("best", &|p| p.best = Some((4, f64::NAN))),
            ("active_modules", &|p| p.active_modules = 6),
            ("active_parameters", &|p| p.active_parameters = 321),
            ("peak_parameters", &|p| p.peak_parameters = 65),
            ("open_loss", &|p| p.open_loss = (0.5, u64::MAX)),
            ("skipped", &|p| p.skipped = 6),
            ("skipped_in_a_row", &|p| p.skipped_in_a_row = 1),
            ("loss_scale", &|p| {
                let mut scale = LossScale::default();
                scale.scale = 3.0;
                p.loss_scale = Some(scale);
            }),
            ("module_updates", &|p| p.module_updates = vec![None; 2]),
            ("component_updates", &|p| {
                p.component_updates = vec![vec![1; 3]]
            }),
            ("last_updates", &|p| p.last_updates = vec![None; 2]),
            ("last_updates", &|p| {
                p.last_updates = vec![Some(LastUpdate {
                    step: 5,
                    rates: [0.1; 2],
                    components: None,
                })]
            }),
            ("updates", &|p| p.head_updates = Some(6)),
            ("allocation.step", &|p| p.allocation.step = 4),
        ];
        for (name, change) in changes {
            assert!(bad(change).contains(&format!("`{name}`")), "{name}");
        }
        let entry = LedgerEntry {
            steps_active: u64::MAX,
            times_chosen: 0,
            last_chosen: None,
        };
        let ledger = serde_json::from_value(serde_json::json!([entry])).unwrap();
        let mut changed = good.clone();
        changed.allocation.ledger = ledger;
        assert!(changed.validate(5, &modules).is_err());
    }
}
