//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pattern::Pattern;
use crate::adapter::{
    Adapters, Config, LinearInfo, LoraConfig, Projections, VeraConfig, components,
};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::{Family, HeadTensor, Saved, Weights, save};

/// The file of sizes.
const CONFIG: &str = "adapter_config.json";
/// The file of tensors.
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before every name.
const WRAPPER: &str = "base_model.model";
/// VeRA's shared matrices, which belong to no module.
const PROJECTIONS: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

/// An adapter folder, read but not yet on a device.
pub struct Peft {
    /// Method and sizes.
    pub config: Config,
    /// Paths of the adapted modules, without the family's prefix.
    pub paths: Vec<String>,
    /// What the adapter says it was trained on.
    pub base: Option<String>,
    rank_pattern: Pattern<u32>,
    alpha_pattern: Pattern<f64>,
    family: Family,
    weights: Weights,
}

/// The keys of every `adapter_config.json` that are read back.
#[derive(Deserialize)]
struct Common {
    peft_type: String,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
}

/// Those of LoRA's.
#[derive(Deserialize)]
struct Lora {
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: Pattern<u32>,
    #[serde(default)]
    alpha_pattern: Pattern<f64>,
}

/// Those of VeRA's.
#[derive(Deserialize)]
struct Vera {
    r: u32,
    #[serde(default = "vera_d_initial")]
    d_initial: f64,
    #[serde(default)]
    vera_dropout: f64,
    #[serde(default)]
    projection_prng_key: u64,
    #[serde(default = "vera_bias")]
    bias: String,
}

fn vera_d_initial() -> f64 {
    0.1
}

fn vera_bias() -> String {
    "none".to_owned()
}

