//! A library's static manifest, read from its file: none of its code runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use dynalora_plugin_api::Kind;
use dynalora_plugin_api::abi::label::{FORMAT, HEAD, LONGEST, MAGIC, checksum};
use dynalora_plugin_api::abi::{SYMBOL, text};
use memchr::memmem::Finder;

/// What a library says of its plugin before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The name a recipe uses.
    pub name: String,
    /// Scorer, allocator, or both.
    pub kinds: Vec<Kind>,
    /// The version of the plugin.
    pub version: String,
    /// The version of the plugin-api it was built with.
    pub api_version: String,
    /// What a panic does in it: `unwind`, or `abort`; `none` where there are no panics.
    pub panic: String,
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It holds this plugin.
    Plugin(Label),
    /// It is a plugin of a version from before there were static manifests.
    Older,
    /// It begins a static manifest, but why it cannot be taken.
    Damaged(String),
    /// Nothing: it is some other library.
    Nothing,
}

/// Reads the static manifest of the file at `path`, however large the file.
pub fn read(path: &Path) -> io::Result<Said> {
    let mut file = File::open(path)?;
    let [found, older] = find(&mut file, [&MAGIC, SYMBOL.as_bytes()])?;
    match found[..] {
        [] if older.is_empty() => Ok(Said::Nothing),
        [] => Ok(Said::Older),
        [at] => take(&mut file, at),
        _ => Ok(Said::Damaged(format!(
            "it has {} static manifests",
            found.len()
        ))),
    }
}

/// Where each of the needles is in the file.
fn find<const N: usize>(file: &mut File, needles: [&[u8]; N]) -> io::Result<[Vec<u64>; N]> {
    let finders = needles.map(Finder::new);
    let longest = needles.map(<[u8]>::len).into_iter().max().unwrap_or(1);
    let mut found = [const { Vec::new() }; N];
    let mut buffer = Vec::new();
    let mut start = 0;
    loop {
        let kept = buffer.len();
        let read = file.by_ref().take(1 << 20).read_to_end(&mut buffer)?;
        for (found, finder) in found.iter_mut().zip(&finders) {
            // One that lay in the last piece whole has been found there.
            let known = kept.saturating_sub(finder.needle().len() - 1);
            let places = finder.find_iter(&buffer[known..]);
            found.extend(places.map(|place| start + (known + place) as u64));
        }
        if read == 0 {
            return Ok(found);
        }
        let done = buffer.len().saturating_sub(longest - 1);
        buffer.drain(..done);
        start += done as u64;
    }
}

fn take(file: &mut File, at: u64) -> io::Result<Said> {
    let damaged = |why: &str| Ok(Said::Damaged(format!("its static manifest {why}")));
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take((HEAD + LONGEST) as u64).read_to_end(&mut bytes)?;
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else {
        return damaged("is cut short");
    };
    let number = |from: usize, length: usize| {
        let mut number = [0; 8];
        number[..length].copy_from_slice(&head[from..from + length]);
        u64::from_le_bytes(number)
    };
    let (length, sum) = (number(MAGIC.len(), 4), number(MAGIC.len() + 4, 8));
    let Some(text) = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
    else {
        return damaged("is cut short, or its length is wrong");
    };
    // C's preprocessor, which lays the same bytes, can compute none.
    if sum != 0 && checksum(text) != sum {
        return damaged("does not match its checksum");
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok(parse(text).map_or_else(Said::Damaged, Said::Plugin)),
        Err(_) => damaged("is no text"),
    }
}

/// The keys that are needed; others are passed over.
fn parse(text: &str) -> Result<Label, String> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(name, _)| *name == key);
        found
            .map(|(_, value)| text::line(value, 200))
            .ok_or_else(|| format!("its static manifest has no `{key}`"))
    };
    let (format, kind) = (value("format")?, value("kind")?);
    if format != FORMAT {
        return Err(format!(
            "its static manifest is of format {format}, this program reads {FORMAT}"
        ));
    }
    Ok(Label {
        name: value("name")?,
        kinds: kinds(&kind)?,
        version: value("version")?,
        api_version: value("api")?,
        panic: value("panic")?,
    })
}

/// The words of `kind`.
fn kinds(words: &str) -> Result<Vec<Kind>, String> {
    let kinds = words.split_whitespace().map(|word| match word {
        "scorer" => Ok(Kind::Scorer),
        "allocator" => Ok(Kind::Allocator),
        other => Err(format!(
            "it holds a {other}, which this program does not know"
        )),
    });
    let kinds: Vec<Kind> = kinds.collect::<Result<_, _>>()?;
    match kinds.is_empty() {
        true => Err("its static manifest names no kind".to_owned()),
        false => Ok(kinds),
    }
}

impl Label {
    /// Its kinds in words: `scorer and allocator`.
    pub fn kind_words(&self) -> String {
        let words: Vec<String> = self.kinds.iter().map(Kind::to_string).collect();
        words.join(" and ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "format=1\nname=mine\nkind=scorer\nversion=1.2.3\napi=1.0.0\npanic=unwind\nlater=yes\n";

    fn label(text: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(checksum(text.as_bytes()).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    fn said(bytes: &[u8]) -> Said {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path()).unwrap()
    }

    #[test]
    fn it_is_found_wherever_it_lies() {
        // Across the seams of the pieces in which a file is read, and at both ends.
        for before in [
            0,
            1,
            (1 << 20) - 28,
            (1 << 20) - 15,
            (1 << 20) - 1,
            1 << 20,
            (3 << 20) + 5,
        ] {
            let mut bytes = vec![0xd7; before];
            bytes.extend(label(TEXT));
            let Said::Plugin(found) = said(&bytes) else {
                panic!("not found after {before} bytes");
            };
            assert_eq!(
                (found.name.as_str(), &found.kinds[..]),
                ("mine", &[Kind::Scorer][..])
            );
            assert_eq!(
                (found.api_version.as_str(), found.panic.as_str()),
                ("1.0.0", "unwind")
            );
        }
    }

    #[test]
    fn whatever_is_wrong_with_it_is_said() {
        assert_eq!(said(b""), Said::Nothing);
        assert_eq!(said(&[0; 99_999]), Said::Nothing);
        assert_eq!(said(format!("\0{SYMBOL}\0").as_bytes()), Said::Older);
        let whole = label(TEXT);
        for length in MAGIC.len()..whole.len() {
            assert!(
                matches!(said(&whole[..length]), Said::Damaged(_)),
                "{length}"
            );
        }
        for at in MAGIC.len()..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert!(matches!(said(&flipped), Said::Damaged(_)), "{at}");
        }
        let wrong = |text: &str| match said(&label(text)) {
            Said::Damaged(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(wrong(&TEXT.replace("format=1", "format=2")).contains("format 2"));
        assert!(wrong(&TEXT.replace("kind=scorer", "kind=sampler")).contains("sampler"));
        assert!(wrong(&TEXT.replace("name=", "nom=")).contains("`name`"));
        let mut unsummed = label(TEXT);
        unsummed[MAGIC.len() + 4..HEAD].fill(0);
        assert!(matches!(said(&unsummed), Said::Plugin(label) if label.version == "1.2.3"));
        let twice = [label(TEXT), label(TEXT)].concat();
        assert!(matches!(said(&twice), Said::Damaged(why) if why.contains('2')));
    }
}
