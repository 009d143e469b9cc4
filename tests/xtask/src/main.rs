//! `cargo xtask`: packs the program, its plugins and what belongs to them.
//!
//! All three commands lay out the same files. A prefix has them as they are, an archive in one folder, a wheel where
//! pip puts them: the program finds its plugins in `../lib/dynalora/plugins` from its own folder in each.

mod archive;
mod build;
mod layout;
mod licences;
mod wheel;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use miette::{Context, IntoDiagnostic, Result};
use sha2::{Digest, Sha256};

/// Packs what is built
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an archive, DIR/dynalora-VERSION-TARGET.tar.gz, and its checksum
    Dist {
        /// Where it goes
        #[arg(long, value_name = "DIR", default_value = "target/dist")]
        output: PathBuf,
        #[command(flatten)]
        what: What,
    },
    /// Install under a prefix: P/bin, P/lib/dynalora, P/share
    Install {
        /// The prefix, such as ~/.local
        #[arg(long, value_name = "P")]
        prefix: PathBuf,
        #[command(flatten)]
        what: What,
    },
    /// Write a Python wheel, DIR/dynalora-VERSION-py3-none-PLATFORM.whl
    Wheel {
        /// Where it goes
        #[arg(long, value_name = "DIR", default_value = "target/dist")]
        output: PathBuf,
        #[command(flatten)]
        what: What,
    },
}

/// What is packed.
#[derive(Clone, Debug, clap::Args)]
struct What {
    /// Without CUDA
    #[arg(long)]
    lean: bool,
    /// Build nothing: take program and plugins from this folder, such as target/release, and hold them to no size
    #[arg(long, value_name = "DIR")]
    built: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Dist { output, what } => {
            let project = build::Project::read(what.lean)?;
            let name = format!("dynalora-{}-{}", project.version, project.target);
            let folder = scratch()?;
            let root = folder.path().join(&name);
            pack(&project, &what, &root)?;
            make(&output)?;
            let archive = output.join(format!("{name}.tar.gz"));
            archive::write(&root, &archive)?;
            let sum = format!("{}  {name}.tar.gz\n", digest(&read(&archive)?));
            write(&output.join(format!("{name}.tar.gz.sha256")), &sum)?;
            println!("{}", archive.display());
        }
        Command::Install { prefix, what } => {
            let project = build::Project::read(what.lean)?;
            make(&prefix)?;
            let prefix = prefix.canonicalize().into_diagnostic()?;
            let folder = scratch()?;
            pack(&project, &what, folder.path())?;
            layout::replace(folder.path(), &prefix)?;
            println!("{}", prefix.join("bin/dynalora").display());
        }
        Command::Wheel { output, what } => {
            let project = build::Project::read(what.lean)?;
            let folder = scratch()?;
            pack(&project, &what, folder.path())?;
            make(&output)?;
            let wheel = wheel::write(&project, folder.path(), &output)?;
            println!("{}", wheel.display());
        }
    }
    Ok(())
}

/// Builds, and lays everything out under `root`.
fn pack(project: &build::Project, what: &What, root: &Path) -> Result<()> {
    let built = match &what.built {
        Some(folder) => project.built(folder, folder)?,
        None => project.build()?,
    };
    layout::lay_out(project, &built, root)?;
    for (path, size) in layout::sizes(root)? {
        println!("{:>7.2} MB  {path}", size as f64 / 1e6);
    }
    match what.built {
        Some(_) => Ok(()),
        None => layout::check_sizes(root),
    }
}

fn scratch() -> Result<tempfile::TempDir> {
    tempfile::tempdir()
        .into_diagnostic()
        .wrap_err("no temporary folder can be made")
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .into_diagnostic()
        .wrap_err_with(|| format!("the folder {} cannot be made", folder.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be read", path.display()))
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, text)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be written", path.display()))
}

/// SHA-256 in hexadecimal digits.
fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
