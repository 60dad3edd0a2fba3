//! The loop: one fact at a time goes into the machines, and their orders come out.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use shoal_proto::{
    chain::LinkEnd,
    chunk::ChunkIndex,
    digest::Digest,
    peer::{Contact, PeerId},
    swarm::{self, AskId, Input, PullId, ReaderId, RunId, Swarm},
    time::Time,
    tracker::{self, Tracker},
    wire::{Ask, Message},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::sleep_until,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Flights, NodeFetch, Want,
    flight::Flight,
    gate::Gate,
    incoming::{Waiting, is_signed},
    job::{Job, Stream},
    parts::Parts,
    tags::{TagCommand, Tags},
    vouched::{Shelf, Vouched},
};
use crate::{
    quic::{PlaneEvent, Reply},
    store::{BlobFile, PartialBlob, Resumed, SealedBlob},
};

/// Facts from tasks that wait for the loop.
const FACTS_MAX: usize = 4096;

/// A wish of somebody local.
#[derive(Debug)]
pub(super) enum Command {
    /// Fetch this blob; `resumes` says whether what an earlier fetch left may be used.
    Want { want: Want, flight: Arc<Flight>, resumes: bool },
    /// A reader waits for a chunk.
    Reading { digest: Digest, reader: ReaderId, chunk: ChunkIndex },
    /// A reader is gone.
    ReaderLeft { digest: Digest, reader: ReaderId },
    /// Something about a tag that is resolved for the whole cluster.
    Tag(TagCommand),
    /// A sealed blob has rotted and was removed.
    Rotten { digest: Digest },
    /// Tell what is going on.
    Report(oneshot::Sender<Vec<NodeFetch>>),
}

/// What a task found out.
#[derive(Debug)]
pub(super) enum Fact {
    /// Something for the machine.
    Swarm(Input),
    /// What the store had of a wanted blob.
    Resumed { digest: Digest, resumed: Option<Resumed> },
    /// A wanted blob was in the store already.
    Stored { digest: Digest, sealed: SealedBlob },
    /// A sealed blob was opened because a peer asked about it.
    Opened { digest: Digest, sealed: Option<Arc<Vouched>> },
    /// Room was made for a blob, or not; for this very job, which may be over by now.
    Room { digest: Digest, job: Arc<Job>, partial: std::io::Result<PartialBlob> },
    /// A chunk that was stored unhashed was hashed, or could not be read; for this very job, which may be over by now.
    Hashed { digest: Digest, job: Arc<Job>, chunk: ChunkIndex, end: Option<LinkEnd> },
    /// A blob was sealed, or could not be.
    Sealed { digest: Digest, sealed: std::io::Result<(BlobFile, Vec<shoal_proto::claim::Segment>)> },
}

/// A chunk that a peer asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) reply: Reply,
}

/// The loop's state.
pub(super) struct Driver {
    pub(super) parts: Arc<Parts>,
    pub(super) flights: Flights,
    pub(super) tasks: TaskTracker,
    pub(super) swarm: Swarm,
    /// Facts that came up while the machine's orders were obeyed; they are for this same turn.
    inputs: VecDeque<Input>,
    turning: bool,
    pub(super) tracker: Tracker,
    pub(super) tags: Tags,
    pub(super) gate: Gate,
    pub(super) jobs: HashMap<Digest, Arc<Job>>,
    /// Sealed blobs that peers read.
    pub(super) held: HashMap<Digest, Arc<Vouched>>,
    pub(super) shelf: Arc<Shelf>,
    /// Blobs for which room is being made: once at a time, whatever becomes of the job that it is for.
    pub(super) rooms: HashSet<Digest>,
    /// When the claim of a fetch was saved last.
    pub(super) saved: HashMap<Digest, Instant>,
    pub(super) pulls: HashMap<PullId, AbortHandle>,
    pub(super) runs: HashMap<RunId, Stream>,
    pub(super) asks: HashMap<AskId, Asked>,
    /// Where connected peers are, for trackers to hand out.
    pub(super) contacts: HashMap<PeerId, Contact>,
    pub(super) opening: HashMap<Digest, Vec<Waiting>>,
    pub(super) facts: mpsc::Sender<Fact>,
    pub(super) facts_in: mpsc::Receiver<Fact>,
    pub(super) ask_ids: u64,
    start: Instant,
    pub(super) me: PeerId,
}

