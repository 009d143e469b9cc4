//! Curves.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Widget};

/// A curve in a chart.
pub(super) struct Curve {
    /// By steps.
    pub points: Vec<(f64, f64)>,
    pub colour: Color,
    /// A line through the points, not the points alone.
    pub line: bool,
    /// In the background.
    pub faint: bool,
}

impl Curve {
    /// A line in the foreground.
    pub fn line(points: Vec<(f64, f64)>, colour: Color) -> Self {
        Curve {
            points,
            colour,
            line: true,
            faint: false,
        }
    }
}

/// Draws curves over one axis of steps; a sentence where there is nothing to draw.
pub(super) fn draw(title: Line<'_>, curves: &[Curve], nothing: &str, area: Rect, to: &mut Buffer) {
    if area.height < 2 || area.width < 12 {
        return;
    }
    let head = Rect { height: 1, ..area };
    title.render(head, to);
    let body = Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    };
    // Two points of Braille in a cell.
    let most = 2 * usize::from(area.width);
    let thinned: Vec<Vec<(f64, f64)>> = curves.iter().map(|it| thin(&it.points, most)).collect();
    let points = || thinned.iter().flatten();
    let (Some(x), Some(y)) = (
        range(points().map(|point| point.0)),
        range(points().map(|point| point.1)),
    ) else {
        Line::from(nothing.to_owned()).render(body, to);
        return;
    };
    let (x, y) = (widened(x, 1.0), widened(y, 1e-3));
    let datasets = curves.iter().zip(&thinned).map(|(curve, points)| {
        let style = Style::new().fg(curve.colour);
        let (kind, marker) = match curve.line && points.len() > 1 {
            true => (GraphType::Line, Marker::Braille),
            false => (GraphType::Scatter, Marker::Dot),
        };
        let faint = if curve.faint {
            Modifier::DIM
        } else {
            Modifier::empty()
        };
        Dataset::default()
            .marker(marker)
            .graph_type(kind)
            .style(style.add_modifier(faint))
            .data(points)
    });
    let middle = (y[0] + y[1]) / 2.0;
    let mut up = vec![number(y[0], y), number(y[1], y)];
    if body.height >= 7 {
        up.insert(1, number(middle, y));
    }
    let width = up.iter().map(String::len).max().unwrap_or(0);
    let up = up.iter().map(|label| format!("{label:>width$}"));
    Chart::new(datasets.collect())
        .x_axis(
            Axis::default()
                .bounds(x)
                .labels([format!("{:.0}", x[0]), format!("step {:.0}", x[1])]),
        )
        .y_axis(Axis::default().bounds(y).labels(up.collect::<Vec<_>>()))
        .legend_position(None)
        .render(body, to);
}

fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    values.fold(None, |range, value| match range {
        None => Some([value, value]),
        Some([low, high]) => Some([value.min(low), value.max(high)]),
    })
}

/// A range that is one.
fn widened([low, high]: [f64; 2], least: f64) -> [f64; 2] {
    match high > low {
        true => [low, high],
        false => [low - least, high + least],
    }
}

/// Means over stretches where there are more points than can be told apart.
fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most {
        return points.to_vec();
    }
    let stretches = (0..most).map(|nth| {
        let at = |nth: usize| nth * points.len() / most;
        &points[at(nth)..at(nth + 1)]
    });
    let mean = |of: &[(f64, f64)], part: fn(&(f64, f64)) -> f64| {
        of.iter().map(part).sum::<f64>() / of.len() as f64
    };
    let stretches = stretches.filter(|stretch| !stretch.is_empty());
    let thinned = stretches.map(|it| (mean(it, |point| point.0), mean(it, |point| point.1)));
    thinned.collect()
}

/// A number at an axis, with as many digits as tell its ends apart.
pub(super) fn number(value: f64, [low, high]: [f64; 2]) -> String {
    let size = low.abs().max(high.abs());
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let digits = (1.0 - (high - low).log10().floor()).clamp(0.0, 5.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..1000)
            .map(|n| (f64::from(n), f64::from(n % 2)))
            .collect();
        let thinned = thin(&points, 100);
        assert_eq!(thinned.len(), 100);
        assert_eq!(thinned[0], (4.5, 0.5));
        assert_eq!(thin(&points, 1000), points);
    }

    #[test]
    fn numbers_have_as_many_digits_as_they_need() {
        assert_eq!(number(0.5, [0.1, 0.9]), "0.50");
        assert_eq!(number(120.0, [0.0, 400.0]), "120");
        assert_eq!(number(0.4931, [0.4920, 0.4941]), "0.4931");
        assert_eq!(number(2e-4, [0.0, 5e-4]), "2.0e-4");
    }
}
