//! The head over the first token's hidden state: it trains fully.

use burn::tensor::{Tensor, TensorData, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{EncoderConfig, Family, Linear};
use crate::adapter::{Pass, Site, stream};
use crate::kernel::{Ad, Kernels};

/// A tensor of the head that trains. One-dimensional ones are kept as `[1, n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadTensor {
    /// Its name in a checkpoint of Transformers: `classifier.weight`.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
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

/// Number of parameters of the head that [`Head::new`] would make.
pub fn head_parameters(config: &EncoderConfig, frozen_pooler: bool, outputs: usize) -> u64 {
    let layers = layers(config, frozen_pooler, outputs);
    layers
        .iter()
        .map(|(_, inputs, outputs)| ((inputs + 1) * outputs) as u64)
        .sum()
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
    dropout: f32,
}

impl<B: Kernels> Head<B> {
    /// The head of `config`'s family with `outputs` logits. BERT trains the pooler too where none is given.
    pub fn new(config: &EncoderConfig, pooler: Option<Linear<B>>, outputs: usize) -> Self {
        let layers = layers(config, pooler.is_some(), outputs);
        Head {
            family: config.family,
            pooler,
            layers,
            dropout: config.classifier_dropout,
        }
    }

    /// The trained tensors in the order of [`Pass::head`]: weight and bias of each layer.
    pub fn tensors(&self) -> Vec<HeadTensor> {
        let tensors = self.layers.iter().flat_map(|(name, inputs, outputs)| {
            // The pooler is part of BERT's encoder, not of what Transformers puts on top.
            let name = match (self.family, *name) {
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

    /// Fresh values: weights normal with σ = 0.02, biases zero, as Transformers initialises a head.
    pub fn initial(&self, seed: u64, device: &B::Device) -> Vec<Tensor<B, 2>> {
        let normal = Normal::new(0.0f32, 0.02).expect("a valid deviation");
        let values = self.layers.iter().flat_map(|(name, inputs, outputs)| {
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
        values.collect()
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
