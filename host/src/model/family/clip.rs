//! CLIP's tower for images (Radford et al. 2021), by itself or in a checkpoint with the other one for texts.

use serde_json::Value;

use super::json::Json;
use super::vit::whole;
use super::{Family, Name, name};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, CHANNELS, Dropouts, Embeddings, FeedForward, HeadPart,
    LinearPart, NormPart, Order, Patches, Reads, WeightLayout,
};

/// The key of the images' part in the file of both.
const VISION: &str = "vision_config";

pub(super) const FAMILY: Family = Family {
    names: &[
        name("clip", "CLIP"),
        name("clip_vision_model", "CLIPVision"),
    ],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    match name.model_type {
        // Older files have a second table, which counts for more.
        "clip" => vision(&json.inner(&[VISION, "vision_config_dict"])?, None),
        _ => vision(json, Some(VISION)),
    }
}

/// The tower that `json` describes, which the file of both has under the key `nested`.
fn vision(json: &Json, nested: Option<&'static str>) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 768)?;
    let heads = json.size(&["num_attention_heads"], 12)?;
    let heads = json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let intermediate = json.size(&["intermediate_size"], 3072)?;
    let epsilon = json.epsilon("layer_norm_eps", 1e-5)?;
    let colours = "only images of red, green and blue are read";
    json.only("num_channels", Value::from(CHANNELS), colours)?;
    let patches = patches(json, epsilon)?;
    let norm = |name| NormPart::layer(name, epsilon);
    let linear = |name, inputs, outputs| LinearPart {
        name,
        inputs,
        outputs,
        bias: true,
    };
    Ok(Architecture {
        family: "clip",
        class: "CLIP",
        prefix: "vision_model",
        hidden,
        max_length: patches.tokens(),
        embeddings: Embeddings::Patches(patches),
        layers: json.size(&["num_hidden_layers"], 12)?,
        layer_path: "encoder.layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("layer_norm1"), norm("layer_norm2")],
            first_bare: false,
            output_norms: None,
            attention: Attention {
                projections: vec![
                    linear("self_attn.q_proj", hidden, hidden),
                    linear("self_attn.k_proj", hidden, hidden),
                    linear("self_attn.v_proj", hidden, hidden),
                ],
                output: linear("self_attn.out_proj", hidden, hidden),
                shape: AttentionShape::full(heads, hidden / heads),
                head_norms: None,
                rotary: None,
                local: None,
                relative: None,
                drops_output_as_weights: false,
            },
            feed_forward: FeedForward {
                inner: vec![linear("mlp.fc1", hidden, intermediate)],
                down: linear("mlp.fc2", intermediate, hidden),
                activation: json.activation("hidden_act", "quick_gelu")?,
                drops_inside: false,
            },
        },
        final_norm: None,
        head: HeadPart {
            // Of the patches, without the class token.
            reads: Reads::Mean { after: 1 },
            input_dropout: false,
            dense: None,
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: None,
        language_head: None,
        weights: WeightLayout::OutIn,
        stored: &[],
        // The norm of the class token, whose state that head does not read.
        unread: &["post_layernorm"],
        nested,
        dropout: Dropouts {
            attention: match json.value("attention_dropout") {
                Some(_) => json.dropout("attention_dropout", 0.0)?,
                None => 0.0,
            },
            ..Dropouts::default()
        },
    })
}

fn patches(json: &Json, epsilon: f32) -> Result<Patches> {
    let (image, patch) = (
        json.size(&["image_size"], 224)?,
        json.size(&["patch_size"], 32)?,
    );
    if image >= 1 << 16 {
        return json.refuse("image_size", image, "no image is of this size");
    }
    whole(json, [image; 2], [patch; 2])?;
    Ok(Patches {
        projection: "embeddings.patch_embedding",
        bias: false,
        image: [image; 2],
        patch: [patch; 2],
        firsts: &["embeddings.class_embedding"],
        positions: "embeddings.position_embedding.weight",
        flat: true,
        norm: Some(NormPart::layer("pre_layrnorm", epsilon)),
    })
}
