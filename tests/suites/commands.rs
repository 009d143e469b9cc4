//! The commands around recipes and runs: `recipe`, `runs`.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::{Scene, built, contains, dynalora, fixture, minilm, plugin_in_c, said};
use serde_json::Value;

fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, parts);
}

#[test]
fn a_new_recipe_is_right_and_trains() {
    let scene = Scene::new();
    let data = [
        "--train",
        "train.csv",
        "--validation",
        "dev.csv",
        "--text",
        "sentence",
    ];
    fn new<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["recipe", "new"], more].concat()
    }
    let output = scene.run(&new(
        &[&["my.toml", "--allocator", "uniform"], &data[..]].concat()
    ));
    assert!(output.status.success(), "{}", said(&output));
    contains(
        &output,
        &["my.toml trains into", "runs/my", "dynalora train my.toml"],
    );
    assert_eq!(
        scene.ok(&["recipe", "check", "my.toml", "recipe.toml"]),
        "my.toml: right\nrecipe.toml: right\n"
    );
    let model = format!("model.name={}", fixture("tiny-bert").display());
    scene.ok(&[
        "train",
        "my.toml",
        "--quiet",
        "--set",
        &model,
        "--set",
        "train.steps=3",
        "--set",
        "device=cpu",
        "--set",
        "model.max_length=64",
    ]);
    assert!(scene.path("runs/my/summary.json").is_file());

    // Nothing is written over unasked, and nothing that is not right.
    let before = std::fs::read_to_string(scene.path("my.toml")).expect("the recipe");
    refused(
        &scene,
        &new(&["my.toml"]),
        &["cannot write my.toml", "--force"],
    );
    assert_eq!(
        std::fs::read_to_string(scene.path("my.toml")).expect("the recipe"),
        before
    );
    scene.ok(&new(&["my.toml", "--force", "--quiet"]));
    assert!(
        std::fs::read_to_string(scene.path("my.toml"))
            .expect("the recipe")
            .contains("minimal-pairs")
    );
    scene.ok(&new(&[
        "cola.toml",
        "--task",
        "cola",
        "--data",
        "glue/cola",
    ]));
    refused(
        &scene,
        &new(&["sst2.toml", "--task", "sst2"]),
        &["--task sst2 needs --data"],
    );
    refused(
        &scene,
        &new(&["csv.toml", "--train", "train.csv"]),
        &["--validation"],
    );
    // Columns of files that are not there.
    for (flag, more) in [
        ("--text", &[][..]),
        ("--text-pair", &["--task", "minimal-pairs"]),
        ("--label", &["--task", "cola", "--data", "glue/cola"]),
    ] {
        refused(
            &scene,
            &new(&[&["columns.toml", flag, "sentence"], more].concat()),
            &[&format!("{flag} sentence names a column of --train")],
        );
    }
    for name in ["sst2.toml", "csv.toml", "columns.toml"] {
        assert!(!scene.path(name).exists(), "{name}");
    }
}

