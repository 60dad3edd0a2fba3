//! Changing a configuration file of another program without harm: planned first, written at once, undone exactly.
//!
//! What is to stand in the file is a [`Part`], which knows the file's format. Everything else is here: a copy of the file
//! is kept before the first change, readers see the old file or the new one, and a removal leaves nothing behind.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::failure::{CANNOT_CREATE, Failure, NO_PERMISSION};

/// What is appended to a file's name for the copy of before.
const BACKUP: &str = ".shoal-backup";
/// Longest configuration file that is read.
const FILE_BYTES: u64 = 4 << 20;
/// Around lines of ours in a file of somebody else, in formats that have comments.
const BEGIN: &str = "# >>> shoal";
const END: &str = "# <<< shoal\n";

/// Why a file of somebody else cannot take our part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EditError {
    /// The program that reads it refuses or ignores such a file already.
    #[error("it is not valid {0} ({1})")]
    Broken(&'static str, String),
    /// Our part has no safe place in it.
    #[error("its form leaves no place for the daemon")]
    Form,
    /// It stands at the name of a file that is ours alone.
    #[error("it was not written, or was changed, by somebody other than `shoal configure`")]
    Foreign,
}

/// What we want in a file, in the file's own format.
pub(super) trait Part {
    /// A new file with nothing but our part.
    fn fresh(&self) -> String;
    /// The text with our part in it. The same text if it is there.
    fn put(&self, text: &str) -> Result<String, EditError>;
    /// The text without our part: what was there before it was put in, unless it was edited since.
    fn take(&self, text: &str) -> Result<String, EditError>;
    /// Whether our part is in it, perhaps with other settings.
    fn is_in(&self, text: &str) -> bool;
    /// Whether the text says no more than [`Self::fresh`] may have said, so that the file may go.
    fn is_all_of(&self, text: &str) -> bool;
    /// What a person can do where we cannot.
    fn by_hand(&self) -> String;
}

/// What is done to one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    /// It was not there.
    Created,
    /// It was ours, with other settings.
    Updated,
    /// It was somebody else's, and has our part in it now.
    Merged,
    /// Nothing to do.
    Unchanged,
    /// It was ours and is gone.
    Removed,
    /// Our part is out of it, the rest is as it was.
    Restored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backup {
    None,
    /// The file of before is copied there first.
    Make,
    /// There is one already, and it stays.
    Keep,
    /// It has done its work and goes.
    Drop,
}

/// What is to happen to one file.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) path: PathBuf,
    pub(super) action: Action,
    before: Option<String>,
    /// None: the file is not there afterwards.
    after: Option<String>,
    backup: Backup,
    /// Whether the file's directory is there for this file alone.
    directory_too: bool,
}

impl Plan {
    fn new(path: &Path, action: Action, before: Option<String>, after: Option<String>, backup: Backup) -> Self {
        Self { path: path.to_owned(), action, before, after, backup, directory_too: false }
    }

    /// With its directory, if that is empty when the file is gone.
    pub(super) fn with_directory(self) -> Self {
        Self { directory_too: true, ..self }
    }

    /// Puts a part into a file, which need not be there.
    pub(super) fn put(path: &Path, part: &impl Part) -> Result<Self, Failure> {
        let saved = read(&backup_of(path))?.is_some();
        let backup = if saved { Backup::Keep } else { Backup::None };
        let plan = |action, before, after, backup| Self::new(path, action, before, after, backup);
        let Some(current) = read(path)? else {
            return Ok(plan(Action::Created, None, Some(part.fresh()), backup));
        };
        let ours = part.is_in(&current);
        let wanted = if !saved && part.is_all_of(&current) {
            part.fresh()
        } else {
            part.put(&current).map_err(|error| refused(path, &error, part))?
        };
        if wanted == current {
            return Ok(plan(Action::Unchanged, Some(current.clone()), Some(current), backup));
        }
        let action = if ours { Action::Updated } else { Action::Merged };
        // A copy of an earlier time is of what was there before us: the older one is the better one.
        let backup = if ours || saved { backup } else { Backup::Make };
        Ok(plan(action, Some(current), Some(wanted), backup))
    }

