//! `[scorer]` and `[allocator]`: a plugin and its own parameters.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::document::Document;
use crate::error::Result;

/// A plugin by name, with its own parameters as further keys of the table: what they may be is the
/// plugin's affair (`dynalora plugins info NAME` shows it).
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PluginConfig {
    /// The name in the plugin's manifest, such as `top-k`, or the path of its library, relative to
    /// the recipe.
    pub plugin: String,
    /// The other keys, as they were given.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub parameters: toml::Table,
}

impl PluginConfig {
    /// A plugin with no parameters but its defaults.
    pub fn named(plugin: &str) -> Self {
        PluginConfig {
            plugin: plugin.to_owned(),
            parameters: toml::Table::new(),
        }
    }

    /// Whether [`plugin`](Self::plugin) is a path rather than a name.
    pub fn is_path(&self) -> bool {
        let library = std::path::Path::new(&self.plugin).extension();
        self.plugin.contains(['/', '\\'])
            || library.is_some_and(|e| e == "so" || e == "dylib" || e == "dll")
    }

    /// The parameters as the JSON object that a plugin is given.
    pub fn parameters_json(&self) -> serde_json::Value {
        let table = self
            .parameters
            .iter()
            .map(|(key, value)| (key.clone(), json(value)));
        serde_json::Value::Object(table.collect())
    }

    /// `table` is the table's own name.
    pub(super) fn validate(&self, table: &str, at: &Document) -> Result<()> {
        let key = format!("{table}.plugin");
        let named = !self.plugin.trim().is_empty();
        at.check(&key, named, &self.plugin, "a plugin's name or path")?;
        for (name, value) in &self.parameters {
            let key = format!("{table}.{name}");
            at.check(
                &key,
                is_json(value),
                value,
                "a value JSON has: neither a date nor inf or nan",
            )?;
        }
        Ok(())
    }
}

/// Whether a plugin can be given `value`: parameters cross to it as JSON.
fn is_json(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Datetime(_) => false,
        toml::Value::Array(values) => values.iter().all(is_json),
        toml::Value::Table(table) => table.values().all(is_json),
        _ => true,
    }
}

fn json(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(truth) => (*truth).into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.iter().map(json).collect(),
        toml::Value::Table(table) => table
            .iter()
            .map(|(key, value)| (key.clone(), json(value)))
            .collect(),
    }
}

// By hand, since serde's `flatten` would lose the line of a mistake.
impl<'de> Deserialize<'de> for PluginConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PluginVisitor)
    }
}

struct PluginVisitor;

impl<'de> de::Visitor<'de> for PluginVisitor {
    type Value = PluginConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table with the key `plugin`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<PluginConfig, A::Error> {
        let mut plugin = None;
        let mut parameters = toml::Table::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "plugin" {
                plugin = Some(map.next_value()?);
            } else {
                parameters.insert(key, map.next_value()?);
            }
        }
        let plugin = plugin.ok_or_else(|| de::Error::missing_field("plugin"))?;
        Ok(PluginConfig { plugin, parameters })
    }
}
