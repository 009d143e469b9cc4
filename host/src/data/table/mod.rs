//! Files of rows: CSV, TSV, JSON lines, Parquet and CoNLL's columns, reduced to the three columns an example has.

mod conll;
mod delimited;
mod json_lines;
mod named;
pub(super) mod parquet;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::error::{Error, Result};
pub use crate::recipe::{Column, Format};
pub(super) use json_lines::told as json_told;
pub(super) use parquet::class_names_of;

/// One row of a file, not yet understood.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// The line it starts at, from 1; in Parquet the row's number, from 1.
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) text_pair: Option<String>,
    pub(super) label: Option<String>,
}

impl Row {
    /// Bytes it takes in memory, about.
    fn size(&self) -> u64 {
        let texts = [
            Some(&self.text),
            self.text_pair.as_ref(),
            self.label.as_ref(),
        ];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        (size_of::<Row>() + texts) as u64
    }
}

/// No text of a row may have more bytes.
const LONGEST: usize = 64 << 20;

/// How a file is read and which columns of it matter.
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) delimiter: u8,
    /// Whether `"` encloses fields.
    pub(super) quote: bool,
    /// Whether that is only what the extension says.
    pub(super) quote_guessed: bool,
    pub(super) header: Header,
    /// Names (or one position) the text's column may have; the first that is there counts.
    pub(super) text: Vec<Column>,
    /// The same for the second text; empty where there is none.
    pub(super) text_pair: Vec<Column>,
    /// The same for the label.
    pub(super) label: Vec<Column>,
    /// Whether a file without labels is refused.
    pub(super) needs_label: bool,
    /// Whether rows that end too early are left out with a warning instead of refused.
    pub(super) skip_short: bool,
    /// Whether a text may be empty.
    pub(super) allow_empty: bool,
    /// Whether texts and labels are JSON: what is no text in a file of JSON, or a list in one of Parquet, then becomes that.
    pub(super) structured: bool,
}

/// Whether the first line names the columns.
#[derive(Clone, Copy)]
pub(super) enum Header {
    Yes,
    No,
    /// Yes if it holds a name of the text's column; else the positions, if there are any.
    Detect(Option<Positions>),
}

/// Where the columns are in a known layout without a header, and how many there may be.
#[derive(Clone, Copy)]
pub(super) struct Positions {
    pub(super) text: usize,
    pub(super) text_pair: Option<usize>,
    pub(super) label: usize,
    pub(super) least: usize,
    pub(super) most: usize,
}

/// The rows of a file. Blank lines are no rows.
pub(super) fn read(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let rows = match layout.format {
        Format::Csv | Format::Tsv => delimited::read(path, layout),
        Format::Jsonl => json_lines::read(path, layout),
        Format::Parquet => parquet::read(path, layout),
        Format::Txt => text(path),
        Format::Conll => conll::read(path, layout),
        Format::Images => Err(Error::failure(format!(
            "{}: images are no rows of a table",
            path.display()
        ))),
    }?;
    if rows.is_empty() {
        return Err(
            Error::user(format!("{}: the file holds no rows", path.display()))
                .help("Check that it is the right file and that it was copied whole."),
        );
    }
    Ok(rows)
}

/// A file that is one text.
fn text(path: &Path) -> Result<Vec<Row>> {
    let text = utf8(path, read_bytes(path)?)?;
    if text.len() > LONGEST {
        return Err(Error::user(format!(
            "{}: the file has {} bytes, a text may have {LONGEST}",
            path.display(),
            text.len()
        ))
        .help("Divide it: a JSON-lines file has a document a line."));
    }
    let row = Row {
        line: 1,
        text,
        text_pair: None,
        label: None,
    };
    Ok(if row.text.trim().is_empty() {
        Vec::new()
    } else {
        vec![row]
    })
}

/// A file's bytes as text.
fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::user(format!(
            "{}: the file is not UTF-8: byte {at} cannot be read",
            path.display()
        ))
        .help("Convert it: iconv -f LATIN1 -t UTF-8 FILE.")
    })
}

/// The file's bytes, a leading byte-order mark taken off.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).map_err(|error| cannot_open(path, error))?;
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(
            Error::user(format!("{}: the file is UTF-16, not UTF-8", path.display()))
                .help("Convert it: iconv -f UTF-16 -t UTF-8 FILE."),
        );
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    Error::user(format!("{}: the data file cannot be read", path.display()))
        .because(error)
        .help("Check the path in [data]; a relative path starts at the recipe's folder.")
}

fn check_texts(row: Row, layout: &Layout) -> Result<Row, String> {
    let texts = [Some(&row.text), row.text_pair.as_ref()];
    if let Some(long) = texts
        .into_iter()
        .flatten()
        .find(|text| text.len() > LONGEST)
    {
        return Err(format!(
            "a text of {} bytes, where at most {LONGEST} are read",
            long.len()
        ));
    }
    if !layout.allow_empty {
        if row.text.trim().is_empty() {
            return Err("the text is empty".into());
        }
        if row
            .text_pair
            .as_ref()
            .is_some_and(|text| text.trim().is_empty())
        {
            return Err("the second text is empty".into());
        }
    }
    Ok(row)
}

/// At most `most` characters of `text`.
pub(super) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
