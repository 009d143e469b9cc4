//! Checkpoints: folders that come into being whole and know what they are.
//!
//! Each holds a `manifest.json` with its step, whether it was the best so far when it was made, and the digest
//! of every file of it. What is read back is held against that; `pointers.json` beside them says the same of the
//! last and the best for people and scripts, and is never needed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::Best;
use crate::error::{Error, Result};
use crate::file::{Extent, cannot_write, gone, sha256, sync_folder, write_json};

/// A finished checkpoint whose manifest was read and found whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Optimiser steps finished when it was made.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    files: BTreeMap<String, Extent>,
}

impl Checkpoint {
    /// The content of one of its files, if it is what was written.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let damaged = |what: String| damaged(format!("{}: {what}", path.display()));
        let Some(extent) = self.files.get(name) else {
            return Err(damaged("the checkpoint never had this file".to_owned()));
        };
        let bytes = fs::read(&path).map_err(|error| damaged(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 != extent.bytes {
            let (now, then) = (bytes.len(), extent.bytes);
            return Err(damaged(format!("it has {now} bytes, {then} were written")));
        }
        if sha256(&bytes) != extent.sha256 {
            return Err(damaged(
                "its content is not what was written: its checksum differs".to_owned(),
            ));
        }
        Ok(bytes)
    }

    /// Holds every file against its digest.
    fn verify(&self) -> Result<()> {
        self.files.keys().try_for_each(|name| {
            let read = self.read(name);
            read.map(|_| ())
        })
    }
}

/// An error about a damaged checkpoint, with what to do about it.
pub fn damaged(message: String) -> Error {
    Error::user(message).help(
        "the checkpoint is damaged: `--resume` goes on from the one before it where there is one; else restore \
         the file from a copy, or start anew by `--force`",
    )
}

/// A checkpoint in the making. Write its files into [`path`](Self::path), then
/// [commit](super::Writer::commit_checkpoint) it; one that is never committed never existed.
#[derive(Debug)]
#[must_use = "a checkpoint counts once it is committed"]
pub struct PendingCheckpoint {
    step: u64,
    path: PathBuf,
}

impl PendingCheckpoint {
    /// The folder to write files into; it may hold no folders.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PendingCheckpoint {
    /// Half a checkpoint only takes up the space that may have been missing.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    /// How good it is, where it was the best so far.
    best: Option<Best>,
    files: BTreeMap<String, Extent>,
    /// What the run's logs held.
    logs: BTreeMap<String, Extent>,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// The manifest with its own digest, as it is written.
fn sealed(manifest: &Manifest) -> Result<Vec<u8>> {
    let failed = |error| Error::failure("a checkpoint's manifest cannot be written").because(error);
    let inner = serde_json::to_string_pretty(manifest).map_err(|e: serde_json::Error| failed(e))?;
    let seal = sha256(inner.as_bytes());
    Ok(format!("{{\"sha256\": \"{seal}\", \"manifest\":\n{inner}\n}}\n").into_bytes())
}

/// A checkpoint as it lies there.
struct Found {
    name: String,
    /// Its step by its name.
    step: u64,
    /// The how manieth of that step.
    again: u64,
}

/// Every folder with a checkpoint's name, the newest first.
fn found(dir: &Path) -> Vec<Found> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<Found> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (step, again) = steps_of(&name)?;
            Some(Found { name, step, again })
        })
        .collect();
    found.sort_by_key(|found| std::cmp::Reverse((found.step, found.again)));
    found
}

/// Step and number in a name that [`free_name`] may have made.
fn steps_of(name: &str) -> Option<(u64, u64)> {
    let rest = name.strip_prefix("step-")?;
    let digits = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true => part.parse().ok(),
        false => None,
    };
    match rest.split_once('.') {
        Some((step, again)) => Some((digits(step)?, digits(again)?)),
        None => Some((digits(rest)?, 1)),
    }
}

