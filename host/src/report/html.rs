//! A report as one page that needs nothing beside it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::table::Table;
use super::{Plot, Report};

const STYLE: &str = "
body { font: 16px/1.5 sans-serif; color: #111; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.75rem; text-align: left; white-space: nowrap; }
figure { margin: 1.5rem 0; }
figcaption { font-weight: bold; }
svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818; }
  th, td { border-color: #444; }
  svg { border-radius: 4px; }
}
";

/// The page: tables, plots, and which runs it is made of.
pub fn page(report: &Report, tables: &[Table], plots: &[Plot]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "dynalora report: " (report.metric) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "dynalora report: " (report.metric) }
                @for table in tables {
                    h2 { (table.title) }
                    (rows(&table.header, &table.rows))
                    @if let Some(note) = &table.note { p { (note) } }
                }
                h2 { "Plots" }
                @for plot in plots {
                    figure {
                        figcaption { (plot.title) }
                        (PreEscaped(&plot.svg))
                    }
                }
                h2 { "Runs" }
                (runs(report))
            }
        }
    };
    page.into_string()
}

fn rows(header: &[String], rows: &[Vec<String>]) -> Markup {
    html! {
        div.wide {
            table {
                thead { tr { @for cell in header { th { (cell) } } } }
                tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}

fn runs(report: &Report) -> Markup {
    let header = ["run", "arm", "seed", "steps", ""].map(str::to_owned);
    let runs = report.arms.iter().flat_map(|arm| {
        arm.runs.iter().map(|run| {
            vec![
                run.path.display().to_string(),
                arm.name.clone(),
                run.seed.to_string(),
                run.steps.to_string(),
                match (&run.collapse, run.finished) {
                    (Some(_), _) => "collapsed",
                    (None, false) => "unfinished",
                    (None, true) if run.disturbed() => "not by the recipe",
                    (None, true) => "",
                }
                .to_owned(),
            ]
        })
    });
    rows(&header, &runs.collect::<Vec<_>>())
}
