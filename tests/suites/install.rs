//! What is packed: a prefix, an archive and a wheel, from what is built, each used where it was put.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dynalora_tests::{Scene, built, minilm, package, said, skip};
use serde_json::Value;

/// Packs what is built already.
fn xtask(arguments: &[&str]) -> PathBuf {
    let mut command = Command::new(built().join("xtask"));
    command.args(arguments).arg("--built").arg(built());
    if !cfg!(feature = "cuda") {
        command.arg("--lean");
    }
    let output = good(&mut command);
    // The last line says what came of it.
    PathBuf::from(output.lines().last().expect("a path"))
}

fn good(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}\n{}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// The program as a user of it has it, with nothing of this checkout around it.
fn of_a_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_remove("DYNALORA_PLUGIN_PATH")
        .env_remove("RUST_LOG")
        .env_remove("XDG_DATA_HOME");
    command
}

/// Asserts that `program` finds every plugin there is in the source, all of them in `plugins`.
fn finds_its_plugins(program: &Path, plugins: &Path) {
    let listed = good(of_a_user(program).args(["plugins", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["broken"], serde_json::json!([]));
    let plugins = plugins.canonicalize().expect("a folder");
    let mut found: Vec<String> = (listed["plugins"].as_array().expect("a list").iter())
        .map(|plugin| {
            let library = Path::new(plugin["path"].as_str().expect("a path"));
            assert_eq!(library.parent(), Some(plugins.as_path()));
            library
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    // One that is a scorer and an allocator is listed as both.
    found.dedup();
    let sources = std::fs::read_dir(package().join("../plugins")).expect("the source");
    let mut shipped: Vec<String> = sources
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .replace('-', "_")
        })
        .map(|name| format!("{}dynalora_{name}", std::env::consts::DLL_PREFIX))
        .collect();
    found.sort();
    shipped.sort();
    assert_eq!(found, shipped);
}

/// Asserts that the files under `root` are those of the list there.
fn is_whole(root: &Path) {
    good(
        Command::new("sha256sum")
            .args(["--quiet", "--check", "share/dynalora/SHA256SUMS"])
            .current_dir(root),
    );
    for file in [
        "share/man/man1/dynalora-train.1",
        "share/bash-completion/completions/dynalora",
        "share/zsh/site-functions/_dynalora",
        "share/fish/vendor_completions.d/dynalora.fish",
        "share/dynalora/LICENSE-MIT",
        "share/dynalora/LICENSE-APACHE",
        "share/dynalora/configs/sweeps/methods-stsb.toml",
    ] {
        assert!(root.join(file).is_file(), "{file} is missing");
    }
    let terms =
        std::fs::read_to_string(root.join("share/dynalora/THIRD-PARTY.txt")).expect("terms");
    for part in [
        "burn-flex 0.21.0: MIT OR Apache-2.0",
        "libmimalloc-sys",
        "Microsoft Corporation",
        "fast-glob",
    ] {
        assert!(terms.contains(part), "{part} is not among the terms");
    }
    // What only tests, packs or builds is no part of the program.
    for part in ["\nproptest ", "\ntar ", "\ncbindgen "] {
        assert!(!terms.contains(part), "{part} is among the terms");
    }
    let recipe = root.join("share/dynalora/configs/quickstart.toml");
    good(of_a_user(&root.join("bin/dynalora")).args(["recipe", "check", path(&recipe)]));
}

/// A folder on another path than the one it was installed to.
#[test]
fn an_installed_program_finds_its_plugins_wherever_its_prefix_goes() {
    let scene = Scene::new();
    let prefix = scene.path("one");
    let program = xtask(&["install", "--prefix", path(&prefix)]);
    assert_eq!(
        program,
        prefix
            .canonicalize()
            .expect("a folder")
            .join("bin/dynalora")
    );
    is_whole(&prefix);
    let plugins = |prefix: &Path| prefix.join("lib/dynalora/plugins");
    finds_its_plugins(&program, &plugins(&prefix));

    // Over itself: what the new one does not have goes, what is not its own stays.
    let sums = prefix.join("share/dynalora/SHA256SUMS");
    let old = plugins(&prefix).join("libold.so");
    let own = plugins(&prefix).join("libmine.so");
    for file in [&old, &own] {
        std::fs::write(file, "").expect("a file");
    }
    let mut list = std::fs::read_to_string(&sums).expect("the list");
    list.push_str(&format!(
        "{}  lib/dynalora/plugins/libold.so\n",
        "0".repeat(64)
    ));
    std::fs::write(&sums, &list).expect("the list");
    xtask(&["install", "--prefix", path(&prefix)]);
    assert!(!old.exists() && own.exists());
    std::fs::remove_file(own).expect("it is there");
    is_whole(&prefix);
    // A list that leads out of the prefix is not followed.
    list.push_str(&format!("{}  ../other\n", "0".repeat(64)));
    std::fs::write(&sums, &list).expect("the list");
    std::fs::write(scene.path("other"), "").expect("a file");
    let output: Output = Command::new(built().join("xtask"))
        .args(["install", "--lean", "--prefix", path(&prefix), "--built"])
        .arg(built())
        .output()
        .expect("it starts");
    assert!(
        !output.status.success() && said(&output).contains("../other"),
        "{}",
        said(&output)
    );
    assert!(scene.path("other").exists());
    finds_its_plugins(&program, &plugins(&prefix));

    let moved = scene.path("two");
    std::fs::rename(&prefix, &moved).expect("it moves");
    finds_its_plugins(&moved.join("bin/dynalora"), &plugins(&moved));
    #[cfg(unix)]
    {
        let link = scene.path("linked");
        std::os::unix::fs::symlink(moved.join("bin/dynalora"), &link).expect("a link");
        finds_its_plugins(&link, &plugins(&moved));
    }
    let mut train = of_a_user(&moved.join("bin/dynalora"));
    good(
        train
            .args(["train", "recipe.toml", "--quiet"])
            .current_dir(scene.path("")),
    );
    assert!(scene.path("run/summary.json").is_file());
}

#[test]
fn an_archive_is_a_prefix_with_its_checksum() {
    let scene = Scene::new();
    let archive = xtask(&["dist", "--output", path(&scene.path("dist"))]);
    let name = archive
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    good(
        Command::new("sha256sum")
            .args(["--check", &format!("{name}.sha256")])
            .current_dir(scene.path("dist")),
    );
    let again = xtask(&["dist", "--output", path(&scene.path("again"))]);
    let bytes = |archive: &Path| std::fs::read(archive).expect("an archive");
    assert!(
        bytes(&archive) == bytes(&again),
        "two archives of the same files differ"
    );
    good(
        Command::new("tar")
            .arg("xzf")
            .arg(&archive)
            .current_dir(scene.path("")),
    );
    let root = scene.path(name.strip_suffix(".tar.gz").expect("its ending"));
    is_whole(&root);
    finds_its_plugins(
        &root.join("bin/dynalora"),
        &root.join("lib/dynalora/plugins"),
    );
}

#[test]
fn a_wheel_is_installed_by_pip_and_trains() {
    let scene = Scene::new();
    let python = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output();
    if !python.is_ok_and(|output| output.status.success()) {
        return skip("python", "there is no python3 that makes environments").unwrap_or_default();
    }
    let wheel = xtask(&["wheel", "--output", path(&scene.path("dist"))]);
    let venv = scene.path("venv");
    good(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(venv.join("bin/python"));
        good(
            command
                .args(["-m", "pip", "--disable-pip-version-check", "--no-cache-dir"])
                .args(arguments),
        )
    };
    pip(&["install", "--quiet", "--no-index", path(&wheel)]);
    let shown = pip(&["show", "--files", "dynalora"]);
    for part in [
        concat!("Version: ", env!("CARGO_PKG_VERSION")),
        "bin/dynalora",
    ] {
        assert!(shown.contains(part), "{part} is not in: {shown}");
    }
    let program = venv.join("bin/dynalora");
    is_whole(&venv);
    finds_its_plugins(&program, &venv.join("lib/dynalora/plugins"));
    if minilm().is_some() {
        let mut quickstart = of_a_user(&program);
        quickstart.args([
            "quickstart",
            "--steps",
            "2",
            "--quiet",
            "--set",
            "data.limit=64",
        ]);
        good(quickstart.current_dir(scene.path("")));
        for arm in ["lora", "dynamic"] {
            assert!(
                scene
                    .path("runs/quickstart")
                    .join(arm)
                    .join("summary.json")
                    .is_file(),
                "{arm}"
            );
        }
    }
    pip(&["uninstall", "--quiet", "--yes", "dynalora"]);
    assert!(
        !program.exists()
            && !venv
                .join("lib/dynalora/plugins/libdynalora_process.so")
                .exists()
    );
}
