//! Tags that one node resolves for all: the board of a tracker, and the errand of a node that asks it.
//!
//! A tag's *key* stands for registry, repository, tag and Accept. The nodes closest to the key in the DHT are its trackers.
//! A node asks the first of them: it is given the record, or the duty to make it, or it waits for whoever has that duty.
//! A record is the resolver's signed word and is believed as long as an answer of the origin is, counted from when the
//! origin was asked. A node that no tracker helps asks the origin itself: nothing here makes a pull fail.
//!
//! What a record holds is for the driver: trackers carry it, and need not be able to read it.

mod board;
mod errand;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::{
    board::{Board, Bounds, Send},
    errand::{Errand, Next},
};
use crate::{claim::Signature, digest::Digest, peer::PeerId};

/// Most bytes in the body of a record.
pub const RECORD_BYTES_MAX: usize = 512;

/// What a tag points at, as one node found out.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Digest, size and media type in a form that only those who share the tag need to know; at most [`RECORD_BYTES_MAX`].
    pub body: Vec<u8>,
    /// Who asked the origin.
    pub resolver: PeerId,
    /// Its signature over [`Self::signed_bytes`]. Made and checked by the driver.
    pub signature: Signature,
}

impl Record {
    /// The bytes that the resolver signs: purpose, key and body. The age is not among them: it grows on the way, so it is
    /// the tracker's word. A tracker that says a younger one does no more than a resolver can that signs what it likes.
    #[must_use]
    pub fn signed_bytes(key: &Digest, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + body.len());
        bytes.extend_from_slice(b"shoal tag 1\0");
        bytes.extend_from_slice(key.algorithm().name().as_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(body);
        bytes
    }
}

/// Without the body: it may be of a registry that not all may see.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("resolver", &self.resolver).field("bytes", &self.body.len()).finish()
    }
}
