//! Vision transformers (Dosovitskiy et al. 2021), and DeiT's (Touvron et al. 2021), which have one token more.

use serde_json::Value;

use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, CHANNELS, Dropouts, Embeddings, FeedForward, HeadPart,
    LinearPart, NormPart, Order, Patches, Reads, WeightLayout,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("vit", "ViT"), name("deit", "DeiT")],
    read,
};

/// What checkpoints call the modules, and what Transformers does since its fifth version.
const STORED: &[(&str, &str)] = &[
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 768)?;
    let heads = json.size(&["num_attention_heads"], 12)?;
    let heads = json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let intermediate = json.size(&["intermediate_size"], 3072)?;
    let epsilon = json.epsilon("layer_norm_eps", 1e-12)?;
    let dropout = json.dropout("hidden_dropout_prob", 0.0)?;
    let bias = json.get(&["qkv_bias"], "true or false", true)?;
    let colours = "only images of red, green and blue are read";
    json.only("num_channels", Value::from(CHANNELS), colours)?;
    let of_heads = "heads share the hidden features evenly";
    json.only("head_dim", Value::from(hidden / heads), of_heads)?;
    let patches = patches(json, name)?;
    let norm = |name| NormPart::layer(name, epsilon);
    let linear = |name, inputs, outputs, bias| LinearPart {
        name,
        inputs,
        outputs,
        bias,
    };
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: name.model_type,
        hidden,
        max_length: patches.tokens(),
        embeddings: Embeddings::Patches(patches),
        layers: json.size(&["num_hidden_layers"], 12)?,
        layer_path: "layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("layernorm_before"), norm("layernorm_after")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![
                    linear("attention.q_proj", hidden, hidden, bias),
                    linear("attention.k_proj", hidden, hidden, bias),
                    linear("attention.v_proj", hidden, hidden, bias),
                ],
                output: linear("attention.o_proj", hidden, hidden, true),
                shape: AttentionShape::full(heads, hidden / heads),
                head_norms: None,
                rotary: None,
                local: None,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("mlp.fc1", hidden, intermediate, true)],
                down: linear("mlp.fc2", intermediate, hidden, true),
                activation: json.activation("hidden_act", "gelu")?,
                drops_inside: false,
            },
        },
        final_norm: Some(norm("layernorm")),
        head: HeadPart {
            reads: Reads::First,
            input_dropout: false,
            dense: None,
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: None,
        language_head: None,
        weights: WeightLayout::OutIn,
        stored: STORED,
        unread: &[],
        nested: None,
        dropout: Dropouts {
            embeddings: dropout,
            hidden: dropout,
            attention: json.dropout("attention_probs_dropout_prob", 0.0)?,
            classifier: 0.0,
        },
    })
}

fn patches(json: &Json, name: Name) -> Result<Patches> {
    let (image, patch) = (
        both(json, "image_size", 224)?,
        both(json, "patch_size", 16)?,
    );
    whole(json, image, patch)?;
    Ok(Patches {
        projection: "embeddings.patch_embeddings.projection",
        bias: true,
        image,
        patch,
        firsts: match name.model_type {
            "deit" => &["embeddings.cls_token", "embeddings.distillation_token"],
            _ => &["embeddings.cls_token"],
        },
        positions: "embeddings.position_embeddings",
        flat: false,
        norm: None,
    })
}

/// Refuses images that are not made of whole patches.
pub(super) fn whole(json: &Json, image: [usize; 2], patch: [usize; 2]) -> Result<()> {
    if (0..2).all(|side| image[side].is_multiple_of(patch[side])) {
        return Ok(());
    }
    let [height, width] = patch;
    let help = format!("it must be a multiple of patch_size, {height} by {width}");
    json.refuse("image_size", format!("{} by {}", image[0], image[1]), &help)
}

/// A height and a width, or one number for both.
fn both(json: &Json, key: &str, default: usize) -> Result<[usize; 2]> {
    if !matches!(json.value(key), Some(Value::Array(_))) {
        return Ok([json.size(&[key], default)?; 2]);
    }
    let both = json.get(&[key], "a height and a width in pixels", [default; 2])?;
    match both.iter().all(|side| (1..1 << 16).contains(side)) {
        true => Ok(both),
        false => json.refuse(key, format!("{both:?}"), "no image is of this size"),
    }
}
