//! Rules of allocators.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Instant;

use super::scorer::{
    EXTREMES, Measure, losses, needs_are_sane, observation, upcoming, varied as varied_measurements,
};
use super::{Checks, broken, ensure, kept};
use crate::testing::request;
use crate::{
    Allocation, AllocationRequest, Allocator, LedgerEntry, ModuleInfo, Random, Result, TrialRequest,
};

type Make<'a> = &'a dyn Fn(&[ModuleInfo]) -> Result<Box<dyn Allocator>>;

pub fn check(checks: &mut Checks, make: Make<'_>) {
    let plain = || varied(24, 7, 0);
    checks.check("needs", || match make(&plain().modules)?.needs() {
        needs if needs.observes() || needs.held_back > 0 => needs_are_sane(&needs),
        needs if !needs.scores => ignores_scores(make),
        _ => Ok("scores".to_owned()),
    });
    checks.check("answers a request", || {
        let allocation = fresh(make, &plain())?;
        let active = allocation.active.iter().filter(|active| **active).count();
        Ok(format!("{active} of 24 modules"))
    });
    checks.check("same request, same answer", || {
        let (one, other) = (fresh(make, &plain())?, fresh(make, &plain())?);
        ensure(one == other, || {
            "two fresh allocators answer the same request differently".into()
        })?;
        kept()
    });
    checks.check("seeds", || {
        let mut answers = HashSet::new();
        for seed in 0..20 {
            answers.insert(fresh(make, &varied(24, 7, seed))?.active);
        }
        Ok(match answers.len() {
            1 => "does not depend on the seed".to_owned(),
            answers => format!("{answers} different answers to 20 seeds"),
        })
    });
    checks.check("state comes back", || state_comes_back(make));
    checks.check("refuses a damaged state", || {
        let mut used = make(&plain().modules)?;
        observe(&mut *used, 24, 1..=3, &varied_measurements)?;
        checked(&mut *used, &plain())?;
        let state = used.save()?;
        for bad in [b"\xff\x00 no state".as_slice(), &state[..state.len() / 2]] {
            // Half of nothing is nothing, which a plugin without a state takes.
            let refused = bad.is_empty() || make(&plain().modules)?.load(bad).is_err();
            ensure(refused, || {
                format!("takes {} bytes that are no state of its", bad.len())
            })?;
        }
        kept()
    });
    for (name, scores) in [
        ("equal scores", vec![0.25; 24]),
        ("all scores zero", vec![0.0; 24]),
        ("one score above zero", [vec![0.0; 23], vec![1.0]].concat()),
        ("one module", vec![0.5]),
        ("one module of score zero", vec![0.0]),
        ("huge scores", vec![f64::MAX; 24]),
        ("subnormal scores", vec![5e-324; 24]),
        (
            "huge and subnormal scores",
            [f64::MAX, 5e-324, 0.0, 1.0].repeat(6),
        ),
    ] {
        checks.check(name, || {
            for seed in 0..5 {
                let request = AllocationRequest {
                    seed,
                    ..request(&scores)
                };
                fresh(make, &request)?;
            }
            kept()
        });
    }
    if make(&plain().modules).is_ok_and(|allocator| allocator.needs().measures()) {
        for (name, measure) in EXTREMES {
            checks.check(name, || {
                let mut allocator = make(&plain().modules)?;
                observe(&mut *allocator, 24, 1..=4, measure)?;
                checked(&mut *allocator, &plain())?;
                observe(&mut *allocator, 24, 5..=6, measure)?;
                checked(&mut *allocator, &varied(24, 8, 0))?;
                kept()
            });
        }
    }
    checks.check("extreme scores and histories", || {
        for case in 0..200 {
            let request = extreme(24, case);
            fresh(make, &request).map_err(|error| format!("{:?}: {error}", request.scores))?;
        }
        kept()
    });
    checks.check("10,000 modules", || {
        let request = varied(10_000, 7, 0);
        let mut allocator = make(&request.modules)?;
        observe(&mut *allocator, 10_000, 1..=1, &varied_measurements)?;
        let start = Instant::now();
        checked(&mut *allocator, &request)?;
        Ok(format!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3))
    });
}

/// A request in the middle of a run, with scores and history that differ from module to module.
fn varied(modules: usize, reallocation: u64, seed: u64) -> AllocationRequest {
    let mut random = Random::new(modules as u64 + 1000 * reallocation);
    let scores: Vec<f64> = (0..modules).map(|_| random.uniform() * 10.0).collect();
    let mut request = AllocationRequest {
        step: 50 * reallocation,
        total_steps: 1000,
        reallocation,
        seed,
        ..request(&scores)
    };
    for index in 0..modules {
        let times_chosen = random.bits() % (reallocation + 1);
        let active = random.bits() & 1 == 1;
        request.ledger[index] = LedgerEntry {
            steps_active: 50 * times_chosen,
            times_chosen,
            last_chosen: (times_chosen > 0).then_some(50 * times_chosen),
        };
        request.active[index] = active;
        request.ranks[index] *= u32::from(active);
    }
    request
}

