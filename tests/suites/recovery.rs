//! A run that is never lost: damage, kills, full disks, and everything else that comes between a run and its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::{Scene, built};
use serde_json::Value;

/// What the program said, on one line.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    let words = text.split_whitespace().filter(|word| *word != "│");
    words.collect::<Vec<_>>().join(" ")
}

fn arguments<'a>(output: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "recipe.toml", "--set", output];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    arguments
}

/// Trains into the run `name` with more arguments, and returns what came of it.
fn train(scene: &Scene, name: &str, sets: &[&str], more: &[&str]) -> Output {
    let output = format!("output={}", scene.path(name).display());
    let mut arguments = arguments(&output, sets);
    arguments.extend(more);
    scene.run(&arguments)
}

#[track_caller]
fn resumed(scene: &Scene, name: &str, sets: &[&str]) -> String {
    let output = train(scene, name, sets, &["--resume"]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    said
}

/// Expects an exit code and every part in the message.
#[track_caller]
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    // Long words are wrapped too.
    let flat = |text: &str| text.split_whitespace().collect::<String>();
    for part in parts {
        assert!(
            flat(&said).contains(&flat(part)),
            "{part:?} is missing: {said}"
        );
    }
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
}

/// Every file below a folder with its content, but for locks.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(tree(&path));
        } else if !path.ends_with(".lock") {
            all.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    all.sort();
    all
}

/// The run as a kill between its last checkpoint and its closing account leaves it.
fn unfinish(run: &Path) {
    fs::remove_file(run.join("summary.json")).expect("a finished run");
    fs::remove_dir_all(run.join("adapter")).expect("a finished run");
}

