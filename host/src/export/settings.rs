//! PEFT's `adapter_config.json`, read key by key: what changes the adapter's answers is followed or refused by
//! name, and so is a key that nobody here knows.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::svd::Svd;
use crate::adapter::{Config, LoraConfig, VeraConfig};
use crate::error::{Error, Result};
use crate::recipe::Pattern;

/// What `adapter_config.json` says.
pub struct Settings {
    /// Method and sizes, as all modules have them that no pattern names.
    pub config: Config,
    /// What the adapter says it was trained on.
    pub base: Option<String>,
    /// And in which revision.
    pub revision: Option<String>,
    /// Ranks of some modules.
    pub rank_pattern: Pattern<u32>,
    /// Alphas of some modules.
    pub alpha_pattern: Pattern<f64>,
    /// LoRA's scale is `alpha / √rank` (Kalajdzievski 2023) in place of `alpha / rank`.
    pub rank_stabilised: bool,
    /// The modules that were saved whole.
    pub modules_to_save: Vec<String>,
    /// The names of the adapted modules, or the ends of them, where the file has a plain list.
    pub targets: Option<Vec<String>>,
    /// What it was as AdaLoRA's, if that is what it is.
    pub svd: Option<Svd>,
}

/// Keys that say how an adapter was made or is to be trained, or what is seen from its tensors.
const INERT: [&str; 17] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // Of `nn.Linear`, which every layer here is, PEFT takes it as false.
    "fan_in_fan_out",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// Of AdaLoRA alone: how its budget fell, and keys of LoRA's that it does not go by.
const INERT_OF_ADALORA: [&str; 12] = [
    "alpha_pattern",
    "beta1",
    "beta2",
    "deltaT",
    "init_lora_weights",
    "orth_reg_weight",
    "r",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
    "use_rslora",
];

/// Of VeRA alone: whether the projections are there is seen from the tensors.
const INERT_OF_VERA: &str = "save_projection";

/// Keys that make something else of an adapter than LoRA, DoRA or VeRA.
const VARIANTS: [&str; 12] = [
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
];

