//! The recipe's data, read, labelled and tokenised.

use std::path::{Path, PathBuf};

use super::chat::{self, Template};
use super::encode::{self, Limits, encode_cached};
use super::files;
use super::image;
use super::labels::{Reader, distinct, is_whole};
use super::language;
use super::learnt::Learnt;
use super::minimal_pairs::{self, Sizes};
use super::places::Places;
use super::table::{Format, Header, Layout, Row};
use super::task::Part;
use super::tokenizer::Encoder;
use super::{Encoded, EpochPlan, Example, Label, table, words};
use crate::cache;
use crate::error::{Error, Result};
use crate::metrics;
use crate::model::{Architecture, ModelFolder};
use crate::recipe::{
    Column, Columns, DataConfig, Metric, ModelConfig, Problem, Recipe, Task, TrainConfig,
};

/// Everything a run learns from and is judged by.
#[derive(Clone, Debug)]
pub struct Data {
    /// What is learnt from.
    pub train: Encoded,
    /// Training examples that are held back for trials, and never trained on.
    pub held_back: Encoded,
    /// What is evaluated on while training, by name; the first decides which checkpoint is best.
    pub validation: Vec<(String, Encoded)>,
    /// Names of the classes in the order of their indices; empty for a regression.
    pub labels: Vec<String>,
    /// What the head predicts.
    pub problem: Problem,
    /// What the run is judged by, the deciding one first.
    pub metrics: Vec<Metric>,
    /// Whether the examples are pairs of texts.
    pub text_pair: bool,
    /// The most tokens of an example.
    pub max_length: usize,
    /// The tokenizer's digest, of texts.
    pub tokenizer: Option<String>,
    /// The chat template's, of conversations.
    pub chat_template: Option<String>,
    /// The image processor's, of images.
    pub images: Option<String>,
}

impl Data {
    /// Outputs of the head.
    pub fn outputs(&self) -> usize {
        self.problem.outputs(&self.labels)
    }

    /// Optimiser steps of one epoch.
    pub fn steps_per_epoch(&self, train: &TrainConfig, seed: u64) -> u64 {
        // Under a token budget the number of batches depends on the order in which they are filled.
        let batches = EpochPlan::new(&self.train, train, seed, 0).batches().len();
        batches.div_ceil(train.gradient_accumulation) as u64
    }

    /// Takes so many examples, drawn by `seed`, out of the training data. At least one has to stay.
    pub fn hold_back(&mut self, examples: u64, seed: u64) -> Result<()> {
        if examples == 0 {
            return Ok(());
        }
        let (all, held) = (
            self.train.len(),
            usize::try_from(examples).unwrap_or(usize::MAX),
        );
        if held >= all {
            return Err(Error::user(format!(
                "a plugin wants {examples} training examples held back for trials, of {all}"
            ))
            .help("give more training data, or let the plugin hold fewer back"));
        }
        let (kept, held) = super::batch::parted(all, held, seed);
        self.held_back = self.train.select(&held);
        self.train = self.train.select(&kept);
        tracing::info!("{examples} of {all} training examples are held back for trials");
        Ok(())
    }

