//! The user's mistakes: each a one-screen error that says what to do, with exit code 2.

use dynalora_tests::{Scene, fixture};

/// Runs the recipe and expects exit code 2 and every part in a message of at most a screen.
fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}:\n{said}");
    assert!(said.lines().count() <= 24, "more than a screen:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    // What to do, in our words or in clap's.
    assert!(
        said.contains("help: ") || said.contains("Usage: "),
        "no way out:\n{said}"
    );
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

#[test]
fn a_precision_that_a_device_never_has() {
    let scene = Scene::new();
    for (device, precision, possible) in [
        ("cpu", "f16", "\"f32\", \"bf16\""),
        ("cpu", "tf32", "\"f32\", \"bf16\""),
        ("vulkan", "bf16", "\"f32\", \"f16\""),
        ("metal", "tf32", "\"f32\", \"f16\""),
        ("cuda", "fp8", "bf16"),
    ] {
        let [device, precision] = [
            format!("device={device}"),
            format!("model.precision={precision}"),
        ];
        let sets = ["--set", &*device, "--set", &*precision];
        for command in [&["train", "recipe.toml"], &["plan", "recipe.toml"]] {
            let arguments = [&command[..], &sets].concat();
            refused(&scene, &arguments, &["precision", possible]);
        }
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
        (
            "rank = 4",
            "kind = \"vera\"\nalpha = 8",
            &["adapter.alpha", "vera", "recipe.toml:"][..],
        ),
        (
            "rank = 4",
            "d_initial = 0.2",
            &["adapter.d_initial", "lora", "recipe.toml:"][..],
        ),
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
        (
            "plugin = \"activation\"",
            "plugin = \"top-k\"",
            &["top-k", "an allocator", "a scorer"][..],
        ),
        (
            "plugin = \"activation\"",
            "plugin = \"activaton\"",
            &["activaton", "activation", "searched"][..],
        ),
        (
            "plugin = \"activation\"",
            "plugin = \"activation\"\nnorm = \"l3\"",
            &["activation", "l3"][..],
        ),
        (
            "plugin = \"top-k\"\nk = \"50%\"",
            "plugin = \"threshold\"\np = 1.5",
            &["threshold", "1.5", "up to 1"][..],
        ),
        (
            "plugin = \"top-k\"\nk = \"50%\"",
            "plugin = \"threshold\"\np = 0",
            &["threshold", "above 0"][..],
        ),
        (
            "plugin = \"top-k\"\nk = \"50%\"",
            "plugin = \"threshold\"",
            &["threshold", "`p`"][..],
        ),
        ("k = \"50%\"", "k = \"120%\"", &["top-k", "120%"][..]),
        ("k = \"50%\"", "k = 0", &["top-k", "at least 1"][..]),
        (
            "[allocation]",
            "[allocation]\ninitial = \"random\"\ninitial_k = 99",
            &["99", "11", "initial_k"][..],
        ),
        (
            "kind = \"periodic\", every = 4",
            "kind = \"periodic\", every = 0",
            &["every", "recipe.toml:"][..],
        ),
        (
            "batch_size = 8",
            "tokens_per_batch = 63",
            &["tokens_per_batch", "63", "64 tokens", "recipe.toml:"][..],
        ),
        (
            "[checkpoint]",
            "[evaluation]\nbatch_tokens = 10\n[checkpoint]",
            &["batch_tokens", "10", "64 tokens", "recipe.toml:"][..],
        ),
        (
            "[checkpoint]",
            "[evaluation]\nmetric = \"pearson\"\n[checkpoint]",
            &["pearson", "accuracy", "data.metrics", "recipe.toml:"][..],
        ),
        (
            "train = \"train.csv\"",
            "task = \"colla\"",
            &["colla", "cola", "recipe.toml:"][..],
        ),
        (
            "train = \"train.csv\"",
            "train = \"train.csv\"\ntask = \"cola\"",
            &["both given", "recipe.toml:"][..],
        ),
        (
            "output = ",
            "outptu = ",
            &["outptu", "output", "recipe.toml:"][..],
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
    // Whole, but not what they should be.
    for (file, bytes) in [
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    ] {
        copy();
        std::fs::write(model.join(file), bytes).expect("it writes");
        refused(&scene, &arguments, &[file]);
    }
    copy();
    let config = std::fs::read_to_string(model.join("config.json")).expect("it is there");
    std::fs::write(
        model.join("config.json"),
        config.replace("\"bert\"", "\"t5\""),
    )
    .expect("it writes");
    refused(&scene, &arguments, &["t5", "roberta"]);
    std::fs::write(
        model.join("config.json"),
        config.replace("\"hidden_size\": 32", "\"hidden_size\": 64"),
    )
    .expect("it writes");
    refused(&scene, &arguments, &["shape", "config.json"]);
    // What was found out with the model on the device leaves nothing in the way either.
    assert!(!scene.path("run").exists());
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
    refused(&scene, TRAIN, &["train.csv", "[data]"]);
    std::fs::create_dir(scene.path("train.csv")).expect("a temporary folder");
    refused(&scene, TRAIN, &["train.csv", "[data]"]);
    assert!(!scene.path("run").exists());
}

#[test]
fn bad_data_in_other_formats_and_places() {
    let scene = Scene::new();
    std::fs::remove_file(scene.path("dev.csv")).expect("it is there");
    refused(&scene, TRAIN, &["dev.csv", "[data]"]);

    let jsonl = r#"{"sentence": "one", "label": "a"}"#;
    for (name, bytes, parts) in [
        ("none.parquet", None, &["none.parquet", "[data]"][..]),
        (
            "damaged.parquet",
            Some("PAR1 and no more"),
            &["damaged.parquet", "write it again"][..],
        ),
        ("empty.parquet", Some(""), &["empty.parquet"][..]),
        (
            "damaged.jsonl",
            Some(&*format!("{jsonl}\n{}\n", &jsonl[..20])),
            &["damaged.jsonl", "line 2", "not a JSON object"][..],
        ),
        (
            "array.jsonl",
            Some(&*format!("[{jsonl}]")),
            &["array.jsonl", "jq -c"][..],
        ),
        (
            "short.tsv",
            Some("sentence\tlabel\n\"one\ta\ntwo\n"),
            &["short.tsv", "line 3", "1 columns where 2"][..],
        ),
        ("data.xlsx", Some("PK"), &["data.xlsx", "data.format"][..]),
    ] {
        let scene = Scene::new();
        if let Some(bytes) = bytes {
            scene.write(name, bytes);
        }
        scene.edit("train = \"train.csv\"", &format!("train = {name:?}"));
        refused(&scene, TRAIN, parts);
        // A plan needs the names of the classes, which are in that file.
        refused(&scene, &["plan", "recipe.toml"], parts);
    }
    // A class for every row, each as long as a text.
    let scene = Scene::new();
    let rows: String = (0..60)
        .map(|row| format!("{row},text,{}\n", format!("class {row} ").repeat(40)))
        .collect();
    scene.write("train.csv", &format!("id,sentence,label\n{rows}"));
    refused(
        &scene,
        TRAIN,
        &["dev.csv", "line 2", "is none of the classes"],
    );
}

#[test]
fn bad_tasks() {
    let scene = Scene::new();
    let columns =
        "train = \"train.csv\"\nvalidation = \"dev.csv\"\n[data.columns]\ntext = \"sentence\"";
    let task = |task: &str, dir: &str| {
        scene.edit(columns, &format!("task = {task:?}\ndir = {dir:?}"));
    };
    task("rte", "no/such");
    refused(&scene, TRAIN, &["no/such", "`data.dir`"]);
    std::fs::create_dir(scene.path("glue")).expect("a temporary folder");
    task("rte", "glue");
    refused(
        &scene,
        TRAIN,
        &["glue", "no train file of `rte`", "train.tsv"],
    );
    scene.write(
        "glue/train.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tmaybe\n",
    );
    refused(
        &scene,
        TRAIN,
        &["glue/train.tsv", "line 2", "maybe", "entailment"],
    );
}

#[test]
fn impossible_plans() {
    let scene = Scene::new();
    for (active, parts) in [
        ("12", &["--active 12", "11 modules", "1 to 11"][..]),
        ("0", &["--active 0", "1 to 11"][..]),
    ] {
        refused(&scene, &["plan", "recipe.toml", "--active", active], parts);
    }
    let layers = ["plan", "recipe.toml", "--set", "allocation.unit=layer"];
    // Two layers, and the pooler on its own.
    refused(
        &scene,
        &[&layers[..], &["--active", "4"]].concat(),
        &["--active 4", "3 layers"],
    );
    let random = "allocation.initial=random";
    let count = "allocation.initial_k=4";
    refused(
        &scene,
        &[&layers[..], &["--set", random, "--set", count]].concat(),
        &["initial_k", "4", "3"],
    );
}

#[test]
fn adapters_that_cannot_be_read() {
    let evaluate: &[&str] = &["evaluate", "adapter", "--recipe", "recipe.toml"];
    let vera = r#"{"peft_type": "VERA", "r": 16, "save_projection": false}"#;
    for (config, parts) in [
        (
            vera,
            &[
                "adapter_config.json",
                "projections",
                "save_projection = True",
            ][..],
        ),
        (
            r#"{"peft_type": "VERA", "r": 16, "bias": "all"}"#,
            &["bias", "\"none\""][..],
        ),
        (r#"{"peft_type": "VERA"}"#, &["`r`"][..]),
        (r#"{"peft_type": "IA3"}"#, &["IA3", "LORA and VERA"][..]),
        (
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_qalora": true}"#,
            &["use_qalora", "false"][..],
        ),
        (
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true}"#,
            &["lora_magnitude", "not whole"][..],
        ),
        ("{", &["adapter_config.json"][..]),
    ] {
        let scene = Scene::new();
        std::fs::create_dir(scene.path("adapter")).expect("a temporary folder");
        scene.write("adapter/adapter_config.json", config);
        // A whole LoRA adapter's tensors, which lack VeRA's.
        let tensors = "tiny-bert/golden/query-value/trained/adapter_model.safetensors";
        std::fs::copy(
            fixture(tensors),
            scene.path("adapter/adapter_model.safetensors"),
        )
        .expect("a fixture");
        refused(&scene, evaluate, parts);
    }
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