#[test]
fn a_new_recipe_is_for_every_kind_of_rows() {
    let scene = Scene::new();
    scene.write("train.txt", "A text to be continued.\n");
    let csv = ["--train", "train.csv", "--validation", "dev.csv"];
    let txt = ["--train", "train.txt", "--validation", "train.txt"];
    let chats = ["--train", "train.jsonl", "--validation", "dev.jsonl"];
    let hub = ["--hub", "owner/name"];
    let images = ["--images", "digits", "--model", "vit"];
    let causal = "problem = \"causal-lm\"";
    for (flags, parts) in [
        (
            [&csv[..], &["--response", "answer"]].concat(),
            [causal, "response = \"answer\""],
        ),
        (
            [&csv[..], &["--problem", "causal-lm"]].concat(),
            [causal, "text = \"text\""],
        ),
        (
            [&csv[..], &["--problem", "regression"]].concat(),
            ["problem = \"regression\"", "label = "],
        ),
        (txt.to_vec(), [causal, "train.txt"]),
        (
            [&chats[..], &["--messages", "chat"]].concat(),
            [causal, "messages = \"chat\""],
        ),
        (
            [&hub[..], &["--config", "it"]].concat(),
            ["hub = \"owner/name\"", "config = \"it\""],
        ),
        (
            [&hub[..], &["--tags", "tags"]].concat(),
            ["\"token-classification\"", "tokens = \"tokens\""],
        ),
        (images.to_vec(), ["format = \"images\"", "dir = "]),
    ] {
        scene.ok(&[&["recipe", "new", "x.toml", "--force"], &flags[..]].concat());
        let text = std::fs::read_to_string(scene.path("x.toml")).expect("the recipe");
        for part in parts {
            assert!(text.contains(part), "{flags:?}: {part} is missing:\n{text}");
        }
        // Images have the length that their model reads, and a text no columns.
        let length = text.contains("max_length");
        assert_eq!(length, !text.contains("images"), "{text}");
        assert_eq!(
            text.contains("[data.columns]"),
            flags != txt && flags != images,
            "{text}"
        );
        scene.ok(&["recipe", "check", "x.toml"]);
    }
    for (flags, parts) in [
        (
            [&images[..], &["--label", "x"]].concat(),
            ["--label x", "have no columns"],
        ),
        (
            [&csv[..], &["--messages", "x", "--label", "y"]].concat(),
            ["--label y", "--messages"],
        ),
        (
            [&csv[..], &["--messages", "x", "--problem", "regression"]].concat(),
            ["--problem regression", "causal-lm"],
        ),
        (["--images", "digits"].to_vec(), ["--model", "required"]),
        (
            ["--validation", "dev.csv"].to_vec(),
            ["--train is not given", "a file each"],
        ),
    ] {
        refused(
            &scene,
            &[&["recipe", "new", "y.toml"], &flags[..]].concat(),
            &parts,
        );
        assert!(!scene.path("y.toml").exists(), "{flags:?}");
    }
}