    /// Takes a part out of a file.
    pub(super) fn take(path: &Path, part: &impl Part) -> Result<Self, Failure> {
        let saved = read(&backup_of(path))?;
        let kept = if saved.is_some() { Backup::Keep } else { Backup::None };
        let plan = |action, before, after, backup| Self::new(path, action, before, after, backup);
        let Some(current) = read(path)? else { return Ok(plan(Action::Unchanged, None, None, Backup::None)) };
        if !part.is_in(&current) {
            return Ok(plan(Action::Unchanged, Some(current.clone()), Some(current), kept));
        }
        if let Some(saved) = &saved {
            let rest = part.take(&current);
            let unedited = part.put(saved).is_ok_and(|put| put == current)
                || rest.is_ok_and(|rest| rest.trim_end() == saved.trim_end());
            if unedited {
                return Ok(plan(Action::Restored, Some(current), Some(saved.clone()), Backup::Drop));
            }
        }
        if part.is_all_of(&current) {
            return Ok(plan(Action::Removed, Some(current), None, Backup::None));
        }
        // Edited since: the edits are somebody's work too.
        let rest = part.take(&current).map_err(|error| refused(path, &error, part))?;
        Ok(plan(Action::Restored, Some(current), Some(rest), kept))
    }

    /// Where the file of before is kept, if it is.
    pub(super) fn kept_backup(&self) -> Option<PathBuf> {
        matches!(self.backup, Backup::Make | Backup::Keep).then(|| backup_of(&self.path))
    }

    /// What changes, as `diff -u` tells it. None if nothing does.
    pub(super) fn diff(&self) -> Option<String> {
        let (before, after) = (self.before.as_deref().unwrap_or(""), self.after.as_deref().unwrap_or(""));
        if before == after {
            return None;
        }
        let name = |there: bool| if there { self.path.display().to_string() } else { "/dev/null".to_owned() };
        let diff = similar::TextDiff::from_lines(before, after);
        let (old, new) = (name(self.before.is_some()), name(self.after.is_some()));
        Some(diff.unified_diff().header(&old, &new).to_string())
    }

    /// Does it.
    pub(super) fn carry_out(&self) -> Result<(), Failure> {
        self.write().map_err(|error| cannot_change(&self.path, &error))
    }

    fn write(&self) -> io::Result<()> {
        if let (Backup::Make, Some(before)) = (self.backup, &self.before) {
            write_atomically(&backup_of(&self.path), before, mode_of(&self.path))?;
        }
        match &self.after {
            Some(after) if self.before.as_ref() != Some(after) => {
                write_atomically(&self.path, after, mode_of(&self.path))?;
            }
            None if self.before.is_some() => {
                fs::remove_file(&self.path)?;
                if let Some(directory) = self.path.parent().filter(|_| self.directory_too) {
                    // It stays if somebody else has files in it.
                    fs::remove_dir(directory).ok();
                }
            }
            Some(_) | None => {}
        }
        if self.backup == Backup::Drop { fs::remove_file(backup_of(&self.path)) } else { Ok(()) }
    }
}

fn refused(path: &Path, error: &EditError, part: &impl Part) -> Failure {
    Failure::new(CANNOT_CREATE, format!("{}: the file was left alone, {error}; {}", path.display(), part.by_hand()))
}

fn backup_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BACKUP);
    PathBuf::from(name)
}

/// A file's text; none if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot_change(path, &error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| cannot_change(path, &error))?;
    if text.len() as u64 > FILE_BYTES {
        let message = format!("{}: the file was left alone, it is longer than 4 MiB", path.display());
        return Err(Failure::new(CANNOT_CREATE, message));
    }
    Ok(Some(text))
}

fn cannot_change(path: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Failure::new(NO_PERMISSION, format!("cannot change {}: {error}; run it as root", path.display()))
    } else {
        Failure::new(CANNOT_CREATE, format!("cannot change {}: {error}", path.display()))
    }
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o7777)
}

