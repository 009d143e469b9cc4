//! The numbers a run is reported by.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::number::count;

/// One number of a run.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Figure {
    /// The metric at its best evaluation
    Metric,
    /// The metric at the last evaluation
    Final,
    /// Active adapter parameters, mean over the steps
    TrainableParameters,
    /// The same as a share of all adapters' parameters
    TrainableShare,
    /// Modules that were active at some time, as a share of all
    UniqueShare,
    /// The lowest layer with an active module, from 0, mean over the steps
    LowestLayer,
    /// Seconds of one step, evaluation left out
    StepSeconds,
    /// Seconds of the run, evaluation included
    Seconds,
    /// Largest resident memory of the process, bytes
    PeakMemory,
    /// Floating-point operations of the encoder in training
    Flops,
}

impl Figure {
    /// What a column or an axis is headed, with the unit.
    pub fn heading(self, metric: &str) -> String {
        match self {
            Figure::Metric => format!("best {metric}"),
            Figure::Final => format!("final {metric}"),
            Figure::TrainableParameters => "trainable parameters".to_owned(),
            Figure::TrainableShare => "trainable, % of all".to_owned(),
            Figure::UniqueShare => "modules touched, %".to_owned(),
            Figure::LowestLayer => "lowest active layer".to_owned(),
            Figure::StepSeconds => "step, s".to_owned(),
            Figure::Seconds => "run, s".to_owned(),
            Figure::PeakMemory => "peak memory, MiB".to_owned(),
            Figure::Flops => "training, FLOP".to_owned(),
        }
    }

    /// A value in the heading's unit.
    pub fn scaled(self, value: f64) -> f64 {
        match self {
            Figure::TrainableShare | Figure::UniqueShare => 100.0 * value,
            Figure::PeakMemory => value / f64::from(1 << 20),
            _ => value,
        }
    }

    /// A value for a table, in the heading's unit.
    pub fn shown(self, value: f64) -> String {
        let scaled = self.scaled(value);
        match self {
            Figure::Metric | Figure::Final => format!("{scaled:.4}"),
            Figure::TrainableParameters => count(scaled.round() as u64),
            Figure::TrainableShare | Figure::UniqueShare | Figure::Seconds => {
                format!("{scaled:.1}")
            }
            Figure::LowestLayer => format!("{scaled:.2}"),
            Figure::StepSeconds => format!("{scaled:.4}"),
            Figure::PeakMemory => format!("{scaled:.0}"),
            Figure::Flops => format!("{scaled:.3e}"),
        }
    }

    /// Whether the spread over the seeds is shown beside the mean.
    pub fn has_spread(self) -> bool {
        matches!(self, Figure::Metric | Figure::Final | Figure::StepSeconds)
    }
}