/// A run that takes long, in the background, once it has recorded something.
fn begin(scene: &Scene, name: &str, sets: &[&str]) -> Child {
    let output = format!("output={}", scene.path(name).display());
    let long = ["train.steps=1000000", "evaluation.every=never"];
    let mut command = scene.command(&arguments(&output, &[&long[..], sets].concat()));
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    let child = command.spawn().expect("the program starts");
    let metrics = scene.path(name).join("metrics.jsonl");
    let started = Instant::now();
    while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no record");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn ended(child: Child) -> Output {
    child.wait_with_output().expect("it ends")
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_flipped_bit_anywhere_in_a_checkpoint_is_named_and_the_one_before_is_used() {
    let scene = Scene::new();
    let whole = adapter(&scene.train("whole", &[]));
    scene.train("run", &[]);
    let run = scene.path("run");
    for file in ["state.safetensors", "progress.json", "manifest.json"] {
        for part in 0..5 {
            if run.join("summary.json").exists() {
                unfinish(&run);
            }
            // The last may be a second of its step.
            let name = checkpoints(&run).pop().expect("a checkpoint");
            let path = run.join("checkpoints").join(&name).join(file);
            let mut bytes = fs::read(&path).expect("a checkpoint's file");
            let at = (bytes.len() - 1) * part / 4;
            bytes[at] ^= 1 << part;
            fs::write(&path, bytes).expect("written");
            let said = resumed(&scene, "run", &[]);
            assert!(
                said.contains("is damaged and is passed over")
                    && said.contains(file)
                    && said.contains("of step 8"),
                "{file}, {at}: {said}"
            );
            assert!(adapter(&run) == whole, "{file}, {at}");
        }
    }
    // Steps and records are made once.
    assert_eq!(
        scene.records("run", "metrics.jsonl").len(),
        scene.records("whole", "metrics.jsonl").len()
    );
}

#[test]
fn checkpoints_are_found_without_their_pointers() {
    let scene = Scene::new();
    let whole = adapter(&scene.train("run", &[]));
    let run = scene.path("run");
    for content in [
        None,
        Some(""),
        Some("{\"last\": {\"checkpoint\": \"x\", \"step\": 1}}"),
    ] {
        unfinish(&run);
        let pointers = run.join("checkpoints/pointers.json");
        match content {
            None => fs::remove_file(&pointers).expect("there"),
            Some(content) => fs::write(&pointers, content).expect("written"),
        }
        let before = fs::read(run.join("metrics.jsonl")).expect("a log");
        resumed(&scene, "run", &[]);
        assert!(
            adapter(&run) == whole && fs::read(run.join("metrics.jsonl")).expect("a log") == before
        );
    }
}

#[test]
fn a_run_never_starts_over_while_checkpoints_lie_there() {
    let scene = Scene::new();
    let run = scene.train("run", &[]);
    unfinish(&run);
    for name in checkpoints(&run) {
        let state = run.join("checkpoints").join(name).join("state.safetensors");
        if state.exists() {
            fs::write(state, "").expect("written");
        }
    }
    let before = tree(&run);
    let output = train(&scene, "run", &[], &["--resume"]);
    fails(
        &output,
        2,
        &["none of the 3 checkpoints", "state.safetensors", "--force"],
    );
    assert!(tree(&run) == before);
    assert!(train(&scene, "run", &[], &["--force"]).status.success());
}

#[test]
fn a_resume_that_fails_changes_nothing() {
    let scene = Scene::new();
    let run = scene.train("run", &[]);
    unfinish(&run);
    // So that the logs know more than the last checkpoint.
    fs::remove_dir_all(run.join("checkpoints/step-000012")).expect("there");
    let before = tree(&run);
    let train_csv = fs::read_to_string(scene.path("train.csv")).expect("a file");
    for damage in ["", "id,sentence,label\n"] {
        scene.write("train.csv", damage);
        assert_eq!(
            train(&scene, "run", &[], &["--resume"]).status.code(),
            Some(2)
        );
        assert!(tree(&run) == before, "{damage:?}");
    }
    scene.write("train.csv", &train_csv);
    let output = train(&scene, "run", &["allocator.k=3"], &["--resume"]);
    fails(&output, 2, &["allocator.k = 3", "50%", "--force"]);
    assert!(tree(&run) == before);
    resumed(&scene, "run", &[]);
    assert!(adapter(&run) == adapter(&scene.train("whole", &[])));
}

#[test]
fn a_start_cut_short_blocks_neither_a_start_nor_a_resume() {
    let scene = Scene::new();
    let run = scene.path("run");
    for more in [&[][..], &["--resume"]] {
        for left in [
            &[][..],
            &["recipe.toml.partial"],
            &["provenance.json", "recipe.toml.partial"],
        ] {
            let _ = fs::remove_dir_all(&run);
            fs::create_dir_all(run.join("checkpoints")).expect("a folder");
            fs::write(run.join(".lock"), "").expect("written");
            for name in left {
                fs::write(run.join(name), "{").expect("written");
            }
            let output = train(&scene, "run", &["train.steps=1"], more);
            assert!(
                output.status.success(),
                "{left:?}, {more:?}: {}",
                said(&output)
            );
            assert!(!run.join("recipe.toml.partial").exists());
        }
    }
}

#[test]
fn kills_at_any_moment_change_nothing_in_the_end() {
    let scene = Scene::new();
    let whole = adapter(&scene.train("whole", &[]));
    for round in 0..12 {
        let name = format!("killed-{round}");
        let output = format!("output={}", scene.path(&name).display());
        let mut arguments = arguments(&output, &[]);
        arguments.push("--quiet");
        // From before the folder is there to after the end.
        for kill in 0..3 {
            let mut command = scene.command(&arguments);
            let mut child = command
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("it starts");
            std::thread::sleep(Duration::from_millis(round * 23 + kill * 7));
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
            if scene.path(&name).exists() && kill == 0 {
                arguments.push("--resume");
            }
        }
        if scene.path(&name).exists() && !arguments.contains(&"--resume") {
            arguments.push("--resume");
        }
        scene.ok(&arguments);
        assert!(adapter(&scene.path(&name)) == whole, "round {round}");
        assert_eq!(
            scene.records(&name, "metrics.jsonl").len(),
            scene.records("whole", "metrics.jsonl").len(),
            "round {round}"
        );
    }
}

#[test]
fn a_run_whose_folder_goes_away_is_a_failure() {
    let scene = Scene::new();
    for (name, how) in [("moved", true), ("deleted", false)] {
        let child = begin(&scene, name, &["checkpoint.every=never"]);
        let run = scene.path(name);
        match how {
            true => fs::rename(&run, scene.path("away")).expect("moved"),
            // It may write something while it goes.
            false => while fs::remove_dir_all(&run).is_err() && run.exists() {},
        }
        fails(&ended(child), 1, &["is gone", name]);
        assert!(!run.exists());
    }
    // Where it is now, it is whole.
    let away = format!("output={}", scene.path("away").display());
    let long = [
        "train.steps=1000000",
        "evaluation.every=never",
        "checkpoint.every=never",
    ];
    let recipe = fs::read_to_string(scene.path("away/recipe.toml")).expect("a recipe");
    assert!(recipe.contains("moved"));
    let mut resumed = arguments(&away, &long);
    resumed.push("--resume");
    let mut command = scene.command(&resumed);
    let mut child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let started = Instant::now();
    while !fs::read_to_string(scene.path("away/recipe.toml"))
        .expect("a recipe")
        .contains("away")
    {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it does not go on"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

/// A small file system of its own, unmounted at the end; none, and a line that says so, where it may not be made.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: PathBuf) -> Option<Self> {
        fs::create_dir(&folder).expect("a folder");
        let mut mount = Command::new("mount");
        let mount = mount
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(&folder)
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Disk(folder));
        }
        eprintln!(
            "skipped: a file system cannot be mounted here, so that none can be full or read-only"
        );
        None
    }

    /// Leaves so many KiB free.
    fn fill(&self, free: usize) {
        let path = self.0.join("filler");
        let _ = fs::remove_file(&path);
        // Until there is no more.
        let _ = fs::write(&path, vec![1; 4 << 20]);
        let size = fs::metadata(&path).expect("there").len();
        let file = fs::File::options().write(true).open(&path).expect("there");
        file.set_len(size.saturating_sub(free as u64 * 1024))
            .expect("cut");
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(&self.0)
            .status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_or_read_only_disk_is_named_and_the_run_goes_on_when_there_is_room() {
    let scene = Scene::new();
    let whole = adapter(&scene.train("whole", &[]));
    let Some(disk) = Disk::new(scene.path("disk")) else {
        return;
    };
    let mut failed = 0;
    // From nothing at all over half a checkpoint to enough.
    for free in [0, 4, 8, 12, 40, 80, 120, 200, 260, 2000] {
        disk.fill(free);
        let output = train(&scene, "disk/run", &[], &[]);
        if !output.status.success() {
            failed += 1;
            fails(&output, 1, &["cannot write", "disk"]);
        }
        let _ = fs::remove_file(disk.0.join("filler"));
        let run = scene.path("disk/run");
        if run.join("recipe.toml").exists() {
            resumed(&scene, "disk/run", &[]);
        } else {
            let again = train(&scene, "disk/run", &[], &[]);
            assert!(again.status.success(), "{free}: {}", said(&again));
        }
        assert!(adapter(&run) == whole, "{free}");
        fs::remove_dir_all(run).expect("removed");
    }
    assert!(failed >= 4, "{failed}");

    train(&scene, "disk/run", &[], &[]);
    unfinish(&scene.path("disk/run"));
    disk.remount("ro");
    fails(
        &train(&scene, "disk/run", &[], &["--resume"]),
        1,
        &["cannot write", "disk/run"],
    );
    fails(
        &train(&scene, "disk/new", &[], &[]),
        1,
        &["cannot write", "disk/new"],
    );
    disk.remount("rw");
    resumed(&scene, "disk/run", &[]);
}

#[test]
fn a_finished_run_stays_as_it_is_byte_for_byte() {
    let scene = Scene::new();
    let run = scene.train("run", &["evaluation.every=4"]);
    let before = tree(&run);
    let output = train(
        &scene,
        "run",
        &["evaluation.every=4"],
        &["--resume", "--json"],
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(tree(&run) == before);
    let summary = || -> Value {
        let text = fs::read(run.join("summary.json")).expect("a summary");
        serde_json::from_slice(&text).expect("JSON")
    };
    let whole = summary();
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON"),
        whole
    );
    assert!(whole["metrics"]["accuracy"].is_number() && whole["best"].is_object());

    // A kill between the last checkpoint and the summary loses nothing of it.
    unfinish(&run);
    resumed(&scene, "run", &["evaluation.every=4"]);
    let mut again = summary();
    let memory = |summary: &Value| summary["peak_memory"].as_u64();
    // What was seen up to the last checkpoint is known; of what came after it, the kill has left nothing.
    let records = scene.records("run", "metrics.jsonl");
    let mut steps = records.iter().filter(|record| record["kind"] == "step");
    let last = steps.next_back().expect("a step");
    assert!(memory(&again) >= memory(last) && memory(last).is_some());
    again["peak_memory"] = whole["peak_memory"].clone();
    assert_eq!(again, whole);
    let known = |name: &str| name.ends_with("summary.json") || name.ends_with("provenance.json");
    for ((path, now), (_, then)) in tree(&run).iter().zip(&before) {
        assert!(
            now == then || known(&path.to_string_lossy()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_tampered_summary_does_not_panic() {
    let scene = Scene::new();
    let run = scene.train("run", &["train.steps=1"]);
    let path = run.join("summary.json");
    let text = fs::read_to_string(&path).expect("a summary");
    let mut summary: Value = serde_json::from_str(&text).expect("JSON");
    for seconds in [1e300, -1.0] {
        summary["seconds"] = seconds.into();
        fs::write(&path, summary.to_string()).expect("written");
        resumed(&scene, "run", &["train.steps=1"]);
    }
    // One that is damaged is made again.
    fs::write(&path, "{").expect("written");
    resumed(&scene, "run", &["train.steps=1"]);
    let again: Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    assert_eq!(again["steps"], 1);
}

#[test]
fn force_starts_anew_and_takes_away_nothing_but_a_runs_own() {
    let scene = Scene::new();
    let run = scene.train("run", &[]);
    let old = tree(&run);
    // Not before it is known that the new one can start.
    let refused = train(&scene, "run", &["allocator.plugin=nobody"], &["--force"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(tree(&run) == old);
    fs::write(run.join("thesis.tex"), "").expect("written");
    fails(&train(&scene, "run", &[], &["--force"]), 2, &["thesis.tex"]);
    fs::remove_file(run.join("thesis.tex")).expect("there");
    let output = train(&scene, "run", &["seed=9"], &["--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(adapter(&run) == adapter(&scene.train("other", &["seed=9"])));

    let mut child = begin(&scene, "live", &[]);
    fails(
        &train(&scene, "live", &[], &["--force"]),
        2,
        &["another process"],
    );
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let output = train(&scene, "live", &[], &["--force"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_last_few_checkpoints_are_kept() {
    let scene = Scene::new();
    let steps = |run: &Path| -> Vec<String> {
        let names = checkpoints(run).into_iter();
        names.filter(|name| name.starts_with("step")).collect()
    };
    let never = "evaluation.every=never";
    let two = scene.train("two", &["checkpoint.every=2", never]);
    let names = steps(&two);
    assert!(
        names.ends_with(&["step-000010".to_owned(), "step-000012".to_owned()]) && names.len() <= 3,
        "{names:?}"
    );
    let four = scene.train("four", &["checkpoint.every=2", "checkpoint.keep=4", never]);
    assert_eq!(steps(&four).len(), 4);
    for set in [
        "checkpoint.keep=0",
        "checkpoint.minutes=0",
        "checkpoint.minutes=nan",
    ] {
        let key = set.split('=').next().expect("a key");
        fails(&train(&scene, "none", &[set], &[]), 2, &[key]);
    }
    // Neither has a say in what is learnt.
    unfinish(&four);
    resumed(
        &scene,
        "four",
        &[
            "checkpoint.every=2",
            "checkpoint.keep=1",
            "checkpoint.minutes=5",
            never,
        ],
    );
}

#[test]
fn a_run_knows_what_made_it_and_refuses_other_inputs_by_name() {
    let scene = Scene::new();
    let library = scene.path("libmine.so");
    fs::copy(built().join("libdynalora_allocator_top_k.so"), &library).expect("built");
    let plugin = format!("allocator.plugin={}", library.display());
    let sets = &[plugin.as_str()];
    let run = scene.train("run", sets);
    let known: Value =
        serde_json::from_slice(&fs::read(run.join("provenance.json")).expect("there"))
            .expect("JSON");
    let sitting = &known["sittings"][0];
    for name in [
        "data.train",
        "data.validation",
        "model.config",
        "model.weights",
        "tokenizer",
        "scorer",
        "allocator",
    ] {
        let digest = sitting["inputs"][name]["sha256"].as_str().expect(name);
        assert_eq!(digest.len(), 64);
    }
    assert!(
        sitting["inputs"]["allocator"]["plugin"]
            .as_str()
            .expect("text")
            .starts_with("top-k ")
    );
    assert!(sitting["program"]["version"].is_string() && sitting["machine"]["cpu"].is_string());
    assert_eq!(sitting["threads"], 2);

    unfinish(&run);
    let before = tree(&run);
    let append = |path: &Path, more: &str| {
        let old = fs::read(path).expect("there");
        // Replaced, not changed: it may be mapped.
        fs::remove_file(path).expect("there");
        fs::write(path, [&old, more.as_bytes()].concat()).expect("written");
        old
    };
    for (path, name, more) in [
        (
            scene.path("train.csv"),
            "data.train",
            "99,\"One, more.\",comma\n",
        ),
        (
            scene.path("dev.csv"),
            "data.validation",
            "99,\"One, more.\",comma\n",
        ),
        (library.clone(), "allocator", "x"),
    ] {
        let old = append(&path, more);
        fails(
            &train(&scene, "run", sets, &["--resume"]),
            2,
            &[name, "--accept-changes", "--force"],
        );
        assert!(tree(&run) == before);
        fs::remove_file(&path).expect("there");
        fs::write(&path, old).expect("written");
    }
    // The same content in another place is the same.
    for file in ["train.csv", "dev.csv"] {
        fs::rename(scene.path(file), scene.path(&format!("moved-{file}"))).expect("there");
    }
    let moved = [
        sets[0],
        "data.train=moved-train.csv",
        "data.validation=moved-dev.csv",
        "threads=1",
    ];
    let said = resumed(&scene, "run", &moved);
    assert!(said.contains("threads was 2, now it is 1"), "{said}");
    let recipe = fs::read_to_string(run.join("recipe.toml")).expect("a recipe");
    assert!(recipe.contains("moved-train.csv"));

    unfinish(&run);
    append(&scene.path("moved-train.csv"), "99,\"One, more.\",comma\n");
    let output = train(&scene, "run", &moved, &["--resume", "--accept-changes"]);
    assert!(output.status.success());
    let known: Value =
        serde_json::from_slice(&fs::read(run.join("provenance.json")).expect("there"))
            .expect("JSON");
    assert!(
        known["sittings"][2]["accepted"][0]
            .as_str()
            .expect("text")
            .starts_with("data.train was")
    );
}

#[test]
fn a_report_never_averages_what_was_made_of_other_inputs() {
    let scene = Scene::new();
    let library = scene.path("libmine.so");
    fs::copy(built().join("libdynalora_allocator_top_k.so"), &library).expect("built");
    let plugin = format!("allocator.plugin={}", library.display());
    let seed = |n: u64| format!("seed={n}");
    for n in [1, 2] {
        scene.train(&format!("first-{n}"), &[&plugin, &seed(n)]);
    }
    let old = fs::read(&library).expect("there");
    fs::remove_file(&library).expect("there");
    fs::write(&library, [&old[..], b"x"].concat()).expect("written");
    scene.train("second-3", &[&plugin, &seed(3)]);
    let arms = |runs: &[&str]| -> Vec<(String, usize)> {
        let report: Value =
            serde_json::from_str(&scene.ok(&[&["report"], runs, &["--json"]].concat()))
                .expect("JSON");
        let arms = report["arms"].as_array().expect("arms").iter();
        let runs = |arm: &Value| arm["runs"].as_array().map_or(0, Vec::len);
        arms.map(|arm| (arm["name"].as_str().expect("a name").to_owned(), runs(arm)))
            .collect()
    };
    let found = arms(&["first-1", "first-2", "second-3"]);
    assert_eq!(
        (found.len(), found[0].1, found[1].1),
        (2, 2, 1),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .all(|(name, _)| name.contains("allocator-sha256=")),
        "{found:?}"
    );

    // The same data elsewhere is one arm, other data of one name is another.
    fs::write(&library, &old).expect("written");
    let csv = fs::read_to_string(scene.path("train.csv")).expect("there");
    scene.write("copy.csv", &csv);
    scene.train("copy-4", &[&plugin, &seed(4), "data.train=copy.csv"]);
    assert_eq!(arms(&["first-1", "copy-4"]).len(), 1);
    scene.write("train.csv", &format!("{csv}99,\"One, more.\",comma\n"));
    scene.train("grown-5", &[&plugin, &seed(5)]);
    let found = arms(&["first-1", "first-2", "grown-5"]);
    assert!(
        found.len() == 2 && found[1].0.contains("train-sha256="),
        "{found:?}"
    );

    // What is not known is said, and never averaged with what is.
    fs::remove_file(scene.path("first-2/provenance.json")).expect("there");
    let output = scene.run(&["report", "first-1", "first-2"]);
    assert!(said(&output).contains("1 of 2 runs") && said(&output).contains("first-2"));
    let found = arms(&["first-1", "first-2"]);
    assert!(
        found.len() == 2 && found[1].0.contains("provenance=unknown"),
        "{found:?}"
    );

    let dev = fs::read_to_string(scene.path("dev.csv")).expect("there");
    scene.write("dev.csv", &format!("{dev}99,\"One, more.\",comma\n"));
    scene.train("other-6", &[&plugin, &seed(6)]);
    fails(
        &scene.run(&["report", "first-1", "other-6"]),
        2,
        &["different data", "dev.csv"],
    );
}

#[cfg(unix)]
#[test]
fn modes_are_those_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 027 && exec \"$0\" train recipe.toml --quiet"]);
    command
        .arg(built().join("dynalora"))
        .current_dir(scene.path("."));
    command.env("DYNALORA_CACHE", scene.path("cache"));
    assert!(command.status().expect("sh runs").success());
    let mut seen = 0;
    let mut folders = vec![scene.path("run"), scene.path("cache")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
            let wanted = if path.is_dir() { 0o750 } else { 0o640 };
            assert_eq!(mode, wanted, "{}: {mode:o}", path.display());
            seen += 1;
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen > 12, "{seen}");
}

#[test]
fn a_plugins_error_says_truly_whether_the_run_can_go_on() {
    let scene = Scene::new();
    scene.edit("[scorer]\nplugin = \"activation\"\n", "");
    let recipe = fs::read_to_string(scene.path("recipe.toml")).expect("there");
    let budget = "plugin = \"rank-budget\"\ntinit = 8\ntfinal = 4";
    scene.write(
        "recipe.toml",
        &recipe.replace("plugin = \"top-k\"\nk = \"50%\"", budget),
    );
    // Nothing recorded: nothing is kept, and nobody is told to go on.
    let output = train(&scene, "run", &["train.log_every=100"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        !scene.path("run").exists() && !said(&output).contains("go on from"),
        "{}",
        said(&output)
    );
    // Something saved: it is kept, and told.
    let output = train(
        &scene,
        "run",
        &["train.log_every=100", "checkpoint.every=2"],
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        scene.path("run").exists(),
        said(&output).contains("--resume"),
        "{}",
        said(&output)
    );
}
