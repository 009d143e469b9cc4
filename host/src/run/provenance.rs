//! What made a run: program, machine, and the digests of all that it read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file::{digest_of, read_json};

/// `provenance.json`: one entry for each sitting, the first being the run's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// In order.
    pub sittings: Vec<Sitting>,
}

/// One process that trained the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sitting {
    /// Optimiser steps that were finished when it began.
    pub from_step: u64,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// The program.
    pub program: Program,
    /// The machine.
    pub machine: Machine,
    /// Threads it computed with.
    pub threads: usize,
    /// The device it computed on.
    pub device: String,
    /// How many processes trained together, each with so many threads; one in runs from before there could be more.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// What it read, by what it was read as: `data.train`, `model.weights`, `allocator`.
    pub inputs: BTreeMap<String, Input>,
    /// What had changed since the sitting before and was accepted by `--accept-changes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

/// The program that trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its version.
    pub version: String,
    /// The commit it was built from, with `-dirty` where the tree differed from it; none where there was no git.
    pub commit: Option<String>,
    /// A digest of the sources it was built from.
    pub sources: String,
}

/// The machine under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's own name.
    pub cpu: String,
    /// Processors the process may use.
    pub cores: usize,
    /// The operating system.
    pub os: String,
    /// The architecture.
    pub arch: String,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where it lay.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Name and version, where it is a plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
}

impl Input {
    /// The file at `path`, digested.
    pub fn of(path: &Path) -> Result<Self> {
        let (bytes, sha256) = digest_of(path)?;
        Ok(Input {
            path: path.to_owned(),
            bytes,
            sha256,
            plugin: None,
        })
    }

    /// As a person would tell it apart.
    fn shown(&self) -> String {
        let plugin = self
            .plugin
            .as_ref()
            .map_or(String::new(), |p| format!("{p}, "));
        format!(
            "{} ({plugin}{} bytes, SHA-256 {}…)",
            self.path.display(),
            self.bytes,
            self.sha256.get(..12).unwrap_or(&self.sha256)
        )
    }
}

impl Program {
    /// This program.
    pub fn current() -> Self {
        let known = |text: &'static str| (!text.is_empty()).then(|| text.to_owned());
        Program {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: known(env!("DYNALORA_COMMIT")),
            sources: env!("DYNALORA_SOURCES").to_owned(),
        }
    }

    fn shown(&self) -> String {
        let commit = self.commit.as_deref().unwrap_or("unknown commit");
        format!("{} ({commit}, sources {})", self.version, self.sources)
    }
}

