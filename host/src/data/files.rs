//! Which files a recipe's data is read from.

use std::path::PathBuf;

use super::hub::{self, Files};
use super::image;
use super::task::Part;
use crate::error::Result;
use crate::recipe::{DataConfig, Task};

/// Every file, or folder of images, that `config` reads, by what it is read as: `data.train`, or `data.train[1]` for a
/// second file of one split. None for a corpus that the program makes itself.
pub fn files(config: &DataConfig) -> Result<Vec<(String, PathBuf)>> {
    if config.is_images() {
        return image::files(config);
    }
    let mut files = named(own(config, &PARTS)?);
    let (Some(task), Some(dir)) = (config.task, &config.dir) else {
        return Ok(files);
    };
    if task == Task::MinimalPairs {
        return Ok(files);
    }
    for part in [Part::Train, Part::Validation, Part::Test] {
        for split in task.files(dir, part)? {
            for (nth, path) in split.files.into_iter().enumerate() {
                let name = match nth {
                    0 => format!("data.{}", split.name),
                    nth => format!("data.{}[{nth}]", split.name),
                };
                files.push((name, path));
            }
        }
    }
    Ok(files)
}

/// All parts, in order.
pub(super) const PARTS: [Part; 3] = [Part::Train, Part::Validation, Part::Test];

/// The files of these parts of a recipe with data of its own: those that it names, or the Hub's.
pub(super) fn own(config: &DataConfig, parts: &[Part]) -> Result<Files> {
    if let Some(id) = &config.hub {
        return hub::fetch(config, id, parts);
    }
    let files = [&config.train, &config.validation, &config.test];
    Ok(files.map(|path| path.iter().cloned().collect()))
}

/// Each file with what it is read as.
pub(super) fn named(files: Files) -> Vec<(String, PathBuf)> {
    let named = |(part, paths): (Part, Vec<PathBuf>)| {
        let paths = paths.into_iter().enumerate();
        paths.map(move |(nth, path)| match nth {
            0 => (format!("data.{}", part.name()), path),
            nth => (format!("data.{}[{nth}]", part.name()), path),
        })
    };
    PARTS.into_iter().zip(files).flat_map(named).collect()
}
