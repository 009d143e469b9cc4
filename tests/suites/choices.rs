//! When plugins are asked, what they are told, and trial passes: by a scorer and an allocator in one library that
//! write down every call.

use dynalora_tests::{Scene, build_outside};
use serde_json::{Value, json};

const WITNESS: &str = r#"use std::io::Write;

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ModuleInfo, Needs, Numbers, Observation, Plugin, Result, ScoreRequest,
    Scorer, Signal, Start, Trial, TrialRequest, Trials, Upcoming, Wants, export_plugin,
};

#[derive(Clone, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// Where each call is written down.
    log: String,
    /// Examples held back.
    held_back: u64,
    /// After how many steps to be asked again; 0: never.
    again: u64,
    /// Measures at every step of this number's multiples.
    every: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters { log: String::new(), held_back: 0, again: 0, every: 1 }
    }
}

impl Parameters {
    fn note(&self, line: String) -> Result<()> {
        if self.log.is_empty() {
            return Ok(());
        }
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&self.log);
        let mut file = file.map_err(|error| error.to_string())?;
        writeln!(file, "{line}").map_err(|error| error.to_string().into())
    }

    fn trials(&self, request: &TrialRequest, who: &str) -> Result<Trials> {
        let count = request.active.len();
        self.note(format!("{who} trials step={}", request.step))?;
        let mut trials = vec![Trial::scaled(vec![1.0; count]), Trial::scaled(vec![0.0; count])];
        trials.extend((0..count).map(|module| Trial::without(module, count)));
        Ok(Trials::new(0, trials))
    }
}

pub struct Scores(Parameters, usize);
pub struct Choice(Parameters);

impl Plugin for Scores {
    type Parameters = Parameters;
    const NAME: &'static str = "witness";
    const DESCRIPTION: &'static str = "Writes down every call.";
    const REFERENCE: &'static str = "a test";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Scores(parameters, modules.len()))
    }
}

impl Scorer for Scores {
    fn needs(&self) -> Needs {
        Needs::signals([Signal::ACTIVATION_L2, Signal::GRADIENT_L2]).and_held_back(self.0.held_back)
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.0.note(format!(
            "scorer start schedule={} total={} first_choice={} calibration={} rate={} unit={}",
            start.schedule, start.total_steps, start.first_choice, start.calibration_steps, start.learning_rate, start.unit
        ))?;
        Ok(Vec::new())
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        Wants::all_if(upcoming.step % self.0.every.max(1) == 0)
    }

    fn observe(&mut self, seen: &Observation) -> Result<()> {
        let measured = seen.signals.iter().map(|it| {
            let some = it.values.iter().flatten().count();
            format!("{}:{some}/{}", it.signal, it.values.len())
        });
        let metric = seen.metric.as_ref().map_or("none".to_owned(), |it| format!("{}@{}", it.name, it.step));
        self.0.note(format!(
            "scorer observe {:?} step={} total={} rate={:e} loss={} probing={} metric={metric} {}",
            seen.moment, seen.step, seen.total_steps, seen.learning_rate, seen.loss > 0.0 && seen.loss.is_finite(), seen.probing,
            measured.collect::<Vec<_>>().join(" ")
        ))
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.0.trials(request, "scorer")
    }

    fn scores(&mut self, request: &ScoreRequest) -> Result<Vec<f64>> {
        let losses = match &request.trials {
            Some(trials) => format!("{} {} {:?}", trials.examples, trials.baseline, trials.losses),
            None => "none".to_owned(),
        };
        self.0.note(format!("scorer scores step={} trials={losses}", request.step))?;
        Ok((1..=self.1).map(|at| at as f64).collect())
    }

    fn numbers(&self) -> Result<Numbers> {
        Ok(Numbers::from([("temperature".to_owned(), vec![0.5]), ("each".to_owned(), vec![1.0; self.1])]))
    }
}

impl Plugin for Choice {
    type Parameters = Parameters;
    const NAME: &'static str = "witness";
    const DESCRIPTION: &'static str = "Writes down every call.";
    const REFERENCE: &'static str = "a test";

    fn new(parameters: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        Ok(Choice(parameters))
    }
}

impl Allocator for Choice {
    fn needs(&self) -> Needs {
        Needs::default().and_held_back(self.0.held_back)
    }

    fn trials(&mut self, request: &TrialRequest) -> Result<Trials> {
        self.0.trials(request, "allocator")
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let losses = match &request.trials {
            Some(trials) => format!("{} {} {:?}", trials.examples, trials.baseline, trials.losses),
            None => "none".to_owned(),
        };
        self.0.note(format!("allocator allocate step={} index={} trials={losses}", request.step, request.reallocation))?;
        let count = request.scores.len();
        let mut chosen = Allocation::of([request.reallocation as usize % count, count - 1], count);
        chosen.ask_again = Some(self.0.again).filter(|again| *again > 0);
        Ok(chosen)
    }
}

export_plugin!(scorer Scores, allocator Choice);
"#;

/// A scene with the witness on its plugin path, and a recipe that names it twice.
fn scene() -> Scene {
    let scene = Scene::new();
    build_outside(&scene, "witness", WITNESS);
    scene
}

