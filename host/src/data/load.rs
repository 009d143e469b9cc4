//! The recipe's data, read, labelled and tokenised.

use std::path::{Path, PathBuf};

use super::encode::tokenize_cached;
use super::labels::{Reader, distinct, is_whole};
use super::minimal_pairs::{self, Sizes};
use super::table::{Format, Header, Layout, Row};
use super::task::Part;
use super::{Encoded, EpochPlan, Example, Label, table};
use crate::cache;
use crate::error::{Error, Result};
use crate::model::ModelFolder;
use crate::recipe::{Columns, DataConfig, Metric, Problem, Recipe, Task, TrainConfig};

/// Everything a run learns from and is judged by.
#[derive(Clone, Debug)]
pub struct Data {
    /// What is learnt from.
    pub train: Encoded,
    /// What is evaluated on while training, by name; the first decides which checkpoint is best.
    pub validation: Vec<(String, Encoded)>,
    /// What is kept for the end, by name; it may lack labels.
    pub test: Vec<(String, Encoded)>,
    /// Names of the classes in the order of their indices; empty for a regression.
    pub labels: Vec<String>,
    /// What the head predicts.
    pub problem: Problem,
    /// What the run is judged by, the deciding one first.
    pub metrics: Vec<Metric>,
}

impl Data {
    /// Outputs of the head.
    pub fn outputs(&self) -> usize {
        match self.problem {
            Problem::Regression => 1,
            Problem::Classification => self.labels.len(),
        }
    }

    /// Optimiser steps of one epoch.
    pub fn steps_per_epoch(&self, train: &TrainConfig) -> u64 {
        let batches = EpochPlan::new(&self.train, train, 0, 0).batches().len();
        batches.div_ceil(train.gradient_accumulation) as u64
    }

    /// The labelled splits of `name`: the split itself, or those that begin with it (`validation` stands
    /// for both of MNLI's).
    pub fn labelled(&self, name: &str) -> Option<Vec<(String, &Encoded)>> {
        let found: Vec<_> = self
            .all_labelled()
            .filter(|(split, _)| split == name || split.starts_with(&format!("{name}_")))
            .map(|(split, data)| (split.clone(), data))
            .collect();
        (!found.is_empty()).then_some(found)
    }

    /// Names of all labelled splits that can be evaluated on.
    pub fn labelled_names(&self) -> Vec<&str> {
        self.all_labelled().map(|(name, _)| name.as_str()).collect()
    }

    fn all_labelled(&self) -> impl Iterator<Item = &(String, Encoded)> {
        let splits = self.validation.iter().chain(&self.test);
        splits.filter(|(_, data)| data.labels.len() == data.len())
    }
}

/// Splits of examples before tokenising.
#[derive(Clone, Debug, PartialEq)]
pub struct Splits {
    /// What is learnt from.
    pub train: Vec<Example>,
    /// What is evaluated on while training, by name.
    pub validation: Vec<(String, Vec<Example>)>,
    /// What is kept for the end, by name.
    pub test: Vec<(String, Vec<Example>)>,
    /// Names of the classes in the order of their indices; empty for a regression.
    pub labels: Vec<String>,
    /// What the head predicts.
    pub problem: Problem,
}

/// Reads and tokenises the data of `recipe`; `longest` is the most tokens the model takes.
pub fn load(recipe: &Recipe, folder: &ModelFolder, longest: usize) -> Result<Data> {
    let splits = read(&recipe.data)?;
    let max_length = recipe.model.max_length.min(longest);
    if max_length < recipe.model.max_length {
        tracing::warn!(
            "model.max_length is {}, but the model has positions for {longest} tokens only: {longest} is used",
            recipe.model.max_length
        );
    }
    let cache = cache::dir()?.join("tokens");
    let encode =
        |examples: &[Example]| tokenize_cached(&cache, &folder.tokenizer, examples, max_length);
    let encode_all = |splits: Vec<(String, Vec<Example>)>| -> Result<Vec<_>> {
        splits
            .into_iter()
            .map(|(name, examples)| Ok((name, encode(&examples)?)))
            .collect()
    };
    Ok(Data {
        train: encode(&splits.train)?,
        validation: encode_all(splits.validation)?,
        test: encode_all(splits.test)?,
        labels: splits.labels,
        problem: splits.problem,
        metrics: recipe.data.metrics(),
    })
}

/// Reads the data that `config` names, at most `limit` examples of each split.
pub fn read(config: &DataConfig) -> Result<Splits> {
    config.validate()?;
    let mut splits = match config.task {
        Some(Task::MinimalPairs) => generated()?,
        Some(task) => published(task, config)?,
        None => own(config)?,
    };
    if let Some(limit) = config.limit {
        splits.train.truncate(limit);
        for (_, examples) in splits.validation.iter_mut().chain(&mut splits.test) {
            examples.truncate(limit);
        }
    }
    Ok(splits)
}

/// Names of the classes and the kind of problem, from the recipe where it tells, else from the labels of
/// the training file.
pub fn labels_of(config: &DataConfig) -> Result<(Vec<String>, Problem)> {
    match (config.task, config.problem, &config.labels) {
        (Some(task), ..) => Ok((task.labels(), task.problem())),
        (None, Some(Problem::Regression), _) => Ok((Vec::new(), Problem::Regression)),
        (None, _, Some(labels)) => Ok((labels.clone(), Problem::Classification)),
        (None, _, None) => {
            config.validate()?;
            let (train, columns) = own_files(config)?;
            let rows = own_rows(config, columns, train, Part::Train)?;
            Ok((distinct(train, &rows)?, Problem::Classification))
        }
    }
}

