//! Both halves against each other, in one process.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Table;
use super::host::{RemoteAllocator, RemoteScorer, manifest};
use super::plugin::{AllocatorSide, ScorerSide, table};
use crate::testing::{modules, request, score_request};
use crate::{
    Allocation, AllocationRequest, Allocator, Kind, LedgerEntry, Measured, Metric, ModuleInfo,
    Moment, Needs, Numbers, Observation, Plugin, Pruning, Raw, RawValue, Result, ScoreRequest,
    Scorer, Signal, Start, Trial, TrialLosses, TrialRequest, Trials, Unit, Upcoming, Wants,
};

/// Parameters that say where to panic.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Parameters {
    /// `new`, `observe`, `save` or `drop`.
    panic_in: String,
    /// A number.
    number: u32,
}

static DROPPED: AtomicU32 = AtomicU32::new(0);

/// Remembers the last observation it was given.
struct Echo(Parameters, Option<Observation>);

impl Plugin for Echo {
    type Parameters = Parameters;
    const NAME: &'static str = "echo";
    const DESCRIPTION: &'static str = "Repeats.";
    const REFERENCE: &'static str = "none";

    fn new(parameters: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        assert!(parameters.panic_in != "new", "no {}", "way");
        Ok(Echo(parameters, None))
    }
}

impl Scorer for Echo {
    fn needs(&self) -> Needs {
        Needs::signals([Signal::WEIGHT_L2, Signal::named("entropy")])
            .and_raw([RawValue::GRADIENT])
            .and_components()
            .and_held_back(7)
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        match start.total_steps {
            0 => Err(format!("\u{1b}[31m{}", "no ".repeat(2_000_000)).into()),
            _ => Ok(vec![format!("{start:?}"), "a\u{7}b".repeat(10_000)]),
        }
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        Wants::all_if(upcoming.next_reallocation == Some(upcoming.step))
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        let off =
            (0..request.active.len()).map(|module| Trial::without(module, request.active.len()));
        let mut trials: Vec<Trial> = off.collect();
        trials.push(Trial::of_components(vec![vec![true, false], vec![]]));
        Ok(Trials::new(request.seed, trials))
    }

    fn numbers(&self) -> Result<Numbers> {
        Ok(Numbers::from([
            ("entropy".to_owned(), vec![0.5]),
            ("each".to_owned(), vec![1.0, f64::NAN]),
        ]))
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        assert!(self.0.panic_in != "observe", "seen enough");
        self.1 = Some(observation.clone());
        Ok(())
    }

    /// What was observed and asked, as an error.
    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        match request.seed {
            0 => Ok(vec![0.1, 5e-324, f64::MAX]),
            1 => Err(format!("{:?}", self.1).into()),
            _ => Err(format!("{request:?}").into()),
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        if self.0.panic_in == "save" {
            std::panic::panic_any(7);
        }
        Ok(vec![1, 2, 3])
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        assert!(self.0.panic_in != "drop", "never");
    }
}

/// Answers with all there is, or says no with its request.
struct Inspect;

impl Plugin for Inspect {
    type Parameters = Parameters;
    const NAME: &'static str = "echo";
    const DESCRIPTION: &'static str = "Inspects.";
    const REFERENCE: &'static str = "none";

    fn new(_: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        Ok(Inspect)
    }
}

fn everything() -> Allocation {
    Allocation {
        active: vec![false, true, true],
        components: Some(vec![vec![], vec![true, false], vec![true]]),
        pruning: Pruning::Freeze,
        rates: Some(vec![[1.0, 16.0], [0.5, 0.0], [1.0, 1.0]]),
        scales: Some(vec![1.0, 2.0, 0.1]),
        shared: Some(vec![0, 1, 1]),
        ask_again: Some(9),
    }
}

impl Allocator for Inspect {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        match request.seed {
            0 => Err(format!("{request:?}").into()),
            1 => Ok(Allocation::of([1], 3)),
            _ => Ok(everything()),
        }
    }
}

