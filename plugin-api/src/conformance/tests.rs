//! The kit itself: good plugins keep every rule, and each rule has one that breaks it alone.

use std::cell::Cell;

use serde_json::json;

use super::*;
use crate::abi::host::RemoteScorer;
use crate::message::{Fields, Value as Field};
use crate::{
    Accumulated, Allocation, AllocationRequest, Budget, Limit, Needs, Numbers, Observation,
    RawValue, Reduce, ScoreRequest, Signal, Start, Trial, TrialRequest, Trials, Unit, Upcoming,
    Wants, Window, draw_without_replacement,
};

/// What a bent plugin answers in place of the good one; none to leave the answer as it is. The last argument counts
/// the calls of this name.
type Bend = fn(&str, &Fields<'_>, &Result<Option<Fields<'static>>>, u64) -> Option<Answer>;
type Answer = Result<Option<Fields<'static>>>;

/// A good plugin some of whose answers are others.
struct Bent {
    good: InProcess,
    bend: Bend,
    calls: std::collections::HashMap<String, u64>,
}

impl Carrier for Bent {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Answer {
        let calls = self.calls.entry(name.to_owned()).or_default();
        *calls += 1;
        // The good plugin is not loaded where the bent one says that it was.
        let untouched = Ok(None);
        if name == "load"
            && let Some(answer) = (self.bend)(name, fields, &untouched, *calls)
        {
            return answer;
        }
        let answer = self.good.call(name, fields);
        (self.bend)(name, fields, &answer, *calls).unwrap_or(answer)
    }
}

fn bent(kind: Kind, bend: Bend) -> Report {
    let table = match kind {
        Kind::Scorer => table::<(ScorerSide<Good>,)>(),
        Kind::Allocator => table::<(AllocatorSide<Good>,)>(),
    };
    let manifest = host::manifest(table, kind, "0.0.0").unwrap();
    check(manifest, None, &|parameters, modules| {
        Ok(Box::new(Bent {
            good: InProcess::new(table, kind, &parameters.to_string(), modules)?,
            bend,
            calls: Default::default(),
        }))
    })
}

/// That this rule is broken, with these words in what is said of it.
#[track_caller]
fn breaks(report: &Report, rule: &str, words: &str) {
    let found = report.checks.iter().find(|check| check.name == rule);
    let found = found.unwrap_or_else(|| panic!("`{rule}` is not checked: {report:#?}"));
    assert!(
        !found.passed && found.detail.contains(words),
        "{rule}: {words:?} is missing: {found:?}"
    );
}

fn answer(fields: Fields<'static>) -> Option<Answer> {
    Some(Ok(Some(fields)))
}

/// Measures, draws, asks for trials, keeps a state: what a plugin may do, well done.
struct Good {
    total: Accumulated,
    limit: Limit,
    seen: u64,
}

impl Plugin for Good {
    type Parameters = Budget;
    const NAME: &'static str = "good";
    const DESCRIPTION: &'static str = "Does everything.";
    const REFERENCE: &'static str = "a test";
    const FORMULA: &'static str = "y = x";

    fn new(budget: Budget, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Good {
            total: Accumulated::new(Window::Run, Reduce::Mean, modules.len())?,
            limit: budget.resolve(modules)?,
            seen: 0,
        })
    }
}

impl Good {
    fn asks() -> Needs {
        Needs::signals([Signal::GRADIENT_L2, Signal::named("frozen_weight_l2")])
            .and_raw([RawValue::WEIGHT])
            .and_components()
            .and_held_back(16)
    }

    /// The last ten steps before a reallocation.
    fn wishes(upcoming: &Upcoming) -> Wants {
        let left = upcoming.next_reallocation.map(|next| next - upcoming.step);
        Wants::all_if(left.is_some_and(|left| left < 10))
    }

    fn take_in(&mut self, observation: &Observation) -> Result<()> {
        self.seen += 1;
        match observation.measured(&Signal::GRADIENT_L2) {
            Some(values) => {
                let values = values.iter().map(|v| v.map(f64::from));
                self.total.add(observation.step, values)
            }
            None => Ok(()),
        }
    }

