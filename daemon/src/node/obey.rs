//! Obeying the swarm machine: every order becomes a call that does not wait, or a task that reports a fact.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shoal_proto::{
    chain::{Expected, LinkEnd, State},
    chunk::{ChunkIndex, Layout},
    claim::Segment,
    digest::Digest,
    peer::PeerId,
    swarm::{AskId, Event, FetchError, Input, OriginFailure, Output, PullId, RunId, Verdict},
    wire::{Answer, Ask, SEGMENT_STATES_MAX},
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    OpenError,
    driver::{Driver, Fact},
    job::{Job, Stream},
    origin_run::{Run, sign},
    parts::Parts,
    vouched::{Shelf, Vouched},
};
use crate::{
    quic::PullError,
    store::{BlobFile, PartialBlob},
    verify,
};

/// Backstop of a pull; the machine gives slow ones up much earlier.
const PULL_DEADLINE: Duration = Duration::from_secs(60);

/// Time between two savings of a partial blob's claim: what arrived since the last one is lost in a crash.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);

impl Driver {
    pub(super) fn obey(&mut self, order: Output) {
        match order {
            Output::Locate { digest } => self.locate(digest),
            Output::Announce { digest } => {
                let Some(name) = self.parts.access.announced(&digest) else { return };
                let key = self.parts.secret.blob_key(&name);
                if !self.parts.dht.provide(key) {
                    tracing::warn!(digest = %digest.short(), "not announced: the DHT's queue is full");
                }
            }
            Output::Dial { contact } => self.parts.plane.dial(contact),
            Output::Send { peer, message } => self.send(peer, message),
            Output::Sized { digest, size } => self.make_room(digest, size),
            Output::Pull { pull, peer, digest, chunk, expected } => self.pull(pull, peer, digest, chunk, expected),
            Output::CancelPull { pull } => {
                if let Some(task) = self.pulls.remove(&pull) {
                    task.abort();
                }
            }
            Output::PullOrigin { digest, run, from, until, before } => {
                self.pull_origin(digest, run, from, until, before);
            }
            Output::Hash { digest, chunk, before } => self.hash(digest, chunk, before),
            Output::Sign { digest, size, from, states } => {
                // Takes less time than a task of its own would.
                let segment = Arc::new(sign(&self.parts, &digest, size, from, states));
                self.swarm(Input::Signed { digest, segment });
            }
            Output::StopOrigin { run, .. } => {
                if let Some(stream) = self.runs.remove(&run) {
                    stream.stop();
                }
            }
            Output::Serve { ask } => self.serve(ask),
            Output::Refuse { ask, answer } => {
                if let Some(asked) = self.asks.remove(&ask) {
                    asked.reply.refuse(answer);
                }
            }
            Output::Arrived { digest, chunk } => self.arrived(digest, chunk),
            Output::Proven { digest } => self.proven(digest),
            Output::Discard { digest } => self.discard(digest),
            Output::Failed { digest, why } => self.failed(digest, why),
            Output::Report(event) => self.report(event),
        }
    }

    fn make_room(&mut self, digest: Digest, size: u64) {
        let Some(job) = self.jobs.get(&digest).cloned() else { return };
        // While room is being made for a former job of this blob, the store has none for this one: its end comes back here.
        if job.partial.borrow().is_some() || !self.rooms.insert(digest) {
            return;
        }
        let store = self.parts.store.clone();
        self.blocking(move || Fact::Room { digest, job, partial: store.create(&digest, size) });
    }

    /// Room came for a job that is over. What has begun anew meanwhile may have another size.
    fn late_room(&mut self, digest: Digest, partial: io::Result<PartialBlob>) {
        if let Ok(partial) = partial
            && let Err(error) = partial.discard()
        {
            tracing::warn!(%digest, %error, "a partial blob is left behind");
        }
        if let Some(size) = self.swarm.fetch(&digest).and_then(|view| view.size) {
            self.make_room(digest, size);
        }
    }

