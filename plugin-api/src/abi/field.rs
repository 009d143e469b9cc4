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
        // holds it meanwhile. The field is one that lives as long as this call.
        let (fields, field) = unsafe { (&mut *context.cast::<Result<Fields<'static>>>(), &*field) };
        if let Ok(collected) = fields {
            // SAFETY: as above.
            match unsafe { read(field) } {
                Ok((name, value)) => {
                    let owned = Fields::new().with(name, value).into_owned();
                    collected.append(owned);
                }
                Err(error) => *fields = Err(error),
            }
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
        let name = text(name.cast(), name_len)?;
        let value = match kind {
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
                    .map(|flag| *flag != 0)
                    .collect(),
            ),
            kind::REAL => Value::Real(one(data)?),
            kind::INT => Value::Int(one(data)?),
            kind::FLAG => Value::Flag(one::<u8>(data)? != 0),
            other => {
                return Err(
                    format!("the field `{name}` is of kind {other}, which nobody knows").into(),
                );
            }
        };
        Ok((name, value))
    }
}

unsafe fn text<'a>(data: *const c_void, len: usize) -> Result<&'a str> {
    // SAFETY: the caller's.
    let bytes = unsafe { values(data, len)? };
    std::str::from_utf8(bytes).map_err(|_| Error::from("a text in a message is not UTF-8"))
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
        return Err("a list in a message has no place where it could lie".into());
    }
    // SAFETY: not null, aligned, of a length that can be; the rest is the caller's.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}
