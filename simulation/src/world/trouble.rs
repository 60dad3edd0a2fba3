//! An origin in trouble.

use std::time::Duration;

use rand::RngExt;
use shoal_proto::{
    chunk::ChunkIndex,
    swarm::{Input, OriginFailure, RunId},
    time::Time,
};

use super::{Event, World};
use crate::plan::{Trouble, TroubleKind};

impl World {
    /// Plans when what the origin sends breaks off.
    pub(super) fn plan_outages(&mut self) {
        let outages = self.plan.origin_trouble.iter().filter(|trouble| trouble.kind == TroubleKind::Outage);
        let begins: Vec<Duration> = outages.map(|trouble| trouble.from.0).collect();
        for from in begins {
            self.push(from, Event::Outage);
        }
    }

    /// A request reaches the origin: a good answer, one that is cut short, or an error.
    pub(super) fn request(&mut self, node: usize, run: RunId) {
        let latency = self.plan.origin_latency.0;
        let trouble = self.trouble();
        let answer = match trouble.map(|trouble| (trouble.kind, trouble.retry_after)) {
            None => Event::Streaming(node, run),
            Some((TroubleKind::Truncate, _)) => {
                self.cut(node, run);
                Event::Streaming(node, run)
            }
            Some((TroubleKind::Outage, _)) => Event::Refused(node, run, None),
            Some((TroubleKind::TooMany | TroubleKind::Unavailable, wait)) => {
                Event::Refused(node, run, wait.map(|span| span.0))
            }
        };
        self.push(latency, answer);
    }

    /// What hits a request made now.
    fn trouble(&mut self) -> Option<Trouble> {
        if self.plan.origin_trouble.is_empty() {
            return None;
        }
        let (time, chance) = (self.now.since(Time::ZERO), self.chance.random());
        self.plan.origin_trouble.iter().find(|trouble| trouble.hits(time, chance)).copied()
    }

    /// Lets an answer end at a byte drawn at random.
    fn cut(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get_mut(&(node, run)) else { return };
        let layout = self.blobs[stream.blob].layout;
        let end = stream.until.map_or(layout.size(), |until| layout.range(ChunkIndex(until.0 - 1)).end);
        let asked = end.saturating_sub(layout.range(stream.chunk).start);
        stream.cut = (asked > 0).then(|| self.chance.random_range(0..asked));
    }

    /// The origin's answer is an error, or what it sent broke off.
    pub(super) fn refused(&mut self, node: usize, run: RunId, retry_after: Option<Duration>) {
        let Some(stream) = self.origin.streams.get(&(node, run)) else { return };
        let digest = self.blobs[stream.blob].digest;
        self.note(16, node, run.0);
        self.stop_stream(node, run);
        let failure = Some(OriginFailure::Transient { retry_after });
        self.swarm(node, Input::OriginEnded { digest, run, failure });
    }

    /// All that the origin sends breaks off.
    pub(super) fn outage(&mut self) {
        let running: Vec<(usize, RunId)> = self.origin.streams.keys().copied().collect();
        for (node, run) in running {
            self.refused(node, run, None);
        }
    }
}