impl Settings {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::user(format!("cannot read {}: {error}", path.display()))
                .help("an adapter folder holds adapter_config.json and adapter_model.safetensors")
        })?;
        Settings::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, at: &str) -> Result<Self> {
        let mut keys = Keys::new(text, at)?;
        let kind: String = keys.required("peft_type", "\"LORA\", \"ADALORA\" or \"VERA\"")?;
        if !["LORA", "ADALORA", "VERA"].contains(&kind.as_str()) {
            return Err(Error::user(format!("{at}: peft_type is {kind}"))
                .help("adapters of the types LORA, ADALORA and VERA are read"));
        }
        let base = keys.take("base_model_name_or_path", "text")?;
        let revision = keys.take("revision", "text")?;
        let targets = keys.targets();
        let modules_to_save = keys
            .take("modules_to_save", "a list of names")?
            .unwrap_or_default();
        let lora = kind == "LORA";
        let bias: Option<String> = keys.take("bias", "\"none\" or \"lora_only\"")?;
        let trains_bias = match bias.as_deref() {
            None | Some("none") => false,
            Some("lora_only") if lora => true,
            Some(_) => {
                return Err(keys.unsupported(
                    "bias",
                    "it must be \"none\", or of LoRA \"lora_only\": biases of layers without an adapter stay as they are",
                ));
            }
        };
        if !lora {
            keys.off("use_dora")?;
        }
        for key in VARIANTS {
            keys.off(key)?;
        }
        let rank_key = match kind.as_str() {
            "ADALORA" => "init_r",
            _ => "r",
        };
        let rank: u32 = keys.required(rank_key, "a rank of 1 or more")?;
        if rank == 0 {
            return Err(keys.unsupported(rank_key, "it must be 1 or more"));
        }
        let (mut rank_pattern, mut alpha_pattern) = (Pattern::default(), Pattern::default());
        let mut rank_stabilised = false;
        let mut svd = None;
        let config = match kind.as_str() {
            "ADALORA" => {
                let found = keys.svd(rank)?;
                let config = Config::Lora(found.with_rank(rank));
                svd = Some(found);
                config
            }
            "LORA" => {
                keys.starts_at_the_base()?;
                rank_stabilised = keys.take("use_rslora", "true or false")?.unwrap_or(false);
                if let Some(ranks) = keys.take("rank_pattern", "ranks by module")? {
                    rank_pattern = ranks;
                }
                if rank_pattern.values().any(|rank| *rank == 0) {
                    return Err(keys.unsupported("rank_pattern", "ranks must be 1 or more"));
                }
                if let Some(alphas) = keys.take("alpha_pattern", "alphas by module")? {
                    alpha_pattern = alphas;
                }
                let alpha: f64 = keys.required("lora_alpha", "a number other than 0")?;
                if alpha == 0.0 {
                    return Err(keys.unsupported("lora_alpha", "it must be other than 0"));
                }
                let dropout = keys.take("lora_dropout", "a probability")?.unwrap_or(0.0);
                Config::Lora(LoraConfig {
                    rank,
                    alpha,
                    dropout,
                    start: None,
                    use_dora: keys.take("use_dora", "true or false")?.unwrap_or(false),
                    trains_bias,
                    is_embedding: false,
                })
            }
            _ => Config::Vera(VeraConfig {
                rank,
                d_initial: keys.take("d_initial", "a number")?.unwrap_or(0.1),
                dropout: keys.take("vera_dropout", "a probability")?.unwrap_or(0.0),
                projection_prng_key: keys
                    .take("projection_prng_key", "a whole number")?
                    .unwrap_or(0),
            }),
        };
        keys.finish()?;
        let mut settings = Settings {
            config,
            base,
            revision,
            rank_pattern,
            alpha_pattern,
            rank_stabilised,
            modules_to_save,
            targets,
            svd,
        };
        if let Config::Lora(shared) = &mut settings.config {
            shared.alpha *= stabiliser(settings.rank_stabilised, shared.rank);
        }
        Ok(settings)
    }

    /// Method and sizes of the module at `path`, family's prefix included. Where the scale is rank-stabilised,
    /// its alpha stands for it: `alpha·√rank / rank` is `alpha / √rank`.
    pub fn of(&self, path: &str) -> Config {
        let Config::Lora(shared) = &self.config else {
            return self.config.clone();
        };
        if let Some(svd) = &self.svd {
            return Config::Lora(svd.of(path));
        }
        let rank = self.rank_pattern.of(path).unwrap_or(shared.rank);
        let alpha = self
            .alpha_pattern
            .of(path)
            .unwrap_or(shared.alpha / stabiliser(self.rank_stabilised, shared.rank));
        Config::Lora(LoraConfig {
            rank,
            alpha: alpha * stabiliser(self.rank_stabilised, rank),
            dropout: shared.dropout,
            start: None,
            use_dora: shared.use_dora,
            trains_bias: shared.trains_bias,
            is_embedding: false,
        })
    }

    /// Whether `modules_to_save` names the module at `path`, whole or by its end, or one around it.
    pub fn saves(&self, path: &str) -> bool {
        let ends = path.match_indices('.').map(|(at, _)| at);
        ends.chain([path.len()]).any(|end| {
            let around = &path[..end];
            let names = |name: &String| is_end(around, name);
            self.modules_to_save.iter().any(names)
        })
    }

    /// Whether the file's plain list of targets names the module at `path`.
    pub fn targets(&self, path: &str) -> bool {
        let targets = self.targets.iter().flatten();
        targets.into_iter().any(|target| is_end(path, target))
    }
}

/// What an alpha is multiplied by so that `alpha / rank` is the scale.
fn stabiliser(rank_stabilised: bool, rank: u32) -> f64 {
    if rank_stabilised {
        f64::from(rank).sqrt()
    } else {
        1.0
    }
}

