//! Both halves against each other, in one process.

use std::sync::atomic::{AtomicU32, Ordering};

use super::host::{RemoteAllocator, RemoteScorer, manifest};
use super::plugin::{local_allocator, local_scorer};
use crate::testing::{modules, request};
use crate::{
    Allocation, AllocationRequest, Allocator, Kind, LedgerEntry, Measured, ModuleInfo, Needs,
    Observation, Plugin, Raw, RawValue, Result, Scorer, Signal, Start, Unit,
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
        Needs {
            signals: vec![Signal::WeightL2, Signal::DeltaL2],
            raw: vec![RawValue::Gradient],
            components: true,
            ..Needs::default()
        }
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        match start.total_steps {
            0 => Err(format!("\u{1b}[31m{}", "no ".repeat(2_000_000)).into()),
            _ => Ok(vec![format!("{start:?}"), "a\u{7}b".repeat(10_000)]),
        }
    }

    fn wants_raw(&self, step: u64) -> bool {
        step == 2
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        assert!(self.0.panic_in != "observe", "seen enough");
        self.1 = Some(observation.clone());
        Ok(())
    }

    /// The whole observation as numbers, -1 for what is missing.
    fn scores(&mut self) -> Result<Vec<f64>> {
        let seen = self.1.as_ref().ok_or("nothing observed")?;
        let mut numbers = vec![seen.step as f64, seen.tokens as f64];
        numbers.extend(
            seen.active
                .iter()
                .map(|active| f64::from(u8::from(*active))),
        );
        for measured in &seen.signals {
            numbers.push(f64::from(measured.signal as u8));
            numbers.extend(
                measured
                    .values
                    .iter()
                    .map(|value| value.map_or(-1.0, f64::from)),
            );
        }
        for raw in &seen.raw {
            numbers.push(f64::from(raw.value as u8));
            numbers.extend(raw.buffers.iter().flatten().map(|value| f64::from(*value)));
        }
        for module in &seen.components {
            numbers.push(module.len() as f64);
            numbers.extend(module.iter().map(|value| f64::from(*value)));
        }
        Ok(numbers)
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

/// Activates the modules whose every input is what the test expects, and says no with its seed. Keeps
/// the components that the last observation gave more than 1.
struct Inspect(Vec<Vec<f32>>);

impl Plugin for Inspect {
    type Parameters = Parameters;
    const NAME: &'static str = "inspect";
    const DESCRIPTION: &'static str = "Inspects.";
    const REFERENCE: &'static str = "none";

    fn new(_: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        Ok(Inspect(Vec::new()))
    }
}

impl Allocator for Inspect {
    fn needs(&self) -> Needs {
        Needs {
            components: true,
            ..Needs::default()
        }
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        if observation.step == 0 {
            return Err(format!("{observation:?}").into());
        }
        self.0.clone_from(&observation.components);
        Ok(())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        match request.seed {
            0 => Err(format!("{request:?}").into()),
            _ => Ok(Allocation {
                active: request.scores.iter().map(|score| *score > 0.5).collect(),
                components: Some(
                    self.0
                        .iter()
                        .map(|module| module.iter().map(|value| *value > 1.0).collect())
                        .collect(),
                ),
            }),
        }
    }
}

fn echo(parameters: &str) -> Result<RemoteScorer> {
    RemoteScorer::new(local_scorer::<Echo>("1.2.3"), parameters, &modules(3))
}

fn observation(step: u64) -> Observation {
    let measured = |signal, values: [Option<f32>; 3]| Measured {
        signal,
        values: values.to_vec(),
    };
    Observation {
        step,
        tokens: 99,
        active: vec![true, false, true],
        signals: vec![
            measured(Signal::WeightL2, [Some(1.5), None, Some(0.0)]),
            measured(Signal::DeltaL2, [None, None, Some(f32::MAX)]),
        ],
        raw: vec![Raw {
            value: RawValue::Gradient,
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
    let scorer = manifest(local_scorer::<Echo>("1.2.3")).unwrap();
    assert_eq!(
        (scorer.name.as_str(), scorer.version.as_str()),
        ("echo", "1.2.3")
    );
    assert_eq!(
        (scorer.kind, scorer.api_version.as_str()),
        (Kind::Scorer, super::API_VERSION)
    );
    assert_eq!(scorer.needs.unwrap().raw, [RawValue::Gradient]);
    assert!(scorer.parameters["properties"]["number"].is_object());
    let allocator = manifest(local_allocator::<Inspect>("1.2.3")).unwrap();
    assert_eq!(allocator.kind, Kind::Allocator);
    assert!(allocator.needs.unwrap().components);
}

#[test]
fn the_run_crosses_and_warnings_come_back() {
    let mut run = Start::periodic(100, 7);
    (run.unit, run.seed) = (Unit::Layer, u64::MAX);
    let warnings = echo("{}").unwrap().start(&run).unwrap();
    assert_eq!(warnings[0], format!("{run:?}"));
    let root = local_allocator::<Inspect>("1.2.3");
    let mut inspect = RemoteAllocator::new(root, "{}", &modules(1)).unwrap();
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
    assert!(!echo.wants_raw(1) && echo.wants_raw(2));
    echo.observe(&observation(1)).unwrap();
    echo.observe(&observation(2)).unwrap();
    let (weight, delta) = (
        f64::from(Signal::WeightL2 as u8),
        f64::from(Signal::DeltaL2 as u8),
    );
    #[rustfmt::skip]
    assert_eq!(echo.scores().unwrap(), [
        2.0, 99.0, 1.0, 0.0, 1.0,
        weight, 1.5, -1.0, 0.0,
        delta, -1.0, -1.0, f64::from(f32::MAX),
        f64::from(RawValue::Gradient as u8), 0.25, 0.5, 4.0,
        2.0, 1.5, 0.5, 0.0, 1.0, 2.0,
    ]);
    assert_eq!(echo.save().unwrap(), [1, 2, 3]);
    assert!(
        echo.load(&[1])
            .unwrap_err()
            .to_string()
            .contains("keeps no state")
    );
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
    let root = local_allocator::<Inspect>("1.2.3");
    let mut inspect = RemoteAllocator::new(root, "{}", &sent.modules).unwrap();
    assert_eq!(inspect.needs().signals, []);
    assert!(inspect.needs().components);
    inspect.observe(&observation(1)).unwrap();
    let answer = inspect.allocate(&sent).unwrap();
    assert_eq!(answer.active, [false, true, false]);
    let components = [vec![true, false], vec![], vec![true]];
    assert_eq!(answer.components.unwrap(), components);
    let seen = inspect.observe(&observation(0)).unwrap_err();
    assert_eq!(seen.to_string(), format!("{:?}", observation(0)));
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
    let wrong = RemoteAllocator::new(local_scorer::<Echo>("1.2.3"), "{}", &modules(1));
    assert_eq!(
        wrong.err().unwrap().to_string(),
        "it is a scorer, not an allocator"
    );
}
