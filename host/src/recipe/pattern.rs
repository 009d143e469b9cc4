//! `rank_pattern` and `alpha_pattern`: values for some of the modules, by PEFT's names and rules.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::Spanned;

/// Values by regular expressions over module paths.
#[derive(Clone, Debug)]
pub struct Pattern<T>(Vec<Entry<T>>);

#[derive(Clone, Debug)]
struct Entry<T> {
    key: String,
    regex: Regex,
    value: T,
}

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Pattern(Vec::new())
    }
}

impl<T: PartialEq> PartialEq for Pattern<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries().eq(other.entries())
    }
}

impl<T> Pattern<T> {
    /// The expressions with their values, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0
            .iter()
            .map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|entry| &entry.value)
    }

    /// Which expressions match the module at `path`, family's prefix included, by their numbers. The first counts.
    pub fn matching(&self, path: &str) -> impl Iterator<Item = usize> {
        let entries = self.0.iter().enumerate();
        entries.filter_map(move |(index, entry)| entry.regex.is_match(path).then_some(index))
    }

    fn push<E: de::Error>(&mut self, key: String, value: T) -> Result<(), E> {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .map_err(|error| E::custom(format!("the pattern {key:?} cannot be read: {error}")))?;
        self.0.push(Entry { key, regex, value });
        Ok(())
    }
}

impl<T: Copy> Pattern<T> {
    /// The value for the module at `path`, family's prefix included: that of the first expression, in the
    /// file's order, that is the path or what follows one of its points, as PEFT's `get_pattern_key` has it.
    pub fn of(&self, path: &str) -> Option<T> {
        self.matching(path).next().map(|index| self.0[index].value)
    }
}

/// As PEFT's `adapter_config.json` has it. By hand: a map would lose the file's order.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = deserializer.deserialize_map(Visitor(PhantomData::<(String, T)>))?;
        let mut pattern = Pattern::default();
        for (key, value) in entries {
            pattern.push(key, value)?;
        }
        Ok(pattern)
    }
}

/// As a recipe has it, whose tables are read in the order of the alphabet: in the order in which the keys were written.
pub(super) fn in_recipe<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Pattern<T>>, D::Error> {
    let visitor = Visitor(PhantomData::<(Spanned<String>, T)>);
    let mut entries = deserializer.deserialize_map(visitor)?;
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut pattern = Pattern::default();
    for (key, value) in entries {
        pattern.push(key.into_inner(), value)?;
    }
    Ok(Some(pattern))
}

struct Visitor<K, T>(PhantomData<(K, T)>);

impl<'de, K: Deserialize<'de>, T: Deserialize<'de>> de::Visitor<'de> for Visitor<K, T> {
    type Value = Vec<(K, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers by regular expressions over module paths")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Vec<(K, T)>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl<T: Serialize> Serialize for Pattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}

impl<T: JsonSchema> JsonSchema for Pattern<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Pattern_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = T::json_schema(generator);
        json_schema!({ "type": "object", "additionalProperties": value })
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
            (r#"["query"]"#, "numbers by regular expressions"),
        ] {
            let error = serde_json::from_str::<Pattern<u32>>(json).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_recipes_table_counts_in_the_order_in_which_it_was_written() {
        #[derive(Deserialize)]
        struct Table {
            #[serde(deserialize_with = "in_recipe")]
            ranks: Option<Pattern<u32>>,
        }
        let read = |text: &str| toml::from_str::<Table>(text).map(|table| table.ranks.unwrap());
        let ranks = read("[ranks]\n\"query\" = 1\n\"layer.1.*\" = 2\n\"dense\" = 3").unwrap();
        assert_eq!(
            ranks.of("bert.encoder.layer.1.attention.self.query"),
            Some(1)
        );
        assert_eq!(ranks.of("bert.encoder.layer.1.output.dense"), Some(2));
        assert_eq!(ranks.of("bert.encoder.layer.0.output.dense"), Some(3));
        let text = toml::to_string(&std::collections::BTreeMap::from([("ranks", &ranks)])).unwrap();
        assert_eq!(read(&text).unwrap(), ranks);
        let error = read("ranks = { \"(\" = 1 }").err().unwrap().to_string();
        assert!(error.contains("pattern \"(\" cannot be read"), "{error}");
    }
}