/// Writes adapter and head into `folder`, which must exist and be nobody's yet.
///
/// Of each module only its `components` that remain, where any were pruned: its rank then stands in
/// `rank_pattern`, and its alpha in `alpha_pattern`, in proportion, so that the scale stays what it was.
/// A module of which none remains is not among the `target_modules`.
pub fn write<B: Kernels>(
    folder: &Path,
    family: Family,
    base: &str,
    adapters: &Adapters<B>,
    components: Option<&[Vec<bool>]>,
    linears: &[LinearInfo],
    head: &[(HeadTensor, Tensor<B, 2>)],
) -> Result<()> {
    let prefix = family.names().prefix;
    let mut tensors = Vec::new();
    let mut modules = Vec::new();
    let (mut rank_pattern, mut alpha_pattern) = (Map::new(), Map::new());
    for (index, (module, pair)) in adapters.modules.iter().zip(adapters.pairs()).enumerate() {
        let remaining = components.map_or(&[][..], |all| &all[index]);
        let pair = match remaining.contains(&false) {
            true if !remaining.contains(&true) => continue,
            true => components::extract(pair, remaining),
            false => pair.clone(),
        };
        if let Config::Lora(LoraConfig { rank, alpha, .. }) = adapters.config {
            let own = pair[0].dims()[0] as u32;
            if own != rank {
                let alpha = alpha * f64::from(own) / f64::from(rank);
                let path = format!("{prefix}.{}", module.path);
                rank_pattern.insert(path.clone(), json!(own));
                alpha_pattern.insert(path, number(alpha));
            }
        }
        modules.push(module.clone());
        for (tensor, part) in pair.iter().zip(adapters.config.parts()) {
            let name = format!("{WRAPPER}.{prefix}.{}.{part}", module.path);
            let [rows, columns] = tensor.dims();
            tensors.push(match &adapters.config {
                Config::Lora(_) => {
                    Saved::new(format!("{name}.weight"), vec![rows, columns], tensor)?
                }
                Config::Vera(_) => Saved::new(name, vec![rows], tensor)?,
            });
        }
    }
    if let Some(whole) = adapters.projections.as_ref().and_then(Projections::whole) {
        for (name, tensor) in PROJECTIONS.into_iter().zip(whole) {
            tensors.push(Saved::new(name.to_owned(), tensor.dims().to_vec(), tensor)?);
        }
    }
    let mut modules_to_save: Vec<&str> = Vec::new();
    for (info, tensor) in head {
        tensors.push(Saved::new(
            format!("{WRAPPER}.{}", info.name),
            info.shape.clone(),
            tensor,
        )?);
        let module = saved_module(family, &info.name);
        if !modules_to_save.contains(&module) {
            modules_to_save.push(module);
        }
    }
    save(&folder.join(TENSORS), &tensors, &[("format", "pt")])?;
    let mut config = match &adapters.config {
        Config::Lora(lora) => json!({
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": number(lora.alpha),
            "lora_dropout": lora.dropout,
            "init_lora_weights": true,
            "use_dora": false,
            "use_rslora": false,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
        }),
        Config::Vera(vera) => json!({
            "peft_type": "VERA",
            "r": vera.rank,
            "d_initial": vera.d_initial,
            "vera_dropout": vera.dropout,
            "projection_prng_key": vera.projection_prng_key,
            // PEFT would draw others by that key.
            "save_projection": true,
            "init_weights": true,
        }),
    };
    let common = json!({
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "target_modules": target_modules(&modules, linears, prefix),
        "modules_to_save": modules_to_save,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    if let (Value::Object(config), Value::Object(common)) = (&mut config, common) {
        config.extend(common);
    }
    let path = folder.join(CONFIG);
    let text = serde_json::to_string_pretty(&config)
        .map_err(|error| Error::failure(format!("{}: {error}", path.display())))?;
    std::fs::write(&path, text + "\n")
        .map_err(|error| Error::failure(format!("cannot write {}: {error}", path.display())))
}

/// The module of Transformers' class that a head tensor belongs to, as `modules_to_save` names it.
fn saved_module(family: Family, name: &str) -> &str {
    match family {
        // RoBERTa's two layers are one `classifier` module.
        Family::Roberta => "classifier",
        Family::Bert | Family::DistilBert => {
            name.rsplit_once('.').map_or(name, |(module, _)| module)
        }
    }
}

/// A whole number without its point, as PEFT's own files have it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// Roles where they say exactly which modules are adapted, as a person would write them; else whole paths.
fn target_modules(modules: &[ModuleInfo], linears: &[LinearInfo], prefix: &str) -> Vec<String> {
    let mut roles: Vec<String> = Vec::new();
    for module in modules {
        if !roles.contains(&module.role) {
            roles.push(module.role.clone());
        }
    }
    let of_roles = linears
        .iter()
        .filter(|linear| roles.iter().any(|role| role == linear.role()));
    // PEFT matches names in the whole model: a pooler that trains is `dense` too, and not in `linears`.
    if of_roles.count() == modules.len() && !roles.iter().any(|role| role == "dense") {
        return roles;
    }
    modules
        .iter()
        .map(|module| format!("{prefix}.{}", module.path))
        .collect()
}

/// Reads an adapter folder that PEFT or dynalora wrote.
pub fn read(folder: &Path, family: Family) -> Result<Peft> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::user(format!("cannot read {}: {error}", path.display()))
            .help("an adapter folder holds adapter_config.json and adapter_model.safetensors")
    })?;
    let at = path.display().to_string();
    let common: Common = parse(&text, &at)?;
    let weights = Weights::open(&[folder.join(TENSORS)])?;
    let ((config, rank_pattern, alpha_pattern), first) = match common.peft_type.as_str() {
        "LORA" => (lora(parse(&text, &at)?, &at)?, "lora_A.weight"),
        "VERA" => {
            let config = vera(parse(&text, &at)?, &weights, &at)?;
            (
                (config, Pattern::default(), Pattern::default()),
                "vera_lambda_d",
            )
        }
        other => {
            return Err(Error::user(format!("{at}: peft_type is {other}"))
                .help("adapters of the types LORA and VERA are read"));
        }
    };
    let start = format!("{WRAPPER}.{}.", family.names().prefix);
    let paths = weights
        .names()
        .filter_map(|name| {
            let path = name.strip_prefix(&start)?.strip_suffix(first)?;
            path.strip_suffix('.')
        })
        .map(str::to_owned)
        .collect();
    Ok(Peft {
        config,
        paths,
        base: common.base_model_name_or_path,
        rank_pattern,
        alpha_pattern,
        family,
        weights,
    })
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str, at: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::user(format!("{at}: {error}"))
            .help("the file must be the adapter_config.json of a LoRA or VeRA adapter, whole")
    })
}

/// What all modules share, and what some have of their own.
fn lora(config: Lora, at: &str) -> Result<(Config, Pattern<u32>, Pattern<f64>)> {
    refuse(
        at,
        &[
            (config.use_rslora, "use_rslora", "false"),
            (config.use_dora, "use_dora", "false"),
            (config.r == 0, "r", "1 or more"),
            (
                config.rank_pattern.values().any(|rank| *rank == 0),
                "rank_pattern",
                "of ranks of 1 or more",
            ),
        ],
    )?;
    let shared = Config::Lora(LoraConfig {
        rank: config.r,
        alpha: config.lora_alpha,
        dropout: config.lora_dropout,
    });
    Ok((shared, config.rank_pattern, config.alpha_pattern))
}

