//! `dynalora plugins new`: a crate with a small strategy in it, its tests, and what to do next.

use std::fs;
use std::path::{Path, PathBuf};

use dynalora_plugin_api::Kind;
use dynalora_plugin_api::abi::API_VERSION;

use crate::cli::{Common, print};
use crate::error::{Error, Result};
use crate::file::cannot_write;
use crate::plugin::PluginPath;

/// Where this program's sources were when it was built.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// The package that a plugin depends on.
const API: &str = "dynalora-plugin-api";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What it is: turns measurements into scores, or scores into the modules that train
    #[arg(value_enum)]
    kind: KindName,
    /// Its name in kebab case, such as top-k: what a recipe will call it
    name: String,
    /// The folder to write, which must not be there yet; by default NAME in the current folder
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Where dynalora-plugin-api lies: the folder of that name in a checkout, or the unpacked crate. By default that
    /// of the checkout this program was built from
    #[arg(long, value_name = "PATH", conflicts_with = "registry")]
    api: Option<PathBuf>,
    /// Take dynalora-plugin-api from the registry, by version, once it is released there
    #[arg(long)]
    registry: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum KindName {
    Scorer,
    Allocator,
}

/// Where the crate finds plugin-api.
enum Source {
    /// In this folder.
    Folder(PathBuf),
    Registry,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let kind = match arguments.kind {
        KindName::Scorer => Kind::Scorer,
        KindName::Allocator => Kind::Allocator,
    };
    let name = arguments.name.as_str();
    check_name(name)?;
    refuse_taken(name, common)?;
    let folder = arguments
        .path
        .clone()
        .unwrap_or_else(|| PathBuf::from(name));
    // A link that leads nowhere is something too.
    if folder.symlink_metadata().is_ok() {
        return Err(
            Error::user(format!("{} is there already", folder.display()))
                .help("give a folder that is not there with --path, or another name"),
        );
    }
    let source = match (&arguments.api, arguments.registry) {
        (Some(path), _) => Source::Folder(checked_api(path)?),
        (None, true) => Source::Registry,
        (None, false) => Source::Folder(own_api()?),
    };
    write(&folder, kind, name, &source)?;
    print(&told(&folder, kind, name, &source))
}

/// A name that is good for a plugin, a package and a library.
fn check_name(name: &str) -> Result<()> {
    // What the compiler would not take as the name of a crate.
    const KEYWORDS: &str = " abstract alloc as async await become box break const continue core crate do dyn else \
        enum extern false final fn for gen if impl in let loop macro match mod move mut override priv pub ref return \
        self static std struct super test trait true try type typeof unsafe unsized use virtual where while yield ";
    let refuse = |why: String| {
        Err(
            Error::user(format!("`{name}` is no name for a plugin: {why}")).help(
                "lowercase letters, digits and single hyphens, a letter first, such as `top-k`",
            ),
        )
    };
    let strange = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
    if let Some(strange) = name.chars().find(strange) {
        return refuse(format!("it has the character {strange:?}"));
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return refuse("it does not begin with a letter".to_owned());
    }
    if name.ends_with('-') || name.contains("--") {
        return refuse("its hyphens are not between words".to_owned());
    }
    if name.len() > 64 {
        return refuse(format!(
            "it has {} characters, and 64 are enough",
            name.len()
        ));
    }
    if name == API {
        return refuse("what it depends on has it".to_owned());
    }
    match KEYWORDS.contains(&format!(" {name} ")) {
        true => refuse("it is a word of the language Rust".to_owned()),
        false => Ok(()),
    }
}

/// Two plugins of one name would hide one another.
fn refuse_taken(name: &str, common: &Common) -> Result<()> {
    let (found, _) = PluginPath::new(&common.plugin_dir, &[])?.discover();
    match found.iter().find(|found| found.manifest.name == name) {
        None => Ok(()),
        Some(taken) => Err(Error::user(format!(
            "there is a plugin `{name}` already: {}",
            taken.path.display()
        ))
        .help("choose another name; `dynalora plugins list` shows those that are taken")),
    }
}

