//! Messages: what crosses the boundary, as values under names.
//!
//! A call takes one message and answers with one. There are two carriers: slices through a library's entry
//! ([`abi`](crate::abi)), where nothing is copied on the way in, and lines of JSON through the pipes of a child
//! ([`json`]). A plugin does not know which.
//!
//! Whoever receives a message passes over the names that it does not know, where it is a plugin, and refuses them,
//! where it is the host: a new name never breaks an old plugin, and never goes unheard.

pub mod json;
pub mod typed;

use std::borrow::Cow;

use crate::{Error, Result};

/// A value in a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// Text that is JSON, for what has a structure of its own.
    Json(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// Numbers; NaN where one is missing.
    F32s(Cow<'a, [f32]>),
    /// Numbers; NaN where one is missing.
    F64s(Cow<'a, [f64]>),
    /// Whole numbers.
    U64s(Cow<'a, [u64]>),
    /// Flags.
    Bools(Cow<'a, [bool]>),
    /// One number.
    Real(f64),
    /// One whole number.
    Int(u64),
    /// One flag.
    Flag(bool),
}

/// The fields of a message, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Fields<'a> {
    /// No fields.
    pub fn new() -> Self {
        Fields(Vec::new())
    }

    /// Adds a field.
    pub fn put(&mut self, name: impl Into<Cow<'a, str>>, value: Value<'a>) {
        self.0.push((name.into(), value));
    }

    /// With this field as well.
    pub fn with(mut self, name: impl Into<Cow<'a, str>>, value: Value<'a>) -> Self {
        self.put(name, value);
        self
    }

    /// Adds all of `other`.
    pub fn append(&mut self, other: Fields<'a>) {
        self.0.extend(other.0);
    }

    /// Adds lists, one after the other, with their lengths beside them.
    pub fn put_lists<T: Copy>(
        &mut self,
        name: &str,
        lists: &[Vec<T>],
        value: fn(Cow<'a, [T]>) -> Value<'a>,
    ) {
        let lengths = lists.iter().map(|list| list.len() as u64).collect();
        self.put(format!("{name}.lengths"), Value::U64s(Cow::Owned(lengths)));
        self.put(name.to_owned(), value(Cow::Owned(lists.concat())));
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }

    /// The field of this name.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let mut fields = self.0.iter();
        fields
            .find(|(other, _)| other == name)
            .map(|(_, value)| value)
    }

    /// The fields whose names begin with `prefix`, without it and without the lengths of lists.
    pub fn under(&self, prefix: &'static str) -> impl Iterator<Item = (&str, &Value<'a>)> {
        let fields = self.iter();
        fields.filter_map(move |(name, value)| {
            let name = name.strip_prefix(prefix)?;
            (!name.ends_with(".lengths")).then_some((name, value))
        })
    }

    /// Refuses fields of other names than `known`; one that ends in a dot stands for all that begin so.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        let knows = |name: &str| {
            let name = name.strip_suffix(".lengths").unwrap_or(name);
            known.iter().any(|known| match known.ends_with('.') {
                true => name.starts_with(known),
                false => name == *known,
            })
        };
        match self.0.iter().find(|(name, _)| !knows(name)) {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "it answers with `{}`, which this version of dynalora does not know: it knows {}",
                crate::abi::text::line(name, 200),
                match known {
                    [] => "no answer here".to_owned(),
                    known => known.join(", "),
                }
            )
            .into()),
        }
    }

    /// A field that has to be there.
    pub fn need(&self, name: &str) -> Result<&Value<'a>> {
        self.get(name)
            .ok_or_else(|| format!("`{name}` is missing").into())
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        self.read(name, "text", |value| match value {
            Value::Text(text) | Value::Json(text) => Some(text.as_ref()),
            _ => None,
        })
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> Result<Option<u64>> {
        self.read(name, "a whole number", |value| match value {
            Value::Int(number) => Some(*number),
            _ => None,
        })
    }

    /// A number.
    pub fn real(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a number", |value| match value {
            Value::Real(number) => Some(*number),
            Value::Int(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Bytes.
    pub fn bytes(&self, name: &str) -> Result<Option<&[u8]>> {
        self.read(name, "bytes", |value| match value {
            Value::Bytes(bytes) => Some(bytes.as_ref()),
            _ => None,
        })
    }

    /// A list of numbers, NaN where one is missing.
    pub fn f64s(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.read(name, "a list of numbers", f64s)
    }

    /// A list of numbers in single precision, NaN where one is missing.
    pub fn f32s(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.read(name, "a list of numbers", f32s)
    }

    /// A list of whole numbers.
    pub fn u64s(&self, name: &str) -> Result<Option<Vec<u64>>> {
        self.read(name, "a list of whole numbers", |value| match value {
            Value::U64s(numbers) => Some(numbers.to_vec()),
            // From a carrier that has but one kind of number, or an empty list.
            Value::F64s(numbers) => numbers
                .iter()
                .map(|number| {
                    let whole = *number >= 0.0 && number.fract() == 0.0 && *number < 2f64.powi(53);
                    whole.then_some(*number as u64)
                })
                .collect(),
            _ => None,
        })
    }

    /// A list of flags.
    pub fn bools(&self, name: &str) -> Result<Option<Vec<bool>>> {
        self.read(name, "a list of true and false", |value| match value {
            Value::Bools(flags) => Some(flags.to_vec()),
            Value::F64s(none) if none.is_empty() => Some(Vec::new()),
            _ => None,
        })
    }

    /// Lists of flags.
    pub fn bool_lists(&self, name: &str) -> Result<Option<Vec<Vec<bool>>>> {
        let Some(flat) = self.bools(name)? else {
            return Ok(None);
        };
        self.lists(name, &flat).map(Some)
    }

    /// Lists of numbers.
    pub fn f32_lists(&self, name: &str) -> Result<Option<Vec<Vec<f32>>>> {
        let Some(flat) = self.f32s(name)? else {
            return Ok(None);
        };
        self.lists(name, &flat).map(Some)
    }

    fn lists<T: Copy>(&self, name: &str, mut flat: &[T]) -> Result<Vec<Vec<T>>> {
        let lengths = self
            .u64s(&format!("{name}.lengths"))?
            .ok_or_else(|| Error::from(format!("`{name}.lengths` is missing beside `{name}`")))?;
        let mut lists = Vec::with_capacity(lengths.len());
        for length in lengths {
            let split = usize::try_from(length).ok();
            let (list, rest) = split
                .and_then(|length| flat.split_at_checked(length))
                .ok_or_else(|| Error::from(format!("`{name}` is shorter than its lengths")))?;
            lists.push(list.to_vec());
            flat = rest;
        }
        match flat.len() {
            0 => Ok(lists),
            more => Err(format!("`{name}` has {more} values more than its lengths").into()),
        }
    }

    fn read<'s, T>(
        &'s self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'s Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(format!("`{name}` is not {expected}").into()),
            },
        }
    }

    /// The same with copies of everything that was borrowed.
    pub fn into_owned(self) -> Fields<'static> {
        let fields = self.0.into_iter();
        Fields(
            fields
                .map(|(name, value)| (Cow::Owned(name.into_owned()), value.into_owned()))
                .collect(),
        )
    }
}

