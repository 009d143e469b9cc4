//! DistilBERT (Sanh et al. 2019): BERT's layers without token types and pooler, under names of its own.

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, DensePart, Dropouts, Embeddings, FeedForward, HeadFunction,
    HeadPart, LinearPart, NormPart, Order, Reads, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("distilbert", "DistilBert")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let hidden = json.size(&["dim", "hidden_size"], 768)?;
    let heads = json.size(&["n_heads", "num_attention_heads"], 12)?;
    let heads = json.divides("n_heads", heads, "dim", hidden)?;
    let intermediate = json.size(&["hidden_dim"], 3072)?;
    let positions = json.size(&["max_position_embeddings"], 512)?;
    let dropout = json.dropout("dropout", 0.1)?;
    // Fixed in its layers.
    let norm = |name| NormPart::layer(name, 1e-12);
    let linear = |path, inputs, outputs| LinearPart {
        name: path,
        inputs,
        outputs,
        bias: true,
    };
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "distilbert",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embeddings.word_embeddings",
                entries: json.size(&["vocab_size"], 30_522)?,
            },
            positions: Some(Table {
                name: "embeddings.position_embeddings",
                entries: positions,
            }),
            first_position: 0,
            types: None,
            padding: json.padding(Some(0))?,
            scale: None,
            norm: Some(norm("embeddings.LayerNorm")),
        }),
        layers: json.size(&["n_layers", "num_hidden_layers"], 6)?,
        layer_path: "transformer.layer",
        block: Block {
            order: Order::PostNorm,
            norms: [norm("sa_layer_norm"), norm("output_layer_norm")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![
                    linear("attention.q_lin", hidden, hidden),
                    linear("attention.k_lin", hidden, hidden),
                    linear("attention.v_lin", hidden, hidden),
                ],
                output: linear("attention.out_lin", hidden, hidden),
                shape: AttentionShape::full(heads, hidden / heads),
                head_norms: None,
                rotary: None,
                local: None,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("ffn.lin1", hidden, intermediate)],
                down: linear("ffn.lin2", intermediate, hidden),
                activation: json.activation("activation", "gelu")?,
                drops_inside: false,
            },
        },
        final_norm: None,
        head: HeadPart {
            reads: Reads::First,
            input_dropout: false,
            dense: Some(DensePart {
                name: "pre_classifier",
                pooler: false,
                bias: true,
                function: HeadFunction::Relu,
                norm: None,
            }),
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: Some(TokenHead {
            last: "classifier",
            bias: true,
            dropout,
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
            attention: json.dropout("attention_dropout", 0.1)?,
            classifier: json.dropout("seq_classif_dropout", 0.2)?,
        },
    })
}
