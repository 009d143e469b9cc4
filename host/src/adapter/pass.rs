//! One forward pass through the adapted model: what trains in it, what is dropped, what is measured.

mod lookup;

use std::ops::Range;

use burn::tensor::{Int, Tensor};
use dynalora_plugin_api::Trial;

use super::sensed::{Sense, Sensed};
use super::side::{self, Layer, Magnitude, Ran, Side};
use super::{Adapters, Projections, Tensors, Weight, components, dora, pissa, scaled_from, stream};
use crate::kernel::{Ad, Dropout, Frozen, Kernels, Lora, is_tracked};

pub use lookup::Looked;

/// Where something is dropped. A mask is a function of the pass's seed, the site and the element's place in
/// the batch: neither what else a pass runs nor what it measures changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The sum of the embeddings.
    Embeddings,
    /// The attention weights of a layer.
    Attention(u32),
    /// The output of a layer's attention.
    AttentionOutput(u32),
    /// The output of a layer's feed-forward.
    FeedForward(u32),
    /// The input of the head's layer of this number.
    Head(u32),
    /// The relative positions that a layer reads.
    Positions(u32),
}

impl Site {
    /// A number that no other site of the model has; those of the adapters have the highest bit set.
    fn number(self) -> u32 {
        match self {
            Site::Embeddings => 0,
            Site::Attention(layer) => 4 * layer + 1,
            Site::AttentionOutput(layer) => 4 * layer + 2,
            Site::FeedForward(layer) => 4 * layer + 3,
            Site::Head(layer) => 4 * layer + 4,
            // A head has two at most.
            Site::Positions(layer) => 4 * layer + 12,
        }
    }
}

/// How much of each kind of row a batch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its examples.
    pub sequences: usize,
    /// Their tokens.
    pub tokens: usize,
    /// What the model answers: one to each example, each of its words or each predicted token.
    pub answers: usize,
}

/// Where a part of a batch lies in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What of the batch comes before.
    pub before: Counts,
    /// The part itself.
    pub own: Counts,
}

