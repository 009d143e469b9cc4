//! The sentences that a recipe names, as a model reads them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Sentence, encode};
use crate::data::encode::{Limits, check};
use crate::data::files;
use crate::data::labels::{MOST, Reader, is_whole};
use crate::data::load::{check_metrics, encoder, no_split};
use crate::data::problems::Problems;
use crate::data::table::{self, Format, Header, Layout, Row, json_told, shorten};
use crate::data::{Data, Encoded, Encoder, Learnt, Part, Places};
use crate::error::{Error, Result};
use crate::model::{Architecture, ModelFolder};
use crate::recipe::{Column, DataConfig, Metric, Problem, Recipe};

/// The columns of data sets as the Hub has them.
const TOKENS: &str = "tokens";
const TAGS: &str = "ner_tags";

/// All splits before tokenising.
#[derive(Clone, Debug, PartialEq)]
pub struct Splits {
    /// What is learnt from.
    pub train: Vec<Sentence>,
    /// What is evaluated on while training.
    pub validation: Option<Vec<Sentence>>,
    /// What is kept for the end.
    pub test: Option<Vec<Sentence>>,
    /// The tags in the order of their indices.
    pub labels: Vec<String>,
}

/// A split before tokenising, and where its sentences stand.
struct Split {
    part: Part,
    sentences: Vec<Sentence>,
    places: Places,
}

/// All splits, as they were read.
struct Found {
    train: Split,
    validation: Option<Split>,
    test: Option<Split>,
    labels: Vec<String>,
}

impl Split {
    fn encoded(&self, encoder: &Encoder, limits: &Limits, labels: &[String]) -> Result<Encoded> {
        let named = (self.part.name(), &self.places);
        let encoded = encode(encoder, &self.sentences, labels, named)?;
        check(&encoded, limits, encoder)?;
        Ok(encoded)
    }
}

/// Reads what `recipe` is trained and validated on, and makes of it what the `model` reads. Its test data is read, so
/// that a mistake in it is found before the training and not after, but nothing more.
pub fn load(recipe: &Recipe, folder: &ModelFolder, model: &Architecture) -> Result<Data> {
    let config = &recipe.data;
    let limits = Limits::of(model)?;
    let found = read_all(config)?;
    let labels = found.labels;
    let metrics = config.metrics(labels.len());
    check_metrics(&metrics, Problem::TokenClassification, &labels)?;
    warn_of_other_tags(&metrics, &labels);
    let encoder = encoder(recipe, folder, &limits)?;
    let validation = found.validation.iter().map(|split| {
        let encoded = split.encoded(&encoder, &limits, &labels)?;
        Ok((split.part.name().to_owned(), encoded))
    });
    Ok(Data {
        train: found.train.encoded(&encoder, &limits, &labels)?,
        held_back: Encoded::default(),
        validation: validation.collect::<Result<_>>()?,
        labels,
        problem: Problem::TokenClassification,
        metrics,
        text_pair: false,
        max_length: encoder.max_length(),
        tokenizer: Some(encoder.identity().to_owned()),
        chat_template: None,
        images: None,
    })
}

/// The split of `config`'s sentences that is called `name`, for an adapter that has `learnt` what it says. Nothing else is
/// read.
pub fn load_split(
    config: &DataConfig,
    encoder: &Encoder,
    limits: &Limits,
    learnt: &Learnt,
    name: &str,
) -> Result<Vec<(String, Encoded)>> {
    config.validate()?;
    let parts = [Part::Validation, Part::Test];
    let [_, validation, test] = files::own(config, &parts)?;
    let there = parts.into_iter().zip([validation, test]);
    let there: Vec<(Part, Vec<PathBuf>)> = there.filter(|(_, paths)| !paths.is_empty()).collect();
    let names: Vec<&str> = there.iter().map(|(part, _)| part.name()).collect();
    let found = names.iter().position(|there| *there == name);
    let Some((part, paths)) = found.and_then(|at| there.get(at)) else {
        return Err(no_split(name, &names));
    };
    let files = read_files(config, paths, *part)?;
    let split = split(config, files, *part, &learnt.labels)?;
    let unlabelled = split.sentences.iter().position(|it| it.classes.is_none());
    if let Some(index) = unlabelled {
        return Err(Error::user(format!(
            "the split `{name}` is not labelled: {} has no tags",
            split.places.name(index)
        ))
        .help("evaluate on a labelled split, or tag the sentences with `dynalora predict`"));
    }
    let encoded = split.encoded(encoder, limits, &learnt.labels)?;
    Ok(vec![(name.to_owned(), encoded)])
}

