//! What is measured of a module on the way back: the gradient of its output, and the squares of the gradients that
//! each example alone would give its adapter.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, TensorData};

use super::side::Side;
use super::{Looked, Projections, Tensors};
use crate::kernel::{Ad, Dropout, Kernels, is_tracked, tap};

/// What was measured of one module; all on the device. Nothing of a module that no gradient came back to.
#[derive(Clone, Debug)]
pub struct Sensed<B: Kernels> {
    /// `[Σ|δ|, Σδ²]` of the gradient δ of the loss by the module's output.
    pub output_gradient: Option<Tensor<B, 1>>,
    /// `Σ_e ‖g_e‖²`, where g_e is the gradient of example e's share of the loss by the parameters that the module
    /// trains; of a module whose gradient is wanted.
    pub fisher: Option<Tensor<B, 1>>,
}

impl<B: Kernels> Default for Sensed<B> {
    fn default() -> Self {
        Sensed {
            output_gradient: None,
            fisher: None,
        }
    }
}

/// What a pass measures on its way back.
#[derive(Clone, Debug)]
pub struct Sense<B: Kernels> {
    output_gradients: bool,
    fisher: Option<Arc<Fisher<B>>>,
    found: Arc<Mutex<Vec<Sensed<B>>>>,
}

#[derive(Clone, Debug)]
struct Fisher<B: Kernels> {
    /// Where the examples begin among the batch's tokens, and where the last ends.
    examples: Arc<[usize]>,
    projections: Option<Projections<B>>,
    /// Which components of each module remain, where any has been pruned.
    components: Option<Vec<Vec<bool>>>,
}

impl<B: Kernels> Sense<B> {
    /// Of so many `modules`, the gradients of their outputs or nothing yet.
    pub fn new(modules: usize, output_gradients: bool) -> Self {
        Sense {
            output_gradients,
            fisher: None,
            found: Arc::new(Mutex::new(vec![Sensed::default(); modules])),
        }
    }

    /// The squares of each example's gradients as well. `examples` are the batch's offsets; of a module with pruned
    /// `components` those that remain count.
    pub fn fisher(
        mut self,
        examples: &[usize],
        projections: Option<&Projections<B>>,
        components: Option<&[Vec<bool>]>,
    ) -> Self {
        self.fisher = Some(Arc::new(Fisher {
            examples: examples.into(),
            projections: projections.cloned(),
            components: components.map(<[_]>::to_vec),
        }));
        self
    }

