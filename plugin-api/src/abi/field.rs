//! Fields as they lie in memory, and back.

use std::borrow::Cow;
use std::ffi::c_void;

use super::{Field, Message, Sink, kind};
use crate::message::{Fields, Value};
use crate::{Error, Result};

/// Shows `fields` to a call that takes a [`Message`]; nothing of them is copied but flags and names of kinds.
pub fn lend<R>(fields: &Fields<'_>, call: impl FnOnce(Message) -> R) -> R {
    let shown: Vec<Field> = fields
        .iter()
        .map(|(name, value)| show(name, value))
        .collect();
    call(Message {
        fields: shown.as_ptr(),
        len: shown.len(),
    })
}

/// Hands `fields` to a sink.
pub(super) fn pour(fields: &Fields<'_>, out: Sink) {
    for (name, value) in fields.iter() {
        let field = show(name, value);
        // SAFETY: a sink's `put` takes its own context and a field that lives as long as the call.
        unsafe { (out.put)(out.context, &raw const field) }
    }
}

fn show(name: &str, value: &Value<'_>) -> Field {
    fn slice<T>(values: &[T]) -> (*const c_void, usize) {
        (values.as_ptr().cast(), values.len())
    }
    fn one<T>(value: &T) -> (*const c_void, usize) {
        ((&raw const *value).cast(), 1)
    }
    let (kind, (data, len)) = match value {
        Value::Text(text) => (kind::TEXT, slice(text.as_bytes())),
        Value::Json(text) => (kind::JSON, slice(text.as_bytes())),
        Value::Bytes(bytes) => (kind::BYTES, slice(bytes)),
        Value::F32s(numbers) => (kind::F32S, slice(numbers)),
        Value::F64s(numbers) => (kind::F64S, slice(numbers)),
        Value::U64s(numbers) => (kind::U64S, slice(numbers)),
        // A bool is a byte of 0 or 1.
        Value::Bools(flags) => (kind::BOOLS, slice(flags)),
        Value::Real(number) => (kind::REAL, one(number)),
        Value::Int(number) => (kind::INT, one(number)),
        Value::Flag(flag) => (kind::FLAG, one(flag)),
    };
    Field {
        name: name.as_ptr(),
        name_len: name.len(),
        kind,
        data,
        len,
    }
}

/// What `answer` puts into a sink.
pub fn collect<R>(answer: impl FnOnce(Sink) -> R) -> (R, Result<Fields<'static>>) {
    unsafe extern "C" fn put(context: *mut c_void, field: *const Field) {
        // SAFETY: the context is the collection below, which outlives the call that may put fields; nobody else
        // holds it meanwhile.
        let fields = unsafe { &mut *context.cast::<Result<Fields<'static>>>() };
        let Ok(collected) = fields else { return };
        // SAFETY: the field is one that lives as long as this call.
        let field = unsafe { values::<Field>(field.cast(), 1) };
        let field = field.map_err(|error| of("a field", error));
        // SAFETY: as above.
        match field.and_then(|field| unsafe { read(&field[0]) }) {
            Ok((name, _)) if collected.get(name).is_some() => {
                *fields = Err(of(&quoted(name), "is answered twice".into()));
            }
            Ok((name, value)) => {
                let owned = Fields::new().with(name, value).into_owned();
                collected.append(owned);
            }
            Err(error) => *fields = Err(error),
        }
    }
    let mut fields: Result<Fields<'static>> = Ok(Fields::new());
    let sink = Sink {
        context: (&raw mut fields).cast(),
        put,
    };
    let answered = answer(sink);
    (answered, fields)
}

/// The fields of a message.
///
/// # Safety
/// The message's fields, and what they point to, must be as they say, for as long as `'a`.
pub(super) unsafe fn open<'a>(message: Message) -> Result<Fields<'a>> {
    let mut fields = Fields::new();
    // SAFETY: the caller's.
    for field in unsafe { values::<Field>(message.fields.cast(), message.len)? } {
        // SAFETY: the caller's.
        let (name, value) = unsafe { read(field)? };
        fields.put(name, value);
    }
    Ok(fields)
}

/// One field.
///
/// # Safety
/// What it points to must be as it says, for as long as `'a`.
unsafe fn read<'a>(field: &Field) -> Result<(&'a str, Value<'a>)> {
    let Field {
        name,
        name_len,
        kind,
        data,
        len,
    } = *field;
    // SAFETY: the caller's, of all that follow.
    unsafe {
        let name = text(name.cast(), name_len).map_err(|error| of("the name of a field", error))?;
        let value = value(kind, data, len).map_err(|error| of(&quoted(name), error))?;
        Ok((name, value))
    }
}

/// A name fit to be shown.
fn quoted(name: &str) -> String {
    format!("`{}`", super::text::line(name, 200))
}

