//! Blobs on disk. Sealed ones are proven and named by their digest; partial ones are on their way.
//!
//! ```text
//! DATA/lock                             held by the one daemon that uses DATA
//! DATA/blobs/sha256/<2>/<hex>           a sealed blob
//! DATA/blobs/sha256/<2>/<hex>.chain     its size and the signed segments of its chain
//! DATA/partial/<hex>                    a blob on its way, with holes
//! DATA/partial/<hex>.claim              the unproven chain that covers it
//! DATA/partial/draft-<number>           bytes of an upload, named by no digest yet
//! ```
//!
//! Data is written before the record that speaks of it, and a name in `blobs/` is given last, to bytes that are proven
//! and durable. So after a crash at any point [`Store::open`] finds only what it may trust: sealed blobs by name (their
//! size is checked), partial ones by hashing every chunk again.
//!
//! All methods block on the disk but the lookups in memory ([`Store::sealed_size`], [`Store::list`], [`Store::bytes`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};
use shoal_proto::{
    chunk::{ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
};

use crate::verify;

mod buffers;
#[cfg(test)]
mod crash_tests;
mod disk;
mod draft;
#[cfg(test)]
mod fault;
mod file;
mod lock;
mod partial;
mod paths;
mod record;
mod recover;
#[cfg(test)]
mod tests;

pub(crate) use self::buffers::BUFFER_BYTES;
use self::{
    disk::Disk,
    lock::{Lock, LockError},
    paths::Paths,
};
pub use self::{draft::Draft, file::BlobFile, partial::PartialBlob};

/// The blobs of one data directory. Clones share it; the directory stays locked until the last of them and of its
/// [`PartialBlob`]s is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon uses the directory.
    #[error(
        "data directory {} is in use by another daemon{}: stop that one or choose another --data-dir",
        dir.display(), holder(*pid)
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// Process id of the other daemon, if it is known.
        pid: Option<u32>,
    },
    /// The disk refused something that the store cannot do without.
    #[error("data directory {}: {action} failed: {source}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// A sealed blob, open.
#[derive(Debug, Clone)]
pub struct SealedBlob {
    /// Its bytes.
    pub file: BlobFile,
    /// How it is cut.
    pub layout: Layout,
    /// Its chain as signed. Empty for SHA-512, for blobs that nobody signed, and where the record was lost: the chain
    /// can then be derived from the bytes ([`verify::derive`]).
    pub segments: Vec<Segment>,
}

/// A partial blob as an earlier run left it.
#[derive(Debug)]
pub struct Resumed {
    /// The blob, to go on with.
    pub blob: PartialBlob,
    /// How it is cut.
    pub layout: Layout,
    /// The claim, as far as its segments make one chain. Signatures are not checked.
    pub segments: Vec<Segment>,
    /// The chunks that are right under that claim, hashed just now.
    pub verified: ChunkSet,
}

/// One line of [`Store::list`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBlob {
    /// Which blob.
    pub digest: Digest,
    /// Its size in bytes, also where not all of them are there yet.
    pub size: u64,
    /// Whether it is proven and complete.
    pub sealed: bool,
}

