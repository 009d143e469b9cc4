//! One optimiser step up to its gradients: forward and backward over the micro-batches, and what the host
//! reads of it.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use dynalora_plugin_api::Observation;

use super::optimizer::Optimizer;
use super::prefix::PrefixCache;
use super::ranks::Ranks;
use super::readout::{self, Places, Readout};
use super::recompute::{self, Found};
use super::reduce;
use super::trainee::Trainee;
use crate::adapter::{
    Counts, Observe, Observed, Part, Pass, Sense, Sensed, Tensors, components, mixed,
};
use crate::allocation::{Details, RawValue, Signal, Wanted};
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
    /// What else the allocator has decided.
    pub details: &'a Details,
    /// The learning rates of the adapters' A and B at this step; by B's the sensitivity of pruned components goes.
    pub rates: [f64; 2],
    /// That of what stands beside tables of embeddings.
    pub embedding_rate: f64,
    /// Whether the gradients of inactive modules are measured as well.
    pub probing: bool,
    /// What to measure.
    pub wanted: &'a Wanted,
    /// Seed of the step's dropout.
    pub seed: u64,
    /// Whether layers are run once more on the way back, rather than all kept.
    pub checkpointing: bool,
    /// What the loss is multiplied by on the way back; nothing that comes out of a step is. 1 but in f16.
    pub loss_scale: f32,
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

    /// Whether any of these signals is wanted.
    pub(super) fn wants(&self, signals: &[Signal]) -> bool {
        self.wanted.any(signals)
    }

    /// Whether this raw value is wanted.
    pub(super) fn wants_raw(&self, value: RawValue) -> bool {
        self.wanted.raw.contains(&value)
    }

    /// What a pass over `batch` is to measure of the gradients; none where that is nothing.
    fn sense<B: Kernels>(&self, trainee: &Trainee<B>, batch: &Batch) -> Option<Sense<B>> {
        let fisher = self.wants(&[Signal::Fisher]);
        let outputs = self.wants(&[Signal::OutputGradientL2]);
        if !fisher && !outputs {
            return None;
        }
        let adapters = &trainee.adapters;
        let sense = Sense::new(adapters.modules.len(), outputs);
        Some(match fisher {
            true => {
                let projections = adapters.projections.as_ref();
                sense.fisher(&batch.offsets, projections, self.components)
            }
            false => sense,
        })
    }

    /// What a pass is to measure of the modules' inputs and outputs.
    fn observe(&self) -> Observe {
        Observe {
            input: self.wants(&[Signal::InputL2]),
            input_columns: self.wants_raw(RawValue::InputColumnL2),
            raw_input: false,
            activation: self.wants(&[Signal::ActivationL1, Signal::ActivationL2]),
            delta: self.wants(&[Signal::DeltaL2]),
            raw_activation: self.wants_raw(RawValue::Activation),
        }
    }

    /// Which components of a module remain.
    fn remaining(&self, module: usize) -> Option<&[bool]> {
        self.components.map(|modules| modules[module].as_slice())
    }
}

/// The gradients of each module's tensors; none for a module without.
pub type Gradients<B> = Vec<Option<Tensors<Tensor<B, 2>>>>;

/// What came out of a step.
pub struct StepResult<B: Kernels> {
    /// Mean loss per example, per predicted token, or per word.
    pub loss: f64,
    /// How many of them it is the mean over.
    pub weight: u64,
    /// Euclidean norm of the gradients of all that trains, before clipping.
    pub gradient_norm: f64,
    /// That of each module's own; none for a module without gradient.
    pub gradient_norms: Vec<Option<f64>>,
    /// The gradients of each module's tensors; none for a module without.
    pub gradients: Gradients<B>,
    /// The head's gradients.
    pub head_gradients: Vec<Tensor<B, 2>>,
    /// For the plugins.
    pub observation: Observation,
}

/// The part of a batch that one rank runs.
struct Share<'a> {
    batch: Cow<'a, Batch>,
    /// Where it lies in the batch, if it is not all of it.
    part: Option<Part>,
    /// Whether it counts. A rank that has none of the examples runs one of them for nothing, so that all ranks come to
    /// the same tensors.
    counts: bool,
}

