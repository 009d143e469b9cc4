//! The rules for what a plugin answers. The host trusts nothing that comes back.

use dynalora_plugin_api::{Allocation, ModuleInfo};

use crate::error::{Error, Result};

/// Refuses scores that are not one finite number, zero or more, per module.
pub fn scores(scorer: &str, step: u64, modules: &[ModuleInfo], scores: &[f64]) -> Result<()> {
    let refuse = |rule: String| Err(refusal("scorer", scorer, step, &rule));
    if scores.len() != modules.len() {
        return refuse(format!(
            "one score per module: {} scores for {} modules",
            scores.len(),
            modules.len()
        ));
    }
    match scores
        .iter()
        .position(|score| !(score.is_finite() && *score >= 0.0))
    {
        Some(at) => refuse(format!(
            "scores are finite and not negative: {} got {}",
            modules[at].path, scores[at]
        )),
        None => Ok(()),
    }
}

/// The rank per unit of an allocator's answer, or why the answer is refused.
pub fn ranks(
    allocator: &str,
    step: u64,
    units: &[ModuleInfo],
    answer: &Allocation,
) -> Result<Vec<u32>> {
    let refuse = |rule: String| Err(refusal("allocator", allocator, step, &rule));
    if answer.active.len() != units.len() {
        return refuse(format!(
            "one flag per module: {} flags for {} modules",
            answer.active.len(),
            units.len()
        ));
    }
    if !answer.active.contains(&true) {
        return refuse("at least one module is active: all are inactive".to_owned());
    }
    let Some(ranks) = &answer.ranks else {
        let full = |(unit, &active): (&ModuleInfo, _)| if active { unit.rank } else { 0 };
        return Ok(units.iter().zip(&answer.active).map(full).collect());
    };
    if ranks.len() != units.len() {
        return refuse(format!(
            "one rank per module: {} ranks for {} modules",
            ranks.len(),
            units.len()
        ));
    }
    for ((unit, &rank), &active) in units.iter().zip(ranks).zip(&answer.active) {
        let path = &unit.path;
        if rank > unit.rank {
            return refuse(format!(
                "ranks lie within r_max: {path} got {rank} of {}",
                unit.rank
            ));
        }
        if active && rank == 0 {
            return refuse(format!(
                "an active module has a rank of at least 1: {path} got 0"
            ));
        }
        if !active && rank != 0 {
            return refuse(format!("an inactive module has rank 0: {path} got {rank}"));
        }
    }
    Ok(ranks.clone())
}

fn refusal(kind: &str, name: &str, step: u64, rule: &str) -> Error {
    Error::user(format!(
        "the {kind} `{name}` broke a rule at the reallocation after step {step}: {rule}"
    ))
    .help(format!(
        "this is a fault of the plugin: see `dynalora plugins check`, mend or replace it, or name \
         another {kind} in the recipe; the run can go on from its last checkpoint"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::allocation::unit::tests::{encoder, module};

    fn refused(answer: Allocation) -> String {
        ranks("mine", 7, &encoder(), &answer)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_refusal_names_the_plugin_the_step_and_the_rule() {
        let error = scores("mine", 7, &encoder(), &[0.0, 1.0, f64::NAN, 0.0, 0.0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the scorer `mine` broke a rule at the reallocation after step 7: scores are finite and \
             not negative: encoder.layer.1.attention.self.query got NaN"
        );
        assert_eq!(error.exit_code(), 2);
        let error = refused(Allocation::of([], 5));
        assert!(
            error.starts_with("the allocator `mine` broke a rule"),
            "{error}"
        );
    }

    #[test]
    fn every_rule_of_an_allocation_is_checked() {
        let with_ranks = |active: [bool; 5], ranks: &[u32]| Allocation {
            active: active.to_vec(),
            ranks: Some(ranks.to_vec()),
        };
        let two = [true, true, false, false, false];
        for (answer, rule) in [
            (Allocation::of([0], 4), "4 flags for 5 modules"),
            (Allocation::of([], 5), "at least one module"),
            (with_ranks(two, &[8, 8]), "2 ranks for 5 modules"),
            (
                with_ranks(two, &[8, 9, 0, 0, 0]),
                "layer.0.output.dense got 9 of 8",
            ),
            (
                with_ranks(two, &[8, 0, 0, 0, 0]),
                "layer.0.output.dense got 0",
            ),
            (with_ranks(two, &[8, 8, 0, 0, 1]), "pooler.dense got 1"),
        ] {
            let error = refused(answer);
            assert!(error.contains(rule), "{error}");
        }
        let full = ranks("mine", 7, &encoder(), &Allocation::of([1, 4], 5)).unwrap();
        assert_eq!(full, [0, 8, 0, 0, 8]);
    }

    proptest! {
        #[test]
        fn scores_pass_exactly_when_they_obey(values in prop::collection::vec(any::<f64>(), 0..8), modules in 0usize..8) {
            let infos = vec![module("m", None); modules];
            let obeys = values.len() == modules && values.iter().all(|v| v.is_finite() && *v >= 0.0);
            prop_assert_eq!(scores("s", 1, &infos, &values).is_ok(), obeys);
        }

        #[test]
        fn allocations_pass_exactly_when_they_obey(
            active in prop::collection::vec(any::<bool>(), 1..6),
            given in prop::option::of(prop::collection::vec(0u32..10, 1..6)),
            modules in 1usize..6,
        ) {
            let infos = vec![module("m", None); modules];
            let rank_obeys = |(&rank, &active): (&u32, &bool)| rank <= 8 && (rank > 0) == active;
            let obeys = active.len() == modules
                && active.iter().any(|a| *a)
                && given.as_ref().is_none_or(|g| g.len() == modules && g.iter().zip(&active).all(rank_obeys));
            let answer = Allocation { active: active.clone(), ranks: given };
            let result = ranks("a", 1, &infos, &answer);
            prop_assert_eq!(result.is_ok(), obeys);
            if let Ok(ranks) = result {
                prop_assert!(ranks.iter().zip(&active).all(rank_obeys));
            }
        }
    }
}
