//! GPT-2 (Radford et al. 2019).

use serde_json::Value;

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, Dropouts, Embeddings, FeedForward, HeadPart, LanguageHead,
    LinearPart, NormPart, Order, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("gpt2", "GPT2")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let plain = "only GPT-2's own attention is supported";
    json.only("scale_attn_weights", Value::from(true), plain)?;
    json.only("scale_attn_by_inverse_layer_idx", Value::from(false), plain)?;
    let hidden = json.size(&["n_embd", "hidden_size"], 768)?;
    let heads = json.size(&["n_head", "num_attention_heads"], 12)?;
    let heads = json.divides("n_head", heads, "n_embd", hidden)?;
    let intermediate = match json.value("n_inner") {
        Some(_) => json.size(&["n_inner"], 4 * hidden)?,
        None => 4 * hidden,
    };
    let positions = json.size(&["n_positions", "max_position_embeddings"], 1024)?;
    let epsilon = json.epsilon("layer_norm_epsilon", 1e-5)?;
    let norm = |name| NormPart::layer(name, epsilon);
    let linear = |path, inputs, outputs| LinearPart {
        name: path,
        inputs,
        outputs,
        bias: true,
    };
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "transformer",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "wte",
                entries: json.size(&["vocab_size"], 50_257)?,
            },
            positions: Some(Table {
                name: "wpe",
                entries: positions,
            }),
            first_position: 0,
            types: None,
            padding: None,
            scale: None,
            norm: None,
        }),
        layers: json.size(&["n_layer", "num_hidden_layers"], 12)?,
        layer_path: "h",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("ln_1"), norm("ln_2")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![linear("attn.c_attn", hidden, 3 * hidden)],
                output: linear("attn.c_proj", hidden, hidden),
                shape: AttentionShape {
                    causal: true,
                    ..AttentionShape::full(heads, hidden / heads)
                },
                head_norms: None,
                rotary: None,
                local: None,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("mlp.c_fc", hidden, intermediate)],
                down: linear("mlp.c_proj", intermediate, hidden),
                activation: json.activation("activation_function", "gelu_new")?,
                drops_inside: false,
            },
        },
        final_norm: Some(norm("ln_f")),
        head: HeadPart::SCORE,
        token_head: Some(TokenHead {
            last: "classifier",
            bias: true,
            dropout: json.token_dropout()?,
            hidden: false,
        }),
        language_head: Some(LanguageHead {
            name: "lm_head",
            tied: json.get(&["tie_word_embeddings"], "true or false", true)?,
            soft_cap: None,
            class: Some("GPT2LMHeadModel"),
        }),
        weights: WeightLayout::InOut,
        stored: &[],
        unread: &[],
        nested: None,
        dropout: Dropouts {
            embeddings: json.dropout("embd_pdrop", 0.1)?,
            hidden: json.dropout("resid_pdrop", 0.1)?,
            attention: json.dropout("attn_pdrop", 0.1)?,
            classifier: 0.0,
        },
    })
}
