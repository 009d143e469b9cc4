//! A folder of images that has one folder per class.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Classes, Examples, Images, Reading};
use crate::data::{Part, Places};
use crate::error::{Error, Result};
use crate::file::entries;

/// How many unreadable images an error shows.
const SHOWN: usize = 5;
/// The most bytes of an image file: as many as an uncompressed one may need.
const LARGEST: u64 = 1 << 30;

/// The names of the class folders in `dir`, sorted as text (by code points), as `datasets` and torchvision have them.
pub(super) fn classes(dir: &Path) -> Result<Vec<String>> {
    let folders = class_folders(dir)?;
    let names = folders.iter().map(|folder| Ok(name_of(folder)?.to_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    match names.len() {
        0 | 1 => Err(Error::user(format!(
            "{}: there are {} folders of classes: there is nothing to decide",
            dir.display(),
            names.len()
        ))
        .help("It must have one folder of images per class: DIR/cat/1.png, DIR/dog/2.png.")),
        _ => Ok(names),
    }
}

/// The images of a split.
pub(super) fn read(
    dir: &Path,
    part: Part,
    reading: &Reading,
    classes: &Classes,
) -> Result<Examples> {
    let (mut files, mut labels) = labelled(dir, part, classes)?;
    if files.is_empty() {
        return Err(
            Error::user(format!("{}: there are no images", dir.display()))
                .help("Check that it is the right folder and that it was copied whole."),
        );
    }
    let limit = reading.limit.unwrap_or(files.len());
    files.truncate(limit);
    labels.truncate(limit);
    let mut images = Images::none(reading.processor);
    let bytes = |index: usize| bytes_of(&files[index]);
    let faults = images.add(files.len(), reading.processor, bytes)?;
    if !faults.is_empty() {
        let faults = faults.into_iter();
        return Err(unreadable(
            dir,
            faults
                .map(|(index, fault)| (&files[index], fault))
                .collect(),
        ));
    }
    let mut places = Places::default();
    files.iter().for_each(|file| places.add_file(file));
    Ok(Examples {
        images,
        labels,
        places,
    })
}

/// The files of a split and the class of each: the first of every class, then the second of every class, and so on. No
/// classes for a test split without class folders.
fn labelled(dir: &Path, part: Part, classes: &Classes) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    if part == Part::Test && !entries(dir)?.iter().any(|path| path.is_dir()) {
        return Ok((entries(dir)?, Vec::new()));
    }
    let mut found = Vec::new();
    for folder in class_folders(dir)? {
        let class = classes.index(name_of(&folder)?).map_err(|what| {
            Error::user(format!("{}: {what}", folder.display()))
                .help("The classes are those of `train`, or `labels` in [data]: every split has folders of these names alone.")
        })?;
        let files = files_of(&folder)?;
        if part == Part::Train && files.is_empty() {
            return Err(
                Error::user(format!("{}: the class has no images", folder.display()))
                    .help("Remove the folder, or put the images of its class there."),
            );
        }
        found.extend(
            files
                .into_iter()
                .enumerate()
                .map(|(nth, file)| (nth, class, file)),
        );
    }
    found.sort_by_key(|(nth, class, _)| (*nth, *class));
    Ok(found
        .into_iter()
        .map(|(_, class, file)| (file, class))
        .unzip())
}

/// The folders in `dir`, sorted, and nothing else in it.
fn class_folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = entries(dir)?;
    match entries.iter().find(|path| !path.is_dir()) {
        None => Ok(entries),
        Some(file) => Err(Error::user(format!(
            "{}: the file is in no class's folder and would not be read",
            file.display()
        ))
        .help("Labels in a file of their own (metadata.csv) are not followed: put every image into the folder of its class, and other files elsewhere.")),
    }
}

/// The files in a class's folder, sorted, and nothing else in it.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = entries(folder)?;
    match entries.iter().find(|path| path.is_dir()) {
        None => Ok(entries),
        Some(inner) => Err(Error::user(format!(
            "{}: a folder in the folder of a class would not be read",
            inner.display()
        ))
        .help(format!(
            "{} was taken for a class, whose images lie in it directly. If it is a split, give the folder it is in as `dir`.",
            folder.display()
        ))),
    }
}

/// The name of a class's folder.
pub(super) fn name_of(folder: &Path) -> Result<&str> {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| {
        Error::user(format!(
            "{}: the folder's name is not UTF-8",
            folder.display()
        ))
        .help("Rename it: the class is called by it.")
    })
}

pub(super) fn bytes_of(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| error.to_string();
    let about = fs::metadata(file).map_err(cannot)?;
    if !about.is_file() {
        return Err("it is not a file".into());
    }
    if about.len() > LARGEST {
        return Err(format!(
            "it has {} bytes, where at most {LARGEST} are read",
            about.len()
        ));
    }
    fs::read(file).map_err(cannot)
}

fn unreadable(dir: &Path, faults: Vec<(&PathBuf, String)>) -> Error {
    let shown = faults.iter().take(SHOWN);
    let shown: Vec<String> = shown
        .map(|(file, fault)| {
            let file = file.strip_prefix(dir).unwrap_or(file);
            format!("  {}: {fault}", file.display())
        })
        .collect();
    let more = match faults.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    let files = if faults.len() == 1 { "image" } else { "images" };
    Error::user(format!(
        "{}: {} malformed {files}\n{}{more}",
        dir.display(),
        faults.len(),
        shown.join("\n")
    ))
    .help("Mend or remove them, or save them anew as PNG or JPEG.")
}
