//! What is counted while the world runs.

use std::{collections::BTreeMap, time::Duration};

use shoal_proto::wire::Message;

use crate::{
    plan::{Plan, Site},
    report::Traffic,
    timeline::Timeline,
};

/// Declares what is counted, and its names in reports.
macro_rules! counts {
    ($($count:ident $name:literal),+ $(,)?) => {
        /// What the machines did.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Count { $($count),+ }

        const NAMES: &[&str] = &[$($name),+];
    };
}

counts! {
    Busy "busy",
    Cancels "cancels",
    Convictions "convictions",
    Corrupt "corrupt chunks",
    Deaths "deaths",
    Dials "dials",
    Discards "discards",
    Disputes "disputes",
    FailedFetches "failed fetches",
    Fresh "fresh",
    Got "got",
    Have "have",
    Join "join",
    Joined "joined",
    Leases "leases",
    Entitled "entitled",
    Leave "leave",
    Missing "missing",
    Peers "peers",
    Pulls "pulls",
    Restarts "restarts",
    Revoked "revoked",
    Segment "segment",
    Spins "spins",
    Stalls "stalls",
    Subscribe "subscribe",
    Tag "tag",
    Unknown "unknown",
    Unsubscribe "unsubscribe",
    Untracked "untracked",
}

/// What is counted while the world runs.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: [u64; NAMES.len()],
    pub(crate) events: u64,
    pub(crate) control_bytes: u64,
    pub(crate) useful_bytes: u64,
    pub(crate) wasted_bytes: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) honest_blamed: u64,
    /// Nodes that fetched from the origin at one time, at most.
    pub(crate) fetchers_max: u64,
    pub(crate) timeline: Timeline,
    /// Messages that one node took in within one second, at most.
    pub(crate) busiest: u32,
    /// By zone of the receiver.
    pub(crate) zones: Vec<Traffic>,
}

impl Tally {
    /// For so many nodes, and runs that take about so long.
    pub(crate) fn new(plan: &Plan, expected: Duration) -> Self {
        Self {
            counts: [0; NAMES.len()],
            events: 0,
            control_bytes: 0,
            useful_bytes: 0,
            wasted_bytes: 0,
            wrong_bytes: 0,
            honest_blamed: 0,
            fetchers_max: 0,
            timeline: Timeline::new(expected),
            busiest: 0,
            zones: vec![Traffic::default(); plan.topology.zones],
        }
    }

    /// Bytes went from node to node.
    pub(crate) fn moved(&mut self, from: Site, to: Site, bytes: u64) {
        let zone = &mut self.zones[to.zone];
        *(if from.rack == to.rack {
            &mut zone.rack
        } else if from.zone == to.zone {
            &mut zone.zone
        } else {
            &mut zone.far
        }) += bytes;
    }

    pub(crate) const fn count(&mut self, what: Count) {
        self.counts[what as usize] += 1;
    }

    pub(crate) const fn counted(&self, what: Count) -> u64 {
        self.counts[what as usize]
    }

    /// All counts that are not 0, by name.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let named = NAMES.iter().zip(self.counts);
        named.filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).to_owned(), count)).collect()
    }
}

pub(crate) const fn kind(message: &Message) -> Count {
    match message {
        Message::Join(_) => Count::Join,
        Message::Joined { .. } => Count::Joined,
        Message::Revoked { .. } => Count::Revoked,
        Message::Leave { .. } => Count::Leave,
        Message::Subscribe { .. } => Count::Subscribe,
        Message::Unsubscribe { .. } => Count::Unsubscribe,
        Message::Have { .. } => Count::Have,
        Message::Got { .. } => Count::Got,
        Message::Fresh { .. } => Count::Fresh,
        Message::Peers { .. } => Count::Peers,
        Message::Segment { .. } => Count::Segment,
        Message::Unknown { .. } => Count::Unknown,
        Message::Entitled { .. } => Count::Entitled,
        Message::Tag { .. } => Count::Tag,
    }
}
