//! Where what can be made again is kept between runs.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Overrides the folder.
const VARIABLE: &str = "DYNALORA_CACHE";

/// The user's cache folder for dynalora: `DYNALORA_CACHE`, or the platform's own place. It need not exist yet.
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    directories::ProjectDirs::from("", "", "dynalora")
        .map(|dirs| dirs.cache_dir().to_owned())
        .ok_or_else(|| {
            Error::user("there is no home folder to keep a cache in")
                .help(format!("set {VARIABLE} to a folder that may be written to"))
        })
}