    fn ablate(request: &TrialRequest) -> Trials {
        let count = request.active.len();
        Trials::new(8, (0..count).map(|at| Trial::without(at, count)).collect())
    }

    fn own(&self) -> Numbers {
        Numbers::from([("seen".to_owned(), vec![self.seen as f64])])
    }

    fn keep(&self) -> Result<Vec<u8>> {
        crate::save_state(&(self.total.save()?, self.seen))
    }

    fn take_back(&mut self, state: &[u8]) -> Result<()> {
        let (total, seen): (Vec<u8>, u64) = crate::load_state(state)?;
        self.total.load(&total)?;
        self.seen = seen;
        Ok(())
    }
}

impl Scorer for Good {
    fn needs(&self) -> Needs {
        Good::asks()
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        Good::wishes(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.take_in(observation)
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        Ok(Good::ablate(request))
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        let losses = request.trials.as_ref().ok_or("no trials were made")?;
        let scores = self.total.scores().into_iter().zip(&losses.losses);
        Ok(scores
            .map(|(score, loss)| (score + loss).min(f64::MAX))
            .collect())
    }

    fn numbers(&self) -> Result<Numbers> {
        Ok(self.own())
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.keep()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.take_back(state)
    }
}

impl Allocator for Good {
    fn needs(&self) -> Needs {
        Good::asks()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.limit.start(start)?;
        Ok(Vec::new())
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        Good::wishes(upcoming)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.take_in(observation)
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        Ok(Good::ablate(request))
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let mut random = crate::Random::new(request.seed);
        let count = request.modules.len();
        let order = draw_without_replacement(&vec![1.0; count], count, &mut random);
        let mut answer = Allocation::of(self.limit.take(order)?, count);
        let kept = request.modules.iter().zip(&answer.active);
        answer.components = Some(
            kept.map(|(module, active)| vec![*active; module.components()])
                .collect(),
        );
        answer.rates = Some(vec![[1.0, 16.0]; count]);
        answer.scales = Some(vec![0.5; count]);
        answer.shared = Some((0..count).collect());
        Ok(answer)
    }

