//! The encoder: embeddings and post-norm transformer layers (Vaswani et al. 2017, Devlin et al. 2019).

use burn::tensor::{Int, Tensor, TensorData};

use super::{EncoderConfig, Linear, Weights};
use crate::adapter::{LinearInfo, Pass, Site};
use crate::error::Result;
use crate::kernel::{Ad, AttentionLayout, Kernels, Norm, NormKind, Projected, Sequences};

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

/// What a checkpoint calls the scale and the shift of the layer norm `name`.
pub(super) fn norm_names(weights: &Weights, name: &str) -> [String; 2] {
    // TensorFlow's first checkpoints say gamma and beta.
    let [weight, bias] = if weights.contains(&format!("{name}.gamma")) {
        ["gamma", "beta"]
    } else {
        ["weight", "bias"]
    };
    [format!("{name}.{weight}"), format!("{name}.{bias}")]
}

/// Loads a layer norm's scale and shift.
fn load_norm<B: Kernels>(
    weights: &Weights,
    name: &str,
    config: &EncoderConfig,
    device: &B::Device,
) -> Result<Norm<B>> {
    let [weight, bias] = norm_names(weights, name);
    Ok(Norm {
        kind: NormKind::Layer,
        gamma: weights.tensor(&weight, [config.hidden], device)?,
        beta: Some(weights.tensor(&bias, [config.hidden], device)?),
        epsilon: config.epsilon,
    })
}

#[derive(Clone, Debug)]
struct Layer<B: Kernels> {
    /// Its number, from 0.
    index: u32,
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
    /// All tokens' hidden states from all tokens'.
    fn forward(
        &self,
        x: Tensor<Ad<B>, 2>,
        sequences: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let layers = [&self.query, &self.key, &self.value].map(Linear::parts);
        let projected = Projected::Joint(pass.linear(x.clone(), &layers));
        self.finish(projected, x, sequences.clone(), sequences, config, pass)
    }

    /// The first tokens' hidden states, `[sequences, hidden]`, from all tokens': queries, output and
    /// feed-forward of the others are nowhere read, except by a scorer.
    fn firsts(
        &self,
        x: Tensor<Ad<B>, 2>,
        sequences: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let firsts = first_tokens::<B>(sequences, &x.device());
        let pairs = pass.linear(x.clone(), &[&self.key, &self.value].map(Linear::parts));
        if pass.observes() {
            self.measure(&x, &pairs, sequences, config, pass);
        }
        let residual = x.select(0, firsts);
        pass.unobserved(|pass| {
            let queries = pass.linear(residual.clone(), &[self.query.parts()]);
            let projected = Projected::Split { queries, pairs };
            let queries = Sequences::single(sequences.count());
            self.finish(projected, residual, queries, sequences, config, pass)
        })
    }

    /// Measures the modules that [`firsts`](Self::firsts) runs for the first tokens alone, for all tokens: beside
    /// the graph, so that gradients and dropout are those of a pass that measures nothing.
    fn measure(
        &self,
        x: &Tensor<Ad<B>, 2>,
        pairs: &Tensor<Ad<B>, 2>,
        sequences: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) {
        let detached = |tensor: &Tensor<Ad<B>, 2>| Tensor::from_inner(tensor.clone().inner());
        let rest = [&self.projection, &self.up, &self.down];
        let is_module = |linear: &Linear<B>| linear.module.is_some();
        let of_rest = rest.into_iter().any(is_module);
        if !of_rest && !is_module(&self.query) {
            return;
        }
        let x = detached(x);
        let outputs = pass.observes_outputs();
        pass.beside(|pass| {
            if !outputs && !of_rest {
                return pass.inputs(&x, &[self.query.parts()]);
            }
            let queries = pass.linear(x.clone(), &[self.query.parts()]);
            if of_rest {
                let pairs = detached(pairs);
                let projected = Projected::Split { queries, pairs };
                let (inner, _) =
                    self.inner(projected, x, sequences.clone(), sequences, config, pass);
                // Nobody reads what comes after.
                match outputs {
                    true => drop(pass.linear(inner, &[self.down.parts()])),
                    false => pass.inputs(&inner, &[self.down.parts()]),
                }
            }
        });
    }

