//! The recipe's data, read, labelled and tokenised.

use std::path::Path;

use super::config::{DataConfig, Format, Problem};
use super::encode::tokenize_cached;
use super::minimal_pairs::{self, Sizes};
use super::problems::Problems;
use super::table::{Header, Layout, Row, read};
use super::task::{Part, Task};
use super::{Encoded, EpochPlan, Example, Label};
use crate::cache;
use crate::error::{Error, Result};
use crate::model::ModelFolder;
use crate::recipe::{Recipe, TrainConfig};
use crate::train::metrics::Metric;

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
struct Splits {
    train: Vec<Example>,
    validation: Vec<(String, Vec<Example>)>,
    test: Vec<(String, Vec<Example>)>,
    labels: Vec<String>,
    problem: Problem,
}

/// Reads and tokenises the data of `recipe`; `longest` is the most tokens the model takes.
pub fn load(recipe: &Recipe, folder: &ModelFolder, longest: usize) -> Result<Data> {
    let config = &recipe.data;
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
    let metrics = match (&config.metrics, config.task, splits.problem) {
        (Some(metrics), _, _) => metrics.clone(),
        (None, Some(task), _) => task.facts().metrics.to_vec(),
        (None, None, Problem::Classification) => vec![Metric::Accuracy],
        (None, None, Problem::Regression) => vec![Metric::Pearson, Metric::Spearman],
    };
    Ok(Data {
        train: encode(&splits.train)?,
        validation: encode_all(splits.validation)?,
        test: encode_all(splits.test)?,
        labels: splits.labels,
        problem: splits.problem,
        metrics,
    })
}

