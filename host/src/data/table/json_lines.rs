//! JSON lines: one object a line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::named::Named;
use super::{Layout, Row, check_texts, read_bytes};
use crate::data::problems::Problems;
use crate::error::{Error, Result};

pub(super) fn read(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let bytes = read_bytes(path)?;
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Error::user(format!(
            "{}: the file is one JSON array, not JSON lines",
            path.display()
        ))
        .help("Put one object on each line: jq -c '.[]' FILE > FILE.jsonl."));
    }
    let wanted = Named::new(path, layout)?;
    let mut problems = Problems::new(path, layout.format.unit());
    let mut rows = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row = match layout.structured {
            // As it is written there, the order of its keys included.
            true => row::<&RawValue>(line, |raw| Ok(Some(raw.get().to_owned())), index, &wanted),
            false => row::<Value>(line, json_text, index, &wanted),
        };
        let row = row.and_then(|row| check_texts(row, layout));
        match row {
            Ok(row) => rows.push(row),
            Err(what) => problems.push(index + 1, what),
        }
    }
    problems.finish("Mend or remove these lines: each is one JSON object with the keys that [data.columns] names.")?;
    Ok(rows)
}

/// The wanted columns of a line, whose values `text` makes texts of.
fn row<'a, V: Deserialize<'a>>(
    line: &'a [u8],
    text: impl Fn(&V) -> Result<Option<String>, String>,
    index: usize,
    wanted: &Named,
) -> Result<Row, String> {
    let object: BTreeMap<String, V> = serde_json::from_slice(line).map_err(|error| {
        let column = error.column();
        format!("not a JSON object: {} (column {column})", told(&error))
    })?;
    let get = |name: &str| object.get(name).map(&text);
    wanted.row(index + 1, get, || object.keys().cloned().collect())
}

/// What is wrong, without the line: serde_json counts lines within what it was given.
pub(in crate::data) fn told(error: &serde_json::Error) -> String {
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or(&what);
    what.to_owned()
}

/// A JSON value as the text it stands for; none for null.
fn json_text(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(flag) => Ok(Some(flag.to_string())),
        Value::Array(_) => Err("a list, where a text or number is expected".into()),
        Value::Object(_) => Err("an object, where a text or number is expected".into()),
    }
}
