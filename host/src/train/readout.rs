//! Everything the host reads of a step, gathered on the device and read in one transfer; what plugins ask to see
//! raw comes after it.

use std::ops::Range;

use burn::tensor::Tensor;
use dynalora_plugin_api::{Measured, Raw};

use super::step::{Passes, StepPlan};
use super::trainee::{Trainee, read};
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
    fn push(&mut self, part: Tensor<B, 1>) -> usize {
        let at = self.len;
        self.len += part.dims()[0];
        self.parts.push(part);
        at
    }

    /// Reads all of it.
    pub fn values(self) -> Result<Vec<f32>> {
        read(Tensor::cat(self.parts, 0))
    }
}

/// What was measured of a module's output in one micro-batch.
struct Output {
    /// Where `[Σ|y|, Σy²]` lies.
    activation: Option<usize>,
    /// Where `Σδ²` lies.
    delta: Option<usize>,
    /// The batch's tokens for each row that the module saw: 1 but for a module above the last layer.
    tokens_a_row: f64,
}

/// Where in the readout everything lies.
pub(super) struct Places {
    losses: Vec<usize>,
    /// `[Σ|g|, Σg²]` of each tensor of the head.
    head: Vec<usize>,
    /// The same of both tensors of each module.
    gradients: Vec<Option<[usize; 2]>>,
    /// Of each module, what each micro-batch measured.
    outputs: Vec<Vec<Output>>,
    /// `‖ΔW‖²` of each module; empty where nobody asks.
    weights: Vec<usize>,
    sensitivities: Vec<Option<Range<usize>>>,
}

impl Places {
    /// Gathers what is to be read.
    pub fn of<B: Kernels>(
        readout: &mut Readout<B>,
        trainee: &Trainee<B>,
        passes: &Passes<B>,
        sensitivities: Vec<Option<Tensor<B, 1>>>,
        plan: &StepPlan<'_>,
    ) -> Self {
        let modules = trainee.adapters.modules.len();
        let losses = passes.losses.iter().cloned();
        let losses = losses.map(|loss| readout.push(loss)).collect();
        let head = passes.head_gradients.iter();
        let head = head.map(|gradient| readout.push(sums(gradient))).collect();
        let gradients = passes.gradients.iter().map(|pair| {
            let pair = pair.as_ref()?;
            Some(pair.each_ref().map(|gradient| readout.push(sums(gradient))))
        });
        let gradients = gradients.collect();
        let outputs = (0..modules).map(|module| {
            let passes = passes.observed.iter().zip(&passes.tokens);
            let measured = passes.filter_map(|(observed, tokens)| {
                let observed = observed[module].as_ref()?;
                Some(Output {
                    activation: observed.activation.clone().map(|sums| readout.push(sums)),
                    delta: observed.delta.clone().map(|sum| readout.push(sum)),
                    tokens_a_row: *tokens as f64 / observed.rows.max(1) as f64,
                })
            });
            measured.collect()
        });
        let outputs = outputs.collect();
        let weights = match plan.wants(&[Signal::WeightL2]) {
            true => (0..modules)
                .map(|module| {
                    let scale = trainee.adapters.scale(module);
                    readout.push(weight_squares(&trainee.adapters.factors(module), scale))
                })
                .collect(),
            false => Vec::new(),
        };
        let sensitivities = sensitivities.into_iter().map(|module| {
            let module = module?;
            let rank = module.dims()[0];
            let first = readout.push(module);
            Some(first..first + rank)
        });
        Places {
            losses,
            head,
            gradients,
            outputs,
            weights,
            sensitivities: sensitivities.collect(),
        }
    }

    /// The loss.
    pub fn loss(&self, values: &[f32]) -> f64 {
        self.losses.iter().map(|at| f64::from(values[*at])).sum()
    }

    /// `Σg²` over the head.
    pub fn head_squares(&self, values: &[f32]) -> f64 {
        self.head.iter().map(|at| f64::from(values[at + 1])).sum()
    }

