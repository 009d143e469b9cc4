//! A cache of the Hugging Face Hub with something in it.

use std::path::{Path, PathBuf};

/// The commit that all data sets are of.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Puts a data set, `owner/name`, into the cache below `home`, `HF_HOME`, as the Hub's own library does: its snapshot.
pub fn cached(home: &Path, name: &str, files: &[(&str, Vec<u8>)]) -> PathBuf {
    let folder = format!("datasets--{}", name.replace('/', "--"));
    let repository = home.join("hub").join(folder);
    let snapshot = repository.join("snapshots").join(COMMIT);
    for (name, bytes) in files {
        let path = snapshot.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }
    std::fs::create_dir_all(repository.join("refs")).expect("a folder");
    std::fs::write(repository.join("refs/main"), COMMIT).expect("a file");
    snapshot
}
