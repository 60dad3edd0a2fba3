//! A blob on its way: bytes arrive in any order, then it is sealed or discarded.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use shoal_proto::{
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
};

use super::{BlobFile, Hold, Shared, disk, paths, record};

/// A blob that is not proven yet, the only one of its digest. Clones share it; when the last is dropped without a
/// seal, what its claim covers stays on disk for [`resume`](super::Store::resume).
#[derive(Debug, Clone)]
pub struct PartialBlob {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    digest: Digest,
    layout: Layout,
    file: BlobFile,
    shared: Arc<Shared>,
    /// For each chunk, whether bytes that were verified under a claim lie in its place. Locked while it is written.
    verified: Box<[Mutex<bool>]>,
    /// Gone once sealed or discarded. Its mutex also keeps claim, seal and discard apart.
    hold: Mutex<Option<Hold>>,
}

impl PartialBlob {
    pub(super) fn new(hold: Hold, layout: Layout, file: BlobFile, verified: &ChunkSet) -> Self {
        let (digest, shared) = (hold.digest, Arc::clone(&hold.shared));
        let verified = layout.chunks().map(|chunk| Mutex::new(verified.contains(chunk))).collect();
        Self { inner: Arc::new(Inner { digest, layout, file, shared, verified, hold: Mutex::new(Some(hold)) }) }
    }

    /// Which blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// How it is cut.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.inner.layout
    }

    /// Where its bytes go. The same file goes on being readable after the seal.
    #[must_use]
    pub fn file(&self) -> &BlobFile {
        &self.inner.file
    }

    /// Writes a chunk that is what its claim says.
    ///
    /// # Errors
    /// As [`BlobFile::write`]; `InvalidInput` for a chunk beyond the blob.
    pub fn write_verified(&self, chunk: ChunkIndex, pieces: &[Bytes]) -> io::Result<()> {
        let mut verified = self.place(chunk)?;
        self.inner.file.write(self.inner.layout.range(chunk).start, pieces)?;
        *verified = true;
        Ok(())
    }

    /// Writes a chunk of which no claim says what it must be, if it is still `wanted`, which is asked when nobody else
    /// can write it any more. Verified bytes are never replaced: if such lie there already, nothing is written. Returns
    /// whether the chunk is there.
    ///
    /// # Errors
    /// As [`Self::write_verified`].
    pub fn write_unverified(
        &self,
        chunk: ChunkIndex,
        pieces: &[Bytes],
        wanted: impl FnOnce() -> bool,
    ) -> io::Result<bool> {
        let verified = self.place(chunk)?;
        if *verified {
            return Ok(true);
        }
        if !wanted() {
            return Ok(false);
        }
        self.inner.file.write(self.inner.layout.range(chunk).start, pieces)?;
        Ok(true)
    }

    fn place(&self, chunk: ChunkIndex) -> io::Result<MutexGuard<'_, bool>> {
        let place = self.inner.verified.get(chunk.at()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no chunk {}", self.inner.digest, chunk.0))
        })?;
        Ok(place.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records the claim, in place of the one before. Write chunks first and the claim that covers them after. Not
    /// synced: what recovery finds, it proves again.
    ///
    /// # Errors
    /// The old claim stays if the disk fails. `NotFound` once the blob was sealed or discarded.
    pub fn save_claim(&self, segments: &[Segment]) -> io::Result<()> {
        let hold = self.lock();
        self.require(&hold)?;
        let (shared, digest) = (&self.inner.shared, &self.inner.digest);
        let claim = shared.paths.claim(digest);
        let temporary = paths::temporary(&claim);
        shared.disk.write(&temporary, &record::encode(digest, self.inner.layout, segments), false)?;
        shared.disk.rename(&temporary, &claim)
    }

    /// Publishes the blob. The caller has proven every byte against the digest (for SHA-256: every link of the chain
    /// that `segments` make); segments may be empty where nobody signed any. Segments that do not make one chain are
    /// not kept at all: some of them are false, and the bytes are right without them. Late writes are refused from
    /// here on.
    ///
    /// # Errors
    /// What the disk says; the blob then stays partial and writable. `NotFound` once it was sealed or discarded.
    pub fn seal(&self, segments: &[Segment]) -> io::Result<BlobFile> {
        let mut hold = self.lock();
        self.require(&hold)?;
        let Inner { digest, layout, file, shared, .. } = &*self.inner;
        let mut kept = record::assemble(*digest, *layout, segments.to_vec()).map_or(vec![], |(_, fitting)| fitting);
        if kept.len() != segments.len() {
            tracing::warn!(%digest, "sealing without the chain: its segments contradict one another");
            kept.clear();
        }
        file.close_to_writes();
        if let Err(error) = self.publish(&kept) {
            file.reopen_to_writes();
            return Err(error);
        }
        shared.index().seal(*digest, layout.size());
        *hold = None;
        // The name is there and its bytes are durable. Without these the name may be lost in a power cut, and then the
        // blob is fetched again: no reason to fail now.
        let finish = [
            shared.disk.sync_directory(&shared.paths.shard(digest)),
            shared.disk.unlink(&shared.paths.claim(digest)),
            shared.disk.sync_directory(&shared.paths.partials()),
        ];
        for error in finish.into_iter().filter_map(Result::err) {
            tracing::warn!(%digest, %error, "sealed, but the directories could not be synced");
        }
        Ok(file.clone())
    }

    /// Bytes first, then the record, then the name: each is durable before what speaks of it.
    fn publish(&self, segments: &[Segment]) -> io::Result<()> {
        let Inner { digest, layout, file, shared, .. } = &*self.inner;
        let partial = shared.paths.partial(digest);
        shared.disk.sync(file.file(), &partial)?;
        shared.save_chain(digest, *layout, segments)?;
        // A name that was taken away or replaced behind our back must not be published in place of our file.
        if !same_file(file, &partial)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} was replaced", partial.display())));
        }
        shared.disk.rename(&partial, &shared.paths.sealed(digest))
    }

    /// Stops using the blob and frees its digest, whoever still has a clone of it: what its claim covers stays on disk for
    /// [`resume`](super::Store::resume). Waits for the writes under way; later ones are refused. Does nothing if it is
    /// sealed or discarded.
    pub fn release(&self) {
        let mut hold = self.lock();
        if hold.is_some() {
            self.inner.file.close_to_writes();
            *hold = None;
        }
    }

    /// Deletes the blob. Readers of its file keep what they have.
    ///
    /// # Errors
    /// What the disk says; the digest is free for another try all the same. No error if sealed or discarded already.
    pub fn discard(&self) -> io::Result<()> {
        let Some(hold) = self.lock().take() else { return Ok(()) };
        hold.shared.drop_partial(&hold.digest)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Hold>> {
        self.inner.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn require(&self, hold: &Option<Hold>) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("{} is no longer partial", self.inner.digest));
        hold.as_ref().map(|_| ()).ok_or_else(gone)
    }
}

pub(super) fn same_file(file: &BlobFile, path: &std::path::Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (ours, theirs) = (file.file().metadata()?, disk::open(path, false)?.metadata()?);
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}
