//! What all targets share: each gives the bytes to one of [`dynalora_tests::entries`].

use std::sync::OnceLock;

use dynalora_tests::entries::Entry;
pub use libfuzzer_sys;
use tempfile::TempDir;

/// Gives `bytes` to `entry`, whose folder is prepared at the first call.
pub fn take(entry: Entry, bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        entry.prepare(folder.path());
        folder
    });
    let _ = entry.take(folder.path(), bytes);
}

/// The target of one kind of file.
#[macro_export]
macro_rules! target {
    ($entry:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            $crate::take(dynalora_tests::entries::Entry::$entry, bytes);
        });
    };
}
