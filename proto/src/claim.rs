//! Claims: who says what the states of a chain are, before the blob is proven.
//!
//! A [`Segment`] is one node's signed word that it computed some states itself: as the origin's bytes went by, or from
//! a blob that it has proven. Nodes pass segments on unchanged. A false state convicts its author, never a relay.

use crate::{chain::State, chunk::ChunkIndex, digest::Digest, peer::PeerId};

/// An Ed25519 signature. Made and checked by the driver, before a segment reaches a machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// States that follow one another, signed by the node that computed them.
///
/// The first state is where the author started (it may be somebody else's word); the author answers for each later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who computed the states.
    pub author: PeerId,
    /// The chunk behind the first state.
    pub from: ChunkIndex,
    /// The states in front of chunks `from`, `from + 1`, and so on; at least two, except for a blob of one chunk.
    pub states: Vec<State>,
    /// The author's signature over [`Self::signed_bytes`].
    pub signature: Signature,
}

impl Segment {
    /// The chunk behind the last state.
    #[must_use]
    pub fn end(&self) -> ChunkIndex {
        ChunkIndex(self.from.0.saturating_add(self.states.len() as u32).saturating_sub(1))
    }

    /// The bytes that the author signs: purpose, digest, blob size, first chunk and states.
    #[must_use]
    pub fn signed_bytes(digest: &Digest, size: u64, from: ChunkIndex, states: &[State]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + states.len() * 32);
        bytes.extend_from_slice(b"shoal segment 1\0");
        bytes.extend_from_slice(digest.algorithm().name().as_bytes());
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&from.0.to_le_bytes());
        for state in states {
            bytes.extend_from_slice(&state.0);
        }
        bytes
    }
}
