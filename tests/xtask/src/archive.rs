//! A tar.gz of which two builds of the same files have the same bytes.

use std::fs::File;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use miette::{Context, IntoDiagnostic, Result};
use tar::{Builder, HeaderMode};

use crate::layout::files;

/// Writes the folder at `root`, under its own name, to `archive`.
pub fn write(root: &Path, archive: &Path) -> Result<()> {
    let name = Path::new(root.file_name().unwrap_or_default());
    let files = files(root)?;
    let pack = || -> std::io::Result<()> {
        let mut builder = Builder::new(GzEncoder::new(File::create(archive)?, Compression::best()));
        // No times, no owners.
        builder.mode(HeaderMode::Deterministic);
        for file in files {
            builder.append_path_with_name(root.join(&file), name.join(&file))?;
        }
        builder.into_inner()?.finish()?;
        Ok(())
    };
    pack()
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be written", archive.display()))
}
