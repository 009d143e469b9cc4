//! Images and their classes, from folders or Parquet files.

mod decode;
mod folder;
mod load;
mod parquet;
mod processor;
mod resample;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use load::{Reader, check_kind, files, labels_of, load, load_split};
pub use processor::Processor;
pub use resample::Filter;
pub use sources::Sources;

use super::Part;
use super::places::Places;
use crate::error::{Error, Result};

/// Images of one size, end to end, as 8-bit red, green and blue.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// `count × channels × height × width` values.
    pub pixels: Vec<u8>,
    /// What made them, and makes of them what a model is given.
    pub processor: Processor,
}

impl Images {
    /// Images as `processor` makes them, none as yet.
    fn none(processor: &Processor) -> Self {
        Images {
            pixels: Vec::new(),
            processor: processor.clone(),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.values()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Values of one image.
    pub fn values(&self) -> usize {
        self.processor.values()
    }

    /// What a model is given of all of them, `count × channels × height × width` values.
    pub fn normalised(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.pixels.len()];
        self.processor.normalised(&self.pixels, &mut values);
        values
    }

    /// Image `index`: `channels × height × width` values.
    pub fn image(&self, index: usize) -> &[u8] {
        let values = self.values();
        &self.pixels[index * values..][..values]
    }

    /// The images at `indices`, in their order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.values());
        for index in indices {
            pixels.extend_from_slice(self.image(*index));
        }
        Images {
            pixels,
            processor: self.processor.clone(),
        }
    }

    /// Makes room for so many images more.
    fn reserve(&mut self, count: usize) -> Result<()> {
        let more = count.saturating_mul(self.values());
        self.pixels.try_reserve(more).map_err(|error| {
            let [height, width] = self.processor.size();
            Error::user(format!(
                "there is no memory for {} images of {height}x{width} pixels",
                self.len().saturating_add(count),
            ))
            .because(error)
            .help("Set `limit` in [data], or take an image processor with a smaller size.")
        })
    }

    /// Decodes `count` files in parallel and adds them. `bytes` gives the content of each. Gives the number and the
    /// fault of each that is not an image, and then what was added is of no use.
    fn add<B: AsRef<[u8]>>(
        &mut self,
        count: usize,
        processor: &Processor,
        bytes: impl Fn(usize) -> Result<B, String> + Sync,
    ) -> Result<Vec<(usize, String)>> {
        self.reserve(count)?;
        let (there, values) = (self.pixels.len(), self.values());
        self.pixels.resize(there + count * values, 0);
        let added = self.pixels[there..].par_chunks_exact_mut(values);
        let faults = added.enumerate().filter_map(|(index, out)| {
            let image = bytes(index).and_then(|bytes| decode::decode(bytes.as_ref()));
            let fault = image.and_then(|image| processor.fit(image, out)).err()?;
            Some((index, fault))
        });
        Ok(faults.collect())
    }
}

/// The images of one split, their classes and where they stand.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    /// The images.
    pub images: Images,
    /// The class of each; empty where the split does not say.
    pub labels: Vec<u32>,
    /// Where the images stand.
    pub places: Places,
}

impl Examples {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The examples at `indices`, in their order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let labels = indices.iter().filter_map(|index| self.labels.get(*index));
        Examples {
            images: self.images.select(indices),
            labels: labels.copied().collect(),
            places: self.places.select(indices),
        }
    }
}

/// All splits.
#[derive(Clone, Debug, PartialEq)]
pub struct Splits {
    /// What is learnt from.
    pub train: Examples,
    /// What is evaluated on while training.
    pub validation: Option<Examples>,
    /// What is kept for the end, with classes or without.
    pub test: Option<Examples>,
    /// Names of the classes in the order of their indices.
    pub classes: Vec<String>,
}

/// The columns of a Parquet file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    /// The image: the bytes of an image file, alone or as `bytes` of a struct, as `datasets` writes it.
    pub image: &'a str,
    /// The class: its name, or its number among the names that the file's metadata has.
    pub label: &'a str,
}

