//! `dynalora recipe`

mod new;

use std::path::PathBuf;

use clap::Subcommand;

use super::{Common, print, print_json};
use crate::error::Result;
use crate::recipe::Recipe;
use crate::sweep;

/// Arguments of `dynalora recipe`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a recipe to start from
    New(Box<new::Arguments>),
    /// Say whether recipes are right, without reading model or data
    Check(Check),
    /// Print a recipe with every default written out
    Show(Show),
    /// Print the JSON Schema of recipes, for editors
    Schema(Schema),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The recipes, TOML files
    #[arg(required = true)]
    recipes: Vec<PathBuf>,
    /// Replace a value in each
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Replace a value
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Schema {
    /// That of sweeps instead
    #[arg(long)]
    sweep: bool,
}

/// Does what the subcommand says.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    match &arguments.command {
        Command::New(new) => new::write(new, common),
        Command::Check(check) => {
            for path in &check.recipes {
                let recipe = Recipe::load(path, &check.set)?;
                for warning in recipe.warnings() {
                    tracing::warn!("{}: {warning}", path.display());
                }
                print(&format!("{}: right", path.display()))?;
            }
            Ok(())
        }
        Command::Show(show) => print(Recipe::load(&show.recipe, &show.set)?.to_toml()?.trim_end()),
        Command::Schema(Schema { sweep: false }) => print_json(&Recipe::schema()),
        Command::Schema(Schema { sweep: true }) => print_json(&sweep::File::schema()),
    }
}