impl<'a> Share<'a> {
    fn of(batch: &'a Batch, ranks: &Ranks) -> Self {
        if ranks.count() == 1 {
            return Share {
                batch: Cow::Borrowed(batch),
                part: None,
                counts: true,
            };
        }
        let mut own = batch.of_rank(ranks.rank(), ranks.count());
        let counts = !own.is_empty();
        if !counts {
            let length = |at: &usize| batch.offsets[at + 1] - batch.offsets[*at];
            let shortest = (0..batch.indices.len()).min_by_key(length).unwrap_or(0);
            own = shortest..shortest + 1;
        }
        Share {
            batch: Cow::Owned(batch.section(own.clone())),
            part: Some(Part {
                before: counts_of(batch, 0..own.start),
                own: counts_of(batch, own),
            }),
            counts,
        }
    }
}

/// How much of each kind of row the examples at these positions have.
fn counts_of(batch: &Batch, positions: Range<usize>) -> Counts {
    Counts {
        sequences: positions.len(),
        tokens: batch.offsets[positions.end] - batch.offsets[positions.start],
        answers: batch.weight_of(positions),
    }
}

/// Runs the micro-batches of one step. Loss and gradients are means over their examples, predicted tokens or words, each of
/// which weighs the same whichever micro-batch it is in: those of one batch with all of them. With a `prefix` the layers in
/// it are not run, and nothing is measured of their modules' outputs. Of the `optimizer`, if there is one, its last
/// updates are measured.
pub fn run<B: Kernels>(
    trainee: &Trainee<B>,
    batches: &[Batch],
    plan: &StepPlan<'_>,
    prefix: Option<Prefix<'_>>,
    optimizer: Option<&Optimizer<B>>,
    device: &B::Device,
) -> Result<StepResult<B>> {
    let alone = Ranks::alone();
    run_share(&alone, trainee, batches, plan, prefix, optimizer, device)
}

/// [`run`] by all `ranks`, each of which runs its share of each micro-batch: what comes out is that of all.
pub fn run_share<B: Kernels>(
    ranks: &Ranks,
    trainee: &Trainee<B>,
    batches: &[Batch],
    plan: &StepPlan<'_>,
    prefix: Option<Prefix<'_>>,
    optimizer: Option<&Optimizer<B>>,
    device: &B::Device,
) -> Result<StepResult<B>> {
    let mut passes = passes(trainee, batches, plan, prefix, ranks, device)?;
    reduce::over(&mut passes, ranks, device)?;
    let sensitivities = sensitivities(trainee, &passes.gradients, plan);
    for (module, gradient) in passes.gradients.iter_mut().enumerate() {
        let remaining = plan.remaining(module);
        if let (Some(remaining), Some(gradient)) = (remaining, gradient)
            && remaining.contains(&false)
        {
            gradient.pair = components::keep(gradient.pair.clone(), remaining);
        }
    }
    let mut readout = Readout::default();
    let places = Places::of(
        &mut readout,
        trainee,
        &passes,
        sensitivities,
        optimizer,
        plan,
    );
    let values = readout.values()?;

    let gradient_norms = places.gradient_norms(&values);
    let of_active = gradient_norms.iter().zip(plan.active);
    let mut observation = Observation::default();
    observation.step = plan.step;
    observation.tokens = passes.tokens.iter().sum::<usize>() as u64;
    observation.examples = passes.examples as u64;
    observation.loss = places.loss(&values);
    observation.learning_rate = plan.rates[0];
    observation.probing = plan.probing;
    observation.active = plan.active.to_vec();
    observation.signals = places.signals(&values, plan);
    observation.raw = readout::raw(trainee, &passes, &places, &values, plan)?;
    observation.components = places.components(&values);
    let squares: f64 = of_active
        .filter_map(|(norm, active)| norm.filter(|_| *active))
        .map(|norm| norm * norm)
        .sum::<f64>()
        + places.head_squares(&values);
    Ok(StepResult {
        loss: observation.loss,
        weight: passes.weight as u64,
        gradient_norm: squares.sqrt(),
        gradient_norms,
        observation,
        gradients: passes.gradients,
        head_gradients: passes.head_gradients,
    })
}

