//! Past the store: a blob for which the disk has no room goes from the origin straight to one reader.
//!
//! Nothing is kept and peers are not involved. The last piece is held back until the digest is proven, so that a client
//! never gets a whole body that is wrong.

use std::{io, ops::Range};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use sha2::{Digest as _, Sha256, Sha512};
use shoal_proto::digest::{Algorithm, Digest};

use super::{OpenError, Want};
use crate::origin::{Body, Origin};

/// An open body and the hash of what came out of it so far.
#[derive(Debug)]
pub(super) struct Through {
    digest: Digest,
    body: Body,
    hash: Hash,
}

#[derive(Debug)]
enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn digest(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::sha512(hash.finalize().into()),
        }
    }
}

impl Through {
    pub(super) async fn open(origin: &Origin, want: &Want) -> Result<Self, OpenError> {
        let body = origin.open(&want.source, &want.digest, 0).await?;
        Ok(Self { digest: want.digest, body, hash: Hash::new(want.digest.algorithm()) })
    }

    pub(super) const fn size(&self) -> u64 {
        self.body.size
    }

    /// The whole body. Parts of it cannot be proven, so reading a part fails.
    pub(super) fn read(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        if range != (0..self.size()) {
            let refused =
                io::Error::new(io::ErrorKind::StorageFull, "without room on the disk only whole blobs are served");
            return stream::iter([Err(refused)]).boxed();
        }
        stream::unfold(Some((self, None)), step).boxed()
    }
}

/// A stream with the piece that it holds back; none after its end.
type Held = Option<(Through, Option<Bytes>)>;

async fn step(state: Held) -> Option<(io::Result<Bytes>, Held)> {
    let (mut through, mut held) = state?;
    loop {
        match through.body.next().await {
            Ok(Some(piece)) => {
                // Pieces are some tens of KiB: hashing one takes less time than a hop to another thread.
                through.hash.update(&piece);
                if let Some(ready) = held.replace(piece) {
                    return Some((Ok(ready), Some((through, held))));
                }
            }
            Ok(None) if through.hash.digest() == through.digest => return held.map(|last| (Ok(last), None)),
            Ok(None) => return Some((Err(io::Error::new(io::ErrorKind::InvalidData, OpenError::Corrupt)), None)),
            Err(error) => return Some((Err(io::Error::other(error)), None)),
        }
    }
}
