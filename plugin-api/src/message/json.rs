//! Messages as lines of JSON: what a child reads and writes.
//!
//! A call is an object with its name under `call` and the message's fields beside it; an answer has `ok: true`,
//! or an `error` with a sentence, or `unknown: true` where there is no such call:
//!
//! ```text
//! {"call":"observe","step":3,"active":[true,false],"signals.activation_l2":[0.5,null]}
//! {"ok":true}
//! ```
//!
//! Numbers that are missing are `null`, bytes are `{"base64": "…"}`, lists of lists lie flat beside their lengths.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Fields, Value};
use crate::{Error, Result};

/// What an answer is.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The fields of an answer.
    Fields(Fields<'static>),
    /// There is no such call.
    Unknown,
    /// Why there is no answer.
    Refused(String),
}

/// A call as a line, with its end.
pub fn write_call(name: &str, fields: &Fields<'_>) -> String {
    let mut line = format!("{{\"call\":{}", quoted(name));
    write_fields(&mut line, fields);
    line.push_str("}\n");
    line
}

/// An answer as a line, with its end.
pub fn write_answer(answer: &Answer) -> String {
    match answer {
        Answer::Fields(fields) => {
            let mut line = "{\"ok\":true".to_owned();
            write_fields(&mut line, fields);
            line.push_str("}\n");
            line
        }
        Answer::Unknown => "{\"unknown\":true}\n".to_owned(),
        Answer::Refused(why) => format!("{{\"error\":{}}}\n", quoted(why)),
    }
}

/// The call in a line.
pub fn read_call(line: &str) -> Result<(String, Fields<'static>)> {
    let mut object = object(line)?;
    match object.remove("call") {
        Some(serde_json::Value::String(name)) => Ok((name, read_fields(object)?)),
        _ => Err("the line has no `call`, which is a name".into()),
    }
}

/// The answer in a line.
pub fn read_answer(line: &str) -> Result<Answer> {
    let mut object = object(line)?;
    if let Some(error) = object.remove("error") {
        return match error {
            serde_json::Value::String(why) => Ok(Answer::Refused(why)),
            other => Err(format!("`error` is {other}, expected a sentence").into()),
        };
    }
    if object.remove("unknown") == Some(serde_json::Value::Bool(true)) {
        return Ok(Answer::Unknown);
    }
    match object.remove("ok") {
        Some(serde_json::Value::Bool(true)) => Ok(Answer::Fields(read_fields(object)?)),
        _ => Err("an answer has `ok`: true, `unknown`: true or an `error` in it".into()),
    }
}

fn object(line: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    let value = serde_json::from_str(line)
        .map_err(|error| Error::from(format!("the line is not JSON: {error}")))?;
    match value {
        serde_json::Value::Object(object) => Ok(object),
        _ => Err("the line is not an object of JSON".into()),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write_fields(line: &mut String, fields: &Fields<'_>) {
    for (name, value) in fields.iter() {
        line.push(',');
        line.push_str(&quoted(name));
        line.push(':');
        write_value(line, value);
    }
}

fn write_value(line: &mut String, value: &Value<'_>) {
    match value {
        Value::Text(text) => line.push_str(&quoted(text)),
        Value::Json(json) => line.push_str(json),
        Value::Bytes(bytes) => {
            let _ = write!(line, "{{\"base64\":\"{}\"}}", STANDARD.encode(bytes));
        }
        Value::F32s(numbers) => list(line, numbers, |line, number| match number.is_finite() {
            // As a float of its own precision, which is shorter than that of the other.
            true => write_number(line, serde_json::to_string(number)),
            false => line.push_str("null"),
        }),
        Value::F64s(numbers) => list(line, numbers, |line, number| real(line, *number)),
        Value::U64s(numbers) => list(line, numbers, |line, number| {
            let _ = write!(line, "{number}");
        }),
        Value::Bools(flags) => list(line, flags, |line, flag| {
            line.push_str(if *flag { "true" } else { "false" });
        }),
        Value::Real(number) => real(line, *number),
        Value::Int(number) => {
            let _ = write!(line, "{number}");
        }
        Value::Flag(flag) => line.push_str(if *flag { "true" } else { "false" }),
    }
}

fn real(line: &mut String, number: f64) {
    match number.is_finite() {
        true => write_number(line, serde_json::to_string(&number)),
        false => line.push_str("null"),
    }
}

fn write_number(line: &mut String, number: serde_json::Result<String>) {
    line.push_str(&number.unwrap_or_else(|_| "null".to_owned()));
}

fn list<T>(line: &mut String, values: &[T], write: impl Fn(&mut String, &T)) {
    line.push('[');
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        write(line, value);
    }
    line.push(']');
}

fn read_fields(object: serde_json::Map<String, serde_json::Value>) -> Result<Fields<'static>> {
    let mut fields = Fields::new();
    for (name, value) in object {
        let value = read_value(value).ok_or_else(|| {
            Error::from(format!(
                "`{name}` is none of: text, a number, true or false, a list of one kind, an object"
            ))
        })?;
        fields.put(name, value);
    }
    Ok(fields)
}