impl Store {
    /// Opens the store in `dir`, creating it if needed, and recovers from whatever happened before.
    ///
    /// # Errors
    /// If another daemon uses the directory, or it cannot be created, locked or read.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(Disk::default(), dir)
    }

    fn open_on(disk: Disk, dir: &Path) -> Result<Self, StoreError> {
        let paths = Paths::new(dir);
        recover::make_directories(&disk, &paths)?;
        let lock = Lock::take(&paths.lock()).map_err(|error| match error {
            LockError::Held(pid) => StoreError::Locked { dir: dir.to_owned(), pid },
            LockError::Io(source) => StoreError::Disk { action: "locking it", path: paths.lock(), source },
        })?;
        let index = recover::recover(&disk, &paths)?;
        Ok(Self {
            shared: Arc::new(Shared { paths, disk, index: Mutex::new(index), drafts: AtomicU64::new(0), _lock: lock }),
        })
    }

    /// Size in bytes of a sealed blob; none if it is not sealed here.
    #[must_use]
    pub fn sealed_size(&self, digest: &Digest) -> Option<u64> {
        self.shared.index().sealed.get(digest).copied()
    }

    /// Opens a sealed blob; none if there is none. A blob whose file is gone or has another size is forgotten; one
    /// whose record is unreadable is proven again by hashing before it is given out.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open_sealed(&self, digest: &Digest) -> io::Result<Option<SealedBlob>> {
        let Some(size) = self.sealed_size(digest) else { return Ok(None) };
        let shared = &self.shared;
        match recover::load_sealed(&shared.paths, digest) {
            Ok(Some((file, record))) if record.layout.size() == size => {
                return Ok(Some(SealedBlob { file, layout: record.layout, segments: record.segments }));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Something is amiss, or the blob is being removed by another thread: then it is not there for us.
        let Ok(_hold) = Hold::take(shared, digest) else { return Ok(None) };
        let Some(record) = recover::admit(&shared.disk, &shared.paths, digest) else {
            shared.index().sealed.remove(digest);
            return Ok(None);
        };
        shared.index().sealed.insert(*digest, record.layout.size());
        let file = disk::open(&shared.paths.sealed(digest), false)?;
        let file = BlobFile::new(file, record.layout.size(), false);
        Ok(Some(SealedBlob { file, layout: record.layout, segments: record.segments }))
    }

    /// Replaces the segments of a sealed blob's chain, for one that has none.
    ///
    /// # Errors
    /// `NotFound` if the blob is not sealed here; otherwise what the disk says.
    pub fn save_chain(&self, digest: &Digest, segments: &[Segment]) -> io::Result<()> {
        let hold = Hold::take(&self.shared, digest)?;
        let layout = self.sealed_size(digest).and_then(Layout::new);
        let layout =
            layout.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{digest} is not sealed")))?;
        hold.shared.save_chain(digest, layout, segments)
    }

    /// Makes room for a blob of `size` bytes. A partial of this digest that an earlier run left is discarded.
    ///
    /// # Errors
    /// `AlreadyExists` while another [`PartialBlob`] of this digest is in use, or if the blob is sealed; `InvalidInput`
    /// above [`Layout::SIZE_MAX`]; `StorageFull` and whatever else the disk says: the blob can still be streamed past
    /// the store.
    pub fn create(&self, digest: &Digest, size: u64) -> io::Result<PartialBlob> {
        let layout = Layout::new(size).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{digest}: {size} bytes is too large"))
        })?;
        let hold = Hold::take(&self.shared, digest)?;
        let shared = &self.shared;
        if shared.index().sealed.contains_key(digest) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{digest} is sealed")));
        }
        shared.drop_partial(digest)?;
        let path = shared.paths.partial(digest);
        let file = shared.disk.create(&path)?;
        if let Err(error) = shared.disk.allocate(&file, size) {
            if let Err(error) = shared.disk.unlink(&path) {
                tracing::warn!(%digest, %error, "an empty partial blob is left behind");
            }
            return Err(error);
        }
        shared.index().partial.insert(*digest, size);
        Ok(PartialBlob::new(hold, layout, BlobFile::new(file, size, true), &ChunkSet::empty(layout.count())))
    }

    /// Goes on with a partial blob that an earlier run left, if there is one with a usable claim: every chunk that the
    /// claim covers is hashed again.
    ///
    /// # Errors
    /// `AlreadyExists` while another [`PartialBlob`] of this digest is in use; otherwise what the disk says.
    pub fn resume(&self, digest: &Digest) -> io::Result<Option<Resumed>> {
        let shared = &self.shared;
        let hold = Hold::take(shared, digest)?;
        if !shared.index().partial.contains_key(digest) {
            return Ok(None);
        }
        let Some((file, record)) = recover::load_partial(&shared.paths, digest)? else {
            shared.drop_partial(digest)?;
            return Ok(None);
        };
        let layout = record.layout;
        let (verified, segments) = match record::assemble(*digest, layout, record.segments) {
            Some((chain, segments)) => (verify::proven_chunks(&file, &chain), segments),
            None => (ChunkSet::empty(layout.count()), vec![]),
        };
        let blob = PartialBlob::new(hold, layout, file, &verified);
        Ok(Some(Resumed { blob, layout, segments, verified }))
    }

    /// Discards what an earlier fetch left of a blob, if anything.
    ///
    /// # Errors
    /// `AlreadyExists` while a [`PartialBlob`] of this digest is in use; otherwise what the disk says.
    pub fn drop_leftover(&self, digest: &Digest) -> io::Result<()> {
        let hold = Hold::take(&self.shared, digest)?;
        if self.shared.index().partial.contains_key(&hold.digest) { self.shared.drop_partial(digest) } else { Ok(()) }
    }

    /// Whether anything is stored of a blob, whole or in part.
    #[must_use]
    pub fn holds(&self, digest: &Digest) -> bool {
        let index = self.shared.index();
        index.sealed.contains_key(digest) || index.partial.contains_key(digest)
    }

    /// What is stored, sealed blobs first, each in the order of digests.
    #[must_use]
    pub fn list(&self) -> Vec<StoredBlob> {
        let index = self.shared.index();
        let stored =
            |sealed| move |(digest, size): (&Digest, &u64)| StoredBlob { digest: *digest, size: *size, sealed };
        index.sealed.iter().map(stored(true)).chain(index.partial.iter().map(stored(false))).collect()
    }

    /// How many blobs are sealed here.
    #[must_use]
    pub fn sealed_count(&self) -> usize {
        self.shared.index().sealed.len()
    }

    /// Bytes that the blobs take or have reserved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let index = self.shared.index();
        index.sealed.values().chain(index.partial.values()).sum()
    }

    /// Deletes a blob, sealed or left over by an earlier run; returns whether there was one. Open files of it stay
    /// readable.
    ///
    /// # Errors
    /// `AlreadyExists` while a [`PartialBlob`] of this digest is in use (discard that); otherwise what the disk says.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        self.remove_held(&Hold::take(&self.shared, digest)?)
    }

    /// Deletes a sealed blob if `file` is the one that is sealed under its digest, and not a newer one; returns whether it
    /// was.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_file(&self, digest: &Digest, file: &BlobFile) -> io::Result<bool> {
        if self.sealed_size(digest).is_none() {
            return Ok(false);
        }
        let hold = Hold::take(&self.shared, digest)?;
        match partial::same_file(file, &self.shared.paths.sealed(digest)) {
            Ok(true) => self.remove_held(&hold),
            Ok(false) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove_held(&self, hold: &Hold) -> io::Result<bool> {
        let (shared, digest) = (&self.shared, &hold.digest);
        let (sealed, partial) = {
            let mut index = shared.index();
            (index.sealed.remove(digest).is_some(), index.partial.contains_key(digest))
        };
        if partial {
            shared.drop_partial(digest)?;
        }
        if sealed {
            shared.disk.unlink(&shared.paths.sealed(digest))?;
            shared.disk.unlink(&shared.paths.chain(digest))?;
            shared.disk.sync_directory(&shared.paths.shard(digest))?;
        }
        Ok(sealed || partial)
    }
}

