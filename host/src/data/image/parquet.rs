//! Images in Parquet files, as `datasets` writes them.

use std::path::{Path, PathBuf};

use parquet::data_type::ByteArray;
use parquet::file::reader::FileReader;
use parquet::record::{Field, Row};

use super::{Classes, Columns, Examples, Images, Reading};
use crate::data::labels::distinct;
use crate::data::problems::Problems;
use crate::data::quiet::without_panic;
use crate::data::table::parquet::{Opened, class_names, damaged, open, parquet_text};
use crate::data::table::{self, Column, Format, Header, Layout};
use crate::data::{Part, Places};
use crate::error::{Error, Result};

/// So many images are decoded at once.
const BATCH: usize = 256;
/// The unit of [`Places`].
const UNIT: &str = "row";

/// The names of the classes in the first file's metadata, or else the distinct labels of all files.
pub(super) fn classes(files: &[PathBuf], label: &str) -> Result<Vec<String>> {
    let first = &files[0];
    if let Some(names) = safely(first, || {
        class_names(&opened(first, &[label], &[label])?, first, label)
    })? {
        return Ok(names);
    }
    let layout = Layout {
        format: Format::Parquet,
        delimiter: b',',
        quote: false,
        quote_guessed: false,
        header: Header::Yes,
        text: vec![Column::Name(label.to_owned())],
        text_pair: Vec::new(),
        label: vec![Column::Name(label.to_owned())],
        needs_label: true,
        skip_short: false,
        allow_empty: false,
        structured: false,
    };
    let mut rows = Vec::new();
    for file in files {
        rows.extend(table::read(file, &layout)?);
    }
    distinct(first, &rows, true)
}

/// The images of a split.
pub(super) fn read(
    files: &[PathBuf],
    part: Part,
    reading: &Reading,
    classes: &Classes,
) -> Result<Examples> {
    let mut split = Split {
        part,
        reading,
        classes,
        examples: Examples {
            images: Images::none(reading.processor),
            labels: Vec::new(),
            places: Places::default(),
        },
        unlabelled: None,
    };
    for file in files {
        safely(file, || split.add(file))?;
    }
    let Split {
        examples,
        unlabelled,
        ..
    } = split;
    if examples.is_empty() {
        return Err(
            Error::user(format!("{}: the file holds no rows", files[0].display()))
                .help("Check that it is the right file and that it was copied whole."),
        );
    }
    match unlabelled {
        Some(row) if !examples.labels.is_empty() => Err(Error::user(format!(
            "{} has no label, but others of the split have",
            examples.places.name(row)
        ))
        .help("Give a label to all or to none.")),
        _ => Ok(examples),
    }
}

/// What `work` gives; an error about the file where it panics.
fn safely<T>(file: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    without_panic(work).unwrap_or_else(|| Err(damaged(file)))
}

/// `file`, to read the columns `wanted` of it, which must have those `required`.
fn opened(file: &Path, wanted: &[&str], required: &[&str]) -> Result<Opened> {
    let missing = |has: &dyn Fn(&str) -> bool| {
        let missing = required.iter().find(|name| !has(name))?;
        Some(format!("there is no column `{missing}`"))
    };
    open(file, |name| wanted.contains(&name), missing)
}

/// A split while it is read.
struct Split<'a> {
    part: Part,
    reading: &'a Reading<'a>,
    classes: &'a Classes<'a>,
    examples: Examples,
    /// The first image without a label.
    unlabelled: Option<usize>,
}