    /// Ends a fetch whose place in the store is not of the size that the machine works with: nothing of it may be sealed.
    fn misfit(&mut self, digest: Digest, partial: Option<&PartialBlob>) {
        tracing::error!(%digest, "the store's place for a blob does not fit it; dropping what has arrived");
        if let Some(Err(error)) = partial.map(PartialBlob::discard) {
            tracing::warn!(%digest, %error, "a partial blob is left behind");
        }
        self.parts.metrics.fetches_failed.inc();
        self.jobs.remove(&digest);
        self.saved.remove(&digest);
        self.end(digest, Err(OpenError::Corrupt));
        self.swarm(Input::Forgotten { digest });
    }

    fn fits(&self, digest: &Digest, partial: &PartialBlob) -> bool {
        self.swarm.fetch(digest).and_then(|view| view.size) == Some(partial.layout().size())
    }

    /// The store made room: chunks can be written, readers can be shown what is here.
    pub(super) fn room(&mut self, digest: Digest, job: &Arc<Job>, partial: io::Result<PartialBlob>) {
        self.rooms.remove(&digest);
        if !self.jobs.get(&digest).is_some_and(|current| Arc::ptr_eq(current, job)) {
            self.late_room(digest, partial);
            return;
        }
        match partial {
            Ok(partial) if !self.fits(&digest, &partial) => {
                job.partial.send_replace(Some(None));
                self.misfit(digest, Some(&partial));
            }
            Ok(partial) => {
                job.flight.sized(partial.layout(), partial.file().clone());
                job.partial.send_replace(Some(Some(partial)));
            }
            Err(error) => {
                tracing::error!(digest = %digest.short(), %error, "no room for the blob");
                job.partial.send_replace(Some(None));
                self.parts.metrics.fetches_failed.inc();
                self.end(digest, Err(OpenError::Disk(error.to_string())));
                self.swarm(Input::Forgotten { digest });
                self.jobs.remove(&digest);
                self.saved.remove(&digest);
            }
        }
    }

    fn pull(&mut self, pull: PullId, peer: PeerId, digest: Digest, chunk: ChunkIndex, expected: Expected) {
        let Some(job) = self.jobs.get(&digest).cloned() else { return };
        let (parts, facts) = (Arc::clone(&self.parts), self.facts.clone());
        let task = self.tasks.spawn(async move {
            let ask = Ask { digest, chunk, ends: expected.ends() };
            let verdict = pull_chunk(&parts, &job, peer, ask, expected).await;
            facts.send(Fact::Swarm(Input::Pulled { digest, pull, verdict })).await.ok();
        });
        self.pulls.insert(pull, task.abort_handle());
    }

    fn pull_origin(
        &mut self,
        digest: Digest,
        id: RunId,
        from: ChunkIndex,
        until: Option<ChunkIndex>,
        before: Option<State>,
    ) {
        let Some(job) = self.jobs.get(&digest).cloned() else { return };
        let Some(source) = job.source.clone() else { return };
        let layout = job.partial.borrow().as_ref().and_then(Option::as_ref).map(PartialBlob::layout);
        let layout = layout.or_else(|| {
            let view = self.swarm.fetch(&digest)?;
            Layout::new(view.size?)
        });
        let stopped = CancellationToken::new();
        let run = Run { digest, id, from, until, before, layout, source, job, stopped: stopped.clone() };
        let task = self.tasks.spawn(run.run(Arc::clone(&self.parts), self.facts.clone())).abort_handle();
        self.runs.insert(id, Stream { task, stopped });
    }

    /// Hashes a chunk that a stream stored without knowing the state in front of it.
    fn hash(&self, digest: Digest, chunk: ChunkIndex, before: State) {
        let Some(job) = self.jobs.get(&digest).cloned() else { return };
        let (parts, facts) = (Arc::clone(&self.parts), self.facts.clone());
        self.tasks.spawn(async move {
            let end = hash_chunk(&parts, &job, chunk, before).await;
            let end = end.inspect_err(|error| {
                tracing::error!(digest = %digest.short(), chunk = chunk.0, %error, "cannot hash a stored chunk");
            });
            facts.send(Fact::Hashed { digest, job, chunk, end: end.ok() }).await.ok();
        });
    }

