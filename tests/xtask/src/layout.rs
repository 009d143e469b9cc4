//! The files and where they lie, under whatever prefix:
//!
//! | | |
//! | --- | --- |
//! | `bin/dynalora` | the program |
//! | `lib/dynalora/plugins` | the plugins |
//! | `share/dynalora` | recipes, documentation, licences, and `SHA256SUMS` of all |
//! | `share/man/man1`, and where shells look | manual and completions, as the program writes them |

use std::path::{Component, Path, PathBuf};
use std::process::Command;

use miette::{Context, IntoDiagnostic, Result, bail};

use crate::build::{Built, Project, run, said};
use crate::{digest, licences, make, read, write};

/// Where the plugins lie.
pub const PLUGINS: &str = "lib/dynalora/plugins";
/// Where lies what belongs to the program and no other program looks for.
pub const SHARE: &str = "share/dynalora";
/// Digests of all files but itself, as `sha256sum` reads them in the prefix.
const SUMS: &str = "share/dynalora/SHA256SUMS";

/// The most that the program may take, in bytes.
const PROGRAM_AT_MOST: u64 = 66_000_000;
/// The most that a plugin may take, in bytes.
const PLUGIN_AT_MOST: u64 = 1_000_000;

/// Lays everything out under `root`.
pub fn lay_out(project: &Project, built: &Built, root: &Path) -> Result<()> {
    let program = root.join("bin/dynalora");
    copy(&built.program, &program)?;
    strip(&program)?;
    for plugin in &built.plugins {
        let to = root
            .join(PLUGINS)
            .join(plugin.file_name().unwrap_or_default());
        copy(plugin, &to)?;
        strip(&to)?;
    }
    let share = root.join(SHARE);
    // `configs` names `../docs/recipe.schema.json`.
    for folder in ["configs", "docs"] {
        for file in files(&project.root.join(folder))? {
            copy(
                &project.root.join(folder).join(&file),
                &share.join(folder).join(&file),
            )?;
        }
    }
    for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&project.root.join(file), &share.join(file))?;
    }
    write(&share.join("THIRD-PARTY.txt"), licences::text(project)?)?;
    of_the_program(&program, root)?;
    let mut sums = String::new();
    for file in files(root)? {
        sums.push_str(&format!(
            "{}  {}\n",
            digest(&read(&root.join(&file))?),
            slashes(&file)
        ));
    }
    write(&root.join(SUMS), sums)
}

/// What the program writes of itself.
fn of_the_program(program: &Path, root: &Path) -> Result<()> {
    run(Command::new(program)
        .arg("man")
        .arg(root.join("share/man/man1")))?;
    for (shell, file) in [
        ("bash", "share/bash-completion/completions/dynalora"),
        ("zsh", "share/zsh/site-functions/_dynalora"),
        ("fish", "share/fish/vendor_completions.d/dynalora.fish"),
    ] {
        let file = root.join(file);
        make(file.parent().unwrap_or(root))?;
        write(
            &file,
            said(Command::new(program).args(["completions", shell]))?,
        )?;
    }
    Ok(())
}

/// Puts the files under `from` under `prefix`, in place of those of an earlier install.
pub fn replace(from: &Path, prefix: &Path) -> Result<()> {
    let sums = prefix.join(SUMS);
    if sums.is_file() {
        let earlier = String::from_utf8_lossy(&read(&sums)?).into_owned();
        let lines = earlier.lines().filter_map(|line| line.split_once("  "));
        let files: Vec<&Path> = lines.map(|(_, file)| Path::new(file)).collect();
        let inside = |file: &&Path| {
            let mut parts = file.components();
            parts.all(|part| matches!(part, Component::Normal(_)))
        };
        if let Some(file) = files.iter().find(|file| !inside(file)) {
            bail!(
                "{} names {}, which no install writes",
                sums.display(),
                file.display()
            );
        }
        for file in files {
            remove(&prefix.join(file))?;
        }
    }
    for file in files(from)? {
        let to = prefix.join(&file);
        // A program that runs cannot be written over, but taken away.
        remove(&to)?;
        copy(&from.join(&file), &to)?;
    }
    Ok(())
}

fn remove(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} cannot be removed", file.display())),
        _ => Ok(()),
    }
}

/// Sizes of the program and the plugins, in bytes, by their paths under `root`.
pub fn sizes(root: &Path) -> Result<Vec<(String, u64)>> {
    let mut sizes = Vec::new();
    for folder in ["bin", PLUGINS] {
        for file in files(&root.join(folder))? {
            let path = Path::new(folder).join(file);
            let size = std::fs::metadata(root.join(&path)).into_diagnostic()?.len();
            sizes.push((slashes(&path), size));
        }
    }
    Ok(sizes)
}

/// Refuses what is larger than it may be.
pub fn check_sizes(root: &Path) -> Result<()> {
    for (path, size) in sizes(root)? {
        let most = if path.starts_with("bin/") {
            PROGRAM_AT_MOST
        } else {
            PLUGIN_AT_MOST
        };
        if size > most {
            bail!("{path} has {size} bytes, more than {most}");
        }
    }
    Ok(())
}

/// Files under `folder`, at any depth, by their paths from there, in order.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    fn collect(folder: &Path, base: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                collect(&path, base, into)?;
            } else if let Ok(path) = path.strip_prefix(base) {
                into.push(path.to_owned());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    collect(folder, folder, &mut found)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be read", folder.display()))?;
    found.retain(|path| {
        !path
            .components()
            .any(|part| part.as_os_str() == "__pycache__")
    });
    found.sort();
    Ok(found)
}

/// A path with slashes, whatever the system has.
pub fn slashes(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make(to.parent().unwrap_or(to))?;
    std::fs::copy(from, to)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be copied to {}", from.display(), to.display()))?;
    Ok(())
}

/// Takes away the names that only a debugger reads; those that a library is loaded by stay.
fn strip(file: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    if cfg!(target_os = "macos") {
        strip.arg("-x");
    }
    run(strip.arg(file))
        .wrap_err("`strip` comes with the linker: on Debian the package binutils has it")
}
