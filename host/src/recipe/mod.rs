//! The recipe: a TOML file that describes a run completely. One struct per table, one file per struct.

mod adapter;
mod allocation;
mod data;
mod document;
mod eva;
mod format;
mod initial;
mod learning_rate;
mod metric;
mod model;
mod pattern;
mod plugin;
mod report_to;
mod schedule;
mod task;
mod train;
mod words;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use adapter::{
    AdapterBias, AdapterConfig, AdapterKind, InitLoraWeights, Layers, Matcher, Target, Targets,
};
pub use allocation::{AllocationConfig, OnPluginFault, OptimizerState, Unit};
pub use data::{Columns, DataConfig};
pub use document::{Document, nearest};
pub use eva::EvaConfig;
pub use format::{Column, Format};
pub use initial::Initial;
#[cfg(test)]
pub(crate) use initial::initial_budget;
pub use learning_rate::{LearningRateSchedule, Warmup};
pub use metric::{Metric, TOP};
use model::MAX_LENGTH;
pub use model::{HeadBias, ModelConfig, Precision};
pub use pattern::Pattern;
pub use plugin::{Isolation, PluginConfig};
pub use report_to::{ReportTo, Reporter};
pub use schedule::Schedule;
pub use task::{Problem, Task};
pub use train::{
    BatchLimit, CheckpointConfig, EvaluationConfig, Length, OnNonfinite, Order, TrainConfig,
};
pub use words::{Device, Every};

use crate::error::{Error, Result};

/// Everything that decides a run, checked, with its paths made absolute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The one source of every random choice: data order, dropout, new weights, allocations.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The run directory, relative to the current directory.
    pub output: PathBuf,
    /// Where to compute: `auto`, `cpu`, or `cuda`, `vulkan`, `metal`, `webgpu`, each also with an index: `cuda:1`.
    #[serde(default)]
    pub device: Device,
    /// Threads to compute with on the CPU; left out: one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Folders with plugins, relative to the recipe; searched after those of `--plugin-dir`.
    #[serde(default)]
    pub plugin_dirs: Vec<PathBuf>,
    /// The pretrained model.
    pub model: ModelConfig,
    /// What it learns from.
    pub data: DataConfig,
    /// What is trained beside which modules.
    #[serde(default)]
    pub adapter: AdapterConfig,
    /// When modules are chosen anew.
    #[serde(default)]
    pub allocation: AllocationConfig,
    /// The plugin that scores modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<PluginConfig>,
    /// The plugin that chooses modules by their scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<PluginConfig>,
    /// How to train.
    #[serde(default)]
    pub train: TrainConfig,
    /// When to evaluate.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// When to save.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

/// More than any machine has cores: the system would refuse to start them, or die of them.
pub const MOST_THREADS: usize = 1024;

fn default_seed() -> u64 {
    42
}

impl Recipe {
    /// Reads the recipe at `path` with each of `sets` (`table.key=value`) applied in order.
    pub fn load(path: &Path, sets: &[String]) -> Result<Recipe> {
        Recipe::load_with_document(path, sets).map(|(recipe, _)| recipe)
    }

    /// As [`load`](Recipe::load), with the places of its keys, to point at when one of them is found
    /// wrong later on.
    pub fn load_with_document(path: &Path, sets: &[String]) -> Result<(Recipe, Document)> {
        let text = Document::text("recipe", path)?;
        Recipe::parse(path, &text, sets)
    }

    /// As [`load_with_document`](Recipe::load_with_document), for a recipe whose `text` is at hand;
    /// relative paths in it are taken as if it lay at `path`.
    pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<(Recipe, Document)> {
        let (mut recipe, document): (Recipe, _) =
            Document::read("recipe", path, text, sets, &Recipe::keys())?;
        recipe.validate(&document)?;
        let base = path.parent().unwrap_or(Path::new(""));
        recipe.make_absolute(base)?;
        recipe.model.fill(&recipe.data);
        recipe.adapter.fill();
        recipe.train.fill();
        Ok((recipe, document))
    }