    fn numbers(&self) -> Result<Numbers> {
        Ok(self.own())
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.keep()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.take_back(state)
    }
}

#[test]
fn what_does_everything_well_keeps_every_rule() {
    let scorer = scorer::<Good>();
    scorer.assert();
    let allocator = allocator::<Good>();
    allocator.assert();
    let detail = |report: &Report, rule: &str| {
        let found = report.checks.iter().find(|check| check.name == rule);
        found.map(|check| check.detail.clone()).unwrap_or_default()
    };
    assert_eq!(
        detail(&scorer, "scores after some steps"),
        "measured in 10 of 50 steps"
    );
    assert_eq!(detail(&scorer, "numbers"), "seen");
    assert_eq!(detail(&allocator, "trials"), "24 on 8 examples");
    assert!(detail(&allocator, "answers a request").contains("rates, scales, shared"));
    assert!(detail(&allocator, "wishes").contains("20 of 100"));
    assert!(bent(Kind::Scorer, |_, _, _, _| None).passed());
    assert!(bent(Kind::Allocator, |_, _, _, _| None).passed());
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct None_ {}

/// A table of fixed scores, of which all may be zero.
struct Fixed;

impl Plugin for Fixed {
    type Parameters = None_;
    const NAME: &'static str = "fixed";
    const DESCRIPTION: &'static str = "Gives every module the score zero.";
    const REFERENCE: &'static str = "a test";

    fn new(_: None_, _: &[ModuleInfo]) -> Result<Self> {
        Ok(Fixed)
    }
}

impl Scorer for Fixed {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn observe(&mut self, _: &Observation) -> Result<()> {
        Err("it asked for nothing".into())
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        Ok(vec![0.0; request.active.len()])
    }
}

#[test]
fn a_scorer_that_measures_nothing_may_score_zero() {
    let report = scorer::<Fixed>();
    report.assert();
    let found = report
        .checks
        .iter()
        .find(|check| check.name == "scores after some steps");
    assert!(found.unwrap().detail.contains("nothing was measured"));
    // And the largest model that any is tried on.
    let table = table::<(ScorerSide<Fixed>,)>();
    let manifest = host::manifest(table, Kind::Scorer, "0.0.0").unwrap();
    let report = check(manifest, None, &|parameters, modules| match modules.len() {
        10_000 => Err("too many".into()),
        _ => {
            let parameters = parameters.to_string();
            let made = InProcess::new(table, Kind::Scorer, &parameters, modules)?;
            Ok(Box::new(made))
        }
    });
    breaks(&report, "10,000 modules", "too many");
}

/// Works by layers, under a schedule of its own, and nowhere else.
struct Choosy(bool);

impl Plugin for Choosy {
    type Parameters = None_;
    const NAME: &'static str = "choosy";
    const DESCRIPTION: &'static str = "Takes one kind of run.";
    const REFERENCE: &'static str = "a test";

    fn new(_: None_, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Choosy(
            modules.iter().all(|module| !module.members.is_empty()),
        ))
    }
}

impl Allocator for Choosy {
    fn needs(&self) -> Needs {
        Needs::default().without_scores()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        match (start.unit, start.schedule.as_str()) {
            (Unit::Layer, "allocator") => Ok(Vec::new()),
            _ => Err("it says itself when it is asked, and chooses layers".into()),
        }
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let mut answer = Allocation::of([0], request.modules.len());
        answer.ask_again = Some(7);
        // Made over layers, or it would not come here.
        assert!(self.0 || request.modules.len() == 1);
        Ok(answer)
    }
}

#[test]
fn one_that_takes_only_some_runs_is_checked_in_those() {
    let report = allocator::<Choosy>();
    report.assert();
    let found = report
        .checks
        .iter()
        .find(|check| check.name == "a schedule of its own");
    assert_eq!(found.unwrap().detail, "asks again after 7 steps");
}

#[test]
fn rules_of_the_boundary() {
    let report = bent(Kind::Scorer, |name, _, _, _| match name {
        "no-such-call" => Some(Err("what?".into())),
        _ => None,
    });
    breaks(&report, "an unknown call", "fails");
    let report = bent(Kind::Allocator, |name, _, _, _| match name {
        "no-such-call" => answer(Fields::new()),
        _ => None,
    });
    breaks(&report, "an unknown call", "answers");
    let report = bent(Kind::Scorer, |name, _, _, calls| match (name, calls) {
        ("needs", 2..) => answer(Needs::signals([Signal::WEIGHT_L2]).to_fields().unwrap()),
        _ => None,
    });
    breaks(&report, "needs do not change", "differently");
    let report = bent(Kind::Scorer, |name, _, _, _| match name {
        "needs" => answer(Needs::default().to_fields().unwrap()),
        _ => None,
    });
    breaks(&report, "trials need examples", "never made");
    for kind in [Kind::Scorer, Kind::Allocator] {
        // Minds a field that it does not know.
        let report = bent(kind, |name, fields, _, _| {
            let strange = |(field, _): (&str, &Field<'_>)| field.starts_with("no_such");
            let minds = ["observe", "wants"].contains(&name);
            (minds && fields.iter().any(strange)).then(|| Err("what is that?".into()))
        });
        breaks(&report, "an unknown field", "what is that?");
        let report = bent(kind, |name, _, _, _| match name {
            "start" => Some(Err("never".into())),
            _ => None,
        });
        breaks(&report, "any run", "it refuses every run");
        let report = bent(kind, |name, fields, _, _| match name {
            "start"
                if fields
                    .text("start")
                    .unwrap()
                    .unwrap()
                    .contains(r#""unit":"layer""#) =>
            {
                Some(Err("it panicked".into()))
            }
            _ => None,
        });
        assert_eq!(
            report
                .checks
                .iter()
                .any(|it| it.name == "any run" && !it.passed),
            kind == Kind::Allocator,
            "a scorer is not told of layers"
        );
    }
}

#[test]
fn needs_and_wishes() {
    for kind in [Kind::Scorer, Kind::Allocator] {
        let report = bent(kind, |name, _, _, _| match name {
            "needs" => {
                let twice = Needs::signals([Signal::WEIGHT_L2, Signal::WEIGHT_L2]);
                answer(twice.to_fields().unwrap())
            }
            _ => None,
        });
        breaks(&report, "needs", "weight_l2 twice");
        let report = bent(kind, |name, _, _, _| match name {
            "needs" => answer(
                Needs::signals([Signal::named("Gradient L2")])
                    .to_fields()
                    .unwrap(),
            ),
            _ => None,
        });
        breaks(&report, "needs", "cannot be a name");
        let report = bent(kind, |name, _, _, calls| match name {
            "wants" => answer(Wants::all_if(calls % 2 == 0).to_fields()),
            _ => None,
        });
        breaks(&report, "wishes", "asked twice what it wants of step 1");
        // By how often anyone was asked: two that have seen the same want different things.
        let report = bent(kind, |name, _, _, _| {
            thread_local!(static CALLS: Cell<u64> = const { Cell::new(0) });
            match name {
                "start" => CALLS.set(0),
                "wants" => {
                    CALLS.set(CALLS.get() + 1);
                    return answer(Wants::all_if(CALLS.get().is_multiple_of(3)).to_fields());
                }
                _ => {}
            }
            None
        });
        breaks(&report, "wishes", "want different things of step 1");
        // What it wants hangs on how often it was asked, which no state keeps.
        let report = bent(kind, |name, _, _, calls| match name {
            "wants" => answer(Wants::all_if(calls > 3).to_fields()),
            _ => None,
        });
        breaks(&report, "state comes back", "wants something else of step");
    }
}

#[test]
fn rules_of_scorers() {
    fn scores(values: Vec<f64>) -> Option<Answer> {
        answer(Fields::new().with("scores", Field::F64s(values.into())))
    }
    fn asked(fields: &Fields<'_>) -> usize {
        fields.bools("active").unwrap().unwrap().len()
    }
    let bent = |bend| bent(Kind::Scorer, bend);
    let report = bent(|name, fields, _, _| match name {
        "scores" => scores(vec![1.0; asked(fields) - 1]),
        _ => None,
    });
    breaks(&report, "scores before the first step", "23 scores for 24");
    let report = bent(|name, fields, _, _| match name {
        "scores" => scores(vec![f64::NAN; asked(fields)]),
        _ => None,
    });
    breaks(&report, "one module", "NaN");
    breaks(&report, "extreme parameters", "= ");
    let report = bent(|name, fields, _, _| match name {
        "scores" if asked(fields) == 1000 => scores(vec![-1.0; 1000]),
        _ => None,
    });
    breaks(&report, "1,000 modules", "is -1");
    let report = bent(|name, fields, _, _| match name {
        "scores" => scores(vec![0.0; asked(fields)]),
        _ => None,
    });
    breaks(&report, "scores after some steps", "10 steps' measurements");
    let report = bent(|name, fields, _, calls| match name {
        "scores" => scores(vec![calls as f64; asked(fields)]),
        _ => None,
    });
    breaks(&report, "asking twice changes nothing", "differs");
    let report = bent(|name, fields, _, _| match name {
        "scores" => {
            thread_local!(static CALLS: Cell<u64> = const { Cell::new(0) });
            CALLS.set(CALLS.get() + 1);
            scores(vec![CALLS.get() as f64; asked(fields)])
        }
        _ => None,
    });
    breaks(&report, "same steps, same scores", "differently");
    breaks(&report, "state comes back", "scores differently");
    // Measurements of zero, which it cannot bear.
    let report = bent(|name, fields, _, _| match name {
        "observe" => {
            let values = fields
                .f32s("signals.gradient_l2")
                .unwrap()
                .unwrap_or_default();
            (values.contains(&0.0)).then(|| Err("a zero".into()))
        }
        _ => None,
    });
    breaks(&report, "all measurements zero", "a zero");
    // The moments before the first step.
    let report = bent(|name, fields, _, _| match name {
        "observe" if fields.text("moment").unwrap() == Some("calibration") => {
            Some(Err("too early".into()))
        }
        _ => None,
    });
    breaks(&report, "scores before the first step", "too early");
    let report = bent(|name, fields, _, _| match name {
        "observe" if fields.text("moment").unwrap() == Some("start") => {
            assert!(fields.get("signals.frozen_weight_l2").is_some());
            assert!(fields.get("signals.gradient_l2").is_none());
            Some(Err("what is measured once".into()))
        }
        "observe" => {
            assert!(fields.get("signals.frozen_weight_l2").is_none());
            None
        }
        _ => None,
    });
    breaks(&report, "scores before the first step", "measured once");
    // A probe, in which inactive modules have gradients too.
    let report = bent(|name, fields, _, _| match name {
        "observe" if fields.flag("probing").unwrap() == Some(true) => Some(Err("a probe".into())),
        _ => None,
    });
    breaks(&report, "scores after some steps", "a probe");
}

#[test]
fn rules_of_states_numbers_and_trials() {
    for kind in [Kind::Scorer, Kind::Allocator] {
        let report = bent(kind, |name, _, _, _| match name {
            "load" => answer(Fields::new()),
            _ => None,
        });
        breaks(&report, "refuses a damaged state", "no state of its");
        breaks(&report, "state comes back", "not what was loaded");
        let report = bent(kind, |name, _, _, _| match name {
            "numbers" => answer(Fields::new().with("a b", Field::Real(1.0))),
            _ => None,
        });
        breaks(&report, "numbers", "\"a b\"");
        let report = bent(kind, |name, _, _, _| match name {
            "numbers" => answer(Fields::new().with("two", Field::F64s(vec![1.0, 2.0].into()))),
            _ => None,
        });
        breaks(&report, "numbers", "`two` has 2 values");
        let report = bent(kind, |name, _, _, _| match name {
            "trials" => answer(Trials::new(17, vec![Trial::default()]).to_fields().unwrap()),
            _ => None,
        });
        breaks(&report, "equal losses", "17 examples, of 16");
        let report = bent(kind, |name, _, _, _| match name {
            "trials" => {
                let trial = Trial::scaled(vec![1.0; 7]);
                answer(Trials::new(8, vec![trial]).to_fields().unwrap())
            }
            _ => None,
        });
        breaks(&report, "equal losses", "7 factors");
        let report = bent(kind, |name, _, _, _| match name {
            "trials" => {
                let trial = Trial::of_components(vec![vec![true]; 24]);
                answer(Trials::new(8, vec![trial]).to_fields().unwrap())
            }
            _ => None,
        });
        breaks(&report, "equal losses", "one flag per component");
        let report = bent(kind, |name, fields, _, _| match name {
            "trials" => {
                thread_local!(static CALLS: Cell<u64> = const { Cell::new(0) });
                CALLS.set(CALLS.get() + 1);
                let count = fields.bools("active").unwrap().unwrap().len();
                let trial = Trial::without(CALLS.get() as usize % count, count);
                answer(Trials::new(8, vec![trial]).to_fields().unwrap())
            }
            _ => None,
        });
        breaks(&report, "trials", "different trials");
        let report = bent(kind, |name, fields, _, _| match name {
            "scores" | "allocate" => {
                let losses = fields.f64s("trials.losses").unwrap().unwrap_or_default();
                (losses.contains(&1e300)).then(|| Err("too much".into()))
            }
            _ => None,
        });
        breaks(&report, "huge losses", "too much");
    }
}

/// The good answer, changed.
fn changed(good: &Answer, change: impl FnOnce(&mut Allocation)) -> Option<Answer> {
    let fields = good.as_ref().ok()?.as_ref()?;
    let mut allocation = Allocation::from_fields(fields).unwrap();
    change(&mut allocation);
    answer(allocation.to_fields().into_owned())
}

#[test]
fn rules_of_allocators() {
    let bent = |bend| bent(Kind::Allocator, bend);
    macro_rules! answers {
        ($change:expr) => {
            bent(|name, _, good, _| match name {
                "allocate" => changed(good, $change),
                _ => None,
            })
        };
    }
    let rule = "answers a request";
    breaks(
        &answers!(|it| it.active = vec![true]),
        rule,
        "1 flags for 24",
    );
    breaks(
        &answers!(|it| {
            it.active.fill(false);
            it.components = None;
        }),
        rule,
        "no module is active",
    );
    breaks(
        &answers!(|it| it.components = Some(vec![vec![true]; 24])),
        rule,
        "1 components for a module of 8",
    );
    breaks(
        &answers!(|it| it.components = Some(vec![vec![false; 8]; 24])),
        rule,
        "active = true",
    );
    breaks(
        &answers!(|it| it.rates = Some(vec![[1.0; 2]])),
        rule,
        "`rates`",
    );
    breaks(
        &answers!(|it| it.rates = Some(vec![[1.0, -1.0]; 24])),
        rule,
        "a factor is -1",
    );
    breaks(
        &answers!(|it| it.scales = Some(vec![f64::NAN; 24])),
        rule,
        "a factor is NaN",
    );
    breaks(
        &answers!(|it| it.shared = Some(vec![0; 24])),
        rule,
        "shape differs",
    );
    breaks(
        &answers!(|it| {
            let mut shared: Vec<usize> = (0..24).collect();
            (shared[0], shared[1]) = (1, 2);
            it.shared = Some(shared);
        }),
        rule,
        "uses another's itself",
    );
    breaks(
        &answers!(|it| it.ask_again = Some(0)),
        rule,
        "`ask_again` is 0",
    );
    let asks = answers!(|it| it.ask_again = Some(5));
    breaks(&asks, rule, "`start` tells of the schedule");
    let own = asks
        .checks
        .iter()
        .find(|it| it.name == "a schedule of its own");
    assert!(own.unwrap().passed);
    // By layers a layer's components are those of its members.
    let report = bent(|name, fields, good, _| match name {
        // One that measures is never asked to choose among layers.
        "needs" => answer(Needs::default().and_held_back(16).to_fields().unwrap()),
        "allocate" if fields.u64s("ranks").unwrap().unwrap().len() == 6 => {
            changed(good, |it| it.components = Some(vec![vec![true; 8]; 6]))
        }
        _ => None,
    });
    breaks(&report, "whole layers", "8 components for a module of 48");
    assert!(
        report
            .checks
            .iter()
            .find(|it| it.name == rule)
            .unwrap()
            .passed
    );
}

#[test]
fn answers_that_depend_on_what_they_should_not() {
    let bent = |bend| bent(Kind::Allocator, bend);
    thread_local!(static CALLS: Cell<usize> = const { Cell::new(0) });
    let report = bent(|name, fields, _, _| match name {
        "allocate" => {
            CALLS.set(CALLS.get() + 1);
            let count = fields.bools("active").unwrap().unwrap().len();
            let chosen = Allocation::of([CALLS.get() % count], count);
            answer(chosen.to_fields().into_owned())
        }
        _ => None,
    });
    breaks(&report, "same request, same answer", "differently");
    breaks(&report, "state comes back", "answers differently");
    let report = bent(|name, fields, _, _| match name {
        "needs" => answer(Needs::default().without_scores().to_fields().unwrap()),
        "allocate" => {
            let scores = fields.f64s("scores").unwrap().unwrap();
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            answer(Allocation::of(best, scores.len()).to_fields().into_owned())
        }
        _ => None,
    });
    breaks(&report, "reads no scores", "other scores");
    for (rule, bend) in [
        (
            "all scores zero",
            (|name, fields, _, _| {
                let zero = || {
                    fields
                        .f64s("scores")
                        .unwrap()
                        .unwrap()
                        .iter()
                        .all(|it| *it == 0.0)
                };
                (name == "allocate" && zero()).then(|| Err("nothing to go by".into()))
            }) as Bend,
        ),
        ("extreme scores and histories", |name, fields, _, _| {
            let long = || {
                fields
                    .u64s("ledger.steps_active")
                    .unwrap()
                    .unwrap()
                    .contains(&u64::MAX)
            };
            (name == "allocate" && long()).then(|| Err("nothing to go by".into()))
        }),
        ("answers before the first step", |name, fields, _, _| {
            let first = || fields.int("step").unwrap() == Some(0);
            (name == "allocate" && first()).then(|| Err("nothing to go by".into()))
        }),
        ("1,000 modules", |name, fields, _, _| {
            let many = || fields.f64s("scores").unwrap().unwrap().len() == 1000;
            (name == "allocate" && many()).then(|| Err("nothing to go by".into()))
        }),
        ("nothing measured", |name, fields, _, _| {
            let values = || fields.f32s("signals.gradient_l2").unwrap();
            let none = || values().is_some_and(|all| all.iter().all(|it| it.is_nan()));
            (name == "observe" && none()).then(|| Err("nothing to go by".into()))
        }),
    ] {
        breaks(&bent(bend), rule, "nothing to go by");
    }
}

/// Breaks the rules of manifests and parameters.
struct Untold;

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Loose {
    #[serde(default)]
    #[allow(dead_code)]
    k: serde_json::Value,
}

impl Plugin for Untold {
    type Parameters = Loose;
    const NAME: &'static str = "Un_told";
    const DESCRIPTION: &'static str = "no sentence";
    const REFERENCE: &'static str = " ";

    fn new(_: Loose, _: &[ModuleInfo]) -> Result<Self> {
        Ok(Untold)
    }
}

impl Scorer for Untold {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn observe(&mut self, _: &Observation) -> Result<()> {
        Ok(())
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        Ok(vec![1.0; request.active.len()])
    }
}

#[test]
fn rules_of_manifests_and_parameters() {
    let report = scorer::<Untold>();
    breaks(&report, "manifest", "kebab case");
    breaks(&report, "parameter schema", "deny_unknown_fields");
    breaks(&report, "refuses an unknown parameter", "takes");
    let manifest = report.manifest;
    let told = |change: fn(&mut Manifest)| {
        let mut manifest = manifest.clone();
        manifest.name = "untold".into();
        change(&mut manifest);
        check(manifest, None, &|_, _| Err("no".into()))
    };
    breaks(&told(|_| {}), "manifest", "one sentence");
    let reference = told(|manifest| manifest.description = "A sentence.".into());
    breaks(&reference, "manifest", "reference is empty");
    breaks(&reference, "accepts its parameters", "no");
    let undescribed = told(|manifest| {
        manifest.parameters = json!({
            "type": "object", "additionalProperties": false, "properties": {"k": {}}
        });
    });
    breaks(&undescribed, "parameter schema", "`k` has no description");
    // One that takes whatever it is given breaks what its schema says.
    let table = table::<(ScorerSide<Good>,)>();
    let manifest = host::manifest(table, Kind::Scorer, "0.0.0").unwrap();
    let good = json!({"k": "50%"}).to_string();
    let report = check(manifest, None, &|_, modules| {
        Ok(Box::new(InProcess::new(
            table,
            Kind::Scorer,
            &good,
            modules,
        )?))
    });
    breaks(&report, "refuses bad values", "takes");
    breaks(&report, "refuses what is no table", "takes");
}

#[test]
fn layers_are_made_of_their_members() {
    let layers = crate::testing::layers(2);
    assert_eq!(layers[1].path, "encoder.layer.1");
    assert_eq!(layers[1].members[5].path, "encoder.layer.1.down");
    assert_eq!(layers[1].components(), 48);
    let modules = crate::testing::modules(12);
    let parameters: u64 = modules[6..].iter().map(|module| module.parameters).sum();
    assert_eq!(layers[1].parameters, parameters);
    let table = table::<(ScorerSide<Fixed>,)>();
    RemoteScorer::in_process(table, "{}", &layers).unwrap();
}
