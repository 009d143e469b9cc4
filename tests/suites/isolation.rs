//! Plugins in processes of their own, and what becomes of a run whose plugin fails: with real libraries that panic,
//! abort, exit, crash, hang, take all memory, and answer nonsense.
#![cfg(target_os = "linux")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dynalora::plugin;
use dynalora::recipe::Isolation;
use dynalora_plugin_api::{Measured, Observation, Signal, testing};
use dynalora_tests::{Scene, built, contains, flat, outside, said};
use serde_json::Value;

/// A scorer and an allocator that do as FAULTY says: "abort allocate 8" aborts where the allocator is asked after
/// step 8 or a later one.
const SOURCE: &str = include_str!("../fixtures/plugins/faulty.rs");

/// The folder with the built library.
fn faulty() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| outside("faulty", SOURCE))
}

/// A scene whose scorer and allocator are the faulty ones, isolated or not.
fn scene(isolated: bool) -> Scene {
    let scene = Scene::new();
    let isolation = match isolated {
        true => "isolation = { timeout_seconds = 5, memory_mib = 256 }\n",
        false => "",
    };
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"",
        &format!("[scorer]\nplugin = \"faulty\"\n{isolation}\n[allocator]\nplugin = \"faulty\"\n{isolation}"),
    );
    scene
}

fn train(scene: &Scene, name: &str, fault: &str, more: &[&str]) -> Command {
    let output = format!("output={}", scene.path(name).display());
    let folder = faulty().to_str().expect("UTF-8");
    let mut arguments = vec![
        "train",
        "recipe.toml",
        "--json",
        "--plugin-dir",
        folder,
        "--set",
        &output,
    ];
    arguments.extend(more);
    let mut command = scene.command(&arguments);
    command.env("FAULTY", fault);
    command
}

fn adapter(scene: &Scene, name: &str) -> Vec<u8> {
    let path = scene.path(name).join("adapter/adapter_model.safetensors");
    std::fs::read(path).expect("an adapter")
}

/// The choices of a run, step by step.
fn choices(scene: &Scene, name: &str) -> Vec<Value> {
    let records = scene.records(name, "allocations.jsonl");
    records.into_iter().map(|it| it["active"].clone()).collect()
}

/// What may go wrong where the allocator is asked after step 8, and what is said of it.
const FAULTS: [(&str, &str); 15] = [
    ("panics", "it panicked at"),
    ("errs", "no way on"),
    ("abort", "killed by signal 6 (SIGABRT)"),
    ("exit", "exit code 0"),
    ("leave", "exit code 0"),
    ("crash", "killed by signal 11 (SIGSEGV)"),
    ("overflow", "killed by signal 6 (SIGABRT)"),
    ("loops", "not answered `allocate` within 5 seconds"),
    ("bomb", "killed by signal 6 (SIGABRT)"),
    ("closes", "instead of answering `allocate`"),
    ("babbles", "more than one line"),
    ("nonsense", "cannot be read"),
    ("floods", "more than 16 MiB"),
    ("lies", "broke a rule"),
    ("hangs", "not answered `allocate` within 5 seconds"),
];

#[test]
fn no_fault_of_an_isolated_plugin_ends_the_trainer() {
    let scene = scene(true);
    let whole = train(&scene, "whole", "", &["--quiet"])
        .output()
        .expect("it runs");
    assert!(whole.status.success(), "{}", said(&whole));
    for (fault, why) in FAULTS {
        let wish = format!("{fault} allocate 8");

        // It ends by its own will, with everything saved, and goes on as if nothing had been.
        let stopped = train(&scene, fault, &wish, &[]).output().expect("it runs");
        assert_eq!(
            stopped.status.code(),
            Some(2),
            "{fault}: {}",
            said(&stopped)
        );
        let words = [
            why,
            "allocator `faulty`",
            "after step 8",
            "saved as it was after step 8",
        ];
        // An answer that is one, if a wrong one, is as it is in the same process.
        contains(&stopped, &words);
        assert!(stopped.stdout.is_empty(), "{fault}");
        assert!(
            scene.path(fault).join("checkpoints/step-8").exists() || checkpointed(&scene, fault, 8)
        );
        let resumed = train(&scene, fault, "", &["--quiet", "--resume"])
            .output()
            .expect("it runs");
        assert!(resumed.status.success(), "{fault}: {}", said(&resumed));
        assert_eq!(choices(&scene, fault), choices(&scene, "whole"), "{fault}");
        assert!(
            adapter(&scene, fault) == adapter(&scene, "whole"),
            "{fault}"
        );

        // Or it goes on with the modules it has.
        let name = format!("{fault}-kept");
        let keep = ["--set", "allocation.on_plugin_fault=keep"];
        let kept = train(&scene, &name, &wish, &keep)
            .output()
            .expect("it runs");
        assert!(kept.status.success(), "{fault}: {}", said(&kept));
        contains(&kept, &[why, "no plugin is asked any more"]);
        let summary: Value = serde_json::from_slice(&kept.stdout).expect("nothing but JSON");
        assert_eq!(
            (&summary["steps"], &summary["reallocations"]),
            (&12.into(), &1.into())
        );
        let recorded = summary["plugin_fault"].as_str().expect("a sentence");
        assert!(recorded.contains("allocator `faulty`"), "{recorded}");
        let records = scene.records(&name, "allocations.jsonl");
        let [_, first, last] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!(last["active"], first["active"]);
        assert_eq!(
            (&last["step"], last["fault"].as_str()),
            (&8.into(), Some(recorded))
        );
    }
}

