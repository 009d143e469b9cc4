//! What was chosen: groups of modules upwards, choices across, a share for each as a shade.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::Widget;

use super::followed::{Choice, Followed};
use super::view::{Rows, Value};
use crate::run::{layer, role, short};

/// Modules in one row.
#[derive(Debug, PartialEq)]
struct Band {
    label: String,
    modules: Vec<usize>,
}

/// A label is no longer than this.
const LONGEST_LABEL: usize = 26;

/// How wide the cells of a choice, or of a layer, are at most.
const WIDEST: usize = 4;

/// Draws all choices of a run, a row for each group of modules.
pub(super) fn over_time(
    run: &Followed,
    (rows, value): (Rows, Value),
    scrolled: usize,
    area: Rect,
    to: &mut Buffer,
) {
    let Some(body) = framed(area) else { return };
    let room = usize::from(body.height);
    let bands = bands(&run.modules, rows, room);
    let past = scrolled.min(bands.len().saturating_sub(room));
    let bands = &bands[past..bands.len().min(past + room)];
    let total = match value {
        Value::Active => 5,
        Value::Rank | Value::Score => 0,
    };
    let left = label_width(bands, body.width / 3);
    let width = usize::from(body.width).saturating_sub(left + 1 + total);
    let (columns, wide) = columns(run.choices.len(), width);

    let what = match value {
        Value::Active => "active modules",
        Value::Rank => "rank, of the largest",
        Value::Score => "score, of the largest",
    };
    let title = format!("{what} by choice, {}", bands_word(bands, &run.modules));
    Line::from(title).bold().render(area, to);
    let first = run.choices.first().map_or(0, |choice| choice.step);
    let last = run.choices.last().map_or(0, |choice| choice.step);
    let across = (columns.len() * wide) as u16;
    let x = body.x + left as u16 + 1;
    let ends = [format!("step {first}"), last.to_string()];
    axis(ends, (x, body.bottom()), across, to);
    if total > 0 {
        to.set_stringn(x + across, body.bottom(), " mean", total, dim());
    }
    for (row, band) in bands.iter().enumerate() {
        let y = body.bottom() - 1 - row as u16;
        label(&band.label, left, body.x, y, to);
        for (column, of) in columns.iter().enumerate() {
            let share = share(&run.choices[of.clone()], &band.modules, value);
            cell(share, x + (column * wide) as u16, y, wide, to);
        }
        let share = share(&run.choices, &band.modules, value);
        if let Some(share) = share.filter(|_| total > 0) {
            let text = format!("{:>4.0}%", 100.0 * share);
            to.set_stringn(x + across, y, text, total, Style::new());
        }
    }
}

/// Draws the choice in force, a row for each role and a column for each layer.
pub(super) fn now(run: &Followed, value: Value, area: Rect, to: &mut Buffer) {
    let (Some(body), Some(choice)) = (framed(area), run.choices.last()) else {
        return;
    };
    let mut bands = bands(&run.modules, Rows::Roles, 0);
    // What is in no layer has no column.
    bands.retain(|band| {
        band.modules
            .iter()
            .any(|it| layer(&run.modules[*it]).is_some())
    });
    bands.truncate(usize::from(body.height));
    let layers: Vec<u64> = bands_of_layers(&run.modules)
        .iter()
        .filter_map(|band| layer(&run.modules[band.modules[0]]))
        .collect();
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
        return;
    };
    let left = label_width(&bands, body.width / 2);
    let width = usize::from(body.width).saturating_sub(left + 1);
    let (columns, wide) = columns(layers.len(), width);
    let active = choice.active.iter().filter(|active| **active).count();
    let title = format!(
        "now: {active} of {} active, roles by layers",
        run.modules.len()
    );
    Line::from(title).bold().render(area, to);
    let across = (columns.len() * wide) as u16;
    let x = body.x + left as u16 + 1;
    let ends = [format!("layer {first}"), last.to_string()];
    axis(ends, (x, body.bottom()), across, to);
    for (row, band) in bands.iter().enumerate() {
        let y = body.bottom() - 1 - row as u16;
        label(&band.label, left, body.x, y, to);
        for (column, of) in columns.iter().enumerate() {
            let here = &layers[of.clone()];
            let modules = band.modules.iter().copied();
            let within = |at: &usize| layer(&run.modules[*at]).is_some_and(|it| here.contains(&it));
            let modules: Vec<usize> = modules.filter(within).collect();
            let share = share(std::slice::from_ref(choice), &modules, value);
            cell(share, x + (column * wide) as u16, y, wide, to);
        }
    }
}

/// What a title with four digits takes.
const TITLE_OF_NOW: usize = 41;

