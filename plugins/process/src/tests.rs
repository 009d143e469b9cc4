use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dynalora_plugin_api::conformance::{self, Report};
use dynalora_plugin_api::{Signal, testing};
use serde_json::{Value, json};

use super::*;

/// Whether there is a Python new enough for the examples (3.10). Without one a test passes with nothing seen, and says so,
/// unless `DYNALORA_REQUIRE` says that it is here.
fn python() -> bool {
    let script = "import sys; sys.exit(sys.version_info < (3, 10))";
    let found = Command::new("python3").args(["-c", script]).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let required = std::env::var("DYNALORA_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what.trim() == "python"),
        "DYNALORA_REQUIRE says that python is here, but there is no python3 of 3.10 or later"
    );
    eprintln!("skipped, for want of python: there is no python3 of 3.10 or later");
    false
}

fn example(name: &str, parameters: Value) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    json!({ "command": ["python3", path], "parameters": parameters })
}

/// The parameters of a shell's script.
fn shell(script: &str) -> String {
    json!({ "command": ["sh", "-c", script], "timeout_seconds": 5.0 }).to_string()
}

/// A shell that answers its calls in order with these lines, and then waits.
fn answers(lines: &[&str]) -> String {
    let line = |line: &&str| format!("read call; echo '{line}'; ");
    shell(&(lines.iter().map(line).collect::<String>() + "cat >&2"))
}

const OK: &str = r#"{"ok":true}"#;
const NEEDS: &str = r#"{"ok":true,"needs":{"signals":["activation_l2"]}}"#;
const UNKNOWN: &str = r#"{"unknown":true}"#;

fn refusal(parameters: &str) -> String {
    let made = testing::scorer::<ProcessScorer>(parameters, 3);
    made.err().expect("an error").to_string()
}

fn rules(report: Report) {
    report.assert();
    assert!(report.checks.len() > 15);
}

#[test]
fn the_scorer_in_python_conforms() {
    if !python() {
        return;
    }
    let parameters = example("scorer.py", json!({}));
    rules(conformance::scorer_with::<ProcessScorer>(parameters));
}

#[test]
fn the_scorer_in_python_averages_what_it_asked_for() {
    if !python() {
        return;
    }
    let parameters = example("scorer.py", json!({ "signal": "gradient_l1" })).to_string();
    assert_eq!(
        testing::needs::<ProcessScorer>(&parameters)
            .unwrap()
            .signals,
        [Signal::GRADIENT_L1]
    );
    let steps = [[Some(1.0), None], [Some(2.0), Some(0.25)], [None, None]];
    let scores = testing::score::<ProcessScorer>(&parameters, &steps).unwrap();
    assert_eq!(scores, [1.5, 0.25]);
}

#[test]
fn the_allocator_in_python_conforms() {
    if !python() {
        return;
    }
    let parameters = example("allocator.py", json!({ "k": 1, "pause": 10 }));
    rules(conformance::allocator_with::<ProcessAllocator>(parameters));
}

#[test]
fn the_allocator_in_python_lets_the_last_ones_pause() {
    if !python() {
        return;
    }
    let chosen = |k: u64| {
        let parameters = example("allocator.py", json!({ "k": k, "pause": 10 })).to_string();
        testing::allocate::<ProcessAllocator>(&parameters, &[5.0, 4.0, 3.0, 2.0], |request| {
            request.ledger[0].last_chosen = Some(95);
            request.ledger[1].last_chosen = Some(50);
        })
    };
    assert_eq!(chosen(2).unwrap().active, [false, true, true, false]);
    assert_eq!(chosen(4).unwrap().active, [true; 4]);
    let error = chosen(5).unwrap_err().to_string();
    assert_eq!(error, "ValueError: k is 5, but there are 4 modules");
}

#[test]
fn a_call_that_is_unknown_has_its_default_and_is_not_made_again() {
    // `make`, `needs`, `wants`, `observe` and `observe`: a second `wants` would have the answer to `observe`.
    let parameters = answers(&[
        OK,
        NEEDS,
        UNKNOWN,
        OK,
        OK,
        r#"{"ok":true,"scores":[1,2.5,3]}"#,
    ]);
    let mut scorer = testing::scorer::<ProcessScorer>(&parameters, 3).unwrap();
    for _ in 0..2 {
        assert_eq!(scorer.wants(&Upcoming::default()), Wants::ALL);
        scorer.observe(&Observation::default()).unwrap();
    }
    assert_eq!(
        scorer.scores(&testing::score_request(3)).unwrap(),
        [1.0, 2.5, 3.0]
    );
}

