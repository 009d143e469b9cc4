//! An adapter merged into its base model: a folder that Transformers opens without PEFT.

use std::path::Path;

use burn::tensor::Tensor;
use burn_flex::Flex;
use serde_json::{Map, Value, json};

use crate::adapter::Adapters;
use crate::error::{Error, Result};
use crate::model::architecture::WeightLayout;
use crate::model::{HeadTensor, ModelFolder, Pretrained, Saved, save};
use crate::recipe::Problem;

/// What a model's folder has beside its weights and its `config.json`.
const BESIDE: [&str; 13] = [
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Writes the base model with `W + s·BA`, of DoRA `m/‖W + s·BA‖ ∘ (W + s·BA)`, in place of each module's W, biases that trained, and the head, into the empty folder `to`, in f32.
/// As `merge_and_unload` of PEFT and `save_pretrained` of Transformers. Where the table of word embeddings predicts tokens too,
/// the head that does keeps what the table was: the merged model has two matrices where the base model has one.
pub fn merge(
    to: &Path,
    (folder, pretrained): (&ModelFolder, &Pretrained),
    adapters: &Adapters<Flex>,
    head: &[(HeadTensor, Tensor<Flex, 2>)],
    (problem, labels): (Problem, &[String]),
) -> Result<()> {
    let heads: Vec<&HeadTensor> = head.iter().map(|(info, _)| info).collect();
    let untied = untied(pretrained, adapters, &heads);
    let mut tensors = tensors(pretrained, adapters, &heads, untied)?;
    for (info, tensor) in head {
        tensors.push(Saved::new(info.name.clone(), info.shape.clone(), tensor)?);
    }
    save(&to.join("model.safetensors"), &tensors, &[("format", "pt")])?;

    let cannot = |path: &Path, error: std::io::Error| {
        Error::failure(format!("cannot write {}: {error}", path.display()))
    };
    let path = to.join("config.json");
    let text =
        serde_json::to_string_pretty(&config(folder, (pretrained, untied), problem, labels)?)
            .map_err(|error| Error::failure(format!("{}: {error}", path.display())))?;
    std::fs::write(&path, text + "\n").map_err(|error| cannot(&path, error))?;
    for name in BESIDE {
        let (from, to) = (folder.dir.join(name), to.join(name));
        if from.is_file() {
            std::fs::copy(&from, &to).map_err(|error| cannot(&to, error))?;
        }
    }
    Ok(())
}

/// The table of word embeddings and the head that predicts tokens by it as well, where the adapter has changed the table
/// alone.
fn untied(
    pretrained: &Pretrained,
    adapters: &Adapters<Flex>,
    heads: &[&HeadTensor],
) -> Option<(&'static str, &'static str)> {
    let head = pretrained.config.language_head?;
    let words = pretrained.config.words()?.words.name;
    let is_module = adapters.modules.iter().any(|module| module.path == words);
    (heads.is_empty() && head.tied && is_module).then_some((words, head.name))
}

/// The base model's tensors under the names that they have with a head on top, those of modules merged. What belongs to
/// other heads is left out.
fn tensors(
    pretrained: &Pretrained,
    adapters: &Adapters<Flex>,
    heads: &[&HeadTensor],
    untied: Option<(&str, &str)>,
) -> Result<Vec<Saved>> {
    let own = pretrained.prefix();
    let prefix = format!("{}.", pretrained.config.prefix);
    let language = pretrained.config.language_head.filter(|_| heads.is_empty());
    let language = language.map(|head| format!("{}.", head.name));
    let (mut found, mut stored) = (Vec::new(), Vec::new());
    let mut left = Vec::new();
    for name in pretrained.weights.names() {
        let of_base = match own {
            "" => pretrained.is_of_base(name),
            own => name.starts_with(own),
        };
        let new = match (of_base, &language) {
            (true, _) => format!("{prefix}{}", &name[own.len()..]),
            (false, Some(language)) if name.starts_with(language.as_str()) => name.to_owned(),
            _ => {
                left.push(name);
                continue;
            }
        };
        // A pooler that trains is written with the head.
        if heads.iter().any(|head| head.name == new) {
            continue;
        }
        // The table's is written in its place.
        if untied.is_some_and(|(_, head)| new == format!("{head}.weight")) {
            continue;
        }
        match pretrained.weights.saved(name, new)? {
            Some(saved) => {
                // As this checkpoint calls it, and so as every version of Transformers finds it.
                stored.push(match (of_base, pretrained.weights.name_in_file(name)) {
                    (true, in_file) => format!("{prefix}{}", &in_file[own.len()..]),
                    (false, in_file) => in_file.to_owned(),
                });
                found.push(saved);
            }
            // Numbers of positions, which Transformers makes by itself.
            None => left.push(name),
        }
    }
    if !left.is_empty() {
        tracing::info!(
            "{} tensors are no part of the merged model, such as {}",
            left.len(),
            left[0]
        );
    }
    let of_head = untied.map(|(words, head)| {
        let table = named(&mut found, format!("{prefix}{words}.weight"))?;
        Ok(Saved {
            name: format!("{head}.weight"),
            shape: table.shape.clone(),
            values: table.values.clone(),
        })
    });
    let of_head = of_head.transpose()?;
    for (index, module) in adapters.modules.iter().enumerate() {
        let path = format!("{prefix}{}", module.path);
        let weight = named(&mut found, format!("{path}.weight"))?;
        let layout = match adapters.own(index).is_embedding() {
            true => WeightLayout::InOut,
            false => pretrained.config.weights,
        };
        add(weight, adapters, index, layout)?;
        if let [_, Some(bias)] = adapters.beside_pair(index) {
            let tensor = named(&mut found, format!("{path}.bias"))?;
            *tensor = Saved::new(tensor.name.clone(), tensor.shape.clone(), &bias)?;
        }
    }
    for (saved, stored) in found.iter_mut().zip(stored) {
        saved.name = stored;
    }
    found.extend(of_head);
    Ok(found)
}

/// The tensor of this name.
fn named(found: &mut [Saved], name: String) -> Result<&mut Saved> {
    let tensor = found.iter_mut().find(|saved| saved.name == name);
    tensor.ok_or_else(|| Error::failure(format!("no tensor {name}")))
}

/// Adds a module's `s·BA` to its weight, whose rows DoRA gives their sizes.
fn add(
    weight: &mut Saved,
    adapters: &Adapters<Flex>,
    module: usize,
    layout: WeightLayout,
) -> Result<()> {
    let [a, b] = adapters.factors(module);
    let share = b.matmul(a) * adapters.scale(module);
    let share = match layout {
        WeightLayout::OutIn => share,
        WeightLayout::InOut => share.transpose(),
    };
    let share = Saved::new(weight.name.clone(), weight.shape.clone(), &share)?;
    for (value, share) in weight.values.iter_mut().zip(share.values) {
        *value += share;
    }
    if let [Some(magnitude), _] = adapters.beside_pair(module) {
        let shape = magnitude.dims().to_vec();
        let magnitude = Saved::new(weight.name.clone(), shape, &magnitude)?.values;
        let outputs = magnitude.len();
        let inputs = weight.values.len() / outputs.max(1);
        let at = |row: usize, column: usize| match layout {
            WeightLayout::OutIn => row * inputs + column,
            WeightLayout::InOut => column * outputs + row,
        };
        for (row, magnitude) in magnitude.into_iter().enumerate() {
            let values = (0..inputs).map(|column| f64::from(weight.values[at(row, column)]));
            let norm = values.map(|it| it * it).sum::<f64>().sqrt();
            let factor = (f64::from(magnitude) / norm) as f32;
            for column in 0..inputs {
                weight.values[at(row, column)] *= factor;
            }
        }
    }
    Ok(())
}

/// The base model's `config.json`, with the class of the merged model and what its head answers.
fn config(
    folder: &ModelFolder,
    (pretrained, untied): (&Pretrained, Option<(&str, &str)>),
    problem: Problem,
    labels: &[String],
) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(&folder.config).map_err(|error| {
        Error::failure(format!("cannot read {}: {error}", folder.config.display()))
    })?;
    let mut config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| Error::failure(format!("{}: {error}", folder.config.display())))?;
    if let Some(key) = pretrained.config.nested {
        config = Map::from_iter([(key.to_owned(), Value::Object(config))]);
    }
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    let class = pretrained.config.class;
    set("model_type", json!(pretrained.config.family));
    set("torch_dtype", json!("float32"));
    set("dtype", json!("float32"));
    if untied.is_some() {
        set("tie_word_embeddings", json!(false));
    }
    let kind = match problem {
        Problem::CausalLm => "ForCausalLM",
        Problem::TokenClassification => "ForTokenClassification",
        _ if pretrained.config.patches().is_some() => "ForImageClassification",
        Problem::Classification | Problem::Regression => "ForSequenceClassification",
    };
    let language = pretrained.config.language_head.as_ref();
    let of_its_own = language.and_then(|head| head.class);
    let class = match of_its_own.filter(|_| problem == Problem::CausalLm) {
        Some(class) => class.to_owned(),
        None => format!("{class}{kind}"),
    };
    set("architectures", json!([class]));
    let labels = match problem {
        Problem::CausalLm => return Ok(config),
        Problem::Regression => {
            set("problem_type", json!("regression"));
            vec!["LABEL_0".to_owned()]
        }
        Problem::Classification => {
            set("problem_type", json!("single_label_classification"));
            labels.to_vec()
        }
        Problem::TokenClassification => labels.to_vec(),
    };
    let names = labels.iter().enumerate();
    let ids: Map<String, Value> = names
        .clone()
        .map(|(id, label)| (label.clone(), json!(id)))
        .collect();
    set("label2id", Value::Object(ids));
    let names = names.map(|(id, label)| (id.to_string(), json!(label)));
    set("id2label", Value::Object(names.collect()));
    Ok(config)
}
