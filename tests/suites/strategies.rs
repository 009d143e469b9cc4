//! A new strategy in five minutes: plugin-api as a package of its own, crates that `plugins new` writes, what
//! `plugins info` says, replays of old runs, and the code of docs/plugins.md. All that is built here is built outside
//! the checkout, offline, and shares one target folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use dynalora_tests::{Scene, built, package};
use serde_json::Value;

/// Cargo in `folder`, offline, as a plugin's author has it.
fn cargo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--offline")
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", built().join("outside"))
        // What this test was built with is not an author's.
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo starts")
}

fn succeeds(output: Output) -> [String; 2] {
    let [out, error] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{out}\n{error}");
    [out, error]
}

/// The program refuses with exit code 2 and these words.
#[track_caller]
fn refused(scene: &Scene, arguments: &[&str], words: &[&str]) {
    let output = scene.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let flat = |text: &str| {
        let words = text.split_whitespace().filter(|word| *word != "│");
        words.collect::<String>()
    };
    for word in words {
        assert!(
            flat(&said).contains(&flat(word)),
            "{word:?} is missing: {said}"
        );
    }
}

/// Where a library of this name is built.
fn library(name: &str) -> PathBuf {
    built().join("outside/release").join(format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    ))
}

fn api() -> PathBuf {
    let path = package().join("../plugin-api").canonicalize();
    path.expect("a folder of the checkout")
}

/// `cargo package` as it would go to a registry, without building it: what is built against it below builds it.
fn pack(arguments: &[&str]) -> [String; 2] {
    let arguments = [&["package", "--allow-dirty", "--no-verify"], arguments].concat();
    succeeds(cargo(&api(), &arguments))
}

/// plugin-api, packed and unpacked in a place of its own.
fn packed() -> &'static Path {
    static PACKED: OnceLock<PathBuf> = OnceLock::new();
    PACKED.get_or_init(|| {
        let folder = built().join("outside/packed");
        std::fs::create_dir_all(&folder).expect("a folder");
        let target = folder.join("target");
        let [_, said] = pack(&["--target-dir", target.to_str().expect("UTF-8")]);
        assert!(!said.contains("warning"), "{said}");
        let name = format!(
            "dynalora-plugin-api-{}",
            dynalora_plugin_api::abi::API_VERSION
        );
        let mut tar = Command::new("tar");
        tar.arg("xzf")
            .arg(target.join("package").join(format!("{name}.crate")));
        succeeds(tar.arg("-C").arg(&folder).output().expect("tar starts"));
        folder.join(name)
    })
}

