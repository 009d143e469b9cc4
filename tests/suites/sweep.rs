//! Sweeps with the real program: each run a process of its own, and what becomes of those that fail, are stopped or killed.

#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::drawn::{contents, difference};
use dynalora_tests::{Scene, contains, said};

/// A scene with a sweep of two arms and two seeds in it, `more` at its top.
fn scene(more: &str) -> Scene {
    let scene = Scene::new();
    write(&scene, more, "");
    scene
}

fn write(scene: &Scene, more: &str, arms: &str) {
    scene.write(
        "sweep.toml",
        &format!(
            "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = \"1..2\"\nbaseline = \"lora\"\n\
             columns = [\"final\", \"flops\"]\n{more}\n\
             [[arm]]\nname = \"lora\"\nset = {{ \"allocation.schedule\" = {{ kind = \"never\" }} }}\n\
             [[arm]]\nname = \"half\"\n{arms}"
        ),
    );
}

const FOUR: [&str; 4] = ["lora-s1", "half-s1", "lora-s2", "half-s2"];

#[test]
fn a_sweep_trains_what_is_not_trained_yet_and_compares() {
    let scene = scene("");
    // One of the four as `train` trains it, elsewhere.
    let alone = scene.train("alone", &["seed=2"]);
    let table = scene.ok(&["sweep", "sweep.toml", "--jobs", "2"]);
    for part in [
        "| lora ",
        "| half ",
        "final accuracy",
        "Difference from lora",
    ] {
        assert!(table.contains(part), "{part}:\n{table}");
    }
    assert!(
        !table.contains("best accuracy |\n"),
        "the columns are the sweep's:\n{table}"
    );
    assert_eq!(difference(&alone, &scene.path("runs/half-s2"), &[]), "");
    assert_eq!(
        logs(&scene),
        ["half-s1.log", "half-s2.log", "lora-s1.log", "lora-s2.log"]
    );

    // Nothing is left to do, and nothing is touched.
    let before = contents(&scene.path("runs"));
    let again = scene.run(&["sweep", "sweep.toml"]);
    assert!(again.status.success(), "{}", said(&again));
    contains(&again, &["4 of 4 runs are finished already"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), table);
    assert_eq!(contents(&scene.path("runs")), before);
    assert_eq!(scene.ok(&["sweep", "sweep.toml", "--report"]), table);

    // What is there is of another recipe: nothing is trained, and nothing lost.
    write(&scene, "set = { \"train.steps\" = 13 }", "");
    let changed = scene.run(&["sweep", "sweep.toml"]);
    assert_eq!(changed.status.code(), Some(2), "{}", said(&changed));
    contains(
        &changed,
        &[
            "lora-s1",
            "`train.steps = 12`, not `train.steps = 13`",
            "another `output`",
        ],
    );
    assert_eq!(contents(&scene.path("runs")), before);
    // One arm and one seed more.
    scene.ok(&[
        "sweep",
        "sweep.toml",
        "--output",
        "other",
        "--arms",
        "half",
        "--seeds",
        "7",
    ]);
    assert!(scene.path("other/half-s7/summary.json").is_file());
    assert_eq!(
        std::fs::read_dir(scene.path("other"))
            .expect("a folder")
            .count(),
        2
    );
}

#[test]
fn the_printed_commands_are_the_runs() {
    let scene = scene("");
    let lines = scene.ok(&["sweep", "sweep.toml", "--dry-run", "--jobs", "2"]);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(!scene.path("runs").exists(), "nothing was made");
    let program = scene.command(&[]).get_program().to_owned();
    let folder = Path::new(&program).parent().expect("a folder").display();
    for line in &lines[..2] {
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(format!("PATH={folder}:$PATH; {line}"));
        for (name, value) in scene.command(&[]).get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.current_dir(scene.path(""));
        let output = shell.output().expect("bash");
        assert!(output.status.success(), "{line}: {}", said(&output));
    }
    let left = scene.ok(&["sweep", "sweep.toml", "--dry-run"]);
    assert_eq!(
        left.lines().count(),
        2,
        "those that are finished are not printed:\n{left}"
    );
    assert!(left.lines().all(|line| line.contains("seed=2")), "{left}");
}

