//! The golden values on the CPU's own operations.

#[path = "golden/cases.rs"]
mod cases;

use burn_flex::Flex as B;

/// Whether the same sums are made in the same order.
const EXACT: bool = true;

#[test]
fn minilm_trains_as_peft_does_for_50_steps() {
    cases::minilm_trains_as_peft_does_for_50_steps();
}

#[test]
fn vera_on_minilm_trains_as_pefts_does_for_50_steps() {
    cases::vera_on_minilm_trains_as_pefts_does_for_50_steps();
}