    /// The recipe with every default written out and every path absolute: loaded back from anywhere,
    /// it is equal to this one.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|error| Error::failure("the resolved recipe cannot be written").because(error))
    }

    /// The metric that picks the best checkpoint: the recipe's choice, or else the first that is measured.
    pub fn deciding_metric(&self) -> Metric {
        (self.evaluation.metric).unwrap_or_else(|| self.measured()[0])
    }

    /// What is measured, as far as the recipe tells the classes.
    fn measured(&self) -> Vec<Metric> {
        self.data
            .metrics(self.data.labels.as_ref().map_or(0, Vec::len))
    }

    /// What chooses its modules, in short: `activation → top-k`, or the adapter's kind where no plugin does.
    pub fn chooser(&self) -> String {
        let name = |plugin: &PluginConfig| {
            let file = Path::new(&plugin.plugin).file_name().unwrap_or_default();
            file.to_string_lossy().into_owned()
        };
        let plugins = [&self.scorer, &self.allocator].into_iter().flatten();
        let plugins: Vec<String> = plugins.map(name).collect();
        match self.allocation.is_dynamic() && !plugins.is_empty() {
            true => plugins.join(" → "),
            false => format!("{:?}", self.adapter.kind).to_lowercase(),
        }
    }

    /// The JSON Schema of a recipe, for editors.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Recipe).to_value()
    }

    /// What is odd about the recipe but no mistake, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.allocation.is_dynamic() {
            for (table, plugin) in [("scorer", &self.scorer), ("allocator", &self.allocator)] {
                if let Some(plugin) = plugin {
                    warnings.push(format!(
                        "[{table}] names \"{}\", which is not used: the schedule is \"never\"",
                        plugin.plugin
                    ));
                }
            }
        }
        warnings
    }

    /// Every dotted key that a recipe can have, plugins' parameters aside.
    fn keys() -> Vec<String> {
        fn collect(
            prefix: &str,
            schema: &serde_json::Value,
            root: &serde_json::Value,
            keys: &mut Vec<String>,
        ) {
            let target = schema
                .get("$ref")
                .and_then(|r| r.as_str())
                .and_then(|r| r.strip_prefix('#'));
            if let Some(target) = target.and_then(|pointer| root.pointer(pointer)) {
                collect(prefix, target, root, keys);
            }
            for union in ["anyOf", "oneOf", "allOf"] {
                for part in schema
                    .get(union)
                    .and_then(|u| u.as_array())
                    .into_iter()
                    .flatten()
                {
                    collect(prefix, part, root, keys);
                }
            }
            for (key, inner) in schema
                .get("properties")
                .and_then(|p| p.as_object())
                .into_iter()
                .flatten()
            {
                let key = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                collect(&key, inner, root, keys);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        let schema = Recipe::schema();
        let mut keys = Vec::new();
        collect("", &schema, &schema, &mut keys);
        keys
    }

    fn validate(&self, at: &Document) -> Result<()> {
        // TOML's integers end there, and the resolved recipe must be one.
        at.check(
            "seed",
            i64::try_from(self.seed).is_ok(),
            self.seed as f64,
            "a seed below 2^63",
        )?;
        at.check(
            "output",
            !self.output.as_os_str().is_empty(),
            &self.output,
            "a folder",
        )?;
        at.check(
            "threads",
            (1..=MOST_THREADS).contains(&self.threads.unwrap_or(1)),
            self.threads.unwrap_or(1) as f64,
            &format!("a whole number from 1 to {MOST_THREADS}"),
        )?;
        self.model.validate(&self.data, at)?;
        self.model.validate_precision(self.device, at)?;
        self.data
            .validate()
            .map_err(|error| at.adopt("data", error))?;
        self.adapter.validate(at)?;
        self.allocation.validate(self.allocator.as_ref(), at)?;
        // Whether the allocator does without a scorer is seen when it is loaded.
        if self.allocation.is_dynamic() && self.allocator.is_none() {
            return Err(at
                .error(
                    "allocation.schedule",
                    "the recipe reallocates, but has no [allocator]",
                    "this schedule needs an allocator",
                )
                .help(
                    "add `[allocator]` with `plugin = \"top-k\"`, or set `schedule = { kind = \"never\" }` for plain LoRA",
                ));
        }
        for (table, plugin) in [("scorer", &self.scorer), ("allocator", &self.allocator)] {
            if let Some(plugin) = plugin {
                plugin.validate(table, at)?;
            }
        }
        // Whatever the recipe says, one image fits into a batch.
        let max_length = match self.data.is_images() {
            true => 1,
            false => self.model.max_length.unwrap_or(MAX_LENGTH),
        };
        self.train.validate(max_length, at)?;
        if self.train.loraplus_lr_ratio.is_some() && self.adapter.kind == AdapterKind::Vera {
            return Err(at
                .error(
                    "train.loraplus_lr_ratio",
                    "`train.loraplus_lr_ratio` is given for VeRA",
                    "LoRA+ is a ratio of the rates of LoRA's B and A",
                )
                .help("drop the key: VeRA's vectors have one rate, `train.learning_rate`"));
        }
        self.evaluation.validate(max_length, at)?;
        self.checkpoint.validate(at)?;
        let Some(deciding) = self.evaluation.metric else {
            return Ok(());
        };
        let measured = self.measured();
        let names: Vec<&str> = measured.iter().map(|metric| metric.name()).collect();
        at.check(
            "evaluation.metric",
            measured.contains(&deciding),
            deciding,
            &format!(
                "one that is measured ({}); `data.metrics` adds others",
                names.join(", ")
            ),
        )
    }

    /// Makes every path absolute: `output` from the current directory, all others from `base`.
    fn make_absolute(&mut self, base: &Path) -> Result<()> {
        self.output = absolute(Path::new(""), &self.output)?;
        for folder in &mut self.plugin_dirs {
            *folder = absolute(base, folder)?;
        }
        for plugin in [&mut self.scorer, &mut self.allocator]
            .into_iter()
            .flatten()
        {
            if plugin.is_path() {
                plugin.plugin = absolute_text(base, &plugin.plugin)?;
            }
        }
        // A name is a Hub id unless it can only be a path, or a folder or GGUF file of that name is there.
        let name = Path::new(&self.model.name);
        let only_a_path = name.is_absolute() || name.starts_with(".") || name.starts_with("..");
        let is_gguf = name
            .extension()
            .is_some_and(|extension| extension == "gguf");
        if only_a_path || is_gguf || base.join(name).is_dir() {
            self.model.name = absolute_text(base, &self.model.name)?;
        }
        let paths = self.data.paths().into_iter();
        for path in paths.chain(&mut self.adapter.from) {
            *path = absolute(base, path)?;
        }
        Ok(())
    }
}

/// `path` seen from `base`, absolute, and without `..` where the folders are there to be asked.
pub(crate) fn absolute(base: &Path, path: &Path) -> Result<PathBuf> {
    let joined = base.join(path);
    let absolute = std::path::absolute(&joined).map_err(|error| {
        Error::failure(format!(
            "cannot make the path {} absolute",
            joined.display()
        ))
        .because(error)
    })?;
    if absolute
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return Ok(absolute.canonicalize().unwrap_or(absolute));
    }
    Ok(absolute)
}

fn absolute_text(base: &Path, path: &str) -> Result<String> {
    absolute(base, Path::new(path))?
        .into_os_string()
        .into_string()
        .map_err(|path| {
            Error::user(format!("the path {} is not UTF-8", path.display())).help(
                "move the recipe to a folder whose name is plain text: TOML can hold no other",
            )
        })
}

#[cfg(test)]
mod tests;
