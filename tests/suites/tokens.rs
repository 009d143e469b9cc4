//! Token classification: against Transformers' tokenizers and seqeval, and with the built program.

use dynalora::data::{Encoded, Encoder, Places, words};
use dynalora::metrics::{Answers, Metric, compute};
use dynalora_tests::entries::word_table;
use dynalora_tests::words::{sentence, tags};
use dynalora_tests::{Scene, contains, fixture, minilm, said, shared_data};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Chunks {
    schemes: Vec<Vec<String>>,
    cases: Vec<(usize, String, String, f64, f64, f64, f64)>,
}

#[test]
fn random_taggings_are_scored_as_by_seqeval() {
    let text = std::fs::read_to_string(fixture("chunks.json")).expect("a fixture");
    let chunks: Chunks = serde_json::from_str(&text).expect("JSON");
    assert!(chunks.cases.len() >= 1000);
    for (number, case) in chunks.cases.iter().enumerate() {
        let (scheme, expected, predicted, f1, precision, recall, accuracy) = case;
        let classes = |text: &str| -> Vec<u32> {
            let letters = text.bytes().filter(|letter| *letter != b' ');
            letters.map(|letter| u32::from(letter - b'a')).collect()
        };
        let mut offsets = vec![0];
        for sentence in expected.split(' ') {
            offsets.push(offsets[offsets.len() - 1] + sentence.len());
        }
        let answers = Answers::Tags {
            predicted: &classes(predicted),
            expected: &classes(expected),
            offsets: &offsets,
            names: &chunks.schemes[*scheme],
        };
        let metrics = [
            (Metric::OverallF1, f1),
            (Metric::OverallPrecision, precision),
            (Metric::OverallRecall, recall),
            (Metric::OverallAccuracy, accuracy),
        ];
        let found = compute(&metrics.map(|(metric, _)| metric), answers).expect("scores");
        for ((metric, expected), (_, found)) in metrics.into_iter().zip(found) {
            assert!(
                (found - expected).abs() < 1e-9,
                "case {number}: {metric} is {found}, by seqeval {expected}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Digests {
    sentences: usize,
    group: usize,
    tags: u32,
    /// What one of them has for its `pre_tokenizer`.
    split: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    max_length: usize,
    digests: Vec<String>,
}

/// The ids and labels of a sentence as text: -100 where a token has no label.
fn written(encoded: &Encoded, index: usize) -> String {
    let range = encoded.offsets[index]..encoded.offsets[index + 1];
    let mut labels = vec!["-100".to_owned(); range.len()];
    let words = encoded.words.as_ref().expect("sentences in words");
    for answer in encoded.answers(index) {
        labels[words.tokens[answer] as usize] = words.classes[answer].to_string();
    }
    let ids: Vec<String> = encoded.ids[range].iter().map(u32::to_string).collect();
    format!("{}\n{}\n", ids.join(" "), labels.join(" "))
}

#[test]
fn sentences_become_the_ids_and_labels_of_transformers() {
    let Some(glue) = shared_data("glue") else {
        return;
    };
    let text = std::fs::read_to_string(fixture("words.json")).expect("a fixture");
    let digests: Digests = serde_json::from_str(&text).expect("JSON");
    let half = digests.sentences / 2;
    let table = |path: &str, skip: usize, column: usize| -> Vec<String> {
        let text = std::fs::read_to_string(glue.join(path)).expect("GLUE's file");
        let rows = text.lines().skip(skip).take(half);
        let texts = rows.map(|row| row.split('\t').nth(column).expect("a column").to_owned());
        texts.collect()
    };
    let texts = [table("sst2/train.tsv", 1, 0), table("cola/train.tsv", 0, 3)].concat();
    let sentences = texts.iter().enumerate();
    let sentences = sentences.map(|(number, text)| sentence(number, text, digests.tags));
    let sentences: Vec<words::Sentence> = sentences.collect();
    assert!(sentences.len() >= 1000);
    let names: Vec<String> = (0..digests.tags).map(|tag| format!("B-{tag}")).collect();
    let split = tempfile::tempdir().expect("a temporary folder");
    let text = std::fs::read_to_string(fixture("tiny-llama/tokenizer.json")).expect("a fixture");
    let mut tokenizer = json(&text);
    tokenizer["pre_tokenizer"] = digests.split.clone();
    let file = split.path().join("tokenizer.json");
    std::fs::write(file, tokenizer.to_string()).expect("a temporary file");
    for case in &digests.cases {
        let folder = match &case.model[..] {
            "minilm" => match minilm() {
                Some(folder) => folder,
                None => continue,
            },
            "split" => split.path().to_owned(),
            name => fixture(name),
        };
        let file = folder.join("tokenizer.json");
        let encoder = Encoder::open(&file, case.max_length).expect("a tokenizer");
        let of = ("sentences", &Places::default());
        let encoded = words::encode(&encoder, &sentences, &names, of).expect("they are read");
        for (group, expected) in case.digests.iter().enumerate() {
            let start = group * digests.group;
            let range = start..(start + digests.group).min(sentences.len());
            let text: String = range
                .clone()
                .map(|index| written(&encoded, index))
                .collect();
            let found = dynalora::file::sha256(text.as_bytes());
            assert_eq!(
                &found[..16],
                expected,
                "{} at {} tokens, sentences {range:?}",
                case.model,
                case.max_length
            );
        }
    }
}

const MODELS: [&str; 7] = [
    "tiny-bert",
    "tiny-roberta",
    "tiny-distilbert",
    "tiny-llama",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gpt2",
];

/// A scene whose recipe has a model tag words by a rule.
fn scene(model: &str) -> Scene {
    let scene = Scene::new();
    let text = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    let lines: Vec<&str> = text.lines().collect();
    for (name, lines) in [("train", &lines[..48]), ("dev", &lines[48..])] {
        let (mut columns, mut lists) = (String::new(), String::new());
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            let tags = tags(&words);
            for (word, tag) in words.iter().zip(&tags) {
                columns.push_str(&format!("{word}\t{tag}\n"));
            }
            columns.push('\n');
            let row = serde_json::json!({ "tokens": words, "ner_tags": tags });
            lists.push_str(&format!("{row}\n"));
        }
        scene.write(&format!("{name}.bio"), &columns);
        scene.write(&format!("{name}.jsonl"), &lists);
    }
    let recipe = scene
        .recipe_text()
        .replace(
            &format!("{}", fixture("tiny-bert").display()),
            &format!("{}", fixture(model).display()),
        )
        .replace(
            "targets = [\"query\", \"value\", \"dense\"]",
            "targets = \"all-linear\"",
        )
        .replace(".csv", ".bio")
        .replace(
            "[data.columns]\ntext = \"sentence\"",
            "problem = \"token-classification\"",
        );
    scene.write("recipe.toml", &recipe);
    scene
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).expect("JSON")
}

fn read(scene: &Scene, file: &str) -> Value {
    json(&std::fs::read_to_string(scene.path(file)).expect("a file"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn every_family_learns_to_tag_and_says_the_same_when_it_is_evaluated() {
    for model in MODELS {
        let scene = scene(model);
        let sets = [
            "train.steps=120",
            "train.learning_rate=0.02",
            "evaluation.every=60",
        ];
        scene.train("run", &sets);
        let records = scene.records("run", "metrics.jsonl");
        let evaluations: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == "evaluation")
            .collect();
        let steps = records.iter().filter(|record| record["kind"] == "step");
        let losses: Vec<f64> = steps.map(|record| number(&record["loss"])).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let [first, last] = [&losses[..10], &losses[110..]].map(mean);
        assert!(last < 0.8 * first, "{model}: {first}, in the end {last}");
        let measured = &evaluations[1]["metrics"];
        // Tagging every word as most are finds no chunk.
        assert!(number(&measured["overall_f1"]) > 0.2, "{model}: {measured}");
        assert_eq!(measured.as_object().expect("metrics").len(), 4);

        // The larger F1 counts as the better one, and is what the run is exported at.
        let summary = read(&scene, "run/summary.json");
        assert_eq!(summary["best"]["metric"], "overall_f1", "{model}");
        let [before, after] = [0, 1].map(|at| number(&evaluations[at]["metrics"]["overall_f1"]));
        let best = if after > before { (120, 1) } else { (60, 0) };
        assert_eq!(summary["best"]["step"], best.0, "{model}");
        let measured = &evaluations[best.1];

        let run = scene.path("run").display().to_string();
        let found = json(&scene.ok(&["evaluate", &run, "--json"]));
        assert_eq!(found[0]["metrics"], measured["metrics"], "{model}");
        assert_eq!(found[0]["loss"], measured["loss"], "{model}");
        assert_eq!(found[0]["examples"], 16);

        let config = read(&scene, "run/adapter/adapter_config.json");
        assert_eq!(config["task_type"], "TOKEN_CLS");
        let decoder = ["llama", "qwen"]
            .iter()
            .any(|family| model.contains(family));
        let head = if decoder { "score" } else { "classifier" };
        assert_eq!(config["modules_to_save"], serde_json::json!([head]));
        let learnt = read(&scene, "run/adapter/dynalora.json");
        assert_eq!(learnt["problem"], "token-classification");
        let labels = ["B-END", "B-UP", "I-END", "I-UP", "O"];
        assert_eq!(learnt["labels"], serde_json::json!(labels));
        let recipe = std::fs::read_to_string(scene.path("run/recipe.toml")).expect("a file");
        assert!(recipe.contains("\"B-END\""), "{recipe}");

        // One line a sentence: the tags, and the words.
        let answer = scene.ok(&["predict", &run, "A  b 1 C", "d"]);
        let lines: Vec<&str> = answer.lines().collect();
        let (tags, words) = lines[0].split_once('\t').expect("a tab");
        assert_eq!((tags.split(' ').count(), words), (4, "A b 1 C"));
        assert!(tags.split(' ').all(|tag| labels.contains(&tag)), "{answer}");
        let answers = scene.ok(&["predict", &run, "A  b 1 C", "--json"]);
        let answers = json(&answers);
        assert_eq!(answers["words"], serde_json::json!(["A", "b", "1", "C"]));
        let told: Vec<&str> = tags.split(' ').collect();
        assert_eq!(answers["tags"], serde_json::json!(told));
        assert_eq!(answers["logits"][3].as_array().expect("logits").len(), 5);

        scene.ok(&["merge", &run, "--output", "merged"]);
        let merged = read(&scene, "merged/config.json");
        let class = merged["architectures"][0].as_str().expect("a class");
        assert!(class.ends_with("ForTokenClassification"), "{class}");
        assert_eq!(merged["id2label"]["4"], "O");
        assert_eq!(merged["label2id"]["B-UP"], 1);
    }
}

#[test]
fn the_same_sentences_in_every_format_train_the_same() {
    let scene = scene("tiny-bert");
    let rows = [
        (&["EU", "rejects", "it"][..], &[1, 0, 0][..]),
        (&["Peter"], &[2]),
        (&["no", "EU"], &[0, 1]),
    ];
    let names = ["O", "B-ORG", "B-PER"];
    let (mut columns, mut lists, mut numbers) = (String::new(), String::new(), String::new());
    let mut table = Vec::new();
    for (words, tags) in rows {
        for (word, tag) in words.iter().zip(tags) {
            columns.push_str(&format!("{word} NN {}\n", names[*tag as usize]));
        }
        columns.push('\n');
        let named: Vec<&str> = tags.iter().map(|tag| names[*tag as usize]).collect();
        lists += &format!(
            "{}\n",
            serde_json::json!({"tokens": words, "ner_tags": named})
        );
        numbers += &format!("{}\n", serde_json::json!({"w": words, "t": tags}));
        let pairs = words.iter().zip(tags).map(|(word, tag)| (*word, *tag));
        table.push(pairs.collect::<Vec<(&str, i64)>>());
    }
    scene.write("a.conll", &columns);
    scene.write("b.jsonl", &lists);
    scene.write("c.jsonl", &numbers);
    let table: Vec<&[(&str, i64)]> = table.iter().map(Vec::as_slice).collect();
    let parquet = |name: &str, named| {
        std::fs::write(scene.path(name), word_table(&table, named)).expect("a temporary file");
    };
    parquet("d.parquet", true);
    parquet("e.parquet", false);
    let labels = "data.labels=[\"O\", \"B-ORG\", \"B-PER\"]";
    let mut runs = Vec::new();
    for (file, sets) in [
        ("a.conll", &[labels][..]),
        ("b.jsonl", &[labels]),
        (
            "c.jsonl",
            &[labels, "data.columns={tokens=\"w\", tags=\"t\"}"],
        ),
        // Their order is what the file's metadata says.
        ("d.parquet", &[]),
        ("e.parquet", &[labels]),
    ] {
        let train = format!("data.train={}", scene.path(file).display());
        let validation = format!("data.validation={}", scene.path(file).display());
        let sets = [
            &[
                &train[..],
                &validation,
                "train.steps=3",
                "train.batch_size=2",
            ],
            sets,
        ]
        .concat();
        let run = scene.train(&format!("run-of-{file}"), &sets);
        runs.push(
            std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter"),
        );
    }
    assert!(runs.iter().all(|run| *run == runs[0]));
    let train = format!("data.train={}", scene.path("e.parquet").display());
    let output = scene.run(&["train", "recipe.toml", "--force", "--set", &train]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &["e.parquet", "the tags are numbers (0, 1, 2)", "labels ="],
    );
}

#[test]
fn what_is_cut_off_is_counted_and_has_no_answer() {
    let scene = scene("tiny-bert");
    // A control character comes to no token.
    let columns = "one O\ntwo B-x\nthree O\n\u{1} O\nfour O\nfive O\nsix O\n\na B-x\nb O\n";
    scene.write("train.bio", columns);
    let sets = ["--set", "model.max_length=5", "--set", "train.steps=2"];
    let arguments = [
        &["train", "recipe.toml", "--set", "data.validation=train.bio"],
        &sets[..],
    ]
    .concat();
    let output = scene.run(&arguments);
    assert!(output.status.success(), "{}", said(&output));
    let parts = [
        "train: ",
        "of 9 words, of 1 sentences, are cut off",
        "model.max_length",
        "train: 1 of 9 words come to no token",
        "validation: 1 of 9 words come to no token",
    ];
    contains(&output, &parts);

    let run = scene.path("run").display().to_string();
    let output = scene.run(&["predict", &run, "a b c d e f g h i j k"]);
    contains(&output, &["of 11 words", "are cut off"]);
    let answer = String::from_utf8(output.stdout).expect("UTF-8");
    let tags: Vec<&str> = answer
        .split('\t')
        .next()
        .expect("tags")
        .split(' ')
        .collect();
    assert_eq!(tags.len(), 11);
    assert!(tags[0] != "_" && tags[10] == "_", "{answer}");
    let output = scene.run(&["predict", &run, "a b c d e f g h i j k", "--json"]);
    let answer = json(&String::from_utf8(output.stdout).expect("UTF-8"));
    assert_eq!(
        (&answer["tags"][10], &answer["logits"][10]),
        (&Value::Null, &Value::Null)
    );

    scene.write("train.bio", "\u{1} O\n\na B-x\n\nb O\n");
    let output = scene.run(&[&arguments[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &[
            "train.bio, line 1",
            "no word of the sentence comes to a token",
        ],
    );
}

#[test]
fn a_run_resumes_bit_by_bit() {
    let scene = scene("tiny-gpt2");
    let sets = ["train.steps=9", "checkpoint.every=3", "evaluation.every=3"];
    let whole = scene.train("whole", &sets);
    let torn = scene.train(
        "torn",
        &["train.steps=9", "checkpoint.every=3", "evaluation.every=3"],
    );
    for folder in [
        "adapter",
        "checkpoints/step-000009",
        "checkpoints/step-000006",
    ] {
        let _ = std::fs::remove_dir_all(torn.join(folder));
    }
    let _ = std::fs::remove_file(torn.join("summary.json"));
    let set = format!("output={}", torn.display());
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--resume", "--set", &set];
    for set in &sets {
        arguments.extend(["--set", set]);
    }
    scene.ok(&arguments);
    let adapter = |run: &std::path::Path| {
        std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(adapter(&whole) == adapter(&torn));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let scene = scene("tiny-bert");
    for (set, parts) in [
        (
            "data.columns.text=\"a\"",
            &["data.columns.text", "means nothing", "token-classification"][..],
        ),
        ("data.delimiter=\";\"", &["data.delimiter", "means nothing"]),
        (
            "data.metrics=[\"f1\"]",
            &["`f1`", "tagged words", "overall_f1"],
        ),
        (
            "model.train_pooler=true",
            &["model.train_pooler", "no pooler"],
        ),
        ("data.labels=[\"O\"]", &["data.labels", "1 class"]),
        ("data.train=\"train.csv\"", &["train.csv", "csv", "conll"]),
        (
            "data.problem=\"classification\"",
            &["train.bio", "token-classification"],
        ),
    ] {
        let output = scene.run(&["train", "recipe.toml", "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}: {}", said(&output));
        contains(&output, parts);
    }
    let vit = format!("model.name={}", fixture("tiny-vit").display());
    let output = scene.run(&["train", "recipe.toml", "--set", &vit]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["vit", "no head that labels tokens"]);

    scene.train("run", &["train.steps=2"]);
    let run = scene.path("run").display().to_string();
    let output = scene.run(&["generate", &run, "a"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["token-classification", "predicts no tokens"]);
    let output = scene.run(&["evaluate", &run, "--split", "test"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["no labelled split `test`", "validation"]);
    scene.write("test.bio", "a\nb\n");
    let set = format!("data.test={}", scene.path("test.bio").display());
    let set = ["--set", &set];
    let output = scene.run(&[&["evaluate", &run, "--split", "test"], &set[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["test.bio, line 1", "has no tags"]);
    // Tags that are no chunks' are worth a word where chunks are scored.
    scene.write("train.bio", "a NOUN\nb VERB\n");
    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--force",
        "--set",
        "data.validation=train.bio",
    ]);
    contains(&output, &["NOUN", "overall_accuracy"]);
}

#[test]
fn a_plan_and_a_new_recipe() {
    let scene = scene("tiny-bert");
    let plan = json(&scene.ok(&["plan", "recipe.toml", "--json"]));
    assert_eq!(plan["outputs"], 5);
    assert_eq!(plan["problem"], "token-classification");
    // Nothing but a layer of five outputs of 32 features.
    assert_eq!(plan["head_parameters"], 5 * 33);
    contains_text(&scene.ok(&["plan", "recipe.toml"]), "5 tags of words");
    let model = fixture("tiny-bert").display().to_string();
    let files = [
        "--train",
        "train.bio",
        "--validation",
        "dev.bio",
        "--model",
        &model,
    ];
    scene.ok(&[&["recipe", "new", "new.toml"], &files[..]].concat());
    let lists = [
        "--train",
        "train.jsonl",
        "--validation",
        "dev.jsonl",
        "--model",
        &model,
    ];
    let lists = [
        &[
            "recipe",
            "new",
            "lists.toml",
            "--tokens",
            "tokens",
            "--tags",
            "ner_tags",
        ],
        &lists[..],
    ]
    .concat();
    scene.ok(&lists);
    for recipe in ["new", "lists"] {
        let output = format!("output={}", scene.path(recipe).display());
        let file = format!("{recipe}.toml");
        let sets = ["--quiet", "--set", "train.epochs=1", "--set", &output];
        scene.ok(&[&["train", &file], &sets[..]].concat());
        let learnt = read(&scene, &format!("{recipe}/adapter/dynalora.json"));
        assert_eq!(learnt["problem"], "token-classification");
    }
    let output = scene.run(&["recipe", "new", "x.toml", "--tags", "a"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["--tags a", "--train"]);
    let mixed = [
        "--text",
        "a",
        "--tags",
        "b",
        "--train",
        "train.jsonl",
        "--validation",
        "dev.jsonl",
    ];
    let output = scene.run(&[&["recipe", "new", "x.toml"], &mixed[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["--text", "--tags"]);
}

fn contains_text(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is missing:\n{text}");
}

#[test]
fn of_many_classes_the_first_five_count_too() {
    let scene = Scene::new();
    let rows: String = (0..48).map(|n| format!("{},a {n} b\n", n % 7)).collect();
    scene.write("train.csv", &format!("label,sentence\n{rows}"));
    scene.write("dev.csv", &format!("label,sentence\n{rows}"));
    let sets = [
        "train.steps=4",
        "evaluation.every=2",
        "data.problem=\"classification\"",
    ];
    scene.train("run", &sets);
    let records = scene.records("run", "metrics.jsonl");
    let evaluation = records.iter().find(|record| record["kind"] == "evaluation");
    let metrics = &evaluation.expect("an evaluation")["metrics"];
    let [accuracy, top5] = ["accuracy", "accuracy_top5"].map(|name| number(&metrics[name]));
    assert!(top5 >= accuracy && top5 > 0.0 && top5 <= 1.0, "{metrics}");
    assert_eq!(
        read(&scene, "run/summary.json")["best"]["metric"],
        "accuracy"
    );

    // By hand, from what `predict` says of each text.
    let run = scene.path("run").display().to_string();
    let mut right = 0;
    let texts: Vec<String> = (0..48).map(|n| format!("a {n} b")).collect();
    let mut arguments = vec!["predict", &run, "--json"];
    arguments.extend(texts.iter().map(String::as_str));
    for (n, line) in scene.ok(&arguments).lines().enumerate() {
        let logits = json(line)["logits"].as_array().expect("logits").clone();
        let logits: Vec<f64> = logits.iter().map(number).collect();
        let own = n % 7;
        let before = (0..7).filter(|other| {
            logits[*other] > logits[own] || (logits[*other] == logits[own] && *other < own)
        });
        right += usize::from(before.count() < 5);
    }
    let found = json(&scene.ok(&["evaluate", &run, "--json"]));
    let found = number(&found[0]["metrics"]["accuracy_top5"]);
    assert!(
        (found - right as f64 / 48.0).abs() < 1e-12,
        "{found}, {right} of 48"
    );

    let rows: String = (0..48).map(|n| format!("{},a {n} b\n", n % 2)).collect();
    for file in ["train.csv", "dev.csv"] {
        scene.write(file, &format!("label,sentence\n{rows}"));
    }
    let two = ["--force", "--set", "data.metrics=[\"accuracy_top5\"]"];
    let output = scene.run(&[&["train", "recipe.toml"], &two[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["accuracy_top5", "more than 5 classes"]);
}
