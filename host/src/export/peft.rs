//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;
use serde_json::{Map, Value, json};

use super::settings::Settings;
use super::svd;
use crate::adapter::{Adapters, Config, LinearInfo, Projections, Tensors, sizes};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::architecture::{Reads, WeightLayout};
use crate::model::{
    Advice, Architecture, Head, HeadStart, HeadTensor, Pretrained, Saved, Weights, save,
};

/// The file of sizes.
pub const CONFIG: &str = "adapter_config.json";
/// The file of tensors.
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT wrote before it had safetensors, and writes where it is asked to.
const PICKLED: &str = "adapter_model.bin";
/// What PEFT puts before every name.
const WRAPPER: &str = "base_model.model";
/// VeRA's shared matrices, which belong to no module.
const PROJECTIONS: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

/// An adapter folder, read but not yet on a device.
pub struct Peft {
    /// Paths of the adapted modules, without the family's prefix.
    pub paths: Vec<String>,
    /// Those whose layer has a bias that was trained.
    biased: BTreeSet<String>,
    /// Those of whose components AdaLoRA left none.
    emptied: Vec<String>,
    settings: Settings,
    model: Architecture,
    weights: Weights,
    folder: PathBuf,
    /// That of the tensors.
    file: PathBuf,
}

/// Writes adapter and head into `folder`, which must exist and be nobody's yet.
///
/// Of each module only its `components` that remain, where any were pruned: its rank then stands in
/// `rank_pattern`, and its alpha in `alpha_pattern`, in proportion, so that the scale stays what it was.
/// A module of which none remains is not among the `target_modules`, unless something beside its pair has trained. A factor on a module's scale is one on its alpha.
/// A pair that several modules use is written under the name of each. Of PiSSA what has been learnt is written, as plain
/// LoRA of twice the rank: what PEFT's `path_initial_model_for_weight_conversion` makes of its own.
pub fn write<B: Kernels>(
    folder: &Path,
    model: &Architecture,
    base: &str,
    adapters: &Adapters<B>,
    components: Option<&[Vec<bool>]>,
    linears: &[LinearInfo],
    head: &[(HeadTensor, Tensor<B, 2>)],
) -> Result<()> {
    let prefix = model.prefix;
    let shared = as_exported(&adapters.config);
    let mut tensors = Vec::new();
    let mut modules = Vec::new();
    let (mut rank_pattern, mut alpha_pattern) = (Map::new(), Map::new());
    for (index, module) in adapters.modules.iter().enumerate() {
        let mut remaining = components.map_or(Vec::new(), |all| all[index].clone());
        let [magnitude, bias] = adapters.beside_pair(index);
        if remaining.contains(&false) && !remaining.contains(&true) {
            if magnitude.is_none() && bias.is_none() {
                continue;
            }
            // One that adds nothing.
            remaining[0] = true;
        }
        let pair = adapters.trained(index, &remaining);
        if let (Config::Lora(shared), Config::Lora(own)) = (&shared, adapters.own(index)) {
            let rank = pair[0].dims()[0] as u32;
            let path = format!("{prefix}.{}", module.path);
            let mut alpha = own.alpha;
            if rank != own.rank {
                alpha = alpha * f64::from(rank) / f64::from(own.rank);
            }
            alpha *= adapters.factor(index);
            if alpha != shared.alpha {
                alpha_pattern.insert(path.clone(), number(alpha));
            }
            if rank != shared.rank {
                rank_pattern.insert(path, json!(rank));
            }
        }
        modules.push(module.clone());
        let values = Tensors {
            pair,
            magnitude,
            bias,
        };
        for (part, tensor) in adapters.own(index).parts().zip(values) {
            let (part, shape) = saved(part, tensor.dims());
            let name = format!("{WRAPPER}.{prefix}.{}.{part}", module.path);
            tensors.push(Saved::new(name, shape, &tensor)?);
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
        let module = saved_module(model, &info.name);
        if !modules_to_save.contains(&module) {
            modules_to_save.push(module);
        }
    }
    save(&folder.join(TENSORS), &tensors, &[("format", "pt")])?;
    let mut config = match &shared {
        Config::Lora(lora) => json!({
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": number(lora.alpha),
            "lora_dropout": lora.dropout,
            "init_lora_weights": true,
            "use_dora": lora.use_dora,
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
        "task_type": match head {
            [] => Some("CAUSAL_LM"),
            // PEFT has none for images.
            _ if model.patches().is_some() => None,
            _ if model.head.reads == Reads::Each => Some("TOKEN_CLS"),
            _ => Some("SEQ_CLS"),
        },
        "base_model_name_or_path": base,
        "target_modules": target_modules(&modules, linears, prefix),
        "modules_to_save": modules_to_save,
        "bias": match shared.trains_bias() {
            true => "lora_only",
            false => "none",
        },
        "fan_in_fan_out": model.weights == WeightLayout::InOut,
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

/// Name and shape of a module's tensor as PEFT has it in a file: vectors have one dimension.
fn saved(part: &str, [rows, columns]: [usize; 2]) -> (String, Vec<usize>) {
    match part {
        "lora_A" | "lora_B" => (format!("{part}.weight"), vec![rows, columns]),
        "lora_embedding_A" | "lora_embedding_B" => (part.to_owned(), vec![rows, columns]),
        vector => (vector.to_owned(), vec![rows]),
    }
}

/// The sizes that `adapter_config.json` speaks of: of PiSSA those of the pairs of twice the rank.
fn as_exported(config: &Config) -> Config {
    let mut config = config.clone();
    let pairs = config.pairs();
    if let Config::Lora(lora) = &mut config {
        lora.rank *= pairs;
        lora.alpha *= f64::from(pairs);
    }
    config
}

/// The module of Transformers' class that a head tensor belongs to, as `modules_to_save` names it.
fn saved_module<'a>(model: &Architecture, name: &'a str) -> &'a str {
    match model.head.module {
        // RoBERTa's two layers are one `classifier` module.
        Some(module) => module,
        None => name.rsplit_once('.').map_or(name, |(module, _)| module),
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

/// Reads an adapter folder that PEFT or dynalora wrote. One of AdaLoRA's is LoRA from here on, which is said.
pub fn read(folder: &Path, model: &Architecture) -> Result<Peft> {
    let settings = Settings::read(&folder.join(CONFIG))?;
    let name = match folder.join(TENSORS).exists() || !folder.join(PICKLED).exists() {
        true => TENSORS,
        false => PICKLED,
    };
    let file = folder.join(name);
    let weights =
        Weights::open_with(std::slice::from_ref(&file), Advice::ADAPTER)?.renamed(canonical)?;
    let firsts = match &settings.config {
        Config::Lora(_) if settings.svd.is_some() => &["lora_A"][..],
        Config::Lora(_) => &["lora_A.weight", "lora_embedding_A"],
        Config::Vera(_) => &["vera_lambda_d"],
    };
    let start = format!("{WRAPPER}.{}.", model.prefix);
    let paths: Vec<String> = weights
        .names()
        .filter_map(|name| {
            let name = name.strip_prefix(&start)?;
            let path = firsts.iter().find_map(|first| name.strip_suffix(first))?;
            path.strip_suffix('.')
        })
        .map(str::to_owned)
        .collect();
    let remains = |path: &String| match &settings.svd {
        Some(svd) => svd.rank(&format!("{}.{path}", model.prefix)) > 0,
        None => true,
    };
    let (paths, emptied): (Vec<String>, Vec<String>) = paths.into_iter().partition(remains);
    if let Some(svd) = &settings.svd {
        let is_known = |named: &str| {
            let mut known = paths.iter().chain(&emptied);
            known.any(|path| format!("{}.{path}", model.prefix) == named)
        };
        if let Some(path) = svd.remaining.keys().find(|path| !is_known(path)) {
            return Err(Error::user(format!(
                "{}: rank_pattern names {path}, but {name} has no adapter for it",
                folder.join(CONFIG).display()
            ))
            .help("the adapter is not whole, or not of this base model's family: save it again"));
        }
        tracing::info!(
            "{}: AdaLoRA's pairs are read as LoRA's, with E in B: what goes on from them has no penalty on how far A \
             and B are from orthogonal, and no budget of AdaLoRA's",
            folder.display()
        );
    }
    if let (Config::Vera(_), Some(missing)) = (
        &settings.config,
        PROJECTIONS.iter().find(|name| !weights.contains(name)),
    ) {
        return Err(Error::user(format!(
            "{}: the adapter was saved without its projections: {name} has no {missing}",
            folder.join(CONFIG).display()
        ))
        .help(
            "only PyTorch's generator can draw them again: load the adapter with PEFT, set \
             save_projection = True in its VeraConfig before it is made or loaded, and save it again",
        ));
    }
    let biased = model.linears(true).into_iter().filter(|linear| {
        linear.bias && weights.contains(&format!("{start}{}.base_layer.bias", linear.path))
    });
    Ok(Peft {
        biased: biased.map(|linear| linear.path).collect(),
        paths,
        emptied,
        settings,
        model: model.clone(),
        weights,
        folder: folder.to_owned(),
        file,
    })
}

/// A tensor's name as PEFT's `save_pretrained` writes it, of the name in a model's own `state_dict`, where that
/// of the adapter stands too: `lora_A.default.weight`, `classifier.modules_to_save.default.weight`.
fn canonical(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let adapters = [
        "lora_A",
        "lora_B",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "lora_E",
        "vera_lambda_d",
        "vera_lambda_b",
        "vera_A",
        "vera_B",
    ];
    if let Some(at) = parts.iter().position(|part| *part == "modules_to_save") {
        parts.remove(at);
        if parts.get(at) == Some(&"default") {
            parts.remove(at);
        }
    } else if let Some(at) = parts.iter().position(|part| adapters.contains(part))
        && parts.get(at + 1) == Some(&"default")
    {
        parts.remove(at + 1);
        // A module of PEFT's own there, and not in its files.
        if parts[at] == "lora_magnitude_vector" && parts.get(at + 1) == Some(&"weight") {
            parts.remove(at + 1);
        }
    }
    parts.join(".")
}

/// What a tensor that is not read belongs to, by its name.
fn belongs_to(name: &str) -> &'static str {
    let kinds = [
        (
            "lora_magnitude_vector",
            "DoRA, which the adapter's configuration does not speak of (use_dora)",
        ),
        (
            "lora_B.bias",
            "LoRA with biases (lora_bias), which is not supported",
        ),
        (
            "lora_embedding_",
            "LoRA on a table of embeddings that is not one of this base model's",
        ),
        ("token_adapter", "trainable tokens, which are not supported"),
        (
            "trainable_tokens",
            "trainable tokens, which are not supported",
        ),
        (
            "base_layer.bias",
            "a bias that the adapter's configuration does not speak of (bias = \"lora_only\"), or of a layer without one",
        ),
        (
            "base_layer",
            "the base model: save the adapter alone, with save_pretrained",
        ),
        (
            "original_module",
            "the base model: save the adapter alone, with save_pretrained",
        ),
        (
            "lora_",
            "a LoRA module that is not one of this base model's, or not in PEFT's spelling",
        ),
        (
            "vera_",
            "a VeRA module that is not one of this base model's, or not in PEFT's spelling",
        ),
    ];
    let mut kinds = kinds.into_iter();
    kinds.find(|(part, _)| name.contains(part)).map_or(
        "a saved module; of these the head and BERT's pooler are supported",
        |(_, kind)| kind,
    )
}

impl Peft {
    /// Method and sizes, as all modules have them that no pattern names.
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// Its two files: of sizes, and of tensors.
    pub fn files(&self) -> [PathBuf; 2] {
        [self.folder.join(CONFIG), self.file.clone()]
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the adapted modules, or the ends of them, where the adapter has a plain list.
    pub fn targets(&self) -> Option<&[String]> {
        self.settings.targets.as_deref()
    }

    /// What the adapter says it was trained on.
    pub fn base(&self) -> Option<&str> {
        self.settings.base.as_deref()
    }

    /// In which revision.
    pub fn revision(&self) -> Option<&str> {
        self.settings.revision.as_deref()
    }

    /// Method and sizes of the module at `path`, without the family's prefix.
    pub fn config_of(&self, path: &str) -> Config {
        let mut config = self.settings.of(&format!("{}.{path}", self.model.prefix));
        if let Config::Lora(lora) = &mut config {
            lora.trains_bias &= self.biased.contains(path);
            lora.is_embedding = self.model.tables().any(|table| table.path == path);
        }
        config
    }

    /// The base model as this adapter needs it, with the pooler frozen unless the adapter has one of its own; and
    /// the adapter held against it: every tensor must be one that is read, and all that its configuration speaks
    /// of must be there. Reads no values.
    pub fn fit(&self, base: Pretrained) -> Result<Pretrained> {
        let base = self.fit_pooler(base)?;
        let linears = base.linears();
        let modules = self.modules(&linears)?;
        let mut read: BTreeSet<String> = BTreeSet::new();
        for module in &modules {
            for (name, shape) in self.saved_of(module) {
                self.weights.require(&name, &shape)?;
                read.insert(name);
            }
        }
        // Nothing is in these, but they are AdaLoRA's.
        let empty = linears
            .iter()
            .filter(|linear| self.emptied.contains(&linear.path));
        for linear in empty {
            let sizes = [linear.inputs, linear.outputs, 0];
            for (name, shape) in svd::tensors(&self.start_of(&linear.path), sizes) {
                self.weights.require(&name, &shape)?;
                read.insert(name);
            }
        }
        if let Config::Vera(vera) = self.config() {
            for (name, shape) in PROJECTIONS
                .into_iter()
                .zip(vera.projection_shapes(&modules))
            {
                self.weights.require(name, &shape)?;
                read.insert(name.to_owned());
            }
        }
        for table in base.config.tables() {
            let name = format!("{}.base_layer.weight", self.start_of(&table.path));
            if self.paths.contains(&table.path) && self.weights.contains(&name) {
                self.is_the_bases(&name, &table, &base)?;
                read.insert(name);
            }
        }
        // How many logits there are is not asked here.
        for tensor in HeadStart::of(&base, 1).tensors {
            read.insert(format!("{WRAPPER}.{}", tensor.name));
        }
        if let Some(name) = self.weights.names().find(|name| !read.contains(*name)) {
            return Err(Error::user(format!(
                "{}: nothing here reads the tensor {}: it belongs to {}",
                self.file.display(),
                self.weights.name_in_file(name),
                belongs_to(name)
            ))
            .help(
                "an adapter is read whole or not at all: the pairs of LoRA, with DoRA's vectors, AdaLoRA's E and the layers' \
                 biases, or the vectors of VeRA on the encoder's linear layers, pairs of LoRA beside tables of embeddings, and the saved head and pooler",
            ));
        }
        if modules.is_empty() {
            return Err(Error::user(format!(
                "{}: the adapter has no module: no tensor is named {WRAPPER}.{}.….{}",
                self.file.display(),
                self.model.prefix,
                self.config().parts().pair[0]
            ))
            .help("check that the folder is the adapter that was trained, and of this base model's family"));
        }
        let prefix = self.model.prefix;
        let lacks = linears.iter().find(|linear| {
            !self.paths.contains(&linear.path)
                && !self.emptied.contains(&linear.path)
                && self.settings.targets(&format!("{prefix}.{}", linear.path))
        });
        if let Some(linear) = lacks {
            return Err(Error::user(format!(
                "{}: target_modules names {prefix}.{}, but {} has no adapter for it",
                self.folder.join(CONFIG).display(),
                linear.path,
                self.file.display()
            ))
            .help("the adapter is not whole: save it again"));
        }
        Ok(base)
    }

    /// Refuses a table of embeddings that PEFT has saved with the pair beside it, as it does with `embed_tokens`, unless it is
    /// the base model's own.
    fn is_the_bases(&self, name: &str, table: &LinearInfo, base: &Pretrained) -> Result<()> {
        let shape = [table.inputs, table.outputs];
        self.weights.require(name, &shape)?;
        let of_base = format!("{}{}.weight", base.prefix(), table.path);
        let values = |weights: &Weights, name: &str| {
            let values = weights.saved(name, String::new())?;
            Ok(values.map(|saved| saved.values))
        };
        if values(&self.weights, name)? == values(&base.weights, &of_base)? {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: {} holds another table of embeddings than the base model",
            self.file.display(),
            self.weights.name_in_file(name)
        ))
        .help(
            "the table was trained or resized beside its pair: use a base model that has it, or save the adapter with \
             save_embedding_layers = False if it is the base model's in another precision",
        ))
    }

    fn fit_pooler(&self, base: Pretrained) -> Result<Pretrained> {
        let Some(pooler) = base.config.pooler() else {
            return Ok(base);
        };
        let pooler = format!("{}.{pooler}", base.config.prefix);
        let name = |part: &str| format!("{WRAPPER}.{pooler}.{part}");
        let saved = ["weight", "bias"].map(|part| self.weights.contains(&name(part)));
        if saved[0] || saved[1] || self.settings.saves(&pooler) {
            let hidden = base.config.hidden;
            self.weights.require(&name("weight"), &[hidden, hidden])?;
            self.weights.require(&name("bias"), &[hidden])?;
            return base.freeze_pooler(false);
        }
        if !base.has_pooler() {
            return Err(Error::user(format!(
                "neither the adapter {} nor its base model has a pooler",
                self.folder.display()
            ))
            .help("use the base model it was trained on, or save the pooler with it: modules_to_save = [\"classifier\", \"pooler\"]"));
        }
        base.freeze_pooler(true)
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

    /// What the names of the tensors of the module at `path` begin with.
    fn start_of(&self, path: &str) -> String {
        format!("{WRAPPER}.{}.{path}", self.model.prefix)
    }

    /// Names and shapes of a module's tensors in the file.
    fn saved_of(&self, module: &ModuleInfo) -> Vec<(String, Vec<usize>)> {
        match self.settings.svd {
            Some(_) => svd::tensors(&self.start_of(&module.path), sizes(module)).into(),
            None => self.tensors_of(module).into_iter().collect(),
        }
    }

    /// Names and shapes of what a module trains, where the file has it as it is.
    fn tensors_of(&self, module: &ModuleInfo) -> Tensors<(String, Vec<usize>)> {
        let config = self.config_of(&module.path);
        let start = self.start_of(&module.path);
        let all = config.parts().zip(config.shapes(module));
        all.map(|(part, shape)| {
            let (part, shape) = saved(part, shape);
            (format!("{start}.{part}"), shape)
        })
    }

    /// The adapter's values on a device.
    pub fn adapters<B: Kernels>(
        &self,
        modules: Vec<ModuleInfo>,
        device: &B::Device,
    ) -> Result<Adapters<B>> {
        let tensor = |(name, shape): (String, Vec<usize>)| match shape[..] {
            [rows, columns] => self.weights.tensor(&name, [rows, columns], device),
            _ => {
                let vector = self.weights.tensor::<B, 1>(&name, [shape[0]], device)?;
                Ok(vector.reshape([shape[0], 1]))
            }
        };
        let values = |module: &ModuleInfo| -> Result<_> {
            if self.settings.svd.is_some() {
                let start = self.start_of(&module.path);
                let pair = svd::pair(&self.weights, &start, sizes(module), device)?;
                return Ok(Tensors::new(pair));
            }
            let Tensors {
                pair: [a, b],
                magnitude,
                bias,
            } = self.tensors_of(module);
            Ok(Tensors {
                pair: [tensor(a)?, tensor(b)?],
                magnitude: magnitude.map(tensor).transpose()?,
                bias: bias.map(tensor).transpose()?,
            })
        };
        let pairs = modules.iter().map(values).collect::<Result<_>>()?;
        let projections = match self.config() {
            Config::Lora(_) => None,
            Config::Vera(vera) => {
                let [a, b] = vera.projection_shapes(&modules);
                let [name_a, name_b] = PROJECTIONS;
                let a = self.weights.tensor(name_a, a, device)?;
                let b = self.weights.tensor(name_b, b, device)?;
                Some(Projections::new([a, b], &modules))
            }
        };
        let own = modules.iter().map(|module| self.config_of(&module.path));
        let own = own.collect();
        let config = self.config().clone();
        Ok(Adapters::of(config, modules, pairs, projections).with_own(own))
    }

    /// The head's values on a device: the adapter's, or, for what it did not save, the base model's, as PEFT has
    /// it under a checkpoint with a head of its own.
    pub fn head<B: Kernels>(
        &self,
        head: &Head<B>,
        device: &B::Device,
    ) -> Result<Vec<Tensor<B, 2>>> {
        let tensors = head.tensors();
        let values = tensors.iter().zip(head.start()).map(|(tensor, of_base)| {
            let name = format!("{WRAPPER}.{}", tensor.name);
            let module = saved_module(&self.model, &tensor.name);
            match of_base {
                Some(of_base) if !self.weights.contains(&name) && !self.settings.saves(module) => {
                    Ok(of_base.clone())
                }
                _ => tensor.load(&self.weights, &name, device),
            }
        });
        values.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn names_as_peft_saves_them() {
        for (name, saved) in [
            (
                "base_model.model.bert.x.lora_A.default.weight",
                "base_model.model.bert.x.lora_A.weight",
            ),
            (
                "base_model.model.bert.x.lora_B.weight",
                "base_model.model.bert.x.lora_B.weight",
            ),
            (
                "base_model.model.bert.x.vera_lambda_d.default",
                "base_model.model.bert.x.vera_lambda_d",
            ),
            ("base_model.vera_A.default", "base_model.vera_A"),
            (
                "base_model.model.classifier.modules_to_save.default.weight",
                "base_model.model.classifier.weight",
            ),
            (
                "base_model.model.classifier.modules_to_save.bias",
                "base_model.model.classifier.bias",
            ),
            (
                "base_model.model.default.weight",
                "base_model.model.default.weight",
            ),
        ] {
            assert_eq!(canonical(name), saved);
        }
    }
}