/// The classes and the kind of problem as far as the recipe alone tells; none where the training file has
/// to be read for its classes.
pub fn labels_of(config: &DataConfig) -> Option<(Vec<String>, Problem)> {
    match (config.task, config.problem) {
        (Some(task), _) => {
            let labels = task
                .facts()
                .labels
                .iter()
                .map(|label| (*label).to_owned())
                .collect();
            Some((labels, task.problem()))
        }
        (None, Some(Problem::Regression)) => Some((Vec::new(), Problem::Regression)),
        (None, _) => config
            .labels
            .clone()
            .map(|labels| (labels, Problem::Classification)),
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
    let facts = Task::MinimalPairs.facts();
    Ok(Splits {
        train: examples(corpus.train),
        validation: vec![("validation".to_owned(), examples(corpus.validation))],
        test: vec![("test".to_owned(), examples(corpus.test))],
        labels: facts
            .labels
            .iter()
            .map(|label| (*label).to_owned())
            .collect(),
        problem: Problem::Classification,
    })
}

fn published(task: Task, config: &DataConfig) -> Result<Splits> {
    // `validate` has made sure that a folder is given.
    let dir = config.dir.as_deref().unwrap_or(Path::new("."));
    let facts = task.facts();
    let labels: Vec<String> = facts
        .labels
        .iter()
        .map(|label| (*label).to_owned())
        .collect();
    let read_part = |part: Part| -> Result<Vec<(String, Vec<Example>)>> {
        let found = task.files(dir, part)?;
        let splits = found.into_iter().map(|found| {
            let mut examples = Vec::new();
            for file in &found.files {
                let rows = read(file, &task.layout(file, part))?;
                examples.extend(understand(file, rows, &labels, task.problem(), part, true)?);
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
    // `validate` has made sure of both.
    let (Some(train), Some(columns)) = (&config.train, &config.columns) else {
        return Err(Error::user("[data] does not say what to learn")
            .help("give `task` and `dir`, or `train` and [data.columns]"));
    };
    let rows = |path: &Path, part: Part| -> Result<Vec<Row>> {
        let format = match config.format {
            Some(format) => format,
            None => Format::of(path)?,
        };
        let usual = if format == Format::Tsv { '\t' } else { ',' };
        let layout = Layout {
            format,
            delimiter: config.delimiter.unwrap_or(usual) as u8,
            quote: config.quote.unwrap_or(true),
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
        read(path, &layout)
    };
    let train_rows = rows(train, Part::Train)?;
    let problem = config.problem.unwrap_or(Problem::Classification);
    let labels = match (problem, &config.labels) {
        (Problem::Regression, _) => Vec::new(),
        (Problem::Classification, Some(labels)) => labels.clone(),
        (Problem::Classification, None) => distinct(train, &train_rows)?,
    };
    let split = |path: &Option<std::path::PathBuf>, part: Part| -> Result<Vec<_>> {
        let Some(path) = path else {
            return Ok(Vec::new());
        };
        let rows = rows(path, part)?;
        let examples = understand(path, rows, &labels, problem, part, false)?;
        Ok(vec![(part.name().to_owned(), examples)])
    };
    Ok(Splits {
        validation: split(&config.validation, Part::Validation)?,
        test: split(&config.test, Part::Test)?,
        train: understand(train, train_rows, &labels, problem, Part::Train, false)?,
        labels,
        problem,
    })
}

/// The distinct labels of a training file, in the order of their numbers or letters.
fn distinct(path: &Path, rows: &[Row]) -> Result<Vec<String>> {
    /// More would be a column of texts or numbers, not of classes.
    const MOST: usize = 1000;
    let mut labels: Vec<String> = rows.iter().filter_map(|row| row.label.clone()).collect();
    labels.sort_unstable();
    labels.dedup();
    if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
    }
    match labels.len() {
        0 | 1 => Err(Error::user(format!(
            "{}: the label column holds {} class(es): there is nothing to decide",
            path.display(),
            labels.len()
        ))
        .help("check `label` in [data.columns]")),
        2..=MOST => Ok(labels),
        many => Err(Error::user(format!(
            "{}: the label column holds {many} different labels",
            path.display()
        ))
        .help(
            "set `problem = \"regression\"` in [data] if they are values, or check [data.columns]",
        )),
    }
}

/// Rows as examples. `numbered`: a label may also be the index of its class, as in GLUE's files.
fn understand(
    path: &Path,
    rows: Vec<Row>,
    labels: &[String],
    problem: Problem,
    part: Part,
    numbered: bool,
) -> Result<Vec<Example>> {
    let mut problems = Problems::new(path, "line");
    let mut examples = Vec::with_capacity(rows.len());
    for row in rows {
        let label = match &row.label {
            // GLUE's hidden labels.
            Some(label) if part == Part::Test && label == "-1" => None,
            None if part == Part::Test => None,
            None => {
                problems.push(row.line, "the label is missing");
                continue;
            }
            Some(label) => match parse(label, labels, problem, numbered) {
                Ok(label) => Some(label),
                Err(what) => {
                    problems.push(row.line, what);
                    continue;
                }
            },
        };
        examples.push(Example {
            text: row.text,
            text_pair: row.text_pair,
            label,
        });
    }
    problems.finish(match problem {
        Problem::Classification => "correct the rows, or the label column and `labels` in [data]",
        Problem::Regression => "correct the rows, or `problem` and the label column in [data]",
    })?;
    Ok(examples)
}

fn parse(
    label: &str,
    labels: &[String],
    problem: Problem,
    numbered: bool,
) -> Result<Label, String> {
    if problem == Problem::Regression {
        let value = label
            .trim()
            .parse::<f32>()
            .ok()
            .filter(|value| value.is_finite());
        return value
            .map(Label::Value)
            .ok_or_else(|| format!("{label:?} is not a number"));
    }
    if let Some(class) = labels.iter().position(|known| known == label.trim()) {
        return Ok(Label::Class(class as u32));
    }
    let index = label.trim().parse::<usize>().ok();
    match index.filter(|index| numbered && *index < labels.len()) {
        Some(class) => Ok(Label::Class(class as u32)),
        None => Err(format!(
            "{label:?} is none of the classes {}",
            labels.join(", ")
        )),
    }
}
