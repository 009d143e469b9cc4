//! The recipe's `[data]` table.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::format::{Column, Format};
use super::metric::{Metric, TOP};
use super::task::{Problem, Task};
use crate::error::{Error, Result};

/// Where the examples come from: a known `task`, files of one's own, or a data set of the Hub.
///
/// Exactly one of `task`, `hub` and `train` is given, or for images `dir`; with `hub`, `train`, `validation` and `test` name
/// splits. Relative paths are relative to the recipe's folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// A task by name: a GLUE task, read from `dir`, or the embedded `minimal-pairs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The folder of a GLUE task, or the folder above it, in the published layout; or of images, with a folder or Parquet
    /// files for each split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// A data set of the Hugging Face Hub, `owner/name`, in Parquet, CSV, TSV or JSON lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Of a data set of the Hub: which of its configurations (subsets), where it has several; by default its own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Of a data set of the Hub: the branch, tag or commit; by default `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Of `minimal-pairs`: so many sentences are a text, all of them acceptable or none; by default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub sentences: Option<usize>,
    /// Examples to train on: a file, or the name of the Hub's split, by default `train`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// Labelled examples to evaluate on: a file, or the name of the Hub's split, by default `validation` if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Examples to predict, with or without labels: a file, or the name of the Hub's split, by default `test` if it is
    /// there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// How the files are written; by default what their extension says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The character between columns; by default a comma in CSV and a tab in TSV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// Whether the first line of a CSV or TSV names the columns; by default it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// Whether `"` encloses fields (and `""` stands for one quote inside); by default it does in
    /// CSV and is an ordinary character in TSV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<bool>,
    /// Which columns hold what, for files of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// The classes, or tags, in the order of the head's outputs; by default the distinct labels of `train`,
    /// sorted (as numbers where all are whole numbers). The files hold these names, or, where no
    /// name is itself a whole number, their positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// What is predicted; by default a class. Labels that are numbers with fractions need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// What is measured in an evaluation, the deciding one first; by default the task's own, or
    /// `accuracy` for classes, of more than five also `accuracy_top5`, `pearson`, `spearman` for values, and seqeval's
    /// `overall_f1`, `overall_precision`, `overall_recall`, `overall_accuracy` for tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Vec<Metric>>,
    /// At most this many examples of each split, from its start: for a quick try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The columns of a file of one's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The text, or the first text of a pair; under `causal-lm` a document, or a prompt. Of texts it must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Column>,
    /// Under `causal-lm`, in place of `text`: a conversation, a list of objects with `role` and `content`, written as the
    /// model's chat template says. What the assistant says is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Column>,
    /// In Parquet files of images: the image, the bytes of a file, alone or as `bytes` of a struct; by default `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Column>,
    /// Under `causal-lm`: what answers the prompt. It alone is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Column>,
    /// The second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<Column>,
    /// The class or value to learn.
    #[serde(default = "label_column")]
    pub label: Column,
    /// Under `token-classification`: a list of words; by default `tokens`, in CoNLL's columns the first, 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Column>,
    /// Under `token-classification`: a list of their tags; by default `ner_tags`, in CoNLL's columns the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Column>,
}

impl Columns {
    /// A text's column alone.
    pub fn of(text: Column) -> Self {
        Columns {
            text: Some(text),
            messages: None,
            image: None,
            response: None,
            text_pair: None,
            label: label_column(),
            tokens: None,
            tags: None,
        }
    }
}

fn label_column() -> Column {
    Column::Name("label".into())
}

impl DataConfig {
    /// The same table with every path joined to `base`, for use from another folder.
    pub fn resolved(&self, base: &Path) -> Self {
        let mut resolved = self.clone();
        for path in resolved.paths() {
            *path = base.join(&path);
        }
        resolved
    }

