//! The world: a queue of events, and what each of them brings about.
//!
//! Every order of a machine is obeyed to the letter; every fact reaches a machine after the time that it would take.
//! A chunk goes: `Pull` at the receiver, half a round trip, `Asked` at the sender, which serves or refuses; the transfer
//! runs through both links; its last byte ends the upload at the sender, and arrives half a round trip later.

mod end;
mod fault;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::{
    chunk::ChunkIndex,
    claim::{Segment, Signature},
    digest::Digest,
    peer::Place,
    swarm::{AskId, Event as Told, Input, Output, PullId, ReaderId, RunId, Verdict},
    time::Time,
    tracker,
    wire::{Message, encode_message},
};

use crate::{
    check::Checks,
    dht::Dht,
    net::{FlowId, Net},
    node::{Blob, Node, mix, number},
    origin::Origin,
    plan::{Kill, Moment, Plan, PlanError, Who},
    report::{Report, Tally},
};

/// A world that runs one plan.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    now: Time,
    queue: BinaryHeap<Reverse<Due>>,
    sequence: u64,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) nodes: Vec<Node>,
    net: Net,
    origin: Origin,
    dht: Dht,
    asks: BTreeMap<AskId, Ask>,
    pulls: BTreeMap<(usize, PullId), AskId>,
    carriers: BTreeMap<FlowId, Carrier>,
    kills: Vec<Kill>,
    uploads: Vec<usize>,
    uploads_max: usize,
    pub(crate) checks: Checks,
    tally: Tally,
    trace: u64,
    bound: Duration,
}

/// What happens.
#[derive(Debug)]
enum Event {
    /// A fact reaches a node's swarm.
    Swarm(usize, Input),
    /// A fact reaches a node's tracker.
    Tracker(usize, tracker::Input),
    /// A machine's deadline: 0 for the swarm, 1 for the tracker.
    Timer(usize, usize),
    /// A node begins to want its layers.
    Begin(usize),
    /// A dial comes to its end.
    Dialled { from: usize, to: usize },
    /// An ask reaches its sender.
    Asked(AskId),
    /// The withdrawal of an ask reaches its sender.
    Withdrawn(AskId),
    /// The answer to an ask has reached its receiver and is verified.
    Answered(AskId, Verdict),
    /// The origin begins to answer.
    Streaming(usize, RunId),
    /// A node looks how far its stream from the origin is.
    Looked(usize, RunId),
    /// Others can find a holder.
    Announced(usize, usize),
    /// A node dies.
    Kill(Who),
    /// A node finds that its connection to a dead one is gone.
    Lost { node: usize, dead: usize },
    /// The DHT finds that a node is gone.
    Removed(usize),
}

#[derive(Debug)]
struct Due {
    time: Time,
    sequence: u64,
    event: Event,
}

/// A chunk that one node asked another for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    receiver: usize,
    sender: usize,
    blob: usize,
    chunk: ChunkIndex,
    pull: PullId,
    stage: Stage,
    flow: Option<FlowId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way to the sender.
    Sent,
    /// The sender has it.
    Waiting,
    /// The chunk's bytes are on their way.
    Serving,
    /// The sender is done with it.
    Done,
}

/// What a transfer carries.
#[derive(Debug, Clone, Copy)]
enum Carrier {
    Chunk(AskId),
    Stream(usize, RunId),
}

const READER: ReaderId = ReaderId(0);

