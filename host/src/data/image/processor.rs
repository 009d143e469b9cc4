//! What a Hugging Face `preprocessor_config.json` says is done to an image before a model sees it.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::decode::{MOST_PIXELS, Rgb};
use super::resample::{Filter, resize};
use crate::error::{Error, Result};
use crate::file;
// Every image becomes red, green and blue: Transformers converts what it loads before any processor sees it.
use crate::model::architecture::CHANNELS;

/// From an image to the values a model is given: resizing, cropping, rescaling, normalising, in this order. What it
/// gives has the same size for every image.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    /// The size images are resized to and how; none where they are taken as they are.
    resized: Option<(Size, Filter)>,
    /// Height and width that are cut from the middle, filled up with zeros where there are fewer pixels.
    crop: Option<[usize; 2]>,
    /// What a value of 0 to 255 is multiplied by.
    rescale: Option<f64>,
    /// Per channel what is then subtracted, and what that is divided by.
    normalise: Option<[[f32; CHANNELS]; 2]>,
    /// Height and width of what comes out.
    size: [usize; 2],
}

/// The size to resize to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    /// This height and width, whatever the image's proportions.
    Exactly([usize; 2]),
    /// The shorter side to this length, the longer in proportion.
    Shorter(usize),
}

/// What a processor class does where the file is silent.
struct Defaults {
    size: Size,
    resample: u64,
    crop: Option<[usize; 2]>,
    mean: [f64; CHANNELS],
    std: [f64; CHANNELS],
    /// Whether a `size` that is one number is both height and width, or the shorter side.
    square: bool,
}

const VIT: Defaults = Defaults {
    size: Size::Exactly([224, 224]),
    resample: 2,
    crop: None,
    mean: [0.5; CHANNELS],
    std: [0.5; CHANNELS],
    square: true,
};

const DEIT: Defaults = Defaults {
    size: Size::Exactly([256, 256]),
    resample: 3,
    crop: Some([224, 224]),
    mean: [0.5; CHANNELS],
    std: [0.5; CHANNELS],
    square: true,
};

const CLIP: Defaults = Defaults {
    size: Size::Shorter(224),
    resample: 3,
    crop: Some([224, 224]),
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
    square: false,
};

/// Part of [`Processor::identity`]: bump it where the same settings come to give other pixels.
const VERSION: &str = "dynalora images 1";

