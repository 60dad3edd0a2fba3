//! Hashing, off the async threads and on a bounded number of cores.

use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use bytes::Bytes;
use sha2::Digest as _;
use shoal_proto::{
    chain::{Chain, Expected, Link, LinkEnd, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    digest::{Algorithm, Digest},
};
use tokio::{sync::Semaphore, task};
use tokio_util::sync::CancellationToken;

use crate::store::{BlobFile, PartialBlob};

/// Bytes per read where a whole file is hashed: fits the cores' second-level caches.
const READ_BYTES: u64 = 256 * 1024;

/// What became of a chunk.
#[derive(Debug)]
pub enum Verdict {
    /// It is right, as far as can be told, and stored. `end` is what its link ends in, which extends a chain whose next state is unknown.
    Good {
        /// The link's end.
        end: LinkEnd,
    },
    /// Its bytes are not those of the claim. Nothing was written.
    Corrupt,
    /// It is right as far as can be told, but could not be written: not the sender's fault.
    Disk(io::Error),
}

/// A bounded pool for hashing and the disk work around it. Clones share it.
#[derive(Debug, Clone)]
pub struct Verifier {
    jobs: Arc<Semaphore>,
}

impl Default for Verifier {
    /// One job for each core.
    fn default() -> Self {
        Self::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }
}

impl Verifier {
    /// A pool that runs at most `jobs` at once; more wait in line.
    #[must_use]
    pub fn new(jobs: NonZeroUsize) -> Self {
        Self { jobs: Arc::new(Semaphore::new(jobs.get().min(Semaphore::MAX_PERMITS))) }
    }

    /// Hashes a chunk that arrived in `frames` and writes it to its place in `blob`, if it is what is expected. The
    /// bytes are not copied. Once a job has begun it runs to its end, also when this future is dropped.
    ///
    /// Without an expected end nobody can tell whether the bytes are right. They are then written only where no verified
    /// ones lie, and not after `stopped`, so that they cannot replace what somebody relies on. `Good` tells the link's
    /// end in either case: whoever knows the true one must compare.
    pub async fn check(
        &self,
        blob: &PartialBlob,
        chunk: ChunkIndex,
        expected: Expected,
        frames: Vec<Bytes>,
        stopped: &CancellationToken,
    ) -> Verdict {
        let (blob, stopped) = (blob.clone(), stopped.clone());
        let job = move || {
            let Some(end) = link_end(blob.layout(), chunk, expected, &frames) else { return Verdict::Corrupt };
            let written = if expected.end.is_some() {
                blob.write_verified(chunk, &frames).map(|()| true)
            } else {
                blob.write_unverified(chunk, &frames, || !stopped.is_cancelled())
            };
            match written {
                Ok(true) => Verdict::Good { end },
                Ok(false) => Verdict::Disk(io::ErrorKind::Interrupted.into()),
                Err(error) => Verdict::Disk(error),
            }
        };
        self.run(job).await.unwrap_or_else(Verdict::Disk)
    }

    /// Writes a chunk of which nobody can tell yet whether it is right, unless verified bytes lie in its place or `stopped`
    /// is cancelled. What is written counts for nothing before [`Self::hash`] has seen it.
    ///
    /// # Errors
    /// `Interrupted` if it was stopped; otherwise what the disk says.
    pub async fn store(
        &self,
        blob: &PartialBlob,
        chunk: ChunkIndex,
        frames: Vec<Bytes>,
        stopped: &CancellationToken,
    ) -> io::Result<()> {
        let (blob, stopped) = (blob.clone(), stopped.clone());
        let job = move || blob.write_unverified(chunk, &frames, || !stopped.is_cancelled());
        if self.run(job).await?? { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
    }

    /// What the link of a stored chunk ends in, from the state in front of it. Whoever knows the true end must compare.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn hash(&self, blob: &PartialBlob, chunk: ChunkIndex, before: State) -> io::Result<LinkEnd> {
        let blob = blob.clone();
        let job = move || {
            let layout = blob.layout();
            let mut link = Link::new(layout, chunk, before);
            for piece in pieces(blob.file(), layout.range(chunk)) {
                link.update(&piece?);
            }
            link.end(layout, chunk).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        self.run(job).await?
    }

    /// Reads a stored chunk and hashes it again; none if it is not what is expected (the disk has rotted, or another
    /// claim is true).
    ///
    /// # Errors
    /// What the disk says.
    pub async fn read(
        &self,
        layout: Layout,
        chunk: ChunkIndex,
        expected: Expected,
        file: &BlobFile,
    ) -> io::Result<Option<Bytes>> {
        let file = file.clone();
        let job = move || {
            let bytes = file.read(layout.range(chunk).start, layout.len(chunk) as usize)?;
            Ok(link_end(layout, chunk, expected, std::slice::from_ref(&bytes)).map(|_| bytes))
        };
        self.run(job).await?
    }

    /// The digest of a whole file.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn digest_of(&self, file: &BlobFile, algorithm: Algorithm) -> io::Result<Digest> {
        let file = file.clone();
        self.run(move || digest_of(&file, algorithm)).await?
    }

    /// The chain of a whole file; see [`derive()`].
    ///
    /// # Errors
    /// What the disk says.
    pub async fn derive(&self, file: &BlobFile) -> io::Result<Option<(Vec<State>, Digest)>> {
        let file = file.clone();
        self.run(move || derive(&file)).await?
    }

    /// Runs blocking work on the pool. Fails only if the runtime shuts down or the work panics.
    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let permit = Arc::clone(&self.jobs).acquire_owned().await.map_err(io::Error::other)?;
        let job = move || {
            // Given back when the work ends, not when the waiter goes away.
            let _permit = permit;
            job()
        };
        task::spawn_blocking(job).await.map_err(io::Error::other)
    }
}

