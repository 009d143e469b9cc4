//! `[adapter]`: what is trained beside which modules.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::document::Document;
use super::eva::EvaConfig;
use super::pattern::{self, Pattern};
use crate::error::{Error, Result};

/// The adapter of every target module. PEFT's names for the keys (`r`, `lora_alpha`, `lora_dropout`,
/// `vera_dropout`, `target_modules`) are understood too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterConfig {
    /// The method.
    pub kind: AdapterKind,
    /// Width of the bottleneck: rows of `A: [rank, in]`, columns of `B: [out, rank]`; left out: 8 for LoRA,
    /// 256 for VeRA.
    #[serde(alias = "r", skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// LoRA: the rank up to which an allocator can let modules grow: their pairs have so many components, of which
    /// the first `rank` train at first; left out: `rank`. The scale stays `alpha / rank`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r_max: Option<usize>,
    /// LoRA: the adapter's share is scaled by `alpha / rank`; left out: 16.
    #[serde(alias = "lora_alpha", skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// LoRA: scaled by `alpha / √rank` instead (rsLoRA, Kalajdzievski 2023); left out: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// LoRA: ranks of some modules, by regular expressions over paths or their last parts: PEFT's `rank_pattern`.
    #[serde(
        deserialize_with = "pattern::in_recipe",
        skip_serializing_if = "Option::is_none"
    )]
    pub rank_pattern: Option<Pattern<u32>>,
    /// LoRA: α of some modules, named in the same way: PEFT's `alpha_pattern`.
    #[serde(
        deserialize_with = "pattern::in_recipe",
        skip_serializing_if = "Option::is_none"
    )]
    pub alpha_pattern: Option<Pattern<f64>>,
    /// LoRA: where A and B start. `"pissa"`: at the principal components of the module's frozen weight (PiSSA, Meng et
    /// al. 2024), `"pissa_niter_4"`: at nearly these, by so many iterations of a subspace; `"eva"`: A at the directions in
    /// which what the module reads varies most, B at zero (EVA, Paischer et al. 2024); left out: A drawn, B zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_lora_weights: Option<InitLoraWeights>,
    /// LoRA: the sizes of the rows of `W + (alpha / rank)·B·A` train apart from their directions (DoRA, Liu et al. 2024);
    /// left out: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_dora: Option<bool>,
    /// LoRA: whether the adapted layers' biases train, each with its module; left out: `"none"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<AdapterBias>,
    /// How, under `init_lora_weights = "eva"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eva: Option<EvaConfig>,
    /// Dropout on the adapter's input.
    #[serde(alias = "lora_dropout", alias = "vera_dropout")]
    pub dropout: f64,
    /// VeRA: what every element of `λ_d` is at the start; left out: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_initial: Option<f64>,
    /// VeRA: the seed of the shared matrices A and B, which `seed` does not touch; left out: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_prng_key: Option<u64>,
    /// Where training starts instead: a run's folder, or that of an adapter of PEFT's, whose modules, sizes and scales are
    /// those that this recipe names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Whether the head that was saved with `from` is where the head starts too; false: it starts anew, for another task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_head: Option<bool>,
    /// The modules that get an adapter: one target or a list of them.
    #[serde(alias = "target_modules")]
    pub targets: Targets,
    /// Modules that get none although they are targets: named as targets are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// The layers whose modules get one, from 0 at the input: one or a list; left out: all, and what is in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Layers>,
}

/// The methods there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// `ΔW = (alpha / rank) · B·A` (Hu et al. 2021).
    #[default]
    Lora,
    /// `ΔW = Λ_b·B·Λ_d·A`: of all modules' shared random A and B the rows are scaled by two trainable vectors
    /// (Kopiczko et al. 2024).
    Vera,
}

/// Which of the base model's biases train, by PEFT's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterBias {
    /// None.
    #[default]
    None,
    /// Those of the adapted layers that have one, each while its module is active.
    LoraOnly,
    /// Every bias, which is refused.
    #[schemars(skip)]
    All,
}

impl<'de> Deserialize<'de> for AdapterBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "none" => Ok(AdapterBias::None),
            "lora_only" => Ok(AdapterBias::LoraOnly),
            "all" => Ok(AdapterBias::All),
            other => Err(de::Error::unknown_variant(other, &["none", "lora_only"])),
        }
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        AdapterConfig {
            kind: AdapterKind::Lora,
            rank: None,
            r_max: None,
            alpha: None,
            use_rslora: None,
            rank_pattern: None,
            alpha_pattern: None,
            init_lora_weights: None,
            use_dora: None,
            bias: None,
            eva: None,
            dropout: 0.0,
            d_initial: None,
            projection_prng_key: None,
            from: None,
            from_head: None,
            targets: Targets(vec![
                Target::Name("query".into()),
                Target::Name("value".into()),
            ]),
            exclude_modules: None,
            layers_to_transform: None,
        }
    }
}