fn scorer() -> Table {
    table::<(ScorerSide<Echo>,)>()
}

fn allocator() -> Table {
    table::<(AllocatorSide<Inspect>,)>()
}

fn echo(parameters: &str) -> Result<RemoteScorer> {
    RemoteScorer::in_process(scorer(), parameters, &modules(3))
}

fn observation(step: u64) -> Observation {
    let measured = |signal, values: [Option<f32>; 3]| Measured {
        signal,
        values: values.to_vec(),
    };
    Observation {
        moment: Moment::Calibration,
        step,
        total_steps: 20,
        tokens: 99,
        examples: 8,
        loss: 0.25,
        learning_rate: 1e-3,
        metric: Some(Metric::new(10, "pearson", 0.5)),
        probing: true,
        active: vec![true, false, true],
        signals: vec![
            measured(Signal::WEIGHT_L2, [Some(1.5), None, Some(0.0)]),
            measured(Signal::named("entropy"), [None, None, Some(f32::MAX)]),
        ],
        raw: vec![Raw {
            value: RawValue::GRADIENT,
            buffers: vec![vec![0.25, 0.5], vec![], vec![4.0]],
        }],
        components: vec![vec![1.5, 0.5], vec![], vec![2.0]],
    }
}

#[test]
fn the_symbol_is_the_one_abi_stable_looks_for() {
    // `export_plugin!` has to spell it out.
    assert_eq!(super::SYMBOL, "_1as_0lib_1header_0root_bmodule_bloader");
}

#[test]
fn a_manifest_crosses() {
    let both = table::<(ScorerSide<Echo>, AllocatorSide<Inspect>)>();
    for table in [scorer(), both] {
        let scorer = manifest(table, Kind::Scorer, "1.2.3").unwrap();
        assert_eq!(
            (scorer.name.as_str(), scorer.version.as_str()),
            ("echo", "1.2.3")
        );
        assert_eq!(
            (scorer.kind, scorer.api_version.as_str()),
            (Kind::Scorer, super::API_VERSION)
        );
        assert_eq!(scorer.needs.unwrap().raw, [RawValue::GRADIENT]);
        assert!(scorer.parameters["properties"]["number"].is_object());
    }
    for table in [allocator(), both] {
        let allocator = manifest(table, Kind::Allocator, "1.2.3").unwrap();
        assert_eq!((allocator.kind, allocator.needs), (Kind::Allocator, None));
    }
    let wrong = manifest(scorer(), Kind::Allocator, "").unwrap_err();
    assert!(wrong.to_string().contains("no allocator"), "{wrong}");
}

#[test]
fn the_run_crosses_and_warnings_come_back() {
    let mut run = Start::periodic(100, 7);
    (run.unit, run.seed) = (Unit::Layer, u64::MAX);
    let warnings = echo("{}").unwrap().start(&run).unwrap();
    assert_eq!(warnings[0], format!("{run:?}"));
    let mut inspect = RemoteAllocator::in_process(allocator(), "{}", &modules(1)).unwrap();
    assert!(inspect.start(&run).unwrap().is_empty());
}

#[test]
fn texts_of_plugins_are_cut_and_bare_of_control_characters() {
    let mut echo = echo("{}").unwrap();
    let warnings = echo.start(&Start::periodic(1, 1)).unwrap();
    assert!(warnings[1].starts_with("a\\u{7}b"), "{}", warnings[1]);
    assert!(warnings[1].contains("cut: 30000 characters"));
    let error = echo.start(&Start::default()).unwrap_err().to_string();
    assert!(error.chars().count() < 2100 && error.starts_with("\\u{1b}[31mno no "));
    assert!(
        error.ends_with("(cut: 6000005 characters in all)"),
        "{error}"
    );
}

