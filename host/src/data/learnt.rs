//! What an adapter's answers depend on beside its tensors and its base model: written into its folder, so that
//! nothing has to be read again, or guessed, from the data it was trained on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::load::labels_of;
use super::{DataConfig, Problem};
use crate::error::{Error, Result};
use crate::file::write_json;
use crate::metrics::Metric;
use crate::recipe::Recipe;

/// The file in an adapter's folder.
pub const FILE: &str = "dynalora.json";

/// What is written in [`FILE`], in the words of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learnt {
    /// What the head predicts.
    pub problem: Problem,
    /// The classes in the order of the head's outputs; none for a regression.
    pub labels: Vec<String>,
    /// What it was judged by, the deciding one first.
    pub metrics: Vec<Metric>,
    /// Whether it was trained on pairs of texts.
    pub text_pair: bool,
    /// The most tokens of an example.
    pub max_length: usize,
    /// The digest of the tokenizer's files; none where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The digest of the chat template, of conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The digest of what is done to images; none of texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// The base model, as its recipe named it, and its revision.
    pub base_model: String,
    /// See `base_model`.
    pub revision: String,
}

/// Says that the classes of an adapter without the file, and their order, are taken from the training data.
pub fn guess(adapter: &Path, labels: &[String]) {
    tracing::warn!(
        "{} has no {FILE}: that its classes are, in this order, {} is a guess from the training data; set `labels` in [data] \
         to the classes it was trained on",
        adapter.display(),
        super::table::shorten(&labels.join(", "), 200)
    );
}

impl Learnt {
    /// Outputs of the head.
    pub fn outputs(&self) -> usize {
        self.problem.outputs(&self.labels)
    }

    /// Writes it into an adapter's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(FILE), self)
    }

    /// Reads it from an adapter's folder; none where there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(
                    Error::user(format!("cannot read {}: {error}", path.display()))
                        .help("it says which classes the adapter answers with"),
                );
            }
        };
        let damaged = |what: String| {
            Error::user(format!("{}: {what}", path.display()))
                .help("take the file that training wrote, or move it away and name a recipe with `data.labels`")
        };
        let learnt: Learnt =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let right = match learnt.problem {
            Problem::Regression | Problem::CausalLm => learnt.labels.is_empty(),
            Problem::Classification | Problem::TokenClassification => learnt.labels.len() > 1,
        };
        if !right || learnt.max_length == 0 || learnt.metrics.is_empty() {
            return Err(damaged("its values contradict each other".to_owned()));
        }
        Ok(Some(learnt))
    }

    /// For an adapter without the file: what a recipe says, and where it does not name the classes, the labels of
    /// its training data in their order, which is said to be a guess.
    pub fn from_recipe(recipe: &Recipe, adapter: &Path) -> Result<Self> {
        let data = &recipe.data;
        let (labels, problem) = labels_of(data)?;
        let told = data.task.is_some() || data.labels.is_some() || !problem.has_classes();
        if !told {
            guess(adapter, &labels);
        }
        Ok(Learnt {
            problem,
            metrics: data.metrics(labels.len()),
            labels,
            text_pair: data.pairs(),
            max_length: recipe.model.longest(),
            tokenizer: None,
            chat_template: None,
            images: None,
            base_model: recipe.model.name.clone(),
            revision: recipe.model.revision.clone(),
        })
    }

    /// Refuses a recipe's `[data]` that says something else.
    pub fn agree(&self, data: &DataConfig, adapter: &Path) -> Result<()> {
        let problem = data.task.map(|task| task.problem()).or(data.problem);
        let labels = match data.task {
            Some(task) => Some(task.labels()),
            None => data.labels.clone(),
        };
        let refuse = |key: &str, own: String, theirs: String| {
            Err(Error::user(format!(
                "the adapter {} was trained with {key} {own}, but the recipe has {theirs}",
                adapter.display()
            ))
            .help(format!(
                "evaluate it on data of its own kind; leave `{key}` out of the recipe to take the adapter's"
            )))
        };
        let kind = |images: bool| if images { "images" } else { "texts" }.to_owned();
        if data.is_images() != self.images.is_some() {
            let own = kind(self.images.is_some());
            return refuse("data.format", own, kind(data.is_images()));
        }
        match (problem, labels) {
            (Some(problem), _) if problem != self.problem => {
                let name = |problem: Problem| format!("\"{problem}\"");
                refuse("data.problem", name(self.problem), name(problem))
            }
            (_, Some(labels)) if labels != self.labels => refuse(
                "data.labels",
                format!("{:?}", self.labels),
                format!("{labels:?}"),
            ),
            _ if data.pairs() != self.text_pair => {
                let name = |pair: bool| if pair { "pairs" } else { "single texts" }.to_owned();
                refuse(
                    "data.columns.text_pair",
                    name(self.text_pair),
                    name(data.pairs()),
                )
            }
            _ => Ok(()),
        }
    }
}