impl Driver {
    pub(super) fn new(parts: Arc<Parts>, flights: Flights, shelf: Arc<Shelf>, tasks: TaskTracker) -> Self {
        let me = parts.identity.peer();
        let (facts, facts_in) = mpsc::channel(FACTS_MAX);
        let (place, limits, seed) = (parts.place, parts.limits.clone(), rand::random());
        Self {
            swarm: Swarm::new(me, place, limits.clone(), seed),
            inputs: VecDeque::new(),
            turning: false,
            tracker: Tracker::new(limits, seed ^ 1),
            tags: Tags::default(),
            gate: Gate::new(Arc::clone(&parts.access), me),
            parts,
            flights,
            tasks,
            jobs: HashMap::new(),
            held: HashMap::new(),
            shelf,
            rooms: HashSet::new(),
            saved: HashMap::new(),
            pulls: HashMap::new(),
            runs: HashMap::new(),
            asks: HashMap::new(),
            contacts: HashMap::new(),
            opening: HashMap::new(),
            facts,
            facts_in,
            ask_ids: 0,
            start: Instant::now(),
            me,
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<PlaneEvent>,
        shutdown: CancellationToken,
    ) {
        loop {
            let wake = self.next_deadline();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(fact) = self.facts_in.recv() => self.fact(fact),
                () = sleep_until(wake.into()) => self.elapsed(),
                Some(command) = commands.recv() => self.command(command),
                event = events.recv() => match event {
                    Some(event) => self.event(event),
                    None => break,
                },
            }
        }
        self.stop();
    }

    pub(super) fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn next_deadline(&self) -> Instant {
        let due = [self.swarm.deadline(), self.tracker.deadline(), self.tags.deadline()].into_iter().flatten().min();
        // Without a deadline any far time will do: each fact makes the loop look again.
        due.map_or_else(
            || Instant::now() + Duration::from_secs(3600),
            |due| self.start + Duration::from_nanos(due.as_nanos()),
        )
    }

    /// Feeds the swarm machine and obeys. A fact that comes up on the way is fed when the orders before it are obeyed.
    pub(super) fn swarm(&mut self, input: Input) {
        self.inputs.push_back(input);
        if std::mem::replace(&mut self.turning, true) {
            return;
        }
        while let Some(input) = self.inputs.pop_front() {
            let mut out = Vec::new();
            let now = self.now();
            self.swarm.handle(now, input, &mut out);
            for order in out {
                self.obey(order);
            }
        }
        self.turning = false;
        self.count_leases();
    }

    /// Only fetches under way, which have jobs, hold leases; there are few of them beside the blobs held for peers.
    fn count_leases(&self) {
        let leased = |digest: &&Digest| self.swarm.fetch(digest).is_some_and(|view| view.leased);
        let leases = self.jobs.keys().filter(leased).count();
        self.parts.metrics.leases_held.set(i64::try_from(leases).unwrap_or(i64::MAX));
    }