    /// From queries, keys and values to the hidden states of the queries' tokens, whose input is `residual`.
    fn finish(
        &self,
        projected: Projected<B>,
        residual: Tensor<Ad<B>, 2>,
        queries: Sequences,
        pairs: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let (inner, x) = self.inner(projected, residual, queries, pairs, config, pass);
        let inner = pass.linear(inner, &[self.down.parts()]);
        let dropout = pass.dropout(Site::FeedForward(self.index), config.hidden_dropout);
        let inner = B::dropout(inner, dropout);
        B::add_norm(inner, Some(x), &self.output_norm)
    }

    /// The same up to the input of the feed-forward's second half, and what is added to its output.
    fn inner(
        &self,
        projected: Projected<B>,
        residual: Tensor<Ad<B>, 2>,
        queries: Sequences,
        pairs: &Sequences,
        config: &EncoderConfig,
        pass: &mut Pass<B>,
    ) -> (Tensor<Ad<B>, 2>, Tensor<Ad<B>, 2>) {
        let layout = AttentionLayout {
            queries,
            pairs: pairs.clone(),
            shape: config.attention(),
        };
        let site = |site: fn(u32) -> Site| site(self.index);
        let dropout = pass.dropout(site(Site::Attention), config.attention_dropout);
        let attended = B::packed_attention(projected, &layout, dropout);
        let attended = pass.linear(attended, &[self.projection.parts()]);
        let dropout = pass.dropout(site(Site::AttentionOutput), config.hidden_dropout);
        let attended = B::dropout(attended, dropout);
        let x = B::add_norm(attended, Some(residual), &self.attention_norm);

        let inner = pass.linear(x.clone(), &[self.up.parts()]);
        (B::activation(inner, config.activation), x)
    }
}

/// The positions of the first tokens, on the device.
fn first_tokens<B: Kernels>(sequences: &Sequences, device: &B::Device) -> Tensor<Ad<B>, 1, Int> {
    let firsts = sequences.firsts().iter().map(|token| *token as i64);
    let firsts = TensorData::new(firsts.collect::<Vec<i64>>(), [sequences.count()]);
    Tensor::from_data(firsts, device)
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
            weights.rows::<B>(&name, [entries, config.hidden], device)
        };
        let layers = (0..config.layers).map(|layer| {
            let linear = |which: usize| {
                let index = layer * names.linears.len() + which;
                Linear::load(weights, prefix, &linears[index], module_of[index], device)
            };
            let norm = |which: usize| {
                let name = format!("{prefix}{}.{layer}.{}", names.layers, names.norms[which]);
                load_norm(weights, &name, config, device)
            };
            Ok(Layer {
                index: layer as u32,
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
            embedding_norm: load_norm(
                weights,
                &format!("{prefix}embeddings.LayerNorm"),
                config,
                device,
            )?,
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The hidden states of all tokens after the first `depth` layers, `[tokens, hidden]`.
    pub fn prefix(&self, input: &Input<B>, depth: usize, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let x = self.embed(input, pass);
        self.run(x, 0..depth, &input.sequences, pass)
    }

    /// The last layer's hidden states of the first token of each sequence, `[sequences, hidden]`, from all
    /// tokens' after the first `depth` layers: what a head over them reads, and nothing else is computed.
    pub fn firsts(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        match self.layers.split_last() {
            Some((last, below)) if depth <= below.len() => {
                let x = self.run(x, depth..below.len(), sequences, pass);
                last.firsts(x, sequences, &self.config, pass)
            }
            _ => {
                let firsts = first_tokens::<B>(sequences, &x.device());
                x.select(0, firsts)
            }
        }
    }

    fn run(
        &self,
        mut x: Tensor<Ad<B>, 2>,
        layers: std::ops::Range<usize>,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        for layer in &self.layers[layers] {
            x = layer.forward(x, sequences, &self.config, pass);
        }
        x
    }

    /// The normalised sum of the embeddings, `[tokens, hidden]`.
    fn embed(&self, input: &Input<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
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
        let x = B::add_norm(Tensor::from_inner(words), rest, &self.embedding_norm);
        B::dropout(x, pass.dropout(Site::Embeddings, config.hidden_dropout))
    }
}