impl Split<'_> {
    /// Adds the rows of a file, as many as the limit leaves.
    fn add(&mut self, file: &Path) -> Result<()> {
        let columns = self.reading.columns;
        let wanted = [columns.image, columns.label];
        // A test file may come without labels.
        let required = if self.part == Part::Test { 1 } else { 2 };
        let opened = opened(file, &wanted, &wanted[..required])?;
        let names = class_names(&opened, file, columns.label)?;
        let there = opened.reader.metadata().file_metadata().num_rows();
        let left = self.reading.limit.unwrap_or(usize::MAX) - self.examples.len();
        let rows = usize::try_from(there).unwrap_or(0).min(left);
        self.examples.images.reserve(rows)?;
        let records = opened.reader.get_row_iter(Some(opened.projection.clone()));
        let records = records.map_err(|error| damaged(file).because(error))?;
        let mut problems = Problems::new(file, UNIT);
        let mut batch = Vec::with_capacity(BATCH);
        let mut row = 0;
        for record in records.take(rows) {
            row += 1;
            let record = record.map_err(|error| damaged(file).because(error))?;
            match self.row(record, names.as_deref()) {
                Ok((image, label)) => batch.push((row, image, label)),
                Err(what) => problems.push(row, what),
            }
            if batch.len() == BATCH {
                self.decode(&mut batch, &mut problems)?;
            }
        }
        self.decode(&mut batch, &mut problems)?;
        problems.finish("Mend these rows where the file is made.")?;
        self.examples.places.add(file, UNIT, (1..=row).collect());
        Ok(())
    }

    fn decode(
        &mut self,
        batch: &mut Vec<(usize, ByteArray, Option<u32>)>,
        problems: &mut Problems,
    ) -> Result<()> {
        let first = self.examples.len();
        let bytes = |index: usize| Ok(batch[index].1.data());
        let faults = self
            .examples
            .images
            .add(batch.len(), self.reading.processor, bytes)?;
        for (index, fault) in faults {
            problems.push(batch[index].0, fault);
        }
        for (index, (_, _, label)) in batch.drain(..).enumerate() {
            match label {
                Some(label) => self.examples.labels.push(label),
                None => self.unlabelled = self.unlabelled.or(Some(first + index)),
            }
        }
        Ok(())
    }

    fn row(&self, row: Row, names: Option<&[String]>) -> Result<(ByteArray, Option<u32>), String> {
        let Columns { image, label } = self.reading.columns;
        let (mut bytes, mut class) = (None, None);
        for (name, field) in row.into_columns() {
            if name == image {
                bytes = Some(image_of(field)?);
            } else if name == label {
                class = parquet_text(&field)?;
            }
        }
        let bytes = bytes.ok_or("the image is missing")?;
        let class = class
            .map(|class| class.trim().to_owned())
            .filter(|class| !class.is_empty());
        let secret = |class: &str| {
            self.part == Part::Test && class == "-1" && !self.classes.indices.contains_key("-1")
        };
        match class {
            None if self.part == Part::Test => Ok((bytes, None)),
            None => Err("the label is missing".into()),
            Some(class) if secret(&class) => Ok((bytes, None)),
            Some(class) => Ok((bytes, Some(self.class(&class, names)?))),
        }
    }

    /// The class of a label: of the name that the file's own metadata has for it, of itself, or of its number.
    fn class(&self, label: &str, names: Option<&[String]>) -> Result<u32, String> {
        let number = label.parse::<usize>().ok();
        if let Some(names) = names {
            let name = number.and_then(|number| names.get(number));
            let name = name.ok_or_else(|| {
                format!(
                    "the label {label} is none of the {} classes in the file's metadata",
                    names.len()
                )
            })?;
            return self.classes.index(name);
        }
        match number {
            Some(number) if self.classes.numbered && number < self.classes.names.len() => {
                Ok(number as u32)
            }
            _ => self.classes.index(label),
        }
    }
}

/// The bytes of an image file: a value of its own, or the one called `bytes` of a struct.
fn image_of(field: Field) -> Result<ByteArray, String> {
    let expected = "where the bytes of an image are expected";
    match field {
        Field::Bytes(bytes) => Ok(bytes),
        Field::Group(row) => {
            let mut parts = row.into_columns();
            let bytes = parts.iter().position(|(name, _)| name == "bytes");
            match bytes.map(|index| parts.swap_remove(index).1) {
                Some(Field::Bytes(bytes)) => Ok(bytes),
                Some(Field::Null) => Err(
                    "the image is a path alone: write the file with the images' bytes in it".into(),
                ),
                _ => Err(format!("the image is a struct without `bytes`, {expected}")),
            }
        }
        Field::Null => Err("the image is missing".into()),
        Field::Str(_) => Err(format!("the image is a text, {expected}")),
        _ => Err(format!("the image is a number or list, {expected}")),
    }
}
