//! Who is asked for states that are missing, and who need not send any.

use std::time::Duration;

use super::super::{Context, content::Content, fetch::Fetch, slots::Slot};
use crate::{chunk::ChunkIndex, time::Time, wire::Message};

/// States that are missing are asked for again after so long.
const STATES_PATIENCE: Duration = Duration::from_millis(50);
/// If others have chunks behind the known states, and nothing at all comes, they are asked again after so long: where all had
/// the word of an author that is not believed here, each has signed its own once it had the whole.
const STATES_RETRY: Duration = Duration::from_secs(1);

impl Fetch {
    pub(super) fn ask_again(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let Some(content) = &mut self.content else { return };
        if content.states_asked + STATES_PATIENCE <= cx.now {
            content.states_asked = cx.now;
            self.subscribe(cx, slot);
        }
    }

    /// Asks for states again of all that have more than this node.
    pub(in crate::swarm) fn ask_all_again(&mut self, cx: &mut Context<'_>) {
        let known = self.content.as_ref().map_or(ChunkIndex::FIRST, |content| content.chain.frontier());
        let ahead = self.remotes.subscribed.iter().filter(|slot| {
            let remote = &self.remotes[*slot];
            remote.up && remote.frontier > known && !self.claims.is_unable(cx.now, remote.peer)
        });
        for slot in ahead.collect::<Vec<_>>() {
            self.subscribe(cx, slot);
        }
    }

    /// Asks a peer for states again if it has chunks that cannot be verified without: whoever sent states before is gone or slow.
    pub(in crate::swarm) fn ask_states(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let (Some(content), remote) = (&self.content, &self.remotes[slot]) else { return };
        if remote.pruned && !content.chain.is_whole() && remote.has > 0 && remote.furthest >= content.verifiable_end() {
            self.ask_again(cx, slot);
        }
    }

    /// When those who have chunks of unknown states are asked for the states anew; none if there is something else to do.
    pub(in crate::swarm) fn states_due(&self) -> Option<Time> {
        let waits =
            |content: &&Content| content.pulls.is_empty() && !content.offers.any_open() && !content.chain.is_whole();
        let content = self.content.as_ref().filter(waits)?;
        self.ahead(content).next().map(|_| content.states_asked.max(self.progressed) + STATES_RETRY)
    }

    /// Asks them.
    pub(in crate::swarm) fn ask_for_states(&mut self, cx: &mut Context<'_>) {
        if self.states_due().is_none_or(|due| due > cx.now) {
            return;
        }
        let Some(content) = &mut self.content else { return };
        content.states_asked = cx.now;
        let ahead: Vec<Slot> = self.content.iter().flat_map(|content| self.ahead(content)).collect();
        for slot in ahead {
            self.subscribe(cx, slot);
        }
    }

    /// Who has chunks that cannot be verified with the known states.
    fn ahead(&self, content: &Content) -> impl Iterator<Item = Slot> {
        let end = content.verifiable_end();
        self.remotes
            .iter()
            .filter(move |(_, remote)| remote.up && remote.has > 0 && remote.furthest >= end)
            .map(|(slot, _)| slot)
    }

    /// A peer sent states that were known: another one is quicker, and this one needs to send no more.
    pub(super) fn prune(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let (Some(content), remote) = (&self.content, &mut self.remotes[slot]) else { return };
        let quicker = content.feeder.is_some_and(|feeder| feeder != remote.peer);
        if !remote.pruned && self.remotes.subscribed.contains(slot) && quicker {
            let remote = &mut self.remotes[slot];
            remote.pruned = true;
            cx.send(remote.peer, Message::Subscribe { digest: self.digest, frontier: content.layout().last() });
        }
    }
}
