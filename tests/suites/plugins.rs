//! The plugin boundary with real libraries: the shipped ones, one from outside, and damaged ones.

use std::path::{Path, PathBuf};

use dynalora_tests::{Scene, build_outside, built, contains, library, said};
use serde_json::Value;

fn shipped(name: &str) -> PathBuf {
    built().join(library(&format!("dynalora-{name}")))
}

const SHIPPED: [&str; 16] = [
    "allocator-cyclic",
    "allocator-discounted",
    "allocator-drop",
    "allocator-grow",
    "allocator-lisa",
    "allocator-multinomial",
    "allocator-rank-budget",
    "allocator-threshold",
    "allocator-top-k",
    "allocator-uniform",
    "scorer-activation",
    "scorer-fisher",
    "scorer-gradient",
    "scorer-sensitivity",
    "scorer-table",
    "scorer-trial",
];

#[test]
fn the_shipped_plugins_are_listed_and_conform() {
    let scene = Scene::new();
    let list: Value =
        serde_json::from_str(&scene.ok(&["plugins", "list", "--json"])).expect("JSON");
    let plugins = list["plugins"].as_array().expect("a list");
    let names: Vec<_> = plugins
        .iter()
        .filter_map(|p| p["manifest"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "activation",
            "cyclic",
            "discounted",
            "drop",
            "fisher",
            "gradient",
            "grow",
            "lisa",
            "multinomial",
            // A scorer and an allocator.
            "process",
            "process",
            "rank-budget",
            "sensitivity",
            "table",
            "threshold",
            "top-k",
            "trial",
            "uniform"
        ]
    );
    for name in SHIPPED {
        let path = shipped(name);
        let report = scene.ok(&["plugins", "check", path.to_str().expect("UTF-8"), "--json"]);
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let checks = report[0]["checks"].as_array().expect("a list");
        assert!(checks.len() >= 8, "{name} was hardly checked: {checks:?}");
    }
    for name in names {
        assert!(scene.ok(&["plugins", "info", name]).contains(name));
    }
    // Its `k` is required: what it needs is asked with one made up.
    let uniform = scene.ok(&["plugins", "info", "uniform"]);
    assert!(uniform.contains("reads no scores"), "{uniform}");
}

/// A plugin from outside the workspace.
const LOWEST: &str = r#"use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ModuleInfo, Plugin, Result, export_plugin,
};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many of the lowest modules to activate.
    #[serde(default = "one")]
    count: usize,
    /// Panics at the first reallocation where this is "yes".
    #[serde(default)]
    panics: String,
}

fn one() -> usize {
    1
}

pub struct Lowest(Parameters);

impl Plugin for Lowest {
    type Parameters = Parameters;
    const NAME: &'static str = "lowest";
    const DESCRIPTION: &'static str = "Activates the lowest modules.";
    const REFERENCE: &'static str = "a test";

    fn new(parameters: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        // The conformance kit tries every end of a parameter's range.
        if parameters.count == 0 {
            return Err("parameter `count` is 0: at least one module must be active".into());
        }
        Ok(Lowest(parameters))
    }
}

impl Allocator for Lowest {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        if self.0.panics == "yes" {
            panic!("out of order");
        }
        let count = self.0.count.min(request.scores.len());
        Ok(Allocation::of(0..count, request.scores.len()))
    }
}

export_plugin!(allocator Lowest);
"#;

fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, parts);
}

#[test]
fn a_plugin_from_outside_is_found_by_name_checked_and_used() {
    let scene = Scene::new();
    let library = build_outside(&scene, "lowest", LOWEST);
    scene.ok(&["plugins", "check", library.to_str().expect("UTF-8")]);
    scene.edit(
        "plugin = \"top-k\"\nk = \"50%\"",
        "plugin = \"lowest\"\ncount = 2",
    );
    // Not on the path yet.
    refused(&scene, &["train", "recipe.toml"], &["lowest", "searched"]);
    let folder = scene.path("plugins");
    let folder = folder.to_str().expect("UTF-8");
    scene.ok(&["train", "recipe.toml", "--quiet", "--plugin-dir", folder]);
    let last = scene
        .records("run", "allocations.jsonl")
        .pop()
        .expect("records");
    let active = last["active"].as_array().expect("a mask");
    let chosen: Vec<usize> = (0..active.len()).filter(|i| active[*i] == true).collect();
    assert_eq!(chosen, [0, 1]);

    // By the environment, and by its path in the recipe.
    let run = |name: &str, plugin: &str, variable: Option<&str>| {
        let output = format!("output={}", scene.path(name).display());
        let plugin = format!("allocator.plugin={plugin}");
        let arguments = [
            "train",
            "recipe.toml",
            "--quiet",
            "--set",
            &output,
            "--set",
            &plugin,
        ];
        let mut command = scene.command(&arguments);
        if let Some(variable) = variable {
            command.env("DYNALORA_PLUGIN_PATH", variable);
        }
        let output = command.output().expect("it starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run("by-variable", "lowest", Some(folder));
    run("by-path", library.to_str().expect("UTF-8"), None);

    // A panic in a plugin is an error that names it, and the run's state is not lost.
    refused(
        &scene,
        &[
            "train",
            "recipe.toml",
            "--quiet",
            "--plugin-dir",
            folder,
            "--set",
            "allocator.panics=yes",
            "--set",
            &format!("output={}", scene.path("panics").display()),
        ],
        &["lowest", "out of order", "step 4"],
    );
}

#[test]
fn what_is_no_plugin_is_refused_with_a_reason() {
    let scene = Scene::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = scene.path(&format!(
            "{}{name}{}",
            std::env::consts::DLL_PREFIX,
            std::env::consts::DLL_SUFFIX
        ));
        std::fs::write(&path, bytes).expect("it writes");
        path.display().to_string()
    };
    let whole = std::fs::read(shipped("allocator-top-k")).expect("it is built");
    let text = file("text", b"not a library");
    refused(
        &scene,
        &["plugins", "check", &text],
        &["no dynalora plugin"],
    );
    // Short of its static manifest, and with that alone whole.
    let cut = file("cut", &whole[..100]);
    refused(&scene, &["plugins", "check", &cut], &["no dynalora plugin"]);
    let magic = dynalora_plugin_api::abi::label::MAGIC;
    let found = whole.windows(16).position(|bytes| bytes == magic);
    let cut = file("cut", &whole[..found.expect("it is there") + 4096]);
    let short = ["cannot be loaded", "cut short"];
    refused(&scene, &["plugins", "check", &cut], &short);
    refused(&scene, &["plugins", "check", "none.so"], &["none.so"]);
    // A library of the system that is no plugin.
    for library in [
        "/usr/lib/x86_64-linux-gnu/libm.so.6",
        "/lib/x86_64-linux-gnu/libm.so.6",
    ] {
        if Path::new(library).exists() {
            refused(
                &scene,
                &["plugins", "check", library],
                &["no dynalora plugin"],
            );
            break;
        }
    }
    // Damaged files on the path do not hide the good ones.
    let folder = scene.path(".");
    let folder = folder.to_str().expect("UTF-8");
    assert!(
        scene
            .ok(&["plugins", "info", "top-k", "--plugin-dir", folder])
            .contains("top-k")
    );
}
