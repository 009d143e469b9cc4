//! Pictures for papers: PDF and PNG, of the SVG that they are drawn as.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{Options, Tree, WriteOptions};
use svg2pdf::{ConversionOptions, PageOptions};

use super::{Plot, look};
use crate::error::{Error, Result};

/// Pixels in an inch, as the two libraries take it.
const INCH: f32 = look::INCH as f32;
/// The fonts that texts are set in: the program's own, so that a picture is the same everywhere, and the system's for
/// letters that it has not.
static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_system_fonts();
    fonts.set_sans_serif_family("DejaVu Sans");
    Arc::new(fonts)
});

fn tree(plot: &Plot, svg: &str) -> Result<Tree> {
    let options = Options {
        dpi: INCH,
        font_family: "DejaVu Sans".to_owned(),
        fontdb: FONTS.clone(),
        ..Options::default()
    };
    Tree::from_str(svg, &options).map_err(|error| cannot(plot, error))
}

fn cannot(plot: &Plot, error: impl std::fmt::Display) -> Error {
    Error::failure(format!(
        "the picture {} cannot be converted: {error}",
        plot.name
    ))
}

/// One page of the picture's size, its letters as outlines, so that no font is missing anywhere.
pub fn pdf(plot: &Plot) -> Result<Vec<u8>> {
    let drawn = tree(plot, &plot.svg)?;
    let outlines = drawn.to_string(&WriteOptions {
        preserve_text: false,
        ..WriteOptions::default()
    });
    let page = PageOptions { dpi: INCH };
    svg2pdf::to_pdf(&tree(plot, &outlines)?, ConversionOptions::default(), page)
        .map_err(|error| cannot(plot, error))
}

/// The picture in dots, so many to an inch.
pub fn png(plot: &Plot, dpi: f32) -> Result<Vec<u8>> {
    let tree = tree(plot, &plot.svg)?;
    let scale = dpi / INCH;
    let [width, height] =
        [tree.size().width(), tree.size().height()].map(|side| (side * scale).ceil() as u32);
    let mut dots = Pixmap::new(width, height).ok_or_else(|| {
        Error::user(format!(
            "the picture {} would have {width} × {height} dots",
            plot.name
        ))
        .help("give a smaller --width or --dpi")
    })?;
    resvg::render(
        &tree,
        Transform::from_scale(scale, scale),
        &mut dots.as_mut(),
    );
    dots.encode_png().map_err(|error| cannot(plot, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dots that are not white, of a picture with this in it.
    fn dark(inside: &str) -> usize {
        let plot = Plot {
            name: "tried".to_owned(),
            title: String::new(),
            svg: format!(
                "<svg width=\"96\" height=\"48\" viewBox=\"0 0 96 48\" xmlns=\"http://www.w3.org/2000/svg\">\n\
                 <rect width=\"96\" height=\"48\" fill=\"#FFFFFF\"/>{inside}</svg>"
            ),
        };
        let page = pdf(&plot).expect("a page");
        assert!(page.starts_with(b"%PDF-"));
        let png = png(&plot, 96.0).expect("dots");
        let dots = Pixmap::decode_png(&png).expect("what was written");
        assert_eq!((dots.width(), dots.height()), (96, 48));
        let dots = dots.pixels().iter();
        dots.filter(|dot| dot.red() < 128).count()
    }

    #[test]
    fn letters_are_drawn_in_the_programs_own_font() {
        assert_eq!(dark(""), 0);
        let write = |text: &str| {
            dark(&format!(
                "<text x=\"8\" y=\"32\" font-family=\"sans-serif\" font-size=\"24\">{text}</text>"
            ))
        };
        let (few, more) = (write("i"), write("−×éM"));
        assert!(0 < few && few < more, "{few}, {more}");
    }
}
