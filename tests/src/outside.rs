//! Plugins compiled outside the workspace, as their authors do it.

use std::path::PathBuf;
use std::process::Command;

use crate::{Scene, built, package};

/// Builds a plugin crate `name` with this `lib.rs`, which depends on plugin-api alone, and puts the library into the
/// scene's folder `plugins`.
pub fn build_outside(scene: &Scene, name: &str, source: &str) -> PathBuf {
    let api = package().join("../plugin-api");
    let api = api.canonicalize().expect("it is there");
    std::fs::create_dir_all(scene.path(name).join("src")).expect("a temporary folder");
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.3.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\n[dependencies]\ndynalora-plugin-api = {{ path = {api:?} }}\n"
    );
    scene.write(&format!("{name}/Cargo.toml"), &manifest);
    scene.write(&format!("{name}/src/lib.rs"), source);
    // The workspace's lock, so that nothing new is fetched; a target folder that is kept between tests.
    let lock = scene.path(&format!("{name}/Cargo.lock"));
    std::fs::copy(package().join("../Cargo.lock"), lock).expect("a lock");
    let target = built().join("outside");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--manifest-path"])
        .arg(scene.path(&format!("{name}/Cargo.toml")))
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the plugin {name} does not build");
    let file = format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    );
    std::fs::create_dir_all(scene.path("plugins")).expect("a temporary folder");
    let library = scene.path("plugins").join(&file);
    std::fs::copy(target.join("release").join(&file), &library).expect("the built library");
    library
}
