//! Cuts between the operations of [`Disk`](super::disk::Disk), and what a power cut may then take away.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::disk::{Disk, Operation};

/// Lets some operations pass and none after them, as if the process had been killed there. Keeps book of what is not
/// durable yet.
#[derive(Debug)]
pub(super) struct Fault {
    state: Mutex<State>,
    full: bool,
}

#[derive(Debug, Default)]
struct State {
    left: usize,
    passed: usize,
    cut: bool,
    /// Files with bytes that were not synced.
    bytes: BTreeSet<PathBuf>,
    /// Changes of names whose directory was not synced, oldest first.
    names: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Vec<u8>> },
    Unlinked { path: PathBuf, content: Vec<u8> },
}

impl Fault {
    pub(super) fn after(operations: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { left: operations, ..State::default() }), full: false })
    }

    /// No cut, but no room for any blob either.
    pub(super) fn full_disk() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { left: usize::MAX, ..State::default() }), full: true })
    }

    pub(super) fn disk(self: &Arc<Self>) -> Disk {
        Disk { fault: Some(Arc::clone(self)) }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state.lock().unwrap().cut
    }

    pub(super) fn passed(&self) -> usize {
        self.state.lock().unwrap().passed
    }

    pub(super) fn before(&self, operation: &Operation<'_>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.cut || state.left == 0 {
            if let (false, Operation::Write(path, bytes)) = (state.cut, operation) {
                // Killed in the middle of the write.
                let mut options = fs::OpenOptions::new();
                let mut file = options.write(true).create(true).truncate(true).open(path)?;
                file.write_all(&bytes[..bytes.len() / 2])?;
            }
            state.cut = true;
            return Err(io::Error::other("cut"));
        }
        if self.full && matches!(operation, Operation::Allocate) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.left -= 1;
        state.passed += 1;
        state.note(operation);
        Ok(())
    }

    /// Takes away, as the coins fall, what the disk did not promise to keep.
    pub(super) fn cut_power(&self, coins: &[bool]) {
        let mut coins = coins.iter().copied().cycle();
        let mut state = self.state.lock().unwrap();
        state.cut = true;
        for path in &state.bytes {
            if coins.next() == Some(true)
                && let Ok(file) = fs::OpenOptions::new().write(true).open(path)
            {
                let len = file.metadata().unwrap().len();
                file.set_len(len / 3).unwrap();
                if coins.next() == Some(true) {
                    file.set_len(len).unwrap();
                }
            }
        }
        while let Some(change) = state.names.pop() {
            if coins.next() == Some(true) {
                change.undo();
            }
        }
    }
}

impl State {
    fn note(&mut self, operation: &Operation<'_>) {
        match *operation {
            Operation::Create(path) | Operation::Write(path, _) => {
                self.bytes.insert(path.to_owned());
            }
            Operation::Sync(path) => {
                self.bytes.remove(path);
            }
            Operation::Rename(from, to) => {
                self.bytes.remove(to);
                if self.bytes.remove(from) {
                    self.bytes.insert(to.to_owned());
                }
                let replaced = fs::read(to).ok();
                self.names.push(Change::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
            }
            Operation::Unlink(path) => {
                if let Ok(content) = fs::read(path) {
                    self.names.push(Change::Unlinked { path: path.to_owned(), content });
                }
            }
            Operation::SyncDirectory(path) => self.names.retain(|change| change.directory() != Some(path)),
            Operation::Directory | Operation::Allocate => {}
        }
    }
}

impl Change {
    /// The directory whose sync makes it durable.
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Renamed { to: path, .. } | Self::Unlinked { path, .. } => path.parent(),
        }
    }

    fn undo(self) {
        match self {
            Self::Renamed { from, to, replaced } => {
                if to.exists() && !from.exists() {
                    fs::rename(&to, &from).unwrap();
                    if let Some(content) = replaced {
                        fs::write(&to, content).unwrap();
                    }
                }
            }
            Self::Unlinked { path, content } => {
                if !path.exists() {
                    fs::write(&path, content).unwrap();
                }
            }
        }
    }
}
