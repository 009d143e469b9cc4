//! Looking plugins up among hostile and damaged libraries, and plugins that print, exit and say too much.
//!
//! Everything here is a real library: C ones by the system's compiler, a Rust one by cargo, and damaged copies of
//! a shipped one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dynalora_plugin_api::Random;
use dynalora_plugin_api::abi::{API_VERSION, label};
use dynalora_tests::{Scene, built, contains, flat, library, package, said, text};
use serde_json::Value;

/// A static manifest as C, of a plugin of this name and built with these.
fn manifest(name: &str, api: &str, panic: &str) -> String {
    let said =
        format!("format=1\nname={name}\nkind=allocator\nversion=1.0.0\napi={api}\npanic={panic}\n");
    let mut bytes = label::MAGIC.to_vec();
    bytes.extend((said.len() as u32).to_le_bytes());
    bytes.extend(label::checksum(said.as_bytes()).to_le_bytes());
    bytes.extend(said.as_bytes());
    let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!(
        "const unsigned char manifest[] = {{{}}};\n",
        bytes.join(",")
    )
}

/// Compiles a C library whose constructor does this.
fn hostile(folder: &Path, name: &str, manifest: &str, constructor: &str) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a temporary folder");
    let source = folder.join(format!("{name}.c"));
    let code = format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n{manifest}\
         __attribute__((constructor)) static void begin(void) {{ {constructor} }}\n"
    );
    std::fs::write(&source, code).expect("it writes");
    let path = folder.join(library(name));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&path, &source])
        .status()
        .expect("a C compiler");
    assert!(status.success(), "{name} does not compile");
    path
}

const PRINTS: &str = r#"printf("hostile output\n"); fflush(stdout);"#;

/// A shipped plugin without its debug information, small enough for hundreds of copies.
fn small() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("small");
    std::fs::copy(built().join(library("dynalora_allocator_top_k")), &copy).expect("it is built");
    // Without `strip` the copies are just larger.
    let _ = Command::new("strip").arg(&copy).status();
    std::fs::read(&copy).expect("a copy")
}

/// Damaged copies of a shipped plugin: bits flipped, anywhere or where the loader reads; cut short; with a hole.
fn mutants(folder: &Path, count: u64) {
    std::fs::create_dir_all(folder).expect("a temporary folder");
    let whole = small();
    for case in 0..count {
        let mut random = Random::new(case);
        let mut below = |limit: usize| (random.bits() % limit as u64) as usize;
        let mut bytes = whole.clone();
        match case % 5 {
            // Headers, symbols, relocations.
            0 => {
                let (at, bit) = (below(4096), below(8));
                bytes[at] ^= 1 << bit;
            }
            1 => {
                for _ in 0..20 {
                    let (at, bit) = (below(bytes.len() / 5), below(8));
                    bytes[at] ^= 1 << bit;
                }
            }
            2 => {
                for _ in 0..2000 {
                    let at = below(bytes.len());
                    bytes[at] = below(256) as u8;
                }
            }
            3 => bytes.truncate(below(whole.len())),
            _ => {
                let (from, length) = (below(whole.len()), below(65_536));
                let end = (from + length).min(whole.len());
                bytes[from..end].fill(0);
            }
        }
        std::fs::write(folder.join(library(&format!("mutant{case:03}"))), bytes)
            .expect("it writes");
    }
}

#[test]
fn what_no_recipe_names_is_never_loaded() {
    let scene = Scene::new();
    let folder = scene.path("hostile");
    for (name, constructor) in [
        ("prints", PRINTS),
        ("aborts", "abort();"),
        ("exits", "exit(0);"),
    ] {
        // As any library, and as a plugin of this program's version.
        hostile(&folder, name, "", constructor);
        let manifest = manifest(name, API_VERSION, "unwind");
        hostile(&folder, &format!("plugin_{name}"), &manifest, constructor);
    }
    // They are copies of top-k, which this recipe does not name.
    mutants(&folder, 300);
    let sets = ["--set", "allocator.plugin=uniform"];
    let run = |name: &str, folder: Option<&Path>| {
        let output = format!("output={}", scene.path(name).display());
        let mut arguments = vec![
            "train",
            "recipe.toml",
            "--json",
            "--quiet",
            "--set",
            &output,
        ];
        arguments.extend(sets);
        if let Some(folder) = folder {
            arguments.extend(["--plugin-dir", text(folder)]);
        }
        let output = scene.run(&arguments);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).expect("nothing but JSON");
        let adapter = scene.path(name).join("adapter/adapter_model.safetensors");
        (std::fs::read(adapter).expect("an adapter"), said(&output))
    };
    let (alone, beside) = (run("alone", None), run("beside", Some(&folder)));
    assert!(alone.0 == beside.0);
    assert_eq!(
        alone.1, beside.1,
        "nothing is said of what was not asked for"
    );
}

