//! What the label column of a file means.

use std::path::Path;

use super::problems::Problems;
use super::table::{Format, Row, shorten};
use super::task::Part;
use super::{Example, Label};
use crate::error::{Error, Result};
use crate::recipe::Problem;

/// More different labels would be a column of texts or numbers, not of classes.
pub(super) const MOST: usize = 1000;

/// Whether `label` is a whole number.
pub(super) fn is_whole(label: &str) -> bool {
    label.parse::<i64>().is_ok()
}

/// More different whole numbers than this are rather values than classes: worth a word.
const MANY_NUMBERS: usize = 10;

/// The distinct labels of a training file, in the order of their numbers or letters. `told` says that the recipe
/// calls them classes.
pub(super) fn distinct<'a>(
    path: &Path,
    rows: impl IntoIterator<Item = &'a Row>,
    told: bool,
) -> Result<Vec<String>> {
    let given = rows.into_iter().filter_map(|row| row.label.as_deref());
    // A row without a label is complained of where rows become examples.
    let mut labels: Vec<&str> = given
        .map(str::trim)
        .filter(|label| !label.is_empty())
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let number = |label: &str| label.parse::<f64>().ok().filter(|value| value.is_finite());
    let numbers = labels.iter().all(|label| number(label).is_some());
    if numbers {
        labels.sort_by(|a, b| {
            number(a)
                .unwrap_or(0.0)
                .total_cmp(&number(b).unwrap_or(0.0))
        });
    }
    if labels.len() < 2 {
        return Err(Error::user(format!(
            "{}: the label column holds {} class(es): there is nothing to decide",
            path.display(),
            labels.len()
        ))
        .help("Check `label` in [data.columns], or name the classes: `labels = [\"no\", \"yes\"]` in [data]."));
    }
    if labels.len() > MOST {
        return Err(Error::user(format!(
            "{}: the label column holds {} different labels",
            path.display(),
            labels.len()
        ))
        .help(
            "Set `problem = \"regression\"` in [data] if they are values, or check [data.columns].",
        ));
    }
    let fraction = labels.iter().find(|label| !is_whole(label));
    if let (true, false, Some(fraction)) = (numbers, told, fraction) {
        return Err(Error::user(format!(
            "{}: the label column holds numbers such as {fraction}, {} different ones: are they values or names of classes?",
            path.display(),
            labels.len()
        ))
        .help("Set `problem = \"regression\"` in [data] for values, or `problem = \"classification\"` for a class of each."));
    }
    let same = labels.windows(2).find(|pair| {
        let [a, b] = [number(pair[0]), number(pair[1])];
        a.is_some() && a == b
    });
    if let Some(pair) = same {
        return Err(Error::user(format!(
            "{}: the labels {:?} and {:?} are the same number, but would be two classes",
            path.display(),
            pair[0],
            pair[1]
        ))
        .help("Write a class the same way in all rows, or name the classes: `labels = […]` in [data]."));
    }
    if numbers && !told && labels.len() > MANY_NUMBERS {
        tracing::warn!(
            "{}: the {} whole numbers of the label column are taken for as many classes; set `problem = \"regression\"` \
             in [data] if they are values, `problem = \"classification\"` if they are not",
            path.display(),
            labels.len()
        );
    }
    let mut folded: Vec<(String, &str)> = labels.iter().map(|l| (l.to_lowercase(), *l)).collect();
    folded.sort_unstable();
    if let Some(pair) = folded.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        tracing::warn!(
            "{}: {:?} and {:?} are two classes, though only their case differs",
            path.display(),
            pair[0].1,
            pair[1].1
        );
    }
    Ok(labels.into_iter().map(str::to_owned).collect())
}

/// Makes examples of rows.
pub(super) struct Reader<'a> {
    /// The classes in order; none for a regression.
    pub(super) labels: &'a [String],
    pub(super) problem: Problem,
    /// Whether labels must be there.
    pub(super) part: Part,
    /// Whether a label may be the position of its class in place of its name.
    pub(super) numbered: bool,
    /// What stands for a label that is kept secret.
    pub(super) hidden: Option<&'static str>,
}

impl Reader<'_> {
    /// The rows of the file at `path` as examples, or an error that names the rows whose labels mean nothing.
    pub(super) fn examples(
        &self,
        path: &Path,
        format: Format,
        rows: Vec<Row>,
    ) -> Result<Vec<Example>> {
        let mut problems = Problems::new(path, format.unit());
        let mut examples = Vec::with_capacity(rows.len());
        for row in rows {
            match self.label(row.label.as_deref()) {
                Ok(label) => examples.push(Example {
                    text: row.text,
                    text_pair: row.text_pair,
                    label,
                }),
                Err(what) => problems.push(row.line, what),
            }
        }
        problems.finish(match self.problem {
            Problem::Classification | Problem::TokenClassification => {
                "Correct the rows, or the label column and `labels` in [data]."
            }
            Problem::Regression | Problem::CausalLm => {
                "Correct the rows, or `problem` and the label column in [data]."
            }
        })?;
        Ok(examples)
    }

    fn label(&self, label: Option<&str>) -> Result<Option<Label>, String> {
        let label = label.map(str::trim).filter(|label| !label.is_empty());
        match label {
            // Its own tokens.
            None if self.problem == Problem::CausalLm => Ok(Some(Label::Tokens(1))),
            None if self.part == Part::Test => Ok(None),
            None => Err("the label is missing".into()),
            Some(label) if self.hidden == Some(label) => Ok(None),
            Some(label) => match self.problem {
                Problem::Regression => value(label),
                Problem::Classification | Problem::TokenClassification => {
                    self.class(label).map(Label::Class)
                }
                Problem::CausalLm => Ok(Label::Tokens(1)),
            }
            .map(Some),
        }
    }

    /// The class of a name, or of a position where those count.
    pub(super) fn class(&self, label: &str) -> Result<u32, String> {
        let named = self.labels.iter().position(|known| known == label);
        let numbered = || {
            let position = label.parse::<usize>().ok().filter(|_| self.numbered)?;
            (position < self.labels.len()).then_some(position)
        };
        match named.or_else(numbered) {
            Some(class) => Ok(class as u32),
            None => Err(format!(
                "the label {:?} is none of the classes {}",
                shorten(label, 40),
                shorten(&self.labels.join(", "), 80)
            )),
        }
    }
}

fn value(label: &str) -> Result<Label, String> {
    match label.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(Label::Value(value)),
        _ => Err(format!(
            "the label {:?} is not a number",
            shorten(label, 40)
        )),
    }
}
