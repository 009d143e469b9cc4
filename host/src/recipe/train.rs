//! `[train]`, `[evaluation]` and `[checkpoint]`: the loop, and what happens along it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Document;
use super::learning_rate::{LearningRateSchedule, Warmup};
use super::metric::Metric;
use super::report_to::ReportTo;
use super::words::Every;
use crate::error::Result;

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training data; 3 if `steps` is not given either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Optimiser steps, in place of `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Examples in a batch; 32 if `tokens_per_batch` is not given either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Tokens in a batch at most, in place of `batch_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_batch: Option<usize>,
    /// In which order examples are met.
    pub order: Order,
    /// Batches whose gradients are added up for one optimiser step.
    pub gradient_accumulation: usize,
    /// AdamW's learning rate for adapters, at its peak.
    pub learning_rate: f64,
    /// The learning rate of what trains fully, the head; the same as `learning_rate` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// LoRA+ (Hayou et al. 2024): the learning rate of B as a multiple of A's, which `learning_rate` is; also that of
    /// the head's biases, as in PEFT's `create_loraplus_optimizer`; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA+: the learning rate of adapters beside tables of embeddings, A and B alike, as in PEFT's
    /// `create_loraplus_optimizer`; left out: 1e-6 under `loraplus_lr_ratio`, else `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_embedding: Option<f64>,
    /// How the learning rate falls after warm-up.
    pub lr_schedule: LearningRateSchedule,
    /// Warm-up: a share of all steps (`0.06`) or a number of them (`100`).
    pub warmup: Warmup,
    /// AdamW's decoupled weight decay of everything that trains, the head's biases included.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// The gradient is scaled down to this norm where it is larger; 0 turns that off.
    pub max_grad_norm: f64,
    /// What becomes of a step whose loss or gradient is not finite: `"stop"` ends the run, `"skip"` leaves its
    /// update out, up to ten in a row.
    pub on_nonfinite: OnNonfinite,
    /// Optimiser steps between two records in `metrics.jsonl`.
    pub log_every: u64,
    /// Write what plugins are told of steps to `signals.jsonl`, raw values aside, for `dynalora plugins replay`.
    pub log_signals: bool,
    /// Programs that records are written for as well, one or a list: `"tensorboard"`, `"mlflow"` (Transformers' `report_to`).
    #[serde(skip_serializing_if = "ReportTo::is_empty")]
    pub report_to: ReportTo,
    /// Keep only what goes into each layer, and run the layer once more on the way back: less memory, more operations,
    /// the same gradients (Transformers' `gradient_checkpointing`; Chen et al. 2016).
    pub gradient_checkpointing: bool,
    /// Keep the output of the layers below the lowest active module from one epoch to the next. Exact, and so
    /// refused with dropout there. Steps that measure those layers' modules run them all the same.
    pub cache_frozen_prefix: bool,
    /// Memory for that, in MiB; what is more goes to a temporary file.
    pub cache_memory_mib: usize,
}

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Passes over the training data.
    Epochs(u64),
    /// Optimiser steps.
    Steps(u64),
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchLimit {
    /// So many examples.
    Examples(usize),
    /// So many tokens at most.
    Tokens(usize),
}

/// What becomes of a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonfinite {
    /// The run ends, its last good state saved.
    #[default]
    Stop,
    /// Its update is left out.
    Skip,
}

/// In which order training examples are met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Shuffled anew each epoch.
    #[default]
    Shuffle,
    /// Shuffled, with examples of like length together.
    LengthGrouped,
    /// As they stand in the file.
    Sequential,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            epochs: None,
            steps: None,
            batch_size: None,
            tokens_per_batch: None,
            order: Order::default(),
            gradient_accumulation: 1,
            learning_rate: 5e-4,
            head_learning_rate: None,
            loraplus_lr_ratio: None,
            loraplus_lr_embedding: None,
            lr_schedule: LearningRateSchedule::default(),
            warmup: Warmup::Share(0.06),
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            on_nonfinite: OnNonfinite::default(),
            log_every: 10,
            log_signals: false,
            report_to: ReportTo::default(),
            gradient_checkpointing: false,
            cache_frozen_prefix: false,
            cache_memory_mib: 512,
        }
    }
}

impl TrainConfig {
    /// How long to train.
    pub fn length(&self) -> Length {
        match self.steps {
            Some(steps) => Length::Steps(steps),
            None => Length::Epochs(self.epochs.unwrap_or(3)),
        }
    }

    /// What a batch holds.
    pub fn batch_limit(&self) -> BatchLimit {
        match self.tokens_per_batch {
            Some(tokens) => BatchLimit::Tokens(tokens),
            None => BatchLimit::Examples(self.batch_size.unwrap_or(32)),
        }
    }

    /// The learning rate of what trains fully.
    pub fn head_rate(&self) -> f64 {
        self.head_learning_rate.unwrap_or(self.learning_rate)
    }

    /// What B's learning rate is a multiple of A's by.
    pub fn loraplus_lr_ratio(&self) -> f64 {
        self.loraplus_lr_ratio.unwrap_or(1.0)
    }

