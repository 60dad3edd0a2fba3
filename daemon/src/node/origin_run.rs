//! One stream from the origin: bytes become chunks, chunks become links of the chain, each told to the loop at once.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use shoal_proto::{
    chain::{Expected, LinkEnd, State},
    chunk::{ChunkIndex, Layout},
    claim::Segment,
    digest::Digest,
    swarm::{Input, OriginFailure, RunId},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{driver::Fact, job::Job, obey::partial_of, parts::Parts};
use crate::{
    origin::{Body, OriginError, Source},
    store::PartialBlob,
    verify::Verdict,
};

/// Chunks that were read and wait to be hashed or stored: one in work and one behind it keep network and hash busy together.
const CHUNKS_AHEAD: usize = 2;
/// The same where chunks are only written, which is quick; several streams of a blob may do that at once.
const CHUNKS_AHEAD_UNHASHED: usize = 1;

/// How often progress inside a chunk is told, for the lease's heartbeats.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for the store to make room.
const STORE_DEADLINE: Duration = Duration::from_secs(30);

/// What a stream is asked to bring.
pub(super) struct Run {
    pub(super) digest: Digest,
    pub(super) id: RunId,
    pub(super) from: ChunkIndex,
    pub(super) until: Option<ChunkIndex>,
    /// None if it is not known: then chunks are stored as they come, and hashed when the machine says so.
    pub(super) before: Option<State>,
    pub(super) layout: Option<Layout>,
    pub(super) source: Source,
    pub(super) job: Arc<Job>,
    /// Cancelled when the machine stops the stream: what is still being hashed then must not be written any more.
    pub(super) stopped: CancellationToken,
}

/// Why a stream ended early.
enum Failure {
    Origin(OriginError),
    Corrupt,
    Disk,
}

impl Run {
    /// Streams, and tells the loop how it ended.
    pub(super) async fn run(self, parts: Arc<Parts>, facts: mpsc::Sender<Fact>) {
        let failure = match self.stream(&parts, &facts).await {
            Ok(()) => None,
            Err(Failure::Corrupt) => Some(OriginFailure::Corrupt),
            Err(Failure::Disk) => Some(OriginFailure::Disk),
            Err(Failure::Origin(error)) => {
                tracing::warn!(digest = %self.digest.short(), %error, "the origin failed");
                let failure = kind(&error);
                self.job.note_origin_error(error);
                Some(failure)
            }
        };
        let input = Input::OriginEnded { digest: self.digest, run: self.id, failure };
        // The loop is gone only at shutdown.
        facts.send(Fact::Swarm(input)).await.ok();
    }

    async fn stream(&self, parts: &Arc<Parts>, facts: &mpsc::Sender<Fact>) -> Result<(), Failure> {
        let start = self.layout.map_or(0, |layout| layout.range(self.from).start);
        let end = self.layout.zip(self.until).map(|(layout, until)| layout.range(until).start);
        let mut body =
            parts.origin.open_range(&self.source, &self.digest, start, end).await.map_err(Failure::Origin)?;
        let size = body.size;
        let Some(layout) = Layout::new(size) else { return Err(Failure::Disk) };
        if self.layout.is_some_and(|known| known != layout) {
            return Err(Failure::Corrupt);
        }
        if body.ignores_ranges() {
            self.tell(facts, Input::OriginIgnoresRanges { digest: self.digest }).await;
        }
        self.tell(facts, Input::OriginOpened { digest: self.digest, run: self.id, size }).await;
        let partial = timeout(STORE_DEADLINE, partial_of(&self.job)).await.ok().flatten().ok_or(Failure::Disk)?;
        // The room was made for another size: somebody lied, and the machine will have noticed.
        if partial.layout() != layout {
            return Err(Failure::Corrupt);
        }
        let (chunks, arrived) = mpsc::channel(if self.before.is_some() { CHUNKS_AHEAD } else { CHUNKS_AHEAD_UNHASHED });
        let (sent, progress) = watch::channel(0_u64);
        let last = self.until.map_or(layout.last(), |until| ChunkIndex(until.0 - 1));
        let read = async {
            let outcome = read_chunks(&mut body, layout, self.from, last, &chunks, &sent).await;
            drop(chunks);
            outcome
        };
        let keep = self.keep(parts, facts, layout, &partial, arrived);
        let report = self.report(facts, progress);
        tokio::pin!(report);
        let work = async { tokio::try_join!(read, keep) };
        tokio::select! {
            outcome = work => outcome.map(|_| ()),
            never = &mut report => match never {},
        }
    }

