//! Rules of allocators.

use std::collections::HashSet;

use super::common::{Later, damaged, wishes};
use super::setup::{
    EVERY, EXTREMES, LOSSES, MODULES, Measure, Setup, before_the_first_step, large, losses,
    needs_are_sane, numbers_are_sane, observe, plausible, timed, varied as measured, within,
};
use super::{Checks, broken, ensure, kept};
use crate::abi::host::RemoteAllocator;
use crate::testing::request_over;
use crate::{
    Allocation, AllocationRequest, Allocator, LedgerEntry, ModuleInfo, Random, Result,
    TrialRequest, Unit,
};

pub fn check(checks: &mut Checks, setup: &Setup<'_>) {
    let units = setup.units(MODULES);
    let fresh = || setup.allocator(&units);
    let plain = |seed| varied(&units, 7, seed);
    checks.check("needs", || {
        let needs = fresh()?.needs();
        let scores = match needs.scores {
            true => "scores",
            false => "no scores",
        };
        Ok(format!("{scores}; {}", needs_are_sane(&needs)?))
    });
    if fresh().is_ok_and(|allocator| !allocator.needs().scores) {
        checks.check("reads no scores", || ignores_scores(setup, &units));
    }
    checks.check("wishes", || {
        wishes(fresh, &units, |allocator| {
            checked(allocator, &plain(0), setup).map(drop)
        })
    });
    checks.check("answers a request", || {
        let allocation = answer(setup, &plain(0))?;
        let active = allocation.active.iter().filter(|active| **active).count();
        Ok(format!(
            "{active} of {MODULES} active{}",
            extras(&allocation)
        ))
    });
    checks.check("answers before the first step", || {
        let mut allocator = fresh()?;
        before_the_first_step(&mut allocator, &units, 2)?;
        let mut first = request_over(&units, &plain(0).scores);
        first.step = 0;
        checked(&mut allocator, &first, setup)?;
        kept()
    });
    checks.check("same request, same answer", || {
        let (one, other) = (answer(setup, &plain(0))?, answer(setup, &plain(0))?);
        ensure(one == other, || {
            "two fresh allocators answer the same request differently".into()
        })?;
        kept()
    });
    checks.check("an unknown field", || {
        let later = setup.allocator_through(&units, |carrier| Box::new(Later(carrier)))?;
        let after = |allocator| {
            let (mut allocator, request): (RemoteAllocator, _) = (allocator, plain(0));
            before_the_first_step(&mut allocator, &units, 1)?;
            let answer = seen(&mut allocator, &request, setup)?;
            let state = allocator.save()?;
            allocator.load(&state)?;
            Ok::<_, crate::Error>(answer)
        };
        ensure(after(later)? == after(fresh()?)?, || {
            "with a field that it does not know in each call, it answers differently".into()
        })?;
        kept()
    });
    checks.check("seeds", || {
        let mut answers = HashSet::new();
        for seed in 0..20 {
            answers.insert(answer(setup, &plain(seed))?.active);
        }
        Ok(match answers.len() {
            1 => "does not depend on the seed".to_owned(),
            answers => format!("{answers} different answers to 20 seeds"),
        })
    });
    checks.check("numbers", || {
        let mut allocator = fresh()?;
        seen(&mut allocator, &plain(0), setup)?;
        numbers_are_sane(&allocator.numbers()?, MODULES)
    });
    checks.check("state comes back", || state_comes_back(setup, &units));
    checks.check("refuses a damaged state", || {
        let mut used = fresh()?;
        seen(&mut used, &plain(0), setup)?;
        damaged(&used.save()?, |bad| fresh()?.load(bad))
    });
    trials(checks, setup, &units);
    scores(checks, setup);
    if fresh().is_ok_and(|allocator| allocator.needs().measures()) {
        for (name, measure) in EXTREMES {
            checks.check(name, || {
                two_periods(setup, &units, measure)?;
                kept()
            });
        }
    }
    checks.check("a schedule of its own", || own_schedule(setup, &units));
    if setup.unit == Unit::Module {
        checks.check("whole layers", || layers(&setup.by_layers()));
    }
    let needs = fresh().map(|made| made.needs()).unwrap_or_default();
    for &(name, count) in large(&needs) {
        checks.check(name, || {
            let units = setup.units(count);
            let (mut allocator, made) = timed("made in", || setup.allocator(&units))?;
            before_the_first_step(&mut allocator, &units, 1)?;
            // The last step before a reallocation is a probe.
            let steps = || observe(&mut allocator, &units, EVERY - 1..=EVERY, &measured);
            let (told, stepped) = timed("two steps", steps)?;
            let request = varied(&units, 7, 0);
            let (_, chosen) = timed("chosen in", || checked(&mut allocator, &request, setup))?;
            Ok(match told {
                0 => format!("{made}, {chosen}"),
                _ => format!("{made}, {stepped}, {chosen}"),
            })
        });
    }
}

