//! `train.report_to`, read back by the programs that it is written for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dynalora_tests::{Scene, built, contains, said, skip};
use serde_json::Value;

/// Reads a folder of event files as TensorBoard does: its scalars by tag, and its texts.
const READ: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, STORE_EVERYTHING_SIZE_GUIDANCE
events = EventAccumulator(sys.argv[1], STORE_EVERYTHING_SIZE_GUIDANCE)
events.Reload()
tags = events.Tags()
texts = {tag: [t.tensor_proto.string_val[0].decode() for t in events.Tensors(tag)] for tag in tags['tensors']}
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags['scalars']}
print(json.dumps({'texts': texts, 'scalars': scalars}))
";

/// Reads a folder of MLflow's as its client does: each run's experiment, state, parameters, artifacts and metrics.
const TRACKED: &str = "
import json, os, sys
os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'
from mlflow import MlflowClient
client = MlflowClient(tracking_uri='file://' + sys.argv[1])
found = {}
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        history = lambda key: [[m.step, m.value, m.timestamp] for m in client.get_metric_history(run.info.run_id, key)]
        found[run.info.run_name] = {
            'experiment': experiment.name, 'status': run.info.status, 'params': run.data.params, 'tags': run.data.tags,
            'start': run.info.start_time, 'end': run.info.end_time,
            'artifacts': [a.path for a in client.list_artifacts(run.info.run_id)],
            'recipe': open(client.download_artifacts(run.info.run_id, 'resolved-recipe.toml')).read(),
            'metrics': {key: history(key) for key in run.data.metrics},
        }
print(json.dumps(found))
";

/// A Python that has a package, to be imported under this name: in an environment of its own, made once.
fn python_with(package: &str, module: &str) -> Option<PathBuf> {
    let venv = built().join("outside").join(module);
    let python = venv.join("bin/python");
    let has = || {
        let import = format!("import {module}");
        let found = Command::new(&python).args(["-c", &import]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if has() {
        return Some(python);
    }
    let make = |command: &mut Command| {
        command
            .output()
            .map(|output| (output.status.success(), said(&output)))
    };
    let made = make(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv),
    );
    if !matches!(made, Ok((true, _))) {
        return skip("python", "there is no python3 that makes environments");
    }
    let pip = [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        package,
    ];
    let installed = make(Command::new(&python).args(pip));
    match installed {
        Ok((true, _)) if has() => Some(python),
        other => skip(
            "python",
            format_args!("{package} cannot be installed: {other:?}"),
        ),
    }
}

/// Made once: tests that run side by side would be in each other's way.
fn tensorboard() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| python_with("tensorboard", "tensorboard"))
        .clone()
}

fn mlflow() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    // The part of it that needs no database.
    FOUND
        .get_or_init(|| python_with("mlflow-skinny", "mlflow"))
        .clone()
}

