//! `dynalora report`

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{Common, print, print_json};
use crate::error::{Error, Result};
use crate::report::{
    Figure, Naming, Options, Report, csv, latex, markdown, page, plots, swept, tables,
};

/// Arguments of `dynalora report`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders of runs; those of one recipe with several seeds make an arm
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write a page with tables and plots there
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Write each plot as an SVG file into this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// The arm to compare the others with, by its name or a part of it; by default plain LoRA
    #[arg(long, value_name = "ARM")]
    baseline: Option<String>,
    /// The metric to compare; by default the one that picks the best checkpoint
    #[arg(long)]
    metric: Option<String>,
    /// How arms are named
    #[arg(long, value_enum, default_value_t, visible_alias = "name")]
    names: Naming,
    /// The table's columns
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FIGURE,…", default_values_t = Figure::value_variants().to_vec())]
    columns: Vec<Figure>,
    /// The scatter plot's horizontal axis
    #[arg(long, value_enum, value_name = "FIGURE", default_value_t = Figure::TrainableShare)]
    x: Figure,
    /// Its vertical axis
    #[arg(long, value_enum, value_name = "FIGURE", default_value_t = Figure::Metric)]
    y: Figure,
    /// Draw the figure of --y over the values of this key of the recipes, such as allocation.schedule.every
    #[arg(long, value_name = "KEY")]
    x_key: Option<String>,
    /// Count unfinished runs too
    #[arg(long)]
    unfinished: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Short for --format json
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables
    #[default]
    #[value(alias = "md")]
    Markdown,
    /// The same tables for LaTeX, with booktabs
    Latex,
    /// Every run a line, with each figure
    Csv,
    /// Every number, run by run
    Json,
}

/// Reads the runs, prints their averages and writes the page and the plots that are asked for.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let options = Options {
        metric: arguments.metric.clone(),
        baseline: arguments.baseline.clone(),
        names: arguments.names,
        arms: None,
        unfinished: arguments.unfinished,
    };
    if arguments.x_key.is_some() && arguments.output.is_none() && arguments.svg.is_none() {
        return Err(Error::user("--x-key draws, but nothing is drawn here")
            .help("give a page by --output FILE.html, or a folder by --svg FOLDER"));
    }
    let report = Report::new(&arguments.runs, &options)?;
    let tables = tables(&report, &arguments.columns);
    if arguments.output.is_some() || arguments.svg.is_some() {
        let mut plots = plots(&report, arguments.x, arguments.y)?;
        if let Some(key) = &arguments.x_key {
            plots.insert(0, swept(&report, key, arguments.y)?);
        }
        if let Some(file) = &arguments.output {
            write(file, &page(&report, &tables, &plots))?;
        }
        if let Some(folder) = &arguments.svg {
            std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
            for plot in &plots {
                write(&folder.join(format!("{}.svg", plot.name)), &plot.svg)?;
            }
        }
    }
    match arguments.format {
        _ if arguments.json => print_json(&report),
        Format::Json => print_json(&report),
        Format::Markdown => print(&markdown(&tables)),
        Format::Latex => print(&latex(&tables)),
        Format::Csv => print(&csv(&report)?),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::user(format!("cannot write {}", path.display()))
        .because(error)
        .help("check that the folder is there and that you may write into it")
}
