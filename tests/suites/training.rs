//! A run trains what its recipe says: examples weigh alike, masks of dropout depend on nothing else, a cache is
//! never stale, signals lose nothing, and what is not finite is said and kept from plugins.

use std::fs::File;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::Scene;
use serde_json::Value;

const NO_DROPOUT: [&str; 3] = [
    "model.hidden_dropout=0.0",
    "model.attention_dropout=0.0",
    "model.classifier_dropout=0.0",
];
const PLAIN: &str = "allocation.schedule={ kind = \"never\" }";

/// Loss and gradient norm of every step of a run.
fn curve(scene: &Scene, run: &str) -> Vec<(f64, f64)> {
    let records = scene.records(run, "metrics.jsonl");
    let steps = records.iter().filter(|record| record["kind"] == "step");
    let number = |value: &Value| value.as_f64().expect("a number");
    steps
        .map(|step| (number(&step["loss"]), number(&step["grad_norm"])))
        .collect()
}

/// The first so many rows of the scene's training data.
fn cut_data(scene: &Scene, rows: usize) {
    let text = std::fs::read_to_string(scene.path("train.csv")).expect("data");
    let lines: Vec<&str> = text.lines().take(rows + 1).collect();
    scene.write("train.csv", &(lines.join("\n") + "\n"));
}

#[test]
fn a_cached_prefix_is_never_stale() {
    let scene = Scene::new();
    for seed in 0..4 {
        let seed = format!("seed={seed}");
        let sets = [
            &NO_DROPOUT[..],
            &[
                &seed,
                "allocation.unit=layer",
                "allocator.plugin=uniform",
                "allocator.k=1",
                "allocation.schedule={ kind = \"periodic\", every = 5 }",
                "adapter.targets=[\"query\"]",
                "train.steps=60",
            ],
        ]
        .concat();
        let name = |arm: &str| format!("{arm}-{seed}").replace('=', "-");
        scene.train(&name("without"), &sets);
        let sets = [&sets[..], &["train.cache_frozen_prefix=true"]].concat();
        scene.train(&name("with"), &sets);
        assert_eq!(
            curve(&scene, &name("without")),
            curve(&scene, &name("with")),
            "{seed}"
        );
    }
}

#[test]
fn examples_weigh_the_same_in_whichever_micro_batch_they_are() {
    let scene = Scene::new();
    cut_data(&scene, 12);
    let common = [
        &NO_DROPOUT[..],
        &[PLAIN, "train.order=sequential", "train.steps=1"],
    ]
    .concat();
    let whole = [&common[..], &["train.batch_size=16"]].concat();
    scene.train("whole", &whole);
    let [(loss, norm)] = curve(&scene, "whole")[..] else {
        panic!("one step")
    };
    for (name, batch) in [
        ("eight-and-four", vec!["train.batch_size=8"]),
        ("five-five-two", vec!["train.batch_size=5"]),
        ("tokens", vec!["train.tokens_per_batch=64"]),
    ] {
        let parts = [&common[..], &batch, &["train.gradient_accumulation=12"]].concat();
        scene.train(name, &parts);
        let [(own_loss, own_norm)] = curve(&scene, name)[..] else {
            panic!("one step")
        };
        assert!(
            (own_loss / loss - 1.0).abs() < 1e-5,
            "{name}: {own_loss}, not {loss}"
        );
        assert!(
            (own_norm / norm - 1.0).abs() < 1e-4,
            "{name}: {own_norm}, not {norm}"
        );
    }
    // Two steps in one record: the mean over the twelve examples, not of the means of 8 and 4.
    let by_steps = [&common[..3], &[PLAIN, "train.order=sequential"]].concat();
    let still = [
        &by_steps[..],
        &[
            "train.batch_size=8",
            "train.learning_rate=0.0",
            "train.steps=2",
        ],
    ];
    scene.train(
        "still",
        &[&still.concat()[..], &["train.log_every=2"]].concat(),
    );
    let [(mean, _)] = curve(&scene, "still")[..] else {
        panic!("one record")
    };
    assert!((mean / loss - 1.0).abs() < 1e-5, "{mean}, not {loss}");
}

#[test]
fn every_seed_fills_batches_of_tokens_its_own_way() {
    // How many there are depends on the order in which they are filled.
    let scene = Scene::new();
    for seed in ["seed=1", "seed=2", "seed=42"] {
        let tokens = "train.tokens_per_batch=144";
        let sets = [seed, tokens, "train.steps=40", "checkpoint.every=10", PLAIN];
        scene.assert_resumes(&seed.replace('=', "-"), &sets);
    }
}

