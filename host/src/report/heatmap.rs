//! What was chosen, over seeds: modules upwards, steps across, a share for each as a shade.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{Area, Drawn, Plot, drawn, text, tick};
use super::look::Look;
use super::reading::Choice;
use super::{Arm, Reading};
use crate::error::Result;
use crate::file::plain_name;
use crate::run::{layer, short};

/// Shares of modules in stretches of steps.
struct Map<'a> {
    modules: &'a [String],
    /// The steps after the first number, up to the second.
    stretches: Vec<(u64, u64)>,
    /// From 0 to 1, by stretch and module; none where there is nothing to say.
    shares: Vec<Vec<Option<f64>>>,
}

/// The pictures of an arm: how many of its runs had each module active when, their masks side by side where there are
/// several, and means of ranks and scores where these say more.
pub fn heatmaps(look: &Look, arm: &Arm) -> Result<Vec<Plot>> {
    let runs: Vec<&Reading> = arm
        .runs
        .iter()
        .filter(|run| !run.choices.is_empty())
        .collect();
    let Some(first) = runs.first() else {
        return Ok(Vec::new());
    };
    if runs.iter().any(|run| run.modules != first.modules) || runs.iter().all(|run| is_plain(run)) {
        return Ok(Vec::new());
    }
    let of = match &runs[..] {
        [run] if run.finished => format!("{}, seed {}", arm.name, run.seed),
        [run] => format!("{}, seed {}, unfinished", arm.name, run.seed),
        runs => format!("{}, {} seeds", arm.name, runs.len()),
    };
    let plot = |kind: &str, title: String, svg: String| Plot {
        name: plain_name(&format!("{kind}-{of}")),
        title,
        svg,
    };
    let mut plots = Vec::new();
    let active = |choice: &Choice, module: usize| Some(f64::from(u8::from(choice.active[module])));
    let selection = over_seeds(&runs, active);
    let what = match runs.len() {
        1 => "active modules",
        _ => "share of the seeds in which a module is active",
    };
    plots.push(plot(
        "selection",
        format!("{of}: {what}"),
        draw(look, &selection)?,
    ));
    if runs.len() > 1 {
        let svg = side_by_side(look, &runs)?;
        plots.push(plot(
            "masks",
            format!("{of}: active modules, a panel for each seed"),
            svg,
        ));
    }
    let choices = || runs.iter().flat_map(|run| &run.choices);
    let most = choices()
        .flat_map(|choice| &choice.ranks)
        .copied()
        .max()
        .unwrap_or(0);
    if choices()
        .flat_map(|choice| &choice.ranks)
        .any(|rank| *rank != 0 && *rank != most)
    {
        let rank = |choice: &Choice, module: usize| {
            choice
                .ranks
                .get(module)
                .map(|rank| f64::from(*rank) / f64::from(most))
        };
        let title = format!("{of}: rank as a share of {most}, the largest");
        plots.push(plot("ranks", title, draw(look, &over_seeds(&runs, rank))?));
    }
    if choices().any(|choice| choice.scores.iter().any(|score| *score != 0.0)) {
        let score = |choice: &Choice, module: usize| {
            let most = choice.scores.iter().copied().fold(0.0, f64::max);
            let score = choice.scores.get(module)?;
            (most > 0.0).then(|| (score / most).clamp(0.0, 1.0))
        };
        let title = format!("{of}: score by which a choice was made, as a share of the largest");
        plots.push(plot(
            "scores",
            title,
            draw(look, &over_seeds(&runs, score))?,
        ));
    }
    Ok(plots)
}

/// Whether all modules are active throughout.
fn is_plain(run: &Reading) -> bool {
    run.choices.iter().all(|choice| {
        choice.active.iter().all(|active| *active)
            && choice
                .ranks
                .iter()
                .all(|rank| Some(rank) == choice.ranks.first())
    })
}

/// The mean over the runs that have a value.
fn over_seeds<'a>(runs: &[&'a Reading], value: impl Fn(&Choice, usize) -> Option<f64>) -> Map<'a> {
    let modules = &runs[0].modules;
    let choices = runs.iter().flat_map(|run| &run.choices);
    let edges: BTreeSet<u64> = choices
        .flat_map(|choice| [choice.from, choice.to])
        .collect();
    let edges: Vec<u64> = edges.into_iter().collect();
    let stretches: Vec<(u64, u64)> = edges.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let shares = stretches.iter().map(|(from, to)| {
        let governing = runs.iter().filter_map(|run| {
            let mut own = run.choices.iter();
            own.find(|choice| choice.from <= *from && *to <= choice.to)
        });
        let governing: Vec<&Choice> = governing.collect();
        let share = |module| {
            let values = governing.iter().filter_map(|choice| value(choice, module));
            let values: Vec<f64> = values.collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        (0..modules.len()).map(share).collect()
    });
    Map {
        modules,
        shares: shares.collect(),
        stretches,
    }
}

/// Height of a module, so that a thousand of them still fit a tall page.
fn row_height(modules: usize) -> u32 {
    (1400 / modules.max(1) as u32).clamp(2, 14)
}

