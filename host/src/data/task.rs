//! How the published files of the tasks known by name are laid out.

use std::path::{Path, PathBuf};

use super::table::{Column, Format, Header, Layout, Positions};
use crate::error::{Error, Result};
use crate::recipe::Task;

/// What is fixed about a task's files.
struct Facts {
    /// The folder's name in GLUE's own archives.
    folder: &'static str,
    /// Names the text's column has in one layout or another.
    text: &'static [&'static str],
    /// The same for the second text; empty for tasks of one.
    text_pair: &'static [&'static str],
    /// The same for the label.
    label: &'static [&'static str],
    /// Where the columns are in a file without a header, if there is such a layout.
    headerless: Option<Positions>,
}

const fn facts_of(task: Task) -> Facts {
    match task {
        Task::Cola => Facts {
            folder: "CoLA",
            text: &["sentence"],
            text_pair: &[],
            label: &["label"],
            // Source, label, the author's mark, sentence.
            headerless: Some(Positions {
                text: 3,
                text_pair: None,
                label: 1,
                least: 4,
                most: 4,
            }),
        },
        Task::Sst2 => Facts {
            folder: "SST-2",
            text: &["sentence"],
            text_pair: &[],
            label: &["label"],
            headerless: None,
        },
        Task::Mrpc => Facts {
            folder: "MRPC",
            text: &["#1 String", "sentence1"],
            text_pair: &["#2 String", "sentence2"],
            label: &["Quality", "label"],
            headerless: None,
        },
        Task::Stsb => Facts {
            folder: "STS-B",
            text: &["sentence1"],
            text_pair: &["sentence2"],
            label: &["score", "label"],
            // Genre, file, year, number, score, two sentences, and in some rows their two sources.
            headerless: Some(Positions {
                text: 5,
                text_pair: Some(6),
                label: 4,
                least: 7,
                most: 9,
            }),
        },
        Task::Qqp => Facts {
            folder: "QQP",
            text: &["question1"],
            text_pair: &["question2"],
            label: &["is_duplicate", "label"],
            headerless: None,
        },
        Task::Mnli => Facts {
            folder: "MNLI",
            text: &["sentence1", "premise"],
            text_pair: &["sentence2", "hypothesis"],
            label: &["gold_label", "label"],
            headerless: None,
        },
        Task::Qnli => Facts {
            folder: "QNLI",
            text: &["question"],
            text_pair: &["sentence"],
            label: &["label"],
            headerless: None,
        },
        Task::Rte => Facts {
            folder: "RTE",
            text: &["sentence1"],
            text_pair: &["sentence2"],
            label: &["label"],
            headerless: None,
        },
        Task::Wnli => Facts {
            folder: "WNLI",
            text: &["sentence1"],
            text_pair: &["sentence2"],
            label: &["label"],
            headerless: None,
        },
        Task::MinimalPairs => Facts {
            folder: "",
            text: &[],
            text_pair: &[],
            label: &[],
            headerless: None,
        },
    }
}

/// A part of a task's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Learnt from.
    Train,
    /// Evaluated on while training.
    Validation,
    /// Predicted.
    Test,
}

impl Part {
    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }
}

/// The files of one split: its name in reports, then every file, in order.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) files: Vec<PathBuf>,
}

impl Task {
    /// How a file of this task is read. `part` decides whether it must have labels.
    pub(super) fn layout(self, file: &Path, part: Part) -> Layout {
        let facts = facts_of(self);
        let columns = |names: &[&str]| {
            names
                .iter()
                .map(|name| Column::Name((*name).to_owned()))
                .collect()
        };
        Layout {
            // STS-B's files are called csv but have tabs.
            format: match Format::of(file) {
                Ok(Format::Parquet) => Format::Parquet,
                _ => Format::Tsv,
            },
            delimiter: b'\t',
            quote: false,
            quote_guessed: false,
            header: Header::Detect(facts.headerless),
            text: columns(facts.text),
            text_pair: columns(facts.text_pair),
            label: columns(facts.label),
            needs_label: part != Part::Test,
            // Quora's published file has a few rows cut short and a few empty questions. Everyone
            // drops the former and keeps the latter, so that results can be compared.
            skip_short: self == Task::Qqp,
            allow_empty: self == Task::Qqp,
            structured: false,
        }
    }