    /// What was hashed for a job that is over says nothing about what has begun anew.
    pub(super) fn hashed(&mut self, digest: Digest, job: &Arc<Job>, chunk: ChunkIndex, end: Option<LinkEnd>) {
        if self.jobs.get(&digest).is_some_and(|current| Arc::ptr_eq(current, job)) {
            self.swarm(Input::Hashed { digest, chunk, end });
        }
    }

    fn serve(&mut self, id: AskId) {
        let Some(asked) = self.asks.remove(&id) else { return };
        let Ask { digest, chunk, .. } = asked.ask;
        let held = self.held.get(&digest).cloned();
        let partial = self.jobs.get(&digest).and_then(|job| job.partial.borrow().clone()).flatten();
        let (parts, shelf, facts) = (Arc::clone(&self.parts), Arc::clone(&self.shelf), self.facts.clone());
        self.tasks.spawn(async move {
            match read_chunk(&parts, &shelf, (digest, chunk), held, partial).await {
                Ok(pieces) => {
                    let count = pieces.iter().map(|piece| piece.len() as u64).sum();
                    match asked.reply.send(pieces).await {
                        Ok(()) => {
                            parts.metrics.bytes_to_peers.inc_by(count);
                        }
                        Err(error) => tracing::debug!(digest = %digest.short(), %error, "upload ended early"),
                    }
                }
                Err(error) => {
                    tracing::error!(digest = %digest.short(), chunk = chunk.0, %error, "cannot read a chunk to serve");
                    asked.reply.refuse(Answer::Missing);
                }
            }
            facts.send(Fact::Swarm(Input::Served { ask: id })).await.ok();
        });
    }

    fn arrived(&mut self, digest: Digest, chunk: ChunkIndex) {
        let Some(job) = self.jobs.get(&digest) else { return };
        job.flight.arrived(chunk);
        let saved = *self.saved.entry(digest).or_insert_with(Instant::now);
        if saved.elapsed() >= SAVE_INTERVAL {
            self.saved.insert(digest, Instant::now());
            self.save_claim(&digest);
        }
    }

    /// Keeps the claim beside a partial blob, so that a restart can prove again what is there.
    pub(super) fn save_claim(&self, digest: &Digest) {
        let Some(job) = self.jobs.get(digest) else { return };
        let Some(partial) = job.partial.borrow().clone().flatten() else { return };
        let segments = self.swarm.segments(digest).to_vec();
        let digest = *digest;
        self.tasks.spawn(async move {
            let save = move || {
                let segments: Vec<_> = segments.into_iter().map(Arc::unwrap_or_clone).collect();
                partial.save_claim(&segments)
            };
            if let Ok(Err(error)) = spawn_blocking(save).await {
                tracing::warn!(digest = %digest.short(), %error, "claim not saved; a crash now costs what has arrived");
            }
        });
    }

    /// Every link holds: readers may have the end, and the blob gets its name.
    fn proven(&mut self, digest: Digest) {
        let Some(job) = self.jobs.get(&digest) else { return };
        let partial = job.partial.borrow().clone().flatten();
        let Some(partial) = partial.clone().filter(|partial| self.fits(&digest, partial)) else {
            self.misfit(digest, partial.as_ref());
            return;
        };
        job.flight.end(Ok(()));
        let size = partial.layout().size();
        let states = self.swarm.states(&digest).to_vec();
        let parts = Arc::clone(&self.parts);
        self.blocking(move || {
            let segments = sign_chain(&parts, &digest, size, &states);
            let sealed = partial.seal(&segments).map(|file| (file, segments));
            Fact::Sealed { digest, sealed }
        });
    }

