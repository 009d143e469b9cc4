//! Adapters and base models that are not what they seem: each is read whole, or refused by name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dynalora_tests::drawn::difference;
use dynalora_tests::{Scene, contains, fixture, flat, said};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A change to a model's folder, and what is said of it.
type Misfit<'a> = (&'a dyn Fn(&Path), &'a [&'a str]);
/// A model, and names and shapes of the head of two classes that it may have.
type Headed = (&'static str, &'static [(&'static str, &'static [usize])]);
/// A tensor of a file: name, shape, bytes of f32.
type Stored = (String, Vec<usize>, Vec<u8>);

fn read_tensors(path: &Path) -> Vec<Stored> {
    let bytes = std::fs::read(path).expect("a file of tensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    let stored = tensors.iter().map(|(name, view)| {
        assert_eq!(view.dtype(), Dtype::F32);
        (name.to_owned(), view.shape().to_vec(), view.data().to_vec())
    });
    stored.collect()
}

fn write_tensors(path: &Path, tensors: &[Stored]) {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes of that shape");
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("it writes");
}

fn filled(name: &str, shape: &[usize], value: f32) -> Stored {
    let count: usize = shape.iter().product();
    let bytes = value.to_le_bytes().repeat(count);
    (name.to_owned(), shape.to_vec(), bytes)
}

fn edit_tensors(path: &Path, edit: impl FnOnce(&mut Vec<Stored>)) {
    let mut tensors = read_tensors(path);
    edit(&mut tensors);
    write_tensors(path, &tensors);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a temporary folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it copies");
        }
    }
}

/// A scene with a copy of PEFT's trained adapter, for the classes of its data.
struct Adapter {
    scene: Scene,
    folder: PathBuf,
}

const TRAINED: &str = "tiny-bert/golden/query-value/trained";

impl Adapter {
    fn new() -> Self {
        Adapter::of(TRAINED)
    }

    fn of(golden: &str) -> Self {
        let scene = Scene::new();
        let folder = scene.path("adapter");
        copy_folder(&fixture(golden), &folder);
        Adapter { scene, folder }
    }

    fn tensors(&self) -> PathBuf {
        self.folder.join("adapter_model.safetensors")
    }

    fn configure(&self, key: &str, value: Value) {
        edit_json(&self.folder.join("adapter_config.json"), key, Some(value));
    }

    fn loss(&self) -> f64 {
        loss(
            &self.scene,
            &["evaluate", "adapter", "--recipe", "recipe.toml", "--json"],
        )
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        refused(
            &self.scene,
            &["evaluate", "adapter", "--recipe", "recipe.toml"],
            parts,
        );
    }
}

fn edit_json(path: &Path, key: &str, value: Option<Value>) {
    let text = std::fs::read_to_string(path).expect("a JSON file");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    let map = json.as_object_mut().expect("an object");
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
    std::fs::write(path, json.to_string()).expect("it writes");
}

fn loss(scene: &Scene, arguments: &[&str]) -> f64 {
    let scores: Value = serde_json::from_str(&scene.ok(arguments)).expect("JSON");
    scores[0]["loss"].as_f64().expect("a loss")
}

/// Runs the program, which must refuse with exit code 2 and say all `parts`.
#[track_caller]
fn refused(scene: &Scene, arguments: &[&str], parts: &[&str]) {
    let output = scene.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}:\n{said}");
    // Lines are broken wherever they are full.
    let plain: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let bare: String = said
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '│')
        .collect();
    for part in parts {
        let squeezed: String = part.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(
            plain.contains(part) || bare.contains(&squeezed),
            "{part:?} is not in:\n{said}"
        );
    }
}

const QUERY: &str = "base_model.model.bert.encoder.layer.0.attention.self.query";

#[test]
fn a_tensor_that_nobody_reads_is_refused_by_name() {
    let embedding = "base_model.model.bert.embeddings.word_embeddings";
    let cases: Vec<(Vec<Stored>, &str)> = vec![
        (
            vec![filled(&format!("{QUERY}.base_layer.bias"), &[32], 0.5)],
            "query.base_layer.bias",
        ),
        (
            vec![filled(&format!("{QUERY}.lora_B.bias"), &[32], 1.0)],
            "lora_bias",
        ),
        (
            vec![filled(
                &format!("{QUERY}.lora_magnitude_vector"),
                &[32],
                1.0,
            )],
            "use_dora",
        ),
        (
            vec![filled(
                &format!("{embedding}.lora_embedding_A"),
                &[4, 200],
                0.1,
            )],
            "word_embeddings.lora_embedding_B",
        ),
        (
            vec![
                filled(&format!("{embedding}.lora_A.weight"), &[4, 200], 0.1),
                filled(&format!("{embedding}.lora_B.weight"), &[32, 4], 0.1),
            ],
            "word_embeddings.lora_embedding_A",
        ),
        (
            vec![filled(
                &format!("{embedding}.token_adapter.trainable_tokens_delta"),
                &[3, 32],
                1.0,
            )],
            "trainable_tokens_delta",
        ),
        (
            vec![filled(
                "base_model.model.bert.encoder.layer.0.output.LayerNorm.weight",
                &[32],
                2.0,
            )],
            "LayerNorm.weight",
        ),
        (
            vec![filled(
                "base_model.model.pre_classifier.weight",
                &[32, 32],
                0.0,
            )],
            "pre_classifier",
        ),
        (
            vec![filled("bert.classifier.weight", &[2, 32], 0.0)],
            "bert.classifier.weight",
        ),
        // Half a module, and half a pooler.
        (
            vec![filled(
                "base_model.model.bert.encoder.layer.0.attention.self.key.lora_B.weight",
                &[32, 4],
                1.0,
            )],
            "key.lora_B.weight",
        ),
        (
            vec![filled(
                "base_model.model.bert.encoder.layer.0.attention.self.key.lora_A.weight",
                &[4, 32],
                1.0,
            )],
            "key.lora_B.weight",
        ),
        (
            vec![filled(
                "base_model.model.bert.pooler.dense.bias",
                &[32],
                1.0,
            )],
            "pooler.dense.weight",
        ),
    ];
    for (more, part) in cases {
        let adapter = Adapter::new();
        edit_tensors(&adapter.tensors(), |tensors| tensors.extend(more));
        adapter.refused(&["adapter_model.safetensors", part]);
    }
}

