//! What has happened to each module since the start of the run.

use dynalora_plugin_api::LedgerEntry;
use serde::{Deserialize, Serialize};

/// One entry per module, in forward order. It outlives reallocations and is in every checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(Vec<LedgerEntry>);

impl Ledger {
    /// An empty page for `modules` modules.
    pub fn new(modules: usize) -> Self {
        Ledger(vec![LedgerEntry::default(); modules])
    }

    /// The entries, one per module.
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.0
    }

    /// Books one optimiser step that updated the modules in `active`.
    pub fn stepped(&mut self, active: &[bool]) {
        for (entry, _) in self.0.iter_mut().zip(active).filter(|(_, active)| **active) {
            entry.steps_active += 1;
        }
    }

    /// Books a reallocation after step `step` that chose the modules in `active`.
    pub fn chosen(&mut self, active: &[bool], step: u64) {
        for (entry, _) in self.0.iter_mut().zip(active).filter(|(_, active)| **active) {
            entry.times_chosen += 1;
            entry.last_chosen = Some(step);
        }
    }
}

impl From<Vec<LedgerEntry>> for Ledger {
    fn from(entries: Vec<LedgerEntry>) -> Self {
        Ledger(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_steps_and_choices_of_active_modules_only() {
        let mut ledger = Ledger::new(2);
        ledger.stepped(&[true, true]);
        ledger.chosen(&[false, true], 1);
        ledger.stepped(&[false, true]);
        assert_eq!(
            ledger.entries(),
            [
                LedgerEntry {
                    steps_active: 1,
                    times_chosen: 0,
                    last_chosen: None
                },
                LedgerEntry {
                    steps_active: 2,
                    times_chosen: 1,
                    last_chosen: Some(1)
                },
            ]
        );
    }
}
