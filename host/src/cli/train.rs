//! `dynalora train`

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::session::{self, Session};
use super::{Common, print, print_json, table};
use crate::error::{Error, Kind, Result};
use crate::number::{count, duration, size};
use crate::recipe::Recipe;
use crate::run::{EvaRecord, Opening, Run, Sitting, Summary};
use crate::train::eva::Found;
use crate::train::ranks::Ranks;
use crate::train::{Prepared, say};

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
    /// Train in this process alone, although a launcher of MPI has started several: each has a run of its own
    #[arg(long)]
    alone: bool,
    /// Print the closing account as JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// The processes that train together.
    pub fn ranks(&self) -> Result<Ranks> {
        match self.alone {
            true => Ok(Ranks::alone()),
            false => Ranks::join(),
        }
    }
}

/// Trains and prints the closing account.
pub fn run(arguments: &Arguments, common: &Common, ranks: &Ranks) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    let run = recipe.output.clone();
    let how = match (arguments.resume, arguments.force) {
        (true, _) => How::Resume {
            accept_changes: arguments.accept_changes,
        },
        (_, true) => How::Replace,
        _ => How::New,
    };
    let summary = train(recipe, how, common, ranks)?;
    if !ranks.leads() {
        return Ok(());
    }
    if arguments.json {
        return print_json(&summary);
    }
    print(&closing(&summary, &run))
}

/// What is done with the folder that the recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Looks at the folder that a run is to go to, before anything slow begins: what is done with it, or the closing account of
/// a run that is finished.
fn look(recipe: &Recipe, how: How) -> Result<(How, Option<Summary>)> {
    let output = &recipe.output;
    match how {
        How::Resume { .. } if Run::is_cut_short(output)? => {
            tracing::warn!(
                "{} holds no run to go on with: its start was cut short, and is made again",
                output.display()
            );
            Ok((How::New, None))
        }
        How::Resume { .. } => {
            let run = Run::open(output)?;
            run.check_recipe(&recipe.to_toml()?)?;
            Ok((how, run.finished()))
        }
        How::New | How::Replace => {
            Run::check_free(output, how == How::Replace)?;
            Ok((how, None))
        }
    }
}

/// Refuses to train with ranks that read anything else than the first does.
fn compare_ranks(ranks: &Ranks, opening: &Opening) -> Result<()> {
    let own = (&opening.recipe, &opening.sitting);
    let (recipe, sitting): (String, Option<Sitting>) =
        ranks.told(|| Ok((own.0.clone(), own.1.clone())))?;
    let rank = ranks.rank();
    if recipe != *own.0 {
        return Err(Error::user(format!(
            "rank {rank} has another recipe than rank 0: all ranks train one run"
        ))
        .help("pass --alone where each process has a run of its own"));
    }
    let (Some(first), Some(own)) = (sitting, own.1) else {
        return Ok(());
    };
    let (mut inputs, _) = own.changes(&first);
    if first.program != own.program {
        inputs.push("the program is another one".to_owned());
    }
    if let Some(other) = inputs.first() {
        return Err(Error::user(format!(
            "rank {rank} does not read what rank 0 reads: there, {other} on rank {rank}"
        ))
        .help("give all machines the same files, by a folder that they share"));
    }
    if first.machine.cpu != own.machine.cpu {
        let (theirs, ours) = (&first.machine.cpu, &own.machine.cpu);
        say(&format!(
            "rank {rank} computes on {ours}, rank 0 on {theirs}: what they hold may come to differ in last bits"
        ));
    }
    Ok(())
}

/// Trains a recipe into its output folder.
pub fn train(recipe: Recipe, how: How, common: &Common, ranks: &Ranks) -> Result<Summary> {
    for warning in recipe.warnings() {
        tracing::warn!("{warning}");
    }
    session::use_threads_of(ranks, recipe.threads)?;
    let output = recipe.output.clone();
    let (how, finished) = ranks.told(|| look(&recipe, how))?;
    if let Some(summary) = finished {
        return Ok(summary);
    }
    let session = Session::start(&recipe, common)?;
    if ranks.count() > 1 && !common.quiet {
        let threads = rayon::current_num_threads();
        say(&format!(
            "{} ranks, the first of which computes on {threads} of its cores",
            ranks.count()
        ));
    }
    let known = || match how {
        How::Resume { .. } => known_of_eva(&Run::open(&output)?),
        How::New | How::Replace => Ok(None),
    };
    let prepared = Prepared::new(recipe, &common.plugin_dir, ranks, |seen| {
        Found::told(ranks, || match known()? {
            Some(record) => Ok(Found::known(record)),
            None => session.find(seen),
        })
    })?;
    let opening = Opening {
        // With what the data has told of it.
        recipe: prepared.recipe.to_toml()?,
        keep: prepared.recipe.checkpoint.keep,
        report_to: prepared.recipe.train.report_to.clone(),
        sitting: Some(prepared.sitting(session.device_name(), ranks.count())?),
        accept_changes: matches!(how, How::Resume { accept_changes } if accept_changes),
    };
    compare_ranks(ranks, &opening)?;
    let text = opening.recipe.clone();
    if !ranks.leads() {
        let from = ranks.told(|| Ok(None))?;
        return session.train(ranks, prepared, Run::along(&output, opening), from);
    }
    let (writer, from) = match how {
        How::Resume { .. } => {
            // Again, now that the data has told its classes.
            Run::open(&output)?.check_recipe(&text)?;
            Run::resume(&output, opening)?
        }
        How::Replace => (Run::replace(&output, opening)?, None),
        How::New => (Run::create(&output, opening)?, None),
    };
    let from = ranks.told(|| Ok(from))?;
    let trained = session.train(ranks, prepared, writer, from);
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
    if let Some(reduction) = &summary.reduction {
        let spent = format!(
            "{}, {} of this sitting in reductions of {}",
            reduction.ranks,
            duration(reduction.seconds),
            size(reduction.bytes)
        );
        table.add_row(["ranks".to_owned(), spent]);
    }
    if let Some(fault) = &summary.plugin_fault {
        table.add_row(["plugins given up", fault]);
    }
    table.trim_fmt()
}
