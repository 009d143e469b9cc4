//! Llama (Touvron et al. 2023) and the families that are made of its parts: Mistral, Qwen2 and Qwen3.

use serde_json::{Map, Value};

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::{AttentionShape, NormKind};
use crate::model::architecture::{
    Architecture, Attention, Block, Dropouts, Embeddings, FeedForward, HeadPart, LanguageHead,
    LinearPart, NormPart, Order, Rotary, Table, TokenHead, WeightLayout, Words,
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
    let norm = |path| NormPart {
        name: path,
        kind: NormKind::RootMeanSquare,
        epsilon,
    };
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
    let shape = shape(json, &defaults, hidden)?;
    let [queries, pairs] = [shape.heads, shape.pair_heads].map(|heads| heads * shape.head_size);
    Ok(Architecture {
        family,
        class: name.class,
        prefix: "model",
        hidden,
        max_length: longest(json, family, &defaults)?,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embed_tokens",
                entries: json.size(&["vocab_size"], defaults.vocabulary)?,
            },
            positions: None,
            first_position: 0,
            types: None,
            norm: None,
        }),
        layers: json.size(&["num_hidden_layers"], 32)?,
        layer_path: "layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("input_layernorm"), norm("post_attention_layernorm")],
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
                rotary: Some(rotary(json, shape.head_size)?),
            },
            feed_forward: FeedForward {
                inner: vec![
                    linear("mlp.gate_proj", hidden, intermediate, inner_bias),
                    linear("mlp.up_proj", hidden, intermediate, inner_bias),
                ],
                down: linear("mlp.down_proj", intermediate, hidden, inner_bias),
                activation: json.activation("hidden_act", "silu")?,
            },
        },
        final_norm: Some(norm("norm")),
        head: HeadPart::SCORE,
        token_head: Some(TokenHead {
            last: "score",
            bias: json.get(&["token_classification_bias"], "true or false", true)?,
            dropout: json.token_dropout()?,
        }),
        language_head: Some(LanguageHead {
            name: "lm_head",
            tied: json.get(&["tie_word_embeddings"], "true or false", false)?,
        }),
        weights: WeightLayout::OutIn,
        stored: &[],
        dropout: Dropouts {
            attention: json.dropout("attention_dropout", 0.0)?,
            ..Dropouts::default()
        },
    })
}

/// The heads, those of the keys and values perhaps fewer.
fn shape(json: &Json, defaults: &Defaults, hidden: usize) -> Result<AttentionShape> {
    let heads = json.size(&["num_attention_heads"], 32)?;
    let head_size = match (json.value("head_dim"), defaults.head_size) {
        (Some(_), _) => json.size(&["head_dim"], 1)?,
        (None, Some(size)) => size,
        (None, None) => {
            hidden / json.divides("num_attention_heads", heads, "hidden_size", hidden)?
        }
    };
    let pair_heads = match json.value("num_key_value_heads") {
        Some(_) => json.size(&["num_key_value_heads"], heads)?,
        None => defaults.pair_heads.unwrap_or(heads),
    };
    if head_size % 2 == 1 {
        return json.refuse(
            "head_dim",
            head_size,
            "heads are turned in pairs of features: it must be even",
        );
    }
    Ok(AttentionShape {
        heads,
        pair_heads: json.divides(
            "num_key_value_heads",
            pair_heads,
            "num_attention_heads",
            heads,
        )?,
        head_size,
        causal: true,
    })
}

/// The longest sequence. Within a sliding window every token sees all before it, so that no more than its size is
/// taken.
fn longest(json: &Json, family: &str, defaults: &Defaults) -> Result<usize> {
    let positions = json.size(&["max_position_embeddings"], defaults.positions)?;
    let slides = match family {
        "mistral" => true,
        "qwen2" | "qwen3" => json.get(&["use_sliding_window"], "true or false", false)?,
        _ => false,
    };
    let absent = json.find(&["sliding_window"])?.is_none();
    if !slides || (json.value("sliding_window").is_none() && !absent) {
        return Ok(positions);
    }
    Ok(positions.min(json.size(&["sliding_window"], 4096)?))
}

/// `θ_i = base^(−2i / head size)` (Su et al. 2021, eq. 15), scaled as `rope_parameters`, or the older `rope_scaling`
/// and `rope_theta`, say.
fn rotary(json: &Json, head_size: usize) -> Result<Rotary> {
    let none = Map::new();
    let table = |key: &'static str| match json.value(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some((key, map))),
        Some(other) => json.refuse(key, other, "expected a table"),
    };
    let (key, map) = match table("rope_parameters")? {
        Some(found) => found,
        None => table("rope_scaling")?.unwrap_or(("rope_scaling", &none)),
    };
    let number = |name: &str, default: Option<f64>| match (map.get(name), default) {
        (Some(found), _) => match found.as_f64().filter(|number| *number > 0.0) {
            Some(number) => Ok(number),
            None => json.refuse(&format!("{key}.{name}"), found, "expected a number above 0"),
        },
        (None, Some(default)) => Ok(default),
        (None, None) => json.refuse(&format!("{key}.{name}"), "missing", "this scaling needs it"),
    };
    let theta = json.get(&["rope_theta"], "a number above 0", 10_000.0)?;
    let theta = number("rope_theta", Some(theta))?;
    for (name, given) in [
        ("partial_rotary_factor", json.value("partial_rotary_factor")),
        ("partial_rotary_factor", map.get("partial_rotary_factor")),
    ] {
        if let Some(given) = given.filter(|given| given.as_f64() != Some(1.0)) {
            return json.refuse(
                name,
                given,
                "only heads that are turned whole are supported",
            );
        }
    }
    let half = head_size / 2;
    let plain = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_size as f64));
    let kind = map.get("rope_type").or_else(|| map.get("type"));
    let frequencies = match kind.map(|kind| (kind, kind.as_str())) {
        None | Some((_, Some("default"))) => plain.collect(),
        Some((_, Some("linear"))) => {
            let factor = number("factor", None)?;
            plain.map(|frequency| frequency / factor).collect()
        }
        Some((_, Some("llama3"))) => {
            let factor = number("factor", None)?;
            let [low, high] = [
                number("low_freq_factor", None)?,
                number("high_freq_factor", None)?,
            ];
            let old = number("original_max_position_embeddings", None)?;
            plain
                .map(|frequency| scaled_as_llama3(frequency, factor, [low, high], old))
                .collect()
        }
        Some((kind, _)) => {
            let help =
                "the supported ways to scale rotary positions are default, linear and llama3";
            return json.refuse(&format!("{key}.rope_type"), kind, help);
        }
    };
    Ok(Rotary { frequencies })
}

/// Slow turns slowed by `factor`, fast ones left, in between something in between, as Llama 3.1's (Dubey et al. 2024)
/// published code has it.
fn scaled_as_llama3(frequency: f64, factor: f64, [low, high]: [f64; 2], old: f64) -> f64 {
    // Turns over the length that the model was first trained on.
    let turns = old * frequency / (2.0 * std::f64::consts::PI);
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    frequency * (kept + (1.0 - kept) / factor)
}
