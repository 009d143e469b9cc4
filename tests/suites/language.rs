//! Causal language modelling with the built program: documents, prompts with responses, plain text.

use dynalora_tests::chat::{TEMPLATE, chatty};
use dynalora_tests::contains;
use dynalora_tests::{Scene, fixture};
use serde_json::Value;

/// A scene whose recipe lets a decoder predict tokens.
fn scene(model: &str, data: &str) -> Scene {
    let scene = Scene::new();
    let before = format!("model = \"{}\"", fixture("tiny-bert").display());
    let recipe = scene
        .recipe_text()
        .replace(
            &before.replace("model =", "name ="),
            &format!("name = \"{}\"", fixture(model).display()),
        )
        .replace(
            "targets = [\"query\", \"value\", \"dense\"]",
            "targets = \"all-linear\"",
        );
    let (head, rest) = recipe.split_once("[data]").expect("a table");
    let (_, rest) = rest.split_once("[adapter]").expect("a table");
    scene.write(
        "recipe.toml",
        &format!("{head}[data]\nproblem = \"causal-lm\"\n{data}\n\n[adapter]{rest}"),
    );
    scene
}

const DOCUMENTS: &str =
    "train = \"train.csv\"\nvalidation = \"dev.csv\"\ncolumns.text = \"sentence\"";
const RESPONSES: &str = "train = \"train.csv\"\nvalidation = \"dev.csv\"\ncolumns = { text = \"label\", response = \"sentence\" }";

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn every_family_learns_from_documents_and_says_the_same_when_it_is_evaluated() {
    for model in [
        "tiny-llama",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-gpt2",
        "tiny-qwen2-sliding",
        "tiny-gemma2",
        "tiny-gemma3",
        "tiny-phi3",
    ] {
        let scene = scene(model, DOCUMENTS);
        let sets = [
            "train.steps=40",
            "train.learning_rate=0.02",
            "evaluation.every=20",
        ];
        scene.train("run", &sets);
        let records = scene.records("run", "metrics.jsonl");
        let evaluations: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == "evaluation")
            .collect();
        let loss = |at: usize| number(&evaluations[at]["loss"]);
        let first = number(&records[0]["loss"]);
        assert!(
            loss(1) < loss(0) && loss(0) < first,
            "{model}: {first}, {}, {}",
            loss(0),
            loss(1)
        );
        let perplexity = number(&evaluations[1]["metrics"]["perplexity"]);
        assert!(
            (perplexity - loss(1).exp()).abs() < 1e-9 * perplexity,
            "{model}"
        );

        let run = scene.path("run").display().to_string();
        let said = scene.ok(&["evaluate", &run, "--json"]);
        let found: Value = serde_json::from_str(said.trim()).expect("JSON");
        let text = found.to_string();
        assert!(text.contains("perplexity"), "{text}");
        let found = match &found {
            Value::Array(splits) => number(&splits[0]["metrics"]["perplexity"]),
            _ => number(&found["metrics"]["perplexity"]),
        };
        assert!(
            (found - perplexity).abs() < 1e-6 * perplexity,
            "{found}, not {perplexity}"
        );
        // The smaller perplexity counts as the better one.
        let summary = std::fs::read_to_string(scene.path("run/summary.json")).expect("a summary");
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!(summary["best"]["step"], 40, "{model}");
        assert_eq!(summary["head_parameters"], 0, "{model}");
        let config = std::fs::read_to_string(scene.path("run/adapter/adapter_config.json"));
        let config: Value = serde_json::from_str(&config.expect("a file")).expect("JSON");
        assert_eq!(config["task_type"], "CAUSAL_LM");
        assert_eq!(config["fan_in_fan_out"], model == "tiny-gpt2");
        assert_eq!(config["modules_to_save"], serde_json::json!([]));
    }
}

