//! The runs of a sweep and what became of each, whoever runs them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::board::Board;
use super::jobs::{Outcome, State, state};
use super::plan::Planned;
use crate::error::Result;
use crate::file::cannot_write;
use crate::number::duration;
use crate::run::Run;

/// What became of each run so far, and how it is shown.
pub(super) struct Tally<'a> {
    pub runs: &'a [Planned],
    pub outcomes: Vec<Outcome>,
    pub board: Board,
    retries: u32,
}

/// How a try of a run ended.
pub(super) struct End {
    pub nth: usize,
    /// Which try it was, from 1.
    pub tries: u32,
    pub took: Duration,
    /// Its exit code, where it has one.
    pub code: Option<i32>,
    /// Whether it ended as one does that is finished.
    pub well: bool,
    /// Whether another try could help.
    pub may: bool,
    /// How, for a person: "ended with exit code 1".
    pub how: String,
    /// What was said about it.
    pub said: String,
}

impl<'a> Tally<'a> {
    /// Of runs in these states. Those that are left to do come back.
    pub fn new(
        runs: &'a [Planned],
        states: Vec<State>,
        (retries, quiet): (u32, bool),
    ) -> (Self, Vec<(usize, State)>) {
        let (mut left, mut outcomes) = (Vec::new(), Vec::new());
        for (nth, state) in states.into_iter().enumerate() {
            outcomes.push(match state {
                State::Finished => Outcome::Skipped,
                state => {
                    left.push((nth, state));
                    Outcome::Stopped
                }
            });
        }
        let board = Board::new(runs.len(), runs.len() - left.len(), quiet);
        let tally = Tally {
            runs,
            outcomes,
            board,
            retries,
        };
        (tally, left)
    }

    /// Takes in the end of a try. What there is of the run comes back if it is to be tried again.
    pub fn ended(&mut self, end: End) -> Option<State> {
        let run = &self.runs[end.nth];
        let took = duration(end.took.as_secs_f64());
        let summary = Run::open(&run.resolved.output)
            .ok()
            .and_then(|run| run.finished());
        if let (true, Some(summary)) = (end.well, summary) {
            let best = summary.best.as_ref();
            let best = best.map_or(String::new(), |best| {
                format!(", {} {:.4}", best.metric, best.value)
            });
            self.board.done(&format!("{} in {took}{best}", run.name));
            self.outcomes[end.nth] = Outcome::Finished;
            return None;
        }
        // The user's own mistake does not go away by itself, and a sweep that stops starts nothing.
        let may = end.may && end.code != Some(2) && !self.board.stopping();
        let again = may && end.tries <= self.retries;
        let what = if again { "; it is tried again" } else { "" };
        let how = end.how;
        self.board
            .failed(&format!("{} {how} after {took}{what}", run.name));
        self.outcomes[end.nth] = Outcome::Failed {
            how,
            code: end.code,
            said: last_words(&end.said),
        };
        again.then(|| state(run).unwrap_or(State::New))
    }

    /// How many are finished.
    pub fn finished(&self) -> usize {
        let outcomes = self.outcomes.iter();
        outcomes.filter(|outcome| outcome.is_finished()).count()
    }
}

/// What an exit code comes to, in words.
pub(super) fn exit(code: i32) -> String {
    match code {
        0 => "ended without a closing account".to_owned(),
        code => format!("ended with exit code {code}"),
    }
}

/// The folder of what the sweep itself keeps: beside the runs' folders, one that `runs/*` does not name.
pub(super) fn folder(run: &Planned) -> PathBuf {
    let output = run.resolved.output.parent().unwrap_or(Path::new(""));
    output.join(".sweep")
}

/// Makes the [`folder`] of `run`.
pub(super) fn make_folder(run: &Planned) -> Result<PathBuf> {
    let folder = folder(run);
    std::fs::create_dir_all(&folder).map_err(|error| cannot_write(&folder, error))?;
    Ok(folder)
}

/// Where goes what a run says, one try after the other.
pub(super) fn log_of(run: &Planned) -> PathBuf {
    folder(run).join(format!("{}.log", run.name))
}

/// The end of what a process said.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
