//! The boundary grows: plugins of an older and of a newer plugin-api in today's host, and what they ask for that it does
//! not have.

use dynalora_tests::{Scene, contains, fixture, outside, outside_with, plugin_in_c, said, text};

const PLUGINS: &str =
    "[scorer]\nplugin = \"activation\"\n\n[allocator]\nplugin = \"top-k\"\nk = \"50%\"";

/// As a plugin's author wrote it in the days of plugin-api 1.0.0, with all that it had.
const OLD: &str = include_str!("../fixtures/plugins/old.rs");

#[test]
fn a_plugin_of_the_first_version_runs_in_todays_host() {
    let folder = outside_with("old", OLD, &fixture("plugin-api-1.0.0"));
    let scene = Scene::new();
    scene.edit(
        PLUGINS,
        "[scorer]\nplugin = \"old\"\n\n[allocator]\nplugin = \"old\"\nk = 3",
    );
    scene.ok(&[
        "plugins",
        "check",
        text(&folder.join(dynalora_tests::library("old"))),
    ]);
    for isolation in ["none", "process"] {
        let output = format!("output={}", scene.path(isolation).display());
        let sets = [
            format!("scorer.isolation={isolation}"),
            format!("allocator.isolation={isolation}"),
        ];
        scene.ok(&[
            "train",
            "recipe.toml",
            "--quiet",
            "--plugin-dir",
            text(&folder),
            "--set",
            &output,
            "--set",
            &sets[0],
            "--set",
            &sets[1],
        ]);
        let records = scene.records(isolation, "allocations.jsonl");
        assert_eq!(records.len(), 3);
        for record in &records[1..] {
            let active = record["active"].as_array().expect("a mask");
            assert_eq!(active.iter().filter(|flag| **flag == true).count(), 3);
            assert!(
                record["scores"]
                    .as_array()
                    .expect("scores")
                    .iter()
                    .all(|score| score.as_f64() > Some(0.0))
            );
            assert!(
                record["numbers"]["allocator"]["asked"].is_array(),
                "{record}"
            );
        }
    }
}

/// A scorer that asks for what no host has yet.
const AHEAD: &str = r#"use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    ModuleInfo, Needs, Observation, Plugin, RawValue, Result, ScoreRequest, Scorer, Signal, export_plugin,
};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// The name of a signal.
    #[serde(default)]
    signal: String,
    /// The name of a raw value.
    #[serde(default)]
    raw: String,
}

pub struct Ahead(Parameters, usize);

impl Plugin for Ahead {
    type Parameters = Parameters;
    const NAME: &'static str = "ahead";
    const DESCRIPTION: &'static str = "Asks for what there is not.";
    const REFERENCE: &'static str = "a test";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Ahead(parameters, modules.len()))
    }
}

impl Scorer for Ahead {
    fn needs(&self) -> Needs {
        let needs = Needs::signals([Signal::named(self.0.signal.clone())]);
        match self.0.raw.as_str() {
            "" => needs,
            raw => needs.and_raw([RawValue::named(raw.to_owned())]),
        }
    }

    fn observe(&mut self, _: &Observation) -> Result<()> {
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> Result<Vec<f64>> {
        Ok(vec![1.0; self.1])
    }
}

export_plugin!(scorer Ahead);
"#;

#[test]
fn a_signal_that_this_host_lacks_is_refused_with_the_list_of_what_there_is() {
    let folder = outside("ahead", AHEAD);
    let scene = Scene::new();
    scene.edit(
        "plugin = \"activation\"",
        "plugin = \"ahead\"\nsignal = \"weight_l2\"",
    );
    let run = |command: &str, sets: &[&str]| {
        let mut arguments = vec![command, "recipe.toml", "--plugin-dir", text(&folder)];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        scene.run(&arguments)
    };
    for isolation in ["scorer.isolation=none", "scorer.isolation=process"] {
        for command in ["plan", "train"] {
            let output = run(command, &[isolation, "scorer.signal=entropy_of_attention"]);
            assert_eq!(output.status.code(), Some(2), "{}", said(&output));
            let words = [
                "`ahead`",
                "entropy_of_attention",
                "gradient_l2",
                "activation_l1",
                "weight_l2",
            ];
            contains(&output, &words);
            let output = run(command, &[isolation, "scorer.raw=hessian"]);
            assert_eq!(output.status.code(), Some(2), "{}", said(&output));
            contains(&output, &["`ahead`", "hessian", "gradient", "activation"]);
            // It has cost nothing.
            assert!(!scene.path("run").exists());
        }
    }
    let output = run("train", &["allocator.k=2"]);
    assert!(output.status.success(), "{}", said(&output));
}

/// An allocator in C of a later plugin-api, which answers these calls so.
fn later(needs: &str, answer: &str) -> String {
    let lowest = include_str!("../fixtures/plugins/lowest.c");
    let answers = "dynalora_answer(out, \"active\", DYNALORA_BOOLS, active, now->len);";
    let asked = "    if (plugin != NULL";
    assert!(lowest.contains(answers) && lowest.contains(asked));
    let needs = format!(
        "    if (plugin != NULL && dynalora_is(name, name_len, \"needs\")) {{\n        \
         dynalora_say(out, \"needs\", DYNALORA_JSON, {needs:?});\n        return DYNALORA_ANSWERED;\n    }}\n"
    );
    lowest
        .replacen(asked, &format!("{needs}{asked}"), 1)
        .replace(answers, &format!("{answers}\n    {answer};"))
        // As the header of that day has it.
        .replace("#include <dynalora_plugin.h>", "#include <dynalora_plugin.h>\n#undef DYNALORA_API_VERSION\n#define DYNALORA_API_VERSION \"1.7.0\"")
}

#[test]
fn a_plugin_of_a_newer_minor_version_runs_if_its_names_are_known() {
    let scene = Scene::new();
    scene.edit(
        "plugin = \"top-k\"\nk = \"50%\"",
        "plugin = \"lowest-c\"\nk = 3",
    );
    let met = "was built with dynalora-plugin-api 1.7.0, this program with 1.";
    let train = |name: &str, needs: &str, answer: &str| {
        let folder = scene.path(name);
        plugin_in_c(&folder, "later", &later(needs, answer))?;
        let output = format!("output={}", scene.path(&format!("{name}-run")).display());
        Some(scene.run(&[
            "train",
            "recipe.toml",
            "--plugin-dir",
            text(&folder),
            "--set",
            &output,
        ]))
    };
    let Some(output) = train("fine", "{\"signals\":[]}", "(void)0") else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    // What it needs and nobody has here, by its name.
    let Some(output) = train("needs", "{\"attention_maps\":true}", "(void)0") else {
        return;
    };
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(
        &output,
        &["it needs `attention_maps`", "signals", "held_back", met],
    );
    let Some(output) = train("signal", "{\"signals\":[\"entropy\"]}", "(void)0") else {
        return;
    };
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(&output, &["entropy", "weight_l2", met]);
    // What it answers and nobody understands here, too: nothing of an answer goes unheard.
    let momentum = "double x[11] = {0}; dynalora_answer(out, \"momentum\", DYNALORA_F64S, x, 11)";
    let Some(output) = train("answer", "{}", momentum) else {
        return;
    };
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(
        &output,
        &[
            "it answers with `momentum`",
            "active",
            "ask_again",
            "step 4",
            met,
        ],
    );
}