/// Trains with `changes` to the recipe; the calls that were written down.
fn calls(
    scene: &Scene,
    name: &str,
    held_back: u64,
    again: u64,
    every: u64,
    changes: &[(&str, &str)],
) -> Vec<String> {
    let log = scene.path(&format!("{name}.log"));
    let plugin = |kind: &str| {
        format!(
            "[{kind}]\nplugin = \"witness\"\nlog = {log:?}\nheld_back = {held_back}\nagain = {again}\nevery = {every}\n"
        )
    };
    let mut recipe = scene.recipe_text();
    for (from, to) in changes {
        assert!(recipe.contains(from), "{from}");
        recipe = recipe.replace(from, to);
    }
    recipe = recipe
        .replace("[scorer]\nplugin = \"activation\"\n", &plugin("scorer"))
        .replace(
            "[allocator]\nplugin = \"top-k\"\nk = \"50%\"\n",
            &plugin("allocator"),
        );
    scene.write("recipe.toml", &recipe);
    let folder = scene.path("plugins");
    let output = format!("output={}", scene.path(name).display());
    let folder = folder.to_str().expect("UTF-8");
    scene.ok(&[
        "train",
        "recipe.toml",
        "--quiet",
        "--plugin-dir",
        folder,
        "--set",
        &output,
    ]);
    let text = std::fs::read_to_string(log).expect("calls were written down");
    text.lines().map(str::to_owned).collect()
}

/// The numbers after `trials=`: examples, the loss without change, and those of the trials.
fn losses(call: &str) -> Vec<f64> {
    let (_, numbers) = call.split_once("trials=").expect("trials");
    let numbers = numbers.replace(['[', ']', ','], " ");
    numbers
        .split_whitespace()
        .map(|it| it.parse().expect("a number"))
        .collect()
}

#[test]
fn plugins_are_told_when_and_what_they_said_they_want() {
    let scene = scene();
    let evaluated = "[evaluation]\nevery = 4\n\n[checkpoint]\nevery = 4";
    let calls = calls(
        &scene,
        "told",
        0,
        0,
        3,
        &[("[checkpoint]\nevery = 4", evaluated)],
    );
    assert_eq!(
        calls[0],
        "scorer start schedule=periodic total=12 first_choice=false calibration=0 rate=0.005 unit=module"
    );
    let observed: Vec<&String> = calls
        .iter()
        .filter(|call| call.contains("observe"))
        .collect();
    // Every third step up to the last reallocation, which follows step 8.
    assert_eq!(observed.len(), 2, "{calls:#?}");
    for (call, step) in observed.iter().zip([3, 6]) {
        assert!(
            call.contains(&format!("Step step={step} total=12")),
            "{call}"
        );
        assert!(call.contains("loss=true probing=false"), "{call}");
    }
    assert!(
        observed[0].contains("metric=none") && observed[1].contains("metric=accuracy@4"),
        "{observed:?}"
    );
    // Of the second, only the active modules have gradients.
    assert!(
        !observed[1].contains("gradient_l2:none") && observed[1].contains("gradient_l2:2/"),
        "{observed:?}"
    );
    let kinds: Vec<&str> = calls[1..]
        .iter()
        .filter_map(|call| call.split(' ').nth(1))
        .collect();
    assert_eq!(
        kinds,
        [
            "observe", "scores", "allocate", "observe", "scores", "allocate"
        ]
    );
    let record = &scene.records("told", "allocations.jsonl")[1];
    assert_eq!(record["numbers"]["scorer"]["temperature"], json!([0.5]));
    assert_eq!(
        record["numbers"]["scorer"]["each"].as_array().map(Vec::len),
        record["active"].as_array().map(Vec::len)
    );
}

#[test]
fn a_choice_before_the_first_step_follows_passes_that_update_nothing() {
    let scene = scene();
    let first = [(
        "schedule =",
        "initial = \"allocator\"\ncalibration_steps = 2\nschedule =",
    )];
    let calls = calls(&scene, "first", 0, 0, 1, &first);
    assert!(
        calls[0].contains("first_choice=true calibration=2"),
        "{}",
        calls[0]
    );
    for call in &calls[1..3] {
        assert!(
            call.contains("observe Calibration step=0 total=12"),
            "{call}"
        );
        // Every module has a gradient, whatever trains later.
        let (_, gradients) = call.split_once("gradient_l2:").expect("measured");
        let (some, all) = gradients.split_once('/').expect("a share");
        assert_eq!(some, all, "{call}");
    }
    assert_eq!(calls[3], "scorer scores step=0 trials=none");
    assert_eq!(calls[4], "allocator allocate step=0 index=0 trials=none");
    let records = scene.records("first", "allocations.jsonl");
    assert_eq!(
        (&records[0]["index"], &records[1]["index"]),
        (&Value::Null, &json!(0))
    );
    assert_eq!(records[1]["step"], 0);
    assert_eq!(
        records[1]["active"]
            .as_array()
            .expect("a mask")
            .iter()
            .filter(|it| **it == true)
            .count(),
        2
    );
    // Only the chosen modules ever had an update before the next choice.
    let ledger = records[2]["ledger"].as_array().expect("a ledger");
    let updates: u64 = ledger
        .iter()
        .filter_map(|it| it["steps_active"].as_u64())
        .sum();
    assert_eq!(updates, 2 * 4);
    let metrics = scene.records("first", "metrics.jsonl");
    assert_eq!(metrics[0]["active_modules"], 2);
}

