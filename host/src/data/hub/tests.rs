use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::hub::testing::{Serving, client, serve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What the Hub says of a revision.
fn listing(revision: &str, commit: &str, files: &[&str]) -> (String, Vec<u8>) {
    let files: Vec<_> = files
        .iter()
        .map(|file| json!({"rfilename": file}))
        .collect();
    let said = json!({"sha": commit, "siblings": files}).to_string();
    (format!("revision/{revision}"), said.into_bytes())
}

/// A Hub with one data set, whose files hold their own names.
fn dataset(files: &[&str], readme: &str) -> Serving {
    let all: Vec<&str> = files.iter().copied().chain(["README.md"]).collect();
    let mut serving = Serving::of(Vec::new());
    serving.commit = COMMIT.to_owned();
    serving.files.push(listing("main", COMMIT, &all));
    serving.files.push(listing(COMMIT, COMMIT, &all));
    for file in files {
        serving
            .files
            .push(((*file).to_owned(), file.as_bytes().to_vec()));
    }
    serving
        .files
        .push(("README.md".to_owned(), readme.as_bytes().to_vec()));
    serving
}

fn config(toml: &str) -> DataConfig {
    toml::from_str(toml).expect("a table")
}

const ALL: [Part; 3] = [Part::Train, Part::Validation, Part::Test];

fn fetch(hub: &Hub, config: &DataConfig) -> Result<Files> {
    let asked = Asked {
        config,
        id: "owner/name",
        parts: &ALL,
    };
    asked.fetch(hub)
}

/// What the files of each split hold, which is their names.
fn names(files: Files) -> [Vec<String>; 3] {
    files.map(|paths| {
        let names = paths
            .iter()
            .map(|path| std::fs::read_to_string(path).expect("fetched"));
        names.collect()
    })
}

fn served(serving: Serving, toml: &str) -> Result<[Vec<String>; 3], String> {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let found = fetch(&client(serve(serving), cache.path()), &config(toml));
    found.map(names).map_err(|error| {
        assert_eq!(error.exit_code(), 2, "{error}");
        format!("{:?}", miette::Report::new(error))
    })
}

#[track_caller]
fn says(said: &str, part: &str) {
    let flat = |text: &str| -> String {
        text.split_whitespace()
            .filter(|word| *word != "│")
            .collect()
    };
    assert!(
        flat(said).contains(&flat(part)),
        "{part:?} is missing:\n{said}"
    );
}

const README_OF_TWO: &str = "---\nlicense: mit\nlanguage:\n- en\nconfigs:\n- config_name: first\n  data_files:\n  - split: train\n    path: first/train-*\n  \
    - split: validation\n    path:\n    - first/dev-a.parquet\n    - first/dev-b.parquet\n- config_name: second\n  default: true\n  data_files:\n  \
    - split: train\n    path: second/**\n  data_dir: more\n---\n# A data set\nconfigs: none\n";
const OF_TWO: [&str; 7] = [
    "first/train-00000-of-00002.parquet",
    "first/train-00001-of-00002.parquet",
    "first/dev-a.parquet",
    "first/dev-b.parquet",
    "more/second/deep/a.parquet",
    "more/second/b.parquet",
    "more/second/README.md",
];

#[test]
fn the_readme_says_which_files_are_which_split_of_which_configuration() {
    let serving = || dataset(&OF_TWO, README_OF_TWO);
    let [train, validation, test] = served(serving(), "config = 'first'").expect("found");
    assert_eq!(train, OF_TWO[..2]);
    assert_eq!(validation, OF_TWO[2..4]);
    assert!(test.is_empty());
    let [train, validation, _] = served(serving(), "").expect("the default");
    assert_eq!(
        train,
        ["more/second/b.parquet", "more/second/deep/a.parquet"]
    );
    assert!(validation.is_empty());
    // Another split is trained on.
    let [train, ..] = served(serving(), "config = 'first'\ntrain = 'validation'").expect("found");
    assert_eq!(train, OF_TWO[2..4]);
    for (toml, parts) in [
        (
            "config = 'third'",
            &["no configuration `third`", "first, second"][..],
        ),
        (
            "config = 'first'\ntest = 'hidden'",
            &[
                "no split `hidden` to read as data.test",
                "train, validation",
            ],
        ),
    ] {
        let said = served(serving(), toml).expect_err("refused");
        parts.iter().for_each(|part| says(&said, part));
    }
    for (readme, part) in [
        (
            README_OF_TWO.replace("  default: true\n", ""),
            "several configurations",
        ),
        (
            README_OF_TWO.replace("first/train-*", "first/training-*"),
            "there is no such file",
        ),
        (
            README_OF_TWO.replace("path: first/train-*", "pth: x"),
            "neither patterns nor splits",
        ),
        (
            README_OF_TWO.replace("configs:\n- ", "configs:\n- - "),
            "README.md",
        ),
    ] {
        let said = served(dataset(&OF_TWO, &readme), "config = 'first'");
        let said = said.or_else(|said| match part {
            "several configurations" => Ok(Default::default()),
            _ => Err(said),
        });
        match part {
            "several configurations" => {
                let said = served(dataset(&OF_TWO, &readme), "").expect_err("refused");
                says(&said, part);
            }
            _ => says(&said.expect_err("refused"), part),
        }
    }
}

#[test]
fn without_a_word_names_tell_the_splits() {
    // As `push_to_hub` writes it, and any other split.
    let files = [
        "data/train_sft-00000-of-00001.parquet",
        "data/test_sft-00000-of-00001-abc.parquet",
        "elsewhere/train.parquet",
    ];
    let [train, validation, test] = served(
        dataset(&files, "no YAML"),
        "train = 'train_sft'\nvalidation = 'test_sft'",
    )
    .expect("found");
    assert_eq!([train, validation], [&files[..1], &files[1..2]]);
    assert!(test.is_empty());
    // By configuration.
    let files = [
        "cola/train-00000-of-00001.parquet",
        "sst2/train-00000-of-00001.parquet",
        "cola/validation.parquet",
    ];
    let [train, validation, _] =
        served(dataset(&files, "no YAML"), "config = 'cola'").expect("found");
    assert_eq!([train, validation], [&files[..1], &files[2..]]);
    says(
        &served(dataset(&files, "no YAML"), "").expect_err("two"),
        "they are: cola, sst2",
    );
    says(
        &served(dataset(&files, "no YAML"), "config = 'rte'").expect_err("none"),
        "nor is there a folder with data of that name",
    );
    // Other formats, in the words that people have for splits.
    let files = [
        "training.csv",
        "my-dev.jsonl",
        "eval_1.tsv",
        "notes.txt.md",
        ".hidden/train.csv",
    ];
    let [train, validation, test] = served(dataset(&files, "no YAML"), "").expect("found");
    assert_eq!(
        [train, validation, test],
        [&files[..1], &files[1..2], &files[2..3]]
    );
    // Shards that are missing.
    let files = ["data/train-00001-of-00002.parquet"];
    says(
        &served(dataset(&files, "no YAML"), "").expect_err("half"),
        "is one of 2",
    );
}

/// What `datasets` itself makes of such repositories (`tests/oracle/layouts.py`).
#[test]
fn splits_are_those_of_datasets() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/layouts.json");
    let text = std::fs::read_to_string(path).expect("a fixture");
    let layouts: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert!(layouts.len() >= 10);
    for layout in layouts {
        let listing: Vec<String> = serde_json::from_value(layout["files"].clone()).expect("texts");
        let chosen = Chosen {
            id: "owner/name",
            config: None,
            listing: &listing,
        };
        let found = match &layout["data_files"] {
            Value::Null => chosen.by_names(""),
            given => chosen.splits(&[Config {
                config_name: "it".to_owned(),
                data_files: Some(given.clone()),
                data_dir: None,
                default: false,
            }]),
        };
        let found = found.unwrap_or_else(|error| panic!("{layout}: {error}"));
        let theirs: Splits = serde_json::from_value(layout["splits"].clone()).expect("splits");
        assert_eq!(found, theirs, "{layout}");
    }
}

