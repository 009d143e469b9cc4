//! The command line: one file per subcommand.

mod completions;
mod devices;
mod evaluate;
mod generate;
mod merge;
mod plan;
mod plugins;
mod predict;
mod quickstart;
mod ranks;
mod recipe;
mod report;
mod runs;
mod session;
mod sweep;
mod train;
mod watch;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};
use crate::plugin::{self, guard};
use crate::train::ranks::Ranks;

/// Fine-tunes pretrained models with dynamic low-rank module allocation: LoRA where only a part of the
/// modules trains at a time.
#[derive(Debug, Parser)]
#[command(name = "dynalora", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Options of every command.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// A folder with plugins, searched before all others; may be given several times
    #[arg(long, global = true, value_name = "DIR")]
    plugin_dir: Vec<PathBuf>,
    /// Say nothing but errors and results
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more: -v for what is decided, -vv for every step (RUST_LOG overrides it)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train what a recipe describes
    Train(train::Arguments),
    /// Score a trained run or a PEFT adapter
    Evaluate(evaluate::Arguments),
    /// Label texts with a trained run or a PEFT adapter
    Predict(predict::Arguments),
    /// Go on with texts, token by token, with a trained run or a PEFT adapter
    Generate(generate::Arguments),
    /// Merge a trained run or a PEFT adapter into its base model, as a folder for Transformers
    Merge(merge::Arguments),
    /// Show what a recipe would train: modules, parameters, FLOPs and memory
    Plan(plan::Arguments),
    /// Write, check and show recipes
    Recipe(recipe::Arguments),
    /// List runs: how far each is, and what it reached
    Runs(runs::Arguments),
    /// Look at runs while they train: curves, masks, speed and time left
    Watch(watch::Arguments),
    /// Average finished runs over seeds, compare them with a baseline, and draw them
    Report(report::Arguments),
    /// Train arms with several seeds, each run a process of its own, and compare them
    Sweep(sweep::Arguments),
    /// Say which devices there are, and what is missing of those that are not
    Devices(devices::Arguments),
    /// List, describe and check plugins
    Plugins(plugins::Arguments),
    /// Print what a shell reads to complete commands and flags
    Completions(completions::Arguments),
    /// Write the manual's pages, one for each command
    Man(completions::Man),
    /// Fetch a small model and compare dynamic allocation with plain LoRA on it, in minutes
    Quickstart(quickstart::Arguments),
}

/// Parses the command line and does what it says.
pub fn run() -> Result<()> {
    let Arguments {
        command,
        mut common,
    } = Arguments::parse();
    let ranks = match &command {
        Command::Train(arguments) => arguments.ranks()?,
        Command::Sweep(_) | Command::Quickstart(_) => ranks::refuse()?,
        _ => Ranks::alone(),
    };
    // What the others have to say, the first says.
    common.quiet |= !ranks.leads();
    start_tracing(&common)?;
    guard::begin();
    plugin::describe_in_children();
    match command {
        Command::Train(arguments) => {
            let outcome = train::run(&arguments, &common, &ranks);
            ranks::end(&ranks, outcome)
        }
        Command::Evaluate(arguments) => evaluate::run(&arguments, &common),
        Command::Predict(arguments) => predict::run(&arguments, &common),
        Command::Generate(arguments) => generate::run(&arguments, &common),
        Command::Merge(arguments) => merge::run(&arguments, &common),
        Command::Plan(arguments) => plan::run(&arguments, &common),
        Command::Recipe(arguments) => recipe::run(&arguments, &common),
        Command::Runs(arguments) => runs::run(&arguments, &common),
        Command::Watch(arguments) => watch::run(&arguments, &common),
        Command::Report(arguments) => report::run(&arguments, &common),
        Command::Sweep(arguments) => sweep::run(&arguments, &common),
        Command::Devices(arguments) => devices::run(&arguments, &common),
        Command::Plugins(arguments) => plugins::run(&arguments, &common),
        Command::Completions(arguments) => completions::run(&arguments, &common),
        Command::Man(arguments) => completions::man(&arguments, &common),
        Command::Quickstart(arguments) => quickstart::run(&arguments, &common),
    }
}

fn start_tracing(common: &Common) -> Result<()> {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "dynalora=info,warn",
        (false, 2) => "dynalora=debug,info",
        (false, _) => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|error| {
            Error::user(format!("RUST_LOG=\"{directives}\": {error}"))
                .help("an example of valid directives: RUST_LOG=dynalora=debug")
        })?,
        Err(_) => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        // A line that cannot be written is no reason to end a run, nor to panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Prints a JSON value on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::failure(format!("cannot write the answer as JSON: {error}")))?;
    print(&text)
}

/// Prints a text on standard output.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    printed(writeln!(guard::stdout(), "{text}"))
}

/// What came of printing. A reader that has gone away (`| head`) is no error.
fn printed(outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::failure(
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// A table without frames, columns apart by spaces.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::TableStyle::new())
        .set_header(header);
    table
}