fn read_value(value: serde_json::Value) -> Option<Value<'static>> {
    use serde_json::Value as Json;
    Some(match value {
        Json::String(text) => Value::Text(Cow::Owned(text)),
        Json::Bool(flag) => Value::Flag(flag),
        Json::Null => Value::Real(f64::NAN),
        Json::Number(number) => match number.as_u64() {
            Some(number) => Value::Int(number),
            None => Value::Real(number.as_f64()?),
        },
        Json::Array(values) => return read_list(values),
        Json::Object(object) => match object.get("base64") {
            Some(Json::String(text)) if object.len() == 1 => {
                Value::Bytes(Cow::Owned(STANDARD.decode(text).ok()?))
            }
            _ => Value::Json(Cow::Owned(Json::Object(object).to_string())),
        },
    })
}

fn read_list(values: Vec<serde_json::Value>) -> Option<Value<'static>> {
    use serde_json::Value as Json;
    let all = |is: fn(&Json) -> bool| !values.is_empty() && values.iter().all(is);
    if all(Json::is_boolean) {
        let flags = values.iter().filter_map(Json::as_bool).collect();
        return Some(Value::Bools(flags));
    }
    if all(Json::is_u64) {
        let numbers = values.iter().filter_map(Json::as_u64).collect();
        return Some(Value::U64s(numbers));
    }
    if all(|value| value.is_string() || value.is_object() || value.is_array()) {
        return Some(Value::Json(Cow::Owned(Json::Array(values).to_string())));
    }
    let number = |value: &Json| match value {
        Json::Null => Some(f64::NAN),
        value => value.as_f64(),
    };
    let numbers: Option<Vec<f64>> = values.iter().map(number).collect();
    numbers.map(|numbers| Value::F64s(Cow::Owned(numbers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back() {
        let state: Vec<u8> = (0..=255).collect();
        let fields = Fields::new()
            .with("step", Value::Int(u64::MAX))
            .with("loss", Value::Real(0.1))
            .with("probing", Value::Flag(false))
            .with("moment", Value::Text("a \"step\"\n".into()))
            .with("active", Value::Bools(vec![true, false].into()))
            .with("ranks", Value::U64s(vec![8, u64::MAX].into()))
            .with(
                "values",
                Value::F32s(vec![0.1, f32::NAN, f32::MAX, 1e-45].into()),
            )
            .with("scores", Value::F64s(vec![0.1, 5e-324].into()))
            .with("needs", Value::Json(r#"{"signals":["x"]}"#.into()));
        for length in 0..=state.len() {
            let bytes = Fields::new().with("state", Value::Bytes(state[..length].into()));
            let (_, back) = read_call(&write_call("load", &bytes)).unwrap();
            assert_eq!(back.bytes("state").unwrap().unwrap(), &state[..length]);
        }
        let line = write_call("observe", &fields);
        assert!(
            line.ends_with("}\n") && line.matches('\n').count() == 1,
            "{line}"
        );
        let (name, back) = read_call(&line).unwrap();
        assert_eq!(name, "observe");
        assert_eq!(back.int("step").unwrap(), Some(u64::MAX));
        assert_eq!(back.real("loss").unwrap(), Some(0.1));
        assert_eq!(back.flag("probing").unwrap(), Some(false));
        assert_eq!(back.text("moment").unwrap(), Some("a \"step\"\n"));
        assert_eq!(back.bools("active").unwrap().unwrap(), [true, false]);
        assert_eq!(back.u64s("ranks").unwrap().unwrap(), [8, u64::MAX]);
        let values = back.f32s("values").unwrap().unwrap();
        assert!(values[1].is_nan());
        assert_eq!([values[0], values[2], values[3]], [0.1, f32::MAX, 1e-45]);
        assert_eq!(back.f64s("scores").unwrap().unwrap(), [0.1, 5e-324]);
        assert_eq!(back.text("needs").unwrap(), Some(r#"{"signals":["x"]}"#));
    }

    #[test]
    fn answers_come_back_and_nonsense_is_refused() {
        let empty: Value<'static> = Value::F64s(Cow::Borrowed(&[]));
        for answer in [
            Answer::Fields(Fields::new().with("scores", empty)),
            Answer::Unknown,
            Answer::Refused("no\nway".into()),
        ] {
            assert_eq!(read_answer(&write_answer(&answer)).unwrap(), answer);
        }
        for line in [
            "",
            "[]",
            "{}",
            "{\"ok\":1}",
            "{\"error\":2}",
            "{\"ok\":true,\"x\":[1,true]}",
        ] {
            assert!(read_answer(line).is_err(), "{line}");
        }
        assert!(read_call("{\"step\":1}").is_err());
    }
}