#[test]
fn what_is_measured_changes_nothing_that_is_dropped() {
    let scene = Scene::new();
    let uniform = ["allocator.plugin=uniform", "adapter.dropout=0.1"];
    // Of the last layer everything is measured, its queries alone, and nothing.
    for targets in ["\"all-linear\"", "[\"query\"]", "[\"key\"]"] {
        let targets = format!("adapter.targets={targets}");
        let sets = [&uniform[..], &[&targets]].concat();
        let name = |arm: &str| format!("{arm}-{}", targets.replace(['"', '[', ']', '='], ""));
        scene.write("recipe.toml", &scene.recipe_text());
        scene.train(&name("measured"), &sets);
        scene.edit("[scorer]\nplugin = \"activation\"\n", "");
        scene.train(&name("unmeasured"), &sets);
        let [measured, unmeasured] =
            ["measured", "unmeasured"].map(|arm| curve(&scene, &name(arm)));
        assert_eq!(measured, unmeasured, "{targets}");
    }
}

#[test]
fn which_other_modules_are_adapted_changes_no_mask() {
    // At the first step every adapter is silent, so that only masks could tell the arms apart.
    let scene = Scene::new();
    let common = [PLAIN, "train.steps=1", "adapter.dropout=0.3"];
    let first = |name: &str, targets: &str| {
        scene.train(name, &[&common[..], &[targets]].concat());
        curve(&scene, name)[0].0
    };
    let query = first("query", "adapter.targets=[\"query\"]");
    assert_eq!(query, first("value", "adapter.targets=[\"value\"]"));
    assert_eq!(query, first("all", "adapter.targets=\"all-linear\""));
}