/// What the micro-batches of a step gave, all on the device.
pub(super) struct Passes<B: Kernels> {
    /// Each micro-batch's share of the mean loss, scaled.
    pub losses: Vec<Tensor<B, 1>>,
    /// Sums over the micro-batches.
    pub gradients: Gradients<B>,
    /// Sums over the micro-batches.
    pub head_gradients: Vec<Tensor<B, 2>>,
    /// What was measured of each module in each micro-batch.
    pub observed: Vec<Vec<Option<Observed<B>>>>,
    /// What was measured of what came back to it, scaled as the losses are; empty where nothing was.
    pub sensed: Vec<Vec<Sensed<B>>>,
    /// Examples of all micro-batches.
    pub examples: usize,
    /// What their loss is the mean over: the examples, the tokens that are predicted, or the words.
    pub weight: usize,
    /// Tokens of each micro-batch.
    pub tokens: Vec<usize>,
}

fn passes<B: Kernels>(
    trainee: &Trainee<B>,
    batches: &[Batch],
    plan: &StepPlan<'_>,
    mut prefix: Option<Prefix<'_>>,
    ranks: &Ranks,
    device: &B::Device,
) -> Result<Passes<B>> {
    let tracked = plan.tracked();
    let mut gradients: Gradients<B> = vec![None; trainee.adapters.modules.len()];
    let mut head_gradients: Vec<Option<Tensor<B, 2>>> = vec![None; trainee.head.len()];
    let (mut losses, mut observed, mut sensed) = (Vec::new(), Vec::new(), Vec::new());
    let weight: usize = batches.iter().map(Batch::weight).sum();
    for (micro, whole) in batches.iter().enumerate() {
        let seed = mixed(plan.seed, micro as u64);
        let Share {
            batch,
            part,
            counts,
        } = Share::of(whole, ranks);
        let batch = &*batch;
        let mut pass = Pass::train(
            &trainee.adapters,
            &trainee.head,
            &tracked,
            plan.observe(),
            seed,
        )
        .of_part(part);
        if let Some(sense) = plan.sense(trainee, batch) {
            pass = pass.sensing(sense);
        }
        let model = &trainee.model;
        let (input, uploaded) = trainee.upload(batch, prefix.is_none(), device);
        pass.uploaded = uploaded;
        let (x, depth) = match (&mut prefix, input) {
            (Some(Prefix { cache, depth }), _) => {
                (cache.states(trainee, batch, *depth, device)?, *depth)
            }
            (None, Some(input)) => (model.base.prefix(&input, 0, &mut pass), 0),
            (None, None) => unreachable!("the tokens are there where no prefix is"),
        };
        let sequences = Sequences::new(&batch.offsets);
        let share = batch.weight() as f32 / weight as f32;
        let loss_from = |x, depth, pass: &mut Pass<B>| {
            let loss = match batch.next_tokens() {
                Some(tokens) => model.next_tokens(x, depth, &sequences, &tokens, pass),
                None => {
                    let logits = trainee.answers(x, depth, &sequences, batch, pass);
                    let classes = pass.uploaded.classes.clone();
                    loss(logits, classes, &batch.expected(), device)?
                }
            };
            Ok(loss * (share * plan.loss_scale))
        };
        let (loss, mut found) = match plan.checkpointing {
            false => {
                let loss = loss_from(x, depth, &mut pass)?;
                (loss.clone().inner(), vec![loss.backward()])
            }
            true => {
                let of_pass = (&tracked[..], seed, part);
                let from = (x, depth);
                recompute::backward(trainee, from, &sequences, of_pass, &mut pass, loss_from)?
            }
        };
        let counted = |gradient: Tensor<B, 2>| match counts {
            true => gradient,
            false => gradient.zeros_like(),
        };
        losses.push(match counts {
            true => loss,
            false => loss.zeros_like(),
        });
        for (module, (sum, tensors)) in gradients.iter_mut().zip(&pass.pairs).enumerate() {
            // A pair that several use has the sum of their gradients, which is its owner's.
            if tracked[module] && trainee.adapters.owner(module) == module {
                let tensors = tensors.each_ref().map(|tensor| taken(tensor, &mut found));
                let Some(more) = tensors.all() else { continue };
                let more = more.map(counted);
                *sum = Some(match sum.take() {
                    Some(sum) => sum.zip(more).map(|(sum, more)| sum + more),
                    None => more,
                });
            }
        }
        for (sum, tensor) in head_gradients.iter_mut().zip(&pass.head) {
            if let Some(gradient) = taken(tensor, &mut found).map(counted) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + gradient,
                    None => gradient,
                });
            }
        }
        sensed.push(pass.sensed());
        observed.push(pass.observed);
        if !counts {
            let last = (observed.last_mut(), sensed.last_mut());
            if let (Some(observed), Some(sensed)) = last {
                reduce::uncount(observed, sensed);
            }
        }
    }
    let mut head_gradients = head_gradients
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::failure("a tensor of the head received no gradient"))?;
    if plan.loss_scale != 1.0 {
        let unscaled = |gradient: Tensor<B, 2>| gradient / plan.loss_scale;
        head_gradients = head_gradients.into_iter().map(unscaled).collect();
        for tensors in &mut gradients {
            *tensors = tensors.take().map(|tensors| tensors.map(unscaled));
        }
    }
    Ok(Passes {
        losses,
        gradients,
        head_gradients,
        observed,
        sensed,
        weight,
        examples: batches.iter().map(|batch| batch.labels.len()).sum(),
        tokens: batches.iter().map(Batch::tokens).collect(),
    })
}

