//! A run's records as the numbers that other programs draw, named as Transformers' `Trainer` names them where it has
//! them.

use super::record::{MetricRecord, StepRecord};

/// What was recorded so far, as far as the next record's numbers depend on it.
#[derive(Debug)]
pub(super) struct Scalars {
    /// Adapted modules.
    modules: usize,
    /// Steps, seconds and tokens of the record before.
    before: (u64, f64, u64),
    /// Seconds of evaluations since then.
    evaluated: f64,
}

impl Scalars {
    pub fn new(modules: usize) -> Self {
        Scalars {
            modules,
            before: (0, 0.0, 0),
            evaluated: 0.0,
        }
    }

    /// The step of a record, and its numbers by their tags. Records are to come in their order.
    pub fn of(&mut self, record: &MetricRecord) -> (u64, Vec<(String, f64)>) {
        match record {
            MetricRecord::Step(record) => (record.step, self.of_step(record)),
            MetricRecord::Evaluation(record) => {
                self.evaluated += record.seconds;
                // `eval`, and for a second split `eval_mismatched`.
                let split = record.split.replacen("validation", "eval", 1);
                let metrics = record
                    .metrics
                    .iter()
                    .map(|(name, value)| (name.as_str(), *value));
                let all = [("loss", record.loss), ("runtime", record.seconds)];
                let all = all.into_iter().chain(metrics);
                let all = all.map(|(name, value)| (format!("{split}/{name}"), value));
                (record.step, all.collect())
            }
        }
    }

    fn of_step(&mut self, record: &StepRecord) -> Vec<(String, f64)> {
        let (step, seconds, tokens) = self.before;
        let taken = record.seconds - seconds - std::mem::take(&mut self.evaluated);
        self.before = (record.step, record.seconds, record.tokens);
        let mut all = vec![
            ("loss", record.loss),
            ("learning_rate", record.learning_rate),
            ("grad_norm", record.grad_norm),
            ("epoch", record.epoch),
            ("active_parameters", record.active_parameters as f64),
        ];
        if self.modules > 0 {
            let share = record.active_modules as f64 / self.modules as f64;
            all.push(("active_share", share));
        }
        // Not of a run that went on under another clock.
        if record.step > step && taken > 0.0 {
            all.push(("step_seconds", taken / (record.step - step) as f64));
            let tokens = record.tokens.saturating_sub(tokens);
            all.push(("tokens_per_second", tokens as f64 / taken));
        }
        if let Some(bytes) = record.peak_memory {
            all.push(("peak_memory_mib", bytes as f64 / f64::from(1 << 20)));
        }
        all.extend(record.constant_loss.map(|loss| ("constant_loss", loss)));
        let all = all.into_iter();
        all.map(|(name, value)| (format!("train/{name}"), value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::run::EvalRecord;

    #[test]
    fn the_time_of_steps_is_without_evaluation() {
        let mut scalars = Scalars::new(4);
        let step = |step, seconds| {
            MetricRecord::Step(StepRecord {
                step,
                seconds,
                tokens: step * 100,
                active_modules: 1,
                ..Default::default()
            })
        };
        let found = |all: &[(String, f64)], tag: &str| {
            all.iter()
                .find(|(own, _)| own == tag)
                .map(|(_, value)| *value)
        };
        let (at, all) = scalars.of(&step(10, 5.0));
        assert_eq!(at, 10);
        assert_eq!(found(&all, "train/step_seconds"), Some(0.5));
        assert_eq!(found(&all, "train/active_share"), Some(0.25));
        assert_eq!(found(&all, "train/peak_memory_mib"), None);
        let evaluation = MetricRecord::Evaluation(EvalRecord {
            step: 10,
            split: "validation_mismatched".to_owned(),
            metrics: BTreeMap::from([("accuracy".to_owned(), 0.75)]),
            seconds: 3.0,
            ..Default::default()
        });
        let (_, all) = scalars.of(&evaluation);
        assert_eq!(found(&all, "eval_mismatched/accuracy"), Some(0.75));
        let (_, all) = scalars.of(&step(20, 10.0));
        assert_eq!(found(&all, "train/step_seconds"), Some(0.2));
        assert_eq!(found(&all, "train/tokens_per_second"), Some(500.0));
    }
}
