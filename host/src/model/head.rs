//! The head over one token's hidden state, or each one's: it trains fully.

use burn::tensor::{Tensor, TensorData, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::architecture::{Architecture, HeadFunction, NormPart};
use super::{Linear, Pretrained, Weights};
use crate::adapter::{Pass, Site, stream};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels, NormKind};

/// A tensor of the head that trains. One-dimensional ones are kept as `[1, n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadTensor {
    /// Its name in a checkpoint of Transformers: `classifier.weight`.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
}

impl HeadTensor {
    /// Its values, which `weights` have under `name`.
    pub fn load<B: Kernels>(
        &self,
        weights: &Weights,
        name: &str,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        match self.shape[..] {
            [len] => {
                let bias = weights.tensor::<B, 1>(name, [len], device)?;
                Ok(bias.reshape([1, len]))
            }
            [rows, columns] => weights.tensor(name, [rows, columns], device),
            _ => Err(Error::failure(format!(
                "{name} has neither one nor two dimensions"
            ))),
        }
    }
}

/// A trained layer of a head.
#[derive(Clone, Debug)]
struct Layer {
    /// Its name in a checkpoint of Transformers.
    name: String,
    /// Its name in the body, if it is part of that.
    in_body: Option<&'static str>,
    /// None of a norm, which scales each feature by itself.
    inputs: Option<usize>,
    outputs: usize,
    bias: bool,
}

/// The trained layers of a head with so many logits; none where there are no logits.
fn layers(architecture: &Architecture, frozen_pooler: bool, outputs: usize) -> Vec<Layer> {
    let (head, hidden) = (&architecture.head, architecture.hidden);
    let dense = head.dense.filter(|dense| !(dense.pooler && frozen_pooler));
    let norm = dense.and_then(|dense| dense.norm).map(|norm| Layer {
        name: norm.name.to_owned(),
        in_body: None,
        inputs: None,
        outputs: hidden,
        bias: norm.bias,
    });
    let dense = dense.map(|dense| Layer {
        // The pooler is part of BERT's encoder, not of what Transformers puts on top.
        name: match dense.pooler {
            true => format!("{}.{}", architecture.prefix, dense.name),
            false => dense.name.to_owned(),
        },
        in_body: dense.pooler.then_some(dense.name),
        inputs: Some(hidden),
        outputs: hidden,
        bias: dense.bias,
    });
    let last = Layer {
        name: head.last.to_owned(),
        in_body: None,
        inputs: Some(hidden),
        outputs,
        bias: head.bias,
    };
    match outputs {
        0 => Vec::new(),
        _ => dense.into_iter().chain(norm).chain([last]).collect(),
    }
}

/// Number of parameters of the head that [`Head::load`] would make.
pub fn head_parameters(architecture: &Architecture, frozen_pooler: bool, outputs: usize) -> u64 {
    let layers = layers(architecture, frozen_pooler, outputs);
    layers
        .iter()
        .map(|layer| ((layer.inputs.unwrap_or(1) + usize::from(layer.bias)) * layer.outputs) as u64)
        .sum()
}

/// What a checkpoint has of the head that trains: as `from_pretrained` of Transformers' class takes it, tensor by
/// tensor, those of another shape aside.
pub struct HeadStart {
    /// The tensors of the head, in the order of [`Pass::head`].
    pub tensors: Vec<HeadTensor>,
    /// What the checkpoint calls each that it has and that fits.
    found: Vec<Option<String>>,
    /// What of the checkpoint's head is not taken, or not there, one sentence each.
    pub warnings: Vec<String>,
}

