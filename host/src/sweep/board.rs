//! What a sweep shows while it runs: on a terminal a line for each run that is at work, elsewhere a line for each that ends.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::plan::Planned;
use crate::number::duration;
use crate::run::MetricRecord;
use crate::train::say;

/// What is shown.
pub struct Board {
    shown: Shown,
    total: usize,
    done: usize,
    failed: usize,
    stopping: bool,
    /// When the lines were drawn last.
    drawn: Instant,
}

enum Shown {
    Nothing,
    Lines,
    Table {
        all: MultiProgress,
        sum: ProgressBar,
        lines: BTreeMap<usize, ProgressBar>,
    },
}

impl Board {
    /// Of so many runs, so many of which are finished.
    pub fn new(total: usize, done: usize, quiet: bool) -> Self {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines,
            (false, true) => {
                let all = MultiProgress::new();
                let sum = all.add(ProgressBar::new(total as u64).with_position(done as u64));
                sum.set_style(style(
                    "{bar:24.cyan} {pos}/{len} runs {elapsed}<{eta} {wide_msg}",
                ));
                // The time left is of those that are trained now.
                sum.reset_eta();
                Shown::Table {
                    all,
                    sum,
                    lines: BTreeMap::new(),
                }
            }
        };
        let board = Board {
            shown,
            total,
            done,
            failed: 0,
            stopping: false,
            drawn: Instant::now(),
        };
        if done > 0 {
            board.say(&format!("{done} of {total} runs are finished already"));
        }
        board
    }

    /// Says that a run is finished.
    pub fn done(&mut self, what: &str) {
        self.done += 1;
        self.say(&format!("{}/{} {what}", self.done, self.total));
    }

    /// Says that a run has failed.
    pub fn failed(&mut self, what: &str) {
        self.failed += 1;
        self.say(&format!("FAILED {what}"));
    }

    /// Says something else.
    pub fn note(&self, what: &str) {
        self.say(what);
    }

    /// Says that the runs at work are being stopped.
    pub fn stop(&mut self, running: usize) {
        self.stopping = true;
        if running > 0 {
            let them = if running == 1 {
                "the run at work ends"
            } else {
                "the runs at work end"
            };
            self.say(&format!("stopping: {them} after a step, saved"));
        }
    }

    /// Whether the runs are being stopped.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    /// Shows how far those at work are, every half second, and what is to be said of the others.
    pub fn draw(&mut self, running: &[(usize, &Planned, Instant)], others: &str) {
        let Shown::Table { all, sum, lines } = &mut self.shown else {
            return;
        };
        if self.drawn.elapsed() < Duration::from_millis(500) {
            return;
        }
        self.drawn = Instant::now();
        lines.retain(|nth, line| {
            let stays = running.iter().any(|(other, _, _)| other == nth);
            if !stays {
                line.finish_and_clear();
            }
            stays
        });
        for (nth, run, began) in running {
            let line = lines.entry(*nth).or_insert_with(|| {
                let line = all.insert_before(sum, ProgressBar::new_spinner());
                line.set_style(style("  {wide_msg}"));
                line
            });
            let took = duration(began.elapsed().as_secs_f64());
            let far = last_step(&run.resolved.output).unwrap_or_default();
            line.set_message(format!("{:<40} {took:<12} {far}", run.name));
        }
        sum.set_position(self.done as u64);
        let failed = match self.failed {
            0 => String::new(),
            failed => format!("{failed} failed"),
        };
        let parts = [failed.as_str(), others].map(str::to_owned);
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        sum.set_message(parts.join(", "));
        sum.tick();
    }

    /// Takes the lines away.
    pub fn end(&mut self) {
        if let Shown::Table { all, .. } = &self.shown {
            let _ = all.clear();
        }
    }

    fn say(&self, line: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => say(line),
            Shown::Table { all, .. } => {
                let _ = all.println(line);
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Step and loss by the last whole record of a run's log, of which only the end is read.
fn last_step(run: &Path) -> Option<String> {
    let mut log = std::fs::File::open(run.join("metrics.jsonl")).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut end = Vec::new();
    log.read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    let records = end
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str(line).ok());
    let shown = records.map(|record| match record {
        MetricRecord::Step(step) => format!("step {}, loss {:.4}", step.step, step.loss),
        MetricRecord::Evaluation(evaluation) => format!("step {}, evaluated", evaluation.step),
    });
    shown.into_iter().next()
}