/// What the link of a chunk ends in, if that is what is expected and the bytes are exactly as many as the chunk has.
#[must_use]
pub fn link_end(layout: Layout, chunk: ChunkIndex, expected: Expected, frames: &[Bytes]) -> Option<LinkEnd> {
    let mut link = Link::new(layout, chunk, expected.before);
    for frame in frames {
        link.update(frame);
    }
    link.end(layout, chunk).filter(|end| expected.end.is_none_or(|expected| expected == *end))
}

/// The chunks of a file that are right under a chain, hashed on all cores. Chunks that the disk cannot read or that
/// were never written are not.
#[must_use]
pub fn proven_chunks(file: &BlobFile, chain: &Chain) -> ChunkSet {
    let layout = chain.layout();
    let next = AtomicU32::new(0);
    let work = || {
        let mut proven = Vec::new();
        loop {
            let chunk = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
            if !layout.contains(chunk) {
                return proven;
            }
            if chain.can_verify(chunk) && holds(file, chain, chunk) {
                proven.push(chunk);
            }
        }
    };
    let mut set = ChunkSet::empty(layout.count());
    let helpers = thread::available_parallelism().map_or(0, |cores| cores.get().min(layout.count() as usize) - 1);
    thread::scope(|scope| {
        // A thread that cannot be started is not missed: this one does the work too.
        let helpers: Vec<_> =
            (0..helpers).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut proven = work();
        proven.extend(helpers.into_iter().filter_map(|helper| helper.join().ok()).flatten());
        for chunk in proven {
            set.insert(chunk);
        }
    });
    set
}

fn holds(file: &BlobFile, chain: &Chain, chunk: ChunkIndex) -> bool {
    let (layout, range) = (chain.layout(), chain.layout().range(chunk));
    if file.is_hole(&range) {
        return false;
    }
    let Some(expected) = chain.expected(chunk) else { return false };
    let mut link = Link::new(layout, chunk, expected.before);
    match pieces(file, range).try_for_each(|piece| piece.map(|piece| link.update(&piece))) {
        Ok(()) => expected.end.is_some() && link.end(layout, chunk) == expected.end,
        Err(error) => {
            tracing::warn!(digest = %chain.digest(), chunk = chunk.0, %error, "a stored chunk is unreadable");
            false
        }
    }
}

/// The digest of a whole file, read piece by piece.
///
/// # Errors
/// What the disk says.
pub fn digest_of(file: &BlobFile, algorithm: Algorithm) -> io::Result<Digest> {
    fn hash<H: sha2::Digest>(file: &BlobFile) -> io::Result<H> {
        let mut hash = H::new();
        for piece in pieces(file, 0..file.size()) {
            hash.update(&piece?);
        }
        Ok(hash)
    }
    Ok(match algorithm {
        Algorithm::Sha256 => Digest::sha256(hash::<sha2::Sha256>(file)?.finalize().into()),
        Algorithm::Sha512 => Digest::sha512(hash::<sha2::Sha512>(file)?.finalize().into()),
    })
}

/// All states of a file's chain, from the initial one, and its SHA-256 digest; none for a file that is too large to be
/// a blob. This is how the chain of a blob that came without one is made.
///
/// # Errors
/// What the disk says.
pub fn derive(file: &BlobFile) -> io::Result<Option<(Vec<State>, Digest)>> {
    let Some(layout) = Layout::new(file.size()) else { return Ok(None) };
    let mut states = vec![State::INITIAL];
    let mut before = State::INITIAL;
    for chunk in layout.chunks() {
        let mut link = Link::new(layout, chunk, before);
        for piece in pieces(file, layout.range(chunk)) {
            link.update(&piece?);
        }
        match link.end(layout, chunk) {
            Some(LinkEnd::State(state)) => {
                states.push(state);
                before = state;
            }
            Some(LinkEnd::Digest(digest)) => return Ok(Some((states, digest))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(None)
}

fn pieces(file: &BlobFile, range: std::ops::Range<u64>) -> impl Iterator<Item = io::Result<Bytes>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let len = (range.end - at).min(READ_BYTES);
        let piece = (len > 0).then(|| file.read(at, len as usize));
        at += len;
        piece
    })
}

#[cfg(test)]
mod tests;
