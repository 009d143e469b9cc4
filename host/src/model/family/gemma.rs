//! Gemma 2 (Gemma Team 2024) and the texts' part of Gemma 3 (2025): norms on both sides of each sublayer, capped scores or
//! normalised heads, and attention that is local in some of the layers.

use serde_json::Value;

use super::json::Json;
use super::llama::grouped;
use super::{Family, Name, name, rotary, sliding};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, Dropouts, Embeddings, FeedForward, HeadPart, LanguageHead,
    Layers, LinearPart, Local, NormPart, Order, Rotary, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("gemma2", "Gemma2"), name("gemma3_text", "Gemma3Text")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let third = name.model_type == "gemma3_text";
    let both_ways = "only attention to what comes before is supported";
    json.only("use_bidirectional_attention", Value::from(false), both_ways)?;
    let hidden = json.size(&["hidden_size"], 2304)?;
    let intermediate = json.size(&["intermediate_size"], 9216)?;
    let layers = json.size(&["num_hidden_layers"], 26)?;
    let positions = match third {
        true => 131_072,
        false => 8192,
    };
    let positions = json.size(&["max_position_embeddings"], positions)?;
    let epsilon = json.epsilon("rms_norm_eps", 1e-6)?;
    let bias = json.get(&["attention_bias"], "true or false", false)?;
    let norm = |name| NormPart {
        less_one: true,
        ..NormPart::root_mean_square(name, epsilon)
    };
    let linear = |name, inputs, outputs, bias| LinearPart {
        name,
        inputs,
        outputs,
        bias,
    };
    let activation = json.activation("hidden_activation", "gelu_pytorch_tanh")?;
    let named = json.value("hidden_activation").cloned();
    let named = named.unwrap_or("gelu_pytorch_tanh".into());
    let other = "hidden_activation is what counts: leave hidden_act out";
    json.only("hidden_act", named, other)?;
    let shape = shape(json, hidden, third)?;
    let [queries, pairs] = [shape.query_width(), shape.pair_width()];
    let (rotary, local) = attention(json, third, [layers, positions, shape.head_size])?;
    let vocabulary = match third {
        true => 262_208,
        false => 256_000,
    };
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "model",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embed_tokens",
                entries: json.size(&["vocab_size"], vocabulary)?,
            },
            positions: None,
            first_position: 0,
            types: None,
            padding: json.padding(Some(0))?,
            scale: Some((hidden as f64).sqrt() as f32),
            norm: None,
        }),
        layers,
        layer_path: "layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("input_layernorm"), norm("pre_feedforward_layernorm")],
            first_bare: false,
            output_norms: Some([
                norm("post_attention_layernorm"),
                norm("post_feedforward_layernorm"),
            ]),
            attention: Attention {
                projections: vec![
                    linear("self_attn.q_proj", hidden, queries, bias),
                    linear("self_attn.k_proj", hidden, pairs, bias),
                    linear("self_attn.v_proj", hidden, pairs, bias),
                ],
                output: linear("self_attn.o_proj", queries, hidden, bias),
                shape,
                head_norms: third.then(|| [norm("self_attn.q_norm"), norm("self_attn.k_norm")]),
                rotary: Some(rotary),
                local,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![
                    linear("mlp.gate_proj", hidden, intermediate, false),
                    linear("mlp.up_proj", hidden, intermediate, false),
                ],
                down: linear("mlp.down_proj", intermediate, hidden, false),
                activation,
                drops_inside: false,
            },
        },
        final_norm: Some(norm("norm")),
        head: HeadPart::SCORE,
        // Transformers has no such class of Gemma 3.
        token_head: match third {
            true => None,
            false => Some(TokenHead {
                last: "score",
                bias: json.get(&["token_classification_bias"], "true or false", true)?,
                dropout: json.token_dropout()?,
                hidden: false,
            }),
        },
        language_head: Some(LanguageHead {
            name: "lm_head",
            tied: json.get(&["tie_word_embeddings"], "true or false", true)?,
            soft_cap: json.cap("final_logit_softcapping", (!third).then_some(30.0))?,
            class: third.then_some("Gemma3ForCausalLM"),
        }),
        weights: WeightLayout::OutIn,
        stored: &[],
        unread: &[],
        nested: None,
        dropout: Dropouts {
            attention: match json.value("attention_dropout") {
                Some(_) => json.dropout("attention_dropout", 0.0)?,
                None => 0.0,
            },
            ..Dropouts::default()
        },
    })
}

fn shape(json: &Json, hidden: usize, third: bool) -> Result<AttentionShape> {
    let heads = json.size(&["num_attention_heads"], 8)?;
    // Of no account, but so it is checked there.
    json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let pair_heads = json.size(&["num_key_value_heads"], 4)?;
    let head_size = json.size(&["head_dim"], 256)?;
    let scalar = json.size(&["query_pre_attn_scalar"], 256)?;
    if third {
        let help =
            "Transformers' Gemma 3 caps no scores, whatever the file says: leave the key out";
        json.only("attn_logit_softcapping", Value::Null, help)?;
    }
    Ok(AttentionShape {
        scale: (scalar as f64).powf(-0.5) as f32,
        soft_cap: json.cap("attn_logit_softcapping", (!third).then_some(50.0))?,
        ..grouped(json, [heads, pair_heads], head_size)?
    })
}

/// How positions turn, and the layers in which a token sees those that are near.
fn attention(
    json: &Json,
    third: bool,
    [layers, positions, head_size]: [usize; 3],
) -> Result<(Rotary, Option<Local>)> {
    let window = sliding::window(json, 4096)?;
    let (key, period) = match third {
        true => {
            let key = "sliding_window_pattern";
            (key, json.size(&[key], 6)?)
        }
        // No key of a file says it.
        false => ("", 2),
    };
    let pattern = Layers::Between { period, offset: 1 };
    let local = sliding::layers(json, layers, (key, pattern))?;
    if !third {
        let local = sliding::local(json, (window, local), positions)?;
        return Ok((rotary::of(json, head_size)?, local));
    }
    let thetas = [
        ("rope_theta", 1_000_000.0),
        ("rope_local_base_freq", 10_000.0),
    ];
    let [everywhere, near] = rotary::of_kinds(json, head_size, thetas, false)?;
    // Layers that are turned otherwise are not as the others, however wide their window.
    let local = sliding::local(json, (window, local), usize::MAX)?;
    let local = local.map(|local| Local {
        reach: local.reach.min(positions),
        rotary: Some(near),
        ..local
    });
    Ok((everywhere, local))
}