/// The gradient of a tensor, the sum over all that were `found`.
fn taken<B: Kernels>(tensor: &Tensor<Ad<B>, 2>, found: &mut [Found<B>]) -> Option<Tensor<B, 2>> {
    let parts = found
        .iter_mut()
        .filter_map(|found| tensor.grad_remove(found));
    parts.reduce(|sum, part| sum + part)
}

/// The sensitivity of each component of the modules that have a gradient, where a plugin asks for it.
fn sensitivities<B: Kernels>(
    trainee: &Trainee<B>,
    gradients: &Gradients<B>,
    plan: &StepPlan<'_>,
) -> Vec<Option<Tensor<B, 1>>> {
    if !plan.wanted.components {
        return Vec::new();
    }
    let pairs = trainee.adapters.pairs().iter().zip(gradients).enumerate();
    let of_module = pairs.map(|(module, (pair, gradient))| {
        let remaining = plan.remaining(module);
        let gradient = gradient.as_ref()?;
        let zero = trainee.adapters.own(module).starts_at_zero();
        let rate = match trainee.adapters.own(module).is_embedding() {
            true => plan.embedding_rate,
            false => plan.rates[1],
        };
        let rate = plan.details.rate(module)[zero] * rate;
        let (pair, gradient) = (&pair.pair, &gradient.pair);
        Some(components::sensitivity(
            pair,
            gradient,
            remaining,
            (zero, rate),
        ))
    });
    of_module.collect()
}

/// Mean cross-entropy over `classes`, `[sequences]`, or mean squared error of the labels' values; `logits [sequences,
/// outputs]`.
fn loss<B: Kernels>(
    logits: Tensor<Ad<B>, 2>,
    classes: Option<Tensor<B, 1, Int>>,
    labels: &[Label],
    device: &B::Device,
) -> Result<Tensor<Ad<B>, 1>> {
    let count = labels.len();
    if let Some(values) = Label::values(labels) {
        let values = Tensor::<Ad<B>, 2>::from_data(TensorData::new(values, [count, 1]), device);
        return Ok((logits - values).powi_scalar(2).mean());
    }
    let classes = classes
        .ok_or_else(|| Error::failure("a batch mixes classes and values, or lacks labels"))?;
    let classes = Tensor::<Ad<B>, 2, Int>::from_inner(classes.reshape([count, 1]));
    Ok(log_softmax(logits, 1).gather(1, classes).mean().neg())
}
