//! `dynalora report`

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{Common, print, print_json, sweep};
use crate::error::{Error, Result};
use crate::report::{
    Colors, Figure, Length, Look, Naming, Options, Plot, Report, csv, latex, markdown, page, pdf,
    plots, png, swept, tables,
};

/// Arguments of `dynalora report`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders of runs, of which those of one recipe with several seeds make an arm; or the file of one sweep, which names
    /// its arms
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write a page with tables and plots there
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Write each plot as an SVG file into this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Write each plot as a PDF file of one page into this folder
    #[arg(long, value_name = "FOLDER")]
    pdf: Option<PathBuf>,
    /// Write each plot as a PNG file into this folder
    #[arg(long, value_name = "FOLDER")]
    png: Option<PathBuf>,
    /// How wide the plots are, such as 84mm, 3.3in or 800px, which is the default
    #[arg(long, value_name = "LENGTH")]
    width: Option<Length>,
    /// How large their letters are; by default 8pt where --width is given
    #[arg(long, value_name = "LENGTH")]
    font_size: Option<Length>,
    /// The colours of maps
    #[arg(long, value_enum, default_value_t)]
    colors: Colors,
    /// Dots to an inch of --png
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u16).range(36..=2400))]
    dpi: u16,
    /// The arm to compare the others with, by its name or a part of it; by default the sweep's, or plain LoRA
    #[arg(long, value_name = "ARM")]
    baseline: Option<String>,
    /// The metric to compare; by default the one that picks the best checkpoint
    #[arg(long)]
    metric: Option<String>,
    /// How arms are named; by default as the sweep names them, or by their recipes
    #[arg(long, value_enum, visible_alias = "name")]
    names: Option<Naming>,
    /// The table's columns; by default those that the sweep names, or all
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FIGURE,…")]
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
    /// A value that the sweep was given for every recipe by its own --set; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
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
    let look = look(arguments)?;
    let Chosen {
        folders,
        options,
        columns,
    } = chosen(arguments)?;
    let report = Report::new(&folders, &options)?;
    let tables = tables(&report, &columns);
    if arguments.draws() {
        let mut plots = plots(&look, &report, arguments.x, arguments.y)?;
        if let Some(key) = &arguments.x_key {
            plots.insert(0, swept(&look, &report, key, arguments.y)?);
        }
        if let Some(file) = &arguments.output {
            write(file, page(&report, &tables, &plots).as_bytes())?;
        }
        let svg = |plot: &Plot| Ok(plot.svg.clone().into_bytes());
        write_each(arguments.svg.as_deref(), "svg", &plots, svg)?;
        write_each(arguments.pdf.as_deref(), "pdf", &plots, pdf)?;
        let dpi = f32::from(arguments.dpi);
        write_each(arguments.png.as_deref(), "png", &plots, |plot| {
            png(plot, dpi)
        })?;
    }
    match arguments.format {
        _ if arguments.json => print_json(&report),
        Format::Json => print_json(&report),
        Format::Markdown => print(&markdown(&tables)),
        Format::Latex => print(&latex(&tables)),
        Format::Csv => print(&csv(&report)?),
    }
}

impl Arguments {
    /// Whether anything is drawn.
    fn draws(&self) -> bool {
        let folders = [&self.output, &self.svg, &self.pdf, &self.png];
        folders.into_iter().any(Option::is_some)
    }
}

/// How plots look; an error where something is said of them and none are drawn.
fn look(arguments: &Arguments) -> Result<Look> {
    let Arguments {
        width,
        font_size,
        colors,
        ..
    } = arguments;
    let said = [
        ("--x-key", arguments.x_key.is_some()),
        ("--width", width.is_some()),
        ("--font-size", font_size.is_some()),
        ("--colors", *colors != Colors::default()),
    ];
    if let Some((flag, _)) = said.iter().find(|(_, said)| *said && !arguments.draws()) {
        return Err(
            Error::user(format!("{flag} draws, but nothing is drawn here")).help(
                "give a page by --output FILE.html, or a folder by --svg, --pdf or --png FOLDER",
            ),
        );
    }
    Look::new(*width, *font_size, *colors)
        .map_err(|what| Error::user(what).help("give another --width, or another --font-size"))
}

/// What is reported on.
struct Chosen {
    folders: Vec<PathBuf>,
    options: Options,
    columns: Vec<Figure>,
}

/// The runs that are named, or those of a sweep.
fn chosen(arguments: &Arguments) -> Result<Chosen> {
    let is_sweep = |path: &&PathBuf| path.is_file() && path.extension() == Some("toml".as_ref());
    let mut chosen = match (arguments.runs.iter().find(is_sweep), arguments.runs.len()) {
        (None, _) if !arguments.set.is_empty() => {
            return Err(Error::user(
                "--set cannot act: runs in folders are what their recipes there say",
            )
            .help("give it with a sweep's file, whose runs were trained with it"));
        }
        (None, _) => Chosen {
            folders: arguments.runs.clone(),
            options: Options {
                names: arguments.names.unwrap_or_default(),
                ..Options::default()
            },
            columns: Vec::new(),
        },
        (Some(file), 1) => {
            let (folders, mut options, columns) = sweep::trained(file, &arguments.set)?;
            if let Some(names) = arguments.names {
                (options.names, options.arms) = (names, None);
            }
            Chosen {
                folders,
                options,
                columns,
            }
        }
        (Some(file), _) => {
            return Err(Error::user(format!(
                "{} is a file, and stands beside folders of runs",
                file.display()
            ))
            .help("report on one sweep by its file, or on folders of runs"));
        }
    };
    chosen.columns = sweep::columns(&arguments.columns, &chosen.columns);
    let options = &mut chosen.options;
    options.unfinished = arguments.unfinished;
    if arguments.baseline.is_some() {
        options.baseline.clone_from(&arguments.baseline);
    }
    if arguments.metric.is_some() {
        options.metric.clone_from(&arguments.metric);
    }
    Ok(chosen)
}

/// Writes each plot into a folder, which is made.
fn write_each(
    folder: Option<&Path>,
    kind: &str,
    plots: &[Plot],
    content: impl Fn(&Plot) -> Result<Vec<u8>>,
) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
    for plot in plots {
        write(
            &folder.join(format!("{}.{kind}", plot.name)),
            &content(plot)?,
        )?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::user(format!("cannot write {}", path.display()))
        .because(error)
        .help("check that the folder is there and that you may write into it")
}