    /// Every path in it. Of a data set of the Hub the keys name splits.
    pub fn paths(&mut self) -> Vec<&mut PathBuf> {
        let own = match self.hub {
            Some(_) => [None, None, None],
            None => [&mut self.train, &mut self.validation, &mut self.test].map(Option::as_mut),
        };
        own.into_iter()
            .chain([self.dir.as_mut()])
            .flatten()
            .collect()
    }

    /// The revision of the Hub's data set.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// What a run on so many `classes` is judged by, the deciding one first: the recipe's choice or the task's own.
    pub fn metrics(&self, classes: usize) -> Vec<Metric> {
        let usual: &[Metric] = match (&self.metrics, self.task, self.problem()) {
            (Some(metrics), ..) => metrics,
            (None, Some(task), _) => task.metrics(),
            (None, None, Problem::Regression) => &[Metric::Pearson, Metric::Spearman],
            (None, None, Problem::CausalLm) => &[Metric::Perplexity],
            (None, None, Problem::TokenClassification) => &[
                Metric::OverallF1,
                Metric::OverallPrecision,
                Metric::OverallRecall,
                Metric::OverallAccuracy,
            ],
            (None, None, Problem::Classification) if classes > TOP => {
                &[Metric::Accuracy, Metric::AccuracyTop5]
            }
            (None, None, Problem::Classification) => &[Metric::Accuracy],
        };
        usual.to_vec()
    }

    /// What is predicted, as far as the recipe tells: a class where it is silent.
    pub fn problem(&self) -> Problem {
        match self.task {
            Some(task) => task.problem(),
            None => self.problem.unwrap_or(Problem::Classification),
        }
    }

    /// Whether the examples are images.
    pub fn is_images(&self) -> bool {
        self.task.is_none() && self.format == Some(Format::Images)
    }

    /// Whether the examples are conversations.
    pub fn is_chat(&self) -> bool {
        let columns = self.columns.as_ref();
        self.task.is_none() && columns.is_some_and(|columns| columns.messages.is_some())
    }

    /// Whether tokens are predicted.
    pub fn predicts_tokens(&self) -> bool {
        self.problem() == Problem::CausalLm
    }

    /// Whether words are given classes.
    pub fn tags_words(&self) -> bool {
        self.problem() == Problem::TokenClassification
    }

    /// Whether the examples are pairs of texts.
    pub fn pairs(&self) -> bool {
        match self.task {
            Some(task) => task.pairs(),
            None => {
                self.columns.as_ref().is_some_and(|columns| {
                    columns.text_pair.is_some() || columns.response.is_some()
                }) || self.is_chat()
            }
        }
    }

    /// Writes out what was left open and the data has told: the classes and the kind of problem. A task has them by
    /// itself.
    pub fn settle(&mut self, labels: &[String], problem: Problem) {
        if self.task.is_none() {
            self.problem = Some(problem);
            self.labels = problem.has_classes().then(|| labels.to_vec());
        }
    }

    /// Refuses keys that contradict each other or cannot mean anything.
    pub fn validate(&self) -> Result<()> {
        self.validate_hub()?;
        let own = match self.hub {
            Some(_) => Some("hub"),
            None => self.train.as_ref().map(|_| "train"),
        };
        match (self.task, own) {
            (Some(task), Some(key)) => {
                return Err(Error::user(format!(
                    "`data.task = \"{task}\"` and `data.{key}` are both given: a run learns one of them"
                ))
                .help(format!(
                    "Keep `task` and `dir` for a known task, or `{key}` and `columns` for files of your own."
                )));
            }
            (None, None) if self.is_images() && self.dir.is_some() => self.validate_images()?,
            (None, None) => {
                return Err(Error::user("[data] does not say what to learn").help(
                    "Give `task = \"cola\"` and `dir`, or `train = \"train.csv\"` or `hub = \"owner/name\"` with [data.columns].",
                ));
            }
            (Some(task), None) => self.validate_task(task)?,
            (None, Some(_)) if self.is_images() => self.validate_images()?,
            (None, Some(_)) if self.tags_words() => self.validate_words()?,
            (None, Some(_)) => self.validate_files()?,
        }
        self.validate_sentences()?;
        if self.limit == Some(0) {
            return Err(Error::user("`data.limit = 0` leaves no example")
                .help("Give a number of examples, or leave `limit` out to use them all."));
        }
        self.validate_metrics()
    }