    /// What has been found.
    pub(super) fn found(&self) -> Vec<Sensed<B>> {
        let found = self.found.lock();
        found.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What looks at the gradient of the output of layers that read `x`, where that gradient `returns` to x or not.
    pub(super) fn of(&self, x: Read<B>, returns: bool) -> Sensor<B> {
        Sensor {
            sense: self.clone(),
            returns,
            x,
            modules: Vec::new(),
        }
    }
}

/// What layers read.
#[derive(Clone)]
pub(super) enum Read<B: Kernels> {
    /// Features of all rows, `[rows, in]`.
    Features(Tensor<B, 2>),
    /// Entries of a table of embeddings.
    Entries(Looked<B>),
}

impl<B: Kernels> From<&Tensor<Ad<B>, 2>> for Read<B> {
    fn from(x: &Tensor<Ad<B>, 2>) -> Self {
        Read::Features(x.clone().inner())
    }
}

impl<B: Kernels> From<Looked<B>> for Read<B> {
    fn from(looked: Looked<B>) -> Self {
        Read::Entries(looked)
    }
}

/// Looks at the output of one to three layers that read the same input.
pub(super) struct Sensor<B: Kernels> {
    sense: Sense<B>,
    /// Whether a gradient goes on to x.
    returns: bool,
    x: Read<B>,
    modules: Vec<Module<B>>,
}

/// One module among them.
struct Module<B: Kernels> {
    index: usize,
    columns: Range<usize>,
    own: Option<Own<B>>,
}

/// What an example's gradient of a module's parameters is the product of, but for the gradient of its output.
struct Own<B: Kernels> {
    /// `dropout(x)·Aᵀ`, `[rows, rank]`.
    xa: Tensor<B, 2>,
    scale: f32,
    trained: Trained<B>,
    /// DoRA's m, where it trains.
    magnitude: Option<OwnMagnitude<B>>,
    /// How fast the bias moves with what trains of it, where it does.
    bias: Option<f32>,
}

/// What an example's gradient of DoRA's m is the product of, but for the gradient of its output.
struct OwnMagnitude<B: Kernels> {
    /// `m/‖V‖`, `[1, out]`.
    factors: Tensor<B, 2>,
    /// How fast they move with m, `[1, out]`.
    slope: Tensor<B, 2>,
    /// What they multiply, in these columns of a tensor.
    before: (Tensor<B, 2>, Range<usize>),
}

/// What a module trains.
enum Trained<B: Kernels> {
    /// Of LoRA A and B.
    Pair {
        b: Tensor<B, 2>,
        dropout: Dropout,
        /// 1 for each component that remains, 0 for others, `[1, rank]`; none where all do.
        remaining: Option<Tensor<B, 2>>,
    },
    /// Of VeRA λ_d `[rank, 1]` and λ_b `[out, 1]` around the frozen B `[out, rank]`.
    Vectors {
        b: Tensor<B, 2>,
        of_columns: Tensor<B, 2>,
        of_rows: Tensor<B, 2>,
    },
}

/// Values of all rows, and in which columns some of them are.
type Columns<B> = (Tensor<B, 2>, Range<usize>);

impl<B: Kernels> Sensor<B> {
    /// Looks at module `index` too, which trains these `tensors` and whose output is in `columns`; `xa` is
    /// `dropout(x)·Aᵀ`, and `before` what its DoRA multiplies.
    pub fn add(
        &mut self,
        index: usize,
        columns: Range<usize>,
        tensors: &Tensors<Tensor<Ad<B>, 2>>,
        side: &Side<B>,
        (xa, before): (Option<Tensor<B, 2>>, Option<Columns<B>>),
    ) {
        let (pair, lora) = (&tensors.pair, &side.lora);
        let trains = pair.iter().any(is_tracked);
        if !trains && !self.returns {
            // That of its output is nobody's concern; it comes by only because a neighbour's does.
            return;
        }
        let fisher = self.sense.fisher.as_ref().filter(|_| trains);
        let own = fisher.zip(xa).map(|(fisher, xa)| Own {
            // Of PiSSA's two the pair that trains.
            xa: match &fisher.projections {
                None => xa.slice_dim(1, 0..pair[0].dims()[0]),
                Some(_) => xa,
            },
            scale: lora.scale,
            trained: match &fisher.projections {
                None => Trained::Pair {
                    b: pair[1].clone().inner(),
                    dropout: lora.dropout,
                    remaining: remaining(fisher, index, &lora.b.device()),
                },
                Some(projections) => {
                    let [d, b] = pair.clone().map(Tensor::inner);
                    Trained::Vectors {
                        b: projections.b(columns.len()).clone(),
                        of_columns: d,
                        of_rows: b,
                    }
                }
            },
            magnitude: (side.magnitude.as_ref().zip(before)).map(|(magnitude, before)| {
                OwnMagnitude {
                    factors: magnitude.factors.clone().inner(),
                    slope: magnitude.slope.clone(),
                    before,
                }
            }),
            bias: side.bias.as_ref().map(|_| side.factor),
        });
        self.modules.push(Module {
            index,
            columns,
            own,
        });
    }

