//! The licences of everything that is compiled into the program and the plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use miette::Result;
use serde_json::Value;

use crate::build::{Project, list, text as string};

/// Names that files with terms begin with.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];
/// Sources in other languages lie so deep in a package, their terms beside them.
const DEPTH: usize = 4;

/// A list of all packages with the terms each is under, then every text there is once, with the packages that it is of.
pub fn text(project: &Project) -> Result<String> {
    let mut names = String::new();
    let mut texts = BTreeMap::<String, BTreeSet<String>>::new();
    for package in linked(project)? {
        let name = format!(
            "{} {}",
            string(&package["name"]),
            string(&package["version"])
        );
        let terms = match string(&package["license"]) {
            "" => "see its text below",
            terms => terms,
        };
        names.push_str(&format!(
            "{name}: {terms}; {}\n",
            string(&package["repository"])
        ));
        let manifest = PathBuf::from(string(&package["manifest_path"]));
        let mut found = Vec::new();
        collect(
            manifest.parent().unwrap_or(Path::new(".")),
            DEPTH,
            &mut found,
        );
        for file in found {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let text = text.replace("\r\n", "\n").trim().to_owned();
            if !text.is_empty() {
                texts.entry(text).or_default().insert(name.clone());
            }
        }
    }
    let mut whole = format!(
        "dynalora {} holds code of these packages, and of the Rust standard library (MIT OR Apache-2.0;\n\
         https://github.com/rust-lang/rust). The texts that come with them follow.\n\n{names}",
        project.version
    );
    for (text, packages) in texts {
        let packages: Vec<String> = packages.into_iter().collect();
        whole.push_str(&format!(
            "\n{}\n{}\n\n{text}\n",
            "=".repeat(80),
            packages.join(", ")
        ));
    }
    Ok(whole)
}

/// The packages that the program and the plugins are linked with, but for the workspace's own, by name. `cargo metadata`
/// knows where they lie, and resolves more than is built; `cargo tree` knows which are.
fn linked(project: &Project) -> Result<Vec<&Value>> {
    let tree = project.tree()?;
    let names: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .collect();
    let mut linked: Vec<&Value> = list(&project.metadata["packages"])
        .iter()
        .filter(|package| {
            let name = format!(
                "{} v{}",
                string(&package["name"]),
                string(&package["version"])
            );
            !package["source"].is_null() && names.contains(name.as_str())
        })
        .collect();
    linked.sort_by_key(|package| (string(&package["name"]), string(&package["version"])));
    Ok(linked)
}

fn collect(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, into);
        } else if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            into.push(path);
        }
    }
}
