//! A report in pictures: SVG, which needs no fonts until it is looked at.

use std::collections::BTreeSet;
use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::heatmap::heatmaps;
use super::{Arm, Figure, Reading, Report, Spread};
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
pub(super) const WIDTH: u32 = 800;
pub(super) const HEIGHT: u32 = 420;
/// Height of a line of the legend.
pub(super) const LINE: u32 = 20;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The metric by steps, `y` by `x`, and what each arm chose, as far as there is something to draw.
pub fn plots(report: &Report, x: Figure, y: Figure) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    plots.extend(curves(report)?);
    plots.extend(scatter(report, x, y)?);
    plots.extend(numbers(report)?);
    for arm in &report.arms {
        plots.extend(heatmaps(arm)?);
    }
    // Names of arms that are apart may be one as names of files.
    for at in 1..plots.len() {
        let (before, [plot, ..]) = plots.split_at_mut(at) else {
            break;
        };
        let same = |name: &str| before.iter().any(|other| other.name == name);
        let mut fresh = plot.name.clone();
        for number in 2.. {
            if !same(&fresh) {
                break;
            }
            fresh = format!("{}-{number}", plot.name);
        }
        plot.name = fresh;
    }
    Ok(plots)
}

pub(super) fn drawn(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let done = root
            .fill(&WHITE)
            .map_err(|error| error.to_string())
            .and_then(|()| draw(&root))
            .and_then(|()| root.present().map_err(|error| error.to_string()));
        done.map_err(|error| Error::failure(format!("cannot draw a plot: {error}")))?;
    }
    Ok(svg)
}