    /// The layers' output, looked at.
    pub fn tap(self, y: Tensor<Ad<B>, 2>) -> Tensor<Ad<B>, 2> {
        let Sensor {
            sense, x, modules, ..
        } = self;
        if modules.is_empty() {
            return y;
        }
        tap(y, || {
            // Kept until the backward pass only where something is computed with it.
            let x = modules
                .iter()
                .any(|module| module.own.is_some())
                .then_some(x);
            move |gradient: Tensor<B, 2>| {
                for module in &modules {
                    let sensed = sense.see(module, x.as_ref(), &gradient);
                    let found = sense.found.lock();
                    found.unwrap_or_else(PoisonError::into_inner)[module.index] = sensed;
                }
            }
        })
    }
}

/// The components of module `index` that remain, as numbers.
fn remaining<B: Kernels>(
    fisher: &Fisher<B>,
    index: usize,
    device: &B::Device,
) -> Option<Tensor<B, 2>> {
    let remaining = fisher.components.as_ref()?.get(index)?;
    if !remaining.contains(&false) {
        return None;
    }
    let values = remaining
        .iter()
        .map(|remains| f32::from(u8::from(*remains)));
    let values: Vec<f32> = values.collect();
    let rank = values.len();
    Some(Tensor::from_data(
        TensorData::new(values, [1, rank]),
        device,
    ))
}

impl<B: Kernels> Sense<B> {
    /// Measures one module, whose part of `gradient` has come.
    fn see(&self, module: &Module<B>, x: Option<&Read<B>>, gradient: &Tensor<B, 2>) -> Sensed<B> {
        let columns = module.columns.clone();
        let sums = || B::sums(gradient.clone(), columns.clone());
        let fisher = self.fisher.as_ref().zip(module.own.as_ref()).zip(x);
        Sensed {
            output_gradient: self.output_gradients.then(sums),
            fisher: fisher.map(|((fisher, own), x)| {
                let rows = gradient.dims()[0];
                // Above the last layer, and in it where only first tokens are run, an example is one row.
                let single: Vec<usize> = (0..=rows).collect();
                let examples = match fisher.examples.last() {
                    Some(tokens) if *tokens == rows => &fisher.examples[..],
                    _ => &single,
                };
                own.squares(x, gradient, columns.clone(), examples)
            }),
        }
    }
}

impl<B: Kernels> Own<B> {
    /// `Σ_e ‖g_e‖²`, exactly. LoRA: with δ the gradient of the output, `g_e = (s·Bᵀδ_eᵀ·x_e, s·δ_eᵀ·x_e·Aᵀ)` summed
    /// over the tokens of e alone, which costs what the gradient of the whole batch does. VeRA: likewise
    /// `λ_b: Σ_t δ ∘ B(λ_d ∘ Ax)`, `λ_d: Σ_t Ax ∘ Bᵀ(λ_b ∘ δ)`. DoRA: of the pair with `m/‖V‖ ∘ δ` for δ, and
    /// `m: Σ_t δ ∘ Vx/‖V‖`; of a bias `Σ_t δ`.
    fn squares(
        &self,
        x: &Read<B>,
        gradient: &Tensor<B, 2>,
        columns: Range<usize>,
        examples: &[usize],
    ) -> Tensor<B, 1> {
        let own = gradient.clone().slice_dim(1, columns.clone());
        let more = self.beside_pair(&own, examples);
        let of_pair = match &self.magnitude {
            None => self.of_pair(x, gradient, columns, examples),
            Some(magnitude) => {
                let gradient = own * magnitude.factors.clone();
                let columns = 0..gradient.dims()[1];
                self.of_pair(x, &gradient, columns, examples)
            }
        };
        let of_pair = of_pair * (self.scale * self.scale);
        more.into_iter().fold(of_pair, |sum, more| sum + more)
    }

    /// Those of DoRA's m and of the bias.
    fn beside_pair(&self, own: &Tensor<B, 2>, examples: &[usize]) -> Vec<Tensor<B, 1>> {
        let magnitude = self.magnitude.as_ref().map(|magnitude| {
            let (before, columns) = magnitude.before.clone();
            let before = before.slice_dim(1, columns);
            sums_squared(own.clone() * before * magnitude.slope.clone(), examples)
        });
        let bias = self.bias.map(|slope| {
            let squares = sums_squared(own.clone(), examples);
            squares * (slope * slope)
        });
        magnitude.into_iter().chain(bias).collect()
    }

    /// Those of the pair, but for the scale.
    fn of_pair(
        &self,
        x: &Read<B>,
        gradient: &Tensor<B, 2>,
        columns: Range<usize>,
        examples: &[usize],
    ) -> Tensor<B, 1> {
        let mut xa = self.xa.clone();
        let own = gradient.clone().slice_dim(1, columns.clone());
        match &self.trained {
            Trained::Pair {
                b,
                dropout,
                remaining,
            } => {
                let mut dxa = own.matmul(b.clone());
                if let Some(remaining) = remaining {
                    xa = xa * remaining.clone();
                    dxa = dxa * remaining.clone();
                }
                let of_a = match x {
                    Read::Features(x) => {
                        let x = B::dropout(Tensor::from_inner(x.clone()), *dropout).inner();
                        let inputs = 0..x.dims()[1];
                        B::example_squares(dxa, x, inputs, examples)
                    }
                    Read::Entries(looked) => looked.example_squares(&dxa, examples),
                };
                of_a + B::example_squares(xa, gradient.clone(), columns, examples)
            }
            Trained::Vectors {
                b,
                of_columns,
                of_rows,
            } => {
                let scaled = xa.clone() * of_columns.clone().transpose();
                let of_b = own.clone() * scaled.matmul(b.clone().transpose());
                let of_d = xa * (own * of_rows.clone().transpose()).matmul(b.clone());
                sums_squared(of_b, examples) + sums_squared(of_d, examples)
            }
        }
    }
}

/// `Σ_e ‖Σ_t v_t‖²` over the rows t of each example e.
fn sums_squared<B: Kernels>(values: Tensor<B, 2>, examples: &[usize]) -> Tensor<B, 1> {
    let of_examples = examples.windows(2).map(|ends| {
        let rows = values.clone().slice_dim(0, ends[0]..ends[1]);
        rows.sum_dim(0).powi_scalar(2).sum()
    });
    Tensor::cat(of_examples.collect(), 0).sum()
}