fn of(what: &str, error: Error) -> Error {
    format!("{what} {error}").into()
}

unsafe fn value<'a>(kind: u32, data: *const c_void, len: usize) -> Result<Value<'a>> {
    // SAFETY: the caller's, of all that follow.
    unsafe {
        Ok(match kind {
            kind::TEXT => Value::Text(Cow::Borrowed(text(data, len)?)),
            kind::JSON => Value::Json(Cow::Borrowed(text(data, len)?)),
            kind::BYTES => Value::Bytes(Cow::Borrowed(values(data, len)?)),
            kind::F32S => Value::F32s(Cow::Borrowed(values(data, len)?)),
            kind::F64S => Value::F64s(Cow::Borrowed(values(data, len)?)),
            kind::U64S => Value::U64s(Cow::Borrowed(values(data, len)?)),
            // Not read as bools: another language may have put any byte there.
            kind::BOOLS => Value::Bools(
                values::<u8>(data, len)?
                    .iter()
                    .map(|byte| flag(*byte))
                    .collect::<Result<_>>()?,
            ),
            kind::REAL => Value::Real(one(data)?),
            kind::INT => Value::Int(one(data)?),
            kind::FLAG => Value::Flag(flag(one(data)?)?),
            other => return Err(format!("is of kind {other}, which nobody knows").into()),
        })
    }
}

fn flag(byte: u8) -> Result<bool> {
    match byte {
        0 | 1 => Ok(byte == 1),
        other => Err(format!("has a flag of {other}: one is 0 or 1").into()),
    }
}

unsafe fn text<'a>(data: *const c_void, len: usize) -> Result<&'a str> {
    // SAFETY: the caller's.
    let bytes = unsafe { values(data, len)? };
    std::str::from_utf8(bytes).map_err(|_| Error::from("is not UTF-8"))
}

unsafe fn one<T: Copy>(data: *const c_void) -> Result<T> {
    // SAFETY: the caller's.
    Ok(unsafe { values::<T>(data, 1)? }[0])
}

unsafe fn values<'a, T>(data: *const c_void, len: usize) -> Result<&'a [T]> {
    let data = data.cast::<T>();
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() || len > isize::MAX as usize / size_of::<T>() {
        return Err("has values at no place where they could lie".into());
    }
    // SAFETY: not null, aligned, of a length that can be; the rest is the caller's.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of one field in a sink.
    fn put(field: *const Field) -> Result<Fields<'static>> {
        // SAFETY: the sink takes fields as they are below: where they lie at all, whole.
        collect(|out| unsafe { (out.put)(out.context, field) }).1
    }

    fn field(kind: u32, data: *const u8, len: usize) -> Field {
        Field {
            name: b"active".as_ptr(),
            name_len: 6,
            kind,
            data: data.cast(),
            len,
        }
    }

    #[test]
    fn what_another_language_gets_wrong_is_an_error_as_far_as_it_can_be_seen() {
        let bytes = [1_u64, 0xff_ffff];
        let at: *const u8 = bytes.as_ptr().cast();
        let said = |field: &Field| put(field).unwrap_err().to_string();
        for (kind, data, len, why) in [
            (kind::BOOLS, std::ptr::null(), 3, "no place"),
            (kind::F64S, at.wrapping_add(1), 1, "no place"),
            (kind::U64S, at, usize::MAX, "no place"),
            (kind::REAL, std::ptr::null(), 1, "no place"),
            (kind::BOOLS, at.wrapping_add(8), 3, "a flag of 255"),
            (kind::FLAG, at.wrapping_add(8), 1, "a flag of 255"),
            (kind::TEXT, at.wrapping_add(8), 3, "not UTF-8"),
            (99, at, 1, "of kind 99"),
        ] {
            let error = said(&field(kind, data, len));
            assert!(
                error.starts_with("`active`") && error.contains(why),
                "{error}"
            );
        }
        let mut nameless = field(kind::INT, at, 1);
        nameless.name = std::ptr::null();
        assert!(said(&nameless).starts_with("the name of a field"));
        for nowhere in [std::ptr::null(), at.wrapping_add(1).cast()] {
            let error = put(nowhere).unwrap_err().to_string();
            assert!(error.starts_with("a field has"), "{error}");
        }
        let twice = field(kind::INT, at, 1);
        // SAFETY: as above.
        let (_, answer) = collect(|out| unsafe {
            (out.put)(out.context, &raw const twice);
            (out.put)(out.context, &raw const twice);
        });
        assert_eq!(
            answer.unwrap_err().to_string(),
            "`active` is answered twice"
        );
        // Nothing has to lie anywhere.
        let empty = put(&field(kind::BOOLS, std::ptr::null(), 0)).unwrap();
        assert_eq!(empty.bools("active").unwrap(), Some(vec![]));
    }
}
