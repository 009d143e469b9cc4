//! Files of rows: CSV, TSV, JSON lines and Parquet, reduced to the three columns an example has.

use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::config::{Column, Format};
use super::problems::Problems;
use crate::error::{Error, Result};

/// One row of a file, not yet understood.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// The line it starts at, from 1; in Parquet the row's number, from 1.
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) text_pair: Option<String>,
    pub(super) label: Option<String>,
}

/// How a file is read and which columns of it matter.
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) delimiter: u8,
    /// Whether `"` encloses fields.
    pub(super) quote: bool,
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
        Format::Csv | Format::Tsv => read_delimited(path, layout),
        Format::Jsonl => read_json_lines(path, layout),
        Format::Parquet => read_parquet(path, layout),
    }?;
    if rows.is_empty() {
        return Err(
            Error::user(format!("{}: the file holds no rows", path.display()))
                .help("Check that it is the right file and that it was copied whole."),
        );
    }
    Ok(rows)
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

// ---- CSV and TSV ----

/// Where the wanted columns are in the rows of a file.
struct Place {
    text: usize,
    text_pair: Option<usize>,
    label: Option<usize>,
    least: usize,
    most: usize,
}

fn read_delimited(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let bytes = read_bytes(path)?;
    let mut problems = Problems::new(path, "line");
    let mut rows = Vec::new();
    let mut place: Option<Place> = None;
    let mut refusal = None;
    let mut skipped = Vec::new();
    let mut visit = |line: usize, fields: &[&[u8]]| {
        if refusal.is_some() {
            return;
        }
        let place = match &place {
            Some(place) => place,
            None => match locate(path, layout, fields) {
                Ok((found, is_header)) => {
                    let found = place.insert(found);
                    if is_header {
                        return;
                    }
                    &*found
                }
                Err(error) => {
                    refusal = Some(error);
                    return;
                }
            },
        };
        if fields.len() < place.least && layout.skip_short {
            skipped.push(line);
            return;
        }
        match row(line, fields, place, layout) {
            Ok(row) => rows.push(row),
            Err(what) => problems.push(line, what),
        }
    };
    let unclosed = match layout.quote {
        true => split_quoted(&bytes, layout.delimiter, &mut visit)?,
        false => {
            split_plain(&bytes, layout.delimiter, &mut visit);
            None
        }
    };
    if let Some(error) = refusal {
        return Err(error);
    }
    if let Some(line) = unclosed {
        return Err(Error::user(format!(
            "{}: a quote opened in the row at line {line} is never closed: it swallows the rest of the file",
            path.display()
        ))
        .help("Close or double the quote. If quotes are ordinary characters in this file, set `quote = false` in [data]."));
    }
    if !skipped.is_empty() {
        tracing::warn!(
            "{}: left out {} rows that are cut short in the published file (lines {:?})",
            path.display(),
            skipped.len(),
            &skipped[..skipped.len().min(5)]
        );
    }
    problems.finish(match layout.quote {
        true => "Mend or remove these rows. If quotes are ordinary characters in this file, set `quote = false` in [data].",
        false => "Mend or remove these rows. If fields with the delimiter in them are quoted, use `quote = true` in [data] with files of your own.",
    })?;
    Ok(rows)
}

/// Every line's fields, the delimiter and the line's end taken as they come.
fn split_plain(bytes: &[u8], delimiter: u8, visit: &mut dyn FnMut(usize, &[&[u8]])) {
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            let fields: Vec<&[u8]> = line.split(|&byte| byte == delimiter).collect();
            visit(index + 1, &fields);
        }
    }
}

/// Every record's fields by the rules of RFC 4180; the line of the last record if a quote in it is
/// never closed.
fn split_quoted(
    bytes: &[u8],
    delimiter: u8,
    visit: &mut dyn FnMut(usize, &[&[u8]]),
) -> Result<Option<usize>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    // The csv crate counts blank lines before a record as its beginning.
    let mut start = 0;
    let mut line = 1;
    let mut last = (0, 1);
    loop {
        while let Some(&byte) = bytes
            .get(start)
            .filter(|&&byte| byte == b'\n' || byte == b'\r')
        {
            line += usize::from(byte == b'\n');
            start += 1;
        }
        let more = reader.read_byte_record(&mut record).map_err(|error| {
            Error::failure(format!("the row at line {line} cannot be read")).because(error)
        })?;
        if !more {
            break;
        }
        let fields: Vec<&[u8]> = record.iter().collect();
        visit(line, &fields);
        last = (start, line);
        let end = (reader.position().byte() as usize).clamp(start, bytes.len());
        line += bytes[start..end]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        start = end;
    }
    let tail = &bytes[last.0..];
    let quotes = tail.iter().filter(|&&byte| byte == b'"').count();
    let several_lines = tail.trim_ascii_end().contains(&b'\n');
    Ok((several_lines && quotes % 2 == 1).then_some(last.1))
}

