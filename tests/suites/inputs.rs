//! What goes in is used whole or refused by name, and an adapter answers as it was trained to, whatever has become
//! of its data.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use dynalora_tests::{Scene, fixture};
use serde_json::Value;

const PLAIN: &str = "allocation.schedule={kind=\"never\"}";

/// What was said of a run that ended with `code`.
fn said(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// `said`, and every part is in it, wherever its lines are wrapped.
fn names(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output, code);
    let flat = |text: &str| {
        text.split_whitespace()
            .filter(|w| *w != "│")
            .collect::<String>()
    };
    for part in parts {
        assert!(
            flat(&said).contains(&flat(part)),
            "{part:?} is missing:\n{said}"
        );
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The program with these arguments and this on its standard input.
fn piped(scene: &Scene, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = scene.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = pipe.write_all(&input);
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it writes");
    output
}

/// A copy of a model that can be changed.
fn model(scene: &Scene, name: &str) -> String {
    let folder = scene.path("model");
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(fixture(name).join(file), folder.join(file)).expect("a fixture");
    }
    format!("model.name={}", folder.display())
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(path).expect("it is there");
    let mut json = json(&text);
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("it writes");
}

/// Case 9.
#[test]
fn classes_are_the_runs_own() {
    let scene = Scene::new();
    let run = scene.train("run", &[PLAIN, "train.steps=30"]);
    let run = run.to_str().expect("UTF-8");
    let text = "One, two, three.";
    let before = scene.ok(&["predict", run, text, "--json"]);
    let scored = scene.ok(&["evaluate", run, "--json"]);
    // What the data has told is written out.
    let recipe = std::fs::read_to_string(scene.path("run/recipe.toml")).expect("a recipe");
    for key in ["labels = [", "problem = \"classification\""] {
        assert!(recipe.contains(key), "{key} is missing:\n{recipe}");
    }
    let learnt =
        std::fs::read_to_string(scene.path("run/adapter/dynalora.json")).expect("it is there");
    assert_eq!(
        json(&learnt)["labels"],
        serde_json::json!(["comma", "none"])
    );

    // Renamed so that they are in the other order; then gone.
    let rows = std::fs::read_to_string(scene.path("train.csv")).expect("it is there");
    scene.write("train.csv", &rows.replace(",comma\n", ",xcomma\n"));
    assert_eq!(scene.ok(&["predict", run, text, "--json"]), before);
    assert_eq!(scene.ok(&["evaluate", run, "--json"]), scored);
    // Nor does a run go on with it that has not come to its end.
    std::fs::remove_file(scene.path("run/summary.json")).expect("it is there");
    let output = format!("output={run}");
    let resume = [
        "train",
        "recipe.toml",
        "--set",
        &output,
        "--set",
        PLAIN,
        "--set",
        "train.steps=30",
        "--resume",
    ];
    scene.write(
        "dev.csv",
        &std::fs::read_to_string(scene.path("dev.csv"))
            .expect("it is there")
            .replace(",comma\n", ",xcomma\n"),
    );
    let refused = said(&scene.run(&resume), 2);
    assert!(
        refused.contains("comma") || refused.contains("data.train"),
        "{refused}"
    );
    std::fs::remove_file(scene.path("train.csv")).expect("it is there");
    assert_eq!(scene.ok(&["predict", run, text, "--json"]), before);
    let dev = scene.path("dev.csv");
    std::fs::write(
        &dev,
        std::fs::read_to_string(&dev)
            .expect("it is there")
            .replace(",xcomma\n", ",comma\n"),
    )
    .expect("it writes");
    assert_eq!(scene.ok(&["evaluate", run, "--json"]), scored);
    std::fs::remove_file(dev).expect("it is there");
    assert_eq!(scene.ok(&["predict", run, text, "--json"]), before);
    // A recipe that names other classes is refused.
    let sets = |recipe: &str| scene.write("other.toml", recipe);
    sets(&recipe.replace("\"comma\"", "\"zcomma\""));
    let other = ["predict", run, text, "--recipe", "other.toml"];
    names(&scene.run(&other), 2, &["data.labels", "zcomma"]);

    // An adapter from elsewhere says nothing of its classes: that they are guessed is said.
    scene.write("train.csv", &rows);
    std::fs::remove_file(scene.path("run/adapter/dynalora.json")).expect("it is there");
    let guess = scene.run(&[
        "predict",
        "run/adapter",
        text,
        "--recipe",
        "recipe.toml",
        "--set",
        "data.train=train.csv",
    ]);
    let warned = said(&guess, 0);
    assert!(
        warned.contains("guess") && warned.contains("labels"),
        "{warned}"
    );
    let told = scene.run(&[
        "predict",
        "run/adapter",
        text,
        "--recipe",
        "recipe.toml",
        "--set",
        "data.labels=['comma', 'none']",
    ]);
    assert!(!said(&told, 0).contains("guess"));
    assert_eq!(told.stdout, guess.stdout);
}

/// A recipe that was compared before the data is read is equal to what the run was started with.
#[test]
fn a_run_resumes_with_what_its_data_told() {
    Scene::new().assert_resumes("plain", &[PLAIN]);
}

/// Case 11.
#[test]
fn predict_reads_texts_as_the_run_was_trained() {
    let scene = Scene::new();
    let run = scene.train("run", &[PLAIN, "train.steps=30"]);
    let run = run.to_str().expect("UTF-8");
    let predicted = json(&scene.ok(&["predict", run, "a\tb, c", "--json"]));
    scene.write("dev.csv", "id,sentence,label\n1,\"a\tb, c\",comma\n");
    let scores = json(&scene.ok(&["evaluate", run, "--json"]));
    let p = predicted["probabilities"][0][1]
        .as_f64()
        .expect("a probability");
    let loss = scores[0]["loss"].as_f64().expect("a loss");
    assert!((loss + p.ln()).abs() < 1e-6, "{loss} is not -ln {p}");
    let logits: Vec<f64> = predicted["logits"]
        .as_array()
        .expect("logits")
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert!(
        (1.0 / (1.0 + (logits[1] - logits[0]).exp()) - p).abs() < 1e-6,
        "{predicted}"
    );

    // Output line i is of input line i, and no line is dropped.
    let output = piped(&scene, &["predict", run], b"one\r\ntwo, three\n four\n");
    said(&output, 0);
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let ends: Vec<_> = lines
        .lines()
        .map(|line| line.rsplit('\t').next().expect("a text"))
        .collect();
    assert_eq!(ends, ["one", "two, three", " four"]);
    names(
        &piped(&scene, &["predict", run], b"one\n\ntwo\n"),
        2,
        &["standard input, line 2", "empty"],
    );
    names(
        &piped(&scene, &["predict", run], b"one\n\xff\n"),
        2,
        &["line 2", "UTF-8"],
    );
    names(
        &scene.run(&["predict", run, "one", " "]),
        2,
        &["text 2", "empty"],
    );
}

#[test]
fn predict_wants_two_texts_of_a_run_on_pairs() {
    let scene = Scene::new();
    let pairs = |rows: &str| format!("one,two,label\n{rows}");
    let rows: String = (0..16)
        .map(|i| format!("text {i},other {},{}\n", i % 5, i % 2))
        .collect();
    scene.write("train.csv", &pairs(&rows));
    scene.write("dev.csv", &pairs("a,b,0\nc,d,1\n"));
    scene.edit("text = \"sentence\"", "text = \"one\"\ntext_pair = \"two\"");
    let run = scene.train("run", &[PLAIN, "train.steps=2"]);
    let run = run.to_str().expect("UTF-8");
    names(
        &scene.run(&["predict", run, "only one"]),
        2,
        &["text 1", "one text", "pairs"],
    );
    names(
        &scene.run(&["predict", run, "a\tb", "a\tb\tc"]),
        2,
        &["text 2", "more than one tab"],
    );
    names(
        &scene.run(&["predict", run, "a\t "]),
        2,
        &["text 1", "empty"],
    );
    names(
        &piped(&scene, &["predict", run], b"a\tb\nc\n"),
        2,
        &["standard input, line 2"],
    );
    let answer = json(&scene.ok(&["predict", run, "a\tb", "--json"]));
    assert_eq!(
        (&answer["text"], &answer["text_pair"]),
        (&"a".into(), &"b".into())
    );
    scene.write(
        "single.toml",
        &std::fs::read_to_string(scene.path("run/recipe.toml"))
            .expect("a recipe")
            .replace("text_pair = \"two\"\n", ""),
    );
    names(
        &scene.run(&["evaluate", run, "--recipe", "single.toml"]),
        2,
        &["text_pair", "pairs"],
    );
}

/// Cases 10 and 19.
#[test]
fn what_cannot_be_meant_is_found_before_the_first_step() {
    let scene = Scene::new();
    let scores = |rows: &mut dyn Iterator<Item = usize>| {
        let rows = rows.map(|i| format!("{i},text {i},{:.1}\n", (i % 26) as f64 / 5.0));
        format!("id,sentence,label\n{}", rows.collect::<String>())
    };
    scene.write("train.csv", &scores(&mut (0..78)));
    scene.write("dev.csv", &scores(&mut (0..26)));
    for command in ["plan", "train"] {
        names(
            &scene.run(&[command, "recipe.toml"]),
            2,
            &[
                "train.csv",
                "problem = \"regression\"",
                "problem = \"classification\"",
            ],
        );
        assert!(!scene.path("run").exists());
    }
    let regression = [
        "plan",
        "recipe.toml",
        "--json",
        "--set",
        "data.problem=regression",
    ];
    assert_eq!(json(&scene.ok(&regression))["outputs"], 1);

    let scene = Scene::new();
    let rows = std::fs::read_to_string(scene.path("train.csv")).expect("it is there");
    scene.write("train.csv", &format!("{rows}90,more,third\n"));
    let f1 = "data.metrics=['f1']";
    for command in ["plan", "train"] {
        names(
            &scene.run(&[
                command,
                "recipe.toml",
                "--set",
                f1,
                "--set",
                "train.epochs=1",
            ]),
            2,
            &["`f1`", "3", "macro_f1"],
        );
        assert!(!scene.path("run").exists());
    }
    // Nor is it reported where the data to score has two of the classes.
    let run = scene.train("run", &[PLAIN, "train.steps=2"]);
    let run = run.to_str().expect("UTF-8");
    names(
        &scene.run(&["evaluate", run, "--set", f1]),
        2,
        &["`f1`", "3"],
    );
}

/// Cases 17 and 18, and ids that a model lacks: in `train` and in `predict`.
#[test]
fn tokens_are_checked_against_the_model() {
    let scene = Scene::new();
    let name = model(&scene, "tiny-bert");
    let run = scene.train("run", &[PLAIN, "train.steps=2", &name]);
    let run = run.to_str().expect("UTF-8").to_owned();
    let folder = scene.path("model");
    let tokenizer = folder.join("tokenizer.json");
    let whole = std::fs::read(&tokenizer).expect("it is there");
    let train = [
        "train",
        "recipe.toml",
        "--quiet",
        "--set",
        &name,
        "--set",
        PLAIN,
        "--set",
        "output=other",
    ];
    let refused = |parts: &[&str]| {
        names(&scene.run(&train), 2, parts);
        assert!(!scene.path("other").exists());
    };
    // Another tokenizer than that of the training is refused.
    edit(&tokenizer, |json| {
        json["model"]["max_input_chars_per_word"] = 50.into()
    });
    names(
        &scene.run(&["predict", &run, "one"]),
        2,
        &["tokenizer.json", "trained with"],
    );
    std::fs::write(&tokenizer, &whole).expect("it writes");

    // A text of no tokens.
    let dev = std::fs::read_to_string(scene.path("dev.csv")).expect("it is there");
    scene.write("dev.csv", &format!("{dev}99,\u{200b},none\n"));
    edit(&tokenizer, |json| json["post_processor"] = Value::Null);
    refused(&["dev.csv, line 18", "no tokens"]);
    scene.write("dev.csv", &dev);
    std::fs::write(&tokenizer, &whole).expect("it writes");

    // A token that the model has no embedding for.
    let rows = std::fs::read_to_string(scene.path("train.csv")).expect("it is there");
    scene.write("train.csv", &format!("{rows}99,a newtoken,none\n"));
    std::fs::write(
        folder.join("tokenizer_config.json"),
        r#"{"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["newtoken"]}"#,
    )
    .expect("it writes");
    refused(&["train.csv, line 50", "newtoken", "200"]);
    std::fs::write(folder.join("tokenizer_config.json"), "{}").expect("it writes");
    scene.write("train.csv", &rows);

    // A token type that it lacks.
    edit(&tokenizer, |json| {
        json["post_processor"]["single"][1]["Sequence"]["type_id"] = 2.into();
    });
    refused(&["train.csv, line 2", "type 2"]);
    std::fs::write(&tokenizer, &whole).expect("it writes");

    // A file that is damaged, or fits nothing.
    std::fs::write(
        folder.join("tokenizer_config.json"),
        "{\"do_lower_case\": \"yes\"}",
    )
    .expect("it writes");
    refused(&["tokenizer_config.json"]);
}

#[test]
fn a_length_must_leave_room_beside_special_tokens() {
    let scene = Scene::new();
    let rows = "one,two,label\n".to_owned() + &format!("{},b,x\nc,d,y\n", "long ".repeat(70));
    scene.write("train.csv", &rows);
    scene.write("dev.csv", &rows);
    scene.edit("text = \"sentence\"", "text = \"one\"\ntext_pair = \"two\"");
    for (name, short, enough) in [("tiny-roberta", 4, 5), ("tiny-bert", 3, 4)] {
        let model = format!("model.name={}", fixture(name).display());
        let output = format!("output={}", scene.path(name).display());
        let train = |length: usize| {
            let length = format!("model.max_length={length}");
            scene.run(&[
                "train",
                "recipe.toml",
                "--quiet",
                "--set",
                &model,
                "--set",
                &output,
                "--set",
                PLAIN,
                "--set",
                &length,
                "--set",
                "train.steps=1",
                "--set",
                "adapter.targets=all-linear",
            ])
        };
        names(
            &train(short),
            2,
            &["model.max_length", &format!("at least {enough}")],
        );
        said(&train(enough), 0);
    }
}

/// A text of 50 MB is cut before it is tokenised.
#[test]
fn a_text_of_fifty_megabytes_is_cut_in_bounded_memory() {
    let scene = Scene::new();
    let run = scene.train("run", &[PLAIN, "train.steps=2"]);
    let run = run.to_str().expect("UTF-8");
    let sentence = "the cat sat on a mat, and so did the dog ";
    let text = sentence.repeat(50_000_000 / sentence.len());
    let long = piped(&scene, &["predict", run, "--json"], text.as_bytes());
    said(&long, 0);
    let short = piped(
        &scene,
        &["predict", run, "--json"],
        &text.as_bytes()[..5000],
    );
    let answer = |output: &Output| json(&String::from_utf8_lossy(&output.stdout))["logits"].clone();
    assert_eq!(answer(&long), answer(&short));
    let endless = "x".repeat(2 << 20);
    names(
        &piped(&scene, &["predict", run], endless.as_bytes()),
        2,
        &["line 1", "words are too long"],
    );
    #[cfg(target_os = "linux")]
    {
        // All of it, tokenised, would take gigabytes.
        let limited = format!("ulimit -v 3000000; exec \"$0\" predict {run} --json");
        let program = dynalora_tests::built().join("dynalora");
        scene.write("long.txt", &text);
        let input = std::fs::File::open(scene.path("long.txt")).expect("it is there");
        let output = std::process::Command::new("sh")
            .args(["-c", &limited, program.to_str().expect("UTF-8")])
            .env("DYNALORA_CACHE", scene.path("cache"))
            .stdin(input)
            .output()
            .expect("it starts");
        said(&output, 0);
    }
}

/// Weights that are no numbers answer nothing, nor do those whose sums overflow.
#[test]
fn no_label_and_no_score_comes_of_what_is_not_finite() {
    let scene = Scene::new();
    let run = scene.train("run", &[PLAIN, "train.steps=2"]);
    let run = run.to_str().expect("UTF-8");
    let path = scene.path("run/adapter/adapter_model.safetensors");
    let whole = std::fs::read(&path).expect("an adapter");
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let tensors = json(std::str::from_utf8(&whole[8..8 + header]).expect("a header"));
    // The adapter with other values in the head's weight [2, 32] and bias [2].
    let with = |weight: [f32; 2], bias: f32| {
        let mut bytes = whole.clone();
        let mut put = |tensor: &str, values: Vec<f32>| {
            let name = format!("base_model.model.classifier.{tensor}");
            let start = tensors[&name]["data_offsets"][0].as_u64().expect("a place");
            for (nth, value) in values.into_iter().enumerate() {
                let at = 8 + header + start as usize + 4 * nth;
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        };
        put(
            "weight",
            weight.iter().flat_map(|value| [*value; 32]).collect(),
        );
        put("bias", vec![bias; 2]);
        std::fs::write(&path, bytes).expect("it writes");
    };
    // Whatever the sign of the sum of what comes in, one of the two overflows.
    with([f32::MAX, f32::MIN], f32::MAX);
    let output = scene.run(&["predict", run, "one", "two"]);
    names(&output, 1, &["text", "the model answers with"]);
    assert!(output.stdout.is_empty());
    let output = scene.run(&["evaluate", run, "--json"]);
    names(&output, 1, &["dev.csv, line", "the model answers with"]);
    assert!(output.stdout.is_empty());
    with([0.0, 0.0], f32::NAN);
    for command in [["predict", run, "one"], ["evaluate", run, "--json"]] {
        let output = scene.run(&command);
        names(&output, 2, &["NaN", "classifier.bias"]);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn sets_that_cannot_act_are_refused_and_threads_are_taken() {
    let scene = Scene::new();
    let run = scene.train("run", &[PLAIN, "train.steps=2"]);
    let run = run.to_str().expect("UTF-8");
    for set in [
        "train.steps=9",
        "adapter.rank=2",
        "data.labels=['a','b']",
        "seed=9",
        "model.hidden_dropout=0.5",
    ] {
        let key = set.split('=').next().expect("a key");
        names(
            &scene.run(&["evaluate", run, "--set", set]),
            2,
            &[key, "cannot act"],
        );
        names(
            &scene.run(&["predict", run, "one", "--set", set]),
            2,
            &[key, "cannot act"],
        );
    }
    let limited = json(&scene.ok(&["evaluate", run, "--json", "--set", "data.limit=3"]));
    assert_eq!(limited[0]["examples"], 3);
    let one = scene.run(&["evaluate", run, "--threads", "1", "--json"]);
    assert!(said(&one, 0).contains("1 thread,"));
    let two = scene.run(&["evaluate", run, "--json"]);
    assert!(said(&two, 0).contains("2 threads,"), "the recipe's");
    assert_eq!(one.stdout, two.stdout);
    let output = scene.run(&["predict", run, "one", "--threads", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

/// Case 30 and 31, and other guesses.
#[test]
fn guesses_are_said() {
    let scene = Scene::new();
    scene.write("test.csv", "id,sentence,label\n1,one,-1\n2,two,-1\n");
    scene.edit(
        "validation = \"dev.csv\"",
        "validation = \"dev.csv\"\ntest = \"test.csv\"",
    );
    let warned = said(
        &scene.run(&[
            "train",
            "recipe.toml",
            "--set",
            PLAIN,
            "--set",
            "train.steps=2",
        ]),
        0,
    );
    assert!(warned.contains("-1"), "{warned}");
    names(
        &scene.run(&["evaluate", "run", "--split", "test"]),
        2,
        &["test.csv, line 2", "no label"],
    );

    let scene = Scene::new();
    scene.write(
        "train.tsv",
        "sentence\tlabel\n\"He said \"\"hi\"\"\"\ta\nplain\tb\n",
    );
    scene.edit(
        "train = \"train.csv\"\nvalidation = \"dev.csv\"",
        "train = \"train.tsv\"",
    );
    let plan = |sets: &[&str]| said(&scene.run(&[&["plan", "recipe.toml"], sets].concat()), 0);
    assert!(plan(&[]).contains("quote = true"));
    assert!(!plan(&["--set", "data.quote=false"]).contains("quote = true"));
    scene.write("train.tsv", "sentence\tsentence\tlabel\na\tb\tc\nd\te\tf\n");
    names(
        &scene.run(&["plan", "recipe.toml"]),
        2,
        &["two columns are named `sentence`"],
    );
    scene.write("train.tsv", "sentence;label\na;c\nd;f\n");
    names(
        &scene.run(&["plan", "recipe.toml"]),
        2,
        &["delimiter = \";\""],
    );
    let numbers: String = (0..12).map(|i| format!("text\t{i}\n")).collect();
    scene.write("train.tsv", &format!("sentence\tlabel\n{numbers}"));
    assert!(plan(&[]).contains("problem = \"regression\""));
}
