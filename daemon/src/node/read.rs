//! Reading a blob, complete or still arriving: what HTTP bodies are made of.

use std::{io, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use shoal_proto::{chunk::ChunkIndex, digest::Digest, swarm::ReaderId};
use tokio::{sync::mpsc, task, time::timeout};

use super::{
    driver::Command,
    flight::{Flight, Progress},
};
use crate::store::{BUFFER_BYTES, BlobFile};

/// Bytes read at once: a buffer of the store.
const PIECE_BYTES: u64 = BUFFER_BYTES as u64;

/// Bytes that the disk is told to bring into memory when a piece is not there.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// Longest wait for one chunk before the body ends early and the client takes the rest elsewhere.
const CHUNK_DEADLINE: Duration = Duration::from_secs(60);

/// A blob that can be read, complete or still arriving.
#[derive(Debug)]
pub struct Blob {
    size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Sealed(BlobFile),
    Flight(Arc<Flight>, Watch),
}

/// Tells the node's loop where a reader is, and that it left.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) digest: Digest,
    pub(super) reader: ReaderId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) sealed: bool,
}

impl Watch {
    fn at(&self, chunk: ChunkIndex) {
        // A hint: if the loop is behind by a full queue, it has more urgent things to do.
        self.commands.try_send(Command::Reading { digest: self.digest, reader: self.reader, chunk }).ok();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.commands.try_send(Command::ReaderLeft { digest: self.digest, reader: self.reader }).ok();
    }
}

impl Blob {
    pub(super) const fn sealed(file: BlobFile, size: u64) -> Self {
        Self { size, source: Source::Sealed(file) }
    }

    pub(super) const fn arriving(flight: Arc<Flight>, watch: Watch, size: u64) -> Self {
        Self { size, source: Source::Flight(flight, watch) }
    }

    /// Bytes in the blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of a range, each verified before it comes out. An error item means: end the body early (by FIN).
    ///
    /// What lies in memory is copied just before it is sent, while it is sure to be in the processor's cache; the disk
    /// reads ahead.
    #[must_use]
    pub fn read(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let range = range.start.min(self.size)..range.end.min(self.size);
        let source = Arc::new(self.source);
        stream::iter(Pieces { range })
            .then(move |piece| {
                let source = Arc::clone(&source);
                async move { source.piece(piece).await }
            })
            .boxed()
    }
}

/// The pieces of a range, cut at multiples of the piece length so that none spans two chunks.
struct Pieces {
    range: Range<u64>,
}

impl Iterator for Pieces {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.range.start;
        let end = (start / PIECE_BYTES + 1).saturating_mul(PIECE_BYTES).min(self.range.end);
        self.range.start = end;
        (start < end).then_some(start..end)
    }
}

impl Source {
    async fn piece(&self, piece: Range<u64>) -> io::Result<Bytes> {
        let file = match self {
            Self::Sealed(file) => file.clone(),
            Self::Flight(flight, watch) => arrival(flight, watch, &piece).await?,
        };
        let len = (piece.end - piece.start) as usize;
        // Copying from memory takes less than the hop to the blocking pool and back.
        if let Some(bytes) = file.read_cached(piece.start, len) {
            return Ok(bytes);
        }
        let read = move || {
            file.read_ahead(piece.start, READ_AHEAD_BYTES);
            file.read(piece.start, len)
        };
        task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

/// Waits for all chunks of a piece (there are two only where chunks are shorter than a piece).
async fn arrival(flight: &Flight, watch: &Watch, piece: &Range<u64>) -> io::Result<BlobFile> {
    let mut at = piece.start;
    loop {
        let mut told = false;
        let wait = flight.until(|flight| match flight.progress(|layout| layout.chunk_at(at), watch.sealed) {
            Progress::Ready { layout, file } => Some(Ok((layout, file))),
            Progress::Failed(error) => Some(Err(io::Error::other(error))),
            Progress::Waiting { layout, .. } => {
                if !std::mem::replace(&mut told, true) {
                    watch.at(layout.chunk_at(at));
                }
                None
            }
            Progress::Unsized => None,
        });
        let (layout, file) = timeout(CHUNK_DEADLINE, wait)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no chunk arrived within the deadline"))??;
        at = layout.range(layout.chunk_at(at)).end;
        if at >= piece.end {
            return Ok(file);
        }
    }
}
