//! A report in tables.

use comfy_table::presets::ASCII_MARKDOWN;

use super::statistics::CONFIDENCE;
use super::{Arm, Figure, Paired, Report, Spread};

/// Rows under a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// One for each column.
    pub header: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// The arms by `columns`, their comparison with the baseline where there is one, and the unfinished runs.
pub fn tables(report: &Report, columns: &[Figure]) -> Vec<Table> {
    let mut tables = vec![averages(report, columns)];
    tables.extend(comparison(report));
    let unfinished: Vec<_> = report.unfinished().collect();
    if !unfinished.is_empty() {
        let rows = unfinished.iter().map(|run| {
            let shown = |figure: Figure| match run.figures.get(&figure) {
                Some(value) => figure.shown(*value),
                None => NONE.to_owned(),
            };
            vec![
                run.path.display().to_string(),
                run.seed.to_string(),
                run.steps.to_string(),
                shown(Figure::Metric),
                shown(Figure::Final),
            ]
        });
        let headings = [Figure::Metric, Figure::Final].map(|f| f.heading(&report.metric));
        let header = ["unfinished run", "seed", "steps"].map(str::to_owned);
        tables.push(Table {
            title: "Unfinished runs".to_owned(),
            header: header.into_iter().chain(headings).collect(),
            rows: rows.collect(),
        });
    }
    tables
}

/// In the place of what is not known.
const NONE: &str = "–";

fn averages(report: &Report, columns: &[Figure]) -> Table {
    let header = ["arm", "seeds"].map(str::to_owned).into_iter();
    let runs = |arm: &Arm| arm.counted(report.unfinished_count).count();
    let rows = report.arms.iter().map(|arm| {
        let cells = columns.iter().map(|column| match arm.figures.get(column) {
            Some(spread) => mean_and_spread(*column, spread, runs(arm)),
            None => NONE.to_owned(),
        });
        [arm.name.clone(), seeds(arm, runs(arm))]
            .into_iter()
            .chain(cells)
            .collect()
    });
    Table {
        title: "Mean ± standard deviation over seeds".to_owned(),
        header: header
            .chain(columns.iter().map(|c| c.heading(&report.metric)))
            .collect(),
        rows: rows.collect(),
    }
}

fn seeds(arm: &Arm, counted: usize) -> String {
    let unfinished = arm.runs.iter().filter(|run| !run.finished).count();
    match (unfinished, arm.runs.len() - counted) {
        (0, _) => counted.to_string(),
        (_, 0) => format!("{counted}, {unfinished} of them unfinished"),
        _ => format!("{counted}, and {unfinished} unfinished"),
    }
}

fn mean_and_spread(figure: Figure, spread: &Spread, runs: usize) -> String {
    let mut cell = figure.shown(spread.mean);
    if let Some(sd) = spread.sd.filter(|_| figure.has_spread()) {
        cell.push_str(&format!(" ± {}", figure.shown(sd)));
    }
    // Not every run has it, as a metric that was not finite.
    if spread.count != runs {
        cell.push_str(&format!(" (of {})", spread.count));
    }
    cell
}

fn comparison(report: &Report) -> Option<Table> {
    let baseline = report.baseline.as_ref()?;
    let interval = format!("{:.0} % interval", 100.0 * CONFIDENCE);
    let metric = &report.metric;
    let header = [
        "arm",
        "seeds",
        &format!("best {metric}"),
        &interval,
        &format!("final {metric}"),
        &interval,
        "step time",
    ];
    let rows = report.arms.iter().filter_map(|arm| {
        let against = arm.against_baseline.as_ref()?;
        let mut row = vec![arm.name.clone(), against.seeds.len().to_string()];
        for paired in [&against.metric, &against.last] {
            row.extend(difference_and_interval(paired.as_ref()));
        }
        row.push(
            against
                .step_time
                .map_or(NONE.to_owned(), |ratio| format!("× {ratio:.2}")),
        );
        Some(row)
    });
    Some(Table {
        title: format!("Difference from {baseline}, seed by seed, with the paired t interval"),
        header: header.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    })
}

fn difference_and_interval(paired: Option<&Paired>) -> [String; 2] {
    let Some(Paired {
        difference,
        interval,
    }) = paired
    else {
        return [NONE, NONE].map(str::to_owned);
    };
    let mean = format!("{:+.4}", difference.mean);
    [
        match difference.sd {
            Some(sd) => format!("{mean} ± {sd:.4}"),
            None => mean,
        },
        match interval {
            Some([low, high]) => format!("{low:+.4} to {high:+.4}"),
            None => NONE.to_owned(),
        },
    ]
}

/// The tables in Markdown, each under its title.
pub fn markdown(tables: &[Table]) -> String {
    let texts = tables.iter().map(|table| {
        let mut drawn = comfy_table::Table::new();
        let escaped = |cells: &[String]| -> Vec<String> {
            cells.iter().map(|cell| cell.replace('|', "\\|")).collect()
        };
        drawn
            .load_style(ASCII_MARKDOWN)
            .set_header(escaped(&table.header));
        for row in &table.rows {
            drawn.add_row(escaped(row));
        }
        format!("{}:\n\n{drawn}", table.title)
    });
    texts.collect::<Vec<_>>().join("\n\n")
}
