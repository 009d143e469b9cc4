//! A Python wheel, as the packages ruff and uv are: no Python in it, a program that pip puts beside `python`.
//!
//! Written here, by the binary distribution format (packaging.python.org), from what is built already. maturin, which
//! those two use, would build the program's package alone: with other features, so burn once more, and without plugins.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use miette::{IntoDiagnostic, Result, bail, miette};
use sha2::{Digest, Sha256};

use crate::build::Project;
use crate::layout::{PLUGINS, SHARE, files, slashes};
use crate::{read, write as save};

/// Writes the files under `root` as a wheel into `folder`, and says where.
pub fn write(project: &Project, root: &Path, folder: &Path) -> Result<PathBuf> {
    let tag = format!("py3-none-{}", platform(&project.target, root)?);
    let name = format!("dynalora-{}", project.version);
    let mut wheel = Zip::default();
    let mut record = String::new();
    let mut add = |name: String, bytes: &[u8], executable: bool| -> Result<()> {
        let digest = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(bytes));
        record.push_str(&format!("{name},sha256={digest},{}\n", bytes.len()));
        wheel.add(&name, bytes, executable)
    };
    for file in files(root)? {
        let path = slashes(&file);
        let bytes = read(&root.join(&file))?;
        // `scripts` go beside `python`, `data` under the environment's prefix.
        match path.strip_prefix("bin/") {
            Some(program) => add(format!("{name}.data/scripts/{program}"), &bytes, true)?,
            None => add(
                format!("{name}.data/data/{path}"),
                &bytes,
                path.starts_with(PLUGINS),
            )?,
        }
    }
    let info = format!("{name}.dist-info");
    let mut licences = String::new();
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.txt"] {
        licences.push_str(&format!("License-File: {file}\n"));
        add(
            format!("{info}/licenses/{file}"),
            &read(&root.join(SHARE).join(file))?,
            false,
        )?;
    }
    let readme = String::from_utf8_lossy(&read(&project.root.join("README.md"))?).into_owned();
    let metadata = format!(
        "Metadata-Version: 2.4\nName: dynalora\nVersion: {}\nSummary: {}\nLicense-Expression: MIT OR Apache-2.0\n{licences}\
         Requires-Python: >=3.8\nDescription-Content-Type: text/markdown\n\n{readme}",
        project.version, project.description
    );
    add(format!("{info}/METADATA"), metadata.as_bytes(), false)?;
    let about = format!(
        "Wheel-Version: 1.0\nGenerator: dynalora xtask {}\nRoot-Is-Purelib: false\nTag: {tag}\n",
        project.version
    );
    add(format!("{info}/WHEEL"), about.as_bytes(), false)?;
    record.push_str(&format!("{info}/RECORD,,\n"));
    wheel.add(&format!("{info}/RECORD"), record.as_bytes(), false)?;
    let path = folder.join(format!("{name}-{tag}.whl"));
    save(&path, wheel.finish()?)?;
    Ok(path)
}

/// The tag of the platforms that all that is under `root` runs on: of Linux's by PEP 600, from the newest version of
/// glibc that any of it asks for.
fn platform(target: &str, root: &Path) -> Result<String> {
    let (Some((arch, _)), true) = (target.split_once('-'), target.ends_with("-linux-gnu")) else {
        bail!("wheels are written for Linux with glibc, and this is {target}");
    };
    let mut newest = 0;
    for folder in ["bin", PLUGINS] {
        for file in files(&root.join(folder))? {
            newest = newest.max(glibc(&read(&root.join(folder).join(file))?));
        }
    }
    match newest {
        0 => bail!("the program does not say which glibc it needs"),
        minor => Ok(format!("manylinux_2_{minor}_{arch}")),
    }
}

/// The newest `GLIBC_2.N` that is named as a whole string, as versions that a dynamic symbol needs are.
fn glibc(bytes: &[u8]) -> u32 {
    let start = b"GLIBC_2.";
    let found = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(start));
    let versions = found.filter_map(|at| {
        let rest = &bytes[at + start.len()..];
        let end = rest.iter().take(8).position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        // 2.2.5 is less than every 2.N.
        text.split('.').next()?.parse().ok()
    });
    versions.max().unwrap_or(0)
}

/// A zip file, as much of the format as a wheel needs: the crate `zip` would turn on features of others, and have burn
/// built again. No file is as large as 4 GiB.
#[derive(Default)]
struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

/// 1980-01-01, the first day there is.
const DAY: u16 = 0x21;

impl Zip {
    fn add(&mut self, name: &str, content: &[u8], executable: bool) -> Result<()> {
        let small = |length: usize| {
            u32::try_from(length).map_err(|_| miette!("{name} is too large for a wheel"))
        };
        let mut deflated = DeflateEncoder::new(Vec::new(), Compression::best());
        deflated.write_all(content).into_diagnostic()?;
        let deflated = deflated.finish().into_diagnostic()?;
        let at = small(self.bytes.len())?;
        let mut both = Vec::new();
        // Version 2.0, names in UTF-8, deflated; time and day.
        for number in [20u16, 0x0800, 8, 0, DAY] {
            both.extend(number.to_le_bytes());
        }
        for number in [
            crc32fast::hash(content),
            small(deflated.len())?,
            small(content.len())?,
        ] {
            both.extend(number.to_le_bytes());
        }
        let length = u16::try_from(name.len()).into_diagnostic()?;
        both.extend(length.to_le_bytes());
        // No extra fields.
        both.extend(0u16.to_le_bytes());

        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&both);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(&deflated);

        // Made on Unix, by version 2.0.
        self.directory.extend(b"PK\x01\x02\x14\x03");
        self.directory.extend(&both);
        // No comment, the first disk, nothing said of the content.
        self.directory.extend([0; 6]);
        let mode: u32 = if executable { 0o100_755 } else { 0o100_644 };
        self.directory.extend((mode << 16).to_le_bytes());
        self.directory.extend(at.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        let (at, length) = (self.bytes.len(), self.directory.len());
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        for _ in 0..2 {
            self.bytes.extend(self.entries.to_le_bytes());
        }
        for number in [length, at] {
            let number = u32::try_from(number).map_err(|_| miette!("the wheel is too large"))?;
            self.bytes.extend(number.to_le_bytes());
        }
        self.bytes.extend(0u16.to_le_bytes());
        Ok(self.bytes)
    }
}
