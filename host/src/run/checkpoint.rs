//! Checkpoints: folders that come into being whole, and the pointers to the last and the best.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::Best;
use crate::error::{Error, Result};
use crate::file::{cannot_write, read_json, sync_folder, write_json};

/// A finished checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Optimiser steps finished when it was made.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
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
    /// The folder to write into. Files in folders of its own are not made durable, only kept.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `pointers.json`. One file for both pointers, so that no crash can part them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointers {
    last: Pointer,
    best: Option<BestPointer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    /// Name of the folder beside this file.
    checkpoint: String,
    step: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct BestPointer {
    checkpoint: String,
    #[serde(flatten)]
    best: Best,
}

fn pointers(dir: &Path) -> Result<Option<Pointers>> {
    read_json(&dir.join("pointers.json"))
}

pub(super) fn last(dir: &Path) -> Result<Option<Checkpoint>> {
    pointers(dir)?
        .map(|pointers| find(dir, &pointers.last.checkpoint, pointers.last.step))
        .transpose()
}

pub(super) fn best(dir: &Path) -> Result<Option<(Checkpoint, Best)>> {
    match pointers(dir)?.and_then(|pointers| pointers.best) {
        Some(pointer) => Ok(Some((
            find(dir, &pointer.checkpoint, pointer.best.step)?,
            pointer.best,
        ))),
        None => Ok(None),
    }
}

fn find(dir: &Path, name: &str, step: u64) -> Result<Checkpoint> {
    let path = dir.join(name);
    // A name with a separator would lead out of the run.
    if is_ours(name) && path.is_dir() {
        return Ok(Checkpoint { step, path });
    }
    Err(Error::user(format!(
        "{} names the checkpoint `{name}`, which is not there",
        dir.join("pointers.json").display()
    ))
    .help("restore the folder from a copy, or train anew into another folder"))
}

/// Starts a checkpoint of `step` in the folder of checkpoints.
pub(super) fn begin(dir: &Path, step: u64) -> Result<PendingCheckpoint> {
    let path = dir.join(PENDING);
    let made = match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(&path),
    };
    made.map_err(|error| cannot_write(&path, error))?;
    Ok(PendingCheckpoint { step, path })
}

/// Makes a checkpoint the last, and the best as well if `best` says how good it is, then removes
/// what is neither.
pub(super) fn commit(
    dir: &Path,
    pending: PendingCheckpoint,
    best: Option<(String, f64)>,
) -> Result<Checkpoint> {
    let PendingCheckpoint { step, path: from } = pending;
    let before = pointers(dir)?;
    sync_files(&from).map_err(|error| cannot_write(&from, error))?;
    let (name, path) = free_name(dir, step);
    fs::rename(&from, &path)
        .and_then(|()| sync_folder(Some(dir)))
        .map_err(|error| cannot_write(&path, error))?;
    let best = match best {
        Some((metric, value)) => Some(BestPointer {
            checkpoint: name.clone(),
            best: Best {
                step,
                metric,
                value,
            },
        }),
        None => before.and_then(|before| before.best),
    };
    let now = Pointers {
        last: Pointer {
            checkpoint: name,
            step,
        },
        best,
    };
    write_json(&dir.join("pointers.json"), &now)?;
    prune(dir, &now);
    Ok(Checkpoint { step, path })
}

const PENDING: &str = "pending";

/// A step's folder, under a name not yet taken: a step saved a second time must not touch the first
/// before the pointers have moved.
fn free_name(dir: &Path, step: u64) -> (String, PathBuf) {
    let mut name = format!("step-{step:06}");
    let mut again = 1;
    while dir.join(&name).exists() {
        again += 1;
        name = format!("step-{step:06}.{again}");
    }
    let path = dir.join(&name);
    (name, path)
}

/// Whether [`free_name`] may have made the name.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("step-").is_some_and(|rest| {
        rest.split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Makes the files of a folder, and their names, durable.
fn sync_files(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Opened for writing, which Windows wants for this.
            File::options().write(true).open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(Some(folder))
}

/// Removes the checkpoints nothing points to. What cannot be removed only takes up space.
fn prune(dir: &Path, pointers: &Pointers) {
    let best = pointers.best.as_ref().map(|best| best.checkpoint.as_str());
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_ours(&name) || name == pointers.last.checkpoint || best == Some(&name) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(
                "the old checkpoint {} stays: {error}",
                entry.path().display()
            );
        }
    }
}
