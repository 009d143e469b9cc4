//! Sweeps by Slurm and by HyperQueue, the real ones: nodes that are lost, runs that are preempted, warned, killed and cancelled,
//! and sweeps that are killed themselves come to what one machine comes to, bit for bit.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dynalora_tests::drawn::difference;
use dynalora_tests::engines::{Hq, Slurm, wait};
use dynalora_tests::{Scene, contains, flat, said};

/// A scene with a sweep of two arms and these seeds, long enough that what happens finds it at work.
fn scene(seeds: &str, more: &str) -> Scene {
    let scene = Scene::new();
    // Without threads of its own, so that an engine's cores decide.
    scene.edit("threads = 2\n", "");
    scene.write(
        "sweep.toml",
        &format!(
            "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = {seeds}\nbaseline = \"lora\"\n\
             set = {{ \"train.steps\" = 3000, \"checkpoint.every\" = 100, \"evaluation.every\" = \"never\" }}\n\
             [[arm]]\nname = \"lora\"\nset = {{ \"allocation.schedule\" = {{ kind = \"never\" }} }}\n\
             [[arm]]\nname = \"half\"\n{more}"
        ),
    );
    scene
}

const SLURM: &str =
    "[slurm]\npartition = \"low\"\ncpus = 1\ngpus = 1\ntime = \"0:10:00\"\nargs = [\"--nice=0\"]\n";

fn sweep(scene: &Scene, slurm: &Slurm, more: &[&str]) -> Command {
    let arguments = [&["sweep", "sweep.toml", "--launcher", "slurm"], more].concat();
    let mut command = scene.command(&arguments);
    command.env("SLURM_CONF", slurm.conf_path());
    command
}

fn start(mut command: Command, errors: &Path) -> Child {
    let errors = std::fs::File::create(errors).expect("a temporary file");
    command.stdout(Stdio::null()).stderr(errors);
    command.spawn().expect("the program starts")
}

/// How many steps of `run` are recorded.
fn steps(scene: &Scene, run: &str) -> usize {
    let log = std::fs::read_to_string(scene.path("runs").join(run).join("metrics.jsonl"));
    log.map_or(0, |log| log.lines().count())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn kill(signal: &str, process: u32) {
    let number = process.to_string();
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &number])
        .status();
    assert!(
        sent.is_ok_and(|sent| sent.success()),
        "kill -{signal} {process}"
    );
}

fn record(scene: &Scene) -> serde_json::Value {
    serde_json::from_str(&read(&scene.path("runs/.sweep/launched.json"))).expect("JSON")
}

#[test]
fn slurm_starts_again_what_it_lost_and_all_ends_as_on_one_machine() {
    let Some(mut slurm) = Slurm::start() else {
        return;
    };
    let scene = scene("\"1..2\"", SLURM);
    scene.ok(&["sweep", "sweep.toml", "--output", "whole", "--jobs", "2"]);

    let words = scene.path("words");
    let mut first = start(sweep(&scene, &slurm, &[]), &words);
    let names = ["lora-s1", "half-s1", "lora-s2", "half-s2"];
    let begun = |run: &&str| steps(&scene, run) > 3;
    wait("three runs at work", 40, || {
        names.iter().filter(|run| begun(run)).count() >= 3
    });
    // So long that the sweep has seen them at work.
    std::thread::sleep(Duration::from_millis(1500));
    // A node dies with its task, and a job of more importance takes another.
    slurm.lose("n1");
    slurm.ok(
        "sbatch",
        &[
            "-p",
            "high",
            "-w",
            "n2",
            "-o",
            "/dev/null",
            "--wrap",
            "true",
        ],
    );
    // The third is warned, as one whose time is nearly up.
    let third = slurm
        .running()
        .into_iter()
        .find(|(_, node)| node == "n3")
        .expect("a task of n3");
    slurm.ok("scancel", &["--signal=USR1", "--batch", &third.0]);
    wait("word of it", 60, || {
        let said = read(&words);
        ["n1", "n2", "n3"]
            .iter()
            .all(|node| said.contains(&format!("was ended on {node}: Slurm starts it again")))
    });
    // The sweep is killed: what it submitted goes on, and is found by its name where its number was not yet known.
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    let mut known = record(&scene);
    let job = known["submissions"][0]["job"]["id"].take();
    known["submissions"][0]["job"].take();
    std::fs::write(scene.path("runs/.sweep/launched.json"), known.to_string()).expect("a file");
    let here = scene.run(&["sweep", "sweep.toml"]);
    assert_eq!(here.status.code(), Some(2), "{}", said(&here));
    contains(
        &here,
        &["were given to Slurm", "--launcher slurm follows them"],
    );

    let mut second = sweep(&scene, &slurm, &[]);
    let second = second.output().expect("the program starts");
    assert!(second.status.success(), "{}", said(&second));
    let job = job.as_str().expect("a number");
    contains(
        &second,
        &[
            &format!("runs are in Slurm job {job} already: they are followed"),
            "4/4",
        ],
    );
    assert!(!said(&second).contains("submitted"), "{}", said(&second));
    assert!(
        String::from_utf8_lossy(&second.stdout).contains("| half"),
        "a table"
    );
    for run in names {
        let (whole, torn) = (scene.path("whole").join(run), scene.path("runs").join(run));
        assert_eq!(difference(&whole, &torn, &[]), "", "{run}");
    }
    // Each of the three sat down at least twice, and was saved by what told it to stop; nothing is left behind.
    let sittings = |run: &str| {
        let text = read(&scene.path("runs").join(run).join("provenance.json"));
        let provenance: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        provenance["sittings"].as_array().map_or(0, Vec::len)
    };
    let torn = names.iter().filter(|run| sittings(run) > 1).count();
    assert_eq!(torn, 3, "runs with several sittings");
    let saved = names.iter().filter(|run| {
        read(&scene.path(&format!("runs/.sweep/{run}.log"))).contains("stopped by SIG")
    });
    assert_eq!(saved.count(), 2, "those of n2 and n3");
    assert!(!scene.path("runs/.sweep/launched.json").exists());
}

