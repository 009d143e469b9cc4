//! A report in tables.

use clap::ValueEnum;
use comfy_table::presets::ASCII_MARKDOWN;

use super::statistics::CONFIDENCE;
use super::{Arm, Figure, GivenUp, Paired, Report, SEEDS, SEEDS_OF_DRAWS, Spread};
use crate::error::{Error, Result};
use crate::run::StallKind;

/// Rows under a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// One for each column.
    pub header: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
    /// What is to be known of them, said below.
    pub note: Option<String>,
}

/// The arms by `columns`, their comparison with the baseline where there is one, and the runs that collapsed, did
/// otherwise than their recipes say or are unfinished.
pub fn tables(report: &Report, columns: &[Figure]) -> Vec<Table> {
    let mut tables = vec![averages(report, columns)];
    tables.extend(comparison(report));
    tables.extend(collapsed(report));
    tables.extend(disturbed(report));
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
            note: None,
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
            Some(spread) => {
                let mut cell = mean_and_spread(*column, spread, runs(arm));
                if let Some(others) = arm.without_collapsed.get(column) {
                    let others = mean_and_spread(*column, others, others.count);
                    cell.push_str(&format!("; without the collapsed {others}"));
                }
                cell
            }
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
        note: None,
    }
}

fn seeds(arm: &Arm, counted: usize) -> String {
    let unfinished = arm.runs.iter().filter(|run| !run.finished).count();
    let mut cell = counted.to_string();
    if !arm.collapsed.is_empty() {
        cell.push_str(&format!(", {} of them collapsed", arm.collapsed.len()));
    }
    let disturbed = arm.runs.iter().filter(|run| run.disturbed()).count();
    if disturbed > 0 {
        cell.push_str(&format!(", {disturbed} of them not by the recipe"));
    }
    match (unfinished, arm.runs.len() - counted) {
        (0, _) => {}
        (_, 0) => cell.push_str(&format!(", {unfinished} of them unfinished")),
        _ => cell.push_str(&format!(", and {unfinished} unfinished")),
    }
    cell
}

/// The runs whose loss ended where a constant answer's is.
fn collapsed(report: &Report) -> Option<Table> {
    let rows = report.collapsed().filter_map(|(arm, run)| {
        let stall = run.collapse?;
        let shown = |figure: Figure| match run.figures.get(&figure) {
            Some(value) => figure.shown(*value),
            None => NONE.to_owned(),
        };
        let how = match stall.kind {
            StallKind::NotLeft => "never left it",
            StallKind::FellBack => "fell back to it",
        };
        Some(vec![
            run.path.display().to_string(),
            arm.name.clone(),
            run.seed.to_string(),
            shown(Figure::Final),
            format!("{:.4}", stall.loss),
            format!("{:.4}", stall.constant_loss),
            format!("{how}, steps {} to {}", stall.from, stall.to),
        ])
    });
    let rows: Vec<_> = rows.collect();
    let header = [
        "collapsed run",
        "arm",
        "seed",
        &Figure::Final.heading(&report.metric),
        "loss at the end",
        "a constant answer's",
        "",
    ];
    (!rows.is_empty()).then(|| Table {
        title: "Collapsed runs: their loss ended where that of a constant answer is".to_owned(),
        header: header.map(str::to_owned).to_vec(),
        rows,
        note: None,
    })
}

/// The runs that did otherwise than their recipes say. They are in the averages: what they reached is not what was asked.
fn disturbed(report: &Report) -> Option<Table> {
    let rows = report.disturbed().map(|(arm, run)| {
        let given_up = run.given_up.as_ref().map(|given_up| {
            let GivenUp { step, fault } = given_up;
            format!("no plugin was asked any more after step {step}: {fault}")
        });
        let skipped = match run.skipped {
            0 => None,
            1 => Some("1 update was left out, which was not finite".to_owned()),
            many => Some(format!(
                "{many} updates were left out, which were not finite"
            )),
        };
        let what: Vec<String> = given_up.into_iter().chain(skipped).collect();
        let shown = match run.figures.get(&Figure::Final) {
            Some(value) => Figure::Final.shown(*value),
            None => NONE.to_owned(),
        };
        let seed = run.seed.to_string();
        let path = run.path.display().to_string();
        vec![path, arm.name.clone(), seed, shown, what.join("; ")]
    });
    let rows: Vec<_> = rows.collect();
    let last = Figure::Final.heading(&report.metric);
    let header = ["run", "arm", "seed", &last, "what it did"];
    (!rows.is_empty()).then(|| Table {
        title: "Runs that did otherwise than their recipes say, and are in the averages".to_owned(),
        header: header.map(str::to_owned).to_vec(),
        rows,
        note: None,
    })
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
    let once = evaluated_once(report);
    let mut few = false;
    let mut rows = Vec::new();
    for arm in &report.arms {
        let Some(against) = &arm.against_baseline else {
            continue;
        };
        let mut row = |name: String, seeds: usize, paired: [&Option<Paired>; 2], too_few, time| {
            let mut row = vec![name, seeds.to_string()];
            for paired in paired.into_iter().skip(usize::from(once)) {
                let [difference, mut interval] = difference_and_interval(paired.as_ref());
                if too_few && interval != NONE {
                    interval.push_str(MARK);
                    few = true;
                }
                row.extend([difference, interval]);
            }
            row.push(time);
            rows.push(row);
        };
        let time = against.step_time;
        let time = time.map_or(NONE.to_owned(), |ratio| format!("× {ratio:.2}"));
        let paired = [&against.metric, &against.last];
        let few = against.too_few_seeds;
        row(arm.name.clone(), against.seeds.len(), paired, few, time);
        if let Some(without) = &against.without_collapsed {
            row(
                format!("{}, without collapsed runs", arm.name),
                without.seeds.len(),
                [&without.metric, &without.last],
                without.too_few_seeds,
                NONE.to_owned(),
            );
        }
    }
    Some(Table {
        title: format!("Difference from {baseline}, seed by seed, with the paired t interval"),
        header: comparison_header(&report.metric, once),
        rows,
        note: few.then(|| {
            format!(
                "{}: an interval of too few seeds to be trusted. It takes {SEEDS_OF_DRAWS} where an arm draws modules by \
                 chance, {SEEDS} where none does.",
                MARK.trim()
            )
        }),
    })
}

