//! Zones and racks: who brings a chunk in, and who hears of it.

use super::*;
use crate::wire::{Epoch, Grant, Scope};

/// One machine in the first rack of a zone, and its orders.
struct Rig {
    swarm: Swarm,
    now: Time,
}

impl Rig {
    fn new(zone: u32) -> Self {
        let swarm = Swarm::new(peer(9), Place { zone, rack: 1 }, Limits::default(), 1);
        let mut rig = Self { swarm, now: Time::ZERO };
        rig.tell(Input::Wanted { digest: digest(), restored: None });
        rig
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.swarm.handle(self.now, input, &mut out);
        out
    }

    fn hear(&mut self, from: usize, message: Message) -> Vec<Output> {
        self.tell(Input::Received { peer: peer(from), message })
    }

    /// A peer connects, subscribes and says what it has.
    fn meet(&mut self, from: usize, (zone, rack): (u32, u32), chunks: ChunkSet) {
        self.tell(Input::Connected { peer: peer(from), place: Place { zone, rack } });
        self.hear(from, Message::Subscribe { digest: digest(), frontier: ChunkIndex::FIRST });
        self.hear(from, Message::Have { digest: digest(), size: SIZE, chunks });
    }

    /// A peer tells all states.
    fn learn(&mut self, from: usize) -> Vec<Output> {
        let segment = streamed(peer(from), layout());
        self.hear(from, Message::Segment { digest: digest(), size: SIZE, segment: segment.into() })
    }

    /// A tracker, node 3 of the own zone, gives the lease to import.
    fn lease(&mut self, zone: u32) {
        self.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
        self.tell(Input::Connected { peer: peer(3), place: Place { zone, rack: 3 } });
        let lease = Some(Grant { epoch: Epoch(1), scope: Scope::Zone });
        let (peers, sources) = (Vec::new(), vec![peer(1), peer(2), peer(3)]);
        self.hear(3, Message::Joined { digest: digest(), peers, lease, served: true, sources });
    }

    fn wait(&mut self, time: Duration) -> Vec<Output> {
        let (end, mut out) = (self.now + time, Vec::new());
        while let Some(due) = self.swarm.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            out.extend(self.tell(Input::Elapsed));
            assert!(self.swarm.deadline().is_none_or(|next| next > self.now), "it asks for time again and again");
        }
        self.now = end;
        out
    }
}

fn layout() -> Layout {
    Layout::new(SIZE).expect("small")
}

fn none() -> ChunkSet {
    ChunkSet::empty(layout().count())
}

fn pulls(out: &[Output]) -> Vec<(PullId, PeerId, ChunkIndex)> {
    let pull = |order: &Output| {
        let Output::Pull { pull, peer, chunk, .. } = order else { return None };
        Some((*pull, *peer, *chunk))
    };
    out.iter().filter_map(pull).collect()
}

#[test]
fn a_chunk_shown_first_is_asked_for_again_after_a_refusal_whoevers_turn_it_is() {
    let mut rig = Rig::new(1);
    for mate in 10..20 {
        rig.meet(mate, (1, 1), none());
    }
    for input in name(peer(1)) {
        rig.tell(input);
    }
    rig.meet(1, (1, 2), none());
    rig.learn(1);
    // More than two at once are asked only of a peer that has sent something.
    for (pull, ..) in pulls(&rig.hear(1, Message::Fresh { digest: digest(), chunks: vec![ChunkIndex(1)] })) {
        rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good });
    }
    let chunks: Vec<ChunkIndex> = (2..6).map(ChunkIndex).collect();
    let asked = pulls(&rig.hear(1, Message::Fresh { digest: digest(), chunks: chunks.clone() }));
    assert_eq!(asked.len(), chunks.len());
    for (pull, ..) in asked {
        rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Busy });
    }
    let again = pulls(&rig.wait(Duration::from_millis(10)));
    let again: BTreeSet<ChunkIndex> = again.into_iter().map(|(_, _, chunk)| chunk).collect();
    assert_eq!(again, chunks.into_iter().collect());
}

#[test]
fn what_an_importer_released_stays_with_one_peer_though_other_zones_have_it() {
    let mut rig = Rig::new(2);
    rig.lease(2);
    for near in [5, 6] {
        rig.meet(near, (2, 2), none());
    }
    rig.meet(2, (1, 2), none());
    rig.meet(1, (1, 2), ChunkSet::full(layout().count()));
    let asked = pulls(&rig.learn(1));
    let (pull, from, chunk) = *asked.first().expect("an importer asks another zone");
    assert_eq!(from, peer(1));
    let out = rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good });
    let shown = |order: &&Output| matches!(order, Output::Send { message: Message::Fresh { .. }, .. });
    assert_eq!(out.iter().filter(shown).count(), 1);
    let mut out = rig.hear(2, Message::Got { digest: digest(), chunks: vec![chunk] });
    out.extend(rig.wait(Duration::from_millis(50)));
    let told = |order: &Output| {
        let Output::Send { peer: to, message: Message::Got { .. } } = order else { return false };
        [peer(5), peer(6)].contains(to)
    };
    assert!(!out.iter().any(told), "{out:?}");
}

#[test]
fn an_importer_that_gets_nothing_does_not_ask_for_time_again_and_again() {
    let mut rig = Rig::new(2);
    rig.lease(2);
    rig.wait(Duration::from_secs(1));
}
