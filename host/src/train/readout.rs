//! Everything the host reads of a step, gathered on the device and read in one transfer; what plugins ask to see
//! raw comes after it.

use std::ops::Range;

use burn::tensor::Tensor;
use dynalora_plugin_api::{Measured, Raw};

use super::optimizer::Optimizer;
use super::step::{Passes, StepPlan};
use super::trainee::{Trainee, read};
use crate::adapter::Tensors;
use crate::allocation::{RawValue, Signal};
use crate::error::Result;
use crate::kernel::Kernels;

/// Small tensors gathered to be read together.
pub(super) struct Readout<B: Kernels> {
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
    pub fn push(&mut self, part: Tensor<B, 1>) -> usize {
        let at = self.len;
        self.len += part.dims()[0];
        self.parts.push(part);
        at
    }

    /// Adds a tensor and returns where its values will be.
    fn push_all(&mut self, part: Tensor<B, 1>) -> Range<usize> {
        let first = self.push(part);
        first..self.len
    }

    /// Reads all of it.
    pub fn values(self) -> Result<Vec<f32>> {
        read(Tensor::cat(self.parts, 0))
    }
}

/// What was measured of a module's input and output in one micro-batch.
struct Output {
    /// Where `[Σ|x|, Σx²]` of the input lies.
    input: Option<usize>,
    /// Where the `Σx²` of its columns lie.
    input_columns: Option<Range<usize>>,
    /// Where `[Σ|y|, Σy²]` lies.
    activation: Option<usize>,
    /// Where `Σδ²` lies.
    delta: Option<usize>,
    /// The batch's tokens for each row that the module saw: 1 but for a module above the last layer.
    tokens_a_row: f64,
}

/// What came back to a module in one micro-batch.
struct Gradient {
    /// Where `[Σ|δ|, Σδ²]` of its output's gradient lies.
    output: Option<usize>,
    /// Where the sum of the examples' squared gradients lies.
    fisher: Option<usize>,
}

/// Where in the readout everything lies.
pub(super) struct Places {
    losses: Vec<usize>,
    /// `[Σ|g|, Σg²]` of each tensor of the head.
    head: Vec<usize>,
    /// The same of each module's tensors.
    gradients: Vec<Option<Vec<usize>>>,
    /// Of each module, what each micro-batch measured.
    outputs: Vec<Vec<Output>>,
    /// Of each module, what came back to it in each micro-batch.
    returned: Vec<Vec<Gradient>>,
    /// `[Σθg, Σ|θg|]` of each module's tensors; empty where nobody asks.
    products: Vec<Option<Vec<usize>>>,
    /// `‖Δθ‖²` of each module's last update; empty where nobody asks.
    updates: Vec<Option<usize>>,
    /// `‖ΔW‖²` of each module; empty where nobody asks.
    weights: Vec<usize>,
    /// What the step's loss is the mean over: examples, predicted tokens, or words.
    weight: f64,
    sensitivities: Vec<Option<Range<usize>>>,
    /// What losses, and what came back, are multiplied by.
    scale: f64,
}

impl Places {
    /// Gathers what is to be read.
    pub fn of<B: Kernels>(
        readout: &mut Readout<B>,
        trainee: &Trainee<B>,
        passes: &Passes<B>,
        sensitivities: Vec<Option<Tensor<B, 1>>>,
        optimizer: Option<&Optimizer<B>>,
        plan: &StepPlan<'_>,
    ) -> Self {
        let modules = trainee.adapters.modules.len();
        let losses = passes.losses.iter().cloned();
        let losses = losses.map(|loss| readout.push(loss)).collect();
        let (head, gradients) = gradients_of(readout, passes);
        let outputs = (0..modules).map(|module| {
            let passes = passes.observed.iter().zip(&passes.tokens);
            let measured = passes.filter_map(|(observed, tokens)| {
                let observed = observed[module].as_ref()?;
                let columns = observed.input_columns.clone();
                Some(Output {
                    input: observed.input.clone().map(|sums| readout.push(sums)),
                    input_columns: columns.map(|squares| readout.push_all(squares)),
                    activation: observed.activation.clone().map(|sums| readout.push(sums)),
                    delta: observed.delta.clone().map(|sum| readout.push(sum)),
                    tokens_a_row: *tokens as f64 / observed.rows.max(1) as f64,
                })
            });
            measured.collect()
        });
        let outputs = outputs.collect();
        let returned = (0..modules).map(|module| {
            let sensed = passes.sensed.iter().filter_map(|sensed| sensed.get(module));
            let gradients = sensed.map(|sensed| Gradient {
                output: sensed
                    .output_gradient
                    .clone()
                    .map(|sums| readout.push(sums)),
                fisher: sensed.fisher.clone().map(|sum| readout.push(sum)),
            });
            gradients.collect()
        });
        let returned = returned.collect();
        let products = [Signal::GradientDotWeight, Signal::GradientDotWeightAbs];
        let products = match plan.wants(&products) {
            true => products_of(readout, trainee, passes),
            false => Vec::new(),
        };
        let updates = match optimizer.filter(|_| plan.wants(&[Signal::UpdateL2])) {
            Some(optimizer) => (0..modules)
                .map(|module| {
                    let pair = &trainee.adapters.pairs()[module];
                    let update = optimizer.last_update(module, plan.step - 1, pair);
                    update.map(|squares| readout.push(squares))
                })
                .collect(),
            None => Vec::new(),
        };
        let weights = match plan.wants(&[Signal::WeightL2]) {
            true => (0..modules)
                .map(|module| readout.push(trainee.adapters.change_squares(module)))
                .collect(),
            false => Vec::new(),
        };
        let sensitivities = sensitivities
            .into_iter()
            .map(|module| Some(readout.push_all(module?)));
        Places {
            losses,
            head,
            gradients,
            outputs,
            returned,
            products,
            updates,
            weights,
            weight: passes.weight as f64,
            sensitivities: sensitivities.collect(),
            scale: f64::from(plan.loss_scale),
        }
    }