/// Reads and checks the manifest of the checkpoint `name`.
fn open(dir: &Path, name: &str) -> Result<(Checkpoint, Manifest)> {
    #[derive(Deserialize)]
    struct Sealed {
        manifest: Manifest,
    }
    let folder = dir.join(name);
    let path = folder.join(MANIFEST);
    let damaged = |what: String| damaged(format!("{}: {what}", path.display()));
    let text = fs::read(&path).map_err(|error| damaged(format!("cannot be read: {error}")))?;
    let Sealed { manifest } = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("it is not a checkpoint's manifest: {error}")))?;
    // It must be what would be written, byte for byte: a digest inside a file cannot speak of blanks.
    if sealed(&manifest)? != text {
        return Err(damaged(
            "its content is not what was written: its checksum differs".to_owned(),
        ));
    }
    if manifest.format != FORMAT || steps_of(name).map(|(step, _)| step) != Some(manifest.step) {
        return Err(damaged(format!(
            "it is of format {} and step {}, in a folder called {name}",
            manifest.format, manifest.step
        )));
    }
    let checkpoint = Checkpoint {
        step: manifest.step,
        path: folder,
        files: manifest.files.clone(),
    };
    Ok((checkpoint, manifest))
}

/// What a run can go on from.
pub(super) struct Whole {
    /// The newest checkpoint that is whole.
    pub last: Checkpoint,
    /// What the logs held then.
    pub logs: BTreeMap<String, Extent>,
}

/// The folder of a damaged checkpoint, and what is wrong with it.
pub(super) type Damaged = (PathBuf, Error);

/// The newest checkpoint that is whole. Damaged ones before it are returned by name and error; an error if all
/// are.
pub(super) fn last(dir: &Path) -> Result<(Option<Whole>, Vec<Damaged>)> {
    let mut damaged = Vec::new();
    for found in found(dir) {
        let opened = open(dir, &found.name);
        match opened.and_then(|opened| opened.0.verify().map(|()| opened)) {
            Ok((last, manifest)) => {
                let logs = manifest.logs;
                return Ok((Some(Whole { last, logs }), damaged));
            }
            Err(error) => damaged.push((dir.join(&found.name), error)),
        }
    }
    let Some((first, error)) = damaged.first() else {
        return Ok((None, damaged));
    };
    Err(Error::user(format!(
        "none of the {} checkpoints in {} is whole; of the last, {}: {error}",
        damaged.len(),
        dir.display(),
        first.file_name().unwrap_or_default().display()
    ))
    .help(
        "restore one of them from a copy and resume; or start the run anew by `dynalora train RECIPE --force`, \
         which removes them",
    ))
}

/// The best checkpoint up to `step` and how good it is, and those that were better but are damaged.
pub(super) fn best(dir: &Path, step: u64) -> (Option<(Checkpoint, Best)>, Vec<Error>) {
    let mut damaged = Vec::new();
    for found in found(dir).into_iter().filter(|found| found.step <= step) {
        let opened = open(dir, &found.name);
        // Of one that cannot be opened nobody knows whether it was the best.
        let Ok((checkpoint, manifest)) = opened else {
            continue;
        };
        let Some(best) = manifest.best else {
            continue;
        };
        match checkpoint.verify() {
            Ok(()) => return (Some((checkpoint, best)), damaged),
            Err(error) => damaged.push(error),
        }
    }
    (None, damaged)
}

/// Starts a checkpoint of `step` in the folder of checkpoints.
pub(super) fn begin(dir: &Path, step: u64) -> Result<PendingCheckpoint> {
    let path = dir.join(PENDING);
    let made = match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        // Not the folders above: they are the run's, and were there.
        _ => fs::create_dir(&path),
    };
    match made {
        Ok(()) => Ok(PendingCheckpoint { step, path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(gone(&format!(
            "{} is gone: it was moved or deleted",
            dir.display()
        ))),
        Err(error) => Err(cannot_write(&path, error)),
    }
}

/// What a checkpoint is committed with.
pub(super) struct Commit<'a> {
    /// The folder of checkpoints.
    pub dir: &'a Path,
    /// Metric and value where it is the best so far.
    pub best: Option<(String, f64)>,
    /// What the run's logs hold.
    pub logs: BTreeMap<String, Extent>,
    /// How many to keep.
    pub keep: usize,
    /// Folders that were seen to be damaged.
    pub damaged: &'a [PathBuf],
}

/// Makes a checkpoint the last, and the best as well if `best` says how good it is, then removes what is
/// neither among the last nor the best.
pub(super) fn commit(pending: PendingCheckpoint, commit: Commit<'_>) -> Result<Checkpoint> {
    let dir = commit.dir;
    let (step, from) = (pending.step, pending.path.clone());
    let manifest = Manifest {
        format: FORMAT,
        step,
        best: commit.best.clone().map(|(metric, value)| Best {
            step,
            metric,
            value,
        }),
        files: digests(&from)?,
        logs: commit.logs.clone(),
    };
    let path = from.join(MANIFEST);
    fs::write(&path, sealed(&manifest)?).map_err(|error| cannot_write(&path, error))?;
    sync_files(&from).map_err(|error| cannot_write(&from, error))?;
    let (name, path) = free_name(dir, step);
    fs::rename(&from, &path)
        .and_then(|()| sync_folder(Some(dir)))
        .map_err(|error| cannot_write(&path, error))?;
    let kept = prune(dir, &name, &commit);
    let pointers = Pointers {
        last: Pointer {
            checkpoint: name,
            step,
        },
        best: kept,
    };
    write_json(&dir.join(POINTERS), &pointers)?;
    Ok(Checkpoint {
        step,
        path,
        files: manifest.files,
    })
}