/// The folder of plugin-api in the checkout that this program was built from.
fn own_api() -> Result<PathBuf> {
    let path = Path::new(SOURCES).join("../plugin-api");
    checked_api(&path).map_err(|_| {
        Error::user(format!(
            "this program does not know where {API} is: the checkout that it was built from is gone"
        ))
        .help(format!(
            "give the folder `plugin-api` of a checkout with --api; --registry writes a dependency by version, which \
             builds once {API} {API_VERSION} is released"
        ))
    })
}

/// A folder that holds plugin-api of a version that this program can load plugins of.
fn checked_api(path: &Path) -> Result<PathBuf> {
    let help = "give the folder `plugin-api` of a checkout of dynalora, or the unpacked crate";
    let manifest = path.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|error| {
        Error::user(format!("--api {}: there is no crate", path.display()))
            .because(error)
            .help(help)
    })?;
    let package: toml::Table = toml::from_str(&text).map_err(|error| {
        Error::user(format!("{} cannot be read", manifest.display()))
            .because(error)
            .help(help)
    })?;
    let package = package.get("package");
    let of = |key| package.and_then(|package| package.get(key)?.as_str());
    if of("name") != Some(API) {
        return Err(Error::user(format!(
            "--api {}: that is {}, not {API}",
            path.display(),
            of("name").unwrap_or("no package")
        ))
        .help(help));
    }
    let major = |version: &str| version.split('.').next().map(str::to_owned);
    let version = of("version").unwrap_or("unknown");
    if major(version) != major(API_VERSION) {
        return Err(Error::user(format!(
            "--api {}: it is of version {version}, and this program loads plugins of {API_VERSION}",
            path.display()
        ))
        .help("take plugin-api from the checkout of this program's version"));
    }
    path.canonicalize()
        .map_err(|error| crate::file::cannot_read(path, error))
}

/// Writes the crate, in a folder beside it that takes its name when all is there.
fn write(folder: &Path, kind: Kind, name: &str, source: &Source) -> Result<()> {
    let lib = match kind {
        Kind::Scorer => include_str!("template/scorer.rs.txt"),
        Kind::Allocator => include_str!("template/allocator.rs.txt"),
    };
    let lib = lib
        .replace("{{name}}", name)
        .replace("{{Type}}", &type_name(name));
    let partial = beside(folder);
    let source_folder = partial.join("src");
    fs::create_dir_all(&source_folder).map_err(|error| cannot_write(&source_folder, error))?;
    let files = [
        ("Cargo.toml", manifest(name, kind, source)),
        ("src/lib.rs", lib),
        ("README.md", readme(name, kind, source)),
        (".gitignore", "/target\n".to_owned()),
    ];
    for (file, text) in files {
        let path = partial.join(file);
        fs::write(&path, text).map_err(|error| cannot_write(&path, error))?;
    }
    if let Some(lock) = lock(source) {
        // The versions that plugin-api was built with here, so that nothing need be fetched. It may fail: cargo then
        // chooses versions itself.
        let _ = fs::copy(lock, partial.join("Cargo.lock"));
    }
    fs::rename(&partial, folder).map_err(|error| cannot_write(folder, error))
}

fn beside(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    folder.with_file_name(name)
}

/// The lock of the checkout that plugin-api lies in, or of the crate itself.
fn lock(source: &Source) -> Option<PathBuf> {
    let Source::Folder(api) = source else {
        return None;
    };
    let locks = [api.join("../Cargo.lock"), api.join("Cargo.lock")];
    locks.into_iter().find(|lock| lock.is_file())
}

