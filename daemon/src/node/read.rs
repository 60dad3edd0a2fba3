//! Reading a blob, complete or still arriving: what HTTP bodies are made of.

use std::{io, ops::Range, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use shoal_proto::{chunk::ChunkIndex, digest::Digest, swarm::ReaderId};
use tokio::{sync::mpsc, task, time::timeout};

use super::{
    driver::Command,
    flight::{Flight, Progress},
    through::Through,
    vouched::{Shelf, Vouched},
};
use crate::{
    store::{BUFFER_BYTES, BlobFile},
    verify::Verifier,
};

/// Bytes read at once: a buffer of the store.
const PIECE_BYTES: u64 = BUFFER_BYTES as u64;

/// Bytes that the disk is told to bring into memory when a piece is not there.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// Longest wait for one chunk, while no bytes of the blob come at all, before the body ends early and the client takes the rest elsewhere.
const CHUNK_DEADLINE: Duration = Duration::from_secs(60);

/// A blob that can be read, complete or still arriving.
#[derive(Debug)]
pub struct Blob {
    size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Sealed(Arc<Vouched>, Keeper),
    Flight(Arc<Flight>, Watch),
    Through(Box<Through>),
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
    pub(super) fn sealed(blob: Arc<Vouched>, keeper: Keeper) -> Self {
        Self { size: blob.layout().size(), source: Source::Sealed(blob, keeper) }
    }

    pub(super) const fn arriving(flight: Arc<Flight>, watch: Watch, size: u64) -> Self {
        Self { size, source: Source::Flight(flight, watch) }
    }

    pub(super) fn through(through: Through) -> Self {
        Self { size: through.size(), source: Source::Through(Box::new(through)) }
    }

    /// Bytes in the blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of a range, each verified before it comes out. An error item means: end the body early (by FIN).
    ///
    /// What lies in memory is copied just before it is sent, while it is sure to be in the processor's cache; the disk reads ahead.
    #[must_use]
    pub fn read(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let range = range.start.min(self.size)..range.end.min(self.size);
        let source = match self.source {
            Source::Through(through) => return through.read(range),
            Source::Sealed(blob, keeper) => Arc::new(Stored::Sealed(blob, keeper)),
            Source::Flight(flight, watch) => Arc::new(Stored::Flight(flight, watch)),
        };
        stream::iter(Pieces { range })
            .then(move |piece| {
                let source = Arc::clone(&source);
                async move { source.piece(piece).await }
            })
            .boxed()
    }
}

/// What a reader of a sealed blob needs to check it, and to have it removed.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    pub(super) verifier: Verifier,
    pub(super) shelf: Arc<Shelf>,
    pub(super) digest: Digest,
}

/// A blob that the store has, or will have.
enum Stored {
    Sealed(Arc<Vouched>, Keeper),
    Flight(Arc<Flight>, Watch),
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

impl Stored {
    async fn piece(&self, piece: Range<u64>) -> io::Result<Bytes> {
        let file = match self {
            Self::Sealed(blob, keeper) => keeper.checked(blob, &piece).await?,
            Self::Flight(flight, watch) => arrival(flight, watch, &piece).await?,
        };
        let len = (piece.end - piece.start) as usize;
        // Copying from memory takes less than the hop to the blocking pool and back.
        if let Some(bytes) = file.read_cached(piece.start, len) {
            return Ok(bytes);
        }
        let read = move || {
            file.read_ahead(piece.end, READ_AHEAD_BYTES);
            file.read(piece.start, len)
        };
        task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

impl Keeper {
    /// Makes sure of all chunks of a piece. A blob that has rotted leaves the store.
    async fn checked(&self, blob: &Vouched, piece: &Range<u64>) -> io::Result<BlobFile> {
        let (first, last) = (blob.layout().chunk_at(piece.start), blob.layout().chunk_at(piece.end - 1));
        for chunk in (first.0..=last.0).map(ChunkIndex) {
            if let Err(error) = blob.ensure(&self.verifier, chunk).await {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.shelf.discard(self.digest, blob.file()).await;
                }
                return Err(error);
            }
        }
        Ok(blob.file().clone())
    }
}

/// Waits for all chunks of a piece (there are two only where chunks are shorter than a piece).
async fn arrival(flight: &Flight, watch: &Watch, piece: &Range<u64>) -> io::Result<BlobFile> {
    let mut at = piece.start;
    loop {
        let (here, mut told) = (at, false);
        let mut wait =
            pin!(flight.until(|flight| match flight.progress(|layout| layout.chunk_at(here), watch.sealed) {
                Progress::Ready { layout, file } => Some(Ok((layout, file))),
                Progress::Failed(error) => Some(Err(io::Error::other(error))),
                Progress::Waiting { layout, .. } => {
                    if !std::mem::replace(&mut told, true) {
                        watch.at(layout.chunk_at(here));
                    }
                    None
                }
                Progress::Unsized => None,
                Progress::Landed => Some(Err(io::ErrorKind::NotFound.into())),
            }));
        let (layout, file) = loop {
            let moves = flight.moves();
            match timeout(CHUNK_DEADLINE, &mut wait).await {
                Ok(arrived) => break arrived?,
                // The blob comes slowly, or as a whole only. It ends: the machine sees to that.
                Err(_) if flight.moves() != moves => {}
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no bytes arrived within the deadline")),
            }
        };
        at = layout.range(layout.chunk_at(here)).end;
        if at >= piece.end {
            return Ok(file);
        }
    }
}
