//! One set of limits for everything that a peer, a client or a fault could make grow or wait.

use std::time::Duration;

/// The limits that both machines obey. The relations between them are checked by [`Limits::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Peers of one blob that a node asks of its own accord.
    pub neighbours_max: usize,
    /// Peers of one blob altogether, with those that asked us.
    pub remotes_max: usize,
    /// Chunks asked for and not yet answered, in one fetch; as many more if they are fresh from the origin.
    pub pulls_max: usize,
    /// Chunks asked for and not yet answered, over all fetches.
    pub node_pulls_max: usize,
    /// Bytes asked for and not yet answered, over all fetches; they lie in memory until they are verified.
    pub pull_bytes_max: u64,
    /// The same, of one peer where others can be asked too.
    pub pulls_per_peer_max: usize,
    /// Chunks being uploaded at once, over all blobs. Not fewer than `pulls_max`: where each receiver shares its downlink
    /// among so many, fewer uploads cannot fill an uplink, and the swarm is as slow as the lease holder's.
    pub uploads_max: usize,
    /// Asks that wait for an upload slot; further ones are told that we are busy.
    pub asks_waiting_max: usize,
    /// Chunks from the origin that were shown to one peer each and that nobody has confirmed yet.
    pub releases_max: usize,
    /// The same, for one peer.
    pub releases_per_peer_max: usize,
    /// How long a released chunk may stay unconfirmed before it is released to another peer.
    pub release_timeout: Duration,
    /// Blobs of fewer chunks than this are shown to everybody at once.
    pub release_chunks_min: u32,
    /// Chunks behind a reader's position that are urgent.
    pub urgent_chunks: u32,
    /// Urgent chunks asked for at once, so that many readers in step do not undo rarest first.
    pub urgent_pulls_max: usize,
    /// When so few chunks are missing, slow ones are asked of a second peer too.
    pub endgame_chunks: u32,
    /// Shortest time after which an unanswered pull is given up.
    pub pull_timeout_min: Duration,
    /// The same, as long as no pull of the fetch was good, so that nothing is known about how long they take.
    pub pull_timeout_first: Duration,
    /// Longest time from getting a chunk to telling all subscribers, so that several go in one message.
    pub got_delay: Duration,
    /// Subscribers that are told at once of a chunk that few have.
    pub hints: usize,
    /// Shortest time between two signatures for states of one blob, unless many states wait.
    pub sign_delay: Duration,
    /// So many states are signed at once without waiting.
    pub sign_states: usize,
    /// Failures of one peer in one fetch before it is not asked again.
    pub strikes_max: u8,
    /// How long to wait for a tracker's answer before the next one is asked.
    pub join_timeout: Duration,
    /// Trackers asked before the fallback.
    pub trackers_max: usize,
    /// Time between heartbeats of a node that fetches.
    pub heartbeat: Duration,
    /// Time between heartbeats of a node that holds a lease.
    pub lease_heartbeat: Duration,
    /// A lease without a heartbeat for so long goes to somebody else.
    pub lease_timeout: Duration,
    /// A lease whose holder makes no progress for so long goes to somebody else.
    pub lease_stall: Duration,
    /// How long a lease is held before somebody else is tried; doubles with each trial.
    pub lease_trial: Duration,
    /// Longest time between such trials.
    pub lease_trial_max: Duration,
    /// A holder that was asked to give its lease back, and did not for so long, loses it.
    pub lease_handover: Duration,
    /// How long a lease holder waits for peers that may have the blob before it asks the origin.
    pub holders_patience: Duration,
    /// Longest random wait before a node that no tracker answers goes to the origin.
    pub fallback_window: Duration,
    /// A fetch without a new byte for so long takes the origin by itself.
    pub stall_timeout: Duration,
    /// Tries at the origin without a new byte before the fetch fails.
    pub origin_tries: u8,
    /// Pause before the second try; doubles each time, with jitter.
    pub origin_backoff: Duration,
    /// An origin that asks to be left alone for longer is of no use to the fetch.
    pub retry_after_max: Duration,
    /// How long a complete blob stays in the machine after its last use.
    pub held_idle: Duration,
    /// Blobs in the machine; wishes beyond fail at once.
    pub fetches_max: usize,
    /// Contacts that a tracker hands out to a member that is new or gets nothing.
    pub sample: usize,
    /// Contacts that it hands out to one that gets on.
    pub sample_more: usize,
    /// Members of one blob that a tracker remembers.
    pub members_max: usize,
    /// Blobs that a tracker remembers.
    pub tracked_max: usize,
    /// Blobs that one peer can be a member of at a tracker.
    pub joins_per_peer_max: usize,
    /// Zones of one blob that a tracker tells apart; members of further ones count as without a zone.
    pub zones_max: usize,
    /// A fetching member not heard of for so long is forgotten.
    pub member_timeout: Duration,
    /// A member that gets nothing for so long, though others say that they have the blob, may have the lease.
    pub starved_patience: Duration,
    /// A complete member not heard of for so long is forgotten; provider records in the DHT still name it.
    pub complete_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            neighbours_max: 14,
            remotes_max: 60,
            pulls_max: 12,
            node_pulls_max: 12,
            pull_bytes_max: 48 << 20,
            pulls_per_peer_max: 2,
            uploads_max: 12,
            asks_waiting_max: 0,
            releases_max: 16,
            releases_per_peer_max: 2,
            release_timeout: Duration::from_secs(2),
            release_chunks_min: 8,
            urgent_chunks: 4,
            urgent_pulls_max: 1,
            endgame_chunks: 6,
            pull_timeout_min: Duration::from_millis(400),
            pull_timeout_first: Duration::from_secs(2),
            got_delay: Duration::from_millis(40),
            hints: 2,
            sign_delay: Duration::from_millis(10),
            sign_states: 16,
            strikes_max: 4,
            join_timeout: Duration::from_millis(600),
            trackers_max: 4,
            heartbeat: Duration::from_secs(1),
            lease_heartbeat: Duration::from_millis(250),
            lease_timeout: Duration::from_millis(1250),
            lease_stall: Duration::from_secs(6),
            lease_trial: Duration::from_millis(150),
            lease_trial_max: Duration::from_secs(10),
            lease_handover: Duration::from_secs(1),
            holders_patience: Duration::from_millis(250),
            fallback_window: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(12),
            origin_tries: 4,
            origin_backoff: Duration::from_millis(200),
            retry_after_max: Duration::from_secs(30),
            held_idle: Duration::from_secs(60),
            fetches_max: 4096,
            sample: 10,
            sample_more: 2,
            members_max: 20_000,
            tracked_max: 100_000,
            joins_per_peer_max: 8192,
            zones_max: 64,
            member_timeout: Duration::from_secs(10),
            starved_patience: Duration::from_secs(2),
            complete_timeout: Duration::from_secs(1800),
        }
    }
}