/// How much room a map of the choice in force takes across.
pub(super) fn width_of_now(run: &Followed) -> u16 {
    let layers = bands_of_layers(&run.modules).len();
    let labels = run.modules.iter().map(|path| role(path).chars().count());
    let label = labels.max().unwrap_or(0).min(LONGEST_LABEL);
    (label + 1 + layers * if layers <= 24 { 2 } else { 1 }).max(TITLE_OF_NOW) as u16
}

/// How much room a map of all choices takes up and down, of so much: title and axis, and its rows.
pub(super) fn height(run: &Followed, rows: Rows, most: u16) -> u16 {
    let room = usize::from(most.saturating_sub(2));
    bands(&run.modules, rows, room).len().min(room) as u16 + 2
}

/// How much room that of the choice in force takes: title and axis, and a row for each role.
pub(super) fn height_of_now(run: &Followed) -> u16 {
    bands(&run.modules, Rows::Roles, 0).len() as u16 + 2
}

/// Between a title and an axis.
fn framed(area: Rect) -> Option<Rect> {
    (area.height >= 3 && area.width >= 20).then(|| Rect {
        y: area.y + 1,
        height: area.height - 2,
        ..area
    })
}

/// What a row is, for the title.
fn bands_word(bands: &[Band], modules: &[String]) -> String {
    match bands.iter().all(|band| band.modules.len() == 1) {
        true if bands.len() == modules.len() => format!("{} modules", modules.len()),
        true => format!("{} of {} modules", bands.len(), modules.len()),
        false => format!("{} modules in {} rows", modules.len(), bands.len()),
    }
}

/// The modules in rows, the first at the foot.
fn bands(modules: &[String], rows: Rows, room: usize) -> Vec<Band> {
    let each = || {
        let each = modules.iter().enumerate().map(|(at, path)| Band {
            label: short(path),
            modules: vec![at],
        });
        each.collect()
    };
    match rows {
        Rows::Modules => each(),
        Rows::Layers => bands_of_layers(modules),
        Rows::Roles | Rows::Now => together(modules, |path| role(path).to_owned()),
        Rows::Fitting if modules.len() <= room => each(),
        Rows::Fitting => fitted(bands_of_layers(modules), modules, room.max(1)),
    }
}

fn bands_of_layers(modules: &[String]) -> Vec<Band> {
    together(modules, |path| match layer(path) {
        Some(layer) => format!("layer {layer}"),
        None => path.to_owned(),
    })
}

/// Modules of one label together, in the order in which labels turn up.
fn together(modules: &[String], label: impl Fn(&str) -> String) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    for (at, path) in modules.iter().enumerate() {
        let label = label(path);
        match bands.iter_mut().find(|band| band.label == label) {
            Some(band) => band.modules.push(at),
            None => bands.push(Band {
                label,
                modules: vec![at],
            }),
        }
    }
    bands
}

/// Neighbouring layers in one row, as many as it takes, in each about as many as in the others.
fn fitted(layers: Vec<Band>, modules: &[String], room: usize) -> Vec<Band> {
    if layers.len() <= room {
        return layers;
    }
    let chunks = (0..room).map(|nth| {
        let at = |nth: usize| nth * layers.len() / room;
        &layers[at(nth)..at(nth + 1)]
    });
    let fitted = chunks.map(|chunk| {
        let number = |band: &Band| layer(&modules[band.modules[0]]);
        let label = match (chunk, number(&chunk[0]), number(&chunk[chunk.len() - 1])) {
            ([one], ..) => one.label.clone(),
            (_, Some(first), Some(last)) => format!("layers {first}-{last}"),
            ([first, .., last], ..) => format!("{} to {}", first.label, last.label),
            ([], ..) => String::new(),
        };
        let modules = chunk.iter().flat_map(|band| band.modules.clone());
        Band {
            label,
            modules: modules.collect(),
        }
    });
    fitted.collect()
}

/// What each column holds of so many choices, and how wide it is.
fn columns(choices: usize, width: usize) -> (Vec<Range<usize>>, usize) {
    let count = choices.min(width);
    let columns = (0..count).map(|nth| nth * choices / count..(nth + 1) * choices / count);
    (columns.collect(), (width / count.max(1)).clamp(1, WIDEST))
}

/// The mean of what there is of some modules in some choices.
fn share(choices: &[Choice], modules: &[usize], value: Value) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for choice in choices {
        let largest = match value {
            Value::Active => 1.0,
            Value::Rank => f64::from(choice.largest.0),
            Value::Score => choice.largest.1,
        };
        for module in modules {
            let found = match value {
                Value::Active => choice
                    .active
                    .get(*module)
                    .map(|it| f64::from(u8::from(*it))),
                Value::Rank => choice.ranks.get(*module).map(|it| f64::from(*it)),
                Value::Score => choice.scores.get(*module).copied(),
            };
            if let Some(found) = found.filter(|it| it.is_finite() && largest > 0.0) {
                sum += (found / largest).clamp(0.0, 1.0);
                count += 1;
            }
        }
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// Without colours too a shade is more than the one before.
fn shade(share: f64) -> &'static str {
    match share {
        ..=0.0 => "·",
        ..0.34 => "░",
        ..0.67 => "▒",
        ..1.0 => "▓",
        _ => "█",
    }
}