/// Its program may read at any moment, and the power may fail: it sees the old file or the new one. A link is followed.
fn write_atomically(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// The first line of a file that we made from nothing.
pub(super) fn own_line(client: &str) -> String {
    format!("# Written by `shoal configure {client}`; `shoal configure {client} --remove` takes it away.\n")
}

/// Whether we made the file from nothing, for whichever client.
pub(super) fn is_own(text: &str) -> bool {
    text.starts_with("# Written by `shoal configure ")
}

/// Lines of ours, marked so that [`without_marked`] finds them. `what` is one line.
pub(super) fn marked(indent: &str, what: &str, lines: &str) -> String {
    format!("{indent}{BEGIN}: {what}\n{lines}{indent}{END}")
}

/// Where the first marked lines stand from an offset on.
pub(super) fn marked_range(text: &str, from: usize) -> Option<Range<usize>> {
    let begin = from + text.get(from..)?.find(BEGIN)?;
    let start = text[..begin].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[begin..].find(END.trim_end()).map(|at| begin + at + END.len())?;
    // The last line of a file may have lost its end.
    Some(start..end.min(text.len()))
}

/// What [`marked`] was told of each marked block.
pub(super) fn marks(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix(BEGIN)?.strip_prefix(": ")).collect()
}

/// The text without any lines of ours.
pub(super) fn without_marked(text: &str) -> String {
    let mut rest = String::new();
    let mut at = 0;
    while let Some(range) = marked_range(text, at) {
        rest.push_str(&text[at..range.start]);
        at = range.end;
    }
    rest.push_str(&text[at..]);
    rest
}

/// A file that is ours alone.
#[derive(Debug)]
pub(super) struct OwnFile {
    /// Begins with [`own_line`].
    pub(super) content: String,
    /// See [`Part::by_hand`].
    pub(super) by_hand: String,
}

impl Part for OwnFile {
    fn fresh(&self) -> String {
        self.content.clone()
    }

    fn put(&self, text: &str) -> Result<String, EditError> {
        if is_own(text) { Ok(self.content.clone()) } else { Err(EditError::Foreign) }
    }

    fn take(&self, _text: &str) -> Result<String, EditError> {
        Err(EditError::Foreign)
    }

    fn is_in(&self, text: &str) -> bool {
        is_own(text)
    }

    fn is_all_of(&self, text: &str) -> bool {
        is_own(text)
    }

    fn by_hand(&self) -> String {
        self.by_hand.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn own(content: &str) -> OwnFile {
        OwnFile { content: format!("{}{content}\n", own_line("podman")), by_hand: "move it away".to_owned() }
    }

    #[test]
    fn marked_lines_come_out_wherever_they_stand() {
        let (one, two) = (marked("", "a", "x\n"), marked("    ", "b", "    y\n"));
        let text = format!("first\n{one}second\n{two}third\n");
        assert_eq!(without_marked(&text), "first\nsecond\nthird\n");
        assert_eq!(marks(&text), ["a", "b"]);
        assert_eq!(without_marked(one.trim_end()), "");
        let open = "# >>> shoal: no end\nx\n";
        assert_eq!(without_marked(open), open, "what has no end is nobody's");
    }

    #[test]
    fn a_foreign_file_at_our_name_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("50-shoal.conf");
        fs::write(&path, "# mine\n").unwrap();
        let failure = Plan::put(&path, &own("x")).unwrap_err().to_string();
        assert!(failure.contains("left alone") && failure.contains("move it away"), "{failure}");
        assert_eq!(Plan::take(&path, &own("x")).unwrap().action, Action::Unchanged);
    }

    #[test]
    fn a_diff_tells_what_would_change_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let plan = Plan::put(&path, &own("x")).unwrap();
        let diff = plan.diff().unwrap();
        assert!(diff.starts_with("--- /dev/null\n") && diff.contains("\n+x\n"), "{diff}");
        plan.carry_out().unwrap();
        assert_eq!(Plan::put(&path, &own("x")).unwrap().diff(), None);
        let diff = Plan::put(&path, &own("y")).unwrap().diff().unwrap();
        assert!(diff.contains("\n-x\n+y\n"), "{diff}");
    }

    #[test]
    fn files_that_cannot_be_read_are_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let failure = read(directory.path()).unwrap_err().to_string();
        assert!(failure.contains(&directory.path().display().to_string()), "{failure}");
        let path = directory.path().join("binary");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("binary"));
        fs::write(&path, vec![b'x'; 4 << 20 | 1]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("4 MiB"));
    }
}
