//! `dynalora train`

use std::path::{Path, PathBuf};

use super::session::{self, Session};
use super::{Common, print, print_json, table};
use crate::error::{Error, Kind, Result};
use crate::number::{count, duration, size};
use crate::recipe::Recipe;
use crate::run::{EvaRecord, Opening, Run, Summary};
use crate::train::Prepared;
use crate::train::eva::Found;

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
    /// Start anew in an `output` that holds a run, which is removed when the new one has begun
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Resume although data, model or plugins are not those that the run began with
    #[arg(long, requires = "resume")]
    accept_changes: bool,
    /// Print the closing account as JSON
    #[arg(long)]
    json: bool,
}

/// Trains and prints the closing account.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    let run = recipe.output.clone();
    let how = match (arguments.resume, arguments.force) {
        (true, _) => How::Resume {
            accept_changes: arguments.accept_changes,
        },
        (_, true) => How::Replace,
        _ => How::New,
    };
    let summary = train(recipe, how, common)?;
    if arguments.json {
        return print_json(&summary);
    }
    print(&closing(&summary, &run))
}

/// What is done with the folder that the recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It must be free.
    New,
    /// Its run is replaced.
    Replace,
    /// Its run goes on.
    Resume {
        /// Even with other data, another model or other plugins.
        accept_changes: bool,
    },
}

/// Trains a recipe into its output folder.
pub fn train(recipe: Recipe, mut how: How, common: &Common) -> Result<Summary> {
    for warning in recipe.warnings() {
        tracing::warn!("{warning}");
    }
    session::use_threads(recipe.threads)?;
    let output = recipe.output.clone();
    // A run that cannot go on, or a folder that is taken, is found out before anything slow begins.
    match how {
        How::Resume { .. } if Run::is_cut_short(&output)? => {
            tracing::warn!(
                "{} holds no run to go on with: its start was cut short, and is made again",
                output.display()
            );
            how = How::New;
        }
        How::Resume { .. } => {
            let run = Run::open(&output)?;
            run.check_recipe(&recipe.to_toml()?)?;
            if let Some(summary) = run.finished() {
                return Ok(summary);
            }
        }
        How::New | How::Replace => Run::check_free(&output, how == How::Replace)?,
    }
    let session = Session::start(&recipe, common)?;
    let known = match how {
        How::Resume { .. } => known_of_eva(&Run::open(&output)?)?,
        How::New | How::Replace => None,
    };
    let prepared = Prepared::new(recipe, &common.plugin_dir, |seen| match known {
        Some(record) => Ok(Found::known(record)),
        None => session.find(seen),
    })?;
    let opening = Opening {
        // With what the data has told of it.
        recipe: prepared.recipe.to_toml()?,
        keep: prepared.recipe.checkpoint.keep,
        report_to: prepared.recipe.train.report_to.clone(),
        sitting: Some(prepared.sitting(session.device_name())?),
        accept_changes: matches!(how, How::Resume { accept_changes } if accept_changes),
    };
    let text = opening.recipe.clone();
    let (writer, from) = match how {
        How::Resume { .. } => {
            // Again, now that the data has told its classes.
            Run::open(&output)?.check_recipe(&text)?;
            Run::resume(&output, opening)?
        }
        How::Replace => (Run::replace(&output, opening)?, None),
        How::New => (Run::create(&output, opening)?, None),
    };
    let trained = session.train(prepared, writer, from);
    trained.map_err(|error| with_a_way_on(error, &output, &text, how))
}

/// What the pairs of a run that goes on from a checkpoint started from, under EVA.
fn known_of_eva(run: &Run) -> Result<Option<EvaRecord>> {
    match run.has_checkpoint() {
        true => Ok(run
            .allocations()?
            .into_iter()
            .next()
            .and_then(|first| first.eva)),
        false => Ok(None),
    }
}

/// What became of a run that failed, said with the error. One in which there is nothing to keep goes, so that the corrected
/// recipe finds its folder free.
fn with_a_way_on(error: Error, output: &Path, recipe: &str, how: How) -> Error {
    let Ok(run) = Run::open(output) else {
        return error;
    };
    // These say themselves what to do: one would diverge again.
    let says = matches!(error.kind, Kind::Diverged | Kind::Interrupted(_));
    if says && run.has_checkpoint() {
        return error;
    }
    if how == How::Replace && run.recipe().is_ok_and(|own| own != recipe) {
        return error.and_help("the run that was there before is as it was");
    }
    let resumed = matches!(how, How::Resume { .. });
    if !resumed && run.remove_unstarted() {
        return error.and_help("nothing was recorded or saved yet: the run's folder was removed");
    }
    if run.has_checkpoint() {
        return error.and_help("the run can go on from its last checkpoint by --resume");
    }
    error.and_help(
        "no checkpoint was made yet: --resume begins the run again with the same recipe, --force with another",
    )
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
    if let Some(fault) = &summary.plugin_fault {
        table.add_row(["plugins given up", fault]);
    }
    table.trim_fmt()
}
