//! What the end-to-end suites share: fixtures, golden values and the built program with its plugins.

pub mod chat;
pub mod drawn;
pub mod engines;
pub mod entries;
mod golden;
pub mod hub;
mod outside;
pub mod pictures;
mod plan;
pub mod ranks;
mod said;
mod scene;
pub mod words;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dynalora::model::{ModelFolder, fetch};
pub use golden::{Golden, Run, Signals, Training};
pub use outside::{build_outside, library, outside, outside_with, plugin_in_c};
pub use plan::plan;
pub use said::{contains, flat, said, text};
pub use scene::{Scene, module_paths};

/// The folder of this package.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A committed fixture.
pub fn fixture(path: &str) -> PathBuf {
    package().join("fixtures").join(path)
}

/// Names, by commas, what this machine is known to have of `data` (the shared data sets), `minilm`, `python`, `gpu`
/// (a driver for Vulkan, if only software), `nvrtc` (CUDA's run-time compiler), `slurm` (its daemons and munge), `hq`
/// (HyperQueue) and `mpi` (mpirun, and the program built with it): a test that does not find it fails instead of passing with nothing seen. `.ci/run` sets it.
pub const REQUIRE: &str = "DYNALORA_REQUIRE";

/// What a test does that lacks something it cannot make itself: it says so and passes, or fails where
/// [`REQUIRE`] says that `what` is here.
pub fn skip<T>(what: &str, why: impl std::fmt::Display) -> Option<T> {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    must_skip(what, &required, &why.to_string());
    eprintln!("skipped, for want of {what}: {why}");
    None
}

fn must_skip(what: &str, required: &str, why: &str) {
    let mut words = required.split(',').map(str::trim);
    assert!(
        !words.any(|word| word == what),
        "{REQUIRE} says that {what} is here, but {why}"
    );
}

/// The real data that some tests use, unless it is [skipped](skip).
pub fn shared_data(path: &str) -> Option<PathBuf> {
    let found = package().join("../../shared/data").join(path);
    if found.exists() {
        return Some(found);
    }
    skip("data", format_args!("{} is not there", found.display()))
}

/// What has cargo build with the features that this package was built with.
fn features() -> Vec<String> {
    let (cuda, wgpu, mpi) = (
        cfg!(feature = "cuda"),
        cfg!(feature = "wgpu"),
        cfg!(feature = "mpi"),
    );
    let all = [
        (!cuda, "dynalora/cpu"),
        (wgpu, "dynalora-tests/wgpu"),
        (mpi, "dynalora-tests/mpi"),
    ];
    let all = all.into_iter().filter(|(wanted, _)| *wanted);
    let all: Vec<&str> = all.map(|(_, feature)| feature).collect();
    let mut arguments = Vec::new();
    if !cuda {
        arguments.push("--no-default-features".to_owned());
    }
    if !all.is_empty() {
        arguments.extend(["--features".to_owned(), all.join(",")]);
    }
    arguments
}

/// The folder with the built program and the plugins, after building what is stale. `cargo test` alone
/// builds neither the program nor the plugins' libraries.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        // The whole workspace, as `cargo build` does: another selection may have other features, and build
        // everything again.
        build.args(["build", "--quiet", "--workspace"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        build.args(features());
        // What cargo tells this test of its package would be news to a build script that asks for it, as that of
        // `ring` does, and the host would be built again.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                build.env_remove(&name);
            }
        }
        let status = build
            .current_dir(package().join(".."))
            .status()
            .expect("cargo runs");
        assert!(
            status.success(),
            "cargo could not build the program and the plugins"
        );
        // A test's own program lies in `deps` beneath the folder that has the rest.
        let test = std::env::current_exe().expect("a test knows its own path");
        test.ancestors()
            .nth(2)
            .expect("target/release/deps/test")
            .to_owned()
    })
}

/// The built program, ready for arguments.
pub fn dynalora() -> Command {
    let mut command = Command::new(built().join("dynalora"));
    command
        .env_remove("DYNALORA_PLUGIN_PATH")
        .env_remove("RUST_LOG");
    command
}

/// A local model folder.
pub fn model_folder(path: &Path) -> ModelFolder {
    ModelFolder::local(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The MiniLM checkpoint, fetched once, unless it is [skipped](skip).
pub fn minilm() -> Option<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match fetch::quickstart_model() {
        Ok(folder) => Ok(folder.dir),
        Err(error) => Err(format!("the checkpoint cannot be had: {error}")),
    });
    match found {
        Ok(folder) => Some(folder.clone()),
        Err(why) => skip("minilm", why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_failure_where_the_thing_is_required() {
        for required in ["data", "minilm, data", "data,minilm"] {
            assert!(
                std::panic::catch_unwind(|| must_skip("data", required, "it is gone")).is_err()
            );
        }
        for required in ["", "minilm", "database"] {
            must_skip("data", required, "it is gone");
        }
    }
}