/// What a label takes up and down.
const LINE: i32 = 11;
/// Room for the legend above a map.
const ABOVE: u32 = 30;
/// Room for the numbers of the steps below it.
const BELOW: u32 = 44;
const MARGIN: u32 = 12;

fn draw(look: &Look, map: &Map<'_>) -> Result<String> {
    let rows = row_height(map.modules.len());
    let labels = labels(map.modules, rows);
    let longest = labels
        .iter()
        .map(|(_, label)| label.len())
        .max()
        .unwrap_or(0) as u32;
    let left = (longest * 6 + 16).clamp(48, look.across() / 2);
    let height = rows * map.modules.len() as u32 + ABOVE + BELOW + 2 * MARGIN;
    let mut shades = String::new();
    let svg = drawn(look, height, |root| {
        let (above, below) = root.split_vertically(ABOVE);
        legend(look, &above)?;
        let to = map.stretches.last().map_or(0, |(_, to)| *to);
        let mut chart = ChartBuilder::on(&below)
            .margin(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(left)
            .build_cartesian_2d(0f64..to as f64, 0f64..map.modules.len() as f64)
            .map_err(text)?;
        shades = cells(look, map, |at| chart.plotting_area().map_coordinate(&at));
        let lowest = labels.iter().map(|(modules, _)| modules.len()).min();
        if rows < 10 && lowest.is_some_and(|modules| modules as u32 * rows > 5) {
            // Layers instead of modules, a line between them.
            let lines = labels.iter().skip(1).map(|(rows, _)| {
                let at = rows.start as f64;
                PathElement::new([(0.0, at), (to as f64, at)], WHITE.stroke_width(1))
            });
            chart.draw_series(lines).map_err(text)?;
        }
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .label_style(("sans-serif", 12))
            .axis_desc_style(("sans-serif", 16))
            .x_desc("optimiser step")
            .x_label_formatter(&tick)
            .draw()
            .map_err(text)?;
        let mut foot = i32::MAX;
        for (rows, label) in &labels {
            let middle = (rows.start + rows.end) as f64 / 2.0;
            let (x, y) = chart.plotting_area().map_coordinate(&(0.0, middle));
            // Layers of a module or two are too low to be labelled each.
            if foot - y < LINE {
                continue;
            }
            foot = y;
            let style = ("sans-serif", 11).into_font().color(&BLACK);
            let style = style.pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(label.clone(), (x - 6, y), style))
                .map_err(text)?;
        }
        Ok(())
    })?;
    Ok(behind(&svg, &shades))
}

/// More shades than are told apart, and few enough that neighbours often share one.
const SHADES: f64 = 32.0;

/// A rectangle for each module, over as many stretches as it keeps its shade: a path for each shade, which is a fifth of
/// what rectangles take by themselves. `place` says where a step and a module are.
fn cells(look: &Look, map: &Map<'_>, place: impl Fn((f64, f64)) -> (i32, i32)) -> String {
    let mut paths = BTreeMap::<u32, String>::new();
    let mut cell = |module: usize, (from, to): (u64, u64), shade: u32| {
        let (left, foot) = place((from as f64, module as f64));
        let (right, top) = place((to as f64, (module + 1) as f64));
        let (width, height) = (right - left, foot - top);
        let path = paths.entry(shade).or_default();
        // A String takes what is written.
        let _ = write!(path, "M{left} {top}h{width}v{height}h-{width}z");
    };
    for module in 0..map.modules.len() {
        let mut open: Option<((u64, u64), u32)> = None;
        for ((from, to), shares) in map.stretches.iter().zip(&map.shares) {
            let shade = shares[module].map(|share| (share * SHADES).round() as u32);
            open = match (open, shade) {
                (Some(((start, end), same)), Some(shade)) if end == *from && same == shade => {
                    Some(((start, *to), same))
                }
                (before, shade) => {
                    if let Some((steps, shade)) = before {
                        cell(module, steps, shade);
                    }
                    shade.map(|shade| ((*from, *to), shade))
                }
            };
        }
        if let Some((steps, shade)) = open {
            cell(module, steps, shade);
        }
    }
    let paths = paths.iter().map(|(of, path)| {
        let RGBColor(r, g, b) = look.shade(f64::from(*of) / SHADES);
        format!(
            "<path shape-rendering=\"crispEdges\" fill=\"#{r:02X}{g:02X}{b:02X}\" d=\"{path}\"/>\n"
        )
    });
    paths.collect()
}

/// A drawing with more behind it, but for its ground, which is the first thing drawn.
fn behind(svg: &str, more: &str) -> String {
    match svg.split_once("/>\n") {
        Some((ground, drawing)) => format!("{ground}/>\n{more}{drawing}"),
        None => svg.to_owned(),
    }
}