#[test]
fn the_list_survives_everything_and_names_what_is_broken() {
    let scene = Scene::new();
    let folder = scene.path("hostile");
    mutants(&folder, 300);
    for (name, constructor) in [
        ("prints", PRINTS),
        ("aborts", "abort();"),
        ("exits", "exit(0);"),
        ("crashes", "*(volatile int *)0 = 0;"),
    ] {
        let manifest = manifest(name, API_VERSION, "unwind");
        hostile(&folder, &format!("plugin_{name}"), &manifest, constructor);
    }
    let (older, abort) = (
        manifest("older", "0.1.0", "unwind"),
        manifest("aborting", API_VERSION, "abort"),
    );
    hostile(&folder, "older", &older, "abort();");
    hostile(&folder, "aborting", &abort, "abort();");
    let output = scene.run(&["plugins", "list", "--json", "--plugin-dir", text(&folder)]);
    assert!(output.status.success(), "{}", said(&output));
    let list: Value = serde_json::from_slice(&output.stdout).expect("nothing but JSON");
    let broken: Vec<&str> = (list["broken"].as_array().expect("a list").iter())
        .filter_map(Value::as_str)
        .collect();
    for (name, why) in [
        ("plugin_aborts", "killed by signal 6 (SIGABRT)"),
        ("plugin_crashes", "killed by signal 11 (SIGSEGV)"),
        ("plugin_exits", "ended by exit()"),
        // What it printed did not count as its manifest.
        ("plugin_prints", "cannot be loaded"),
        ("older", "built against dynalora-plugin-api 0.1.0"),
        ("aborting", "panic = \"abort\""),
    ] {
        let named = broken.iter().find(|error| error.contains(&library(name)));
        assert!(
            named.is_some_and(|error| error.contains(why)),
            "{name}: {named:?}"
        );
    }
    let names: Vec<&str> = (list["plugins"].as_array().expect("a list").iter())
        .filter_map(|plugin| plugin["manifest"]["name"].as_str())
        .collect();
    assert!(
        names.contains(&"uniform") && names.contains(&"gradient"),
        "{names:?}"
    );
    // Every third copy at least is seen to be damaged; the damage of others lies where nothing reads.
    let mutants = broken
        .iter()
        .filter(|error| error.contains("mutant"))
        .count();
    println!("{mutants} of 300 mutants are named as broken");
    assert!(mutants >= 100, "{mutants}");
    assert!(broken.iter().any(|error| error.contains("cut short")));
}

#[test]
fn a_hostile_library_that_is_named_ends_in_an_error() {
    let scene = Scene::new();
    let folder = scene.path("hostile");
    for (name, constructor, why) in [
        ("aborts", "abort();", "SIGABRT"),
        ("exits", "exit(0);", "ended by exit()"),
        ("leaves", "_exit(0);", "before it has described itself"),
        ("silent", "", "cannot be loaded as a plugin"),
    ] {
        let manifest = manifest(name, API_VERSION, "unwind");
        let path = hostile(&folder, name, &manifest, constructor);
        for arguments in [
            vec!["plugins", "info", name, "--plugin-dir", text(&folder)],
            vec!["plugins", "check", text(&path)],
            vec![
                "train",
                "recipe.toml",
                "--plugin-dir",
                text(&folder),
                "--set",
                &format!("allocator.plugin={name}"),
            ],
        ] {
            let output = scene.run(&arguments);
            assert_eq!(
                output.status.code(),
                Some(2),
                "{arguments:?}: {}",
                said(&output)
            );
            contains(&output, &[&library(name), why]);
            assert!(output.stdout.is_empty());
        }
        assert!(!scene.path("run").exists());
    }
}