fn checkpointed(scene: &Scene, name: &str, step: u64) -> bool {
    let folder = scene.path(name).join("checkpoints");
    let entries = std::fs::read_dir(folder).expect("checkpoints");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .into_iter()
        .any(|name| name.to_string_lossy().contains(&step.to_string()))
}

#[test]
fn wherever_it_fails_the_step_is_saved_or_endured() {
    let scene = scene(true);
    for (wish, what) in [
        (
            "abort observe 3",
            "scorer `faulty` could not take in step 3",
        ),
        (
            "panics observe 6",
            "scorer `faulty` could not take in step 6",
        ),
        (
            "abort scores 8",
            "scorer `faulty` could not score after step 8",
        ),
        (
            "abort reallocated 4",
            "take note of the reallocation after step 4",
        ),
        ("abort save 4", "could not save its state"),
        ("abort numbers 4", "could not give its numbers after step 4"),
    ] {
        let name = wish.replace(' ', "-");
        let stopped = train(&scene, &name, wish, &[]).output().expect("it runs");
        assert_eq!(stopped.status.code(), Some(2), "{wish}: {}", said(&stopped));
        contains(&stopped, &[what, "the run is saved as it was after step"]);
        let resumed = train(&scene, &name, "", &["--quiet", "--resume"])
            .output()
            .expect("it runs");
        assert!(resumed.status.success(), "{wish}: {}", said(&resumed));
        let kept = format!("{name}-kept");
        let keep = ["--set", "allocation.on_plugin_fault=keep"];
        let output = train(&scene, &kept, wish, &keep).output().expect("it runs");
        assert!(output.status.success(), "{wish}: {}", said(&output));
        contains(&output, &[what]);
        let faults = scene.records(&kept, "allocations.jsonl");
        let faults = faults.iter().filter(|record| record["fault"].is_string());
        assert_eq!(faults.count(), 1, "{wish}");
    }
    // Before the first step there is nothing to save, and nothing to go on with.
    for (wish, what) in [
        ("abort new 0", "loading it ends a process"),
        ("abort making 0", "cannot be had in a process of its own"),
        ("loops making 0", "not answered `make` within 5 seconds"),
        ("errs new 0", "no way on"),
        ("abort start 0", "cannot work in this run"),
    ] {
        let output = train(
            &scene,
            "none",
            wish,
            &["--set", "allocation.on_plugin_fault=keep"],
        );
        let output = { output }.output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{wish}: {}", said(&output));
        contains(&output, &[what]);
        assert!(!scene.path("none").exists(), "{wish}");
    }
}

#[test]
fn in_process_what_can_be_contained_is_saved_or_endured_too() {
    let scene = scene(false);
    let whole = train(&scene, "whole", "", &["--quiet"])
        .output()
        .expect("it runs");
    assert!(whole.status.success(), "{}", said(&whole));
    for (wish, what) in [
        ("panics allocate 8", "could not allocate after step 8"),
        ("errs scores 8", "could not score after step 8"),
        (
            "lies allocate 8",
            "broke a rule at the reallocation after step 8",
        ),
        (
            "lies scores 8",
            "broke a rule at the reallocation after step 8",
        ),
    ] {
        let name = wish.replace(' ', "-");
        let stopped = train(&scene, &name, wish, &[]).output().expect("it runs");
        assert_eq!(stopped.status.code(), Some(2), "{wish}: {}", said(&stopped));
        contains(&stopped, &[what, "saved as it was after step 8"]);
        let resumed = train(&scene, &name, "", &["--quiet", "--resume"])
            .output()
            .expect("it runs");
        assert!(resumed.status.success(), "{wish}: {}", said(&resumed));
        assert!(adapter(&scene, &name) == adapter(&scene, "whole"), "{wish}");
        let kept = format!("{name}-kept");
        let keep = ["--set", "allocation.on_plugin_fault=keep"];
        let output = train(&scene, &kept, wish, &keep).output().expect("it runs");
        assert!(output.status.success(), "{wish}: {}", said(&output));
    }
    // A run that goes on without its plugins does so however often it is interrupted.
    let (kept, cut) = ("panics-allocate-8-kept", "cut");
    let keep = ["--set", "allocation.on_plugin_fault=keep"];
    let mut child = train(&scene, cut, "panics allocate 8", &keep);
    let mut child = child
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    await_checkpoint(&scene, cut, "8");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let resumed = train(&scene, cut, "", &["--quiet", "--resume", "--set", keep[1]])
        .output()
        .expect("it runs");
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert!(adapter(&scene, cut) == adapter(&scene, kept));
    assert_eq!(choices(&scene, cut), choices(&scene, kept));
}