/// PEFT saves a table of embeddings with the pair beside it, where it knows the table by its name.
#[test]
fn a_table_that_is_saved_with_its_pair_is_the_base_models_or_refused() {
    let adapter = Adapter::of("tiny-bert/golden/embeddings/trained");
    let loss = adapter.loss();
    let words = "embeddings.word_embeddings.weight";
    let of_base = read_tensors(&fixture("tiny-bert/model.safetensors"));
    let of_base = of_base.into_iter().find(|(name, ..)| name == words);
    let (_, shape, bytes) = of_base.expect("a table");
    let name = "base_model.model.bert.embeddings.word_embeddings.base_layer.weight";
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.push((name.to_owned(), shape.clone(), bytes));
    });
    assert_eq!(adapter.loss(), loss);
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.retain(|(other, ..)| other != name);
        tensors.push(filled(name, &shape, 0.25));
    });
    adapter.refused(&[name, "another table of embeddings", "save_embedding_layers"]);
}

#[test]
fn an_adapter_of_no_module_or_half_of_them_is_refused() {
    let adapter = Adapter::new();
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.retain(|(name, ..)| !name.contains("lora_"))
    });
    adapter.refused(&["has no module", "lora_A"]);
    // Layer 1's in another spelling, or gone.
    let adapter = Adapter::new();
    edit_tensors(&adapter.tensors(), |tensors| {
        for (name, ..) in tensors {
            if name.contains("layer.1.") {
                *name = name.replace(".lora_A.weight", ".loraA.weight");
            }
        }
    });
    adapter.refused(&["layer.1", "lora"]);
    let adapter = Adapter::new();
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.retain(|(name, ..)| !name.contains("layer.1."))
    });
    adapter.refused(&["target_modules", "layer.1.attention.self.query"]);
    // Without its head, over a base model that has none.
    let adapter = Adapter::new();
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.retain(|(name, ..)| !name.contains("classifier"))
    });
    adapter.refused(&["classifier.weight", "the adapter is not whole"]);
}

#[test]
fn names_of_a_state_dict_are_read() {
    let adapter = Adapter::new();
    let whole = adapter.loss();
    edit_tensors(&adapter.tensors(), |tensors| {
        for (name, ..) in tensors {
            *name = name
                .replace(".lora_A.weight", ".lora_A.default.weight")
                .replace(".lora_B.weight", ".lora_B.default.weight")
                .replace("classifier.", "classifier.modules_to_save.default.");
        }
    });
    assert_eq!(adapter.loss(), whole);
    // The same tensor under both names.
    edit_tensors(&adapter.tensors(), |tensors| {
        tensors.push(filled(&format!("{QUERY}.lora_A.weight"), &[4, 32], 1.0));
    });
    adapter.refused(&["query.lora_A", "two names"]);
}

#[test]
fn keys_that_change_the_answer_are_followed_or_refused() {
    for (key, value) in [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["x"])),
        ("alora_invocation_tokens", json!([1])),
        ("a_key_of_tomorrow", json!("on")),
    ] {
        let adapter = Adapter::new();
        adapter.configure(key, value);
        adapter.refused(&[key, "adapter_config.json"]);
    }
    // One of DoRA's has its vectors.
    let adapter = Adapter::new();
    adapter.configure("use_dora", json!(true));
    adapter.refused(&["query.lora_magnitude_vector", "adapter_model.safetensors"]);
    // A layer without a bias has none that was trained.
    let adapter = Adapter::of("tiny-bert/golden/bias/trained");
    let own = adapter.loss();
    adapter.configure("bias", json!("none"));
    adapter.refused(&["base_layer.bias", "lora_only"]);
    adapter.configure("bias", json!("lora_only"));
    assert_eq!(adapter.loss(), own);
    let adapter = Adapter::new();
    let plain = adapter.loss();
    for (key, value) in [
        ("bias", json!("lora_only")),
        ("rank_pattern", Value::Null),
        ("use_rslora", Value::Null),
        ("init_lora_weights", json!("gaussian")),
        ("a_key_of_tomorrow", Value::Null),
    ] {
        adapter.configure(key, value);
        assert_eq!(adapter.loss(), plain, "{key}");
    }
    // Rank 4: alpha / √4 at half the alpha is alpha / 4.
    adapter.configure("use_rslora", json!(true));
    assert_ne!(adapter.loss(), plain);
    adapter.configure("lora_alpha", json!(4));
    assert_eq!(adapter.loss(), plain);
}

