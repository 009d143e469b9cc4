//! One run trained by several processes comes to what one process comes to: the same masks, and losses within 1e-5.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use burn::tensor::Tensor;
use burn_flex::Flex;
use dynalora::kernel::{Ad, Dropout, Kernels};
use dynalora_tests::drawn::difference;
use dynalora_tests::engines::{Slurm, wait};
use dynalora_tests::ranks::{WITHIN, on_ranks, unlike, unlike_within};
use dynalora_tests::{Scene, contains, fixture, flat, said, skip};
use serde_json::Value;

/// The program on so many ranks in a scene; none where there is no MPI.
fn ranks(scene: &Scene, count: usize, arguments: &[&str]) -> Option<Command> {
    let mut command = on_ranks(count)?;
    let alone = scene.command(arguments);
    command.args(arguments).current_dir(scene.path(""));
    for (name, value) in alone.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // What a test runs under is not what it starts.
    command.env_remove("RAYON_NUM_THREADS");
    Some(command)
}

fn arguments<'a>(output: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "recipe.toml", "--set", output];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    arguments
}

/// Trains the recipe on so many ranks.
#[track_caller]
fn train(scene: &Scene, count: usize, name: &str, sets: &[&str], more: &[&str]) -> Output {
    let output = format!("output={}", scene.path(name).display());
    let arguments = [arguments(&output, sets), more.to_vec()].concat();
    let mut command = ranks(scene, count, &arguments).expect("there is MPI");
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{name}: {}", said(&output));
    output
}

fn has_mpi() -> bool {
    on_ranks(2).is_some()
}

/// Trains on one, two and four ranks, which must come to the same.
#[track_caller]
fn holds(scene: &Scene, name: &str, sets: &[&str]) {
    holds_but(scene, name, sets, &[]);
}

/// The same, `strip` left out.
#[track_caller]
fn holds_but(scene: &Scene, name: &str, sets: &[&str], strip: &[&str]) {
    let sets = [&["threads=1"], sets].concat();
    let whole = format!("{name}-1");
    train(scene, 1, &whole, &sets, &[]);
    for count in [2, 4] {
        let run = format!("{name}-{count}");
        train(scene, count, &run, &sets, &[]);
        let unlike = unlike_within(WITHIN, &scene.path(&whole), &scene.path(&run), strip);
        assert_eq!(unlike, "", "{name} on {count} ranks");
    }
}

fn json(scene: &Scene, file: &str) -> Value {
    let text = std::fs::read_to_string(scene.path(file)).expect("a run's file");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn ranks_come_to_what_one_process_comes_to() {
    if !has_mpi() {
        return;
    }
    let scene = Scene::new();
    let often = "evaluation.every=4";
    holds(&scene, "activation", &[often, "evaluation.batch_tokens=64"]);
    let dropped = [
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        "adapter.dropout=0.1",
    ];
    holds(&scene, "dropout", &dropped);
    let summary = json(&scene, "activation-4/summary.json");
    assert_eq!(summary["reduction"]["ranks"], 4, "{summary}");
    let bytes = summary["reduction"]["bytes"].as_u64().expect("a number");
    let parameters = ["adapter_parameters", "head_parameters"].map(|key| summary[key].as_u64());
    let most: u64 = parameters.into_iter().flatten().sum();
    // The gradients alone, of 12 steps in which half the modules have one at most times, and a little more.
    assert!(
        bytes < 12 * 4 * most + 100_000,
        "{bytes} for {most} parameters"
    );
    let sittings = json(&scene, "activation-4/provenance.json");
    assert_eq!(sittings["sittings"][0]["ranks"], 4, "{sittings}");
    let alone = json(&scene, "activation-1/provenance.json");
    assert!(alone["sittings"][0].get("ranks").is_none(), "{alone}");
    // The same ranks give the same bits.
    let sets = ["threads=1", often, "evaluation.batch_tokens=64"];
    train(&scene, 4, "again", &sets, &[]);
    let paths = ["activation-4", "again"].map(|run| scene.path(run));
    assert_eq!(difference(&paths[0], &paths[1], &[]), "");
}

#[test]
fn what_is_measured_is_summed_before_plugins_see_it() {
    if !has_mpi() {
        return;
    }
    let scene = Scene::new();
    let gradient = [
        "scorer={plugin=\"gradient\"}",
        "allocator={plugin=\"multinomial\",k=4}",
        "allocation.probe_steps=2",
        // Batches of fewer texts than there are ranks.
        "train.batch_size=3",
        "train.gradient_accumulation=3",
        "train.log_signals=true",
    ];
    holds(&scene, "gradient", &gradient);
    assert!(scene.path("gradient-4/signals.jsonl").exists());
    let fisher = [
        "scorer={plugin=\"fisher\"}",
        "train.gradient_checkpointing=true",
        "adapter.use_dora=true",
    ];
    holds(&scene, "fisher", &fisher);
    let trials = [
        "scorer={plugin=\"trial\",held_back=8}",
        "evaluation.batch_tokens=64",
        "allocation.unit=\"layer\"",
        "allocator={plugin=\"top-k\",k=1}",
    ];
    // What it goes by are differences of losses, in which their last digits are the first.
    holds_but(&scene, "trial", &trials, &["numbers", "scores"]);
    let first = [
        "allocation.initial=\"allocator\"",
        "allocation.calibration_steps=3",
        "scorer={plugin=\"activation\",target=\"delta\"}",
        "allocator={plugin=\"threshold\",p=0.6}",
        "adapter.init_lora_weights=\"eva\"",
    ];
    holds(&scene, "first", &first);
    // The components that remain are chosen by their sensitivities.
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"",
        "[allocator]\nplugin = \"rank-budget\"\ntarget_r = \"25%\"\ntinit = 2\ntfinal = 2",
    );
    holds(&scene, "components", &[]);
    // What a rank has kept of the frozen layers is what it has run of them.
    scene.edit(
        "batch_size = 8",
        "tokens_per_batch = 120\ncache_frozen_prefix = true",
    );
    let cached = [
        "model.hidden_dropout=0.0",
        "model.attention_dropout=0.0",
        "model.classifier_dropout=0.0",
        "train.steps=20",
        "allocation.unit=\"layer\"",
        "allocator={plugin=\"top-k\",k=1}",
    ];
    let sets = [&["threads=1"], &cached[..]].concat();
    for count in [1, 2] {
        train(&scene, count, &format!("cached-{count}"), &sets, &[]);
    }
    let paths = ["cached-1", "cached-2"].map(|run| scene.path(run));
    // But for what it ran twice, because a text came to another rank in another epoch.
    assert_eq!(unlike_within(WITHIN, &paths[0], &paths[1], &["flops"]), "");
}