impl HeadStart {
    /// Looks through the header of `pretrained`'s weights for a head with `outputs` logits.
    pub fn of(pretrained: &Pretrained, outputs: usize) -> Self {
        let layers = layers(&pretrained.config, pretrained.frozen_pooler(), outputs);
        let tensors = tensors(&layers);
        let (mut found, mut warnings) = (Vec::new(), Vec::new());
        let weights = &pretrained.weights;
        let pooler = format!("{}.", pretrained.config.prefix);
        let own = |tensor: &HeadTensor| match tensor.name.strip_prefix(&pooler) {
            Some(pooler) => format!("{}{pooler}", pretrained.prefix),
            None => tensor.name.clone(),
        };
        let is_pooler = |tensor: &HeadTensor| tensor.name.contains("pooler");
        for tensor in &tensors {
            let name = own(tensor);
            let shape = weights.shape(&name);
            let fits = weights.require(&name, &tensor.shape).is_ok();
            found.push(fits.then(|| name.clone()));
            match shape {
                _ if fits => {}
                Some(shape) if shape != tensor.shape => warnings.push(format!(
                    "the checkpoint's {name} has shape {shape:?}, but this task needs {:?}: it is drawn anew",
                    tensor.shape
                )),
                Some(_) => warnings.push(format!(
                    "the checkpoint's {name} is not of floats: it is drawn anew"
                )),
                None => {
                    let part = |other: &HeadTensor| {
                        is_pooler(other) == is_pooler(tensor) && weights.contains(&own(other))
                    };
                    if let Some(other) = tensors.iter().find(|other| part(other)) {
                        warnings.push(format!(
                            "the checkpoint has {}, but no {name}: it is drawn anew",
                            own(other)
                        ));
                    }
                }
            }
        }
        for name in weights.names() {
            let of_a_head = ["classifier.", "pre_classifier.", "score."]
                .iter()
                .any(|start| name.starts_with(start));
            if outputs > 0 && of_a_head && !tensors.iter().any(|tensor| tensor.name == name) {
                warnings.push(format!(
                    "the checkpoint's {name} is not used: the head of this family has no such tensor"
                ));
            }
        }
        HeadStart {
            tensors,
            found,
            warnings,
        }
    }
}

/// The trained tensors of these layers: weight and bias of each.
fn tensors(layers: &[Layer]) -> Vec<HeadTensor> {
    let tensors = layers.iter().flat_map(|layer| {
        let Layer { name, .. } = layer;
        let weight = HeadTensor {
            name: format!("{name}.weight"),
            shape: [layer.outputs].into_iter().chain(layer.inputs).collect(),
        };
        let bias = layer.bias.then(|| HeadTensor {
            name: format!("{name}.bias"),
            shape: vec![layer.outputs],
        });
        std::iter::once(weight).chain(bias)
    });
    tensors.collect()
}

/// What stands between a token's hidden state and the logits. The names and the order of operations are those of
/// Transformers' `…ForSequenceClassification` and `…ForTokenClassification`.
#[derive(Clone, Debug)]
pub struct Head<B: Kernels> {
    /// BERT's pretrained pooler, frozen; none where the head trains its first layer itself.
    pooler: Option<Linear<B>>,
    /// The function behind the hidden layer, where there is one.
    function: Option<HeadFunction>,
    /// The norm behind that.
    norm: Option<NormPart>,
    input_dropout: bool,
    /// The trained layers, first to last.
    layers: Vec<Layer>,
    /// What the checkpoint has of the trained tensors.
    start: Vec<Option<Tensor<B, 2>>>,
    /// What it has and is not taken.
    warnings: Vec<String>,
    dropout: f32,
}

impl<B: Kernels> Head<B> {
    /// The head of `pretrained` with `outputs` logits, over the frozen `pooler` if there is one.
    pub fn load(
        pretrained: &Pretrained,
        pooler: Option<Linear<B>>,
        outputs: usize,
        device: &B::Device,
    ) -> Result<Self> {
        let config = &pretrained.config;
        let from = HeadStart::of(pretrained, outputs);
        let weights = &pretrained.weights;
        let start = from.tensors.iter().zip(&from.found).map(|(tensor, name)| {
            let load = |name: &String| tensor.load(weights, name, device);
            name.as_ref().map(load).transpose()
        });
        Ok(Head {
            pooler,
            function: config.head.dense.map(|dense| dense.function),
            norm: config.head.dense.and_then(|dense| dense.norm),
            input_dropout: config.head.input_dropout,
            layers: layers(config, pretrained.frozen_pooler(), outputs),
            start: start.collect::<Result<_>>()?,
            warnings: from.warnings,
            dropout: config.dropout.classifier,
        })
    }

    /// The trained tensors in the order of [`Pass::head`]: weight and bias of each layer.
    pub fn tensors(&self) -> Vec<HeadTensor> {
        tensors(&self.layers)
    }

    /// Which of the trained tensors are vectors: biases, and the scales of norms.
    pub fn vectors(&self) -> Vec<bool> {
        let layers = self.layers.iter();
        let tensors =
            layers.flat_map(|layer| [Some(layer.inputs.is_none()), layer.bias.then_some(true)]);
        tensors.flatten().collect()
    }

    /// What the base model's checkpoint has of each trained tensor.
    pub fn start(&self) -> &[Option<Tensor<B, 2>>] {
        &self.start
    }

    /// Whether the base model's checkpoint has nothing of the last layer.
    pub fn last_is_fresh(&self) -> bool {
        let last = self.layers.last();
        let tensors = last.map_or(0, |layer| 1 + usize::from(layer.bias));
        self.start.iter().rev().take(tensors).all(Option::is_none)
    }

