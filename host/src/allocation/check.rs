//! The rules for what a plugin answers. The host trusts nothing that comes back.

use dynalora_plugin_api::{Allocation, ModuleInfo, Needs, Numbers, Observation, Pruning, Trials};

use super::state::Details;
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

/// What an allocator's answer is for the modules, whatever it chose among.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which modules are active.
    pub active: Vec<bool>,
    /// Which components of each remain; none where nothing is said of them.
    pub components: Option<Vec<Vec<bool>>>,
    /// The rest.
    pub details: Details,
}

/// An allocator's answer; an error where it breaks a rule of [`Allocation`]. `prunable` adapters are LoRA's pairs;
/// `asks` says whether the schedule leaves it to the allocator when it is asked again.
pub fn allocation(
    allocator: &str,
    step: u64,
    units: &Units,
    prunable: bool,
    asks: bool,
    answer: &Allocation,
) -> Result<Choice> {
    let choice = when_asked_again(answer, asks).and_then(|()| choice(units, prunable, answer));
    choice.map_err(|rule| refusal("allocator", allocator, step, &rule))
}

fn when_asked_again(answer: &Allocation, asks: bool) -> Result<(), String> {
    if answer.ask_again.is_some() && !asks {
        return Err(
            "the schedule says when it is asked again, not its answer: set schedule = { kind = \"allocator\", \
             first = … } for one that says so itself"
                .to_owned(),
        );
    }
    match answer.ask_again {
        Some(0) => Err("it is asked again after one step or more: `ask_again` is 0".to_owned()),
        _ => Ok(()),
    }
}

fn choice(units: &Units, prunable: bool, answer: &Allocation) -> Result<Choice, String> {
    let infos = units.infos();
    let lengths = [
        ("flag", "flags", Some(answer.active.len())),
        (
            "list of components",
            "lists",
            answer.components.as_ref().map(Vec::len),
        ),
        (
            "pair of rates",
            "pairs",
            answer.rates.as_ref().map(Vec::len),
        ),
        ("scale", "scales", answer.scales.as_ref().map(Vec::len)),
        (
            "module whose pair it uses",
            "are given",
            answer.shared.as_ref().map(Vec::len),
        ),
    ];
    for (one, several, found) in lengths {
        if let Some(found) = found.filter(|found| *found != infos.len()) {
            let count = infos.len();
            return Err(format!(
                "one {one} per module: {found} {several} for {count} modules"
            ));
        }
    }
    if !answer.active.contains(&true) {
        return Err("at least one module is active: all are inactive".to_owned());
    }
    let components = match &answer.components {
        Some(_) if !prunable => {
            return Err(
                "only the pairs of LoRA have components: the adapters are VeRA's".to_owned(),
            );
        }
        Some(components) => Some(of_modules(units, components, &answer.active)?),
        None => None,
    };
    let shared = match &answer.shared {
        Some(shared) => units.pair_up(shared).ok_or(
            "`shared` names a module of the same shape, and a layer one of as many modules: one is none of these",
        )?,
        None => Vec::new(),
    };
    let choice = Choice {
        active: units.expand(&answer.active),
        details: Details {
            frozen: match answer.pruning {
                Pruning::Prune => false,
                Pruning::Freeze => components.is_some(),
                other => return Err(format!("pruning is \"prune\" or \"freeze\", not {other:?}")),
            },
            rates: answer
                .rates
                .as_ref()
                .map_or(Vec::new(), |it| units.expand(it)),
            scales: answer
                .scales
                .as_ref()
                .map_or(Vec::new(), |it| units.expand(it)),
            // Each its own is nothing to say.
            shared: match shared.iter().enumerate().all(|(at, owner)| at == *owner) {
                true => Vec::new(),
                false => shared,
            },
        },
        components,
    };
    details(units.modules(), prunable, &choice)?;
    Ok(choice)
}

