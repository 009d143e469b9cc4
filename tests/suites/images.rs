//! Vision transformers with the built program: training, answers, resuming, merging, and what is refused.

use dynalora_tests::pictures::write_stripes;
use dynalora_tests::{Scene, contains, fixture};
use serde_json::{Value, json};

/// A scene whose recipe trains a model of images on stripes, `data` in place of its folders where that is given.
fn scene(model: &str, data: &str) -> Scene {
    let scene = Scene::new();
    write_stripes(&scene.path("stripes/train"), 24, 0);
    write_stripes(&scene.path("stripes/validation"), 10, 1000);
    let data = match data {
        "" => "dir = \"stripes\"",
        data => data,
    };
    let text = scene.recipe_text();
    let (head, rest) = text.split_once("[data]").expect("a table");
    let (_, rest) = rest.split_once("[adapter]").expect("a table");
    let recipe = format!("{head}[data]\nformat = \"images\"\n{data}\n\n[adapter]{rest}")
        .replace("max_length = 64\n", "")
        .replace(
            &fixture("tiny-bert").display().to_string(),
            &fixture(model).display().to_string(),
        )
        .replace("[\"query\", \"value\", \"dense\"]", "\"all-linear\"");
    scene.write("recipe.toml", &recipe);
    scene
}

fn json_file(scene: &Scene, path: &str) -> Value {
    let text = std::fs::read_to_string(scene.path(path)).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

const LONG: [&str; 3] = [
    "train.steps=60",
    "train.learning_rate=0.01",
    "evaluation.every=30",
];

#[test]
fn images_are_learnt_and_answered() {
    let vits = [
        "encoder.layer.1.attention.attention.query.weight",
        "embeddings.cls_token",
    ];
    // What nothing reads is there too.
    let clips = [
        "encoder.layers.1.self_attn.q_proj.weight",
        "post_layernorm.bias",
    ];
    for (model, class, prefix, tensors) in [
        ("tiny-vit", "ViTForImageClassification", "vit", vits),
        ("tiny-deit", "DeiTForImageClassification", "deit", vits),
        (
            "tiny-clip",
            "CLIPForImageClassification",
            "vision_model",
            clips,
        ),
        (
            "tiny-clip-vision",
            "CLIPForImageClassification",
            "vision_model",
            clips,
        ),
    ] {
        let scene = scene(model, "");
        scene.train("run", &LONG);
        let records = scene.records("run", "metrics.jsonl");
        let evaluations: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == "evaluation")
            .collect();
        let measured = evaluations[1]["metrics"]["accuracy"].as_f64();
        let measured = measured.expect("a number");
        assert!(measured > 0.8, "{model}: accuracy {measured}");

        // What is exported says the same.
        let run = scene.path("run").display().to_string();
        let scores: Value =
            serde_json::from_str(&scene.ok(&["evaluate", &run, "--json"])).expect("JSON");
        assert_eq!(scores[0]["metrics"]["accuracy"], json!(measured));
        assert_eq!(scores[0]["examples"], 20);
        let config = json_file(&scene, "run/adapter/adapter_config.json");
        assert_eq!(config["task_type"], Value::Null);
        assert_eq!(config["modules_to_save"], json!(["classifier"]));
        let learnt = json_file(&scene, "run/adapter/dynalora.json");
        assert_eq!(learnt["labels"], json!(["lying", "standing"]));
        assert!(learnt["images"].is_string() && learnt["tokenizer"].is_null());

        // Files are answered one by one as they were all at once.
        let (mut right, mut lines) = (0, 0);
        for class in ["lying", "standing"] {
            let files = (0..10).map(|number| {
                let file = scene.path(&format!("stripes/validation/{class}/{number:03}.bmp"));
                file.display().to_string()
            });
            let files: Vec<String> = files.collect();
            let mut arguments = vec!["predict", &run];
            arguments.extend(files.iter().map(String::as_str));
            for line in scene.ok(&arguments).lines() {
                let said = line.split('\t').next();
                right += usize::from(said == Some(class));
                lines += 1;
            }
        }
        assert_eq!(lines, 20);
        assert!(
            (right as f64 / 20.0 - measured).abs() < 1e-9,
            "{model}: {right}"
        );

        // Merged, it is a model for Transformers, under the names that its checkpoint has.
        let merged = scene.path("merged").display().to_string();
        scene.ok(&["merge", &run, "--output", &merged]);
        let config = json_file(&scene, "merged/config.json");
        assert_eq!(config["architectures"], json!([class]));
        assert!(scene.path("merged/preprocessor_config.json").is_file());
        let weights = std::fs::read(scene.path("merged/model.safetensors")).expect("weights");
        let weights = safetensors::SafeTensors::deserialize(&weights).expect("safetensors");
        let names = tensors.map(|name| format!("{prefix}.{name}"));
        for name in names
            .iter()
            .map(String::as_str)
            .chain(["classifier.weight"])
        {
            assert!(weights.names().contains(&name), "{name}");
        }
        let name = format!("model.name={merged}");
        let still = [
            "train.steps=1",
            "train.learning_rate=1e-30",
            "train.weight_decay=0",
        ];
        scene.train("again", &[&[name.as_str()], &still[..]].concat());
        let again = scene.path("again").display().to_string();
        let of_merged: Value =
            serde_json::from_str(&scene.ok(&["evaluate", &again, "--json"])).expect("JSON");
        let loss = |scores: &Value| scores[0]["loss"].as_f64().expect("a number");
        let (ours, theirs) = (loss(&scores), loss(&of_merged));
        assert!(
            (ours - theirs).abs() < 1e-5 * ours,
            "{ours}, merged {theirs}"
        );
    }
}

