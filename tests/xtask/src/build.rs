//! What cargo knows of the workspace, and what it builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{Context, IntoDiagnostic, Result, bail, miette};
use serde_json::Value;

/// The workspace.
pub struct Project {
    /// Its folder.
    pub root: PathBuf,
    /// The program's version.
    pub version: String,
    /// What the program is for, in a line.
    pub description: String,
    /// What it is built for, such as `x86_64-unknown-linux-gnu`.
    pub target: String,
    /// All of `cargo metadata`, for the licences.
    pub metadata: Value,
    /// The packages of the shipped plugins, with the names of their libraries.
    plugins: Vec<(String, String)>,
    lean: bool,
}

/// What is shipped of what cargo builds.
pub struct Built {
    /// The program.
    pub program: PathBuf,
    /// The plugins.
    pub plugins: Vec<PathBuf>,
}

impl Project {
    /// Asks cargo.
    pub fn read(lean: bool) -> Result<Project> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().into_diagnostic()?;
        let version = said(Command::new("rustc").arg("-vV").current_dir(&root))?;
        let target = version.lines().find_map(|line| line.strip_prefix("host: "));
        let target = target
            .ok_or_else(|| miette!("`rustc -vV` does not say what it builds for"))?
            .to_owned();
        let mut ask = cargo(&root, &["metadata", "--locked", "--format-version", "1"]);
        ask.args(["--filter-platform", &target]);
        ask.args(features(lean));
        let metadata: Value = serde_json::from_str(&said(&mut ask)?)
            .into_diagnostic()
            .wrap_err("what `cargo metadata` says is no JSON")?;

        let packages = list(&metadata["packages"]);
        let beneath = root.join("plugins");
        let mut plugins = Vec::new();
        for package in packages {
            let manifest = Path::new(text(&package["manifest_path"]));
            let mut targets = list(&package["targets"]).iter();
            let library = targets.find(|target| list(&target["kind"]).contains(&"cdylib".into()));
            if let (true, Some(library)) = (manifest.starts_with(&beneath), library) {
                let file = text(&library["name"]).replace('-', "_");
                plugins.push((text(&package["name"]).to_owned(), file));
            }
        }
        plugins.sort();
        let program = packages
            .iter()
            .find(|package| package["name"] == "dynalora");
        let Some(program) = program.filter(|_| !plugins.is_empty()) else {
            bail!(
                "{} has no package `dynalora`, or no plugins",
                root.display()
            );
        };
        Ok(Project {
            version: text(&program["version"]).to_owned(),
            description: text(&program["description"]).to_owned(),
            root,
            target,
            plugins,
            lean,
            metadata,
        })
    }

    /// Builds the program as everybody does, and the plugins once more, small (`[profile.plugin]`).
    pub fn build(&self) -> Result<Built> {
        let mut program = cargo(
            &self.root,
            &["build", "--release", "--workspace", "--locked"],
        );
        run(program.args(features(self.lean)))?;
        let mut plugins = cargo(&self.root, &["build", "--profile", "plugin", "--locked"]);
        for (package, _) in &self.plugins {
            plugins.args(["--package", package]);
        }
        run(&mut plugins)?;
        let target = PathBuf::from(text(&self.metadata["target_directory"]));
        self.built(&target.join("release"), &target.join("plugin"))
    }

    /// What `cargo tree` says the program and the plugins are linked with, a `NAME vVERSION` a line.
    pub fn tree(&self) -> Result<String> {
        let edges = "normal,no-proc-macro";
        let mut tree = cargo(&self.root, &["tree", "--locked", "--edges", edges]);
        tree.args([
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--package",
            "dynalora",
        ]);
        for (package, _) in &self.plugins {
            tree.args(["--package", package]);
        }
        said(tree.args(features(self.lean)))
    }

    /// What lies in these folders, whoever built it.
    pub fn built(&self, program: &Path, plugins: &Path) -> Result<Built> {
        let found = |path: PathBuf| match path.is_file() {
            true => Ok(path),
            false => Err(miette!(
                "{} is not there: build it first, or leave --built out",
                path.display()
            )),
        };
        use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
        let libraries = self
            .plugins
            .iter()
            .map(|(_, name)| found(plugins.join(format!("{DLL_PREFIX}{name}{DLL_SUFFIX}"))));
        Ok(Built {
            program: found(program.join(format!("dynalora{EXE_SUFFIX}")))?,
            plugins: libraries.collect::<Result<_>>()?,
        })
    }
}

/// A string of cargo's answer; empty where there is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A list in cargo's answer; an empty one where there is none.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn features(lean: bool) -> &'static [&'static str] {
    match lean {
        true => &["--no-default-features", "--features", "dynalora/cpu"],
        false => &[],
    }
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(root);
    cargo
}

/// Runs a command to its end, which must be a good one.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().into_diagnostic();
    let status = status.wrap_err_with(|| format!("{command:?} cannot be started"))?;
    match status.success() {
        true => Ok(()),
        false => Err(miette!("{command:?} ended with {status}")),
    }
}

/// The same, and what it prints.
pub fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .into_diagnostic();
    let output = output.wrap_err_with(|| format!("{command:?} cannot be started"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    String::from_utf8(output.stdout)
        .into_diagnostic()
        .wrap_err_with(|| format!("{command:?} prints no text"))
}