fn f64s(value: &Value<'_>) -> Option<Vec<f64>> {
    match value {
        Value::F64s(numbers) => Some(numbers.to_vec()),
        Value::F32s(numbers) => Some(numbers.iter().map(|number| f64::from(*number)).collect()),
        Value::U64s(numbers) => Some(numbers.iter().map(|number| *number as f64).collect()),
        _ => None,
    }
}

fn f32s(value: &Value<'_>) -> Option<Vec<f32>> {
    match value {
        Value::F32s(numbers) => Some(numbers.to_vec()),
        value => Some(f64s(value)?.iter().map(|number| *number as f32).collect()),
    }
}

impl Value<'_> {
    fn into_owned(self) -> Value<'static> {
        fn owned<T: ToOwned + ?Sized>(value: Cow<'_, T>) -> Cow<'static, T> {
            Cow::Owned(value.into_owned())
        }
        match self {
            Value::Text(text) => Value::Text(owned(text)),
            Value::Json(text) => Value::Json(owned(text)),
            Value::Bytes(bytes) => Value::Bytes(owned(bytes)),
            Value::F32s(numbers) => Value::F32s(owned(numbers)),
            Value::F64s(numbers) => Value::F64s(owned(numbers)),
            Value::U64s(numbers) => Value::U64s(owned(numbers)),
            Value::Bools(flags) => Value::Bools(owned(flags)),
            Value::Real(number) => Value::Real(number),
            Value::Int(number) => Value::Int(number),
            Value::Flag(flag) => Value::Flag(flag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_lists_come_back_and_bad_lengths_are_refused() {
        let lists = vec![vec![true, false], vec![], vec![true]];
        let mut fields = Fields::new();
        fields.put_lists("components", &lists, Value::Bools);
        assert_eq!(fields.bool_lists("components").unwrap().unwrap(), lists);
        assert_eq!(fields.bool_lists("others").unwrap(), None);
        for lengths in [vec![2, 2], vec![1], vec![u64::MAX]] {
            let bad = Fields::new()
                .with("x", Value::F32s(vec![1.0, 2.0, 3.0].into()))
                .with("x.lengths", Value::U64s(lengths.into()));
            assert!(bad.f32_lists("x").is_err());
        }
    }

    #[test]
    fn a_strange_answer_is_refused_with_what_is_known() {
        let fields = Fields::new()
            .with("scores", Value::F64s(vec![1.0].into()))
            .with("numbers.entropy", Value::Real(1.0));
        fields.only(&["scores", "numbers."]).unwrap();
        let error = fields.only(&["scores"]).unwrap_err().to_string();
        assert!(error.contains("`numbers.entropy`") && error.ends_with("it knows scores"));
    }

    #[test]
    fn a_wrong_kind_is_named() {
        let fields = Fields::new().with("step", Value::Text("three".into()));
        let error = fields.int("step").unwrap_err().to_string();
        assert_eq!(error, "`step` is not a whole number");
        assert!(fields.need("steps").is_err());
    }
}