impl AdapterConfig {
    /// Width of the bottleneck.
    pub fn rank(&self) -> usize {
        self.rank.unwrap_or(match self.kind {
            AdapterKind::Lora => 8,
            AdapterKind::Vera => 256,
        })
    }

    /// The largest rank of a module.
    pub fn r_max(&self) -> usize {
        self.r_max.unwrap_or(self.rank())
    }

    /// Whether a module can start at a smaller rank than it can have.
    pub fn grows(&self) -> bool {
        let ranks = self.rank_pattern.iter().flat_map(Pattern::values);
        let least = ranks.map(|rank| *rank as usize).min();
        self.r_max
            .is_some_and(|most| most > self.rank().min(least.unwrap_or(most)))
    }

    /// LoRA's α.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(16.0)
    }

    /// What the share of a pair of this rank is scaled by: `alpha / rank`, of rsLoRA `alpha / √rank`.
    pub fn scale(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        match self.use_rslora.unwrap_or(false) {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }

    /// The rank that the module at `path`, family's prefix included, starts with, and its α.
    pub fn rank_and_alpha_of(&self, path: &str) -> (usize, f64) {
        let rank = self.rank_pattern.as_ref().and_then(|own| own.of(path));
        let alpha = self.alpha_pattern.as_ref().and_then(|own| own.of(path));
        let rank = rank.map_or(self.rank(), |rank| rank as usize);
        (rank, alpha.unwrap_or(self.alpha()))
    }

    /// Whether the adapters are DoRA's.
    pub fn use_dora(&self) -> bool {
        self.use_dora.unwrap_or(false)
    }

    /// Which biases train.
    pub fn bias(&self) -> AdapterBias {
        self.bias.unwrap_or_default()
    }

    /// How pairs start from what their modules read, if they do.
    pub fn eva(&self) -> Option<EvaConfig> {
        let starts = self.init_lora_weights == Some(InitLoraWeights::Eva);
        starts.then(|| self.eva.unwrap_or_default())
    }

    /// The start of VeRA's `λ_d`.
    pub fn d_initial(&self) -> f64 {
        self.d_initial.unwrap_or(0.1)
    }

    /// The seed of VeRA's shared matrices.
    pub fn projection_prng_key(&self) -> u64 {
        self.projection_prng_key.unwrap_or(0)
    }

    /// Writes the defaults that depend on the kind into the keys themselves.
    pub(super) fn fill(&mut self) {
        self.rank = Some(self.rank());
        match self.kind {
            AdapterKind::Lora => {
                self.alpha = Some(self.alpha());
                self.eva = self.eva();
            }
            AdapterKind::Vera => {
                // What is read has its own.
                let fresh = self.from.is_none();
                self.d_initial = fresh.then(|| self.d_initial());
                self.projection_prng_key = Some(self.projection_prng_key());
            }
        }
    }

    /// Refuses what only the other kind has.
    fn refuse_foreign_keys(&self, at: &Document) -> Result<()> {
        let (kind, other, foreign) = match self.kind {
            AdapterKind::Lora => (
                "lora",
                "vera",
                &["d_initial", "projection_prng_key", "vera_dropout"][..],
            ),
            AdapterKind::Vera => (
                "vera",
                "lora",
                &[
                    "alpha",
                    "alpha_pattern",
                    "bias",
                    "eva",
                    "init_lora_weights",
                    "lora_alpha",
                    "lora_dropout",
                    "r_max",
                    "rank_pattern",
                    "use_dora",
                    "use_rslora",
                ][..],
            ),
        };
        let mut keys = foreign.iter().map(|key| format!("adapter.{key}"));
        let Some(key) = keys.find(|key| at.has(key)) else {
            return Ok(());
        };
        let message = format!("`{key}` belongs to kind = \"{other}\"");
        let label = format!("the adapter's kind is \"{kind}\"");
        let help = format!("drop the key, or set `adapter.kind = \"{other}\"`");
        Err(at.error(&key, message, label).help(help))
    }

    pub(super) fn validate(&self, at: &Document) -> Result<()> {
        self.refuse_foreign_keys(at)?;
        let key =
            |ours: &'static str, pefts: &'static str| if at.has(pefts) { pefts } else { ours };
        let rank = self.rank();
        let rank_key = key("adapter.rank", "adapter.r");
        at.check(
            rank_key,
            (1..=65_536).contains(&rank),
            rank,
            "a rank from 1 to 65536",
        )?;
        let r_max = self.r_max();
        at.check(
            "adapter.r_max",
            (rank..=65_536).contains(&r_max),
            r_max,
            "a rank from that of `rank` to 65536",
        )?;
        self.validate_patterns(at)?;
        self.validate_from(at)?;
        self.validate_eva(at)?;
        let alpha = self.alpha();
        at.check(
            key("adapter.alpha", "adapter.lora_alpha"),
            alpha.is_finite() && alpha > 0.0,
            alpha,
            "a number above 0",
        )?;
        let pefts = match self.kind {
            AdapterKind::Lora => "adapter.lora_dropout",
            AdapterKind::Vera => "adapter.vera_dropout",
        };
        at.check_dropout(key("adapter.dropout", pefts), self.dropout)?;
        let pissa = self.init_lora_weights.filter(|start| start.is_pissa());
        if let (Some(start), true) = (pissa, self.dropout > 0.0) {
            return Err(at
                .error(
                    key("adapter.dropout", pefts),
                    format!(
                        "the adapter drops out, and `adapter.init_lora_weights` is \"{start}\""
                    ),
                    "principal components of the model would drop out at random",
                )
                .help("set it to 0, as PiSSA's authors do, or drop `adapter.init_lora_weights`"));
        }
        if self.bias() == AdapterBias::All {
            return Err(at
                .error(
                    "adapter.bias",
                    "`adapter.bias` is \"all\"",
                    "biases of norms, embeddings and layers without an adapter belong to no module",
                )
                .help(
                    "what trains is chosen module by module: \"lora_only\" trains the biases of the adapted layers, and \
                     targets = \"all-linear\" adapts all of them",
                ));
        }
        let d_initial = self.d_initial();
        at.check(
            "adapter.d_initial",
            d_initial.is_finite() && d_initial != 0.0,
            d_initial,
            "a number other than 0: with both vectors zero neither would have a gradient",
        )?;
        let prng_key = self.projection_prng_key();
        at.check(
            "adapter.projection_prng_key",
            i64::try_from(prng_key).is_ok(),
            prng_key as f64,
            "a seed below 2^63",
        )?;

        let key = key("adapter.targets", "adapter.target_modules");
        if self.targets.0.is_empty() {
            return Err(at
                .error(
                    key,
                    "no modules are targeted",
                    "expected at least one target",
                )
                .help("name the modules to adapt: [\"query\", \"value\"], or \"all-linear\""));
        }
        let excluded = self.exclude_modules.iter().flat_map(|excluded| &excluded.0);
        let excluded = excluded.map(|target| ("adapter.exclude_modules", target));
        for (key, target) in self
            .targets
            .0
            .iter()
            .map(|target| (key, target))
            .chain(excluded)
        {
            if let Err(reason) = target.compile() {
                return Err(at
                    .error(key, format!("the target \"{target}\" cannot be used"), reason)
                    .help("a target is the last part of a module's path (\"query\"), \"all-linear\", \"glob:…\" or \"regex:…\""));
            }
        }
        if self
            .layers_to_transform
            .as_ref()
            .is_some_and(|layers| layers.0.is_empty())
        {
            return Err(at
                .error(
                    "adapter.layers_to_transform",
                    "no layers are named",
                    "expected at least one",
                )
                .help("give their numbers, from 0 at the input: [4, 5]; or drop the key for all"));
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// Refuses other ways to start beside an adapter that is there.
    fn validate_from(&self, at: &Document) -> Result<()> {
        if self.from.is_none() {
            return match self.from_head {
                None => Ok(()),
                Some(_) => Err(at
                    .error(
                        "adapter.from_head",
                        "`adapter.from_head` is of an adapter to start from, and there is none",
                        "`adapter.from` is left out",
                    )
                    .help("drop it, or name the adapter in `adapter.from`")),
            };
        }
        let starts = ["init_lora_weights", "r_max", "d_initial"];
        match starts.iter().find(|key| at.has(&format!("adapter.{key}"))) {
            None => Ok(()),
            Some(key) => Err(at
                .error(
                    &format!("adapter.{key}"),
                    format!(
                        "`adapter.{key}` says how adapters start, and `adapter.from` names where"
                    ),
                    "what is read has its own ranks and values",
                )
                .help(format!("drop `adapter.{key}` or `adapter.from`"))),
        }
    }

    fn validate_eva(&self, at: &Document) -> Result<()> {
        let key = "adapter.eva";
        let Some(eva) = self.eva() else {
            return match self.eva {
                None => Ok(()),
                Some(_) => Err(at
                    .error(
                        key,
                        "`adapter.eva` is given, but pairs do not start by EVA",
                        "it says how they do",
                    )
                    .help("set `adapter.init_lora_weights = \"eva\"`, or drop the table")),
            };
        };
        eva.validate(at)?;
        if eva.redistributes() && self.r_max.is_some() {
            return Err(at
                .error(
                    "adapter.r_max",
                    format!(
                        "`adapter.r_max` is given, and EVA moves ranks between modules: `adapter.eva.rho` is {}",
                        eva.rho
                    ),
                    "pairs are as wide as the ranks that EVA gives them",
                )
                .help("set `adapter.eva.rho = 1`, so that modules keep their ranks and can grow from these, or drop `r_max`"));
        }
        Ok(())
    }

    fn validate_patterns(&self, at: &Document) -> Result<()> {
        let most = self.r_max.unwrap_or(65_536);
        let expected = match self.r_max {
            None => "a rank from 1 to 65536".to_owned(),
            Some(r_max) => format!("a rank from 1 to `r_max`, {r_max}"),
        };
        for (key, rank) in self.rank_pattern.iter().flat_map(Pattern::entries) {
            let key = format!("adapter.rank_pattern.{key}");
            at.check(
                &key,
                (1..=most).contains(&(*rank as usize)),
                rank,
                &expected,
            )?;
        }
        for (key, alpha) in self.alpha_pattern.iter().flat_map(Pattern::entries) {
            let key = format!("adapter.alpha_pattern.{key}");
            let right = alpha.is_finite() && *alpha > 0.0;
            at.check(&key, right, alpha, "a number above 0")?;
        }
        Ok(())
    }
}

/// Where LoRA's pairs start, by PEFT's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `pissa`: at the largest singular values of the frozen weight; `pissa_niter_N`: at nearly these, by N iterations of
    /// a random subspace.
    Pissa(Option<usize>),
    /// `eva`: at the directions in which what the module reads varies most.
    Eva,
}

impl InitLoraWeights {
    /// Whether it is PiSSA.
    pub fn is_pissa(self) -> bool {
        matches!(self, InitLoraWeights::Pissa(_))
    }
}

impl fmt::Display for InitLoraWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InitLoraWeights::Pissa(None) => f.write_str("pissa"),
            InitLoraWeights::Pissa(Some(iterations)) => write!(f, "pissa_niter_{iterations}"),
            InitLoraWeights::Eva => f.write_str("eva"),
        }
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let iterations = text.strip_prefix("pissa_niter_").map(str::parse);
        match (text.as_str(), iterations) {
            ("pissa", _) => Ok(InitLoraWeights::Pissa(None)),
            ("eva", _) => Ok(InitLoraWeights::Eva),
            (_, Some(Ok(iterations @ 1..=1000))) => Ok(InitLoraWeights::Pissa(Some(iterations))),
            _ => Err(de::Error::invalid_value(
                de::Unexpected::Str(&text),
                &"\"pissa\", \"pissa_niter_4\" with from 1 to 1000 iterations, or \"eva\"",
            )),
        }
    }
}