#[test]
fn adaloras_pairs_are_lora_which_is_said() {
    let adapter = Adapter::of("tiny-bert/golden/adalora/adapter");
    let arguments = [
        "evaluate",
        "adapter",
        "--recipe",
        "recipe.toml",
        "--json",
        "-v",
    ];
    let output = adapter.scene.run(&arguments);
    contains(&output, &["AdaLoRA's pairs are read as LoRA's", "penalty"]);
    let loss = adapter.loss();
    // The same values under the names of a `state_dict`.
    edit_tensors(&adapter.tensors(), |tensors| {
        for (name, ..) in tensors {
            for part in ["lora_A", "lora_B", "lora_E"] {
                *name = name.replace(part, &format!("{part}.default"));
            }
        }
    });
    assert_eq!(adapter.loss(), loss);
    let of = |edit: &dyn Fn(&Adapter)| {
        let adapter = Adapter::of("tiny-bert/golden/adalora/adapter");
        edit(&adapter);
        adapter
    };
    let value = "encoder.layer.0.attention.self.value";
    let without_e = of(&|it| {
        edit_tensors(&it.tensors(), |tensors| {
            tensors.retain(|(name, ..)| !name.contains(&format!("{value}.lora_E")));
        });
    });
    without_e.refused(&["value.lora_E"]);
    // Three of four, where the tensors have two.
    let mut pattern = json!({ format!("bert.{value}.lora_E"): [true, true, false, true] });
    of(&|it| it.configure("rank_pattern", pattern.clone())).refused(&["lora_", "has shape"]);
    pattern = json!({ "bert.encoder.layer.7.output.dense.lora_E": [true, true, false, true] });
    of(&|it| it.configure("rank_pattern", pattern.clone()))
        .refused(&["rank_pattern names bert.encoder.layer.7.output.dense"]);
    of(&|it| it.configure("init_r", json!(5))).refused(&["rank_pattern", "init_r is 5"]);
    of(&|it| it.configure("peft_type", json!("LORA"))).refused(&["adapter_config.json"]);
}

#[test]
fn a_saved_pooler_is_the_adapters_whatever_the_recipe_says() {
    let scene = Scene::new();
    scene.edit(
        "targets = [\"query\", \"value\", \"dense\"]",
        "targets = [\"query\"]",
    );
    scene.train("run", &["model.train_pooler=true", "train.steps=20"]);
    let own = loss(&scene, &["evaluate", "run/adapter", "--json"]);
    let other = [
        "evaluate",
        "run/adapter",
        "--recipe",
        "recipe.toml",
        "--json",
    ];
    assert_eq!(loss(&scene, &other), own);
    // And one without a pooler of its own has the base model's.
    scene.train("frozen", &["train.steps=4"]);
    let own = loss(&scene, &["evaluate", "frozen/adapter", "--json"]);
    let other = [
        "evaluate",
        "frozen/adapter",
        "--recipe",
        "recipe.toml",
        "--set",
        "model.train_pooler=true",
        "--json",
    ];
    assert_eq!(loss(&scene, &other), own);
    // A pooler that it claims to have saved, and has not.
    let adapter = Adapter::new();
    adapter.configure("modules_to_save", json!(["classifier", "pooler"]));
    adapter.refused(&["bert.pooler.dense.weight"]);
}

#[test]
fn a_pickled_adapter_is_read_and_a_damaged_one_has_the_adapters_advice() {
    // As `save_pretrained(…, safe_serialization=False)` writes it.
    let adapter = Adapter::new();
    let loss = adapter.loss();
    let pickled = adapter.folder.join("adapter_model.bin");
    std::fs::copy(fixture("formats/adapter_model.bin"), &pickled).expect("it copies");
    std::fs::remove_file(adapter.tensors()).expect("it was there");
    assert_eq!(adapter.loss(), loss);
    // An adapter under another name.
    std::fs::write(&pickled, b"PK damaged").expect("it writes");
    adapter.refused(&[
        "adapter_model.bin is not a readable",
        "export the adapter again",
    ]);
    let adapter = Adapter::new();
    std::fs::write(adapter.tensors(), b"damaged").expect("it writes");
    adapter.refused(&["adapter_model.safetensors", "export the adapter again"]);
    let adapter = Adapter::new();
    adapter.configure("r", json!(3));
    adapter.refused(&["adapter_config.json", "shape"]);
}

/// A scene over a copy of a model, which the recipe names.
fn scene_of(model: &str) -> (Scene, PathBuf, String) {
    let scene = Scene::new();
    let folder = scene.path("model");
    copy_folder(&fixture(model), &folder);
    let set = format!("model.name={}", folder.display());
    (scene, folder, set)
}

