//! Files that are never seen half written, and lines that are appended whole.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Replaces the file at `path` in one step: whoever reads it, even after a power cut, finds the old
/// content or the new. One process at a time may write a given file.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let cannot = |error| cannot_write(path, error);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&partial, path)) {
        // The first error is the one to tell; a leftover is overwritten the next time.
        let _ = fs::remove_file(&partial);
        return Err(cannot(error));
    }
    sync_folder(path.parent()).map_err(cannot)
}

/// Makes the names in a folder durable. Only Unix has the call, and needs it.
pub(crate) fn sync_folder(folder: Option<&Path>) -> std::io::Result<()> {
    match folder {
        Some(folder) if cfg!(unix) => {
            let here = Path::new(".");
            File::open(if folder.as_os_str().is_empty() {
                here
            } else {
                folder
            })?
            .sync_all()
        }
        _ => Ok(()),
    }
}

pub(crate) fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::failure(format!("cannot write {}", path.display()))
        .because(error)
        .help("check the folder's permissions and the space left on the disk")
}

pub(crate) fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::user(format!("cannot read {}", path.display()))
        .because(error)
        .help("check that the file is there and that you may read it")
}

/// The text of a file; none if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_read(path, error)),
    }
}

/// Writes `value` as indented JSON, atomically.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| {
        Error::failure(format!("cannot express {} as JSON", path.display())).because(error)
    })?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// The value in a JSON file; none if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Error::user(format!("{} is damaged", path.display()))
            .because(error)
            .help("restore the file from a copy, or train anew into another folder")
    })
}

/// A file of JSON records, one a line, that is only ever added to.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens the file for adding; it need not exist.
    pub fn open(path: PathBuf) -> Result<Self> {
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Ok(Lines { path, file }),
            Err(error) => Err(cannot_write(&path, error)),
        }
    }

    /// Adds one record. The line goes to the system in one call, so that readers of a run in
    /// progress see whole lines and a crash of the program loses none.
    pub fn add(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|error| {
            Error::failure(format!(
                "cannot express a record of {} as JSON",
                self.path.display()
            ))
            .because(error)
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|error| cannot_write(&self.path, error))
    }

    /// Makes everything added so far durable.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| cannot_write(&self.path, error))
    }
}

/// The records of a file of JSON lines with their text; none if there is no such file. A last line
/// that was torn by a crash, or is being written this moment, is left out.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<(String, T)>> {
    // Bytes, not text: a line may be torn inside a character.
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_read(path, error)),
    };
    let mut records = Vec::new();
    let mut pieces = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .enumerate()
        .peekable();
    while let Some((number, piece)) = pieces.next() {
        let text = String::from_utf8_lossy(piece.strip_suffix(b"\n").unwrap_or(piece)).into_owned();
        match serde_json::from_str(&text) {
            Ok(record) => records.push((text, record)),
            Err(_) if pieces.peek().is_none() && !piece.ends_with(b"\n") => {}
            Err(error) => {
                return Err(Error::user(format!(
                    "{}, line {}: not a record",
                    path.display(),
                    number + 1
                ))
                .because(error)
                .help("mend or remove the line: the run wrote one JSON object per line"));
            }
        }
    }
    Ok(records)
}

/// The records of a file of JSON lines, in order.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Ok(lines(path)?.into_iter().map(|(_, record)| record).collect())
}

/// Drops the records of a file of JSON lines whose `step` lies past `last_step`, and a torn last line.
pub(crate) fn truncate_lines(path: &Path, last_step: u64) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct At {
        step: u64,
    }
    let Some(before) = fs::metadata(path).ok() else {
        return Ok(());
    };
    let mut kept = String::new();
    for (text, At { step }) in lines(path)? {
        if step <= last_step {
            kept.push_str(&text);
            kept.push('\n');
        }
    }
    // Nothing was dropped: the usual case, and no reason to touch the file.
    if kept.len() as u64 == before.len() {
        return Ok(());
    }
    write_atomically(path, kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_else() {
        let folder = folder();
        let path = folder.path().join("a.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_atomically(&folder.path().join("no/such/folder"), b"").unwrap_err();
        assert!(error.to_string().starts_with("cannot write"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_target_that_cannot_be_replaced_keeps_the_old_and_no_leftover() {
        let folder = folder();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomically(&path, b"x").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn lines_are_added_and_read_back() {
        let folder = folder();
        let path = folder.path().join("a.jsonl");
        assert_eq!(read_lines::<Value>(&path).unwrap(), Vec::<Value>::new());
        Lines::open(path.clone())
            .unwrap()
            .add(&json!({"step": 1}))
            .unwrap();
        Lines::open(path.clone())
            .unwrap()
            .add(&json!({"step": 2}))
            .unwrap();
        assert_eq!(
            read_lines::<Value>(&path).unwrap(),
            [json!({"step": 1}), json!({"step": 2})]
        );
    }

    #[test]
    fn a_torn_last_line_is_forgiven_and_any_other_is_named() {
        let folder = folder();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, b"{\"step\":1}\n{\"name\":\"\xc3").unwrap();
        assert_eq!(read_lines::<Value>(&path).unwrap(), [json!({"step": 1})]);
        for text in [
            "{\"step\":1}\n{\"st\n{\"step\":3}\n",
            "{\"step\":1}\n{\"st\n",
        ] {
            fs::write(&path, text).unwrap();
            let error = read_lines::<Value>(&path).unwrap_err().to_string();
            assert!(error.ends_with("a.jsonl, line 2: not a record"), "{error}");
        }
    }

    #[test]
    fn truncating_keeps_what_the_checkpoint_knows() {
        let folder = folder();
        let path = folder.path().join("a.jsonl");
        truncate_lines(&path, 5).unwrap();
        assert!(!path.exists());
        for (text, kept) in [
            (
                "{\"step\":1}\n{\"step\":2}\n",
                "{\"step\":1}\n{\"step\":2}\n",
            ),
            (
                "{\"step\":1}\n{\"step\":3}\n{\"step\":2,\"x\":0}\n",
                "{\"step\":1}\n{\"step\":2,\"x\":0}\n",
            ),
            // Whole but for its newline, and torn.
            ("{\"step\":1}\n{\"step\":2}", "{\"step\":1}\n{\"step\":2}\n"),
            ("{\"step\":1}\n{\"ste", "{\"step\":1}\n"),
        ] {
            fs::write(&path, text).unwrap();
            truncate_lines(&path, 2).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        }
    }
}