impl Limits {
    /// Whether the limits can work together.
    ///
    /// # Errors
    /// The relation that does not hold.
    pub fn check(&self) -> Result<(), &'static str> {
        let relations = [
            (self.neighbours_max >= 1, "neighbours_max >= 1"),
            (self.remotes_max >= self.neighbours_max, "remotes_max >= neighbours_max"),
            (self.pulls_max >= 1 && self.pulls_per_peer_max >= 1, "at least one pull"),
            (self.remotes_max <= crate::swarm::REMOTES_MAX, "remotes_max <= REMOTES_MAX"),
            (self.sign_states >= 2 && self.sign_states <= 64, "sign_states between 2 and 64"),
            (self.releases_max >= self.releases_per_peer_max, "releases_max >= releases_per_peer_max"),
            (self.lease_timeout >= self.lease_heartbeat * 3, "lease_timeout >= 3 lease_heartbeat"),
            (self.lease_stall >= self.lease_timeout, "lease_stall >= lease_timeout"),
            (self.lease_trial_max >= self.lease_trial, "lease_trial_max >= lease_trial"),
            (self.lease_handover >= self.lease_heartbeat, "lease_handover >= lease_heartbeat"),
            (self.joins_per_peer_max >= 1 && self.zones_max >= 1, "at least one join and one zone"),
            (self.member_timeout >= self.heartbeat * 3, "member_timeout >= 3 heartbeat"),
            (self.stall_timeout > self.lease_stall, "stall_timeout > lease_stall"),
            (self.trackers_max >= 1, "trackers_max >= 1"),
            (self.origin_tries >= 1, "origin_tries >= 1"),
            (self.sample <= crate::wire::CONTACTS_MAX, "sample <= CONTACTS_MAX"),
            (self.sample_more <= self.sample, "sample_more <= sample"),
        ];
        relations.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, relation)| Err(relation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_together() {
        assert_eq!(Limits::default().check(), Ok(()));
    }
}
