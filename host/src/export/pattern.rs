//! PEFT's `rank_pattern` and `alpha_pattern`: values for some of the modules.

use std::fmt;
use std::marker::PhantomData;

use regex::Regex;
use serde::{Deserialize, Deserializer, de};

/// Values by regular expressions over module paths.
pub struct Pattern<T>(Vec<(Regex, T)>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Pattern(Vec::new())
    }
}

impl<T: Copy> Pattern<T> {
    /// The value for the module at `path`, family's prefix included: that of the first expression, in the
    /// file's order, that is the path or what follows one of its points, as PEFT's `get_pattern_key` has it.
    pub fn of(&self, path: &str) -> Option<T> {
        let mut matching = self.0.iter().filter(|(regex, _)| regex.is_match(path));
        matching.next().map(|(_, value)| *value)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

// By hand: a map would lose the file's order.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

struct Visitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
    type Value = Pattern<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of numbers by regular expressions over module paths")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pattern<T>, A::Error> {
        let mut pattern = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).map_err(|error| {
                de::Error::custom(format!("the pattern {key:?} cannot be read: {error}"))
            })?;
            pattern.push((regex, value));
        }
        Ok(Pattern(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Pattern<u32> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_first_that_matches_an_end_of_the_path_counts() {
        let pattern = read(
            r#"{"query": 1, "layer.1.attention.self.value": 2, "layer.\\d.output.dense": 3, "value": 4, "^bert.pooler.dense": 5}"#,
        );
        for (path, value) in [
            ("bert.encoder.layer.0.attention.self.query", Some(1)),
            ("bert.encoder.layer.1.attention.self.value", Some(2)),
            ("bert.encoder.layer.11.attention.self.value", Some(4)),
            ("bert.encoder.layer.0.output.dense", Some(3)),
            ("bert.encoder.layer.0.attention.output.dense", None),
            ("bert.pooler.dense", Some(5)),
            ("other.bert.pooler.dense", None),
            ("bert.encoder.layer.0.subquery", None),
        ] {
            assert_eq!(pattern.of(path), value, "{path}");
        }
        assert_eq!(pattern.values().sum::<u32>(), 15);
        assert_eq!(read("{}").of("bert.pooler.dense"), None);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (json, words) in [
            (r#"{"(": 1}"#, "pattern \"(\" cannot be read"),
            (r#"{"query": "many"}"#, "invalid type"),
            (r#"["query"]"#, "regular expressions"),
        ] {
            let error = serde_json::from_str::<Pattern<u32>>(json).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
