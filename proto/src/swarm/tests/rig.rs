//! One machine of a node, and its orders.

use super::*;

pub(super) struct Rig {
    pub(super) swarm: Swarm,
    pub(super) now: Time,
}

impl Rig {
    /// Node 9 wishes for the blob.
    pub(super) fn new(place: Place) -> Self {
        let mut rig = Self { swarm: Swarm::new(peer(9), place, Limits::default(), 1), now: Time::ZERO };
        rig.tell(Input::Wanted { digest: digest(), restored: None });
        rig
    }

    pub(super) fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.swarm.handle(self.now, input, &mut out);
        out
    }

    pub(super) fn hear(&mut self, from: usize, message: Message) -> Vec<Output> {
        self.tell(Input::Received { peer: peer(from), message })
    }

    /// A peer connects, subscribes and says what it has.
    pub(super) fn meet(&mut self, from: usize, place: Place, chunks: ChunkSet) -> Vec<Output> {
        let mut out = self.tell(Input::Connected { peer: peer(from), place });
        out.extend(self.hear(from, Message::Subscribe { digest: digest(), frontier: ChunkIndex::FIRST }));
        out.extend(self.hear(from, Message::Have { digest: digest(), size: SIZE, chunks }));
        out
    }

    pub(super) fn wait(&mut self, time: Duration) -> Vec<Output> {
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

pub(super) fn layout() -> Layout {
    Layout::new(SIZE).expect("small")
}

pub(super) fn pulls(out: &[Output]) -> Vec<(PullId, PeerId, ChunkIndex)> {
    let pull = |order: &Output| {
        let Output::Pull { pull, peer, chunk, .. } = order else { return None };
        Some((*pull, *peer, *chunk))
    };
    out.iter().filter_map(pull).collect()
}

/// A tracker, peer 3, names a holder of the origin's lease.
pub(super) fn name(source: PeerId) -> [Input; 3] {
    let (digest, tracker) = (digest(), peer(3));
    let sources = vec![source];
    let joined = Message::Joined { digest, peers: Vec::new(), lease: None, served: true, sources };
    [
        Input::Located { digest, trackers: vec![contact(3)], known: Vec::new() },
        Input::Connected { peer: tracker, place: Place::default() },
        Input::Received { peer: tracker, message: joined },
    ]
}

/// States as they are known before the last chunks came from the origin.
pub(super) fn streamed(author: PeerId, layout: Layout) -> Segment {
    let states = layout.chunks().map(state).take(layout.count() as usize - 1).collect();
    Segment { author, from: ChunkIndex::FIRST, states, signature: Signature([0; 64]) }
}
