//! The published layouts of the nine GLUE tasks, in small, and files of one's own.

use std::path::Path;

use tempfile::TempDir;

use super::*;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a temporary folder");
        std::fs::write(path, text).expect("a temporary file");
    }
    folder
}

fn task(task: Task, dir: &Path) -> DataConfig {
    DataConfig {
        task: Some(task),
        dir: Some(dir.to_owned()),
        ..DataConfig::default()
    }
}

/// A task's splits from these files.
fn splits(name: Task, files: &[(&str, &str)]) -> Splits {
    let folder = folder(files);
    read(&task(name, folder.path())).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The message and the help with which the task refuses these files, paths relative to their folder.
fn refusal(name: Task, files: &[(&str, &str)]) -> String {
    let folder = folder(files);
    said(read(&task(name, folder.path())), folder.path())
}

fn said(result: Result<Splits>, folder: &Path) -> String {
    let error = result.expect_err("it is refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    let help = miette::Diagnostic::help(&error).expect("it says what to do");
    format!("{error}\n{help}").replace(&format!("{}/", folder.display()), "")
}

fn one(text: &str, class: u32) -> Example {
    Example {
        text: text.to_owned(),
        text_pair: None,
        label: Some(Label::Class(class)),
    }
}

fn two(text: &str, pair: &str, class: u32) -> Example {
    Example {
        text_pair: Some(pair.to_owned()),
        ..one(text, class)
    }
}

fn secret(example: Example) -> Example {
    Example {
        label: None,
        ..example
    }
}

fn scored(text: &str, pair: &str, value: f32) -> Example {
    Example {
        label: Some(Label::Value(value)),
        ..two(text, pair, 0)
    }
}

#[test]
fn cola_has_no_header_but_in_its_test_file() {
    let found = splits(
        Task::Cola,
        &[
            (
                "train.tsv",
                "gj04\t1\t\tShe said \"so.\r\nks08\t0\t*\tThem \"was\" late.\r\n\r\n",
            ),
            ("dev.tsv", "ad03\t1\t\tIt rains."),
            ("test.tsv", "index\tsentence\n0\tDoes it \"rain?\n"),
        ],
    );
    assert_eq!(
        found,
        Splits {
            train: vec![one("She said \"so.", 1), one("Them \"was\" late.", 0)],
            validation: vec![("validation".into(), vec![one("It rains.", 1)])],
            test: vec![("test".into(), vec![secret(one("Does it \"rain?", 0))])],
            labels: vec!["unacceptable".into(), "acceptable".into()],
            problem: Problem::Classification,
        }
    );
    let said = refusal(
        Task::Cola,
        &[(
            "train.tsv",
            "gj04\t1\t\tFine.\ngj04\t1\tFine.\ngj04\t2\t\tFine.\n",
        )],
    );
    assert!(
        said.contains("train.tsv: 1 malformed row\n  line 2: 3 columns where 4"),
        "{said}"
    );
    let said = refusal(
        Task::Cola,
        &[(
            "train.tsv",
            "gj04\t1\t\tFine.\n\ngj04\t2\t\tFine.\ngj04\t\t\tFine.\n",
        )],
    );
    assert!(
        said.contains("line 3: the label \"2\" is none of the classes unacceptable, acceptable"),
        "{said}"
    );
    assert!(said.contains("line 4: the label is missing"), "{said}");
}

#[test]
fn sst2_names_its_columns() {
    let found = splits(
        Task::Sst2,
        &[
            (
                "SST-2/train.tsv",
                "sentence\tlabel\na \"gem \t1\n's no good\t0\n",
            ),
            ("SST-2/dev.tsv", "sentence\tlabel\nfine\t1\n"),
            ("SST-2/test.tsv", "index\tsentence\n0\tfine\n"),
        ],
    );
    assert_eq!(found.train, [one("a \"gem ", 1), one("'s no good", 0)]);
    assert_eq!(found.validation[0].1, [one("fine", 1)]);
    assert_eq!(found.test[0].1, [secret(one("fine", 0))]);
    assert_eq!(found.labels, ["negative", "positive"]);
    let said = refusal(Task::Sst2, &[("train.tsv", "sentence\tlabel\nfine\n")]);
    assert!(
        said.contains("train.tsv") && said.contains("line 2: 1 columns"),
        "{said}"
    );
    let said = refusal(Task::Sst2, &[("train.tsv", "fine\t1\nbad\t0\n")]);
    assert!(said.contains("there is no column `sentence`"), "{said}");
}

const MSR: &str = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n";

#[test]
fn mrpc_is_read_from_microsofts_files_and_from_glues() {
    let rows = "1\t11\t12\tHe said \"yes.\tYes,\" he said.\r\n0\t13\t14\tOne.\tTwo.\r\n";
    let found = splits(
        Task::Mrpc,
        &[
            ("msr_paraphrase_train.txt", &format!("{MSR}{rows}\r\n")),
            (
                "msr_paraphrase_test.txt",
                &format!("{MSR}1\t15\t16\tA.\tB.\r\n"),
            ),
        ],
    );
    assert_eq!(
        found.train,
        [
            two("He said \"yes.", "Yes,\" he said.", 1),
            two("One.", "Two.", 0)
        ]
    );
    assert_eq!(
        found.validation,
        [("validation".into(), vec![two("A.", "B.", 1)])]
    );
    assert_eq!(found.test, [("test".into(), vec![two("A.", "B.", 1)])]);
    assert_eq!(found.labels, ["not_equivalent", "equivalent"]);

    // GLUE's own splits go before the whole files that they were made of.
    let found = splits(
        Task::Mrpc,
        &[
            ("MRPC/train.tsv", &format!("{MSR}1\t1\t2\tC.\tD.\n")),
            ("MRPC/dev.tsv", &format!("{MSR}0\t1\t2\tE.\tF.\n")),
            (
                "MRPC/test.tsv",
                "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tG.\tH.\n",
            ),
            ("MRPC/msr_paraphrase_train.txt", &format!("{MSR}{rows}")),
            ("MRPC/msr_paraphrase_test.txt", &format!("{MSR}{rows}")),
        ],
    );
    assert_eq!(found.train, [two("C.", "D.", 1)]);
    assert_eq!(found.validation[0].1, [two("E.", "F.", 0)]);
    assert_eq!(found.test[0].1, [secret(two("G.", "H.", 0))]);

    let short = format!("{MSR}1\t1\t2\tC.\tD.\n1\t3\t4\tE.\n");
    let said = refusal(Task::Mrpc, &[("msr_paraphrase_train.txt", &short)]);
    assert!(
        said.contains("msr_paraphrase_train.txt: 1 malformed row\n  line 3: 4 columns where 5"),
        "{said}"
    );
}

#[test]
fn stsb_is_read_from_the_benchmarks_files_and_from_glues() {
    let found = splits(
        Task::Stsb,
        &[
            (
                "sts-train.csv",
                "main-news\tMSRpar\t2012\t0001\t3.800\tA \"b.\tC, d.\n\
                 main-news\tMSRpar\t2012\t0002\t5\tE.\tF.\tsource one\tsource two\n",
            ),
            (
                "sts-dev.csv",
                "main-news\tMSRpar\t2012\t0001\t0.25\tG.\tH.\r\n",
            ),
            ("sts-test.csv", "main-news\tMSRpar\t2012\t0001\t1\tI.\tJ.\n"),
        ],
    );
    assert_eq!(
        found.train,
        [scored("A \"b.", "C, d.", 3.8), scored("E.", "F.", 5.0)]
    );
    assert_eq!(found.validation[0].1, [scored("G.", "H.", 0.25)]);
    assert_eq!(found.test[0].1, [scored("I.", "J.", 1.0)]);
    assert_eq!(
        (found.labels.len(), found.problem),
        (0, Problem::Regression)
    );

    let columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2";
    let row = "0\tmain-news\tMSRpar\t2012\t0001\tnone\tnone";
    let found = splits(
        Task::Stsb,
        &[
            (
                "STS-B/train.tsv",
                &format!("{columns}\tscore\n{row}\tA \"b.\tC.\t2.5\n"),
            ),
            (
                "STS-B/dev.tsv",
                &format!("{columns}\tscore\n{row}\tD.\tE.\t0.000\n"),
            ),
            ("STS-B/test.tsv", &format!("{columns}\n{row}\tF.\tG.\n")),
        ],
    );
    assert_eq!(found.train, [scored("A \"b.", "C.", 2.5)]);
    assert_eq!(found.validation[0].1, [scored("D.", "E.", 0.0)]);
    assert_eq!(found.test[0].1, [secret(two("F.", "G.", 0))]);

    for (score, part) in [
        ("high", "\"high\" is not a number"),
        ("nan", "\"nan\" is not a number"),
    ] {
        let text = format!("{columns}\tscore\n{row}\tA.\tB.\t1\n{row}\tA.\tB.\t{score}\n");
        let said = refusal(Task::Stsb, &[("train.tsv", &text)]);
        assert!(
            said.contains("train.tsv: 1 malformed row\n  line 3: the label"),
            "{said}"
        );
        assert!(said.contains(part), "{said}");
    }
    let text = "main-news\tMSRpar\t2012\t0001\t1\tOne sentence.\n";
    let said = refusal(Task::Stsb, &[("train.csv", text)]);
    assert!(
        said.contains("line 1: 6 columns where 7 to 9 are expected"),
        "{said}"
    );
}

#[test]
fn qqp_lives_with_the_rows_its_published_file_cuts_short() {
    let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
    let found = splits(
        Task::Qqp,
        &[
            (
                "train.tsv",
                &format!("{header}1\t2\t3\tWhy \"so?\tWhy?\t1\n4\t5\t6\tCut\n7\t8\t9\tWho?\t\t0\n"),
            ),
            ("dev.tsv", &format!("{header}1\t2\t3\tHow?\tWhen?\t0\n")),
            ("test.tsv", "id\tquestion1\tquestion2\n0\tWhat?\tWhich?\n"),
        ],
    );
    assert_eq!(
        found.train,
        [two("Why \"so?", "Why?", 1), two("Who?", "", 0)]
    );
    assert_eq!(found.validation[0].1, [two("How?", "When?", 0)]);
    assert_eq!(found.test[0].1, [secret(two("What?", "Which?", 0))]);
    assert_eq!(found.labels, ["not_duplicate", "duplicate"]);
    let long = format!("{header}1\t2\t3\tHow?\tWhen?\t0\tmore\n");
    let said = refusal(Task::Qqp, &[("train.tsv", &long)]);
    assert!(
        said.contains("line 2: 7 columns where 6 are expected"),
        "{said}"
    );
}

/// The columns of MNLI's files that stand before the sentences, and a row's values for them.
const MNLI: [&str; 2] = [
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2",
    "0\t1\t1n\tfiction\t( A )\t( B )\t(ROOT A)\t(ROOT B)",
];

#[test]
fn mnli_validates_on_matched_and_mismatched_genres() {
    let [columns, row] = MNLI;
    let train = |rows: &[[&str; 3]]| {
        let mut text = format!("{columns}\tlabel1\tgold_label\n");
        for [one, two, label] in rows {
            text.push_str(&format!("{row}\t{one}\t{two}\tneutral\t{label}\n"));
        }
        text
    };
    let dev = |one: &str, label: &str| {
        format!(
            "{columns}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n\
             {row}\t{one}\tB.\tneutral\tneutral\tneutral\tneutral\tneutral\t{label}\n"
        )
    };
    let rows = [
        ["A \"b.", "B.", "entailment"],
        ["C.", "D.", "neutral"],
        ["E.", "F.", "contradiction"],
    ];
    let (matched, mismatched) = (dev("G.", "contradiction"), dev("H.", "entailment"));
    let train_text = train(&rows);
    let test = format!("{columns}\n{row}\tI.\tJ.\n");
    let files = [
        ("MNLI/train.tsv", train_text.as_str()),
        ("MNLI/dev_matched.tsv", &matched),
        ("MNLI/dev_mismatched.tsv", &mismatched),
        ("MNLI/test_matched.tsv", &test),
        ("MNLI/test_mismatched.tsv", &test),
    ];
    let found = splits(Task::Mnli, &files);
    assert_eq!(
        found.train,
        [
            two("A \"b.", "B.", 0),
            two("C.", "D.", 1),
            two("E.", "F.", 2)
        ]
    );
    assert_eq!(
        found.validation,
        [
            ("validation_matched".into(), vec![two("G.", "B.", 2)]),
            ("validation_mismatched".into(), vec![two("H.", "B.", 0)]),
        ]
    );
    let hidden = vec![secret(two("I.", "J.", 0))];
    assert_eq!(
        found.test,
        [
            ("test_matched".into(), hidden.clone()),
            ("test_mismatched".into(), hidden)
        ]
    );
    assert_eq!(found.labels, ["entailment", "neutral", "contradiction"]);

    // One of the two is enough.
    let found = splits(Task::Mnli, &[files[0], files[2]]);
    assert_eq!(found.validation.len(), 1);
    assert_eq!(found.validation[0].0, "validation_mismatched");
    let said = refusal(Task::Mnli, &files[..1]);
    assert!(said.contains("no validation file of `mnli`"), "{said}");
    assert!(
        said.contains("dev_matched.tsv") && said.contains("dev_mismatched.tsv"),
        "{said}"
    );
    let undecided = train(&[["A.", "B.", "-"]]);
    let said = refusal(Task::Mnli, &[("train.tsv", &undecided), files[1]]);
    assert!(
        said.contains("train.tsv: 1 malformed row\n  line 2: the label \"-\""),
        "{said}"
    );
}

#[test]
fn qnli_rte_and_wnli_are_numbered_pairs() {
    for (name, columns, labels, [first, second]) in [
        (
            Task::Qnli,
            "question\tsentence",
            ["entailment", "not_entailment"],
            ["not_entailment", "entailment"],
        ),
        (
            Task::Rte,
            "sentence1\tsentence2",
            ["entailment", "not_entailment"],
            ["not_entailment", "entailment"],
        ),
        // WNLI's files have numbers, and theirs mean the opposite.
        (
            Task::Wnli,
            "sentence1\tsentence2",
            ["not_entailment", "entailment"],
            ["1", "0"],
        ),
    ] {
        let header = format!("index\t{columns}\tlabel\n");
        let train = format!("{header}0\tA \"b?\tC.\t{first}\r\n1\tD?\tE.\t{second}\r\n");
        let dev = format!("{header}0\tF?\tG.\t{second}\n\n");
        let test = format!("index\t{columns}\n0\tH?\tI.\n");
        let files = [
            ("train.tsv", train.as_str()),
            ("dev.tsv", &dev),
            ("test.tsv", &test),
        ];
        let found = splits(name, &files);
        assert_eq!(
            found.train,
            [two("A \"b?", "C.", 1), two("D?", "E.", 0)],
            "{name}"
        );
        assert_eq!(
            found.validation,
            [("validation".into(), vec![two("F?", "G.", 0)])]
        );
        assert_eq!(found.test[0].1, [secret(two("H?", "I.", 0))]);
        assert_eq!(found.labels, labels);
        let unknown = format!("{header}0\tA?\tB.\tperhaps\n");
        let said = refusal(name, &[("train.tsv", &unknown), files[1]]);
        assert!(
            said.contains("train.tsv: 1 malformed row\n  line 2: the label \"perhaps\""),
            "{said}"
        );
    }
}

#[test]
fn tasks_have_their_published_metrics() {
    use Metric::{Accuracy, F1, Matthews, Pearson, Spearman};
    for (name, metrics) in [
        (Task::Cola, &[Matthews, Accuracy][..]),
        (Task::Sst2, &[Accuracy]),
        (Task::Mrpc, &[Accuracy, F1]),
        (Task::Stsb, &[Pearson, Spearman]),
        (Task::Qqp, &[Accuracy, F1]),
        (Task::Mnli, &[Accuracy]),
        (Task::Qnli, &[Accuracy]),
        (Task::Rte, &[Accuracy]),
        (Task::Wnli, &[Accuracy]),
    ] {
        let mut config = task(name, Path::new("."));
        assert_eq!(config.metrics(0), metrics, "{name}");
        let (labels, problem) = labels_of(&config).expect("the task tells");
        assert_eq!(problem == Problem::Regression, labels.is_empty(), "{name}");
        assert_eq!(problem == Problem::Regression, name == Task::Stsb, "{name}");
        config.metrics = Some(vec![metrics[0]]);
        assert_eq!(config.metrics(0), [metrics[0]]);
    }
}

#[test]
fn folders_and_files_that_are_missing_are_named() {
    let said = refusal(Task::Rte, &[("RTE/dev.tsv", "x"), ("notes.txt", "x")]);
    assert!(said.contains("no train file of `rte`"), "{said}");
    assert!(
        said.contains("train.tsv") && said.contains("RTE, notes.txt"),
        "{said}"
    );
    let nowhere = read(&task(Task::Rte, Path::new("/no/such/folder")));
    assert!(said_of(nowhere).contains("/no/such/folder: there is no such folder"));
}

fn said_of(result: Result<Splits>) -> String {
    said(result, Path::new("/"))
}

/// `[data]` with `train` and more keys, in a folder with these files.
fn own_config(folder: &TempDir, keys: &str) -> DataConfig {
    let config: DataConfig = toml::from_str(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
    config.resolved(folder.path())
}

#[test]
fn files_of_ones_own_in_every_format() {
    let folder = folder(&[
        (
            "a.csv",
            "x,kind,y\n\"one, two\",b,three\nfour,a,\"f \"\"i\"\" ve\"\n",
        ),
        ("b.tsv", "one \"two\tb\tthree\n"),
        (
            "c.jsonl",
            "{\"x\": \"six\", \"y\": \"7\", \"kind\": \"a\"}\n{\"x\": \"8\", \"y\": \"9\"}\n",
        ),
        ("d.tsv", "x\tkind\ty\nsix\ta\tseven\n8\t\t9\n"),
    ]);
    let config = own_config(
        &folder,
        "train = 'a.csv'\nvalidation = 'a.csv'\ntest = 'c.jsonl'\n\
         [columns]\ntext = 'x'\ntext_pair = 'y'\nlabel = 'kind'",
    );
    let found = read(&config).expect("data");
    let rows = [two("one, two", "three", 1), two("four", "f \"i\" ve", 0)];
    // Classes are those of the training file, in order.
    assert_eq!(found.labels, ["a", "b"]);
    assert_eq!(
        labels_of(&config).expect("labels"),
        (found.labels, Problem::Classification)
    );
    assert_eq!(found.train, rows);
    assert_eq!(found.validation, [("validation".into(), rows.to_vec())]);
    // The test file may lack labels, in some rows too.
    let test = [two("six", "7", 0), secret(two("8", "9", 0))];
    assert_eq!(found.test, [("test".into(), test.to_vec())]);

    let config = own_config(
        &folder,
        "train = 'a.csv'\ntest = 'd.tsv'\n[columns]\ntext = 'x'\nlabel = 'kind'",
    );
    let test = [one("six", 0), secret(one("8", 0))];
    assert_eq!(read(&config).expect("data").test[0].1, test);

    // TSV: no quotes unless asked for, and no header if so said.
    let config = own_config(
        &folder,
        "train = 'b.tsv'\nheader = false\nlabels = ['c', 'b']\n[columns]\ntext = 0\nlabel = 1",
    );
    assert_eq!(read(&config).expect("data").train, [one("one \"two", 1)]);
    assert_eq!(labels_of(&config).expect("labels").0, ["c", "b"]);
}

#[test]
fn values_are_learnt_where_the_recipe_says_so() {
    let folder = folder(&[
        ("a.csv", "text,label\none, 0.5 \ntwo,-1\n"),
        ("b.csv", "text,label\none,much\n"),
    ]);
    let keys = "problem = 'regression'\n[columns]\ntext = 'text'";
    let config = own_config(&folder, &format!("train = 'a.csv'\ntest = 'a.csv'\n{keys}"));
    let found = read(&config).expect("data");
    let values: Vec<_> = found
        .train
        .iter()
        .filter_map(|example| example.label)
        .collect();
    assert_eq!(Label::values(&values), Some(vec![0.5, -1.0]));
    // -1 is hidden in GLUE's files alone.
    assert_eq!(found.test[0].1, found.train);
    assert_eq!(
        labels_of(&config).expect("labels"),
        (Vec::new(), Problem::Regression)
    );
    assert_eq!(config.metrics(0), [Metric::Pearson, Metric::Spearman]);
    let config = own_config(&folder, &format!("train = 'b.csv'\n{keys}"));
    let said = said(read(&config), folder.path());
    assert!(
        said.contains("b.csv: 1 malformed row\n  line 2: the label \"much\" is not a number"),
        "{said}"
    );
    assert!(said.contains("`problem`"), "{said}");
}

#[test]
fn labels_are_names_or_positions() {
    let folder = folder(&[
        ("a.csv", "text,label\none,1\ntwo,0\n"),
        ("b.csv", "text,label\none, 2\ntwo,10\n"),
    ]);
    let labels = |file: &str, labels: &str| {
        let keys = format!("train = '{file}'\n{labels}\n[columns]\ntext = 'text'");
        let config = own_config(&folder, &keys);
        let found = read(&config).map_err(|error| error.to_string())?;
        let labels: Vec<_> = found
            .train
            .iter()
            .filter_map(|example| example.label)
            .collect();
        Ok((found.labels, Label::classes(&labels).expect("classes")))
    };
    let named = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(labels("a.csv", ""), Ok((named(&["0", "1"]), vec![1, 0])));
    // As numbers, not as words, and blanks do not count.
    assert_eq!(labels("b.csv", ""), Ok((named(&["2", "10"]), vec![0, 1])));
    let words = "labels = ['no', 'yes']";
    assert_eq!(
        labels("a.csv", words),
        Ok((named(&["no", "yes"]), vec![1, 0]))
    );
    // Where names are numbers themselves, a number is a name.
    let numbers = "labels = ['1', '0']";
    assert_eq!(
        labels("a.csv", numbers),
        Ok((named(&["1", "0"]), vec![0, 1]))
    );
    let refused: Result<_, String> = labels("b.csv", words);
    assert!(
        refused
            .expect_err("2 is no position")
            .contains("line 2: the label \"2\"")
    );
}

#[test]
fn a_label_column_that_holds_no_classes_is_refused() {
    let many: String = (0..1500)
        .map(|row| format!("text {row},{row}.5\n"))
        .collect();
    let folder = folder(&[
        ("many.csv", &format!("text,label\n{many}")),
        ("same.csv", "text,label\none,a\ntwo,a\n"),
        ("gap.csv", "text,label\none,a\ntwo,\nthree,b\n"),
    ]);
    let refused = |file: &str| {
        let config = own_config(
            &folder,
            &format!("train = '{file}'\n[columns]\ntext = 'text'"),
        );
        said(read(&config), folder.path())
    };
    let many = refused("many.csv");
    assert!(
        many.contains("many.csv: the label column holds 1500 different labels"),
        "{many}"
    );
    assert!(many.contains("regression"), "{many}");
    assert!(refused("same.csv").contains("same.csv: the label column holds 1 class(es)"));
    assert!(
        refused("gap.csv").contains("gap.csv: 1 malformed row\n  line 3: the label is missing")
    );
}

#[test]
fn a_limit_keeps_the_start_of_every_split_and_all_classes() {
    let folder = folder(&[("a.csv", "text,label\none,a\ntwo,a\nthree,b\n")]);
    let config = own_config(
        &folder,
        "train = 'a.csv'\nvalidation = 'a.csv'\nlimit = 2\n[columns]\ntext = 'text'",
    );
    let found = read(&config).expect("data");
    assert_eq!(found.train, [one("one", 0), one("two", 0)]);
    assert_eq!(found.validation[0].1, found.train);
    assert_eq!(found.labels, ["a", "b"]);
}

/// What `read` says of a training file with these labels, three rows each.
fn labelled(labels: &[&str], keys: &str) -> Result<Vec<String>, String> {
    let mut rows = "text,label\n".to_owned();
    for label in labels {
        for row in 0..3 {
            rows.push_str(&format!("text {row},{label}\n"));
        }
    }
    let folder = folder(&[("a.csv", &rows)]);
    let keys = format!("train = 'a.csv'\n{keys}\n[columns]\ntext = 'text'");
    let config = own_config(&folder, &keys);
    let from_labels = labels_of(&config);
    match read(&config) {
        Ok(found) => {
            assert_eq!(from_labels.expect("labels").0, found.labels);
            Ok(found.labels)
        }
        Err(error) => {
            assert_eq!(error.exit_code(), 2);
            let help = miette::Diagnostic::help(&error).expect("it says what to do");
            Err(format!("{error}\n{help}"))
        }
    }
}

#[test]
fn numbers_with_fractions_are_not_taken_for_classes_unasked() {
    for labels in [
        &["0.0", "0.2", "10.0", "2.0"][..],
        &["0.0", "1.0"],
        &["1e3", "2"],
    ] {
        let refused = labelled(labels, "").expect_err("it is refused");
        assert!(
            refused.contains("problem = \"regression\"") && refused.contains("\"classification\""),
            "{refused}"
        );
    }
    // Asked for, they are in the order of their values.
    let told = labelled(&["0.0", "0.2", "10.0", "2.0"], "problem = 'classification'");
    assert_eq!(told.expect("classes"), ["0.0", "0.2", "2.0", "10.0"]);
    assert_eq!(labelled(&["1", "0"], "").expect("classes"), ["0", "1"]);
    assert_eq!(
        labelled(&["v1.5", "1.5"], "").expect("classes"),
        ["1.5", "v1.5"]
    );
    let refused = labelled(&["1", "01", "2"], "").expect_err("it is refused");
    assert!(refused.contains("the same number"), "{refused}");
}

#[test]
fn three_classes_have_no_binary_f1() {
    let three = folder(&[("a.csv", "text,label\none,a\ntwo,b\nthree,c\n")]);
    let keys = "train = 'a.csv'\nmetrics = ['f1']\n[columns]\ntext = 'text'";
    let error = labels_of(&own_config(&three, keys)).expect_err("it is refused");
    assert!(error.to_string().contains("`f1`"), "{error}");
}

#[test]
fn hidden_test_labels_are_none() {
    let files = folder(&[
        ("a.csv", "text,label\none,a\ntwo,b\n"),
        ("secret.csv", "text,label\none,-1\ntwo,-1\n"),
        ("v.csv", "text,label\none,0.5\ntwo,-1\n"),
    ]);
    let found = |keys: &str| {
        let config = own_config(&files, &format!("{keys}\n[columns]\ntext = 'text'"));
        read(&config).expect("data").test.remove(0).1
    };
    let labels = |examples: Vec<Example>| -> Vec<_> { examples.iter().map(|e| e.label).collect() };
    let classes = found("train = 'a.csv'\ntest = 'secret.csv'");
    assert_eq!(labels(classes), [None, None]);
    let values = found("train = 'v.csv'\ntest = 'secret.csv'\nproblem = 'regression'");
    assert_eq!(labels(values), [None, None]);
    let values = found("train = 'v.csv'\ntest = 'v.csv'\nproblem = 'regression'");
    assert_eq!(
        labels(values),
        [Some(Label::Value(0.5)), Some(Label::Value(-1.0))]
    );
}

#[test]
fn half_an_export_is_refused() {
    let said = refusal(
        Task::Rte,
        &[("train-00000-of-00002.parquet", "x"), ("dev.tsv", "x")],
    );
    assert!(said.contains("one of 2, but 1 lie there"), "{said}");
}
