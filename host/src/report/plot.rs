//! A report in pictures: curves, points, and plugins' own numbers.

use std::collections::BTreeSet;
use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{
    Area, Drawn, Plot, around, axes, colour, drawn, height_with_legend, legend, marker, text, tick,
};
use super::heatmap::heatmaps;
use super::look::Look;
use super::{Arm, Figure, Reading, Report, Spread};
use crate::error::Result;

/// The metric by steps, `y` by `x`, and what each arm chose, as far as there is something to draw.
pub fn plots(look: &Look, report: &Report, x: Figure, y: Figure) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    plots.extend(curves(look, report)?);
    plots.extend(scatter(look, report, x, y)?);
    plots.extend(numbers(look, report)?);
    for arm in &report.arms {
        plots.extend(heatmaps(look, arm)?);
    }
    tell_apart(&mut plots);
    Ok(plots)
}

/// Names of arms that are apart may be one as names of files.
fn tell_apart(plots: &mut [Plot]) {
    for at in 1..plots.len() {
        let taken = |name: &str| plots[..at].iter().any(|other| other.name == name);
        let own = plots[at].name.clone();
        let numbered = (2..).map(|number| format!("{own}-{number}"));
        let mut names = std::iter::once(own.clone()).chain(numbered);
        if let Some(name) = names.find(|name| !taken(name)) {
            plots[at].name = name;
        }
    }
}

/// The area above a legend of all arms, which stands at the foot.
fn above_legend<'a>(look: &Look, root: &Area<'a>, report: &Report) -> Drawn<Area<'a>> {
    let names = report.arms.iter().map(|arm| arm.name.as_str());
    legend(look, root, names, true)
}

fn height(look: &Look, report: &Report) -> u32 {
    height_with_legend(look, report.arms.len())
}

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
fn curves(look: &Look, report: &Report) -> Result<Option<Plot>> {
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
    let svg = drawn(look, height(look, report), |root| {
        let area = above_legend(look, root, report)?;
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
            if points.len() > 1 {
                let line = LineSeries::new(points.clone(), style);
                chart.draw_series(line).map_err(text)?;
            }
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
fn numbers(look: &Look, report: &Report) -> Result<Vec<Plot>> {
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
        let svg = drawn(look, height(look, report), |root| {
            let area = above_legend(look, root, report)?;
            let mut chart = axes!(&area, x, y, "optimiser step", name.as_str());
            for (arm, points) in &lines {
                let style = colour(*arm).stroke_width(1);
                if points.len() > 1 {
                    let line = LineSeries::new(points.clone(), style);
                    chart.draw_series(line).map_err(text)?;
                }
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

/// About how wide a letter of a name is.
const LETTER: i32 = 7;

/// What is drawn from one place to another, at a height.
type Stretch = (Range<i32>, i32);

/// Where a name is legible that is as long as the stretch: there, or as far below or above as it takes to be apart from
/// what is drawn already.
fn free(taken: &[Stretch], (own, top): &Stretch) -> i32 {
    const DOWN: i32 = 13;
    let is_free = |top: &i32| {
        let mut beside = taken
            .iter()
            .filter(|(other, _)| other.start < own.end && own.start < other.end);
        beside.all(|(_, other)| (other - top).abs() >= DOWN)
    };
    let mut places = (0..).flat_map(|nth| [top + nth, top - nth]);
    places.find(is_free).unwrap_or(*top)
}

/// One point a run, hollow where it is unfinished, and each arm's name at the mean of those that count.
fn scatter(look: &Look, report: &Report, x: Figure, y: Figure) -> Result<Option<Plot>> {
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
    let svg = drawn(look, height(look, report), |root| {
        let area = above_legend(look, root, report)?;
        let [x_name, y_name] = &names;
        let mut chart = axes!(&area, across, up, x_name.as_str(), y_name.as_str());
        let markers = points
            .iter()
            .map(|(index, at, finished)| marker(*index, *at, *finished));
        chart.draw_series(markers).map_err(text)?;
        let place = |at: &(f64, f64)| chart.plotting_area().map_coordinate(at);
        let drawn = points.iter().map(|(_, at, _)| place(at));
        let mut taken: Vec<Stretch> = drawn.map(|(x, y)| (x - 5..x + 5, y)).collect();
        for (index, arm) in report.arms.iter().enumerate() {
            let mean = |figure: Figure| Some(figure.scaled(arm.figures.get(&figure)?.mean));
            let Some(at) = mean(x).zip(mean(y)) else {
                continue;
            };
            // Away from the nearer edge.
            let (x, y) = place(&at);
            let length = LETTER * arm.name.chars().count() as i32;
            let (side, at, own) = match at.0 > middle {
                true => (HPos::Right, x - 9, x - 9 - length..x - 9),
                false => (HPos::Left, x + 9, x + 9..x + 9 + length),
            };
            let top = free(&taken, &(own.clone(), y));
            taken.push((own, top));
            let style = ("sans-serif", 12).into_font().color(&colour(index));
            let style = style.pos(Pos::new(side, VPos::Center));
            let name = Text::new(arm.name.clone(), (at, top), style);
            area.draw(&name).map_err(text)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        name: "scatter".to_owned(),
        title: format!("{} by {}, a point for each run", names[1], names[0]),
        svg,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_near_places_are_apart() {
        let free = |taken: &[(i32, i32)], (x, top): (i32, i32)| {
            let long = |x| x..x + 160;
            let taken: Vec<Stretch> = taken.iter().map(|(x, top)| (long(*x), *top)).collect();
            free(&taken, &(long(x), top))
        };
        assert_eq!(free(&[], (10, 50)), 50);
        assert_eq!(free(&[(10, 50)], (12, 52)), 63);
        assert_eq!(free(&[(10, 50), (12, 63)], (12, 49)), 37);
        assert_eq!(free(&[(10, 50)], (400, 52)), 52);
    }
}
