//! Which files a recipe's data is read from.

use std::path::PathBuf;

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
    let mut files = Vec::new();
    let own = [
        ("data.train", &config.train),
        ("data.validation", &config.validation),
        ("data.test", &config.test),
    ];
    for (name, path) in own {
        files.extend(path.iter().map(|path| (name.to_owned(), path.clone())));
    }
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