/// `top-k` as a type's name.
fn type_name(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        format!("{}{rest}", first.to_ascii_uppercase())
    });
    let joined: String = words.collect();
    // Names that the templates use themselves.
    const USED: [&str; 26] = [
        "Allocation",
        "AllocationRequest",
        "Allocator",
        "Count",
        "Deserialize",
        "Err",
        "JsonSchema",
        "Measured",
        "ModuleInfo",
        "Needs",
        "None",
        "Observation",
        "Ok",
        "Parameters",
        "Plugin",
        "Random",
        "Result",
        "ScoreRequest",
        "Scorer",
        "Serialize",
        "Signal",
        "Some",
        "Upcoming",
        "Vec",
        "Wants",
        "Default",
    ];
    match USED.contains(&joined.as_str()) {
        true => format!("My{joined}"),
        false => joined,
    }
}

fn manifest(name: &str, kind: Kind, source: &Source) -> String {
    let minor: Vec<&str> = API_VERSION.split('.').take(2).collect();
    let dependency = match source {
        Source::Folder(path) => {
            let path = toml::Value::from(path.display().to_string());
            format!("{API} = {{ path = {path} }}")
        }
        Source::Registry => format!("{API} = \"{}\"", minor.join(".")),
    };
    format!(
        "[package]\nname = \"{name}\"\ndescription = \"A {kind} for dynalora\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\n# All that a plugin depends on; its version 1 is loaded by every dynalora with the same first number.\n\
         {dependency}\n\n\
         # Not a member of whatever workspace it may lie in.\n[workspace]\n"
    )
}

/// Where cargo puts the library.
fn library(name: &str) -> String {
    format!(
        "target/release/{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    )
}

fn offline(source: &Source) -> &'static str {
    match source {
        Source::Folder(_) => " --offline",
        Source::Registry => "",
    }
}

fn table(name: &str, kind: Kind) -> [String; 2] {
    let parameter = match kind {
        Kind::Scorer => "every = 10",
        Kind::Allocator => "k = \"50%\"",
    };
    [
        format!("[{kind}]"),
        format!("plugin = \"{name}\"\n{parameter}"),
    ]
}

fn readme(name: &str, kind: Kind, source: &Source) -> String {
    let [head, body] = table(name, kind);
    let table = format!("{head}\n{body}").replace('\n', "\n       ");
    include_str!("template/README.md.txt")
        .replace("{{name}}", name)
        .replace("{{kind}}", &kind.to_string())
        .replace("{{library}}", &library(name))
        .replace("{{offline}}", offline(source))
        .replace("{{table}}", &table)
}

/// What was done, and what is to be done now.
fn told(folder: &Path, kind: Kind, name: &str, source: &Source) -> String {
    let (folder, offline, library) = (folder.display(), offline(source), library(name));
    let from = match source {
        Source::Folder(path) => format!(
            "It depends on {API} in {}: it builds without a network where this dynalora was built, for what it needs is \
             in cargo's cache.",
            path.display()
        ),
        Source::Registry => format!(
            "It depends on {API} by version, from the registry: it builds where that is released, and cargo can fetch it."
        ),
    };
    let [head, body] = table(name, kind);
    let set = body.replace('\n', ", ");
    format!(
        "The {kind} `{name}` is in {folder}, a small strategy that works. {from}\n\n\
         cd {folder}\n\
         cargo test --release{offline}\n\
         cargo build --release{offline} && dynalora plugins check {library}\n\
         dynalora train recipe.toml --plugin-dir target/release     # with {head} {set}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_good_for_plugins_packages_and_libraries() {
        for good in ["top-k", "a", "lora2-drop", "measured"] {
            check_name(good).unwrap();
        }
        for (bad, why) in [
            ("", "begin"),
            ("Top-k", "'T'"),
            ("top_k", "'_'"),
            ("../x", "'.'"),
            ("2nd", "begin"),
            ("-x", "begin"),
            ("x-", "hyphens"),
            ("x--y", "hyphens"),
            ("self", "language"),
            ("test", "language"),
            (&"x".repeat(65), "65 characters"),
        ] {
            let error = check_name(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn types_are_named_after_plugins_and_hide_nothing() {
        assert_eq!(type_name("top-k"), "TopK");
        assert_eq!(type_name("x-2-y"), "X2Y");
        assert_eq!(type_name("random"), "MyRandom");
        assert_eq!(type_name("measured"), "MyMeasured");
    }
}