/// Whether best and final are the same, in every run that counts.
fn evaluated_once(report: &Report) -> bool {
    let arms = report.arms.iter();
    let mut runs = arms.flat_map(|arm| arm.counted(report.unfinished_count));
    runs.all(|run| run.curve.len() == 1)
}

fn comparison_header(metric: &str, once: bool) -> Vec<String> {
    let metrics = match once {
        true => vec![metric.to_owned()],
        false => vec![
            Figure::Metric.heading(metric),
            Figure::Final.heading(metric),
        ],
    };
    let interval = format!("{:.0} % interval", 100.0 * CONFIDENCE);
    let metrics = metrics
        .into_iter()
        .flat_map(|name| [name, interval.clone()]);
    let fixed = ["arm", "seeds"].map(str::to_owned).into_iter();
    fixed
        .chain(metrics)
        .chain(["step time".to_owned()])
        .collect()
}

/// Beside an interval that rests on too few seeds.
const MARK: &str = " (few)";

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
        let note = table.note.iter().map(|note| format!("\n\n{note}"));
        format!("{}:\n\n{drawn}{}", table.title, note.collect::<String>())
    });
    texts.collect::<Vec<_>>().join("\n\n")
}

/// The tables in LaTeX, for the package `booktabs`, each under its title as a comment.
pub fn latex(tables: &[Table]) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
        format!("{} \\\\\n", cells.join(" & "))
    };
    let texts = tables.iter().map(|table| {
        // Names to the left, numbers to the right.
        let columns = "l".to_owned() + &"r".repeat(table.header.len().saturating_sub(1));
        let rows: String = table.rows.iter().map(|row| line(row)).collect();
        let note = table.note.iter().map(|note| format!("\n% {note}"));
        format!(
            "% {}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}{}",
            table.title,
            line(&table.header),
            note.collect::<String>()
        )
    });
    texts.collect::<Vec<_>>().join("\n\n")
}

/// A cell as LaTeX's text.
fn escaped(cell: &str) -> String {
    let mut text = String::new();
    for letter in cell.chars() {
        match letter {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => text.extend(['\\', letter]),
            '\\' => text.push_str("\\textbackslash{}"),
            '~' => text.push_str("\\textasciitilde{}"),
            '^' => text.push_str("\\textasciicircum{}"),
            '±' => text.push_str("$\\pm$"),
            '×' => text.push_str("$\\times$"),
            '–' => text.push_str("--"),
            letter => text.push(letter),
        }
    }
    // A sign, not a hyphen.
    let signed = |word: &str| match word.strip_prefix('-') {
        Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => format!("$-${number}"),
        _ => word.to_owned(),
    };
    text.split(' ').map(signed).collect::<Vec<_>>().join(" ")
}

/// Every run as a line of CSV: arm, seed, folder, whether it is finished and counts as collapsed, and each figure, in
/// the units of JSON.
pub fn csv(report: &Report) -> Result<String> {
    let figures = Figure::value_variants();
    let name = |figure: &Figure| {
        figure
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let cannot =
        |error: csv::Error| Error::failure("the runs cannot be written as CSV").because(error);
    let fixed = ["arm", "seed", "run", "finished", "collapsed"].map(str::to_owned);
    let header = fixed.into_iter().chain(figures.iter().filter_map(name));
    writer.write_record(header).map_err(cannot)?;
    for arm in &report.arms {
        for run in &arm.runs {
            let fixed = [
                arm.name.clone(),
                run.seed.to_string(),
                run.path.display().to_string(),
                run.finished.to_string(),
                run.collapse.is_some().to_string(),
            ];
            let values = figures.iter().map(|figure| {
                run.figures
                    .get(figure)
                    .map_or(String::new(), f64::to_string)
            });
            writer
                .write_record(fixed.into_iter().chain(values))
                .map_err(cannot)?;
        }
    }
    let bytes = writer
        .into_inner()
        .map_err(|error| cannot(error.into_error().into()))?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