#[test]
fn an_observation_crosses_whole() {
    let mut echo = echo("{}").unwrap();
    let mut seen = |sent: &Observation| {
        echo.observe(sent).unwrap();
        let mut request = score_request(3);
        request.seed = 1;
        let seen = echo.scores(&request).unwrap_err().to_string();
        assert_eq!(seen, format!("{:?}", Some(sent)));
    };
    seen(&observation(1));
    seen(&observation(2));
    seen(&Observation::default());
    assert_eq!(echo.save().unwrap(), [1, 2, 3]);
    assert!(
        echo.load(&[1])
            .unwrap_err()
            .to_string()
            .contains("keeps no state")
    );
}

#[test]
fn wishes_trials_scores_and_numbers_cross() {
    let mut echo = echo("{}").unwrap();
    let needs = echo.needs();
    assert_eq!(needs.signals, [Signal::WEIGHT_L2, Signal::named("entropy")]);
    assert_eq!(
        (needs.held_back, needs.components, needs.scores),
        (7, true, true)
    );
    let mut upcoming = Upcoming::default();
    assert_eq!(echo.wants(&upcoming), Wants::NOTHING);
    (upcoming.step, upcoming.next_reallocation) = (5, Some(5));
    assert_eq!(echo.wants(&upcoming), Wants::ALL);
    let mut asked = TrialRequest::default();
    (asked.seed, asked.active) = (6, vec![true, false]);
    let trials = echo.trials(&asked).unwrap();
    assert_eq!((trials.examples, trials.trials.len()), (6, 3));
    assert_eq!(trials.trials[1].factors, [1.0, 0.0]);
    assert_eq!(
        trials.trials[2].components,
        Some(vec![vec![true, false], vec![]])
    );
    let mut request = score_request(3);
    request.seed = 0;
    assert_eq!(echo.scores(&request).unwrap(), [0.1, 5e-324, f64::MAX]);
    (request.seed, request.ledger[1].last_chosen) = (u64::MAX, Some(0));
    (request.active[2], request.ranks[0]) = (false, 3);
    request.trials = Some(TrialLosses::new(9, 0.5, vec![0.25, 0.75]));
    let seen = echo.scores(&request).unwrap_err();
    assert_eq!(seen.to_string(), format!("{request:?}"));
    let numbers = echo.numbers().unwrap();
    assert_eq!(numbers["entropy"], [0.5]);
    assert!(numbers["each"][1].is_nan());
}

#[test]
fn a_request_and_its_answer_cross_whole() {
    let mut sent = request(&[0.1, 0.9, 5e-324]);
    sent.ledger[1] = LedgerEntry {
        steps_active: 5,
        times_chosen: 2,
        last_chosen: Some(40),
    };
    sent.active[2] = false;
    sent.ranks = vec![0, 8, 0];
    sent.trials = Some(TrialLosses::new(9, 0.5, vec![0.25]));
    let mut inspect = RemoteAllocator::in_process(allocator(), "{}", &sent.modules).unwrap();
    assert_eq!(inspect.needs(), Needs::default());
    assert_eq!(inspect.wants(&Upcoming::default()), Wants::NOTHING);
    assert_eq!(inspect.allocate(&sent).unwrap(), Allocation::of([1], 3));
    sent.seed = 2;
    assert_eq!(inspect.allocate(&sent).unwrap(), everything());
    sent.seed = 0;
    assert_eq!(
        inspect.allocate(&sent).unwrap_err().to_string(),
        format!("{sent:?}")
    );
    sent.modules[0].rank += 1;
    assert!(
        inspect
            .allocate(&sent)
            .unwrap_err()
            .to_string()
            .contains("modules")
    );
}

