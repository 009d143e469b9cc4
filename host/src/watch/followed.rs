//! One run, followed by what it writes.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::tail::Tail;
use crate::error::Result;
use crate::recipe::{Length, Metric, Recipe};
use crate::run::{AllocationRecord, EvalRecord, MetricRecord, Run, State, StepRecord, Summary};

/// What is known of a run.
#[derive(Debug)]
pub struct Followed {
    /// What it is called among the others.
    pub name: String,
    /// How far it is; none where its folder is gone.
    pub state: Option<State>,
    /// What its recipe says.
    pub about: Option<About>,
    /// Records of training, in order.
    pub steps: Vec<StepRecord>,
    /// Evaluations, in order.
    pub evaluations: Vec<EvalRecord>,
    /// Paths of the modules.
    pub modules: Vec<String>,
    /// What was chosen, in order.
    pub choices: Vec<Choice>,
    /// The fault after which it goes on without its plugins, and the step.
    pub given_up: Option<(u64, String)>,
    /// The closing account.
    pub summary: Option<Summary>,
    /// What of its files cannot be read.
    pub trouble: Option<String>,
    run: Run,
    metrics: Tail,
    allocations: Tail,
    recipe_of: Option<SystemTime>,
    summary_of: Option<SystemTime>,
}

/// What a recipe says of its run.
#[derive(Clone, Debug)]
pub struct About {
    /// What chooses its modules.
    pub chooser: String,
    /// Its seed.
    pub seed: u64,
    /// The metric that picks the best checkpoint.
    pub deciding: Metric,
    length: Length,
}

/// Modules that are active after a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The step.
    pub step: u64,
    /// Which are active, …
    pub active: Vec<bool>,
    /// … their ranks, …
    pub ranks: Vec<u32>,
    /// … and the scores that it rests on; empty for an initial choice.
    pub scores: Vec<f64>,
    /// The largest of its ranks, and of its scores.
    pub largest: (u32, f64),
}

impl Choice {
    /// A choice after a step.
    pub fn new(step: u64, active: Vec<bool>, ranks: Vec<u32>, scores: Vec<f64>) -> Self {
        let rank = ranks.iter().copied().max().unwrap_or(0);
        let score = scores.iter().copied().fold(0.0, f64::max);
        Choice {
            step,
            active,
            ranks,
            scores,
            largest: (rank, score),
        }
    }
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Steps a second, evaluation left out.
    pub steps: f64,
    /// Real tokens a second, evaluation left out.
    pub tokens: f64,
    /// Seconds of a step with its part of evaluation.
    pub seconds: f64,
}

/// Records that the pace is taken over.
const RECENT: usize = 20;

impl Followed {
    /// The run in a folder, of which nothing is read yet.
    pub fn new(folder: &Path, name: String) -> Result<Self> {
        let run = Run::open(folder)?;
        Ok(Followed {
            name,
            state: None,
            about: None,
            steps: Vec::new(),
            evaluations: Vec::new(),
            modules: Vec::new(),
            choices: Vec::new(),
            given_up: None,
            summary: None,
            trouble: None,
            metrics: Tail::new(run.metrics_path()),
            allocations: Tail::new(run.allocations_path()),
            run,
            recipe_of: None,
            summary_of: None,
        })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.run.dir()
    }

    /// Reads what is new.
    pub fn refresh(&mut self) {
        let recipe = time(self.run.recipe_path());
        if recipe.is_none() {
            // What was seen of it stays.
            self.state = None;
            return;
        }
        if let Err(error) = self.read(recipe) {
            self.trouble = Some(error.to_string());
        }
        self.state = Some(self.run.state(self.summary.as_ref()));
    }

