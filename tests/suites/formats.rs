//! Checkpoints in files of PyTorch and llama.cpp, against what PyTorch, `gguf` and Transformers make of them
//! (`oracle/formats.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexDevice};
use dynalora::adapter::{Adapters, Config, LoraConfig, Pass};
use dynalora::file::digest_of;
use dynalora::model::{Model, ModelFolder, Pretrained, Saved, Weights};
use dynalora::recipe::Recipe;
use dynalora::train::trainee::read;
use dynalora_tests::{Scene, fixture, flat, model_folder, skip};
use serde_json::Value;

const DEVICE: FlexDevice = FlexDevice;

fn says(said: &str, part: &str) {
    assert!(
        flat(said).contains(&flat(part)),
        "{part:?} is missing:\n{said}"
    );
}

fn weights(folder: &ModelFolder) -> Weights {
    Weights::open(&folder.weights).unwrap_or_else(|error| panic!("{folder:?}: {error}"))
}

/// All tensors of floats by name.
fn tensors(folder: &ModelFolder) -> BTreeMap<String, Saved> {
    let weights = weights(folder);
    let saved = weights.names().filter_map(|name| {
        let saved = weights.saved(name, name.to_owned());
        let saved = saved.unwrap_or_else(|error| panic!("{name}: {error}"))?;
        Some((name.to_owned(), saved))
    });
    saved.collect()
}

fn assert_same(what: &str, ours: &Saved, theirs: &Saved) {
    assert_eq!(ours.shape, theirs.shape, "{what}");
    let bits = |saved: &Saved| -> Vec<u32> { saved.values.iter().map(|v| v.to_bits()).collect() };
    assert!(bits(ours) == bits(theirs), "{what}: other values");
}

#[test]
fn checkpoints_of_torch_have_the_tensors_that_were_saved() {
    for (name, as_in) in [("bin", "tiny-bert"), ("bin-sharded", "tiny-bert-f16")] {
        let ours = tensors(&model_folder(&fixture(&format!("formats/{name}"))));
        let theirs = tensors(&model_folder(&fixture(as_in)));
        let names = |tensors: &BTreeMap<String, Saved>| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for (tensor, ours) in &ours {
            assert_same(&format!("{name}: {tensor}"), ours, &theirs[tensor]);
        }
    }
    // Two names for one storage: both are there, and counted once.
    let tied = model_folder(&fixture("formats/bin-tied"));
    let ours = tensors(&tied);
    assert_same(
        "tied",
        &ours["lm_head.weight"],
        &ours["transformer.wte.weight"],
    );
    let whole = model_folder(&fixture("tiny-gpt2"));
    assert_eq!(weights(&tied).parameters(), weights(&whole).parameters());
    for (name, theirs) in tensors(&whole) {
        let rounded = theirs.values.iter().zip(&ours[&name].values);
        let worst = rounded
            .map(|(a, b)| (a - b).abs() / a.abs().max(1e-3))
            .fold(0.0, f32::max);
        assert!(worst < 1.0 / 128.0, "{name}: {worst}");
    }
}

#[test]
fn files_of_torch_that_are_no_state_dicts_are_refused_by_what_they_ask_for() {
    let trace = Path::new("/tmp/dynalora-was-here");
    let _ = std::fs::remove_file(trace);
    for (name, parts) in [
        ("evil", &["posix.system", "nothing of it was run"][..]),
        ("legacy", &["before 1.6"]),
        ("nested", &["`state_dict` is a table"]),
        ("module", &["torch.nn.modules.linear.Linear"]),
        ("expanded", &["tensor a", "more values than its storage"]),
    ] {
        let path = fixture(&format!("formats/refused/{name}.bin"));
        let error = Weights::open(&[path]).err().expect("refused");
        assert_eq!(error.exit_code(), 2);
        let said = format!("{:?}", miette::Report::new(error));
        says(&said, "safetensors.torch.save_file");
        says(&said, &format!("{name}.bin"));
        for part in parts {
            says(&said, part);
        }
    }
    assert!(!trace.exists(), "a pickle was run");
}

fn recipe() -> Recipe {
    let text = "output = 'x'\n[model]\nname = 'x'\n[data]\ntask = 'minimal-pairs'\n";
    Recipe::parse(Path::new("r"), text, &[])
        .expect("a recipe")
        .0
}

