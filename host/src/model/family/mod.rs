//! The families of models: one file each, which says what parts a `config.json` of the family stands for, and
//! under which names.

mod bert;
mod distilbert;
mod gpt2;
mod json;
mod llama;
mod roberta;

use std::path::Path;

use super::architecture::Architecture;
use crate::error::{Error, Result};
use json::Json;

/// A family of models.
struct Family {
    /// What `model_type` calls it.
    model_types: &'static [&'static str],
    /// What its classes in Transformers begin with, in the order of `model_types`.
    classes: &'static [&'static str],
    /// Makes an architecture of a file of one of these types.
    read: fn(&Json, &'static str) -> Result<Architecture>,
}

/// All of them.
const FAMILIES: [&Family; 5] = [
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
    &llama::FAMILY,
    &gpt2::FAMILY,
];

/// Reads a `config.json`.
pub fn read(path: &Path) -> Result<Architecture> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::user(format!("cannot read {}: {error}", path.display()))
            .help("a model folder holds config.json, model.safetensors and tokenizer.json")
    })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Architecture> {
    let json = Json::new(text, path)?;
    let (family, model_type) = of(&json)?;
    json.refuse_variants()?;
    let mut architecture = (family.read)(&json, model_type)?;
    let at = family
        .model_types
        .iter()
        .position(|name| *name == model_type);
    architecture.class = family.classes[at.unwrap_or(0)];
    Ok(architecture)
}

/// The family of a file, and which of its types it is.
fn of(json: &Json) -> Result<(&'static Family, &'static str)> {
    let Some(found) = json.value("model_type") else {
        return of_architectures(json);
    };
    let is = |name: &&'static str| found.as_str() == Some(name);
    let types = FAMILIES.iter().flat_map(|family| {
        let types = family.model_types.iter();
        types.map(move |name| (*family, *name))
    });
    let mut types = types.filter(|(_, name)| is(name));
    match types.next() {
        Some(found) => Ok(found),
        None => json.refuse("model_type", found, &supported()),
    }
}

/// The family by the class that the model was saved as, for files that lack `model_type`.
fn of_architectures(json: &Json) -> Result<(&'static Family, &'static str)> {
    let classes: Vec<String> = json.get(&["architectures"], "a list of classes", Vec::new())?;
    let is = |class: &str, start: &str| {
        let rest = class.strip_prefix(start);
        rest.is_some_and(|rest| {
            rest.starts_with("For") || rest == "Model" || rest.ends_with("HeadModel")
        })
    };
    let of = |class: &str| {
        FAMILIES.iter().find_map(|family| {
            let at = family.classes.iter().position(|start| is(class, start))?;
            Some((*family, family.model_types[at]))
        })
    };
    let missing = |what: String| {
        Err(
            Error::user(format!("{}: model_type is missing, and {what}", json.at)).help(format!(
                "add the model's family to the file, as `\"model_type\": \"bert\"`: {}",
                supported()
            )),
        )
    };
    match classes.first().map(|class| (class, of(class))) {
        Some((_, Some(found))) => Ok(found),
        Some((class, None)) => missing(format!(
            "architectures has {class}, which is of no supported family"
        )),
        None => missing("so is architectures".to_owned()),
    }
}

fn supported() -> String {
    let types = FAMILIES.iter().flat_map(|family| family.model_types);
    let types: Vec<&str> = types.copied().collect();
    format!("the supported families are {}", types.join(", "))
}

#[cfg(test)]
mod tests;