#[test]
fn slurm_tries_again_what_failed_and_nothing_else() {
    let Some(slurm) = Slurm::start() else { return };
    let scene = scene(
        "[1]",
        &format!(
            "[[arm]]\nname = \"gone\"\nset = {{ \"data.train\" = \"gone.csv\", \"adapter.rank\" = 2 }}\n{SLURM}"
        ),
    );
    // What would be submitted, which is nothing yet.
    let printed = String::from_utf8(
        sweep(&scene, &slurm, &["--dry-run", "--jobs", "2"])
            .output()
            .expect("it starts")
            .stdout,
    );
    let printed = printed.expect("UTF-8");
    for part in [
        "sbatch --parsable",
        "--array=0-2%2",
        "--requeue",
        "--signal=B:USR1@60",
        "--partition=low",
        "--gpus-per-task=1",
        "#!/bin/bash",
        "scontrol requeue",
    ] {
        assert!(printed.contains(part), "{part}:\n{printed}");
    }
    assert!(!scene.path("runs").exists(), "nothing was made");

    // Ctrl-C ends the following alone.
    let words = scene.path("words");
    let arms = ["--arms", "lora,half"];
    let mut following = start(sweep(&scene, &slurm, &arms), &words);
    wait("a run at work", 40, || steps(&scene, "lora-s1") > 3);
    let twice = sweep(&scene, &slurm, &arms).output().expect("it starts");
    assert_eq!(twice.status.code(), Some(2), "{}", said(&twice));
    contains(&twice, &["another `dynalora sweep` follows"]);
    kill("INT", following.id());
    assert_eq!(following.wait().expect("it ends").code(), Some(130));
    let job = record(&scene)["submissions"][0]["job"]["id"]
        .as_str()
        .expect("a number")
        .to_owned();
    let left = read(&words);
    for part in ["goes on without this sweep", &format!("scancel {job}")] {
        assert!(flat(&left).contains(&flat(part)), "{part}:\n{left}");
    }
    assert!(!slurm.running().is_empty(), "nothing was cancelled");

    // One is cancelled, one killed: the second alone is tried again. A recipe that cannot be trained is not.
    let words = scene.path("more");
    let mut following = start(sweep(&scene, &slurm, &[]), &words);
    wait("two runs at work", 40, || {
        steps(&scene, "lora-s1").min(steps(&scene, "half-s1")) > 3
    });
    slurm.ok("scancel", &[&format!("{job}_0")]);
    let of_half = format!("train {}", scene.path("runs/.sweep/half-s1.toml").display());
    let half = Command::new("pgrep").args(["-f", &of_half]).output();
    let half = half.expect("pgrep");
    let half = String::from_utf8_lossy(&half.stdout);
    kill("KILL", half.trim().parse().expect("one process"));
    assert_eq!(following.wait().expect("it ends").code(), Some(1));
    let said = read(&words);
    for part in [
        "FAILED lora-s1 was cancelled",
        "FAILED half-s1 ended with exit code 137",
        "it is tried again",
        "1 run is submitted as Slurm job",
        "1/3 half-s1",
        "FAILED gone-s1 ended with exit code 2",
        "gone.csv",
        "2 of 3 runs failed",
    ] {
        assert!(flat(&said).contains(&flat(part)), "{part}:\n{said}");
    }
    assert_eq!(said.matches("it is tried again").count(), 1, "{said}");

    // The same command tries them again: the file is there now. Another recipe than the queued one is refused.
    std::fs::copy(scene.path("train.csv"), scene.path("gone.csv")).expect("a copy");
    let mended = sweep(&scene, &slurm, &[]).output().expect("it starts");
    assert!(mended.status.success(), "{}", dynalora_tests::said(&mended));
    contains(&mended, &["2 runs are submitted", "3/3"]);
    scene.ok(&["sweep", "sweep.toml", "--output", "whole", "--jobs", "2"]);
    for run in ["lora-s1", "half-s1", "gone-s1"] {
        let (whole, torn) = (scene.path("whole").join(run), scene.path("runs").join(run));
        assert_eq!(difference(&whole, &torn, &[]), "", "{run}");
    }
    let refused = sweep(
        &scene,
        &slurm,
        &["--output", "other", "--launch", "partition=none"],
    )
    .output();
    let refused = refused.expect("it starts");
    assert_eq!(
        refused.status.code(),
        Some(2),
        "{}",
        dynalora_tests::said(&refused)
    );
    contains(&refused, &["`sbatch` refused", "partition"]);
    assert!(!scene.path("other/.sweep/launched.json").exists());
}

