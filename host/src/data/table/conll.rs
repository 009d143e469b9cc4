//! The columns of CoNLL's shared tasks: a word and what is said of it a line, a blank line between sentences.

use std::path::Path;

use super::{Column, Layout, Row, read_bytes, utf8};
use crate::data::problems::Problems;
use crate::error::{Error, Result};

/// The lines that part documents begin with this word, and are no sentences.
const DOCUMENT: &str = "-DOCSTART-";

/// One row a sentence: its words and their tags, as JSON lists.
pub(super) fn read(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let word = position(path, &layout.text)?.unwrap_or(0);
    let tag = position(path, &layout.label)?;
    let text = utf8(path, read_bytes(path)?)?;
    let mut problems = Problems::new(path, layout.format.unit());
    let (mut rows, mut open): (Vec<Row>, Option<Open>) = (Vec::new(), None);
    let mut widths = None;
    for (index, line) in text.lines().enumerate() {
        let fields = fields(line);
        if fields.is_empty() || fields[0].starts_with(DOCUMENT) {
            rows.extend(open.take().map(Open::close));
            continue;
        }
        let (first, width) = *widths.get_or_insert((index + 1, fields.len()));
        if width != fields.len() {
            problems.push(
                index + 1,
                format!("{} columns, where line {first} has {width}", fields.len()),
            );
            continue;
        }
        let Some(found) = fields.get(word) else {
            problems.push(
                index + 1,
                format!("no column {word} (from 0), which is to be the word"),
            );
            continue;
        };
        // The last column, unless that is the words'.
        let tag = tag.unwrap_or(width - 1);
        let tag = fields.get(tag).filter(|_| tag != word);
        if tag.is_none() && layout.needs_label {
            problems.push(index + 1, "a word without a tag");
            continue;
        }
        let open = open.get_or_insert_with(|| Open {
            line: index + 1,
            ..Open::default()
        });
        open.words.push((*found).to_owned());
        open.tags.extend(tag.map(|tag| (*tag).to_owned()));
    }
    rows.extend(open.map(Open::close));
    problems.finish("Each line is a word and its tag, with blanks or a tab between; a blank line parts sentences.")?;
    Ok(rows)
}

/// A sentence that is being read.
#[derive(Default)]
struct Open {
    line: usize,
    words: Vec<String>,
    tags: Vec<String>,
}

impl Open {
    fn close(self) -> Row {
        let list = |items: Vec<String>| serde_json::Value::from(items).to_string();
        let labelled = !self.tags.is_empty();
        Row {
            line: self.line,
            text: list(self.words),
            text_pair: None,
            label: labelled.then(|| list(self.tags)),
        }
    }
}

/// The columns of a line: what tabs part, where there is one, else what blanks part.
fn fields(line: &str) -> Vec<&str> {
    match line.contains('\t') {
        true => {
            let fields = line.trim_matches([' ', '\t', '\r']).split('\t');
            fields
                .map(|field| field.trim_matches([' ', '\r']))
                .collect()
        }
        false => line.split_ascii_whitespace().collect(),
    }
}

/// The position that a column must have.
fn position(path: &Path, columns: &[Column]) -> Result<Option<usize>> {
    match columns.first() {
        None => Ok(None),
        Some(Column::Index(index)) => Ok(Some(*index)),
        Some(Column::Name(name)) => Err(Error::user(format!(
            "{}: [data.columns] names the column `{name}`, but the columns of CoNLL's files have no names",
            path.display()
        ))
        .help("Give positions, from 0: `tokens = 0`, `tags = 3`; by default the first and the last.")),
    }
}
