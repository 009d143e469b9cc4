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
    /// Where it runs: in the trainer's own process (`"none"`), or in one of its own (`"process"`, or a table with
    /// its limits), where no fault of it ends the trainer, and which has neither network nor files to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Written")]
    pub isolation: Option<Isolation>,
    /// The other keys, as they were given.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub parameters: toml::Table,
}

/// What a plugin in a process of its own may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// How long it may take for one answer.
    pub timeout_seconds: f64,
    /// How much memory it may take, in MiB (on Linux).
    pub memory_mib: u64,
}

impl Default for Isolation {
    fn default() -> Self {
        Isolation {
            timeout_seconds: 60.0,
            memory_mib: 1024,
        }
    }
}

/// As a recipe has it.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema is all there is to it")]
enum Written {
    Named(Place),
    Limits(Isolation),
}

/// Where a plugin runs, by name.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "its schema is all there is to it")]
enum Place {
    /// In the trainer's own process.
    None,
    /// In one of its own, with the limits that are the default.
    Process,
}

impl PluginConfig {
    /// A plugin with no parameters but its defaults.
    pub fn named(plugin: &str) -> Self {
        PluginConfig {
            plugin: plugin.to_owned(),
            isolation: None,
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
        if let Some(isolation) = self.isolation {
            let Isolation {
                timeout_seconds,
                memory_mib,
            } = isolation;
            let key = |name: &str| format!("{table}.isolation.{name}");
            at.check(
                &key("timeout_seconds"),
                timeout_seconds > 0.0 && timeout_seconds <= 1e6,
                timeout_seconds,
                "a number of seconds above 0, at most 1e6",
            )?;
            at.check(
                &key("memory_mib"),
                (1..=1 << 30).contains(&memory_mib),
                memory_mib,
                "a number of MiB from 1 on",
            )?;
        }
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
        let (mut plugin, mut isolation) = (None, Wished::default());
        let mut parameters = toml::Table::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "plugin" => plugin = Some(map.next_value()?),
                "isolation" => isolation = map.next_value()?,
                _ => drop(parameters.insert(key, map.next_value()?)),
            }
        }
        let plugin = plugin.ok_or_else(|| de::Error::missing_field("plugin"))?;
        Ok(PluginConfig {
            plugin,
            isolation: isolation.0,
            parameters,
        })
    }
}

/// An isolation by its name or with its limits; by hand for the line of a mistake.
#[derive(Default)]
struct Wished(Option<Isolation>);

impl<'de> Deserialize<'de> for Wished {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IsolationVisitor)
    }
}

struct IsolationVisitor;

impl<'de> de::Visitor<'de> for IsolationVisitor {
    type Value = Wished;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"none\", \"process\", or a table with `timeout_seconds` and `memory_mib`")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Wished, E> {
        match name {
            "none" => Ok(Wished(None)),
            "process" => Ok(Wished(Some(Isolation::default()))),
            other => Err(E::unknown_variant(other, &["none", "process"])),
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Wished, A::Error> {
        Isolation::deserialize(de::value::MapAccessDeserializer::new(map))
            .map(|isolation| Wished(Some(isolation)))
    }
}
