//! The images that a recipe names, as a model reads them.

use std::path::PathBuf;

use super::{Columns, Examples, Images, Processor, Reading, Sources};
use crate::data::files::{PARTS, named, own};
use crate::data::load::{check_metrics, no_split};
use crate::data::{Data, Encoded, Label, Learnt, Part, Places, Problem};
use crate::error::{Error, Result};
use crate::model::architecture::Patches;
use crate::model::{Architecture, ModelFolder};
use crate::recipe::{Column, DataConfig};

/// What a model makes of images: how they are prepared for it, and how many tokens each becomes.
#[derive(Clone, Debug)]
pub struct Reader {
    /// What its folder says is done to an image.
    pub processor: Processor,
    /// Tokens of an image.
    tokens: usize,
}

impl Reader {
    /// That of a model, which must read images, and of the size that its processor gives.
    pub fn open(folder: &ModelFolder, model: &Architecture) -> Result<Self> {
        let patches = patches(model)?;
        let processor = Processor::read(&folder.preprocessor, Some(model.family))?;
        if processor.size() != patches.image {
            let [[height, width], [rows, columns]] = [processor.size(), patches.image];
            return Err(Error::user(format!(
                "{}: it makes images of {height}x{width} pixels, but the model reads {rows}x{columns}",
                folder.preprocessor.display()
            ))
            .help("take the preprocessor_config.json that was saved with the model; its `size`, or `crop_size`, is `image_size` of config.json"));
        }
        Ok(Reader {
            processor,
            tokens: model.max_length,
        })
    }

    /// Images as the model reads them, those of one split.
    fn encoded(&self, examples: Examples) -> Encoded {
        let Examples {
            images,
            labels,
            places,
        } = examples;
        Encoded {
            offsets: (0..=images.len())
                .map(|index| index * self.tokens)
                .collect(),
            labels: labels.into_iter().map(Label::Class).collect(),
            images: Some(images),
            places,
            ..Encoded::default()
        }
    }

    /// The images in files of their own, without classes, to be answered.
    pub fn files(&self, paths: &[PathBuf]) -> Result<Encoded> {
        let mut images = Images::none(&self.processor);
        let faults = images.add(paths.len(), &self.processor, |index| {
            super::folder::bytes_of(&paths[index])
        })?;
        if let Some((index, fault)) = faults.first() {
            return Err(Error::user(format!("{}: {fault}", paths[*index].display()))
                .help("give files of images: PNG, JPEG, BMP or WebP"));
        }
        let mut places = Places::default();
        paths.iter().for_each(|path| places.add_file(path));
        Ok(self.encoded(Examples {
            images,
            labels: Vec::new(),
            places,
        }))
    }
}

fn patches(model: &Architecture) -> Result<&Patches> {
    model.patches().ok_or_else(|| {
        Error::user(format!(
            "the data are images, but the model is a {}, which reads texts",
            model.family
        ))
        .help("take a vision transformer (vit, deit), or data of texts")
    })
}

/// Refuses a model that does not read images.
pub fn check_kind(model: &Architecture) -> Result<()> {
    patches(model).map(drop)
}

/// Where the images of a recipe are.
pub fn sources(config: &DataConfig) -> Result<Sources> {
    if config.hub.is_some() {
        let [train, validation, test] = own(config, &PARTS)?;
        return Ok(Sources {
            train,
            validation,
            test,
        });
    }
    match (&config.dir, &config.train) {
        (Some(dir), _) => Sources::of_dir(dir),
        (None, Some(train)) => Ok(Sources::own(
            train,
            config.validation.as_deref(),
            config.test.as_deref(),
        )),
        (None, None) => config.validate().map(|()| Sources::default()),
    }
}

fn columns<'a>(config: &'a DataConfig, sources: &Sources) -> Result<Columns<'a>> {
    let Some(given) = &config.columns else {
        return Ok(Columns::default());
    };
    let all = [&sources.train, &sources.validation, &sources.test];
    if all.into_iter().flatten().all(|path| path.is_dir()) {
        return Err(
            Error::user("[data.columns] is given, but images in folders have no columns")
                .help("take the table out: a folder's name is the class of the images in it"),
        );
    }
    let name = |column: Option<&'a Column>, default| match column {
        Some(Column::Name(name)) => name.as_str(),
        _ => default,
    };
    let default = Columns::default();
    Ok(Columns {
        image: name(given.image.as_ref(), default.image),
        label: name(Some(&given.label), default.label),
    })
}

/// The classes of a recipe's images: those that it names, or else those of its training data.
pub fn labels_of(config: &DataConfig) -> Result<Vec<String>> {
    config.validate()?;
    if let Some(labels) = &config.labels {
        return Ok(labels.clone());
    }
    let sources = sources(config)?;
    super::classes_of(&sources.train, columns(config, &sources)?)
}

/// Reads all splits of `config` for a model.
pub fn load(config: &DataConfig, folder: &ModelFolder, model: &Architecture) -> Result<Data> {
    config.validate()?;
    let reader = Reader::open(folder, model)?;
    let sources = sources(config)?;
    let reading = Reading {
        columns: columns(config, &sources)?,
        processor: &reader.processor,
        limit: config.limit,
    };
    let labels = match &config.labels {
        Some(labels) => labels.clone(),
        None => super::classes_of(&sources.train, reading.columns)?,
    };
    let metrics = config.metrics(labels.len());
    check_metrics(&metrics, Problem::Classification, &labels)?;
    let splits = super::read(&sources, &reading, Some(&labels))?;
    // Read so that a mistake in it is found before the training, and no more.
    drop(splits.test);
    let validation = splits.validation.into_iter();
    let validation =
        validation.map(|examples| (Part::Validation.name().to_owned(), reader.encoded(examples)));
    Ok(Data {
        train: reader.encoded(splits.train),
        held_back: Encoded::default(),
        validation: validation.collect(),
        labels,
        problem: Problem::Classification,
        metrics,
        text_pair: false,
        max_length: reader.tokens,
        tokenizer: None,
        chat_template: None,
        images: Some(reader.processor.identity()),
    })
}

/// The split of `config`'s images that is called `name`, for an adapter that has `learnt` what it says. Nothing else is
/// read.
pub fn load_split(
    config: &DataConfig,
    reader: &Reader,
    learnt: &Learnt,
    name: &str,
) -> Result<Vec<(String, Encoded)>> {
    config.validate()?;
    let sources = sources(config)?;
    let parts = [
        (Part::Validation, &sources.validation),
        (Part::Test, &sources.test),
    ];
    let there: Vec<_> = parts
        .into_iter()
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    let Some((part, paths)) = there.iter().find(|(part, _)| part.name() == name) else {
        let names: Vec<&str> = there.iter().map(|(part, _)| part.name()).collect();
        return Err(no_split(name, &names));
    };
    let reading = Reading {
        columns: columns(config, &sources)?,
        processor: &reader.processor,
        limit: config.limit,
    };
    let examples = super::read_split(paths, *part, &reading, &learnt.labels)?;
    if examples.labels.is_empty() {
        return Err(Error::user(format!("the split `{name}` is not labelled"))
            .help("evaluate on a labelled split, or label the images with `dynalora predict`"));
    }
    Ok(vec![(name.to_owned(), reader.encoded(examples))])
}

/// Every path that `config` reads images from, by what it is read as.
pub fn files(config: &DataConfig) -> Result<Vec<(String, PathBuf)>> {
    let Sources {
        train,
        validation,
        test,
    } = sources(config)?;
    Ok(named([train, validation, test]))
}