    fn validate_hub(&self) -> Result<()> {
        let Some(hub) = &self.hub else {
            let of_hub = [("config", &self.config), ("revision", &self.revision)];
            return match of_hub.iter().find(|(_, given)| given.is_some()) {
                Some((key, _)) => Err(Error::user(format!(
                    "`data.{key}` is of a data set of the Hub, and `data.hub` is not given"
                ))
                .help(format!("Give `hub = \"owner/name\"`, or take `{key}` out."))),
                None => Ok(()),
            };
        };
        let named = [
            ("hub", Some(hub.as_str())),
            ("config", self.config.as_deref()),
            ("revision", self.revision.as_deref()),
            (
                "train",
                self.train.as_ref().and_then(|split| split.to_str()),
            ),
            (
                "validation",
                self.validation.as_ref().and_then(|split| split.to_str()),
            ),
            ("test", self.test.as_ref().and_then(|split| split.to_str())),
        ];
        if let Some((key, _)) = named
            .iter()
            .find(|(_, name)| name.is_some_and(|name| name.trim().is_empty()))
        {
            return Err(Error::user(format!("`data.{key}` is empty"))
                .help("With `hub`, `config` names one of its configurations, and `train`, `validation` and `test` name splits."));
        }
        if self.dir.is_some() && self.task.is_none() {
            return Err(Error::user("`data.hub` and `data.dir` are both given")
                .help("Keep `hub` for a data set of the Hub, or `dir` for a local one."));
        }
        if let Some(format @ (Format::Txt | Format::Conll)) = self.format {
            return Err(Error::user(format!(
                "`data.format = \"{format}\"` means nothing with `data.hub`"
            ))
            .help("Parquet, CSV, TSV and JSON lines are read from the Hub."));
        }
        Ok(())
    }

    fn validate_sentences(&self) -> Result<()> {
        match (self.sentences, self.task) {
            (Some(1..=64), Some(Task::MinimalPairs)) | (None, _) => Ok(()),
            (Some(count), Some(Task::MinimalPairs)) => Err(Error::user(format!(
                "`data.sentences = {count}`: a text has 1 to 64 sentences"
            ))
            .help("Longer ones would be cut by `model.max_length` all the same.")),
            (Some(_), _) => Err(Error::user(
                "`data.sentences` is for `task = \"minimal-pairs\"`, whose texts are generated",
            )
            .help("Take it out: other texts are as long as they are.")),
        }
    }