    /// The loss.
    pub fn loss(&self, values: &[f32]) -> f64 {
        let losses = self.losses.iter().map(|at| f64::from(values[*at]));
        losses.sum::<f64>() / self.scale
    }

    /// `Σg²` over the head.
    pub fn head_squares(&self, values: &[f32]) -> f64 {
        self.head.iter().map(|at| f64::from(values[at + 1])).sum()
    }

    /// The Euclidean norm of each module's gradient.
    pub fn gradient_norms(&self, values: &[f32]) -> Vec<Option<f64>> {
        let modules = self.gradients.iter();
        modules
            .map(|at| Some(sum(values, at.as_ref()?, 1).sqrt()))
            .collect()
    }

    /// The signals that the plan asks for.
    pub fn signals(&self, values: &[f32], plan: &StepPlan<'_>) -> Vec<Measured> {
        let modules = 0..self.gradients.len();
        let measured = plan.wanted.signals.iter().map(|&signal| Measured {
            signal: signal.name(),
            values: modules
                .clone()
                .map(|module| self.signal(values, signal, module))
                .collect(),
        });
        measured.collect()
    }

    fn signal(&self, values: &[f32], signal: Signal, module: usize) -> Option<f32> {
        let value = |at: usize| f64::from(values[at]);
        let root = |sum: f64| sum.max(0.0).sqrt();
        let output = |at: fn(&Output) -> Option<usize>, i| self.tokens_sum(values, module, at, i);
        let returned = |at: fn(&Gradient) -> Option<usize>, i: usize| {
            let parts = self.returned[module].iter().filter_map(at);
            let sum = parts.map(|at| value(at + i)).reduce(|a, b| a + b);
            // Both are sums of squares.
            sum.map(|sum| sum / (self.scale * self.scale))
        };
        let all = |places: &[Option<Vec<usize>>], i: usize| {
            Some(sum(values, places.get(module)?.as_ref()?, i))
        };
        let found = match signal {
            Signal::ActivationL1 => output(|at| at.activation, 0),
            Signal::ActivationL2 => output(|at| at.activation, 1).map(root),
            Signal::DeltaL2 => output(|at| at.delta, 0).map(root),
            Signal::InputL2 => output(|at| at.input, 1).map(root),
            Signal::GradientL1 => all(&self.gradients, 0),
            Signal::GradientL2 => all(&self.gradients, 1).map(root),
            Signal::OutputGradientL2 => returned(|at| at.output, 1).map(root),
            Signal::GradientDotWeight => all(&self.products, 0),
            Signal::GradientDotWeightAbs => all(&self.products, 1),
            // What came back is of the mean over the step's examples, an example's own gradient so many times that; of
            // predicted tokens, and of words, an example's gradient is that of the sum of their losses.
            Signal::Fisher => {
                returned(|at| at.fisher, 0).map(|sum| sum * self.weight * self.weight)
            }
            Signal::UpdateL2 => self.updates.get(module)?.map(|at| root(value(at))),
            Signal::WeightL2 => self.weights.get(module).map(|at| root(value(*at))),
            Signal::FrozenWeightL1 | Signal::FrozenWeightL2 => None,
        };
        found.map(|found| found as f32)
    }

    /// A sum over the micro-batches, as if each row stood for the tokens of its sequence: sums of modules that see
    /// every token and of those that see one a sequence compare.
    fn tokens_sum(
        &self,
        values: &[f32],
        module: usize,
        at: fn(&Output) -> Option<usize>,
        i: usize,
    ) -> Option<f64> {
        let parts = self.outputs[module].iter();
        let parts = parts.filter_map(|output| {
            at(output).map(|at| f64::from(values[at + i]) * output.tokens_a_row)
        });
        parts.reduce(|a, b| a + b)
    }