impl Processor {
    /// Reads a `preprocessor_config.json`. Keys have the defaults of the processor class that the file names; where
    /// it names none, of the one that belongs to `model_type`, as in Transformers. A key that is not followed and may
    /// change the result is refused by name.
    pub fn read(path: &Path, model_type: Option<&str>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::user(format!("cannot read {}", path.display()))
                .because(error)
                .help("the folder of an image model holds config.json, model.safetensors and preprocessor_config.json")
        })?;
        let json = Json::new(&text, path)?;
        json.refuse_what_is_not_followed()?;
        json.processor(&json.defaults(model_type)?)
    }

    /// Height and width of what comes out.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Values of one image: channels × height × width.
    pub fn values(&self) -> usize {
        CHANNELS * self.size[0] * self.size[1]
    }

    /// Everything that what comes out depends on, besides the image: a SHA-256 in hexadecimal.
    pub fn identity(&self) -> String {
        let resized = self.resized.map(|(size, filter)| match size {
            Size::Exactly([height, width]) => format!("{height}x{width} {}", filter.name()),
            Size::Shorter(side) => format!("{side} {}", filter.name()),
        });
        let Processor {
            crop,
            rescale,
            normalise,
            ..
        } = self;
        let all = format!("{VERSION}: {resized:?} {crop:?} {rescale:?} {normalise:?}");
        file::sha256(all.as_bytes())
    }

    /// The values that a model is given for `pixels`, any number of images as in [`super::Images`], into `out`, which
    /// is as long. They are those of Transformers' processor for the same pixels, to the last bit.
    pub fn normalised(&self, pixels: &[u8], out: &mut [f32]) {
        assert_eq!(pixels.len(), out.len());
        let values = self.values_of_bytes();
        let plane = self.size[0] * self.size[1];
        let planes = pixels.chunks(plane).zip(out.chunks_mut(plane));
        for ((pixels, out), values) in planes.zip(values.iter().cycle()) {
            for (out, pixel) in out.iter_mut().zip(pixels) {
                *out = values[usize::from(*pixel)];
            }
        }
    }

    /// What becomes of each value of a byte, per channel.
    fn values_of_bytes(&self) -> [[f32; 256]; CHANNELS] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|byte| {
                // In the precision Transformers has at each step.
                let value = (byte as f64 * self.rescale.unwrap_or(1.0)) as f32;
                match self.normalise {
                    Some([mean, std]) => (value - mean[channel]) / std[channel],
                    None => value,
                }
            })
        })
    }

    /// Resizes and crops `image` into `out`: channels × height × width.
    pub(super) fn fit(&self, image: Rgb, out: &mut [u8]) -> Result<(), String> {
        let image = match self.resized {
            None => image,
            Some((size, filter)) => {
                let [height, width] = size.of(&image);
                if height as u64 * width as u64 > MOST_PIXELS {
                    return Err(format!(
                        "{} × {} pixels would be resized to {width} × {height}, where at most {MOST_PIXELS} in all are",
                        image.width, image.height
                    ));
                }
                resize(image, height, width, filter)
            }
        };
        let [height, width] = self.size;
        let rows = window(image.height, height);
        let columns = window(image.width, width);
        out.fill(0);
        for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
            for (row, out) in plane.chunks_exact_mut(width).enumerate() {
                let Some(row) = within(row, rows, image.height) else {
                    continue;
                };
                for (column, out) in out.iter_mut().enumerate() {
                    if let Some(column) = within(column, columns, image.width) {
                        *out = image.pixels[(row * image.width + column) * CHANNELS + channel];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where a window of `wanted` pixels in the middle of `there` begins; below 0 where it is the larger of the two.
fn window(there: usize, wanted: usize) -> isize {
    (there as isize - wanted as isize).div_euclid(2)
}

/// The place in an image of `there` pixels of a window's pixel `at`.
fn within(at: usize, window: isize, there: usize) -> Option<usize> {
    at.checked_add_signed(window).filter(|at| *at < there)
}

impl Size {
    /// Height and width for `image`.
    fn of(self, image: &Rgb) -> [usize; 2] {
        let (height, width) = (image.height, image.width);
        match self {
            Size::Exactly(size) => size,
            Size::Shorter(side) if width <= height => [side * height / width, side],
            Size::Shorter(side) => [side, side * width / height],
        }
    }
}

/// Keys that are followed.
const FOLLOWED: [&str; 13] = [
    "do_resize",
    "size",
    "default_to_square",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "image_processor_type",
    "feature_extractor_type",
];

/// Keys that do not change the values: what they say of the file's origin or of how a batch is handed over, and
/// `do_convert_rgb`, since every file becomes RGB when it is loaded.
const WITHOUT_EFFECT: [&str; 9] = [
    "do_convert_rgb",
    "processor_class",
    "_processor_class",
    "valid_processor_keys",
    "_valid_processor_keys",
    "return_tensors",
    "device",
    "disable_grouping",
    "image_seq_length",
];

/// No side that images are resized or cropped to is longer.
const LONGEST_SIDE: usize = 4096;

/// A `preprocessor_config.json`.
struct Json {
    at: String,
    map: Map<String, Value>,
}

impl Json {
    fn new(text: &str, path: &Path) -> Result<Self> {
        let at = path.display().to_string();
        match serde_json::from_str(text) {
            // A key that is null is as good as absent.
            Ok(Value::Object(mut map)) => {
                map.retain(|_, value| !value.is_null());
                Ok(Json { at, map })
            }
            found => {
                let why = found
                    .err()
                    .map_or("not an object".to_owned(), |error| error.to_string());
                Err(Error::user(format!("{at}: {why}")).help(
                    "the file must be the preprocessor_config.json of a pretrained model, whole",
                ))
            }
        }
    }

    fn refuse<T>(&self, key: &str, found: impl Display, help: &str) -> Result<T> {
        Err(Error::user(format!("{}: {key} is {found}", self.at)).help(help))
    }

    fn refuse_what_is_not_followed(&self) -> Result<()> {
        for (key, value) in &self.map {
            let plain = match key.as_str() {
                key if FOLLOWED.contains(&key) || WITHOUT_EFFECT.contains(&key) => true,
                "data_format" => value == "channels_first",
                // It says where `do_pad` pads to, which is refused itself.
                "pad_size" => true,
                _ => *value == Value::Bool(false),
            };
            if !plain {
                return self.refuse(
                    key,
                    value,
                    "this is not followed: take the key out if the images are meant to be prepared without it",
                );
            }
        }
        Ok(())
    }

    /// The class of processor.
    fn defaults(&self, model_type: Option<&str>) -> Result<Defaults> {
        let named = ["image_processor_type", "feature_extractor_type"];
        let named = named
            .iter()
            .find_map(|key| Some((*key, self.map.get(*key)?)));
        let supported =
            "the supported ones are ViTImageProcessor, DeiTImageProcessor and CLIPImageProcessor";
        if let Some((key, value)) = named {
            // Names from before, and of the two implementations of one class.
            let name = value
                .as_str()
                .unwrap_or("")
                .replace("FeatureExtractor", "ImageProcessor");
            let name = name.strip_suffix("Fast").unwrap_or(&name);
            return match name.strip_suffix("Pil").unwrap_or(name) {
                "ViTImageProcessor" => Ok(VIT),
                "DeiTImageProcessor" => Ok(DEIT),
                "CLIPImageProcessor" => Ok(CLIP),
                _ => self.refuse(key, value, supported),
            };
        }
        match model_type {
            Some("vit") => Ok(VIT),
            Some("deit") => Ok(DEIT),
            Some("clip" | "clip_vision_model") => Ok(CLIP),
            _ => Err(Error::user(format!(
                "{}: image_processor_type is missing, and the model's type ({}) does not tell",
                self.at,
                model_type.unwrap_or("not given")
            ))
            .help(supported)),
        }
    }

    fn processor(&self, defaults: &Defaults) -> Result<Processor> {
        let resized = self.resized(defaults)?;
        let crop = self.crop(defaults)?;
        let size = match (crop, resized) {
            (Some(size), _) | (None, Some((Size::Exactly(size), _))) => size,
            (None, Some((Size::Shorter(_), _))) => {
                let key = if self.map.contains_key("size") {
                    "size"
                } else {
                    "do_center_crop"
                };
                return self.refuse(
                    key,
                    self.map.get(key).unwrap_or(&Value::Null),
                    "resized by their shorter side and not cropped, images differ in size: give a size of height and \
                     width, or do_center_crop and crop_size",
                );
            }
            (None, None) => {
                return self.refuse(
                    "do_resize",
                    false,
                    "images of different sizes cannot be batched: give do_resize and a size, or do_center_crop and \
                     crop_size",
                );
            }
        };
        Ok(Processor {
            resized,
            crop,
            rescale: self.rescale()?,
            normalise: self.normalise(defaults)?,
            size,
        })
    }

    fn resized(&self, defaults: &Defaults) -> Result<Option<(Size, Filter)>> {
        if !self.flag("do_resize", true)? {
            return Ok(None);
        }
        let square = self.flag("default_to_square", defaults.square)?;
        let size = self.size("size", square)?.unwrap_or(defaults.size);
        let number = self.get(
            "resample",
            "the number of a filter in Pillow",
            defaults.resample,
        )?;
        match Filter::of(number) {
            Some(filter) => Ok(Some((size, filter))),
            None => self.refuse(
                "resample",
                number,
                "Pillow's filters are 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) and 5 (hamming)",
            ),
        }
    }

    fn crop(&self, defaults: &Defaults) -> Result<Option<[usize; 2]>> {
        if !self.flag("do_center_crop", defaults.crop.is_some())? {
            return Ok(None);
        }
        let crop = match self.size("crop_size", true)? {
            Some(Size::Exactly(size)) => Some(size),
            Some(Size::Shorter(_)) => {
                let value = &self.map["crop_size"];
                return self.refuse("crop_size", value, "expected a height and a width");
            }
            None => defaults.crop,
        };
        match crop {
            Some(crop) => Ok(Some(crop)),
            None => self.refuse("do_center_crop", true, "say by crop_size how much is kept"),
        }
    }

    fn rescale(&self) -> Result<Option<f64>> {
        if !self.flag("do_rescale", true)? {
            return Ok(None);
        }
        let factor = self.get("rescale_factor", "a number", 1.0 / 255.0)?;
        match factor > 0.0 && (factor * 255.0) as f32 <= f32::MAX {
            true => Ok(Some(factor)),
            false => self.refuse("rescale_factor", factor, "expected a number above 0"),
        }
    }

    fn normalise(&self, defaults: &Defaults) -> Result<Option<[[f32; CHANNELS]; 2]>> {
        if !self.flag("do_normalize", true)? {
            return Ok(None);
        }
        let mean = self.per_channel("image_mean", defaults.mean)?;
        let std = self.per_channel("image_std", defaults.std)?;
        if std.iter().any(|std| !std.is_normal()) {
            let value = &self.map["image_std"];
            return self.refuse("image_std", value, "what is divided by cannot be 0");
        }
        Ok(Some([mean, std]))
    }

    fn get<T: DeserializeOwned>(&self, key: &str, expected: &str, default: T) -> Result<T> {
        let Some(value) = self.map.get(key) else {
            return Ok(default);
        };
        match T::deserialize(value) {
            Ok(value) => Ok(value),
            Err(_) => self.refuse(key, value, &format!("expected {expected}")),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key, "true or false", default)
    }

    /// A number per channel, or one for all.
    fn per_channel(&self, key: &str, default: [f64; CHANNELS]) -> Result<[f32; CHANNELS]> {
        let values = match self.map.get(key) {
            Some(Value::Number(one)) => [one.as_f64().unwrap_or(f64::NAN); CHANNELS],
            _ => self.get(key, "three numbers, for red, green and blue", default)?,
        };
        let values = values.map(|value| value as f32);
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => self.refuse(key, &self.map[key], "expected numbers that f32 can hold"),
        }
    }

    /// A size in any of the ways there are to write it; none where it is not said. `square`: see [`Defaults`].
    fn size(&self, key: &str, square: bool) -> Result<Option<Size>> {
        /// One number, height and width in a list, or by their names.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(usize),
            Two([usize; 2]),
            Named(Map<String, Value>),
        }
        let Some(value) = self.map.get(key) else {
            return Ok(None);
        };
        let side = |map: &Map<String, Value>, name: &str| {
            let side = map.get(name).and_then(Value::as_u64)?;
            usize::try_from(side).ok()
        };
        let size = match Written::deserialize(value) {
            Ok(Written::One(side)) if square => Some(Size::Exactly([side; 2])),
            Ok(Written::One(side)) => Some(Size::Shorter(side)),
            Ok(Written::Two(size)) => Some(Size::Exactly(size)),
            Ok(Written::Named(mut map)) => {
                map.retain(|_, value| !value.is_null());
                match (map.len(), side(&map, "height"), side(&map, "width")) {
                    (2, Some(height), Some(width)) => Some(Size::Exactly([height, width])),
                    (1, None, None) => side(&map, "shortest_edge").map(Size::Shorter),
                    _ => None,
                }
            }
            Err(_) => None,
        };
        let sides = match size {
            Some(Size::Exactly(sides)) => sides,
            Some(Size::Shorter(side)) => [side; 2],
            None => {
                return self.refuse(
                    key,
                    value,
                    "expected a height and a width, or a shortest_edge",
                );
            }
        };
        if sides.iter().any(|side| !(1..=LONGEST_SIDE).contains(side)) {
            let help = format!("a side has 1 to {LONGEST_SIDE} pixels");
            return self.refuse(key, value, &help);
        }
        Ok(size)
    }
}
