//! How a file is written, and how its columns are named.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A column by its name in the header, or by its position from 0 in a file without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a column's name, or its position from 0")]
pub enum Column {
    /// By name.
    Name(String),
    /// By position, from 0.
    Index(usize),
}

impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Column::Name(name) => write!(f, "`{name}`"),
            Column::Index(index) => write!(f, "number {index} (from 0)"),
        }
    }
}

/// How a data file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines of fields with commas between them.
    Csv,
    /// Lines of fields with tabs between them.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
    /// Plain text, the whole file one document: for causal language modelling.
    Txt,
    /// The columns of CoNLL's shared tasks, a word and its tag a line and a blank line between sentences: for token
    /// classification.
    Conll,
    /// Images: a folder that has one folder of them per class, or Apache Parquet with the bytes of image files.
    Images,
}

impl Format {
    /// The format that the extension of `path` stands for.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Format::Csv),
            "tsv" | "tab" => Ok(Format::Tsv),
            "jsonl" | "ndjson" | "json" => Ok(Format::Jsonl),
            "parquet" | "pq" => Ok(Format::Parquet),
            "txt" | "text" | "md" => Ok(Format::Txt),
            "conll" | "bio" | "iob" | "iob2" => Ok(Format::Conll),
            _ => Err(Error::user(format!(
                "{}: the extension does not say how the file is written",
                path.display()
            ))
            .help("Known extensions: csv, tsv, jsonl, parquet, txt, conll. Or name the format in the recipe: `data.format = \"csv\"`.")),
        }
    }

    /// Refuses a file in which sentences in words cannot stand.
    pub fn require_words(self, path: &Path) -> Result<()> {
        match self {
            Format::Jsonl | Format::Parquet | Format::Conll => Ok(()),
            Format::Csv | Format::Tsv | Format::Txt | Format::Images => Err(Error::user(format!(
                "{}: sentences in words do not stand in a file of the format `{self}`",
                path.display()
            ))
            .help("Give JSON lines or Parquet with a list of words and one of their tags; or set `format = \"conll\"` in [data] for a word and its tag a line.")),
        }
    }

    /// Its name in recipes.
    fn name(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
            Format::Txt => "txt",
            Format::Conll => "conll",
            Format::Images => "images",
        }
    }

    /// What a place in such a file is called.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Format::Csv | Format::Tsv | Format::Jsonl | Format::Conll => "line",
            Format::Parquet => "row",
            Format::Txt => "text",
            Format::Images => "image",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