    fn validate_task(&self, task: Task) -> Result<()> {
        let own: [(&str, bool); 9] = [
            ("validation", self.validation.is_some()),
            ("test", self.test.is_some()),
            ("format", self.format.is_some()),
            ("delimiter", self.delimiter.is_some()),
            ("header", self.header.is_some()),
            ("quote", self.quote.is_some()),
            ("columns", self.columns.is_some()),
            ("labels", self.labels.is_some()),
            ("problem", self.problem.is_some()),
        ];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given) {
            return Err(Error::user(format!(
                "`data.{key}` is for files of your own; `data.task = \"{task}\"` decides it itself"
            ))
            .help(format!(
                "Take out `{key}`, or replace `task` and `dir` by `train = …` and [data.columns]."
            )));
        }
        match (task, &self.dir) {
            (Task::MinimalPairs, Some(_)) => Err(Error::user(
                "`data.dir` means nothing for `task = \"minimal-pairs\"`: its sentences are generated",
            )
            .help("Take `dir` out.")),
            (Task::MinimalPairs, None) | (_, Some(_)) => Ok(()),
            (_, None) => Err(Error::user(format!("`data.dir` is missing: where are the files of `{task}`?"))
                .help("Give the folder with the task's train and dev files: `dir = \"glue/cola\"`.")),
        }
    }

    fn validate_images(&self) -> Result<()> {
        let paths = [
            ("train", &self.train),
            ("validation", &self.validation),
            ("test", &self.test),
        ];
        if let (Some(_), Some((key, _))) =
            (&self.dir, paths.iter().find(|(_, path)| path.is_some()))
        {
            return Err(Error::user(format!("`data.dir` and `data.{key}` are both given"))
                .help("Keep `dir`, which has a folder or Parquet files for each split, or `train`, `validation` and `test`."));
        }
        let of_texts = [
            ("delimiter", self.delimiter.is_some()),
            ("header", self.header.is_some()),
            ("quote", self.quote.is_some()),
        ];
        let columns = self.columns.as_ref();
        let of_texts = of_texts
            .into_iter()
            .chain(columns.into_iter().flat_map(|columns| {
                [
                    ("columns.text", columns.text.is_some()),
                    ("columns.text_pair", columns.text_pair.is_some()),
                    ("columns.response", columns.response.is_some()),
                    ("columns.messages", columns.messages.is_some()),
                    ("columns.tokens", columns.tokens.is_some()),
                    ("columns.tags", columns.tags.is_some()),
                ]
            }));
        if let Some((key, _)) = of_texts.into_iter().find(|(_, given)| *given) {
            return Err(Error::user(format!(
                "`data.{key}` means nothing for `data.format = \"images\"`"
            ))
            .help("Take it out: images have `columns.image` and `columns.label` in Parquet files, and no columns in folders."));
        }
        let named = columns
            .into_iter()
            .flat_map(|columns| [columns.image.as_ref(), Some(&columns.label)]);
        if let Some(Column::Index(index)) = named
            .flatten()
            .find(|column| matches!(column, Column::Index(_)))
        {
            return Err(Error::user(format!(
                "[data.columns] gives the position {index}, but the columns of a Parquet file have names"
            ))
            .help("Give names: `image = \"image\"`, `label = \"label\"`."));
        }
        if let Some(problem) = self.problem.filter(|it| *it != Problem::Classification) {
            return Err(Error::user(format!(
                "`data.problem = \"{problem}\"`, but the data are images"
            ))
            .help("Of images classes are learnt: leave `problem` out."));
        }
        self.labels
            .as_ref()
            .map_or(Ok(()), |labels| self.validate_labels(labels))
    }

    /// Refuses what means nothing where words are given classes.
    fn validate_words(&self) -> Result<()> {
        let problem = Problem::TokenClassification;
        let none = Columns::of(label_column());
        let columns = self.columns.as_ref().unwrap_or(&none);
        let given = |column: &Option<Column>| self.columns.is_some() && column.is_some();
        let stray = [
            ("dir", self.dir.is_some()),
            ("delimiter", self.delimiter.is_some()),
            ("header", self.header.is_some()),
            ("quote", self.quote.is_some()),
            ("columns.text", given(&columns.text)),
            ("columns.text_pair", given(&columns.text_pair)),
            ("columns.response", given(&columns.response)),
            ("columns.messages", given(&columns.messages)),
            ("columns.image", given(&columns.image)),
            ("columns.label", columns.label != label_column()),
        ];
        if let Some((key, _)) = stray.iter().find(|(_, given)| *given) {
            return Err(Error::user(format!(
                "`data.{key}` means nothing for `data.problem = \"{problem}\"`"
            ))
            .help("Take it out: there are `train`, `validation` and `test`, and of their columns `tokens` and `tags`."));
        }
        for path in self.files() {
            let format = self.format.map_or_else(|| Format::of(path), Ok)?;
            format.require_words(path)?;
        }
        self.labels
            .as_ref()
            .map_or(Ok(()), |labels| self.validate_labels(labels))
    }

    /// The files that are given; of a data set of the Hub none, whose keys name splits.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let files = [&self.train, &self.validation, &self.test];
        let own = files.into_iter().flatten();
        own.filter(|_| self.hub.is_none())
    }

    fn validate_files(&self) -> Result<()> {
        let conll = |path: &&PathBuf| {
            let format = self.format.or_else(|| Format::of(path).ok());
            format == Some(Format::Conll)
        };
        if let Some(path) = self.files().find(conll) {
            return Err(Error::user(format!(
                "{}: a file of the format `{}` has a tag for each word",
                path.display(),
                Format::Conll
            ))
            .help("Set `problem = \"token-classification\"` in [data]; or give CSV, TSV, JSON lines or Parquet."));
        }
        if self.dir.is_some() {
            return Err(Error::user("`data.dir` is only for `data.task`, and for images")
                .help("Take `dir` out: `train`, `validation` and `test` are paths of their own; or set `format = \"images\"`."));
        }
        let Some(columns) = &self.columns else {
            if self.predicts_tokens() && self.is_all_text() {
                return Ok(());
            }
            return Err(Error::user("[data.columns] is missing: which column is the text?").help(
                "Add [data.columns] with `text = \"sentence\"` and `label = \"label\"`, and `text_pair` for pairs.",
            ));
        };
        let Some(text) = columns.messages.as_ref().or(columns.text.as_ref()) else {
            return Err(Error::user("`data.columns.text` is missing: which column is the text?")
                .help("Add it to [data.columns]: `text = \"sentence\"`; or set `format = \"images\"` in [data] for images."));
        };
        if columns.image.is_some() {
            return Err(Error::user("`data.columns.image` means nothing for texts")
                .help("Take it out, or set `format = \"images\"` in [data] and take `text` out."));
        }
        self.validate_kind(columns)?;
        let language = self.predicts_tokens();
        let named = [
            Some(text),
            columns.text_pair.as_ref(),
            columns.response.as_ref(),
            Some(&columns.label).filter(|_| !language),
        ];
        if self.header == Some(false)
            && let Some(Column::Name(name)) = named
                .iter()
                .flatten()
                .find(|c| matches!(c, Column::Name(_)))
        {
            return Err(Error::user(format!(
                "[data.columns] names the column `{name}`, but `data.header = false` says that columns have no names"
            ))
            .help("Give positions instead, from 0: `text = 3`, `label = 1`."));
        }
        let positions = |column: &&Column| matches!(column, Column::Index(_));
        if self.header.is_none() && named.iter().flatten().all(positions) {
            return Err(Error::user(
                "[data.columns] gives positions only, and `data.header` does not say whether the first line names the columns",
            )
            .help("Set `header = false` in [data] if the first line is an example, `header = true` if it is not."));
        }
        if let Some(delimiter) = self.delimiter
            && (!delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r'))
        {
            return Err(Error::user(format!(
                "`data.delimiter = {delimiter:?}` cannot divide columns"
            ))
            .help("Use one ASCII character such as \",\", \";\", \"|\" or \"\\t\"."));
        }
        if let Some(labels) = &self.labels {
            self.validate_labels(labels)?;
        }
        Ok(())
    }

    /// Whether all files are plain text.
    fn is_all_text(&self) -> bool {
        if self.hub.is_some() {
            return false;
        }
        let text = |path: &PathBuf| {
            let format = self.format.or_else(|| Format::of(path).ok());
            format == Some(Format::Txt)
        };
        self.files().all(text)
    }

    /// Refuses columns that mean nothing for the problem, and plain text where there should be columns.
    fn validate_kind(&self, columns: &Columns) -> Result<()> {
        let language = self.predicts_tokens();
        let stray = match language {
            true if columns.text_pair.is_some() => Some("text_pair"),
            false if columns.messages.is_some() => Some("messages"),
            _ if columns.tokens.is_some() => Some("tokens"),
            _ if columns.tags.is_some() => Some("tags"),
            true if columns.label != label_column() => Some("label"),
            false if columns.response.is_some() => Some("response"),
            _ => None,
        };
        if let Some(key) = stray {
            let problem = self.problem.unwrap_or(Problem::Classification);
            return Err(Error::user(format!(
                "`data.columns.{key}` means nothing for `data.problem = \"{problem}\"`"
            ))
            .help("Under \"causal-lm\" there are `text` and `response`, or `messages`, under \"token-classification\" `tokens` and `tags`, else `text`, `text_pair` and `label`."));
        }
        let beside = [
            ("text", columns.text.is_some()),
            ("response", columns.response.is_some()),
        ];
        if let (true, Some((key, _))) = (self.is_chat(), beside.iter().find(|(_, given)| *given)) {
            return Err(Error::user(format!(
                "`data.columns.messages` and `data.columns.{key}` are both given"
            ))
            .help("A conversation stands in `messages` alone; a prompt and its response in `text` and `response`."));
        }
        if self.is_all_text() {
            return Err(Error::user("[data.columns] is given, but plain text has no columns")
                .help("Take the table out, with `problem = \"causal-lm\"`; or give CSV, TSV, JSON lines or Parquet."));
        }
        Ok(())
    }

    fn validate_labels(&self, labels: &[String]) -> Result<()> {
        if let Some(problem @ (Problem::Regression | Problem::CausalLm)) = self.problem {
            return Err(Error::user(format!(
                "`data.labels` names classes, but `data.problem = \"{problem}\"` has none"
            ))
            .help("Take one of the two out."));
        }
        let twice = (1..labels.len()).find(|&i| labels[..i].contains(&labels[i]));
        if let Some(twice) = twice {
            return Err(
                Error::user(format!("`data.labels` names {:?} twice", labels[twice]))
                    .help("Name every class once."),
            );
        }
        if labels.len() < 2 {
            return Err(Error::user(format!(
                "`data.labels` has {} class(es): there is nothing to decide",
                labels.len()
            ))
            .help("Name at least two classes, or leave `labels` out to take them from `train`."));
        }
        Ok(())
    }

    fn validate_metrics(&self) -> Result<()> {
        let Some(metrics) = &self.metrics else {
            return Ok(());
        };
        if metrics.is_empty() {
            return Err(Error::user("`data.metrics` is empty").help(
                "Name at least one, the deciding one first, or leave it out for the task's own.",
            ));
        }
        let problem = self.problem();
        if let Some(metric) = metrics.iter().find(|metric| metric.problem() != problem) {
            let measured = match problem {
                Problem::Classification => "classes",
                Problem::Regression => "values",
                Problem::CausalLm => "predicted tokens",
                Problem::TokenClassification => "tagged words",
            };
            return Err(Error::user(format!(
                "`data.metrics` names `{metric}`, which does not measure {measured}"
            ))
            .help(format!("For {measured}: {}.", Metric::names_for(problem))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(recipe: &str) -> String {
        let config: DataConfig = toml::from_str(recipe).unwrap();
        config
            .validate()
            .map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn contradictions_are_refused_by_key() {
        assert_eq!(message("task = 'cola'\ndir = 'x'"), "fine");
        assert_eq!(message("task = 'minimal-pairs'"), "fine");
        assert_eq!(
            message("hub = 'a/b'\nconfig = 'c'\ntrain = 'train_sft'\n[columns]\ntext = 't'"),
            "fine"
        );
        assert_eq!(message("hub = 'a/b'\nformat = 'images'"), "fine");
        assert_eq!(
            message("hub = 'a/b'\nproblem = 'token-classification'"),
            "fine"
        );
        assert_eq!(message("task = 'minimal-pairs'\nsentences = 64"), "fine");
        assert_eq!(
            message("train = 'a.csv'\n[columns]\ntext = 'sentence'"),
            "fine"
        );
        assert_eq!(
            message("train = 'a.csv'\nheader = false\n[columns]\ntext = 3\nlabel = 1"),
            "fine"
        );
        for (recipe, part) in [
            ("", "does not say what to learn"),
            ("task = 'cola'\ndir = 'x'\ntrain = 'y.csv'", "both given"),
            ("task = 'cola'", "`data.dir` is missing"),
            (
                "revision = 'x'\ntask = 'minimal-pairs'",
                "`data.hub` is not given",
            ),
            (
                "hub = 'a/b'\ntask = 'minimal-pairs'",
                "`data.hub` are both given",
            ),
            (
                "hub = 'a/b'\nproblem = 'token-classification'\nformat = 'conll'",
                "`data.format = \"conll\"` means nothing",
            ),
            ("hub = 'a/b'\ndir = 'x'", "`data.dir` are both given"),
            ("hub = 'a/b'", "[data.columns] is missing"),
            (
                "hub = 'a/b'\nformat = 'txt'",
                "means nothing with `data.hub`",
            ),
            ("hub = 'a/b'\ntrain = ' '", "`data.train` is empty"),
            (
                "task = 'cola'\ndir = 'x'\nlabels = ['a', 'b']",
                "`data.labels` is for files of your own",
            ),
            ("train = 'a.csv'", "[data.columns] is missing"),
            ("task = 'minimal-pairs'\nsentences = 0", "1 to 64 sentences"),
            (
                "task = 'minimal-pairs'\nsentences = 65",
                "1 to 64 sentences",
            ),
            (
                "task = 'cola'\ndir = 'x'\nsentences = 2",
                "`data.sentences` is for",
            ),
            (
                "train = 'a.csv'\nheader = false\n[columns]\ntext = 'sentence'",
                "columns have no names",
            ),
            (
                "train = 'a.csv'\ndelimiter = 'é'\n[columns]\ntext = 't'",
                "cannot divide",
            ),
            (
                "train = 'a.csv'\nlabels = ['a', 'b', 'a']\n[columns]\ntext = 't'",
                "\"a\" twice",
            ),
            ("task = 'cola'\ndir = 'x'\nlimit = 0", "leaves no example"),
            (
                "train = 'a.tsv'\n[columns]\ntext = 0\nlabel = 1",
                "gives positions only",
            ),
            (
                "task = 'stsb'\ndir = 'x'\nmetrics = ['accuracy']",
                "does not measure values",
            ),
        ] {
            let found = message(recipe);
            assert!(found.contains(part), "{recipe:?} gave {found:?}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_the_rest_survives_a_round_trip() {
        assert!(toml::from_str::<DataConfig>("taks = 'cola'").is_err());
        assert!(toml::from_str::<DataConfig>("[columns]\ntext = 'a'\nlable = 'b'").is_err());
        let recipe =
            "train = 'a.csv'\ndelimiter = \"\\t\"\nlimit = 5\n[columns]\ntext = 3\ntext_pair = 'b'";
        let config: DataConfig = toml::from_str(recipe).unwrap();
        let again: DataConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
        let resolved = config.resolved(Path::new("/recipes"));
        assert_eq!(resolved.train.as_deref(), Some(Path::new("/recipes/a.csv")));
        assert_eq!(resolved.resolved(Path::new("/elsewhere")), resolved);
    }

    #[test]
    fn what_the_data_told_is_written_out() {
        let given: DataConfig = toml::from_str("train = 'a.csv'\n[columns]\ntext = 't'").unwrap();
        let mut settled = given;
        let labels = ["b".to_owned(), "a".to_owned()];
        settled.settle(&labels, Problem::Classification);
        assert_eq!(settled.labels.as_deref(), Some(&labels[..]));
        assert_eq!(settled.problem, Some(Problem::Classification));
        // A task's table stays valid.
        let mut task: DataConfig = toml::from_str("task = 'cola'\ndir = 'x'").unwrap();
        task.settle(&labels, Problem::Classification);
        assert!(task.validate().is_ok());
    }
}