    /// The files of `part` in `dir`, one entry per split (MNLI validates on two); none where the
    /// published data lacks the part, an error where it should be there.
    pub(super) fn files(self, dir: &Path, part: Part) -> Result<Vec<Found>> {
        let facts = facts_of(self);
        if !dir.is_dir() {
            return Err(Error::user(format!("{}: there is no such folder", dir.display())).help(format!(
                "`data.dir` is the folder with the files of `{}`; a relative path starts at the recipe's folder.",
                self.name()
            )));
        }
        let folders = [
            dir.to_owned(),
            dir.join(facts.folder),
            dir.join(self.name()),
        ];
        let mut looked_for = Vec::new();
        let mut found = Vec::new();
        for (split, names) in self.names(part) {
            let files = folders
                .iter()
                .find_map(|folder| first_match(folder, &names));
            if let Some(files) = &files {
                whole_export(files)?;
                let stands_in = files.iter().any(|file| {
                    let name = file.file_name().and_then(|name| name.to_str());
                    name.is_some_and(|name| name == "test.tsv" || name == "msr_paraphrase_test.txt")
                });
                if part == Part::Validation && stands_in {
                    tracing::warn!(
                        "{}: there is no dev file of `{}`: its test file is validated on",
                        files[0].display(),
                        self.name()
                    );
                }
            }
            match files {
                Some(files) => found.push(Found {
                    name: split.to_owned(),
                    files,
                }),
                None => looked_for.push(names.join(", ")),
            }
        }
        // A test split is optional, and so is one of MNLI's two validation splits.
        if found.is_empty() && part != Part::Test {
            return Err(Error::user(format!(
                "{}: no {} file of `{}`",
                dir.display(),
                part.name(),
                self.name()
            ))
            .help(format!(
                "Looked for {} here and in {}/ and {}/. The folder holds: {}.",
                looked_for.join("; "),
                facts.folder,
                self.name(),
                listing(dir)
            )));
        }
        Ok(found)
    }

    /// The file names a part may have, the preferred ones first, per split.
    fn names(self, part: Part) -> Vec<(&'static str, Vec<&'static str>)> {
        match (self, part) {
            (Task::Mnli, Part::Validation) => vec![
                (
                    "validation_matched",
                    vec![
                        "dev_matched.tsv",
                        "validation_matched.tsv",
                        "validation_matched-*.parquet",
                    ],
                ),
                (
                    "validation_mismatched",
                    vec![
                        "dev_mismatched.tsv",
                        "validation_mismatched.tsv",
                        "validation_mismatched-*.parquet",
                    ],
                ),
            ],
            (Task::Mnli, Part::Test) => vec![
                (
                    "test_matched",
                    vec!["test_matched.tsv", "test_matched-*.parquet"],
                ),
                (
                    "test_mismatched",
                    vec!["test_mismatched.tsv", "test_mismatched-*.parquet"],
                ),
            ],
            (_, Part::Train) => vec![(
                "train",
                vec![
                    "train.tsv",
                    "train.csv",
                    "sts-train.csv",
                    "msr_paraphrase_train.txt",
                    "train-*.parquet",
                ],
            )],
            // Microsoft's own MRPC has no dev split: its test split has labels and stands in.
            (Task::Mrpc, Part::Validation) => vec![(
                "validation",
                vec![
                    "dev.tsv",
                    "validation-*.parquet",
                    "msr_paraphrase_test.txt",
                    "test.tsv",
                ],
            )],
            (_, Part::Validation) => vec![(
                "validation",
                vec!["dev.tsv", "dev.csv", "sts-dev.csv", "validation-*.parquet"],
            )],
            (_, Part::Test) => vec![(
                "test",
                vec![
                    "test.tsv",
                    "test.csv",
                    "sts-test.csv",
                    "msr_paraphrase_test.txt",
                    "test-*.parquet",
                ],
            )],
        }
    }
}

/// The files in `folder` under the first of `names` that is there. A `*` stands for anything: the
/// shards of a Parquet export, which come in the order of their names.
pub(super) fn first_match(folder: &Path, names: &[&str]) -> Option<Vec<PathBuf>> {
    names.iter().find_map(|name| match name.split_once('*') {
        None => Some(folder.join(name))
            .filter(|path| path.is_file())
            .map(|path| vec![path]),
        Some((start, end)) => {
            let mut shards: Vec<PathBuf> = std::fs::read_dir(folder)
                .ok()?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    let name = path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .unwrap_or_default();
                    name.starts_with(start) && name.ends_with(end)
                })
                .collect();
            shards.sort();
            Some(shards).filter(|shards| !shards.is_empty())
        }
    })
}

/// Refuses an export of which shards are missing: `train-00001-of-00003.parquet` without the others.
pub(super) fn whole_export(files: &[PathBuf]) -> Result<()> {
    let count = |file: &PathBuf| -> Option<usize> {
        let name = file.file_name()?.to_str()?.strip_suffix(".parquet")?;
        name.rsplit_once("-of-")?.1.parse().ok()
    };
    for file in files {
        if let Some(wanted) = count(file)
            && wanted != files.len()
        {
            return Err(Error::user(format!(
                "{}: the file is one of {wanted}, but {} lie there",
                file.display(),
                files.len()
            ))
            .help("fetch the missing files, or take away those of another export"));
        }
    }
    Ok(())
}

/// The first names in a folder, for an error.
pub(super) fn listing(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    match names.len() {
        0 => "nothing".into(),
        1..=12 => names.join(", "),
        more => format!("{} and {} more", names[..12].join(", "), more - 12),
    }
}