    pub(super) fn count_peers(&self) {
        self.parts.metrics.connected_peers.set(i64::try_from(self.contacts.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn track(&mut self, input: tracker::Input) {
        let mut out = Vec::new();
        let now = self.now();
        self.tracker.handle(now, input, &mut out);
        for tracker::Send { peer, message } in out {
            if peer == self.me {
                self.later(Input::Received { peer, message: self.gate.unveil(message) });
            } else {
                self.send(peer, message);
            }
        }
    }

    pub(super) fn send(&mut self, peer: PeerId, message: Message) {
        let message = self.gate.veil(message);
        if peer == self.me {
            let contact = Contact { peer, address: self.parts.plane.local_address() };
            self.tracked(contact, message);
            return;
        }
        if let Message::Subscribe { digest, .. } = &message
            && let Some(entitled) = self.gate.entitlement(peer, digest)
        {
            self.parts.plane.send(peer, entitled).ok();
        }
        if let Err(error) = self.parts.plane.send(peer, message) {
            tracing::debug!(%peer, %error, "message not sent");
        }
    }

    /// Feeds the machine in a later turn of the loop.
    fn later(&self, input: Input) {
        if self.facts.try_send(Fact::Swarm(input)).is_err() {
            tracing::warn!("the loop is too far behind for its own tracker; a heartbeat will repeat it");
        }
    }

    /// A message that is for this node's tracker.
    pub(super) fn tracked(&mut self, contact: Contact, message: Message) {
        match message {
            Message::Join(join) => self.track(tracker::Input::Joined { contact, join }),
            Message::Leave { digest } => self.track(tracker::Input::Left { peer: contact.peer, digest }),
            Message::Joined { .. }
            | Message::Revoked { .. }
            | Message::Subscribe { .. }
            | Message::Unsubscribe { .. }
            | Message::Have { .. }
            | Message::Got { .. }
            | Message::Fresh { .. }
            | Message::Peers { .. }
            | Message::Segment { .. }
            | Message::Unknown { .. }
            | Message::Entitled { .. }
            | Message::Tag { .. } => {}
        }
    }

    fn elapsed(&mut self) {
        self.swarm(Input::Elapsed);
        self.track(tracker::Input::Elapsed);
        self.tags_elapsed();
        let swarm = &self.swarm;
        self.held.retain(|digest, _| swarm.knows(digest));
        self.gate.retain(|digest| swarm.knows(digest));
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Want { want, flight, resumes } => self.want(want, flight, resumes),
            Command::Reading { digest, reader, chunk } => self.swarm(Input::Reading { digest, reader, chunk }),
            Command::ReaderLeft { digest, reader } => self.swarm(Input::ReaderLeft { digest, reader }),
            Command::Tag(command) => self.tag_command(command),
            Command::Rotten { digest } => self.rotten(digest),
            Command::Report(reply) => {
                let views = self.swarm.fetches().map(|view| {
                    let job = self.jobs.get(&view.digest);
                    let (origin, peers) = job.map_or((0, 0), |job| job.sources());
                    NodeFetch { view, from_origin: origin, from_peers: peers }
                });
                reply.send(views.collect()).ok();
            }
        }
    }

    /// Lets go of a blob that was removed, unless it is being fetched anew or is back already.
    fn rotten(&mut self, digest: Digest) {
        if self.jobs.contains_key(&digest) || self.parts.store.sealed_size(&digest).is_some() {
            return;
        }
        self.held.remove(&digest);
        self.swarm(Input::Forgotten { digest });
    }

    /// Looks in the store for what is left of an earlier fetch, then wishes.
    fn want(&mut self, want: Want, flight: Arc<Flight>, resumes: bool) {
        let digest = want.digest;
        self.jobs.insert(digest, Arc::new(Job::new(Some(want.source), flight)));
        let store = self.parts.store.clone();
        self.blocking(move || {
            // It may have been sealed between the reader's look into the store and its wish.
            if let Ok(Some(sealed)) = store.open_sealed(&digest) {
                return Fact::Stored { digest, sealed };
            }
            let leftover = if resumes { store.resume(&digest) } else { store.drop_leftover(&digest).map(|()| None) };
            let resumed = leftover.unwrap_or_else(|error| {
                tracing::warn!(digest = %digest.short(), %error, "cannot resume; starting anew");
                None
            });
            Fact::Resumed { digest, resumed }
        });
    }

    /// Runs blocking work and takes its fact in.
    pub(super) fn blocking(&self, work: impl FnOnce() -> Fact + Send + 'static) {
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            match tokio::task::spawn_blocking(work).await {
                Ok(fact) => {
                    facts.send(fact).await.ok();
                }
                Err(error) => tracing::error!(%error, "blocking work did not end"),
            }
        });
    }

    pub(super) fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Swarm(input) => {
                if let Input::Pulled { pull, .. } = &input {
                    self.pulls.remove(pull);
                }
                if let Input::OriginEnded { run, .. } = &input {
                    self.runs.remove(run);
                }
                self.swarm(input);
            }
            Fact::Resumed { digest, resumed } => self.resumed(digest, resumed),
            Fact::Stored { digest, sealed } => {
                if let Some(job) = self.jobs.remove(&digest) {
                    job.flight.sized(sealed.layout, sealed.file);
                }
                self.flights.end(&digest, Ok(()));
            }
            Fact::Opened { digest, sealed } => self.opened(digest, sealed),
            Fact::Hashed { digest, job, chunk, end } => self.hashed(digest, &job, chunk, end),
            Fact::Room { digest, job, partial } => self.room(digest, &job, partial),
            Fact::Sealed { digest, sealed } => self.sealed(digest, sealed),
        }
    }

    fn resumed(&mut self, digest: Digest, resumed: Option<Resumed>) {
        self.parts.metrics.fetches_started.inc();
        let restored = resumed.map(|resumed| {
            if let Some(job) = self.jobs.get(&digest) {
                job.flight.sized(resumed.layout, resumed.blob.file().clone());
                job.partial.send_replace(Some(Some(resumed.blob)));
            }
            let size = resumed.layout.size();
            let signed = resumed.segments.into_iter().filter(|segment| is_signed(&digest, size, segment));
            let segments = signed.map(Arc::new).collect();
            swarm::Restored { size, segments, have: resumed.verified }
        });
        if self.swarm.fetch(&digest).is_some_and(|view| view.complete) {
            // The store has lost what the machine still offers to peers.
            self.held.remove(&digest);
            self.swarm(Input::Forgotten { digest });
        }
        self.swarm(Input::Wanted { digest, restored });
    }

    fn stop(&mut self) {
        for (_, task) in self.pulls.drain() {
            task.abort();
        }
        for (_, stream) in self.runs.drain() {
            stream.stop();
        }
        let digests: Vec<Digest> = self.jobs.keys().copied().collect();
        for digest in digests {
            self.save_claim(&digest);
            self.flights.end(&digest, Err(super::OpenError::Overloaded("the daemon is shutting down")));
        }
    }
}