#[test]
fn what_cannot_be_started_is_named() {
    for (parameters, words) in [
        (json!({ "command": [] }), &["`command` is empty"][..]),
        (
            json!({ "command": ["no-such-program", "-x"] }),
            &["`no-such-program -x`", "cannot be started"],
        ),
        (
            json!({ "command": ["sh"], "cwd": "no/such" }),
            &["`cwd`", "no/such"],
        ),
        (
            json!({ "command": ["sh"], "timeout_seconds": 0.0 }),
            &["`timeout_seconds`", "found 0"],
        ),
        (json!({}), &["`command`"]),
    ] {
        let error = refusal(&parameters.to_string());
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn a_command_that_ends_is_an_error_with_its_exit_code_and_last_words() {
    let error = refusal(&shell(
        "for n in 1 2 3 4 5 6 7; do echo word $n >&2; done; exit 3",
    ));
    for word in [
        "ended with exit code 3",
        "`make`",
        "word 3 / word 4",
        "word 7",
    ] {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    assert!(!error.contains("word 2"), "{error}");
    let error = refusal(&shell("read call; kill -9 $$"));
    assert!(error.contains("was ended by signal 9"), "{error}");
    let error = refusal(&shell("exec >&-; cat >/dev/null; sleep 60"));
    assert!(error.contains("closed its standard output"), "{error}");
    // From then on it is asked nothing more.
    let parameters = answers(&[OK, NEEDS, "no answer"]);
    let mut scorer = testing::scorer::<ProcessScorer>(&parameters, 3).unwrap();
    let first = scorer.observe(&Observation::default()).unwrap_err();
    assert_eq!(scorer.save().unwrap_err(), first);
}

#[test]
fn what_is_no_answer_is_shown() {
    for (answer, words) in [
        (
            "hello",
            &[
                "answered `make` with \"hello\\n\"",
                "not JSON",
                "print to standard error",
            ][..],
        ),
        ("[1]", &["not an object of JSON"]),
        (r#"{"ok":true,"colour":1}"#, &["`colour`"]),
        (r#"{"error":"it is too early"}"#, &["it is too early"]),
        (UNKNOWN, &["does not know the call `make`"]),
    ] {
        let error = refusal(&answers(&[answer]));
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
    let needs = answers(&[OK, r#"{"ok":true,"needs":{"oracle":true}}"#]);
    assert!(refusal(&needs).contains("it needs `oracle`"));
    let error = refusal(&shell(r"printf '\377\n'; cat >&2"));
    assert!(error.contains("not UTF-8"), "{error}");
}

#[test]
fn one_that_does_not_answer_is_killed_with_all_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; wait", file.display());
    let parameters = json!({ "command": ["sh", "-c", script], "timeout_seconds": 0.5 }).to_string();
    let begun = Instant::now();
    let error = refusal(&parameters);
    assert!(begun.elapsed() < Duration::from_secs(10));
    for word in [
        "`sh -c sleep 60",
        "did not answer `make` within 0.5 s",
        "timeout_seconds",
    ] {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    assert_ends(&std::fs::read_to_string(file).unwrap());
    // Nor is one waited for that does not even read: 10,000 modules are more than a pipe holds.
    let parameters = json!({ "command": ["sleep", "60"], "timeout_seconds": 0.5 }).to_string();
    let error = testing::scorer::<ProcessScorer>(&parameters, 10_000)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("did not answer `make`"), "{error}");
}

#[test]
fn it_ends_with_the_plugin() {
    let folder = tempfile::tempdir().unwrap();
    for (name, last) in [("willing", "cat >&2"), ("deaf", "sleep 60")] {
        let file = folder.path().join(name);
        let script = format!(
            "echo $$ > {}; read call; echo '{OK}'; read call; echo '{NEEDS}'; {last}",
            file.display()
        );
        drop(testing::scorer::<ProcessScorer>(&shell(&script), 3).unwrap());
        assert_ends(&std::fs::read_to_string(file).unwrap());
    }
}

/// The process of this number is no more, or soon no more.
#[track_caller]
fn assert_ends(id: &str) {
    let id: i32 = id.trim().parse().unwrap();
    for _ in 0..200 {
        // SAFETY: a system call that sends nothing.
        if unsafe { libc::kill(id, 0) } != 0 {
            return;
        }
        // One that nobody waits for is still there, but a zombie.
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        if state.contains(") Z ") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("process {id} is still there");
}

#[test]
fn folder_and_environment_are_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"read call; echo "{\"error\":\"$(pwd -P) $WHO\"}"; cat >&2"#;
    let parameters = json!({
        "command": ["sh", "-c", script], "cwd": folder.path(), "env": { "WHO": "someone" },
    });
    let found = refusal(&parameters.to_string());
    let expected = folder.path().canonicalize().unwrap();
    assert_eq!(found, format!("{} someone", expected.display()));
}

#[test]
fn both_kinds_are_in_one_library() {
    use dynalora_plugin_api::abi::host;
    use dynalora_plugin_api::abi::plugin::{AllocatorSide, ScorerSide, table};
    let table = table::<(ScorerSide<ProcessScorer>, AllocatorSide<ProcessAllocator>)>();
    for kind in [Kind::Scorer, Kind::Allocator] {
        let manifest = host::manifest(table, kind, "0.1.0").unwrap();
        assert_eq!((manifest.name.as_str(), manifest.kind), ("process", kind));
        // To describe it, no command is started.
        assert_eq!(manifest.needs, None);
    }
}
