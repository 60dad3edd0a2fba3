//! The world: a queue of events, and what each of them brings about.
//!
//! Every order of a machine is obeyed to the letter; every fact reaches a machine after the time that it would take.
//! A chunk goes: `Pull` at the receiver, half a round trip, `Asked` at the sender, which serves or refuses; the transfer
//! runs through the links between both; its last byte ends the upload at the sender, and arrives half a round trip later.
//!
//! Three things make time go on, in this order where they meet: the end of a transfer (`Net`), an event (`Queue`), a
//! deadline of a machine (`Soonest`).

mod begin;
mod end;
mod event;
mod fault;
mod find;
mod foresee;
mod harm;
mod lie;
mod links;
mod message;
mod orders;
mod pulls;
mod queue;
mod restart;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod transfer;
mod trouble;
mod wheel;
mod work;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand_pcg::Pcg64Mcg;
use shoal_proto::{
    chain::Expected,
    chunk::ChunkIndex,
    claim::Segment,
    digest::Digest,
    limits::Limits,
    swarm::{AskId, Input, Output, PullId, ReaderId, RunId},
    time::Time,
    tracker,
    wire::Message,
};

use self::{
    event::Event,
    harm::Cut,
    links::Links,
    pulls::Pulls,
    queue::{Queue, Slab},
    tally::{Count, Tally},
    work::Costs,
};
use crate::{
    check::Checks,
    dht::Dht,
    net::{FOREVER, FlowId, Net, Soonest},
    node::{Blob, Bytes, Index, Node, mix, number},
    origin::Origin,
    plan::Plan,
    report::Report,
};

/// A world that runs one plan.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    now: Time,
    /// Each event that is for one process of a node with the node's generation.
    queue: Queue<(u32, Event)>,
    /// How often each node went down.
    generations: Vec<u32>,
    /// When deadlines of machines are looked at: of node `n` that of the swarm at `2 n`, of the tracker at `2 n + 1`.
    timers: Soonest,
    pub(crate) blobs: Vec<Blob>,
    /// The layers' digests, sorted, and their numbers.
    names: Vec<(Digest, usize)>,
    pub(crate) nodes: Vec<Node>,
    /// Living nodes that do not have all layers yet.
    unfinished: usize,
    net: Net,
    origin: Origin,
    dht: Dht,
    /// By [`AskId`].
    asks: Slab<Ask>,
    pulls: Pulls,
    /// Streams that transfers carry, by their tags.
    carriers: Slab<(usize, RunId)>,
    /// Faults that wait for the origin's work, by their place in the plan.
    faults_to_come: Vec<usize>,
    /// Faults that wait for a node that streams from the origin.
    holders_to_come: Vec<usize>,
    /// What the plan leaves to chance while the world runs.
    chance: Pcg64Mcg,
    limits: Limits,
    /// Whether anybody lies.
    liars: bool,
    /// Whether somebody signs false states.
    forgers: bool,
    /// What each of them hands out for each layer.
    forged: BTreeMap<(usize, usize), Vec<Arc<Segment>>>,
    /// What asks expect that follow a false claim, by [`AskId`].
    claims: BTreeMap<u64, Expected>,
    pub(crate) checks: Checks,
    tally: Tally,
    trace: u64,
    links: Links,
    costs: Costs,
    /// Slow times that last: of which node, by which fault.
    slow: Vec<(usize, usize)>,
    cuts: Vec<Cut>,
    /// Whether there ever was one.
    parted: bool,
    /// Faults that are yet to come at their time, or to end.
    pending: usize,
    /// Room for the machines' orders, used again at each turn.
    orders: Vec<Output>,
    /// The whole chain of each layer as somebody signed it.
    sealed: Vec<Option<Vec<Arc<Segment>>>>,
    sends: Vec<tracker::Send>,
}

/// A chunk that one node asked another for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    receiver: Index,
    sender: Index,
    blob: Index,
    chunk: ChunkIndex,
    /// Its receiver's pull, and its place among the open ones as long as it is one of them.
    pull: PullId,
    place: Option<u16>,
    stage: Stage,
    flow: Option<FlowId>,
    /// What its sender sends.
    bytes: Bytes,
    /// Whether its receiver expects the true link.
    sound: bool,
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

/// Which of a node's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    Swarm,
    Tracker,
}

const READER: ReaderId = ReaderId(0);
/// How often a node looks at its streams from the origin.
const LOOK: Duration = Duration::from_millis(25);
/// A machine that had time gets it again after this at the earliest, however soon it wants it.
const TURN: Duration = Duration::from_micros(1);
/// So often machines may want time again as soon as they had it; then the run ends.
const SPINS_MAX: u64 = 100_000;