fn await_checkpoint(scene: &Scene, name: &str, step: &str) {
    let pointers = scene.path(name).join("checkpoints/pointers.json");
    let started = Instant::now();
    while !std::fs::read_to_string(&pointers).is_ok_and(|text| text.contains(step)) {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no checkpoint within a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_isolated_run_has_the_same_bits_and_resumes() {
    let scene = Scene::new();
    let isolated = ["scorer.isolation=process", "allocator.isolation=process"];
    scene.train("plain", &[]);
    for (name, more) in [("isolated", &[][..]), ("threads", &["threads=1"])] {
        let sets: Vec<&str> = isolated.iter().chain(more).copied().collect();
        scene.train(name, &sets);
        assert!(adapter(&scene, name) == adapter(&scene, "plain"), "{name}");
        let of = |name| scene.records(name, "allocations.jsonl");
        assert_eq!(of(name), of("plain"), "{name}");
    }
    scene.assert_resumes("isolated", &isolated);
    // Isolation is no part of what a run is: one goes on with it, without it, and with other limits.
    let output = format!("output={}", scene.path("isolated").display());
    let set = "scorer.isolation={ timeout_seconds = 5 }";
    scene.ok(&[
        "train",
        "recipe.toml",
        "--resume",
        "--set",
        &output,
        "--set",
        set,
    ]);
    for (set, words) in [
        (
            "scorer.isolation=prison",
            &["prison", "none", "process"][..],
        ),
        (
            "scorer.isolation={ timeout = 5 }",
            &["timeout", "timeout_seconds"],
        ),
        ("scorer.isolation={ timeout_seconds = 0 }", &["above 0"]),
        ("allocator.isolation.memory_mib=0", &["from 1 on"]),
        ("allocation.on_plugin_fault=pray", &["pray", "stop", "keep"]),
    ] {
        let output = scene.run(&["plan", "recipe.toml", "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}: {}", said(&output));
        contains(&output, words);
    }
    scene.ok(&[
        "plan",
        "recipe.toml",
        "--set",
        isolated[0],
        "--set",
        isolated[1],
    ]);
}

/// Processes whose parent is `of`.
fn children(of: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let after = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        after.parse::<u32>().ok()
    };
    pids.filter(|pid| parent(pid) == Some(of)).collect()
}

/// Whether a process is there and no zombie.
fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" Z"))
    })
}

fn signal(to: &str, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), "--", to])
        .status();
    assert!(status.expect("kill runs").success());
}