impl JsonSchema for InitLoraWeights {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "InitLoraWeights".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(pissa(_niter_[1-9][0-9]*)?|eva)$" })
    }
}

/// One or more targets; a module is adapted if any of them matches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(
    /// In the recipe's order.
    pub Vec<Target>,
);

/// Numbers of transformer layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(
    /// In the recipe's order.
    pub Vec<u32>,
);

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a layer's number, or a list of them")]
        enum Written {
            One(u32),
            Many(Vec<u32>),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::One(layer) => Layers(vec![layer]),
            Written::Many(layers) => Layers(layers),
        })
    }
}

impl JsonSchema for Layers {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Layers".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 },
            ],
        })
    }
}

/// A way to name modules by their path in the base model, such as
/// `encoder.layer.3.attention.self.query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `all-linear`: every linear layer except the head's.
    AllLinear,
    /// The whole path or the last parts of it: `query`, `attention.output.dense`. As in PEFT.
    Name(String),
    /// `glob:encoder.layer.[345].**`: over the whole path; `*` stays within one part of it, `**` crosses parts.
    Glob(String),
    /// `regex:.*\.(query|value)`: over the whole path, as in PEFT.
    Regex(String),
}

impl Target {
    /// A matcher for module paths; an error for a pattern that cannot be read.
    pub fn matcher(&self) -> Result<Matcher> {
        self.compile().map_err(|reason| {
            Error::user(format!("the target \"{self}\" cannot be used: {reason}"))
        })
    }

