//! `dynalora train`

use std::path::PathBuf;

use super::session::{self, Session};
use super::{Common, print, print_json, table};
use crate::error::{Error, Kind, Result};
use crate::recipe::Recipe;
use crate::run::{Run, Summary};
use crate::train::{Prepared, count, duration, size};

/// Arguments of `dynalora train`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Replace a value of the recipe, such as --set train.epochs=1; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with the run that the recipe's `output` holds
    #[arg(long)]
    resume: bool,
    /// Print the closing account as JSON
    #[arg(long)]
    json: bool,
}

/// Trains and prints the closing account.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    let run = recipe.output.clone();
    let summary = train(recipe, arguments.resume, common)?;
    if arguments.json {
        return print_json(&summary);
    }
    print(&closing(&summary, &run))
}

/// Trains a recipe into its output folder.
pub fn train(recipe: Recipe, resume: bool, common: &Common) -> Result<Summary> {
    for warning in recipe.warnings() {
        tracing::warn!("{warning}");
    }
    session::use_threads(recipe.threads)?;
    let output = recipe.output.clone();
    // A run that cannot go on, or a folder that is taken, is found out before anything slow begins.
    let settled = match resume {
        true => Some(as_started(&recipe)?),
        false => None,
    };
    let session = Session::start(recipe.device, common)?;
    let prepared = Prepared::new(recipe, &common.plugin_dir)?;
    // With what the data has told of it.
    let text = prepared.recipe.to_toml()?;
    // A run of an earlier version has nothing of it to compare.
    if let Some(settled) = settled.filter(|recipe| recipe.data.is_settled()) {
        same_classes(&settled, &prepared.recipe)?;
        Run::open(&output)?.check_recipe(&text)?;
    }
    let (writer, from) = if resume {
        Run::resume(&output)?
    } else {
        (Run::create(&output, &text)?, None)
    };
    let trained = session.train(prepared, writer, from);
    // Some mistakes come to light with the model on the device, when the run has its folder already.
    if let (Err(error), false) = (&trained, resume)
        && error.kind == Kind::User
        && let Ok(run) = Run::open(&output)
    {
        run.remove_unstarted();
    }
    trained
}

/// The recipe with what its run was told by the data, as far as the recipe leaves it open; an error if the two
/// differ in anything else.
fn as_started(recipe: &Recipe) -> Result<Recipe> {
    let run = Run::open(&recipe.output)?;
    let mut settled = recipe.clone();
    settled
        .data
        .adopt(&Recipe::load(&run.recipe_path(), &[])?.data);
    run.check_recipe(&settled.to_toml()?)?;
    Ok(settled)
}

/// Refuses data that has other classes than when the run was started.
fn same_classes(then: &Recipe, now: &Recipe) -> Result<()> {
    if then.data.labels == now.data.labels {
        return Ok(());
    }
    let names = |recipe: &Recipe| recipe.data.labels.clone().unwrap_or_default().join(", ");
    Err(Error::user(format!(
        "the training data has the classes {} now, but the run was started with {}",
        names(now),
        names(then)
    ))
    .help("resume with the data the run was started with, or give another `output` for a new run"))
}

/// The closing table.
pub fn closing(summary: &Summary, run: &std::path::Path) -> String {
    let mut table = table(&["", ""]);
    if let Some(best) = &summary.best {
        let value = format!("{:.4} at step {}", best.value, best.step);
        table.add_row([format!("best {}", best.metric), value]);
    }
    let last: Vec<String> = summary
        .metrics
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    if !last.is_empty() {
        table.add_row(["last evaluation".to_owned(), last.join(", ")]);
    }
    let trainable = summary.adapter_parameters + summary.head_parameters;
    let rows = [
        (
            "trainable parameters",
            format!(
                "{} ({} in {} modules, {} in the head)",
                count(trainable),
                count(summary.adapter_parameters),
                summary.modules,
                count(summary.head_parameters)
            ),
        ),
        (
            "active adapter parameters",
            format!(
                "mean {}, peak {}",
                count(summary.active_parameters_mean.round() as u64),
                count(summary.active_parameters_peak)
            ),
        ),
        ("reallocations", summary.reallocations.to_string()),
        (
            "peak memory",
            summary.peak_memory.map_or("unknown".to_owned(), size),
        ),
        (
            "time",
            format!(
                "{} for {} steps ({:.0} tokens/s)",
                duration(summary.seconds),
                summary.steps,
                summary.tokens as f64 / summary.seconds.max(1e-9)
            ),
        ),
        ("device", summary.device.clone()),
        ("run", run.display().to_string()),
        ("adapter", run.join("adapter").display().to_string()),
    ];
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    table.trim_fmt()
}
