//! `train.report_to = "tensorboard"`, read back by TensorBoard.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A Python that has TensorBoard: in an environment of its own, made once.
fn tensorboard() -> Option<PathBuf> {
    let venv = built().join("outside/tensorboard");
    let python = venv.join("bin/python");
    let has = || {
        let found = Command::new(&python)
            .args(["-c", "import tensorboard"])
            .output();
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
        "tensorboard",
    ];
    let installed = make(Command::new(&python).args(pip));
    match installed {
        Ok((true, _)) if has() => Some(python),
        other => skip(
            "python",
            format_args!("TensorBoard cannot be installed: {other:?}"),
        ),
    }
}

fn read(python: &Path, run: &Path) -> Value {
    let output = Command::new(python)
        .args(["-c", READ])
        .arg(run.join("tensorboard"))
        .output();
    let output = output.expect("python starts");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
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
