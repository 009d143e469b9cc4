//! Rules of scorers.

use super::common::{Later, damaged, wishes};
use super::setup::{
    EVERY, EXTREMES, LOSSES, MODULES, Measure, Setup, before_the_first_step, large, losses,
    needs_are_sane, numbers_are_sane, observe, plausible, timed, varied, within,
};
use super::{Checks, broken, ensure, kept};
use crate::abi::host::RemoteScorer;
use crate::testing::score_request;
use crate::{ModuleInfo, Result, ScoreRequest, Scorer, TrialRequest};

pub fn check(checks: &mut Checks, setup: &Setup<'_>) {
    let modules = setup.units(MODULES);
    let fresh = || setup.scorer(&modules);
    checks.check("needs", || needs_are_sane(&fresh()?.needs()));
    checks.check("wishes", || {
        wishes(fresh, &modules, |scorer| scores(scorer, &modules).map(drop))
    });
    checks.check("scores before the first step", || {
        let mut scorer = fresh()?;
        scores(&mut scorer, &modules)?;
        let mut scorer = fresh()?;
        before_the_first_step(&mut scorer, &modules, 2)?;
        scores(&mut scorer, &modules)?;
        kept()
    });
    checks.check("scores after some steps", || some_steps(setup, &modules));
    checks.check("same steps, same scores", || {
        let after = || {
            let mut scorer = fresh()?;
            period(&mut scorer, &modules, 0, &varied)?;
            Ok::<_, crate::Error>(bits(&scores(&mut scorer, &modules)?))
        };
        ensure(after()? == after()?, || {
            "two fresh scorers answer the same steps differently".into()
        })?;
        kept()
    });
    checks.check("asking twice changes nothing", || {
        let mut scorer = fresh()?;
        period(&mut scorer, &modules, 0, &varied)?;
        let first = bits(&scores(&mut scorer, &modules)?);
        ensure(bits(&scores(&mut scorer, &modules)?) == first, || {
            "the second answer differs from the first".into()
        })?;
        kept()
    });
    checks.check("an unknown field", || {
        let after = |mut scorer: RemoteScorer| {
            before_the_first_step(&mut scorer, &modules, 1)?;
            period(&mut scorer, &modules, 0, &varied)?;
            let scores = bits(&scores(&mut scorer, &modules)?);
            scorer.reallocated(&chosen(MODULES))?;
            let state = scorer.save()?;
            scorer.load(&state)?;
            Ok::<_, crate::Error>(scores)
        };
        let later = setup.scorer_through(&modules, |carrier| Box::new(Later(carrier)))?;
        ensure(after(later)? == after(fresh()?)?, || {
            "with a field that it does not know in each call, it scores differently".into()
        })?;
        kept()
    });
    checks.check("numbers", || {
        let mut scorer = fresh()?;
        period(&mut scorer, &modules, 0, &varied)?;
        scores(&mut scorer, &modules)?;
        numbers_are_sane(&scorer.numbers()?, MODULES)
    });
    checks.check("state comes back", || state_comes_back(setup, &modules));
    checks.check("refuses a damaged state", || {
        let mut used = fresh()?;
        period(&mut used, &modules, 0, &varied)?;
        damaged(&used.save()?, |bad| fresh()?.load(bad))
    });
    trials(checks, setup, &modules);
    let one: (&str, usize, Measure<'_>) = ("one module", 1, &varied);
    let many = EXTREMES.map(|(name, measure)| (name, MODULES, measure));
    for (name, count, measure) in many.into_iter().chain([one]) {
        checks.check(name, || {
            two_periods(setup, &setup.units(count), measure)?;
            kept()
        });
    }
    let needs = fresh().map(|made| made.needs()).unwrap_or_default();
    for &(name, count) in large(&needs) {
        checks.check(name, || {
            let modules = setup.units(count);
            let (mut scorer, made) = timed("made in", || setup.scorer(&modules))?;
            before_the_first_step(&mut scorer, &modules, 1)?;
            // The last step before a reallocation is a probe.
            let steps = || observe(&mut scorer, &modules, EVERY - 1..=EVERY, &varied);
            let (_, stepped) = timed("two steps", steps)?;
            let (_, scored) = timed("scores", || scores(&mut scorer, &modules))?;
            Ok(format!("{made}, {stepped}, {scored}"))
        });
    }
}

/// A scorer that can be made bears every extreme measurement.
pub fn bears_extremes(setup: &Setup<'_>) -> Result<()> {
    let modules = setup.units(MODULES);
    setup.scorer(&modules)?;
    for (name, measure) in EXTREMES {
        within(name, two_periods(setup, &modules, measure)).map_err(broken)?;
    }
    Ok(())
}

/// Two periods with a reallocation between them, as a host lives through them.
fn two_periods(setup: &Setup<'_>, modules: &[ModuleInfo], measure: Measure<'_>) -> Result<()> {
    let mut scorer = setup.scorer(modules)?;
    before_the_first_step(&mut scorer, modules, 1)?;
    for index in 0..2 {
        period(&mut scorer, modules, index, measure)?;
        scores(&mut scorer, modules)?;
        scorer.reallocated(&chosen(modules.len()))?;
    }
    Ok(())
}

/// Some scores are above zero once anything has been measured. A scorer that measures nothing, or nothing of these
/// steps, may give whatever it likes.
fn some_steps(setup: &Setup<'_>, modules: &[ModuleInfo]) -> Result<String> {
    let mut scorer = setup.scorer(modules)?;
    before_the_first_step(&mut scorer, modules, 1)?;
    let told = period(&mut scorer, modules, 0, &varied)?;
    let scores = scores(&mut scorer, modules)?;
    let nothing = scores.iter().all(|score| *score == 0.0);
    ensure(told == 0 || !nothing, || {
        format!("every score is zero, though it was told of {told} steps' measurements")
    })?;
    Ok(match (told, nothing) {
        (0, true) => "nothing was measured; every score is zero".to_owned(),
        (0, false) => "nothing was measured".to_owned(),
        (told, _) => format!("measured in {told} of {EVERY} steps"),
    })
}

fn trials(checks: &mut Checks, setup: &Setup<'_>, modules: &[ModuleInfo]) {
    if setup
        .scorer(modules)
        .is_ok_and(|scorer| scorer.needs().held_back == 0)
    {
        return;
    }
    checks.check("trials", || {
        let asked = || {
            let mut scorer = setup.scorer(modules)?;
            period(&mut scorer, modules, 0, &varied)?;
            scorer.trials(&trial_request(&score_request(MODULES)))
        };
        let first = asked()?;
        ensure(first == asked()?, || {
            "two fresh scorers ask for different trials".into()
        })?;
        Ok(format!(
            "{} on {} examples",
            first.trials.len(),
            first.examples
        ))
    });
    for (name, loss) in LOSSES {
        checks.check(name, || {
            let mut scorer = setup.scorer(modules)?;
            period(&mut scorer, modules, 0, &varied)?;
            scores_by(&mut scorer, modules, loss)?;
            kept()
        });
    }
}

/// Which of so many modules are active after a reallocation.
fn chosen(count: usize) -> Vec<bool> {
    (0..count).map(|module| module.is_multiple_of(2)).collect()
}

/// The steps of the period of this index; how many of them were measured.
fn period(
    scorer: &mut RemoteScorer,
    modules: &[ModuleInfo],
    index: u64,
    measure: Measure<'_>,
) -> Result<usize> {
    observe(
        scorer,
        modules,
        index * EVERY + 1..=(index + 1) * EVERY,
        measure,
    )
}

/// The scores, or the rule they break.
pub fn scores(scorer: &mut RemoteScorer, modules: &[ModuleInfo]) -> Result<Vec<f64>> {
    scores_by(scorer, modules, &plausible)
}

fn trial_request(request: &ScoreRequest) -> TrialRequest {
    TrialRequest {
        step: request.step,
        total_steps: request.total_steps,
        reallocation: request.reallocation,
        seed: request.seed,
        active: request.active.clone(),
        ranks: request.ranks.clone(),
    }
}

fn scores_by(
    scorer: &mut RemoteScorer,
    modules: &[ModuleInfo],
    loss: &dyn Fn(usize) -> f64,
) -> Result<Vec<f64>> {
    let count = modules.len();
    let mut request = score_request(count);
    let trials = scorer.trials(&trial_request(&request));
    request.trials = losses(&scorer.needs(), trials, modules, loss)?;
    let scores = scorer.scores(&request)?;
    ensure(scores.len() == count, || {
        format!("{} scores for {count} modules", scores.len())
    })?;
    for (module, score) in scores.iter().enumerate() {
        ensure(score.is_finite() && *score >= 0.0, || {
            format!("the score of module {module} is {score}, expected finite and not negative")
        })?;
    }
    Ok(scores)
}

fn bits(scores: &[f64]) -> Vec<u64> {
    scores.iter().map(|score| score.to_bits()).collect()
}

fn state_comes_back(setup: &Setup<'_>, modules: &[ModuleInfo]) -> Result<String> {
    let mut first = setup.scorer(modules)?;
    before_the_first_step(&mut first, modules, 1)?;
    // In the middle of a period, as a checkpoint may come.
    let middle = EVERY / 2;
    observe(&mut first, modules, 1..=middle, &varied)?;
    let state = first.save()?;
    let mut second = setup.scorer(modules)?;
    second.load(&state)?;
    ensure(second.save()? == state, || {
        "what is saved after loading is not what was loaded".into()
    })?;
    for step in middle + 1..=3 * EVERY {
        let at = super::setup::upcoming(step);
        ensure(first.wants(&at) == second.wants(&at), || {
            format!("after loading its state it wants something else of step {step}")
        })?;
    }
    for (steps, what) in [
        (middle + 1..=EVERY, "after loading its state"),
        (EVERY + 1..=2 * EVERY, "after loading and a reallocation"),
    ] {
        let mut both = Vec::new();
        for scorer in [&mut first, &mut second] {
            observe(scorer, modules, steps.clone(), &varied)?;
            both.push(bits(&scores(scorer, modules)?));
            scorer.reallocated(&chosen(modules.len()))?;
        }
        ensure(both[0] == both[1], || {
            format!("{what} it scores differently")
        })?;
    }
    Ok(match state.len() {
        0 => "keeps no state".to_owned(),
        bytes => format!("{bytes} bytes"),
    })
}