/// SplitMix64's step (Steele et al. 2014): two numbers to one that looks like neither.
pub fn mixed(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which reductions a pass takes of each module on its way forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observe {
    /// Σx² of the module's input.
    pub input: bool,
    /// Σx² of each of its columns.
    pub input_columns: bool,
    /// The input itself.
    pub raw_input: bool,
    /// Σ|y| and Σy² of the module's output.
    pub activation: bool,
    /// Σδ² of the adapter's share of it.
    pub delta: bool,
    /// The output itself.
    pub raw_activation: bool,
}

impl Observe {
    /// Whether anything of the modules' outputs is measured.
    pub fn outputs(&self) -> bool {
        self.activation || self.delta || self.raw_activation
    }

    /// Whether anything of their inputs is measured.
    pub fn inputs(&self) -> bool {
        self.input || self.input_columns || self.raw_input
    }
}

/// What was measured of one module in one pass; all on the device.
#[derive(Clone, Debug)]
pub struct Observed<B: Kernels> {
    /// `[Σ|x|, Σx²]` of the input.
    pub input: Option<Tensor<B, 1>>,
    /// Σx² of each column of the input, `[in]`.
    pub input_columns: Option<Tensor<B, 1>>,
    /// `[Σ|y|, Σy²]`.
    pub activation: Option<Tensor<B, 1>>,
    /// `[Σδ²]`.
    pub delta: Option<Tensor<B, 1>>,
    /// The output, `[tokens, out]`.
    pub raw_activation: Option<Tensor<B, 2>>,
    /// Rows that the module saw: the batch's tokens, or one a sequence above the last layer.
    pub rows: usize,
}

/// One forward pass. Made for each batch, used up by it.
#[derive(Debug)]
pub struct Pass<B: Kernels> {
    /// The tensors that each module uses, tracked where they are to have a gradient: those of a pair that several
    /// modules use are the same ones.
    pub pairs: Vec<Tensors<Tensor<Ad<B>, 2>>>,
    /// The trained tensors of the head.
    pub head: Vec<Tensor<Ad<B>, 2>>,
    /// What was measured, one entry per module, in the order the modules ran.
    pub observed: Vec<Option<Observed<B>>>,
    /// The inputs themselves, `[rows, in]`, where they are asked for, and the modules that read each.
    pub raw_inputs: Vec<(Vec<usize>, Tensor<B, 2>)>,
    projections: Option<Projections<B>>,
    /// Where the pair that each module uses started, of PiSSA's; empty for others.
    starts: Vec<[Tensor<Ad<B>, 2>; 2]>,
    /// Which tensor of each module's pair is zero at the start.
    zeros: Vec<usize>,
    /// The scale of each module's side path.
    scales: Vec<f32>,
    /// What it is a factor of, beside the method's own.
    factors: Vec<f32>,
    /// What DoRA and biases that train start from: see [`Adapters::put_on`].
    layers: Vec<[Option<Tensor<B, 2>>; 2]>,
    /// The norms of the rows of DoRA's `W + s·BA`; none where a trial has changed the pair.
    norms: Vec<Option<Tensor<B, 2>>>,
    adapter_dropout: f32,
    /// The dropout site of each module's adapter.
    adapter_sites: Vec<u32>,
    observe: Observe,
    /// What is measured of the gradients as they come back.
    sense: Option<Sense<B>>,
    /// Whether what runs now only runs to be measured, without gradients.
    beside: bool,
    /// The seed of this pass's dropout; none in evaluation.
    seed: Option<u64>,
    /// Which part of a batch it runs, where it is not all of it.
    part: Option<Part>,
    /// What is on the device already of what the head needs.
    pub uploaded: Uploaded<B>,
}

/// Whole numbers that the head needs, copied to the device with the batch.
#[derive(Clone, Debug)]
pub struct Uploaded<B: Kernels> {
    /// The rows that it reads.
    pub rows: Option<Tensor<B, 1, Int>>,
    /// The classes that are to be answered.
    pub classes: Option<Tensor<B, 1, Int>>,
}

impl<B: Kernels> Default for Uploaded<B> {
    fn default() -> Self {
        Uploaded {
            rows: None,
            classes: None,
        }
    }
}

impl<B: Kernels> Pass<B> {
    /// A pass for evaluation: nothing is tracked, dropped or measured.
    pub fn evaluate(adapters: &Adapters<B>, head: &[Tensor<B, 2>]) -> Self {
        let nothing = vec![false; adapters.modules.len()];
        Self::new(adapters, head, &nothing, false, Observe::default(), None)
    }

    /// A pass that keeps what every module reads of all tokens, and does nothing else.
    pub fn reading(adapters: &Adapters<B>, head: &[Tensor<B, 2>]) -> Self {
        let (nothing, observe) = (
            vec![false; adapters.modules.len()],
            Observe {
                raw_input: true,
                ..Observe::default()
            },
        );
        Self::new(adapters, head, &nothing, false, observe, None)
    }

    /// A pass for training: gradients for the modules in `tracked` and for the head, dropout by `seed`.
    pub fn train(
        adapters: &Adapters<B>,
        head: &[Tensor<B, 2>],
        tracked: &[bool],
        observe: Observe,
        seed: u64,
    ) -> Self {
        Self::new(adapters, head, tracked, true, observe, Some(seed))
    }

    fn new(
        adapters: &Adapters<B>,
        head: &[Tensor<B, 2>],
        tracked: &[bool],
        head_tracked: bool,
        observe: Observe,
        seed: Option<u64>,
    ) -> Self {
        let enter = |tensor: &Tensor<B, 2>, tracked: bool| {
            let tensor = Tensor::<Ad<B>, 2>::from_inner(tensor.clone());
            if tracked {
                tensor.require_grad()
            } else {
                tensor
            }
        };
        // A pair that several modules use enters once, so that its gradient is the sum of theirs.
        let pairs = adapters.pairs().iter().zip(tracked).enumerate();
        let own: Vec<_> = pairs
            .map(|(module, (pair, tracked))| {
                let tracked = *tracked && adapters.owner(module) == module;
                pair.each_ref().map(|tensor| enter(tensor, tracked))
            })
            .collect();
        // By name, so that a module drops the same whichever others are adapted.
        let modules = adapters.modules.iter();
        let adapter_sites = modules.map(|module| stream(&module.path) as u32 | 1 << 31);
        Pass {
            pairs: (0..own.len())
                .map(|module| Tensors {
                    pair: own[adapters.owner(module)].pair.clone(),
                    ..own[module].clone()
                })
                .collect(),
            head: head
                .iter()
                .map(|tensor| enter(tensor, head_tracked))
                .collect(),
            observed: vec![None; adapters.modules.len()],
            raw_inputs: Vec::new(),
            projections: adapters.projections.clone(),
            starts: match adapters.starts() {
                Some(starts) => (0..starts.len())
                    .map(|module| starts[adapters.owner(module)].clone())
                    .map(|start| start.map(Tensor::from_inner))
                    .collect(),
                None => Vec::new(),
            },
            zeros: (0..adapters.modules.len())
                .map(|module| adapters.own(module).starts_at_zero())
                .collect(),
            scales: (0..adapters.modules.len())
                .map(|module| adapters.scale(module))
                .collect(),
            factors: (0..adapters.modules.len())
                .map(|module| adapters.factor(module) as f32)
                .collect(),
            layers: adapters.layers.iter().map(|it| it.starts.clone()).collect(),
            norms: (0..adapters.modules.len())
                .map(|module| Some(adapters.rows(module)?.0.norms.clone()))
                .collect(),
            adapter_dropout: adapters.config.dropout(),
            adapter_sites: adapter_sites.collect(),
            observe,
            sense: None,
            beside: false,
            seed,
            part: None,
            uploaded: Uploaded::default(),
        }
    }

    /// The same pass over a part of a batch, which drops what the pass over all of it would drop there.
    pub fn of_part(mut self, part: Option<Part>) -> Self {
        self.part = part;
        self
    }

    /// Changes the adapters as a trial says.
    pub fn change(&mut self, trial: &Trial) {
        for (module, factor) in trial.factors.iter().enumerate() {
            self.scales[module] *= *factor;
            self.factors[module] *= *factor;
            if *factor != 1.0 {
                self.norms[module] = None;
            }
        }
        let components = trial.components.iter().flatten();
        for (module, applied) in components.enumerate() {
            if applied.contains(&false) {
                let mut pair = self.pairs[module].pair.clone().map(Tensor::inner);
                let start = self.starts.get(module).cloned();
                let start = start.map(|start| start.map(Tensor::inner));
                components::prune(&mut pair, start.as_ref(), (applied, self.zeros[module]));
                self.pairs[module].pair = pair.map(Tensor::from_inner);
                self.norms[module] = None;
            }
        }
    }

    /// Dropout at `site`, of so many `rows`, with `probability` while training.
    pub fn dropout(&self, site: Site, rows: usize, probability: f32) -> Dropout {
        let first = match (site, &self.part) {
            (Site::Attention(_), Some(part)) => part.before.sequences,
            (Site::Positions(_), _) => 0,
            // Of what is answered alone.
            (Site::Head(_), Some(part)) => part.before.answers,
            _ => self.rows_before(rows),
        };
        self.dropout_at(site.number(), first, probability)
    }

    /// How many rows of the batch lie before those of a layer of this pass where there are so many of them. Tokens and answers
    /// are told apart by their number: that of answers is smaller, but where all texts are of one token, or each token is answered.
    fn rows_before(&self, rows: usize) -> usize {
        match &self.part {
            Some(Part { before, own }) if rows == own.tokens => before.tokens,
            Some(Part { before, .. }) => before.answers,
            None => 0,
        }
    }

    fn dropout_at(&self, site: u32, first: usize, probability: f32) -> Dropout {
        match self.seed {
            Some(seed) if probability > 0.0 => Dropout {
                probability,
                seed: (mixed(seed, site.into()) >> 32) as u32,
                first: first as u32,
            },
            _ => Dropout::NONE,
        }
    }

    /// The same pass, which also measures what comes back to the modules: see [`Sense`].
    pub fn sensing(mut self, sense: Sense<B>) -> Self {
        self.sense = Some(sense);
        self
    }

    /// What was measured of the gradients, one entry per module; empty without [`sensing`](Self::sensing). To be
    /// asked after the backward pass.
    pub fn sensed(&self) -> Vec<Sensed<B>> {
        self.sense.as_ref().map_or_else(Vec::new, Sense::found)
    }

    /// Whether inputs or outputs of modules are measured in this pass, so that all tokens' are needed.
    pub fn observes(&self) -> bool {
        self.observe != Observe::default()
    }

    /// Whether outputs of modules are.
    pub fn observes_outputs(&self) -> bool {
        self.observe.outputs()
    }

    /// Runs what only has to be measured, without gradients.
    pub fn beside<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        let before = std::mem::replace(&mut self.beside, true);
        let result = run(self);
        self.beside = before;
        result
    }

    /// Runs what has been measured already, or is not to be.
    pub fn unobserved<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        let observe = std::mem::take(&mut self.observe);
        let result = run(self);
        self.observe = observe;
        result
    }

    /// Runs what is of no example: neither it nor what comes back to it is measured.
    pub fn unmeasured<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        let (sense, part) = (self.sense.take(), self.part.take());
        let result = self.unobserved(run);
        (self.sense, self.part) = (sense, part);
        result
    }

    /// The outputs, side by side, of up to three layers that read the same `x`: each frozen layer, and its
    /// pair beside it where it is a module.
    pub fn linear(
        &mut self,
        x: Tensor<Ad<B>, 2>,
        layers: &[(&Frozen<B>, Option<usize>)],
    ) -> Tensor<Ad<B>, 2> {
        let rows = x.dims()[0];
        let beside: Vec<Layer<'_, B>> = layers
            .iter()
            .map(|(frozen, module)| {
                let weight = || Weight::Layer((*frozen).clone());
                (
                    *frozen,
                    module.map(|index| self.side(index, &weight(), rows)),
                )
            })
            .collect();
        self.inputs(&x, layers);
        let sensor = self.sense.as_ref().filter(|_| !self.beside);
        let mut sensor = sensor.map(|sense| sense.of((&x).into(), is_tracked(&x)));
        let asked = sensor.is_some();
        let read = self.observe.delta.then(|| x.clone().inner());
        let Ran { y, xa, before } = side::run(x, &beside, asked);
        let mut first = 0;
        let modules = layers.iter().map(|(_, module)| *module);
        for ((((frozen, side), module), xa), before) in
            beside.iter().zip(modules).zip(xa).zip(before)
        {
            let outputs = frozen.weight.dims()[0];
            let columns = first..first + outputs;
            first += outputs;
            let (Some(module), Some(side)) = (module, side) else {
                continue;
            };
            if let Some(sensor) = &mut sensor {
                let tensors = &self.pairs[module];
                sensor.add(module, columns.clone(), tensors, side, (xa.clone(), before));
            }
            if self.observes_outputs() {
                let y = y.clone().inner();
                let delta = read.clone().map(|x| match (&side.magnitude, xa) {
                    (Some(_), _) => side.share_squares(x, frozen, y.clone(), columns.clone()),
                    (None, Some(xa)) => {
                        delta_squares(xa, side.lora.b.clone().inner(), side.lora.scale)
                    }
                    (None, None) => Tensor::zeros([1], &y.device()),
                });
                self.measure(module, y, columns, delta);
            }
        }
        match sensor {
            Some(sensor) => sensor.tap(y),
            None => y,
        }
    }

    /// Takes the reductions of `x`, the input of these layers.
    pub fn inputs(&mut self, x: &Tensor<Ad<B>, 2>, layers: &[(&Frozen<B>, Option<usize>)]) {
        let modules: Vec<usize> = layers.iter().filter_map(|(_, module)| *module).collect();
        if !self.observe.inputs() || modules.is_empty() {
            return;
        }
        let ([rows, columns], x) = (x.dims(), x.clone().inner());
        let Observe {
            input,
            input_columns,
            raw_input,
            ..
        } = self.observe;
        if raw_input {
            self.raw_inputs.push((modules.clone(), x.clone()));
        }
        let sums = input.then(|| B::sums(x.clone(), 0..columns));
        let squares = input_columns.then(|| B::column_squares(x));
        for module in modules {
            let observed = self.observed(module, rows);
            observed.input.clone_from(&sums);
            observed.input_columns.clone_from(&squares);
        }
    }

    /// What stands beside the layer of module `index`, which reads so many `rows`.
    fn side(&self, index: usize, weight: &Weight<B>, rows: usize) -> Side<B> {
        let mut tensors = self.pairs[index].clone();
        if self.beside {
            tensors = tensors.map(|tensor| Tensor::from_inner(tensor.inner()));
        }
        let Tensors {
            pair,
            magnitude,
            bias,
        } = tensors;
        let [a, b] = match (&self.projections, self.starts.get(index)) {
            (None, None) => pair,
            (None, Some(start)) => pissa::moved(pair, start.clone()),
            (Some(projections), _) => projections.factors(weight.dims(), pair),
        };
        let (scale, factor) = (self.scales[index], self.factors[index]);
        let start = |which: usize| {
            let start = self.layers[index][which].clone();
            start.expect("put on the layer that it is of")
        };
        let in_use = |value, which| scaled_from(&Tensor::from_inner(start(which)), value, factor);
        Side {
            magnitude: magnitude.map(|magnitude| {
                let norms = self.norms[index].clone().unwrap_or_else(|| {
                    let pair = [&a, &b].map(|tensor| tensor.clone().inner());
                    dora::Rows::of(&weight.without_bias(), &start(0), &pair, scale).norms
                });
                let slope = norms.clone().recip() * factor;
                let factors = in_use(magnitude, 0) / Tensor::from_inner(norms);
                Magnitude {
                    factors: factors.transpose(),
                    slope: slope.transpose(),
                }
            }),
            bias: bias.map(|bias| in_use(bias, 1).transpose()),
            lora: Lora {
                a,
                b,
                scale,
                dropout: self.dropout_at(
                    self.adapter_sites[index],
                    self.rows_before(rows),
                    self.adapter_dropout,
                ),
            },
            factor,
        }
    }

    /// Takes the reductions of module `index`, whose output is in `columns` of `y`; `delta` is that of what it adds.
    fn measure(
        &mut self,
        index: usize,
        y: Tensor<B, 2>,
        columns: Range<usize>,
        delta: Option<Tensor<B, 1>>,
    ) {
        let Observe {
            activation,
            raw_activation,
            ..
        } = self.observe;
        let observed = self.observed(index, y.dims()[0]);
        observed.activation = activation.then(|| B::sums(y.clone(), columns.clone()));
        observed.delta = delta;
        observed.raw_activation = raw_activation.then(|| y.slice_dim(1, columns));
    }

    /// Where what is measured of module `index`, which saw so many `rows`, is noted.
    fn observed(&mut self, index: usize, rows: usize) -> &mut Observed<B> {
        let observed = self.observed[index].get_or_insert(Observed {
            input: None,
            input_columns: None,
            activation: None,
            delta: None,
            raw_activation: None,
            rows,
        });
        observed.rows = rows;
        observed
    }
}

/// `‖s·XAᵀ·Bᵀ‖²` from the two `rank × rank` Gram matrices, `s²·Σ (XAᵀ)ᵀ(XAᵀ) ∘ BᵀB`, so that the
/// adapter's share is never written out.
fn delta_squares<B: Kernels>(xa: Tensor<B, 2>, b: Tensor<B, 2>, scale: f32) -> Tensor<B, 1> {
    let of_input = xa.clone().transpose().matmul(xa);
    let of_output = b.clone().transpose().matmul(b);
    // Rounding can leave a zero share a hair below zero.
    (of_input * of_output).sum().clamp_min(0.0) * (scale * scale)
}

#[cfg(test)]
mod tests;
