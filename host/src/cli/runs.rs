//! `dynalora runs`

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::{Common, print, print_json, table};
use crate::error::{Error, Result};
use crate::number::duration;
use crate::recipe::Recipe;
use crate::run::{MetricRecord, Run, State};

/// Arguments of `dynalora runs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders that hold runs, at whatever depth
    #[arg(default_value = "runs")]
    folders: Vec<PathBuf>,
    /// Print every run as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    run: PathBuf,
    state: State,
    /// What chooses its modules, in short.
    arm: String,
    seed: u64,
    /// Steps made, as far as they are recorded.
    step: u64,
    /// The last training loss.
    loss: Option<f64>,
    /// The metric that picks the best checkpoint, at the last evaluation.
    metric: Option<(String, f64)>,
    /// Seconds since it last wrote a record.
    age_seconds: f64,
}

/// Prints the runs below the folders, those that wrote last first.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let mut found = Vec::new();
    for folder in &arguments.folders {
        if !folder.is_dir() {
            return Err(
                Error::user(format!("there is no folder {}", folder.display()))
                    .help("name the folder that your recipes' `output`s lie in"),
            );
        }
        found.extend(Run::find(folder)?);
    }
    let mut rows = Vec::new();
    for folder in &found {
        match row(folder) {
            Ok(row) => rows.push(row),
            // One that is damaged is no reason to hide the others.
            Err(error) => tracing::warn!("{}: {error}", folder.display()),
        }
    }
    rows.sort_by(|a, b| a.age_seconds.total_cmp(&b.age_seconds));
    if arguments.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        let folders: Vec<String> = arguments
            .folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        return print(&format!("no runs in {}", folders.join(", ")));
    }
    print(&shown(&rows))
}

fn row(folder: &Path) -> Result<Row> {
    let run = Run::open(folder)?;
    let recipe = Recipe::load(&run.recipe_path(), &[])?;
    let summary = run.summary()?;
    let (mut step, mut loss, mut evaluation) = (0, None, None);
    for record in run.metrics()? {
        match record {
            MetricRecord::Step(record) => (step, loss) = (record.step, Some(record.loss)),
            MetricRecord::Evaluation(record) => evaluation = Some(record),
        }
    }
    let deciding = recipe.deciding_metric().name();
    let metric = evaluation.and_then(|record| {
        let value = record.metrics.get(deciding)?;
        Some((deciding.to_owned(), *value))
    });
    let state = run.state(summary.as_ref());
    Ok(Row {
        run: folder.to_owned(),
        state,
        arm: recipe.chooser(),
        seed: recipe.seed,
        step: summary.map_or(step, |summary| summary.steps),
        loss,
        metric,
        age_seconds: age(&run),
    })
}

/// Since the last record, or the start where there is none.
fn age(run: &Run) -> f64 {
    let written = |path: PathBuf| {
        std::fs::metadata(path)
            .and_then(|file| file.modified())
            .ok()
    };
    let last = written(run.dir().join("metrics.jsonl")).or_else(|| written(run.recipe_path()));
    let age = last.and_then(|last| SystemTime::now().duration_since(last).ok());
    age.map_or(0.0, |age| age.as_secs_f64())
}

fn shown(rows: &[Row]) -> String {
    let mut table = table(&[
        "run", "state", "arm", "seed", "step", "loss", "metric", "age",
    ]);
    for row in rows {
        table.add_row([
            row.run.display().to_string(),
            row.state.word().to_owned(),
            row.arm.clone(),
            row.seed.to_string(),
            row.step.to_string(),
            row.loss.map_or(String::new(), |loss| format!("{loss:.4}")),
            row.metric
                .as_ref()
                .map_or(String::new(), |(name, value)| format!("{name} {value:.4}")),
            duration(row.age_seconds),
        ]);
    }
    table.trim_fmt()
}
