//! Llama (Touvron et al. 2023) and the families that are made of its parts: Mistral, Qwen2 and Qwen3.

use super::json::Json;
use super::{Family, Name, name, rotary, sliding};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, Dropouts, Embeddings, FeedForward, HeadPart, LanguageHead,
    Layers, LinearPart, Local, NormPart, Order, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[
        name("llama", "Llama"),
        name("mistral", "Mistral"),
        name("qwen2", "Qwen2"),
        name("qwen3", "Qwen3"),
    ],
    read,
};

/// What the configuration classes have where a file says nothing, and what the families differ in.
struct Defaults {
    vocabulary: usize,
    intermediate: usize,
    /// As many as heads of queries, where there is no number.
    pair_heads: Option<usize>,
    /// The hidden features' share of a head, where there is no number.
    head_size: Option<usize>,
    positions: usize,
    /// Whether query, key and value have a bias, where the file has no word on it.
    bias: bool,
    /// Whether each head of queries and keys is normalised.
    head_norms: bool,
}

/// Features of a head, of which each pair has a frequency of its own.
const WIDEST: usize = 1 << 16;

fn defaults(family: &str) -> Defaults {
    let llama = Defaults {
        vocabulary: 32_000,
        intermediate: 11_008,
        pair_heads: None,
        head_size: None,
        positions: 2048,
        bias: false,
        head_norms: false,
    };
    match family {
        "mistral" => Defaults {
            intermediate: 14_336,
            pair_heads: Some(8),
            positions: 131_072,
            ..llama
        },
        "qwen2" | "qwen3" => Defaults {
            vocabulary: 151_936,
            intermediate: 22_016,
            pair_heads: Some(32),
            head_size: (family == "qwen3").then_some(128),
            positions: 32_768,
            bias: family == "qwen2",
            head_norms: family == "qwen3",
        },
        _ => llama,
    }
}

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let family = name.model_type;
    let defaults = defaults(family);
    let hidden = json.size(&["hidden_size"], 4096)?;
    let intermediate = json.size(&["intermediate_size"], defaults.intermediate)?;
    let epsilon = json.epsilon("rms_norm_eps", 1e-6)?;
    let norm = |name| NormPart::root_mean_square(name, epsilon);
    // Llama and Qwen3 may give the attention's layers a bias, Qwen2 always has it but for the output.
    let (bias, output_bias) = match family {
        "llama" | "qwen3" => {
            let bias = json.get(&["attention_bias"], "true or false", defaults.bias)?;
            (bias, bias)
        }
        _ => (defaults.bias, false),
    };
    let inner_bias = match family {
        "llama" => json.get(&["mlp_bias"], "true or false", false)?,
        _ => false,
    };
    let linear = |path, inputs, outputs, bias| LinearPart {
        name: path,
        inputs,
        outputs,
        bias,
    };
    let positions = json.size(&["max_position_embeddings"], defaults.positions)?;
    let shape = shape(json, hidden, [defaults.pair_heads, defaults.head_size])?;
    let [queries, pairs] = [shape.heads, shape.pair_heads].map(|heads| heads * shape.head_size);
    Ok(Architecture {
        family,
        class: name.class,
        prefix: "model",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embed_tokens",
                entries: json.size(&["vocab_size"], defaults.vocabulary)?,
            },
            positions: None,
            first_position: 0,
            types: None,
            padding: json.padding(None)?,
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
                projections: vec![
                    linear("self_attn.q_proj", hidden, queries, bias),
                    linear("self_attn.k_proj", hidden, pairs, bias),
                    linear("self_attn.v_proj", hidden, pairs, bias),
                ],
                output: linear("self_attn.o_proj", queries, hidden, output_bias),
                shape,
                head_norms: defaults
                    .head_norms
                    .then(|| [norm("self_attn.q_norm"), norm("self_attn.k_norm")]),
                rotary: Some(rotary::of(json, shape.head_size)?),
                local: local(json, family, positions)?,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![
                    linear("mlp.gate_proj", hidden, intermediate, inner_bias),
                    linear("mlp.up_proj", hidden, intermediate, inner_bias),
                ],
                down: linear("mlp.down_proj", intermediate, hidden, inner_bias),
                activation: json.activation("hidden_act", "silu")?,
                drops_inside: false,
            },
        },
        final_norm: Some(norm("norm")),
        head: HeadPart::SCORE,
        token_head: Some(TokenHead {
            last: "score",
            bias: json.get(&["token_classification_bias"], "true or false", true)?,
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
            attention: json.dropout("attention_dropout", 0.0)?,
            ..Dropouts::default()
        },
    })
}

/// The heads, those of the keys and values perhaps fewer. Where the file says nothing, there are so many of these, or as
/// many as of queries, and each has such a size, or its share of the `hidden` features.
pub(super) fn shape(
    json: &Json,
    hidden: usize,
    [default_pairs, default_size]: [Option<usize>; 2],
) -> Result<AttentionShape> {
    let heads = json.size(&["num_attention_heads"], 32)?;
    let head_size = match (json.value("head_dim"), default_size) {
        (Some(_), _) => json.size(&["head_dim"], 1)?,
        (None, Some(size)) => size,
        (None, None) => {
            hidden / json.divides("num_attention_heads", heads, "hidden_size", hidden)?
        }
    };
    let pair_heads = match json.value("num_key_value_heads") {
        Some(_) => json.size(&["num_key_value_heads"], heads)?,
        None => default_pairs.unwrap_or(heads),
    };
    grouped(json, [heads, pair_heads], head_size)
}

/// Causal attention of so many heads of queries, and of keys and values, each of this size.
pub(super) fn grouped(
    json: &Json,
    [heads, pair_heads]: [usize; 2],
    head_size: usize,
) -> Result<AttentionShape> {
    if head_size % 2 == 1 {
        return json.refuse(
            "head_dim",
            head_size,
            "heads are turned in pairs of features: it must be even",
        );
    }
    // Before anything is made of that size.
    if head_size > WIDEST {
        let help = format!("no head has more than {WIDEST} features: the file is damaged");
        return json.refuse("head_dim", head_size, &help);
    }
    Ok(AttentionShape {
        pair_heads: json.divides(
            "num_key_value_heads",
            pair_heads,
            "num_attention_heads",
            heads,
        )?,
        causal: true,
        ..AttentionShape::full(heads, head_size)
    })
}

/// The layers in which a token sees no more than `sliding_window` tokens, itself included: all of Mistral's, and Qwen's from
/// `max_window_layers` on where `use_sliding_window` says so.
fn local(json: &Json, family: &str, positions: usize) -> Result<Option<Local>> {
    let layers = json.size(&["num_hidden_layers"], 32)?;
    let qwen = matches!(family, "qwen2" | "qwen3");
    let slides = match family {
        "mistral" => true,
        _ => qwen && json.get(&["use_sliding_window"], "true or false", false)?,
    };
    let window = match slides {
        true => sliding::window(json, 4096)?,
        false => None,
    };
    let some = match (window, qwen) {
        (_, false) => Some(Layers::From(0)),
        (Some(_), true) => {
            let first = json.get(&["max_window_layers"], "a whole number", 28)?;
            sliding::layers(json, layers, ("max_window_layers", Layers::From(first)))?
        }
        // As Transformers has it, none is then local.
        (None, true) => sliding::layers(json, layers, ("", Layers::From(layers)))?,
    };
    sliding::local(json, (window, some), positions)
}
