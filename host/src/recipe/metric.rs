//! What a task can be judged by, by name; how each is computed is another's affair.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::task::Problem;

/// Among how many answers `accuracy_top5` looks for the right one.
pub const TOP: usize = 5;

/// A metric, under its recipe name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of right answers.
    Accuracy,
    /// Harmonic mean of precision and recall for class 1 of two classes.
    F1,
    /// The mean over classes of each one's F1.
    MacroF1,
    /// Matthews correlation coefficient, for any number of classes.
    Matthews,
    /// Pearson's correlation of values.
    Pearson,
    /// Spearman's rank correlation of values.
    Spearman,
    /// The share of answers of which the right class is among the [`TOP`] with the largest logits; of equal ones the first
    /// count as the larger.
    AccuracyTop5,
    /// The exponential of the mean loss of a predicted token, in nats. Smaller is better.
    Perplexity,
    /// Of the chunks that tagged words form: harmonic mean of precision and recall, as `f1_score` of seqeval.
    OverallF1,
    /// Of the chunks that are found, the share that are there, as `precision_score` of seqeval.
    OverallPrecision,
    /// Of the chunks that are there, the share that are found, as `recall_score` of seqeval.
    OverallRecall,
    /// The share of words with the right tag, as `accuracy_score` of seqeval.
    OverallAccuracy,
}

impl Metric {
    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::MacroF1 => "macro_f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::AccuracyTop5 => "accuracy_top5",
            Metric::Perplexity => "perplexity",
            Metric::OverallF1 => "overall_f1",
            Metric::OverallPrecision => "overall_precision",
            Metric::OverallRecall => "overall_recall",
            Metric::OverallAccuracy => "overall_accuracy",
        }
    }

    /// What it judges.
    pub fn problem(self) -> Problem {
        match self {
            Metric::Pearson | Metric::Spearman => Problem::Regression,
            Metric::Perplexity => Problem::CausalLm,
            Metric::OverallF1
            | Metric::OverallPrecision
            | Metric::OverallRecall
            | Metric::OverallAccuracy => Problem::TokenClassification,
            Metric::Accuracy
            | Metric::AccuracyTop5
            | Metric::F1
            | Metric::MacroF1
            | Metric::Matthews => Problem::Classification,
        }
    }

    /// Whether `value` is better than `other`.
    pub fn is_better(self, value: f64, other: f64) -> bool {
        match self {
            Metric::Perplexity => value < other,
            _ => value > other,
        }
    }

    /// What judges such a problem, for messages: `pearson, spearman`.
    pub fn names_for(problem: Problem) -> &'static str {
        match problem {
            Problem::Classification => "accuracy, accuracy_top5, f1, macro_f1, matthews",
            Problem::Regression => "pearson, spearman",
            Problem::CausalLm => "perplexity",
            Problem::TokenClassification => {
                "overall_f1, overall_precision, overall_recall, overall_accuracy"
            }
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
