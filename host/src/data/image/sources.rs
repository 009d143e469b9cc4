//! Where the images of each split are.

use std::path::{Path, PathBuf};

use super::folder::name_of;
use crate::data::task::{first_match, listing, whole_export};
use crate::error::{Error, Result};
use crate::file::entries;

/// The paths of each split: one folder, or Parquet files in their order. None where there is no such split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// What is learnt from.
    pub train: Vec<PathBuf>,
    /// What is evaluated on while training.
    pub validation: Vec<PathBuf>,
    /// What is kept for the end.
    pub test: Vec<PathBuf>,
}

/// The names that a split has in `datasets`.
const NAMES: [&[&str]; 3] = [
    &["train", "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];

/// Where the Parquet files of a published data set may be, below its folder.
const DATA: &str = "data";

impl Sources {
    /// Those of a recipe with paths of its own.
    pub fn own(train: &Path, validation: Option<&Path>, test: Option<&Path>) -> Self {
        let one = |path: Option<&Path>| path.into_iter().map(Path::to_owned).collect();
        Sources {
            train: one(Some(train)),
            validation: one(validation),
            test: one(test),
        }
    }

    /// Those of a data set in the layout of Hugging Face's `imagefolder`, `dir/train/CLASS/FILE`, or as it is published
    /// there: `dir/train-00000-of-00001.parquet`, or in `dir/data`. A folder in `dir` that is no split is refused by
    /// name, for it would not be read; so are two folders for one split. Other files there are passed over.
    pub fn of_dir(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::user(format!("{}: there is no such folder", dir.display()))
                .help("`data.dir` is the folder with the folders or Parquet files of the splits; a relative path starts at the recipe's folder."));
        }
        let files = parquet_files(dir)?;
        let mut splits: [Option<PathBuf>; 3] = [None, None, None];
        let mut others = Vec::new();
        for path in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
            let name = name_of(&path)?.to_lowercase();
            match NAMES
                .iter()
                .position(|names| names.contains(&name.as_str()))
            {
                None => others.push(path),
                Some(split) => {
                    if let Some(other) = splits[split].replace(path.clone()) {
                        return Err(Error::user(format!(
                            "{} and {} are both the {} split",
                            other.display(),
                            path.display(),
                            NAMES[split][0]
                        ))
                        .help("Leave one of the two there, or give `train` and `validation` in place of `dir`."));
                    }
                }
            }
        }
        if let Some(files) = files {
            return match splits.iter().flatten().next() {
                None => Ok(files),
                Some(folder) => Err(Error::user(format!(
                    "{} and {} are both there: which are the images?",
                    files.train[0].display(),
                    folder.display()
                ))
                .help("Move one of the two elsewhere, or give `train` and `validation` in place of `dir`.")),
            };
        }
        let [Some(train), validation, test] = splits else {
            return Err(Error::user(format!(
                "{}: there is neither a folder `train` nor train-*.parquet",
                dir.display()
            ))
            .help(format!(
                "If it has one folder per class, give it as `train`. It holds: {}.",
                listing(dir)
            )));
        };
        if let Some(other) = others.first() {
            return Err(Error::user(format!(
                "{}: the folder is no split and would not be read",
                other.display()
            ))
            .help("The splits are `train`, `validation` (`val`) and `test`: move the folder elsewhere, or give `train` and `validation` in place of `dir`."));
        }
        let one = |path: Option<PathBuf>| path.into_iter().collect();
        Ok(Sources {
            train: vec![train],
            validation: one(validation),
            test: one(test),
        })
    }
}

/// The Parquet files of a published data set; none where it has none to train on.
fn parquet_files(dir: &Path) -> Result<Option<Sources>> {
    for dir in [dir.to_owned(), dir.join(DATA)] {
        let files = NAMES.map(|names| {
            let patterns = names
                .iter()
                .flat_map(|name| [format!("{name}-*.parquet"), format!("{name}.parquet")]);
            let patterns: Vec<String> = patterns.collect();
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            first_match(&dir, &patterns).unwrap_or_default()
        });
        files.iter().try_for_each(|files| whole_export(files))?;
        let [train, validation, test] = files;
        if !train.is_empty() {
            return Ok(Some(Sources {
                train,
                validation,
                test,
            }));
        }
    }
    Ok(None)
}
