//! How pictures look: how wide they are, how large their letters, and in which colours maps are.

use std::str::FromStr;

use clap::ValueEnum;
use plotters::style::RGBColor;

/// Pixels in an inch, as CSS has them.
pub(super) const INCH: f64 = 96.0;
/// The height of the letters that sizes of pictures are made for, in pixels.
const LETTERS: f64 = 15.0;
/// The narrowest and the widest that there is something to see of, in letters' heights.
const WIDTHS: [f64; 2] = [20.0, 400.0];

/// How pictures look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// How wide they are.
    width: Length,
    /// How large the letters of legends are; those at ticks are a little smaller, those at axes larger.
    font: Length,
    /// The colours of maps.
    colors: Colors,
}

/// A length, with the unit that it was given in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    number: f64,
    unit: &'static str,
    /// Pixels of 1/96 inch.
    pixels: f64,
}

/// The colours of maps, from nothing to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Colors {
    /// Light grey, blue, dark blue
    #[default]
    Blues,
    /// Cividis (Nuñez et al. 2018), nearly the same to people with any kind of colour vision
    Cividis,
    /// Viridis (Smith and van der Walt 2015)
    Viridis,
    /// Magma, likewise
    Magma,
    /// White to black, for print
    Greys,
}

impl Default for Look {
    fn default() -> Self {
        Look {
            width: Length::of(800.0, "px").unwrap_or(Length::NONE),
            font: Length::of(LETTERS, "px").unwrap_or(Length::NONE),
            colors: Colors::default(),
        }
    }
}

impl Look {
    /// As wide as this, with letters of this size: by default those of a page on a screen, or, of a given width, those of a
    /// paper, 8 points. What is wrong where there would be nothing to see.
    pub fn new(
        width: Option<Length>,
        font: Option<Length>,
        colors: Colors,
    ) -> Result<Self, String> {
        let screen = Look::default();
        let paper = Length::of(8.0, "pt").unwrap_or(screen.font);
        let look = Look {
            width: width.unwrap_or(screen.width),
            font: font.unwrap_or(if width.is_some() { paper } else { screen.font }),
            colors,
        };
        let letters = look.width.pixels / look.font.pixels;
        let [least, most] = WIDTHS;
        match (least..=most).contains(&letters) {
            true => Ok(look),
            false => Err(format!(
                "a picture of {} with letters of {} is {letters:.0} letters' heights wide, and between {least} and {most} \
                 there is something to see",
                look.width, look.font
            )),
        }
    }

    /// How wide a picture is in units of which letters have [15](LETTERS).
    pub(super) fn across(&self) -> u32 {
        (self.width.pixels / self.font.pixels * LETTERS).round() as u32
    }

    /// A drawing of this height in such units, said to be as large as it is to be.
    pub(super) fn sized(&self, svg: String, height: u32) -> String {
        let across = self.across();
        let drawn = format!("width=\"{across}\" height=\"{height}\"");
        let Length { number, unit, .. } = self.width;
        let tall = number * f64::from(height) / f64::from(across);
        let unit = if unit == "px" { "" } else { unit };
        let sized = format!("width=\"{number}{unit}\" height=\"{}{unit}\"", round(tall));
        svg.replacen(&drawn, &sized, 1)
    }

    /// The colour of a share, from 0 to 1.
    pub(super) fn shade(&self, share: f64) -> RGBColor {
        let gradient = match self.colors {
            Colors::Blues => return blue(share),
            Colors::Cividis => colorous::CIVIDIS,
            Colors::Viridis => colorous::VIRIDIS,
            Colors::Magma => colorous::MAGMA,
            Colors::Greys => colorous::GREYS,
        };
        let colorous::Color { r, g, b } = gradient.eval_continuous(share);
        RGBColor(r, g, b)
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// From next to nothing to all.
fn blue(share: f64) -> RGBColor {
    const NONE: [f64; 3] = [235.0, 235.0, 235.0];
    const HALF: [f64; 3] = [0.0, 114.0, 178.0];
    const ALL: [f64; 3] = [0.0, 37.0, 70.0];
    let (from, to, at) = match share {
        share if share < 0.5 => (NONE, HALF, 2.0 * share),
        share => (HALF, ALL, 2.0 * share - 1.0),
    };
    let part = |nth: usize| (from[nth] + at * (to[nth] - from[nth])).round() as u8;
    RGBColor(part(0), part(1), part(2))
}

impl Length {
    const NONE: Length = Length {
        number: 0.0,
        unit: "px",
        pixels: 0.0,
    };

    /// So many of a unit; none where there is no such unit.
    fn of(number: f64, unit: &str) -> Option<Self> {
        let units = [
            ("mm", INCH / 25.4),
            ("cm", INCH / 2.54),
            ("in", INCH),
            ("pt", INCH / 72.0),
            ("px", 1.0),
        ];
        let (unit, pixels) = units.into_iter().find(|(name, _)| *name == unit)?;
        Some(Length {
            number,
            unit,
            pixels: number * pixels,
        })
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.number, self.unit)
    }
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text
            .trim_end_matches(|c: char| c.is_ascii_alphabetic())
            .len();
        let (number, unit) = text.split_at(split);
        let number = number.trim().parse::<f64>().ok();
        let number = number.filter(|number| number.is_finite() && *number > 0.0);
        let length = number.and_then(|number| Length::of(number, unit));
        length.ok_or_else(|| "give a number with mm, cm, in, pt or px, such as 84mm".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(width: &str, font: &str) -> Result<Look, String> {
        let length = |text: &str| (!text.is_empty()).then(|| text.parse().expect("a length"));
        Look::new(length(width), length(font), Colors::Viridis)
    }

    #[test]
    fn a_picture_of_a_column_has_its_width_and_letters_of_a_paper() {
        assert_eq!(Look::default().across(), 800);
        // 84 mm are 238 points, of which a letter has 8.
        let paper = look("84mm", "").expect("a column");
        assert_eq!(paper.across(), 446);
        assert_eq!(look("3.3in", "9pt").expect("a column").across(), 396);
        let svg = "<svg width=\"446\" height=\"223\" viewBox=\"0 0 446 223\">".to_owned();
        assert_eq!(
            paper.sized(svg, 223),
            "<svg width=\"84mm\" height=\"42mm\" viewBox=\"0 0 446 223\">"
        );
        let svg = "<svg width=\"800\" height=\"420\">".to_owned();
        assert_eq!(Look::default().sized(svg.clone(), 420), svg);
    }

    #[test]
    fn what_would_show_nothing_is_refused() {
        for (width, font) in [("10mm", "8pt"), ("84mm", "40pt"), ("10in", "0.1pt")] {
            assert!(look(width, font).is_err(), "{width}, {font}");
        }
        for wrong in ["84", "mm", "-3mm", "84 m", "nan px", "1e999mm"] {
            assert!(wrong.parse::<Length>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shades_are_told_apart_and_end_where_they_should() {
        let blues = Look::default();
        assert_eq!(blues.shade(0.0), RGBColor(235, 235, 235));
        assert_eq!(blues.shade(0.5), RGBColor(0, 114, 178));
        assert_eq!(blues.shade(1.0), RGBColor(0, 37, 70));
        let viridis = look("", "").expect("a screen");
        assert_eq!(viridis.shade(0.0), RGBColor(68, 1, 84));
        assert_eq!(viridis.shade(1.0), RGBColor(253, 231, 37));
    }
}
