//! What a plugin says about itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Needs;

/// Which of the two decisions a plugin makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Signals to scores.
    Scorer,
    /// Scores to active modules.
    Allocator,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Scorer => "scorer",
            Kind::Allocator => "allocator",
        })
    }
}

/// A plugin's account of itself, read without making an instance of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name a recipe uses.
    pub name: String,
    /// Scorer or allocator.
    pub kind: Kind,
    /// The version of the plugin's crate.
    pub version: String,
    /// The version of `dynalora-plugin-api` it was built against.
    pub api_version: String,
    /// One sentence on what it does.
    pub description: String,
    /// Where it comes from: paper and equation.
    pub reference: String,
    /// What it computes, in plain text; empty where it does not say.
    #[serde(default)]
    pub formula: String,
    /// What the plugin asks the host to measure with default parameters, those that it requires made up from
    /// their schema; none for an allocator that asks for nothing.
    pub needs: Option<Needs>,
    /// JSON Schema (draft 2020-12) of the parameters.
    pub parameters: Value,
}
