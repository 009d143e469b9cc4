//! A step as most suites take it.

use std::sync::LazyLock;

use dynalora::allocation::{Details, Wanted};
use dynalora::train::step::StepPlan;

/// The first step, with these modules active: nothing pruned, probed or dropped, and no rate. What a suite has otherwise,
/// it sets.
pub fn plan<'a>(active: &'a [bool], wanted: &'a Wanted) -> StepPlan<'a> {
    static NOTHING_ELSE: LazyLock<Details> = LazyLock::new(Details::default);
    StepPlan {
        details: &NOTHING_ELSE,
        step: 1,
        active,
        components: None,
        rates: [0.0; 2],
        embedding_rate: 0.0,
        probing: false,
        wanted,
        seed: 0,
        checkpointing: false,
        loss_scale: 1.0,
    }
}
