//! What finished runs say together: arms averaged over seeds, compared with a baseline, and drawn.
//!
//! Runs are read, grouped into [`Arm`]s, summed up and, as a table or a page, written out; nothing here
//! trains or needs a device.

mod arm;
mod canvas;
mod figure;
mod heatmap;
mod html;
mod look;
mod plot;
mod print;
mod reading;
mod statistics;
mod swept;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

pub use arm::{Against, Arm, Naming, SEEDS, SEEDS_OF_DRAWS, Without, seeds_needed};
pub use canvas::Plot;
pub use figure::Figure;
pub use html::page;
pub use look::{Colors, Length, Look};
pub use plot::plots;
pub use print::{pdf, png};
pub use reading::{GivenUp, Reading};
pub use statistics::{Paired, Spread};
pub use swept::swept;
pub use table::{csv, latex, markdown, tables};

use crate::error::{Error, Result};

/// What to make of the runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The metric that is compared; none: the one that picks the runs' best checkpoints.
    pub metric: Option<String>,
    /// The arm that the others are compared with, by its name or a part of it; none: plain LoRA, if there
    /// is one such arm.
    pub baseline: Option<String>,
    /// How arms are named.
    pub names: Naming,
    /// The names of the arms by the folders of their runs, where they are known; `names` does nothing then.
    pub arms: Option<BTreeMap<PathBuf, String>>,
    /// Whether unfinished runs count.
    pub unfinished: bool,
}

/// Runs by arm.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The metric that is compared.
    pub metric: String,
    /// The name of the arm that the others are compared with.
    pub baseline: Option<String>,
    /// Whether unfinished runs are in the averages.
    pub unfinished_count: bool,
    /// In the order in which their first runs were given.
    pub arms: Vec<Arm>,
}

impl Report {
    /// Reads the runs in `folders` and sums them up. An error if they learn different tasks, if one was given
    /// twice, or if a file of theirs is damaged.
    pub fn new(folders: &[PathBuf], options: &Options) -> Result<Report> {
        let mut readings = Vec::new();
        for folder in folders {
            readings.push(Reading::open(folder, options.metric.as_deref())?);
        }
        let Some(first) = readings.first() else {
            return Err(Error::user("there is no run to report on")
                .help("name one or more folders of runs: dynalora report runs/*"));
        };
        for other in &readings {
            // The same file in another place is the same task; another file of the same name is not.
            let same_task = match (&first.evaluated_on, &other.evaluated_on) {
                (Some(first_on), Some(on)) if !(first_on.is_empty() && on.is_empty()) => {
                    first_on == on
                }
                _ => other.task == first.task,
            };
            if !same_task || other.metric != first.metric {
                if other.task == first.task && other.metric == first.metric {
                    return Err(Error::user(format!(
                        "runs that were evaluated on different data cannot be compared: what {} was evaluated on has \
                         changed before {}, though it is called {} in both",
                        first.path.display(),
                        other.path.display(),
                        first.task
                    ))
                    .help("report on the runs of one data set at a time; provenance.json in each run has the digests"));
                }
                return Err(Error::user(format!(
                    "runs of different tasks cannot be compared: {} is judged by {} on {}, {} by {} on {}",
                    first.path.display(),
                    first.metric,
                    first.task,
                    other.path.display(),
                    other.metric,
                    other.task
                ))
                .help("report on the runs of one task at a time; --metric names a metric that all have"));
            }
        }
        let metric = first.metric.clone();
        let mut arms = arm::group(readings, options.names, options.arms.as_ref())?;
        for arm in &mut arms {
            arm.refuse_repeated_seeds()?;
            arm.sum_up(options.unfinished);
        }
        warn_of_what_differs(&arms);
        let baseline = arm::baseline(&arms, options.baseline.as_deref())?;
        if let Some(index) = baseline {
            let baseline = arms[index].clone();
            for (other, arm) in arms.iter_mut().enumerate() {
                if other != index {
                    arm.against_baseline = Some(arm.against(&baseline, options.unfinished));
                }
            }
        }
        Ok(Report {
            metric,
            baseline: baseline.map(|index| arms[index].name.clone()),
            unfinished_count: options.unfinished,
            arms,
        })
    }

    /// The runs that ended with the loss of a constant answer, each with its arm.
    pub fn collapsed(&self) -> impl Iterator<Item = (&Arm, &Reading)> {
        let runs = self.arms.iter();
        let runs = runs.flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
        runs.filter(|(_, run)| run.collapse.is_some())
    }

    /// The runs that did otherwise than their recipes say, each with its arm: their plugins were given up, or updates
    /// left out.
    pub fn disturbed(&self) -> impl Iterator<Item = (&Arm, &Reading)> {
        let runs = self.arms.iter();
        let runs = runs.flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
        runs.filter(|(_, run)| run.disturbed())
    }

    /// The runs that have not come to their end.
    pub fn unfinished(&self) -> impl Iterator<Item = &Reading> {
        let runs = self.arms.iter().flat_map(|arm| &arm.runs);
        runs.filter(|run| !run.finished)
    }
}

/// Says what the tables cannot know, and where runs that are averaged are of several programs.
fn warn_of_what_differs(arms: &[Arm]) {
    let runs = || arms.iter().flat_map(|arm| &arm.runs);
    let unknown: Vec<&Reading> = runs().filter(|run| run.inputs.is_none()).collect();
    if let Some(first) = unknown.first() {
        tracing::warn!(
            "{} of {} runs, such as {}, have no provenance.json: whether their data, models and plugins were the same \
             is not known",
            unknown.len(),
            runs().count(),
            first.path.display()
        );
    }
    let unwatched: Vec<&Reading> = runs().filter(|run| !run.watched).collect();
    if let Some(first) = unwatched.first() {
        tracing::warn!(
            "{} of {} runs, such as {}, are of a version that did not look whether a run collapsed: none of them is marked",
            unwatched.len(),
            runs().count(),
            first.path.display()
        );
    }
    for arm in arms {
        let mut programs: Vec<&String> = arm.runs.iter().flat_map(|run| &run.programs).collect();
        programs.sort();
        programs.dedup();
        if programs.len() > 1 {
            let programs: Vec<&str> = programs.iter().map(|program| program.as_str()).collect();
            tracing::warn!(
                "the runs of `{}` were trained by several programs: {}",
                arm.name,
                programs.join("; ")
            );
        }
    }
}

#[cfg(test)]
mod tests;
