//! Facts: what the swarm machine is told.

use std::{sync::Arc, time::Duration};

use crate::{
    chain::{Ends, LinkEnd},
    chunk::{ChunkIndex, ChunkSet},
    claim::Segment,
    digest::Digest,
    peer::{Contact, PeerId, Place},
    wire::Message,
};

/// One pull of a chunk from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PullId(pub u64);

/// One stream from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// A peer's request for a chunk; named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// A local reader of a blob; named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody local wants the blob.
    Wanted {
        /// Which.
        digest: Digest,
        /// What an earlier fetch left in the store, proven again under its claim.
        restored: Option<Restored>,
    },
    /// The store has the whole blob, proven; peers may have it.
    Held {
        /// Which.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// Its whole chain, signed by this node or by others.
        segments: Vec<Arc<Segment>>,
    },
    /// The blob is no longer in the store, or its fetch shall end.
    Forgotten {
        /// Which.
        digest: Digest,
    },
    /// The DHT's answer to [`Output::Locate`](super::Output::Locate): the nodes closest to the digest, closest first; this node may be among them.
    Located {
        /// Which blob.
        digest: Digest,
        /// Its trackers.
        trackers: Vec<Contact>,
        /// Other nodes that this node knows by itself. Where there are no trackers, they may want or have the blob too.
        known: Vec<Contact>,
    },
    /// The DHT's other answer to [`Output::Locate`](super::Output::Locate): nodes that announced the whole blob. Comes once, perhaps empty.
    Holders {
        /// Which blob.
        digest: Digest,
        /// Who has it.
        holders: Vec<Contact>,
    },
    /// A connection stands.
    Connected {
        /// With whom.
        peer: PeerId,
        /// Where it stands, as it says.
        place: Place,
    },
    /// A connection broke, or could not be made.
    Disconnected {
        /// With whom.
        peer: PeerId,
    },
    /// A message came; its segments' signatures have been checked.
    Received {
        /// From whom (possibly this node's own tracker).
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A peer asks for a chunk.
    Asked {
        /// The driver's name for it.
        ask: AskId,
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
        /// Under which claim.
        ends: Ends,
    },
    /// An upload ended, well or not.
    Served {
        /// Which.
        ask: AskId,
    },
    /// A pull ended.
    Pulled {
        /// Which blob.
        digest: Digest,
        /// Which pull.
        pull: PullId,
        /// How.
        verdict: Verdict,
    },
    /// The origin answered.
    OriginOpened {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Bytes in the blob, as the origin says.
        size: u64,
    },
    /// Whoever serves this blob for the origin is known to send all of it, whatever range is asked for.
    OriginIgnoresRanges {
        /// Which blob.
        digest: Digest,
    },
    /// Bytes came from the origin (for heartbeats; the driver may send it seldom).
    OriginProgress {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Bytes of this stream so far.
        bytes: u64,
    },
    /// A chunk came from the origin, is hashed and stored.
    OriginChunk {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Which chunk.
        chunk: ChunkIndex,
        /// What its link ended in; none if the state in front of it is not known yet, so that it was stored unhashed.
        end: Option<LinkEnd>,
    },
    /// A chunk that had been stored unhashed was hashed, as [`Output::Hash`](super::Output::Hash) asked.
    Hashed {
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
        /// What its link ended in; none if the disk failed.
        end: Option<LinkEnd>,
    },
    /// This node's word for states, as [`Output::Sign`](super::Output::Sign) asked.
    Signed {
        /// Which blob.
        digest: Digest,
        /// The states and the signature.
        segment: Arc<Segment>,
    },
    /// A stream from the origin ended by itself.
    OriginEnded {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Why, if before its end.
        failure: Option<OriginFailure>,
    },
    /// A local reader moved to a chunk.
    Reading {
        /// Which blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
        /// The chunk that it needs next.
        chunk: ChunkIndex,
    },
    /// A local reader is gone.
    ReaderLeft {
        /// Which blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
    },
    /// The answer to [`Output::Proven`](super::Output::Proven): the blob lies in the store under its digest.
    Sealed {
        /// Which blob.
        digest: Digest,
        /// Its whole chain, signed by this node.
        segments: Vec<Arc<Segment>>,
    },
    /// Time has passed; due when [`Swarm::deadline`](super::Swarm::deadline) says.
    Elapsed,
}

/// What is left of an earlier fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Bytes in the blob.
    pub size: u64,
    /// The chain's states, as far as known.
    pub segments: Vec<Arc<Segment>>,
    /// The chunks that verify under them.
    pub have: ChunkSet,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The chunk verified and is stored.
    Good,
    /// The bytes did not verify.
    Corrupt,
    /// The peer's upload slots are taken.
    Busy,
    /// The peer does not have the chunk.
    Missing,
    /// The connection or the peer failed, or it took too long.
    Link,
    /// Our own disk failed.
    Disk,
}

/// Why the origin did not give what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginFailure {
    /// It will not: not found, denied.
    Refused,
    /// It may, later: unreachable, 5xx, too many requests, broken off.
    Transient {
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Its bytes contradict the digest.
    Corrupt,
    /// Our own disk failed.
    Disk,
}

impl OriginFailure {
    /// Transient, without a word when to come back.
    pub const TRANSIENT: Self = Self::Transient { retry_after: None };
}