    fn read(&mut self, recipe: Option<SystemTime>) -> Result<()> {
        if self.recipe_of != recipe {
            self.recipe_of = recipe;
            self.trouble = None;
            self.about = Some(About::of(&Recipe::load(&self.run.recipe_path(), &[])?));
        }
        let grown = self.metrics.read()?;
        if grown.anew {
            (self.steps, self.evaluations) = Default::default();
        }
        for record in grown.records {
            match record {
                MetricRecord::Step(record) => self.steps.push(record),
                MetricRecord::Evaluation(record) => self.evaluations.push(record),
            }
        }
        let mut wrong = grown.wrong;
        let grown = self.allocations.read()?;
        if grown.anew {
            (self.modules, self.choices, self.given_up) = Default::default();
        }
        wrong = wrong.or(grown.wrong);
        for record in grown.records {
            let refused = self.choose(record);
            wrong = wrong.or(refused);
        }
        if wrong.is_some() {
            self.trouble = wrong;
        }
        let summary = time(self.run.summary_path());
        if self.summary_of != summary {
            self.summary_of = summary;
            self.summary = self.run.summary()?;
        }
        Ok(())
    }

    /// Takes a choice in, or says why it is none.
    fn choose(&mut self, record: AllocationRecord) -> Option<String> {
        if !record.modules.is_empty() {
            self.modules = record.modules;
        }
        if let Some(fault) = record.fault {
            self.given_up = Some((record.step, fault));
        }
        let (modules, active) = (self.modules.len(), record.active.len());
        if active != modules {
            let step = record.step;
            let what = "allocations.jsonl: the record of step";
            return Some(format!(
                "{what} {step} is of {active} modules, but the file begins with {modules}"
            ));
        }
        let choice = Choice::new(record.step, record.active, record.ranks, record.scores);
        match self.choices.last_mut() {
            // It governed no step: a choice before the first.
            Some(last) if last.step == choice.step => *last = choice,
            _ => self.choices.push(choice),
        }
        None
    }

    /// Optimiser steps made, as far as they are recorded.
    pub fn step(&self) -> u64 {
        let last = self.steps.last().map_or(0, |last| last.step);
        self.summary.as_ref().map_or(last, |summary| summary.steps)
    }

    /// Steps of the whole run, as far as they can be told.
    pub fn total_steps(&self) -> Option<u64> {
        match (&self.summary, self.about.as_ref()?.length) {
            (Some(summary), _) => Some(summary.steps),
            (None, Length::Steps(steps)) => Some(steps),
            (None, Length::Epochs(epochs)) => {
                let last = self.steps.last().filter(|last| last.epoch > 0.0)?;
                let of_each = (last.step as f64 / last.epoch).round();
                Some(epochs.saturating_mul(of_each as u64))
            }
        }
    }

    /// How fast it went of late; of a finished run, over all of it.
    pub fn pace(&self) -> Option<Pace> {
        let last = self.steps.last()?;
        let start = StepRecord::default();
        let recent = self.steps.len().checked_sub(RECENT + 1);
        let from = match recent.filter(|_| self.summary.is_none()) {
            Some(at) => &self.steps[at],
            None => &start,
        };
        let steps = last.step.saturating_sub(from.step);
        let seconds = last.seconds - from.seconds;
        // The evaluation of a step comes after the step's record.
        let within = self.evaluations.iter();
        let within = within.filter(|it| it.step >= from.step.max(1) && it.step < last.step);
        let evaluated: f64 = within.map(|it| it.seconds).sum();
        let trained = (seconds - evaluated).max(1e-9);
        (steps > 0 && seconds > 0.0).then(|| Pace {
            steps: steps as f64 / trained,
            tokens: last.tokens.saturating_sub(from.tokens) as f64 / trained,
            seconds: seconds / steps as f64,
        })
    }

    /// Seconds that are left at the pace of late, of a run that trains.
    pub fn seconds_left(&self) -> Option<f64> {
        let running = self.state == Some(State::Running);
        let left = self.total_steps()?.saturating_sub(self.step());
        Some(self.pace()?.seconds * left as f64).filter(|_| running)
    }

    /// Seconds since it last wrote a record.
    pub fn age(&self) -> Option<f64> {
        let last = time(self.run.metrics_path()).or(self.recipe_of)?;
        let age = SystemTime::now().duration_since(last).ok()?;
        Some(age.as_secs_f64())
    }

    /// The split that decides: the one evaluated first.
    fn deciding_split(&self) -> impl Iterator<Item = &EvalRecord> {
        let split = self.evaluations.first().map(|first| first.split.as_str());
        let all = self.evaluations.iter();
        all.filter(move |record| Some(record.split.as_str()) == split)
    }

