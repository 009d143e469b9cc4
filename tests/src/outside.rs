//! Plugins that tests compile: crates of their own, outside the workspace, as their authors do it, and libraries in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Scene, built, package, skip};

/// The file name of a library.
pub fn library(name: &str) -> String {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{prefix}{}{suffix}", name.replace('-', "_"))
}

/// As [`outside`], with the library in the scene's folder `plugins`.
pub fn build_outside(scene: &Scene, name: &str, source: &str) -> PathBuf {
    let file = library(name);
    std::fs::create_dir_all(scene.path("plugins")).expect("a temporary folder");
    let copy = scene.path("plugins").join(&file);
    std::fs::copy(outside(name, source).join(&file), &copy).expect("the built library");
    copy
}

/// Builds a plugin crate of this one file against today's plugin-api; the folder with its library.
pub fn outside(name: &str, source: &str) -> PathBuf {
    outside_with(name, source, &package().join("../plugin-api"))
}

/// Builds a plugin crate of this one file against the plugin-api in a folder; the folder with its library.
pub fn outside_with(name: &str, source: &str, api: &Path) -> PathBuf {
    let target = built().join("outside");
    let folder = target.join("crates").join(name);
    std::fs::create_dir_all(folder.join("src")).expect("a folder of its own");
    let api = api.canonicalize().expect("it is there");
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.3.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\n[dependencies]\n\
         dynalora-plugin-api = {{ path = {api:?} }}\n"
    );
    // Left alone where it is the same, so that nothing is built again.
    for (file, text) in [("Cargo.toml", manifest.as_str()), ("src/lib.rs", source)] {
        let path = folder.join(file);
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            std::fs::write(path, text).expect("it can be written");
        }
    }
    // The workspace's lock, so that nothing new is fetched.
    std::fs::copy(package().join("../Cargo.lock"), folder.join("Cargo.lock")).expect("a lock");
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "--offline",
            "--manifest-path",
        ])
        .arg(folder.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} does not build:\n{said}");
    let plugins = target.join("plugins").join(name);
    std::fs::create_dir_all(&plugins).expect("a folder of its own");
    let file = library(name);
    let (from, to) = (target.join("release").join(&file), plugins.join(&file));
    std::fs::copy(from, to).expect("the built library");
    plugins
}

/// Compiles a plugin in C into `folder`, unless there is [no compiler](skip); where its library is.
pub fn plugin_in_c(folder: &Path, name: &str, source: &str) -> Option<PathBuf> {
    std::fs::create_dir_all(folder).expect("a folder of its own");
    let (file, path) = (folder.join(format!("{name}.c")), folder.join(library(name)));
    std::fs::write(&file, source).expect("it can be written");
    let compiled = Command::new("cc")
        .args([
            "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC",
        ])
        // As a careful library is built: only what is exported is seen.
        .args(["-fvisibility=hidden", "-I"])
        .arg(package().join("../plugin-api/include"))
        .arg("-o")
        .args([&path, &file])
        .output();
    match compiled {
        Err(error) => skip("cc", format_args!("there is no compiler of C: {error}")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} does not compile:\n{said}");
            Some(path)
        }
    }
}
