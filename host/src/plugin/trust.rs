//! Who else may write what is about to be loaded. It is warned of, not refused: on a shared machine it may be meant.

use std::path::Path;

/// Warns, once for each, of a library, of its folder and of the one it was found in by a link, where others than the
/// user and root may change them.
pub fn warn_of(library: &Path, found_in: Option<&Path>) {
    #[cfg(unix)]
    {
        use std::collections::HashSet;
        use std::path::PathBuf;
        use std::sync::{LazyLock, Mutex};
        static WARNED: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
        for path in [Some(library), library.parent(), found_in]
            .into_iter()
            .flatten()
        {
            let Some(why) = others(path) else { continue };
            let fresh = WARNED
                .lock()
                .is_ok_and(|mut warned| warned.insert(path.to_owned()));
            if fresh {
                tracing::warn!(
                    "plugins are code that runs as you, and {} {why}: whoever that is can run anything here",
                    path.display()
                );
            }
        }
    }
    #[cfg(not(unix))]
    let _ = (library, found_in);
}

/// Who else may write to a path, if anyone.
#[cfg(unix)]
fn others(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().ok()?;
    // SAFETY: asks for a number.
    let own = unsafe { libc::geteuid() };
    if metadata.uid() != own && metadata.uid() != 0 {
        return Some(format!("belongs to another user (id {})", metadata.uid()));
    }
    (metadata.mode() & 0o002 != 0).then(|| "may be written to by everyone".to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::others;

    #[test]
    fn what_everyone_may_write_to_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
            others(folder.path())
        };
        assert_eq!(set(0o755), None);
        assert!(set(0o777).unwrap().contains("everyone"));
        assert!(set(0o1777).is_some());
        assert_eq!(others(&folder.path().join("none")), None);
    }
}