    /// The metric that decides, at the last evaluation.
    pub fn metric(&self) -> Option<(&str, f64)> {
        let deciding = self.about.as_ref()?.deciding.name();
        let last = self.deciding_split().last()?;
        Some((deciding, *last.metrics.get(deciding)?))
    }

    /// The step and the value of its best evaluation.
    pub fn best(&self) -> Option<(u64, f64)> {
        let deciding = self.about.as_ref()?.deciding;
        let all = self.deciding_split();
        let all = all.filter_map(|it| Some((it.step, *it.metrics.get(deciding.name())?)));
        // The first of equals, as for checkpoints.
        all.filter(|(_, value)| value.is_finite())
            .reduce(|best, it| {
                if deciding.is_better(it.1, best.1) {
                    it
                } else {
                    best
                }
            })
    }

    /// What it has curves of beside the loss: metrics, the one that decides first, and numbers of training.
    pub fn curves(&self) -> Vec<String> {
        let deciding = self
            .about
            .as_ref()
            .map(|about| about.deciding.name().to_owned());
        let measured = self.deciding_split().last();
        let measured = measured
            .into_iter()
            .flat_map(|record| record.metrics.keys());
        let others = measured.filter(|name| Some(*name) != deciding.as_ref());
        let others: Vec<String> = others.cloned().collect();
        let of_training = NUMBERS.iter().map(|(name, _)| (*name).to_owned());
        deciding
            .into_iter()
            .chain(others)
            .chain(of_training)
            .collect()
    }

    /// A curve by its name, by steps.
    pub fn curve(&self, name: &str) -> Vec<(f64, f64)> {
        if let Some((_, value)) = NUMBERS.iter().find(|(own, _)| *own == name) {
            let points = self.steps.iter();
            return finite(points.map(|record| (record.step, value(self, record))));
        }
        let points = self.deciding_split();
        finite(points.filter_map(|record| Some((record.step, *record.metrics.get(name)?))))
    }

    /// The training loss by steps: of many records, the mean of so many of the last as are a twentieth of all.
    pub fn loss(&self) -> Vec<(f64, f64)> {
        of_late(finite(
            self.steps.iter().map(|record| (record.step, record.loss)),
        ))
    }

    /// The loss of the best constant answer on the same examples.
    pub fn constant_loss(&self) -> Vec<(f64, f64)> {
        let points = self.steps.iter();
        of_late(finite(points.filter_map(|record| {
            Some((record.step, record.constant_loss?))
        })))
    }

    /// The validation loss by steps.
    pub fn validation_loss(&self) -> Vec<(f64, f64)> {
        finite(
            self.deciding_split()
                .map(|record| (record.step, record.loss)),
        )
    }
}

/// A number of a record of training.
type Number = fn(&Followed, &StepRecord) -> f64;

/// Curves of training, by their names.
const NUMBERS: [(&str, Number); 4] = [
    ("learning rate", |_, record| record.learning_rate),
    ("gradient norm", |_, record| record.grad_norm),
    ("active modules, %", |run, record| {
        100.0 * record.active_modules as f64 / run.modules.len() as f64
    }),
    ("peak memory, MiB", |_, record| {
        record
            .peak_memory
            .map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20))
    }),
];

impl About {
    fn of(recipe: &Recipe) -> Self {
        About {
            chooser: recipe.chooser(),
            seed: recipe.seed,
            deciding: recipe.deciding_metric(),
            length: recipe.train.length(),
        }
    }
}

fn finite(points: impl Iterator<Item = (u64, f64)>) -> Vec<(f64, f64)> {
    let points = points.map(|(step, value)| (step as f64, value));
    points.filter(|(_, value)| value.is_finite()).collect()
}

/// Each as the mean of the last twentieth of all, up to it.
fn of_late(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let width = (points.len() / 20).max(1);
    let mean = |(at, (step, _)): (usize, &(f64, f64))| {
        let last = &points[(at + 1).saturating_sub(width)..=at];
        let sum: f64 = last.iter().map(|(_, value)| value).sum();
        (*step, sum / last.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// When a file was last written; none if it is not there.
fn time(path: PathBuf) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .ok()
}
