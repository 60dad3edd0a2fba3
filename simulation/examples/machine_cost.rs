//! What the swarm machine costs per input, in nanoseconds: a node that fetches a blob of 954 chunks from 24 peers.
//!
//! `cargo run --release -p shoal-simulation --example machine_cost`

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a bench prints what it measures"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use shoal_proto::{
    chunk::{ChunkIndex, ChunkSet, Layout},
    limits::Limits,
    peer::{Contact, PeerId, Place},
    swarm::{AskId, Input, Output, PullId, Swarm, Verdict},
    time::Time,
    wire::Message,
};
use shoal_simulation::node::Blob;

const PEERS: u8 = 24;
const SIZE: u64 = 2_000_000_000;
const ROUNDS: usize = 200;

fn peer(id: u8) -> PeerId {
    PeerId([id; 32])
}

/// Time and number of the inputs of one kind.
#[derive(Default)]
struct Cost {
    time: Duration,
    count: u32,
}

impl Cost {
    fn feed(&mut self, swarm: &mut Swarm, now: Time, input: Input, out: &mut Vec<Output>) {
        let start = Instant::now();
        swarm.handle(now, input, out);
        self.time += start.elapsed();
        self.count += 1;
    }

    fn print(&self, what: &str) {
        println!("{what:44} {:6} ns", self.time.as_nanos() / u128::from(self.count.max(1)));
    }
}

/// A machine that knows its peers and the states of the blob, but not yet what the peers have.
fn prepared(blob: &Blob, out: &mut Vec<Output>) -> Swarm {
    let mut swarm = Swarm::new(peer(0), Place::default(), Limits::default(), 1);
    let digest = blob.digest;
    let holders: Vec<Contact> = (1..=PEERS)
        .map(|id| Contact { peer: peer(id), address: SocketAddr::from((Ipv4Addr::LOCALHOST, 5051)) })
        .collect();
    swarm.handle(Time::ZERO, Input::Wanted { digest, restored: None }, out);
    for id in 1..=PEERS {
        swarm.handle(Time::ZERO, Input::Connected { peer: peer(id), place: Place::default() }, out);
    }
    swarm.handle(Time::ZERO, Input::Located { digest, trackers: vec![holders[0]], known: Vec::new() }, out);
    let joined = Message::Joined { digest, peers: Vec::new(), lease: None, served: true, sources: vec![peer(1)] };
    swarm.handle(Time::ZERO, Input::Received { peer: peer(1), message: joined }, out);
    swarm.handle(Time::ZERO, Input::Holders { digest, holders }, out);
    for id in 1..=PEERS {
        let message = Message::Subscribe { digest, frontier: ChunkIndex::FIRST };
        swarm.handle(Time::ZERO, Input::Received { peer: peer(id), message }, out);
        let mut chunks = ChunkSet::empty(blob.layout.count());
        if id == 1 {
            // It shows with the last chunk that its chain leads to the digest.
            chunks.insert(blob.layout.last());
        }
        let message = Message::Have { digest, size: SIZE, chunks };
        swarm.handle(Time::ZERO, Input::Received { peer: peer(id), message }, out);
    }
    for segment in blob.segments(peer(1)) {
        let message = Message::Segment { digest, size: SIZE, segment };
        swarm.handle(Time::ZERO, Input::Received { peer: peer(1), message }, out);
    }
    let probes = out.iter().filter_map(|order| match order {
        Output::Pull { pull, .. } => Some(*pull),
        _ => None,
    });
    for pull in probes.collect::<Vec<_>>() {
        swarm.handle(Time::ZERO, Input::Pulled { digest, pull, verdict: Verdict::Good }, out);
    }
    swarm
}

fn main() {
    let blob = Blob::new(1, 0, SIZE);
    let layout = Layout::new(SIZE).expect("a size with a layout");
    let (mut got, mut pulled, mut asked, mut served) =
        (Cost::default(), Cost::default(), Cost::default(), Cost::default());
    for _ in 0..ROUNDS {
        let mut out = Vec::new();
        let mut swarm = prepared(&blob, &mut out);
        let mut now = Time::ZERO;
        let mut open: Vec<(PullId, ChunkIndex)> = Vec::new();
        let mut next_ask = 0;
        for chunk in layout.chunks() {
            out.clear();
            now = now + Duration::from_millis(5);
            // Half of the peers tell of a new chunk, one message each.
            for id in 1..=PEERS / 2 {
                let message = Message::Got { digest: blob.digest, chunks: vec![chunk] };
                got.feed(&mut swarm, now, Input::Received { peer: peer(id), message }, &mut out);
            }
            open.extend(out.drain(..).filter_map(|order| match order {
                Output::Pull { pull, chunk, .. } => Some((pull, chunk)),
                _ => None,
            }));
            let Some((pull, here)) = open.pop() else { continue };
            let input = Input::Pulled { digest: blob.digest, pull, verdict: Verdict::Good };
            pulled.feed(&mut swarm, now, input, &mut out);
            next_ask += 1;
            let (ask, asker) = (AskId(next_ask), peer(PEERS));
            let input =
                Input::Asked { ask, peer: asker, digest: blob.digest, chunk: here, ends: blob.expected(here).ends() };
            asked.feed(&mut swarm, now, input, &mut out);
            served.feed(&mut swarm, now, Input::Served { ask }, &mut out);
        }
    }
    got.print("a peer has one more chunk (Got)");
    pulled.print("a chunk has come and is verified (Pulled)");
    asked.print("a peer asks for a chunk (Asked)");
    served.print("a chunk went out (Served)");
}
