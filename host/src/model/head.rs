//! The head over the first token's hidden state: it trains fully.

use burn::tensor::{Tensor, TensorData, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{EncoderConfig, Family, Linear, Pretrained, Weights};
use crate::adapter::{Pass, Site, stream};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels};

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

/// The trained layers of a head: name, features in and out.
fn layers(
    config: &EncoderConfig,
    frozen_pooler: bool,
    outputs: usize,
) -> Vec<(&'static str, usize, usize)> {
    let hidden = config.hidden;
    let (first, last) = match config.family {
        Family::Bert if frozen_pooler => return vec![("classifier", hidden, outputs)],
        Family::Bert => ("pooler.dense", "classifier"),
        Family::Roberta => ("classifier.dense", "classifier.out_proj"),
        Family::DistilBert => ("pre_classifier", "classifier"),
    };
    vec![(first, hidden, hidden), (last, hidden, outputs)]
}

/// Number of parameters of the head that [`Head::load`] would make.
pub fn head_parameters(config: &EncoderConfig, frozen_pooler: bool, outputs: usize) -> u64 {
    let layers = layers(config, frozen_pooler, outputs);
    layers
        .iter()
        .map(|(_, inputs, outputs)| ((inputs + 1) * outputs) as u64)
        .sum()
}

/// What a checkpoint has of the head that trains: as `AutoModelForSequenceClassification.from_pretrained` takes
/// it, tensor by tensor, those of another shape aside.
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
        let config = &pretrained.config;
        let layers = layers(config, pretrained.frozen_pooler(), outputs);
        let tensors = tensors(config.family, &layers);
        let (mut found, mut warnings) = (Vec::new(), Vec::new());
        let weights = &pretrained.weights;
        let own = |tensor: &HeadTensor| match tensor.name.strip_prefix("bert.") {
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
            let of_a_head = name.starts_with("classifier.") || name.starts_with("pre_classifier.");
            if of_a_head && !tensors.iter().any(|tensor| tensor.name == name) {
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
fn tensors(family: Family, layers: &[(&'static str, usize, usize)]) -> Vec<HeadTensor> {
    let tensors = layers.iter().flat_map(|(name, inputs, outputs)| {
        // The pooler is part of BERT's encoder, not of what Transformers puts on top.
        let name = match (family, *name) {
            (Family::Bert, "pooler.dense") => "bert.pooler.dense",
            (_, name) => name,
        };
        [
            HeadTensor {
                name: format!("{name}.weight"),
                shape: vec![*outputs, *inputs],
            },
            HeadTensor {
                name: format!("{name}.bias"),
                shape: vec![*outputs],
            },
        ]
    });
    tensors.collect()
}

/// What stands between the first token's hidden state and the logits. The names and the order of
/// operations are those of Transformers' `…ForSequenceClassification`.
#[derive(Clone, Debug)]
pub struct Head<B: Kernels> {
    family: Family,
    /// BERT's pretrained pooler, frozen; none where the head trains its first layer itself.
    pooler: Option<Linear<B>>,
    /// Names of the trained layers, first to last.
    layers: Vec<(&'static str, usize, usize)>,
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
            family: config.family,
            pooler,
            layers: layers(config, pretrained.frozen_pooler(), outputs),
            start: start.collect::<Result<_>>()?,
            warnings: from.warnings,
            dropout: config.classifier_dropout,
        })
    }

    /// The trained tensors in the order of [`Pass::head`]: weight and bias of each layer.
    pub fn tensors(&self) -> Vec<HeadTensor> {
        tensors(self.family, &self.layers)
    }

    /// What the base model's checkpoint has of each trained tensor.
    pub fn start(&self) -> &[Option<Tensor<B, 2>>] {
        &self.start
    }

    /// Whether the base model's checkpoint has nothing of the last layer.
    pub fn last_is_fresh(&self) -> bool {
        self.start.iter().rev().take(2).all(Option::is_none)
    }

    /// The values that training starts from: the checkpoint's where it has them in this shape. Fresh ones are as
    /// Transformers initialises a head, weights normal with σ = 0.02, biases zero; but where the whole last layer is
    /// fresh, its bias is `answer`, one value for each logit, if that is given.
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
        let fresh = self.layers.iter().flat_map(|(name, inputs, outputs)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(stream(name));
            let weight: Vec<f32> = (0..inputs * outputs)
                .map(|_| normal.sample(&mut random))
                .collect();
            [
                Tensor::from_data(TensorData::new(weight, [*outputs, *inputs]), device),
                Tensor::zeros([1, *outputs], device),
            ]
        });
        let values = self.start.iter().zip(fresh);
        let mut values: Vec<_> = values
            .map(|(start, fresh)| start.clone().unwrap_or(fresh))
            .collect();
        if let (true, Some(answer), Some(bias)) = (self.last_is_fresh(), answer, values.last_mut())
        {
            *bias = Tensor::from_data(TensorData::new(answer.to_vec(), bias.dims()), device);
        }
        values
    }

    /// Logits `[sequences, outputs]` from the hidden states of the first tokens, `[sequences, hidden]`.
    pub fn forward(&self, firsts: Tensor<Ad<B>, 2>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let mut x = firsts;
        let layer = |index: usize, x: Tensor<Ad<B>, 2>, pass: &Pass<B>| {
            x.matmul(pass.head[2 * index].clone().transpose()) + pass.head[2 * index + 1].clone()
        };
        match (self.family, &self.pooler) {
            (Family::Bert, Some(pooler)) => {
                x = pass.linear(x, &[pooler.parts()]).tanh();
                x = B::dropout(x, pass.dropout(Site::Head(1), self.dropout));
                layer(0, x, pass)
            }
            (Family::Bert, None) => {
                x = layer(0, x, pass).tanh();
                x = B::dropout(x, pass.dropout(Site::Head(1), self.dropout));
                layer(1, x, pass)
            }
            (Family::Roberta, _) => {
                x = B::dropout(x, pass.dropout(Site::Head(0), self.dropout));
                x = layer(0, x, pass).tanh();
                x = B::dropout(x, pass.dropout(Site::Head(1), self.dropout));
                layer(1, x, pass)
            }
            (Family::DistilBert, _) => {
                x = activation::relu(layer(0, x, pass));
                x = B::dropout(x, pass.dropout(Site::Head(1), self.dropout));
                layer(1, x, pass)
            }
        }
    }
}
