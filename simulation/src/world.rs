//! The world: a queue of events, and what each of them brings about.
//!
//! Every order of a machine is obeyed to the letter; every fact reaches a machine after the time that it would take.
//! A chunk goes: `Pull` at the receiver, half a round trip, `Asked` at the sender, which serves or refuses; the transfer
//! runs through both links; its last byte ends the upload at the sender, and arrives half a round trip later.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::{
    chain::{Expected, LinkEnd},
    chunk::ChunkIndex,
    digest::Digest,
    peer::PeerId,
    swarm::{AskId, Event as Told, Input, Output, PullId, ReaderId, RunId, Verdict},
    time::Time,
    tracker,
    wire::{Answer, Message, encode_message},
};

use crate::{
    check::Checks,
    dht::Dht,
    net::{FlowId, Net},
    node::{Blob, Node, mix, number},
    origin::Origin,
    plan::{Kill, Moment, Plan, PlanError, Who},
    report::{BINS, Bin, Report, Tally, Usage, percentile},
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

/// How often a node looks at its streams from the origin.
const LOOK: Duration = Duration::from_millis(250);
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
        let due = self.nodes[node].swarm.deadline().map(|(time, _)| time);
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
            Output::Pull { pull, peer, digest, chunk, expected } => self.pull(node, pull, peer, &digest, chunk, expected),
            Output::CancelPull { pull } => self.cancel(node, pull),
            Output::PullOrigin { digest, run, from, until, before } => {
                let blob = self.blob(&digest);
                self.checks.rule(before == self.blobs[blob].state(from), || format!("node {node} streams from a false state"));
                self.origin.request(node, run, blob, from, until);
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
            Message::Join(join) => Event::Tracker(to, tracker::Input::Joined { contact: crate::node::contact(peer), join }),
            Message::Leave { digest } => Event::Tracker(to, tracker::Input::Left { peer, digest }),
            message => Event::Swarm(to, Input::Received { peer, message }),
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
        self.swarm(from, Input::Connected { peer: peers.1 });
        self.swarm(to, Input::Connected { peer: peers.0 });
    }

    fn pull(&mut self, node: usize, pull: PullId, from: PeerId, digest: &Digest, chunk: ChunkIndex, expected: Expected) {
        let (sender, blob) = (number(from), self.blob(digest));
        let truth = &self.blobs[blob];
        let end = if chunk == truth.layout.last() { LinkEnd::Digest(*digest) } else { LinkEnd::State(truth.state(chunk.next())) };
        let sound = expected == Expected { before: truth.state(chunk), end: Some(end) };
        self.checks.rule(sound, || format!("node {node} pulls chunk {} without knowing its link", chunk.0));
        let needed = !self.nodes[node].holdings[blob].have.contains(chunk);
        self.checks.rule(needed, || format!("node {node} pulls chunk {} that it has", chunk.0));
        let ask = AskId(self.sequence + 1);
        let stage = Stage::Sent;
        self.asks.insert(ask, Ask { receiver: node, sender, blob, chunk, pull, stage, flow: None });
        self.pulls.insert((node, pull), ask);
        self.tally.count("pulls");
        self.push(self.half_trip(), Event::Asked(ask));
    }

    fn asked(&mut self, id: AskId) {
        let Some(ask) = self.asks.get_mut(&id) else { return };
        ask.stage = Stage::Waiting;
        let Ask { receiver, sender, blob, chunk, .. } = *ask;
        self.note(6, sender, u64::from(chunk.0));
        let (digest, peer) = (self.blobs[blob].digest, self.nodes[receiver].peer);
        self.swarm(sender, Input::Asked { ask: id, peer, digest, chunk });
    }

    fn serve(&mut self, node: usize, id: AskId) {
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.sender == node && ask.stage == Stage::Waiting) else {
            self.checks.rule(false, || format!("node {node} serves what nobody waits for"));
            return;
        };
        ask.stage = Stage::Serving;
        let Ask { receiver, sender, blob, chunk, .. } = *ask;
        let truly = self.nodes[sender].holdings[blob].have.contains(chunk);
        self.checks.rule(truly, || format!("node {sender} serves chunk {} that it lacks", chunk.0));
        self.uploads[sender] += 1;
        let uploads = self.uploads[sender];
        self.checks.rule(uploads <= self.uploads_max, || format!("node {sender} serves {uploads} chunks at once"));
        let (from, to) = (self.nodes[sender].up, self.nodes[receiver].down);
        let flow = self.net.start(self.now, from, to, None, self.blobs[blob].layout.len(chunk));
        ask_mut(&mut self.asks, id).flow = Some(flow);
        self.carriers.insert(flow, Carrier::Chunk(id));
    }

    fn refuse(&mut self, id: AskId, answer: Answer) {
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.stage == Stage::Waiting) else {
            self.checks.rule(false, || "an ask was answered twice".to_owned());
            return;
        };
        ask.stage = Stage::Done;
        let (what, verdict) = match answer {
            Answer::Busy => ("busy", Verdict::Busy),
            Answer::Missing => ("missing", Verdict::Missing),
            Answer::Bytes => ("", Verdict::Link),
        };
        self.tally.count(what);
        self.push(self.half_trip(), Event::Answered(id, verdict));
    }

    fn flow_ended(&mut self, flow: FlowId) {
        match self.carriers.get(&flow).copied() {
            Some(Carrier::Chunk(ask)) => self.sent(ask),
            Some(Carrier::Stream(node, run)) => self.streamed(node, run),
            None => {
                self.net.stop(self.now, flow);
            }
        }
    }

    /// The last byte of a chunk left its sender.
    fn sent(&mut self, id: AskId) {
        self.end_upload(id);
        let Some(ask) = self.asks.get(&id).copied() else { return };
        let bytes = self.blobs[ask.blob].layout.len(ask.chunk);
        let receiver = &mut self.nodes[ask.receiver];
        let arrival = self.now + self.plan.rtt.0 / 2;
        let verify = self.plan.verify_rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / rate.bytes_per_second() as f64)
        });
        receiver.verifies_until = receiver.verifies_until.max(arrival) + verify;
        let after = receiver.verifies_until.since(self.now);
        self.push(after, Event::Answered(id, Verdict::Good));
        if self.origin.streams.keys().any(|(node, _)| *node == ask.sender) {
            self.bin().holders_up += bytes;
        }
        self.swarm(ask.sender, Input::Served { ask: id });
    }

    /// Ends the transfer of a chunk, if it runs. Returns the bytes that were sent in vain if it was not at its end.
    fn end_upload(&mut self, id: AskId) -> u64 {
        let Some(ask) = self.asks.get_mut(&id) else { return 0 };
        let Some(flow) = ask.flow.take() else { return 0 };
        ask.stage = Stage::Done;
        let (sender, bytes) = (ask.sender, self.blobs[ask.blob].layout.len(ask.chunk));
        self.uploads[sender] -= 1;
        self.carriers.remove(&flow);
        bytes.saturating_sub(self.net.stop(self.now, flow))
    }

    fn answered(&mut self, id: AskId, verdict: Verdict) {
        let Some(ask) = self.asks.remove(&id) else { return };
        let Ask { receiver, blob, chunk, pull, .. } = ask;
        self.note(7, receiver, u64::from(chunk.0) << 8 | verdict as u64);
        let bytes = self.blobs[blob].layout.len(chunk);
        let wanted = self.pulls.remove(&(receiver, pull)).is_some();
        if verdict == Verdict::Good {
            let new = wanted && self.nodes[receiver].holdings[blob].have.insert(chunk);
            *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
            self.bin().down += bytes;
        }
        if wanted {
            let digest = self.blobs[blob].digest;
            self.swarm(receiver, Input::Pulled { digest, pull, verdict });
        }
    }

    fn bin(&mut self) -> &mut Bin {
        let share = self.now.since(Time::ZERO).as_secs_f64() / self.bound.as_secs_f64();
        self.tally.bin(((share * BINS as f64) as usize).min(BINS))
    }

    fn cancel(&mut self, node: usize, pull: PullId) {
        let Some(ask) = self.pulls.remove(&(node, pull)) else { return };
        self.tally.count("cancels");
        self.push(self.half_trip(), Event::Withdrawn(ask));
    }

    fn withdrawn(&mut self, id: AskId) {
        let Some(ask) = self.asks.get(&id).copied() else { return };
        if ask.stage == Stage::Done {
            // Its answer is on the way, and will find that nobody wants it.
            return;
        }
        self.note(8, ask.sender, u64::from(ask.chunk.0));
        let wasted = self.end_upload(id);
        self.tally.wasted_bytes += wasted;
        self.bin().down += wasted;
        self.asks.remove(&id);
        self.swarm(ask.sender, Input::Served { ask: id });
    }

    fn streaming(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get(&(node, run)).copied() else { return };
        self.note(9, node, run.0);
        let blob = &self.blobs[stream.blob];
        let (digest, size, bytes) = (blob.digest, blob.layout.size(), blob.layout.len(stream.chunk));
        let cap = self.plan.origin_connection_rate.map(|rate| rate.bytes_per_second());
        let flow = self.net.start(self.now, self.origin.link, self.nodes[node].down, cap, bytes);
        self.carriers.insert(flow, Carrier::Stream(node, run));
        self.origin.streams.insert((node, run), super::origin::Stream { flow: Some(flow), ..stream });
        self.swarm(node, Input::OriginOpened { digest, run, size });
        self.push(LOOK, Event::Looked(node, run));
    }

    /// Tells a node how many bytes of a stream have come, in the middle of chunks too.
    fn look(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get(&(node, run)).copied() else { return };
        let blob = &self.blobs[stream.blob];
        let left = stream.flow.map_or(0, |flow| self.net.left(self.now, flow));
        let (digest, bytes) = (blob.digest, stream.bytes + blob.layout.len(stream.chunk).saturating_sub(left));
        self.note(12, node, bytes);
        self.swarm(node, Input::OriginProgress { digest, run, bytes });
        self.push(LOOK, Event::Looked(node, run));
    }

    /// A chunk came from the origin.
    fn streamed(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get_mut(&(node, run)) else { return };
        let (blob, chunk, flow) = (stream.blob, stream.chunk, stream.flow);
        let truth = &self.blobs[blob];
        let bytes = truth.layout.len(chunk);
        stream.bytes += bytes;
        stream.chunk = chunk.next();
        let (so_far, digest, last) = (stream.bytes, truth.digest, truth.layout.last());
        let end = chunk == last || stream.until == Some(chunk.next());
        let link_end = if chunk == last { LinkEnd::Digest(digest) } else { LinkEnd::State(truth.state(chunk.next())) };
        let segment = (chunk != last).then(|| truth.segment(self.nodes[node].peer, chunk, chunk.next()));
        let next_bytes = if end { 0 } else { truth.layout.len(chunk.next()) };
        self.origin.bytes[blob] += bytes;
        self.note(10, node, u64::from(chunk.0));
        if let Some(flow) = flow {
            if end {
                self.carriers.remove(&flow);
                self.net.stop(self.now, flow);
                self.origin.streams.remove(&(node, run));
            } else {
                self.net.go_on(self.now, flow, next_bytes);
            }
        }
        let new = self.nodes[node].holdings[blob].have.insert(chunk);
        *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
        let bin = self.bin();
        bin.down += bytes;
        bin.origin += bytes;
        self.swarm(node, Input::OriginProgress { digest, run, bytes: so_far });
        self.swarm(node, Input::OriginChunk { digest, run, chunk, end: link_end, segment });
        if end {
            self.swarm(node, Input::OriginEnded { digest, run, failure: None });
        }
        self.kill_at_progress();
    }

    fn stop_stream(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.remove(&(node, run)) else { return };
        let Some(flow) = stream.flow else { return };
        self.carriers.remove(&flow);
        let left = self.net.stop(self.now, flow);
        let sent = self.blobs[stream.blob].layout.len(stream.chunk).saturating_sub(left);
        self.origin.bytes[stream.blob] += sent;
        self.tally.wasted_bytes += sent;
    }

    fn arrived(&mut self, node: usize, digest: &Digest, chunk: ChunkIndex) {
        let blob = self.blob(digest);
        let count = ChunkIndex(self.blobs[blob].layout.count());
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks.rule(holding.have.contains(chunk), || format!("chunk {} arrived at node {node} without bytes", chunk.0));
        if !self.plan.readers || chunk != holding.reader {
            return;
        }
        match holding.have.first_missing(chunk) {
            Some(next) => {
                holding.reader = next;
                self.push(Duration::ZERO, Event::Swarm(node, Input::Reading { digest: *digest, reader: READER, chunk: next }));
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

    fn kill_at_progress(&mut self) {
        let sent: u64 = self.origin.bytes.iter().sum();
        let share = sent as f64 / self.plan.bytes() as f64;
        let due = |kill: &Kill| matches!(kill.at, Moment::Progress(at) if at <= share);
        while let Some(at) = self.kills.iter().position(due) {
            let kill = self.kills.remove(at);
            self.push(Duration::ZERO, Event::Kill(kill.who));
        }
    }

    fn kill(&mut self, who: Who) {
        let dead = match who {
            Who::Node(node) => node,
            Who::LeaseHolder => match self.origin.streaming(|blob| self.blobs[blob].layout.size()) {
                Some(node) => node,
                None => return,
            },
        };
        if !self.nodes[dead].alive {
            return;
        }
        self.note(11, dead, 0);
        self.tally.count("deaths");
        self.nodes[dead].alive = false;
        let runs: Vec<RunId> =
            self.origin.streams.keys().filter(|(node, _)| *node == dead).map(|(_, run)| *run).collect();
        for run in runs {
            self.stop_stream(dead, run);
        }
        let detect = self.plan.detect.0;
        let touched = self.asks.iter().filter(|(_, ask)| ask.sender == dead || ask.receiver == dead);
        let touched: Vec<(AskId, Ask)> = touched.map(|(id, ask)| (*id, *ask)).collect();
        for (id, ask) in touched {
            let wasted = self.end_upload(id);
            self.tally.wasted_bytes += wasted;
            self.asks.remove(&id);
            if ask.receiver == dead && ask.stage != Stage::Done {
                self.push(detect, Event::Swarm(ask.sender, Input::Served { ask: id }));
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].connected.contains(&dead) {
                self.push(detect, Event::Lost { node, dead });
            }
        }
        self.push(detect, Event::Removed(dead));
    }

    fn report(mut self) -> Report {
        let seconds = |time: Time| time.since(Time::ZERO).as_secs_f64();
        let survivors = || self.nodes.iter().filter(|node| node.alive);
        let mut times: Vec<f64> = survivors()
            .filter_map(|node| node.completed().map(|time| time.since(node.begins).as_secs_f64()))
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        let last = survivors().map(|node| seconds(node.completed().unwrap_or(self.now))).fold(0.0, f64::max);
        let mut unmet: Vec<String> = self.checks.breaches().to_vec();
        let breaches = self.checks.count();
        if breaches > unmet.len() as u64 {
            unmet.push(format!("{breaches} breaches in all"));
        }
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive && !node.is_complete()) {
            let views: Vec<String> =
                node.swarm.fetches().map(|view| format!("{} of {} chunks", view.have, view.chunks)).collect();
            let failed: Vec<_> = node.holdings.iter().filter_map(|holding| holding.failed).collect();
            unmet.push(format!("node {at} did not get its layers: {} {failed:?}", views.join(", ")));
        }
        unmet.truncate(40);
        let bytes = self.plan.bytes().max(1) as f64;
        let bound = self.bound.as_secs_f64();
        let events = self.tally.counts.remove("events").unwrap_or(0);
        let width = bound / BINS as f64;
        let nodes = self.nodes.len() as f64;
        let all = nodes * self.plan.link_down.bytes_per_second() as f64;
        let (up, rate) = (self.plan.link_up.bytes_per_second() as f64, self.plan.origin_rate.bytes_per_second() as f64);
        let timeline = self.tally.bins.iter().enumerate().map(|(at, bin)| {
            let width = if at < BINS { width } else { (last - bound).max(1e-9) };
            Usage {
                down: bin.down as f64 / width / all,
                origin: bin.origin as f64 / width / rate,
                holders_up: bin.holders_up as f64 / width / up,
            }
        });
        Report {
            bound_s: bound,
            p50_s: percentile(&times, 0.5),
            p99_s: percentile(&times, 0.99),
            max_s: last,
            max_over_bound: last / bound,
            origin_copies: self.origin.bytes.iter().sum::<u64>() as f64 / bytes,
            origin_blob_gets: self.origin.gets.iter().sum(),
            duplicate_ratio: self.tally.wasted_bytes as f64 / self.tally.useful_bytes.max(1) as f64,
            control_bytes_per_node: self.tally.control_bytes as f64 / nodes,
            unmet,
            events,
            wall_s: 0.0,
            trace: format!("{:016x}", self.trace),
            counts: self.tally.counts.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect(),
            timeline: timeline.collect(),
        }
    }
}

fn ask_mut(asks: &mut BTreeMap<AskId, Ask>, id: AskId) -> &mut Ask {
    asks.get_mut(&id).expect("looked up a moment ago")
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
        _ => 9,
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
