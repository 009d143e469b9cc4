//! TensorBoard's event files: records of protocol buffers, framed as TensorFlow frames them (`TFRecord`).
//!
//! The messages are the parts of `tensorboard/compat/proto` that are written, with its numbers. A sitting has a file of
//! its own, whose first event takes back what an earlier one wrote of the steps that are made again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use prost::{Message, Oneof};

use crate::error::Result;
use crate::file::{cannot_read, cannot_write};

/// What event files' names begin with.
const NAME: &str = "events.out.tfevents.";

/// Whether a file is one of those that are written here.
pub(super) fn is_own(name: &str) -> bool {
    name.starts_with(NAME)
}

/// An event file that is added to.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `folder`, in which everything from step `from` on is void that files before it say.
    pub fn create(folder: &Path, from: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        // TensorBoard reads files in the order of their names, whatever the clock says.
        let last = files(folder)?.into_iter().filter_map(|name| time_of(&name));
        let time = last.map(|time| time + 1).fold(now, u64::max);
        let path = folder.join(format!(
            "{NAME}{time:010}.dynalora.{}.0",
            std::process::id()
        ));
        let file = File::options().append(true).create_new(true).open(&path);
        let file = file.map_err(|error| cannot_write(&path, error))?;
        let mut events = Events { path, file };
        events.add(0, What::FileVersion("brain.Event:2".to_owned()))?;
        events.add(from, What::SessionLog(SessionLog { status: START }))?;
        Ok(events)
    }

    /// Whether there are any in `folder`.
    pub fn any(folder: &Path) -> Result<bool> {
        Ok(!files(folder)?.is_empty())
    }

    /// Adds numbers by their tags.
    pub fn scalars(&mut self, step: u64, scalars: Vec<(String, f64)>) -> Result<()> {
        let value = scalars.into_iter().map(|(tag, value)| Value {
            tag,
            simple_or_tensor: Some(Content::SimpleValue(value as f32)),
            metadata: None,
        });
        let value = value.collect();
        self.add(step, What::Summary(Summary { value }))
    }

    /// Adds a text, which TensorBoard shows as Markdown.
    pub fn text(&mut self, tag: &str, text: String) -> Result<()> {
        let tensor = Tensor {
            dtype: STRING,
            shape: Some(Shape {
                dim: vec![Dimension { size: 1 }],
            }),
            string: vec![text.into_bytes()],
        };
        let plugin = PluginData {
            name: "text".to_owned(),
        };
        let value = Value {
            tag: format!("{tag}/text_summary"),
            simple_or_tensor: Some(Content::Tensor(tensor)),
            metadata: Some(Metadata {
                plugin: Some(plugin),
            }),
        };
        let value = vec![value];
        self.add(0, What::Summary(Summary { value }))
    }

    /// In one call, so that a reader meets whole events.
    fn add(&mut self, step: u64, what: What) -> Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let event = Event {
            wall_time: since.map_or(0.0, |since| since.as_secs_f64()),
            step: step as i64,
            what: Some(what),
        };
        let framed = framed(&event.encode_to_vec());
        let written = self.file.write_all(&framed);
        written.map_err(|error| cannot_write(&self.path, error))
    }
}

/// The names of the event files in a folder; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_read(folder, error)),
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    Ok(names.filter(|name| is_own(name)).collect())
}

fn time_of(name: &str) -> Option<u64> {
    name.strip_prefix(NAME)?.split('.').next()?.parse().ok()
}

/// Length, its check sum, the bytes, their check sum.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut framed = Vec::with_capacity(bytes.len() + 16);
    framed.extend(length);
    framed.extend(masked(&length).to_le_bytes());
    framed.extend(bytes);
    framed.extend(masked(bytes).to_le_bytes());
    framed
}

/// CRC-32C, turned so that sums of bytes that hold sums are no trouble.
fn masked(bytes: &[u8]) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CRC.checksum(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// `SessionLog.SessionStatus.START`
const START: i32 = 1;
/// `DataType.DT_STRING`
const STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Content", tags = "2, 8")]
    simple_or_tensor: Option<Content>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    size: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(
            Crc::<u32>::new(&CRC_32_ISCSI).checksum(&[0; 32]),
            0x8a91_36aa
        );
        // What TensorFlow writes for an event of the file's version, but for its time.
        let event = Event {
            wall_time: 0.0,
            step: 0,
            what: Some(What::FileVersion("brain.Event:2".to_owned())),
        };
        let bytes = event.encode_to_vec();
        assert_eq!(bytes, b"\x1a\x0dbrain.Event:2");
        let framed = framed(&bytes);
        assert_eq!(framed.len(), 15 + 16);
        assert_eq!(framed[..8], [15, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_later_file_comes_later_whatever_the_clock_says() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(format!("{NAME}9999999996.h.1.0")), b"").unwrap();
        assert!(Events::any(folder.path()).unwrap());
        for _ in 0..2 {
            drop(Events::create(folder.path(), 3).unwrap());
        }
        let mut names = files(folder.path()).unwrap();
        names.sort();
        let times: Vec<u64> = names.iter().filter_map(|name| time_of(name)).collect();
        assert_eq!(times, [9_999_999_996, 9_999_999_997, 9_999_999_998]);
        assert!(!Events::any(&folder.path().join("none")).unwrap());
    }
}
