//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pattern::Pattern;
use crate::adapter::{Adapters, LinearInfo, LoraConfig, components};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::{Family, HeadTensor, Saved, Weights, save};

/// The file of sizes.
const CONFIG: &str = "adapter_config.json";
/// The file of tensors.
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before every name.
const WRAPPER: &str = "base_model.model";

/// An adapter folder, read but not yet on a device.
pub struct Peft {
    /// Sizes.
    pub lora: LoraConfig,
    /// Paths of the adapted modules, without the family's prefix.
    pub paths: Vec<String>,
    /// What the adapter says it was trained on.
    pub base: Option<String>,
    rank_pattern: Pattern<u32>,
    alpha_pattern: Pattern<f64>,
    family: Family,
    weights: Weights,
}

/// The keys of `adapter_config.json` that are read back.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: Pattern<u32>,
    #[serde(default)]
    alpha_pattern: Pattern<f64>,
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
    let LoraConfig { rank, alpha, .. } = adapters.config;
    for (index, (module, pair)) in adapters.modules.iter().zip(&adapters.pairs).enumerate() {
        let remaining = components.map_or(&[][..], |all| &all[index]);
        let pair = match remaining.contains(&false) {
            true if !remaining.contains(&true) => continue,
            true => components::extract(pair, remaining),
            false => pair.clone(),
        };
        let own = pair[0].dims()[0] as u32;
        if own != rank {
            let alpha = alpha * f64::from(own) / f64::from(rank);
            let path = format!("{prefix}.{}", module.path);
            rank_pattern.insert(path.clone(), json!(own));
            alpha_pattern.insert(path, number(alpha));
        }
        modules.push(module.clone());
        for (tensor, part) in pair.iter().zip(["lora_A", "lora_B"]) {
            let name = format!("{WRAPPER}.{prefix}.{}.{part}.weight", module.path);
            tensors.push(Saved::new(name, tensor.dims().to_vec(), tensor)?);
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
    let config = json!({
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": adapters.config.dropout,
        "target_modules": target_modules(&modules, linears, prefix),
        "modules_to_save": modules_to_save,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
        "use_rslora": false,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    });
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
    let config: Config = serde_json::from_str(&text).map_err(|error| {
        Error::user(format!("{}: {error}", path.display()))
            .help("the file must be the adapter_config.json of a LoRA adapter, whole")
    })?;
    let unsupported = [
        (config.peft_type != "LORA", "peft_type", "LORA"),
        (config.use_rslora, "use_rslora", "false"),
        (config.use_dora, "use_dora", "false"),
        (config.r == 0, "r", "1 or more"),
        (
            config.rank_pattern.values().any(|rank| *rank == 0),
            "rank_pattern",
            "of ranks of 1 or more",
        ),
    ];
    if let Some((_, key, expected)) = unsupported.iter().find(|(found, _, _)| *found) {
        return Err(Error::user(format!(
            "{}: {key} has a value that is not supported",
            path.display()
        ))
        .help(format!(
            "only plain LoRA adapters are read: {key} must be {expected}"
        )));
    }
    let weights = Weights::open(&[folder.join(TENSORS)])?;
    let start = format!("{WRAPPER}.{}.", family.names().prefix);
    let paths = weights
        .names()
        .filter_map(|name| name.strip_prefix(&start)?.strip_suffix(".lora_A.weight"))
        .map(str::to_owned)
        .collect();
    Ok(Peft {
        lora: LoraConfig {
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
        },
        paths,
        base: config.base_model_name_or_path,
        rank_pattern: config.rank_pattern,
        alpha_pattern: config.alpha_pattern,
        family,
        weights,
    })
}

impl Peft {
    /// `r` of a module, without the family's prefix.
    fn rank(&self, path: &str) -> u32 {
        let path = format!("{}.{path}", self.family.names().prefix);
        self.rank_pattern.of(&path).unwrap_or(self.lora.rank)
    }

    /// `lora_alpha / r` of a module of this rank.
    fn scale(&self, path: &str, rank: u32) -> f32 {
        let path = format!("{}.{path}", self.family.names().prefix);
        let alpha = self.alpha_pattern.of(&path).unwrap_or(self.lora.alpha);
        (alpha / f64::from(rank)) as f32
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
            .map(|linear| linear.module(self.rank(&linear.path)))
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
        let pairs = modules
            .iter()
            .map(|module| {
                let [inputs, outputs, rank] =
                    [module.in_features, module.out_features, module.rank.into()]
                        .map(|size| size as usize);
                let name = format!("{WRAPPER}.{prefix}.{}", module.path);
                let a = self.weights.tensor(
                    &format!("{name}.lora_A.weight"),
                    [rank, inputs],
                    device,
                )?;
                let mut b = self.weights.tensor(
                    &format!("{name}.lora_B.weight"),
                    [outputs, rank],
                    device,
                )?;
                let (own, shared) = (self.scale(&module.path, module.rank), self.lora.scale());
                if own != shared {
                    b = b * (own / shared);
                }
                Ok([a, b])
            })
            .collect::<Result<_>>()?;
        Ok(Adapters {
            config: self.lora.clone(),
            modules,
            pairs,
        })
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