impl World {
    /// Runs to the end and reports; `wall_s` is left at 0.
    #[must_use]
    pub fn run(mut self) -> Report {
        while self.step() {}
        self.report()
    }

    /// Lets the next event happen. Returns false when there is none, all is done, or the time is up.
    pub fn step(&mut self) -> bool {
        let end = self.net.next_end(self.now);
        let ends = end.map_or(FOREVER, |(time, _)| time);
        let (mut queued, mut timer);
        loop {
            queued = self.queue.due();
            timer = self.timer(ends.min(queued));
            if timer.is_some() || queued >= ends || !self.queue.settle() {
                break;
            }
        }
        let next = timer.map_or(ends.min(queued), |(time, _)| time);
        let spins = self.tally.counted(Count::Spins) >= SPINS_MAX;
        let over = self.unfinished == 0 && self.pending == 0 || spins;
        if over || next == FOREVER || next > Time::ZERO + self.plan.limit.0 {
            return false;
        }
        self.now = self.now.max(next);
        if let Some((_, flow)) = end.filter(|_| ends == next) {
            self.flow_ended(flow);
        } else if queued == next {
            self.foresee();
            if let Some((_, (generation, event), again)) = self.queue.pop()
                && event.target().is_none_or(|node| self.generations[node] == generation)
                && let Some(event) = if again { Some(event) } else { self.work(generation, event) }
            {
                self.happen(event);
            }
        } else if let Some((_, place)) = timer {
            let machine = if place % 2 == 0 { Machine::Swarm } else { Machine::Tracker };
            self.elapsed(place / 2, machine);
        }
        true
    }

    /// The first machine that wants time before a moment.
    fn timer(&mut self, before: Time) -> Option<(Time, usize)> {
        while self.timers.moment() < before {
            let (moment, place) = self.timers.first()?;
            let node = &mut self.nodes[place / 2];
            let timer = if place % 2 == 0 { &mut node.swarm_timer } else { &mut node.tracker_timer };
            if timer.due == moment {
                return Some((moment, place));
            }
            timer.filed = timer.due;
            self.timers.set(place, timer.due);
        }
        None
    }

    /// A machine wants time then.
    fn arm(&mut self, node: usize, machine: Machine, due: Time) {
        let timer = match machine {
            Machine::Swarm => &mut self.nodes[node].swarm_timer,
            Machine::Tracker => &mut self.nodes[node].tracker_timer,
        };
        timer.due = due;
        if due < timer.filed {
            timer.filed = due;
            self.timers.set(2 * node + machine as usize, due);
        }
    }

    fn push(&mut self, after: Duration, event: Event) {
        let generation = event.target().map_or(0, |node| self.generations[node]);
        self.queue.push(self.now, after, (generation, event));
    }

    /// What the run waits for.
    fn push_fault(&mut self, after: Duration, event: Event) {
        self.pending += 1;
        self.push(after, event);
    }

    fn push_fact(&mut self, after: Duration, node: usize, fact: Input) {
        self.push(after, Event::Swarm(node, Box::new(fact)));
    }

