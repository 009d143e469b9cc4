//! One optimiser step up to its gradients: forward and backward over the micro-batches, and everything
//! the host reads of it, in one transfer.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use dynalora_plugin_api::{Measured, Needs, Observation, Raw, RawValue, Signal};

use super::prefix::PrefixCache;
use super::trainee::{Trainee, read, upload};
use crate::adapter::{Observe, Observed, Pass, components};
use crate::data::{Batch, Label};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels, Sequences};

/// What one step is to do.
pub struct StepPlan<'a> {
    /// Number of the step, from 1.
    pub step: u64,
    /// Modules that train.
    pub active: &'a [bool],
    /// Which components of each module remain; none where nothing is pruned. The others receive no
    /// gradient, and add none to the gradient's norm.
    pub components: Option<&'a [Vec<bool>]>,
    /// The adapters' learning rate at this step, which the sensitivity of pruned components goes by.
    pub rate: f64,
    /// Whether the gradients of inactive modules are measured as well.
    pub probing: bool,
    /// What to measure; nothing where no plugin will be asked again.
    pub needs: &'a Needs,
    /// Whether the raw values are wanted.
    pub raw: bool,
    /// Seed of the step's dropout.
    pub seed: u64,
}

/// Where the output of the first `depth` layers is taken from.
pub struct Prefix<'a> {
    /// What is kept of it.
    pub cache: &'a mut PrefixCache,
    /// Layers below the lowest active module.
    pub depth: usize,
}

impl StepPlan<'_> {
    /// Modules whose gradients are computed: those that train, and all in a probing step.
    pub fn tracked(&self) -> Vec<bool> {
        let active = self.active.iter();
        active.map(|active| *active || self.probing).collect()
    }
}

/// What came out of a step.
pub struct StepResult<B: Kernels> {
    /// Mean loss.
    pub loss: f64,
    /// Euclidean norm of the gradients of all that trains, before clipping.
    pub gradient_norm: f64,
    /// The gradients of each module's two tensors; none for a module without.
    pub gradients: Vec<Option<[Tensor<B, 2>; 2]>>,
    /// The head's gradients.
    pub head_gradients: Vec<Tensor<B, 2>>,
    /// For the plugins.
    pub observation: Observation,
}