#[test]
fn the_answers_of_conversations_are_learnt() {
    let data =
        "train = \"chats.jsonl\"\nvalidation = \"chats.jsonl\"\ncolumns.messages = \"messages\"";
    let scene = scene("tiny-llama", data);
    let chat = |question: &str, answers: &[&str]| {
        let turns = answers.iter().flat_map(|answer| {
            [
                serde_json::json!({"role": "user", "content": question}),
                serde_json::json!({"content": answer, "role": "assistant"}),
            ]
        });
        let turns: Vec<Value> = turns.collect();
        serde_json::json!({ "messages": turns }).to_string()
    };
    let lines = [
        chat("what is it", &["a cat", "a dog"]),
        chat("who is it", &["the man"]),
    ];
    scene.write("chats.jsonl", &lines.join("\n"));
    let model = chatty(&scene, "tiny-llama", TEMPLATE);
    // As prompts and responses that are written out, without special tokens of their own.
    let sets = [
        &model[..],
        "train.steps=2",
        "train.batch_size=3",
        "allocation.schedule={kind=\"never\"}",
    ];
    scene.train("run", &sets);
    let seen = scene.records("run", "metrics.jsonl")[0]["tokens"].clone();
    let run = scene.path("run").display().to_string();
    let said: Value = serde_json::from_str(&scene.ok(&["evaluate", &run, "--json"])).expect("JSON");
    // Two conversations, three answers.
    assert_eq!(said[0]["examples"], 3);
    assert!(seen.as_u64().expect("a number") > 0);
    let learnt = std::fs::read_to_string(scene.path("run/adapter/dynalora.json")).expect("a file");
    let learnt: Value = serde_json::from_str(&learnt).expect("JSON");
    assert!(learnt["chat_template"].is_string());
    let asked = scene.ok(&[
        "generate",
        &run,
        "--chat",
        "what is it",
        "--max-new-tokens",
        "3",
        "--json",
    ]);
    let asked: Value = serde_json::from_str(asked.trim()).expect("JSON");
    assert!(!asked["tokens"].as_array().expect("tokens").is_empty());

    // Another template than that of the training, none at all, and what is no conversation.
    chatty(&scene, "tiny-llama", "{{ messages|length }}");
    let output = scene.run(&["evaluate", &run]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &[
            "chat_template.jinja",
            "not what the adapter was trained with",
        ],
    );
    // What cannot be read is not passed over for what tokenizer_config.json may have.
    std::fs::write(scene.path("chat/chat_template.jinja"), [0xff, 0xfe]).expect("a file");
    let output = scene.run(&["train", "recipe.toml", "--force", "--set", &model]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["cannot read", "chat_template.jinja", "UTF-8"]);
    std::fs::remove_file(scene.path("chat/chat_template.jinja")).expect("a file");
    let output = scene.run(&["train", "recipe.toml", "--force", "--set", &model]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["no chat template", "text", "response"]);
    chatty(&scene, "tiny-llama", TEMPLATE);
    for (line, part) in [
        ("{\"messages\": \"hello\"}", "no conversation"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            "assistant",
        ),
        ("{\"messages\": null}", "no conversation"),
        ("{\"text\": \"a\"}", "messages"),
    ] {
        scene.write("chats.jsonl", &format!("{}\n{line}\n", lines[0]));
        let output = scene.run(&["train", "recipe.toml", "--force", "--set", &model]);
        assert_eq!(output.status.code(), Some(2), "{line}");
        contains(&output, &["chats.jsonl", "2", part]);
    }
    for (set, parts) in [
        (
            "data.columns.text=text",
            &["data.columns.messages", "data.columns.text"][..],
        ),
        (
            "data.problem=classification",
            &["data.columns.messages", "classification"],
        ),
    ] {
        let output = scene.run(&[
            "train",
            "recipe.toml",
            "--force",
            "--set",
            &model,
            "--set",
            set,
        ]);
        assert_eq!(output.status.code(), Some(2), "{set}");
        contains(&output, parts);
    }
}

#[test]
fn a_run_that_predicts_tokens_resumes_bit_by_bit() {
    let sets = [
        "train.gradient_accumulation=2",
        "allocation.unit=layer",
        "allocator.k=1",
    ];
    scene("tiny-llama", DOCUMENTS).assert_resumes("documents", &sets);
    scene("tiny-gpt2", RESPONSES).assert_resumes("responses", &sets);
}

/// What an epoch over `text` predicts: the tokens of the first record with an epoch's end.
fn tokens(scene: &Scene, name: &str, sets: &[&str]) -> u64 {
    let mut all = vec!["train.steps=1", "train.batch_size=1000"];
    all.extend(sets);
    scene.train(name, &all);
    let records = scene.records(name, "metrics.jsonl");
    records[0]["tokens"].as_u64().expect("a number")
}

#[test]
fn a_document_longer_than_the_model_reads_is_read_whole() {
    let data = "train = \"book.txt\"\nvalidation = \"book.txt\"";
    let scene = scene("tiny-llama", data);
    let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
    scene.write("book.txt", &sentences);
    let long = tokens(&scene, "long", &["model.max_length=64"]);
    let short = tokens(&scene, "short", &["model.max_length=16"]);
    // Every block but the first repeats a token: (n − 1) tokens are predicted in blocks of 63 or of 15.
    let predicted = |tokens: u64, block: u64| (1..).find(|n: &u64| n + n.div_ceil(block) == tokens);
    let n = predicted(long, 63).expect("blocks of 64");
    assert_eq!(predicted(short, 15), Some(n));
    // More than a text that is read in one piece has bytes.
    let book: String = sentences.repeat(6);
    assert!(book.len() > 16 << 10);
    scene.write("book.txt", &book);
    let six = tokens(&scene, "six", &["model.max_length=64"]);
    let six = predicted(six, 63).expect("blocks of 64");
    // But for the token at the end and the one at the beginning.
    assert!(
        (6 * (n - 1)..=6 * (n - 1) + 8).contains(&(six - 1)),
        "{six}, of {n}"
    );
}