/// Whether `name` is the path or its last parts.
fn is_end(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The keys of the file that were not looked at yet.
struct Keys<'a> {
    at: &'a str,
    map: Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn new(text: &str, at: &'a str) -> Result<Self> {
        let not = |why: String| {
            Error::user(format!("{at}: {why}"))
                .help("the file must be the adapter_config.json of a LoRA, AdaLoRA or VeRA adapter, whole")
        };
        match serde_json::from_str(text).map_err(|error| not(error.to_string()))? {
            Value::Object(mut map) => {
                // Null is as absent.
                map.retain(|_, value| !value.is_null());
                Ok(Keys { at, map })
            }
            _ => Err(not("not an object".to_owned())),
        }
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.map.remove(key) else {
            return Ok(None);
        };
        let wrong = |error: serde_json::Error| {
            let shown = brief(&value);
            Error::user(format!("{}: {key} is {shown}: {error}", self.at))
                .help(format!("expected {expected}"))
        };
        T::deserialize(&value).map(Some).map_err(wrong)
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<T> {
        self.take(key, expected)?.ok_or_else(|| {
            Error::user(format!("{}: the key `{key}` is missing", self.at)).help(format!(
                "the file must be the adapter_config.json of a LoRA, AdaLoRA or VeRA adapter, whole; `{key}` is {expected}"
            ))
        })
    }

    /// Refuses a key that is not off.
    fn off(&mut self, key: &str) -> Result<()> {
        match self.map.remove(key) {
            Some(value) if !is_off(&value) => Err(Error::user(format!(
                "{}: {key} has a value that is not supported: {}",
                self.at,
                brief(&value)
            ))
            .help(format!(
                "only LoRA, DoRA, AdaLoRA and VeRA adapters are read: {key} must be false or null"
            ))),
            _ => Ok(()),
        }
    }

    fn unsupported(&self, key: &str, help: &str) -> Error {
        Error::user(format!(
            "{}: {key} has a value that is not supported",
            self.at
        ))
        .help(help)
    }

    /// What of AdaLoRA decides the answers; what it does not go by is dropped.
    fn svd(&mut self, init_r: u32) -> Result<Svd> {
        for key in INERT_OF_ADALORA {
            self.map.remove(key);
        }
        let patterns: BTreeMap<String, Vec<bool>> = self
            .take("rank_pattern", "by tensor, which components remain")?
            .unwrap_or_default();
        let mut remaining = BTreeMap::new();
        for (name, components) in patterns {
            let Some(path) = name.strip_suffix(".lora_E") else {
                let help = format!("its keys are names of AdaLoRA's lora_E, not {name}");
                return Err(self.unsupported("rank_pattern", &help));
            };
            if components.len() != init_r as usize {
                let help = format!(
                    "of {path} it says which of {} components remain, and init_r is {init_r}",
                    components.len()
                );
                return Err(self.unsupported("rank_pattern", &help));
            }
            let rank = components.iter().filter(|remains| **remains).count();
            remaining.insert(path.to_owned(), rank as u32);
        }
        let alpha: f64 = self.required("lora_alpha", "a number")?;
        Ok(Svd {
            init_r,
            alpha,
            dropout: self.take("lora_dropout", "a probability")?.unwrap_or(0.0),
            remaining,
        })
    }

    /// `target_modules` where it is a list and nothing takes modules out of it.
    fn targets(&mut self) -> Option<Vec<String>> {
        let exceptions = ["exclude_modules", "layers_to_transform"];
        let plain = exceptions
            .iter()
            .all(|key| self.map.get(*key).is_none_or(is_off));
        let targets = self.map.remove("target_modules")?;
        Vec::deserialize(&targets).ok().filter(|_| plain)
    }

    /// Refuses a way to start that leaves the base model changed: A and B then belong to that one.
    fn starts_at_the_base(&mut self) -> Result<()> {
        let key = "init_lora_weights";
        let Some(start) = self.map.remove(key) else {
            return Ok(());
        };
        let plain = ["gaussian", "orthogonal", "eva"];
        if start.is_boolean() || start.as_str().is_some_and(|start| plain.contains(&start)) {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: {key} is {}: such an adapter belongs to a base model that was changed when it was made",
            self.at,
            brief(&start)
        ))
        .help(
            "convert it to plain LoRA with PEFT: \
             save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER)",
        ))
    }

    /// Refuses a key that nobody knows, unless it is off.
    fn finish(self) -> Result<()> {
        for (key, value) in &self.map {
            if INERT.contains(&key.as_str()) || key == INERT_OF_VERA {
                continue;
            }
            if !is_off(value) {
                return Err(Error::user(format!(
                    "{}: the key {key} ({}) is not known here, and may change what the adapter computes",
                    self.at,
                    brief(value)
                ))
                .help(format!(
                    "take it out of the file if it changes nothing; only LoRA, DoRA, AdaLoRA and VeRA adapters are read, \
                     and {key} belongs to another kind or a later PEFT"
                )));
            }
            tracing::warn!("{}: the key {key} is not known here; it is off", self.at);
        }
        Ok(())
    }
}

