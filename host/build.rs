//! Tells the program what it was built from: the commit, where git knows it, and a digest of the sources, which also
//! tells apart what was changed since. Asked anew only when the sources change, so that a commit builds nothing.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = package.join("..");
    let watched = [
        package.join("src"),
        root.join("plugin-api/src"),
        root.join("Cargo.lock"),
    ];
    let mut files = Vec::new();
    for path in &watched {
        // One that is not there would count as changed for ever.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        collect(path, &mut files);
    }
    println!("cargo::rerun-if-changed=build.rs");
    files.sort();
    // Not for safety, only to tell builds apart.
    let mut hasher = DefaultHasher::new();
    for file in files {
        hasher.write(&std::fs::read(&file).unwrap_or_default());
        hasher.write_u8(0xff);
    }
    println!("cargo::rustc-env=DYNALORA_SOURCES={:016x}", hasher.finish());
    println!(
        "cargo::rustc-env=DYNALORA_COMMIT={}",
        commit(&root).unwrap_or_default()
    );
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(path) else {
        files.push(path.to_owned());
        return;
    };
    for entry in entries.flatten() {
        collect(&entry.path(), files);
    }
}

/// The commit of the repository that `root` is the top of; none if it only lies in one.
fn commit(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    (top.canonicalize().ok()? == root.canonicalize().ok()?).then(|| {
        git(&[
            "describe",
            "--always",
            "--dirty",
            "--exclude=*",
            "--abbrev=40",
        ])
    })?
}
