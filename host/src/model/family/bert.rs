//! BERT (Devlin et al. 2019) and its re-trainings.

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, DensePart, Dropouts, Embeddings, FeedForward, HeadFunction,
    HeadPart, LinearPart, NormPart, Order, Reads, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("bert", "Bert")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    encoder(json, name, 30_522)
}

/// An encoder of BERT's layers and names, with its pooler. `vocabulary` is what its configuration class has where the
/// file says nothing.
pub(super) fn encoder(json: &Json, name: Name, vocabulary: usize) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 768)?;
    let heads = json.size(&["num_attention_heads"], 12)?;
    let heads = json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let intermediate = json.size(&["intermediate_size"], 3072)?;
    let positions = json.size(&["max_position_embeddings"], 512)?;
    let epsilon = json.epsilon("layer_norm_eps", 1e-12)?;
    let dropout = json.dropout("hidden_dropout_prob", 0.1)?;
    let norm = |name| NormPart::layer(name, epsilon);
    let classifier_dropout = match json.value("classifier_dropout") {
        Some(_) => json.dropout("classifier_dropout", 0.1)?,
        None => dropout,
    };
    let linear = |path, inputs, outputs| LinearPart {
        name: path,
        inputs,
        outputs,
        bias: true,
    };
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "bert",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embeddings.word_embeddings",
                entries: json.size(&["vocab_size"], vocabulary)?,
            },
            positions: Some(Table {
                name: "embeddings.position_embeddings",
                entries: positions,
            }),
            first_position: 0,
            types: Some(Table {
                name: "embeddings.token_type_embeddings",
                entries: json.size(&["type_vocab_size"], 2)?,
            }),
            padding: json.padding(Some(0))?,
            scale: None,
            norm: Some(norm("embeddings.LayerNorm")),
        }),
        layers: json.size(&["num_hidden_layers"], 12)?,
        layer_path: "encoder.layer",
        block: Block {
            order: Order::PostNorm,
            norms: [norm("attention.output.LayerNorm"), norm("output.LayerNorm")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![
                    linear("attention.self.query", hidden, hidden),
                    linear("attention.self.key", hidden, hidden),
                    linear("attention.self.value", hidden, hidden),
                ],
                output: linear("attention.output.dense", hidden, hidden),
                shape: AttentionShape::full(heads, hidden / heads),
                head_norms: None,
                rotary: None,
                local: None,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("intermediate.dense", hidden, intermediate)],
                down: linear("output.dense", intermediate, hidden),
                activation: json.activation("hidden_act", "gelu")?,
                drops_inside: false,
            },
        },
        final_norm: None,
        head: HeadPart {
            reads: Reads::First,
            input_dropout: false,
            dense: Some(DensePart {
                name: "pooler.dense",
                pooler: true,
                bias: true,
                function: HeadFunction::Tanh,
                norm: None,
            }),
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: Some(TokenHead {
            last: "classifier",
            bias: true,
            dropout: classifier_dropout,
            hidden: false,
        }),
        language_head: None,
        weights: WeightLayout::OutIn,
        stored: &[],
        unread: &[],
        nested: None,
        dropout: Dropouts {
            embeddings: dropout,
            hidden: dropout,
            attention: json.dropout("attention_probs_dropout_prob", 0.1)?,
            classifier: classifier_dropout,
        },
    })
}
