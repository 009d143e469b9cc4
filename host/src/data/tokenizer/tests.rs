//! Long texts in part, and what `tokenizer_config.json` says. Ids marked so are of Transformers 5.23's
//! `AutoTokenizer`.

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    fixtures.join(name).join("tokenizer.json")
}

fn example(text: &str, pair: Option<&str>) -> Example {
    Example {
        text: text.to_owned(),
        text_pair: pair.map(str::to_owned),
        label: None,
    }
}

/// A copy of a fixture's folder with another `tokenizer_config.json`, or none.
fn folder(name: &str, config: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = fixture(name);
    let from = from.parent().expect("a folder");
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(from.join(file), folder.path().join(file)).expect("a fixture");
    }
    if let Some(config) = config {
        std::fs::write(folder.path().join(CONFIG), config).expect("it writes");
    }
    folder
}

fn open(folder: &tempfile::TempDir, max_length: usize) -> Result<Encoder> {
    Encoder::open(&folder.path().join("tokenizer.json"), max_length)
}

fn ids(encoder: &Encoder, text: &str) -> Vec<u32> {
    encoder.encode(&example(text, None)).expect("it encodes").0
}

/// What is given when a text is read whole, however long it is.
fn whole(encoder: &Encoder, example: &Example) -> (Vec<u32>, Vec<u32>) {
    let framed = encoder.frame(&example.text, example.text_pair.as_deref());
    framed.expect("it encodes")
}

/// What the library itself gives.
fn by_library(encoder: &Encoder, example: &Example) -> (Vec<u32>, Vec<u32>) {
    let mut tokenizer = encoder.framing.clone();
    let truncation = TruncationParams {
        max_length: encoder.max_length,
        direction: encoder.side,
        ..TruncationParams::default()
    };
    tokenizer
        .with_truncation(Some(truncation))
        .expect("it is set");
    let input: tokenizers::EncodeInput<'_> = match &example.text_pair {
        Some(pair) => (example.text.as_str(), pair.as_str()).into(),
        None => example.text.as_str().into(),
    };
    // `encode_fast` forgets the second text's type where there is no post-processor.
    let encoding = tokenizer.encode(input, true).expect("it encodes");
    (
        encoding.get_ids().to_vec(),
        encoding.get_type_ids().to_vec(),
    )
}