#[test]
fn the_hubs_conversion_is_the_last_resort() {
    let converted = [
        "default/train/0000.parquet",
        "default/train/0001.parquet",
        "default/test/0000.parquet",
        "other/partial-train/0000.parquet",
    ];
    let serving = |files: &[&str]| {
        let mut serving = dataset(&["train.json.gz"], "no YAML");
        let branch = listing("refs%2Fconvert%2Fparquet", OTHER, files);
        serving.files.push(branch);
        for file in files {
            serving
                .files
                .push(((*file).to_owned(), file.as_bytes().to_vec()));
        }
        serving
    };
    let [train, validation, test] = served(serving(&converted), "").expect("found");
    assert_eq!([train, test], [&converted[..2], &converted[2..3]]);
    assert!(validation.is_empty());
    for (toml, part) in [
        ("config = 'other'", "only a part of its train split"),
        ("config = 'third'", "it has: default, other"),
        ("revision = 'main'", "is not of the revision"),
    ] {
        let said = served(serving(&converted), toml).expect_err("refused");
        says(&said, part);
        if toml.starts_with("revision") {
            says(&said, "train.json.gz is of a format that is not read");
        }
    }
    let said = served(dataset(&["train.json.gz"], "no YAML"), "").expect_err("no such branch");
    says(&said, "there is no branch refs/convert/parquet");
    says(&said, "train.json.gz");
}

