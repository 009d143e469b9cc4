//! What a Hugging Face `config.json` says of an encoder.

use std::path::Path;

use serde::Deserialize;

use crate::adapter::LinearInfo;
use crate::error::{Error, Result};
use crate::kernel::{Activation, AttentionShape};

/// A family of encoders that share one computation under different names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// BERT and its re-trainings (MiniLM, …).
    Bert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT: positions start behind the padding index, a two-layer head.
    Roberta,
    /// DistilBERT: no token types, no pooler, names of its own.
    DistilBert,
}

/// Where the parts of a layer are found.
pub struct Names {
    /// What checkpoints with a head put before every encoder tensor.
    pub prefix: &'static str,
    /// Path of layer `i` is `{layers}.{i}`.
    pub layers: &'static str,
    /// Query, key, value and output projection, feed-forward in and out, relative to the layer.
    pub linears: [&'static str; 6],
    /// The norm behind the attention and the one behind the feed-forward.
    pub norms: [&'static str; 2],
}

impl Family {
    /// The family's names.
    pub fn names(self) -> Names {
        match self {
            Family::Bert | Family::Roberta => Names {
                prefix: if self == Family::Bert {
                    "bert"
                } else {
                    "roberta"
                },
                layers: "encoder.layer",
                linears: [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense",
                ],
                norms: ["attention.output.LayerNorm", "output.LayerNorm"],
            },
            Family::DistilBert => Names {
                prefix: "distilbert",
                layers: "transformer.layer",
                linears: [
                    "attention.q_lin",
                    "attention.k_lin",
                    "attention.v_lin",
                    "attention.out_lin",
                    "ffn.lin1",
                    "ffn.lin2",
                ],
                norms: ["sa_layer_norm", "output_layer_norm"],
            },
        }
    }
}

/// The sizes of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Which names and which head.
    pub family: Family,
    /// Entries of the word embedding.
    pub vocabulary: usize,
    /// Entries of the position embedding.
    pub positions: usize,
    /// Entries of the token-type embedding; 0 where there is none.
    pub token_types: usize,
    /// The position of a sequence's first token.
    pub first_position: usize,
    /// Features of a token.
    pub hidden: usize,
    /// Features inside the feed-forward layer.
    pub intermediate: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Function inside the feed-forward layer.
    pub activation: Activation,
    /// ε of every layer norm.
    pub epsilon: f32,
    /// Dropout of embeddings and of each sublayer's output.
    pub hidden_dropout: f32,
    /// Dropout of the attention weights.
    pub attention_dropout: f32,
    /// Dropout in the head.
    pub classifier_dropout: f32,
}

impl EncoderConfig {
    /// Reads `config.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::user(format!("cannot read {}: {error}", path.display()))
                .help("a model folder holds config.json, model.safetensors and tokenizer.json")
        })?;
        let json: Json = serde_json::from_str(&text).map_err(|error| {
            Error::user(format!("{}: {error}", path.display())).help(
                "the file must be the config.json of a BERT, RoBERTa or DistilBERT model, whole",
            )
        })?;
        json.encoder(path)
    }

    /// The sizes of attention.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape::full(self.heads, self.hidden / self.heads)
    }

    /// The longest sequence there are positions for.
    pub fn max_length(&self) -> usize {
        self.positions - self.first_position
    }

    /// Every linear layer of the encoder in forward order, then the pooler if `pooler` says that it is
    /// there and frozen.
    pub fn linears(&self, pooler: bool) -> Vec<LinearInfo> {
        let names = self.family.names();
        let mut linears = Vec::new();
        for layer in 0..self.layers {
            for (i, name) in names.linears.iter().enumerate() {
                linears.push(LinearInfo {
                    path: format!("{}.{layer}.{name}", names.layers),
                    layer: Some(layer as u32),
                    inputs: if i == 5 {
                        self.intermediate
                    } else {
                        self.hidden
                    },
                    outputs: if i == 4 {
                        self.intermediate
                    } else {
                        self.hidden
                    },
                });
            }
        }
        if pooler {
            linears.push(LinearInfo {
                path: "pooler.dense".to_owned(),
                layer: None,
                inputs: self.hidden,
                outputs: self.hidden,
            });
        }
        linears
    }

    /// Floating-point operations of the attention itself (`QKᵀ` and `PV`) for one token of a sequence of
    /// `length` tokens, over all layers.
    pub fn attention_flops(&self, length: usize) -> u64 {
        4 * (length * self.hidden * self.layers) as u64
    }
}

/// The keys of `config.json` that matter here. DistilBERT has names of its own for most.
#[derive(Deserialize)]
struct Json {
    model_type: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: Option<usize>,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "activation")]
    hidden_act: Activation,
    #[serde(default)]
    layer_norm_eps: Option<f64>,
    #[serde(default, alias = "dropout")]
    hidden_dropout_prob: f64,
    #[serde(default, alias = "attention_dropout")]
    attention_probs_dropout_prob: f64,
    #[serde(default)]
    classifier_dropout: Option<f64>,
    #[serde(default)]
    seq_classif_dropout: Option<f64>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

impl Json {
    fn encoder(self, path: &Path) -> Result<EncoderConfig> {
        let path = path.display();
        let refuse = |key: &str, found: String, help: &str| {
            Err(Error::user(format!("{path}: {key} is {found}")).help(help))
        };
        let family = match self.model_type.as_str() {
            "bert" => Family::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            "distilbert" => Family::DistilBert,
            other => {
                return refuse(
                    "model_type",
                    format!("\"{other}\""),
                    "the supported families are bert, roberta (xlm-roberta, camembert) and distilbert",
                );
            }
        };
        if let Some(kind) = self
            .position_embedding_type
            .filter(|kind| kind != "absolute")
        {
            let help = "only absolute position embeddings are supported";
            return refuse("position_embedding_type", format!("\"{kind}\""), help);
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
        ];
        for (key, size) in sizes {
            if size == 0 {
                return refuse(key, "0".to_owned(), "every size of a model is at least 1");
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse(
                "hidden_size",
                self.hidden_size.to_string(),
                &format!(
                    "it must be a multiple of num_attention_heads ({})",
                    self.num_attention_heads
                ),
            );
        }
        let first_position = match family {
            Family::Roberta => self.pad_token_id.unwrap_or(1) + 1,
            Family::Bert | Family::DistilBert => 0,
        };
        if self.max_position_embeddings <= first_position {
            let found = self.max_position_embeddings.to_string();
            return refuse(
                "max_position_embeddings",
                found,
                "there is no room for a single token",
            );
        }
        let probabilities = [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
            (
                "seq_classif_dropout",
                self.seq_classif_dropout.unwrap_or(0.0),
            ),
        ];
        for (key, probability) in probabilities {
            if !(0.0..1.0).contains(&probability) {
                return refuse(
                    key,
                    probability.to_string(),
                    "a probability of dropout is in [0, 1)",
                );
            }
        }
        let classifier_dropout = match family {
            // Transformers' default for the class.
            Family::DistilBert => self.seq_classif_dropout.unwrap_or(0.2),
            Family::Bert | Family::Roberta => {
                self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
            }
        };
        Ok(EncoderConfig {
            family,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            token_types: match family {
                Family::DistilBert => 0,
                Family::Bert | Family::Roberta => self.type_vocab_size.unwrap_or(2),
            },
            first_position,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps.unwrap_or(1e-12) as f32,
            hidden_dropout: self.hidden_dropout_prob as f32,
            attention_dropout: self.attention_probs_dropout_prob as f32,
            classifier_dropout: classifier_dropout as f32,
        })
    }
}