#[test]
fn hyperqueue_ends_as_one_machine_does() {
    let Some(mut hq) = Hq::start(2) else { return };
    let scene = scene("\"1..2\"", "[hq]\ncpus = 1\ntime = \"10min\"\n");
    let server = hq.server_dir();
    let sweep = || {
        let mut command = scene.command(&["sweep", "sweep.toml", "--launcher", "hq"]);
        command.env("HQ_SERVER_DIR", &server);
        command
    };
    scene.ok(&["sweep", "sweep.toml", "--output", "whole", "--jobs", "2"]);
    let words = scene.path("words");
    let mut first = start(sweep(), &words);
    let names = ["lora-s1", "half-s1", "lora-s2", "half-s2"];
    wait("two runs at work", 40, || {
        names.iter().filter(|run| steps(&scene, run) > 3).count() == 2
    });
    // The sweep is killed and a worker lost: its task is started again elsewhere.
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    hq.lose_worker();
    hq.add_worker();
    let second = sweep().output().expect("it starts");
    assert!(second.status.success(), "{}", said(&second));
    contains(
        &second,
        &[
            "runs are in HyperQueue job 1 already: they are followed",
            "4/4",
        ],
    );
    for run in names {
        let (whole, torn) = (scene.path("whole").join(run), scene.path("runs").join(run));
        assert_eq!(difference(&whole, &torn, &[]), "", "{run}");
    }
}

#[test]
fn mistakes_are_named_before_anything_is_submitted() {
    let scene = scene("[1]", "");
    let refuse = |more: &[&str], parts: &[&str]| {
        let arguments = [&["sweep", "sweep.toml"], more].concat();
        let mut command = scene.command(&arguments);
        // Nothing of an engine is to be found.
        let output = command.env("PATH", "/nowhere").output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", said(&output));
        contains(&output, parts);
        assert!(!scene.path("runs/lora-s1").exists());
    };
    refuse(
        &["--launch", "cpus=2"],
        &["--launch cannot act", "--launcher slurm"],
    );
    refuse(&["--launcher", "hq", "--jobs", "2"], &["--jobs cannot act"]);
    refuse(
        &["--launcher", "slurm", "--launch", "partitions=a"],
        &["no key `slurm.partitions`", "did you mean `partition`"],
    );
    refuse(
        &["--launcher", "slurm", "--launch", "signal=USR2@5"],
        &["`signal` is \"USR2@5\"", "B:USR1@60"],
    );
    refuse(
        &["--launcher", "slurm", "--launch", "args=[\"--array=0-1\"]"],
        &["`--array=0-1` in `args` is for the sweep itself"],
    );
    refuse(
        &["--launcher", "hq", "--launch", "args=[\"--name\", \"a\"]"],
        &["`--name` in `args` is for the sweep itself"],
    );
    refuse(
        &["--launcher", "slurm"],
        &["`sbatch` cannot be started", "PATH"],
    );
    refuse(&["--launcher", "hq"], &["`hq` cannot be started"]);
}