/// An allocator that can be made bears extreme scores, histories and measurements.
pub fn bears_extremes(make: Make<'_>) -> Result<()> {
    make(&crate::testing::modules(24))?;
    for case in 0..20 {
        let request = extreme(24, case);
        fresh(make, &request)
            .map_err(|error| broken(format!("scores {:?}: {error}", request.scores).into()))?;
    }
    for (name, measure) in EXTREMES {
        let bears = || {
            let mut allocator = make(&crate::testing::modules(24))?;
            observe(&mut *allocator, 24, 1..=3, measure)?;
            checked(&mut *allocator, &varied(24, 7, 0))
        };
        bears().map_err(|error| broken(format!("{name}: {error}").into()))?;
    }
    Ok(())
}

/// A request with scores and histories at the ends of what there can be; a function of `case` alone.
fn extreme(modules: usize, case: u64) -> AllocationRequest {
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
    let scores: Vec<f64> = (0..modules)
        .map(|_| SCORES[(from + pick(kinds)) % SCORES.len()])
        .collect();
    let mut request = AllocationRequest {
        seed: case,
        ..request(&scores)
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

/// The answer of an allocator that has seen some steps, if it asks to.
fn fresh(make: Make<'_>, request: &AllocationRequest) -> Result<Allocation> {
    let mut allocator = make(&request.modules)?;
    observe(
        &mut *allocator,
        request.modules.len(),
        1..=3,
        &varied_measurements,
    )?;
    checked(&mut *allocator, request)
}

/// Sends an allocator that asks for measurements those of some steps.
fn observe(
    allocator: &mut dyn Allocator,
    modules: usize,
    steps: RangeInclusive<u64>,
    measure: Measure<'_>,
) -> Result<()> {
    let needs = allocator.needs();
    for step in steps {
        let wants = allocator.wants(&upcoming(step));
        if wants.anything() && needs.observes() {
            allocator.observe(&observation(needs.clone(), wants, modules, step, measure))?;
        }
    }
    Ok(())
}

/// The answer, or the rule of [`Allocation`] it breaks.
fn checked(allocator: &mut dyn Allocator, request: &AllocationRequest) -> Result<Allocation> {
    let mut request = request.clone();
    let mut asked = TrialRequest::default();
    (asked.active, asked.ranks) = (request.active.clone(), request.ranks.clone());
    (asked.step, asked.total_steps) = (request.step, request.total_steps);
    (asked.reallocation, asked.seed) = (request.reallocation, request.seed);
    let trials = allocator.trials(&asked);
    request.trials = losses(&allocator.needs(), trials, request.modules.len())?;
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
    for (module, owner) in allocation.shared.iter().flatten().enumerate() {
        let shape = |module: usize| modules.get(module).map(|m| (m.in_features, m.out_features));
        ensure(shape(*owner) == shape(module), || {
            format!("module {module} is to use the adapter of module {owner}, whose shape differs")
        })?;
    }
    ensure(allocation.ask_again != Some(0), || {
        "`ask_again` is 0".into()
    })?;
    Ok(allocation)
}

/// Of an allocator that says so.
fn ignores_scores(make: Make<'_>) -> Result<String> {
    for seed in 0..20 {
        let request = varied(24, 7, seed);
        let other = AllocationRequest {
            scores: vec![0.0; 24],
            ..request.clone()
        };
        ensure(fresh(make, &request)? == fresh(make, &other)?, || {
            "needs no scores, but other scores change its answer".into()
        })?;
    }
    Ok("nothing, not even scores".to_owned())
}

fn state_comes_back(make: Make<'_>) -> Result<String> {
    let requests: Vec<_> = (0..6).map(|index| varied(24, index, 100 + index)).collect();
    let mut first = make(&requests[0].modules)?;
    for (step, request) in (1..).zip(&requests[..3]) {
        observe(&mut *first, 24, step..=step, &varied_measurements)?;
        checked(&mut *first, request)?;
    }
    let state = first.save()?;
    let mut second = make(&requests[0].modules)?;
    second.load(&state)?;
    ensure(second.save()? == state, || {
        "what is saved after loading is not what was loaded".into()
    })?;
    for (step, request) in (4..).zip(&requests[3..]) {
        for allocator in [&mut first, &mut second] {
            observe(&mut **allocator, 24, step..=step, &varied_measurements)?;
        }
        let same = checked(&mut *first, request)? == checked(&mut *second, request)?;
        ensure(same, || {
            "after loading its state it answers differently".into()
        })?;
    }
    Ok(match state.len() {
        0 => "keeps no state".to_owned(),
        bytes => format!("{bytes} bytes"),
    })
}
