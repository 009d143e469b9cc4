//! The rules for what a plugin answers. The host trusts nothing that comes back.

use dynalora_plugin_api::{Allocation, ModuleInfo, Needs, Numbers, Observation, Pruning, Trials};

use super::unit::Units;
use crate::error::{Error, Result};

/// The first measurement that is no finite number, which no plugin may see: a missing one crosses as NaN.
pub fn not_finite(modules: &[ModuleInfo], observation: &Observation) -> Option<String> {
    let said = |what: String, module: usize, value: f32| {
        let path = modules.get(module).map_or("?", |module| &module.path);
        Some(format!("{what} of module {path} is {value}"))
    };
    for measured in &observation.signals {
        let values = measured.values.iter().enumerate();
        for (module, value) in values.filter_map(|(at, value)| Some((at, (*value)?))) {
            if !value.is_finite() {
                return said(format!("the signal {}", measured.signal), module, value);
            }
        }
    }
    let bad = |buffer: &[f32]| buffer.iter().copied().find(|value| !value.is_finite());
    for raw in &observation.raw {
        for (module, buffer) in raw.buffers.iter().enumerate() {
            if let Some(value) = bad(buffer) {
                return said(format!("a value of the raw {}", raw.value), module, value);
            }
        }
    }
    for (module, buffer) in observation.components.iter().enumerate() {
        if let Some(value) = bad(buffer) {
            return said("the sensitivity of a component".to_owned(), module, value);
        }
    }
    None
}

/// Refuses such a measurement before a plugin is blamed for it.
pub fn observation(modules: &[ModuleInfo], observation: &Observation) -> Result<()> {
    let Some(what) = not_finite(modules, observation) else {
        return Ok(());
    };
    Err(Error::diverged(format!(
        "{what} at step {}: the run has diverged",
        observation.step
    ))
    .help(
        "this is no fault of a plugin: start a new run with a lower `learning_rate`, a longer `warmup` or a \
         smaller `max_grad_norm` in [train]",
    ))
}

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

/// Refuses trials that are not of the modules there are.
pub fn trials(
    kind: &str,
    name: &str,
    step: u64,
    modules: &[ModuleInfo],
    needs: &Needs,
    prunable: bool,
    trials: &Trials,
) -> Result<()> {
    let refuse = |rule: String| Err(refusal(kind, name, step, &rule));
    if trials.examples > needs.held_back {
        return refuse(format!(
            "trials are on examples held back: it wants {} and needs {} held back",
            trials.examples, needs.held_back
        ));
    }
    let count = modules.len();
    for (at, trial) in trials.trials.iter().enumerate() {
        if !trial.factors.is_empty() && trial.factors.len() != count {
            return refuse(format!(
                "one factor per module: trial {at} has {} for {count} modules",
                trial.factors.len()
            ));
        }
        if let Some(factor) = trial.factors.iter().find(|factor| !factor.is_finite()) {
            return refuse(format!("factors are finite: trial {at} has {factor}"));
        }
        let Some(components) = &trial.components else {
            continue;
        };
        if !prunable {
            return refuse(
                "only the pairs of LoRA have components: the adapters are VeRA's".to_owned(),
            );
        }
        let fits = components.len() == count
            && modules
                .iter()
                .zip(components)
                .all(|(module, own)| own.len() == module.components());
        if !fits {
            return refuse(format!(
                "one flag per component of each module: trial {at} has others"
            ));
        }
    }
    Ok(())
}

/// A plugin's own numbers: finite or not, but one or one per module under each name.
pub fn numbers(
    kind: &str,
    name: &str,
    step: u64,
    modules: usize,
    numbers: dynalora_plugin_api::Result<Numbers>,
) -> Result<Numbers> {
    let numbers = numbers.map_err(|error| {
        Error::plugin(format!(
            "the {kind} `{name}` could not give its numbers after step {step}"
        ))
        .because(error)
        .help(way_on(kind))
    })?;
    let wrong = numbers
        .iter()
        .find(|(_, values)| values.len() != 1 && values.len() != modules);
    match wrong {
        None => Ok(numbers),
        Some((key, values)) => Err(refusal(
            kind,
            name,
            step,
            &format!(
                "a number of its own is one, or one per module: `{key}` has {} for {modules} modules",
                values.len()
            ),
        )),
    }
}