#[test]
fn a_recipe_is_checked_and_shown_without_model_and_data() {
    let scene = Scene::new();
    scene.edit("rank = 4", "rank = 4\nrnak = 3");
    refused(
        &scene,
        &["recipe", "check", "recipe.toml"],
        &["recipe.toml", "`adapter.rnak`", "did you mean `rank`"],
    );
    scene.write("recipe.toml", &scene.recipe_text());
    // What is shown is the same recipe.
    let shown = scene.ok(&["recipe", "show", "recipe.toml", "--set", "seed=9"]);
    assert!(
        shown.contains("seed = 9") && shown.contains("weight_decay = "),
        "{shown}"
    );
    scene.write("shown.toml", &shown);
    assert_eq!(scene.ok(&["recipe", "show", "shown.toml"]), shown);
    for (flags, key) in [
        (&["recipe", "schema"][..], "allocation"),
        (&["recipe", "schema", "--sweep"], "grid"),
    ] {
        let schema: Value = serde_json::from_str(&scene.ok(flags)).expect("JSON");
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[test]
fn runs_are_listed_with_what_became_of_them() {
    let scene = Scene::new();
    refused(&scene, &["runs"], &["there is no folder runs"]);
    std::fs::create_dir(scene.path("runs")).expect("a folder");
    assert_eq!(scene.ok(&["runs"]), "no runs in runs\n");
    std::fs::create_dir(scene.path("runs/deep")).expect("a folder");
    scene.train("runs/deep/whole", &[]);
    scene.train(
        "runs/plain",
        &["allocation.schedule={ kind = \"never\" }", "seed=8"],
    );
    let summary = scene.path("runs/plain/summary.json");
    std::fs::remove_file(summary).expect("it was there");

    // One at work, and the same when it was killed.
    let output = format!("output={}", scene.path("runs/long").display());
    let mut command = scene.command(&[
        "train",
        "recipe.toml",
        "--quiet",
        "--set",
        "train.steps=100000",
        "--set",
        &output,
    ]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let since = Instant::now();
    let state = |name: &str| -> Value {
        let rows: Value = serde_json::from_str(&scene.ok(&["runs", "--json"])).expect("JSON");
        let mut rows = rows.as_array().expect("rows").iter().cloned();
        rows.find(|row| row["run"] == format!("runs/{name}"))
            .unwrap_or_default()
    };
    while state("long")["step"].as_u64().unwrap_or(0) < 5 {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "no steps within a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(state("long")["state"], "running");
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_eq!(state("long")["state"], "interrupted");
    assert_eq!(state("plain")["state"], "interrupted");
    let whole = state("deep/whole");
    assert_eq!(
        (&whole["state"], &whole["step"], &whole["seed"]),
        (&"finished".into(), &12.into(), &3.into())
    );
    assert_eq!(
        (&whole["arm"], &whole["metric"][0]),
        (&"activation → top-k".into(), &"accuracy".into())
    );

    let table = scene.ok(&["runs", "runs/deep", "runs/plain"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    // Those that wrote last come first.
    assert!(
        lines[1].contains("runs/plain") && lines[1].contains(" lora "),
        "{table}"
    );
    assert!(
        lines[2].contains("runs/deep/whole") && lines[2].contains("accuracy 0."),
        "{table}"
    );
    // A damaged one does not hide the others.
    std::fs::write(scene.path("runs/plain/recipe.toml"), "seed = ").expect("it is there");
    let output = scene.run(&["runs"]);
    assert!(output.status.success(), "{}", said(&output));
    contains(&output, &["runs/plain", "not valid TOML"]);
}

#[test]
fn shells_and_the_manual_know_every_command() {
    let scene = Scene::new();
    let commands = [
        "train",
        "evaluate",
        "predict",
        "plan",
        "recipe",
        "runs",
        "report",
        "sweep",
        "plugins",
        "quickstart",
    ];
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.ok(&["completions", shell]);
        assert!(
            commands.iter().all(|command| script.contains(command)),
            "{shell}"
        );
    }
    scene.ok(&["man", "manual"]);
    for command in commands {
        let page = std::fs::read_to_string(scene.path(&format!("manual/dynalora-{command}.1")))
            .expect(command);
        assert!(page.contains(".SH OPTIONS"), "{command}");
    }
}

/// A driver for CUDA that has two devices, or does what `STAND_IN` says.
const STAND_IN: &str = r#"
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define CALL __attribute__((visibility("default"))) int
CALL cuInit(unsigned flags) {
    const char *how = getenv("STAND_IN");
    (void)flags;
    if (how && !strcmp(how, "no device")) return 100;
    if (how && !strcmp(how, "broken")) return 999;
    return 0;
}
CALL cuDriverGetVersion(int *version) { *version = 13010; return 0; }
CALL cuDeviceGetCount(int *count) { *count = 2; return 0; }
CALL cuDeviceGetName(char *name, int length, int device) { snprintf(name, (size_t)length, "Stand-in %d", device); return 0; }
CALL cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)80 << 30; return 0; }
CALL cuDeviceGetAttribute(int *value, int attribute, int device) { (void)device; *value = attribute == 75 ? 9 : 0; return 0; }
"#;

#[test]
fn devices_are_listed_with_what_is_missing() {
    let scene = Scene::new();
    let Some(driver) = plugin_in_c(&scene.path("driver"), "cuda", STAND_IN) else {
        return;
    };
    std::fs::rename(&driver, scene.path("driver/libcuda.so.1")).expect("a library");
    let damaged = "__attribute__((visibility(\"default\"))) int other(void) { return 0; }";
    let damaged = plugin_in_c(&scene.path("damaged"), "cuda", damaged).expect("it compiled before");
    std::fs::rename(&damaged, scene.path("damaged/libcuda.so.1")).expect("a library");
    // The compiler and the headers, as Python's packages have them.
    let packages = scene.path("venv/lib/python3.12/site-packages/nvidia");
    for (folder, name) in [
        ("cuda_nvrtc/lib", "libnvrtc.so.12"),
        ("cuda_runtime/include", "cuda_fp16.h"),
    ] {
        std::fs::create_dir_all(packages.join(folder)).expect("a folder");
        let file = packages.join(folder).join(name);
        if name.ends_with(".h") {
            std::fs::write(file, "").expect("a file");
        } else {
            std::fs::copy(scene.path("damaged/libcuda.so.1"), file).expect("a library");
        }
    }
    let look = |driver: &str, sets: &[(&str, &std::path::Path)]| -> Value {
        let mut command = scene.command(&["devices", "--json"]);
        command
            .env("LD_LIBRARY_PATH", scene.path(driver))
            .envs(sets.iter().copied());
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let missing = |devices: &Value| -> String { devices["cuda"]["missing"].to_string() };

    let empty = scene.path("nothing");
    let devices = look("driver", &[("CUDA_PATH", &empty)]);
    assert_eq!(devices["cuda"]["driver"], "13.1");
    let first = serde_json::json!({ "name": "Stand-in 0", "memory": 80u64 << 30, "compute_capability": "9.0" });
    assert_eq!(
        (
            devices["cuda"]["devices"].as_array().map(Vec::len),
            &devices["cuda"]["devices"][0]
        ),
        (Some(2), &first)
    );
    assert!(
        missing(&devices).contains("headers were not found"),
        "{devices}"
    );
    // With Python's packages only CUDA_PATH is left to be set, and it is said to what.
    let (venv, runtime) = (scene.path("venv"), packages.join("cuda_runtime"));
    let devices = look("driver", &[("CUDA_PATH", &empty), ("VIRTUAL_ENV", &venv)]);
    assert!(!devices["cuda"]["compiler"].is_null(), "{devices}");
    assert!(
        missing(&devices).contains(&format!("set CUDA_PATH={}", runtime.display())),
        "{devices}"
    );
    // Which have not all that kernels include: what is in another package is said by its name.
    let toolkit = [("CUDA_PATH", &*runtime), ("VIRTUAL_ENV", &*venv)];
    let lacking = missing(&look("driver", &toolkit));
    for part in ["lack cuda_runtime.h", "lack crt/mma.h", "nvidia-cuda-crt"] {
        assert!(lacking.contains(part), "{lacking}");
    }
    std::fs::create_dir(runtime.join("include/crt")).expect("a folder");
    for header in ["cuda_runtime.h", "crt/mma.h"] {
        std::fs::write(runtime.join("include").join(header), "").expect("a file");
    }
    let devices = look("driver", &toolkit);
    assert_eq!(missing(&devices), "[]");

    for (driver, how, what) in [
        ("driver", "no device", "the driver reports no CUDA device"),
        (
            "driver",
            "broken",
            "the CUDA driver does not start (error 999)",
        ),
        ("damaged", "", "the CUDA driver is damaged"),
    ] {
        let devices = look(
            driver,
            &[
                ("STAND_IN", how.as_ref()),
                ("CUDA_PATH", &runtime),
                ("VIRTUAL_ENV", &venv),
            ],
        );
        assert!(missing(&devices).contains(what), "{what}: {devices}");
        // Whatever is wrong, `auto` trains on the CPU and says why, and a named device is the user's to change.
        assert!(
            devices["auto"]
                .as_str()
                .is_some_and(|auto| auto.starts_with("CPU")),
            "{devices}"
        );
        let mut command = scene.command(&["train", "recipe.toml", "--set", "device=cuda:1"]);
        command
            .env("LD_LIBRARY_PATH", scene.path(driver))
            .env("STAND_IN", how);
        let output = command.output().expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, &["device = \"cuda:1\", but", "dynalora devices"]);
        if devices["built_with_cuda"] == true {
            contains(&output, &[what]);
        }
    }
    let table = scene.ok(&["devices"]);
    assert!(
        table.contains(" cpu ") && table.contains("device = \"auto\": "),
        "{table}"
    );
}

#[test]
fn the_quickstart_says_what_its_runs_recorded() {
    if minilm().is_none() {
        return;
    }
    let scene = Scene::new();
    let quickstart = |more: &[&str]| -> Output {
        let mut command = dynalora();
        let small = ["--set", "data.limit=48", "--set", "train.batch_size=8"];
        command
            .args(["quickstart", "--output", "my runs"])
            .args(small);
        // As the commands that it prints are run.
        command.args(more).current_dir(scene.path(""));
        command.output().expect("the program starts")
    };
    let first = quickstart(&["--steps", "4"]);
    assert!(first.status.success(), "{}", said(&first));
    let printed = String::from_utf8(first.stdout.clone()).expect("text");

    // What is finished is not trained again.
    let summaries = || {
        ["lora", "dynamic"].map(|arm| {
            let path = scene.path("my runs").join(arm).join("summary.json");
            std::fs::read_to_string(path).expect("a closing account")
        })
    };
    let before = summaries();
    let again = quickstart(&["--steps", "4", "--json"]);
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(summaries(), before);
    let answer: Value = serde_json::from_slice(&again.stdout).expect("JSON");

    // Each share is that of the runs' own records.
    let number = |value: &Value| value.as_f64().expect("a number");
    let recorded = |arm: &str| {
        let folder = scene.path("my runs").join(arm);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
        let summary: Value = serde_json::from_str(&read("summary.json")).expect("JSON");
        let records = read("metrics.jsonl");
        let records = records
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let evaluated: f64 = records
            .filter(|record: &Value| record["kind"] == "evaluation")
            .map(|record| number(&record["seconds"]))
            .sum();
        let figures = [
            number(&summary["peak_memory"]),
            (number(&summary["seconds"]) - evaluated) / number(&summary["steps"]),
            number(&summary["flops"]),
        ];
        (figures, number(&summary["best"]["value"]))
    };
    let ((lora, lora_metric), (dynamic, metric)) = (recorded("lora"), recorded("dynamic"));
    let line = printed
        .lines()
        .find(|line| line.starts_with("dynamic allocation took"))
        .expect("a line that sums up");
    let words = [
        (
            "peak_memory",
            ["less memory", "as much memory", "more memory"],
        ),
        (
            "step_seconds",
            [
                "less time a step",
                "as much time a step",
                "more time a step",
            ],
        ),
        (
            "flops",
            ["fewer operations", "as many operations", "more operations"],
        ),
    ];
    for (at, (key, [less, same, more])) in words.into_iter().enumerate() {
        let share = 1.0 - dynamic[at] / lora[at];
        assert!(
            (number(&answer["saved"][key]) - share).abs() < 1e-12,
            "{key}"
        );
        let percent = (100.0 * share).round();
        let said = match percent {
            0.0 => format!(" {same} ("),
            _ if percent > 0.0 => format!(" {percent} % {less} ("),
            _ => format!(" {} % {more} (", -percent),
        };
        assert!(line.contains(&said), "{said} is not in: {line}");
    }
    assert!(
        line.ends_with(&format!(
            "reached matthews {metric:.3} where plain LoRA reached {lora_metric:.3} ({:+.3})",
            metric - lora_metric
        )),
        "{line}"
    );
    // Fewer operations there are on every machine: from the start two layers of six train.
    assert!(dynamic[2] < lora[2], "{dynamic:?} {lora:?}");

    // Each command that is named does what is said of it.
    let commands: Vec<&str> = (printed.lines())
        .filter(|line| line.starts_with("  dynalora "))
        .collect();
    assert_eq!(commands.len(), 3, "{printed}");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", built().display());
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", command])
            .env("PATH", &path)
            .current_dir(scene.path(""))
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{command}\n{}", said(&output));
    }
    for made in ["report.html", "uniform/summary.json"] {
        assert!(scene.path("my runs").join(made).is_file(), "{made}");
    }

    // Another quickstart is not laid over it unasked, and a mistake is the user's.
    let refused = |more: &[&str], parts: &[&str]| {
        let output = quickstart(more);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, parts);
    };
    refused(&["--steps", "5"], &["my runs/lora", "--force", "--output"]);
    refused(
        &["--steps", "5", "--force", "--set", "allocator.k=99"],
        &["the run dynamic", "99"],
    );
}