/// What all handles share.
#[derive(Debug)]
struct Shared {
    paths: Paths,
    disk: Disk,
    /// Never held across an operation on the disk.
    index: Mutex<Index>,
    /// Drafts made so far: each has a name of its own.
    drafts: AtomicU64,
    _lock: Lock,
}

/// What is on disk, by digest and size in bytes; bounded by it.
#[derive(Debug, Default)]
struct Index {
    sealed: BTreeMap<Digest, u64>,
    partial: BTreeMap<Digest, u64>,
    /// Digests whose files somebody is changing or may change: one at a time.
    held: BTreeSet<Digest>,
}

impl Index {
    fn seal(&mut self, digest: Digest, size: u64) {
        self.partial.remove(&digest);
        self.sealed.insert(digest, size);
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the record of a blob that is or is about to be sealed: durable, and whole under its name or not there.
    fn save_chain(&self, digest: &Digest, layout: Layout, segments: &[Segment]) -> io::Result<()> {
        recover::write_chain(&self.disk, &self.paths, digest, &record::encode(digest, layout, segments))
    }

    /// Deletes a partial blob and its claim. The caller holds the digest.
    fn drop_partial(&self, digest: &Digest) -> io::Result<()> {
        self.index().partial.remove(digest);
        // The record first: it must not speak of data that is gone.
        self.disk.unlink(&self.paths.claim(digest))?;
        self.disk.unlink(&self.paths.partial(digest))
    }
}

/// The right to change the files of one digest; given back when dropped.
#[derive(Debug)]
struct Hold {
    shared: Arc<Shared>,
    digest: Digest,
}

impl Hold {
    fn take(shared: &Arc<Shared>, digest: &Digest) -> io::Result<Self> {
        if shared.index().held.insert(*digest) {
            return Ok(Self { shared: Arc::clone(shared), digest: *digest });
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{digest} is in use as a partial blob")))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.index().held.remove(&self.digest);
    }
}
