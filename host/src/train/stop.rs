//! SIGINT, SIGTERM and SIGHUP: the step is finished and saved first; a second one ends the process at once. SIGUSR1 asks
//! for the same, and never ends the process at once: who hands on a scheduler's warning need not know whether the scheduler
//! sent it to the process as well.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Whether somebody has asked the process to stop.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// Takes the signals over from the system, which would end the process.
    pub fn listen() -> Result<Self> {
        static LISTENING: OnceLock<Result<Stop, String>> = OnceLock::new();
        LISTENING
            .get_or_init(|| install().map_err(|error| error.to_string()))
            .clone()
            .map_err(|error| Error::failure(format!("signals cannot be handled: {error}")))
    }

    /// The signal that came, if any did.
    pub fn signal(&self) -> Option<Signal> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            number => Some(Signal(number as i32)),
        }
    }
}

/// A signal, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub i32);

impl Signal {
    /// All that are listened to.
    pub fn all() -> impl Iterator<Item = Signal> {
        let all = SIGNALS.iter().chain(PATIENT);
        all.map(|(number, _)| Signal(*number))
    }

    /// Whether no second one ends the process.
    pub fn is_patient(self) -> bool {
        PATIENT.iter().any(|(number, _)| *number == self.0)
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut all = SIGNALS.iter().chain(PATIENT);
        let name = all.find(|(number, _)| *number == self.0);
        f.write_str(name.map_or("a signal", |(_, name)| name))
    }
}

#[cfg(unix)]
const SIGNALS: &[(i32, &str)] = &[
    (signal_hook::consts::SIGINT, "SIGINT"),
    (signal_hook::consts::SIGTERM, "SIGTERM"),
    (signal_hook::consts::SIGHUP, "SIGHUP"),
];
/// Those of which no second one ends the process.
#[cfg(unix)]
const PATIENT: &[(i32, &str)] = &[(signal_hook::consts::SIGUSR1, "SIGUSR1")];
#[cfg(not(unix))]
const PATIENT: &[(i32, &str)] = &[];
#[cfg(not(unix))]
const SIGNALS: &[(i32, &str)] = &[
    (signal_hook::consts::SIGINT, "SIGINT"),
    (signal_hook::consts::SIGTERM, "SIGTERM"),
];

fn install() -> std::io::Result<Stop> {
    let (asked, came) = (Arc::new(AtomicBool::new(false)), Arc::default());
    for (signal, _) in SIGNALS {
        // In this order: the first signal finds that nobody has asked yet.
        signal_hook::flag::register_conditional_shutdown(*signal, 128 + signal, asked.clone())?;
        signal_hook::flag::register_usize(*signal, Arc::clone(&came), *signal as usize)?;
        signal_hook::flag::register(*signal, asked.clone())?;
    }
    for (signal, _) in PATIENT {
        signal_hook::flag::register_usize(*signal, Arc::clone(&came), *signal as usize)?;
    }
    Ok(Stop(came))
}