    /// The Euclidean norm of each module's gradient.
    pub fn gradient_norms(&self, values: &[f32]) -> Vec<Option<f64>> {
        let modules = self.gradients.iter();
        modules
            .map(|at| at.map(|[a, b]| squares(values, a, b).sqrt()))
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
        let [a, b] = match signal {
            Signal::GradientL1 | Signal::GradientL2 => self.gradients[module]?,
            _ => [0; 2],
        };
        // Over the micro-batches, as if each row stood for the tokens of its sequence: sums of modules that see
        // every token and of those that see one a sequence compare.
        let total = |at: fn(&Output) -> Option<usize>, i: usize| {
            let parts = self.outputs[module].iter();
            let parts = parts.filter_map(|output| {
                at(output).map(|at| f64::from(values[at + i]) * output.tokens_a_row)
            });
            parts.reduce(|a, b| a + b)
        };
        match signal {
            Signal::ActivationL1 => total(|at| at.activation, 0).map(|sum| sum as f32),
            Signal::ActivationL2 => total(|at| at.activation, 1).map(|sum| sum.sqrt() as f32),
            Signal::DeltaL2 => total(|at| at.delta, 0).map(|sum| sum.sqrt() as f32),
            Signal::GradientL1 => Some(values[a] + values[b]),
            Signal::GradientL2 => Some(squares(values, a, b).sqrt() as f32),
            Signal::WeightL2 => {
                let at = self.weights.get(module)?;
                Some(values[*at].max(0.0).sqrt())
            }
        }
    }

    /// The sensitivity of each module's components; empty for a module without.
    pub fn components(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let modules = self.sensitivities.iter().cloned();
        modules
            .map(|at| at.map_or_else(Vec::new, |at| values[at].to_vec()))
            .collect()
    }
}

/// `Σg²` of a pair whose sums lie at `a` and `b`.
fn squares(values: &[f32], a: usize, b: usize) -> f64 {
    f64::from(values[a + 1]) + f64::from(values[b + 1])
}

/// `[Σ|x|, Σx²]` of a whole tensor.
fn sums<B: Kernels>(x: &Tensor<B, 2>) -> Tensor<B, 1> {
    let columns = 0..x.dims()[1];
    B::sums(x.clone(), columns)
}

/// `‖s·BA‖²` by the Gram matrices of A and B.
fn weight_squares<B: Kernels>([a, b]: &[Tensor<B, 2>; 2], scale: f32) -> Tensor<B, 1> {
    let of_a = a.clone().matmul(a.clone().transpose());
    let of_b = b.clone().transpose().matmul(b.clone());
    (of_a * of_b).sum() * (scale * scale)
}

/// The raw values that the plan asks for.
pub(super) fn raw<B: Kernels>(
    trainee: &Trainee<B>,
    passes: &Passes<B>,
    plan: &StepPlan<'_>,
) -> Result<Vec<Raw>> {
    let values = plan.wanted.raw.iter().map(|&value| {
        let modules = 0..trainee.adapters.modules.len();
        let buffers = modules.map(|module| buffer(value, module, trainee, passes));
        Ok(Raw {
            value: value.name(),
            buffers: buffers.collect::<Result<_>>()?,
        })
    });
    values.collect()
}

fn buffer<B: Kernels>(
    value: RawValue,
    module: usize,
    trainee: &Trainee<B>,
    passes: &Passes<B>,
) -> Result<Vec<f32>> {
    let both = |[a, b]: &[Tensor<B, 2>; 2]| -> Result<Vec<f32>> {
        let mut values = read(a.clone())?;
        values.extend(read(b.clone())?);
        Ok(values)
    };
    match value {
        RawValue::Activation => {
            let last = passes.observed.last();
            let output = last.and_then(|modules| modules[module].as_ref());
            let output = output.and_then(|module| module.raw_activation.clone());
            output.map_or(Ok(Vec::new()), read)
        }
        RawValue::Gradient => {
            let gradient = passes.gradients[module].as_ref();
            gradient.map_or(Ok(Vec::new()), both)
        }
        RawValue::Weight => both(trainee.adapters.pair(module)),
    }
}
