//! What a fetch tells its trackers, and when out of turn.

use std::time::Duration;

use super::{
    super::{Context, fetch::Fetch, lease::Lease},
    State,
};
use crate::{
    peer::PeerId,
    time::Time,
    wire::{Held, Join, Message, Standing},
};

/// So long after streams began or ended the trackers of the other blobs hear of it: most often several do at once.
const HASTE: Duration = Duration::from_millis(10);
/// Shortest time between two questions to the tracker out of turn.
const ASK_PAUSE: Duration = Duration::from_millis(100);

impl Fetch {
    pub(super) fn send_join(&self, cx: &mut Context<'_>, tracker: PeerId) {
        let have = self.content.as_ref().map_or(0, |content| content.have.len());
        let left = self.content.as_ref().map_or(u32::MAX, |content| content.missing());
        let lease = self.lease.as_ref().and_then(Lease::report).map(|held| Held { left, ..held });
        let (standing, accused, burden) = (self.standing(cx.now), self.claims.accused(), self.burden(cx));
        let join = Join { digest: self.digest, have, standing, place: cx.place, lease, accused, burden };
        cx.send(tracker, Message::Join(join));
    }

    /// How many other blobs this node streams from the origin.
    fn burden(&self, cx: &Context<'_>) -> u8 {
        let own = self.lease.as_ref().is_some_and(Lease::carries);
        u8::try_from(cx.links.leases.saturating_sub(usize::from(own))).unwrap_or(u8::MAX)
    }

    /// The trackers shall hear soon if this node began or ceased to stream other blobs.
    pub(in crate::swarm) fn hasten_burden(&mut self, cx: &mut Context<'_>) {
        if (self.burden(cx) > 0) != self.tracking.told_burden {
            self.hasten(cx);
        }
    }

    /// The trackers shall hear soon how this node stands.
    pub(in crate::swarm) fn hasten(&mut self, cx: &mut Context<'_>) {
        let soon = cx.now + HASTE;
        if self.is_fetching() && matches!(self.tracking.state, State::Joined { .. }) {
            self.tracking.hasty = Some(self.tracking.hasty.map_or(soon, |due| due.min(soon)));
        }
    }

    fn standing(&self, now: Time) -> Standing {
        if !self.is_fetching() {
            return Standing::Complete;
        }
        if self.shut.is_some() {
            return Standing::Shut;
        }
        let supplied = self.content.as_ref().is_some_and(|content| {
            // Between two chunks there may be nothing to ask for, for as long as chunks take here.
            let flows = !content.have.is_empty() && self.progressed + content.pull_time * 3 > now;
            flows || !content.pulls.is_empty() || content.have.missing().any(|chunk| content.offers.is_held(chunk))
        });
        if supplied { Standing::Fetching } else { Standing::Starved }
    }

    /// Tells the tracker how this node stands. A lease holder tells all of them, so that those which others ask when the
    /// first is slow or gone know of the lease and give no second one. So does everybody in a small cluster: of a dozen nodes
    /// each tracker would hear of three, and with a slow one among them it could not tell whose fault it is that they get
    /// little.
    pub(in crate::swarm) fn heartbeat(&mut self, cx: &mut Context<'_>) {
        self.tracking.hasty = None;
        let leased = self.lease.as_ref().is_some_and(|lease| lease.report().is_some());
        let burdened = self.burden(cx) > 0;
        let told = std::mem::replace(&mut self.tracking.told_lease, leased);
        let told = std::mem::replace(&mut self.tracking.told_burden, burdened) || told;
        let small = self.tracking.all_asked && self.remotes.subscribed.len() < cx.limits.neighbours_max;
        if told || leased || burdened || small {
            self.join_all(cx);
        } else if let Some(tracker) = self.tracking.tracker()
            && cx.is_up(tracker.peer)
        {
            self.send_join(cx, tracker.peer);
        }
    }

    /// Asks the tracker out of turn, since something new goes on.
    pub(in crate::swarm) fn ask_tracker(&mut self, cx: &mut Context<'_>) {
        let recent = self.tracking.asked.is_some_and(|asked| asked + ASK_PAUSE > cx.now);
        if let (false, State::Joined { .. }, Some(tracker)) = (recent, self.tracking.state, self.tracking.tracker())
            && cx.is_up(tracker.peer)
        {
            self.tracking.asked = Some(cx.now);
            self.send_join(cx, tracker.peer);
        }
    }

    /// Tells the trackers whom this node caught.
    pub(in crate::swarm) fn accuse(&self, cx: &mut Context<'_>) {
        if matches!(self.tracking.state, State::Joined { .. }) {
            self.join_all(cx);
        }
    }

    fn join_all(&self, cx: &mut Context<'_>) {
        for tracker in &self.tracking.trackers {
            if cx.reach(*tracker) {
                self.send_join(cx, tracker.peer);
            }
        }
    }
}