    pub(super) fn sealed(&mut self, digest: Digest, sealed: io::Result<(BlobFile, Vec<Segment>)>) {
        let job = self.jobs.remove(&digest);
        self.saved.remove(&digest);
        match sealed {
            Ok((file, segments)) => {
                if let Some(job) = &job {
                    self.parts.metrics.fetches_finished.inc();
                    self.parts.metrics.fetch_seconds.observe(job.started.elapsed().as_secs_f64());
                }
                tracing::info!(%digest, bytes = file.size(), "sealed");
                self.parts.access.sealed(&digest);
                let segments: Vec<_> = segments.into_iter().map(Arc::new).collect();
                if let Some(blob) = Vouched::proven(digest, file, segments.clone()) {
                    self.held.insert(digest, self.shelf.put(blob));
                }
                self.swarm(Input::Sealed { digest, segments });
            }
            Err(error) => {
                tracing::error!(%digest, %error, "cannot seal; the blob is not kept");
                if let Some(partial) = job.and_then(|job| job.partial.borrow().clone().flatten()) {
                    partial.release();
                }
                self.parts.metrics.fetches_failed.inc();
                self.swarm(Input::Forgotten { digest });
            }
        }
        // From now on readers find the blob in the store, or fetch it anew.
        self.flights.end(&digest, Ok(()));
    }

    /// A false claim: what rests on it goes, and its readers with it; new ones wait for the truth.
    fn discard(&mut self, digest: Digest) {
        self.saved.remove(&digest);
        let Some(job) = self.jobs.remove(&digest) else { return };
        tracing::warn!(%digest, "a claim was false; starting anew from the origin");
        let flight = self.flights.renew(digest, Err(OpenError::Corrupt));
        self.parts.metrics.claims_false.inc();
        let mut fresh = Job::new(job.source.clone(), flight);
        fresh.started = job.started;
        if let Some(partial) = job.partial.borrow().clone().flatten() {
            // Before the machine's next order, so that the store has a free place for the new beginning.
            if let Err(error) = partial.discard() {
                tracing::warn!(%digest, %error, "a partial blob is left behind");
            }
        }
        self.jobs.insert(digest, Arc::new(fresh));
    }

    fn failed(&mut self, digest: Digest, why: FetchError) {
        self.parts.metrics.fetches_failed.inc();
        self.saved.remove(&digest);
        let job = self.jobs.remove(&digest);
        let origin = job.as_ref().and_then(|job| job.origin_error());
        let error = match why {
            FetchError::Origin(OriginFailure::Corrupt) => OpenError::Corrupt,
            FetchError::Origin(_) => origin.map_or(OpenError::Overloaded("the origin failed"), OpenError::Origin),
            FetchError::Disk => OpenError::Disk("writing a chunk failed".to_owned()),
            FetchError::Limit => OpenError::Overloaded("too many fetches at once, or the blob is too large"),
            FetchError::Forgotten => OpenError::Overloaded("the fetch was ended"),
        };
        tracing::warn!(%digest, %error, "fetch failed");
        let Some(partial) = job.and_then(|job| job.partial.borrow().clone().flatten()) else {
            self.end(digest, Err(error));
            return;
        };
        // Tasks that were aborted may have it for a moment still. The flight ends behind them, so that the next fetch, which
        // begins no sooner, finds the place free and what has arrived.
        let flights = self.flights.clone();
        self.tasks.spawn_blocking(move || {
            partial.release();
            flights.end(&digest, Err(error));
        });
    }

    fn end(&self, digest: Digest, end: Result<(), OpenError>) {
        self.flights.end(&digest, end);
    }

    fn report(&self, event: Event) {
        let metrics = &self.parts.metrics;
        match event {
            Event::CorruptChunk { peer, digest, chunk } => {
                tracing::warn!(%peer, digest = %digest.short(), chunk = chunk.0, "a peer sent a corrupt chunk");
            }
            Event::Convicted { peer, digest } => {
                tracing::warn!(%peer, digest = %digest.short(), "a peer signed a false claim; its word counts no more");
            }
            Event::Disputed { digest } => {
                metrics.claims_disputed.inc();
                tracing::warn!(digest = %digest.short(), "two claims for one digest");
            }
            Event::Untracked { digest } => {
                metrics.fallbacks_untracked.inc();
                tracing::warn!(digest = %digest.short(), "no tracker answers; going to the origin");
            }
            Event::Leased { digest } => {
                metrics.leases_granted.inc();
                tracing::info!(digest = %digest.short(), "origin lease");
            }
            Event::Stalled { digest } => {
                metrics.fallbacks_stalled.inc();
                tracing::warn!(digest = %digest.short(), "no progress; going to the origin");
            }
        }
    }
}