fn vera(config: Vera, weights: &Weights, at: &str) -> Result<Config> {
    refuse(
        at,
        &[
            (config.bias != "none", "bias", "\"none\""),
            (config.r == 0, "r", "1 or more"),
        ],
    )?;
    if let Some(missing) = PROJECTIONS.iter().find(|name| !weights.contains(name)) {
        return Err(Error::user(format!(
            "{at}: the adapter was saved without its projections: {TENSORS} has no {missing}"
        ))
        .help(
            "only PyTorch's generator can draw them again: load the adapter with PEFT, set \
             save_projection = True in its VeraConfig before it is made or loaded, and save it again",
        ));
    }
    Ok(Config::Vera(VeraConfig {
        rank: config.r,
        d_initial: config.d_initial,
        dropout: config.vera_dropout,
        projection_prng_key: config.projection_prng_key,
    }))
}

/// Refuses the first key that has a value which is not supported.
fn refuse(at: &str, unsupported: &[(bool, &str, &str)]) -> Result<()> {
    match unsupported.iter().find(|(found, _, _)| *found) {
        None => Ok(()),
        Some((_, key, expected)) => Err(Error::user(format!(
            "{at}: {key} has a value that is not supported"
        ))
        .help(format!(
            "only plain LoRA and VeRA adapters are read: {key} must be {expected}"
        ))),
    }
}

impl Peft {
    /// Method and sizes of the module at `path`, without the family's prefix.
    fn config_of(&self, path: &str) -> Config {
        let path = format!("{}.{path}", self.family.names().prefix);
        match &self.config {
            Config::Lora(lora) => Config::Lora(LoraConfig {
                rank: self.rank_pattern.of(&path).unwrap_or(lora.rank),
                alpha: self.alpha_pattern.of(&path).unwrap_or(lora.alpha),
                dropout: lora.dropout,
            }),
            vera => vera.clone(),
        }
    }

    /// The adapter's modules among a model's linear layers, in forward order.
    pub fn modules(&self, linears: &[LinearInfo]) -> Result<Vec<ModuleInfo>> {
        if let Some(unknown) = self
            .paths
            .iter()
            .find(|path| !linears.iter().any(|linear| &linear.path == *path))
        {
            return Err(Error::user(format!(
                "the adapter has a module {unknown} that the base model lacks"
            ))
            .help("use the base model it was trained on"));
        }
        let adapted = linears
            .iter()
            .filter(|linear| self.paths.contains(&linear.path));
        Ok(adapted
            .map(|linear| linear.module(&self.config_of(&linear.path)))
            .collect())
    }

    /// The adapter's values on a device. Where `alpha_pattern` gives a module a scale of its own, it is
    /// multiplied into B, for all modules share one scale here.
    pub fn adapters<B: Kernels>(
        &self,
        family: Family,
        modules: Vec<ModuleInfo>,
        device: &B::Device,
    ) -> Result<Adapters<B>> {
        let prefix = family.names().prefix;
        let parts = self.config.parts();
        let tensor = |module: &ModuleInfo, part: usize| {
            let name = format!("{WRAPPER}.{prefix}.{}.{}", module.path, parts[part]);
            let shape = self.config.shapes(module)[part];
            match &self.config {
                Config::Lora(_) => self
                    .weights
                    .tensor(&format!("{name}.weight"), shape, device),
                Config::Vera(_) => {
                    let vector = self.weights.tensor::<B, 1>(&name, [shape[0]], device)?;
                    Ok(vector.reshape(shape))
                }
            }
        };
        let pairs = modules
            .iter()
            .map(|module| {
                let [a, mut b] = [tensor(module, 0)?, tensor(module, 1)?];
                let own = self.config_of(&module.path).scale();
                let shared = self.config.scale();
                if own != shared {
                    b = b * (own / shared);
                }
                Ok([a, b])
            })
            .collect::<Result<_>>()?;
        let projections = match &self.config {
            Config::Lora(_) => None,
            Config::Vera(vera) => {
                let [a, b] = vera.projection_shapes(&modules);
                let [name_a, name_b] = PROJECTIONS;
                let a = self.weights.tensor(name_a, a, device)?;
                let b = self.weights.tensor(name_b, b, device)?;
                Some(Projections::new([a, b], &modules))
            }
        };
        Ok(Adapters::of(
            self.config.clone(),
            modules,
            pairs,
            projections,
        ))
    }

    /// The head's values on a device.
    pub fn head<B: Kernels>(
        &self,
        tensors: &[HeadTensor],
        device: &B::Device,
    ) -> Result<Vec<Tensor<B, 2>>> {
        let values = tensors.iter().map(|tensor| {
            let name = format!("{WRAPPER}.{}", tensor.name);
            match tensor.shape[..] {
                [len] => {
                    let bias = self.weights.tensor::<B, 1>(&name, [len], device)?;
                    Ok(bias.reshape([1, len]))
                }
                [rows, columns] => self.weights.tensor(&name, [rows, columns], device),
                _ => Err(Error::failure(format!(
                    "{name} has neither one nor two dimensions"
                ))),
            }
        });
        values.collect()
    }
}