impl World {
    /// A world at its beginning.
    ///
    /// # Errors
    /// A plan with limits that do not exist.
    pub fn new(plan: &Plan) -> Result<Self, PlanError> {
        let limits = plan.limits()?;
        let seed = mix(plan.seed, 0x5ea);
        let sizes = plan.layers.iter().enumerate();
        let blobs: Vec<Blob> = sizes.map(|(at, size)| Blob::new(seed, at, size.bytes())).collect();
        let mut net = Net::default();
        let origin = Origin::new(net.link(plan.origin_rate.bytes_per_second()), blobs.len());
        let mut nodes = Vec::new();
        let mut dht = Dht::default();
        for at in 0..plan.nodes {
            let links = (net.link(plan.link_up.bytes_per_second()), net.link(plan.link_down.bytes_per_second()));
            let node = Node::new(seed, at, &limits, links, &blobs);
            dht.join(node.peer);
            nodes.push(node);
        }
        let mut world = Self {
            plan: plan.clone(),
            now: Time::ZERO,
            queue: BinaryHeap::new(),
            sequence: 0,
            blobs,
            uploads: vec![0; nodes.len()],
            uploads_max: limits.uploads_max,
            nodes,
            net,
            origin,
            dht,
            asks: BTreeMap::new(),
            pulls: BTreeMap::new(),
            carriers: BTreeMap::new(),
            kills: plan.kill.clone(),
            checks: Checks::default(),
            tally: Tally::default(),
            trace: mix(plan.seed, plan.nodes as u64),
            bound: Duration::ZERO,
        };
        world.begin(seed);
        Ok(world)
    }

    fn begin(&mut self, seed: u64) {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut late: Vec<Duration> = Vec::new();
        for group in &self.plan.late {
            late.extend(std::iter::repeat_n(group.at.0, group.nodes));
        }
        for at in 0..self.nodes.len() {
            let wait = match late.get(self.nodes.len() - 1 - at) {
                Some(wait) => *wait,
                None => self.plan.jitter.0.mul_f64(rng.random()),
            };
            self.nodes[at].begins = Time::ZERO + wait;
            self.push(wait, Event::Begin(at));
        }
        for kill in std::mem::take(&mut self.kills) {
            match kill.at {
                Moment::After(wait) => self.push(wait.0, Event::Kill(kill.who)),
                Moment::Progress(_) => self.kills.push(kill),
            }
        }
        self.bound = self.lower_bound();
    }

    /// When the last node can be done at best (Kumar and Ross; a late node needs the time that its downlink takes).
    fn lower_bound(&self) -> Duration {
        let bytes = self.plan.bytes() as f64;
        let rate = |rate: shoal_proto::units::Rate| rate.bytes_per_second() as f64;
        let nodes = self.nodes.len() as f64;
        let (origin, up, down) = (rate(self.plan.origin_rate), rate(self.plan.link_up), rate(self.plan.link_down));
        let begins = || self.nodes.iter().map(|node| node.begins.since(Time::ZERO).as_secs_f64());
        let first = begins().fold(f64::INFINITY, f64::min);
        let last = begins().fold(0.0, f64::max);
        let bounds = [first + bytes / origin, last + bytes / down, first + nodes * bytes / (origin + nodes * up)];
        Duration::from_secs_f64(bounds.into_iter().fold(0.0, f64::max))
    }

    /// Runs to the end and reports; `wall_s` is left at 0.
    #[must_use]
    pub fn run(mut self) -> Report {
        while self.step() {}
        self.report()
    }

