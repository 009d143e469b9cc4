//! Apache Parquet.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, List};
use parquet::schema::types::Type;
use serde_json::Value;

use super::named::Named;
use super::{Layout, Row, cannot_open, check_texts};
use crate::data::problems::Problems;
use crate::data::quiet::without_panic;
use crate::error::{Error, Result};

/// A file may unpack to so many bytes whatever its size, and to [`FACTOR`] times its size.
const MOST: u64 = 1 << 30;
/// How much more than the file's size its texts may come to, above [`MOST`].
const FACTOR: u64 = 32;

/// The rows of a Parquet file. The parquet crate panics over some damage: that too is the file's fault.
pub(super) fn read(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    match without_panic(|| decode(path, layout, MOST)) {
        Some(rows) => rows,
        None => Err(damaged(path)),
    }
}

pub(in crate::data) fn damaged(path: &Path) -> Error {
    Error::user(format!("{}: the Parquet file cannot be read", path.display()))
        .help("It may be cut short or damaged, or use a compression other than snappy, gzip and zstd: fetch or write it again.")
}

/// A file of which the wanted columns can be read.
pub(in crate::data) struct Opened {
    pub(in crate::data) reader: SerializedFileReader<File>,
    /// The wanted columns.
    pub(in crate::data) projection: Type,
    /// The names of all columns.
    available: Vec<String>,
    room: Room,
}

/// How much a file may unpack to.
struct Room {
    path: PathBuf,
    size: u64,
    limit: u64,
}

impl Room {
    fn check(&self, bytes: u64) -> Result<()> {
        if bytes <= self.limit {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: the file of {} bytes unpacks to {bytes} or more, beyond the limit of {}",
            self.path.display(),
            self.size,
            self.limit
        ))
        .help(format!(
            "a file may unpack to 1 GiB or {FACTOR} times its size: write it with less repetition, or in several files"
        )))
    }
}

/// Opens a file to read those of its columns that are `wanted`. `missing` gets the names of those that are there, and
/// says what is lacking. The parquet crate may panic over damage, here and when rows are read.
pub(in crate::data) fn open(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
    missing: impl Fn(&dyn Fn(&str) -> bool) -> Option<String>,
) -> Result<Opened> {
    open_at_most(path, wanted, missing, MOST)
}

/// `most`: see [`MOST`].
fn open_at_most(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
    missing: impl Fn(&dyn Fn(&str) -> bool) -> Option<String>,
    most: u64,
) -> Result<Opened> {
    let file = File::open(path).map_err(|error| cannot_open(path, error))?;
    let damaged = |error: ParquetError| damaged(path).because(error);
    let size = file.metadata().map_or(0, |file| file.len());
    let room = Room {
        path: path.to_owned(),
        size,
        limit: most.max(size.saturating_mul(FACTOR)),
    };
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema();
    let names = schema.get_fields().iter().map(|field| field.name());
    let available: Vec<String> = names.map(str::to_owned).collect();
    if let Some(missing) = missing(&|name| available.iter().any(|there| there == name)) {
        return Err(Error::user(format!("{}: {missing}", path.display()))
            .help(format!("The file's columns: {}.", available.join(", "))));
    }
    // Only the wanted columns are decoded.
    let fields = schema.get_fields().iter();
    let fields = fields.filter(|field| wanted(field.name())).cloned();
    let projection = Type::group_type_builder(schema.name()).with_fields(fields.collect());
    let projection = projection.build().map_err(damaged)?;
    let columns = reader.metadata().row_groups().iter().flat_map(|group| {
        let columns = group.columns().iter();
        columns
            .filter(|column| wanted(column.column_path().parts().first().map_or("", |part| part)))
    });
    let unpacked = columns
        .map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(0))
        .fold(0, u64::saturating_add);
    room.check(unpacked)?;
    Ok(Opened {
        reader,
        projection,
        available,
        room,
    })
}