#[test]
fn a_stranger_is_not_loaded_to_find_out_that_it_is_one() {
    let scene = Scene::new();
    let path = hostile(&scene.path("hostile"), "stranger", "", "abort();");
    for command in ["info", "check"] {
        let output = scene.run(&["plugins", command, text(&path)]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, &["no dynalora plugin", "static manifest"]);
    }
}

#[test]
fn a_bare_file_name_is_a_file_of_this_folder() {
    let scene = Scene::new();
    let name = library("dynalora_allocator_top_k");
    for (command, word) in [("check", "top-k"), ("info", "top-k")] {
        for name in [name.clone(), format!("./{name}")] {
            let output = scene
                .command(&["plugins", command, &name])
                .current_dir(built())
                .output()
                .expect("it starts");
            assert!(
                output.status.success(),
                "{command} {name}: {}",
                said(&output)
            );
            assert!(String::from_utf8_lossy(&output.stdout).contains(word));
        }
    }
}

/// Copies a shipped plugin into a folder under another file name.
fn copy(folder: &Path, name: &str) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a temporary folder");
    let path = folder.join(library(name));
    std::fs::copy(built().join(library("dynalora_allocator_top_k")), &path).expect("a copy");
    path
}

#[test]
fn a_folder_named_first_shadows_a_later_one_and_says_so() {
    let scene = Scene::new();
    let (first, second) = (scene.path("first"), scene.path("second"));
    let (one, other) = (copy(&first, "one"), copy(&second, "other"));
    let arguments = [
        "plugins",
        "info",
        "top-k",
        "--plugin-dir",
        text(&first),
        "--plugin-dir",
        text(&second),
    ];
    let output = scene.run(&arguments);
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains(text(&one)));
    contains(
        &output,
        &["two plugins are called `top-k`", text(&one), text(&other)],
    );
    // Within a folder nothing says which was meant.
    let twin = copy(&first, "twin");
    let output = scene.run(&arguments);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(
        &output,
        &["two plugins in one folder", text(&one), text(&twin)],
    );
    // By its path it can be had nevertheless.
    scene.ok(&["plugins", "info", text(&twin)]);
    // A link to the same file is no second plugin.
    #[cfg(unix)]
    {
        let linked = scene.path("linked");
        std::fs::create_dir(&linked).expect("a temporary folder");
        std::os::unix::fs::symlink(&other, linked.join(library("link"))).expect("a link");
        let (linked, second) = (text(&linked), text(&second));
        let output = scene.run(&[
            "plugins",
            "info",
            "top-k",
            "--plugin-dir",
            linked,
            "--plugin-dir",
            second,
        ]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            !said(&output).contains(text(Path::new(linked))),
            "{}",
            said(&output)
        );
    }
}

#[cfg(unix)]
#[test]
fn what_others_may_write_to_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let folder = scene.path("open");
    let path = copy(&folder, "open");
    let warned = |mode_of_folder, mode_of_file| {
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is mine");
        };
        set(&folder, mode_of_folder);
        set(&path, mode_of_file);
        let output = scene.run(&["plugins", "info", text(&path)]);
        assert!(output.status.success(), "{}", said(&output));
        flat(&said(&output))
            .matches(&flat("may be written to by everyone"))
            .count()
    };
    assert_eq!(warned(0o755, 0o644), 0);
    assert_eq!(warned(0o755, 0o666), 1);
    assert_eq!(warned(0o777, 0o644), 1);
    assert_eq!(warned(0o1777, 0o666), 2);
    // By a link, which whoever may write to its folder can turn elsewhere.
    warned(0o755, 0o644);
    let linked = scene.path("linked");
    std::fs::create_dir(&linked).expect("a temporary folder");
    std::fs::set_permissions(&linked, PermissionsExt::from_mode(0o777)).expect("it is mine");
    std::os::unix::fs::symlink(&path, linked.join(library("link"))).expect("a link");
    let output = scene.run(&["plugins", "info", "top-k", "--plugin-dir", text(&linked)]);
    contains(&output, &[text(&linked), "may be written to by everyone"]);
}

