//! Runs that are killed, told to stop and starved, and what comes of them. Prints the table of
//! `docs/reliability.md`.
//!
//! By default a short run; `DYNALORA_RELIABILITY=long` makes the numbers of the table: at least 200 kills and 50
//! signals to stop.

#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::drawn::{Choice, Drawn, difference, inputs};
use dynalora_tests::dynalora;
use tempfile::TempDir;

fn long() -> bool {
    std::env::var("DYNALORA_RELIABILITY").is_ok_and(|word| word == "long")
}

/// A folder with inputs, and recipes that are trained in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().expect("a temporary folder"));
        inputs(place.0.path());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run of two dozen steps, saved every few, that differs in what the table's rows are about.
    fn recipe(&self, sets: &[(&str, &str)]) -> Drawn {
        let mut drawn = Drawn::default();
        drawn.set(
            "model.name",
            format!("{:?}", self.path("deep-bert").display().to_string()),
        );
        drawn
            .set("model.max_length", 32)
            .set("threads", 2)
            .set("seed", 5);
        for part in ["train", "validation"] {
            let file = self.path(&format!("comma-{part}.csv"));
            drawn.set(
                &format!("data.{part}"),
                format!("{:?}", file.display().to_string()),
            );
        }
        drawn.set("data.columns.text", "\"sentence\"");
        drawn.set("data.problem", "\"classification\"");
        drawn
            .set("adapter.targets", "[\"query\", \"value\", \"dense\"]")
            .set("adapter.rank", 4);
        drawn.set("allocation.schedule", "{ kind = \"periodic\", every = 3 }");
        drawn
            .set("scorer.plugin", "\"activation\"")
            .set("allocator.plugin", "\"top-k\"")
            .set("allocator.k", "\"50%\"");
        drawn
            .set("train.steps", 24)
            .set("train.batch_size", 6)
            .set("train.log_every", 1);
        drawn.set("checkpoint.every", 2).set("evaluation.every", 7);
        for (key, value) in sets {
            match value.is_empty() {
                true => drawn.drop(key),
                false => drawn.set(key, value),
            };
        }
        drawn
    }

    fn write(&self, name: &str, drawn: &Drawn) -> PathBuf {
        let file = self.path(&format!("{name}.toml"));
        std::fs::write(&file, drawn.recipe(&self.path(name))).expect("a temporary file");
        file
    }

    fn command(&self, recipe: &Path, more: &[&str]) -> Command {
        let mut command = self.loud(recipe, more);
        command.arg("--quiet");
        command
    }

    fn loud(&self, recipe: &Path, more: &[&str]) -> Command {
        let mut command = dynalora();
        command.arg("train").arg(recipe).args(more);
        command
            .current_dir(self.0.path())
            .env("DYNALORA_CACHE", self.path("cache"));
        command.env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Trains the run `name`, or goes on with it where it has begun.
    fn start(&self, name: &str, drawn: &Drawn) -> Child {
        let recipe = self.write(name, drawn);
        let begun = self.path(name).join("recipe.toml").exists();
        let more: &[&str] = if begun { &["--resume"] } else { &[] };
        self.command(&recipe, more)
            .spawn()
            .expect("the program starts")
    }

    fn finish(&self, name: &str, drawn: &Drawn) -> Output {
        self.start(name, drawn).wait_with_output().expect("it ends")
    }

    /// The run whole, and how long it took.
    fn whole(&self, drawn: &Drawn) -> Duration {
        let started = Instant::now();
        let output = self.finish("whole", drawn);
        assert!(output.status.success(), "{}", said(&output));
        started.elapsed()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .output();
    assert!(sent.is_ok_and(|sent| sent.status.success()), "kill -{name}");
}

/// The rows: what is different about the recipe.
const ROWS: &[(&str, &[(&str, &str)])] = &[
    (
        "schedule never",
        &[
            ("allocation.schedule", ""),
            ("scorer", ""),
            ("allocator", ""),
        ],
    ),
    (
        "schedule once",
        &[("allocation.schedule", "{ kind = \"once\", after = 5 }")],
    ),
    ("schedule periodic", &[]),
    (
        "schedule at",
        &[(
            "allocation.schedule",
            "{ kind = \"at\", steps = [2, 3, 11] }",
        )],
    ),
    (
        "optimizer_state global",
        &[("allocation.optimizer_state", "\"global\"")],
    ),
    (
        "optimizer_state local",
        &[("allocation.optimizer_state", "\"local\"")],
    ),
    (
        "optimizer_state reset",
        &[("allocation.optimizer_state", "\"reset\"")],
    ),
    (
        "VeRA",
        &[("adapter.kind", "\"vera\""), ("adapter.rank", "16")],
    ),
    (
        "PiSSA, which keeps where it started",
        &[("adapter.init_lora_weights", "\"pissa\"")],
    ),
    (
        "EVA, which moves ranks by the first batches",
        &[
            ("adapter.init_lora_weights", "\"eva\""),
            ("adapter.eva.tau", "0.9"),
        ],
    ),
    (
        "scorer with state: window run",
        &[
            ("scorer.plugin", "\"gradient\""),
            ("allocation.probe_steps", "2"),
        ],
    ),
    (
        "scorer with state: ema",
        &[("scorer.window", "{ ema = 0.7 }")],
    ),
    (
        "scorer that measures a sample of steps",
        &[("scorer.window", "\"period\""), ("scorer.one_in", "3")],
    ),
    (
        "allocator with state: rank-budget",
        &[
            ("allocator.plugin", "\"rank-budget\""),
            ("allocator.k", ""),
            ("allocator.target_r", "\"50%\""),
            ("scorer", ""),
        ],
    ),
    (
        "allocator with state: grow",
        &[
            ("allocator.plugin", "\"grow\""),
            ("allocator.k", "2"),
            ("allocator.rank", "\"50%\""),
            ("allocator.scheduler", "false"),
            ("allocation.initial", "\"allocator\""),
            ("scorer", ""),
        ],
    ),
    (
        "scorer that makes trials: reinforced",
        &[
            ("scorer.plugin", "\"trial\""),
            ("scorer.method", "\"reinforced\""),
            ("scorer.held_back", "8"),
            ("scorer.interval", "4"),
            ("allocator.plugin", "\"multinomial\""),
        ],
    ),
    (
        "allocator that draws: discounted",
        &[("allocator.plugin", "\"discounted\"")],
    ),
    (
        "cached prefix, unit layer",
        &[
            ("train.cache_frozen_prefix", "true"),
            ("allocation.unit", "\"layer\""),
            ("allocator.k", "2"),
            ("model.hidden_dropout", "0.0"),
            ("model.attention_dropout", "0.0"),
        ],
    ),
];

#[test]
fn killed_at_any_moment_a_run_ends_the_same() {
    let (kills, stops) = if long() { (16, 4) } else { (2, 1) };
    println!("\n| run | kill -9 | SIGTERM | ends the same |\n| --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    let mut all = [0, 0];
    for (nth, (name, sets)) in ROWS.iter().enumerate() {
        let place = Place::new();
        let drawn = place.recipe(sets);
        let mut took = place.whole(&drawn);
        let mut choice = Choice::new(nth as u64);
        let mut same = true;
        // What is counted is what was run, and a run that goes on fills its cache anew.
        let cached = drawn.get("train.cache_frozen_prefix").is_some();
        let aside: &[&str] = if cached { &["flops"] } else { &[] };
        for (column, count) in [kills, stops].into_iter().enumerate() {
            let (mut done, mut run) = (0, 0);
            while done < count {
                run += 1;
                let torn = format!("torn-{column}-{run}");
                // As many on one run as fall into it.
                let ended = loop {
                    let mut child = place.start(&torn, &drawn);
                    if done == count {
                        break child.wait_with_output().expect("it ends");
                    }
                    let pause = took.mul_f64(choice.uniform() * 0.8);
                    std::thread::sleep(pause);
                    // One that has ended meanwhile is not killed. The first may have had a busy machine.
                    if child.try_wait().expect("it can be asked").is_some() {
                        took = took.min(pause.max(Duration::from_millis(100)));
                        break child.wait_with_output().expect("it ends");
                    }
                    signal(&child, ["KILL", "TERM"][column]);
                    let output = child.wait_with_output().expect("it ends");
                    match output.status.code() {
                        None => done += 1,
                        Some(143) if column == 1 => done += 1,
                        _ => break output,
                    }
                };
                all[column] += u64::from(run == 1) * count;
                let fault = match ended.status.success() {
                    false => said(&ended),
                    true => difference(&place.path("whole"), &place.path(&torn), aside),
                };
                if !fault.is_empty() {
                    same = false;
                    wrong.push(format!("{name}, {torn}: {fault}"));
                    break;
                }
            }
        }
        println!(
            "| {name} | {kills} | {stops} | {} |",
            if same { "yes" } else { "**no**" }
        );
    }
    println!("\n{} kills and {} SIGTERM in all", all[0], all[1]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A signal to stop lets the step end and saves: nothing is trained twice, and the exit code tells.
#[test]
fn told_to_stop_it_saves_says_so_and_tells_by_its_exit_code() {
    let place = Place::new();
    // Saved nowhere but at the end, so that only the signal's own checkpoint helps.
    let drawn = place.recipe(&[
        ("checkpoint.every", "\"never\""),
        ("evaluation.every", "\"never\""),
        ("train.steps", "400"),
    ]);
    let took = place.whole(&drawn);
    for (name, codes) in [("TERM", &[143][..]), ("INT", &[130]), ("HUP", &[129, 143])] {
        let run = format!("stopped-{name}");
        let child = place.start(&run, &drawn);
        let metrics = place.path(&run).join("metrics.jsonl");
        let started = Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |file| file.len()) < 2000 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no steps within a minute"
            );
            std::thread::sleep(took / 200);
        }
        signal(&child, name);
        let output = child.wait_with_output().expect("it ends");
        let code = output.status.code();
        assert!(
            code.is_some_and(|code| codes.contains(&code)),
            "SIG{name}: {:?} {}",
            output.status,
            said(&output)
        );
        assert!(
            said(&output).contains("--resume"),
            "it says how to go on: {}",
            said(&output)
        );
        let steps = std::fs::read_to_string(&metrics)
            .expect("metrics")
            .lines()
            .count();
        let pointers = place.path(&run).join("checkpoints/pointers.json");
        assert!(pointers.exists(), "SIG{name} saves");
        let saved = std::fs::read_to_string(pointers).expect("pointers");
        assert!(
            saved.contains(&steps.to_string()),
            "step {steps} is saved: {saved}"
        );
        let output = place.finish(&run, &drawn);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(
            difference(&place.path("whole"), &place.path(&run), &[]),
            "",
            "SIG{name}"
        );
    }
}

/// What can go wrong around a run: how it ends, and that it can go on when the fault is gone.
#[test]
fn faults_are_told_of_and_survived() {
    println!("\n| fault | exit | what is said | then |\n| --- | --- | --- | --- |");
    let mut wrong = Vec::new();
    let limits: &[u64] = if long() {
        &[1, 2, 4, 8, 16, 24, 32, 48, 64, 96]
    } else {
        &[8, 48]
    };
    let place = Place::new();
    let drawn = place.recipe(&[]);
    place.whole(&drawn);
    let mut row = |fault: String, output: &Output, then: Result<&str, String>| {
        let code = output.status.code();
        let text = said(output);
        let line = text.lines().next().unwrap_or("").trim().replace('|', "/");
        let after = then.clone().map_or_else(|why| why, str::to_owned);
        let exit = code.map_or_else(|| output.status.to_string(), |code| code.to_string());
        println!(
            "| {fault} | {exit} | {} | {after} |",
            line.replace(&place.0.path().display().to_string(), "…")
        );
        if !matches!(code, Some(1 | 2)) {
            wrong.push(format!("{fault}: ends with {}: {text}", output.status));
        }
        if let Err(why) = then {
            wrong.push(format!("{fault}: {why}"));
        }
    };
    let again = |name: &str| -> Result<&'static str, String> {
        let output = place.finish(name, &drawn);
        if !output.status.success() {
            return Err(format!("does not go on: {}", said(&output)));
        }
        match difference(&place.path("whole"), &place.path(name), &[]) {
            none if none.is_empty() => Ok("goes on, the same bits"),
            difference => Err(difference),
        }
    };
    // No file may grow beyond so many KiB, which is what a full disk looks like to one writer.
    for limit in limits {
        let name = format!("full-{limit}");
        let recipe = place.write(&name, &drawn);
        let inner = place.command(&recipe, &[]);
        let mut limited = Command::new("bash");
        // A broken limit sends SIGXFSZ, which is ignored: the write fails.
        limited.arg("-c").arg(format!(
            "trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\""
        ));
        limited.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => limited.env(key, value),
                None => limited.env_remove(key),
            };
        }
        let output = limited.current_dir(place.0.path()).output().expect("bash");
        if output.status.success() {
            continue;
        }
        row(
            format!("files of {limit} KiB at most"),
            &output,
            again(&name),
        );
    }
    // The folder goes away.
    for (fault, moved) in [
        ("the run's folder is deleted while training", false),
        ("the run's folder is moved while training", true),
    ] {
        let name = format!("gone-{moved}");
        let long = place.recipe(&[("train.steps", "3000")]);
        let child = place.start(&name, &long);
        wait_for(&place.path(&name).join("checkpoints/pointers.json"));
        let elsewhere = place.path(&format!("{name}-elsewhere"));
        std::fs::rename(place.path(&name), &elsewhere).expect("it can be moved");
        if !moved {
            std::fs::remove_dir_all(&elsewhere).expect("it can be removed");
        }
        let output = child.wait_with_output().expect("it ends");
        row(fault.to_owned(), &output, Ok("-"));
    }
    // A second writer.
    let many = place.recipe(&[("train.steps", "2000")]);
    let mut first = place.start("two", &many);
    wait_for(&place.path("two/recipe.toml"));
    let output = place.finish("two", &many);
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    row(
        "a second writer".to_owned(),
        &output,
        Ok("the first is not disturbed"),
    );
    // A checkpoint that is damaged.
    for (fault, file) in [
        ("the last checkpoint's tensors, one bit", "safetensors"),
        (
            "the last checkpoint's progress.json, cut short",
            "progress.json",
        ),
    ] {
        let name = format!("damaged-{file}");
        let mut child = place.start(&name, &many);
        // Step 7 evaluates, so that there is a best one besides the last.
        let metrics = place.path(&name).join("metrics.jsonl");
        let started = Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |file| file.len()) < 4000 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no steps within a minute"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        let checkpoints = place.path(&name).join("checkpoints");
        let last = std::fs::read_dir(&checkpoints)
            .expect("checkpoints")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("progress.json").exists())
            .max()
            .expect("a checkpoint");
        let files = std::fs::read_dir(&last)
            .expect("a checkpoint")
            .filter_map(|entry| Some(entry.ok()?.path()));
        let path = files
            .into_iter()
            .find(|path| path.to_string_lossy().ends_with(file))
            .expect("its file");
        let mut bytes = std::fs::read(&path).expect("its file");
        let middle = bytes.len() * 3 / 4;
        match file {
            "progress.json" => bytes.truncate(middle),
            _ => bytes[middle] ^= 4,
        }
        std::fs::write(&path, bytes).expect("its file");
        // Not quietly: going on with another checkpoint is a warning.
        let mut loud = place.loud(&place.path(&format!("{name}.toml")), &["--resume"]);
        let mut child = loud.spawn().expect("the program starts");
        // Either it is refused by name, or the one before it is used, and that is said.
        let output = match ended_within(&mut child, Duration::from_millis(1500)) {
            true => child.wait_with_output().expect("it ends"),
            false => {
                child.kill().expect("it can be killed");
                child.wait_with_output().expect("it ends")
            }
        };
        let text = said(&output);
        let tells = |line: &&str| line.contains("checkpoint") || line.contains("step-");
        let named = text.lines().find(tells);
        let line = named
            .unwrap_or("")
            .trim()
            .replace(&place.0.path().display().to_string(), "…");
        // Killed here, it had gone on.
        println!("| {fault} | {} | {line} | |", output.status);
        if named.is_none() {
            wrong.push(format!("{fault}: nothing is said of it: {text:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn wait_for(path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no {} within a minute",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ended_within(child: &mut Child, time: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < time {
        if child.try_wait().expect("it can be asked").is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