/// Scores of every kind, with histories of every kind.
fn scores(checks: &mut Checks, setup: &Setup<'_>) {
    for (name, scores) in [
        ("equal scores", vec![0.25; MODULES]),
        ("all scores zero", vec![0.0; MODULES]),
        (
            "one score above zero",
            [vec![0.0; MODULES - 1], vec![1.0]].concat(),
        ),
        ("one module", vec![0.5]),
        ("one module of score zero", vec![0.0]),
        ("huge scores", vec![f64::MAX; MODULES]),
        ("subnormal scores", vec![5e-324; MODULES]),
        (
            "huge and subnormal scores",
            [f64::MAX, 5e-324, 0.0, 1.0].repeat(MODULES / 4),
        ),
    ] {
        checks.check(name, || {
            let units = setup.units(scores.len());
            for seed in 0..5 {
                let request = AllocationRequest {
                    seed,
                    ..request_over(&units, &scores)
                };
                answer(setup, &request)?;
            }
            kept()
        });
    }
    checks.check("extreme scores and histories", || {
        let units = setup.units(MODULES);
        for case in 0..200 {
            let request = extreme(&units, case);
            within(&format!("{:?}", request.scores), answer(setup, &request))?;
        }
        kept()
    });
}

fn trials(checks: &mut Checks, setup: &Setup<'_>, units: &[ModuleInfo]) {
    if setup
        .allocator(units)
        .is_ok_and(|allocator| allocator.needs().held_back == 0)
    {
        return;
    }
    checks.check("trials", || {
        let trials = || {
            let mut allocator = setup.allocator(units)?;
            observe(&mut allocator, units, 1..=3, &measured)?;
            allocator.trials(&trial_request(&varied(units, 7, 0)))
        };
        let first = trials()?;
        ensure(first == trials()?, || {
            "two fresh allocators ask for different trials".into()
        })?;
        Ok(format!(
            "{} on {} examples",
            first.trials.len(),
            first.examples
        ))
    });
    for (name, loss) in LOSSES {
        checks.check(name, || {
            let mut allocator = setup.allocator(units)?;
            observe(&mut allocator, units, 1..=EVERY, &measured)?;
            for index in 7..9 {
                checked_by(&mut allocator, &varied(units, index, 0), setup, loss)?;
            }
            kept()
        });
    }
}

/// What an answer says beside the mask.
fn extras(answer: &Allocation) -> String {
    let given = [
        ("components", answer.components.is_some()),
        ("rates", answer.rates.is_some()),
        ("scales", answer.scales.is_some()),
        ("shared", answer.shared.is_some()),
        ("ask_again", answer.ask_again.is_some()),
    ];
    let names: Vec<&str> = given
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(", with {}", names.join(", ")),
    }
}

/// Where the schedule leaves it to the allocator, it says when it is asked again, unless it refuses the run.
fn own_schedule(setup: &Setup<'_>, units: &[ModuleInfo]) -> Result<String> {
    let setup = setup.asked_by_its_answers();
    let mut allocator = match setup.allocator(units) {
        Ok(allocator) => allocator,
        Err(error) => {
            ensure(!super::panicked(&error), || error.to_string())?;
            return Ok(format!("refused: {error}"));
        }
    };
    let mut asks = Vec::new();
    for index in 0..3 {
        let answer = checked(&mut allocator, &varied(units, index, index), &setup)?;
        asks.push(answer.ask_again);
    }
    Ok(match asks[0] {
        None => "does not ask to be asked again".to_owned(),
        Some(steps) => format!("asks again after {steps} steps"),
    })
}

/// Over whole layers an allocator answers by the same rules, unless it refuses the run.
fn layers(setup: &Setup<'_>) -> Result<String> {
    let units = setup.units(6);
    let made = setup.allocator(&units);
    if let Err(error) = &made {
        ensure(!super::panicked(error), || error.to_string())?;
        return Ok(format!("refused: {error}"));
    }
    if made.is_ok_and(|allocator| allocator.needs().measures()) {
        // The host refuses it before it is told of the run.
        return Ok("measures single modules: it is never asked to choose among layers".into());
    }
    for seed in 0..5 {
        answer(setup, &varied(&units, 7, seed))?;
    }
    kept()
}

