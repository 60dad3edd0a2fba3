//! Room for a demo: a directory that goes away with it, on a file system that can hold it.

use std::{
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::report::human;

/// Beyond the content itself: logs, chains, directories.
const SLACK: u64 = 64 << 20;

/// Why there is no scratch directory.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// Too little room, wherever it may be.
    #[error("not enough disk space: {} are needed, but {}; set TMPDIR to a directory with more room, or make --size or --nodes smaller", human(*.needed), list(.candidates))]
    Space {
        /// Bytes that the demo may use.
        needed: u64,
        /// Where it looked, and the bytes that are free there.
        candidates: Vec<(PathBuf, u64)>,
    },
    /// The directory cannot be looked at or made.
    #[error("cannot use {}: {source}", .path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn list(candidates: &[(PathBuf, u64)]) -> String {
    let one = |(path, free): &(PathBuf, u64)| format!("{} has {}", path.display(), human(*free));
    candidates.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// Bytes that a demo needs: what the origin has, and what each node keeps of it.
pub(super) fn needed(image_bytes: u64, nodes: usize) -> u64 {
    let copies = image_bytes.saturating_mul(nodes as u64 + 1);
    copies.saturating_add(copies / 50).saturating_add(SLACK)
}

/// A new directory in `$TMPDIR`; without that in `/tmp`, or in `/var/tmp` if `/tmp` is too small (it may lie in memory).
pub(super) fn create(needed: u64) -> Result<TempDir, ScratchError> {
    let candidates = match std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![PathBuf::from("/tmp"), PathBuf::from("/var/tmp")],
    };
    create_in(candidates, needed)
}

fn create_in(candidates: Vec<PathBuf>, needed: u64) -> Result<TempDir, ScratchError> {
    let mut short = Vec::new();
    for path in candidates {
        match free_bytes(&path) {
            Ok(free) if free >= needed => {
                let made = tempfile::Builder::new().prefix("shoal-demo-").tempdir_in(&path);
                return made.map_err(|source| ScratchError::Directory { path, source });
            }
            Ok(free) => short.push((path, free)),
            Err(source) => return Err(ScratchError::Directory { path, source }),
        }
    }
    Err(ScratchError::Space { needed, candidates: short })
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_demo_that_does_not_fit_says_how_much_it_needs_and_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let error = create_in(vec![dir.path().to_owned()], 1 << 60).unwrap_err().to_string();
        assert!(
            error.contains("1073741824.0 GiB are needed") && error.contains(&dir.path().display().to_string()),
            "{error}"
        );
    }

    #[test]
    fn the_scratch_directory_lies_where_there_is_room_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = create_in(vec![dir.path().to_owned()], 1).unwrap();
        let path = scratch.path().to_owned();
        assert!(path.starts_with(dir.path()));
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = create_in(vec!["/nonexistent/tmp".into()], 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot use /nonexistent/tmp: "), "{error}");
    }

    #[test]
    fn each_node_and_the_origin_count_as_a_copy() {
        assert!(needed(100 << 20, 5) >= 6 * (100 << 20) + SLACK);
        assert_eq!(needed(u64::MAX, 5), u64::MAX);
    }
}