/// `most`: see [`MOST`].
fn decode(path: &Path, layout: &Layout, most: u64) -> Result<Vec<Row>> {
    let wanted = Named::new(path, layout)?;
    let missing = |has: &dyn Fn(&str) -> bool| wanted.missing(has);
    let opened = open_at_most(path, |name| wanted.mentions(name), missing, most)?;
    let damaged = |error: ParquetError| damaged(path).because(error);
    let records = opened.reader.get_row_iter(Some(opened.projection));
    let mut problems = Problems::new(path, layout.format.unit());
    let mut rows = Vec::new();
    let mut read = 0;
    for (index, record) in records.map_err(damaged)?.enumerate() {
        let columns = record.map_err(damaged)?.into_columns();
        let get = |name: &str| {
            columns
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, field)| match field {
                    Field::ListInternal(list) if layout.structured => json_list(list).map(Some),
                    field => parquet_text(field),
                })
        };
        match wanted
            .row(index + 1, get, || opened.available.clone())
            .and_then(|row| check_texts(row, layout))
        {
            Ok(row) => {
                // A dictionary repeats a long text for a few bits a row.
                read += row.size();
                opened.room.check(read)?;
                rows.push(row);
            }
            Err(what) => problems.push(index + 1, what),
        }
    }
    problems.finish("Mend these rows where the file is made.")?;
    Ok(rows)
}

/// A list of texts and numbers as JSON.
fn json_list(list: &List) -> Result<String, String> {
    let values = list.elements().iter().map(|field| match field {
        Field::Str(text) => Ok(Value::from(text.as_str())),
        field => Ok(parquet_text(field)?.map_or(Value::Null, |text| {
            // A number stays one.
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        })),
    });
    let values: Vec<Value> = values.collect::<Result<_, String>>()?;
    Ok(Value::from(values).to_string())
}

/// [`class_names`] of the file at `path`, which need not have the column.
pub(in crate::data) fn class_names_of(path: &Path, column: &str) -> Result<Option<Vec<String>>> {
    let read = || {
        let opened = open(path, |name| name == column, |_| None)?;
        class_names(&opened, path, column)
    };
    without_panic(read).unwrap_or_else(|| Err(damaged(path)))
}

/// The names of the numbers of a column, or of those in its lists, which `datasets` keeps in the file's metadata.
pub(in crate::data) fn class_names(
    opened: &Opened,
    path: &Path,
    column: &str,
) -> Result<Option<Vec<String>>> {
    let pairs = opened
        .reader
        .metadata()
        .file_metadata()
        .key_value_metadata();
    let text = pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == "huggingface");
    let Some(text) = text.and_then(|pair| pair.value.as_deref()) else {
        return Ok(None);
    };
    let metadata: Value = serde_json::from_str(text).unwrap_or_default();
    let feature = &metadata["info"]["features"][column];
    let feature = match &feature["feature"] {
        Value::Null => feature,
        of_list => of_list,
    };
    if feature["_type"] != "ClassLabel" {
        return Ok(None);
    }
    let names = feature["names"].as_array().into_iter().flatten();
    let names: Option<Vec<String>> = names.map(|name| name.as_str().map(str::to_owned)).collect();
    match names {
        Some(names) if names.len() >= 2 => Ok(Some(names)),
        _ => Err(Error::user(format!(
            "{}: the file's metadata does not name at least two classes of `{column}`",
            path.display()
        ))
        .help(
            "Write the file anew with `datasets`, or name the classes: `labels = […]` in [data].",
        )),
    }
}

/// A Parquet value as the text it stands for; none for null.
pub(in crate::data) fn parquet_text(field: &Field) -> Result<Option<String>, String> {
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

#[cfg(test)]
pub(super) fn read_at_most(path: &Path, layout: &Layout, most: u64) -> Result<Vec<Row>> {
    decode(path, layout, most)
}