    /// The norm of each column of a module's input, over the step's tokens as in the signals; empty where it was not
    /// measured.
    fn input_columns(&self, values: &[f32], module: usize) -> Vec<f32> {
        let mut squares: Vec<f64> = Vec::new();
        for output in &self.outputs[module] {
            let Some(at) = output.input_columns.clone() else {
                continue;
            };
            squares.resize(at.len(), 0.0);
            for (sum, value) in squares.iter_mut().zip(&values[at]) {
                *sum += f64::from(*value) * output.tokens_a_row;
            }
        }
        squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// The sensitivity of each module's components; empty for a module without.
    pub fn components(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let modules = self.sensitivities.iter().cloned();
        modules
            .map(|at| at.map_or_else(Vec::new, |at| values[at].to_vec()))
            .collect()
    }
}

/// The sum of number `i` of what lies at each of these places.
fn sum(values: &[f32], places: &[usize], i: usize) -> f64 {
    places.iter().map(|at| f64::from(values[at + i])).sum()
}

/// Adds `[Σ|g|, Σg²]` of each gradient; where those of the head's tensors and of each module's tensors lie.
fn gradients_of<B: Kernels>(
    readout: &mut Readout<B>,
    passes: &Passes<B>,
) -> (Vec<usize>, Vec<Option<Vec<usize>>>) {
    let of_modules = passes.gradients.iter().flatten();
    let of_modules = of_modules.flat_map(|tensors| tensors.iter());
    let all = passes.head_gradients.iter().chain(of_modules);
    let all: Vec<Tensor<B, 2>> = all.cloned().collect();
    let mut places = vec![0; all.len()];
    for (members, sums) in B::sums_of(&all) {
        let first = readout.push(sums);
        for (nth, member) in members.into_iter().enumerate() {
            places[member] = first + 2 * nth;
        }
    }
    let mut of_modules = places.split_off(passes.head_gradients.len()).into_iter();
    let modules = passes.gradients.iter();
    let of_modules = modules.map(|tensors| {
        let count = tensors.as_ref()?.iter().count();
        Some(of_modules.by_ref().take(count).collect())
    });
    let of_modules = of_modules.collect();
    (places, of_modules)
}

/// Adds `[Σθg, Σ|θg|]` of the tensors of each module that has a gradient.
fn products_of<B: Kernels>(
    readout: &mut Readout<B>,
    trainee: &Trainee<B>,
    passes: &Passes<B>,
) -> Vec<Option<Vec<usize>>> {
    let modules = trainee.adapters.pairs().iter().zip(&passes.gradients);
    let modules = modules.map(|(values, gradients)| {
        let both = values.iter().zip(gradients.as_ref()?.iter());
        let products = both.map(|(value, gradient)| B::products(value.clone(), gradient.clone()));
        Some(products.map(|product| readout.push(product)).collect())
    });
    modules.collect()
}

/// `[Σ|x|, Σx²]` of a whole tensor.
pub(super) fn sums<B: Kernels>(x: &Tensor<B, 2>) -> Tensor<B, 1> {
    let columns = 0..x.dims()[1];
    B::sums(x.clone(), columns)
}

/// The raw values that the plan asks for.
pub(super) fn raw<B: Kernels>(
    trainee: &Trainee<B>,
    passes: &Passes<B>,
    places: &Places,
    values: &[f32],
    plan: &StepPlan<'_>,
) -> Result<Vec<Raw>> {
    let found = plan.wanted.raw.iter().map(|&value| {
        let modules = 0..trainee.adapters.modules.len();
        let buffers = modules.map(|module| match value {
            RawValue::InputColumnL2 => Ok(places.input_columns(values, module)),
            _ => buffer(value, module, trainee, passes),
        });
        Ok(Raw {
            value: value.name(),
            buffers: buffers.collect::<Result<_>>()?,
        })
    });
    found.collect()
}

fn buffer<B: Kernels>(
    value: RawValue,
    module: usize,
    trainee: &Trainee<B>,
    passes: &Passes<B>,
) -> Result<Vec<f32>> {
    let all = |tensors: Tensors<Tensor<B, 2>>| -> Result<Vec<f32>> {
        let values = tensors.into_iter().map(read);
        Ok(values.collect::<Result<Vec<_>>>()?.concat())
    };
    match value {
        RawValue::Activation => {
            let last = passes.observed.last();
            let output = last.and_then(|modules| modules[module].as_ref());
            let output = output.and_then(|module| module.raw_activation.clone());
            output.map_or(Ok(Vec::new()), read)
        }
        RawValue::Gradient => {
            let gradient = passes.gradients[module].clone();
            gradient.map_or(Ok(Vec::new()), all)
        }
        RawValue::Weight => all(trainee.adapters.used(module)),
        // Read with the signals, and before the first step.
        RawValue::InputColumnL2 | RawValue::FrozenWeight => Ok(Vec::new()),
    }
}
