//! Messages between nodes and their encoding. Only this page and its codec know bincode.
//!
//! A frame is the body's length (u32, little-endian) and the body. A body is decoded under [`FRAME_BYTES_MAX`], must be
//! consumed to its last byte, and counts inside it are checked against the limits of this page before anything uses them.

mod codec;

use std::{sync::Arc, time::Duration};

use bincode::{Decode, Encode};

pub use self::codec::{
    BodyAndRest, FRAME_HEADER_BYTES, WireError, body_bytes, decode_ask, decode_hello, decode_message, encode_ask,
    encode_hello, encode_message, split_frame,
};
use crate::{
    chain::Ends,
    chunk::{ChunkIndex, ChunkSet},
    claim::Segment,
    digest::Digest,
    peer::{Contact, PeerId, Place},
    tags,
};

/// Version of this page; peers of another version are refused at the handshake.
pub const VERSION: u16 = 4;
/// Largest frame body, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Most states in one segment message.
pub const SEGMENT_STATES_MAX: usize = 1024;
/// Most contacts in one message.
pub const CONTACTS_MAX: usize = 64;
/// Most holders of the origin's lease that are named in one message.
pub const SOURCES_MAX: usize = 16;
/// Most chunks in one [`Message::Got`] or [`Message::Fresh`].
pub const GOT_CHUNKS_MAX: usize = 1024;

/// What nodes say to one another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// To a tracker: I want this blob, or have it. Repeated as a heartbeat.
    Join(Join),
    /// From a tracker: some peers of this blob.
    Joined {
        /// Which blob.
        digest: Digest,
        /// A random sample of the others.
        peers: Vec<Contact>,
        /// The lease, if it is the receiver's.
        lease: Option<Grant>,
        /// Whether somebody (else) holds the lease or the whole blob, so that waiting makes sense.
        served: bool,
        /// Who holds or held the origin's lease, the latest last: whose word for states is good enough to begin with.
        sources: Vec<PeerId>,
    },
    /// From a tracker: finish the chunk that is on its way, then give the lease back with the next [`Message::Join`].
    Revoked {
        /// Which blob.
        digest: Digest,
        /// The lease that ends.
        epoch: Epoch,
    },
    /// To a tracker: I neither want nor have this blob any more.
    Leave {
        /// Which blob.
        digest: Digest,
    },
    /// To a peer: tell me what you have of this blob, now and from now on.
    Subscribe {
        /// Which blob.
        digest: Digest,
        /// Up to which chunk the sender knows the states.
        frontier: ChunkIndex,
    },
    /// To a peer: stop telling me.
    Unsubscribe {
        /// Which blob.
        digest: Digest,
    },
    /// To a subscriber: all that I have.
    Have {
        /// Which blob.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// Which chunks.
        chunks: ChunkSet,
    },
    /// To a subscriber: what I have got since.
    Got {
        /// Which blob.
        digest: Digest,
        /// Which chunks.
        chunks: Vec<ChunkIndex>,
    },
    /// To a subscriber: states of the chain.
    Segment {
        /// Which blob.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// The signed states.
        segment: Arc<Segment>,
    },
    /// To a subscriber: I have nothing of this blob (yet).
    Unknown {
        /// Which blob.
        digest: Digest,
    },
    /// To a peer that was told to ask others: who else may have what it asks for.
    Peers {
        /// Which blob.
        digest: Digest,
        /// Some of the sender's peers.
        peers: Vec<Contact>,
    },
    /// To a subscriber: chunks from the origin that it alone is shown for now. All others wait until it has them, so it
    /// takes them first.
    Fresh {
        /// Which blob.
        digest: Digest,
        /// Which chunks.
        chunks: Vec<ChunkIndex>,
    },
    /// To a peer, before a subscription to content that is not public: the sender holds the credential that opens it. For
    /// whoever carries the messages; the machines do not see it.
    Entitled {
        /// Which blob.
        digest: Digest,
        /// Shows that the sender knows the key of those who hold the credential, on this connection and for this blob.
        proof: [u8; 32],
    },
    /// To or from a tracker: about a tag that one node resolves for all.
    Tag {
        /// Which tag; see [`tags`].
        key: Digest,
        /// What about it.
        word: TagWord,
    },
}