/// The components of units as those of modules, if they are as many as there are, and fit the mask.
fn of_modules(
    units: &Units,
    components: &[Vec<bool>],
    active: &[bool],
) -> Result<Vec<Vec<bool>>, String> {
    for ((unit, components), &active) in units.infos().iter().zip(components).zip(active) {
        let path = &unit.path;
        if components.len() != unit.components() {
            return Err(format!(
                "one flag per component: {path} got {} of {}",
                components.len(),
                unit.components()
            ));
        }
        match (active, components.contains(&true)) {
            (true, false) => {
                return Err(format!(
                    "an active module keeps at least one component: {path} keeps none"
                ));
            }
            (false, true) => {
                return Err(format!(
                    "an inactive module keeps no component: {path} keeps some"
                ));
            }
            _ => {}
        }
    }
    let split = units.split(components);
    let active = units.expand(active);
    let modules = units.modules().iter().zip(&split).zip(&active);
    for ((module, own), active) in modules {
        if *active && !own.contains(&true) {
            return Err(format!(
                "each module of an active layer keeps at least one component: {} keeps none",
                module.path
            ));
        }
    }
    Ok(split)
}

/// The largest factor on a rate or a scale.
const LARGEST: f64 = 1e6;

/// Whether what is decided beside the mask keeps the rules.
pub fn details(modules: &[ModuleInfo], lora: bool, choice: &Choice) -> Result<(), String> {
    let Details {
        rates,
        scales,
        shared,
        ..
    } = &choice.details;
    let count = modules.len();
    for (name, found) in [
        ("rates", rates.len()),
        ("scales", scales.len()),
        ("shared", shared.len()),
    ] {
        if found != 0 && found != count {
            return Err(format!("`{name}` is of {found} modules, not of {count}"));
        }
    }
    let factors = rates.iter().map(|factors| factors.as_slice());
    let factors = factors.enumerate().map(|it| ("rate", it));
    let of_scales = scales.iter().map(std::slice::from_ref);
    let of_scales = of_scales.enumerate().map(|it| ("scale", it));
    for (what, (module, factors)) in factors.chain(of_scales) {
        if let Some(factor) = factors.iter().find(|it| !(0.0..=LARGEST).contains(*it)) {
            return Err(format!(
                "a factor on a {what} is a number from 0 to {LARGEST}: {} got {factor}",
                modules[module].path
            ));
        }
    }
    for (name, what, given) in [
        ("scales", "have a scale", !scales.is_empty()),
        ("shared", "can be shared", !shared.is_empty()),
    ] {
        if given && !lora {
            return Err(format!(
                "`{name}`: only the pairs of LoRA {what}: the adapters are VeRA's"
            ));
        }
    }
    (0..shared.len()).try_for_each(|module| sharing(modules, choice, module))
}

