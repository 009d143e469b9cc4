//! What a person sees of a run while it goes: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::constant::Constant;
use super::machine::memory;
use super::stall::Turn;
use crate::allocation::Reallocation;
use crate::number::{count, duration, size};
use crate::run::{EvalRecord, Stall, StallKind, StepRecord};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing but errors.
    Quiet,
    /// A bar on a terminal, a line now and then elsewhere.
    Normal,
}

/// Where training stands after a step.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Optimiser steps finished.
    pub step: u64,
    /// Epochs finished, as a fraction.
    pub epoch: f64,
    /// Loss of the step.
    pub loss: f64,
    /// Learning rate of the step.
    pub rate: f64,
    /// Active modules.
    pub active: usize,
    /// Parameters of their adapters.
    pub active_parameters: u64,
    /// Tokens so far.
    pub tokens: u64,
    /// Seconds so far.
    pub seconds: f64,
}

/// Plain lines come this far apart at the least.
const LINES_APART: Duration = Duration::from_secs(10);

/// Writes to standard error, so that standard output is left to results.
pub struct Display {
    verbosity: Verbosity,
    bar: Option<ProgressBar>,
    /// The last metric, for the bar.
    metric: String,
    /// Tokens and seconds at the start of this sitting.
    from: Option<(u64, f64)>,
    last_line: Option<Instant>,
    total_steps: u64,
}

impl Display {
    /// A display that has shown nothing yet.
    pub fn new(verbosity: Verbosity) -> Self {
        Display {
            verbosity,
            bar: None,
            metric: String::new(),
            from: None,
            last_line: None,
            total_steps: 0,
        }
    }

    pub(super) fn start(&mut self, total_steps: u64, step: u64) {
        self.total_steps = total_steps;
        if self.verbosity == Verbosity::Quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{bar:24.cyan} {pos}/{len} {elapsed}<{eta} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_position(step);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    pub(super) fn step(&mut self, status: &Status) {
        let (tokens, seconds) = *self.from.get_or_insert((status.tokens, status.seconds));
        let elapsed = status.seconds - seconds;
        let rate = if elapsed > 0.0 {
            (status.tokens - tokens) as f64 / elapsed
        } else {
            0.0
        };
        let line = || {
            format!(
                "loss {:.4}{} lr {:.2e} · {} active ({}) · {:.0} tokens/s{}",
                status.loss,
                self.metric,
                status.rate,
                status.active,
                count(status.active_parameters),
                rate,
                memory().map_or(String::new(), |bytes| format!(" · {}", size(bytes))),
            )
        };
        if let Some(bar) = &self.bar {
            bar.set_position(status.step);
            bar.set_message(line());
            return;
        }
        let now = Instant::now();
        if self.verbosity == Verbosity::Normal
            && self.last_line.is_none_or(|last| now - last >= LINES_APART)
        {
            self.last_line = Some(now);
            let left = if status.step == 0 || elapsed <= 0.0 {
                String::new()
            } else {
                let per_step = status.seconds / status.step as f64;
                format!(
                    " · {} left",
                    duration(per_step * (self.total_steps - status.step) as f64)
                )
            };
            say(&format!(
                "step {}/{} epoch {:.2} {}{left}",
                status.step,
                self.total_steps,
                status.epoch,
                line()
            ));
        }
    }

    pub(super) fn logged(&self, record: &StepRecord) {
        tracing::debug!(
            step = record.step,
            loss = record.loss,
            learning_rate = record.learning_rate,
            grad_norm = record.grad_norm,
            active_modules = record.active_modules,
            "step"
        );
    }

    pub(super) fn reallocated(&self, reallocation: &Reallocation, modules: usize) {
        let active = reallocation.active.iter().filter(|active| **active).count();
        let ranks: u32 = reallocation.ranks.iter().sum();
        tracing::info!(
            step = reallocation.step,
            "reallocation {}: {active} of {modules} modules active, ranks {ranks} in all, {} in, {} out",
            reallocation.index,
            reallocation.activated.len(),
            reallocation.deactivated.len()
        );
    }

    /// Says that nothing is learnt of the inputs, or that something is after all.
    pub(super) fn turned(&self, turn: &Turn, constant: &Constant, advice: &str) {
        let level = format!("{} of the labels, {:.4}", constant.name(), constant.loss());
        match turn {
            Turn::Stalled(stall) => {
                let Stall {
                    from,
                    to,
                    loss,
                    constant_loss,
                    ..
                } = stall;
                let since = match stall.kind {
                    StallKind::NotLeft => {
                        format!("the loss has not left the {level}, since the start")
                    }
                    StallKind::FellBack => format!(
                        "the loss had left the {level}, and fell back to it at about step {from}"
                    ),
                };
                tracing::warn!(
                    "step {to}: {since}: it was {loss:.4} last, where {} loses {constant_loss:.4} on the same examples. \
                     The model answers (nearly) the same to every input. {advice}",
                    constant.answer()
                );
            }
            Turn::Left(Stall { from, to, .. }) => tracing::info!(
                "the loss has left the {level}, where it was from step {from} to {to}"
            ),
        }
    }

    pub(super) fn evaluated(&mut self, record: &EvalRecord) {
        let metrics: Vec<String> = record
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        if record.split == "validation"
            && let Some(first) = metrics.first()
        {
            self.metric = format!(" {first}");
        }
        let line = format!(
            "epoch {:.2} step {}: {} loss {:.4} {} ({:.1} s)",
            record.epoch,
            record.step,
            record.split,
            record.loss,
            metrics.join(" "),
            record.seconds
        );
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.verbosity == Verbosity::Normal => say(&line),
            None => {}
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line to standard error. Nobody may be there to read it, or the disk behind it may be full: that is
/// no reason to end a run.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
