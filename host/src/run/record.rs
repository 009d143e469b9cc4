//! The records a run leaves behind. Numbers that are not finite are written as `null`, which is all
//! JSON has for them, and read back as NaN.

use std::collections::BTreeMap;

use dynalora_plugin_api::{CostModel, LedgerEntry, Metric, ModuleInfo, Moment, Observation};
use serde::{Deserialize, Deserializer, Serialize};

/// One line of `metrics.jsonl`, tagged by its `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricRecord {
    /// Training, every `log_every` steps.
    Step(StepRecord),
    /// An evaluation.
    Evaluation(EvalRecord),
}

/// Where training stands after one optimiser step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimiser steps finished.
    pub step: u64,
    /// Epochs finished, as a fraction: 1.5 is the middle of the second.
    pub epoch: f64,
    /// Mean loss per example since the record before; `null` where every update since then was left out.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Euclidean norm of the whole gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Modules that received a gradient update.
    pub active_modules: usize,
    /// Adapter parameters that received a gradient update.
    pub active_parameters: u64,
    /// Real tokens seen since the start of the run, padding excluded.
    pub tokens: u64,
    /// Seconds of training since the start of the run, evaluation included, interruptions excluded.
    pub seconds: f64,
    /// Largest memory the process has taken, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Floating-point operations of training since the start of the run, as [`Summary::flops`].
    #[serde(default)]
    pub flops: u64,
    /// Steps since the start of the run whose update was left out because it was not finite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// What the best constant answer (the training labels' mean, or their classes' frequencies) loses on the examples
    /// that `loss` is the mean of: where the two are the same, nothing has been learnt of the inputs. None in records
    /// from before it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant_loss: Option<f64>,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps finished.
    pub step: u64,
    /// Epochs finished, as a fraction.
    pub epoch: f64,
    /// What was evaluated on: `validation`, or `validation_mismatched` beside it.
    pub split: String,
    /// Examples evaluated.
    pub examples: u64,
    /// Mean loss per example.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Each metric by its name.
    #[serde(deserialize_with = "numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Seconds the evaluation took.
    pub seconds: f64,
}

/// One line of `allocations.jsonl`: the choice in force after `step`, per module in forward order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AllocationRecord {
    /// The optimiser step after which it came into force: 0 for the initial choice.
    pub step: u64,
    /// Which reallocation it is, from 0; none for the initial choice.
    pub index: Option<u64>,
    /// Paths of the modules; in the record of the initial choice alone, the first of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// The scorer's answer; empty for the initial choice, which rests on none.
    pub scores: Vec<f64>,
    /// Which modules are active from now on.
    pub active: Vec<bool>,
    /// Their ranks, 0 where inactive.
    pub ranks: Vec<u32>,
    /// The ledger, this choice included.
    pub ledger: Vec<LedgerEntry>,
    /// Whether components that do not remain keep their values, instead of being pruned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// Factors on the learning rate of each module's A and B; empty where all are 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<[f64; 2]>,
    /// A factor on each module's scale; empty where all are 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<f64>,
    /// The module whose pair each module uses; empty where each uses its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<usize>,
    /// Numbers of the plugins' own, by name: one, or one per module (of an allocator, per unit).
    #[serde(default, skip_serializing_if = "PluginNumbers::is_empty")]
    pub numbers: PluginNumbers,
    /// What pairs started from under EVA; in the record of the initial choice alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eva: Option<EvaRecord>,
    /// No choice: the fault with which the plugins were given up after the step, from which on the modules that were
    /// active stay so (`allocation.on_plugin_fault = "keep"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What pairs started from where they start from what their modules read (`init_lora_weights = "eva"`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaRecord {
    /// Batches read: those of the run's first steps.
    pub batches: u64,
    /// Their examples.
    pub examples: u64,
    /// Their real tokens.
    pub tokens: u64,
    /// Paths of all modules that the recipe adapts, those that were left without a rank too.
    pub modules: Vec<String>,
    /// The rank that each got.
    pub ranks: Vec<u32>,
    /// How much of the variance of what a module reads each of its components explains, the largest first: of as many as
    /// its rank could have become.
    pub explained_variance: Vec<Vec<f64>>,
    /// Whether those that its rank has were still the same after the last batch.
    pub converged: Vec<bool>,
}

