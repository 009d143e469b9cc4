//! Seeds: a list, or first and last.

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// The seeds of a sweep, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeds(Vec<u64>);

/// More runs than anybody trains; a slip such as seeds 0 to 100000 is not tried.
pub(super) const MOST_RUNS: usize = 10_000;

impl Seeds {
    /// In order.
    pub fn list(&self) -> &[u64] {
        &self.0
    }

    fn new(seeds: Vec<u64>) -> Result<Self, String> {
        for (at, seed) in seeds.iter().enumerate() {
            if seeds[..at].contains(seed) {
                return Err(format!("the seed {seed} is given twice"));
            }
        }
        Ok(Seeds(seeds))
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let text = text.trim();
            (text.parse::<u64>())
                .map_err(|_| format!("\"{text}\" is not a seed, a whole number from 0"))
        };
        if let Some((first, last)) = text.split_once("..") {
            let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
            if last < first || last - first >= MOST_RUNS as u64 {
                return Err(format!(
                    "from {first} to {last} there are no seeds, or more than {MOST_RUNS}: give first and last, as in 0..9"
                ));
            }
            return Ok(Seeds((first..=last).collect()));
        }
        Seeds::new(text.split(',').map(number).collect::<Result<_, _>>()?)
    }
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a list of seeds, or first and last as in \"0..9\""
        )]
        enum Written {
            List(Vec<u64>),
            Text(String),
        }
        let seeds = match Written::deserialize(deserializer)? {
            Written::List(seeds) => Seeds::new(seeds),
            Written::Text(text) => text.parse(),
        };
        seeds.map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Seeds {
    fn schema_name() -> Cow<'static, str> {
        "Seeds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "array", "items": { "type": "integer", "minimum": 0 }, "uniqueItems": true },
                { "type": "string", "pattern": r"^\s*\d+\s*(\.\.=?\s*\d+|(,\s*\d+)*)\s*$" },
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_lists_or_ranges() {
        let list = |text: &str| text.parse::<Seeds>().map(|seeds| seeds.0);
        assert_eq!(list("0..3"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(list("4, 7,5"), Ok(vec![4, 7, 5]));
        assert_eq!(list("2"), Ok(vec![2]));
        for (wrong, part) in [
            ("3..1", "from 3 to 1"),
            ("0..99999999", "more than 10000"),
            ("1,2,1", "the seed 1 is given twice"),
            ("one", "\"one\" is not a seed"),
            ("-1", "\"-1\" is not a seed"),
        ] {
            let error = list(wrong).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
