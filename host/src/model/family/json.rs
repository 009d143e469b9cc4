//! A `config.json`, key by key.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::kernel::Activation;

/// A `config.json`. Keys have the names, and where they are absent the defaults, of the family's class in
/// Transformers; a key that changes what is computed here, and is not followed, is refused by name.
pub(super) struct Json {
    /// The file.
    pub at: String,
    map: Map<String, Value>,
}

impl Json {
    pub fn new(text: &str, path: &Path) -> Result<Self> {
        let at = path.display().to_string();
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Json { at, map }),
            found => {
                let why = found
                    .err()
                    .map_or("not an object".to_owned(), |error| error.to_string());
                Err(Error::user(format!("{at}: {why}"))
                    .help("the file must be the config.json of a pretrained model, whole"))
            }
        }
    }

    /// What the tables under these keys say, which must not contradict each other; nothing where there are none.
    pub fn inner(&self, keys: &[&str]) -> Result<Json> {
        let mut map = Map::new();
        for key in keys {
            for (name, value) in self.table(key)?.into_iter().flatten() {
                if let Some(other) = map.get(name).filter(|other| *other != value) {
                    let both = format!("{value}, but {} has {other}", keys[0]);
                    let help = "leave one of the two out";
                    return self.refuse(&format!("{key}.{name}"), both, help);
                }
                map.insert(name.clone(), value.clone());
            }
        }
        let at = format!("{}, {}", self.at, keys[0]);
        Ok(Json { at, map })
    }

    pub fn refuse<T>(&self, key: &str, found: impl Display, help: &str) -> Result<T> {
        Err(Error::user(format!("{}: {key} is {found}", self.at)).help(help))
    }

    /// The key that is there of `names`, which are several for one thing: all that are there must agree.
    pub fn find<'a>(&self, names: &[&'a str]) -> Result<Option<(&'a str, &Value)>> {
        let mut found: Option<(&str, &Value)> = None;
        for name in names {
            let Some(value) = self.map.get(*name) else {
                continue;
            };
            if let Some((other, first)) = found.filter(|(_, first)| *first != value) {
                let both = format!("{value}, but {other}, which means the same, is {first}");
                return self.refuse(name, both, "leave one of the two out");
            }
            found = found.or(Some((name, value)));
        }
        Ok(found)
    }

    pub fn get<T: DeserializeOwned>(
        &self,
        names: &[&str],
        expected: &str,
        default: T,
    ) -> Result<T> {
        let Some((key, value)) = self.find(names)? else {
            return Ok(default);
        };
        match T::deserialize(value) {
            Ok(value) => Ok(value),
            Err(_) => self.refuse(key, value, &format!("expected {expected}")),
        }
    }

    /// The value of a key that is there and not null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The table under a key that is there and not null.
    pub fn table(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => self.refuse(key, other, "expected a table"),
        }
    }

    /// The entry of the vocabulary that PyTorch never trains, its `padding_idx`: `pad_token_id`, or what the family's class
    /// has where the key is not there. A number below 0 counts from the end.
    pub fn padding(&self, default: Option<usize>) -> Result<Option<usize>> {
        let found = match self.map.get("pad_token_id") {
            None => return Ok(default),
            Some(Value::Null) => return Ok(None),
            Some(found) => found,
        };
        match (found.as_u64(), found.as_i64()) {
            (Some(id), _) => Ok(Some(id as usize)),
            (None, Some(id)) => {
                let entries = self.size(&["vocab_size"], 1)?;
                Ok(entries.checked_sub(id.unsigned_abs() as usize))
            }
            (None, None) => {
                self.refuse("pad_token_id", found, "expected a token's number, or null")
            }
        }
    }

    /// A size: at least 1, and no more than can be computed with.
    pub fn size(&self, names: &[&str], default: usize) -> Result<usize> {
        let size = self.get(names, "a whole number", default)?;
        let key = self.find(names)?.map_or(names[0], |(key, _)| key);
        match size {
            0 => self.refuse(key, size, "every size of a model is at least 1"),
            _ if size > 1 << 31 => {
                self.refuse(key, size, "no model is that large: the file is damaged")
            }
            _ => Ok(size),
        }
    }

    /// Refuses features that heads do not divide among them.
    pub fn divides(&self, key: &str, heads: usize, whole: &str, features: usize) -> Result<usize> {
        match features.is_multiple_of(heads) {
            true => Ok(heads),
            false => {
                let help = format!("it must be a multiple of {key} ({heads})");
                self.refuse(whole, features, &help)
            }
        }
    }

    /// The ε of a norm.
    pub fn epsilon(&self, key: &str, default: f64) -> Result<f32> {
        let epsilon = self.get(&[key], "a small number", default)?;
        match epsilon > 0.0 && epsilon < 1.0 {
            true => Ok(epsilon as f32),
            false => self.refuse(key, epsilon, "expected a small number above 0"),
        }
    }

    /// A probability of dropout.
    pub fn dropout(&self, key: &str, default: f64) -> Result<f32> {
        let probability = self.get(&[key], "a probability of dropout", default)?;
        if (0.0..1.0).contains(&probability) {
            return Ok(probability as f32);
        }
        self.refuse(key, probability, "a probability of dropout is in [0, 1)")
    }

    /// That in front of the head with which a decoder labels its tokens.
    pub fn token_dropout(&self) -> Result<f32> {
        let keys = ["classifier_dropout", "hidden_dropout"];
        let given = keys.into_iter().find(|key| self.value(key).is_some());
        given.map_or(Ok(0.1), |key| self.dropout(key, 0.1))
    }

    /// Refuses `key` where it has another value than `plain`, or than null.
    pub fn only(&self, key: &str, plain: Value, help: &str) -> Result<()> {
        match self.map.get(key) {
            Some(found) if *found != plain && !found.is_null() => self.refuse(key, found, help),
            _ => Ok(()),
        }
    }

    /// A limit that values do not exceed; none where it is null.
    pub fn cap(&self, key: &str, default: Option<f64>) -> Result<Option<f32>> {
        let cap = self.get(&[key], "a number above 0, or null", default)?;
        match cap.filter(|cap| !(*cap > 0.0 && *cap < f64::from(f32::MAX))) {
            None => Ok(cap.map(|cap| cap as f32)),
            Some(cap) => self.refuse(key, cap, "expected a number above 0, or null"),
        }
    }

    pub fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name: String = self.get(&[key], "the name of an activation", default.to_owned())?;
        match name.as_str() {
            // Other ways to write the same functions.
            "gelu_python" => return Ok(Activation::Gelu),
            "gelu_fast" => return Ok(Activation::GeluNew),
            _ => {}
        }
        match Activation::deserialize(Value::from(name.as_str())) {
            Ok(activation) => Ok(activation),
            Err(_) => self.refuse(
                key,
                format!("\"{name}\""),
                "the supported activations are gelu, gelu_new (gelu_pytorch_tanh, gelu_fast), quick_gelu, relu and silu (swish)",
            ),
        }
    }

    /// What would make another model of it.
    pub fn refuse_variants(&self) -> Result<()> {
        let plain = "only plain models are supported";
        for key in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            self.only(key, Value::from(false), plain)?;
        }
        self.only(
            "position_embedding_type",
            Value::from("absolute"),
            "only absolute position embeddings are supported",
        )?;
        self.only("pruned_heads", Value::Object(Map::new()), plain)?;
        self.only(
            "quantization_config",
            Value::Null,
            "only weights in f32, f16 and bf16 are read: save the model without quantisation",
        )?;
        if let Some(code) = self.map.get("auto_map").filter(|code| !code.is_null()) {
            tracing::warn!(
                "{}: auto_map names code of the model's own ({code}), which is not run: it is computed as a plain \
                 model of its family",
                self.at
            );
        }
        Ok(())
    }
}
