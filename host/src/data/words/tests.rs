use std::path::Path;

use super::*;
use crate::recipe::{Column, Columns, DataConfig, Format, Problem};

fn config(folder: &Path, file: &str, text: &str) -> DataConfig {
    let path = folder.join(file);
    std::fs::write(&path, text).expect("a temporary file");
    DataConfig {
        train: Some(path),
        problem: Some(Problem::TokenClassification),
        ..DataConfig::default()
    }
}

fn columns(tokens: Column, tags: Column) -> Option<Columns> {
    let columns: Columns = toml::from_str("").expect("none is needed");
    Some(Columns {
        tokens: Some(tokens),
        tags: Some(tags),
        ..columns
    })
}

fn refusal(config: &DataConfig) -> String {
    let error = read(config).expect_err("it is refused");
    assert_eq!(error.exit_code(), 2);
    let help = miette::Diagnostic::help(&error).map(|help| help.to_string());
    format!("{error}\n{}", help.unwrap_or_default())
}

fn sentence(words: &[&str], classes: &[u32]) -> Sentence {
    Sentence {
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        classes: Some(classes.to_vec()),
    }
}

const CONLL: &str = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n\
                     Peter NNP B-NP B-PER\r\nBlackburn NNP I-NP I-PER\r\n";

#[test]
fn columns_of_conll() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = config(folder.path(), "a.conll", CONLL);
    let found = read(&config).expect("it is right");
    assert_eq!(found.labels, ["B-ORG", "B-PER", "I-PER", "O"]);
    let expected = [
        sentence(&["EU", "rejects"], &[0, 3]),
        sentence(&["Peter", "Blackburn"], &[1, 2]),
    ];
    assert_eq!(found.train, expected);
    assert_eq!((found.validation, found.test), (None, None));

    config.columns = columns(Column::Index(1), Column::Index(2));
    config.labels = Some(["B-VP", "I-NP", "B-NP"].map(str::to_owned).to_vec());
    let found = read(&config).expect("it is right");
    assert_eq!(found.train[0], sentence(&["NNP", "VBZ"], &[2, 0]));

    // Tabs part where there are some, and then a word may have blanks.
    let text = "New York\tB-x\nis\tO\n";
    let config = DataConfig {
        format: Some(Format::Conll),
        ..self::config(folder.path(), "b.txt", text)
    };
    let found = read(&config).expect("it is right");
    assert_eq!(found.train, [sentence(&["New York", "is"], &[0, 1])]);
}

#[test]
fn what_is_wrong_is_said_by_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text, parts) in [
        (
            "a.conll",
            "a O\nb\n",
            &["line 2", "1 columns, where line 1 has 2"][..],
        ),
        ("a.conll", "a\nb\n", &["line 1", "a word without a tag"]),
        ("a.conll", "\n\n", &["no rows"]),
        ("a.conll", "a O\nb O\n", &["1 different tags"]),
        (
            "a.conll",
            "a 1\nb 2\n",
            &["the tags are numbers (1, 2)", "labels ="],
        ),
        (
            "a.jsonl",
            "{\"tokens\": [\"a\"], \"ner_tags\": [\"O\", \"B\"]}",
            &["line 1", "1 words, but 2 tags"],
        ),
        (
            "a.jsonl",
            "{\"tokens\": [], \"ner_tags\": []}\n{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\", \"B\"]}",
            &["line 1", "no words"],
        ),
        (
            "a.jsonl",
            "{\"tokens\": \"a b\", \"ner_tags\": [\"O\"]}\n{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\", \"B\"]}",
            &["line 1", "the words are no list"],
        ),
        (
            "a.jsonl",
            "{\"tokens\": [\"a\", null], \"ner_tags\": [\"O\", \"B\"]}",
            &["line 1", "a list with null in it"],
        ),
        (
            "a.jsonl",
            "{\"tokens\": [\"a\", \"b\"], \"ner_tags\": null}\n{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\", \"B\"]}",
            &["line 1", "the tags are missing"],
        ),
        (
            "a.jsonl",
            "{\"words\": [\"a\"], \"ner_tags\": [\"O\"]}",
            &["line 1", "`tokens`", "words"],
        ),
        ("a.csv", "a,O\n", &["a.csv", "`csv`", "conll"]),
        ("a.txt", "a O\n", &["a.txt", "`txt`", "format = \"conll\""]),
    ] {
        let said = refusal(&config(folder.path(), name, text));
        for part in parts {
            assert!(
                said.contains(part),
                "{part:?} is missing for {text:?}:\n{said}"
            );
        }
    }
    let named = DataConfig {
        columns: columns(Column::Name("word".to_owned()), Column::Index(1)),
        ..config(folder.path(), "a.conll", CONLL)
    };
    let said = refusal(&named);
    assert!(
        said.contains("`word`") && said.contains("no names"),
        "{said}"
    );
    let unknown = DataConfig {
        labels: Some(["O", "B-ORG"].map(str::to_owned).to_vec()),
        ..config(folder.path(), "a.conll", CONLL)
    };
    let said = refusal(&unknown);
    assert!(said.contains("line 7: the label \"B-PER\""), "{said}");
}

