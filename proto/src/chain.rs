//! The SHA-256 chain: verified chunks for a flat SHA-256.
//!
//! SHA-256 is a chain of compressions, so its internal state at a chunk boundary (32 bytes) verifies a chunk alone:
//! hash the chunk from the state in front of it and compare with the state behind it. The last chunk, with padding and
//! length, must give the digest. When every link holds, from the fixed initial value to the digest, the blob is
//! proven *by computation*: no second pass and no trust in whoever named the states.
//!
//! Before that, a list of states is only a [claim](crate::claim).

use sha2::{Digest as _, Sha256, digest::common::hazmat::SerializableState};

use crate::{
    chunk::{ChunkIndex, Layout},
    digest::{Algorithm, Digest},
};

/// SHA-256's internal state at a chunk boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State(pub [u8; 32]);

impl State {
    /// The state in front of the first chunk, fixed by FIPS 180-4 section 5.3.3 (words in little-endian bytes).
    pub const INITIAL: Self = Self([
        0x67, 0xe6, 0x09, 0x6a, 0x85, 0xae, 0x67, 0xbb, 0x72, 0xf3, 0x6e, 0x3c, 0x3a, 0xf5, 0x4f, 0xa5, 0x7f, 0x52,
        0x0e, 0x51, 0x8c, 0x68, 0x05, 0x9b, 0xab, 0xd9, 0x83, 0x1f, 0x19, 0xcd, 0xe0, 0x5b,
    ]);
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({:02x}{:02x}{:02x}{:02x})", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// One link in the making: the hash of a chunk's bytes from a known state, fed in pieces of any length.
#[derive(Debug, Clone)]
pub struct Link {
    hash: Sha256,
    absorbed: u64,
}

/// What a link ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEnd {
    /// The state behind a chunk that is not the last.
    State(State),
    /// The digest behind the last chunk.
    Digest(Digest),
}

/// `SerializableState` of `Sha256`: eight words, the block count, then the block buffer.
const WORDS: std::ops::Range<usize> = 0..32;
const BLOCKS: std::ops::Range<usize> = 32..40;
const BLOCK_BYTES: u64 = 64;

impl Link {
    /// A link that starts at the chunk's beginning from the state in front of it.
    #[must_use]
    pub fn new(layout: Layout, chunk: ChunkIndex, before: State) -> Self {
        let offset = layout.range(chunk).start;
        let mut serialized = sha2::digest::common::hazmat::SerializedState::<Sha256>::default();
        serialized[WORDS].copy_from_slice(&before.0);
        serialized[BLOCKS].copy_from_slice(&(offset / BLOCK_BYTES).to_le_bytes());
        let hash = Sha256::deserialize(&serialized).unwrap_or_else(|_| unreachable!("an empty buffer is valid"));
        Self { hash, absorbed: 0 }
    }

    /// Absorbs the next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.absorbed += bytes.len() as u64;
    }

    /// What the link ends in, once exactly the chunk's bytes went in; none after any other number of bytes.
    #[must_use]
    pub fn end(self, layout: Layout, chunk: ChunkIndex) -> Option<LinkEnd> {
        if self.absorbed != layout.len(chunk) {
            return None;
        }
        if chunk == layout.last() {
            return Some(LinkEnd::Digest(Digest::sha256(self.hash.finalize().into())));
        }
        let mut state = State([0; 32]);
        state.0.copy_from_slice(&self.hash.serialize()[WORDS]);
        Some(LinkEnd::State(state))
    }
}

/// What the end of a chunk's link must be for its bytes to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The state in front of the chunk.
    pub before: State,
    /// What its link must end in; none where only the origin's bytes can tell (the chain is being extended).
    pub end: Option<LinkEnd>,
}

/// The states at both ends of a chunk's link: under which claim a chunk is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The state in front of the chunk.
    pub before: State,
    /// The state behind it; none for the last chunk, whose link ends in the digest, and where it is not known.
    pub after: Option<State>,
}

impl Expected {
    /// The states at its ends.
    #[must_use]
    pub const fn ends(&self) -> Ends {
        let after = match self.end {
            Some(LinkEnd::State(state)) => Some(state),
            Some(LinkEnd::Digest(_)) | None => None,
        };
        Ends { before: self.before, after }
    }
}

/// The states of a blob as far as they are known, always a prefix: state `i` stands in front of chunk `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    layout: Layout,
    digest: Digest,
    states: Vec<State>,
}

impl Chain {
    /// The chain of a blob of which only the beginning is known. Only SHA-256 digests have chains.
    #[must_use]
    pub fn new(digest: Digest, layout: Layout) -> Option<Self> {
        (digest.algorithm() == Algorithm::Sha256).then(|| Self { layout, digest, states: vec![State::INITIAL] })
    }

    /// The digest that the chain must end in.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How the blob is cut.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The known states, from the initial one.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// The chunk in front of which the last known state stands: all chunks before it can be verified.
    #[must_use]
    pub fn frontier(&self) -> ChunkIndex {
        ChunkIndex(self.states.len() as u32 - 1)
    }

    /// Whether every state is known, so that the last chunk can be verified too.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.frontier() == self.layout.last()
    }

    /// The state in front of a chunk, if known.
    #[must_use]
    pub fn state(&self, before: ChunkIndex) -> Option<State> {
        self.states.get(before.at()).copied()
    }

    /// What a chunk's link must be; none if its state in front is unknown or the chunk is not in the blob.
    #[must_use]
    pub fn expected(&self, chunk: ChunkIndex) -> Option<Expected> {
        let before = self.state(chunk).filter(|_| self.layout.contains(chunk))?;
        let end = if chunk == self.layout.last() {
            Some(LinkEnd::Digest(self.digest))
        } else {
            self.state(chunk.next()).map(LinkEnd::State)
        };
        Some(Expected { before, end })
    }

    /// Whether a chunk can be verified now: both ends of its link are known.
    #[must_use]
    pub fn can_verify(&self, chunk: ChunkIndex) -> bool {
        self.expected(chunk).is_some_and(|expected| expected.end.is_some())
    }

    /// Takes in states that follow one another, the first of which stands in front of chunk `from`.
    ///
    /// The first must be known already: what merely comes next in number might
    /// continue another chain. So a link's end is taken in together with its beginning, `extend(chunk, &[before, end])`.
    ///
    /// # Errors
    /// Nothing is taken in if they do not touch what is known, contradict it, or go beyond the blob.
    pub fn extend(&mut self, from: ChunkIndex, states: &[State]) -> Result<(), ChainError> {
        let start = from.at();
        if start >= self.states.len() {
            return Err(ChainError::Gap);
        }
        if start + states.len() > self.layout.count() as usize {
            return Err(ChainError::Beyond);
        }
        let known = states.len().min(self.states.len() - start);
        if self.states[start..start + known] != states[..known] {
            return Err(ChainError::Contradiction);
        }
        self.states.extend_from_slice(&states[known..]);
        Ok(())
    }
}

/// Why states do not extend a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// They begin behind what is known.
    #[error("the states do not touch the known ones")]
    Gap,
    /// More states than the blob has chunks.
    #[error("the states go beyond the blob")]
    Beyond,
    /// A state differs from the known one at its place: two claims for one digest.
    #[error("the states contradict the known ones")]
    Contradiction,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_state_is_that_of_an_untouched_hash() {
        assert_eq!(State::INITIAL.0, Sha256::new().serialize()[WORDS]);
    }
}