/// Whether a module may use the pair that it is said to.
fn sharing(modules: &[ModuleInfo], choice: &Choice, module: usize) -> Result<(), String> {
    let shared = &choice.details.shared;
    let owner = shared[module];
    let Some(info) = modules.get(owner) else {
        let count = modules.len();
        return Err(format!("`shared` names module {owner} of {count}"));
    };
    let (user, path) = (&modules[module], &info.path);
    let says = |what: &str| {
        Err(format!(
            "`shared`: {} uses the pair of {path}, {what}",
            user.path
        ))
    };
    if shared[owner] != owner {
        return says("which uses another's itself");
    }
    let shape = |info: &ModuleInfo| (info.in_features, info.out_features, info.rank);
    if shape(user) != shape(info) {
        return says("which has another shape");
    }
    if choice.active[module] != choice.active[owner] {
        return says("but only one of them is active: they train together");
    }
    if choice.details.rate(module) != choice.details.rate(owner) {
        return says("but has other rates: a pair has its owner's");
    }
    let differ = |components: &Vec<Vec<bool>>| components[module] != components[owner];
    if choice.components.as_ref().is_some_and(differ) {
        return says("but keeps other components: a pair has its owner's");
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
    }

    #[test]
    fn a_layers_components_are_its_members_one_after_the_other() {
        let mut infos = encoder();
        infos[1].rank = 4;
        let layers = Units::new(crate::recipe::Unit::Layer, infos);
        let flags = |ones: &[usize], all: usize| (0..all).map(|k| ones.contains(&k)).collect();
        let two = |first: &[usize]| {
            Allocation::of_components(vec![flags(first, 12), flags(&[], 16), flags(&[7], 8)])
        };
        let choice = allocation("mine", 7, &layers, true, false, &two(&[0, 7, 9])).unwrap();
        assert_eq!(choice.active, [true, true, false, false, true]);
        let none: Vec<bool> = flags(&[], 8);
        assert_eq!(
            choice.components.unwrap(),
            [
                flags(&[0, 7], 8),
                flags(&[1], 4),
                none.clone(),
                none,
                flags(&[7], 8)
            ]
        );
        let refused = |answer| {
            let refused = allocation("mine", 7, &layers, true, false, &answer).unwrap_err();
            refused.to_string()
        };
        assert!(refused(two(&[0])).contains("layer.0.output.dense keeps none"));
        let mut short = two(&[0, 9]);
        short.components.as_mut().unwrap()[0].pop();
        assert!(refused(short).contains("encoder.layer.0 got 11 of 12"));
    }

    #[test]
    fn every_rule_of_the_rest_is_checked() {
        let with = |change: &dyn Fn(&mut Allocation)| {
            let mut answer = Allocation::of([0, 1, 4], 5);
            change(&mut answer);
            answer
        };
        let odd = |factor: f64| {
            with(&|it| it.rates = Some([vec![[1.0, 16.0]; 4], vec![[1.0, factor]]].concat()))
        };
        let shared = |owners: [usize; 5]| with(&|it| it.shared = Some(owners.to_vec()));
        let mut narrow = encoder();
        narrow[1].in_features = 2;
        for (answer, rule) in [
            (
                with(&|it| it.rates = Some(vec![[1.0; 2]; 4])),
                "4 pairs for 5 modules",
            ),
            (odd(f64::NAN), "pooler.dense got NaN"),
            (odd(-1.0), "pooler.dense got -1"),
            (odd(1e7), "pooler.dense got 10000000"),
            (
                with(&|it| it.scales = Some(vec![1.0; 6])),
                "6 scales for 5 modules",
            ),
            (
                with(&|it| it.scales = Some(vec![f64::INFINITY; 5])),
                "query got inf",
            ),
            (
                with(&|it| it.shared = Some(vec![0; 2])),
                "2 are given for 5 modules",
            ),
            (shared([0, 0, 2, 3, 5]), "`shared`"),
            (shared([1, 0, 2, 3, 4]), "which uses another's itself"),
            (shared([0, 1, 2, 3, 2]), "only one of them is active"),
            (
                with(&|it| {
                    it.shared = Some(vec![0, 0, 2, 3, 4]);
                    it.rates = Some([vec![[1.0; 2]], vec![[2.0; 2]; 4]].concat());
                }),
                "has other rates",
            ),
            (
                with(&|it| {
                    it.shared = Some(vec![0, 0, 2, 3, 4]);
                    let some = |count: usize| (0..8).map(|k| k < count).collect();
                    it.components = Some([2, 3, 0, 0, 1].map(some).to_vec());
                }),
                "keeps other components",
            ),
        ] {
            let error = refused(answer);
            assert!(error.contains(rule), "{error}");
        }
        let of = |infos, lora, answer: &Allocation| {
            allocation("a", 1, &modules(infos), lora, false, answer)
        };
        let error = of(narrow, true, &shared([0, 0, 2, 3, 4])).unwrap_err();
        assert!(error.to_string().contains("another shape"), "{error}");
        for answer in [
            shared([0, 0, 2, 3, 4]),
            with(&|it| it.scales = Some(vec![2.0; 5])),
        ] {
            let error = of(encoder(), false, &answer).unwrap_err();
            assert!(error.to_string().contains("VeRA"), "{error}");
        }

        let choice = of(encoder(), true, &shared([0, 0, 2, 3, 4])).unwrap();
        assert_eq!(choice.details.shared, [0, 0, 2, 3, 4]);
        let own = of(encoder(), true, &shared([0, 1, 2, 3, 4])).unwrap();
        assert!(own.details.is_default());
        of(encoder(), false, &odd(0.0)).unwrap();
    }

    #[test]
    fn layers_share_member_by_member() {
        let mut infos = encoder();
        infos.remove(4);
        let layers = Units::new(crate::recipe::Unit::Layer, infos);
        let mut answer = Allocation::of([0, 1], 2);
        answer.shared = Some(vec![1, 1]);
        answer.scales = Some(vec![2.0, 3.0]);
        let choice = allocation("mine", 7, &layers, true, false, &answer).unwrap();
        assert_eq!(choice.details.shared, [2, 3, 2, 3]);
        assert_eq!(choice.details.scales, [2.0, 2.0, 3.0, 3.0]);
        let layers = Units::new(crate::recipe::Unit::Layer, encoder());
        let mut answer = Allocation::of([0, 1, 2], 3);
        answer.shared = Some(vec![2, 1, 2]);
        let error = allocation("mine", 7, &layers, true, false, &answer).unwrap_err();
        assert!(error.to_string().contains("as many modules"), "{error}");
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
