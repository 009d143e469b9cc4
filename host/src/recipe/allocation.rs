//! `[allocation]`: when modules are chosen anew, and among what.

use dynalora_plugin_api::{Budget, Count};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::document::Document;
use super::initial::{Initial, initial_budget};
use super::plugin::PluginConfig;
use super::schedule::Schedule;
use crate::error::{Error, Result};

/// Which modules are active, and when that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AllocationConfig {
    /// What the allocator chooses among.
    pub unit: Unit,
    /// The units active until the first reallocation.
    pub initial: Initial,
    /// How many of them `initial = "random"` draws: a count or a share such as "50%". Left out: the
    /// allocator's `k`, by what the allocator counts by.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "count_as_written"
    )]
    pub initial_k: Option<Count>,
    /// Under `initial = "allocator"`: so many passes over the first steps' batches before the choice, by which every
    /// module is measured, with gradients, and nothing is updated. Their operations count.
    pub calibration_steps: u64,
    /// What becomes of the optimiser's state of a module that goes inactive.
    pub optimizer_state: OptimizerState,
    /// For so many steps before a reallocation the inactive modules' gradients are measured too,
    /// where a plugin asks for gradients.
    pub probe_steps: u64,
    /// When to reallocate.
    pub schedule: Schedule,
    /// What becomes of the run when a plugin fails: an error, a panic, an answer that breaks a rule, or (of an
    /// isolated one) the end of its process.
    pub on_plugin_fault: OnPluginFault,
}

/// What becomes of a run whose plugin fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPluginFault {
    /// It ends, once a checkpoint is saved.
    #[default]
    Stop,
    /// It goes on to its end with the modules that are active, and without plugins; that is recorded.
    Keep,
}

/// The grain of the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Every module on its own.
    #[default]
    Module,
    /// The modules of one transformer layer together; a module outside the layers on its own.
    Layer,
}

/// What becomes of the optimiser's state of a module that goes inactive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerState {
    /// One AdamW for all: moments are kept and the step count runs on.
    #[default]
    Global,
    /// Each module has its own moments, step count and learning-rate schedule, paused while inactive.
    Local,
    /// Dropped on deactivation, which frees its memory; the module starts afresh when chosen again.
    Reset,
}

impl Default for AllocationConfig {
    fn default() -> Self {
        AllocationConfig {
            unit: Unit::default(),
            initial: Initial::default(),
            initial_k: None,
            calibration_steps: 0,
            optimizer_state: OptimizerState::default(),
            probe_steps: 1,
            schedule: Schedule::default(),
            on_plugin_fault: OnPluginFault::default(),
        }
    }
}

impl AllocationConfig {
    /// Whether modules are ever chosen anew, which takes an allocator, and most often a scorer.
    pub fn is_dynamic(&self) -> bool {
        self.schedule != Schedule::Never {} || self.initial == Initial::Allocator
    }

    /// Whether the allocator chooses before the first step, and after how many passes without an update.
    pub fn first_choice(&self) -> Option<u64> {
        (self.initial == Initial::Allocator).then_some(self.calibration_steps)
    }

    pub(super) fn validate(&self, allocator: Option<&PluginConfig>, at: &Document) -> Result<()> {
        self.schedule
            .validate()
            .map_err(|error| at.adopt("allocation.schedule", error))?;
        if self.calibration_steps > 0 && self.initial != Initial::Allocator {
            let error = Error::user(
                "`calibration_steps` is given, but no choice follows them: `initial` is not \"allocator\"",
            )
            .help("set initial = \"allocator\" in [allocation], or leave `calibration_steps` out");
            return Err(at.adopt("allocation.calibration_steps", error));
        }
        let key = if self.initial_k.is_some() {
            "allocation.initial_k"
        } else {
            "allocation.initial"
        };
        self.initial_budget(allocator)
            .map_err(|error| at.adopt(key, error))?;
        Ok(())
    }

    /// What the initial choice may draw, beside this `allocator`; none for everything.
    pub fn initial_budget(&self, allocator: Option<&PluginConfig>) -> Result<Option<Budget>> {
        let parameters = allocator.map(PluginConfig::parameters_json);
        initial_budget(self.initial, self.initial_k, parameters.as_ref())
    }
}

fn count_as_written<S: Serializer>(
    count: &Option<Count>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match count {
        None => serializer.serialize_none(),
        Some(Count::Exactly(count)) => serializer.serialize_u64(*count),
        Some(Count::Percent(percent)) => serializer.collect_str(&format_args!("{percent}%")),
    }
}
