//! What a task can be judged by, by name; how each is computed is another's affair.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A metric, under its recipe name. Larger is better for every one of them.
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
        }
    }

    /// Whether it judges classes; if not, it judges values.
    pub fn is_for_classes(self) -> bool {
        !matches!(self, Metric::Pearson | Metric::Spearman)
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
