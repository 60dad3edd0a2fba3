//! A file that is read again when it has changed, so that secrets are rotated without a restart.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Mutex,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::credentials::CredentialError;

/// Bytes of a file at most: the size of the largest Kubernetes secret.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How long a file system may take. One that hangs must not hold up pulls: what was read before is used meanwhile.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// A file that changed so shortly before it was read may change again without a trace in its times.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// A file and what it says. What it said last stays in force while the file is missing, unreadable or broken.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    value: RwLock<Arc<T>>,
    /// Whoever holds this looks at the file; all others go on with the value.
    looked: Mutex<Last>,
}

/// What the file was like when it was looked at last.
struct Last {
    stamp: Option<Stamp>,
    content: Vec<u8>,
    /// Why this content is not in force.
    refused: Option<String>,
    /// What was warned of.
    trouble: Option<String>,
    /// A reading that has not come back: a file system that hangs must not be given one thread after the other.
    pending: Option<JoinHandle<Result<Option<Reading>, String>>>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file as it was read.
struct Reading {
    /// None if it was still warm: see [`SETTLED_AFTER`].
    stamp: Option<Stamp>,
    content: Vec<u8>,
    /// Permission bits, if others than owner and group may use the file.
    exposed: Option<u32>,
}

impl<T> Watched<T> {
    /// Reads the file for the first time. The second part is a warning.
    ///
    /// # Errors
    /// It cannot be read, or `parse` refuses it.
    pub(super) fn open(
        path: PathBuf,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<(Self, Option<String>), CredentialError> {
        let refused = |problem| CredentialError::new(path.display().to_string(), problem);
        let reading = read(&path).map_err(refused)?;
        let value = parse(&reading.content).map_err(refused)?;
        let warning = reading.exposed.map(|mode| exposed(&path, mode));
        let last = Last { stamp: reading.stamp, content: reading.content, refused: None, trouble: None, pending: None };
        let (value, looked) = (RwLock::new(Arc::new(value)), Mutex::new(last));
        Ok((Self { path, parse: Box::new(parse), value, looked }, warning))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says now, or said last.
    pub(super) async fn current(&self) -> Arc<T> {
        if let Ok(mut last) = self.looked.try_lock() {
            self.look(&mut last).await;
        }
        self.last()
    }

    /// What the file said when it was looked at last.
    pub(super) fn last(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn look(&self, last: &mut Last) {
        let patience = if last.pending.is_none() { READ_DEADLINE } else { Duration::ZERO };
        let (path, stamp) = (self.path.clone(), last.stamp);
        let pending = last.pending.get_or_insert_with(|| spawn_blocking(move || read_changed(&path, stamp)));
        let reading = timeout(patience, pending).await;
        if reading.is_ok() {
            last.pending = None;
        }
        let outcome = match reading {
            Ok(Ok(Ok(None))) => last.refused.clone().map_or(Ok(()), Err),
            Ok(Ok(Ok(Some(reading)))) => self.take(reading, last),
            Ok(Ok(Err(problem))) => Err(problem),
            Ok(Err(_)) | Err(_) => Err(format!("reading it took longer than {} s", READ_DEADLINE.as_secs())),
        };
        let trouble = outcome.err();
        if let Some(problem) = trouble.as_ref().filter(|_| trouble != last.trouble) {
            tracing::warn!(file = %self.path.display(), "{problem}; what the file said before stays in force");
        }
        last.trouble = trouble;
    }

    fn take(&self, reading: Reading, last: &mut Last) -> Result<(), String> {
        last.stamp = reading.stamp;
        // A file that was only touched must not make plugins forget what they have.
        if reading.content == last.content {
            return last.refused.clone().map_or(Ok(()), Err);
        }
        let parsed = (self.parse)(&reading.content);
        last.content = reading.content;
        last.refused = parsed.as_ref().err().cloned();
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parsed?);
        tracing::info!(file = %self.path.display(), "credentials were read anew");
        if let Some(mode) = reading.exposed {
            tracing::warn!("{}", exposed(&self.path, mode));
        }
        Ok(())
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("path", &self.path).finish_non_exhaustive()
    }
}

fn exposed(path: &Path, mode: u32) -> String {
    let path = path.display();
    format!("{path}: holds credentials and is open to others (mode {mode:03o}); run: chmod o= {path}")
}

/// The file, unless it is the one that was read under `stamp`.
fn read_changed(path: &Path, stamp: Option<Stamp>) -> Result<Option<Reading>, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("cannot read it: {error}"))?;
    if stamp == Some(Stamp::of(&metadata)) {
        return Ok(None);
    }
    read(path).map(Some)
}

fn read(path: &Path) -> Result<Reading, String> {
    let io_error = |error: std::io::Error| format!("cannot read it: {error}");
    // Before it is opened, because a pipe would hold up who opens it.
    if !fs::metadata(path).map_err(io_error)?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let file = File::open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(io_error)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    let modified = metadata.modified().map_err(io_error)?;
    let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED_AFTER);
    let mode = metadata.mode() & 0o777;
    Ok(Reading {
        stamp: settled.then(|| Stamp::of(&metadata)),
        content,
        exposed: Some(mode).filter(|mode| mode & 0o007 != 0),
    })
}
