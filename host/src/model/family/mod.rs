//! The families of models: one file each, which says what parts a `config.json` of the family stands for, and
//! under which names.

mod bert;
mod clip;
mod deberta;
mod distilbert;
mod gemma;
mod gpt2;
mod json;
mod llama;
mod modernbert;
mod phi3;
mod roberta;
mod rotary;
mod sliding;
mod vit;

use std::path::Path;

use super::architecture::Architecture;
use crate::error::{Error, Result};
use json::Json;

/// A family of models.
struct Family {
    /// The names it goes by.
    names: &'static [Name],
    /// Makes an architecture of a file under one of these names.
    read: fn(&Json, Name) -> Result<Architecture>,
}

/// A name of a family.
#[derive(Clone, Copy)]
struct Name {
    /// In `model_type`: `bert`.
    model_type: &'static str,
    /// What its classes in Transformers begin with: `Bert`.
    class: &'static str,
}

const fn name(model_type: &'static str, class: &'static str) -> Name {
    Name { model_type, class }
}

/// All of them.
const FAMILIES: &[&Family] = &[
    &bert::FAMILY,
    &roberta::FAMILY,
    &distilbert::FAMILY,
    &deberta::FAMILY,
    &modernbert::FAMILY,
    &llama::FAMILY,
    &gemma::FAMILY,
    &phi3::FAMILY,
    &gpt2::FAMILY,
    &vit::FAMILY,
    &clip::FAMILY,
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
    let (family, name) = of(&json)?;
    json.refuse_variants()?;
    (family.read)(&json, name)
}

/// Every name with its family.
fn names() -> impl Iterator<Item = (&'static Family, Name)> {
    let families = FAMILIES.iter();
    families.flat_map(|family| family.names.iter().map(|name| (*family, *name)))
}

/// The family of a file, and by which of its names.
fn of(json: &Json) -> Result<(&'static Family, Name)> {
    let Some(found) = json.value("model_type") else {
        return of_architectures(json);
    };
    match names().find(|(_, name)| found.as_str() == Some(name.model_type)) {
        Some(found) => Ok(found),
        None => json.refuse("model_type", found, &supported()),
    }
}

/// The family by the class that the model was saved as, for files that lack `model_type`.
fn of_architectures(json: &Json) -> Result<(&'static Family, Name)> {
    let classes: Vec<String> = json.get(&["architectures"], "a list of classes", Vec::new())?;
    let is = |class: &str, start: &str| {
        let rest = class.strip_prefix(start);
        rest.is_some_and(|rest| {
            rest.starts_with("For") || rest == "Model" || rest.ends_with("HeadModel")
        })
    };
    let of = |class: &str| names().find(|(_, name)| is(class, name.class));
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
    let types: Vec<&str> = names().map(|(_, name)| name.model_type).collect();
    format!("the supported families are {}", types.join(", "))
}

#[cfg(test)]
mod tests;
