use std::sync::{Arc, Mutex};

use dynalora_plugin_api as api;
use dynalora_plugin_api::{Allocation, Count, Result as PluginResult};

use super::*;
use crate::allocation::offer::{RawValue, Signal};
use crate::allocation::state::State;
use crate::allocation::unit::tests::encoder;
use crate::recipe::Unit;

/// Scores a module by the number of steps it was observed in, plus its position.
#[derive(Default)]
struct Counting {
    needs: Needs,
    observed: u64,
    answer: Option<Vec<f64>>,
}

impl Scorer for Counting {
    fn needs(&self) -> Needs {
        self.needs.clone().and_steps()
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        let mut wants = Wants::ALL;
        wants.raw = upcoming.step.is_multiple_of(2);
        wants
    }

    fn observe(&mut self, _: &Observation) -> PluginResult<()> {
        self.observed += 1;
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> PluginResult<Vec<f64>> {
        let own = (0..5).map(|at| (self.observed * 10 + at) as f64).collect();
        Ok(self.answer.clone().unwrap_or(own))
    }

    fn reallocated(&mut self, _: &[bool]) -> PluginResult<()> {
        self.observed = 0;
        Ok(())
    }

    fn save(&self) -> PluginResult<Vec<u8>> {
        Ok(self.observed.to_le_bytes().to_vec())
    }

    fn load(&mut self, state: &[u8]) -> PluginResult<()> {
        let bytes = state
            .try_into()
            .map_err(|_| "eight bytes, please".to_owned())?;
        self.observed = u64::from_le_bytes(bytes);
        Ok(())
    }
}

/// Gives the answers it was made with, in turn, and keeps what it was asked.
struct Scripted {
    answers: Vec<Allocation>,
    asked: Arc<Mutex<Vec<AllocationRequest>>>,
    needs: Needs,
    observed: Arc<Mutex<Vec<u64>>>,
}

impl Allocator for Scripted {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn observe(&mut self, observation: &Observation) -> PluginResult<()> {
        self.observed.lock().unwrap().push(observation.step);
        Ok(())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> PluginResult<Allocation> {
        self.asked.lock().unwrap().push(request.clone());
        let next = self.answers.get(request.reallocation as usize);
        next.cloned().ok_or_else(|| "out of answers".into())
    }
}

type Asked = Arc<Mutex<Vec<AllocationRequest>>>;

fn settings(schedule: Schedule) -> Settings {
    Settings {
        costs: None,
        initial_ranks: None,
        schedule,
        initial_budget: None,
        first_choice: None,
        learning_rate: 1e-3,
        probe_steps: 1,
        prunable: true,
        seed: 3,
        total_steps: 10,
    }
}

fn scorer(counting: Counting) -> Option<Named<dyn Scorer>> {
    Some(Named {
        name: "counting".to_owned(),
        plugin: Box::new(counting),
    })
}

fn allocator(answers: &[Allocation]) -> (Option<Named<dyn Allocator>>, Asked) {
    let asked = Asked::default();
    let plugin = Box::new(Scripted {
        answers: answers.to_vec(),
        asked: asked.clone(),
        needs: Needs::default(),
        observed: Arc::default(),
    });
    (
        Some(Named {
            name: "scripted".to_owned(),
            plugin,
        }),
        asked,
    )
}

fn controller(unit: Unit, counting: Counting, answers: &[Allocation]) -> (Controller, Asked) {
    let (allocator, asked) = allocator(answers);
    let units = Units::new(unit, encoder());
    let settings = settings(Schedule::Periodic { every: 2 });
    (
        Controller::new(settings, units, scorer(counting), allocator).unwrap(),
        asked,
    )
}

/// The first so many of each module's eight components.
fn first_components(ranks: [usize; 5]) -> Vec<Vec<bool>> {
    let module = |rank| (0..8).map(|k| k < rank).collect();
    ranks.map(module).to_vec()
}

fn observation(step: u64, active: &[bool]) -> Observation {
    let mut observation = Observation::default();
    (observation.step, observation.active) = (step, active.to_vec());
    observation
}

fn advance(controller: &mut Controller) -> Result<Option<Reallocation>> {
    let step = controller.step() + 1;
    let measuring = controller.upcoming(step);
    let active = controller.active().to_vec();
    controller.after_step(&measuring, &observation(step, &active))?;
    match controller.is_due() {
        true => controller.reallocate(&TrialsMade::default()).map(Some),
        false => Ok(None),
    }
}

#[test]
fn without_reallocations_it_needs_no_plugins_and_only_keeps_the_ledger() {
    let units = Units::new(Unit::Module, encoder());
    let mut controller = Controller::new(settings(Schedule::Never {}), units, None, None).unwrap();
    assert_eq!(controller.upcoming(1), Measuring::default());
    for _ in 0..10 {
        assert_eq!(advance(&mut controller).unwrap(), None);
    }
    assert!(
        controller
            .ledger()
            .iter()
            .all(|entry| entry.steps_active == 10 && entry.times_chosen == 0)
    );
    assert_eq!(controller.ranks(), [8; 5]);
}

#[test]
fn a_schedule_that_comes_due_asks_for_both_plugins() {
    let build = |scorer, allocator| {
        let units = Units::new(Unit::Module, encoder());
        Controller::new(
            settings(Schedule::Once { after: 5 }),
            units,
            scorer,
            allocator,
        )
    };
    let error = build(None, allocator(&[]).0).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the schedule reallocates, but there is no scorer"
    );
    let error = build(scorer(Counting::default()), None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the schedule reallocates, but there is no allocator"
    );
    let none = Units::new(Unit::Module, vec![]);
    assert!(Controller::new(settings(Schedule::Never {}), none, None, None).is_err());
}

#[test]
fn asks_when_due_switches_and_reports_what_changed() {
    let answers = [
        Allocation::of([0, 4], 5),
        Allocation::of_components(first_components([4, 8, 0, 0, 0])),
    ];
    let (mut controller, asked) = controller(Unit::Module, Counting::default(), &answers);
    assert_eq!(advance(&mut controller).unwrap(), None);
    let first = advance(&mut controller).unwrap().unwrap();
    assert_eq!((first.step, first.index), (2, 0));
    assert_eq!(first.scores, [20.0, 21.0, 22.0, 23.0, 24.0]);
    assert_eq!(first.active, [true, false, false, false, true]);
    assert_eq!(first.ranks, [8, 0, 0, 0, 8]);
    assert_eq!(controller.components(), None);
    assert_eq!(
        (first.activated, first.deactivated),
        (vec![], vec![1, 2, 3])
    );
    advance(&mut controller).unwrap();
    let second = advance(&mut controller).unwrap().unwrap();
    // Told of the first reallocation, the scorer counted anew.
    assert_eq!(second.scores, [20.0, 21.0, 22.0, 23.0, 24.0]);
    assert_eq!((second.activated, second.deactivated), (vec![1], vec![4]));
    assert_eq!(controller.ranks(), [4, 8, 0, 0, 0]);
    let components = first_components([4, 8, 0, 0, 0]);
    assert_eq!(controller.components(), Some(&components[..]));
    let entry = |steps_active, times_chosen, last_chosen| LedgerEntry {
        steps_active,
        times_chosen,
        last_chosen,
    };
    assert_eq!(
        second.ledger[..3],
        [
            entry(4, 2, Some(4)),
            entry(2, 1, Some(4)),
            entry(2, 0, None)
        ]
    );

    let asked = asked.lock().unwrap();
    assert_eq!(
        (asked[1].step, asked[1].total_steps, asked[1].reallocation),
        (4, 10, 1)
    );
    assert_eq!(asked[1].ranks, [8, 0, 0, 0, 8]);
    assert_eq!(asked[1].ledger[0], entry(4, 1, Some(2)));
    assert_eq!(asked[1].seed, reallocation_seed(3, 1));
    assert_ne!(asked[0].seed, asked[1].seed);
}

/// A controller with an allocator that asks for `needs`, and the steps it was told of.
fn measuring(
    unit: Unit,
    scorer: Option<Named<dyn Scorer>>,
    needs: Needs,
    answers: &[Allocation],
) -> (Result<Controller>, Asked, Arc<Mutex<Vec<u64>>>) {
    let (asked, observed) = (Asked::default(), Arc::<Mutex<Vec<u64>>>::default());
    let allocator = Named {
        name: "scripted".to_owned(),
        plugin: Box::new(Scripted {
            answers: answers.to_vec(),
            asked: asked.clone(),
            needs,
            observed: observed.clone(),
        }) as Box<dyn Allocator>,
    };
    let units = Units::new(unit, encoder());
    let settings = settings(Schedule::Periodic { every: 4 });
    let controller = Controller::new(settings, units, scorer, Some(allocator));
    (controller, asked, observed)
}

#[test]
fn an_allocator_that_measures_needs_no_scorer() {
    let components = Needs::default().and_components();
    let answers = [
        Allocation::of_components(first_components([3, 0, 0, 0, 8])),
        Allocation::of_components(first_components([0, 1, 0, 0, 0])),
    ];
    let (controller, asked, observed) = measuring(Unit::Module, None, components.clone(), &answers);
    let mut controller = controller.unwrap();
    assert!(controller.upcoming(1).wanted.components);
    // All modules are active before the first reallocation, and inactive ones probed before the next.
    assert!(!controller.upcoming(4).probing);
    let reallocations: Vec<_> = (0..10)
        .filter_map(|_| advance(&mut controller).unwrap())
        .collect();
    assert!(reallocations[0].scores.is_empty());
    assert_eq!(reallocations[0].ranks, [3, 0, 0, 0, 8]);
    assert_eq!(reallocations[1].ranks, [0, 1, 0, 0, 0]);
    assert_eq!(reallocations[1].deactivated, [0, 4]);
    let asked = asked.lock().unwrap();
    assert_eq!(
        (&asked[1].scores, &asked[1].ranks),
        (&vec![0.0; 5], &vec![3, 0, 0, 0, 8])
    );
    // Nothing is measured once the last reallocation is past.
    assert_eq!(*observed.lock().unwrap(), (1..=8).collect::<Vec<u64>>());

    let (controller, ..) = measuring(Unit::Module, None, components.clone(), &answers);
    let mut controller = controller.unwrap();
    for _ in 0..4 {
        advance(&mut controller).unwrap();
    }
    assert!(!controller.upcoming(7).probing && controller.upcoming(8).probing);

    // Its needs come beside the scorer's, once each.
    let needs = |signals: &[api::Signal]| {
        Needs::signals(signals.iter().cloned()).and_raw([api::RawValue::WEIGHT])
    };
    let of_scorer = Counting {
        needs: Needs::signals([api::Signal::DELTA_L2]).and_raw([api::RawValue::GRADIENT]),
        ..Counting::default()
    };
    let both = needs(&[api::Signal::WEIGHT_L2, api::Signal::DELTA_L2]);
    let (controller, ..) = measuring(Unit::Module, scorer(of_scorer), both, &answers);
    let controller = controller.unwrap();
    let wanted = controller.upcoming(1).wanted;
    assert_eq!(wanted.signals, [Signal::DeltaL2, Signal::WeightL2]);
    // The scorer wants raw values of even steps, the allocator of all.
    assert_eq!(wanted.raw, [RawValue::Weight]);
    let wanted = controller.upcoming(2).wanted;
    assert_eq!(wanted.raw, [RawValue::Gradient, RawValue::Weight]);

    let (refused, ..) = measuring(Unit::Layer, None, components, &answers);
    let error = refused.err().unwrap();
    assert!(
        error.to_string().contains("chooses among layers"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn an_allocator_that_reads_no_scores_needs_no_scorer() {
    let needs = Needs::default().without_scores();
    for unit in [Unit::Module, Unit::Layer] {
        let units = if unit == Unit::Module { 5 } else { 3 };
        let answers = [Allocation::of([1], units), Allocation::of([2], units)];
        let (controller, asked, observed) = measuring(unit, None, needs.clone(), &answers);
        let mut controller = controller.unwrap();
        assert_eq!(controller.upcoming(1), Measuring::default());
        let reallocations: Vec<_> = (0..8)
            .filter_map(|_| advance(&mut controller).unwrap())
            .collect();
        assert_eq!(reallocations.len(), asked.lock().unwrap().len());
        assert!(reallocations.iter().all(|one| one.scores.is_empty()));
        assert!(observed.lock().unwrap().is_empty());
    }
}

#[test]
fn layers_are_chosen_whole() {
    let answer = Allocation::of([1], 3);
    let (mut controller, asked) = controller(Unit::Layer, Counting::default(), &[answer]);
    advance(&mut controller).unwrap();
    let reallocation = advance(&mut controller).unwrap().unwrap();
    assert_eq!(reallocation.ranks, [0, 0, 8, 8, 0]);
    assert_eq!(reallocation.scores.len(), 5);
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0].scores, [41.0, 45.0, 24.0]);
    assert_eq!(asked[0].modules[1].path, "encoder.layer.1");
    assert_eq!(asked[0].ledger.len(), 3);
}

#[test]
fn the_initial_draw_is_by_unit() {
    let half = Settings {
        initial_budget: Some(Count::Exactly(1).into()),
        ..settings(Schedule::Never {})
    };
    for seed in 0..20 {
        let units = Units::new(Unit::Layer, encoder());
        let controller = Controller::new(
            Settings {
                seed,
                ..half.clone()
            },
            units,
            None,
            None,
        )
        .unwrap();
        let active = controller.active();
        assert_eq!((active[0], active[2]), (active[1], active[3]));
        assert_eq!(
            [active[0], active[2], active[4]]
                .iter()
                .filter(|active| **active)
                .count(),
            1
        );
    }
}

#[test]
fn bad_answers_name_plugin_and_step() {
    let scores = Counting {
        answer: Some(vec![1.0, -1.0, 0.0, 0.0, 0.0]),
        ..Default::default()
    };
    let nothing = [Allocation::of([], 5)];
    for (counting, answers, wanted) in [
        (
            scores,
            &[][..],
            "the scorer `counting` broke a rule at the reallocation after step 2",
        ),
        (
            Counting::default(),
            &nothing[..],
            "the allocator `scripted` broke a rule at the reallocation after step 2",
        ),
        (
            Counting::default(),
            &[][..],
            "the allocator `scripted` could not allocate after step 2",
        ),
    ] {
        let (mut controller, _) = controller(Unit::Module, counting, answers);
        advance(&mut controller).unwrap();
        let error = advance(&mut controller).unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert_eq!(controller.active(), [true; 5]);
    }
}

/// Notes how it was started, and answers as it was made to.
struct Starting(Arc<Mutex<Vec<Start>>>, PluginResult<Vec<String>>);

impl Allocator for Starting {
    fn start(&mut self, start: &Start) -> PluginResult<Vec<String>> {
        self.0.lock().unwrap().push(start.clone());
        self.1.clone()
    }

    fn allocate(&mut self, _: &AllocationRequest) -> PluginResult<Allocation> {
        Err("never asked".into())
    }
}

#[test]
fn a_plugin_is_told_of_the_run_before_it_and_can_refuse_it() {
    let told = Arc::<Mutex<Vec<Start>>>::default();
    let start = |schedule, unit, answer| {
        let allocator = Named {
            name: "starting".to_owned(),
            plugin: Box::new(Starting(told.clone(), answer)) as Box<dyn Allocator>,
        };
        let units = Units::new(unit, encoder());
        let scorer = scorer(Counting::default());
        Controller::new(settings(schedule), units, scorer, Some(allocator))
    };
    start(
        Schedule::Periodic { every: 3 },
        Unit::Layer,
        Ok(vec!["hm".into()]),
    )
    .unwrap();
    start(
        Schedule::At {
            steps: vec![2, 5, 50],
        },
        Unit::Module,
        Ok(vec![]),
    )
    .unwrap();
    // Nobody is asked anything.
    start(Schedule::Once { after: 10 }, Unit::Module, Err("no".into())).unwrap();
    let refused = start(
        Schedule::Once { after: 1 },
        Unit::Module,
        Err("too short".into()),
    );
    let error = refused.err().unwrap();
    assert_eq!(
        error.to_string(),
        "the allocator `starting` cannot work in this run: too short"
    );
    assert_eq!(error.exit_code(), 2);
    let told: Vec<_> = (told.lock().unwrap().iter())
        .map(|start| {
            assert_eq!((start.total_steps, start.seed), (10, start_seed(3, false)));
            let (first, last) = (start.first_reallocation, start.last_reallocation);
            (start.unit, start.reallocations, first, last)
        })
        .collect();
    use dynalora_plugin_api::Unit as Told;
    assert_eq!(
        told,
        [
            (Told::Layer, 3, Some(3), Some(9)),
            (Told::Module, 2, Some(2), Some(5)),
            (Told::Module, 1, Some(1), Some(1))
        ]
    );
}

#[test]
fn a_diverged_run_is_not_blamed_on_a_plugin() {
    use dynalora_plugin_api::{Measured, Raw};
    let measured = |values: [f32; 5]| {
        let mut observation = observation(1, &[true; 5]);
        observation.signals = vec![Measured {
            signal: api::Signal::ACTIVATION_L2,
            values: values.map(Some).to_vec(),
        }];
        observation
    };
    let mut raw = observation(1, &[true; 5]);
    raw.raw = vec![Raw {
        value: api::RawValue::GRADIENT,
        buffers: vec![vec![], vec![0.0, f32::NEG_INFINITY]],
    }];
    let mut components = observation(1, &[true; 5]);
    components.components = vec![vec![0.0], vec![], vec![], vec![], vec![f32::NAN]];
    for (observation, wanted) in [
        (
            measured([0.0, 0.0, f32::NAN, 0.0, 0.0]),
            "the signal activation_l2 of module encoder.layer.1.attention.self.query is NaN at step 1: the run has diverged",
        ),
        (
            measured([f32::INFINITY; 5]),
            "the signal activation_l2 of module encoder.layer.0.attention.self.query is inf at step 1",
        ),
        (
            raw,
            "a value of the raw gradient of module encoder.layer.0.output.dense is -inf at step 1",
        ),
        (
            components,
            "the sensitivity of a component of module pooler.dense is NaN at step 1",
        ),
    ] {
        let (mut controller, _) = controller(Unit::Module, Counting::default(), &[]);
        let measuring = controller.upcoming(1);
        let error = controller.after_step(&measuring, &observation).unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{error}");
        assert!(!error.to_string().contains("counting"), "{error}");
    }
}

#[test]
fn advice_after_a_plugins_error_is_advice_that_works() {
    let (mut controller, _) = controller(Unit::Module, Counting::default(), &[]);
    advance(&mut controller).unwrap();
    let error = advance(&mut controller).unwrap_err();
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    // A changed recipe is refused on --resume.
    assert!(help.contains("same recipe with --resume"), "{help}");
    assert!(help.contains("an `output` of its own"), "{help}");
}

#[test]
fn a_step_out_of_turn_is_a_failure() {
    let (mut controller, _) = controller(Unit::Module, Counting::default(), &[]);
    let measuring = controller.upcoming(1);
    for wrong in [observation(2, &[true; 5]), observation(1, &[false; 5])] {
        let error = controller.after_step(&measuring, &wrong).unwrap_err();
        assert_eq!(error.exit_code(), 1);
    }
}

#[test]
fn probes_measures_and_copies_only_where_asked() {
    let needs = Needs::signals([api::Signal::GRADIENT_L2]).and_raw([api::RawValue::WEIGHT]);
    let answers = vec![Allocation::of([0], 5); 4];
    let measuring = |needs| {
        let counting = Counting {
            needs,
            ..Default::default()
        };
        controller(Unit::Module, counting, &answers).0
    };
    let mut gradient = measuring(needs);
    // All modules are active before the first reallocation, so there is nothing to probe.
    assert!(!gradient.upcoming(2).probing);
    assert!(gradient.upcoming(1).wanted.raw.is_empty());
    assert_eq!(gradient.upcoming(2).wanted.raw, [RawValue::Weight]);
    for _ in 0..2 {
        advance(&mut gradient).unwrap();
    }
    assert!(!gradient.upcoming(3).probing && gradient.upcoming(4).probing);
    // Of ten steps the last reallocation follows step 8.
    assert_ne!(gradient.upcoming(8), Measuring::default());
    assert_eq!(gradient.upcoming(9), Measuring::default());
    assert_eq!(gradient.upcoming(10), Measuring::default());

    let mut activation = measuring(Needs::signals([api::Signal::ACTIVATION_L2]));
    for _ in 0..2 {
        advance(&mut activation).unwrap();
    }
    let upcoming = activation.upcoming(4);
    assert!(!upcoming.probing && upcoming.wanted.raw.is_empty());
    assert_eq!(upcoming.wanted.signals, [Signal::ActivationL2]);
}

/// Asks to be asked again after as many steps as its answers say.
#[test]
fn an_allocator_says_when_it_is_asked_again() {
    let again = |module, steps| {
        let mut answer = Allocation::of([module], 5);
        answer.ask_again = steps;
        answer
    };
    let answers = [again(0, Some(1)), again(1, Some(4)), again(2, None)];
    let run = |interrupted_after: Option<u64>| {
        let make = || {
            let units = Units::new(Unit::Module, encoder());
            let settings = settings(Schedule::Allocator { first: 2 });
            let counting = scorer(Counting::default());
            Controller::new(settings, units, counting, allocator(&answers).0).unwrap()
        };
        let mut controller = make();
        let mut chosen = Vec::new();
        for step in 1..=10 {
            let reallocation = advance(&mut controller).unwrap();
            chosen.extend(reallocation.map(|it| (it.step, it.activated)));
            if interrupted_after == Some(step) {
                let state = controller.state().unwrap();
                controller = make();
                controller.restore(state).unwrap();
            }
        }
        // Nobody is asked again, so nothing is measured.
        assert_eq!(controller.upcoming(8), Measuring::default());
        chosen
    };
    let whole = run(None);
    assert_eq!(whole, [(2, vec![]), (3, vec![1]), (7, vec![2])]);
    for step in 1..=10 {
        assert_eq!(run(Some(step)), whole, "interrupted after step {step}");
    }
    let (mut fixed, _) = controller(Unit::Module, Counting::default(), &answers);
    advance(&mut fixed).unwrap();
    let error = advance(&mut fixed).unwrap_err().to_string();
    assert!(error.contains("the schedule says when"), "{error}");
}

#[test]
fn a_choice_before_the_first_step_is_a_reallocation_after_step_0() {
    let answers = [Allocation::of([3], 5), Allocation::of([1], 5)];
    let (allocator, asked) = allocator(&answers);
    let settings = Settings {
        first_choice: Some(2),
        ..settings(Schedule::Once { after: 4 })
    };
    let units = Units::new(Unit::Module, encoder());
    let mut controller =
        Controller::new(settings, units, scorer(Counting::default()), allocator).unwrap();
    assert_eq!(controller.first_choice(), Some(2));
    let measuring = controller.before_the_first_step();
    let mut pass = observation(0, &[true; 5]);
    pass.moment = api::Moment::Calibration;
    controller.observe(&measuring, &pass).unwrap();
    let first = controller.reallocate(&TrialsMade::default()).unwrap();
    assert_eq!((first.step, first.index), (0, 0));
    assert_eq!(first.scores[0], 10.0);
    assert_eq!(controller.active(), [false, false, false, true, false]);
    let second = (0..4)
        .find_map(|_| advance(&mut controller).unwrap())
        .unwrap();
    assert_eq!((second.step, second.index), (4, 1));
    assert_eq!(second.ledger[3].steps_active, 4);
    assert_eq!(second.ledger[3].last_chosen, Some(0));
    assert_eq!(asked.lock().unwrap()[1].ledger[3].last_chosen, Some(0));
}

#[test]
fn a_restored_controller_goes_on_as_if_it_had_never_stopped() {
    let answers = [
        Allocation::of([0, 4], 5),
        Allocation::of([1], 5),
        Allocation::of([2], 5),
        Allocation::of_components(first_components([0, 0, 3, 8, 1])),
    ];
    let run = |interrupted_after: Option<u64>| {
        let (mut controller, _) = self::controller(Unit::Module, Counting::default(), &answers);
        let mut reallocations = Vec::new();
        for step in 1..=10 {
            reallocations.extend(advance(&mut controller).unwrap());
            if interrupted_after == Some(step) {
                let text = serde_json::to_string(&controller.state().unwrap()).unwrap();
                controller = self::controller(Unit::Module, Counting::default(), &answers).0;
                controller
                    .restore(serde_json::from_str(&text).unwrap())
                    .unwrap();
            }
        }
        (reallocations, controller.state().unwrap())
    };
    let whole = run(None);
    assert_eq!(whole.0.len(), 4);
    for step in 1..=10 {
        assert_eq!(run(Some(step)), whole, "interrupted after step {step}");
    }
}

#[test]
fn a_state_of_another_run_is_refused() {
    let (mut first, _) = controller(Unit::Module, Counting::default(), &[Allocation::of([0], 5)]);
    advance(&mut first).unwrap();
    advance(&mut first).unwrap();
    let good = first.state().unwrap();
    let broken = |change: &dyn Fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    for (state, why) in [
        (
            broken(&|state| state.modules.truncate(3)),
            "3 modules, this run 5",
        ),
        (
            broken(&|state| state.modules[4] = "x".to_owned()),
            "its module x is pooler.dense",
        ),
        (
            broken(&|state| state.active.truncate(3)),
            "differ in length",
        ),
        (broken(&|state| state.active = vec![false; 5]), "contradict"),
        (
            broken(&|state| state.components = Some(first_components([0, 1, 0, 0, 0]))),
            "contradict",
        ),
        (
            broken(&|state| state.components = Some(vec![vec![true; 9]; 5])),
            "contradict",
        ),
        (broken(&|state| state.step = 11), "at step 11"),
        (
            broken(&|state| state.scorer = None),
            "its scorer is none, this run's is `counting`",
        ),
        (
            broken(&|state| state.scorer.as_mut().unwrap().state.clear()),
            "the scorer refused its state",
        ),
        (
            broken(&|state| state.allocator.as_mut().unwrap().state.push(1)),
            "the allocator refused its state",
        ),
    ] {
        let (mut fresh, _) = controller(Unit::Module, Counting::default(), &[]);
        let error = fresh.restore(state).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    let (mut layers, _) = controller(Unit::Layer, Counting::default(), &[]);
    assert!(
        layers
            .restore(good.clone())
            .unwrap_err()
            .to_string()
            .contains("`unit` has changed")
    );
    assert_eq!(first.restore(good).unwrap_err().exit_code(), 1);
}