    /// What the answers of an adapter trained on this depend on.
    pub fn learnt(&self, model: &ModelConfig) -> Learnt {
        Learnt {
            problem: self.problem,
            labels: self.labels.clone(),
            metrics: self.metrics.clone(),
            text_pair: self.text_pair,
            max_length: self.max_length,
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            images: self.images.clone(),
            base_model: model.name.clone(),
            revision: model.revision.clone(),
        }
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

/// A split before tokenising, and where its examples stand.
struct Split {
    name: String,
    examples: Vec<Example>,
    places: Places,
}

/// All splits, as they were read.
struct Found {
    train: Split,
    validation: Vec<Split>,
    test: Vec<Split>,
    labels: Vec<String>,
    problem: Problem,
}

/// Refuses a `model` that does not read what the data are: texts, or images.
pub fn check_kind(config: &DataConfig, model: &Architecture) -> Result<()> {
    match config.is_images() {
        true => image::check_kind(model),
        false => Limits::of(model).map(drop),
    }
}

impl Found {
    /// The same, each conversation written by its model's `template`: an example for each answer in it.
    fn written(self, template: &Template) -> Result<Self> {
        let all = |splits: Vec<Split>| -> Result<Vec<Split>> {
            splits
                .into_iter()
                .map(|split| split.written(template))
                .collect()
        };
        Ok(Found {
            train: self.train.written(template)?,
            validation: all(self.validation)?,
            test: all(self.test)?,
            ..self
        })
    }
}

impl Split {
    fn written(self, template: &Template) -> Result<Self> {
        let (examples, of) = chat::examples(template, &self.examples, &self.places)?;
        Ok(Split {
            examples,
            places: self.places.select(&of),
            ..self
        })
    }
}

/// Reads what `recipe` is trained and validated on, and makes of it what the `model` reads. Its test data is read, so
/// that a mistake in it is found before the training and not after, but nothing more.
pub fn load(recipe: &Recipe, folder: &ModelFolder, model: &Architecture) -> Result<Data> {
    if recipe.data.is_images() {
        return image::load(&recipe.data, folder, model);
    }
    if recipe.data.tags_words() {
        return words::load(recipe, folder, model);
    }
    let limits = &Limits::of(model)?;
    let found = read_all(&recipe.data)?;
    let metrics = recipe.data.metrics(found.labels.len());
    check_metrics(&metrics, found.problem, &found.labels)?;
    let encoder = encoder(recipe, folder, limits)?;
    let template = recipe.data.is_chat().then(|| Template::open(&folder.dir));
    let template = template.transpose()?;
    let found = match &template {
        Some(template) => found.written(template)?,
        None => found,
    };
    let kind = (found.problem, template.is_some());
    let validation = found.validation.into_iter();
    Ok(Data {
        held_back: Encoded::default(),
        train: tokenized(&encoder, limits, &found.train, kind)?,
        validation: validation
            .map(|split| {
                let encoded = tokenized(&encoder, limits, &split, kind)?;
                Ok((split.name, encoded))
            })
            .collect::<Result<_>>()?,
        labels: found.labels,
        problem: found.problem,
        metrics,
        text_pair: recipe.data.pairs(),
        max_length: encoder.max_length(),
        tokenizer: Some(encoder.identity().to_owned()),
        chat_template: template.map(|template| template.identity().to_owned()),
        images: None,
    })
}

/// The tokenizer of a model's folder for texts as long as recipe and model allow.
pub fn encoder(recipe: &Recipe, folder: &ModelFolder, limits: &Limits) -> Result<Encoder> {
    let (wanted, longest) = (recipe.model.longest(), limits.length);
    if longest < wanted {
        tracing::warn!(
            "model.max_length is {wanted}, but the model has positions for {longest} tokens only: {longest} is used"
        );
    }
    Encoder::open(&folder.tokenizer, wanted.min(longest))
}

/// `written` says that the texts have their special tokens already.
fn tokenized(
    encoder: &Encoder,
    limits: &Limits,
    split: &Split,
    (problem, written): (Problem, bool),
) -> Result<Encoded> {
    let encoded = match problem {
        Problem::CausalLm => language::encode(encoder, &split.examples, &split.places, written)?,
        _ => {
            let cache = cache::dir()?.join("tokens");
            encode_cached(&cache, encoder, &split.examples, &split.places)?
        }
    };
    encode::check(&encoded, limits, encoder)?;
    Ok(encoded)
}

/// The splits of `recipe`'s data that `name` means, tokenised, for an adapter that has `learnt` what it says: the
/// split itself, or those that begin with it (`validation` stands for both of MNLI's). Nothing else is read.
pub fn load_split(
    recipe: &Recipe,
    (encoder, template): (&Encoder, Option<&Template>),
    limits: &Limits,
    learnt: &Learnt,
    name: &str,
) -> Result<Vec<(String, Encoded)>> {
    let config = &recipe.data;
    config.validate()?;
    let parts = [Part::Validation, Part::Test];
    let of = |part: &&Part| name == part.name() || name.starts_with(&format!("{}_", part.name()));
    let splits = match parts.iter().find(of) {
        None => Vec::new(),
        Some(part) => read_part(config, *part, &learnt.labels, learnt.problem)?,
    };
    let splits = splits.into_iter();
    let mut splits: Vec<Split> = splits
        .filter(|split| split.name == name || split.name.starts_with(&format!("{name}_")))
        .collect();
    if splits.is_empty() {
        let there = parts.iter().filter(|part| match (config.task, part) {
            (Some(_), _) => true,
            (None, _) if config.hub.is_some() => true,
            (None, Part::Test) => config.test.is_some(),
            (None, _) => config.validation.is_some(),
        });
        let there: Vec<&str> = there.map(|part| part.name()).collect();
        return Err(no_split(name, &there));
    }
    if let Some(limit) = config.limit {
        splits.iter_mut().for_each(|s| s.examples.truncate(limit));
    }
    let encoded = splits.into_iter().map(|split| {
        let unlabelled = split.examples.iter().position(|e| e.label.is_none());
        if let Some(index) = unlabelled {
            return Err(Error::user(format!(
                "the split `{}` is not labelled: {} has no label (in a test file, -1 that names no class is none)",
                split.name,
                split.places.name(index)
            ))
            .help("evaluate on a labelled split, or label the texts with `dynalora predict`"));
        }
        let split = match template {
            Some(template) => split.written(template)?,
            None => split,
        };
        let kind = (learnt.problem, template.is_some());
        let encoded = tokenized(encoder, limits, &split, kind)?;
        Ok((split.name, encoded))
    });
    encoded.collect()
}

/// That there is no split of this `name`, but those that are `there`.
pub(super) fn no_split(name: &str, there: &[&str]) -> Error {
    Error::user(format!("the data has no labelled split `{name}`")).help(match there {
        [] => "give `validation` or `test` in [data]".to_owned(),
        _ => format!("it may have: {}", there.join(", ")),
    })
}

/// Reads the data that `config` names, at most `limit` examples of each split.
pub fn read(config: &DataConfig) -> Result<Splits> {
    let found = read_all(config)?;
    let examples = |splits: Vec<Split>| -> Vec<_> {
        let splits = splits.into_iter();
        splits.map(|split| (split.name, split.examples)).collect()
    };
    Ok(Splits {
        train: found.train.examples,
        validation: examples(found.validation),
        test: examples(found.test),
        labels: found.labels,
        problem: found.problem,
    })
}

fn read_all(config: &DataConfig) -> Result<Found> {
    config.validate()?;
    let mut found = match config.task {
        Some(Task::MinimalPairs) => generated(config)?,
        Some(task) => published(task, config)?,
        None => own(config)?,
    };
    if let Some(limit) = config.limit {
        let others = found.validation.iter_mut().chain(&mut found.test);
        for split in std::iter::once(&mut found.train).chain(others) {
            split.examples.truncate(limit);
        }
    }
    Ok(found)
}

/// One part of the data, for classes that are known.
fn read_part(
    config: &DataConfig,
    part: Part,
    labels: &[String],
    problem: Problem,
) -> Result<Vec<Split>> {
    match config.task {
        Some(Task::MinimalPairs) => {
            let found = generated(config)?;
            Ok(if part == Part::Test {
                found.test
            } else {
                found.validation
            })
        }
        Some(task) => published_part(task, config, part),
        None => {
            let columns = own_columns(config)?;
            let [_, validation, test] = files::own(config, &[part])?;
            let paths = match part {
                Part::Test => test,
                _ => validation,
            };
            own_part(config, &columns, paths, part, labels, problem)
        }
    }
}

/// Names of the classes and the kind of problem, from the recipe where it tells, else from the labels of
/// the training data.
pub fn labels_of(config: &DataConfig) -> Result<(Vec<String>, Problem)> {
    if config.is_images() {
        let labels = image::labels_of(config)?;
        check_metrics(
            &config.metrics(labels.len()),
            Problem::Classification,
            &labels,
        )?;
        return Ok((labels, Problem::Classification));
    }
    if config.tags_words() {
        let labels = words::labels_of(config)?;
        let problem = Problem::TokenClassification;
        check_metrics(&config.metrics(labels.len()), problem, &labels)?;
        return Ok((labels, problem));
    }
    let (labels, problem) = match (config.task, config.problem, &config.labels) {
        (Some(task), ..) => (task.labels(), task.problem()),
        (None, Some(problem @ (Problem::Regression | Problem::CausalLm)), _) => {
            (Vec::new(), problem)
        }
        (None, _, Some(labels)) => (labels.clone(), Problem::Classification),
        (None, told, None) => {
            config.validate()?;
            let columns = own_columns(config)?;
            let [train, ..] = files::own(config, &[Part::Train])?;
            let files = own_rows(config, &columns, train, Part::Train)?;
            let labels = own_labels(&files, told.is_some())?;
            (labels, Problem::Classification)
        }
    };
    check_metrics(&config.metrics(labels.len()), problem, &labels)?;
    Ok((labels, problem))
}

/// Refuses metrics that cannot be computed for these classes.
pub(super) fn check_metrics(metrics: &[Metric], problem: Problem, labels: &[String]) -> Result<()> {
    metrics::check(metrics, problem, labels.len())
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

/// The embedded corpus, as many sentences a text as are asked for.
fn generated(config: &DataConfig) -> Result<Found> {
    let sentences = config.sentences.unwrap_or(1);
    let (seed, sizes) = CORPUS;
    let corpus = minimal_pairs::generate(seed, sizes)?;
    let split = |name: &str, found: Vec<minimal_pairs::Sentence>| {
        let texts = minimal_pairs::texts(&found, sentences, seed);
        let examples = texts.into_iter().map(|(text, acceptable)| Example {
            text,
            text_pair: None,
            label: Some(Label::Class(acceptable.into())),
        });
        Split {
            name: name.to_owned(),
            examples: examples.collect(),
            places: Places::numbered(&format!("minimal-pairs ({name})"), "text"),
        }
    };
    Ok(Found {
        train: split("train", corpus.train),
        validation: vec![split("validation", corpus.validation)],
        test: vec![split("test", corpus.test)],
        labels: Task::MinimalPairs.labels(),
        problem: Problem::Classification,
    })
}

fn published_part(task: Task, config: &DataConfig, part: Part) -> Result<Vec<Split>> {
    // `validate` has made sure that a folder is given.
    let dir = config.dir.as_deref().unwrap_or(Path::new("."));
    let labels = task.labels();
    let reader = Reader {
        labels: &labels,
        problem: task.problem(),
        part,
        // Some files hold names, others positions, and hidden labels are -1.
        numbered: true,
        hidden: (part == Part::Test).then_some("-1"),
    };
    let splits = task.files(dir, part)?.into_iter().map(|found| {
        let (mut examples, mut places) = (Vec::new(), Places::default());
        for file in &found.files {
            let layout = task.layout(file, part);
            let rows = table::read(file, &layout)?;
            let lines = rows.iter().map(|row| row.line).collect();
            places.add(file, layout.format.unit(), lines);
            examples.extend(reader.examples(file, layout.format, rows)?);
        }
        Ok(Split {
            name: found.name,
            examples,
            places,
        })
    });
    splits.collect()
}

fn published(task: Task, config: &DataConfig) -> Result<Found> {
    let mut train = published_part(task, config, Part::Train)?;
    Ok(Found {
        // `files` gives an error where there is none.
        train: train.swap_remove(0),
        validation: published_part(task, config, Part::Validation)?,
        test: published_part(task, config, Part::Test)?,
        problem: task.problem(),
        labels: task.labels(),
    })
}

fn own(config: &DataConfig) -> Result<Found> {
    let columns = own_columns(config)?;
    let [train, validation, test] = files::own(config, &files::PARTS)?;
    let train = own_rows(config, &columns, train, Part::Train)?;
    let problem = config.problem.unwrap_or(Problem::Classification);
    let labels = match (problem, &config.labels) {
        (Problem::Regression | Problem::CausalLm, _) => Vec::new(),
        (_, Some(labels)) => labels.clone(),
        (_, None) => own_labels(&train, config.problem.is_some())?,
    };
    let other =
        |paths: Vec<PathBuf>, part: Part| own_part(config, &columns, paths, part, &labels, problem);
    Ok(Found {
        validation: other(validation, Part::Validation)?,
        test: other(test, Part::Test)?,
        train: own_split(config, train, Part::Train, &labels, problem)?,
        labels,
        problem,
    })
}

/// A file and its rows.
type File = (PathBuf, Vec<Row>);

/// The classes in training files.
fn own_labels(files: &[File], told: bool) -> Result<Vec<String>> {
    let first = files.first().map_or(Path::new(""), |(path, _)| path);
    distinct(first, files.iter().flat_map(|(_, rows)| rows), told)
}

/// The split that files hold; none where there are no files.
fn own_part(
    config: &DataConfig,
    columns: &Columns,
    paths: Vec<PathBuf>,
    part: Part,
    labels: &[String],
    problem: Problem,
) -> Result<Vec<Split>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let files = own_rows(config, columns, paths, part)?;
    Ok(vec![own_split(config, files, part, labels, problem)?])
}

fn own_split(
    config: &DataConfig,
    files: Vec<File>,
    part: Part,
    labels: &[String],
    problem: Problem,
) -> Result<Split> {
    // As GLUE's test files have it: a label that is kept secret. As a value, -1 may be meant; all of them are not.
    let secret = |row: &Row| row.label.as_deref().map(str::trim) == Some("-1");
    let rows = || files.iter().flat_map(|(_, rows)| rows);
    let hidden = part == Part::Test
        && match problem {
            Problem::Classification => !labels.iter().any(|label| label == "-1"),
            Problem::Regression => rows().count() > 1 && rows().all(secret),
            Problem::CausalLm | Problem::TokenClassification => false,
        };
    if let (true, Some((path, _))) = (hidden && rows().any(secret), files.first()) {
        tracing::warn!(
            "{}: labels of -1 are taken for none, as in GLUE's test files",
            path.display()
        );
    }
    let reader = Reader {
        labels,
        problem,
        part,
        // Positions stand for classes only where they cannot be taken for names.
        numbered: config.labels.is_some() && !labels.iter().any(|label| is_whole(label)),
        hidden: hidden.then_some("-1"),
    };
    let (mut examples, mut places) = (Vec::new(), Places::default());
    for (path, rows) in files {
        let format = format(config, &path)?;
        let lines = rows.iter().map(|row| row.line).collect();
        places.add(&path, format.unit(), lines);
        examples.extend(reader.examples(&path, format, rows)?);
    }
    Ok(Split {
        name: part.name().to_owned(),
        examples,
        places,
    })
}

/// The columns of a recipe with files of its own, which `validate` has made sure of.
fn own_columns(config: &DataConfig) -> Result<Columns> {
    match &config.columns {
        Some(columns) => Ok(columns.clone()),
        // Files that are all text.
        None if config.predicts_tokens() => Ok(Columns::of(Column::Index(0))),
        None => Err(Error::user("[data] does not say what to learn")
            .help("Give `task` and `dir`, or `train` and [data.columns].")),
    }
}

fn own_rows(
    config: &DataConfig,
    columns: &Columns,
    paths: Vec<PathBuf>,
    part: Part,
) -> Result<Vec<File>> {
    let files = paths.into_iter().map(|path| {
        let rows = rows_of(config, columns, &path, part)?;
        Ok((path, rows))
    });
    files.collect()
}

fn rows_of(config: &DataConfig, columns: &Columns, path: &Path, part: Part) -> Result<Vec<Row>> {
    let format = format(config, path)?;
    let language = config.predicts_tokens();
    if format == Format::Txt && !language {
        return Err(Error::user(format!(
            "{}: plain text has no columns, so that nothing says what its labels are",
            path.display()
        ))
        .help("Give CSV, TSV, JSON lines or Parquet; or set `problem = \"causal-lm\"` in [data] to predict its tokens."));
    }
    let usual = if format == Format::Tsv { '\t' } else { ',' };
    let layout = Layout {
        format,
        delimiter: config.delimiter.unwrap_or(usual) as u8,
        quote: config.quote.unwrap_or(format == Format::Csv),
        quote_guessed: config.quote.is_none(),
        header: if config.header.unwrap_or(true) {
            Header::Yes
        } else {
            Header::No
        },
        text: columns
            .messages
            .iter()
            .chain(&columns.text)
            .cloned()
            .collect(),
        text_pair: columns
            .text_pair
            .iter()
            .chain(&columns.response)
            .cloned()
            .collect(),
        label: match language {
            true => Vec::new(),
            false => vec![columns.label.clone()],
        },
        needs_label: part != Part::Test && !language,
        skip_short: false,
        allow_empty: false,
        structured: config.is_chat(),
    };
    table::read(path, &layout)
}

fn format(config: &DataConfig, path: &Path) -> Result<Format> {
    config.format.map_or_else(|| Format::of(path), Ok)
}

#[cfg(test)]
mod tests;