    fn compile(&self) -> Result<Matcher, String> {
        match self {
            Target::AllLinear => Ok(Matcher::All),
            Target::Name(name) => {
                let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
                if name
                    .split('.')
                    .all(|part| !part.is_empty() && part.chars().all(plain))
                {
                    Ok(Matcher::Name(name.clone()))
                } else {
                    Err("not part of a module's path, and neither a glob nor a regex".to_owned())
                }
            }
            // globset knows parts of a path by their slashes.
            Target::Glob(pattern) => GlobBuilder::new(&pattern.replace('.', "/"))
                .literal_separator(true)
                .build()
                .map(|glob| Matcher::Glob(glob.compile_matcher()))
                .map_err(|error| error.kind().to_string()),
            Target::Regex(pattern) => Regex::new(&format!("^(?:{pattern})$"))
                .map(Matcher::Regex)
                .map_err(|error| last_line(&error.to_string())),
        }
    }
}

/// regex draws its errors over several lines; the last says what is wrong.
fn last_line(text: &str) -> String {
    text.lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

/// A [`Target`] made ready.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Every path.
    All,
    /// Paths that end with these parts.
    Name(String),
    /// Paths a glob matches, with `/` between the parts.
    Glob(GlobMatcher),
    /// Paths a regex matches as a whole.
    Regex(Regex),
}

