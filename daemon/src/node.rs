//! The node: the one loop that turns facts into inputs of the `proto` machines and obeys their orders.
// STUB of the agreed surface for the registry front.

use std::{io, ops::Range, time::Duration};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use shoal_proto::digest::Digest;

use crate::origin::{OriginError, Source};

/// A wish for a blob.
#[derive(Debug, Clone)]
pub struct Want {
    /// Which.
    pub digest: Digest,
    /// Where the origin has it.
    pub source: Source,
}

/// Why a blob cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The origin refused or failed, and no peer has it.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Neither peers nor origin answered within the deadline.
    #[error("no answer from peers or origin within {0:?}")]
    Deadline(Duration),
    /// What arrived does not match the digest.
    #[error("content does not match its digest")]
    Corrupt,
    /// The daemon is at one of its limits or shutting down.
    #[error("{0}")]
    Overloaded(&'static str),
}

/// The handle that clients of the node hold.
#[derive(Debug, Clone)]
pub struct Node {}

impl Node {
    /// The blob's size if it is already here, sealed.
    #[must_use]
    pub fn sealed_size(&self, _digest: &Digest) -> Option<u64> {
        unimplemented!()
    }

    /// Opens a blob: from the store, or by a fetch that this starts or joins. Returns as soon as its size is known and
    /// bytes at `offset` are at hand or on their way (a complete blob: at once), at the latest after `deadline`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, _want: Want, _offset: u64, _deadline: Duration) -> Result<Blob, OpenError> {
        unimplemented!()
    }
}

/// A blob that can be read, complete or still arriving.
#[derive(Debug)]
pub struct Blob {}

impl Blob {
    /// Bytes in the blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        unimplemented!()
    }

    /// The bytes of a range, each verified before it comes out. An error item means: end the body early (by FIN).
    #[must_use]
    pub fn read(self, _range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        unimplemented!()
    }
}