async fn pull_chunk(parts: &Parts, job: &Job, peer: PeerId, ask: Ask, expected: Expected) -> Verdict {
    let Some(partial) = partial_of(job).await else { return Verdict::Disk };
    let bytes = partial.layout().len(ask.chunk);
    let frames = match parts.plane.pull_watched(peer, ask, bytes, PULL_DEADLINE, || job.flight.stirred()).await {
        Ok(frames) => frames,
        Err(PullError::Busy) => return Verdict::Busy,
        Err(PullError::Missing) => return Verdict::Missing,
        Err(PullError::Link) => return Verdict::Link,
    };
    parts.metrics.bytes_from_peers.inc_by(bytes);
    match parts.verifier.check(&partial, ask.chunk, expected, frames, &CancellationToken::new()).await {
        verify::Verdict::Good { .. } => {
            parts.metrics.chunks_verified.inc();
            job.from_peers.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            Verdict::Good
        }
        verify::Verdict::Corrupt => {
            parts.metrics.chunks_corrupt.inc();
            Verdict::Corrupt
        }
        verify::Verdict::Disk(error) => {
            tracing::error!(digest = %ask.digest.short(), %error, "cannot store a chunk");
            Verdict::Disk
        }
    }
}

async fn hash_chunk(parts: &Parts, job: &Job, chunk: ChunkIndex, before: State) -> io::Result<LinkEnd> {
    let partial = partial_of(job).await.ok_or(io::ErrorKind::NotFound)?;
    let end = parts.verifier.hash(&partial, chunk, before).await?;
    parts.metrics.chunks_verified.inc();
    job.count_origin(partial.layout().len(chunk));
    Ok(end)
}

/// The blob's place in the store, once there is one; none if there will not be.
pub(super) async fn partial_of(job: &Job) -> Option<PartialBlob> {
    let mut partial = job.partial.subscribe();
    let made = partial.wait_for(Option::is_some).await.ok()?;
    made.clone().flatten()
}

/// Reads a chunk for a peer. Those of sealed blobs are made sure of first: a node must not earn a bad name through its disk.
async fn read_chunk(
    parts: &Parts,
    shelf: &Shelf,
    (digest, chunk): (Digest, ChunkIndex),
    held: Option<Arc<Vouched>>,
    partial: Option<PartialBlob>,
) -> io::Result<Vec<Bytes>> {
    let (file, layout) = match (held, partial) {
        (Some(held), _) => {
            if let Err(error) = held.ensure(&parts.verifier, chunk).await {
                if error.kind() == io::ErrorKind::InvalidData {
                    shelf.discard(digest, held.file()).await;
                }
                return Err(error);
            }
            (held.file().clone(), held.layout())
        }
        (None, Some(partial)) => (partial.file().clone(), partial.layout()),
        (None, None) => return Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let range = layout.range(chunk);
    let read = move || file.read_pieces(range.start, (range.end - range.start) as usize);
    spawn_blocking(read).await.map_err(io::Error::other)?
}

/// This node's signed word for a whole proven chain, in segments that fit into messages.
pub(super) fn sign_chain(parts: &Parts, digest: &Digest, size: u64, states: &[State]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut from = 0;
    loop {
        let end = (from + SEGMENT_STATES_MAX).min(states.len());
        segments.push(sign(parts, digest, size, ChunkIndex(from as u32), states[from..end].to_vec()));
        if end == states.len() {
            return segments;
        }
        // Segments touch: the next begins with the state that this one ends with.
        from = end - 1;
    }
}