/// What a program prints in JSON.
fn printed(python: &Path, program: &str, argument: &Path) -> Value {
    let output = Command::new(python)
        .args(["-c", program])
        .arg(argument)
        .output();
    let output = output.expect("python starts");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn read(python: &Path, run: &Path) -> Value {
    printed(python, READ, &run.join("tensorboard"))
}

/// Steps and values of a field in a run's log.
fn logged(scene: &Scene, run: &str, kind: &str, field: &str) -> Vec<(u64, f64)> {
    let records = scene.records(run, "metrics.jsonl").into_iter();
    let records = records.filter(|record| record["kind"] == kind);
    let value = |record: Value| {
        let value = record.get(field).or(record["metrics"].get(field));
        Some((record["step"].as_u64()?, f64::from(value?.as_f64()? as f32)))
    };
    records.filter_map(value).collect()
}

fn shown(read: &Value, tag: &str) -> Vec<(u64, f64)> {
    let points = read["scalars"][tag].as_array();
    let points = points.unwrap_or_else(|| panic!("{tag} is not in {read}"));
    let point = |point: &Value| Some((point[0].as_u64()?, point[1].as_f64()?));
    points.iter().filter_map(point).collect()
}

#[test]
fn tensorboard_reads_what_was_logged_and_once_after_a_kill() {
    let Some(python) = tensorboard() else { return };
    let scene = Scene::new();
    let sets = [
        "train.report_to=tensorboard",
        "train.steps=60",
        "evaluation.every=3",
        "checkpoint.every=4",
    ];
    scene.assert_resumes("run", &sets);
    for run in ["whole-run", "killed-run"] {
        let found = read(&python, &scene.path(run));
        for (tag, kind, field) in [
            ("train/loss", "step", "loss"),
            ("train/learning_rate", "step", "learning_rate"),
            ("train/grad_norm", "step", "grad_norm"),
            ("train/constant_loss", "step", "constant_loss"),
            ("train/active_parameters", "step", "active_parameters"),
            ("eval/loss", "evaluation", "loss"),
            ("eval/accuracy", "evaluation", "accuracy"),
        ] {
            assert_eq!(
                shown(&found, tag),
                logged(&scene, run, kind, field),
                "{run}: {tag}"
            );
        }
        for tag in [
            "train/step_seconds",
            "train/tokens_per_second",
            "train/peak_memory_mib",
        ] {
            let points = shown(&found, tag);
            assert_eq!(points.len(), 60, "{run}: {tag}");
            assert!(points.iter().all(|(_, value)| *value > 0.0), "{run}: {tag}");
        }
        let shares = shown(&found, "train/active_share");
        assert_eq!((shares[0].1, shares.len()), (1.0, 60));
        assert!((shares[59].1 - 6.0 / 11.0).abs() < 1e-6, "{shares:?}");
        let texts = found["texts"]["recipe/text_summary"]
            .as_array()
            .expect("the recipe");
        let recipe =
            std::fs::read_to_string(scene.path(run).join("recipe.toml")).expect("a recipe");
        assert_eq!(texts.len(), 1);
        assert_eq!(texts[0], format!("```toml\n{recipe}```\n"), "{run}");
    }
    let files = std::fs::read_dir(scene.path("killed-run/tensorboard")).expect("a folder");
    assert_eq!(files.count(), 2);
}

#[test]
fn who_is_told_later_is_told_all() {
    let Some(python) = tensorboard() else { return };
    let scene = Scene::new();
    // Interrupted, and gone on with under a recipe that reports.
    scene.edit("steps = 12", "steps = 3000");
    let mut training = scene.command(&["train", "recipe.toml", "--quiet"]);
    let mut training = training.spawn().expect("it starts");
    while !scene.path("run/checkpoints/pointers.json").exists() {
        assert!(training.try_wait().expect("a child").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    training.kill().expect("it can be killed");
    training.wait().expect("it ends");
    assert!(!scene.path("run/tensorboard").exists());
    let lines = || {
        let log = std::fs::read(scene.path("run/metrics.jsonl")).expect("a log");
        log.iter().filter(|byte| **byte == b'\n').count()
    };
    let last = lines();
    let set = ["--resume", "--set", "train.report_to=[\"tensorboard\"]"];
    let mut training = scene.command(&[&["train", "recipe.toml", "--quiet"], &set[..]].concat());
    let mut training = training.spawn().expect("it starts");
    let folder = scene.path("run/tensorboard");
    while !folder.exists() || lines() < last + 20 {
        assert!(training.try_wait().expect("a child").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    training.kill().expect("it can be killed");
    training.wait().expect("it ends");
    let found = read(&python, &scene.path("run"));
    let (told, logged) = (
        shown(&found, "train/loss"),
        logged(&scene, "run", "step", "loss"),
    );
    // The last record may have been killed between the two.
    assert!(
        logged.len() - told.len() <= 1 && told[..] == logged[..told.len()],
        "{told:?}"
    );
}

#[test]
fn the_folder_is_the_runs_own() {
    let scene = Scene::new();
    let run = scene.train("run", &["train.report_to=tensorboard"]);
    let names = || {
        let entries = std::fs::read_dir(run.join("tensorboard")).expect("event files");
        entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect::<Vec<_>>()
    };
    let first = names();
    assert_eq!(first.len(), 1);
    // A new run in its place has its own.
    let again = [
        "train",
        "recipe.toml",
        "--quiet",
        "--force",
        "--set",
        "train.report_to=tensorboard",
    ];
    scene.ok(&again);
    assert!(names().len() == 1 && names() != first);
    scene.ok(&["train", "recipe.toml", "--quiet", "--force"]);
    assert!(!run.join("tensorboard").exists());
    // Whose it is not stays.
    std::fs::create_dir(run.join("tensorboard")).expect("a folder");
    std::fs::write(run.join("tensorboard/notes.txt"), "mine").expect("a file");
    let refused = scene.run(&again);
    assert_eq!(refused.status.code(), Some(2));
    contains(&refused, &["tensorboard/notes.txt"]);

    for (set, parts) in [
        (
            "train.report_to=tensorbord",
            &[
                "`train.report_to` cannot be \"tensorbord\"",
                "\"tensorboard\"",
            ][..],
        ),
        (
            "train.report_to=[\"wandb\"]",
            &["cannot be \"wandb\"", "\"tensorboard\""],
        ),
        ("train.report_to=3", &["train.report_to"]),
    ] {
        let refused = scene.run(&[
            "train",
            "recipe.toml",
            "--set",
            set,
            "--set",
            "output=other",
        ]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        contains(&refused, parts);
    }
}

/// Steps and values that MLflow has of a metric.
fn tracked(run: &Value, name: &str) -> Vec<(u64, f64)> {
    let points = run["metrics"][name].as_array();
    let points = points.unwrap_or_else(|| panic!("{name} is not in {run}"));
    let point = |point: &Value| Some((point[0].as_u64()?, f64::from(point[1].as_f64()? as f32)));
    points.iter().filter_map(point).collect()
}

#[test]
fn mlflow_reads_what_was_logged_and_once_after_a_kill() {
    let Some(python) = mlflow() else { return };
    let scene = Scene::new();
    let sets = [
        "train.report_to=mlflow",
        "train.steps=60",
        "evaluation.every=3",
        "checkpoint.every=4",
    ];
    scene.assert_resumes("run", &sets);
    let store = scene.path("mlruns");
    let found = printed(&python, TRACKED, &store);
    let experiment = store.parent().and_then(Path::file_name).expect("a folder");
    for run in ["whole-run", "killed-run"] {
        let own = &found[run];
        assert_eq!(own["experiment"], experiment.to_str().expect("a name"));
        assert_eq!(own["status"], "FINISHED", "{run}");
        assert!(own["end"].as_u64() >= own["start"].as_u64());
        for (name, kind, field) in [
            ("train/loss", "step", "loss"),
            ("train/grad_norm", "step", "grad_norm"),
            ("train/active_parameters", "step", "active_parameters"),
            ("eval/loss", "evaluation", "loss"),
            ("eval/accuracy", "evaluation", "accuracy"),
        ] {
            assert_eq!(
                tracked(own, name),
                logged(&scene, run, kind, field),
                "{run}: {name}"
            );
        }
        let times = own["metrics"]["train/loss"].as_array().expect("points");
        let times: Vec<_> = times.iter().map(|point| point[2].as_u64()).collect();
        assert!(times.is_sorted(), "{times:?}");
        let recipe = std::fs::read_to_string(scene.path(run).join("recipe.toml"));
        assert_eq!(own["recipe"], recipe.expect("a recipe"));
        assert_eq!(own["params"]["train.report_to"], "[\"mlflow\"]");
        assert_eq!(own["params"]["train.steps"], "60");
        assert_eq!(own["params"]["scorer.plugin"], "activation");
    }
    // Nothing there is taken for a run of ours.
    let runs = scene.run(&["runs", "mlruns", "--json"]);
    assert!(!said(&runs).contains("\"state\""), "{}", said(&runs));
}

#[test]
fn where_runs_are_tracked_is_said_as_mlflow_has_it() {
    let Some(python) = mlflow() else { return };
    let scene = Scene::new();
    let train = |output: &str, uri: &str| {
        let output = format!("output={output}");
        let mut command = scene.command(&["train", "recipe.toml", "--quiet", "--set", &output]);
        command.args(["--set", "train.report_to=[\"tensorboard\", \"mlflow\"]"]);
        command.env("MLFLOW_TRACKING_URI", uri);
        command.env("MLFLOW_EXPERIMENT_NAME", "tried: \"twice\"");
        command
    };
    let store = scene.path("a store");
    let uri = format!("file://{}", store.display()).replace(' ', "%20");
    for output in ["one", "two"] {
        let output = train(output, &uri).output().expect("it starts");
        assert!(output.status.success(), "{}", said(&output));
    }
    // Stopped, and so not finished.
    scene.edit("steps = 12", "steps = 30000");
    let mut training = train("three", "a store").spawn().expect("it starts");
    while !scene.path("three/checkpoints/pointers.json").exists() {
        assert!(training.try_wait().expect("a child").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let state = |run: &str| printed(&python, TRACKED, &store)[run]["status"].clone();
    assert_eq!(state("three"), "RUNNING");
    let id = training.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &id]).status();
    assert!(killed.expect("kill").success());
    training.wait().expect("it ends");
    assert_eq!(state("three"), "KILLED");
    let found = printed(&python, TRACKED, &store);
    for run in ["one", "two", "three"] {
        assert_eq!(found[run]["experiment"], "tried: \"twice\"", "{found}");
    }
    assert_eq!(found["one"]["status"], "FINISHED");
    // Of one name there is one experiment; a folder of MLflow's own lies beside it.
    let folders = std::fs::read_dir(&store).expect("a store").flatten();
    let folders = folders.filter(|entry| entry.file_name() != ".trash");
    assert_eq!(folders.count(), 1);
    assert!(scene.path("one/tensorboard").exists());

    let refused = train("four", "https://tracking.example").output();
    let refused = refused.expect("it starts");
    assert_eq!(refused.status.code(), Some(2));
    contains(
        &refused,
        &["MLFLOW_TRACKING_URI is https://tracking.example"],
    );
    assert!(!scene.path("four").exists());
}