/// A request in the middle of a run, with scores and history that differ from module to module.
fn varied(units: &[ModuleInfo], reallocation: u64, seed: u64) -> AllocationRequest {
    let mut random = Random::new(units.len() as u64 + 1000 * reallocation);
    let scores: Vec<f64> = units.iter().map(|_| random.uniform() * 10.0).collect();
    let mut request = AllocationRequest {
        step: EVERY * reallocation,
        total_steps: 1000,
        reallocation,
        seed,
        ..request_over(units, &scores)
    };
    for index in 0..units.len() {
        let times_chosen = random.bits() % (reallocation + 1);
        let active = random.bits() & 1 == 1;
        request.ledger[index] = LedgerEntry {
            steps_active: EVERY * times_chosen,
            times_chosen,
            last_chosen: (times_chosen > 0).then_some(EVERY * times_chosen),
        };
        request.active[index] = active;
        request.ranks[index] *= u32::from(active);
    }
    request
}

/// An allocator that can be made bears extreme scores, histories and measurements.
pub fn bears_extremes(setup: &Setup<'_>) -> Result<()> {
    let units = setup.units(MODULES);
    setup.allocator(&units)?;
    for case in 0..20 {
        let request = extreme(&units, case);
        let answer = answer(setup, &request);
        within(&format!("scores {:?}", request.scores), answer).map_err(broken)?;
    }
    for (name, measure) in EXTREMES {
        within(name, two_periods(setup, &units, measure)).map_err(broken)?;
    }
    Ok(())
}

/// Two periods with a choice after each, as a host lives through them.
fn two_periods(setup: &Setup<'_>, units: &[ModuleInfo], measure: Measure<'_>) -> Result<()> {
    let mut allocator = setup.allocator(units)?;
    before_the_first_step(&mut allocator, units, 1)?;
    for (index, first) in [(7, 1), (8, EVERY + 1)] {
        observe(&mut allocator, units, first..=first + EVERY - 1, measure)?;
        checked(&mut allocator, &varied(units, index, 0), setup)?;
    }
    Ok(())
}

/// A request with scores and histories at the ends of what there can be; a function of `case` alone.
fn extreme(units: &[ModuleInfo], case: u64) -> AllocationRequest {
    const SCORES: [f64; 10] = [
        0.0,
        0.0,
        0.0,
        5e-324,
        1e-310,
        f64::MIN_POSITIVE,
        1.0,
        1e300,
        1e308,
        f64::MAX,
    ];
    const STEPS: [u64; 5] = [0, 0, 1, 1_000_000, u64::MAX];
    let mut random = Random::new(case);
    let mut pick = |length: usize| (random.bits() % length as u64) as usize;
    // Few values a case, so that equals and all-zeros come up.
    let (kinds, from) = (1 + pick(4), pick(SCORES.len()));
    let scores: Vec<f64> = (units.iter())
        .map(|_| SCORES[(from + pick(kinds)) % SCORES.len()])
        .collect();
    let mut request = AllocationRequest {
        seed: case,
        ..request_over(units, &scores)
    };
    for entry in &mut request.ledger {
        let steps_active = STEPS[pick(STEPS.len())];
        *entry = LedgerEntry {
            steps_active,
            times_chosen: steps_active.min(3),
            last_chosen: (steps_active > 0).then_some(50),
        };
    }
    request
}

/// The answer of a fresh allocator that has seen some steps, if it asks to.
fn answer(setup: &Setup<'_>, request: &AllocationRequest) -> Result<Allocation> {
    seen(&mut setup.allocator(&request.modules)?, request, setup)
}

/// The answer of this one after some steps.
fn seen(
    allocator: &mut RemoteAllocator,
    request: &AllocationRequest,
    setup: &Setup<'_>,
) -> Result<Allocation> {
    observe(allocator, &request.modules, 1..=3, &measured)?;
    checked(allocator, request, setup)
}

fn trial_request(request: &AllocationRequest) -> TrialRequest {
    TrialRequest {
        step: request.step,
        total_steps: request.total_steps,
        reallocation: request.reallocation,
        seed: request.seed,
        active: request.active.clone(),
        ranks: request.ranks.clone(),
    }
}

/// The answer, or the rule of [`Allocation`] it breaks.
fn checked(
    allocator: &mut RemoteAllocator,
    request: &AllocationRequest,
    setup: &Setup<'_>,
) -> Result<Allocation> {
    checked_by(allocator, request, setup, &plausible)
}