/// Runs the micro-batches of one step. The loss is their mean, as in Transformers' Trainer. With a `prefix`
/// the layers in it are not run, and nothing is measured of their modules' outputs.
pub fn run<B: Kernels>(
    trainee: &Trainee<B>,
    batches: &[Batch],
    plan: &StepPlan<'_>,
    mut prefix: Option<Prefix<'_>>,
    device: &B::Device,
) -> Result<StepResult<B>> {
    let modules = trainee.adapters.modules.len();
    let tracked = plan.tracked();
    let wants = |signals: &[Signal]| plan.needs.signals.iter().any(|s| signals.contains(s));
    let wants_raw = |value| plan.raw && plan.needs.raw.contains(&value);
    let observe = Observe {
        activation: wants(&[Signal::ActivationL1, Signal::ActivationL2]),
        delta: wants(&[Signal::DeltaL2]),
        raw_activation: wants_raw(RawValue::Activation),
    };

    let mut gradients: Vec<Option<[Tensor<B, 2>; 2]>> = vec![None; modules];
    let mut head_gradients: Vec<Option<Tensor<B, 2>>> = vec![None; trainee.head.len()];
    let mut losses = Vec::new();
    let mut observed: Vec<Vec<Option<Observed<B>>>> = Vec::new();
    let share = 1.0 / batches.len() as f32;
    for (micro, batch) in batches.iter().enumerate() {
        let seed = (plan.seed as u32).wrapping_add((micro as u32).wrapping_mul(0x85eb_ca6b));
        let mut pass = Pass::train(&trainee.adapters, &trainee.head, &tracked, observe, seed);
        let logits = match &mut prefix {
            Some(Prefix { cache, depth }) => {
                let x = cache.states(trainee, batch, *depth, device)?;
                let sequences = Sequences::new(&batch.offsets);
                let model = &trainee.model;
                model.forward_from(x, *depth, &sequences, &mut pass)
            }
            None => {
                let input = upload::<B>(batch, device);
                trainee.model.forward(&input, &mut pass)
            }
        };
        let loss = loss(logits, &batch.labels, device)? * share;
        losses.push(loss.clone().inner());
        let mut found = loss.backward();
        for ((sum, pair), tracked) in gradients.iter_mut().zip(&pass.pairs).zip(&tracked) {
            if *tracked {
                let pair = pair.each_ref().map(|tensor| tensor.grad_remove(&mut found));
                let [Some(a), Some(b)] = pair else { continue };
                *sum = Some(match sum.take() {
                    Some([sum_a, sum_b]) => [sum_a + a, sum_b + b],
                    None => [a, b],
                });
            }
        }
        for (sum, tensor) in head_gradients.iter_mut().zip(&pass.head) {
            if let Some(gradient) = tensor.grad_remove(&mut found) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + gradient,
                    None => gradient,
                });
            }
        }
        observed.push(pass.observed);
    }
    let head_gradients = head_gradients
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::failure("a tensor of the head received no gradient"))?;

    let remaining = |module: usize| plan.components.map(|modules| modules[module].as_slice());
    let sensitivities: Vec<Option<Tensor<B, 1>>> = match plan.needs.components {
        true => (trainee.adapters.pairs.iter().zip(&gradients).enumerate())
            .map(|(module, (pair, gradient))| {
                let remaining = remaining(module);
                let gradient = gradient.as_ref()?;
                Some(components::sensitivity(
                    pair, gradient, remaining, plan.rate,
                ))
            })
            .collect(),
        false => Vec::new(),
    };
    for (module, gradient) in gradients.iter_mut().enumerate() {
        if let Some(remaining) = remaining(module).filter(|all| all.contains(&false)) {
            *gradient = gradient
                .take()
                .map(|pair| components::keep(pair, remaining));
        }
    }

    // Everything the host needs to know of the step, read at once.
    let mut read = Readout::default();
    let loss_at: Vec<usize> = losses.into_iter().map(|loss| read.push(loss)).collect();
    let head_at: Vec<usize> = head_gradients
        .iter()
        .map(|gradient| read.push(sums(gradient)))
        .collect();
    let gradients_at: Vec<Option<[usize; 2]>> = gradients
        .iter()
        .map(|pair| {
            pair.as_ref()
                .map(|pair| pair.each_ref().map(|gradient| read.push(sums(gradient))))
        })
        .collect();
    let observed_at: Vec<Vec<Places>> = observed
        .iter()
        .map(|modules| {
            let at = modules.iter().map(|module| match module {
                Some(module) => (
                    module.activation.clone().map(|sums| read.push(sums)),
                    module.delta.clone().map(|sum| read.push(sum)),
                ),
                None => (None, None),
            });
            at.collect()
        })
        .collect();
    let weights_at: Option<Vec<usize>> = wants(&[Signal::WeightL2]).then(|| {
        let scale = trainee.adapters.config.scale();
        (0..modules)
            .map(|module| read.push(weight_squares(&trainee.adapters.factors(module), scale)))
            .collect()
    });
    let sensitivities_at: Vec<Option<Range<usize>>> = sensitivities
        .into_iter()
        .map(|module| {
            module.map(|module| {
                let rank = module.dims()[0];
                let first = read.push(module);
                first..first + rank
            })
        })
        .collect();
    let values = read.values()?;

    let norms = |module: usize| {
        gradients_at[module].map(|[a, b]| {
            (
                values[a] + values[b],
                f64::from(values[a + 1]) + f64::from(values[b + 1]),
            )
        })
    };
    let trained = (0..modules)
        .filter(|module| plan.active[*module])
        .filter_map(norms);
    let squares: f64 = trained.map(|(_, squares)| squares).sum::<f64>()
        + head_at
            .iter()
            .map(|at| f64::from(values[at + 1]))
            .sum::<f64>();
    // Sums over the micro-batches of what was measured in each.
    let total = |module: usize, at: fn(&Places) -> Option<usize>, i: usize| {
        let parts = observed_at.iter().filter_map(|pass| at(&pass[module]));
        parts
            .map(|at| f64::from(values[at + i]))
            .reduce(|a, b| a + b)
    };
    let measured = |signal: Signal| Measured {
        signal,
        values: (0..modules)
            .map(|module| match signal {
                Signal::ActivationL1 => total(module, |at| at.0, 0).map(|sum| sum as f32),
                Signal::ActivationL2 => total(module, |at| at.0, 1).map(|sum| sum.sqrt() as f32),
                Signal::DeltaL2 => total(module, |at| at.1, 0).map(|sum| sum.sqrt() as f32),
                Signal::GradientL1 => norms(module).map(|(absolute, _)| absolute),
                Signal::GradientL2 => norms(module).map(|(_, squares)| squares.sqrt() as f32),
                Signal::WeightL2 => weights_at
                    .as_ref()
                    .map(|at| values[at[module]].max(0.0).sqrt()),
            })
            .collect(),
    };
    let raw = if plan.raw {
        plan.needs.raw.as_slice()
    } else {
        &[]
    };
    let observation = Observation {
        step: plan.step,
        tokens: batches.iter().map(|batch| batch.ids.len() as u64).sum(),
        active: plan.active.to_vec(),
        signals: plan
            .needs
            .signals
            .iter()
            .map(|signal| measured(*signal))
            .collect(),
        raw: raw
            .iter()
            .map(|value| raw_values(*value, trainee, &gradients, observed.last()))
            .collect::<Result<_>>()?,
        components: sensitivities_at
            .into_iter()
            .map(|at| at.map_or_else(Vec::new, |at| values[at].to_vec()))
            .collect(),
    };
    Ok(StepResult {
        loss: loss_at.iter().map(|at| f64::from(values[*at])).sum(),
        gradient_norm: squares.sqrt(),
        gradients,
        head_gradients,
        observation,
    })
}

