//! The `config.json` of a model that a GGUF file describes itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Header;
use crate::cache;
use crate::error::{Error, Result};
use crate::file::sha256;

/// Writes what `file` says of its model as a `config.json` into the cache, under its own digest; where it lies.
pub fn config(file: &Path) -> Result<PathBuf> {
    let lacking = |why: String| {
        Error::user(format!(
            "{}: there is no config.json beside it, and {why}",
            file.display()
        ))
        .help("put the config.json of the model that it was made from into its folder")
    };
    let opened = File::open(file).map_err(|error| {
        Error::user(format!("cannot read {}: {error}", file.display()))
            .help("check that the file is there and that you may read it")
    })?;
    let header = Header::read(&opened).map_err(|why| {
        Error::user(format!(
            "{} is not a readable GGUF file: {why}",
            file.display()
        ))
        .help("the file is damaged or its download was cut short: delete it and fetch it again")
    })?;
    let config = of(&header).map_err(lacking)?;
    let text = format!("{:#}\n", Value::Object(config));
    let digest = sha256(text.as_bytes());
    let dir = cache::dir()?.join("gguf").join(&digest[..16]);
    let path = dir.join("config.json");
    // Its name says what it holds: several processes may write the same.
    if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
        std::fs::create_dir_all(&dir).map_err(|error| {
            Error::user(format!("cannot write to {}", dir.display())).because(error)
        })?;
        let own = dir.join(format!("config.{}.json", std::process::id()));
        let written = std::fs::write(&own, &text).and_then(|()| std::fs::rename(&own, &path));
        written.map_err(|error| {
            Error::user(format!("cannot write to {}", dir.display())).because(error)
        })?;
    }
    Ok(path)
}

/// A model's keys: in the file, and in `config.json`.
type Keys = &'static [(&'static str, &'static str)];

/// As `GGUF_CONFIG_MAPPING` of Transformers' `integrations/ggml.py` has them.
const DECODER: Keys = &[
    ("context_length", "max_position_embeddings"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("embedding_length", "hidden_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
];
const GPT2: Keys = &[
    ("context_length", "n_positions"),
    ("block_count", "n_layer"),
    ("feed_forward_length", "n_inner"),
    ("embedding_length", "n_embd"),
    ("attention.head_count", "n_head"),
    ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
];

/// What changes a model and has no word in `config.json` here.
const FOREIGN: [&str; 4] = [
    "expert_count",
    "attention.sliding_window",
    "rope.scaling.attn_factor",
    "attention.scale",
];

/// The `config.json`, or why there can be none.
fn of(header: &Header) -> Result<Map<String, Value>, String> {
    let (class, keys) = match header.architecture() {
        Some("llama") => ("Llama", DECODER),
        Some("qwen2") => ("Qwen2", DECODER),
        Some("qwen3") => ("Qwen3", DECODER),
        Some("gpt2") => ("GPT2", GPT2),
        Some(other) => return Err(format!("of a {other} it says too little")),
        None => return Err("it does not say what it is".to_owned()),
    };
    let family = class.to_lowercase();
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("model_type", json!(family));
    for (key, name) in keys {
        let value = header.of_model(key).filter(|value| value.is_number());
        let value = value.ok_or_else(|| format!("it lacks the number {family}.{key}"))?;
        set(name, value.clone());
    }
    for key in FOREIGN {
        if let Some(value) = header
            .of_model(key)
            .filter(|value| value.as_f64() != Some(0.0))
        {
            return Err(format!("{family}.{key} is {value}"));
        }
    }
    let words = header
        .tensors
        .iter()
        .find(|tensor| tensor.name == "token_embd.weight");
    let words = words.and_then(|tensor| tensor.shape.first());
    set(
        "vocab_size",
        json!(words.ok_or("it lacks token_embd.weight")?),
    );
    set("tie_word_embeddings", json!(!header.has("output.weight")));
    for (key, name) in [
        ("bos_token_id", "bos_token_id"),
        ("eos_token_id", "eos_token_id"),
        ("padding_token_id", "pad_token_id"),
    ] {
        if let Some(id) = header.metadata.get(&format!("tokenizer.ggml.{key}")) {
            set(name, id.clone());
        }
    }
    if class == "GPT2" {
        set("architectures", json!(["GPT2LMHeadModel"]));
        return Ok(config);
    }
    set("architectures", json!([format!("{class}ForCausalLM")]));
    let heads = header.of_model("attention.head_count").cloned();
    let pairs = header.of_model("attention.head_count_kv").cloned();
    set(
        "num_key_value_heads",
        pairs.or(heads).unwrap_or(Value::Null),
    );
    let size = header.of_model("attention.key_length");
    if let Some(size) = size.or_else(|| header.of_model("rope.dimension_count")) {
        set("head_dim", size.clone());
    }
    if class == "Llama" {
        set("attention_bias", json!(header.has("blk.0.attn_q.bias")));
        set("mlp_bias", json!(header.has("blk.0.ffn_up.bias")));
    }
    let theta = header.of_model("rope.freq_base").cloned();
    set("rope_theta", theta.unwrap_or(json!(10_000.0)));
    // The factors themselves, but not what they were made of.
    if header.has("rope_freqs.weight") {
        return Err(
            "its rope_freqs.weight scales positions in a way that it does not say".to_owned(),
        );
    }
    match header
        .of_model("rope.scaling.type")
        .map(|kind| (kind, kind.as_str()))
    {
        None | Some((_, Some("none"))) => {}
        Some((_, Some("linear"))) => {
            let factor = header.of_model("rope.scaling.factor");
            let factor = factor.ok_or_else(|| format!("it lacks {family}.rope.scaling.factor"))?;
            set(
                "rope_scaling",
                json!({"rope_type": "linear", "factor": factor}),
            );
        }
        Some((kind, _)) => return Err(format!("{family}.rope.scaling.type is {kind}")),
    }
    Ok(config)
}
