//! What a Hugging Face `config.json` says of an encoder.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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
        Json::new(&text, path)?.encoder()
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
        let layers = (0..self.layers).flat_map(|layer| self.linears_of(layer));
        let pooler = pooler.then(|| LinearInfo {
            path: "pooler.dense".to_owned(),
            layer: None,
            inputs: self.hidden,
            outputs: self.hidden,
        });
        layers.chain(pooler).collect()
    }

    /// The linear layers of transformer layer `layer` in forward order.
    pub fn linears_of(&self, layer: usize) -> [LinearInfo; 6] {
        let names = self.family.names();
        std::array::from_fn(|i| LinearInfo {
            path: format!("{}.{layer}.{}", names.layers, names.linears[i]),
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
        })
    }

    /// Floating-point operations of the attention itself (`QKᵀ` and `PV`) for one token of a sequence of
    /// `length` tokens, over all layers.
    pub fn attention_flops(&self, length: usize) -> u64 {
        4 * (length * self.hidden * self.layers) as u64
    }
}

/// A `config.json`. Keys have the names, and where they are absent the defaults, of the family's class in
/// Transformers; a key that changes what is computed here, and is not followed, is refused by name.
struct Json {
    at: String,
    map: Map<String, Value>,
}

const ADD: &str =
    "add the model's family to the file: `\"model_type\": \"bert\"`, \"roberta\" or \"distilbert\"";