#[test]
fn tags_may_be_indices_of_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "{\"text\": [\"a\", \"b\"], \"pos\": [1, 0]}\n";
    let mut config = config(folder.path(), "a.jsonl", text);
    let name = |name: &str| Column::Name(name.to_owned());
    config.columns = columns(name("text"), name("pos"));
    assert!(refusal(&config).contains("the tags are numbers (0, 1)"));
    config.labels = Some(["O", "B-X"].map(str::to_owned).to_vec());
    let found = read(&config).expect("it is right");
    assert_eq!(found.train, [sentence(&["a", "b"], &[1, 0])]);
}

#[test]
fn a_test_file_may_come_without_tags() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = config(folder.path(), "a.conll", CONLL);
    for (name, text) in [
        ("test.conll", "a\nb\n\nc\n"),
        (
            "test.jsonl",
            "{\"tokens\": [\"a\", \"b\"]}\n{\"tokens\": [\"c\"], \"ner_tags\": null}\n",
        ),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        config.test = Some(path);
        let test = read(&config).expect("it is right").test.expect("a split");
        assert_eq!(test[1].words, ["c"]);
        assert!(test.iter().all(|sentence| sentence.classes.is_none()));
    }
}

#[test]
fn a_batch_weighs_as_many_words_as_it_has() {
    let encoded = Encoded {
        ids: vec![2, 5, 6, 7, 3, 2, 8, 3],
        type_ids: vec![0; 8],
        offsets: vec![0, 5, 8],
        labels: vec![Label::Words(2), Label::Words(1)],
        words: Some(Words {
            offsets: vec![0, 2, 3],
            numbers: vec![0, 1, 0],
            tokens: vec![1, 3, 1],
            classes: vec![4, 0, 2],
            names: Arc::default(),
        }),
        ..Encoded::default()
    };
    let batch = encoded.batch(&[1, 0]);
    assert_eq!(batch.word_rows(), Some(vec![1, 4, 6]));
    assert_eq!(batch.expected(), [2, 4, 0].map(Label::Class));
    assert_eq!(batch.weight(), 3);
    assert_eq!(batch.next_tokens(), None);
    assert_eq!((encoded.answers(0), encoded.answers(1)), (0..2, 2..3));
    // What the cache of the frozen prefix runs has no labels.
    assert_eq!(batch.part(&[1]).word_rows(), None);
    let second = encoded.select(&[1]);
    assert_eq!(second.expected(), [Label::Class(2)]);
}

#[test]
fn examples_are_selected_with_their_words() {
    let words = Words {
        offsets: vec![0, 2, 3, 5],
        numbers: vec![0, 1, 0, 0, 2],
        tokens: vec![1, 2, 1, 1, 3],
        classes: vec![4, 3, 2, 1, 0],
        names: Arc::default(),
    };
    let some = words.select(&[2, 0]);
    assert_eq!(some.offsets, [0, 2, 4]);
    assert_eq!(some.numbers, [0, 2, 0, 1]);
    assert_eq!(some.tokens, [1, 3, 1, 2]);
    assert_eq!(some.classes, [1, 0, 4, 3]);
    let unlabelled = Words {
        classes: Vec::new(),
        ..words
    };
    assert!(unlabelled.select(&[1]).classes.is_empty());
}
