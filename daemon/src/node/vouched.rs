//! Sealed blobs as this process serves them: each chunk is hashed again before its first byte leaves, because disks rot.
//!
//! A chunk that was verified since the process started is not hashed again: its bytes are most likely in the page cache,
//! and readers verify what peers send anyway.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shoal_proto::{
    chain::Chain,
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{driver::Command, obey::sign_chain, parts::Parts};
use crate::{
    store::{BlobFile, SealedBlob},
    verify::Verifier,
};

/// Open files of sealed blobs that are kept at hand.
const OPEN_MAX: usize = 1024;

/// A sealed blob, and which of its chunks this process has seen to be right.
#[derive(Debug)]
pub(super) struct Vouched {
    digest: Digest,
    file: BlobFile,
    layout: Layout,
    /// None for digests without chains: those are checked as a whole.
    chain: Option<Chain>,
    segments: Vec<Arc<Segment>>,
    checked: Mutex<ChunkSet>,
}

impl Vouched {
    /// A blob whose every chunk was verified by this process.
    pub(super) fn proven(digest: Digest, file: BlobFile, segments: Vec<Arc<Segment>>) -> Option<Self> {
        let layout = Layout::new(file.size())?;
        let chain = assemble(digest, layout, &segments);
        Some(Self { digest, file, layout, chain, segments, checked: Mutex::new(ChunkSet::full(layout.count())) })
    }

    /// A blob that an earlier process proved. Blocks: a chain that was lost is computed anew.
    fn open(parts: &Parts, digest: Digest, sealed: SealedBlob) -> io::Result<Self> {
        let SealedBlob { file, layout, segments, .. } = sealed;
        let segments: Vec<_> = segments.into_iter().map(Arc::new).collect();
        let chain = assemble(digest, layout, &segments);
        if chain.is_some() || Chain::new(digest, layout).is_none() {
            let checked = Mutex::new(ChunkSet::empty(layout.count()));
            return Ok(Self { digest, file, layout, chain, segments, checked });
        }
        let derived = crate::verify::derive(&file)?;
        let Some((states, _)) = derived.filter(|(_, found)| *found == digest) else { return Err(rotten(&digest)) };
        let segments = sign_chain(parts, &digest, layout.size(), &states);
        parts.store.save_chain(&digest, &segments)?;
        let segments: Vec<_> = segments.into_iter().map(Arc::new).collect();
        let chain = assemble(digest, layout, &segments);
        Ok(Self { digest, file, layout, chain, segments, checked: Mutex::new(ChunkSet::full(layout.count())) })
    }

    pub(super) const fn file(&self) -> &BlobFile {
        &self.file
    }

    pub(super) const fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Makes sure that a chunk's bytes on the disk are right.
    ///
    /// # Errors
    /// `InvalidData` if they are not; otherwise what the disk says.
    pub(super) async fn ensure(&self, verifier: &Verifier, chunk: ChunkIndex) -> io::Result<()> {
        if self.checked().contains(chunk) {
            return Ok(());
        }
        let Some(chain) = &self.chain else { return self.ensure_whole(verifier).await };
        let expected = chain.expected(chunk).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if verifier.read(self.layout, chunk, expected, &self.file).await?.is_none() {
            return Err(rotten(&self.digest));
        }
        self.checked().insert(chunk);
        Ok(())
    }

    async fn ensure_whole(&self, verifier: &Verifier) -> io::Result<()> {
        if verifier.digest_of(&self.file, self.digest.algorithm()).await? != self.digest {
            return Err(rotten(&self.digest));
        }
        *self.checked() = ChunkSet::full(self.layout.count());
        Ok(())
    }

    fn checked(&self) -> MutexGuard<'_, ChunkSet> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sealed blobs at hand.
#[derive(Debug)]
pub(super) struct Shelf {
    parts: Arc<Parts>,
    commands: mpsc::Sender<Command>,
    open: Mutex<HashMap<Digest, Arc<Vouched>>>,
}

impl Shelf {
    pub(super) fn new(parts: Arc<Parts>, commands: mpsc::Sender<Command>) -> Self {
        Self { parts, commands, open: Mutex::default() }
    }

    /// A sealed blob; none if the store does not have it, or no longer, because it has rotted.
    pub(super) async fn take(&self, digest: Digest) -> io::Result<Option<Arc<Vouched>>> {
        if self.parts.store.sealed_size(&digest).is_none() {
            return Ok(None);
        }
        if let Some(open) = self.open().get(&digest) {
            return Ok(Some(Arc::clone(open)));
        }
        let parts = Arc::clone(&self.parts);
        let opened = spawn_blocking(move || {
            let Some(sealed) = parts.store.open_sealed(&digest)? else { return Ok(None) };
            let file = sealed.file.clone();
            Ok::<_, io::Error>(Some((Vouched::open(&parts, digest, sealed), file)))
        });
        match opened.await.map_err(io::Error::other)?? {
            None => Ok(None),
            Some((Ok(opened), _)) => Ok(Some(self.put(opened))),
            Some((Err(error), file)) if error.kind() == io::ErrorKind::InvalidData => {
                self.discard(digest, &file).await;
                Ok(None)
            }
            Some((Err(error), _)) => Err(error),
        }
    }

    /// Keeps a blob at hand. If it is there already, that one stays.
    pub(super) fn put(&self, blob: Vouched) -> Arc<Vouched> {
        let mut open = self.open();
        if open.len() >= OPEN_MAX {
            open.retain(|_, blob| Arc::strong_count(blob) > 1);
        }
        let digest = blob.digest;
        let blob = Arc::new(blob);
        if open.len() >= OPEN_MAX {
            return blob;
        }
        Arc::clone(open.entry(digest).or_insert(blob))
    }

    /// Takes a blob that has rotted out of the store, so that the next wish fetches it anew, and tells the loop. Readers of
    /// the rotten `file` may come late: one that has taken its place since stays.
    pub(super) async fn discard(&self, digest: Digest, file: &BlobFile) {
        {
            let mut open = self.open();
            if open.get(&digest).is_some_and(|blob| blob.file.is_same(file)) {
                open.remove(&digest);
            }
        }
        let (parts, commands, file) = (Arc::clone(&self.parts), self.commands.clone(), file.clone());
        // Goes to its end also when the reader goes away.
        let removed = spawn_blocking(move || match parts.store.remove_file(&digest, &file) {
            Ok(true) => {
                parts.metrics.blobs_rotten.inc();
                tracing::error!(%digest, "a stored blob no longer matches its digest: removed");
                parts.dht.stop_providing(parts.secret.blob_key(&parts.access.name(&digest)));
                // The loop is gone only at shutdown.
                commands.blocking_send(Command::Rotten { digest }).ok();
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%digest, %error, "a rotten blob cannot be removed"),
        });
        if let Err(error) = removed.await {
            tracing::error!(%digest, %error, "a rotten blob was not removed");
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Vouched>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole chain that segments make, if they do.
fn assemble(digest: Digest, layout: Layout, segments: &[Arc<Segment>]) -> Option<Chain> {
    let mut chain = Chain::new(digest, layout)?;
    for segment in segments {
        chain.extend(segment.from, &segment.states).ok()?;
    }
    chain.is_whole().then_some(chain)
}

fn rotten(digest: &Digest) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stored bytes of {digest} no longer match it"))
}
