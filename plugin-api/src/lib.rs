#![doc = include_str!("../README.md")]

pub mod abi;
mod allocator;
mod budget;
pub mod conformance;
mod cost;
mod count;
mod importance;
mod manifest;
pub mod message;
mod module;
mod names;
mod needs;
mod observation;
mod parameters;
mod sample;
mod sampled;
mod scorer;
mod start;
mod state;
pub mod testing;
mod trial;
mod window;

pub use allocator::{Allocation, AllocationRequest, Allocator, Numbers, Pruning};
pub use budget::{Budget, By, Limit};
pub use cost::{Amount, Cost, CostModel, Operation, SidePath, Sizes};
pub use count::Count;
pub use importance::{ComponentImportance, Smoothing};
pub use manifest::{Kind, Manifest};
pub use module::{LedgerEntry, Member, ModuleInfo};
pub use names::{RawValue, Signal};
pub use needs::{Needs, Upcoming, Wants};
pub use observation::{Measured, Metric, Moment, Observation, Raw};
pub use sample::{Random, draw_by_logarithms, draw_without_replacement};
pub use sampled::Sampled;
pub use scorer::{ScoreRequest, Scorer};
pub use start::{Start, Unit};
pub use state::{load_state, save_state};
pub use trial::{Trial, TrialLosses, TrialRequest, Trials};
pub use window::{Accumulated, Norm, Reduce, Window};

// A plugin's parameters are derived with these; the crates it sees are then the ones seen here.
pub use {schemars, serde};

/// Why a plugin could not do what it was asked: a sentence for the person who runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

/// The result of every call into a plugin.
pub type Result<T> = std::result::Result<T, Error>;

impl From<String> for Error {
    fn from(message: String) -> Self {
        Error(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Error(message.to_owned())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// How a plugin is made: its name, its parameters and its constructor.
pub trait Plugin: Sized {
    /// The parameters a recipe may give, with their defaults and docs. Derive
    /// `serde::Deserialize` (with `deny_unknown_fields`) and `schemars::JsonSchema`.
    type Parameters: serde::de::DeserializeOwned + schemars::JsonSchema;

    /// The name a recipe uses, in kebab case: `top-k`.
    const NAME: &'static str;
    /// One sentence on what it does.
    const DESCRIPTION: &'static str;
    /// Where it comes from: paper and equation.
    const REFERENCE: &'static str;
    /// What it computes, in a line or a few of plain text: `yᵢ = Σ_t ‖∂L_t/∂(Aᵢ, Bᵢ)‖`. Shown by
    /// `dynalora plugins info`; empty where the description says it all.
    const FORMULA: &'static str = "";

    /// A plugin ready for its first step over `modules`, or what is wrong with the parameters.
    fn new(parameters: Self::Parameters, modules: &[ModuleInfo]) -> Result<Self>;
}