    /// Lets the next event happen. Returns false when there is none, all is done, or the time is up.
    pub fn step(&mut self) -> bool {
        let done = self.nodes.iter().all(|node| !node.alive || node.is_complete());
        let queued = self.queue.peek().map(|Reverse(due)| due.time);
        let end = self.net.next_end();
        let Some(next) = queued.into_iter().chain(end.map(|(time, _)| time)).min() else { return false };
        if done || next > Time::ZERO + self.plan.limit.0 {
            return false;
        }
        self.now = self.now.max(next);
        match end {
            Some((time, flow)) if queued.is_none_or(|queued| time <= queued) => self.flow_ended(flow),
            Some(_) | None => {
                if let Some(Reverse(due)) = self.queue.pop() {
                    self.happen(due.event);
                }
            }
        }
        true
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Due { time: self.now + after, sequence: self.sequence, event }));
    }

    fn note(&mut self, code: u64, node: usize, detail: u64) {
        self.trace = mix(mix(self.trace, self.now.as_nanos()), mix(code << 32 | node as u64, detail));
        self.tally.count("events");
    }

    fn half_trip(&self) -> Duration {
        self.plan.rtt.0 / 2
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Swarm(node, input) => {
                self.note(1, node, kind(&input));
                self.swarm(node, input);
            }
            Event::Tracker(node, input) => {
                self.note(2, node, 0);
                self.tracker(node, input);
            }
            Event::Timer(node, which) => self.timer(node, which),
            Event::Begin(node) => {
                self.note(3, node, 0);
                self.want(node);
            }
            Event::Dialled { from, to } => self.dialled(from, to),
            Event::Asked(ask) => self.asked(ask),
            Event::Withdrawn(ask) => self.withdrawn(ask),
            Event::Answered(ask, verdict) => self.answered(ask, verdict),
            Event::Streaming(node, run) => self.streaming(node, run),
            Event::Looked(node, run) => self.look(node, run),
            Event::Announced(node, blob) => self.dht.announce(blob, self.nodes[node].peer),
            Event::Kill(who) => self.kill(who),
            Event::Lost { node, dead } => {
                let peer = self.nodes[dead].peer;
                if self.nodes[node].connected.remove(&dead) {
                    self.swarm(node, Input::Disconnected { peer });
                    self.tracker(node, tracker::Input::Disconnected { peer });
                }
            }
            Event::Removed(node) => self.dht.remove(self.nodes[node].peer),
        }
    }

    fn want(&mut self, node: usize) {
        for blob in 0..self.blobs.len() {
            let digest = self.blobs[blob].digest;
            self.swarm(node, Input::Wanted { digest, restored: None });
            if self.plan.readers {
                self.swarm(node, Input::Reading { digest, reader: READER, chunk: ChunkIndex::FIRST });
            }
        }
    }

    fn swarm(&mut self, node: usize, input: Input) {
        if !self.nodes[node].alive {
            return;
        }
        let mut out = Vec::new();
        self.nodes[node].swarm.handle(self.now, input, &mut out);
        for order in out {
            self.obey(node, order);
        }
        let due = self.nodes[node].swarm.deadline();
        self.promise(node, 0, due);
    }

    fn tracker(&mut self, node: usize, input: tracker::Input) {
        if !self.nodes[node].alive {
            return;
        }
        let mut out = Vec::new();
        self.nodes[node].tracker.handle(self.now, input, &mut out);
        for tracker::Send { peer, message } in out {
            self.send(node, number(peer), message);
        }
        let due = self.nodes[node].tracker.deadline();
        self.promise(node, 1, due);
    }

    /// Sees to it that a machine gets time when it is due.
    fn promise(&mut self, node: usize, which: usize, due: Option<Time>) {
        if self.nodes[node].timers[which] != due {
            self.nodes[node].timers[which] = due;
            if let Some(due) = due {
                self.push(due.since(self.now), Event::Timer(node, which));
            }
        }
    }

    fn timer(&mut self, node: usize, which: usize) {
        if self.nodes[node].timers[which].is_none_or(|due| due > self.now) {
            return;
        }
        self.nodes[node].timers[which] = None;
        self.note(4, node, which as u64);
        if which == 0 { self.swarm(node, Input::Elapsed) } else { self.tracker(node, tracker::Input::Elapsed) }
    }

    fn blob(&self, digest: &Digest) -> usize {
        self.blobs.iter().position(|blob| blob.digest == *digest).expect("machines only know the world's layers")
    }

    fn obey(&mut self, node: usize, order: Output) {
        match order {
            Output::Locate { digest } => {
                let trackers = self.dht.trackers(&digest, self.plan.trackers);
                let holders = self.dht.holders(self.blob(&digest), self.nodes[node].peer);
                self.push(self.plan.locate.0, Event::Swarm(node, Input::Located { digest, trackers }));
                self.push(self.plan.locate.0, Event::Swarm(node, Input::Holders { digest, holders }));
            }
            Output::Announce { digest } => {
                let blob = self.blob(&digest);
                let proven = self.nodes[node].holdings[blob].proven.is_some();
                self.checks.announced(node, blob, proven);
                self.push(self.plan.locate.0, Event::Announced(node, blob));
            }
            Output::Dial { contact } => {
                let to = number(contact.peer);
                self.tally.count("dials");
                self.push(self.plan.rtt.0 * 3 / 2, Event::Dialled { from: node, to });
            }
            Output::Send { peer, message } => self.send(node, number(peer), message),
            Output::Pull { pull, peer, digest, chunk, expected } => {
                self.pull(node, pull, peer, &digest, chunk, expected)
            }
            Output::CancelPull { pull } => self.cancel(node, pull),
            Output::PullOrigin { digest, run, from, until, before } => {
                let blob = self.blob(&digest);
                self.checks
                    .rule(before.is_none_or(|before| before == self.blobs[blob].state(from)), || format!("node {node} streams from a false state"));
                self.origin.request(node, run, blob, from, until, before.is_none());
                self.push(self.plan.origin_latency.0, Event::Streaming(node, run));
            }
            Output::StopOrigin { run, .. } => self.stop_stream(node, run),
            Output::Serve { ask } => self.serve(node, ask),
            Output::Refuse { ask, answer } => self.refuse(ask, answer),
            Output::Arrived { digest, chunk } => self.arrived(node, &digest, chunk),
            Output::Proven { digest } => self.proven(node, &digest),
            Output::Failed { digest, why } => {
                let blob = self.blob(&digest);
                self.tally.count("failed fetches");
                self.nodes[node].holdings[blob].failed = Some(why);
            }
            Output::Discard { .. } => self.checks.rule(false, || format!("node {node} distrusts a true claim")),
            Output::Report(told) => self.told(told),
            Output::Sized { .. } => {}
            Output::Sign { digest, from, states, .. } => {
                let author = self.nodes[node].peer;
                let segment = Arc::new(Segment { author, from, states, signature: Signature([0; 64]) });
                self.push(Duration::ZERO, Event::Swarm(node, Input::Signed { digest, segment }));
            }
            Output::Hash { digest, chunk, before } => self.hash(node, digest, chunk, before),
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::CorruptChunk { .. } => self.checks.rule(false, || "a true chunk was called corrupt".to_owned()),
            Told::Disputed { .. } => self.checks.rule(false, || "true claims were disputed".to_owned()),
            Told::Untracked { .. } => self.tally.count("untracked"),
            Told::Leased { .. } => self.tally.count("leases"),
            Told::Stalled { .. } => self.tally.count("stalls"),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let connected = from == to || self.nodes[from].connected.contains(&to);
        self.checks.rule(connected, || format!("node {from} sends to {to} without a connection: {message:?}"));
        if !connected {
            return;
        }
        self.tally.count(message_kind(&message));
        if let Message::Got { digest, chunks } = &message {
            let holding = &self.nodes[from].holdings[self.blob(digest)];
            let true_word = chunks.iter().all(|chunk| holding.have.contains(*chunk));
            self.checks.rule(true_word, || format!("node {from} tells of chunks that it lacks"));
        }
        let peer = self.nodes[from].peer;
        let after = if from == to {
            Duration::ZERO
        } else {
            self.tally.control_bytes += encode_message(&message).len() as u64;
            self.half_trip()
        };
        let event = match message {
            Message::Join(join) => {
                Event::Tracker(to, tracker::Input::Joined { contact: crate::node::contact(peer), join })
            }
            Message::Leave { digest } => Event::Tracker(to, tracker::Input::Left { peer, digest }),
            Message::Joined { .. }
            | Message::Revoked { .. }
            | Message::Subscribe { .. }
            | Message::Unsubscribe { .. }
            | Message::Have { .. }
            | Message::Got { .. }
            | Message::Fresh { .. }
            | Message::Peers { .. }
            | Message::Segment { .. }
            | Message::Unknown { .. } => Event::Swarm(to, Input::Received { peer, message }),
        };
        self.push(after, event);
    }

    fn dialled(&mut self, from: usize, to: usize) {
        self.note(5, from, to as u64);
        let peers = (self.nodes[from].peer, self.nodes[to].peer);
        if !self.nodes[to].alive {
            // The rest of the time until a dial is given up.
            self.push(self.plan.detect.0, Event::Swarm(from, Input::Disconnected { peer: peers.1 }));
            return;
        }
        if !self.nodes[from].alive || !self.nodes[from].connected.insert(to) {
            return;
        }
        self.nodes[to].connected.insert(from);
        self.swarm(from, Input::Connected { peer: peers.1, place: Place::default() });
        self.swarm(to, Input::Connected { peer: peers.0, place: Place::default() });
    }

    fn arrived(&mut self, node: usize, digest: &Digest, chunk: ChunkIndex) {
        let blob = self.blob(digest);
        let count = ChunkIndex(self.blobs[blob].layout.count());
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks
            .rule(holding.have.contains(chunk), || format!("chunk {} arrived at node {node} without bytes", chunk.0));
        if !self.plan.readers || chunk != holding.reader {
            return;
        }
        match holding.have.first_missing(chunk) {
            Some(next) => {
                holding.reader = next;
                self.push(
                    Duration::ZERO,
                    Event::Swarm(node, Input::Reading { digest: *digest, reader: READER, chunk: next }),
                );
            }
            None => {
                holding.reader = count;
                self.push(Duration::ZERO, Event::Swarm(node, Input::ReaderLeft { digest: *digest, reader: READER }));
            }
        }
    }

    fn proven(&mut self, node: usize, digest: &Digest) {
        let blob = self.blob(digest);
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks.rule(holding.have.is_full(), || format!("node {node} proved layer {blob} without all its chunks"));
        self.checks.rule(holding.proven.is_none(), || format!("node {node} proved layer {blob} twice"));
        holding.proven = Some(self.now);
        let segments = self.blobs[blob].segments(self.nodes[node].peer);
        self.push(Duration::ZERO, Event::Swarm(node, Input::Sealed { digest: *digest, segments }));
    }
}

