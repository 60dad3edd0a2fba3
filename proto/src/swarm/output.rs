//! Orders: what the swarm machine wants done, and what it shows.

use super::input::{AskId, OriginFailure, PullId, RunId};
use crate::{
    chain::{Expected, State},
    chunk::ChunkIndex,
    digest::Digest,
    peer::{Contact, PeerId},
    wire::{Answer, Message},
};

/// Why a fetch ended without its blob. The driver knows the details of origin and disk failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchError {
    /// The origin failed, and no peer has the blob.
    Origin(OriginFailure),
    /// Our own disk failed.
    Disk,
    /// Too many fetches at once, or a size beyond all layouts.
    Limit,
    /// It was ended from outside.
    Forgotten,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the DHT for the blob's trackers and holders.
    Locate {
        /// Which blob.
        digest: Digest,
    },
    /// Tell the DHT that this node holds the blob.
    Announce {
        /// Which blob.
        digest: Digest,
    },
    /// Connect to a peer; answered by [`Input::Connected`](super::Input::Connected) or
    /// [`Input::Disconnected`](super::Input::Disconnected).
    Dial {
        /// To whom.
        contact: Contact,
    },
    /// Send a message, possibly to this node's own tracker.
    Send {
        /// To whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// The blob's size is known (as a claim): make room for it.
    Sized {
        /// Which blob.
        digest: Digest,
        /// Bytes in it.
        size: u64,
    },
    /// Get a chunk from a peer, verify it, store it.
    Pull {
        /// The name of this pull.
        pull: PullId,
        /// From whom.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
        /// What its link must be.
        expected: Expected,
    },
    /// Stop a pull; no answer wanted.
    CancelPull {
        /// Which.
        pull: PullId,
    },
    /// Stream chunks from the origin.
    PullOrigin {
        /// Which blob.
        digest: Digest,
        /// The name of this stream.
        run: RunId,
        /// The first chunk.
        from: ChunkIndex,
        /// The chunk in front of which to stop; none for the end.
        until: Option<ChunkIndex>,
        /// The state in front of `from`; none if it is not known yet: chunks are then stored unhashed.
        before: Option<State>,
    },
    /// Hash a chunk that was stored unhashed.
    Hash {
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
        /// The state in front of it.
        before: State,
    },
    /// Sign states that this node computed.
    Sign {
        /// Which blob.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// The chunk behind the first state.
        from: ChunkIndex,
        /// The states.
        states: Vec<State>,
    },
    /// Stop a stream from the origin; no answer wanted.
    StopOrigin {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
    },
    /// Send a chunk to the peer that asked.
    Serve {
        /// Which ask.
        ask: AskId,
    },
    /// Tell the peer that asked that it gets nothing.
    Refuse {
        /// Which ask.
        ask: AskId,
        /// Why.
        answer: Answer,
    },
    /// A chunk is here; readers may have it.
    Arrived {
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// Every link of the chain holds: publish the blob in the store.
    Proven {
        /// Which blob.
        digest: Digest,
    },
    /// What was fetched rested on a false claim: drop it, end its readers, and begin anew.
    Discard {
        /// Which blob.
        digest: Digest,
    },
    /// The fetch is over without its blob.
    Failed {
        /// Which blob.
        digest: Digest,
        /// Why.
        why: FetchError,
    },
    /// Something worth counting.
    Report(Event),
}

/// The machine's only telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A peer sent bytes that do not verify.
    CorruptChunk {
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// A peer signed states that are false, or ones that a false claim was made of: its word counts no more in this fetch.
    Convicted {
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
    },
    /// Two claims for one digest differ.
    Disputed {
        /// Which blob.
        digest: Digest,
    },
    /// No tracker answered in time; the origin is used after a random wait.
    Untracked {
        /// Which blob.
        digest: Digest,
    },
    /// This node got the origin lease.
    Leased {
        /// Which blob.
        digest: Digest,
    },
    /// A fetch made no progress and takes the origin by itself.
    Stalled {
        /// Which blob.
        digest: Digest,
    },
}

/// A fetch as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchView {
    /// Which blob.
    pub digest: Digest,
    /// Bytes in it, if known.
    pub size: Option<u64>,
    /// Chunks here.
    pub have: u32,
    /// Chunks in all; 0 while the size is unknown.
    pub chunks: u32,
    /// Whether the blob is proven.
    pub complete: bool,
    /// Whether this node holds the origin lease.
    pub leased: bool,
    /// Peers of the blob.
    pub peers: usize,
    /// Local readers that wait for chunks.
    pub readers: u32,
}