#[test]
fn values_that_are_no_numbers_are_refused_by_name() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let adapter = Adapter::new();
        edit_tensors(&adapter.tensors(), |tensors| {
            let (.., bytes) = &mut tensors
                .iter_mut()
                .find(|(name, ..)| name.contains("lora_B"))
                .expect("one");
            bytes[8..12].copy_from_slice(&value.to_le_bytes());
        });
        adapter.refused(&["adapter_model.safetensors", "lora_B.weight", "element 2"]);
        for part in [
            "word_embeddings.weight",
            "layer.1.output.dense.bias",
            "embeddings.LayerNorm.weight",
        ] {
            let (scene, model, set) = scene_of("tiny-bert");
            edit_tensors(&model.join("model.safetensors"), |tensors| {
                let (.., bytes) = &mut tensors
                    .iter_mut()
                    .find(|(name, ..)| name.contains(part))
                    .expect("one");
                bytes[4..8].copy_from_slice(&value.to_le_bytes());
            });
            refused(
                &scene,
                &["train", "recipe.toml", "--set", &set],
                &["model.safetensors", part, "element 1"],
            );
        }
    }
}

#[test]
fn a_row_of_zeros_has_no_direction() {
    let (scene, model, set) = scene_of("tiny-bert");
    edit_tensors(&model.join("model.safetensors"), |tensors| {
        let (.., bytes) = &mut tensors
            .iter_mut()
            .find(|(name, ..)| name.ends_with("layer.1.attention.self.value.weight"))
            .expect("one");
        bytes[2 * 4 * 32..3 * 4 * 32].fill(0);
    });
    let sets = ["--set", &set, "--set", "adapter.use_dora=true"];
    refused(
        &scene,
        &[&["train", "recipe.toml"], &sets[..]].concat(),
        &[
            "row 2",
            "layer.1.attention.self.value",
            "adapter.exclude_modules",
        ],
    );
    // Unless it is none of DoRA's.
    scene.ok(&["train", "recipe.toml", "--set", &set]);
}

#[test]
fn plan_finds_weights_that_do_not_fit() {
    type Edit = fn(&Path);
    let config = |key: &'static str, value: Value| {
        move |folder: &Path| edit_json(&folder.join("config.json"), key, Some(value.clone()))
    };
    let layers = config("num_hidden_layers", json!(1_000_000));
    let hidden = config("hidden_size", json!(2_000_000_000));
    let vocabulary = config("vocab_size", json!(201));
    let inner = config("intermediate_size", json!(2_000_000_000));
    let positions = config("max_position_embeddings", json!(1_000_000_000));
    let drop: Edit = |folder| {
        edit_tensors(&folder.join("model.safetensors"), |tensors| {
            tensors.retain(|(name, ..)| !name.ends_with("layer.1.output.LayerNorm.bias"));
        });
    };
    let cases: [Misfit<'_>; 6] = [
        (&layers, &["layer.2", "model.safetensors"]),
        (&hidden, &["shape", "2000000000"]),
        (&vocabulary, &["word_embeddings", "[200, 32]", "[201, 32]"]),
        (&inner, &["intermediate", "2000000000"]),
        (&positions, &["position_embeddings", "1000000000"]),
        (&drop, &["layer.1.output.LayerNorm.bias"]),
    ];
    for (edit, parts) in cases {
        let (scene, model, set) = scene_of("tiny-bert");
        edit(&model);
        let started = Instant::now();
        refused(&scene, &["plan", "recipe.toml", "--set", &set], parts);
        assert!(started.elapsed() < Duration::from_secs(20));
        refused(&scene, &["train", "recipe.toml", "--set", &set], parts);
    }
}

#[test]
fn hostile_headers_are_refused() {
    let header = |json: &str| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    };
    let huge = u64::MAX;
    for bytes in [
        vec![],
        vec![1, 2, 3],
        vec![0xff; 8],
        [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        header("{}x"),
        header("[]"),
        header("{\"a\": 3}"),
        header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#),
        header(&format!(
            r#"{{"a": {{"dtype": "F32", "shape": [{huge}, {huge}], "data_offsets": [0, 8]}}}}"#
        )),
        header(&format!(
            r#"{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [{huge}, 3]}}}}"#
        )),
        header(&format!(
            r#"{{"a": {{"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, {huge}]}}}}"#
        )),
        header(
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}"#,
        ),
        header(r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#),
    ] {
        let (scene, model, set) = scene_of("tiny-bert");
        std::fs::write(model.join("model.safetensors"), bytes).expect("it writes");
        refused(
            &scene,
            &["plan", "recipe.toml", "--set", &set],
            &["model.safetensors", "safetensors file"],
        );
    }
}

#[test]
fn plan_makes_the_plugins() {
    let scene = Scene::new();
    let plan =
        |set: &str, parts: &[&str]| refused(&scene, &["plan", "recipe.toml", "--set", set], parts);
    plan("allocator.plugin=no-such-plugin", &["no-such-plugin"]);
    plan("scorer.plugin=top-k", &["top-k", "a scorer"]);
    plan("allocator.k=99", &["99", "11"]);
    plan("allocator.q=3", &["q"]);
    plan(
        "train.cache_frozen_prefix=true",
        &["cache_frozen_prefix", "dropout"],
    );
    scene.ok(&["plan", "recipe.toml"]);
}

