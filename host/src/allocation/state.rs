//! The controller's part of a checkpoint.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ledger::Ledger;

/// Everything the controller needs to go on as if it had never stopped; plain JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimiser steps finished.
    pub step: u64,
    /// Reallocations made: the index of the next one.
    pub reallocations: u64,
    /// Paths of the modules, in forward order: what the lists below speak of.
    pub modules: Vec<String>,
    /// Which modules are active.
    pub active: Vec<bool>,
    /// Which components of each module remain, once an allocator has pruned any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<Vec<bool>>>,
    /// The step after which modules were last chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_choice: Option<u64>,
    /// The step after which the allocator wants to be asked again, where it decides about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_for: Option<u64>,
    /// What else the allocator has decided.
    #[serde(default, skip_serializing_if = "Details::is_default")]
    pub details: Details,
    /// The history of each module.
    pub ledger: Ledger,
    /// The scorer's state, where there is a scorer.
    pub scorer: Option<PluginState>,
    /// The allocator's state, where there is an allocator.
    pub allocator: Option<PluginState>,
    /// Whether the reallocation after the step is still to be made: a plugin failed in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owed: bool,
    /// The fault with which the plugins were given up, if the run goes on without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// A plugin's fault, after which a run goes on without plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Optimiser steps finished when it came.
    pub step: u64,
    /// What it was.
    pub error: String,
}

/// What an allocator decides beside modules and components, per module in forward order; empty where it is at its
/// default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Details {
    /// Whether components that do not remain keep their values, instead of being pruned.
    pub frozen: bool,
    /// Factors on the learning rate of each module's A and B.
    pub rates: Vec<[f64; 2]>,
    /// A factor on each module's scale.
    pub scales: Vec<f64>,
    /// The module whose pair each module uses.
    pub shared: Vec<usize>,
}

impl Details {
    /// Whether there is nothing to say.
    pub fn is_default(&self) -> bool {
        *self == Details::default()
    }

    /// The factors on the learning rate of a module's A and B.
    pub fn rate(&self, module: usize) -> [f64; 2] {
        self.rates.get(module).copied().unwrap_or([1.0; 2])
    }

    /// The module whose pair a module uses.
    pub fn owner(&self, module: usize) -> usize {
        self.shared.get(module).copied().unwrap_or(module)
    }
}

/// What a plugin gave to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginState {
    /// The plugin's manifest name.
    pub name: String,
    /// Its state, in base64.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub state: Vec<u8>,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD
        .decode(text)
        .map_err(|error| de::Error::custom(format!("plugin state: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json() {
        let state = State {
            step: 12,
            reallocations: 2,
            modules: vec!["a".to_owned(), "b".to_owned()],
            active: vec![true, false],
            components: Some(vec![vec![true, false], vec![false, false]]),
            details: Details {
                frozen: true,
                rates: vec![[0.1, 1.0 / 3.0]; 2],
                scales: vec![],
                shared: vec![0, 0],
            },
            last_choice: Some(3),
            asked_for: None,
            ledger: Ledger::new(2),
            scorer: Some(PluginState {
                name: "activation".to_owned(),
                state: vec![0, 255, 7],
            }),
            allocator: None,
            owed: true,
            fault: None,
        };
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""state":"AP8H""#), "{text}");
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        assert!(serde_json::from_str::<State>(&text.replace("AP8H", "!")).is_err());
    }
}
