//! The tasks known by name: what they are about, and what judges them.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metric::Metric;

/// A task known by name: the nine of GLUE (Wang et al. 2018) and the embedded corpus.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Acceptability of a sentence (Warstadt et al. 2019).
    Cola,
    /// Sentiment of a sentence (Socher et al. 2013).
    Sst2,
    /// Paraphrase (Dolan & Brockett 2005).
    Mrpc,
    /// Similarity of two sentences, a value from 0 to 5 (Cer et al. 2017).
    Stsb,
    /// Duplicate questions from Quora.
    Qqp,
    /// Inference in several genres; validated on matched and mismatched ones (Williams et al. 2018).
    Mnli,
    /// Whether a sentence answers a question (from SQuAD, Rajpurkar et al. 2016).
    Qnli,
    /// Inference (the RTE challenges, 2005 to 2009).
    Rte,
    /// Inference on pronouns (Levesque et al. 2012).
    Wnli,
    /// The acceptability corpus that the program generates itself.
    MinimalPairs,
}

/// What the head predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// One of several classes.
    Classification,
    /// One real number.
    Regression,
    /// The token after each: causal language modelling, PEFT's `CAUSAL_LM`. The head is the model's own, and frozen.
    CausalLm,
    /// A class of each word: token classification, PEFT's `TOKEN_CLS`. What counts of a word is its first token.
    TokenClassification,
}

impl Problem {
    /// Logits of a sequence, or of a token, with these names of classes; none where tokens are predicted.
    pub fn outputs(self, labels: &[String]) -> usize {
        match self {
            Problem::Regression => 1,
            Problem::Classification | Problem::TokenClassification => labels.len(),
            Problem::CausalLm => 0,
        }
    }

    /// Whether classes are learnt, which have names.
    pub fn has_classes(self) -> bool {
        matches!(self, Problem::Classification | Problem::TokenClassification)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Problem::Classification => "classification",
            Problem::Regression => "regression",
            Problem::CausalLm => "causal-lm",
            Problem::TokenClassification => "token-classification",
        })
    }
}

/// What is fixed about a task, whatever its files look like.
struct Facts {
    /// The name in recipes.
    name: &'static str,
    /// Classes in the order of their numbers in the files; empty for a regression.
    labels: &'static [&'static str],
    /// What the task is judged by, the deciding one first.
    metrics: &'static [Metric],
}

const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];

impl Task {
    const fn facts(self) -> Facts {
        match self {
            Task::Cola => Facts {
                name: "cola",
                labels: &["unacceptable", "acceptable"],
                metrics: &[Metric::Matthews, Metric::Accuracy],
            },
            Task::Sst2 => Facts {
                name: "sst2",
                labels: &["negative", "positive"],
                metrics: &[Metric::Accuracy],
            },
            Task::Mrpc => Facts {
                name: "mrpc",
                labels: &["not_equivalent", "equivalent"],
                metrics: &[Metric::Accuracy, Metric::F1],
            },
            Task::Stsb => Facts {
                name: "stsb",
                labels: &[],
                metrics: &[Metric::Pearson, Metric::Spearman],
            },
            Task::Qqp => Facts {
                name: "qqp",
                labels: &["not_duplicate", "duplicate"],
                metrics: &[Metric::Accuracy, Metric::F1],
            },
            Task::Mnli => Facts {
                name: "mnli",
                labels: &["entailment", "neutral", "contradiction"],
                metrics: &[Metric::Accuracy],
            },
            Task::Qnli => Facts {
                name: "qnli",
                labels: ENTAILMENT,
                metrics: &[Metric::Accuracy],
            },
            Task::Rte => Facts {
                name: "rte",
                labels: ENTAILMENT,
                metrics: &[Metric::Accuracy],
            },
            Task::Wnli => Facts {
                name: "wnli",
                labels: &["not_entailment", "entailment"],
                metrics: &[Metric::Accuracy],
            },
            Task::MinimalPairs => Facts {
                name: "minimal-pairs",
                labels: &["unacceptable", "acceptable"],
                metrics: &[Metric::Matthews, Metric::Accuracy],
            },
        }
    }

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Names of the classes in the order of their numbers in the files; empty for a regression.
    pub fn labels(self) -> Vec<String> {
        let labels = self.facts().labels.iter();
        labels.map(|label| (*label).to_owned()).collect()
    }

    /// What the task is judged by, the deciding one first.
    pub fn metrics(self) -> &'static [Metric] {
        self.facts().metrics
    }

    /// What the task's head predicts.
    pub fn problem(self) -> Problem {
        match self {
            Task::Stsb => Problem::Regression,
            _ => Problem::Classification,
        }
    }

    /// Whether its examples are pairs of texts.
    pub fn pairs(self) -> bool {
        !matches!(self, Task::Cola | Task::Sst2 | Task::MinimalPairs)
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