impl Json {
    fn new(text: &str, path: &Path) -> Result<Self> {
        let at = path.display().to_string();
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Json { at, map }),
            found => {
                let why = found
                    .err()
                    .map_or("not an object".to_owned(), |error| error.to_string());
                Err(Error::user(format!("{at}: {why}")).help(
                    "the file must be the config.json of a BERT, RoBERTa or DistilBERT model, whole",
                ))
            }
        }
    }

    fn refuse<T>(&self, key: &str, found: impl Display, help: &str) -> Result<T> {
        Err(Error::user(format!("{}: {key} is {found}", self.at)).help(help))
    }

    /// The key that is there of `names`, which are several for one thing: all that are there must agree.
    fn find<'a>(&self, names: &[&'a str]) -> Result<Option<(&'a str, &Value)>> {
        let mut found: Option<(&str, &Value)> = None;
        for name in names {
            let Some(value) = self.map.get(*name) else {
                continue;
            };
            if let Some((other, first)) = found.filter(|(_, first)| *first != value) {
                let both = format!("{value}, but {other}, which means the same, is {first}");
                return self.refuse(name, both, "leave one of the two out");
            }
            found = found.or(Some((name, value)));
        }
        Ok(found)
    }

    fn get<T: DeserializeOwned>(&self, names: &[&str], expected: &str, default: T) -> Result<T> {
        let Some((key, value)) = self.find(names)? else {
            return Ok(default);
        };
        match T::deserialize(value) {
            Ok(value) => Ok(value),
            Err(_) => self.refuse(key, value, &format!("expected {expected}")),
        }
    }

    /// A size: at least 1, and no more than can be computed with.
    fn size(&self, names: &[&str], default: usize) -> Result<usize> {
        let size = self.get(names, "a whole number", default)?;
        let key = self.find(names)?.map_or(names[0], |(key, _)| key);
        match size {
            0 => self.refuse(key, size, "every size of a model is at least 1"),
            _ if size > 1 << 31 => {
                self.refuse(key, size, "no model is that large: the file is damaged")
            }
            _ => Ok(size),
        }
    }

    fn dropout(&self, key: &str, default: f64) -> Result<f64> {
        let probability = self.get(&[key], "a probability of dropout", default)?;
        if (0.0..1.0).contains(&probability) {
            return Ok(probability);
        }
        self.refuse(key, probability, "a probability of dropout is in [0, 1)")
    }

    /// Refuses `key` where it has another value than `plain`, or than null.
    fn only(&self, key: &str, plain: Value, help: &str) -> Result<()> {
        match self.map.get(key) {
            Some(found) if *found != plain && !found.is_null() => self.refuse(key, found, help),
            _ => Ok(()),
        }
    }

    fn family(&self) -> Result<Family> {
        let supported =
            "the supported families are bert, roberta (xlm-roberta, camembert) and distilbert";
        let Some(found) = self.map.get("model_type").filter(|found| !found.is_null()) else {
            return self.family_of_architectures();
        };
        match found.as_str() {
            Some("bert") => Ok(Family::Bert),
            Some("roberta" | "xlm-roberta" | "camembert") => Ok(Family::Roberta),
            Some("distilbert") => Ok(Family::DistilBert),
            _ => self.refuse("model_type", found, supported),
        }
    }

    /// The family by the class that the model was saved as, for files that lack `model_type`.
    fn family_of_architectures(&self) -> Result<Family> {
        let classes: Vec<String> = self.get(&["architectures"], "a list of classes", Vec::new())?;
        let of = |class: &str| {
            let known = [
                ("Bert", Family::Bert),
                ("Roberta", Family::Roberta),
                ("XLMRoberta", Family::Roberta),
                ("Camembert", Family::Roberta),
                ("DistilBert", Family::DistilBert),
            ];
            let mut known = known.into_iter();
            let is = |start: &str| {
                let rest = class.strip_prefix(start);
                rest.is_some_and(|rest| rest.starts_with("For") || rest == "Model")
            };
            known.find(|(start, _)| is(start)).map(|(_, family)| family)
        };
        match classes.first().map(|class| (class, of(class))) {
            Some((_, Some(family))) => Ok(family),
            Some((class, None)) => Err(Error::user(format!(
                "{}: model_type is missing, and architectures has {class}, which is of no supported family",
                self.at
            ))
            .help(ADD)),
            None => Err(Error::user(format!(
                "{}: model_type is missing, and so is architectures",
                self.at
            ))
            .help(ADD)),
        }
    }

    fn activation(&self, key: &str) -> Result<Activation> {
        let name: String = self.get(&[key], "the name of an activation", "gelu".to_owned())?;
        match name.as_str() {
            // Other ways to write the same functions.
            "gelu_python" => return Ok(Activation::Gelu),
            "gelu_fast" => return Ok(Activation::GeluNew),
            _ => {}
        }
        match Activation::deserialize(Value::from(name.as_str())) {
            Ok(activation) => Ok(activation),
            Err(_) => self.refuse(
                key,
                format!("\"{name}\""),
                "the supported activations are gelu, gelu_new (gelu_pytorch_tanh, gelu_fast), relu and silu (swish)",
            ),
        }
    }

    /// What would make another model of it.
    fn refuse_variants(&self) -> Result<()> {
        let plain = "only plain encoders are supported";
        for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            self.only(key, Value::from(false), plain)?;
        }
        self.only(
            "position_embedding_type",
            Value::from("absolute"),
            "only absolute position embeddings are supported",
        )?;
        self.only("pruned_heads", Value::Object(Map::new()), plain)?;
        self.only(
            "quantization_config",
            Value::Null,
            "only weights in f32, f16 and bf16 are read: save the model without quantisation",
        )?;
        if let Some(code) = self.map.get("auto_map").filter(|code| !code.is_null()) {
            tracing::warn!(
                "{}: auto_map names code of the model's own ({code}), which is not run: it is computed as a plain \
                 model of its family",
                self.at
            );
        }
        Ok(())
    }

    fn encoder(self) -> Result<EncoderConfig> {
        let family = self.family()?;
        self.refuse_variants()?;
        // What the family's configuration class calls its sizes, and how deep it is by default.
        let distilled = family == Family::DistilBert;
        let (hidden_names, inner_name, layer_names, head_names, layers): (&[_], _, &[_], &[_], _) =
            if distilled {
                (
                    &["dim", "hidden_size"],
                    "hidden_dim",
                    &["n_layers", "num_hidden_layers"],
                    &["n_heads", "num_attention_heads"],
                    6,
                )
            } else {
                (
                    &["hidden_size"],
                    "intermediate_size",
                    &["num_hidden_layers"],
                    &["num_attention_heads"],
                    12,
                )
            };
        let vocabulary = match family {
            Family::Bert | Family::DistilBert => 30_522,
            // XLM-RoBERTa's and CamemBERT's classes have BERT's number.
            Family::Roberta if self.map.get("model_type") == Some(&Value::from("roberta")) => {
                50_265
            }
            Family::Roberta => 30_522,
        };
        let vocabulary = self.size(&["vocab_size"], vocabulary)?;
        let hidden = self.size(hidden_names, 768)?;
        let heads = self.size(head_names, 12)?;
        if !hidden.is_multiple_of(heads) {
            let help = format!("it must be a multiple of {} ({heads})", head_names[0]);
            return self.refuse(hidden_names[0], hidden, &help);
        }
        let positions = self.size(&["max_position_embeddings"], 512)?;
        let first_position = match family {
            Family::Bert | Family::DistilBert => 0,
            Family::Roberta => {
                let pad: usize = self.get(
                    &["pad_token_id"],
                    "a token's number: positions count from it",
                    1,
                )?;
                pad.saturating_add(1)
            }
        };
        if positions <= first_position {
            let help = format!(
                "there is no room for a single token: positions count from {first_position}"
            );
            return self.refuse("max_position_embeddings", positions, &help);
        }
        let epsilon = match family {
            // Fixed in its layers.
            Family::DistilBert => 1e-12,
            _ => self.get(&["layer_norm_eps"], "a small number", 1e-12)?,
        };
        if !(epsilon > 0.0 && epsilon < 1.0) {
            return self.refuse("layer_norm_eps", epsilon, "expected a small number above 0");
        }
        let (hidden_dropout, attention_dropout, activation) = if distilled {
            ("dropout", "attention_dropout", "activation")
        } else {
            (
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "hidden_act",
            )
        };
        let hidden_dropout = self.dropout(hidden_dropout, 0.1)?;
        let attention_dropout = self.dropout(attention_dropout, 0.1)?;
        let classifier_dropout = match (distilled, self.map.get("classifier_dropout")) {
            (true, _) => self.dropout("seq_classif_dropout", 0.2)?,
            (false, None | Some(Value::Null)) => hidden_dropout,
            (false, Some(_)) => self.dropout("classifier_dropout", 0.1)?,
        };
        Ok(EncoderConfig {
            family,
            vocabulary,
            positions,
            token_types: if distilled {
                0
            } else {
                self.size(&["type_vocab_size"], 2)?
            },
            first_position,
            hidden,
            intermediate: self.size(&[inner_name], 3072)?,
            layers: self.size(layer_names, layers)?,
            heads,
            activation: self.activation(activation)?,
            epsilon: epsilon as f32,
            hidden_dropout: hidden_dropout as f32,
            attention_dropout: attention_dropout as f32,
            classifier_dropout: classifier_dropout as f32,
        })
    }
}

#[cfg(test)]
mod tests;