#[test]
fn gguf_files_have_the_tensors_and_logits_that_transformers_makes_of_them() {
    for name in ["llama", "qwen2", "gpt2"] {
        let path = fixture(&format!("formats/{name}"));
        let golden = std::fs::read_to_string(path.join("golden.json")).expect("a golden file");
        let golden: Value = serde_json::from_str(&golden).expect("JSON");
        let folder = model_folder(&path);
        let pretrained = Pretrained::open(&folder, &recipe().model)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let ours = tensors(&folder);
        let theirs = golden["tensors"].as_object().expect("a table");
        let names: Vec<&String> = ours.keys().collect();
        assert_eq!(names, theirs.keys().collect::<Vec<_>>(), "{name}");
        let temporary = tempfile::tempdir().expect("a temporary folder");
        for (tensor, saved) in &ours {
            let shape: Vec<u64> = saved.shape.iter().map(|size| *size as u64).collect();
            assert_eq!(
                serde_json::json!(shape),
                theirs[tensor]["shape"],
                "{name}: {tensor}"
            );
            let bytes: Vec<u8> = saved.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let file = temporary.path().join("values");
            std::fs::write(&file, bytes).expect("a temporary file");
            let (_, digest) = digest_of(&file).expect("a digest");
            assert_eq!(digest, theirs[tensor]["sha256"], "{name}: {tensor}");
        }

        let ids = golden["ids"].as_array().expect("a list");
        let ids: Vec<u32> = ids
            .iter()
            .map(|id| id.as_u64().expect("an id") as u32)
            .collect();
        let model = Model::<Flex>::load(&pretrained, &[], 0, &DEVICE).expect("it loads");
        let lora = LoraConfig {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            start: None,
            use_dora: false,
            trains_bias: false,
            is_embedding: false,
        };
        let adapters = Adapters::new(Config::Lora(lora), vec![], vec![], 0, &DEVICE);
        let head: [Tensor<Flex, 2>; 0] = [];
        let mut pass = Pass::evaluate(&adapters, &head);
        let logits = model.continued(&ids, &mut model.base.past(), &DEVICE, &mut pass);
        let logits = read(logits).expect("f32 values");
        let theirs = golden["logits"].as_array().expect("a list").iter();
        let theirs: Vec<f64> = theirs
            .map(|logit| logit.as_f64().expect("a number"))
            .collect();
        assert_eq!(logits.len(), theirs.len());
        let off = logits
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (f64::from(*a) - b).abs());
        let worst = off.fold(0.0, f64::max);
        assert!(worst < 1e-4, "{name}: off by {worst}");
    }
}

/// Loss of a run's last evaluation.
fn loss(scene: &Scene, run: &str) -> f64 {
    let run = scene.path(run).display().to_string();
    let said = scene.ok(&["evaluate", &run, "--json"]);
    let scores: Value = serde_json::from_str(&said).expect("JSON");
    scores[0]["loss"].as_f64().expect("a number")
}