/// Finds the wanted columns from a file's first line, and whether that line is a header.
fn locate(path: &Path, layout: &Layout, first: &[&[u8]]) -> Result<(Place, bool)> {
    let names: Vec<String> = first
        .iter()
        .map(|field| String::from_utf8_lossy(field).trim().to_owned())
        .collect();
    let index = |wanted: &[Column]| {
        wanted.iter().find_map(|column| match column {
            Column::Name(name) => names.iter().position(|found| found == name),
            Column::Index(index) => (*index < names.len()).then_some(*index),
        })
    };
    let (is_header, positions) = match layout.header {
        Header::Yes => (true, None),
        Header::No => (false, None),
        Header::Detect(None) => (true, None),
        Header::Detect(Some(positions)) => match index(&layout.text) {
            Some(_) => (true, None),
            None => (false, Some(positions)),
        },
    };
    if let Some(Positions {
        text,
        text_pair,
        label,
        least,
        most,
    }) = positions
    {
        return Ok((
            Place {
                text,
                text_pair,
                label: Some(label),
                least,
                most,
            },
            false,
        ));
    }
    let missing = |wanted: &[Column]| {
        let wanted = wanted
            .iter()
            .map(Column::to_string)
            .collect::<Vec<_>>()
            .join(" or ");
        let error = Error::user(format!("{}: there is no column {wanted}", path.display()));
        match is_header {
            true => error.help(format!(
                "The header names: {}.",
                shorten(&names.join(" | "))
            )),
            false => error.help(format!(
                "The first line has {} columns: {}.",
                names.len(),
                shorten(&names.join(" | "))
            )),
        }
    };
    let place = Place {
        text: index(&layout.text).ok_or_else(|| missing(&layout.text))?,
        text_pair: match layout.text_pair.is_empty() {
            true => None,
            false => Some(index(&layout.text_pair).ok_or_else(|| missing(&layout.text_pair))?),
        },
        label: match index(&layout.label) {
            None if layout.needs_label => return Err(missing(&layout.label)),
            label => label,
        },
        least: names.len(),
        most: names.len(),
    };
    Ok((place, is_header))
}

fn row(line: usize, fields: &[&[u8]], place: &Place, layout: &Layout) -> Result<Row, String> {
    if fields.len() < place.least || fields.len() > place.most {
        let expected = match place.least == place.most {
            true => place.least.to_string(),
            false => format!("{} to {}", place.least, place.most),
        };
        return Err(format!(
            "{} columns where {expected} are expected",
            fields.len()
        ));
    }
    let field = |index: usize| {
        std::str::from_utf8(fields[index])
            .map(str::to_owned)
            .map_err(|error| {
                format!(
                    "column {} is not valid UTF-8 (after {} bytes of it)",
                    index + 1,
                    error.valid_up_to()
                )
            })
    };
    let row = Row {
        line,
        text: field(place.text)?,
        text_pair: place.text_pair.map(field).transpose()?,
        label: place.label.map(field).transpose()?,
    };
    check_texts(row, layout)
}

fn check_texts(row: Row, layout: &Layout) -> Result<Row, String> {
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

/// At most 200 characters of `text`.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

// ---- JSON lines and Parquet, which name their columns ----

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

fn read_json_lines(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let bytes = read_bytes(path)?;
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Error::user(format!(
            "{}: the file is one JSON array, not JSON lines",
            path.display()
        ))
        .help("Put one object on each line: jq -c '.[]' FILE > FILE.jsonl."));
    }
    let wanted = Named::new(path, layout)?;
    let mut problems = Problems::new(path, "line");
    let mut rows = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(line);
        let row = parsed
            .map_err(|error| format!("not a JSON object: {error}"))
            .and_then(|object| {
                let get = |name: &str| object.get(name).map(json_text);
                let row = wanted.row(index + 1, get, || object.keys().cloned().collect())?;
                check_texts(row, layout)
            });
        match row {
            Ok(row) => rows.push(row),
            Err(what) => problems.push(index + 1, what),
        }
    }
    problems.finish("Mend or remove these lines: each is one JSON object with the keys that [data.columns] names.")?;
    Ok(rows)
}

