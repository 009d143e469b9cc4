//! JSON lines: one object a line.

use std::collections::BTreeMap;
use std::path::Path;

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
        let parsed: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(line);
        let row = parsed
            .map_err(|error| not_an_object(&error))
            .and_then(|object| {
                // As it is written there, the order of its keys included.
                let raw: BTreeMap<String, &RawValue> = match layout.structured {
                    true => serde_json::from_slice(line).map_err(|error| not_an_object(&error))?,
                    false => BTreeMap::new(),
                };
                let get = |name: &str| match raw.get(name) {
                    Some(raw) => Some(Ok(Some(raw.get().to_owned()))),
                    None => object.get(name).map(json_text),
                };
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

/// serde_json counts lines within the one line it was given.
fn not_an_object(error: &serde_json::Error) -> String {
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or(&what);
    format!("not a JSON object: {what} (column {})", error.column())
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