/// What a node and the tracker of a tag say to one another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum TagWord {
    /// To the tracker: I want to know what it points at.
    Wanted {
        /// How old a record may be.
        believed: Age,
    },
    /// From the tracker: ask the origin, and tell me.
    Duty,
    /// From the tracker: somebody else is asking the origin; wait.
    Pending,
    /// From the tracker: this is what it points at.
    Record {
        /// Somebody's signed word.
        record: Arc<tags::Record>,
        /// Time since the origin was asked.
        age: Age,
    },
    /// To the tracker that gave the duty: this is what it points at.
    Resolved {
        /// The sender's signed word.
        record: Arc<tags::Record>,
        /// Time since the origin was asked.
        age: Age,
    },
    /// To the tracker that gave the duty: it was in vain.
    Dropped,
}

/// How old something is, in milliseconds: clocks need not agree on the time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Age(pub u32);

impl Age {
    /// So much later; the largest age if that is beyond it.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(Self::from(time).0))
    }
}

impl From<Duration> for Age {
    fn from(time: Duration) -> Self {
        Self(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
    }
}

impl From<Age> for Duration {
    fn from(age: Age) -> Self {
        Self::from_millis(u64::from(age.0))
    }
}

/// A join or heartbeat of one node for one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Join {
    /// Which blob.
    pub digest: Digest,
    /// How many chunks the sender has.
    pub have: u32,
    /// How the sender stands to the blob.
    pub standing: Standing,
    /// Where the sender stands in the cluster.
    pub place: Place,
    /// The lease that the sender holds.
    pub lease: Option<Held>,
    /// A peer that the sender caught by its own word: it sent bytes or states that do not lead to the digest.
    pub accused: Option<PeerId>,
    /// How many other blobs the sender streams from the origin.
    pub burden: u8,
}

/// A lease as its holder reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Held {
    /// Which lease.
    pub epoch: Epoch,
    /// What it is for.
    pub scope: Scope,
    /// Bytes that came in under it so far.
    pub bytes: u64,
    /// Chunks that the holder still lacks; the largest number if it does not know.
    pub left: u32,
    /// Streams from the origin that are open under it. More than one: the origin gives a connection less than the holder
    /// could take, so that another holder would be no better.
    pub streams: u8,
}

/// A lease as a tracker gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// Which lease.
    pub epoch: Epoch,
    /// What it is for.
    pub scope: Scope,
}

/// What a lease is the right and the duty to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Scope {
    /// From the origin what no peer has.
    Origin,
    /// From other zones what nobody in the holder's own zone has.
    Zone,
}

/// How a node stands to a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Standing {
    /// Wants more chunks, and its peers have some.
    Fetching,
    /// Wants more chunks, and no peer that it knows has any.
    Starved,
    /// Has the whole blob, proven.
    Complete,
    /// Wants more chunks but cannot use the origin (it refused this node).
    Shut,
}

/// The number of an origin lease; later leases of the same tracker have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Epoch(pub u64);

/// The first frame of a connection, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u16,
    /// HMAC-SHA256 of the TLS exporter and the sender's role under the cluster secret.
    pub proof: [u8; 32],
    /// Where the sender stands in the cluster.
    pub place: Place,
}

/// The only frame of a chunk stream's request side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// Which blob.
    pub digest: Digest,
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Under which claim: a node that holds another one has nothing to send.
    pub ends: Ends,
}

/// The first byte of a chunk stream's answer side; after [`Answer::Bytes`] the chunk's bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The bytes follow.
    Bytes,
    /// All upload slots are taken; ask others, or later.
    Busy,
    /// Not here (any more).
    Missing,
}

impl Answer {
    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Busy => 1,
            Self::Missing => 2,
        }
    }

    /// The answer of a byte; none for any byte that this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Bytes),
            1 => Some(Self::Busy),
            2 => Some(Self::Missing),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