/// Refuses an allocator's answer that breaks a rule of [`Allocation`]. `prunable` adapters have components; `asks`
/// says whether the schedule leaves it to the allocator when it is asked again.
pub fn allocation(
    allocator: &str,
    step: u64,
    units: &Units,
    prunable: bool,
    asks: bool,
    answer: &Allocation,
) -> Result<()> {
    let refuse = |rule: String| Err(refusal("allocator", allocator, step, &rule));
    if answer.ask_again.is_some() && !asks {
        return refuse(
            "the schedule says when it is asked again, not its answer: set schedule = { kind = \"allocator\", \
             first = … } for one that says so itself"
                .to_owned(),
        );
    }
    if answer.ask_again == Some(0) {
        return refuse("it is asked again after one step or more: `ask_again` is 0".to_owned());
    }
    let later = [
        ("rates", answer.rates.is_some()),
        ("scales", answer.scales.is_some()),
        ("shared", answer.shared.is_some()),
        ("pruning = freeze", answer.pruning != Pruning::Prune),
    ];
    if let Some((name, _)) = later.iter().find(|(_, given)| *given) {
        return refuse(format!(
            "`{name}` is not in force in this version of dynalora"
        ));
    }
    let (units, modules) = (units.infos(), units.modules());
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
    let Some(components) = &answer.components else {
        return Ok(());
    };
    if !prunable {
        return refuse(
            "only the pairs of LoRA have components: the adapters are VeRA's".to_owned(),
        );
    }
    if units != modules {
        return refuse("components are of modules: it chooses whole layers".to_owned());
    }
    if components.len() != modules.len() {
        return refuse(format!(
            "one list of components per module: {} lists for {} modules",
            components.len(),
            modules.len()
        ));
    }
    for ((module, components), &active) in modules.iter().zip(components).zip(&answer.active) {
        let path = &module.path;
        if components.len() != module.rank as usize {
            return refuse(format!(
                "one flag per component: {path} got {} of {}",
                components.len(),
                module.rank
            ));
        }
        match (active, components.contains(&true)) {
            (true, false) => {
                return refuse(format!(
                    "an active module keeps at least one component: {path} keeps none"
                ));
            }
            (false, true) => {
                return refuse(format!(
                    "an inactive module keeps no component: {path} keeps some"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What can be done about a run that a plugin has ended. A run goes on with the recipe that it was started with, or
/// not at all.
pub fn way_on(kind: &str) -> String {
    format!(
        "Mend it, build it again and run the same recipe with --resume, which goes on from the last checkpoint if \
         one has been saved. Other parameters or another {kind} are another run: give it an `output` of its own"
    )
}

fn refusal(kind: &str, name: &str, step: u64, rule: &str) -> Error {
    Error::plugin(format!(
        "the {kind} `{name}` broke a rule at the reallocation after step {step}: {rule}"
    ))
    .help(format!(
        "this is a fault of the plugin: see `dynalora plugins check`. {}",
        way_on(kind)
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::allocation::unit::tests::{encoder, module};

    fn modules(infos: Vec<ModuleInfo>) -> Units {
        Units::new(crate::recipe::Unit::Module, infos)
    }

    fn refused(answer: Allocation) -> String {
        allocation("mine", 7, &modules(encoder()), true, false, &answer)
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
        // So many components remain of so many, for each module.
        let kept = |active: [bool; 5], components: &[(usize, usize)]| {
            let mut answer = Allocation::default();
            answer.active = active.to_vec();
            answer.components = Some(
                components
                    .iter()
                    .map(|&(some, all)| (0..all).map(|k| k < some).collect())
                    .collect(),
            );
            answer
        };
        let two = [true, true, false, false, false];
        let good = [(8, 8), (1, 8), (0, 8), (0, 8), (0, 8)];
        let but = |at: usize, counts: (usize, usize)| {
            let mut changed = good;
            changed[at] = counts;
            kept(two, &changed)
        };
        for (answer, rule) in [
            (Allocation::of([0], 4), "4 flags for 5 modules"),
            (Allocation::of([], 5), "at least one module"),
            (kept(two, &good[..2]), "2 lists for 5 modules"),
            (but(1, (8, 9)), "layer.0.output.dense got 9 of 8"),
            (but(1, (0, 0)), "layer.0.output.dense got 0 of 8"),
            (but(1, (0, 8)), "layer.0.output.dense keeps none"),
            (but(4, (1, 8)), "pooler.dense keeps some"),
        ] {
            let error = refused(answer);
            assert!(error.contains(rule), "{error}");
        }
        for answer in [Allocation::of([1, 4], 5), kept(two, &good)] {
            allocation("mine", 7, &modules(encoder()), true, false, &answer).unwrap();
        }
        let pruned = kept(two, &good);
        let error = allocation("mine", 7, &modules(encoder()), false, false, &pruned).unwrap_err();
        assert!(
            error.to_string().contains("only the pairs of LoRA"),
            "{error}"
        );
        let layers = Units::new(crate::recipe::Unit::Layer, encoder());
        let answer = Allocation::of_components(vec![vec![true; 8]; layers.infos().len()]);
        let error = allocation("mine", 7, &layers, true, false, &answer).unwrap_err();
        assert!(error.to_string().contains("whole layers"), "{error}");
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
            given in prop::option::of(prop::collection::vec(prop::collection::vec(any::<bool>(), 7..10), 1..6)),
            modules in 1usize..6,
        ) {
            let infos = vec![module("m", None); modules];
            let one_obeys = |(flags, &active): (&Vec<bool>, &bool)| flags.len() == 8 && flags.contains(&true) == active;
            let obeys = active.len() == modules
                && active.iter().any(|a| *a)
                && given.as_ref().is_none_or(|g| g.len() == modules && g.iter().zip(&active).all(one_obeys));
            let mut answer = Allocation::default();
            (answer.active, answer.components) = (active, given);
            prop_assert_eq!(allocation("a", 1, &self::modules(infos), true, false, &answer).is_ok(), obeys);
        }

        #[test]
        fn what_components_make_active_passes(
            components in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..6),
        ) {
            let infos = vec![module("m", None); components.len()];
            let any = components.iter().flatten().any(|remains| *remains);
            let answer = Allocation::of_components(components);
            prop_assert_eq!(allocation("a", 1, &modules(infos), true, false, &answer).is_ok(), any);
        }
    }
}