/// A number for the trace.
const fn kind(input: &Input) -> u64 {
    match input {
        Input::Received { .. } => 1,
        Input::Located { .. } => 2,
        Input::Holders { .. } => 3,
        Input::Reading { chunk, .. } => 4 | (chunk.0 as u64) << 8,
        Input::ReaderLeft { .. } => 5,
        Input::Sealed { .. } => 6,
        Input::Disconnected { .. } => 7,
        Input::Served { .. } => 8,
        Input::Wanted { .. }
        | Input::Held { .. }
        | Input::Forgotten { .. }
        | Input::Connected { .. }
        | Input::Asked { .. }
        | Input::Pulled { .. }
        | Input::OriginOpened { .. }
        | Input::OriginProgress { .. }
        | Input::OriginChunk { .. }
        | Input::OriginEnded { .. }
        | Input::Hashed { .. }
        | Input::Signed { .. }
        | Input::Elapsed => 9,
    }
}

const fn message_kind(message: &Message) -> &'static str {
    match message {
        Message::Join(_) => "join",
        Message::Joined { .. } => "joined",
        Message::Revoked { .. } => "revoked",
        Message::Leave { .. } => "leave",
        Message::Subscribe { .. } => "subscribe",
        Message::Unsubscribe { .. } => "unsubscribe",
        Message::Have { .. } => "have",
        Message::Got { .. } => "got",
        Message::Fresh { .. } => "fresh",
        Message::Peers { .. } => "peers",
        Message::Segment { .. } => "segment",
        Message::Unknown { .. } => "unknown",
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.sequence).cmp(&(other.time, other.sequence))
    }
}
