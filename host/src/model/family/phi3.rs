//! Phi-3 (Abdin et al. 2024): Llama's layers with query, key and value in one projection, and gate and what it lets through in
//! another.

use super::json::Json;
use super::{Family, Name, llama, name, rotary, sliding};
use crate::error::Result;
use crate::model::architecture::{
    Architecture, Attention, Block, Dropouts, Embeddings, FeedForward, HeadPart, LanguageHead,
    Layers, LinearPart, Local, NormPart, Order, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("phi3", "Phi3")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 3072)?;
    let intermediate = json.size(&["intermediate_size"], 8192)?;
    let positions = json.size(&["max_position_embeddings"], 4096)?;
    let epsilon = json.epsilon("rms_norm_eps", 1e-5)?;
    let norm = |name| NormPart::root_mean_square(name, epsilon);
    let linear = |name, inputs, outputs| LinearPart {
        name,
        inputs,
        outputs,
        bias: false,
    };
    let shape = llama::shape(json, hidden, [None, None])?;
    let queries = shape.heads * shape.head_size;
    let projected = (shape.heads + 2 * shape.pair_heads) * shape.head_size;
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "model",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embed_tokens",
                entries: json.size(&["vocab_size"], 32_064)?,
            },
            positions: None,
            first_position: 0,
            types: None,
            padding: json.padding(Some(32_000))?,
            scale: None,
            norm: None,
        }),
        layers: json.size(&["num_hidden_layers"], 32)?,
        layer_path: "layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("input_layernorm"), norm("post_attention_layernorm")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![linear("self_attn.qkv_proj", hidden, projected)],
                output: linear("self_attn.o_proj", queries, hidden),
                shape,
                head_norms: None,
                rotary: Some(rotary::of(json, shape.head_size)?),
                local: local(json, positions)?,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("mlp.gate_up_proj", hidden, 2 * intermediate)],
                down: linear("mlp.down_proj", intermediate, hidden),
                activation: json.activation("hidden_act", "silu")?,
                drops_inside: false,
            },
        },
        final_norm: Some(norm("norm")),
        head: HeadPart::SCORE,
        token_head: Some(TokenHead {
            last: "score",
            bias: true,
            dropout: json.token_dropout()?,
            hidden: false,
        }),
        language_head: Some(LanguageHead {
            name: "lm_head",
            tied: json.get(&["tie_word_embeddings"], "true or false", false)?,
            soft_cap: None,
            class: None,
        }),
        weights: WeightLayout::OutIn,
        stored: &[],
        unread: &[],
        nested: None,
        dropout: Dropouts {
            hidden: json.dropout("resid_pdrop", 0.0)?,
            attention: json.dropout("attention_dropout", 0.0)?,
            ..Dropouts::default()
        },
    })
}

/// All layers where the file has a `sliding_window`, none where it has not.
fn local(json: &Json, positions: usize) -> Result<Option<Local>> {
    let window = match json.value("sliding_window") {
        Some(_) => sliding::window(json, positions)?,
        None => None,
    };
    sliding::local(json, (window, Some(Layers::From(0))), positions)
}
