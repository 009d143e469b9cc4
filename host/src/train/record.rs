//! What a run keeps of what training did.

use crate::allocation::Reallocation;
use crate::run::AllocationRecord;

impl From<&Reallocation> for AllocationRecord {
    fn from(reallocation: &Reallocation) -> Self {
        AllocationRecord {
            step: reallocation.step,
            index: Some(reallocation.index),
            modules: Vec::new(),
            scores: reallocation.scores.clone(),
            active: reallocation.active.clone(),
            ranks: reallocation.ranks.clone(),
            ledger: reallocation.ledger.clone(),
        }
    }
}