/// Writes a plugin crate that misbehaves as its parameter says.
fn write_misbehaving(scene: &Scene, profile: &str) {
    let api = package()
        .join("../plugin-api")
        .canonicalize()
        .expect("it is there");
    std::fs::create_dir_all(scene.path("misbehaving/src")).expect("a temporary folder");
    scene.write(
        "misbehaving/Cargo.toml",
        &format!(
            "[package]\nname = \"misbehaving\"\nversion = \"0.3.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
             [lib]\ncrate-type = [\"cdylib\"]\n\n[dependencies]\n\
             dynalora-plugin-api = {{ path = {api:?} }}\n{profile}"
        ),
    );
    scene.write(
        "misbehaving/src/lib.rs",
        r#"use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ModuleInfo, Plugin, Result, Start, export_plugin,
};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// What it does.
    #[serde(default)]
    does: String,
}

pub struct Misbehaving(Parameters);

unsafe extern "C" {
    fn exit(code: i32) -> !;
    fn puts(text: *const std::ffi::c_char) -> i32;
}

impl Plugin for Misbehaving {
    type Parameters = Parameters;
    const NAME: &'static str = "misbehaving";
    const DESCRIPTION: &'static str = "Misbehaves\u{1b}[31m.";
    const REFERENCE: &'static str = "a test";

    fn new(parameters: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        println!("plugin says new");
        Ok(Misbehaving(parameters))
    }
}

impl Allocator for Misbehaving {
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        match self.0.does.as_str() {
            "refuses" => Err(format!("{} steps are too many", start.total_steps).into()),
            "warns" => Ok(vec![format!("asked {} times, lastly after step {}", start.reallocations,
                start.last_reallocation.unwrap_or(0))]),
            _ => Ok(Vec::new()),
        }
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        println!("plugin says println");
        unsafe { puts(c"plugin says puts".as_ptr()) };
        match self.0.does.as_str() {
            "exits" => unsafe { exit(0) },
            "leaves" => std::process::exit(0),
            "talks" => return Err("\u{1b}[31mred ".repeat(1_000_000).into()),
            "panics" => panic!("{}", "\u{1b}[31mred ".repeat(1_000_000)),
            _ => {}
        }
        Ok(Allocation::of(0..2, request.scores.len()))
    }
}

export_plugin!(allocator Misbehaving);
"#,
    );
    // The workspace's lock, so that nothing new is fetched.
    std::fs::copy(
        package().join("../Cargo.lock"),
        scene.path("misbehaving/Cargo.lock"),
    )
    .expect("a lock");
}

/// Cargo on that crate, with a target folder that is kept between tests.
fn cargo(scene: &Scene, command: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args([command, "--release", "--quiet", "--manifest-path"])
        .arg(scene.path("misbehaving/Cargo.toml"))
        .args(arguments)
        .env("CARGO_TARGET_DIR", built().join("outside"))
        .output()
        .expect("cargo runs")
}