    /// LoRA+'s learning rate beside tables of embeddings; none without LoRA+.
    pub fn loraplus_lr_embedding(&self) -> Option<f64> {
        let given = self.loraplus_lr_embedding.unwrap_or(1e-6);
        self.loraplus_lr_ratio.map(|_| given)
    }

    /// Writes the defaults that depend on other keys into the keys themselves.
    pub(super) fn fill(&mut self) {
        match self.length() {
            Length::Epochs(epochs) => self.epochs = Some(epochs),
            Length::Steps(steps) => self.steps = Some(steps),
        }
        match self.batch_limit() {
            BatchLimit::Examples(examples) => self.batch_size = Some(examples),
            BatchLimit::Tokens(tokens) => self.tokens_per_batch = Some(tokens),
        }
        self.head_learning_rate = Some(self.head_rate());
    }

    pub(super) fn validate(&self, max_length: usize, at: &Document) -> Result<()> {
        at.check_one_of(["train.epochs", "train.steps"])?;
        at.check_one_of(["train.batch_size", "train.tokens_per_batch"])?;
        for (key, number) in [
            ("train.epochs", self.epochs),
            ("train.steps", self.steps),
            ("train.batch_size", self.batch_size.map(|n| n as u64)),
            (
                "train.gradient_accumulation",
                Some(self.gradient_accumulation as u64),
            ),
            ("train.log_every", Some(self.log_every)),
        ] {
            at.check_count(key, number.unwrap_or(1))?;
        }
        if let Some(tokens) = self.tokens_per_batch {
            let expected =
                format!("at least `model.max_length`, {max_length} tokens: one example must fit");
            at.check(
                "train.tokens_per_batch",
                tokens >= max_length,
                tokens,
                &expected,
            )?;
        }
        self.warmup
            .validate()
            .map_err(|error| at.adopt("train.warmup", error))?;
        for (key, rate) in [
            ("train.learning_rate", self.learning_rate),
            ("train.head_learning_rate", self.head_rate()),
            (
                "train.loraplus_lr_embedding",
                self.loraplus_lr_embedding.unwrap_or(0.0),
            ),
            ("train.weight_decay", self.weight_decay),
            ("train.max_grad_norm", self.max_grad_norm),
        ] {
            at.check(
                key,
                rate.is_finite() && rate >= 0.0,
                rate,
                "a number, 0 or more",
            )?;
        }
        let ratio = self.loraplus_lr_ratio();
        at.check(
            "train.loraplus_lr_ratio",
            ratio.is_finite() && ratio > 0.0,
            ratio,
            "a number above 0; LoRA+ has one above 1, such as 16",
        )?;
        if let (Some(rate), None) = (self.loraplus_lr_embedding, self.loraplus_lr_ratio) {
            return Err(at
                .error(
                    "train.loraplus_lr_embedding",
                    format!("`train.loraplus_lr_embedding` is {rate}, without `train.loraplus_lr_ratio`"),
                    "it is LoRA+'s, as in PEFT",
                )
                .help("give `train.loraplus_lr_ratio` too, or drop the key: without LoRA+ all adapters have `train.learning_rate`"));
        }
        for (key, beta) in [("train.beta1", self.beta1), ("train.beta2", self.beta2)] {
            at.check(
                key,
                (0.0..1.0).contains(&beta),
                beta,
                "a number from 0 to below 1",
            )?;
        }
        let epsilon = self.epsilon;
        at.check(
            "train.epsilon",
            // Updates are made in f32, where less would be zero and a division by it.
            epsilon.is_finite() && epsilon as f32 >= f32::MIN_POSITIVE,
            epsilon,
            "a number of at least 1.2e-38, the smallest normal f32",
        )
    }
}

/// When and how to evaluate on the validation data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// `"epoch"`, a number of steps, or `"never"`: only at the end.
    pub every: Every,
    /// Tokens in a batch at most. Memory only: results do not depend on it.
    pub batch_tokens: usize,
    /// The metric that tells the best checkpoint; left out: the task's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        EvaluationConfig {
            every: Every::default(),
            batch_tokens: 4096,
            metric: None,
        }
    }
}

impl EvaluationConfig {
    pub(super) fn validate(&self, max_length: usize, at: &Document) -> Result<()> {
        let tokens = self.batch_tokens;
        let expected =
            format!("at least `model.max_length`, {max_length} tokens: one example must fit");
        at.check(
            "evaluation.batch_tokens",
            tokens >= max_length,
            tokens,
            &expected,
        )
    }
}

/// When to save what a run needs to go on after an interruption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// `"epoch"`, a number of steps, or `"never"`: only at the end.
    pub every: Every,
    /// Minutes after the last checkpoint at which another is due; left out: steps alone decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<f64>,
    /// How many of the last checkpoints are kept, so that a damaged one has a predecessor; the best is kept besides.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            every: Every::default(),
            minutes: None,
            keep: 2,
        }
    }
}

impl CheckpointConfig {
    pub(super) fn validate(&self, at: &Document) -> Result<()> {
        at.check_count("checkpoint.keep", self.keep as u64)?;
        let minutes = self.minutes.unwrap_or(1.0);
        at.check(
            "checkpoint.minutes",
            minutes > 0.0 && minutes <= 1e6,
            minutes,
            "a number of minutes above 0, up to a million",
        )
    }
}