impl Machine {
    /// This machine.
    pub fn current() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str, separator: char| -> Option<String> {
            let line = text.lines().find(|line| line.starts_with(key))?;
            let (_, value) = line.split_once(separator)?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        let unknown = || "unknown".to_owned();
        let os = value(&read("/etc/os-release"), "PRETTY_NAME", '=');
        Machine {
            cpu: value(&read("/proc/cpuinfo"), "model name", ':').unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            os: os.unwrap_or_else(|| std::env::consts::OS.to_owned()),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    fn shown(&self) -> String {
        format!(
            "{}, {} cores, {}, {}",
            self.cpu, self.cores, self.os, self.arch
        )
    }
}

impl Sitting {
    /// What is not as it was at `then`, one sentence each: what decides the outcome, and what may change its last
    /// bits.
    pub fn changes(&self, then: &Sitting) -> (Vec<String>, Vec<String>) {
        let mut inputs = Vec::new();
        let names = then.inputs.keys().chain(self.inputs.keys());
        let mut names: Vec<&String> = names.collect();
        names.sort();
        names.dedup();
        for name in names {
            let sentence = match (then.inputs.get(name), self.inputs.get(name)) {
                (Some(then), Some(now)) if then.sha256 == now.sha256 => continue,
                (Some(then), Some(now)) => {
                    format!("{name} was {}, now it is {}", then.shown(), now.shown())
                }
                (Some(then), None) => format!("{name} was {}, now there is none", then.shown()),
                (None, Some(now)) => format!("{name} is {}, then there was none", now.shown()),
                (None, None) => continue,
            };
            inputs.push(sentence);
        }
        let pairs = [
            ("program", then.program.shown(), self.program.shown()),
            ("machine", then.machine.shown(), self.machine.shown()),
            (
                "threads",
                then.threads.to_string(),
                self.threads.to_string(),
            ),
            ("device", then.device.clone(), self.device.clone()),
            ("ranks", then.ranks.to_string(), self.ranks.to_string()),
        ];
        let around = pairs.into_iter().filter(|(_, then, now)| then != now);
        let around = around.map(|(name, then, now)| format!("{name} was {then}, now it is {now}"));
        (inputs, around.collect())
    }

    /// The digests of what was read: what must be equal for two runs to have learnt the same with the same.
    fn identity(&self) -> BTreeMap<String, String> {
        let inputs = self.inputs.iter();
        inputs
            .map(|(name, input)| (name.clone(), input.sha256.clone()))
            .collect()
    }
}

/// What a model's file of weights of this number is read as.
pub fn weights(nth: usize) -> String {
    match nth {
        0 => "model.weights".to_owned(),
        nth => format!("model.weights[{nth}]"),
    }
}

/// What made the run that the folder of an adapter lies in; none where it lies in none.
pub fn provenance_of(adapter: &Path) -> Result<Option<Provenance>> {
    let Ok(folder) = adapter.canonicalize() else {
        return Ok(None);
    };
    match (folder.file_name(), folder.parent()) {
        (Some(name), Some(run)) if name == "adapter" => {
            Provenance::read(&run.join("provenance.json"))
        }
        _ => Ok(None),
    }
}

impl Provenance {
    /// Whether it says which weights the run's model had.
    pub fn knows_weights(&self) -> bool {
        let last = self.sittings.last();
        last.is_some_and(|last| last.inputs.contains_key(&weights(0)))
    }

    /// How a model's `files` of weights are not those that the run's last sitting read; none where they are.
    pub fn other_weights(&self, files: &[PathBuf]) -> Result<Option<String>> {
        let last = self.sittings.last();
        let then = (0..).map_while(|nth| last?.inputs.get(&weights(nth)));
        let then: Vec<&Input> = then.collect();
        // One after the other: how many threads there are to be is not said yet.
        let now = files.iter().map(|file| Input::of(file));
        let now = now.collect::<Result<Vec<Input>>>()?;
        let digests = then.iter().map(|input| &input.sha256);
        if digests.eq(now.iter().map(|input| &input.sha256)) {
            return Ok(None);
        }
        let shown = |inputs: &mut dyn Iterator<Item = &Input>| {
            let all: Vec<String> = inputs.map(Input::shown).collect();
            all.join(", ")
        };
        let then = shown(&mut then.into_iter());
        Ok(Some(format!("{then} then, {} now", shown(&mut now.iter()))))
    }

    /// Reads a run's; none if it has none, as runs of older versions.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let read = read_json::<Self>(path)?;
        Ok(read.filter(|provenance| !provenance.sittings.is_empty()))
    }

    /// The digests of all that the run read, by name; several for one that changed from sitting to sitting.
    pub fn identity(&self) -> BTreeMap<String, String> {
        let mut identity: BTreeMap<String, String> = BTreeMap::new();
        let mut last = BTreeMap::new();
        for sitting in &self.sittings {
            let own = sitting.identity();
            for (name, digest) in &own {
                let all = identity.entry(name.clone()).or_default();
                if last.get(name) != Some(digest) {
                    let then = if all.is_empty() { "" } else { " then " };
                    all.push_str(&format!("{then}{digest}"));
                }
            }
            last = own;
        }
        identity
    }

    /// The programs that trained it, each once.
    pub fn programs(&self) -> Vec<String> {
        let mut programs: Vec<String> = Vec::new();
        for sitting in &self.sittings {
            let shown = sitting.program.shown();
            if !programs.contains(&shown) {
                programs.push(shown);
            }
        }
        programs
    }
}

/// Refuses to go on with other data, another model or other plugins, unless that is accepted; warns of what else is not
/// as it was.
pub(super) fn compare(
    path: &Path,
    then: Option<&Sitting>,
    now: &mut Sitting,
    accept: bool,
) -> Result<()> {
    let Some(then) = then else {
        tracing::warn!(
            "{} is not there: whether data, model, plugins and program are those that the run began with is not \
             known",
            path.display()
        );
        return Ok(());
    };
    let (inputs, around) = now.changes(then);
    if !around.is_empty() {
        tracing::warn!(
            "the last bits of what follows may differ from an uninterrupted run's: {}",
            around.join("; ")
        );
    }
    if inputs.is_empty() {
        return Ok(());
    }
    if accept {
        tracing::warn!("going on with what has changed: {}", inputs.join("; "));
        now.accepted = inputs;
        return Ok(());
    }
    Err(Error::user(format!(
        "the run would go on with other inputs than it began with: {}",
        inputs.join("; ")
    ))
    .help(
        "put back what has changed and resume; or start anew by --force; or go on with it as it is by \
         --accept-changes, which the run's provenance.json will say",
    ))
}