// Whoever asks for it waits for it.
#[allow(clippy::zombie_processes)]
fn running(scene: &Scene, name: &str, fault: &str, more: &[&str]) -> (Child, Vec<u32>) {
    let mut command = train(scene, name, fault, more);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn().expect("it starts");
    let started = Instant::now();
    loop {
        // Those that describe come and go; two stay.
        let found = children(child.id());
        if scene.path(name).join("metrics.jsonl").exists() && found.len() == 2 {
            return (child, found);
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no children within a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn children_outlive_ctrl_c_and_never_the_trainer() {
    let scene = scene(true);
    let long = [
        "--set",
        "train.steps=400",
        "--set",
        "checkpoint.every=\"never\"",
        "--set",
        "evaluation.every=\"never\"",
    ];
    // To the whole group, as a terminal does it, and to each process, as a service manager does.
    for (name, everyone) in [("SIGINT", false), ("SIGTERM", true)] {
        let (child, plugins) = running(&scene, name, "", &long);
        for plugin in plugins.iter().filter(|_| everyone) {
            signal(&plugin.to_string(), name);
        }
        signal(&format!("-{}", child.id()), name);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(
            output.status.code(),
            Some(if everyone { 143 } else { 130 }),
            "{}",
            said(&output)
        );
        contains(&output, &["is saved in"]);
        gone(&plugins);
    }
    // Killed at once, while its plugins sleep and never read their pipes again.
    let (mut child, plugins) = running(&scene, "killed", "hangs observe 2", &long);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    gone(&plugins);
}

fn gone(plugins: &[u32]) {
    let started = Instant::now();
    while plugins.iter().any(|pid| lives(*pid)) {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a plugin outlives its trainer"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_isolated_plugin_has_neither_network_nor_files_to_write_nor_other_processes() {
    let scene = scene(true);
    let target = scene.path("written");
    let output = train(&scene, "run", "tries allocate 4", &[])
        .env("FAULTY_FILE", &target)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(
        &output,
        &[
            "write refused",
            "remove refused",
            "connect refused",
            "spawn refused",
            "fork refused",
            "kill refused",
            "memfd refused",
            "read allowed",
            "thread allowed",
        ],
    );
    assert!(!target.exists());
    // Nothing of it is so in the trainer's own process.
    let plain = self::scene(false);
    let mut command = train(&plain, "run", "tries allocate 4", &[]);
    command.env("FAULTY_FILE", plain.path("written"));
    let output = command.output().expect("it runs");
    contains(&output, &["write allowed", "thread allowed"]);
}

#[test]
fn what_it_prints_is_passed_on_so_far_as_anyone_reads_it() {
    let scene = scene(true);
    let output = train(&scene, "run", "prints allocate 4", &[])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice::<Value>(&output.stdout).expect("nothing but JSON");
    contains(&output, &["plugin says println", "is left out"]);
    assert!(
        output.stderr.len() < 400_000,
        "{} bytes",
        output.stderr.len()
    );
    assert!(!said(&output).contains('\u{1b}'));
}

/// Runs a command as on a kernel that has no filters of system calls.
fn without_seccomp(command: &mut Command) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = [(317_i64, Vec::new())].into();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(38),
        std::env::consts::ARCH.try_into().expect("known"),
    );
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    // SAFETY: between fork and exec it makes system calls alone.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&filter).map_err(|_| std::io::Error::from_raw_os_error(38))
        });
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn where_the_kernel_has_no_filter_that_is_said_once() {
    let scene = scene(true);
    let mut command = train(&scene, "run", "", &[]);
    without_seccomp(&mut command);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    contains(
        &output,
        &[
            "an isolated plugin is not kept from everything here",
            "network, files",
        ],
    );
    assert_eq!(
        flat(&said(&output))
            .matches(&flat("not kept from everything"))
            .count(),
        1
    );
}

#[test]
fn plugins_are_checked_in_isolation_too() {
    let scene = Scene::new();
    for name in ["scorer_activation", "allocator_top_k"] {
        let library = built().join(format!("libdynalora_{name}.so"));
        let report = scene.ok(&[
            "plugins",
            "check",
            "--isolated",
            library.to_str().expect("UTF-8"),
        ]);
        assert!(
            report.contains("ok") && !report.contains("BROKEN"),
            "{report}"
        );
    }
}

/// Ten signals of two hundred modules: at most a millisecond. Twice that is held, for machines under load; the figure
/// is printed.
#[test]
fn isolation_costs_at_most_a_millisecond_a_call() {
    plugin::describe_in_children_of(built().join("dynalora"));
    let path = plugin::PluginPath::new(&[faulty().to_owned()], &[]).expect("a path");
    let modules = testing::modules(200);
    let load = |isolation: Option<&Isolation>| {
        let loaded = plugin::load_scorer(
            &path,
            "faulty",
            &serde_json::json!({}),
            isolation,
            &modules,
            |own| own,
        );
        loaded.map(|loaded| loaded.plugin).expect("it loads")
    };
    let mut observation = Observation::default();
    observation.active = vec![true; modules.len()];
    observation.signals = (0..10)
        .map(|signal| Measured {
            signal: Signal::named(format!("signal_{signal}")),
            values: (0..modules.len())
                .map(|at| Some(at as f32 / 7.0 + signal as f32))
                .collect(),
        })
        .collect();
    let median = |mut plugin: Box<dyn dynalora_plugin_api::Scorer>| {
        let mut times: Vec<Duration> = (1..=1000)
            .map(|step| {
                observation.step = step;
                let started = Instant::now();
                plugin.observe(&observation).expect("it takes it in");
                started.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let mut median = median;
    let (plain, isolated) = (
        median(load(None)),
        median(load(Some(&Isolation::default()))),
    );
    println!("a call with ten signals of 200 modules: {plain:?} in process, {isolated:?} isolated");
    assert!(
        isolated.saturating_sub(plain) < Duration::from_millis(2),
        "{isolated:?}"
    );
}