#[test]
fn texts_are_cut_and_framed_as_by_the_library() {
    let words = "the cat, [MASK] sät on Ä mat <mask> 中文 and so did I don't know how many dogs";
    let texts: Vec<String> = (0..words.len())
        .step_by(7)
        .filter_map(|end| words.get(..end).map(str::to_owned))
        .collect();
    for (name, side) in [
        ("tiny-bert", "right"),
        ("tiny-bert", "left"),
        ("tiny-roberta", "right"),
        ("tiny-roberta", "left"),
        ("tiny-distilbert", "right"),
    ] {
        let folder = folder(name, Some(&format!(r#"{{"truncation_side": "{side}"}}"#)));
        // Without a post-processor too.
        for bare in [false, true] {
            for max_length in [5, 6, 11, 64] {
                let mut encoder = open(&folder, max_length).expect("a tokenizer");
                if bare {
                    encoder
                        .framing
                        .with_post_processor(None::<PostProcessorWrapper>);
                }
                for text in &texts {
                    for pair in
                        std::iter::once(None).chain(texts.iter().map(|pair| Some(pair.as_str())))
                    {
                        let example = example(text, pair);
                        assert_eq!(
                            whole(&encoder, &example),
                            by_library(&encoder, &example),
                            "{name}: {example:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Texts past the length up to which they are read whole: words of any alphabet, runs of blanks, special tokens,
/// words without an end.
fn long_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z]{1,9} ",
        4 => "[a-zA-Z0-9]{1,4}[.,!'\"-]? ",
        2 => "[ \\t\\n\u{a0}]{1,6}",
        2 => "[äéß中文字ñ\u{301}\u{200b}]{1,5} ?",
        1 => Just("[MASK] ".to_owned()),
        1 => Just(" <mask>".to_owned()),
        1 => "[a-z]{90,200}",
    ];
    (prop::collection::vec(piece, 20..200), 0usize..60_000).prop_map(|(pieces, size)| {
        let once = pieces.concat();
        once.repeat(1 + size / once.len().max(1))
    })
}

/// A tokenizer of XLM-RoBERTa's kind: pieces of words, blanks among them, the likeliest of all divisions.
fn unigram(config: &str, split: bool) -> tempfile::TempDir {
    let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let pieces = [
        "▁", "th", "he", "an", "▁a", "▁the", "er", "▁s", "ab", "bc", "▁b", "re", "aa", "aaa",
    ];
    let letters = ('a'..='z').chain('A'..='Z').map(String::from);
    let mut vocabulary = vec![
        ("<s>".to_owned(), 0.0),
        ("</s>".to_owned(), 0.0),
        ("<unk>".to_owned(), 0.0),
        ("<mask>".to_owned(), 0.0),
    ];
    let pieces = pieces
        .iter()
        .map(|piece| (*piece).to_owned())
        .chain(letters);
    vocabulary.extend(
        pieces
            .enumerate()
            .map(|(rank, piece)| (piece, -2.0 - rank as f64 * 0.13)),
    );
    let special = |id: u64, word: &str| {
        serde_json::json!({"id": id, "content": word, "single_word": false, "lstrip": id == 3, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<unk>"), special(3, "<mask>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": if split {
            serde_json::json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]})
        } else { metaspace },
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0],
            "trim_offsets": true, "add_prefix_space": false},
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false}
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("it writes");
    std::fs::write(folder.path().join(CONFIG), config).expect("it writes");
    folder
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A part of a long text gives the ids that all of it gives, for each family, side and length.
    #[test]
    fn a_part_gives_the_ids_of_the_whole(
        one in long_text(),
        other in long_text(),
        max_length in 6usize..70,
        kind in 0usize..4,
        left in any::<bool>(),
        pair in any::<bool>(),
    ) {
        let side = if left { "left" } else { "right" };
        let config = format!(r#"{{"truncation_side": "{side}"}}"#);
        let folder = match kind {
            0 => folder("tiny-roberta", Some(&config)),
            1 => folder("tiny-bert", Some(&config)),
            _ => unigram(&config, kind == 2),
        };
        let encoder = open(&folder, max_length).expect("a tokenizer");
        let example = example(&one, pair.then_some(other.as_str()));
        let expected = whole(&encoder, &example);
        prop_assert_eq!(encoder.encode(&example).expect("it encodes"), expected);
    }
}

#[test]
fn a_long_text_is_read_in_part_and_a_word_without_end_is_refused() {
    let encoder = Encoder::open(&fixture("tiny-bert"), 64).expect("a tokenizer");
    let text = "the cat sat on a mat, ".repeat(50_000_000 / 22);
    let (part, tokens) = encoder.decisive(&text, 65).expect("it is read");
    assert!(part.len() < 200_000 && tokens.is_some(), "{}", part.len());
    assert_eq!(ids(&encoder, &text), ids(&encoder, &text[..10_000]));
    // Of two such texts the longer one keeps the odd token.
    let (one, other) = ("a b c d ".repeat(20_000), "a b c d ".repeat(20_001));
    for max_length in [20, 21] {
        let encoder = Encoder::open(&fixture("tiny-bert"), max_length).expect("a tokenizer");
        for pair in [example(&one, Some(&other)), example(&other, Some(&one))] {
            assert_eq!(
                encoder.encode(&pair).expect("it encodes"),
                whole(&encoder, &pair)
            );
        }
    }
    let endless = "x".repeat(MOST + 1);
    let error = encoder
        .encode(&example(&endless, None))
        .expect_err("refused");
    assert!(error.contains("too long"), "{error}");
    // What is not too much is read whole.
    let word = "x".repeat(100_000);
    assert_eq!(
        ids(&encoder, &word),
        whole(&encoder, &example(&word, None)).0
    );
}

#[test]
fn the_configs_casing_counts() {
    let with = |config| {
        ids(
            &open(&folder("tiny-bert", Some(config)), 64).expect("a tokenizer"),
            "Thé Cat",
        )
    };
    let lower = with(r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#);
    assert_eq!(
        lower,
        ids(
            &Encoder::open(&fixture("tiny-bert"), 64).expect("a tokenizer"),
            "the cat"
        )
    );
    let cased = with(r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false}"#);
    assert_ne!(cased, lower);
    // The class that takes tokenizer.json as it is does not read the key.
    assert_eq!(
        with(r#"{"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false}"#),
        lower
    );
    let accents = with(r#"{"tokenizer_class": "BertTokenizerFast", "strip_accents": false}"#);
    assert_ne!(accents, lower);
    let chinese = |config| {
        ids(
            &open(&folder("tiny-bert", Some(config)), 64).expect("a tokenizer"),
            "中文",
        )
    };
    assert_eq!(chinese("{}").len(), 4);
    assert_eq!(chinese(r#"{"tokenize_chinese_chars": false}"#).len(), 3);

    // Without the file it is not known what was meant.
    let cased = folder("tiny-bert", None);
    let path = cased.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let changed = text.replace("\"lowercase\": true", "\"lowercase\": false");
    assert_ne!(changed, text);
    std::fs::write(&path, changed).expect("it writes");
    let error = open(&cased, 64).err().expect("refused").to_string();
    assert!(
        error.contains("do_lower_case") && error.contains(CONFIG),
        "{error}"
    );
    std::fs::write(cased.path().join(CONFIG), r#"{"do_lower_case": false}"#).expect("it writes");
    assert!(open(&cased, 64).is_ok());
}

#[test]
fn the_configs_prefix_space_side_and_length_count() {
    let with = |config: &str, max_length| {
        ids(
            &open(&folder("tiny-roberta", Some(config)), max_length).expect("a tokenizer"),
            "Hello world and more of it",
        )
    };
    // Of AutoTokenizer, from here on.
    let all = [
        44, 73, 294, 83, 268, 283, 80, 72, 281, 277, 83, 267, 275, 312,
    ];
    let framed = |ids: &[u32]| [&[0], ids, &[2]].concat();
    let class = r#""tokenizer_class": "RobertaTokenizer""#;
    assert_eq!(with(&format!("{{{class}}}"), 60), framed(&all));
    let space = format!("{{{class}, \"add_prefix_space\": true}}");
    assert_eq!(with(&space, 60), framed(&[&[225], &all[..]].concat()));
    let left = format!("{{{class}, \"truncation_side\": \"left\", \"model_max_length\": 6}}");
    assert_eq!(with(&left, 60), framed(&[83, 267, 275, 312]));
    assert_eq!(
        with(&format!("{{{class}, \"model_max_length\": 1e30}}"), 9),
        framed(&all[..7])
    );
    // Elsewhere Transformers' versions differ.
    let other = folder(
        "tiny-roberta",
        Some(r#"{"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": true}"#),
    );
    let error = open(&other, 60).err().expect("refused").to_string();
    assert!(error.contains("add_prefix_space"), "{error}");
    let wrong = folder("tiny-roberta", Some(r#"{"truncation_side": "middle"}"#));
    let error = open(&wrong, 60).err().expect("refused").to_string();
    assert!(error.contains("truncation_side"), "{error}");
}

#[test]
fn the_configs_added_tokens_count() {
    let added = r#"{"added_tokens_decoder": {"200": {"content": "newtoken", "special": false, "normalized": true}}}"#;
    let opened = open(&folder("tiny-bert", Some(added)), 64).expect("a tokenizer");
    assert_eq!(ids(&opened, "newtoken"), [2, 200, 3]);
    let elsewhere = added.replace("200", "300");
    let error = open(&folder("tiny-bert", Some(&elsewhere)), 64)
        .err()
        .expect("refused");
    assert!(error.to_string().contains("newtoken"), "{error}");
    let named = r#"{"additional_special_tokens": ["<x>"]}"#;
    let opened = open(&folder("tiny-bert", Some(named)), 64).expect("a tokenizer");
    assert_eq!(ids(&opened, "<x>"), [2, 200, 3]);
    // A special token that tokenizer.json lists as a word only.
    let bare = folder("tiny-bert", Some("{}"));
    let path = bare.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let tokens = json["added_tokens"].as_array_mut().expect("a list");
    tokens.retain(|token| token["content"] != "[MASK]");
    std::fs::write(&path, json.to_string()).expect("it writes");
    assert_eq!(
        ids(&open(&bare, 64).expect("a tokenizer"), "[MASK]"),
        [2, 4, 3]
    );
}

#[test]
fn a_length_without_room_is_refused() {
    for (name, single, pair) in [("tiny-bert", 2, 3), ("tiny-roberta", 2, 4)] {
        let encoder = |max_length| Encoder::open(&fixture(name), max_length).expect("a tokenizer");
        assert!(encoder(single + 1).check_room(false).is_ok());
        assert!(encoder(single).check_room(false).is_err());
        assert!(encoder(pair + 1).check_room(true).is_ok());
        let error = encoder(pair).check_room(true).expect_err("refused");
        assert!(error.to_string().contains("model.max_length"), "{error}");
    }
}

#[test]
fn damage_is_refused_or_harmless_but_never_a_panic() {
    let folder = folder("tiny-bert", Some("{}"));
    let path = folder.path().join("tokenizer.json");
    let bytes = std::fs::read(&path).expect("a fixture");
    let mut random = 1u64;
    for _ in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..3 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (random >> 33) as usize % damaged.len();
            damaged[at] = (random >> 20) as u8 | 1;
        }
        std::fs::write(&path, damaged).expect("it writes");
        if let Ok(encoder) = open(&folder, 16) {
            let _ = encoder.encode(&example("the cat, [MASK] sat", Some("on Thé mat")));
        }
    }
}