#[test]
fn a_missing_output_is_called_output() {
    let scene = Scene::new();
    let text = "[model]\nname = \"m\"\n[data]\ntask = \"minimal-pairs\"\n";
    scene.write("recipe.toml", text);
    let output = scene.run(&["plan", "recipe.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("lacks the key `output`"), "{said}");
    scene.write("recipe.toml", "[data]\ntask = \"minimal-pairs\"\n");
    let output = scene.run(&["plan", "recipe.toml", "--set", "output=run"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("lacks the key `model`"), "{said}");
    assert!(said.contains("[model]"), "{said}");
}

#[test]
fn targets_have_pefts_paths_too() {
    let scene = Scene::new();
    let count = |target: &str| {
        let set = format!("adapter.targets=[{target:?}]");
        let plan = scene.ok(&[
            "plan",
            "recipe.toml",
            "--json",
            "--set",
            "allocation.schedule={kind=\"never\"}",
            "--set",
            &set,
        ]);
        let plan: Value = serde_json::from_str(&plan).expect("JSON");
        plan["modules"].as_array().expect("modules").len()
    };
    assert_eq!(count("bert.encoder.layer.0.attention.self.query"), 1);
    assert_eq!(count("encoder.layer.0.attention.self.query"), 1);
    assert_eq!(
        count(r"regex:bert\.encoder\.layer\.\d\.attention\.self\.(query|value)"),
        4
    );
    assert_eq!(count("glob:bert.encoder.layer.1.**"), 6);
    refused(
        &scene,
        &[
            "plan",
            "recipe.toml",
            "--set",
            "adapter.targets=[\"roberta.encoder.layer.0.attention.self.query\"]",
        ],
        &["roberta.encoder", "matches no linear layer", "bert."],
    );
}

/// Targets less what is excluded, in some of the layers: the same run as one whose targets say it all.
#[test]
fn exclusions_and_layers_are_as_good_as_other_targets() {
    let scene = Scene::new();
    let by_hand = "adapter.targets=regex:encoder.layer.1.attention.(self.query|output.dense)";
    let by_hand = scene.train("by-hand", &[by_hand]);
    let excluded = [
        "adapter.target_modules=[\"query\", \"value\", \"dense\"]",
        "adapter.exclude_modules=[\"value\", \"intermediate.dense\", \"glob:encoder.layer.*.output.dense\"]",
        "adapter.layers_to_transform=1",
    ];
    let excluded = scene.train("excluded", &excluded);
    assert_eq!(difference(&by_hand, &excluded, &[]), "");
    for (set, part) in [
        (
            "adapter.exclude_modules=key",
            "matches none of the modules that are targets",
        ),
        ("adapter.layers_to_transform=[2]", "there is no layer 2"),
        ("adapter.layers_to_transform=[]", "no layers are named"),
        ("adapter.exclude_modules=regex:(", "cannot be used"),
    ] {
        refused(&scene, &["train", "recipe.toml", "--set", set], &[part]);
    }
}

/// rsLoRA's scale is that of an alpha √rank times as large, in training and in what is exported.
#[test]
fn a_rank_stabilised_scale_is_one_of_alpha() {
    let scene = Scene::new();
    let plain = scene.train("plain", &["adapter.alpha=16"]);
    let stabilised = scene.train(
        "stabilised",
        &["adapter.alpha=8", "adapter.use_rslora=true"],
    );
    assert_eq!(difference(&plain, &stabilised, &[]), "");
    let config = |run: &Path| {
        std::fs::read_to_string(run.join("adapter/adapter_config.json")).expect("a config")
    };
    assert_eq!(config(&plain), config(&stabilised));
    let vera = [
        "train",
        "recipe.toml",
        "--set",
        "adapter.kind=vera",
        "--set",
        "adapter.use_rslora=true",
    ];
    refused(
        &scene,
        &vera,
        &["`adapter.use_rslora` belongs to kind = \"lora\""],
    );
}

#[test]
fn a_missing_model_type_is_found_or_asked_for() {
    let (scene, model, set) = scene_of("tiny-bert");
    let config = model.join("config.json");
    edit_json(&config, "model_type", None);
    scene.ok(&["plan", "recipe.toml", "--set", &set]);
    edit_json(&config, "architectures", None);
    refused(
        &scene,
        &["plan", "recipe.toml", "--set", &set],
        &["model_type is missing", "\"model_type\": \"bert\""],
    );
}

const PLAIN: &str = "allocation.schedule={kind=\"never\"}";

/// What a run of one step, whose rate is nothing, exports of the head: what it started from.
fn start_of_head(scene: &Scene, run: &str, set: &str, more: &[&str]) -> (Vec<Stored>, String) {
    let output = format!("output={}", scene.path(run).display());
    let mut arguments = vec![
        "train",
        "recipe.toml",
        "--set",
        &output,
        "--set",
        set,
        "--set",
        PLAIN,
    ];
    let sets = [
        "train.steps=1",
        "train.learning_rate=1e-30",
        "adapter.targets=all-linear",
    ];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    arguments.extend(more.iter().flat_map(|set| ["--set", set]));
    let ran = scene.run(&arguments);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    let tensors = read_tensors(&scene.path(run).join("adapter/adapter_model.safetensors"));
    (tensors, said)
}

fn floats(tensors: &[Stored], name: &str) -> Vec<f32> {
    let found = tensors.iter().find(|(own, ..)| own == name);
    let (.., bytes) = found.unwrap_or_else(|| panic!("no {name}"));
    let floats = bytes.as_chunks::<4>().0.iter();
    floats.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn training_starts_from_the_checkpoints_pooler_and_classifier() {
    // The pooler, under the names with and without a prefix.
    for (model, prefix) in [("tiny-bert", ""), ("tiny-bert-pretraining", "bert.")] {
        let (scene, folder, set) = scene_of(model);
        let (exported, said) = start_of_head(&scene, "run", &set, &["model.train_pooler=true"]);
        let weights = read_tensors(&folder.join("model.safetensors"));
        for part in ["weight", "bias"] {
            assert_eq!(
                floats(
                    &exported,
                    &format!("base_model.model.bert.pooler.dense.{part}")
                ),
                floats(&weights, &format!("{prefix}pooler.dense.{part}")),
                "{model}"
            );
        }
        assert!(!said.contains("drawn anew"), "{said}");
    }
    // Classifiers of each family.
    const HIDDEN: usize = 32;
    let cases: [Headed; 4] = [
        (
            "tiny-modernbert-biased",
            &[
                ("head.dense.weight", &[36, 36]),
                ("head.dense.bias", &[36]),
                ("head.norm.weight", &[36]),
                ("head.norm.bias", &[36]),
                ("classifier.weight", &[2, 36]),
                ("classifier.bias", &[2]),
            ],
        ),
        (
            "tiny-bert",
            &[
                ("classifier.weight", &[2, HIDDEN]),
                ("classifier.bias", &[2]),
            ],
        ),
        (
            "tiny-roberta",
            &[
                ("classifier.dense.weight", &[HIDDEN, HIDDEN]),
                ("classifier.dense.bias", &[HIDDEN]),
                ("classifier.out_proj.weight", &[2, HIDDEN]),
                ("classifier.out_proj.bias", &[2]),
            ],
        ),
        (
            "tiny-distilbert",
            &[
                ("pre_classifier.weight", &[HIDDEN, HIDDEN]),
                ("pre_classifier.bias", &[HIDDEN]),
                ("classifier.weight", &[2, HIDDEN]),
                ("classifier.bias", &[2]),
            ],
        ),
    ];
    for (model, tensors) in cases {
        let (scene, folder, set) = scene_of(model);
        edit_tensors(&folder.join("model.safetensors"), |stored| {
            stored.extend(tensors.iter().map(|(name, shape)| filled(name, shape, 0.3)));
        });
        let max = "model.max_length=62";
        let (exported, said) = start_of_head(&scene, "run", &set, &[max]);
        for (name, shape) in tensors {
            let values = floats(&exported, &format!("base_model.model.{name}"));
            assert_eq!(values, vec![0.3; shape.iter().product()], "{model} {name}");
        }
        assert!(!said.contains("drawn anew"), "{said}");

        // Of three classes: what depends on their number is drawn anew, and said so; the rest stays.
        let (scene, folder, set) = scene_of(model);
        edit_tensors(&folder.join("model.safetensors"), |stored| {
            stored.extend(tensors.iter().map(|(name, shape)| match shape {
                [2, rest @ ..] => filled(name, &[&[3], rest].concat(), 0.3),
                shape => filled(name, shape, 0.3),
            }));
        });
        let (exported, said) = start_of_head(&scene, "run", &set, &[max]);
        for (name, shape) in tensors {
            let values = floats(&exported, &format!("base_model.model.{name}"));
            let kept = values.iter().all(|value| *value == 0.3);
            assert_eq!(kept, shape[0] != 2, "{model} {name}");
            assert_eq!(
                said.contains(&format!("{name} has shape")),
                shape[0] == 2,
                "{said}"
            );
        }
        let plan = scene.run(&[
            "plan",
            "recipe.toml",
            "--set",
            &set,
            "--set",
            PLAIN,
            "--set",
            max,
            "--set",
            "adapter.targets=all-linear",
        ]);
        assert!(String::from_utf8_lossy(&plan.stderr).contains("drawn anew"));

        // A part of it alone.
        let (scene, folder, set) = scene_of(model);
        let (last, shape) = tensors[tensors.len() - 2];
        edit_tensors(&folder.join("model.safetensors"), |stored| {
            stored.push(filled(last, shape, 0.3))
        });
        let (_, said) = start_of_head(&scene, "run", &set, &[max]);
        let missing = tensors[tensors.len() - 1].0;
        assert!(said.contains(&format!("no {missing}")), "{said}");
    }
}

#[test]
fn an_adapter_without_a_head_has_the_base_models() {
    let adapter = Adapter::new();
    let whole = adapter.loss();
    // The adapter's head moves into the base model.
    let (scene, folder, set) = scene_of("tiny-bert");
    let mut head = Vec::new();
    edit_tensors(&adapter.tensors(), |tensors| {
        head = tensors
            .extract_if(.., |(name, ..)| name.contains("classifier"))
            .collect();
    });
    edit_tensors(&folder.join("model.safetensors"), |tensors| {
        tensors.extend(
            head.into_iter()
                .map(|(name, shape, bytes)| (name.replace("base_model.model.", ""), shape, bytes)),
        );
    });
    let here = scene.path("adapter");
    copy_folder(&adapter.folder, &here);
    let arguments = [
        "evaluate",
        "adapter",
        "--recipe",
        "recipe.toml",
        "--json",
        "--set",
        &set,
    ];
    // It says that it saved one.
    refused(&scene, &arguments, &["classifier.weight"]);
    edit_json(
        &here.join("adapter_config.json"),
        "modules_to_save",
        Some(Value::Null),
    );
    assert_eq!(loss(&scene, &arguments), whole);
}

#[test]
fn weights_that_change_under_a_run_change_nothing_of_it() {
    let (scene, model, set) = scene_of("tiny-bert");
    let sets = [set.as_str(), "train.steps=400", "train.log_every=1", PLAIN];
    let whole = scene.train("whole", &sets);
    for (run, truncate) in [("truncated", true), ("overwritten", false)] {
        let output = format!("output={}", scene.path(run).display());
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--set", &output];
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        let mut child = scene
            .command(&arguments)
            .spawn()
            .expect("the program starts");
        let metrics = scene.path(run).join("metrics.jsonl");
        let started = Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no step within a minute"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        // In place: the file that the run opened.
        let weights = model.join("model.safetensors");
        let bytes = std::fs::read(&weights).expect("it is there");
        if truncate {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&weights)
                .and_then(|file| file.set_len(100))
                .expect("it shrinks");
        } else {
            std::fs::write(&weights, vec![0x41; bytes.len()]).expect("it writes");
        }
        let running = child.try_wait().expect("a child").is_none();
        assert!(child.wait().expect("it ends").success(), "{run}");
        assert!(running, "{run}: it had ended before");
        std::fs::write(&weights, bytes).expect("it writes");
        let adapter = |folder: &Path| {
            std::fs::read(folder.join("adapter/adapter_model.safetensors")).expect("an adapter")
        };
        assert!(adapter(&whole) == adapter(&scene.path(run)), "{run}");
    }
}

/// The loss of a run's exported adapter.
fn loss_of(scene: &Scene, run: &str) -> f64 {
    loss(scene, &["evaluate", run, "--json"])
}

/// So small a step changes nothing that is seen.
const STILL: [&str; 3] = [
    "train.steps=1",
    "train.learning_rate=1e-12",
    "evaluation.every=1",
];

#[test]
fn training_goes_on_from_a_run_or_an_adapter() {
    let adapter = Adapter::new();
    let scene = &adapter.scene;
    scene.train("first", &["train.steps=30"]);
    let from = |folder| format!("adapter.from={folder}");
    let start = |run: &str, sets: &[&str]| {
        let folder = scene.train(run, &[&STILL, sets].concat());
        let inputs = std::fs::read_to_string(folder.join("provenance.json")).expect("a record");
        assert_eq!(
            inputs.contains("adapter.from.weights"),
            sets.iter().any(|set| set.starts_with("adapter.from=")),
            "{run}"
        );
        loss_of(scene, run)
    };
    let first = loss_of(scene, "first");
    let anew = start("anew", &[]);
    assert!((anew - first).abs() > 1e-3, "{anew} is {first}");
    for folder in ["first", "first/adapter"] {
        let gone_on = start("on", &[&from(folder), "train.on_nonfinite=stop"]);
        assert!(
            (gone_on - first).abs() < 1e-6,
            "{folder}: {gone_on}, not {first}"
        );
        std::fs::remove_dir_all(scene.path("on")).expect("a run");
    }
    // PEFT's, whose sizes and modules the recipe has to name. It says no classes.
    let peft = ["adapter.targets=[\"query\",\"value\"]", "adapter.alpha=8"];
    let on = start("peft", &[&[&*from("adapter")], &peft[..]].concat());
    let trained = adapter.loss();
    assert!((on - trained).abs() < 1e-6, "{on}, not {trained}");
    for (labels, is_said) in [("", true), ("data.labels=[\"comma\",\"none\"]", false)] {
        let folder = from("adapter");
        let sets = [&peft[..], &STILL[..], &[&folder, "output=guess", labels]].concat();
        let mut arguments = vec!["train", "recipe.toml", "--force"];
        let sets = sets.iter().filter(|set| !set.is_empty());
        arguments.extend(sets.flat_map(|set| ["--set", set]));
        let output = scene.run(&arguments);
        assert!(output.status.success(), "{}", said(&output));
        let guessed = flat(&said(&output)).contains(&flat("is a guess from the training data"));
        assert_eq!(guessed, is_said, "{}", said(&output));
    }
    // Another task: the modules are as they were, the head is not.
    let other = start("other", &[&from("first"), "adapter.from_head=false"]);
    assert!((other - first).abs() > 1e-4 && (other - anew).abs() > 1e-4);
    scene.assert_resumes("from", &[&from("first"), "train.steps=40"]);
}

/// What a run's adapter was trained on is known by its digest, else by a name.
#[test]
fn an_adapter_to_start_from_is_of_the_same_base_model() {
    let adapter = Adapter::new();
    let scene = &adapter.scene;
    scene.train("first", &["train.steps=2"]);
    let run = |sets: &[&str]| {
        let mut arguments = vec!["train", "recipe.toml", "--force", "--set", "output=run"];
        arguments.extend(STILL.iter().chain(sets).flat_map(|set| ["--set", set]));
        scene.run(&arguments)
    };
    let warned = |sets: &[&str], parts: &[&str]| {
        let output = run(sets);
        assert!(output.status.success(), "{}", said(&output));
        let said = flat(&said(&output));
        for part in parts {
            assert!(said.contains(&flat(part)), "{part:?} is not in:\n{said}");
        }
        said
    };
    let silent = warned(&["adapter.from=first"], &[]);
    assert!(!silent.contains("adapter.from"), "{silent}");
    // The same numbers, rounded.
    let half = format!("model.name={}", fixture("tiny-bert-bf16").display());
    for from in ["adapter.from=first", "adapter.from=first/adapter"] {
        let output = run(&[from, &half]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let said = flat(&said(&output));
        for part in [
            "trained on other weights",
            "tiny-bert-bf16",
            "SHA-256",
            "copy the adapter's folder",
        ] {
            assert!(said.contains(&flat(part)), "{part:?} is not in:\n{said}");
        }
    }
    let output = scene.run(&["evaluate", "first", "--set", &half]);
    assert!(flat(&said(&output)).contains(&flat("trained on other weights")));
    // Out of its run it is taken by its word, which names another folder.
    copy_folder(&scene.path("first/adapter"), &scene.path("moved"));
    let parts = [
        "says that it was trained on",
        "tiny-bert,",
        "tiny-bert-bf16",
    ];
    warned(&["adapter.from=moved", &half], &parts);
    let silent = warned(&["adapter.from=moved"], &[]);
    assert!(!silent.contains("adapter.from"), "{silent}");
    edit_json(
        &scene.path("moved/dynalora.json"),
        "revision",
        Some(json!("v2")),
    );
    warned(
        &["adapter.from=moved"],
        &["(revision v2)", "(revision main)"],
    );
    // Another tokenizer.
    edit_json(
        &scene.path("moved/dynalora.json"),
        "revision",
        Some(json!("main")),
    );
    edit_json(
        &scene.path("moved/dynalora.json"),
        "tokenizer",
        Some(json!("another")),
    );
    warned(
        &["adapter.from=moved"],
        &["was trained with another tokenizer"],
    );
    // PEFT's says `tiny-bert`, which is no folder here.
    let sets = [
        "adapter.from=adapter",
        "adapter.targets=[\"query\",\"value\"]",
        "adapter.alpha=8",
    ];
    warned(
        &sets,
        &["says that it was trained on tiny-bert, and the recipe's model is"],
    );
}

#[test]
fn an_adapter_to_start_from_is_the_recipes_or_refused() {
    let adapter = Adapter::new();
    let scene = &adapter.scene;
    copy_folder(
        &fixture("tiny-bert/golden/vera/trained"),
        &scene.path("vera"),
    );
    scene.train("first", &["train.steps=2"]);
    let text = scene.recipe_text();
    scene.write(
        "classes.toml",
        &text.replace("[data]\n", "[data]\nlabels = [\"none\", \"comma\"]\n"),
    );
    let targets = "adapter.targets=[\"query\",\"value\"]";
    for (recipe, sets, parts) in [
        (
            "recipe.toml",
            &["adapter.from=adapter"][..],
            &[
                "has no encoder.layer.0.attention.output.dense",
                "set adapter.targets = [\"query\", \"value\"]",
            ][..],
        ),
        (
            "recipe.toml",
            &["adapter.from=adapter", "adapter.targets=query"],
            &[
                "attention.self.value, which is no target",
                "adapter.targets",
            ],
        ),
        (
            "recipe.toml",
            &["adapter.from=adapter", targets],
            &[
                "rank 4 and scale 2",
                "the recipe has 4 and 4",
                "adapter.alpha",
            ],
        ),
        (
            "recipe.toml",
            &["adapter.from=vera"],
            &["is of the kind \"vera\"", "set adapter.kind = \"vera\""],
        ),
        (
            "recipe.toml",
            &["adapter.from=vera", "adapter.kind=vera"],
            &["projections of another key, 20240"],
        ),
        (
            "recipe.toml",
            &["adapter.from=nowhere"],
            &["nowhere", "adapter_config.json"],
        ),
        (
            "recipe.toml",
            &["adapter.from=first", "adapter.r_max=8"],
            &["`adapter.r_max`", "`adapter.from`"],
        ),
        (
            "recipe.toml",
            &["adapter.from=first", "adapter.init_lora_weights=pissa"],
            &["`adapter.init_lora_weights`"],
        ),
        (
            "recipe.toml",
            &["adapter.from_head=false"],
            &["`adapter.from_head`", "there is none"],
        ),
        (
            "classes.toml",
            &["adapter.from=first"],
            &[
                "the classes comma, none",
                "the classes none, comma",
                "adapter.from_head = false",
            ],
        ),
    ] {
        let mut arguments = vec!["train", recipe, "--set", "output=run"];
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        refused(scene, &arguments, parts);
        assert!(!scene.path("run").exists(), "{sets:?}");
        // What needs no data is found by `plan` too.
        if recipe == "recipe.toml" {
            arguments[0] = "plan";
            refused(scene, &arguments, parts);
        }
    }
    // Not even by force: the folder would be emptied first.
    let over = [
        "train",
        "recipe.toml",
        "--force",
        "--set",
        "adapter.from=first",
    ];
    let over = [&over[..], &["--set", "output=first"]].concat();
    refused(
        scene,
        &over,
        &["in the folder of the run that starts from it"],
    );
    assert!(
        scene
            .path("first/adapter/adapter_model.safetensors")
            .is_file()
    );
}