/// `pointers.json`.
#[derive(Serialize)]
struct Pointers {
    last: Pointer,
    best: Option<BestPointer>,
}

#[derive(Serialize)]
struct Pointer {
    /// Name of the folder beside this file.
    checkpoint: String,
    step: u64,
}

#[derive(Serialize)]
struct BestPointer {
    checkpoint: String,
    #[serde(flatten)]
    best: Best,
}

const PENDING: &str = "pending";
const DISCARDED: &str = "discarded";
const POINTERS: &str = "pointers.json";

/// Whether something in the folder of checkpoints is the run's own.
pub(super) fn is_own(name: &str) -> bool {
    let partial = name.strip_suffix(".partial").unwrap_or(name);
    [PENDING, DISCARDED].contains(&name) || partial == POINTERS || steps_of(name).is_some()
}

/// Whether there is any checkpoint, whole or not.
pub(super) fn any(dir: &Path) -> bool {
    !found(dir).is_empty()
}

/// A step's folder, under a name not yet taken: a step saved a second time must not touch the first.
fn free_name(dir: &Path, step: u64) -> (String, PathBuf) {
    let mut name = format!("step-{step:06}");
    let mut again = 1;
    // One that was removed must not be followed by a lower number than its own.
    for found in found(dir).iter().filter(|found| found.step == step) {
        again = again.max(found.again + 1);
        name = format!("step-{step:06}.{again}");
    }
    let path = dir.join(&name);
    (name, path)
}

/// The digests of a folder's files.
fn digests(folder: &Path) -> Result<BTreeMap<String, Extent>> {
    let cannot = |error| cannot_write(folder, error);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (bytes, sha256) = crate::file::digest_of(&entry.path())?;
        files.insert(name, Extent { bytes, sha256 });
    }
    Ok(files)
}

/// Makes the files of a folder, and their names, durable.
pub(super) fn sync_files(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Opened for writing, which Windows wants for this.
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(Some(folder))
}

/// Removes all checkpoints but the last few and the best, which is returned. What cannot be removed only takes up
/// space.
fn prune(dir: &Path, last: &str, commit: &Commit<'_>) -> Option<BestPointer> {
    let all = found(dir);
    // Later steps are of a future that was given up when the run went back to an earlier checkpoint.
    let at = all.iter().position(|found| found.name == last).unwrap_or(0);
    let damaged = |found: &Found| commit.damaged.contains(&dir.join(&found.name));
    let whole: Vec<&Found> = (all[at..].iter().enumerate())
        .filter(|(nth, found)| {
            let repeated = *nth > 0 && all[at + nth - 1].step == found.step;
            !repeated && !damaged(found)
        })
        .map(|(_, found)| found)
        .collect();
    // Also one whose step was saved again since: that nothing was evaluated then does not make it worse.
    let mut known = all[at..].iter().filter(|found| !damaged(found));
    let best = known.find_map(|found| {
        let (_, manifest) = open(dir, &found.name).ok()?;
        Some(BestPointer {
            checkpoint: found.name.clone(),
            best: manifest.best?,
        })
    });
    let keep = commit.keep.max(1);
    let mut kept: Vec<&str> = whole.iter().take(keep).map(|f| f.name.as_str()).collect();
    kept.extend(best.as_ref().map(|best| best.checkpoint.as_str()));
    let discarded = dir.join(DISCARDED);
    for found in all.iter().filter(|found| !kept.contains(&&*found.name)) {
        // Renamed first, so that no crash leaves half of one under its name.
        let _ = fs::remove_dir_all(&discarded);
        let path = dir.join(&found.name);
        let removed = fs::rename(&path, &discarded).and_then(|()| fs::remove_dir_all(&discarded));
        if let Err(error) = removed {
            tracing::warn!("the old checkpoint {} stays: {error}", path.display());
        }
    }
    best
}