#[test]
fn a_plugin_that_throws_dice_has_one_mask_on_all_ranks() {
    if !has_mpi() {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python", "python3 cannot be started").unwrap_or(());
    }
    let scene = Scene::new();
    scene.write(
        "dice.py",
        "import json, random, sys\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)\n    \
             if call['call'] == 'make':\n        \
                 count = len(call['modules'])\n    \
             scores = {'scores': [random.random() for _ in range(count)]}\n    \
             answers = {'needs': {'needs': {'signals': ['activation_l2']}}, 'scores': scores}\n    \
             answer = answers.get(call['call'], {})\n    \
             print(json.dumps({'ok': True} | answer), flush=True)\n",
    );
    let dice = "scorer={plugin=\"process\",command=[\"python3\",\"dice.py\"]}";
    // Ranks with other masks would sum other tensors.
    for run in ["one", "other"] {
        let sets = ["threads=1", dice, "train.steps=24"];
        train(&scene, 2, run, &sets, &[]);
    }
    let masks = |run| {
        let records = scene.records(run, "allocations.jsonl");
        let active = records.iter().map(|record| record["active"].to_string());
        active.collect::<Vec<_>>()
    };
    assert_eq!(masks("one").len(), 6);
    assert_ne!(masks("one"), masks("other"), "dice fell alike");
}

#[test]
fn a_decoder_weighs_what_it_predicts() {
    if !has_mpi() {
        return;
    }
    let scene = Scene::new();
    let before = format!("name = \"{}\"", fixture("tiny-bert").display());
    let now = format!("name = \"{}\"", fixture("tiny-llama").display());
    let recipe = scene.recipe_text().replace(&before, &now);
    let recipe = recipe.replace("[\"query\", \"value\", \"dense\"]", "\"all-linear\"");
    let recipe = recipe.replace(
        "[data.columns]\ntext = \"sentence\"",
        "problem = \"causal-lm\"\ncolumns = { text = \"label\", response = \"sentence\" }",
    );
    scene.write("recipe.toml", &recipe);
    let sets = [
        "train.batch_size=5",
        "adapter.dropout=0.1",
        "evaluation.every=6",
    ];
    holds(&scene, "decoder", &sets);
}

/// A scene with a run that goes on for a while.
fn long(steps: u64) -> Scene {
    let scene = Scene::new();
    scene.edit("steps = 12", &format!("steps = {steps}"));
    scene
}

/// Starts a training whose words go to a file of the scene.
fn start(scene: &Scene, count: usize, name: &str, sets: &[&str]) -> (Child, PathBuf) {
    let output = format!("output={}", scene.path(name).display());
    let mut command = ranks(scene, count, &arguments(&output, sets)).expect("there is MPI");
    let words = scene.path(&format!("{name}.words"));
    let file = std::fs::File::create(&words).expect("a temporary file");
    command.stdout(Stdio::null()).stderr(file);
    (command.spawn().expect("it starts"), words)
}