#[test]
fn grids_and_draws_are_named_by_what_they_set() {
    let scene = scene("");
    let names = |text: &str| {
        scene.write(
            "grid.toml",
            &format!("output = \"g\"\nrecipe = \"recipe.toml\"\nseeds = [0]\n{text}"),
        );
        let lines = scene.ok(&["sweep", "grid.toml", "--dry-run"]);
        let name = |line: &str| {
            line.split("output=\"g/")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .map(str::to_owned)
        };
        lines
            .lines()
            .map(|line| name(line).unwrap_or_else(|| line.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(
            "[grid]\n\"allocation.schedule.every\" = [2, 3]\n\"adapter.targets\" = [[\"query\"], \"all-linear\"]"
        ),
        [
            "targets=-query-every=2-s0",
            "targets=-query-every=3-s0",
            "targets=all-linear-every=2-s0",
            "targets=all-linear-every=3-s0"
        ]
    );
    let drawn = "[random]\ndraws = 3\n[random.keys]\n\"train.learning_rate\" = { from = 1e-4, to = 1e-2, scale = \"log\" }";
    assert_eq!(names(drawn), ["draw-0-s0", "draw-1-s0", "draw-2-s0"]);
    // Recipes of a folder are arms by themselves.
    scene.write("b-recipe.toml", &scene.recipe_text());
    scene.write(
        "all.toml",
        "output = \"g\"\nrecipes = [\"*recipe.toml\"]\nseeds = [0]\n",
    );
    let lines = scene.ok(&["sweep", "all.toml", "--dry-run"]);
    for arm in ["g/b-recipe-s0", "g/recipe-s0"] {
        assert!(lines.contains(arm), "{lines}");
    }
}

#[test]
fn a_run_that_fails_is_told_of_and_the_others_go_on() {
    let scene = scene("");
    write(&scene, "", "set = { \"data.train\" = \"gone.csv\" }");
    let failed = scene.run(&["sweep", "sweep.toml"]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    contains(
        &failed,
        &[
            "FAILED half-s1 ended with exit code 2",
            "gone.csv",
            "2 of 4 runs failed",
        ],
    );
    assert!(
        !said(&failed).contains("tried again"),
        "a mistake of the user's stays one"
    );
    let table = String::from_utf8_lossy(&failed.stdout);
    assert!(
        table.contains("| lora") && !table.contains("half"),
        "{table}"
    );
    let log = std::fs::read_to_string(scene.path("runs/.sweep/half-s1.log")).expect("a log");
    assert!(log.contains("gone.csv"), "{log}");
    // The file is there now: only what failed is trained.
    std::fs::copy(scene.path("train.csv"), scene.path("gone.csv")).expect("a copy");
    let mended = scene.run(&["sweep", "sweep.toml"]);
    assert!(mended.status.success(), "{}", said(&mended));
    contains(
        &mended,
        &["2 of 4 runs are finished already", "4/4 half-s2"],
    );
}

#[test]
fn a_sweep_that_is_stopped_goes_on_where_it_was() {
    // Long enough that signals find it at work; saved by nothing but the signal.
    let scene = scene(
        "set = { \"train.steps\" = 150, \"checkpoint.every\" = \"never\", \"evaluation.every\" = \"never\" }",
    );
    scene.ok(&["sweep", "sweep.toml", "--output", "whole"]);

    // Told to stop, twice over: each run is saved after its step.
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut sweep = start(&scene);
        wait_for(&scene, &mut sweep);
        kill(signal, sweep.id());
        let output = sweep.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        contains(
            &output,
            &[
                &format!("stopped by SIG{signal}"),
                "the same command goes on",
            ],
        );
    }
    // A run is killed: it is tried again, from where it was saved.
    let mut sweep = start(&scene);
    wait_for(&scene, &mut sweep);
    let run = child_of(sweep.id()).expect("a run at work");
    kill("KILL", run);
    std::thread::sleep(Duration::from_millis(300));
    // The sweep itself is killed: its runs end by themselves, saved.
    wait_for(&scene, &mut sweep);
    let run = child_of(sweep.id()).expect("a run at work");
    kill("KILL", sweep.id());
    let output = sweep.wait_with_output().expect("it ends");
    contains(&output, &["was ended", "SIGKILL", "it is tried again"]);
    let since = Instant::now();
    while Path::new(&format!("/proc/{run}/stat")).exists() && !is_zombie(run) {
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "an orphan trains on"
        );
        std::thread::sleep(Duration::from_millis(20));
    }

    let table = scene.ok(&["sweep", "sweep.toml", "--jobs", "2"]);
    assert!(table.contains("| half"), "{table}");
    for run in FOUR {
        let (whole, torn) = (scene.path("whole").join(run), scene.path("runs").join(run));
        assert_eq!(difference(&whole, &torn, &[]), "", "{run}");
    }
}

#[test]
fn a_run_that_fails_while_the_sweep_stops_is_not_waited_for() {
    let scene = scene("set = { \"train.steps\" = 150 }");
    let mut sweep = start(&scene);
    wait_for(&scene, &mut sweep);
    // Held still, it cannot end before it is killed.
    let run = child_of(sweep.id()).expect("a run at work");
    kill("STOP", run);
    kill("TERM", sweep.id());
    std::thread::sleep(Duration::from_millis(300));
    kill("KILL", run);
    let since = Instant::now();
    while sweep.try_wait().expect("it can be asked").is_none() {
        if since.elapsed() > Duration::from_secs(20) {
            kill("KILL", sweep.id());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = sweep.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    contains(&output, &["SIGKILL", "stopped by SIGTERM"]);
}

fn start(scene: &Scene) -> Child {
    let mut command = scene.command(&["sweep", "sweep.toml"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Waits until some run of the sweep at work has recorded a step that was not there before.
fn wait_for(scene: &Scene, sweep: &mut Child) {
    let recorded = || -> u64 {
        let length = |run: &&str| {
            let log = scene.path("runs").join(run).join("metrics.jsonl");
            std::fs::metadata(log).map_or(0, |log| log.len())
        };
        FOUR.iter().map(length).sum()
    };
    let (before, since) = (recorded(), Instant::now());
    while recorded() <= before {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "no step within a minute"
        );
        assert!(
            sweep.try_wait().expect("it can be asked").is_none(),
            "it has ended by itself"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill(signal: &str, process: u32) {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(process.to_string())
        .status();
    assert!(
        sent.is_ok_and(|sent| sent.success()),
        "kill -{signal} {process}"
    );
}

/// The fields of a process's line after its name: state, parent and so on.
fn stat(process: &str) -> Option<Vec<String>> {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn is_zombie(process: u32) -> bool {
    stat(&process.to_string()).is_none_or(|fields| fields[0] == "Z")
}

fn child_of(process: u32) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut children = names.filter(|name| {
        name.bytes().all(|byte| byte.is_ascii_digit())
            && stat(name).is_some_and(|fields| fields[1] == process.to_string() && fields[0] != "Z")
    });
    children.next()?.parse().ok()
}

/// What runs have said that was not taken away.
fn logs(scene: &Scene) -> Vec<String> {
    let entries = std::fs::read_dir(scene.path("runs/.sweep")).expect("the folder of the logs");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn mistakes_are_named_before_anything_is_trained() {
    let scene = Scene::new();
    let refuse = |text: &str, parts: &[&str]| {
        scene.write("sweep.toml", text);
        let output: Output = scene.run(&["sweep", "sweep.toml"]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, parts);
        assert!(!scene.path("runs").exists());
    };
    let top = "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = [0]\n";
    refuse("output = \"runs\"\n", &["the sweep lacks the key `seeds`"]);
    refuse(
        "output = \"runs\"\nseeds = [0]\n",
        &["there is nothing to train", "[[arm]]"],
    );
    refuse(
        "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = []\n",
        &["names no seed"],
    );
    refuse(
        "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = [0, 0]\n",
        &["the seed 0 is given twice"],
    );
    refuse(
        &format!("{top}sets = 3\n"),
        &["the sweep has no key `sets`", "did you mean `set`"],
    );
    refuse(
        &format!("{top}set = {{ seed = 3 }}\n"),
        &["`seed` is not for `set`", "`seeds`"],
    );
    for (written, key) in [
        ("[set]\ntrain.steps = 3\n", "train.steps"),
        ("set = { train.steps = 3 }\n", "train.steps"),
        ("[set.train]\nsteps = 3\n", "train.steps"),
        (
            "[[arm]]\nname = \"a\"\nset.allocator.k = 3\n",
            "allocator.k",
        ),
    ] {
        let quoted = format!("write the key in quotes, \"{key}\"");
        refuse(
            &format!("{top}{written}"),
            &["is a table of its own here", &quoted],
        );
    }
    refuse(
        &format!("{top}[set]\n\"train.step\" = 3\n"),
        &["no key `train.step`", "did you mean", "this is `recipe`"],
    );
    refuse(
        &format!("{top}[grid]\n\"train.steps\" = 3\n"),
        &["`train.steps` in [grid] is 3", "a list"],
    );
    refuse(
        &format!(
            "{top}[random]\ndraws = 2\n[random.keys]\n\"train.steps\" = {{ from = 3, to = 1 }}\n"
        ),
        &["from 3 to 1 there is nothing"],
    );
    let slip = "draws = 4000000000\nkeys = { \"train.steps\" = [1] }\n";
    refuse(
        &format!("{top}[random]\n{slip}"),
        &["4000000000 runs, more than 10000"],
    );
    refuse(
        &format!(
            "{top}[random]\ndraws = 2\nkeys = {{ \"train.steps\" = [1] }}\n[grid]\n\"train.steps\" = [1]\n"
        ),
        &["[grid] and [random] are both given"],
    );
    refuse(
        &format!("{top}[[arm]]\nname = \"a\"\n[[arm]]\nname = \"a\"\n"),
        &["two arms are called `a`"],
    );
    refuse(
        "output = \"runs\"\nseeds = [0]\n[[arm]]\nname = \"a\"\n",
        &["the arm `a` has no recipe"],
    );
    refuse(
        "output = \"runs\"\nseeds = [0]\nrecipes = [\"none-*.toml\"]\n",
        &["there is no such recipe", "relative to the sweep file"],
    );
    refuse(
        &format!("{top}[[arm]]\nname = \"a b\"\n[[arm]]\nname = \"a/b\"\n"),
        &["would lie in runs/a-b-s0"],
    );
    refuse(
        "output = \"runs\"\nseeds = [0]\nrecipe = \"gone.toml\"\n",
        &["cannot read the recipe", "gone.toml"],
    );
    // What is counted is what is asked for: each file of a pattern is an arm, and the seeds are the command line's.
    scene.write("other-recipe.toml", &scene.recipe_text());
    scene.write(
        "sweep.toml",
        "output = \"runs\"\nseeds = [0]\nrecipes = [\"*recipe.toml\"]\n",
    );
    let many = |more: &[&str]| {
        let sweep = ["sweep", "sweep.toml", "--dry-run", "--seeds"];
        scene.run(&[&sweep[..], more].concat())
    };
    let refused = many(&["0..5000"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    contains(
        &refused,
        &["sweep.toml has 10002 runs, more than 10000", "--seeds"],
    );
    for (set, flag) in [("output=elsewhere", "--output"), ("seed = 3", "--seeds")] {
        let refused = scene.run(&["sweep", "sweep.toml", "--dry-run", "--set", set]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        contains(&refused, &["cannot act", flag]);
    }

    let fewer = many(&["0..1", "--arms", "recipe"]);
    assert!(fewer.status.success(), "{}", said(&fewer));
    let unknown = scene.run(&["sweep", "none.toml"]);
    assert_eq!(unknown.status.code(), Some(2));
    contains(&unknown, &["cannot read the sweep none.toml"]);
    scene.write("sweep.toml", &format!("{top}[[arm]]\nname = \"lora\"\n"));
    let unknown = scene.run(&["sweep", "sweep.toml", "--arms", "lore"]);
    assert_eq!(unknown.status.code(), Some(2));
    contains(&unknown, &["has no arm `lore`", "did you mean `lora`"]);
}