    fn note(&mut self, code: u64, node: usize, detail: u64) {
        self.trace = mix(mix(self.trace, self.now.as_nanos()), mix(code << 32 | node as u64, detail));
        self.tally.events += 1;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Swarm(node, input) => {
                self.note(1, node, kind(&input));
                self.swarm(node, *input);
            }
            Event::Got { to, from, blob, chunks } => {
                let (digest, from) = (self.blobs[blob as usize].digest, from as usize);
                self.received(to as usize, from, Message::Got { digest, chunks });
            }
            Event::Message { to, from, message } => self.received(to as usize, from as usize, *message),
            Event::Reading { node, blob, chunk } => {
                let (digest, reader) = (self.blobs[blob as usize].digest, READER);
                let input = Input::Reading { digest, reader, chunk };
                self.note(1, node as usize, kind(&input));
                self.swarm(node as usize, input);
            }
            Event::Begin(node) => {
                self.note(3, node, 0);
                self.want(node);
            }
            Event::Again(node, blob) => {
                self.note(18, node, blob as u64);
                self.wish(node, blob);
            }
            Event::Dialled { from, to } => self.dialled(from, to),
            Event::Connected { node, other } => self.connected(node, other),
            Event::Unreached { from, to } => self.unreached(from, to),
            Event::Asked(ask) => self.asked(ask),
            Event::Withdrawn(ask) => self.withdrawn(ask),
            Event::Answered(ask, verdict) => self.answered(ask, verdict),
            Event::Streaming(node, run) => self.streaming(node, run),
            Event::Stored { node, run, chunk, end } => self.stored(node, run, chunk, end.map(|end| *end)),
            Event::Looked(node, run) => self.look(node, run),
            Event::Announced(node, blob) => self.dht.announce(blob, self.nodes[node].peer),
            Event::Refused(node, run, retry_after) => self.refused(node, run, retry_after),
            Event::Outage => self.outage(),
            Event::Fault(at) => {
                self.pending -= 1;
                self.begin_fault(at);
            }
            Event::Strike { fault, node } => {
                self.pending -= 1;
                self.strike(fault, node);
            }
            Event::Quick { fault, node } => {
                self.pending -= 1;
                self.quicken(fault, node);
            }
            Event::Severed(fault) => self.severed(fault),
            Event::Healed(fault) => {
                self.pending -= 1;
                self.healed(fault);
            }
            Event::Back(node) => {
                self.pending -= 1;
                self.back(node);
            }
            Event::Ended(ask) => self.ended(ask),
            Event::Lost { node, dead } => self.lost(node, dead),
            Event::Removed(node) => self.removed(node),
            Event::Returned(node) => self.returned(node),
        }
    }

    /// A node begins to want its layers, or is back and wants them still.
    fn want(&mut self, node: usize) {
        if !self.nodes[node].alive || std::mem::replace(&mut self.nodes[node].wants, true) {
            return;
        }
        for blob in 0..self.blobs.len() {
            self.wish(node, blob);
        }
    }

    /// A node wishes for a layer, unless it has it.
    fn wish(&mut self, node: usize, blob: usize) {
        let (digest, holding) = (self.blobs[blob].digest, &mut self.nodes[node].holdings[blob]);
        if holding.proven.is_some() {
            return;
        }
        holding.failed = None;
        let restored = holding.restored.take();
        let had = restored.as_ref().map(|restored| restored.have.first_missing(ChunkIndex::FIRST));
        let chunk = had.unwrap_or(Some(ChunkIndex::FIRST));
        holding.reader = chunk.unwrap_or(ChunkIndex(self.blobs[blob].layout.count()));
        self.swarm(node, Input::Wanted { digest, restored });
        if let Some(chunk) = chunk.filter(|_| self.plan.readers) {
            self.swarm(node, Input::Reading { digest, reader: READER, chunk });
        }
    }

    fn swarm(&mut self, node: usize, input: Input) {
        if !self.nodes[node].alive {
            return;
        }
        let mut orders = std::mem::take(&mut self.orders);
        self.nodes[node].swarm.handle(self.now, input, &mut orders);
        for order in orders.drain(..) {
            self.obey(node, order);
        }
        self.orders = orders;
        let due = self.nodes[node].swarm.deadline();
        self.arm(node, Machine::Swarm, due.unwrap_or(FOREVER));
    }

    fn tracker(&mut self, node: usize, input: tracker::Input) {
        if !self.nodes[node].alive {
            return;
        }
        let mut sends = std::mem::take(&mut self.sends);
        self.nodes[node].tracker.handle(self.now, input, &mut sends);
        for tracker::Send { peer, message } in sends.drain(..) {
            self.send(node, number(peer), message);
        }
        self.sends = sends;
        let due = self.nodes[node].tracker.deadline();
        self.arm(node, Machine::Tracker, due.unwrap_or(FOREVER));
    }

    /// A machine's deadline has come.
    fn elapsed(&mut self, node: usize, machine: Machine) {
        self.note(4, node, machine as u64);
        let due = match machine {
            Machine::Swarm => {
                self.nodes[node].swarm_timer.due = FOREVER;
                self.swarm(node, Input::Elapsed);
                self.nodes[node].swarm_timer.due
            }
            Machine::Tracker => {
                self.nodes[node].tracker_timer.due = FOREVER;
                self.tracker(node, tracker::Input::Elapsed);
                self.nodes[node].tracker_timer.due
            }
        };
        if due <= self.now {
            self.tally.count(Count::Spins);
            let sound = self.tally.counted(Count::Spins) != SPINS_MAX;
            self.checks.rule(sound, || format!("node {node} wants time for its {machine:?} again and again"));
        }
        self.arm(node, machine, due.max(self.now + TURN));
    }

    /// The number of a layer.
    fn blob(&self, digest: &Digest) -> usize {
        match self.names.as_slice() {
            [(_, only)] => *only,
            names => {
                let at = names.binary_search_by(|(name, _)| name.cmp(digest));
                names[at.expect("machines only know the world's layers")].1
            }
        }
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
        | Input::OriginIgnoresRanges { .. }
        | Input::OriginProgress { .. }
        | Input::OriginChunk { .. }
        | Input::OriginEnded { .. }
        | Input::Hashed { .. }
        | Input::Signed { .. }
        | Input::Elapsed => 9,
    }
}
