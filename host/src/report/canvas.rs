//! What all pictures of a report share: colours, marks and axes. SVG, which needs no fonts until it is looked at.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::look::Look;
use crate::error::{Error, Result};

/// A drawing.
#[derive(Clone, Debug)]
pub struct Plot {
    /// For a file: `metric`, `scatter`, `selection-uniform-10-seeds`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// The drawing itself.
    pub svg: String,
}

/// Okabe and Ito's colours (2008), told apart by people with any kind of colour vision; their yellow, which is
/// too faint on white, left out.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
/// Without a legend, as a share of the width, and at least.
const HEIGHT: (f64, u32) = (0.525, 330);
/// Height of a line of the legend.
const LINE: u32 = 20;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn drawn(
    look: &Look,
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (look.across(), height)).into_drawing_area();
        let done = root
            .fill(&WHITE)
            .map_err(|error| error.to_string())
            .and_then(|()| draw(&root))
            .and_then(|()| root.present().map_err(|error| error.to_string()));
        done.map_err(|error| Error::failure(format!("cannot draw a plot: {error}")))?;
    }
    Ok(look.sized(svg, height))
}

/// The library's errors are of many types that all say one thing.
pub(super) type Drawn<T = ()> = std::result::Result<T, String>;

pub(super) fn text(error: impl Display) -> String {
    error.to_string()
}

pub(super) fn colour(arm: usize) -> RGBColor {
    COLOURS[arm % COLOURS.len()]
}

/// The arms from the eighth on share colours with the first, and are told apart by shape.
fn repeats(arm: usize) -> bool {
    arm >= COLOURS.len()
}

/// A point of an arm: hollow where the run is unfinished.
pub(super) fn marker<'a, At: Clone + 'static>(
    arm: usize,
    at: At,
    filled: bool,
) -> DynElement<'static, SVGBackend<'a>, At> {
    let style = match filled {
        true => colour(arm).filled(),
        false => colour(arm).stroke_width(1),
    };
    match repeats(arm) {
        true => TriangleMarker::new(at, 5, style).into_dyn(),
        false => Circle::new(at, 4, style).into_dyn(),
    }
}

fn height(look: &Look) -> u32 {
    let (share, least) = HEIGHT;
    ((share * f64::from(look.across())).round() as u32).max(least)
}

pub(super) fn height_with_legend(look: &Look, names: usize) -> u32 {
    height(look) + names as u32 * LINE
}

/// Cuts a legend off the foot of an area and returns the rest: a line in its colour for each name, `marked` with the marker
/// of its points.
pub(super) fn legend<'a, 'n>(
    look: &Look,
    root: &Area<'a>,
    names: impl Iterator<Item = &'n str>,
    marked: bool,
) -> Drawn<Area<'a>> {
    let (above, below) = root.split_vertically(height(look) - LINE / 2);
    for (nth, name) in names.enumerate() {
        let y = (nth as u32 * LINE + LINE / 2) as i32;
        let line = PathElement::new([(56, y), (84, y)], colour(nth).stroke_width(2));
        below.draw(&line).map_err(text)?;
        if marked {
            below.draw(&marker(nth, (70, y), true)).map_err(text)?;
        }
        let style = ("sans-serif", 15).into_font().color(&BLACK);
        let name = Text::new(name.to_owned(), (94, y - 7), style);
        below.draw(&name).map_err(text)?;
    }
    Ok(above)
}

/// A range with some room at its ends.
pub(super) fn around(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let room = match high - low {
        0.0 => (0.05 * high.abs()).max(1e-3),
        width => 0.05 * width,
    };
    (low <= high).then_some(low - room..high + room)
}

/// A number at a tick.
pub(super) fn tick(value: &f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// Axes over an area, for numbers in both directions.
macro_rules! axes {
    ($area:expr, $x:expr, $y:expr, $x_name:expr, $y_name:expr) => {
        axes!($area, $x, $y, $x_name, $y_name, &tick)
    };
    ($area:expr, $x:expr, $y:expr, $x_name:expr, $y_name:expr, $x_tick:expr) => {{
        let mut chart = ChartBuilder::on($area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d($x, $y)
            .map_err(text)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 16))
            .x_desc($x_name)
            .y_desc($y_name)
            .x_label_formatter($x_tick)
            .y_label_formatter(&tick)
            .draw()
            .map_err(text)?;
        chart
    }};
}

pub(super) use axes;
