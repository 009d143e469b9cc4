//! YAML that others have written, read as JSON.

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// A list or a table of YAML, as far as it was read.
enum Open {
    List(Vec<Value>),
    /// With the key whose value is to come.
    Table(Map<String, Value>, Option<String>),
}

/// Nobody nests deeper what is read here.
const DEEPEST: usize = 64;

/// The first document of a YAML text. Numbers stay texts; aliases are refused.
pub(crate) fn read(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| error.to_string())?;
        let value = match event {
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Table(table, _)) => Value::Object(table),
                None => Value::Null,
            },
            Event::Alias(_) => return Err("its YAML has an alias, `*name`".to_owned()),
            _ => continue,
        };
        if open.len() > DEEPEST {
            return Err(format!("its YAML is nested deeper than {DEEPEST}"));
        }
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Table(table, key)) => match key.take() {
                None => {
                    *key = Some(
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned),
                    )
                }
                Some(name) => {
                    if table.insert(name.clone(), value).is_some() {
                        return Err(format!("its YAML has the key `{name}` twice"));
                    }
                }
            },
        }
    }
    Ok(Value::Null)
}

/// A word of YAML, as PyYAML takes it where a truth value or nothing may be meant.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    let plain = style == ScalarStyle::Plain;
    match text {
        "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" if plain => {
            Value::Bool(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" if plain => {
            Value::Bool(false)
        }
        text => Value::String(text.to_owned()),
    }
}