#[test]
fn what_is_cached_needs_no_network_and_stays_at_its_commit() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let first = config("config = 'first'");
    let online = client(serve(dataset(&OF_TWO, README_OF_TWO)), cache.path());
    let files = fetch(&online, &first).expect("fetched");
    assert!(files[0][0].to_string_lossy().contains(COMMIT), "{files:?}");
    let nowhere = || client("http://127.0.0.1:9".to_owned(), cache.path());
    assert_eq!(fetch(&nowhere(), &first).expect("cached"), files);
    let offline = nowhere().without_network("HF_HUB_OFFLINE");
    assert_eq!(fetch(&offline, &first).expect("cached"), files);
    // By its commit as well.
    let pinned = config(&format!("config = 'first'\nrevision = '{COMMIT}'"));
    assert_eq!(fetch(&offline, &pinned).expect("cached"), files);
    for (toml, part) in [
        ("", "more/second/b.parquet"),
        ("revision = 'v2'", "\"v2\" is not in the Hub's cache"),
    ] {
        let error = fetch(&offline, &config(toml))
            .expect_err("not cached")
            .to_string();
        assert!(
            error.contains(part) && error.contains("HF_HUB_OFFLINE"),
            "{error}"
        );
    }
    // As `snapshot_download` leaves it: files and no list of them.
    std::fs::remove_dir_all(cache.path().join("datasets--owner--name/.files")).expect("kept");
    assert_eq!(fetch(&offline, &first).expect("cached"), files);
}

#[test]
fn several_that_fetch_at_once_have_the_same_files() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let endpoint = serve(Serving {
        slow: Duration::from_millis(20),
        ..dataset(&OF_TWO, README_OF_TWO)
    });
    let first = config("config = 'first'");
    let all: Vec<Files> = std::thread::scope(|scope| {
        let fetches = [(); 3].map(|()| {
            let (hub, first) = (client(endpoint.clone(), cache.path()), &first);
            scope.spawn(move || fetch(&hub, first).expect("fetched"))
        });
        fetches.map(|fetch| fetch.join().expect("no panic")).into()
    });
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(names(all[0].clone())[0], OF_TWO[..2]);
}