#[test]
fn a_trained_model_goes_on_with_texts() {
    let scene = scene("tiny-llama", DOCUMENTS);
    scene.train("run", &["train.steps=4"]);
    let run = scene.path("run").display().to_string();
    let generate = |arguments: &[&str]| {
        let mut all = vec!["generate", &run, "A text", "--max-new-tokens", "12"];
        all.extend(arguments);
        scene.ok(&all)
    };
    let greedy = generate(&[]);
    assert!(greedy.starts_with("A text"), "{greedy:?}");
    assert_eq!(generate(&[]), greedy);
    let line: Value = serde_json::from_str(&generate(&["--json"])).expect("JSON");
    assert_eq!(line["prompt"], "A text");
    let text = line["text"].as_str().expect("a text");
    assert_eq!(greedy.trim_end_matches('\n'), format!("A text{text}"));
    let tokens = line["tokens"].as_array().expect("numbers");
    assert!(tokens.len() == 12 || line["ended"] == true);

    let drawn = |seed: &str| generate(&["--temperature", "1.5", "--top-k", "200", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(generate(&["--base", "--json"]), generate(&["--json"]));
    // As far as there are positions: of 64 the prompt has some.
    let long = scene.ok(&[
        "generate",
        &run,
        "A text",
        "--max-new-tokens",
        "999",
        "--json",
    ]);
    let long: Value = serde_json::from_str(&long).expect("JSON");
    let tokens = long["tokens"].as_array().expect("numbers").len();
    assert!(
        (40..64).contains(&tokens) || long["ended"] == true,
        "{tokens}"
    );

    for (arguments, parts) in [
        (&["--top-k", "3"][..], &["--temperature 0"][..]),
        (&["--set", "train.steps=3"], &["train.steps", "cannot act"]),
    ] {
        let mut all = vec!["generate", &run, "A text"];
        all.extend(arguments);
        let output = scene.run(&all);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        contains(&output, parts);
    }
    let classes = Scene::new();
    classes.train("run", &["train.steps=1"]);
    let run = classes.path("run").display().to_string();
    let output = classes.run(&["generate", &run, "A text"]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &["classification", "predicts no tokens", "causal-lm"],
    );
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    let bert = scene("tiny-bert", DOCUMENTS);
    let output = bert.run(&["train", "recipe.toml"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["causal-lm", "bert", "decoder"]);

    for (data, parts) in [
        (
            "train = \"train.csv\"\ncolumns = { text = \"sentence\", text_pair = \"id\" }",
            &["data.columns.text_pair", "response"][..],
        ),
        (
            "train = \"train.csv\"\nmetrics = [\"accuracy\"]\ncolumns.text = \"sentence\"",
            &["accuracy", "perplexity"],
        ),
        (
            "train = \"train.csv\"\nlabels = [\"a\", \"b\"]\ncolumns.text = \"sentence\"",
            &["data.labels", "causal-lm"],
        ),
        (
            "train = \"book.txt\"\ncolumns.text = \"sentence\"",
            &["plain text has no columns"],
        ),
        ("train = \"train.csv\"", &["[data.columns] is missing"]),
    ] {
        let scene = scene("tiny-llama", data);
        scene.write("book.txt", "One two three.");
        let output = scene.run(&["train", "recipe.toml"]);
        assert_eq!(output.status.code(), Some(2), "{data}");
        contains(&output, parts);
    }

    let long = scene(
        "tiny-llama",
        "train = \"a.csv\"\ncolumns = { text = \"p\", response = \"r\" }",
    );
    let prompt = "word ".repeat(80);
    long.write("a.csv", &format!("p,r\nhi,yes\n{prompt},no\n"));
    let output = long.run(&["train", "recipe.toml"]);
    assert_eq!(output.status.code(), Some(2));
    contains(
        &output,
        &["a.csv, line 3", "leaves no room for a response within 64"],
    );

    let plain = Scene::new();
    plain.write("book.txt", "One two three.");
    let output = plain.run(&["train", "recipe.toml", "--set", "data.train=book.txt"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["book.txt", "no columns", "causal-lm"]);

    let scene = scene("tiny-llama", DOCUMENTS);
    scene.train("run", &["train.steps=4"]);
    let run = scene.path("run").display().to_string();
    let output = scene.run(&["predict", &run, "a text"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&output, &["predict tokens", "dynalora evaluate"]);
}
