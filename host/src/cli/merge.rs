//! `dynalora merge`

use std::path::{Path, PathBuf};

use burn_flex::FlexDevice;

use super::{Common, print};
use crate::error::{Error, Result};
use crate::trained::{Purpose, Trained};

/// Arguments of `dynalora merge`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A run's folder, or a PEFT adapter's
    target: PathBuf,
    /// The folder to write, which is not there yet or empty
    #[arg(short, long)]
    output: PathBuf,
    /// The recipe whose model to use; a run has its own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe that acts on the answers, such as model.name
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Merges an adapter into its base model and writes that as a folder for Transformers.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let output = &arguments.output;
    refuse_full(output)?;
    let recipe = arguments.recipe.as_deref();
    let trained = Trained::open(&arguments.target, recipe, &arguments.set, Purpose::Predict)?;
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let cannot = |what: &str, error: std::io::Error| {
        Error::failure(format!("cannot {what} {}: {error}", output.display()))
    };
    // Beside its place, so that a folder of this name is whole.
    std::fs::create_dir_all(parent).map_err(|error| cannot("make the folder of", error))?;
    let fresh = tempfile::Builder::new()
        .prefix(".merge-")
        .tempdir_in(parent)
        .map_err(|error| cannot("write", error))?;
    trained.merge(fresh.path(), &FlexDevice)?;
    let fresh = fresh.keep();
    let moved = open_to_all(&fresh).and_then(|()| {
        if output.exists() {
            std::fs::remove_dir(output)?;
        }
        std::fs::rename(&fresh, output)
    });
    if let Err(error) = moved {
        // Nothing is left that nobody asked for.
        let _ = std::fs::remove_dir_all(&fresh);
        return Err(cannot("write", error));
    }
    print(&format!("merged into {}", output.display()))
}

fn refuse_full(output: &Path) -> Result<()> {
    let is_empty = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !output.exists(),
    };
    match is_empty {
        true => Ok(()),
        false => Err(
            Error::user(format!("{} is there, and not empty", output.display()))
                .help("name another folder for the merged model"),
        ),
    }
}

/// A temporary folder is its owner's alone.
#[cfg(unix)]
fn open_to_all(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn open_to_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}