fn steps(scene: &Scene, run: &str) -> usize {
    let log = std::fs::read_to_string(scene.path(run).join("metrics.jsonl"));
    log.map_or(0, |log| log.lines().count())
}

/// The ranks of a run, by the process that each is, the first first.
fn processes(scene: &Scene, run: &str) -> Vec<u32> {
    let of = scene.path(run).display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let (line, variables) = (read("cmdline"), read("environ"));
        let (line, variables) = (
            String::from_utf8_lossy(&line),
            String::from_utf8_lossy(&variables),
        );
        let rank = variables
            .split('\0')
            .find_map(|it| it.strip_prefix("OMPI_COMM_WORLD_RANK="));
        if let (true, Some(rank)) = (line.contains(&of), rank) {
            found.push((rank.parse::<u32>().expect("a number"), number));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, number)| number).collect()
}

fn kill(signal: &str, process: u32) {
    let sent = Command::new("kill")
        .args([format!("-{signal}"), process.to_string()])
        .status();
    assert!(sent.is_ok_and(|sent| sent.success()), "kill -{signal}");
}

#[test]
fn a_rank_that_dies_ends_the_job_with_a_checkpoint() {
    if !has_mpi() {
        return;
    }
    let scene = long(1500);
    // No checkpoint of its own accord.
    let sets = [
        "threads=1",
        "checkpoint.every=\"never\"",
        "evaluation.every=\"never\"",
    ];
    train(&scene, 2, "whole", &sets, &[]);
    let (mut job, words) = start(&scene, 2, "torn", &sets);
    wait("steps", 60, || steps(&scene, "torn") > 20);
    let ranks = processes(&scene, "torn");
    assert_eq!(ranks.len(), 2);
    kill("KILL", ranks[1]);
    let ended = job.wait().expect("it ends");
    let words = std::fs::read_to_string(&words).expect("a file");
    assert!(!ended.success(), "{words}");
    for part in [
        "stopped by SIGTERM after step",
        "waited for other ranks in vain",
        "--resume",
    ] {
        assert!(flat(&words).contains(&flat(part)), "{part}:\n{words}");
    }
    assert!(
        scene.path("torn/checkpoints/pointers.json").exists(),
        "{words}"
    );
    let reached = steps(&scene, "torn");
    assert!(reached < 1500, "it was over before");
    // On as many ranks it goes on to the same bits, on one to nearly the same.
    let copied = Command::new("cp")
        .args(["-r", "torn", "other"])
        .current_dir(scene.path(""))
        .status();
    assert!(copied.is_ok_and(|copied| copied.success()));
    train(&scene, 2, "torn", &sets, &["--resume"]);
    let [whole, torn] = ["whole", "torn"].map(|run| scene.path(run));
    assert_eq!(difference(&whole, &torn, &[]), "");
    let output = train(&scene, 1, "other", &sets, &["--resume"]);
    contains(&output, &["ranks was 2, now it is 1"]);
}

#[test]
fn ranks_stop_together_and_go_on_in_another_number() {
    if !has_mpi() {
        return;
    }
    let scene = Scene::new();
    let sets = [
        "threads=1",
        "train.steps=400",
        "evaluation.every=100",
        "train.learning_rate=1e-4",
    ];
    train(&scene, 1, "whole", &sets, &[]);
    // One rank is warned, and all stop after the same step.
    let (mut job, words) = start(&scene, 2, "torn", &sets);
    wait("steps", 60, || steps(&scene, "torn") > 5);
    kill("USR1", processes(&scene, "torn")[1]);
    assert_eq!(job.wait().expect("it ends").code(), Some(128 + 10));
    let words = std::fs::read_to_string(&words).expect("a file");
    assert!(
        flat(&words).contains("stoppedbySIGUSR1afterstep"),
        "{words}"
    );
    assert_eq!(words.matches("stopped by").count(), 1, "{words}");
    for count in [1, 4] {
        let (mut job, _) = start_on(&scene, count, "torn", &sets);
        let before = steps(&scene, "torn");
        wait("more steps", 60, || {
            steps(&scene, "torn") > before + 5 || ended(&mut job)
        });
        if count == 1 {
            kill("TERM", job.id());
            assert_eq!(job.wait().expect("it ends").code(), Some(128 + 15));
        } else {
            assert!(job.wait().expect("it ends").success());
        }
    }
    let unlike = unlike(&scene.path("whole"), &scene.path("torn"));
    assert_eq!(unlike, "");
    let sittings = json(&scene, "torn/provenance.json");
    let ranks = sittings["sittings"].as_array().expect("a list").iter();
    let ranks: Vec<u64> = ranks.map(|it| it["ranks"].as_u64().unwrap_or(1)).collect();
    assert_eq!(ranks, [2, 1, 4]);
}