fn checked_by(
    allocator: &mut RemoteAllocator,
    request: &AllocationRequest,
    setup: &Setup<'_>,
    loss: &dyn Fn(usize) -> f64,
) -> Result<Allocation> {
    let mut request = request.clone();
    let trials = allocator.trials(&trial_request(&request));
    request.trials = losses(&allocator.needs(), trials, &request.modules, loss)?;
    let allocation = allocator.allocate(&request)?;
    let (active, modules) = (&allocation.active, &request.modules);
    ensure(active.len() == modules.len(), || {
        format!("{} flags for {} modules", active.len(), modules.len())
    })?;
    ensure(active.contains(&true), || "no module is active".into())?;
    if let Some(components) = &allocation.components {
        ensure(components.len() == modules.len(), || {
            format!(
                "components of {} modules for {}",
                components.len(),
                modules.len()
            )
        })?;
        for ((module, components), active) in modules.iter().zip(components).zip(active) {
            ensure(components.len() == module.components(), || {
                format!(
                    "{} components for a module of {}",
                    components.len(),
                    module.components()
                )
            })?;
            ensure(components.contains(&true) == *active, || {
                format!("components {components:?} for a module with active = {active}")
            })?;
        }
    }
    let count = modules.len();
    let lengths = [
        ("rates", allocation.rates.as_ref().map(Vec::len)),
        ("scales", allocation.scales.as_ref().map(Vec::len)),
        ("shared", allocation.shared.as_ref().map(Vec::len)),
    ];
    for (name, length) in lengths {
        ensure(length.is_none_or(|length| length == count), || {
            format!("`{name}` is of {length:?} modules, of {count}")
        })?;
    }
    let factors = allocation.rates.iter().flatten().flatten();
    let factors = factors.chain(allocation.scales.iter().flatten());
    for factor in factors {
        ensure(factor.is_finite() && *factor >= 0.0, || {
            format!("a factor is {factor}, expected finite and not negative")
        })?;
    }
    shared(modules, &allocation)?;
    ensure(allocation.ask_again != Some(0), || {
        "`ask_again` is 0: it is asked again after one step or more".into()
    })?;
    let leaves_it = setup.run.schedule == "allocator";
    ensure(allocation.ask_again.is_none() || leaves_it, || {
        "it answers with `ask_again`, though the schedule says when it is asked: `start` tells of the schedule".into()
    })?;
    Ok(allocation)
}

/// Who uses whose pair: one of the same shape and rank, that uses its own.
fn shared(modules: &[ModuleInfo], allocation: &Allocation) -> Result<()> {
    let Some(owners) = &allocation.shared else {
        return Ok(());
    };
    let shape = |module: usize| {
        let module = modules.get(module)?;
        Some((module.in_features, module.out_features, module.rank))
    };
    for (module, owner) in owners.iter().enumerate() {
        ensure(shape(*owner) == shape(module), || {
            format!("module {module} is to use the adapter of module {owner}, whose shape differs")
        })?;
        ensure(owners[*owner] == *owner, || {
            format!(
                "module {module} is to use the adapter of module {owner}, which uses another's itself"
            )
        })?;
    }
    Ok(())
}

/// Of an allocator that says so.
fn ignores_scores(setup: &Setup<'_>, units: &[ModuleInfo]) -> Result<String> {
    for seed in 0..20 {
        let request = varied(units, 7, seed);
        let other = AllocationRequest {
            scores: vec![0.0; MODULES],
            ..request.clone()
        };
        ensure(answer(setup, &request)? == answer(setup, &other)?, || {
            "needs no scores, but other scores change its answer".into()
        })?;
    }
    kept()
}

fn state_comes_back(setup: &Setup<'_>, units: &[ModuleInfo]) -> Result<String> {
    let requests: Vec<_> = (0..6)
        .map(|index| varied(units, index, 100 + index))
        .collect();
    let mut first = setup.allocator(units)?;
    before_the_first_step(&mut first, units, 1)?;
    for (step, request) in (1..).zip(&requests[..3]) {
        observe(&mut first, units, step..=step, &measured)?;
        checked(&mut first, request, setup)?;
    }
    let state = first.save()?;
    let mut second = setup.allocator(units)?;
    second.load(&state)?;
    ensure(second.save()? == state, || {
        "what is saved after loading is not what was loaded".into()
    })?;
    for (step, request) in (4..).zip(&requests[3..]) {
        let at = super::setup::upcoming(step);
        ensure(first.wants(&at) == second.wants(&at), || {
            format!("after loading its state it wants something else of step {step}")
        })?;
        for allocator in [&mut first, &mut second] {
            observe(allocator, units, step..=step, &measured)?;
        }
        let same = checked(&mut first, request, setup)? == checked(&mut second, request, setup)?;
        ensure(same, || {
            "after loading its state it answers differently".into()
        })?;
    }
    Ok(match state.len() {
        0 => "keeps no state".to_owned(),
        bytes => format!("{bytes} bytes"),
    })
}