/// Whether a value turns nothing on.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A value, cut where it is long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Settings> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8{more}}}"#);
        Settings::parse(&text, "adapter_config.json")
    }

    #[test]
    fn scales() {
        let plain =
            read(r#", "rank_pattern": {"value": 16}, "alpha_pattern": {"key": 2}"#).unwrap();
        let stabilised = read(
            r#", "use_rslora": true, "rank_pattern": {"value": 16}, "alpha_pattern": {"key": 2}"#,
        )
        .unwrap();
        for (path, of_plain, of_stabilised) in [
            ("bert.query", 8.0 / 4.0, 8.0 / 2.0),
            ("bert.value", 8.0 / 16.0, 8.0 / 4.0),
            ("bert.key", 2.0 / 4.0, 2.0 / 2.0),
        ] {
            assert_eq!(plain.of(path).scale(), of_plain, "{path}");
            assert_eq!(stabilised.of(path).scale(), of_stabilised, "{path}");
        }
        assert_eq!(stabilised.config.scale(), 4.0);
    }

    fn read_adalora(more: &str) -> Result<Settings> {
        let text = format!(
            r#"{{"peft_type": "ADALORA", "init_r": 4, "r": 8, "tinit": 3, "lora_alpha": 8{more}}}"#
        );
        Settings::parse(&text, "adapter_config.json")
    }

    #[test]
    fn adaloras_scale_is_that_of_the_rank_at_the_start() {
        let pattern = r#""rank_pattern": {"bert.query.lora_E": [true, false, true, true], "bert.key.lora_E": [false, false, false, false]}"#;
        let found = read_adalora(&format!(r#", "use_rslora": true, {pattern}"#)).unwrap();
        for (path, rank) in [("bert.query", 3), ("bert.value", 4)] {
            let config = found.of(path);
            assert_eq!(config.rank(), rank);
            assert_eq!(config.scale(), (8.0 / 4.00001) as f32);
        }
        assert_eq!(found.svd.unwrap().rank("bert.key"), 0);
        // PEFT then takes the rank, of what remains.
        let found = read_adalora(&format!(r#", {pattern}"#)).unwrap();
        let svd = Svd {
            alpha: 0.0,
            ..found.svd.unwrap()
        };
        assert_eq!(svd.of("bert.query").scale(), (3.0 / 4.00001) as f32);
    }

    #[test]
    fn adaloras_that_cannot_be_are_refused() {
        for (more, words) in [
            (
                r#", "rank_pattern": {"bert.query.lora_E": [true]}"#,
                "rank_pattern",
            ),
            (
                r#", "rank_pattern": {"bert.query": [true, true, true, true]}"#,
                "rank_pattern",
            ),
            (r#", "rank_pattern": {"query": 3}"#, "rank_pattern"),
            (r#", "use_dora": true"#, "use_dora"),
            (r#", "bias": "all""#, "bias"),
            (r#", "some_later_key": 3"#, "some_later_key"),
        ] {
            let error = read_adalora(more).err().expect(more);
            assert!(error.to_string().contains(words), "{error}");
        }
        let zero = r#"{"peft_type": "ADALORA", "init_r": 0, "lora_alpha": 8}"#;
        let error = Settings::parse(zero, "it").err().expect("a rank of 0");
        assert!(error.to_string().contains("init_r"), "{error}");
        // A key of AdaLoRA's in a file of LoRA's changes what it is.
        assert!(read(r#", "orth_reg_weight": 0.5"#).is_err());
    }

    #[test]
    fn null_is_as_absent_and_off_is_off() {
        for more in [
            r#", "use_dora": null, "bias": null, "rank_pattern": null, "modules_to_save": null"#,
            r#", "use_dora": false, "layer_replication": [], "loftq_config": {"loftq_bits": 4}"#,
            r#", "init_lora_weights": false, "exclude_modules": "classifier""#,
            r#", "init_lora_weights": "gaussian", "some_later_key": null"#,
            r#", "init_lora_weights": "eva", "use_some_later_method": false"#,
        ] {
            assert!(read(more).is_ok(), "{more}");
        }
    }

    #[test]
    fn every_other_kind_is_refused_by_its_key() {
        for key in VARIANTS {
            for value in ["true", "{\"a\": 1}", "[1]", "7"] {
                let error = read(&format!(r#", "{key}": {value}"#)).err().expect(key);
                assert!(error.to_string().contains(key), "{error}");
            }
        }
        for (more, words) in [
            (r#", "init_lora_weights": "pissa""#, "init_lora_weights"),
            (
                r#", "init_lora_weights": "pissa_niter_16""#,
                "init_lora_weights",
            ),
            (r#", "init_lora_weights": "olora""#, "init_lora_weights"),
            (r#", "init_lora_weights": "corda""#, "init_lora_weights"),
            (r#", "init_lora_weights": "loftq""#, "init_lora_weights"),
            (r#", "init_lora_weights": "lora_ga""#, "init_lora_weights"),
            (r#", "bias": "all""#, "bias"),
            (r#", "use_dora": "yes""#, "use_dora"),
            (r#", "rank_pattern": {"query": 0}"#, "rank_pattern"),
            (r#", "rank_pattern": 3"#, "rank_pattern"),
            (r#", "use_rslora": "yes""#, "use_rslora"),
            (r#", "some_later_key": 3"#, "some_later_key"),
        ] {
            let error = read(more).err().expect(more);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn saved_modules_by_their_names() {
        let settings = read(r#", "modules_to_save": ["pooler", "classifier"]"#).unwrap();
        assert!(settings.saves("bert.pooler.dense"));
        assert!(settings.saves("classifier"));
        assert!(settings.saves("classifier.out_proj"));
        assert!(!settings.saves("pre_classifier"));
        assert!(!settings.saves("bert.encoder.layer.0.output.dense"));
    }
}
