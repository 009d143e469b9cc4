//! Files that are never seen half written, and lines that are appended whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

/// `text` as the name of a file or folder that every system takes and no shell has to quote; empty where nothing of it
/// is left.
pub(crate) fn plain_name(text: &str) -> String {
    let mut name = String::new();
    for letter in text.chars() {
        match letter {
            letter if letter.is_alphanumeric() || "._=+%".contains(letter) => name.push(letter),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    // Not hidden, not a flag, not too long for a file system.
    let name = name.trim_matches(['-', '.']);
    name.chars().take(120).collect()
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
            .help("restore the file from a copy, or start the run anew by `dynalora train RECIPE --force`")
    })
}

/// How much of a growing file there was at some moment, and what it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extent {
    /// Bytes from its start.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

/// A file of JSON records, one a line, that is only ever added to.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Sha256,
}

impl Lines {
    /// Opens the file for adding; it need not exist.
    pub fn open(path: PathBuf) -> Result<Self> {
        let cannot = |error| cannot_write(&path, error);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path);
        let mut file = file.map_err(cannot)?;
        let mut digest = Sha256::new();
        let bytes = std::io::copy(&mut file, &mut Hashed(&mut digest)).map_err(cannot)?;
        Ok(Lines {
            path,
            file,
            bytes,
            digest,
        })
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
        self.check_there()?;
        self.file
            .write_all(&line)
            .map_err(|error| cannot_write(&self.path, error))?;
        self.bytes += line.len() as u64;
        self.digest.update(&line);
        Ok(())
    }

    /// Makes everything added so far durable.
    pub fn sync(&self) -> Result<()> {
        self.check_there()?;
        self.file
            .sync_data()
            .map_err(|error| cannot_write(&self.path, error))
    }

    /// What was added so far.
    pub fn extent(&self) -> Extent {
        Extent {
            bytes: self.bytes,
            sha256: hex(&self.digest.clone().finalize()),
        }
    }

    /// Refuses to write into a file that nobody will find, or that somebody else cut short.
    pub fn check_there(&self) -> Result<()> {
        let own = self.file.metadata();
        let own = own.map_err(|error| cannot_write(&self.path, error))?;
        let there = fs::metadata(&self.path);
        let what = match there {
            Ok(there) if same_file(&own, &there) && there.len() == self.bytes => return Ok(()),
            Ok(there) if same_file(&own, &there) => "has been changed by another program",
            _ => "is gone: it was moved, deleted or replaced",
        };
        Err(gone(&format!("{} {what}", self.path.display())))
    }
}

/// The run has lost a file or its folder under its hands.
pub(super) fn gone(what: &str) -> Error {
    Error::failure(format!("{what} while the run was training")).help(
        "what was saved before lies where the run is now: put it back where it was, or name its new \
         place (--set output=…), and go on by --resume",
    )
}

/// Whether two looks were at one file. Where the system does not tell, they are taken to be.
pub(super) fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (one, other);
        true
    }
}

/// Something that is hashed as it is written.
struct Hashed<'a>(&'a mut Sha256);

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The size of a file, or of all files in a folder and the folders in it, and its SHA-256 in hexadecimal: of a folder,
/// that of the names and digests of its files. Those whose names begin with a dot are passed over.
pub fn digest_of(path: &Path) -> Result<(u64, String)> {
    if !path.is_dir() {
        return digest_of_file(path);
    }
    let entries = entries(path)?;
    let parts = entries.par_iter().map(|entry| digest_of(entry));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    for (entry, (size, part)) in entries.iter().zip(parts) {
        let name = entry.file_name().unwrap_or_default().as_encoded_bytes();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update(part);
        bytes += size;
    }
    Ok((bytes, hex(&digest.finalize())))
}

/// What is in a folder, sorted by name, without what is hidden.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    };
    read().map_err(|error| cannot_read(dir, error))
}

fn digest_of_file(path: &Path) -> Result<(u64, String)> {
    let cannot = |error| cannot_read(path, error);
    let mut file = File::open(path).map_err(cannot)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(cannot)?;
        if read == 0 {
            return Ok((bytes, hex(&digest.finalize())));
        }
        digest.update(&buffer[..read]);
        bytes += read as u64;
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

/// Whether a file begins with what there was of it at some moment.
pub(super) fn begins_with(path: &Path, extent: &Extent) -> Result<bool> {
    match fs::read(path) {
        Ok(bytes) => {
            let len = usize::try_from(extent.bytes).unwrap_or(usize::MAX);
            let then = bytes.get(..len);
            Ok(then.is_some_and(|bytes| sha256(bytes) == extent.sha256))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(extent.bytes == 0),
        Err(error) => Err(cannot_read(path, error)),
    }
}

/// Cuts a file back to what there was of it at some moment.
pub(super) fn cut(path: &Path, extent: &Extent) -> Result<()> {
    let cannot = |error| cannot_write(path, error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(cannot)?;
    if file.metadata().map_err(cannot)?.len() == extent.bytes {
        return Ok(());
    }
    file.set_len(extent.bytes).map_err(cannot)?;
    file.sync_all().map_err(cannot)
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
    fn a_plain_name_is_no_path_no_flag_and_not_hidden() {
        for (text, name) in [
            ("uniform every=10", "uniform-every=10"),
            ("a/b -- c", "a-b-c"),
            ("../--force", "force"),
            ("k=50% [query]", "k=50%-query"),
            ("über", "über"),
            ("./-", ""),
        ] {
            assert_eq!(plain_name(text), name, "{text}");
        }
        assert_eq!(plain_name(&"x".repeat(300)).len(), 120);
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
