//! A command that was started as one of several processes.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::plugin::guard;
use crate::train::ranks::{Ranks, launched};
use crate::train::say;

/// For so long an error of another rank than the first waits for the first to come to the same.
const FIRST: Duration = Duration::from_secs(1);

/// For so long others than the first wait for it to save, where it can no longer say when it has.
const SAVING: Duration = Duration::from_secs(60);

/// Refuses to do several times what is to be done once.
pub fn refuse() -> Result<Ranks> {
    match launched() {
        None => Ok(Ranks::alone()),
        Some((launcher, count)) => Err(Error::user(format!(
            "{launcher} has started {count} processes, each of which would start the same runs"
        ))
        .help(
            "start it once; `train` is what ranks share a run in, and a sweep over several machines is started by --launcher",
        )),
    }
}

/// Ends with what came of this rank. What goes wrong on one ends all, and is said once.
pub fn end(ranks: &Ranks, outcome: Result<()>) -> Result<()> {
    if ranks.count() == 1 {
        return outcome;
    }
    let Err(error) = outcome else {
        ranks.leave();
        return Ok(());
    };
    let gave_up = ranks.gave_up().is_some();
    // All ranks come to these at the same step.
    let together = matches!(
        error.kind,
        Kind::Interrupted(_) | Kind::Diverged | Kind::Plugin
    );
    let code = error.exit_code();
    let alone = !gave_up && !together && !ranks.leads();
    // The first has come to the same, and said it.
    let after = alone && ranks.is_ended_within(FIRST);
    let says = ranks.leads() || (alone && !after);
    if says {
        let which = match ranks.leads() {
            true => String::new(),
            false => format!("rank {} of {}: ", ranks.rank(), ranks.count()),
        };
        say(&format!("{which}{:?}", miette::Report::new(error)));
    }
    guard::announce_exit();
    if gave_up && !ranks.leads() {
        // The first may be saving: its end is all others'.
        std::thread::sleep(SAVING);
    } else if together && !gave_up {
        ranks.leave();
    } else if !after {
        ranks.abort(code);
    }
    std::process::exit(code.into())
}
