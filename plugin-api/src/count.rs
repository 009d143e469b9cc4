//! How many modules: a count or a share.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::Result;

/// A number of modules: a count (`12`) or a share of all of them (`"50%"`). The type of `k`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Count {
    /// So many modules, at least 1.
    Exactly(u64),
    /// So many per cent of the modules, above 0 and up to 100.
    Percent(f64),
}

impl Count {
    /// How many of `modules` modules this is. A share is rounded to the nearest whole module, and is
    /// never less than one. An error if there are no modules, or fewer than the count asks for.
    pub fn resolve(self, modules: usize) -> Result<usize> {
        if modules == 0 {
            return Err("there are no modules to choose from".into());
        }
        match self {
            Count::Exactly(count) => match usize::try_from(count) {
                Ok(count) if count <= modules => Ok(count),
                _ => Err(format!(
                    "asked for {count} modules of {modules}: give at most {modules}, or a share such as \"50%\""
                )
                .into()),
            },
            Count::Percent(percent) => {
                let share = (modules as f64 * percent / 100.0).round() as usize;
                Ok(share.clamp(1, modules))
            }
        }
    }
}

const EXPECTED: &str = "a whole number of at least 1, or a share such as \"50%\"";

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = Count;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> std::result::Result<Count, E> {
        match count {
            0 => Err(E::invalid_value(de::Unexpected::Unsigned(0), &self)),
            count => Ok(Count::Exactly(count)),
        }
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> std::result::Result<Count, E> {
        match u64::try_from(count) {
            Ok(count) => self.visit_u64(count),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(count), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Count, E> {
        text.strip_suffix('%')
            .and_then(|number| number.trim().parse().ok())
            .filter(|percent| *percent > 0.0 && *percent <= 100.0)
            .map(Count::Percent)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl JsonSchema for Count {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "integer", "minimum": 1 },
                { "type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%$" },
            ],
            "examples": ["50%", 12],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> std::result::Result<Count, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn reads_counts_and_shares() {
        assert_eq!(read(json!(12)).unwrap(), Count::Exactly(12));
        assert_eq!(read(json!("50%")).unwrap(), Count::Percent(50.0));
        assert_eq!(read(json!("12.5 %")).unwrap(), Count::Percent(12.5));
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            json!(0),
            json!(-3),
            json!(0.5),
            json!("50"),
            json!("0%"),
            json!("101%"),
            json!("NaN%"),
            json!("inf%"),
            json!("%"),
            json!(""),
            json!(null),
            json!([1]),
            json!({"k": 1}),
            json!(true),
        ] {
            let error = read(bad.clone()).expect_err(&bad.to_string()).to_string();
            assert!(error.contains(EXPECTED), "{bad}: {error}");
        }
    }

    #[test]
    fn a_share_rounds_to_the_nearest_and_is_never_nothing() {
        assert_eq!(Count::Percent(50.0).resolve(72).unwrap(), 36);
        assert_eq!(Count::Percent(50.0).resolve(5).unwrap(), 3);
        assert_eq!(Count::Percent(40.0).resolve(6).unwrap(), 2);
        assert_eq!(Count::Percent(1.0).resolve(7).unwrap(), 1);
        assert_eq!(Count::Percent(100.0).resolve(10_000).unwrap(), 10_000);
    }

    #[test]
    fn a_count_beyond_the_modules_is_refused() {
        assert_eq!(Count::Exactly(7).resolve(7).unwrap(), 7);
        let error = Count::Exactly(8).resolve(7).unwrap_err().to_string();
        assert!(error.contains("8 modules of 7"), "{error}");
        assert!(Count::Exactly(u64::MAX).resolve(7).is_err());
        assert!(Count::Percent(50.0).resolve(0).is_err());
    }
}
