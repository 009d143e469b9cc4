//! A Hub on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use hf_hub::Cache;

use super::Hub;
use crate::file::sha256;
/// What a Hub has, and how it behaves.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The files, by the ends of their addresses.
    pub files: Vec<(String, Vec<u8>)>,
    /// Whether it breaks off in the middle of each.
    pub cut: bool,
    /// What it answers to all that ask, in place of files: a status.
    pub refuses: Option<u16>,
    /// What it says that the SHA-256 of each file is, where it says that.
    pub sums: Option<fn(&[u8]) -> String>,
    /// How long it waits before each answer.
    pub slow: Duration,
    /// The commit that it says files are of.
    pub commit: String,
}

impl Serving {
    /// These files, as they should be.
    pub fn of(files: Vec<(&str, Vec<u8>)>) -> Self {
        let files = files.into_iter();
        Serving {
            files: files
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .collect(),
            cut: false,
            refuses: None,
            sums: None,
            slow: Duration::ZERO,
            commit: "abc123".to_owned(),
        }
    }
}

/// Serves it, asked for as the real one is: the address.
pub fn serve(serving: Serving) -> String {
    let Serving {
        files,
        cut,
        refuses,
        sums,
        slow,
        commit,
    } = serving;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().take(256) {
            let Ok(mut stream) = stream else { continue };
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let mut request = String::new();
            let mut range = None;
            loop {
                let mut line = String::new();
                if reader.by_ref().read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if request.is_empty() {
                    request.clone_from(&line);
                }
                if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
                    let (from, to) = value.trim().split_once('-').expect("a range");
                    range = Some((from.parse::<usize>().unwrap_or(0), to.parse::<usize>().ok()));
                }
            }
            let path = request.split(' ').nth(1).unwrap_or_default();
            std::thread::sleep(slow);
            let file = files
                .iter()
                .find(|(name, _)| path.ends_with(&format!("/{name}")));
            let response = match file.filter(|_| refuses.is_none()) {
                None => format!(
                    "HTTP/1.1 {} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    refuses.unwrap_or(404)
                )
                .into_bytes(),
                Some((_, bytes)) => {
                    let tag = sums.map_or_else(
                        // As git names a small file: 40 digits.
                        || sha256(bytes)[..40].to_owned(),
                        |sum| sum(bytes),
                    );
                    let (from, to) = range.unwrap_or((0, None));
                    let to = to.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
                    let part = &bytes[from..=to];
                    let mut response = format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\
                         Content-Range: bytes {from}-{to}/{}\r\nETag: \"{tag}\"\r\n\
                         X-Repo-Commit: {commit}\r\nConnection: close\r\n\r\n",
                        part.len(),
                        bytes.len()
                    )
                    .into_bytes();
                    let sent = if cut && part.len() > 1 {
                        part.len() / 2
                    } else {
                        part.len()
                    };
                    response.extend(&part[..sent]);
                    response
                }
            };
            let _ = stream.write_all(&response);
        }
    });
    endpoint
}

/// A client of the Hub at `endpoint`, with its own cache.
pub fn client(endpoint: String, cache: &Path) -> Hub {
    Hub {
        endpoint: Some(endpoint),
        cache: Cache::new(cache.to_owned()),
        token: None,
        offline: None,
    }
}

impl Hub {
    /// The same, which `variable` forbids the network.
    pub fn without_network(self, variable: &'static str) -> Self {
        Hub {
            offline: Some(variable),
            ..self
        }
    }
}
