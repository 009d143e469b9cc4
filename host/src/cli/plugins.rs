//! `dynalora plugins`

mod info;
mod new;
mod replay;

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Common, print, print_json, table};
use crate::error::{Error, Result};
use crate::plugin::{self, PluginPath};
use crate::recipe::Isolation;

/// Where they are looked for, as `--help` has it.
const SEARCHED: &str = "Plugins are looked for in the folders that --plugin-dir names, the recipe's plugin_dirs, \
    DYNALORA_PLUGIN_PATH, the folder of this program, plugins in it, ../lib/dynalora/plugins from it, and the user's data \
    folder. `list --json` names them all.";

/// Arguments of `dynalora plugins`.
#[derive(Debug, clap::Args)]
#[command(after_help = SEARCHED)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the plugins on the search path
    List {
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Describe a plugin and its parameters
    Info {
        /// Its name, or the path of its library
        name: String,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Describe the library at a path in this process, for the process that asked
    #[command(name = "__describe", hide = true)]
    DescribeHere {
        /// The library
        path: PathBuf,
    },
    /// Write a crate with a small strategy in it, ready to be changed
    New(new::Arguments),
    /// Show what a plugin would have chosen in a run that there is, without training
    Replay(replay::Arguments),
    /// Answer what the plugin of the library at a path is asked, for the process that asks
    #[command(name = "__serve", hide = true)]
    ServeHere {
        /// The library
        path: PathBuf,
        /// Memory that it may take
        #[arg(long)]
        memory_mib: u64,
    },
    /// Check that a plugin keeps the rules of the boundary
    Check {
        /// The path of its library
        path: PathBuf,
        /// Parameters to check it with, as a JSON object; made up from its schema by default
        #[arg(long)]
        parameters: Option<String>,
        /// Check it in processes of its own, as `isolation = "process"` runs it
        #[arg(long)]
        isolated: bool,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does what the subcommand says.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    match &arguments.command {
        Command::List { json } => list(*json, common),
        Command::DescribeHere { path } => print(&plugin::describe_here(path)?),
        Command::ServeHere { path, memory_mib } => plugin::serve_here(path, *memory_mib),
        Command::Info { name, json } => info(name, *json, common),
        Command::New(arguments) => new::run(arguments, common),
        Command::Replay(arguments) => replay::run(arguments, common),
        Command::Check {
            path,
            parameters,
            isolated,
            json,
        } => check(path, parameters.as_deref(), *isolated, *json),
    }
}

fn list(as_json: bool, common: &Common) -> Result<()> {
    let path = PluginPath::new(&common.plugin_dir, &[])?;
    let (found, broken) = path.discover();
    if as_json {
        let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
        let answer = json!({"plugins": found, "broken": broken, "searched": path.folders()});
        return print_json(&answer);
    }
    for error in broken {
        crate::train::say(&format!("not usable: {error}"));
    }
    let mut table = table(&["name", "kind", "version", "description", "library"]);
    for plugin in found {
        let manifest = plugin.manifest;
        table.add_row([
            manifest.name,
            manifest.kind.to_string(),
            manifest.version,
            manifest.description,
            plugin.path.display().to_string(),
        ]);
    }
    print(&table.trim_fmt())
}

fn info(name: &str, as_json: bool, common: &Common) -> Result<()> {
    let found = plugin::describe(&PluginPath::new(&common.plugin_dir, &[])?, name)?;
    if as_json {
        return print_json(&found);
    }
    let texts: Vec<String> = found.iter().map(info::described).collect();
    print(&texts.join("\n\n"))
}

fn check(
    path: &std::path::Path,
    parameters: Option<&str>,
    isolated: bool,
    as_json: bool,
) -> Result<()> {
    let parameters = parameters
        .map(|text| {
            serde_json::from_str::<Value>(text)
                .ok()
                .filter(Value::is_object)
                .ok_or_else(|| {
                    Error::user(format!("--parameters {text}: not a JSON object"))
                        .help("an example: --parameters '{\"k\": \"50%\"}'")
                })
        })
        .transpose()?;
    let isolation = isolated.then(Isolation::default);
    let reports = plugin::check(path, parameters.as_ref(), isolation.as_ref())?;
    if as_json {
        print_json(&reports)?;
    }
    for report in reports.iter().filter(|_| !as_json) {
        let mut table = table(&["", "rule", "what was found"]);
        for check in &report.checks {
            let mark = if check.passed { "ok" } else { "BROKEN" };
            table.add_row([mark, check.name, &check.detail]);
        }
        print(&format!(
            "{} {} ({}), checked with {}\n\n{}",
            report.manifest.name,
            report.manifest.version,
            report.manifest.kind,
            report.parameters,
            table.trim_fmt()
        ))?;
    }
    let checks = reports.iter().flat_map(|report| &report.checks);
    let broken = checks.filter(|check| !check.passed).count();
    if broken > 0 {
        return Err(
            Error::user(format!("{} breaks {broken} rule(s)", path.display()))
                .help("docs/plugins.md explains the rules of the boundary"),
        );
    }
    Ok(())
}
