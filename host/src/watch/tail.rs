//! A growing file of JSON lines, of which only what is new is read.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::file::{cannot_read, same_file};

/// How far a file has been read.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// The file as it was at the last look.
    seen: Option<Metadata>,
    /// Bytes of the lines that were whole.
    bytes: u64,
    lines: usize,
    /// The last of them: what is there still where the file only grew.
    last: Vec<u8>,
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Grown<T> {
    /// Whether it begins again: the file is another, or was cut, as by a resume. What was read before is void.
    pub anew: bool,
    /// The new records.
    pub records: Vec<T>,
    /// The first line that is none.
    pub wrong: Option<String>,
}

impl<T> Grown<T> {
    fn nothing(anew: bool) -> Self {
        Grown {
            anew,
            records: Vec::new(),
            wrong: None,
        }
    }
}

impl Tail {
    pub fn new(path: PathBuf) -> Self {
        Tail {
            path,
            seen: None,
            bytes: 0,
            lines: 0,
            last: Vec::new(),
        }
    }

    /// The records that were added since the last look. A last line that is being written is left for the next.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Grown<T>> {
        let opened = File::open(&self.path).and_then(|file| Ok((file.metadata()?, file)));
        let (now, mut file) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Grown::nothing(self.begin_again()));
            }
            Err(error) => return Err(cannot_read(&self.path, error)),
        };
        let unchanged = |seen: &Metadata| {
            let time = |file: &Metadata| file.modified().ok();
            same_file(seen, &now) && seen.len() == now.len() && time(seen) == time(&now)
        };
        if self.seen.as_ref().is_some_and(unchanged) {
            return Ok(Grown::nothing(false));
        }
        let cannot = |error| cannot_read(&self.path, error);
        let goes_on = match &self.seen {
            Some(seen) => same_file(seen, &now) && self.is_there(&mut file).map_err(cannot)?,
            None => true,
        };
        let mut new = Vec::new();
        let mut grown = Grown::nothing(!goes_on && self.begin_again());
        let cannot = |error| cannot_read(&self.path, error);
        file.seek(SeekFrom::Start(self.bytes))
            .and_then(|_| file.read_to_end(&mut new))
            .map_err(cannot)?;
        for line in new.split_inclusive(|byte| *byte == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            self.lines += 1;
            self.bytes += line.len() as u64;
            self.last.clear();
            self.last.extend(line);
            match serde_json::from_slice(line) {
                Ok(record) => grown.records.push(record),
                Err(_) => {
                    let name = self.path.file_name().unwrap_or_default().display();
                    let wrong = format!("{name}, line {}: not a record", self.lines);
                    grown.wrong.get_or_insert(wrong);
                }
            }
        }
        self.seen = Some(now);
        Ok(grown)
    }

    /// Whether the last line that was read is where it was.
    fn is_there(&self, file: &mut File) -> std::io::Result<bool> {
        let mut there = vec![0; self.last.len()];
        file.seek(SeekFrom::Start(self.bytes - self.last.len() as u64))?;
        match file.read_exact(&mut there) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| there == self.last),
        }
    }

    /// Forgets what was read, and says whether there was anything.
    fn begin_again(&mut self) -> bool {
        let had = self.bytes > 0;
        *self = Tail::new(std::mem::take(&mut self.path));
        had
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use serde_json::{Value, json};

    use super::*;

    /// The values of `n` in the new records, and whether they begin again.
    fn look(tail: &mut Tail) -> (bool, Vec<u64>) {
        let grown = tail.read::<Value>().unwrap();
        assert_eq!(grown.wrong, None);
        let numbers = grown.records.iter().map(|it| it["n"].as_u64().unwrap());
        (grown.anew, numbers.collect())
    }

    #[test]
    fn only_what_is_new_and_whole_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut tail = Tail::new(path.clone());
        assert_eq!(look(&mut tail), (false, vec![]));
        let add = |text: &str| {
            let mut file = File::options().append(true).create(true).open(&path);
            file.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        };
        add("{\"n\": 1}\n{\"n\": 2}\n{\"n\"");
        assert_eq!(look(&mut tail), (false, vec![1, 2]));
        assert_eq!(look(&mut tail), (false, vec![]));
        add(": 3");
        assert_eq!(look(&mut tail), (false, vec![]));
        add("}\n");
        assert_eq!(look(&mut tail), (false, vec![3]));
        assert_eq!((tail.bytes, tail.lines), (27, 3));
    }

    #[test]
    fn a_log_that_a_resume_cut_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let write = |numbers: &[u64]| {
            let lines = numbers.iter().map(|n| format!("{}\n", json!({ "n": n })));
            fs::write(&path, lines.collect::<String>()).unwrap();
        };
        write(&[1, 2, 3]);
        let mut tail = Tail::new(path.clone());
        assert_eq!(look(&mut tail), (false, vec![1, 2, 3]));
        // Cut, and grown again to as long as it was or longer.
        write(&[1, 2]);
        assert_eq!(look(&mut tail), (true, vec![1, 2]));
        write(&[1, 4, 5]);
        assert_eq!(look(&mut tail), (true, vec![1, 4, 5]));
        // Replaced by another file, and gone.
        let other = folder.path().join("other");
        fs::write(&other, "{\"n\":1}\n{\"n\":4}\n{\"n\":5}\n{\"n\":6}\n").unwrap();
        fs::rename(&other, &path).unwrap();
        let (anew, numbers) = look(&mut tail);
        assert_eq!(numbers, [1, 4, 5, 6]);
        assert_eq!(anew, cfg!(unix));
        fs::remove_file(&path).unwrap();
        assert_eq!(look(&mut tail), (true, vec![]));
        assert_eq!(look(&mut tail), (false, vec![]));
    }

    #[test]
    fn a_line_that_is_no_record_is_named_and_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        fs::write(&path, b"{\"n\": 1}\n\xff\n{\"n\": 3}\n").unwrap();
        let grown = Tail::new(path).read::<Value>().unwrap();
        assert_eq!(grown.records.len(), 2);
        let wrong = grown.wrong.unwrap();
        assert_eq!(wrong, "log.jsonl, line 2: not a record");
    }
}