fn start_on(scene: &Scene, count: usize, name: &str, sets: &[&str]) -> (Child, PathBuf) {
    let output = format!("output={}", scene.path(name).display());
    let mut arguments = arguments(&output, sets);
    arguments.push("--resume");
    let mut command = ranks(scene, count, &arguments).expect("there is MPI");
    let words = scene.path(&format!("{name}.words"));
    let file = std::fs::File::create(&words).expect("a temporary file");
    command.stdout(Stdio::null()).stderr(file);
    (command.spawn().expect("it starts"), words)
}

fn ended(job: &mut Child) -> bool {
    job.try_wait().is_ok_and(|status| status.is_some())
}

#[test]
fn srun_starts_ranks_as_mpirun_does() {
    if !has_mpi() {
        return;
    }
    let Some(slurm) = Slurm::start() else { return };
    let scene = Scene::new();
    let sets = ["threads=1"];
    train(&scene, 1, "whole", &sets, &[]);
    let program = dynalora_tests::built().join("dynalora");
    let output = format!("output={}", scene.path("ranks").display());
    let srun = |mpi: &str| {
        let mut command = slurm.command("srun", &["-N1", "-n2", "--overcommit", mpi]);
        command.arg("--kill-on-bad-exit=1").arg(&program);
        command
            .args(arguments(&output, &sets))
            .current_dir(scene.path(""));
        command.output().expect("srun starts")
    };
    // Without what tells them of each other each would train the whole run: Open MPI says so itself.
    let refused = srun("--mpi=none");
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(!scene.path("ranks").exists());
    let trained = srun("--mpi=pmix");
    assert!(trained.status.success(), "{}", said(&trained));
    assert_eq!(unlike(&scene.path("whole"), &scene.path("ranks")), "");
    let sittings = json(&scene, "ranks/provenance.json");
    assert_eq!(sittings["sittings"][0]["ranks"], 2, "{sittings}");
}

#[test]
fn mistakes_are_said_once_and_end_all_ranks() {
    if !has_mpi() {
        return;
    }
    let scene = Scene::new();
    let refuse = |more: &[&str], parts: &[&str]| {
        let arguments = [&["train", "recipe.toml"], more].concat();
        let mut command = ranks(&scene, 2, &arguments).expect("there is MPI");
        let output = command.output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, parts);
        for part in parts {
            let words = flat(&said(&output));
            assert_eq!(words.matches(&flat(part)).count(), 1, "{}", said(&output));
        }
    };
    refuse(
        &["--set", "train.stepz=3"],
        &["the recipe has no key `train.stepz`"],
    );
    refuse(&["--set", "data.train=gone.csv"], &["gone.csv"]);
    refuse(
        &["--set", "allocator={plugin=\"top-k\",k=1000}"],
        &["the allocator `top-k` refuses"],
    );
    for command in [&["sweep", "sweep.toml"][..], &["quickstart"]] {
        let output = ranks(&scene, 2, command).expect("there is MPI").output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, &["mpirun has started 2 processes"]);
    }
}

#[test]
fn a_part_of_a_batch_drops_what_the_whole_drops_of_it() {
    let site = |first| Dropout {
        probability: 0.4,
        seed: 11,
        first,
    };
    let ones = |rows| Tensor::<Ad<Flex>, 2>::ones([rows, 37], &Default::default());
    let values = |dropped: Tensor<Ad<Flex>, 2>| dropped.into_data().into_vec::<f32>().expect("f32");
    // More than one thread takes at a time.
    let whole = values(Flex::dropout(ones(900), site(0)));
    for (from, to) in [(0, 1), (3, 800), (899, 900)] {
        let part = values(Flex::dropout(ones(to - from), site(from as u32)));
        assert!(part == whole[from * 37..to * 37], "{from}..{to}");
    }
    assert!(whole.contains(&0.0) && values(Flex::dropout(ones(9), site(1))) != whole[..9 * 37]);
}

#[test]
fn a_program_without_mpi_refuses_to_train_a_run_several_times() {
    let scene = Scene::new();
    let start = |more: &[&str], variable: &str| {
        let arguments = [&["train", "recipe.toml"], more].concat();
        let mut command = scene.command(&arguments);
        command.env(variable, "2").output().expect("it starts")
    };
    // Those of one process count for nothing.
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        if cfg!(feature = "mpi") {
            break;
        }
        let output = start(&[], variable);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(
            &output,
            &[
                "has started 2 processes",
                "without MPI",
                "--features mpi",
                "--alone",
            ],
        );
        assert!(!scene.path("run").exists());
    }
    let output = start(&["--alone", "--quiet"], "OMPI_COMM_WORLD_SIZE");
    assert!(output.status.success(), "{}", said(&output));
}