/// Reads the data that `config` names.
pub fn read(config: &DataConfig) -> Result<Splits> {
    let found = read_all(config)?;
    Ok(Splits {
        train: found.train.sentences,
        validation: found.validation.map(|split| split.sentences),
        test: found.test.map(|split| split.sentences),
        labels: found.labels,
    })
}

/// Says where chunks are scored of tags that form none but by what they are called.
fn warn_of_other_tags(metrics: &[Metric], labels: &[String]) {
    let chunked = |metric: &Metric| *metric != Metric::OverallAccuracy;
    let usual = |tag: &&String| {
        let mut letters = tag.chars();
        let letter = letters.next().unwrap_or_default();
        "BIES".contains(letter) && matches!(letters.next(), None | Some('-')) || *tag == "O"
    };
    let other: Vec<&str> = labels
        .iter()
        .filter(|tag| !usual(tag))
        .map(String::as_str)
        .collect();
    if let (Some(metric), [first, ..]) = (metrics.iter().find(|it| chunked(it)), &other[..]) {
        tracing::warn!(
            "{} of the {} tags, such as {first}, are none of chunks (B-…, I-…, E-…, S-…, O): `{metric}` takes the words that have \
             one side by side for a chunk, as seqeval does; `metrics = [\"overall_accuracy\"]` in [data] scores each word alone",
            other.len(),
            labels.len()
        );
    }
}

/// The tags of a recipe's data: those that it names, or else those of its training data.
pub fn labels_of(config: &DataConfig) -> Result<Vec<String>> {
    config.validate()?;
    match &config.labels {
        Some(labels) => Ok(labels.clone()),
        None => {
            let [train, ..] = files::own(config, &[Part::Train])?;
            tags_of(config, &read_files(config, &train, Part::Train)?)
        }
    }
}

fn read_all(config: &DataConfig) -> Result<Found> {
    config.validate()?;
    let [train, validation, test] = files::own(config, &files::PARTS)?;
    let train = read_files(config, &train, Part::Train)?;
    let labels = match &config.labels {
        Some(labels) => labels.clone(),
        None => tags_of(config, &train)?,
    };
    let other = |paths: Vec<PathBuf>, part: Part| match &paths[..] {
        [] => Ok(None),
        paths => split(config, read_files(config, paths, part)?, part, &labels).map(Some),
    };
    Ok(Found {
        train: split(config, train, Part::Train, &labels)?,
        validation: other(validation, Part::Validation)?,
        test: other(test, Part::Test)?,
        labels,
    })
}

/// A file and its rows.
type File = (PathBuf, Vec<Row>);

fn read_files(config: &DataConfig, paths: &[PathBuf], part: Part) -> Result<Vec<File>> {
    let files = paths.iter();
    files
        .map(|path| Ok((path.clone(), rows(config, path, part)?)))
        .collect()
}

fn format(config: &DataConfig, path: &Path) -> Result<Format> {
    config.format.map_or_else(|| Format::of(path), Ok)
}

/// The columns of words and of tags, in a file of such a format.
fn columns(config: &DataConfig, format: Format) -> [Vec<Column>; 2] {
    let given = config.columns.as_ref();
    let given = given.map_or([None, None], |columns| {
        [columns.tokens.clone(), columns.tags.clone()]
    });
    let usual = match format {
        // The first, and the last, which only the file tells.
        Format::Conll => [Some(Column::Index(0)), None],
        _ => [TOKENS, TAGS].map(|name| Some(Column::Name(name.to_owned()))),
    };
    let mut columns = given.into_iter().zip(usual).map(|(given, usual)| {
        let column = given.or(usual);
        column.into_iter().collect()
    });
    std::array::from_fn(|_| columns.next().expect("there are two"))
}

/// The rows of a file; `part` decides whether they must have tags.
fn rows(config: &DataConfig, path: &Path, part: Part) -> Result<Vec<Row>> {
    let format = format(config, path)?;
    format.require_words(path)?;
    let [text, label] = columns(config, format);
    let layout = Layout {
        format,
        delimiter: b',',
        quote: false,
        quote_guessed: false,
        header: Header::Yes,
        text,
        text_pair: Vec::new(),
        label,
        needs_label: part != Part::Test,
        skip_short: false,
        allow_empty: false,
        structured: true,
    };
    table::read(path, &layout)
}