impl Matcher {
    /// Whether the module at `path` is meant.
    pub fn is_match(&self, path: &str) -> bool {
        match self {
            Matcher::All => true,
            Matcher::Name(name) => path
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            Matcher::Glob(glob) => glob.is_match(path.replace('.', "/")),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AllLinear => f.write_str("all-linear"),
            Target::Name(name) => f.write_str(name),
            Target::Glob(pattern) => write!(f, "glob:{pattern}"),
            Target::Regex(pattern) => write!(f, "regex:{pattern}"),
        }
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        if text == "all-linear" {
            return Target::AllLinear;
        }
        match text.split_once(':') {
            Some(("glob", pattern)) => Target::Glob(pattern.to_owned()),
            Some(("regex", pattern)) => Target::Regex(pattern.to_owned()),
            _ => Target::Name(text.to_owned()),
        }
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [only] => serializer.collect_str(only),
            many => serializer.collect_seq(many.iter().map(Target::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetsVisitor)
    }
}

struct TargetsVisitor;

impl<'de> de::Visitor<'de> for TargetsVisitor {
    type Value = Targets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a target in quotes, or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Targets, E> {
        Ok(Targets(vec![text.into()]))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Targets, A::Error> {
        let mut targets = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            targets.push(text.as_str().into());
        }
        Ok(Targets(targets))
    }
}

impl JsonSchema for Targets {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Targets".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(target: &str, path: &str) -> bool {
        Target::from(target).matcher().expect(target).is_match(path)
    }

    #[test]
    fn targets_match_paths_as_peft_does() {
        let query = "encoder.layer.3.attention.self.query";
        for target in [
            "all-linear",
            "query",
            "self.query",
            query,
            "glob:**.query",
            "glob:encoder.layer.[3-5].**",
            "glob:encoder.layer.{2,3}.*.*.query",
            r"regex:.*\.(query|value)",
        ] {
            assert!(matches(target, query), "{target}");
        }
        for target in [
            "uery",
            "key",
            "glob:*.query",
            "glob:encoder.layer.[4-5].**",
            "regex:query",
            "glob:query",
        ] {
            assert!(!matches(target, query), "{target}");
        }
        assert!(matches(
            "attention.output.dense",
            "encoder.layer.0.attention.output.dense"
        ));
        assert!(!matches(
            "attention.output.dense",
            "encoder.layer.0.output.dense"
        ));
    }

    #[test]
    fn patterns_that_cannot_be_read_are_refused() {
        for target in ["", "query,value", "a..b", "glob:[", "regex:(", "regx:query"] {
            assert!(Target::from(target).matcher().is_err(), "{target}");
        }
    }
}
