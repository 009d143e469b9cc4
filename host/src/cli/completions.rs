//! `dynalora completions` and `dynalora man`

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Arguments as Program, Common, print};
use crate::error::{Error, Result};

/// Arguments of `dynalora completions`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints what the shell reads to complete commands and flags.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Program::command(),
        "dynalora",
        &mut script,
    );
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Arguments of `dynalora man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Where the pages go, a file for each command
    folder: PathBuf,
}

/// Writes the manual's pages.
pub fn man(arguments: &Man, _: &Common) -> Result<()> {
    let folder = &arguments.folder;
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Program::command(), folder));
    written.map_err(|error| {
        Error::user(format!("cannot write the manual to {}", folder.display()))
            .because(error)
            .help("check that the folder is there and that you may write into it")
    })
}
