//! The wanted columns of the formats that name them.

use std::path::Path;

use super::{Column, Layout, Row, shorten};
use crate::error::{Error, Result};

/// The wanted columns of a format that names them.
pub(super) struct Named<'a> {
    text: Vec<&'a str>,
    text_pair: Vec<&'a str>,
    label: Vec<&'a str>,
    needs_label: bool,
}

impl<'a> Named<'a> {
    pub(super) fn new(path: &Path, layout: &'a Layout) -> Result<Self> {
        Ok(Named {
            text: names(path, &layout.text)?,
            text_pair: names(path, &layout.text_pair)?,
            label: names(path, &layout.label)?,
            needs_label: layout.needs_label,
        })
    }

    pub(super) fn mentions(&self, name: &str) -> bool {
        [&self.text, &self.text_pair, &self.label]
            .iter()
            .any(|names| names.contains(&name))
    }

    /// What is missing where only the columns that `has` knows are there.
    pub(super) fn missing(&self, has: impl Fn(&str) -> bool) -> Option<String> {
        let label = match self.needs_label {
            true => self.label.as_slice(),
            false => &[],
        };
        [self.text.as_slice(), &self.text_pair, label]
            .iter()
            .find(|names| !names.is_empty() && !names.iter().any(|name| has(name)))
            .map(|names| format!("there is no column `{}`", names.join("` or `")))
    }

    /// A row from its columns: `get` gives none for a column that is not there, `all` names them all.
    pub(super) fn row(
        &self,
        line: usize,
        get: impl Fn(&str) -> Option<Result<Option<String>, String>>,
        all: impl Fn() -> Vec<String>,
    ) -> Result<Row, String> {
        let column = |names: &[&str]| -> Result<Option<String>, String> {
            match names.iter().find_map(|name| Some((name, get(name)?))) {
                None => Ok(None),
                Some((name, value)) => value.map_err(|what| format!("`{name}` is {what}")),
            }
        };
        let required = |names: &[&str]| {
            column(names)?.ok_or_else(|| {
                format!(
                    "no value for `{}`; there are: {}",
                    names.join("` or `"),
                    shorten(&all().join(", "), 200)
                )
            })
        };
        Ok(Row {
            line,
            text: required(&self.text)?,
            text_pair: match self.text_pair.is_empty() {
                true => None,
                false => Some(required(&self.text_pair)?),
            },
            label: match self.needs_label {
                true => Some(required(&self.label)?),
                false => column(&self.label)?,
            },
        })
    }
}

/// The name of a column that must have one.
fn names<'a>(path: &Path, columns: &'a [Column]) -> Result<Vec<&'a str>> {
    columns
        .iter()
        .map(|column| match column {
            Column::Name(name) => Ok(name.as_str()),
            Column::Index(index) => Err(Error::user(format!(
                "{}: [data.columns] asks for column number {index}, but the columns of this format have names only",
                path.display()
            ))
            .help("Give the column's name.")),
        })
        .collect()
}
