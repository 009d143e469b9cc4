use ::parquet::basic::{Compression, ZstdLevel};
use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::*;

/// A file of this name with these bytes, in a folder that lives as long as the first value.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    (folder, path)
}

/// A CSV of `sentence`, `other` and `label`, by name.
fn layout(format: Format) -> Layout {
    let named = |name: &str| vec![Column::Name(name.to_owned())];
    Layout {
        format,
        delimiter: if format == Format::Tsv { b'\t' } else { b',' },
        quote: format == Format::Csv,
        quote_guessed: true,
        header: Header::Yes,
        text: named("sentence"),
        text_pair: named("other"),
        label: named("label"),
        needs_label: true,
        skip_short: false,
        allow_empty: false,
        structured: false,
    }
}

fn row(line: usize, text: &str, pair: &str, label: &str) -> Row {
    Row {
        line,
        text: text.to_owned(),
        text_pair: Some(pair.to_owned()),
        label: Some(label.to_owned()),
    }
}

/// The message and the help of the error, which must be the user's.
fn refusal(path: &Path, layout: &Layout) -> String {
    let error = read(path, layout).expect_err("it is refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    let help = miette::Diagnostic::help(&error).expect("it says what to do");
    format!("{error}\n{help}")
}

#[test]
fn csv_follows_the_rules_of_quotes_and_counts_lines_within_them() {
    let (_folder, path) = file(
        "a.csv",
        "\u{feff}label,sentence,id,other\r\n\
         1,\"Off, he said, \"\"with\"\" it\",7,two\r\n\
         0,\"over\r\ntwo lines\",8,\"x\"\r\n\
         \r\n\
         1,half a \"quote,9,y\r\n\
         \r\n",
    );
    assert_eq!(
        read(&path, &layout(Format::Csv)).expect("rows"),
        [
            row(2, "Off, he said, \"with\" it", "two", "1"),
            row(3, "over\r\ntwo lines", "x", "0"),
            row(6, "half a \"quote", "y", "1"),
        ]
    );
}

#[test]
fn tsv_takes_quotes_as_they_come() {
    let (_folder, path) = file(
        "a.tsv",
        "sentence\tother\tlabel\n\"open\ta \"b\" c\t0\nd\te\"\t1",
    );
    let rows = read(&path, &layout(Format::Tsv)).expect("rows");
    assert_eq!(
        rows,
        [row(2, "\"open", "a \"b\" c", "0"), row(3, "d", "e\"", "1")]
    );
}

#[test]
fn columns_can_be_named_by_position() {
    let at = |index| vec![Column::Index(index)];
    let mut positions = Layout {
        delimiter: b';',
        header: Header::No,
        text: at(2),
        text_pair: at(0),
        label: at(1),
        ..layout(Format::Csv)
    };
    let (_folder, path) = file("a.csv", "b;1;a\nd;0;\"c;\"\n");
    assert_eq!(
        read(&path, &positions).expect("rows"),
        [row(1, "a", "b", "1"), row(2, "c;", "d", "0")]
    );
    positions.text = at(3);
    let said = refusal(&path, &positions);
    assert!(
        said.contains("a.csv: there is no column number 3 (from 0)"),
        "{said}"
    );
    assert!(said.contains("The first line has 3 columns"), "{said}");
}

#[test]
fn malformed_lines_are_named() {
    let header = "sentence,other,label\n";
    for (rows, expected) in [
        ("a,b,0\nc,d\n", "line 3: 2 columns where 3 are expected"),
        ("a,b,0\nc,d,0,e\n", "line 3: 4 columns where 3 are expected"),
        (" ,b,0\n", "line 2: the text is empty"),
        ("a,b,0\n\nc,,1\n", "line 4: the second text is empty"),
        ("\"a\nb\",b,0\n,b,0\n", "line 4: the text is empty"),
        ("a,b,0\n\"c,d,1\ne,f,0\n", "line 3 is never closed"),
        ("", "the file holds no rows"),
    ] {
        let (_folder, path) = file("mine.csv", format!("{header}{rows}"));
        let said = refusal(&path, &layout(Format::Csv));
        assert!(said.contains("mine.csv: "), "{said}");
        assert!(said.contains(expected), "{rows:?}: {said}");
    }
    let (_folder, path) = file("mine.csv", b"sentence,other,label\na,b,0\nc\xff,d,1\n");
    let said = refusal(&path, &layout(Format::Csv));
    assert!(
        said.contains("line 3: column 1 is not valid UTF-8"),
        "{said}"
    );
    let (_folder, path) = file("mine.csv", b"\xff\xfea\0,\0");
    assert!(refusal(&path, &layout(Format::Csv)).contains("iconv"));
    let (_folder, path) = file("mine.csv", "setnence,other,label\na,b,0\n");
    let said = refusal(&path, &layout(Format::Csv));
    assert!(
        said.contains("no column `sentence`") && said.contains("setnence | other"),
        "{said}"
    );
}

#[test]
fn many_malformed_lines_fit_a_screen() {
    let (_folder, path) = file(
        "mine.csv",
        format!("sentence,other,label\n{}", "a\n".repeat(99)),
    );
    let said = refusal(&path, &layout(Format::Csv));
    assert!(
        said.contains("99 malformed rows") && said.contains("and 94 more"),
        "{said}"
    );
    assert!(said.lines().count() < 12, "{said}");
}

#[test]
fn json_lines_give_texts_numbers_and_truths() {
    let (_folder, path) = file(
        "a.jsonl",
        "\u{feff}{\"label\": 3, \"other\": \"b\\tc\", \"sentence\": \"a \\\"q\\\"\", \"extra\": [1]}\r\n\
         \r\n\
         {\"sentence\": \"x\", \"other\": \"y\", \"label\": true}\r\n\
         {\"sentence\": \"x\", \"other\": \"y\", \"label\": 2.5}\r\n",
    );
    assert_eq!(
        read(&path, &layout(Format::Jsonl)).expect("rows"),
        [
            row(1, "a \"q\"", "b\tc", "3"),
            row(3, "x", "y", "true"),
            row(4, "x", "y", "2.5"),
        ]
    );
}

#[test]
fn malformed_json_lines_are_named() {
    let good = r#"{"sentence": "a", "other": "b", "label": 0}"#;
    for (line, expected) in [
        (
            r#"{"sentence": "a", "other": "b""#,
            "line 2: not a JSON object: EOF",
        ),
        ("[1, 2]", "line 2: not a JSON object: "),
        (
            r#"{"sentence": "a", "label": 1}"#,
            "line 2: no value for `other`; there are: label, sentence",
        ),
        (
            r#"{"sentence": null, "other": "b", "label": 1}"#,
            "line 2: no value for `sentence`",
        ),
        (
            r#"{"sentence": ["a"], "other": "b", "label": 1}"#,
            "line 2: `sentence` is a list",
        ),
        (
            r#"{"sentence": "", "other": "b", "label": 1}"#,
            "line 2: the text is empty",
        ),
    ] {
        let (_folder, path) = file("a.jsonl", format!("{good}\n{line}\n"));
        let said = refusal(&path, &layout(Format::Jsonl));
        assert!(said.contains("a.jsonl: 1 malformed row\n"), "{said}");
        assert!(said.contains(expected), "{line}: {said}");
        assert!(!said.contains("line 1"), "{said}");
    }
    let (_folder, path) = file("a.json", format!("[{good}]"));
    assert!(refusal(&path, &layout(Format::Jsonl)).contains("jq -c"));
    let positions = Layout {
        text: vec![Column::Index(0)],
        ..layout(Format::Jsonl)
    };
    let (_folder, path) = file("a.jsonl", good);
    let said = refusal(&path, &positions);
    assert!(
        said.contains("column number 0") && said.contains("the column's name"),
        "{said}"
    );
}

/// A Parquet file of a text, an optional text and two numbers.
fn parquet(rows: &[(&str, Option<&str>, i64, f64)]) -> Vec<u8> {
    parquet_as(rows, WriterProperties::default())
}

fn parquet_as(rows: &[(&str, Option<&str>, i64, f64)], properties: WriterProperties) -> Vec<u8> {
    let schema = "message rows {
        REQUIRED BYTE_ARRAY sentence (UTF8);
        OPTIONAL BYTE_ARRAY other (UTF8);
        REQUIRED INT64 label;
        REQUIRED DOUBLE score;
    }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a writer");
    // Two row groups, as large files have.
    for rows in rows.chunks(rows.len().div_ceil(2)) {
        let texts: Vec<ByteArray> = rows.iter().map(|row| row.0.into()).collect();
        let others: Vec<ByteArray> = rows
            .iter()
            .filter_map(|row| row.1)
            .map(Into::into)
            .collect();
        let there: Vec<i16> = rows.iter().map(|row| i16::from(row.1.is_some())).collect();
        let labels: Vec<i64> = rows.iter().map(|row| row.2).collect();
        let scores: Vec<f64> = rows.iter().map(|row| row.3).collect();
        let mut group = writer.next_row_group().expect("a row group");
        let mut column = group.next_column().expect("no error").expect("a column");
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&texts, None, None).expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("no error").expect("a column");
        let typed = column.typed::<ByteArrayType>();
        typed
            .write_batch(&others, Some(&there), None)
            .expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("no error").expect("a column");
        let typed = column.typed::<Int64Type>();
        typed.write_batch(&labels, None, None).expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("no error").expect("a column");
        let typed = column.typed::<DoubleType>();
        typed.write_batch(&scores, None, None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
    }
    writer.close().expect("closed");
    bytes
}

