//! What a run needs to go on exactly where it stopped.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;
use serde::{Deserialize, Serialize};

use super::optimizer::{GroupState, Optimizer};
use super::trainee::Trainee;
use crate::allocation;
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::{Saved, Weights, save};

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
    /// Sum over the steps of the active modules, for their mean.
    pub active_modules: u64,
    /// Sum over the steps of the active adapter parameters.
    pub active_parameters: u64,
    /// The most adapter parameters that were active at once.
    pub peak_parameters: u64,
    /// Sum of the losses of all examples since the last record, and their number.
    pub open_loss: (f64, u64),
    /// Steps whose update was left out because it was not finite, and how many of them the last ones are.
    #[serde(default)]
    pub skipped: u64,
    /// See [`skipped`](Self::skipped).
    #[serde(default)]
    pub skipped_in_a_row: u64,
    /// Whether an evaluation was due after the last step and has not been made.
    #[serde(default)]
    pub evaluation_owed: bool,
    /// The metrics of the last evaluation.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Updates of each module's optimiser state; none where it has no state.
    pub module_updates: Vec<Option<u64>>,
    /// Updates of each component of each module of which any has been pruned; empty lists for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub component_updates: Vec<Vec<u64>>,
    /// Updates of the head's.
    pub head_updates: Option<u64>,
    /// Mask, ledger and the plugins' own state.
    pub allocation: allocation::State,
}

impl Progress {
    /// Before the first step.
    pub fn start(allocation: allocation::State) -> Self {
        Progress {
            step: 0,
            tokens: 0,
            flops: 0,
            seconds: 0.0,
            best: None,
            active_modules: 0,
            active_parameters: 0,
            peak_parameters: 0,
            open_loss: (0.0, 0),
            skipped: 0,
            skipped_in_a_row: 0,
            evaluation_owed: false,
            metrics: BTreeMap::new(),
            module_updates: Vec::new(),
            component_updates: Vec::new(),
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
    let mut group = |names: &[String], values: &[Tensor<B, 2>], state: Option<&GroupState<B>>| {
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
    for (module, path) in module_names(trainee).iter().enumerate() {
        group(
            path,
            &trainee.adapters.pairs()[module],
            optimizer.modules[module].as_ref(),
        )?;
    }
    group(&head_names(trainee), &trainee.head, optimizer.head.as_ref())?;
    save(&folder.join(TENSORS), &tensors, &[])?;
    let path = folder.join(PROGRESS);
    let text = serde_json::to_string_pretty(progress)
        .map_err(|error| Error::failure(format!("{}: {error}", path.display())))?;
    std::fs::write(&path, text)
        .map_err(|error| Error::failure(format!("cannot write {}: {error}", path.display())))
}

/// Reads a checkpoint back into a fresh trainee and optimiser.
pub fn read<B: Kernels>(
    folder: &Path,
    trainee: &mut Trainee<B>,
    optimizer: &mut Optimizer<B>,
    device: &B::Device,
) -> Result<Progress> {
    let path = folder.join(PROGRESS);
    let damaged = |error: String| {
        Error::user(format!("{}: {error}", path.display()))
            .help("the checkpoint is damaged: start the run again in another output folder")
    };
    let text = std::fs::read_to_string(&path).map_err(|error| damaged(error.to_string()))?;
    let progress: Progress =
        serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if progress.module_updates.len() != trainee.adapters.modules.len() {
        return Err(damaged(format!(
            "it has {} modules, the recipe {}",
            progress.module_updates.len(),
            trainee.adapters.modules.len()
        )));
    }
    let modules = &trainee.adapters.modules;
    let updates = &progress.component_updates;
    let fits = |(updates, module): (&Vec<u64>, &ModuleInfo)| {
        updates.is_empty() || updates.len() == module.rank as usize
    };
    if !updates.is_empty()
        && (updates.len() != modules.len() || !updates.iter().zip(modules).all(fits))
    {
        return Err(damaged(
            "its updates of components are of other modules or ranks".to_owned(),
        ));
    }
    let weights = Weights::open(&[folder.join(TENSORS)])?;
    let load = |names: &[String], values: &mut [Tensor<B, 2>], updates: Option<u64>| {
        let mut moments = Vec::new();
        for (name, value) in names.iter().zip(values) {
            let tensor = |name: &str| {
                let tensor = weights.tensor::<B, 2>(name, value.dims(), device)?;
                // The file may be replaced by a later checkpoint while the run goes on: copy.
                Ok::<_, Error>(tensor.mul_scalar(1.0))
            };
            if updates.is_some() {
                let [first, second] = MOMENTS.map(|kind| tensor(&format!("{name}.{kind}")));
                moments.push([first?, second?]);
            }
            *value = tensor(name)?;
        }
        Ok::<_, Error>(updates.map(|steps| GroupState {
            steps,
            components: Vec::new(),
            moments,
        }))
    };
    for (module, names) in module_names(trainee).iter().enumerate() {
        let updates = progress.module_updates[module];
        optimizer.modules[module] = load(names, trainee.adapters.pair_mut(module), updates)?;
        let components = progress.component_updates.get(module);
        if let (Some(state), Some(components)) = (&mut optimizer.modules[module], components) {
            state.components.clone_from(components);
        }
    }
    let names = head_names(trainee);
    optimizer.head = load(&names, &mut trainee.head, progress.head_updates)?;
    Ok(progress)
}

fn module_names<B: Kernels>(trainee: &Trainee<B>) -> Vec<Vec<String>> {
    let parts = trainee.adapters.config.parts();
    let modules = trainee.adapters.modules.iter();
    modules
        .map(|module| parts.map(|part| format!("{}.{part}", module.path)).to_vec())
        .collect()
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