/// A JSON value as the text it stands for; none for null.
fn json_text(value: &serde_json::Value) -> Result<Option<String>, String> {
    use serde_json::Value;
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(flag) => Ok(Some(flag.to_string())),
        Value::Array(_) => Err("a list, where a text or number is expected".into()),
        Value::Object(_) => Err("an object, where a text or number is expected".into()),
    }
}

fn read_parquet(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let wanted = Named::new(path, layout)?;
    let file = std::fs::File::open(path).map_err(|error| cannot_open(path, error))?;
    let damaged = |error: parquet::errors::ParquetError| {
        Error::user(format!("{}: the Parquet file cannot be read", path.display()))
            .because(error)
            .help("It may be cut short or damaged, or use a compression other than snappy, gzip and zstd: fetch or write it again.")
    };
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema();
    // Only the wanted columns are decoded.
    let fields: Vec<_> = schema
        .get_fields()
        .iter()
        .filter(|field| wanted.mentions(field.name()))
        .cloned()
        .collect();
    let available = || {
        schema
            .get_fields()
            .iter()
            .map(|field| field.name().to_owned())
            .collect::<Vec<_>>()
    };
    if let Some(missing) = wanted.missing(|name| fields.iter().any(|field| field.name() == name)) {
        return Err(Error::user(format!("{}: {missing}", path.display()))
            .help(format!("The file's columns: {}.", available().join(", "))));
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build()
        .map_err(damaged)?;
    let mut problems = Problems::new(path, "row");
    let mut rows = Vec::new();
    for (index, record) in reader
        .get_row_iter(Some(projection))
        .map_err(damaged)?
        .enumerate()
    {
        let columns = record.map_err(damaged)?.into_columns();
        let get = |name: &str| {
            columns
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, field)| parquet_text(field))
        };
        match wanted
            .row(index + 1, get, available)
            .and_then(|row| check_texts(row, layout))
        {
            Ok(row) => rows.push(row),
            Err(what) => problems.push(index + 1, what),
        }
    }
    problems.finish("Mend these rows where the file is made.")?;
    Ok(rows)
}

/// A Parquet value as the text it stands for; none for null.
fn parquet_text(field: &Field) -> Result<Option<String>, String> {
    match field {
        Field::Null => Ok(None),
        Field::Str(text) => Ok(Some(text.clone())),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err("bytes that are not valid UTF-8".into()),
        },
        Field::Bool(value) => Ok(Some(value.to_string())),
        Field::Byte(value) => Ok(Some(value.to_string())),
        Field::Short(value) => Ok(Some(value.to_string())),
        Field::Int(value) => Ok(Some(value.to_string())),
        Field::Long(value) => Ok(Some(value.to_string())),
        Field::UByte(value) => Ok(Some(value.to_string())),
        Field::UShort(value) => Ok(Some(value.to_string())),
        Field::UInt(value) => Ok(Some(value.to_string())),
        Field::ULong(value) => Ok(Some(value.to_string())),
        Field::Float(value) => Ok(Some(value.to_string())),
        Field::Double(value) => Ok(Some(value.to_string())),
        other => Err(format!("{other:?}, where a text or number is expected")
            .chars()
            .take(120)
            .collect()),
    }
}

/// The wanted columns of a format that names them.
struct Named<'a> {
    text: Vec<&'a str>,
    text_pair: Vec<&'a str>,
    label: Vec<&'a str>,
    needs_label: bool,
}

impl<'a> Named<'a> {
    fn new(path: &Path, layout: &'a Layout) -> Result<Self> {
        Ok(Named {
            text: names(path, &layout.text)?,
            text_pair: names(path, &layout.text_pair)?,
            label: names(path, &layout.label)?,
            needs_label: layout.needs_label,
        })
    }

    fn mentions(&self, name: &str) -> bool {
        [&self.text, &self.text_pair, &self.label]
            .iter()
            .any(|names| names.contains(&name))
    }

    /// What is missing where only the columns that `has` knows are there.
    fn missing(&self, has: impl Fn(&str) -> bool) -> Option<String> {
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
    fn row(
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
                    shorten(&all().join(", "))
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