#[test]
fn a_run_on_images_resumes_bit_by_bit() {
    let sets = [
        "train.gradient_accumulation=2",
        "allocation.unit=layer",
        "allocator.k=1",
    ];
    scene("tiny-vit", "").assert_resumes("layers", &sets);
    let cached = [
        "train.cache_frozen_prefix=true",
        "allocation.schedule={ kind = \"never\" }",
        "adapter.layers_to_transform=1",
        "train.epochs=3",
        "train.steps=9",
    ];
    let (one, two) = (scene("tiny-deit", ""), scene("tiny-deit", ""));
    let without: Vec<&str> = cached[1..3].to_vec();
    one.train("run", &without);
    let mut with = without.clone();
    with.push(cached[0]);
    two.train("run", &with);
    let adapter = |scene: &Scene| {
        std::fs::read(scene.path("run/adapter/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(
        adapter(&one) == adapter(&two),
        "the cache changed something"
    );
}

#[test]
fn parquet_files_of_images_are_read_by_their_columns() {
    let parquet = fixture("images/datasets.parquet").display().to_string();
    let data = format!("train = {parquet:?}\nvalidation = {parquet:?}");
    let scene = scene("tiny-vit", &data);
    scene.train(
        "run",
        &["train.steps=2", "allocation.schedule={kind=\"never\"}"],
    );
    let learnt = json_file(&scene, "run/adapter/dynalora.json");
    assert_eq!(learnt["labels"], json!(["zebra", "cat", "emu"]));
    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--force",
        "--set",
        "data.columns={image=\"picture\"}",
    ]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["picture", "image", "label"]);
}

#[test]
fn other_images_under_the_same_names_are_not_gone_on_with() {
    let scene = scene("tiny-vit", "");
    scene.train("run", &["train.steps=4"]);
    let provenance = json_file(&scene, "run/provenance.json");
    let inputs = &provenance["sittings"][0]["inputs"];
    assert!(inputs["data.train"]["sha256"].is_string());
    assert!(inputs["preprocessor"]["sha256"].is_string() && inputs["tokenizer"].is_null());
    // As a kill between the last checkpoint and the end leaves it.
    std::fs::remove_file(scene.path("run/summary.json")).expect("a finished run");
    std::fs::remove_dir_all(scene.path("run/adapter")).expect("a finished run");
    std::fs::copy(
        scene.path("stripes/train/lying/001.bmp"),
        scene.path("stripes/train/standing/001.bmp"),
    )
    .expect("it copies");
    let output = format!("output={}", scene.path("run").display());
    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--resume",
        "--set",
        &output,
        "--set",
        "train.steps=4",
    ]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["data.train", "stripes/train"]);
}