fn cell(share: Option<f64>, x: u16, y: u16, wide: usize, to: &mut Buffer) {
    let Some(share) = share else { return };
    let style = match share > 0.0 {
        true => Style::new().fg(Color::Cyan),
        false => dim(),
    };
    to.set_stringn(x, y, shade(share).repeat(wide), wide, style);
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn label_width(bands: &[Band], most: u16) -> usize {
    let longest = bands.iter().map(|band| band.label.chars().count()).max();
    longest
        .unwrap_or(0)
        .min(LONGEST_LABEL.min(usize::from(most)))
}

/// Its end where there is no room for all, for that tells modules apart.
fn label(label: &str, width: usize, x: u16, y: u16, to: &mut Buffer) {
    let letters = label.chars().count();
    let shown = match letters > width {
        true => {
            let end = label.chars().skip(letters + 1 - width);
            format!("…{}", end.collect::<String>())
        }
        false => label.to_owned(),
    };
    to.set_stringn(x, y, shown, width, Style::new());
}

/// What the first and the last column are, below them.
fn axis([first, last]: [String; 2], (x, y): (u16, u16), across: u16, to: &mut Buffer) {
    let (first_width, last_width) = (first.len() as u16, last.len() as u16);
    let room = to.area.right().saturating_sub(x);
    to.set_stringn(x, y, first, usize::from(room), dim());
    if across > first_width + last_width {
        to.set_string(x + across - last_width, y, last, dim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(layers: usize) -> Vec<String> {
        let of = |layer| ["query", "value", "dense"].map(|role| format!("layer.{layer}.{role}"));
        let mut paths: Vec<String> = (0..layers).flat_map(of).collect();
        paths.push("pooler.dense".to_owned());
        paths
    }

    fn labels(bands: &[Band]) -> Vec<&str> {
        bands.iter().map(|band| band.label.as_str()).collect()
    }

    #[test]
    fn rows_are_modules_or_layers_or_so_many_layers_that_they_fit() {
        let modules = paths(4);
        let fitting = |room| bands(&modules, Rows::Fitting, room);
        assert_eq!(fitting(13).len(), 13);
        assert_eq!(labels(&fitting(13))[..2], ["0 query", "0 value"]);
        let layers = ["layer 0", "layer 1", "layer 2", "layer 3", "pooler.dense"];
        assert_eq!(labels(&fitting(12)), layers);
        let few = ["layer 0", "layer 1", "layer 2", "layer 3 to pooler.dense"];
        assert_eq!(labels(&fitting(4)), few);
        let two = ["layers 0-1", "layer 2 to pooler.dense"];
        assert_eq!(labels(&fitting(2)), two);
        assert_eq!(fitting(2)[0].modules, [0, 1, 2, 3, 4, 5]);
        assert_eq!(labels(&fitting(1)), ["layer 0 to pooler.dense"]);
        let roles = bands(&modules, Rows::Roles, 1);
        assert_eq!(labels(&roles), ["query", "value", "dense", "pooler.dense"]);
        assert_eq!(roles[1].modules, [1, 4, 7, 10]);
    }

    #[test]
    fn choices_share_columns_where_there_are_too_many() {
        assert_eq!(columns(3, 60), (vec![0..1, 1..2, 2..3], 4));
        assert_eq!(columns(20, 60).1, 3);
        let (shared, wide) = columns(100, 60);
        assert_eq!((shared.len(), wide), (60, 1));
        assert_eq!((shared[0].clone(), shared[59].clone()), (0..1, 98..100));
        assert_eq!(columns(0, 60), (vec![], 4));
    }

    #[test]
    fn shares_are_means_of_what_there_is() {
        let choice = |active: [bool; 2], scores: &[f64]| {
            Choice::new(0, active.to_vec(), vec![4, 8], scores.to_vec())
        };
        let choices = [
            choice([true, true], &[]),
            choice([false, true], &[1.0, 4.0]),
        ];
        assert_eq!(share(&choices, &[0], Value::Active), Some(0.5));
        assert_eq!(share(&choices, &[0, 1], Value::Active), Some(0.75));
        assert_eq!(share(&choices, &[0], Value::Rank), Some(0.5));
        assert_eq!(share(&choices, &[0], Value::Score), Some(0.25));
        assert_eq!(share(&choices[..1], &[0], Value::Score), None);
        let shades = [0.0, 0.1, 0.5, 0.9, 1.0].map(shade);
        assert_eq!(shades, ["·", "░", "▒", "▓", "█"]);
    }
}
