//! Lines over one key of the recipes that arms differ in.

use plotters::prelude::*;

use super::canvas::{
    Plot, around, axes, colour, drawn, height_with_legend, legend, marker, text, tick,
};
use super::look::Look;
use super::{Arm, Figure, Report, Spread};
use crate::error::{Error, Result};
use crate::file::plain_name;
use crate::recipe::nearest;

/// Arms that differ in nothing but the key, by its value.
struct Line<'a> {
    name: String,
    points: Vec<(f64, &'a Spread)>,
}

/// `figure` of the arms over the values of `key`: a line through those that differ in nothing else, with one standard
/// deviation to each side, and a level for each arm that has no such key. An error if no arm has it, or not as a number.
pub fn swept(look: &Look, report: &Report, key: &str, figure: Figure) -> Result<Plot> {
    let mut lines: Vec<(Vec<(&String, &String)>, Line<'_>)> = Vec::new();
    let mut levels: Vec<(&str, &Spread)> = Vec::new();
    for arm in &report.arms {
        let Some(spread) = arm.figures.get(&figure) else {
            continue;
        };
        let Some(value) = arm.setting(key) else {
            levels.push((&arm.name, spread));
            continue;
        };
        let Some(at) = number(value) else {
            return Err(Error::user(format!(
                "--x-key {key}: `{}` has \"{value}\" there, which is no number",
                arm.name
            ))
            .help("name a key whose values are numbers, such as allocation.schedule.every"));
        };
        let others: Vec<_> = arm.settings().filter(|(name, _)| *name != key).collect();
        match lines.iter_mut().find(|(same, _)| *same == others) {
            Some((_, line)) => line.points.push((at, spread)),
            None => {
                let line = Line {
                    name: without(arm, key, value),
                    points: vec![(at, spread)],
                };
                lines.push((others, line));
            }
        }
    }
    if lines.is_empty() {
        let mut known: Vec<String> = report
            .arms
            .iter()
            .flat_map(|arm| arm.settings().map(|(key, _)| key.clone()))
            .collect();
        known.sort();
        known.dedup();
        let near = nearest(key, &known).map(|near| format!("did you mean `{near}`? "));
        return Err(
            Error::user(format!("--x-key {key}: none of the runs has such a key")).help(format!(
                "{}Name a dotted key of their recipes",
                near.unwrap_or_default()
            )),
        );
    }
    let mut lines: Vec<Line<'_>> = lines.into_iter().map(|(_, line)| line).collect();
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    draw(look, report, key, figure, &lines, &levels)
}

/// A recipe's value as a number; of shares the number before the `%`.
fn number(value: &str) -> Option<f64> {
    let number = value.trim_end_matches('%').replace('_', "");
    number
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
}

/// An arm's name without what says the key's value.
fn without(arm: &Arm, key: &str, value: &str) -> String {
    let says = |word: &str| {
        let parts = word.split_once('=');
        parts.is_some_and(|(name, said)| {
            said == value && (key == name || key.ends_with(&format!(".{name}")))
        })
    };
    let words: Vec<&str> = arm.name.split(' ').filter(|word| !says(word)).collect();
    match words.is_empty() {
        true => "all".to_owned(),
        false => words.join(" "),
    }
}

fn draw(
    look: &Look,
    report: &Report,
    key: &str,
    figure: Figure,
    lines: &[Line<'_>],
    levels: &[(&str, &Spread)],
) -> Result<Plot> {
    let values = || {
        lines
            .iter()
            .flat_map(|line| line.points.iter().map(|(at, _)| *at))
    };
    let (least, most) = values().fold((f64::MAX, f64::MIN), |(least, most), at| {
        (least.min(at), most.max(at))
    });
    // Over more than an order and a half of magnitude, each has the same room.
    let by_magnitude = least > 0.0 && most / least >= 30.0;
    let across = |at: f64| if by_magnitude { at.log10() } else { at };
    let edges = |spread: &Spread| {
        let sd = spread.sd.unwrap_or(0.0);
        [spread.mean - sd, spread.mean + sd].map(|value| figure.scaled(value))
    };
    let spreads = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|(_, spread)| *spread));
    let y = around(
        spreads
            .chain(levels.iter().map(|(_, spread)| *spread))
            .flat_map(edges),
    );
    let (Some(x), Some(y)) = (around(values().map(across)), y) else {
        return Err(Error::failure("there is nothing to draw"));
    };
    let ends = (x.start, x.end);
    let heading = figure.heading(&report.metric);
    let svg = drawn(
        look,
        height_with_legend(look, lines.len() + levels.len()),
        |root| {
            let names = lines.iter().map(|line| line.name.as_str());
            let names = names.chain(levels.iter().map(|(name, _)| *name));
            let above = legend(look, root, names, false)?;
            let x_tick = |at: &f64| {
                if by_magnitude {
                    tick(&10f64.powf(*at))
                } else {
                    tick(at)
                }
            };
            let mut chart = axes!(&above, x, y, key, heading.as_str(), &x_tick);
            for (nth, line) in lines.iter().enumerate() {
                let style = colour(nth).stroke_width(2);
                let means = line
                    .points
                    .iter()
                    .map(|(at, spread)| (across(*at), figure.scaled(spread.mean)));
                let means: Vec<(f64, f64)> = means.collect();
                chart
                    .draw_series(LineSeries::new(means.clone(), style))
                    .map_err(text)?;
                let bars = line.points.iter().map(|(at, spread)| {
                    let [low, high] = edges(spread);
                    PathElement::new(
                        [(across(*at), low), (across(*at), high)],
                        colour(nth).stroke_width(1),
                    )
                });
                chart.draw_series(bars).map_err(text)?;
                chart
                    .draw_series(means.into_iter().map(|at| marker(nth, at, true)))
                    .map_err(text)?;
            }
            for (nth, (_, spread)) in levels.iter().enumerate() {
                let mean = figure.scaled(spread.mean);
                let style = colour(lines.len() + nth).stroke_width(1);
                chart
                    .draw_series(DashedLineSeries::new(
                        [(ends.0, mean), (ends.1, mean)],
                        6,
                        4,
                        style,
                    ))
                    .map_err(text)?;
            }
            Ok(())
        },
    )?;
    Ok(Plot {
        name: plain_name(&format!("swept-{key}")),
        title: format!(
            "{heading} by {key}: mean and one standard deviation over seeds; dashed: arms without it"
        ),
        svg,
    })
}