/// Numbers of the plugins' own, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginNumbers {
    /// The scorer's.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "lists"
    )]
    pub scorer: BTreeMap<String, Vec<f64>>,
    /// The allocator's.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "lists"
    )]
    pub allocator: BTreeMap<String, Vec<f64>>,
}

impl PluginNumbers {
    /// Whether neither has any.
    pub fn is_empty(&self) -> bool {
        self.scorer.is_empty() && self.allocator.is_empty()
    }
}

impl AllocationRecord {
    /// The record of the choice a run starts with.
    pub fn initial(modules: Vec<String>, active: &[bool], ranks: &[u32]) -> Self {
        AllocationRecord {
            ledger: vec![LedgerEntry::default(); modules.len()],
            modules,
            active: active.to_vec(),
            ranks: ranks.to_vec(),
            ..Self::default()
        }
    }
}

/// One line of `signals.jsonl`, tagged by its `kind`: what the plugins of a run were told, for
/// `dynalora plugins replay`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SignalRecord {
    /// The modules that the others are of: the first of the file.
    Modules {
        /// 0, for a resumed run keeps it.
        step: u64,
        /// Optimiser steps of the whole run.
        total_steps: u64,
        /// The modules in forward order.
        modules: Vec<ModuleInfo>,
        /// With how many components each starts, where any can grow.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initial_ranks: Option<Vec<u32>>,
        /// What choices of them cost in the run's steps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        costs: Option<Box<CostModel>>,
    },
    /// What was told of one step, or of a moment before the first.
    Observed(Observed),
}

/// An [`Observation`] but for raw values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// Optimiser steps finished; 0 before the first.
    pub step: u64,
    /// When it was.
    pub moment: Moment,
    /// Real tokens.
    pub tokens: u64,
    /// Mean loss.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The adapters' learning rate.
    pub learning_rate: f64,
    /// The latest evaluation's main metric.
    pub metric: Option<Metric>,
    /// Whether inactive modules' gradients were computed as well.
    pub probing: bool,
    /// Which modules were active.
    pub active: Vec<bool>,
    /// What was measured of each module, by the signal's name; `null` where there was nothing to measure.
    pub signals: BTreeMap<String, Vec<Option<f32>>>,
    /// The components' sensitivities, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Vec<f32>>,
}

impl From<&Observation> for Observed {
    fn from(told: &Observation) -> Self {
        let signals = told.signals.iter();
        Observed {
            step: told.step,
            moment: told.moment,
            tokens: told.tokens,
            loss: told.loss,
            learning_rate: told.learning_rate,
            metric: told.metric.clone(),
            probing: told.probing,
            active: told.active.clone(),
            signals: signals
                .map(|it| (it.signal.to_string(), it.values.clone()))
                .collect(),
            components: told.components.clone(),
        }
    }
}

/// The closing account of a run, `summary.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimiser steps made.
    pub steps: u64,
    /// Epochs made, as a fraction.
    pub epochs: f64,
    /// The checkpoint that judged best, if any evaluation took place.
    pub best: Option<Best>,
    /// Every metric of the last evaluation, by name.
    #[serde(deserialize_with = "numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Adapted modules.
    pub modules: usize,
    /// Parameters of all adapters, active or not.
    pub adapter_parameters: u64,
    /// Parameters of the head, which always trains.
    pub head_parameters: u64,
    /// Active adapter parameters, mean over the steps.
    pub active_parameters_mean: f64,
    /// Active adapter parameters, most at any step.
    pub active_parameters_peak: u64,
    /// Reallocations made.
    pub reallocations: u64,
    /// Largest memory the process has taken, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Seconds of training, evaluation included.
    pub seconds: f64,
    /// Real tokens trained on.
    pub tokens: u64,
    /// Floating-point operations of the encoder, forward and backward, that training took; evaluation and
    /// optimiser left out. What was run counts: a resumed run with a cached prefix fills the cache anew. 0 in runs from before they were counted.
    #[serde(default)]
    pub flops: u64,
    /// Steps whose update was left out because it was not finite (`train.on_nonfinite = "skip"`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// The fault with which the plugins were given up, if they were (`allocation.on_plugin_fault = "keep"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_fault: Option<String>,
    /// Stretches in which the training loss was that of a constant answer; none in runs from before they were looked
    /// for, which is another thing than an empty list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalls: Option<Vec<Stall>>,
    /// The device, as it was named at the start.
    pub device: String,
    /// What reducing over ranks took, of the sitting that ended the run; none where one process trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduction: Option<Reduction>,
}