const ROWS: [(&str, Option<&str>, i64, f64); 3] = [
    ("One \"quoted\", text.", Some("two\nlines"), 1, 0.5),
    ("Größe", Some("b"), -1, 2.0),
    ("c", Some("d"), 0, -1.0),
];

#[test]
fn parquet_gives_the_wanted_columns() {
    let (_folder, path) = file("a.parquet", parquet(&ROWS));
    assert_eq!(
        read(&path, &layout(Format::Parquet)).expect("rows"),
        [
            row(1, "One \"quoted\", text.", "two\nlines", "1"),
            row(2, "Größe", "b", "-1"),
            row(3, "c", "d", "0"),
        ]
    );
    let score = Layout {
        label: vec![Column::Name("score".into())],
        ..layout(Format::Parquet)
    };
    let rows = read(&path, &score).expect("rows");
    let scores: Vec<_> = rows.iter().filter_map(|row| row.label.as_deref()).collect();
    assert_eq!(scores, ["0.5", "2", "-1"]);
}

#[test]
fn malformed_parquet_rows_are_named() {
    let mut rows = ROWS;
    rows[1].1 = None;
    rows[2].0 = " ";
    let (_folder, path) = file("a.parquet", parquet(&rows));
    let said = refusal(&path, &layout(Format::Parquet));
    assert!(said.contains("a.parquet: 2 malformed rows\n"), "{said}");
    assert!(said.contains("row 2: no value for `other`"), "{said}");
    assert!(said.contains("row 3: the text is empty"), "{said}");

    let other = Layout {
        text: vec![Column::Name("text".into())],
        ..layout(Format::Parquet)
    };
    let said = refusal(&path, &other);
    assert!(said.contains("there is no column `text`"), "{said}");
    assert!(said.contains("sentence, other, label, score"), "{said}");
}

