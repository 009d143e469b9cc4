//! From the bytes of an image file to pixels.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::data::quiet::without_panic;

/// An image of 8-bit red, green and blue: `height × width × 3` values, row by row.
pub(super) struct Rgb {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) pixels: Vec<u8>,
}

/// The most pixels of an image; from here on Pillow warns of a decompression bomb.
pub(super) const MOST_PIXELS: u64 = 89_478_485;
/// The most pixels along a side, as in JPEG.
const LONGEST_SIDE: u32 = 65_535;

/// The pixels of a PNG, JPEG, BMP or WebP file as Transformers gives them to an image processor: turned as the file's
/// EXIF orientation says, then as by Pillow's `convert("RGB")`. Transparency is dropped, not blended; of 16 bits the
/// upper 8 count; of an animation, the first picture. An error says what is wrong with the file.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    match without_panic(|| decode_or_panic(bytes)) {
        Some(image) => image,
        None => Err("the image is damaged".into()),
    }
}

fn decode_or_panic(bytes: &[u8]) -> Result<Rgb, String> {
    let reader = ImageReader::new(Cursor::new(bytes));
    let mut reader = reader
        .with_guessed_format()
        .map_err(|error| error.to_string())?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !is_whole_jpeg(bytes) => {
            return Err("the JPEG is cut short".into());
        }
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Bmp | ImageFormat::WebP) => {}
        Some(other) => {
            return Err(format!(
                "{} is not read: the formats are PNG, JPEG, BMP and WebP",
                other.extensions_str().first().unwrap_or(&"this format")
            ));
        }
        None => return Err("it is not a PNG, JPEG, BMP or WebP image".into()),
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    // Four channels of 16 bits.
    limits.max_alloc = Some(MOST_PIXELS * 8);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!(
            "it has {width} × {height} pixels, where at most {MOST_PIXELS} are read"
        ));
    }
    if width == 0 || height == 0 {
        return Err("it has no pixels".into());
    }
    // What cannot be read as an orientation is none, as in Pillow.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    to_rgb(image)
}

fn damaged(error: image::ImageError) -> String {
    format!("the image cannot be read: {error}")
}

/// Whether the picture's own data comes to its end marker. The decoder makes grey of what is missing.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    // The segments before the data, one of which may hold a thumbnail with an end of its own.
    while let Some([0xFF, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xDA => return memchr::memmem::rfind(&bytes[at..], &[0xFF, 0xD9]).is_some(),
            // Padding.
            0xFF => at += 1,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
    false
}

fn to_rgb(image: DynamicImage) -> Result<Rgb, String> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    let upper = |value: u16| (value >> 8) as u8;
    let pixels = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => grey(image.as_raw().iter().copied()),
        DynamicImage::ImageLumaA8(image) => grey(image.pixels().map(|pixel| pixel.0[0])),
        DynamicImage::ImageLumaA16(image) => grey(image.pixels().map(|pixel| upper(pixel.0[0]))),
        DynamicImage::ImageRgba8(image) => {
            let pixels = image.pixels();
            pixels
                .flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]])
                .collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().copied().map(upper).collect(),
        DynamicImage::ImageRgba16(image) => {
            let pixels = image.pixels();
            pixels
                .flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper))
                .collect()
        }
        // Pillow makes white of every value above 255: nearly the whole image.
        DynamicImage::ImageLuma16(_) => {
            return Err("it is grey with 16 bits, of which Pillow keeps the lowest 255 values: save it with 8".into());
        }
        _ => return Err("its kind of pixels is not read: save it with 8 bits a channel".into()),
    };
    Ok(Rgb {
        height,
        width,
        pixels,
    })
}

fn grey(values: impl Iterator<Item = u8>) -> Vec<u8> {
    values.flat_map(|value| [value; 3]).collect()
}
