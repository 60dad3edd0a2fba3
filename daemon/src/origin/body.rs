//! A body on its way from an origin: counted, rate-limited, never longer or shorter than announced.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use reqwest::Response;
use tokio::time::timeout;

use crate::{
    origin::{OriginCounters, OriginError, error::describe},
    rate::Bucket,
};

/// An open body of content from the origin.
///
/// Nothing is retried in here: after an error the caller opens again at the first byte that it misses.
pub struct Body {
    /// Bytes in the whole content, from Content-Length or Content-Range.
    pub size: u64,
    pub(super) host: String,
    pub(super) flow: Flow,
    /// Bytes to throw away first: the origin answered a range request with the whole content.
    pub(super) skip: u64,
    /// Bytes still to come, the skipped ones included.
    pub(super) remaining: u64,
    pub(super) idle: Duration,
    pub(super) limits: Arc<[Bucket]>,
    pub(super) counters: Arc<OriginCounters>,
}

pub(super) enum Flow {
    Network(Response),
    /// Read before its size was known; counted already.
    Memory(VecDeque<Bytes>),
}

impl Body {
    /// The next bytes, in order from the asked offset; none at the end. Waits at most the idle deadline for the origin, then as long
    /// as the rate caps say.
    ///
    /// # Errors
    /// The stream broke, stalled, or ended too early ([`OriginError::Unavailable`]) or too late ([`OriginError::Protocol`]).
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            let Some(mut piece) = self.piece().await? else {
                if self.remaining == 0 {
                    return Ok(None);
                }
                let why = format!("body ended {} bytes early", self.remaining);
                return Err(OriginError::unavailable(self.host.as_str(), why));
            };
            let length = piece.len() as u64;
            if length > self.remaining {
                return Err(OriginError::protocol(self.host.as_str(), "body is longer than announced"));
            }
            self.remaining -= length;
            let skipped = self.skip.min(length);
            self.skip -= skipped;
            // Not more than the piece, hence it fits.
            piece.advance(usize::try_from(skipped).unwrap_or(piece.len()));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, OriginError> {
        let response = match &mut self.flow {
            Flow::Memory(pieces) => return Ok(pieces.pop_front()),
            Flow::Network(response) => response,
        };
        let piece = match timeout(self.idle, response.chunk()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return Err(OriginError::unavailable(self.host.as_str(), describe(error))),
            Err(_) => return Err(OriginError::unavailable(self.host.as_str(), format!("no bytes within {:?}", self.idle))),
        };
        if let Some(piece) = &piece {
            account(&self.counters, &self.limits, piece.len()).await;
        }
        Ok(piece)
    }
}

/// Counts bytes that came from the origin and waits until every cap lets them pass.
pub(super) async fn account(counters: &OriginCounters, limits: &[Bucket], bytes: usize) {
    counters.count_bytes(bytes as u64);
    for limit in limits {
        limit.take(bytes as u64).await;
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("host", &self.host).field("size", &self.size).field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