#[test]
fn what_does_not_fit_images_is_refused_by_name() {
    let texts = format!("model.name={}", fixture("tiny-bert").display());
    for (data, sets, parts) in [
        (
            "",
            vec![texts.as_str()],
            &["are images", "bert", "reads texts", "vit"][..],
        ),
        (
            "",
            vec!["model.max_length=32"],
            &["model.max_length", "images"],
        ),
        ("", vec!["data.header=true"], &["data.header", "images"]),
        (
            "",
            vec!["data.columns={text=\"a\"}"],
            &["data.columns.text", "columns.image"],
        ),
        (
            "",
            vec!["data.columns={image=\"a\"}"],
            &["folders have no columns"],
        ),
        (
            "",
            vec!["data.problem=regression"],
            &["data.problem", "images"],
        ),
        ("", vec!["data.train=stripes"], &["data.dir", "data.train"]),
        ("", vec!["data.labels=[\"a\", \"b\"]"], &["lying", "a, b"]),
        ("", vec!["data.task=cola"], &["data.format", "cola"]),
        ("dir = \"nowhere\"", vec![], &["nowhere", "no such folder"]),
        (
            "train = \"stripes/train/lying\"",
            vec![],
            &["lying", "folder"],
        ),
    ] {
        let scene = scene("tiny-vit", data);
        let mut arguments = vec!["train", "recipe.toml"];
        for set in &sets {
            arguments.extend(["--set", set]);
        }
        let output = scene.run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{data} {sets:?}");
        contains(&output, parts);
    }
    // And the other way round: texts for a model of images.
    let scene = Scene::new();
    let name = format!("model.name={}", fixture("tiny-vit").display());
    let output = scene.run(&["train", "recipe.toml", "--set", &name]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &["are texts", "vit", "reads images", "format = \"images\""],
    );
    let linears = "adapter.targets=all-linear";
    let output = scene.run(&["plan", "recipe.toml", "--set", &name, "--set", linears]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["are texts"]);
}

#[test]
fn an_image_that_is_none_or_of_another_size_is_refused() {
    let scene = scene("tiny-vit", "");
    scene.train("run", &["train.steps=2"]);
    let run = scene.path("run").display().to_string();
    let output = scene.run(&["predict", &run, "recipe.toml"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["recipe.toml", "PNG"]);

    // A processor that gives another size than the model reads.
    let model = scene.path("model");
    std::fs::create_dir(&model).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny-vit").join(name), model.join(name)).expect("it copies");
    }
    let name = format!("model.name={}", model.display());
    let output = scene.run(&["train", "recipe.toml", "--force", "--set", &name]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["preprocessor_config.json"]);
    let made = std::fs::read_to_string(fixture("tiny-vit/preprocessor_config.json"));
    let made = made
        .expect("a file")
        .replace("\"height\": 16", "\"height\": 12");
    scene.write("model/preprocessor_config.json", &made);
    let output = scene.run(&["train", "recipe.toml", "--force", "--set", &name]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["12x16", "16x16", "preprocessor_config.json"]);
    // The adapter says what its images were made by.
    let other = std::fs::read_to_string(fixture("tiny-vit/preprocessor_config.json"));
    let other = other
        .expect("a file")
        .replace("\"resample\": 2", "\"resample\": 3");
    scene.write("model/preprocessor_config.json", &other);
    let output = scene.run(&["evaluate", &run, "--set", &name]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &["not what the adapter was trained with", "images"],
    );
}