impl Default for Columns<'_> {
    fn default() -> Self {
        Columns {
            image: "image",
            label: "label",
        }
    }
}

/// What of the data is read, and what is made of it.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The columns, for Parquet files.
    pub columns: Columns<'a>,
    /// What is done to the images.
    pub processor: &'a Processor,
    /// At most this many images of each split, from its start.
    pub limit: Option<usize>,
}

/// Reads all splits of `sources`. The classes are those given, or else those of the training data.
pub fn read(sources: &Sources, reading: &Reading, classes: Option<&[String]>) -> Result<Splits> {
    let classes = match classes {
        Some(classes) => classes.to_vec(),
        None => classes_of(&sources.train, reading.columns)?,
    };
    let other = |paths: &[PathBuf], part: Part| match paths.is_empty() {
        true => Ok(None),
        false => read_split(paths, part, reading, &classes).map(Some),
    };
    Ok(Splits {
        train: read_split(&sources.train, Part::Train, reading, &classes)?,
        validation: other(&sources.validation, Part::Validation)?,
        test: other(&sources.test, Part::Test)?,
        classes,
    })
}

/// The classes of training data, without reading an image: the names of a folder's folders, sorted as text; the names
/// in a Parquet file's metadata; or the labels of its column, sorted (as numbers where all are numbers).
pub fn classes_of(paths: &[PathBuf], columns: Columns) -> Result<Vec<String>> {
    match folder_of(paths)? {
        Some(dir) => folder::classes(dir),
        None => parquet::classes(paths, columns.label),
    }
}

/// Reads one split, a folder or Parquet files, whose classes are among `classes`. Only a test split may lack them, and
/// then of all its images. A folder's images come in turn from each of its classes, so that the first few have some of
/// all; a file's, in the order of its rows.
pub fn read_split(
    paths: &[PathBuf],
    part: Part,
    reading: &Reading,
    classes: &[String],
) -> Result<Examples> {
    let classes = Classes::new(classes);
    let examples = match folder_of(paths)? {
        Some(dir) => folder::read(dir, part, reading, &classes)?,
        None => parquet::read(paths, part, reading, &classes)?,
    };
    let [height, width] = reading.processor.size();
    tracing::info!(
        "{} images of {height}x{width} pixels for {}: {:.1} MiB",
        examples.len(),
        part.name(),
        examples.images.pixels.len() as f64 / f64::from(1 << 20)
    );
    Ok(examples)
}

/// The folder that a split is; none where it is Parquet files.
fn folder_of(paths: &[PathBuf]) -> Result<Option<&Path>> {
    let wrong = match paths {
        [dir] if dir.is_dir() => return Ok(Some(dir)),
        _ => paths.iter().find(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            !path.is_file() || extension.is_none_or(|extension| extension != "parquet")
        }),
    };
    match wrong {
        None if paths.is_empty() => Err(Error::user("no training images are given")
            .help("Give `train = DIR`, a folder that has one folder of images per class.")),
        None => Ok(None),
        Some(path) => Err(Error::user(format!(
            "{}: there is neither a folder nor a Parquet file of images",
            path.display()
        ))
        .help("Give a folder that has one folder of images per class, or a .parquet file; a relative path starts at the recipe's folder.")),
    }
}

/// The names of the classes and their indices.
struct Classes<'a> {
    names: &'a [String],
    indices: HashMap<&'a str, u32>,
    /// Whether a number can only be an index.
    numbered: bool,
}

impl<'a> Classes<'a> {
    fn new(names: &'a [String]) -> Self {
        let indices = names.iter().zip(0..);
        Classes {
            names,
            indices: indices
                .map(|(name, index)| (name.as_str(), index))
                .collect(),
            numbered: !names.iter().any(|name| super::labels::is_whole(name)),
        }
    }

    fn index(&self, name: &str) -> Result<u32, String> {
        self.indices.get(name).copied().ok_or_else(|| {
            format!(
                "the label {:?} is none of the classes {}",
                super::table::shorten(name, 40),
                super::table::shorten(&self.names.join(", "), 80)
            )
        })
    }
}