/// The files below a folder of plugin-api.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the crate") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, found),
            false => {
                let path = path.strip_prefix(api()).expect("it is below").to_owned();
                found.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn the_package_has_its_files_and_no_others() {
    let [listed, said] = pack(&["--list"]);
    assert!(!said.contains("warning"), "{said}");
    // A checkout that is no repository has no version control to tell of.
    let mut listed: Vec<&str> = listed
        .lines()
        .filter(|file| *file != ".cargo_vcs_info.json")
        .collect();
    listed.sort_unstable();
    let mut expected: Vec<String> = [
        "Cargo.lock",
        "Cargo.toml",
        "Cargo.toml.orig",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
    ]
    .map(str::to_owned)
    .to_vec();
    for folder in ["src", "include", "tests"].map(|folder| api().join(folder)) {
        if folder.exists() {
            sources(&folder, &mut expected);
        }
    }
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[test]
fn the_packed_manifest_knows_of_no_checkout() {
    let read = |file: &str| std::fs::read_to_string(packed().join(file)).expect("a packed file");
    let manifest = read("Cargo.toml");
    for line in manifest.lines() {
        let of_the_checkout = line.contains("workspace") || line.contains("../");
        assert!(!of_the_checkout, "{line}\n{manifest}");
        // Paths of its own sources alone.
        let path = line.strip_prefix("path = ");
        let own = |path: &str| path.starts_with("\"src/") || path.starts_with("\"tests/");
        assert!(path.is_none_or(own), "{line}");
    }
    for key in [
        "license = ",
        "readme = ",
        "description = ",
        "keywords = ",
        "[package.metadata.docs.rs]",
    ] {
        assert!(manifest.contains(key), "{key} is missing:\n{manifest}");
    }
    // Files, not links out of the crate.
    assert!(read("LICENSE-MIT").contains("Permission is hereby granted"));
    assert!(read("LICENSE-APACHE").contains("Apache License"));
}

/// A crate that `plugins new` wrote against the packed plugin-api, built and tested.
fn strategy(scene: &Scene, kind: &str, name: &str) -> PathBuf {
    let folder = scene.path(name);
    let api = packed().to_str().expect("UTF-8");
    let told = scene.ok(&["plugins", "new", kind, name, "--api", api]);
    for words in [
        "cargo test --release --offline",
        "plugins check",
        "train",
        name,
    ] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
    let readme = std::fs::read_to_string(folder.join("README.md")).expect("a README");
    assert!(!readme.contains("{{"), "{readme}");
    let [tests, _] = succeeds(cargo(&folder, &["test", "--release", "--quiet"]));
    assert!(
        tests.contains("test result: ok") && !tests.contains(" 0 passed"),
        "{tests}"
    );
    let [_, said] = succeeds(cargo(&folder, &["build", "--release"]));
    assert!(!said.contains("warning"), "{said}");
    let library = library(name);
    scene.ok(&["plugins", "check", library.to_str().expect("UTF-8")]);
    library
}

#[test]
fn a_new_strategy_builds_outside_conforms_and_trains() {
    let scene = Scene::new();
    let scorer = strategy(&scene, "scorer", "pull-per-parameter");
    let allocator = strategy(&scene, "allocator", "curious");
    scene.edit(
        "plugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\n",
        "plugin = \"pull-per-parameter\"\nevery = 2\n\n[allocator]\nplugin = \"curious\"\nexplore = 0.5\n",
    );
    let folder = scorer.parent().expect("a folder").to_str().expect("UTF-8");
    scene.ok(&["train", "recipe.toml", "--quiet", "--plugin-dir", folder]);
    let chosen = scene.records("run", "allocations.jsonl");
    assert!(chosen.len() > 1);
    let scores = chosen[1]["scores"].as_array().expect("scores");
    assert!(scores.iter().any(|score| score.as_f64() > Some(0.0)));
    // What `plugins info` says of them.
    let told = scene.ok(&["plugins", "info", "curious", "--plugin-dir", folder]);
    for words in [
        "S = top",
        "explore",
        "number ≥ 0 and ≤ 1",
        "0.1",
        "whole number ≥ 1",
        "required",
    ] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
    let path = allocator.to_str().expect("UTF-8");
    let json: Value =
        serde_json::from_str(&scene.ok(&["plugins", "info", path, "--json"])).expect("JSON");
    let manifest = &json[0]["manifest"];
    assert!(
        manifest["formula"]
            .as_str()
            .is_some_and(|it| it.contains("ε"))
    );
    assert_eq!(
        manifest["parameters"]["properties"]["explore"]["maximum"],
        1.0
    );
}

#[test]
fn a_new_strategy_is_refused_where_something_is_in_the_way() {
    let scene = Scene::new();
    scene.write("here", "");
    let new = |arguments: &[&str], words: &[&str]| {
        refused(&scene, &[&["plugins", "new"], arguments].concat(), words);
    };
    new(&["scorer", "here"], &["here is there already"]);
    new(&["scorer", "Mine"], &["`Mine` is no name", "'M'"]);
    new(&["scorer", "../mine"], &["is no name"]);
    new(&["allocator", "top-k"], &["a plugin `top-k` already"]);
    new(
        &["scorer", "mine", "--api", "nowhere"],
        &["nowhere", "no crate"],
    );
    let host = package().join("../host").display().to_string();
    new(
        &["scorer", "mine", "--api", &host],
        &["that is dynalora, not"],
    );
    assert!(!scene.path("mine").exists());
    // Where it was built it knows its checkout.
    let told = scene.ok(&["plugins", "new", "scorer", "mine", "--path", "deep/mine"]);
    assert!(told.contains("without a network"), "{told}");
    let manifest = std::fs::read_to_string(scene.path("deep/mine/Cargo.toml")).expect("a manifest");
    assert!(
        manifest.contains(api().to_str().expect("UTF-8")),
        "{manifest}"
    );
    scene.ok(&["plugins", "new", "scorer", "later", "--registry"]);
    let manifest = std::fs::read_to_string(scene.path("later/Cargo.toml")).expect("a manifest");
    assert!(
        manifest.contains("dynalora-plugin-api = \"1."),
        "{manifest}"
    );
}

/// A replay as JSON.
fn replay(scene: &Scene, plugin: &str, run: &Path, sets: &[&str]) -> Value {
    let run = run.to_str().expect("UTF-8");
    let mut arguments = vec!["plugins", "replay", plugin, "--run", run, "--json"];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    serde_json::from_str(&scene.ok(&arguments)).expect("JSON")
}

#[test]
fn a_replay_with_the_runs_own_plugins_chooses_the_same() {
    let scene = Scene::new();
    for (name, sets) in [
        ("modules", &["train.log_signals=true"][..]),
        (
            "layers",
            &["train.log_signals=true", "allocation.unit=layer"],
        ),
        (
            "gradients",
            &[
                "train.log_signals=true",
                "scorer.plugin=gradient",
                "allocator.plugin=discounted",
                "allocation.initial=allocator",
                "allocation.calibration_steps=2",
            ],
        ),
    ] {
        let run = scene.train(name, sets);
        let chosen = scene.records(name, "allocations.jsonl");
        for plugin in match name {
            "gradients" => ["gradient", "discounted"],
            _ => ["activation", "top-k"],
        } {
            let replay = replay(&scene, plugin, &run, &[]);
            let choices = replay["reallocations"].as_array().expect("a list");
            assert_eq!(choices.len(), chosen.len() - 1, "{name} {plugin}");
            assert_eq!(
                (&replay["differ"], &replay["not_recorded"]),
                (&0.into(), &0.into())
            );
            for (choice, chosen) in choices.iter().zip(&chosen[1..]) {
                assert_eq!(choice["active"], chosen["active"], "{name} {plugin}");
                // Bit for bit: they were told the same numbers.
                assert_eq!(choice["scores"], chosen["scores"], "{name} {plugin}");
            }
        }
    }
}

#[test]
fn a_replay_shows_what_another_plugin_would_have_chosen() {
    let scene = Scene::new();
    let run = scene.train("run", &["train.log_signals=true"]);
    let other = replay(&scene, "top-k", &run, &["k=1"]);
    let choices = other["reallocations"].as_array().expect("a list");
    assert_eq!(other["differ"], choices.len());
    for choice in choices {
        let active = choice["active"].as_array().expect("a mask");
        assert_eq!(active.iter().filter(|active| **active == true).count(), 1);
        assert_eq!(choice["added"], Value::Array(vec![]));
    }
    let run = run.to_str().expect("UTF-8");
    let told = scene.ok(&[
        "plugins", "replay", "uniform", "--run", run, "--set", "k=50%",
    ]);
    assert!(
        told.contains("of 2 reallocations") && told.contains(" for "),
        "{told}"
    );
    // A scorer with other parameters, by the run's own allocator.
    let told = scene.ok(&[
        "plugins",
        "replay",
        "activation",
        "--run",
        run,
        "--set",
        "norm=rms",
    ]);
    assert!(told.contains("\"norm\":\"rms\""), "{told}");
}

#[test]
fn a_replay_says_what_was_not_recorded() {
    let scene = Scene::new();
    let run = scene.train("plain", &[]);
    // The recorded scores suffice for an allocator that measures nothing.
    assert_eq!(replay(&scene, "top-k", &run, &[])["differ"], 0);
    assert!(!run.join("signals.jsonl").exists());
    let run = run.to_str().expect("UTF-8");
    let no = |plugin: &str, run: &str, words: &[&str]| {
        refused(&scene, &["plugins", "replay", plugin, "--run", run], words);
    };
    no(
        "activation",
        run,
        &["`activation_l2`", "no signals.jsonl", "log_signals"],
    );
    let other = scene.train("other", &["train.log_signals=true"]);
    let other = other.to_str().expect("UTF-8");
    no("gradient", other, &["`gradient_l2`", "has not recorded"]);
    no("rank-budget", other, &["components"]);
    let never = scene.train("never", &["allocation.schedule={ kind = \"never\" }"]);
    no(
        "top-k",
        never.to_str().expect("UTF-8"),
        &["no reallocation"],
    );
    no("top-k", "nowhere", &["no run at nowhere"]);
    refused(
        &scene,
        &["plugins", "replay", "top-k", "--run", run, "--set", "q=3"],
        &["`q`", "its parameters are"],
    );
    // A run without a scorer has no scores.
    scene.edit("[scorer]\nplugin = \"activation\"\n", "");
    let unscored = scene.train("unscored", &["allocator.plugin=uniform"]);
    let unscored = unscored.to_str().expect("UTF-8");
    refused(
        &scene,
        &[
            "plugins", "replay", "top-k", "--run", unscored, "--set", "k=1",
        ],
        &["goes by scores", "recorded none"],
    );
}

#[test]
fn recorded_signals_change_nothing_and_survive_an_interruption() {
    let scene = Scene::new();
    let sets = ["train.log_signals=true", "scorer.plugin=gradient"];
    scene.train("without", &sets[1..]);
    scene.train("with", &sets);
    for file in ["adapter/adapter_model.safetensors", "allocations.jsonl"] {
        let read = |run: &str| std::fs::read(scene.path(run).join(file)).expect("a run's file");
        assert!(read("without") == read("with"), "{file}");
    }
    let records = scene.records("with", "signals.jsonl");
    assert_eq!(records[0]["kind"], "modules");
    assert_eq!(records[1]["kind"], "observed");
    assert!(records[1]["signals"]["gradient_l2"].is_array());
    scene.assert_resumes("signals", &sets);
    let read = |run: &str| {
        std::fs::read_to_string(scene.path(run).join("signals.jsonl")).expect("a run's file")
    };
    assert_eq!(read("whole-signals"), read("killed-signals"));
    assert_eq!(read("whole-signals"), read("with"));
}

/// The page's blocks of Rust, each of which is a crate's `lib.rs`.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match (&mut open, line) {
            (None, "```rust") => open = Some(String::new()),
            (None, _) => {}
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}

fn page() -> String {
    std::fs::read_to_string(package().join("../docs/plugins.md")).expect("the page")
}

#[test]
fn the_pages_code_builds_and_conforms() {
    let scene = Scene::new();
    let page = page();
    let manifest = page.split("```toml\n").nth(1).expect("a manifest");
    let manifest = manifest.split("```").next().expect("an end");
    let blocks = blocks(&page);
    assert!(blocks.len() >= 2, "a scorer and an allocator");
    for (at, block) in blocks.iter().enumerate() {
        let name = format!("page-{at}");
        let folder = scene.path(&name);
        std::fs::create_dir_all(folder.join("src")).expect("a folder");
        let api = format!("{{ path = {:?} }}", packed());
        // The page's own, but for the name and where plugin-api lies today.
        let manifest = manifest
            .replace("name = \"steady\"", &format!("name = \"{name}\""))
            .replace(
                "dynalora-plugin-api = \"1\"",
                &format!("dynalora-plugin-api = {api}"),
            );
        assert!(
            manifest.contains(&name) && manifest.contains(&api),
            "{manifest}"
        );
        scene.write(
            &format!("{name}/Cargo.toml"),
            &format!("{manifest}\n[workspace]\n"),
        );
        scene.write(&format!("{name}/src/lib.rs"), block);
        std::fs::copy(package().join("../Cargo.lock"), folder.join("Cargo.lock")).expect("a lock");
        let [tests, said] = succeeds(cargo(&folder, &["test", "--release", "--quiet"]));
        assert!(
            tests.contains("test result: ok") && !tests.contains(" 0 passed"),
            "{tests}"
        );
        assert!(!said.contains("warning"), "{said}");
        succeeds(cargo(&folder, &["build", "--release", "--quiet"]));
        let library = library(&name);
        scene.ok(&["plugins", "check", library.to_str().expect("UTF-8")]);
    }
}

#[test]
fn the_page_has_every_field() {
    use dynalora_plugin_api as api;
    let page = page();
    let mut observation = api::Observation::default();
    observation.metric = Some(api::Metric::default());
    observation.components = vec![vec![0.5]];
    let mut request = api::AllocationRequest::default();
    request.trials = Some(api::TrialLosses::default());
    let mut upcoming = api::Upcoming::default();
    (upcoming.previous_reallocation, upcoming.next_reallocation) = (Some(1), Some(2));
    let mut names: Vec<String> = Vec::new();
    let mut add = |fields: api::message::Fields<'_>| {
        // `metric.name` is a part of `metric`; lengths go with their lists.
        let firsts = fields.iter().filter_map(|(name, _)| name.split('.').next());
        names.extend(firsts.map(str::to_owned));
    };
    add(observation.to_fields());
    add(request.to_fields());
    add(upcoming.to_fields());
    add(api::TrialRequest::default().to_fields());
    let lists = [
        &api::Needs::FIELDS[..],
        &api::Wants::FIELDS[..],
        &api::Allocation::FIELDS[..],
    ];
    names.extend(lists.concat().into_iter().map(str::to_owned));
    for value in [
        serde_json::to_value(api::Start::default()),
        serde_json::to_value(api::ModuleInfo::default()),
        serde_json::to_value(api::LedgerEntry::default()),
        serde_json::to_value(api::Trials::new(0, vec![])),
        serde_json::to_value(api::Trial::default()),
        serde_json::to_value(api::TrialLosses::default()),
        serde_json::to_value(api::Metric::default()),
    ] {
        let value = value.expect("plain data");
        names.extend(
            value
                .as_object()
                .into_iter()
                .flat_map(|it| it.keys().cloned()),
        );
    }
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/plugins.md lacks {missing:?}");
    // And every call.
    for call in [
        "needs", "start", "wants", "observe", "trials", "scores", "allocate", "numbers",
    ] {
        assert!(
            page.contains(&format!("`{call}`")),
            "docs/plugins.md lacks {call}"
        );
    }
}