/// The size of the embedded corpus, and the seed it is always made with: runs of different seeds learn
/// from the same sentences.
const CORPUS: (u64, Sizes) = (
    0,
    Sizes {
        train: 2400,
        validation: 600,
        test: 600,
    },
);

fn generated() -> Result<Splits> {
    let (seed, sizes) = CORPUS;
    let corpus = minimal_pairs::generate(seed, sizes)?;
    let examples = |sentences: Vec<minimal_pairs::Sentence>| -> Vec<Example> {
        let sentences = sentences.into_iter().map(|sentence| Example {
            text: sentence.text,
            text_pair: None,
            label: Some(Label::Class(sentence.acceptable.into())),
        });
        sentences.collect()
    };
    Ok(Splits {
        train: examples(corpus.train),
        validation: vec![("validation".to_owned(), examples(corpus.validation))],
        test: vec![("test".to_owned(), examples(corpus.test))],
        labels: Task::MinimalPairs.labels(),
        problem: Problem::Classification,
    })
}

fn published(task: Task, config: &DataConfig) -> Result<Splits> {
    // `validate` has made sure that a folder is given.
    let dir = config.dir.as_deref().unwrap_or(Path::new("."));
    let labels = task.labels();
    let read_part = |part: Part| -> Result<Vec<(String, Vec<Example>)>> {
        let reader = Reader {
            labels: &labels,
            problem: task.problem(),
            part,
            // Some files hold names, others positions, and hidden labels are -1.
            numbered: true,
            hidden: (part == Part::Test).then_some("-1"),
        };
        let splits = task.files(dir, part)?.into_iter().map(|found| {
            let mut examples = Vec::new();
            for file in &found.files {
                let layout = task.layout(file, part);
                let rows = table::read(file, &layout)?;
                examples.extend(reader.examples(file, layout.format, rows)?);
            }
            Ok((found.name, examples))
        });
        splits.collect()
    };
    Ok(Splits {
        train: read_part(Part::Train)?
            .into_iter()
            .flat_map(|(_, examples)| examples)
            .collect(),
        validation: read_part(Part::Validation)?,
        test: read_part(Part::Test)?,
        problem: task.problem(),
        labels,
    })
}

fn own(config: &DataConfig) -> Result<Splits> {
    let (train, columns) = own_files(config)?;
    let train_rows = own_rows(config, columns, train, Part::Train)?;
    let problem = config.problem.unwrap_or(Problem::Classification);
    let labels = match (problem, &config.labels) {
        (Problem::Regression, _) => Vec::new(),
        (Problem::Classification, Some(labels)) => labels.clone(),
        (Problem::Classification, None) => distinct(train, &train_rows)?,
    };
    // Positions stand for classes only where they cannot be taken for names.
    let numbered = config.labels.is_some() && !labels.iter().any(|label| is_whole(label));
    let examples = |path: &Path, rows: Vec<Row>, part: Part| {
        let reader = Reader {
            labels: &labels,
            problem,
            part,
            numbered,
            hidden: None,
        };
        reader.examples(path, format(config, path)?, rows)
    };
    let split = |path: &Option<PathBuf>, part: Part| -> Result<Vec<_>> {
        let Some(path) = path else {
            return Ok(Vec::new());
        };
        let rows = own_rows(config, columns, path, part)?;
        Ok(vec![(part.name().to_owned(), examples(path, rows, part)?)])
    };
    Ok(Splits {
        validation: split(&config.validation, Part::Validation)?,
        test: split(&config.test, Part::Test)?,
        train: examples(train, train_rows, Part::Train)?,
        labels,
        problem,
    })
}

/// The training file and the columns of a recipe with files of its own, which `validate` has made sure of.
fn own_files(config: &DataConfig) -> Result<(&Path, &Columns)> {
    match (&config.train, &config.columns) {
        (Some(train), Some(columns)) => Ok((train, columns)),
        _ => Err(Error::user("[data] does not say what to learn")
            .help("Give `task` and `dir`, or `train` and [data.columns].")),
    }
}

fn own_rows(config: &DataConfig, columns: &Columns, path: &Path, part: Part) -> Result<Vec<Row>> {
    let format = format(config, path)?;
    let usual = if format == Format::Tsv { '\t' } else { ',' };
    let layout = Layout {
        format,
        delimiter: config.delimiter.unwrap_or(usual) as u8,
        quote: config.quote.unwrap_or(format == Format::Csv),
        header: if config.header.unwrap_or(true) {
            Header::Yes
        } else {
            Header::No
        },
        text: vec![columns.text.clone()],
        text_pair: columns.text_pair.iter().cloned().collect(),
        label: vec![columns.label.clone()],
        needs_label: part != Part::Test,
        skip_short: false,
        allow_empty: false,
    };
    table::read(path, &layout)
}

fn format(config: &DataConfig, path: &Path) -> Result<Format> {
    config.format.map_or_else(|| Format::of(path), Ok)
}

#[cfg(test)]
mod tests;