/// Rows with what stands beside them: each module by layer and name, or, where there is no room, each layer.
fn labels(modules: &[String], rows: u32) -> Vec<(std::ops::Range<usize>, String)> {
    if rows >= 10 {
        let label = |(at, path): (usize, &String)| (at..at + 1, short(path));
        return modules.iter().enumerate().map(label).collect();
    }
    let mut labels: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    for (at, path) in modules.iter().enumerate() {
        let label = match layer(path) {
            Some(layer) => format!("layer {layer}"),
            None => short(path),
        };
        match labels.last_mut() {
            Some((rows, last)) if *last == label => rows.end = at + 1,
            _ => labels.push((at..at + 1, label)),
        }
    }
    labels
}

/// The shades from 0 to 1.
fn legend(look: &Look, area: &Area<'_>) -> Drawn {
    let (left, width, steps) = (look.across() as i32 - 240, 180, 20);
    for step in 0..steps {
        let x = left + step * width / steps;
        let corners = [(x, 12), (x + width / steps, 24)];
        let fill = look
            .shade((f64::from(step) + 0.5) / f64::from(steps))
            .filled();
        area.draw(&Rectangle::new(corners, fill)).map_err(text)?;
    }
    let style = ("sans-serif", 12).into_font().color(&BLACK);
    for (x, end, side) in [
        (left - 6, "0", HPos::Right),
        (left + width + 6, "1", HPos::Left),
    ] {
        let style = style.clone().pos(Pos::new(side, VPos::Center));
        area.draw(&Text::new(end, (x, 18), style)).map_err(text)?;
    }
    Ok(())
}

/// Panels in one line.
const IN_A_LINE: usize = 5;

/// A small map for each run.
fn side_by_side(look: &Look, runs: &[&Reading]) -> Result<String> {
    let modules = runs[0].modules.len();
    let rows = row_height(modules).min(5);
    let panel = rows * modules as u32 + 28;
    let lines = runs.len().div_ceil(IN_A_LINE);
    let mut shades = String::new();
    let svg = drawn(look, panel * lines as u32 + MARGIN, |root| {
        let panels = root.margin(0, MARGIN, 0, 0);
        let panels = panels.split_evenly((lines, runs.len().clamp(3, IN_A_LINE)));
        for (run, panel) in runs.iter().zip(&panels) {
            let active =
                |choice: &Choice, module: usize| Some(f64::from(u8::from(choice.active[module])));
            let map = over_seeds(&[run], active);
            let style = ("sans-serif", 12).into_font().color(&BLACK);
            let unfinished = if run.finished { "" } else { ", unfinished" };
            let title = format!("seed {}{unfinished}", run.seed);
            panel.draw(&Text::new(title, (8, 6), style)).map_err(text)?;
            let to = map.stretches.last().map_or(0, |(_, to)| *to);
            let chart = ChartBuilder::on(panel)
                .margin_top(22)
                .margin_left(8)
                .margin_right(4)
                .margin_bottom(6)
                .build_cartesian_2d(0f64..to as f64, 0f64..modules as f64)
                .map_err(text)?;
            shades += &cells(look, &map, |at| chart.plotting_area().map_coordinate(&at));
        }
        Ok(())
    })?;
    Ok(behind(&svg, &shades))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_called_by_layer_and_name_as_far_as_there_is_room() {
        let modules: Vec<String> = [
            "encoder.layer.0.attention.self.query",
            "encoder.layer.0.output.dense",
            "encoder.layer.1.output.dense",
            "pooler.dense",
        ]
        .map(str::to_owned)
        .to_vec();
        let of = |rows| {
            labels(&modules, rows)
                .into_iter()
                .map(|(_, label)| label)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of(14),
            [
                "0 attention.self.query",
                "0 output.dense",
                "1 output.dense",
                "pooler.dense"
            ]
        );
        assert_eq!(of(2), ["layer 0", "layer 1", "pooler.dense"]);
        assert_eq!([36, 200, 1000].map(row_height), [14, 7, 2]);
    }

    #[test]
    fn a_module_is_one_rectangle_while_it_keeps_its_shade() {
        let modules = ["a", "b"].map(str::to_owned);
        let map = Map {
            modules: &modules,
            stretches: vec![(0, 10), (10, 20), (20, 40)],
            shares: vec![
                vec![Some(1.0), None],
                vec![Some(1.0), Some(0.0)],
                vec![Some(0.5), Some(0.001)],
            ],
        };
        let drawn = cells(&Look::default(), &map, |(step, module)| {
            (step as i32, 20 - module as i32)
        });
        let paths: Vec<&str> = drawn.lines().collect();
        let expected = [
            "<path shape-rendering=\"crispEdges\" fill=\"#EBEBEB\" d=\"M10 18h30v1h-30z\"/>",
            "<path shape-rendering=\"crispEdges\" fill=\"#0072B2\" d=\"M20 19h20v1h-20z\"/>",
            "<path shape-rendering=\"crispEdges\" fill=\"#002546\" d=\"M0 19h20v1h-20z\"/>",
        ];
        assert_eq!(paths, expected);
        let whole = behind("<svg>\n<rect/>\n<text/></svg>", "<path/>");
        assert_eq!(whole, "<svg>\n<rect/>\n<path/><text/></svg>");
    }
}
