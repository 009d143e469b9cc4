//! When to reallocate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// After which optimiser steps the scorer and the allocator are asked for a new choice.
///
/// Steps count from 1. A reallocation "after step N" happens when step N has finished and governs
/// step N+1, so none ever follows the last step of a run: nothing would train under its choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The initial choice stays: with `initial = "all"` this is plain LoRA, the baseline.
    // Braces, because serde lets unknown keys pass beside a unit variant.
    Never {},
    /// One reallocation, after step `after`.
    Once {
        /// The step, from 1.
        after: u64,
    },
    /// A reallocation after every multiple of `every` steps.
    Periodic {
        /// The period in steps, at least 1.
        every: u64,
    },
    /// A reallocation after each of the listed steps.
    At {
        /// The steps, each from 1, in rising order.
        steps: Vec<u64>,
    },
    /// A reallocation after step `first`; from then on the allocator's answers say after how many steps it is asked
    /// again.
    Allocator {
        /// The step of the first, from 1.
        first: u64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Never {}
    }
}

impl Schedule {
    /// Refuses a schedule that means nothing: a step or a period of 0, a list that is empty or out
    /// of order.
    pub fn validate(&self) -> Result<()> {
        match self {
            Schedule::Never {} => Ok(()),
            Schedule::Allocator { first: 0 } => Err(Error::user("schedule `allocator`: `first` is 0")
                .help("give the step to ask after for the first time, from 1; initial = \"allocator\" asks before")),
            Schedule::Once { after: 0 } => Err(Error::user("schedule `once`: `after` is 0").help(
                "give the step to reallocate after, from 1: nothing has been measured before",
            )),
            Schedule::Periodic { every: 0 } => {
                Err(Error::user("schedule `periodic`: `every` is 0")
                    .help("give a period of 1 step or more"))
            }
            Schedule::At { steps } if steps.is_empty() => {
                Err(Error::user("schedule `at`: `steps` is empty")
                    .help("list the steps to reallocate after, or use kind = \"never\""))
            }
            Schedule::At { steps } if steps[0] == 0 => {
                Err(Error::user("schedule `at`: `steps` begins with 0")
                    .help("steps count from 1: nothing has been measured before"))
            }
            Schedule::At { steps } => match steps.windows(2).find(|pair| pair[0] >= pair[1]) {
                Some(pair) => Err(Error::user(format!(
                    "schedule `at`: {} comes after {}",
                    pair[1], pair[0]
                ))
                .help("list the steps in rising order, each one once")),
                None => Ok(()),
            },
            Schedule::Once { .. } | Schedule::Periodic { .. } | Schedule::Allocator { .. } => Ok(()),
        }
    }