#[test]
fn damaged_parquet_is_refused_wherever_it_is_cut() {
    let whole = parquet(&ROWS);
    for end in (0..whole.len()).step_by(7) {
        let (_folder, path) = file("a.parquet", &whole[..end]);
        let said = refusal(&path, &layout(Format::Parquet));
        assert!(
            said.contains("a.parquet") && said.contains("fetch or write it again"),
            "{said}"
        );
    }
    // A damaged byte may go unnoticed, but nothing panics over it.
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        let (_folder, path) = file("a.parquet", &damaged);
        if let Err(error) = read(&path, &layout(Format::Parquet)) {
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}

#[test]
fn parquet_that_unpacks_beyond_a_limit_is_refused() {
    // One long text for many rows: a dictionary of a few kilobytes.
    let text = "long ".repeat(2_000);
    let rows: Vec<_> = (0..4_000)
        .map(|row| (text.as_str(), Some("b"), row % 2, 0.0))
        .collect();
    let (_folder, path) = file("bomb.parquet", parquet(&rows));
    let size = std::fs::metadata(&path).expect("it is there").len();
    assert!(size < 200_000, "{size}");
    let layout = layout(Format::Parquet);
    assert_eq!(read(&path, &layout).expect("40 MB are few").len(), 4_000);
    let refused = parquet::read_at_most(&path, &layout, 1 << 20).expect_err("refused");
    assert_eq!(refused.exit_code(), 2);
    let said = refused.to_string();
    assert!(
        said.contains("bomb.parquet") && said.contains("limit of"),
        "{said}"
    );

    // Compressed, the file itself says what it comes to, and nothing is unpacked.
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let (_folder, path) = file("zipped.parquet", parquet_as(&rows, properties));
    let size = std::fs::metadata(&path).expect("it is there").len();
    let refused = parquet::read_at_most(&path, &layout, 1 << 20).expect_err("refused");
    let said = refused.to_string();
    let unpacked = said.split("unpacks to ").nth(1);
    let unpacked = unpacked.and_then(|rest| rest.split(' ').next());
    let unpacked: u64 = unpacked
        .and_then(|bytes| bytes.parse().ok())
        .expect("a number");
    assert!(size < 1 << 20 && unpacked > 30_000_000, "{size}: {said}");
}

#[test]
fn a_text_of_absurd_size_is_refused_by_line() {
    let long = "x".repeat(LONGEST + 1);
    for (name, text) in [
        (
            "a.csv",
            format!("sentence,other,label\na,b,c\n{long},b,c\n"),
        ),
        (
            "a.jsonl",
            format!(
                "{{\"sentence\": \"a\", \"other\": \"b\", \"label\": 1}}\n{{\"sentence\": \"a\", \"other\": \"{long}\", \"label\": 1}}\n"
            ),
        ),
    ] {
        let (_folder, path) = file(name, text);
        let format = Format::of(&path).expect("a format");
        let said = read(&path, &layout(format))
            .expect_err("refused")
            .to_string();
        let line = if format == Format::Csv {
            "line 3"
        } else {
            "line 2"
        };
        assert!(
            said.contains(line) && said.contains("67108865 bytes"),
            "{said}"
        );
    }
}

#[test]
fn columns_that_are_named_twice_are_refused() {
    let (_folder, path) = file("a.csv", "sentence,other,label,sentence\na,b,c,d\n");
    let said = read(&path, &layout(Format::Csv))
        .expect_err("refused")
        .to_string();
    assert!(said.contains("two columns are named `sentence`"), "{said}");
}