#[test]
fn a_plugin_that_prints_exits_and_talks_too_much() {
    let scene = Scene::new();
    write_misbehaving(&scene, "");
    let output = cargo(&scene, "build", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let folder = scene.path("plugins");
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let name = library("misbehaving");
    std::fs::copy(
        built().join("outside/release").join(&name),
        folder.join(&name),
    )
    .expect("it is built");
    scene.edit(
        "plugin = \"top-k\"\nk = \"50%\"",
        "plugin = \"misbehaving\"",
    );
    let run = |does: &str| {
        let (output, does) = (
            format!("output={}", scene.path(does).display()),
            format!("allocator.does={does}"),
        );
        scene.run(&[
            "train",
            "recipe.toml",
            "--json",
            "--plugin-dir",
            text(&folder),
            "--set",
            &output,
            "--set",
            &does,
        ])
    };

    // What it prints goes to standard error, by Rust's way and by C's.
    let output = run("prints");
    assert!(output.status.success(), "{}", said(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("nothing but JSON");
    assert_eq!(summary["reallocations"], 2);
    contains(
        &output,
        &["plugin says new", "plugin says println", "plugin says puts"],
    );

    // An exit code that says success is not believed.
    for does in ["exits", "leaves"] {
        let output = run(does);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        contains(&output, &["ended by exit()", "misbehaving", "--resume"]);
        assert!(output.stdout.is_empty());
        assert!(!scene.path(does).join("summary.json").exists());
    }

    // Five megabytes of error and control characters.
    for does in ["talks", "panics"] {
        let output = run(does);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            output.stderr.len() < 20_000,
            "{} bytes",
            output.stderr.len()
        );
        let said = said(&output);
        assert!(!said.contains("\u{1b}[31mred"), "{said}");
        contains(
            &output,
            &[
                "\\u{1b}[31mred",
                "cut:",
                "characters in all",
                "same recipe with --resume",
            ],
        );
    }
    let info = scene.ok(&[
        "plugins",
        "info",
        "misbehaving",
        "--plugin-dir",
        text(&folder),
    ]);
    assert!(
        info.contains("Misbehaves\\u{1b}[31m.") && !info.contains('\u{1b}'),
        "{info}"
    );

    // It is told of the run before anything is trained.
    let output = run("refuses");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, &["cannot work in this run: 12 steps are too many"]);
    assert!(!scene.path("refuses").exists());
    let output = run("warns");
    assert!(output.status.success(), "{}", said(&output));
    contains(&output, &["asked 2 times, lastly after step 8"]);

    // A panic must unwind, or the plugin does not compile.
    let output = cargo(&scene, "rustc", &["--", "-C", "panic=abort"]);
    assert!(!output.status.success());
    contains(&output, &["must not be built with panic = \"abort\""]);
}

#[test]
fn an_impossible_budget_or_schedule_is_found_before_the_first_step() {
    let scene = Scene::new();
    scene.edit(
        "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"",
        "[allocator]\nplugin = \"rank-budget\"",
    );
    let run = |command: &str, sets: &[&str]| {
        let mut arguments = vec![command, "recipe.toml"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        scene.run(&arguments)
    };
    for (sets, words) in [
        (
            &["allocator.tinit=8", "allocator.tfinal=4"][..],
            &["rank-budget", "none of the run's 12 steps"][..],
        ),
        (
            &["allocation.unit=layer"],
            &["rank-budget", "unit = \"module\""],
        ),
        (&["allocator.target_r=5"], &["rank-budget", "`target_r`"]),
        (
            &["allocator.plugin=uniform", "allocator.k=12"],
            &["uniform", "12 modules of 11"],
        ),
        (
            &[
                "allocator.plugin=uniform",
                "allocator.k=4",
                "allocation.unit=layer",
            ],
            &["uniform", "4 modules of 3"],
        ),
        (
            &["allocator.plugin=unifrom"],
            &["unifrom", "did you mean `uniform`"],
        ),
    ] {
        // What training refuses, planning does.
        for command in ["train", "plan"] {
            let output = run(command, sets);
            assert_eq!(
                output.status.code(),
                Some(2),
                "{command} {sets:?}: {}",
                said(&output)
            );
            contains(&output, words);
            assert!(!scene.path("run").exists(), "{sets:?}");
        }
    }
    // The one that never prunes: reallocations are after steps 4 and 8.
    for command in ["plan", "train"] {
        let output = run(command, &["allocator.tinit=9"]);
        assert!(output.status.success(), "{}", said(&output));
        contains(&output, &["nothing will ever be pruned", "after step 8"]);
    }
    let output = run("train", &["allocator.tinit=0", "output=fine"]);
    assert!(
        output.status.success() && !said(&output).contains("WARN"),
        "{}",
        said(&output)
    );
}

#[test]
fn every_shipped_allocator_refuses_a_count_above_its_units() {
    let scene = Scene::new();
    for unit in ["module", "layer"] {
        for plugin in ["top-k", "multinomial", "discounted", "uniform"] {
            let sets = [
                format!("allocation.unit={unit}"),
                format!("allocator.plugin={plugin}"),
            ];
            let output = scene.run(&[
                "plan",
                "recipe.toml",
                "--set",
                &sets[0],
                "--set",
                &sets[1],
                "--set",
                "allocator.k=12",
            ]);
            assert_eq!(
                output.status.code(),
                Some(2),
                "{unit} {plugin}: {}",
                said(&output)
            );
            contains(&output, &["asked for 12 modules of"]);
        }
    }
}
