//! `dynalora sweep`

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;

use super::{Common, print, print_json};
use crate::error::{Error, Result};
use crate::report::{Figure, Naming, Options, Report, markdown, tables};
use crate::sweep::{
    Asked, File, Jobs, Outcome, Planned, Seeds, State, command, runs, state, train,
};
use crate::train::say;

/// Arguments of `dynalora sweep`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The sweep, a TOML file
    sweep: PathBuf,
    /// Train so many runs at a time, each a process of its own; they share the cores where the recipes set no `threads`
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    jobs: usize,
    /// Train these arms alone
    #[arg(long, value_delimiter = ',', value_name = "ARM,…")]
    arms: Vec<String>,
    /// Train with these seeds instead of the sweep's: 0,1,2 or 0..9
    #[arg(long, value_name = "SEEDS")]
    seeds: Option<Seeds>,
    /// Replace a value in every recipe; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where the runs go, instead of where the sweep says
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// How often a run is tried again that failed, if not by a mistake of yours
    #[arg(long, value_name = "N", default_value_t = 1)]
    retries: u32,
    /// Print the commands, one a line, and train nothing
    #[arg(long)]
    dry_run: bool,
    /// Train nothing: the table of what there is
    #[arg(long, conflicts_with = "dry_run")]
    report: bool,
    /// The table's columns, instead of those that the sweep names
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FIGURE,…")]
    columns: Vec<Figure>,
    /// Print every number as JSON instead of the tables
    #[arg(long)]
    json: bool,
}

/// Trains what is not trained yet, and prints the tables of all.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let file = File::load(&arguments.sweep)?;
    let asked = Asked {
        arms: arguments.arms.clone(),
        seeds: arguments.seeds.clone(),
        sets: arguments.set.clone(),
        output: arguments.output.clone(),
    };
    let runs = runs(&file, &asked)?;
    let states = runs.iter().map(state).collect::<Result<Vec<State>>>()?;
    let jobs = Jobs {
        at_a_time: arguments.jobs,
        retries: arguments.retries,
        plugin_dirs: common.plugin_dir.clone(),
        quiet: common.quiet,
    };
    if arguments.dry_run {
        return dry_run(&runs, &states, &jobs);
    }
    if arguments.report {
        let trained = finished(&runs, states.iter().map(|state| *state == State::Finished));
        return report(arguments, &file, &trained);
    }
    warn(&runs);
    let outcomes = train(&runs, states, &jobs)?;
    let trained = finished(&runs, outcomes.iter().map(Outcome::is_finished));
    if !trained.is_empty() {
        report(arguments, &file, &trained)?;
    }
    failures(&runs, &outcomes)
}

/// The commands that would be run.
fn dry_run(runs: &[Planned], states: &[State], jobs: &Jobs) -> Result<()> {
    for (run, state) in runs.iter().zip(states) {
        if *state == State::Finished {
            continue;
        }
        let command = command("dynalora".as_ref(), run, state, jobs);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let line = shlex::try_join(words.iter().map(String::as_str)).map_err(|error| {
            Error::failure("a command cannot be written for a shell").because(error)
        })?;
        print(&line)?;
    }
    Ok(())
}

/// What is odd about the recipes, once.
fn warn(runs: &[Planned]) {
    let mut said: Vec<String> = Vec::new();
    for run in runs {
        for warning in run.resolved.warnings() {
            let warning = format!("{}: {warning}", run.arm);
            if !said.contains(&warning) {
                tracing::warn!("{warning}");
                said.push(warning);
            }
        }
    }
}

/// The runs that are finished, by what is known of each.
fn finished(runs: &[Planned], known: impl Iterator<Item = bool>) -> Vec<&Planned> {
    let runs = runs.iter().zip(known);
    runs.filter_map(|(run, finished)| finished.then_some(run))
        .collect()
}

fn report(arguments: &Arguments, file: &File, runs: &[&Planned]) -> Result<()> {
    let folders: Vec<PathBuf> = runs.iter().map(|run| run.resolved.output.clone()).collect();
    let arms = runs
        .iter()
        .map(|run| (run.resolved.output.clone(), run.arm.clone()));
    let options = Options {
        metric: file.sweep.metric.clone(),
        // It may be among those that are not trained.
        baseline: file
            .sweep
            .baseline
            .clone()
            .filter(|name| runs.iter().any(|run| run.arm.contains(name))),
        names: Naming::Recipe,
        // Draws have but numbers for names.
        arms: file.sweep.random.is_none().then(|| arms.collect()),
        unfinished: false,
    };
    let report = Report::new(&folders, &options)?;
    if arguments.json {
        return print_json(&report);
    }
    let columns = match (arguments.columns.is_empty(), file.sweep.columns.is_empty()) {
        (false, _) => arguments.columns.clone(),
        (true, false) => file.sweep.columns.clone(),
        (true, true) => Figure::value_variants().to_vec(),
    };
    print(&markdown(&tables(&report, &columns)))
}

/// An error if any run failed, with what each of them said.
fn failures(runs: &[Planned], outcomes: &[Outcome]) -> Result<()> {
    let mut failed = 0;
    for (run, outcome) in runs.iter().zip(outcomes) {
        if let Outcome::Failed { how, said, .. } = outcome {
            failed += 1;
            say(&format!("\n{} {how}:\n{said}", run.name));
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::failure(format!("{failed} of {} runs failed", runs.len()))
            .help("what they said stands above and, whole, in the folder .sweep beside the runs; the same command tries them again")),
    }
}