/// What it took to sum over the ranks that trained together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reduction {
    /// How many ranks there were.
    pub ranks: usize,
    /// Seconds that the first one spent in it, waiting for the others included.
    pub seconds: f64,
    /// Bytes that each rank gave.
    pub bytes: u64,
}

impl Summary {
    /// The stretch at the level of a constant answer in which the run ended, if it did; none as well for a run from
    /// before such stretches were looked for.
    pub fn collapse(&self) -> Option<&Stall> {
        let last = self.stalls.as_ref()?.last()?;
        (last.to == self.steps).then_some(last)
    }
}

/// Steps in which the training loss was that of a constant answer: the variance of the labels where these are values,
/// the entropy of their frequencies where they are classes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Whether anything had been learnt before.
    pub kind: StallKind,
    /// Its first step.
    pub from: u64,
    /// Its last step; the run's, where it did not end before it.
    pub to: u64,
    /// Mean loss per example in its last tenth of the run.
    pub loss: f64,
    /// What the best constant answer loses on the same examples.
    pub constant_loss: f64,
}

/// How a stretch at the level of a constant answer began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StallKind {
    /// The loss has never been below that level.
    NotLeft,
    /// It had been, and is back.
    FellBack,
}

/// The best value of the metric that decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimiser steps finished when it was measured.
    pub step: u64,
    /// The metric's name.
    pub metric: String,
    /// Its value.
    #[serde(deserialize_with = "number")]
    pub value: f64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Numbers of which some may be `null`.
pub(crate) fn numbers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
        .collect())
}

/// Lists of numbers of which some may be `null`.
fn lists<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<f64>>, D::Error> {
    let values = BTreeMap::<String, Vec<Option<f64>>>::deserialize(deserializer)?;
    let known =
        |list: Vec<Option<f64>>| list.into_iter().map(|it| it.unwrap_or(f64::NAN)).collect();
    Ok(values
        .into_iter()
        .map(|(name, list)| (name, known(list)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_records_are_tagged_and_read_back() {
        let step = MetricRecord::Step(StepRecord {
            step: 3,
            loss: 0.5,
            ..Default::default()
        });
        let text = serde_json::to_string(&step).unwrap();
        assert!(text.starts_with(r#"{"kind":"step","step":3,"#), "{text}");
        assert_eq!(serde_json::from_str::<MetricRecord>(&text).unwrap(), step);
    }

    #[test]
    fn what_is_not_finite_is_null_and_comes_back_as_nan() {
        let metrics = BTreeMap::from([("matthews".to_owned(), f64::INFINITY)]);
        let record = EvalRecord {
            loss: f64::NAN,
            metrics,
            ..Default::default()
        };
        let text = serde_json::to_string(&MetricRecord::Evaluation(record)).unwrap();
        assert!(
            text.contains(r#""loss":null,"metrics":{"matthews":null}"#),
            "{text}"
        );
        match serde_json::from_str(&text).unwrap() {
            MetricRecord::Evaluation(read) => {
                assert!(read.loss.is_nan() && read.metrics["matthews"].is_nan())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_initial_record_alone_names_the_modules() {
        let initial = AllocationRecord::initial(vec!["a".to_owned()], &[true], &[8]);
        assert!(
            serde_json::to_string(&initial)
                .unwrap()
                .contains(r#""index":null,"modules":["a"]"#)
        );
        let later = AllocationRecord {
            modules: vec![],
            index: Some(0),
            ..initial
        };
        let text = serde_json::to_string(&later).unwrap();
        assert!(!text.contains("modules"), "{text}");
        assert_eq!(
            serde_json::from_str::<AllocationRecord>(&text).unwrap(),
            later
        );
    }
}