/// A name for a file of these parts.
pub(super) fn file_name(parts: &[&str]) -> String {
    let mut name = String::new();
    for letter in parts.join("-").chars() {
        match letter {
            letter if letter.is_alphanumeric() || "._=+%".contains(letter) => name.push(letter),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.trim_matches('-').chars().take(120).collect()
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

/// Cuts a legend of all arms off the foot of an area and returns the rest.
fn legend<'a>(root: &Area<'a>, report: &Report) -> Drawn<Area<'a>> {
    let rows = report.arms.len() as u32 * LINE;
    let height = root.dim_in_pixel().1;
    let (above, below) = root.split_vertically(height - rows - LINE / 2);
    for (index, arm) in report.arms.iter().enumerate() {
        let y = (index as u32 * LINE + LINE / 2) as i32;
        let line = PathElement::new([(56, y), (84, y)], colour(index).stroke_width(2));
        below.draw(&line).map_err(text)?;
        below.draw(&marker(index, (70, y), true)).map_err(text)?;
        let style = ("sans-serif", 15).into_font().color(&BLACK);
        let name = Text::new(arm.name.clone(), (94, y - 7), style);
        below.draw(&name).map_err(text)?;
    }
    Ok(above)
}

fn height_with_legend(report: &Report) -> u32 {
    HEIGHT + report.arms.len() as u32 * LINE
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

/// Mean and standard deviation at each step that all counted runs of an arm were evaluated after.
fn band(arm: &Arm, unfinished: bool) -> Vec<(f64, Spread)> {
    let runs: Vec<&Reading> = arm.counted(unfinished).collect();
    let steps = runs
        .iter()
        .flat_map(|run| run.curve.iter().map(|(step, _)| *step));
    let steps: BTreeSet<u64> = steps.collect();
    let points = steps.into_iter().filter_map(|step| {
        let at = |run: &&Reading| {
            let point = run.curve.iter().find(|(own, _)| *own == step);
            point
                .map(|(_, value)| *value)
                .filter(|value| value.is_finite())
        };
        let values: Option<Vec<f64>> = runs.iter().map(at).collect();
        Some((step as f64, Spread::of(&values?)?))
    });
    points.collect()
}

/// The metric by steps: each arm's mean, a band of one standard deviation around it, and the runs that are
/// not counted by themselves, thin and hollow.
fn curves(report: &Report) -> Result<Option<Plot>> {
    let unfinished = report.unfinished_count;
    let bands: Vec<_> = report
        .arms
        .iter()
        .map(|arm| band(arm, unfinished))
        .collect();
    let finite = |run: &Reading| -> Vec<(f64, f64)> {
        let points = run.curve.iter().filter(|(_, value)| value.is_finite());
        points.map(|(step, value)| (*step as f64, *value)).collect()
    };
    let alone: Vec<(usize, Vec<(f64, f64)>)> = (report.arms.iter().enumerate())
        .flat_map(|(index, arm)| arm.runs.iter().map(move |run| (index, run)))
        .filter(|(_, run)| !run.finished && !unfinished)
        .map(|(index, run)| (index, finite(run)))
        .collect();
    let steps = bands.iter().flatten().map(|(step, _)| *step);
    let steps = steps.chain(
        alone
            .iter()
            .flat_map(|(_, run)| run.iter().map(|(step, _)| *step)),
    );
    let edges = bands.iter().flatten().flat_map(|(_, spread)| {
        let sd = spread.sd.unwrap_or(0.0);
        [spread.mean - sd, spread.mean + sd]
    });
    let edges = edges.chain(
        alone
            .iter()
            .flat_map(|(_, run)| run.iter().map(|(_, value)| *value)),
    );
    let (Some(x), Some(y)) = (around(steps), around(edges)) else {
        return Ok(None);
    };
    let svg = drawn(height_with_legend(report), |root| {
        let area = legend(root, report)?;
        let mut chart = axes!(&area, x, y, "optimiser step", report.metric.as_str());
        for (index, points) in bands.iter().enumerate() {
            let edge = |sign: f64| {
                let edge = points.iter().filter_map(move |(step, spread)| {
                    Some((*step, spread.mean + sign * spread.sd?))
                });
                edge.collect::<Vec<_>>()
            };
            let mut outline = edge(1.0);
            outline.extend(edge(-1.0).into_iter().rev());
            if !outline.is_empty() {
                let fill = colour(index).mix(0.18).filled();
                chart
                    .draw_series([Polygon::new(outline, fill)])
                    .map_err(text)?;
            }
        }
        let means = bands.iter().enumerate().map(|(index, points)| {
            let points = points.iter().map(|(step, spread)| (*step, spread.mean));
            (index, points.collect::<Vec<_>>(), true)
        });
        let alone = alone
            .iter()
            .map(|(index, points)| (*index, points.clone(), false));
        for (index, points, counted) in means.chain(alone) {
            let style = colour(index).stroke_width(if counted { 2 } else { 1 });
            chart
                .draw_series(LineSeries::new(points.clone(), style))
                .map_err(text)?;
            let points = points.into_iter().map(|at| marker(index, at, counted));
            chart.draw_series(points).map_err(text)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        name: "metric".to_owned(),
        title: format!(
            "{} by step: mean, and one standard deviation over seeds",
            report.metric
        ),
        svg,
    }))
}

/// The plugins' own numbers by step, those of which there is one at a time: a line a run.
fn numbers(report: &Report) -> Result<Vec<Plot>> {
    let runs = || {
        (report.arms.iter().enumerate())
            .flat_map(|(at, arm)| arm.runs.iter().map(move |run| (at, run)))
    };
    let names: BTreeSet<&String> = runs().flat_map(|(_, run)| run.numbers.keys()).collect();
    let mut plots = Vec::new();
    for name in names {
        let line = |run: &Reading| -> Vec<(f64, f64)> {
            let points = run.numbers.get(name).into_iter().flatten();
            let points = points.filter_map(|(step, values)| match values[..] {
                [value] if value.is_finite() => Some((*step as f64, value)),
                _ => None,
            });
            points.collect()
        };
        let lines: Vec<(usize, Vec<(f64, f64)>)> =
            runs().map(|(arm, run)| (arm, line(run))).collect();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let x = around(points().map(|(step, _)| *step));
        let y = around(points().map(|(_, value)| *value));
        let (Some(x), Some(y)) = (x, y) else {
            continue;
        };
        let svg = drawn(height_with_legend(report), |root| {
            let area = legend(root, report)?;
            let mut chart = axes!(&area, x, y, "optimiser step", name.as_str());
            for (arm, points) in &lines {
                let style = colour(*arm).stroke_width(1);
                let line = LineSeries::new(points.clone(), style);
                chart.draw_series(line).map_err(text)?;
                let points = points.iter().map(|at| marker(*arm, *at, true));
                chart.draw_series(points).map_err(text)?;
            }
            Ok(())
        })?;
        plots.push(Plot {
            name: format!("number-{:02}", plots.len() + 1),
            title: format!("{name}, as the plugin gave it at each reallocation: a line a run"),
            svg,
        });
    }
    Ok(plots)
}

/// One point a run, hollow where it is unfinished, and each arm's name at the mean of those that count.
fn scatter(report: &Report, x: Figure, y: Figure) -> Result<Option<Plot>> {
    let points: Vec<(usize, (f64, f64), bool)> = (report.arms.iter().enumerate())
        .flat_map(|(index, arm)| arm.runs.iter().map(move |run| (index, run)))
        .filter_map(|(index, run)| {
            let at = |figure: Figure| Some(figure.scaled(*run.figures.get(&figure)?));
            Some((index, (at(x)?, at(y)?), run.finished))
        })
        .collect();
    let across = around(points.iter().map(|(_, (x, _), _)| *x));
    let up = around(points.iter().map(|(_, (_, y), _)| *y));
    let (Some(across), Some(up)) = (across, up) else {
        return Ok(None);
    };
    let names = [x, y].map(|figure| figure.heading(&report.metric));
    let middle = (across.start + across.end) / 2.0;
    let svg = drawn(height_with_legend(report), |root| {
        let area = legend(root, report)?;
        let [x_name, y_name] = &names;
        let mut chart = axes!(&area, across, up, x_name.as_str(), y_name.as_str());
        let points = points
            .iter()
            .map(|(index, at, finished)| marker(*index, *at, *finished));
        chart.draw_series(points).map_err(text)?;
        let names = report.arms.iter().enumerate().filter_map(|(index, arm)| {
            let mean = |figure: Figure| Some(figure.scaled(arm.figures.get(&figure)?.mean));
            let at = (mean(x)?, mean(y)?);
            // Away from the nearer edge.
            let (side, apart) = match at.0 > middle {
                true => (HPos::Right, -9),
                false => (HPos::Left, 9),
            };
            let style = ("sans-serif", 12).into_font().color(&colour(index));
            let style = style.pos(Pos::new(side, VPos::Center));
            Some(EmptyElement::at(at) + Text::new(arm.name.clone(), (apart, 0), style))
        });
        chart.draw_series(names).map_err(text)?;
        Ok(())
    })?;
    Ok(Some(Plot {
        name: "scatter".to_owned(),
        title: format!("{} by {}, a point for each run", names[1], names[0]),
        svg,
    }))
}
