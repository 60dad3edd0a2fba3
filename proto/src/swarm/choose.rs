//! Policy: which chunk next, and from whom.

use super::{
    Context,
    fetch::Fetch,
    slots::{Slot, Slots},
};
use crate::chunk::ChunkIndex;

impl Fetch {
    /// What to ask for next, and whom: one of the peers that are asked for least.
    pub(super) fn next_pull(&mut self, cx: &mut Context<'_>) -> Option<(Slot, ChunkIndex)> {
        let usual = self.content.as_ref()?.pull_time;
        let (ready, slow) = (self.remotes.ready(cx.now), self.remotes.slow(usual));
        let hungry = self.is_rack_hungry(cx.now);
        self.find(cx, ready & !slow, hungry)
            .or_else(|| {
                // Only peers that were asked their share already are of use: the share is for where others can be asked too.
                let content = self.content.as_ref()?;
                let full = self.remotes.full() & self.remotes.proven() & !slow;
                let full = full & content.offers.useful(full, full, |_| Slots::ALL);
                let most = share(content.pulls_max(cx.limits), cx.limits.pulls_per_peer_max, full.len());
                let below = full.iter().filter(|slot| self.remotes[*slot].pulls < most);
                let below = below.fold(Slots::NONE, |all, slot| all | Slots::only(slot));
                self.find(cx, below, hungry)
            })
            .or_else(|| self.find(cx, ready & slow, hungry))
            .or_else(|| {
                // The own rack's are all busy: this node's share of pulls for others is free for whatever it lacks.
                let outside = ready & !slow & !self.remotes.rack & self.whose_turn(cx);
                if hungry || self.remotes.rack.is_empty() { None } else { self.find(cx, outside, true) }
            })
    }

    /// What to ask a certain peer for next.
    pub(super) fn next_from(&mut self, cx: &mut Context<'_>, slot: Slot) -> Option<ChunkIndex> {
        let usual = self.content.as_ref()?.pull_time;
        let able = self.remotes.ready(cx.now) & !self.remotes.slow(usual) & Slots::only(slot);
        self.find(cx, able, self.is_rack_hungry(cx.now)).map(|(_, chunk)| chunk)
    }

    /// Of what these peers have, the chunk to ask for, and the one to ask. `hungry`: without regard to the own rack.
    fn find(&self, cx: &mut Context<'_>, peers: Slots, hungry: bool) -> Option<(Slot, ChunkIndex)> {
        let content = self.content.as_ref().filter(|content| content.offers.any_open())?;
        let peers = peers & self.may_ask(cx);
        let peers = if hungry { peers } else { peers & self.whose_turn(cx) };
        if peers.is_empty() {
            return None;
        }
        let able = |chunk: ChunkIndex| {
            let open = content.offers.is_open(chunk);
            let able = content.offers.holders(chunk) & peers & self.may_fetch(chunk, hungry);
            (open && !able.is_empty()).then_some((chunk, able))
        };
        // The last link ends in the digest itself: it shows a false claim before much rests on it.
        let last = content.layout().last();
        let last = able(last).filter(|_| content.chain.is_whole());
        let found = last.or_else(|| self.urgent(cx).find_map(able));
        if let Some((chunk, able)) = found {
            return Some((self.least_asked(cx, able)?, chunk));
        }
        // The peer first: whoever has the rarest chunks is asked by all.
        let allowed = |chunk| self.may_fetch(chunk, hungry);
        let useful = content.offers.useful(peers, self.remotes.free(), allowed) & peers;
        let slot = self.least_asked(cx, useful)?;
        content.offers.rarest(cx.rng, Slots::only(slot), allowed).map(|(chunk, _)| (slot, chunk))
    }

    /// Chunks that readers wait for, unless enough of these are on their way.
    fn urgent(&self, cx: &Context<'_>) -> impl Iterator<Item = ChunkIndex> {
        let window = cx.limits.urgent_chunks;
        let is_urgent = |chunk: ChunkIndex| self.readers.values().any(|at| chunk >= *at && chunk.0 - at.0 < window);
        let pulls = self.content.as_ref().map_or(&[][..], |content| &content.pulls);
        let on_way =
            if self.readers.is_empty() { 0 } else { pulls.iter().filter(|(_, pull)| is_urgent(pull.chunk)).count() };
        let readers = self.readers.values().filter(move |_| on_way < cx.limits.urgent_pulls_max);
        readers.flat_map(move |at| (at.0..at.0.saturating_add(window)).map(ChunkIndex))
    }

    /// One of the peers that have the fewest of our pulls.
    pub(super) fn least_asked(&self, cx: &mut Context<'_>, peers: Slots) -> Option<Slot> {
        let least = peers.iter().map(|slot| self.remotes[slot].pulls).min()?;
        let fewest = peers.iter().filter(|slot| self.remotes[*slot].pulls == least);
        fewest.fold(Slots::NONE, |all, slot| all | Slots::only(slot)).any(cx.rng)
    }
}

/// How many chunks one peer may be asked for at once: a few, but all of them if it is the only one.
pub(super) const fn share(pulls_max: usize, per_peer_max: usize, peers: usize) -> usize {
    let fair = pulls_max.div_ceil(if peers == 0 { 1 } else { peers });
    if fair > per_peer_max { fair } else { per_peer_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_peer_is_asked_for_everything() {
        assert_eq!(share(6, 2, 1), 6);
        assert_eq!(share(6, 2, 3), 2);
        assert_eq!(share(6, 2, 20), 2);
    }
}