    /// Stores chunks in order and tells the loop. They are hashed first if the state in front of the first is known: each
    /// link starts where the one before ended.
    async fn keep(
        &self,
        parts: &Arc<Parts>,
        facts: &mpsc::Sender<Fact>,
        layout: Layout,
        partial: &PartialBlob,
        mut chunks: mpsc::Receiver<(ChunkIndex, Vec<Bytes>)>,
    ) -> Result<(), Failure> {
        let mut before = self.before;
        while let Some((chunk, frames)) = chunks.recv().await {
            let end = match before {
                Some(state) => Some(self.link(parts, layout, partial, chunk, state, frames).await?),
                None => {
                    let stored = parts.verifier.store(partial, chunk, frames, &self.stopped).await;
                    stored.map_err(|error| self.disk(&error))?;
                    None
                }
            };
            if let Some(LinkEnd::State(after)) = end {
                before = Some(after);
            }
            let input = Input::OriginChunk { digest: self.digest, run: self.id, chunk, end };
            self.tell(facts, input).await;
        }
        Ok(())
    }

    /// Hashes a chunk from the state in front of it, and stores it.
    async fn link(
        &self,
        parts: &Arc<Parts>,
        layout: Layout,
        partial: &PartialBlob,
        chunk: ChunkIndex,
        before: State,
        frames: Vec<Bytes>,
    ) -> Result<LinkEnd, Failure> {
        let expected = Expected { before, end: None };
        match parts.verifier.check(partial, chunk, expected, frames, &self.stopped).await {
            Verdict::Good { end } => {
                parts.metrics.chunks_verified.inc();
                self.job.count_origin(layout.len(chunk));
                Ok(end)
            }
            Verdict::Corrupt => {
                parts.metrics.chunks_corrupt.inc();
                Err(Failure::Corrupt)
            }
            Verdict::Disk(error) => Err(self.disk(&error)),
        }
    }

    fn disk(&self, error: &io::Error) -> Failure {
        tracing::error!(digest = %self.digest.short(), %error, "cannot store a chunk");
        Failure::Disk
    }

    /// Tells the loop of bytes inside a chunk, so that a slow origin does not look like a stuck one.
    async fn report(&self, facts: &mpsc::Sender<Fact>, progress: watch::Receiver<u64>) -> Infallible {
        let mut next = Instant::now() + PROGRESS_INTERVAL;
        let mut before = 0;
        loop {
            tokio::time::sleep_until(next).await;
            next += PROGRESS_INTERVAL;
            let bytes = *progress.borrow();
            if std::mem::replace(&mut before, bytes) != bytes {
                self.job.flight.stirred();
            }
            self.tell(facts, Input::OriginProgress { digest: self.digest, run: self.id, bytes }).await;
        }
    }

    async fn tell(&self, facts: &mpsc::Sender<Fact>, input: Input) {
        facts.send(Fact::Swarm(input)).await.ok();
    }
}

/// Cuts a body into chunks, without copying its bytes.
async fn read_chunks(
    body: &mut Body,
    layout: Layout,
    from: ChunkIndex,
    last: ChunkIndex,
    chunks: &mpsc::Sender<(ChunkIndex, Vec<Bytes>)>,
    progress: &watch::Sender<u64>,
) -> Result<(), Failure> {
    let mut rest = Bytes::new();
    let mut total = 0;
    for chunk in (from.0..=last.0).map(ChunkIndex) {
        let mut frames = Vec::new();
        let mut missing = layout.len(chunk);
        while missing > 0 {
            if rest.is_empty() {
                let Some(next) = body.next().await.map_err(Failure::Origin)? else {
                    return Err(Failure::Corrupt);
                };
                total += next.len() as u64;
                progress.send_replace(total);
                rest = next;
            }
            let take = usize::try_from(missing).unwrap_or(usize::MAX).min(rest.len());
            frames.push(rest.split_to(take));
            missing -= take as u64;
        }
        // The hashing side is gone only if it failed, and then its failure is the one that counts.
        if chunks.send((chunk, frames)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// This node's signed word for states that it computed.
pub(super) fn sign(parts: &Parts, digest: &Digest, size: u64, from: ChunkIndex, states: Vec<State>) -> Segment {
    let signature = parts.identity.sign(&Segment::signed_bytes(digest, size, from, &states));
    Segment { author: parts.identity.peer(), from, states, signature }
}

const fn kind(error: &OriginError) -> OriginFailure {
    match error {
        OriginError::NotFound { .. } | OriginError::Denied { .. } | OriginError::Protocol { .. } => {
            OriginFailure::Refused
        }
        OriginError::RateLimited { retry_after, .. } => OriginFailure::Transient { retry_after: *retry_after },
        OriginError::Unavailable { .. } => OriginFailure::TRANSIENT,
    }
}