#[test]
fn a_run_on_each_kind_of_file_resumes_evaluates_merges_and_knows_its_file() {
    for (model, weights) in [
        ("formats/bin-sharded", "pytorch_model-00001-of-00002.bin"),
        ("formats/llama", "llama.gguf"),
        ("formats/gpt2", "gpt2.gguf"),
    ] {
        let scene = Scene::new();
        let folder = scene.path("model");
        std::fs::create_dir(&folder).expect("a folder");
        for entry in std::fs::read_dir(fixture(model)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
        }
        let recipe = scene.recipe_text().replace(
            &format!("name = \"{}\"", fixture("tiny-bert").display()),
            "name = \"./model\"",
        );
        let recipe = recipe.replace("[\"query\", \"value\", \"dense\"]", "\"all-linear\"");
        scene.write("recipe.toml", &recipe);
        scene.ok(&["plan", "recipe.toml"]);
        scene.train("run", &[]);
        let provenance = std::fs::read_to_string(scene.path("run/provenance.json"));
        let provenance: Value = serde_json::from_str(&provenance.expect("a file")).expect("JSON");
        let inputs = &provenance["sittings"][0]["inputs"];
        let file = inputs["model.weights"]["path"].as_str().expect("a path");
        assert!(file.ends_with(weights), "{file}");
        assert!(inputs["model.config"]["sha256"].is_string());

        let (run, merged) = (scene.path("run"), scene.path("merged"));
        let [run, merged] = [run, merged].map(|path| path.display().to_string());
        scene.ok(&["merge", &run, "--output", &merged]);
        let before = loss(&scene, "run");
        // Without an adapter to train, the merged model answers as the adapter did.
        let names = tensors(&model_folder(Path::new(&merged)));
        assert!(names.keys().all(|name| !name.contains("blk.")), "{model}");
        let steps = [
            "train.steps=1",
            "train.learning_rate=1e-30",
            "adapter.rank=1",
        ];
        let set = format!("model.name={merged}");
        scene.train("again", &[&[set.as_str()], &steps[..]].concat());
        let after = loss(&scene, "again");
        assert!(
            (before - after).abs() < 1e-4 * before.abs().max(1.0),
            "{model}: {before}, {after}"
        );

        // Other bytes are another model, for a run that is not finished.
        std::fs::remove_file(scene.path("run/summary.json")).expect("a finished run");
        std::fs::remove_dir_all(scene.path("run/adapter")).expect("a finished run");
        let path = folder.join(weights);
        let mut bytes = std::fs::read(&path).expect("a file");
        let middle = bytes.len() * 3 / 4;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("a file");
        let set = format!("output={run}");
        let output = scene.run(&["train", "recipe.toml", "--resume", "--set", &set]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        says(&said, "model.weights was");
    }
}

/// A copy of the GGUF fixture in a folder of its own, alone but for its tokenizer.
fn copied(scene: &Scene, name: &str) -> PathBuf {
    let folder = scene.path("gguf");
    std::fs::create_dir_all(&folder).expect("a folder");
    let of = fixture(&format!("formats/{name}"));
    std::fs::copy(of.join(format!("{name}.gguf")), folder.join("model.gguf")).expect("a copy");
    std::fs::copy(of.join("tokenizer.json"), folder.join("tokenizer.json")).expect("a copy");
    folder
}

#[test]
fn a_gguf_file_is_named_itself_and_lacks_nothing_in_silence() {
    let scene = Scene::new();
    let folder = copied(&scene, "llama");
    let plan = |name: &str| {
        let set = format!("model.name={name}");
        let all = "adapter.targets=\"all-linear\"";
        let output = scene.run(&["plan", "recipe.toml", "--set", &set, "--set", all]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = plan("gguf/model.gguf");
    assert_eq!(code, Some(0), "{said}");
    for (name, part) in [
        ("gguf/other.gguf", "there is no such folder or file"),
        ("./recipe.toml", "none that ends in .gguf"),
    ] {
        let (code, said) = plan(name);
        assert_eq!(code, Some(2), "{said}");
        says(&said, part);
    }
    std::fs::remove_file(folder.join("tokenizer.json")).expect("it is there");
    let (code, said) = plan("gguf");
    assert_eq!(code, Some(2), "{said}");
    says(&said, "there is no tokenizer.json beside it");
}

/// The real model in 4 bits, as it came, and as Transformers converted it: both below the home folder.
const SMOLLM: [&str; 2] = [
    ".cache/dynalora/models/SmolLM2-135M-Instruct.Q4_1.gguf",
    ".cache/dynalora/models/smollm2-135m",
];

#[test]
fn a_real_gguf_file_has_the_tensors_of_its_conversion() {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let [file, converted] = SMOLLM.map(|path| home.join(path));
    if !file.is_file() || !converted.is_dir() {
        let why = format!("{} or {} is not there", file.display(), converted.display());
        return skip::<()>("smollm2", why).unwrap_or(());
    }
    let ours = Weights::open(&[file]).expect("it opens");
    let theirs = weights(&model_folder(&converted));
    let names = |weights: &Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for name in names(&ours) {
        let [ours, theirs] = [&ours, &theirs].map(|weights| {
            let saved = weights.saved(&name, name.clone()).expect("it is read");
            saved.expect("floats")
        });
        assert_same(&name, &ours, &theirs);
    }
}
