//! `dynalora sweep`

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;

use super::{Common, print, print_json};
use crate::error::{Error, Result};
use crate::file::plain_name;
use crate::report::{Figure, Naming, Options, Report, markdown, tables};
use crate::sweep::{
    self, Asked, Engine, File, Jobs, Launch, Launcher, Outcome, Planned, Seeds, State,
    check_not_launched, command, preview, runs, state, train,
};
use crate::train::say;

/// Arguments of `dynalora sweep`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The sweep, a TOML file
    sweep: PathBuf,
    /// Train so many runs at a time: 1 by default on this machine, where each is a process of its own and they share the
    /// cores if the recipes set no `threads`; as many as there is room for by Slurm
    #[arg(short, long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    jobs: Option<usize>,
    /// What runs the runs
    #[arg(long, value_enum, value_name = "LAUNCHER", default_value_t = Launcher::Local)]
    launcher: Launcher,
    /// Replace a value of the launcher's table in the sweep, such as partition=gpu; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    launch: Vec<String>,
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
    /// Print the commands, one a line, and train nothing; of another launcher the command that submits, and its script
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
    let file = load(arguments)?;
    let asked = Asked {
        arms: arguments.arms.clone(),
        seeds: arguments.seeds.clone(),
        sets: arguments.set.clone(),
        output: arguments.output.clone(),
    };
    let runs = runs(&file, &asked)?;
    let states = runs.iter().map(state).collect::<Result<Vec<State>>>()?;
    let jobs = Jobs {
        at_a_time: arguments.jobs.unwrap_or(1),
        retries: arguments.retries,
        plugin_dirs: common.plugin_dir.clone(),
        quiet: common.quiet,
    };
    let launch = engine(arguments, &file)?;
    if arguments.dry_run {
        return match &launch {
            None => dry_run(&runs, &states, &jobs),
            Some(launch) => print_submissions(&preview(launch, &runs, states, &jobs)?),
        };
    }
    if arguments.report {
        let trained = finished(&runs, states.iter().map(|state| *state == State::Finished));
        return report(arguments, &file, &trained);
    }
    warn(&runs);
    let outcomes = match &launch {
        Some(launch) => sweep::launch(launch, &runs, states, &jobs)?,
        None => {
            check_not_launched(&runs, &states)?;
            train(&runs, states, &jobs)?
        }
    };
    let trained = finished(&runs, outcomes.iter().map(Outcome::is_finished));
    if !trained.is_empty() {
        report(arguments, &file, &trained)?;
    }
    failures(&runs, &outcomes)
}

/// The sweep, with what the flags say of its launcher.
fn load(arguments: &Arguments) -> Result<File> {
    let table = match arguments.launcher {
        Launcher::Slurm => "slurm",
        Launcher::Hq => "hq",
        Launcher::Local if arguments.launch.is_empty() => return File::load(&arguments.sweep),
        Launcher::Local => {
            return Err(
                Error::user("--launch cannot act: this machine takes no settings")
                    .help("give --launcher slurm or --launcher hq with it"),
            );
        }
    };
    let sets: Vec<String> = arguments
        .launch
        .iter()
        .map(|set| format!("{table}.{set}"))
        .collect();
    File::load_with(&arguments.sweep, &sets)
}

/// How the runs are launched, if not on this machine.
fn engine(arguments: &Arguments, file: &File) -> Result<Option<Launch>> {
    let engine = match arguments.launcher {
        Launcher::Local => return Ok(None),
        Launcher::Slurm => Engine::Slurm(file.sweep.slurm.clone()),
        Launcher::Hq if arguments.jobs.is_some() => {
            return Err(Error::user(
                "--jobs cannot act: HyperQueue runs as many as its workers have room for",
            )
            .help("give the workers fewer CPUs, or each run more, by --launch cpus=N"));
        }
        Launcher::Hq => Engine::Hq(file.sweep.hq.clone()),
    };
    let stem = file.path.file_stem().unwrap_or_default();
    let name = match plain_name(&stem.to_string_lossy()) {
        name if name.is_empty() => "sweep".to_owned(),
        name => name,
    };
    Ok(Some(Launch {
        engine,
        name,
        limit: arguments.jobs,
    }))
}

/// What would be submitted.
fn print_submissions(submissions: &[(std::process::Command, String)]) -> Result<()> {
    for (command, script) in submissions {
        print(&format!("{}\n\n{script}", line(command)?))?;
    }
    Ok(())
}

/// A command for a shell.
fn line(command: &std::process::Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    shlex::try_join(words.iter().map(String::as_str))
        .map_err(|error| Error::failure("a command cannot be written for a shell").because(error))
}

/// The commands that would be run.
fn dry_run(runs: &[Planned], states: &[State], jobs: &Jobs) -> Result<()> {
    for (run, state) in runs.iter().zip(states) {
        if *state == State::Finished {
            continue;
        }
        let command = command("dynalora".as_ref(), run, state, jobs);
        print(&line(&command)?)?;
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

/// The finished runs of a sweep's file, with what it says of the report on them: arms' names, metric and baseline, and the
/// columns. `sets` are values that all recipes were given beside it.
pub fn trained(path: &Path, sets: &[String]) -> Result<(Vec<PathBuf>, Options, Vec<Figure>)> {
    let file = File::load(path)?;
    let asked = Asked {
        sets: sets.to_vec(),
        ..Asked::default()
    };
    let runs = runs(&file, &asked)?;
    let states = runs.iter().map(state).collect::<Result<Vec<State>>>()?;
    let trained = finished(&runs, states.iter().map(|state| *state == State::Finished));
    if trained.len() < runs.len() {
        tracing::warn!(
            "{} of {} runs of {} are finished: the report is on those",
            trained.len(),
            runs.len(),
            path.display()
        );
    }
    let (folders, options) = of_report(&file, &trained);
    Ok((folders, options, file.sweep.columns.clone()))
}

/// The columns that are asked for, else the sweep's own, else all there are.
pub fn columns(asked: &[Figure], own: &[Figure]) -> Vec<Figure> {
    let named = [asked, own].into_iter().find(|named| !named.is_empty());
    named.unwrap_or(Figure::value_variants()).to_vec()
}

fn of_report(file: &File, runs: &[&Planned]) -> (Vec<PathBuf>, Options) {
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
    (folders, options)
}

fn report(arguments: &Arguments, file: &File, runs: &[&Planned]) -> Result<()> {
    let (folders, options) = of_report(file, runs);
    let report = Report::new(&folders, &options)?;
    if arguments.json {
        return print_json(&report);
    }
    let columns = columns(&arguments.columns, &file.sweep.columns);
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
