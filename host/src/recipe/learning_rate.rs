//! The learning-rate schedule: a factor per optimiser step, as in Hugging Face Transformers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the learning rate moves once the warm-up is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LearningRateSchedule {
    /// Down to zero along a straight line (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Down to zero along half a cosine wave (`get_cosine_schedule_with_warmup`).
    Cosine,
    /// Not at all (`get_constant_schedule_with_warmup`).
    Constant,
}

impl LearningRateSchedule {
    /// What the learning rate is multiplied with at optimiser step `step`, counted from 0 as
    /// Transformers does: the first update of a run with warm-up has factor 0.
    ///
    /// With `w` warm-up steps of `t` in all, the factor is `step / max(1, w)` during the warm-up, then
    /// linear: `max(0, (t - step) / max(1, t - w))`;
    /// cosine: `max(0, (1 + cos(π · (step - w) / max(1, t - w))) / 2)`; constant: 1.
    pub fn factor(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        if step < warmup_steps {
            return step as f64 / warmup_steps as f64;
        }
        let decay_steps = total_steps.saturating_sub(warmup_steps).max(1) as f64;
        match self {
            LearningRateSchedule::Linear => total_steps.saturating_sub(step) as f64 / decay_steps,
            LearningRateSchedule::Cosine => {
                let progress = (step - warmup_steps) as f64 / decay_steps;
                // Transformers lets the wave rise again past the end of the run; no run gets there.
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            LearningRateSchedule::Constant => 1.0,
        }
    }
}

/// How long the learning rate rises from zero: a number of steps, or a share of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a whole number of steps such as 100, or a share of the run such as 0.06"
)]
pub enum Warmup {
    /// So many optimiser steps: a whole number in the recipe.
    Steps(u64),
    /// This share of the run's steps, from 0.0 to 1.0: a number with a point in the recipe.
    Share(f64),
}

impl Default for Warmup {
    fn default() -> Self {
        Warmup::Steps(0)
    }
}

impl Warmup {
    /// Refuses a share outside 0.0 to 1.0.
    pub fn validate(self) -> Result<()> {
        match self {
            Warmup::Share(share) if !(0.0..=1.0).contains(&share) => Err(Error::user(format!(
                "a warm-up of {share:?} is not a share of the run"
            ))
            .help("give a share from 0.0 to 1.0, or a whole number of steps without a point")),
            _ => Ok(()),
        }
    }

    /// The warm-up of a run of `total_steps` in steps; a share is rounded up, as Transformers does.
    pub fn steps(self, total_steps: u64) -> u64 {
        match self {
            Warmup::Steps(steps) => steps,
            Warmup::Share(share) => (total_steps as f64 * share).ceil() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: LearningRateSchedule, warmup: u64, total: u64) -> Vec<f64> {
        (0..total + 2)
            .map(|step| schedule.factor(step, warmup, total))
            .collect()
    }

    fn close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn linear_rises_and_falls() {
        close(
            &factors(LearningRateSchedule::Linear, 2, 6),
            &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        );
        close(
            &factors(LearningRateSchedule::Linear, 0, 2),
            &[1.0, 0.5, 0.0, 0.0],
        );
    }

    #[test]
    fn cosine_is_at_half_in_the_middle() {
        let root = 0.5_f64.sqrt();
        let expected = [0.0, 1.0, (1.0 + root) / 2.0, 0.5, (1.0 - root) / 2.0, 0.0];
        close(&factors(LearningRateSchedule::Cosine, 1, 5)[..6], &expected);
    }

    #[test]
    fn constant_stays() {
        close(
            &factors(LearningRateSchedule::Constant, 2, 3),
            &[0.0, 0.5, 1.0, 1.0, 1.0],
        );
    }

    #[test]
    fn odd_lengths_divide_by_nothing() {
        for schedule in [
            LearningRateSchedule::Linear,
            LearningRateSchedule::Cosine,
            LearningRateSchedule::Constant,
        ] {
            for (warmup, total) in [(0, 0), (0, 1), (5, 5), (9, 3)] {
                let all = factors(schedule, warmup, total);
                assert!(
                    all.iter().all(|factor| (0.0..=1.0).contains(factor)),
                    "{schedule:?} {all:?}"
                );
            }
        }
    }

    #[test]
    fn warm_up_is_read_by_its_point() {
        #[derive(Debug, Deserialize)]
        struct Table {
            warmup: Warmup,
        }
        let read = |text: &str| {
            toml::from_str::<Table>(&format!("warmup = {text}")).map(|table| table.warmup)
        };
        assert_eq!(read("100").unwrap(), Warmup::Steps(100));
        assert_eq!(read("1").unwrap(), Warmup::Steps(1));
        assert_eq!(read("0.06").unwrap(), Warmup::Share(0.06));
        let error = read("\"long\"").unwrap_err().to_string();
        assert!(error.contains("a share of the run such as 0.06"), "{error}");
        assert!(
            Warmup::Share(1.5).validate().is_err() && Warmup::Share(f64::NAN).validate().is_err()
        );
        assert!(Warmup::Share(0.06).validate().is_ok());
    }

    #[test]
    fn a_share_is_rounded_up() {
        assert_eq!(Warmup::Share(0.06).steps(801), 49);
        assert_eq!(Warmup::Share(0.0).steps(801), 0);
        assert_eq!(Warmup::Steps(7).steps(801), 7);
    }
}
