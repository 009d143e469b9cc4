//! Rules of scorers.

use std::collections::HashSet;
use std::time::Instant;

use super::{Checks, broken, ensure, kept};
use crate::testing::{RANK, modules, score_request};
use crate::{
    Measured, ModuleInfo, Needs, Observation, Random, Raw, RawValue, Result, Scorer, Signal,
    TrialLosses, TrialRequest, Trials, Upcoming, Wants,
};

type Make<'a> = &'a dyn Fn(&[ModuleInfo]) -> Result<Box<dyn Scorer>>;

const MODULES: usize = 24;

/// Steps to a reallocation: a scorer that measures a sample of steps, or only those that probe, has scores then.
const PERIOD: u64 = 50;

pub fn check(checks: &mut Checks, make: Make<'_>) {
    let fresh = || make(&modules(MODULES));
    checks.check("needs", || needs_are_sane(&fresh()?.needs()));
    checks.check("scores before the first step", || {
        checked(&mut *fresh()?, MODULES)?;
        kept()
    });
    checks.check("scores after some steps", || {
        let mut scorer = fresh()?;
        run(&mut *scorer, MODULES, 1..=PERIOD, &varied)?;
        let scores = checked(&mut *scorer, MODULES)?;
        ensure(scores.iter().any(|score| *score > 0.0), || {
            "every score is zero".into()
        })?;
        kept()
    });
    checks.check("same steps, same scores", || {
        let mut scores = Vec::new();
        for _ in 0..2 {
            let mut scorer = fresh()?;
            run(&mut *scorer, MODULES, 1..=PERIOD, &varied)?;
            scores.push(bits(&checked(&mut *scorer, MODULES)?));
        }
        ensure(scores[0] == scores[1], || {
            "two fresh scorers answer the same steps differently".into()
        })?;
        kept()
    });
    checks.check("asking twice changes nothing", || {
        let mut scorer = fresh()?;
        run(&mut *scorer, MODULES, 1..=3, &varied)?;
        let first = bits(&checked(&mut *scorer, MODULES)?);
        let second = bits(&checked(&mut *scorer, MODULES)?);
        ensure(first == second, || {
            "the second answer differs from the first".into()
        })?;
        kept()
    });
    checks.check("state comes back", || state_comes_back(make));
    checks.check("refuses a damaged state", || {
        let mut used = fresh()?;
        run(&mut *used, MODULES, 1..=3, &varied)?;
        let state = used.save()?;
        for bad in [b"\xff\x00 no state".as_slice(), &state[..state.len() / 2]] {
            // Half of nothing is nothing, which a plugin without a state takes.
            let refused = bad.is_empty() || fresh()?.load(bad).is_err();
            ensure(refused, || {
                format!("takes {} bytes that are no state of its", bad.len())
            })?;
        }
        kept()
    });
    let one: (&str, usize, Measure<'_>) = ("one module", 1, &varied);
    let many = EXTREMES.map(|(name, measure)| (name, MODULES, measure));
    for (name, count, measure) in many.into_iter().chain([one]) {
        checks.check(name, || {
            let mut scorer = make(&modules(count))?;
            run(&mut *scorer, count, 1..=4, measure)?;
            checked(&mut *scorer, count)?;
            scorer.reallocated(&active(count))?;
            run(&mut *scorer, count, 5..=6, measure)?;
            checked(&mut *scorer, count)?;
            kept()
        });
    }
    checks.check("10,000 modules", || {
        let mut scorer = make(&modules(10_000))?;
        let observation = observation(scorer.needs(), Wants::ALL, 10_000, 1, &varied);
        let start = Instant::now();
        scorer.observe(&observation)?;
        let step = start.elapsed();
        checked(&mut *scorer, 10_000)?;
        Ok(format!("{:.1} ms a step", step.as_secs_f64() * 1e3))
    });
}

/// Which of so many modules are active after a reallocation.
fn active(count: usize) -> Vec<bool> {
    (0..count).map(|module| module.is_multiple_of(2)).collect()
}

/// A scorer that can be made bears every extreme measurement.
pub fn bears_extremes(make: Make<'_>) -> Result<()> {
    make(&modules(MODULES))?;
    let bears = |measure| {
        let mut scorer = make(&modules(MODULES))?;
        for steps in [1..=3, 4..=6] {
            run(&mut *scorer, MODULES, steps, measure)?;
            checked(&mut *scorer, MODULES)?;
            scorer.reallocated(&active(MODULES))?;
        }
        Ok(())
    };
    for (name, measure) in EXTREMES {
        bears(measure).map_err(|error: crate::Error| broken(format!("{name}: {error}").into()))?;
    }
    Ok(())
}

/// What is measured of a module at a step.
pub type Measure<'a> = &'a dyn Fn(u64, usize) -> Option<f32>;

/// Measurements that a plugin must bear, and what they are.
pub const EXTREMES: [(&str, Measure<'static>); 7] = [
    ("nothing measured", &|_, _| None),
    ("most modules never measured", &|_, module| {
        (module == 3).then_some(1.0)
    }),
    ("equal measurements", &|_, _| Some(0.5)),
    ("all measurements zero", &|_, _| Some(0.0)),
    ("huge measurements", &|_, _| Some(f32::MAX)),
    ("subnormal measurements", &|_, _| Some(1e-45)),
    ("huge and subnormal measurements", &|_, module| {
        Some([f32::MAX, 1e-45, 0.0, 1.0][module % 4])
    }),
];

/// Values that differ from module to module and step to step, with some missing.
pub fn varied(step: u64, module: usize) -> Option<f32> {
    let mut random = Random::new(step * 1_000_003 + module as u64);
    (random.uniform() > 0.1).then(|| (random.uniform() * 10.0) as f32)
}

/// What the host would send at `step`, over so many [`modules`], of what is wanted of it.
pub fn observation(
    needs: Needs,
    wants: Wants,
    count: usize,
    step: u64,
    measure: Measure<'_>,
) -> Observation {
    let active: Vec<bool> = (0..count)
        .map(|module| !(module as u64 + step).is_multiple_of(3))
        .collect();
    let probing = upcoming(step).probing;
    let value = |signal: &Signal, module: usize| {
        let gradient = [
            Signal::GRADIENT_L1,
            Signal::GRADIENT_L2,
            Signal::OUTPUT_GRADIENT_L2,
            Signal::GRADIENT_DOT_WEIGHT,
            Signal::GRADIENT_DOT_WEIGHT_ABS,
            Signal::FISHER,
        ];
        // A gradient is missing wherever the module is inactive, outside a probe, all else wherever the case says.
        (!gradient.contains(signal) || active[module] || probing || count == 1)
            .then(|| measure(step, module))
            .flatten()
    };
    let signals = needs.signals.iter().filter(|_| wants.signals);
    let signals = signals.map(|signal| Measured {
        signal: signal.clone(),
        values: (0..count).map(|module| value(signal, module)).collect(),
    });
    let buffer = |module| measure(step, module).map_or(Vec::new(), |value| vec![value; 16]);
    let raw = needs.raw.iter().filter(|_| wants.raw);
    let raw = raw.map(|value: &RawValue| Raw {
        value: value.clone(),
        buffers: (0..count).map(buffer).collect(),
    });
    // The components of a module differ, but for what a case says of all.
    let module = |module| match value(&Signal::GRADIENT_L1, module) {
        Some(value) => (1..=RANK).map(|k| value / k as f32).collect(),
        None => Vec::new(),
    };
    Observation {
        step,
        total_steps: 1000,
        tokens: 128,
        loss: 0.5,
        learning_rate: 1e-3,
        signals: signals.collect(),
        raw: raw.collect(),
        components: match needs.components && wants.components {
            true => (0..count).map(module).collect(),
            false => Vec::new(),
        },
        active,
        probing,
        ..Observation::default()
    }
}

/// Step `step` as it is announced, in a run with a reallocation after every fiftieth.
pub fn upcoming(step: u64) -> Upcoming {
    Upcoming {
        step,
        total_steps: 1000,
        previous_reallocation: Some((step - 1) / PERIOD * PERIOD).filter(|step| *step > 0),
        next_reallocation: Some(step.div_ceil(PERIOD) * PERIOD),
        probing: step.is_multiple_of(PERIOD),
    }
}

/// Losses for whatever trials are asked for.
pub fn losses(needs: &Needs, trials: Result<Trials>, count: usize) -> Result<Option<TrialLosses>> {
    if needs.held_back == 0 {
        return Ok(None);
    }
    let Trials { examples, trials } = trials?;
    ensure(examples <= needs.held_back, || {
        format!(
            "asks for trials on {examples} examples, of {} held back",
            needs.held_back
        )
    })?;
    for trial in &trials {
        let lengths = [
            trial.factors.len(),
            trial.components.as_ref().map_or(count, Vec::len),
        ];
        ensure(
            [0, count].contains(&lengths[0]) && lengths[1] == count,
            || format!("asks for a trial of {lengths:?} modules, of {count}"),
        )?;
        ensure(
            trial.factors.iter().all(|factor| factor.is_finite()),
            || format!("asks for a trial with the factors {:?}", trial.factors),
        )?;
    }
    let loss = |at| 0.5 + 0.1 * Random::new(at as u64).uniform();
    Ok((!trials.is_empty())
        .then(|| TrialLosses::new(examples, 0.5, (0..trials.len()).map(loss).collect())))
}

fn run(
    scorer: &mut dyn Scorer,
    count: usize,
    steps: std::ops::RangeInclusive<u64>,
    measure: Measure<'_>,
) -> Result<()> {
    let needs = scorer.needs();
    for step in steps {
        let wants = scorer.wants(&upcoming(step));
        if wants.anything() && needs.observes() {
            scorer.observe(&observation(needs.clone(), wants, count, step, measure))?;
        }
    }
    Ok(())
}

/// The scores, or the rule they break.
fn checked(scorer: &mut dyn Scorer, count: usize) -> Result<Vec<f64>> {
    let mut request = score_request(count);
    let mut asked = TrialRequest::default();
    (asked.active, asked.ranks) = (request.active.clone(), request.ranks.clone());
    let trials = scorer.trials(&asked);
    request.trials = losses(&scorer.needs(), trials, count)?;
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

pub fn needs_are_sane(needs: &Needs) -> Result<String> {
    let signals: HashSet<_> = needs.signals.iter().collect();
    let raw: HashSet<_> = needs.raw.iter().collect();
    ensure(
        signals.len() == needs.signals.len() && raw.len() == needs.raw.len(),
        || "it asks for the same thing twice".into(),
    )?;
    let mut named: Vec<String> = needs
        .signals
        .iter()
        .map(|signal| signal.to_string())
        .collect();
    named.extend(needs.raw.iter().map(|raw| format!("raw {raw}")));
    named.extend(needs.components.then(|| "components".to_owned()));
    named.extend(needs.steps.then(|| "steps".to_owned()));
    named.extend((needs.held_back > 0).then(|| format!("trials on {} examples", needs.held_back)));
    Ok(match named.is_empty() {
        true => "nothing is measured".to_owned(),
        false => named.join(", "),
    })
}

fn state_comes_back(make: Make<'_>) -> Result<String> {
    let mut first = make(&modules(MODULES))?;
    run(&mut *first, MODULES, 1..=5, &varied)?;
    let state = first.save()?;
    let mut second = make(&modules(MODULES))?;
    second.load(&state)?;
    ensure(second.save()? == state, || {
        "what is saved after loading is not what was loaded".into()
    })?;
    for scorer in [&mut first, &mut second] {
        run(&mut **scorer, MODULES, 6..=PERIOD, &varied)?;
    }
    let same = bits(&checked(&mut *first, MODULES)?) == bits(&checked(&mut *second, MODULES)?);
    ensure(same, || {
        "after loading its state it scores differently".into()
    })?;
    for scorer in [&mut first, &mut second] {
        scorer.reallocated(&active(MODULES))?;
        run(&mut **scorer, MODULES, PERIOD + 1..=2 * PERIOD, &varied)?;
    }
    let same = bits(&checked(&mut *first, MODULES)?) == bits(&checked(&mut *second, MODULES)?);
    ensure(same, || {
        "after a reallocation a loaded scorer scores differently".into()
    })?;
    Ok(match state.len() {
        0 => "keeps no state".to_owned(),
        bytes => format!("{bytes} bytes"),
    })
}