/// `[Σ|x|, Σx²]` of a whole tensor.
fn sums<B: Kernels>(x: &Tensor<B, 2>) -> Tensor<B, 1> {
    let columns = 0..x.dims()[1];
    B::sums(x.clone(), columns)
}

/// Where a module's activation sums and its delta's sum lie in the readout.
type Places = (Option<usize>, Option<usize>);

/// Small tensors gathered to be read together.
struct Readout<B: Kernels> {
    parts: Vec<Tensor<B, 1>>,
    len: usize,
}

impl<B: Kernels> Default for Readout<B> {
    fn default() -> Self {
        Readout {
            parts: Vec::new(),
            len: 0,
        }
    }
}

impl<B: Kernels> Readout<B> {
    /// Adds a tensor and returns where its first value will be.
    fn push(&mut self, part: Tensor<B, 1>) -> usize {
        let at = self.len;
        self.len += part.dims()[0];
        self.parts.push(part);
        at
    }

    fn values(self) -> Result<Vec<f32>> {
        read(Tensor::cat(self.parts, 0))
    }
}

/// `‖s·BA‖²` by the Gram matrices of A and B.
fn weight_squares<B: Kernels>([a, b]: &[Tensor<B, 2>; 2], scale: f32) -> Tensor<B, 1> {
    let of_a = a.clone().matmul(a.clone().transpose());
    let of_b = b.clone().transpose().matmul(b.clone());
    (of_a * of_b).sum() * (scale * scale)
}

fn raw_values<B: Kernels>(
    value: RawValue,
    trainee: &Trainee<B>,
    gradients: &[Option<[Tensor<B, 2>; 2]>],
    observed: Option<&Vec<Option<Observed<B>>>>,
) -> Result<Raw> {
    let both = |[a, b]: &[Tensor<B, 2>; 2]| -> Result<Vec<f32>> {
        let mut values = read(a.clone())?;
        values.extend(read(b.clone())?);
        Ok(values)
    };
    let buffer = |module: usize| match value {
        RawValue::Activation => {
            let output = observed.and_then(|modules| modules[module].as_ref());
            output
                .and_then(|module| module.raw_activation.clone())
                .map_or(Ok(Vec::new()), read)
        }
        RawValue::Gradient => gradients[module].as_ref().map_or(Ok(Vec::new()), both),
        RawValue::Weight => both(&trainee.adapters.pairs[module]),
    };
    let buffers = (0..trainee.adapters.modules.len())
        .map(buffer)
        .collect::<Result<_>>()?;
    Ok(Raw { value, buffers })
}

/// Mean cross-entropy over classes, or mean squared error of values; `logits [sequences, outputs]`.
fn loss<B: Kernels>(
    logits: Tensor<Ad<B>, 2>,
    labels: &[Label],
    device: &B::Device,
) -> Result<Tensor<Ad<B>, 1>> {
    let count = labels.len();
    if let Some(values) = Label::values(labels) {
        let values = Tensor::<Ad<B>, 2>::from_data(TensorData::new(values, [count, 1]), device);
        return Ok((logits - values).powi_scalar(2).mean());
    }
    let classes = Label::classes(labels)
        .ok_or_else(|| Error::failure("a batch mixes classes and values, or lacks labels"))?;
    let classes: Vec<i64> = classes.into_iter().map(i64::from).collect();
    let classes = Tensor::<Ad<B>, 2, Int>::from_data(TensorData::new(classes, [count, 1]), device);
    Ok(log_softmax(logits, 1).gather(1, classes).mean().neg())
}
