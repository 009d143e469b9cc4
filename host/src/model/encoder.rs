//! The encoder: embeddings and post-norm transformer layers (Vaswani et al. 2017, Devlin et al. 2019).

use burn::tensor::{Int, Tensor};

use super::{EncoderConfig, Linear, Weights};
use crate::adapter::{LinearInfo, Pass};
use crate::error::Result;
use crate::kernel::{Ad, Kernels, Sequences};

/// Packed token ids of a batch, on the device.
#[derive(Clone, Debug)]
pub struct Input<B: Kernels> {
    /// Vocabulary indices, `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Token types, `[tokens]`.
    pub types: Tensor<B, 1, Int>,
    /// Position of each token in its sequence, from 0, `[tokens]`.
    pub positions: Tensor<B, 1, Int>,
    /// Where each sequence lies.
    pub sequences: Sequences,
}

/// Scale and shift of a layer norm.
#[derive(Clone, Debug)]
struct Norm<B: Kernels> {
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f32,
}

impl<B: Kernels> Norm<B> {
    fn load(
        weights: &Weights,
        name: &str,
        config: &EncoderConfig,
        device: &B::Device,
    ) -> Result<Self> {
        // TensorFlow's first checkpoints say gamma and beta.
        let [weight, bias] = if weights.contains(&format!("{name}.gamma")) {
            ["gamma", "beta"]
        } else {
            ["weight", "bias"]
        };
        Ok(Norm {
            gamma: weights.tensor(&format!("{name}.{weight}"), [config.hidden], device)?,
            beta: weights.tensor(&format!("{name}.{bias}"), [config.hidden], device)?,
            epsilon: config.epsilon,
        })
    }

    fn forward(&self, x: Tensor<Ad<B>, 2>, residual: Option<Tensor<Ad<B>, 2>>) -> Tensor<Ad<B>, 2> {
        B::add_layer_norm(x, residual, &self.gamma, &self.beta, self.epsilon)
    }
}

#[derive(Clone, Debug)]
struct Layer<B: Kernels> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    projection: Linear<B>,
    attention_norm: Norm<B>,
    up: Linear<B>,
    down: Linear<B>,
    output_norm: Norm<B>,
}

impl<B: Kernels> Layer<B> {
    fn forward(
        &self,
        x: Tensor<Ad<B>, 2>,
        sequences: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let q = self.query.forward(x.clone(), pass);
        let k = self.key.forward(x.clone(), pass);
        let v = self.value.forward(x.clone(), pass);
        let dropout = pass.dropout(config.attention_dropout);
        let attended = B::packed_attention(q, k, v, sequences, config.attention(), dropout);
        let attended = self.projection.forward(attended, pass);
        let attended = B::dropout(attended, pass.dropout(config.hidden_dropout));
        let x = self.attention_norm.forward(attended, Some(x));

        let inner = B::activation(self.up.forward(x.clone(), pass), config.activation);
        let inner = self.down.forward(inner, pass);
        let inner = B::dropout(inner, pass.dropout(config.hidden_dropout));
        self.output_norm.forward(inner, Some(x))
    }
}

/// Embeddings and layers, all frozen; what trains comes in with the [`Pass`].
#[derive(Clone, Debug)]
pub struct Encoder<B: Kernels> {
    config: EncoderConfig,
    words: Tensor<B, 2>,
    positions: Tensor<B, 2>,
    types: Option<Tensor<B, 2>>,
    embedding_norm: Norm<B>,
    layers: Vec<Layer<B>>,
}

impl<B: Kernels> Encoder<B> {
    /// Loads the encoder. `module_of` tells which linears are adapted modules.
    pub fn load(
        config: &EncoderConfig,
        weights: &Weights,
        prefix: &str,
        linears: &[LinearInfo],
        module_of: &[Option<usize>],
        device: &B::Device,
    ) -> Result<Self> {
        let names = config.family.names();
        let embedding = |name: &str, entries: usize| {
            let name = format!("{prefix}embeddings.{name}.weight");
            weights.tensor::<B, 2>(&name, [entries, config.hidden], device)
        };
        let layers = (0..config.layers).map(|layer| {
            let linear = |which: usize| {
                let index = layer * names.linears.len() + which;
                Linear::load(weights, prefix, &linears[index], module_of[index], device)
            };
            let norm = |which: usize| {
                let name = format!("{prefix}{}.{layer}.{}", names.layers, names.norms[which]);
                Norm::load(weights, &name, config, device)
            };
            Ok(Layer {
                query: linear(0)?,
                key: linear(1)?,
                value: linear(2)?,
                projection: linear(3)?,
                attention_norm: norm(0)?,
                up: linear(4)?,
                down: linear(5)?,
                output_norm: norm(1)?,
            })
        });
        Ok(Encoder {
            config: config.clone(),
            words: embedding("word_embeddings", config.vocabulary)?,
            positions: embedding("position_embeddings", config.positions)?,
            types: (config.token_types > 0)
                .then(|| embedding("token_type_embeddings", config.token_types))
                .transpose()?,
            embedding_norm: Norm::load(
                weights,
                &format!("{prefix}embeddings.LayerNorm"),
                config,
                device,
            )?,
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The hidden states of the last layer, `[tokens, hidden]`.
    pub fn forward(&self, input: &Input<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let config = &self.config;
        let first = config.first_position as i64;
        let words = self.words.clone().select(0, input.ids.clone());
        let mut rest = self
            .positions
            .clone()
            .select(0, input.positions.clone() + first);
        if let Some(types) = &self.types {
            rest = rest + types.clone().select(0, input.types.clone());
        }
        let rest = Some(Tensor::from_inner(rest));
        let x = self.embedding_norm.forward(Tensor::from_inner(words), rest);
        let mut x = B::dropout(x, pass.dropout(config.hidden_dropout));
        for layer in &self.layers {
            x = layer.forward(x, &input.sequences, config, pass);
        }
        x
    }
}