#[test]
fn what_goes_wrong_on_the_way_is_said() {
    let serving = || dataset(&OF_TWO, README_OF_TWO);
    let fails = |serving: Serving, part: &str| {
        let said = served(serving, "config = 'first'").expect_err("refused");
        says(&said, part);
    };
    for (status, part) in [
        (401, "the Hub refuses access to it"),
        (403, "set HF_TOKEN"),
        (
            404,
            "the Hub has no data set owner/name with a revision \"main\"",
        ),
        (500, "answers with status 500"),
    ] {
        fails(
            Serving {
                refuses: Some(status),
                ..serving()
            },
            part,
        );
    }
    fails(
        Serving {
            cut: true,
            ..serving()
        },
        "cannot be reached, or the download broke off",
    );
    let said = fetch(
        &client("http://127.0.0.1:9".to_owned(), Path::new("/nowhere")),
        &config(""),
    );
    says(
        &said.expect_err("nobody there").to_string(),
        "cannot be reached",
    );
    // A file that is listed and not there.
    let mut lacking = serving();
    lacking
        .files
        .retain(|(name, _)| name != "first/dev-b.parquet");
    fails(lacking, "no such file");
    // Names that would lead out of the folder.
    let mut out = serving();
    out.files[0] = listing("main", COMMIT, &["../../x.parquet"]);
    fails(out, "no name of a file");

    let sum = |bytes: &[u8]| crate::file::sha256(bytes);
    let slow = Serving {
        slow: Duration::from_millis(50),
        sums: Some(sum),
        ..serving()
    };
    served(slow, "config = 'first'").expect("slow, but whole");
    let cache = tempfile::tempdir().expect("a temporary folder");
    let wrong = Serving {
        sums: Some(|bytes| crate::file::sha256(&[bytes, b"more"].concat())),
        ..serving()
    };
    let first = config("config = 'first'");
    let error = fetch(&client(serve(wrong), cache.path()), &first).expect_err("another content");
    says(
        &error.to_string(),
        "with another content than the Hub announced",
    );
    // Nothing of it is taken for good the next time.
    let files = fetch(&client(serve(serving()), cache.path()), &first).expect("good");
    assert_eq!(names(files)[1], OF_TWO[2..4]);
}

#[test]
fn whatever_a_readme_says_is_taken_or_refused() {
    let listing: Vec<String> = OF_TWO.iter().map(|file| (*file).to_owned()).collect();
    let odd = [
        "- ", ": ", "&a ", "*a", "!!x ", "{", "[", "\t", "\n", "---", "**", "../", "null", "[a-",
        "{a,b", "\u{0}",
    ];
    let (mut taken, mut state) = (0, 1u64);
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..3000 {
        let mut text: Vec<char> = README_OF_TWO.chars().collect();
        for _ in 0..=next(3) {
            let at = next(text.len());
            match next(3) {
                0 => drop(text.drain(at..(at + 1 + next(12)).min(text.len()))),
                1 => drop(text.splice(at..at, odd[next(odd.len())].chars())),
                _ => text[at] = char::from(b' ' + next(95) as u8),
            }
        }
        let text: String = text.into_iter().collect();
        let Ok(configs) = configs_of(&text) else {
            continue;
        };
        for config in [None, Some("first"), Some("second")] {
            let chosen = Chosen {
                id: "owner/name",
                config,
                listing: &listing,
            };
            taken += usize::from(chosen.splits(&configs).is_ok());
        }
    }
    assert!(taken > 500, "{taken}");
    // Aliases that name each other to billions of values are refused, and not unfolded.
    let mut bomb = "---\na0: &a0 [x, x]\n".to_owned();
    for nth in 1..40 {
        let before = nth - 1;
        bomb += &format!("a{nth}: &a{nth} [*a{before}, *a{before}]\n");
    }
    bomb += "configs: *a39\n---\n";
    assert!(configs_of(&bomb).is_err());
}