#[test]
fn a_run_that_never_evaluates_does_so_at_its_end() {
    let scene = Scene::new();
    let run = scene.train("run", &["evaluation.every=never", "checkpoint.every=never"]);
    let records = scene.records("run", "metrics.jsonl");
    let evaluations: Vec<_> = records
        .iter()
        .filter(|record| record["kind"] == "evaluation")
        .map(|record| record["step"].as_u64())
        .collect();
    assert_eq!(evaluations, [Some(12)]);
    let summary = std::fs::read_to_string(run.join("summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["best"]["step"], 12);
    assert!(summary["metrics"]["accuracy"].is_number(), "{summary}");
}

/// A training that has just been started, its output in a file.
fn start(scene: &Scene, run: &str, sets: &[&str], more: &[&str]) -> Child {
    let output = format!("output={}", scene.path(run).display());
    let mut arguments = vec!["train", "recipe.toml", "--set", &output];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    arguments.extend(more);
    let said = File::create(scene.path(&format!("{run}.log"))).expect("a file");
    let mut command = scene.command(&arguments);
    command.stdout(Stdio::null()).stderr(said);
    command.spawn().expect("the program starts")
}

#[cfg(unix)]
fn send(child: &Child, signal: &str) {
    let status = std::process::Command::new("kill")
        .args(["-s", signal, &child.id().to_string()])
        .status();
    assert!(status.expect("kill runs").success(), "{signal}");
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no {what} within a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn adapter(scene: &Scene, run: &str) -> Vec<u8> {
    let path = scene.path(run).join("adapter/adapter_model.safetensors");
    std::fs::read(path).expect("an adapter")
}

/// Long enough to be met on its way, with an evaluation after every other step.
const LONG: [&str; 5] = [
    "train.steps=150",
    "evaluation.every=2",
    "checkpoint.every=never",
    "allocation.schedule={ kind = \"periodic\", every = 7 }",
    "scorer.plugin=gradient",
];

#[cfg(unix)]
#[test]
fn a_signal_lets_the_step_finish_and_nothing_is_lost() {
    let scene = Scene::new();
    scene.train("whole", &LONG);
    for (signal, code, more) in [("INT", 130, 0), ("TERM", 143, 7), ("HUP", 129, 23)] {
        let run = format!("run-{signal}");
        let mut child = start(&scene, &run, &LONG, &[]);
        let metrics = scene.path(&run).join("metrics.jsonl");
        wait_for("record", || {
            metrics.metadata().is_ok_and(|file| file.len() > 0)
        });
        std::thread::sleep(Duration::from_millis(more));
        send(&child, signal);
        let status: ExitStatus = child.wait().expect("it ends");
        let said = std::fs::read_to_string(scene.path(&format!("{run}.log"))).expect("a log");
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(
            said.contains(&format!("stopped by SIG{signal} after step")),
            "{said}"
        );
        assert!(said.contains("--resume"), "{said}");
        assert!(!scene.path(&run).join("summary.json").exists());
        let mut child = start(&scene, &run, &LONG, &["--resume"]);
        assert!(child.wait().expect("it ends").success());
        assert!(
            adapter(&scene, &run) == adapter(&scene, "whole"),
            "{signal}"
        );
        let without_time = |run: &str| {
            let mut records = scene.records(run, "metrics.jsonl");
            for record in &mut records {
                let fields = record.as_object_mut().expect("objects");
                fields.remove("seconds");
                fields.remove("peak_memory");
            }
            records
        };
        assert_eq!(without_time(&run), without_time("whole"), "{signal}");
    }
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    let scene = Scene::new();
    // One step that takes a while.
    let text = std::fs::read_to_string(scene.path("train.csv")).expect("data");
    let (header, rows) = text.split_once('\n').expect("a header");
    scene.write("train.csv", &format!("{header}\n{}", rows.repeat(400)));
    let sets = [
        "train.batch_size=1",
        "train.gradient_accumulation=19200",
        "train.steps=2",
        PLAIN,
    ];
    let mut child = start(&scene, "run", &sets, &[]);
    let allocations = scene.path("run").join("allocations.jsonl");
    wait_for("start", || {
        allocations.metadata().is_ok_and(|file| file.len() > 0)
    });
    send(&child, "TERM");
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        child.try_wait().expect("a status").is_none(),
        "it waits for its step"
    );
    send(&child, "TERM");
    let asked = Instant::now();
    assert_eq!(child.wait().expect("it ends").code(), Some(143));
    assert!(asked.elapsed() < Duration::from_millis(500));
    assert!(!scene.path("run/checkpoints/pointers.json").exists());
}

#[test]
fn checkpoints_come_by_time_as_well() {
    let scene = Scene::new();
    let sets = [
        &LONG[..],
        &["evaluation.every=never", "checkpoint.minutes=0.002"],
    ]
    .concat();
    let mut child = start(&scene, "run", &sets, &[]);
    let pointers = scene.path("run/checkpoints/pointers.json");
    wait_for("checkpoint", || pointers.exists());
    assert!(
        !scene.path("run/summary.json").exists(),
        "it came before the end"
    );
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    scene.train("whole", &LONG);
    let mut child = start(&scene, "run", &sets, &["--resume"]);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_run_that_diverges_says_so_and_blames_nobody() {
    let scene = Scene::new();
    let sets = [
        "train.learning_rate=1e36",
        "train.max_grad_norm=0",
        "train.warmup=0",
    ];
    for (policy, again) in [("stop", false), ("skip", true)] {
        let run = format!("run-{policy}");
        let policy = format!("train.on_nonfinite={policy}");
        let mut child = start(
            &scene,
            &run,
            &[
                &sets[..],
                &[&policy, "train.steps=40", "evaluation.every=never"],
            ]
            .concat(),
            &[],
        );
        let status = child.wait().expect("it ends");
        let said = std::fs::read_to_string(scene.path(&format!("{run}.log"))).expect("a log");
        // As one line, however it was wrapped.
        let words = said.split_whitespace().filter(|word| *word != "│");
        let said = words.collect::<Vec<_>>().join(" ");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("the run has diverged"), "{said}");
        assert!(
            !said.contains("plugin") && !said.contains("scorer"),
            "{said}"
        );
        assert_eq!(said.contains("as in the 10 steps before"), again, "{said}");
        assert!(!scene.path(&run).join("summary.json").exists());
        // The last good state is there.
        assert!(
            scene.path(&run).join("checkpoints/pointers.json").is_file(),
            "{said}"
        );
    }
}

#[test]
fn numbers_that_f32_or_the_system_cannot_bear_are_refused() {
    let scene = Scene::new();
    for (set, named) in [
        ("train.epsilon=1e-50", "train.epsilon"),
        ("threads=99999999", "threads"),
    ] {
        let output = scene.run(&["train", "recipe.toml", "--set", set]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(named), "{said}");
        assert!(!scene.path("run").exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_standard_error_that_cannot_be_written_ends_nothing() {
    let scene = Scene::new();
    let output = format!("output={}", scene.path("run").display());
    let mut command = scene.command(&["train", "recipe.toml", "-vv", "--set", &output]);
    command.stderr(
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("a full disk"),
    );
    assert!(command.status().expect("it runs").success());
    assert!(scene.path("run/summary.json").is_file());
    // Nor does a reader that goes away.
    let mut command = scene.command(&["train", "recipe.toml", "-vv", "--set", "output=other"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stderr.take());
    assert!(child.wait().expect("it ends").success());
    // No colours where nobody sees them.
    let said = |arguments: &[&str]| scene.run(arguments).stderr;
    assert!(!said(&["train", "nowhere.toml"]).contains(&0x1b));
    let warned = said(&[
        "train",
        "recipe.toml",
        "-vv",
        "--set",
        "output=plain",
        "--set",
        PLAIN,
    ]);
    assert!(
        String::from_utf8_lossy(&warned).contains("WARN"),
        "{warned:?}"
    );
    assert!(!warned.contains(&0x1b));
    // And a message that cannot be shown keeps its exit code.
    let mut command = scene.command(&["train", "nowhere.toml"]);
    command.stderr(
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("a full disk"),
    );
    assert_eq!(command.status().expect("it runs").code(), Some(2));
}
