//! DeBERTa's second version and third (He et al. 2021, 2023): BERT's layers with scores of relative positions.

use serde_json::Value;

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, DensePart, Dropouts, Embeddings, FeedForward, HeadFunction,
    HeadPart, LinearPart, NormPart, Order, Reads, Relative, Table, TokenHead, WeightLayout, Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("deberta-v2", "DebertaV2")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 1536)?;
    let heads = json.size(&["num_attention_heads"], 24)?;
    let heads = json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let intermediate = json.size(&["intermediate_size"], 6144)?;
    let positions = json.size(&["max_position_embeddings"], 512)?;
    let epsilon = json.epsilon("layer_norm_eps", 1e-7)?;
    let dropout = json.dropout("hidden_dropout_prob", 0.1)?;
    let plain = |key, value: usize, help| json.only(key, Value::from(value), help);
    plain(
        "conv_kernel_size",
        0,
        "layers of convolutions are not supported",
    )?;
    let sizes = "embeddings of another size than the hidden one's are not supported";
    plain("embedding_size", hidden, sizes)?;
    let of_heads = "heads share the hidden features evenly";
    plain("attention_head_size", hidden / heads, of_heads)?;
    let of_pooler = "a pooler of another size than the hidden one's is not supported";
    plain("pooler_hidden_size", hidden, of_pooler)?;
    let undropped = "dropout in front of the pooler is not supported: set it to 0";
    let found: f64 = json.get(&["pooler_dropout"], "a probability of dropout", 0.0)?;
    if found != 0.0 {
        return json.refuse("pooler_dropout", found, undropped);
    }
    let norm = |name| NormPart::layer(name, epsilon);
    let linear = |name, inputs, outputs| LinearPart {
        name,
        inputs,
        outputs,
        bias: true,
    };
    let table = |name, entries| Table { name, entries };
    let biased = json.get(&["position_biased_input"], "true or false", true)?;
    let types = match json.get(&["type_vocab_size"], "a whole number", 0)? {
        0 => None,
        _ => Some(json.size(&["type_vocab_size"], 0)?),
    };
    let (relative, parts) = relative(json, positions, epsilon)?;
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "deberta",
        hidden,
        max_length: positions,
        embeddings: Embeddings::Words(Words {
            words: table(
                "embeddings.word_embeddings",
                json.size(&["vocab_size"], 128_100)?,
            ),
            positions: biased.then(|| table("embeddings.position_embeddings", positions)),
            first_position: 0,
            types: types.map(|types| table("embeddings.token_type_embeddings", types)),
            padding: json.padding(Some(0))?,
            scale: None,
            norm: Some(norm("embeddings.LayerNorm")),
        }),
        layers: json.size(&["num_hidden_layers"], 24)?,
        layer_path: "encoder.layer",
        block: Block {
            order: Order::PostNorm,
            norms: [norm("attention.output.LayerNorm"), norm("output.LayerNorm")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![
                    linear("attention.self.query_proj", hidden, hidden),
                    linear("attention.self.key_proj", hidden, hidden),
                    linear("attention.self.value_proj", hidden, hidden),
                ],
                output: linear("attention.output.dense", hidden, hidden),
                shape: AttentionShape {
                    // As many parts as scores are the sum of.
                    scale: 1.0 / ((hidden / heads * parts) as f32).sqrt(),
                    ..AttentionShape::full(heads, hidden / heads)
                },
                head_norms: None,
                rotary: None,
                local: None,
                relative,
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
                // Not of the body, unlike BERT's.
                name: "pooler.dense",
                pooler: false,
                bias: true,
                function: HeadFunction::Of(json.activation("pooler_hidden_act", "gelu")?),
                norm: None,
            }),
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: Some(TokenHead {
            last: "classifier",
            bias: true,
            dropout: json.dropout("hidden_dropout_prob", 0.1)?,
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
            classifier: match json.value("cls_dropout") {
                Some(_) => json.dropout("cls_dropout", 0.1)?,
                None => dropout,
            },
        },
    })
}

/// The relative positions, and how many parts scores are the sum of.
fn relative(json: &Json, positions: usize, epsilon: f32) -> Result<(Option<Relative>, usize)> {
    let key = "pos_att_type";
    let kinds: Vec<String> = match json.value(key) {
        None => Vec::new(),
        Some(Value::String(kinds)) => kinds.split('|').map(|kind| kind.trim().into()).collect(),
        Some(_) => json.get(&[key], "a list of \"c2p\" and \"p2c\"", Vec::new())?,
    };
    let has = |kind: &str| kinds.iter().any(|found| found.to_lowercase() == kind);
    let parts = 1 + usize::from(has("c2p")) + usize::from(has("p2c"));
    if !json.get(&["relative_attention"], "true or false", false)? {
        return Ok((None, parts));
    }
    if parts < 3 {
        let help = "only \"c2p\" and \"p2c\" together are supported";
        return json.refuse(key, format!("\"{}\"", kinds.join("|")), help);
    }
    if !json.get(&["share_att_key"], "true or false", false)? {
        let help = "only positions that share the tokens' projections are supported";
        return json.refuse("share_att_key", false, help);
    }
    let most: i64 = json.get(&["max_relative_positions"], "a whole number", -1)?;
    let furthest = match most < 1 {
        true => positions,
        false => json.size(&["max_relative_positions"], positions)?,
    };
    let buckets: i64 = json.get(&["position_buckets"], "a whole number", -1)?;
    let buckets = match buckets < 1 {
        true => None,
        false => Some(json.size(&["position_buckets"], 256)?),
    };
    if let Some(buckets) = buckets.filter(|buckets| *buckets < 4 || buckets / 2 + 1 >= furthest) {
        let help = format!("expected at least 4, and half of them within {furthest} positions");
        return json.refuse("position_buckets", buckets, &help);
    }
    let normed: String = json.get(
        &["norm_rel_ebd"],
        "\"none\" or \"layer_norm\"",
        "none".into(),
    )?;
    let norm = match normed.to_lowercase().as_str() {
        "none" => None,
        "layer_norm" => Some(NormPart::layer("encoder.LayerNorm", epsilon)),
        _ => {
            let help = "expected \"none\" or \"layer_norm\"";
            return json.refuse("norm_rel_ebd", format!("\"{normed}\""), help);
        }
    };
    let relative = Relative {
        table: Table {
            name: "encoder.rel_embeddings",
            entries: 2 * buckets.unwrap_or(furthest),
        },
        norm,
        buckets: buckets.map(|buckets| [buckets, furthest]),
    };
    Ok((Some(relative), parts))
}