/// The tags of training files: those that the first one's metadata names, or else those that their rows have, sorted.
fn tags_of(config: &DataConfig, files: &[File]) -> Result<Vec<String>> {
    let path = files.first().map_or(Path::new(""), |(path, _)| path);
    if let Some(names) = names_in(config, path)? {
        return Ok(told(path, "its metadata", names));
    }
    let mut tags = BTreeSet::new();
    for row in files.iter().flat_map(|(_, rows)| rows) {
        // What is wrong with a row is complained of where rows become sentences.
        let found = row.label.as_deref().map(list);
        tags.extend(found.and_then(Result::ok).into_iter().flatten());
    }
    let tags: Vec<String> = tags.into_iter().collect();
    let help = "Name the tags in [data], in order: `labels = [\"O\", \"B-PER\", \"I-PER\"]`; or check `tags` in [data.columns].";
    if tags.iter().all(|tag| is_whole(tag)) && !tags.is_empty() {
        return Err(Error::user(format!(
            "{}: the tags are numbers ({}), and nothing says what they are called",
            path.display(),
            shorten(&tags.join(", "), 40)
        ))
        .help(help));
    }
    if tags.len() < 2 || tags.len() > MOST {
        return Err(Error::user(format!(
            "{}: there are {} different tags, where 2 to {MOST} are expected",
            path.display(),
            tags.len()
        ))
        .help(help));
    }
    Ok(told(path, "its rows, sorted", tags))
}

/// The names that a file's own metadata has for the numbers of its tags.
fn names_in(config: &DataConfig, path: &Path) -> Result<Option<Vec<String>>> {
    let format = format(config, path)?;
    match (format, &columns(config, format)[1][..]) {
        (Format::Parquet, [Column::Name(tags)]) => table::class_names_of(path, tags),
        _ => Ok(None),
    }
}

fn told(path: &Path, from: &str, tags: Vec<String>) -> Vec<String> {
    tracing::info!(
        "{}: the tags are those of {from}, in this order: {}",
        path.display(),
        tags.join(", ")
    );
    tags
}

fn split(config: &DataConfig, files: Vec<File>, part: Part, labels: &[String]) -> Result<Split> {
    let reader = Reader {
        labels,
        problem: Problem::TokenClassification,
        part,
        numbered: !labels.iter().any(|label| is_whole(label)),
        hidden: None,
    };
    let mut places = Places::default();
    let mut sentences = Vec::new();
    for (path, rows) in files {
        let unit = format(config, &path)?.unit();
        let names = names_in(config, &path)?;
        let mut problems = Problems::new(&path, unit);
        places.add(&path, unit, rows.iter().map(|row| row.line).collect());
        for row in rows {
            match sentence(&row, &reader, names.as_deref()) {
                Ok(sentence) => sentences.push(sentence),
                Err(what) => problems.push(row.line, what),
            }
        }
        problems.finish(
            "Correct the rows, or `tokens` and `tags` in [data.columns], or `labels` in [data].",
        )?;
    }
    sentences.truncate(config.limit.unwrap_or(usize::MAX));
    Ok(Split {
        part,
        sentences,
        places,
    })
}

/// A row's sentence; where the file has `names` of its own for its tags, these are numbers of them.
fn sentence(row: &Row, reader: &Reader<'_>, names: Option<&[String]>) -> Result<Sentence, String> {
    let words = list(&row.text).map_err(|what| format!("the words are {what}"))?;
    if words.is_empty() {
        return Err("the sentence has no words".to_owned());
    }
    let tags = row.label.as_deref().filter(|tags| *tags != "null");
    let Some(tags) = tags else {
        return match reader.part {
            Part::Test => Ok(Sentence {
                words,
                classes: None,
            }),
            Part::Train | Part::Validation => Err("the tags are missing".to_owned()),
        };
    };
    let tags = list(tags).map_err(|what| format!("the tags are {what}"))?;
    if tags.len() != words.len() {
        return Err(format!("{} words, but {} tags", words.len(), tags.len()));
    }
    let named = |tag: &String| -> Result<String, String> {
        let Some(names) = names else {
            return Ok(tag.clone());
        };
        let name = tag.parse::<usize>().ok().and_then(|at| names.get(at));
        name.cloned().ok_or_else(|| {
            let count = names.len();
            format!("the tag {tag} is none of the {count} classes in the file's metadata")
        })
    };
    let class = |tag: &String| reader.class(&named(tag)?);
    let classes = tags.iter().map(class).collect::<Result<_, String>>()?;
    Ok(Sentence {
        words,
        classes: Some(classes),
    })
}

/// The texts, or whole numbers, of a JSON list.
fn list(text: &str) -> Result<Vec<String>, String> {
    let values: Vec<Value> =
        serde_json::from_str(text).map_err(|error| format!("no list: {}", json_told(&error)))?;
    let texts = values.into_iter().map(|value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        other => Err(format!(
            "a list with {} in it",
            shorten(&other.to_string(), 40)
        )),
    });
    texts.collect()
}