    /// Whether the last layer has a bias.
    pub fn has_bias(&self) -> bool {
        self.layers.last().is_some_and(|layer| layer.bias)
    }

    /// The values that training starts from: the checkpoint's where it has them in this shape. Fresh ones are as
    /// Transformers initialises a head, weights normal with σ = 0.02, scales of norms one, biases zero; but where the whole last layer is
    /// fresh, its bias, if it has one, is `answer`, one value for each logit, if that is given.
    pub fn initial(
        &self,
        seed: u64,
        answer: Option<&[f32]>,
        device: &B::Device,
    ) -> Vec<Tensor<B, 2>> {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        let normal = Normal::new(0.0f32, 0.02).expect("a valid deviation");
        let fresh = self.layers.iter().flat_map(|layer| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(stream(layer.in_body.unwrap_or(&layer.name)));
            let weight = match layer.inputs {
                Some(inputs) => {
                    let weight: Vec<f32> = (0..inputs * layer.outputs)
                        .map(|_| normal.sample(&mut random))
                        .collect();
                    Tensor::from_data(TensorData::new(weight, [layer.outputs, inputs]), device)
                }
                None => Tensor::ones([1, layer.outputs], device),
            };
            let bias = layer
                .bias
                .then(|| Tensor::zeros([1, layer.outputs], device));
            std::iter::once(weight).chain(bias)
        });
        let values = self.start.iter().zip(fresh);
        let mut values: Vec<_> = values
            .map(|(start, fresh)| start.clone().unwrap_or(fresh))
            .collect();
        let fresh = self.has_bias() && self.last_is_fresh();
        if let (true, Some(answer), Some(bias)) = (fresh, answer, values.last_mut()) {
            *bias = Tensor::from_data(TensorData::new(answer.to_vec(), bias.dims()), device);
        }
        values
    }

    /// How many logits it gives.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.outputs)
    }

    /// The pretrained pooler, where it is frozen.
    pub(super) fn pooler(&self) -> Option<&Linear<B>> {
        self.pooler.as_ref()
    }

    /// Logits `[rows, outputs]` of the hidden states that it reads, `[rows, hidden]`: one of each sequence, or of each token.
    pub fn forward(&self, picked: Tensor<Ad<B>, 2>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let mut x = picked;
        if self.input_dropout {
            let site = pass.dropout(Site::Head(0), x.dims()[0], self.dropout);
            x = B::dropout(x, site);
        }
        let mut trained = pass.head.clone().into_iter();
        let hidden = match (&self.pooler, self.function) {
            (Some(pooler), _) => Some(pass.linear(x.clone(), &[pooler.parts()])),
            (None, Some(_)) => {
                let weight = trained.next().expect("a weight of the hidden layer");
                let hidden = x.clone().matmul(weight.transpose());
                Some(match self.layers[0].bias {
                    true => hidden + trained.next().expect("and its bias"),
                    false => hidden,
                })
            }
            (None, None) => None,
        };
        if let (Some(hidden), Some(function)) = (hidden, self.function) {
            x = match function {
                HeadFunction::Tanh => hidden.tanh(),
                HeadFunction::Relu => activation::relu(hidden),
                HeadFunction::Of(activation) => B::activation(hidden, activation),
            };
        }
        if let Some(norm) = &self.norm {
            let scale = trained.next().expect("a scale of the norm");
            let shift = norm.bias.then(|| trained.next().expect("and its shift"));
            x = normalised(x, norm, scale, shift);
        }
        let site = pass.dropout(Site::Head(1), x.dims()[0], self.dropout);
        x = B::dropout(x, site);
        let last = &pass.head[pass.head.len() - 1 - usize::from(self.has_bias())..];
        x = x.matmul(last[0].clone().transpose());
        match last.get(1) {
            Some(bias) => x + bias.clone(),
            None => x,
        }
    }
}

/// `x` under a norm that trains.
fn normalised<B: Kernels>(
    x: Tensor<Ad<B>, 2>,
    norm: &NormPart,
    scale: Tensor<Ad<B>, 2>,
    shift: Option<Tensor<Ad<B>, 2>>,
) -> Tensor<Ad<B>, 2> {
    let x = match norm.kind {
        NormKind::Layer => x.clone() - x.mean_dim(1),
        NormKind::RootMeanSquare => x,
    };
    let square = x.clone().powi_scalar(2).mean_dim(1);
    let scaled = x / (square + norm.epsilon).sqrt() * scale;
    match shift {
        Some(shift) => scaled + shift,
        None => scaled,
    }
}
