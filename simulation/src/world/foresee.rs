//! What the next events will look at.

use shoal_proto::swarm::AskId;

use super::{Ask, Event, Slab, World};

impl World {
    /// Reads some of what the next events will look at. Each of them would wait for the memory by itself; here it works on
    /// all of that at once.
    pub(super) fn foresee(&mut self) {
        let mut sum = 0;
        for (_, event) in self.queue.foretell() {
            let Some((node, other, blob)) = concerned(&self.asks, event) else { continue };
            let (node, other, digest) = (&self.nodes[node], &self.nodes[other], &self.blobs[blob].digest);
            sum += node.busy_until.as_nanos() + u64::from(other.peer.0[0]) + u64::from(node.connected.contains(0));
            sum += u64::from(node.holdings[blob].proven.is_some());
            sum += node.swarm.fetch(digest).map_or(0, |fetch| u64::from(fetch.have));
        }
        std::hint::black_box(sum);
    }
}

/// The node that a message is for, the one that it is from, and what layer it is about.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are few")]
fn concerned(asks: &Slab<Ask>, event: &Event) -> Option<(usize, usize, usize)> {
    let ask = |id: &AskId| asks.get(id.0).map(|ask| (ask.sender.at(), ask.receiver.at(), ask.blob.at()));
    match event {
        Event::Got { to, from, blob, .. } => Some((*to as usize, *from as usize, *blob as usize)),
        Event::Asked(id) => ask(id),
        Event::Answered(id, _) => ask(id).map(|(sender, receiver, blob)| (receiver, sender, blob)),
        _ => None,
    }
}
