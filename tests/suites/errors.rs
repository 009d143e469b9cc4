//! The user's mistakes: each a one-screen error that says what to do, with exit code 2.

use dynalora_tests::{Scene, fixture};

/// Runs the recipe and expects exit code 2 and every part in a message of at most a screen.
fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}:\n{said}");
    assert!(said.lines().count() <= 40, "more than a screen:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    // Long lines are wrapped wherever they end.
    let flat = |text: &str| {
        text.split_whitespace()
            .filter(|word| *word != "│")
            .collect::<String>()
    };
    for part in parts {
        assert!(
            flat(&said).contains(&flat(part)),
            "{part:?} is missing:\n{said}"
        );
    }
}

const TRAIN: &[&str] = &["train", "recipe.toml"];

#[test]
fn bad_recipes() {
    for (from, to, parts) in [
        (
            "rank = 4",
            "rnak = 4",
            &["rnak", "rank", "recipe.toml:"][..],
        ),
        ("rank = 4", "rank = 0", &["rank", "recipe.toml:"][..]),
        ("rank = 4", "rank = \"four\"", &["rank", "recipe.toml:"][..]),
        ("rank = 4", "rank = ", &["not valid TOML"][..]),
        (
            "steps = 12",
            "steps = 12\nepochs = 3",
            &["steps", "epochs"][..],
        ),
        (
            "targets = [\"query\"",
            "targets = [\"qeury\"",
            &["qeury", "query"][..],
        ),
        (
            "plugin = \"top-k\"",
            "plugin = \"topk\"",
            &["topk", "top-k", "searched"][..],
        ),
        (
            "plugin = \"top-k\"",
            "plugin = \"gradient\"",
            &["a scorer", "an allocator"][..],
        ),
        ("k = \"50%\"", "k = 99", &["99", "11"][..]),
        ("k = \"50%\"", "k = \"none\"", &["top-k", "k"][..]),
        ("k = \"50%\"", "q = 3", &["top-k", "q"][..]),
        (
            "text = \"sentence\"",
            "text = \"setnence\"",
            &["setnence", "sentence"][..],
        ),
        ("device = \"cpu\"", "device = \"tpu\"", &["tpu"][..]),
        (
            "plugin = \"top-k\"",
            "plugin = \"no/such.so\"",
            &["no/such.so"][..],
        ),
    ] {
        let scene = Scene::new();
        scene.edit(from, to);
        refused(&scene, TRAIN, parts);
        assert!(!scene.path("run").exists(), "{to:?} left a run behind");
    }
}

#[test]
fn a_recipe_that_is_not_there_and_bad_sets() {
    let scene = Scene::new();
    refused(&scene, &["train", "none.toml"], &["none.toml"]);
    refused(
        &scene,
        &["train", "recipe.toml", "--set", "adapter.rnak=3"],
        &["rnak"],
    );
    refused(
        &scene,
        &["train", "recipe.toml", "--set", "nothing"],
        &["nothing"],
    );
    refused(&scene, &["train"], &["RECIPE"]);
}

#[test]
fn damaged_models() {
    let scene = Scene::new();
    let model = scene.path("model");
    let copy = || {
        let _ = std::fs::remove_dir_all(&model);
        std::fs::create_dir_all(&model).expect("a temporary folder");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixture("tiny-bert").join(file), model.join(file)).expect("a fixture");
        }
    };
    let name = format!("model.name={}", model.display());
    let arguments = ["train", "recipe.toml", "--set", &name];
    refused(
        &scene,
        &["train", "recipe.toml", "--set", "model.name=/no/such"],
        &["/no/such"],
    );
    // A Hub id, and no way to the Hub.
    refused(
        &scene,
        &["train", "recipe.toml", "--set", "model.name=org/none"],
        &["org/none"],
    );
    for (file, parts) in [
        ("config.json", &["config.json"][..]),
        ("model.safetensors", &["model.safetensors"][..]),
        ("tokenizer.json", &["tokenizer.json"][..]),
    ] {
        copy();
        std::fs::remove_file(model.join(file)).expect("it is there");
        refused(&scene, &arguments, parts);
        copy();
        let bytes = std::fs::read(model.join(file)).expect("it is there");
        std::fs::write(model.join(file), &bytes[..bytes.len() / 2]).expect("it writes");
        refused(&scene, &arguments, parts);
    }
    copy();
    let config = std::fs::read_to_string(model.join("config.json")).expect("it is there");
    std::fs::write(
        model.join("config.json"),
        config.replace("\"bert\"", "\"gpt2\""),
    )
    .expect("it writes");
    refused(&scene, &arguments, &["gpt2", "roberta"]);
    std::fs::write(
        model.join("config.json"),
        config.replace("\"hidden_size\": 32", "\"hidden_size\": 64"),
    )
    .expect("it writes");
    refused(&scene, &arguments, &["shape", "config.json"]);
}

#[test]
fn bad_data() {
    for (rows, parts) in [
        ("", &["train.csv"][..]),
        ("id,sentence,label\n", &["train.csv"][..]),
        (
            "id,sentence,label\n1,one,a\n2,two\n3,three,b\n",
            &["train.csv", "line 3"][..],
        ),
        (
            "id,sentence,label\n1,one,a\n2,,b\n",
            &["train.csv", "line 3"][..],
        ),
        ("id,sentence,label\n1,one,a\n2,two,a\n", &["class"][..]),
    ] {
        let scene = Scene::new();
        scene.write("train.csv", rows);
        refused(&scene, TRAIN, parts);
    }
    let scene = Scene::new();
    scene.write("dev.csv", "id,sentence,label\n1,one,comma\n2,two,unknown\n");
    refused(&scene, TRAIN, &["dev.csv", "line 3", "unknown"]);
    let scene = Scene::new();
    std::fs::write(
        scene.path("train.csv"),
        b"id,sentence,label\n1,\xff\xfe,a\n",
    )
    .expect("it writes");
    refused(&scene, TRAIN, &["train.csv", "UTF-8"]);
    std::fs::remove_file(scene.path("train.csv")).expect("it is there");
    refused(&scene, TRAIN, &["train.csv"]);
}

#[test]
fn runs_that_are_taken_or_are_none() {
    let scene = Scene::new();
    let output = format!("output={}", scene.path("run").display());
    scene.ok(&["train", "recipe.toml", "--quiet", "--set", &output]);
    refused(
        &scene,
        &["train", "recipe.toml", "--set", &output],
        &["run", "--resume"],
    );
    refused(
        &scene,
        &[
            "train",
            "recipe.toml",
            "--set",
            &output,
            "--set",
            "seed=9",
            "--resume",
        ],
        &["seed = 9", "seed = 3"],
    );
    std::fs::create_dir(scene.path("empty")).expect("a temporary folder");
    refused(&scene, &["evaluate", "empty"], &["not a run"]);
    refused(&scene, &["evaluate", "none"], &["none"]);
    refused(
        &scene,
        &["evaluate", "run", "--split", "test"],
        &["test", "validation"],
    );
}