#[test]
fn a_panic_is_an_error_with_its_message_and_the_last_thing_asked() {
    let panicked = |error: &str, message: &str| {
        let place = error
            .strip_prefix("it panicked at ")
            .and_then(|rest| rest.strip_suffix(message));
        assert!(
            place.is_some_and(|place| place.contains("tests.rs:")),
            "{error}"
        );
    };
    panicked(
        &echo(r#"{"panic_in": "new"}"#).err().unwrap().to_string(),
        ": no way",
    );
    let mut scorer = echo(r#"{"panic_in": "observe"}"#).unwrap();
    for _ in 0..2 {
        let error = scorer.observe(&observation(1)).unwrap_err();
        panicked(&error.to_string(), ": seen enough");
    }
    assert!(
        scorer.save().is_err(),
        "a state that may be half-changed must not be kept"
    );
    let scorer = echo(r#"{"panic_in": "save"}"#).unwrap();
    panicked(&scorer.save().unwrap_err().to_string(), ": (no message)");
    let before = DROPPED.load(Ordering::Relaxed);
    drop(echo(r#"{"panic_in": "drop"}"#).unwrap());
    assert!(DROPPED.load(Ordering::Relaxed) > before);
    // Others of the same library work on.
    echo("{}").unwrap().observe(&observation(1)).unwrap();
}

#[test]
fn wrong_parameters_are_named() {
    for (parameters, words) in [
        (r#"{"number": "three"}"#, ["`number`", "\"three\"", "u32"]),
        (r#"{"number": -1}"#, ["`number`", "-1", "u32"]),
        (r#"{"numbr": 3}"#, ["`numbr`", "`number`", "`panic_in`"]),
        (r#"["new"]"#, ["table", "[\"new\"]", "given"]),
        ("{", ["parameters", "JSON", "EOF"]),
    ] {
        let error = echo(parameters).err().unwrap().to_string();
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{parameters}: {error}"
        );
    }
    let wrong = RemoteAllocator::in_process(scorer(), "{}", &modules(1));
    assert_eq!(
        wrong.err().unwrap().to_string(),
        "it has no allocator, but a plugin of the kind scorer"
    );
}

/// A carrier that answers everything with one message, as a plugin of another version may.
struct Saying(&'static str);

impl super::host::Carrier for Saying {
    fn call(
        &mut self,
        name: &str,
        _: &crate::message::Fields<'_>,
    ) -> Result<Option<crate::message::Fields<'static>>> {
        use crate::message::json::{Answer, read_answer};
        match read_answer(self.0).unwrap() {
            Answer::Fields(fields) if name != "needs" || self.0.contains("needs") => {
                Ok(Some(fields))
            }
            _ => Ok(None),
        }
    }
}

#[test]
fn what_a_newer_plugin_asks_or_answers_is_refused_by_its_name() {
    let newer = r#"{"ok":true,"needs":{"signals":["entropy"],"gradients_of_gradients":true}}"#;
    let error = RemoteScorer::new(Box::new(Saying(newer))).err().unwrap();
    for word in ["`gradients_of_gradients`", "signals", "held_back"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let newer = r#"{"ok":true,"active":[true],"optimizer":"muon"}"#;
    let mut allocator = RemoteAllocator::new(Box::new(Saying(newer)), &modules(1)).unwrap();
    let error = allocator
        .allocate(&request(&[1.0]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`optimizer`") && error.contains("ask_again"),
        "{error}"
    );
}

#[test]
fn what_a_plugin_does_not_know_is_as_if_it_had_the_default() {
    let mut scorer = RemoteScorer::new(Box::new(Saying(r#"{"unknown":true}"#))).unwrap();
    assert_eq!(scorer.needs(), Needs::default());
    assert!(scorer.start(&Start::default()).unwrap().is_empty());
    assert!(scorer.numbers().unwrap().is_empty() && scorer.save().unwrap().is_empty());
    scorer.reallocated(&[true]).unwrap();
    scorer.load(&[]).unwrap();
    assert!(scorer.load(&[1]).is_err());
    assert!(
        scorer
            .scores(&score_request(1))
            .unwrap_err()
            .to_string()
            .contains("`scores`")
    );
}