#[test]
fn the_allocator_says_when_it_is_asked_again() {
    let scene = scene();
    let schedule = [(
        "kind = \"periodic\", every = 4",
        "kind = \"allocator\", first = 2",
    )];
    let calls = calls(&scene, "again", 0, 3, 1, &schedule);
    let steps: Vec<&str> = calls
        .iter()
        .filter(|call| call.contains("allocate"))
        .filter_map(|call| call.split(' ').nth(2))
        .collect();
    assert_eq!(steps, ["step=2", "step=5", "step=8", "step=11"]);
}

#[test]
fn trials_give_the_loss_with_modules_scaled_or_off() {
    let scene = scene();
    let calls = calls(&scene, "tried", 16, 0, 1, &[]);
    let asked: Vec<&String> = calls
        .iter()
        .filter(|call| call.contains("trials=") && !call.ends_with("none"))
        .collect();
    assert_eq!(asked.len(), 4, "{calls:#?}");
    // After step 4 the adapters do something: a factor of 1 changes nothing, each of them off changes a little, and all
    // of them off is the pretrained model, with whatever the head has learnt.
    let of_scorer = losses(asked[0]);
    assert_eq!(of_scorer[0], 16.0);
    let (baseline, same, off) = (of_scorer[1], of_scorer[2], of_scorer[3]);
    assert_eq!(baseline, same);
    assert!((off - baseline).abs() > 1e-6, "{of_scorer:?}");
    let each = &of_scorer[4..];
    assert!(each.iter().any(|loss| *loss != baseline), "{of_scorer:?}");
    // The allocator is told of the same examples.
    assert_eq!(losses(asked[1]), of_scorer);

    // What is held back is never trained on, and trials cost operations.
    let summary = |name: &str| -> Value {
        let text =
            std::fs::read_to_string(scene.path(name).join("summary.json")).expect("a summary");
        serde_json::from_str(&text).expect("JSON")
    };
    self::calls(&scene, "untried", 0, 0, 1, &[]);
    let flops = |name: &str| summary(name)["flops"].as_u64().expect("operations");
    assert!(flops("tried") > flops("untried"));
    let epochs = |name: &str| summary(name)["epochs"].as_f64().expect("epochs");
    assert!((epochs("tried") - epochs("untried") * 48.0 / 32.0).abs() < 1e-9);

    // More than there is cannot be held back.
    let recipe = std::fs::read_to_string(scene.path("recipe.toml")).expect("a recipe");
    scene.write(
        "recipe.toml",
        &recipe.replace("held_back = 0", "held_back = 48"),
    );
    let folder = scene.path("plugins");
    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--plugin-dir",
        folder.to_str().expect("UTF-8"),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("48") && said.contains("held back"), "{said}");
}

#[test]
fn a_resumed_run_asks_the_same_trials_and_chooses_the_same() {
    let scene = scene();
    let schedule = [
        (
            "kind = \"periodic\", every = 4",
            "kind = \"allocator\", first = 3",
        ),
        (
            "schedule =",
            "initial = \"allocator\"\ncalibration_steps = 1\nschedule =",
        ),
        (
            "[checkpoint]\nevery = 4",
            "[checkpoint]\nevery = 4\nkeep = 9",
        ),
    ];
    calls(&scene, "run", 8, 2, 2, &schedule);
    let adapter = scene.path("run/adapter/adapter_model.safetensors");
    let whole = (
        std::fs::read(&adapter).expect("an adapter"),
        scene.records("run", "allocations.jsonl"),
    );
    // As a kill after step 4 leaves it.
    std::fs::remove_file(scene.path("run/summary.json")).expect("a finished run");
    std::fs::remove_dir_all(scene.path("run/adapter")).expect("a finished run");
    let kept = std::fs::read_dir(scene.path("run/checkpoints")).expect("checkpoints");
    let mut kept: Vec<_> = kept.map(|entry| entry.expect("an entry").path()).collect();
    kept.sort();
    assert!(kept.len() >= 3, "{kept:?}");
    for later in &kept[1..] {
        std::fs::remove_dir_all(later).expect("a checkpoint");
    }
    let folder = scene.path("plugins");
    let output = format!("output={}", scene.path("run").display());
    let folder = folder.to_str().expect("UTF-8");
    let arguments = [
        "train",
        "recipe.toml",
        "--quiet",
        "--plugin-dir",
        folder,
        "--resume",
        "--set",
        &output,
    ];
    scene.ok(&arguments);
    assert_eq!(scene.records("run", "allocations.jsonl"), whole.1);
    assert!(std::fs::read(&adapter).expect("an adapter") == whole.0);
}
