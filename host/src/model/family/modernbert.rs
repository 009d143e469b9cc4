//! ModernBERT (Warner et al. 2024): pre-norm layers with rotary positions, a gated feed-forward, and attention that is local in
//! most of them.

use super::json::Json;
use super::{Family, Name, name, rotary, sliding};
use crate::error::Result;
use crate::kernel::AttentionShape;
use crate::model::architecture::{
    Architecture, Attention, Block, DensePart, Dropouts, Embeddings, FeedForward, HeadFunction,
    HeadPart, Layers, LinearPart, Local, NormPart, Order, Reads, Table, TokenHead, WeightLayout,
    Words,
};

pub(super) const FAMILY: Family = Family {
    names: &[name("modernbert", "ModernBert")],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    let hidden = json.size(&["hidden_size"], 768)?;
    let heads = json.size(&["num_attention_heads"], 12)?;
    let heads = json.divides("num_attention_heads", heads, "hidden_size", hidden)?;
    let intermediate = json.size(&["intermediate_size"], 1152)?;
    let layers = json.size(&["num_hidden_layers"], 22)?;
    let epsilon = json.epsilon("norm_eps", 1e-5)?;
    let flag = |key, default| json.get(&[key], "true or false", default);
    let norm_bias = flag("norm_bias", false)?;
    let attention_bias = flag("attention_bias", false)?;
    let inner_bias = flag("mlp_bias", false)?;
    let norm = |name| NormPart {
        bias: norm_bias,
        ..NormPart::layer(name, epsilon)
    };
    let linear = |name, inputs, outputs, bias| LinearPart {
        name,
        inputs,
        outputs,
        bias,
    };
    let shape = AttentionShape::full(heads, hidden / heads);
    if !shape.head_size.is_multiple_of(2) {
        let help = "heads are turned in pairs of features: each must have an even number of them";
        return json.refuse("hidden_size", hidden, help);
    }
    let thetas = [
        ("global_rope_theta", 160_000.0),
        ("local_rope_theta", 10_000.0),
    ];
    let [everywhere, near] = rotary::of_kinds(json, shape.head_size, thetas, true)?;
    let period = json.size(&["global_attn_every_n_layers"], 3)?;
    let pattern = Layers::Between { period, offset: 0 };
    let local = sliding::layers(json, layers, ("global_attn_every_n_layers", pattern))?;
    // The window's whole width, of which a token is the middle.
    let window = json.size(&["local_attention"], 128)?;
    Ok(Architecture {
        family: name.model_type,
        class: name.class,
        prefix: "model",
        hidden,
        max_length: json.size(&["max_position_embeddings"], 8192)?,
        embeddings: Embeddings::Words(Words {
            words: Table {
                name: "embeddings.tok_embeddings",
                entries: json.size(&["vocab_size"], 50_368)?,
            },
            positions: None,
            first_position: 0,
            types: None,
            padding: json.padding(Some(50_283))?,
            scale: None,
            norm: Some(norm("embeddings.norm")),
        }),
        layers,
        layer_path: "layers",
        block: Block {
            order: Order::PreNorm,
            norms: [norm("attn_norm"), norm("mlp_norm")],
            first_bare: true,
            output_norms: None,
            attention: Attention {
                projections: vec![linear("attn.Wqkv", hidden, 3 * hidden, attention_bias)],
                output: linear("attn.Wo", hidden, hidden, attention_bias),
                shape,
                head_norms: None,
                rotary: Some(everywhere),
                local: local.map(|layers| Local {
                    reach: window / 2,
                    rotary: Some(near),
                    layers,
                }),
                relative: None,
                drops_output_as_weights: true,
            },
            feed_forward: FeedForward {
                inner: vec![linear("mlp.Wi", hidden, 2 * intermediate, inner_bias)],
                down: linear("mlp.Wo", intermediate, hidden, inner_bias),
                activation: json.activation("hidden_activation", "gelu")?,
                drops_inside: true,
            },
        },
        final_norm: Some(norm("final_norm")),
        head: HeadPart {
            reads: reads(json)?,
            input_dropout: false,
            dense: Some(DensePart {
                name: "head.dense",
                pooler: false,
                bias: flag("classifier_bias", false)?,
                function: HeadFunction::Of(json.activation("classifier_activation", "gelu")?),
                norm: Some(norm("head.norm")),
            }),
            last: "classifier",
            bias: true,
            module: None,
        },
        token_head: Some(TokenHead {
            last: "classifier",
            bias: true,
            dropout: json.dropout("classifier_dropout", 0.0)?,
            hidden: true,
        }),
        language_head: None,
        weights: WeightLayout::OutIn,
        stored: &[],
        unread: &[],
        nested: None,
        dropout: Dropouts {
            embeddings: json.dropout("embedding_dropout", 0.0)?,
            hidden: json.dropout("mlp_dropout", 0.0)?,
            attention: json.dropout("attention_dropout", 0.0)?,
            classifier: json.dropout("classifier_dropout", 0.0)?,
        },
    })
}

fn reads(json: &Json) -> Result<Reads> {
    let key = "classifier_pooling";
    let pooling = json.get(&[key], "\"cls\" or \"mean\"", "cls".to_owned())?;
    match pooling.as_str() {
        "cls" => Ok(Reads::First),
        "mean" => Ok(Reads::Mean { after: 0 }),
        other => json.refuse(key, format!("\"{other}\""), "expected \"cls\" or \"mean\""),
    }
}