    /// The kind, as a recipe names it.
    pub fn name(&self) -> &'static str {
        match self {
            Schedule::Never {} => "never",
            Schedule::Once { .. } => "once",
            Schedule::Periodic { .. } => "periodic",
            Schedule::At { .. } => "at",
            Schedule::Allocator { .. } => "allocator",
        }
    }

    /// The step after which the allocator is asked first, where its answers decide about the rest.
    pub fn asked_first(&self) -> Option<u64> {
        match self {
            Schedule::Allocator { first } => Some(*first),
            _ => None,
        }
    }

    /// The first step later than `finished` that a reallocation follows, in a run of `total_steps`, as far as is
    /// known before it: of those that an allocator will ask for, the first alone.
    pub fn next_due(&self, finished: u64, total_steps: u64) -> Option<u64> {
        let next = match self {
            Schedule::Never {} => None,
            Schedule::Once { after } | Schedule::Allocator { first: after } => {
                Some(*after).filter(|&after| after > finished)
            }
            // An overflowing multiple lies beyond any run.
            Schedule::Periodic { every } => (finished.checked_div(*every)?)
                .checked_add(1)?
                .checked_mul(*every),
            Schedule::At { steps } => steps.iter().copied().find(|&step| step > finished),
        };
        next.filter(|&step| step < total_steps)
    }

    /// The last step that a reallocation follows, and how many there are, in a run of `total_steps`; none where that is
    /// the allocator's to say.
    pub fn last_due(&self, total_steps: u64) -> Option<(u64, u64)> {
        self.next_due(0, total_steps)?;
        match self {
            Schedule::Never {} | Schedule::Allocator { .. } => None,
            Schedule::Once { after } => Some((*after, 1)),
            Schedule::Periodic { every } => {
                let count = total_steps.saturating_sub(1).checked_div(*every)?;
                Some((count * every, count))
            }
            Schedule::At { steps } => {
                let before = steps.iter().filter(|step| **step < total_steps);
                Some((before.clone().max().copied()?, before.count() as u64))
            }
        }
    }

    /// Whether a reallocation follows step `step`, which has just finished.
    pub fn is_due(&self, step: u64, total_steps: u64) -> bool {
        step > 0 && self.next_due(step - 1, total_steps) == Some(step)
    }

    /// Whether step `step`, which is about to run, is among the last `probe_steps` before a
    /// reallocation: N-`probe_steps`+1 to N for the one after step N. A reallocation in between does
    /// not end a probe that reaches back past it.
    pub fn in_probe(&self, step: u64, probe_steps: u64, total_steps: u64) -> bool {
        step > 0
            && self
                .next_due(step - 1, total_steps)
                .is_some_and(|due| due - step < probe_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Schedule, toml::de::Error> {
        #[derive(Deserialize)]
        struct Table {
            schedule: Schedule,
        }
        toml::from_str::<Table>(&format!("schedule = {text}")).map(|table| table.schedule)
    }

    fn due(schedule: &Schedule, total: u64) -> Vec<u64> {
        (0..=total + 3)
            .filter(|&step| schedule.is_due(step, total))
            .collect()
    }

    #[test]
    fn reads_the_recipes_spelling() {
        assert_eq!(parse(r#"{ kind = "never" }"#).unwrap(), Schedule::Never {});
        assert_eq!(
            parse(r#"{ kind = "once", after = 100 }"#).unwrap(),
            Schedule::Once { after: 100 }
        );
        assert_eq!(
            parse(r#"{ kind = "periodic", every = 50 }"#).unwrap(),
            Schedule::Periodic { every: 50 }
        );
        assert_eq!(
            parse(r#"{ kind = "at", steps = [10, 50] }"#).unwrap(),
            Schedule::At {
                steps: vec![10, 50]
            }
        );
    }

    #[test]
    fn refuses_unknown_keys_and_kinds() {
        for text in [
            r#"{ kind = "never", after = 1 }"#,
            r#"{ kind = "once", after = 1, every = 2 }"#,
            r#"{ kind = "once" }"#,
            r#"{ kind = "sometimes" }"#,
            r#"{ kind = "periodic", every = -1 }"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn written_out_it_reads_back_equal() {
        for schedule in [
            Schedule::Never {},
            Schedule::Once { after: 3 },
            Schedule::At { steps: vec![1, 4] },
        ] {
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(
                serde_json::from_str::<Schedule>(&text).unwrap(),
                schedule,
                "{text}"
            );
        }
    }

    #[test]
    fn comes_due_where_it_says_and_never_after_the_last_step() {
        assert_eq!(due(&Schedule::Never {}, 10), Vec::<u64>::new());
        assert_eq!(due(&Schedule::Once { after: 4 }, 10), [4]);
        assert_eq!(due(&Schedule::Once { after: 10 }, 10), Vec::<u64>::new());
        assert_eq!(due(&Schedule::Periodic { every: 4 }, 13), [4, 8, 12]);
        assert_eq!(due(&Schedule::Periodic { every: 4 }, 12), [4, 8]);
        assert_eq!(due(&Schedule::Periodic { every: 1 }, 4), [1, 2, 3]);
        assert_eq!(
            due(
                &Schedule::At {
                    steps: vec![1, 2, 7, 30]
                },
                20
            ),
            [1, 2, 7]
        );
    }

    #[test]
    fn the_last_and_their_number_are_what_counting_gives() {
        let schedules = [
            Schedule::Never {},
            Schedule::Once { after: 7 },
            Schedule::Periodic { every: 4 },
            Schedule::Periodic { every: 1 },
            Schedule::At {
                steps: vec![1, 5, 9],
            },
        ];
        for schedule in schedules {
            for total in 0..30 {
                let due = due(&schedule, total);
                let counted = due.last().map(|last| (*last, due.len() as u64));
                assert_eq!(schedule.last_due(total), counted, "{schedule:?}, {total}");
            }
        }
    }

    #[test]
    fn looks_ahead() {
        let schedule = Schedule::Periodic { every: 5 };
        assert_eq!(schedule.next_due(0, 20), Some(5));
        assert_eq!(schedule.next_due(5, 20), Some(10));
        assert_eq!(schedule.next_due(15, 20), None);
        assert_eq!(
            Schedule::Periodic { every: u64::MAX }.next_due(u64::MAX, u64::MAX),
            None
        );
    }

    #[test]
    fn probes_the_last_steps_before_a_reallocation() {
        let schedule = Schedule::Periodic { every: 5 };
        let probed = |steps| {
            (0..=15)
                .filter(|&step| schedule.in_probe(step, steps, 13))
                .collect::<Vec<u64>>()
        };
        assert_eq!(probed(0), Vec::<u64>::new());
        assert_eq!(probed(1), [5, 10]);
        assert_eq!(probed(2), [4, 5, 9, 10]);
        assert_eq!(probed(99), (1..=10).collect::<Vec<u64>>());
    }

    #[test]
    fn says_what_is_wrong() {
        let wrong = |schedule: Schedule| schedule.validate().unwrap_err().to_string();
        assert_eq!(
            wrong(Schedule::Once { after: 0 }),
            "schedule `once`: `after` is 0"
        );
        assert_eq!(
            wrong(Schedule::Periodic { every: 0 }),
            "schedule `periodic`: `every` is 0"
        );
        assert_eq!(
            wrong(Schedule::At { steps: vec![] }),
            "schedule `at`: `steps` is empty"
        );
        assert_eq!(
            wrong(Schedule::At { steps: vec![0, 2] }),
            "schedule `at`: `steps` begins with 0"
        );
        assert_eq!(
            wrong(Schedule::At {
                steps: vec![3, 9, 9]
            }),
            "schedule `at`: 9 comes after 9"
        );
        // What validation refuses does no harm where it was not called.
        assert_eq!(Schedule::Periodic { every: 0 }.next_due(3, 10), None);
    }
}
