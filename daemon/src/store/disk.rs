//! Every operation that changes names or makes bytes durable, one by one, so that tests can cut the power between them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::{
    fs::{FallocateFlags, OFlags},
    io::Errno,
};

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// The operations. Nothing but a fault in tests.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) fault: Option<std::sync::Arc<super::fault::Fault>>,
}

impl Disk {
    /// Makes a directory if it is missing, and makes its name durable.
    pub(super) fn directory(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.before(Operation::Directory)?;
        match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        path.parent().map_or(Ok(()), |parent| self.sync_directory(parent))
    }

    /// Creates the file of a blob, which must not exist yet.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        self.before(Operation::Create(path))?;
        OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
    }

    /// Reserves `size` bytes, so that a full disk shows now and not in the middle of the blob.
    pub(super) fn allocate(&self, file: &File, size: u64) -> io::Result<()> {
        self.before(Operation::Allocate)?;
        if size == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(size),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes a whole small file, in place of any of that name.
    pub(super) fn write(&self, path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
        self.before(Operation::Write(path, bytes))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(FILE_MODE);
        let mut file = options.custom_flags(no_follow()).open(path)?;
        file.write_all(bytes)?;
        if sync { self.sync(&file, path) } else { Ok(()) }
    }

    /// Makes a file's bytes durable.
    pub(super) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Operation::Sync(path))?;
        file.sync_data()
    }

    /// Gives a file another name, in place of any file that has it.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Operation::Rename(from, to))?;
        fs::rename(from, to)
    }

    /// Takes a name away; no error if it is gone already.
    pub(super) fn unlink(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::Unlink(path))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::SyncDirectory(path))?;
        File::open(path)?.sync_all()
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the place where tests cut in")]
    fn before(&self, _: Operation<'_>) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn before(&self, operation: Operation<'_>) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault.before(&operation))
    }
}

/// What is about to be done.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the fault that only tests have"))]
pub(super) enum Operation<'a> {
    Directory,
    Create(&'a Path),
    Allocate,
    Write(&'a Path, &'a [u8]),
    Sync(&'a Path),
    Rename(&'a Path, &'a Path),
    Unlink(&'a Path),
    SyncDirectory(&'a Path),
}

/// Opens the file of a blob, never through a symbolic link.
pub(super) fn open(path: &Path, write: bool) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(write).custom_flags(no_follow()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn no_follow() -> i32 {
    // Not blocking: a FIFO in the place of a blob must not hang us.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32
}
