//! A body on its way from an origin: counted, rate-limited, never longer or shorter than announced.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures_util::future::join_all;
use prometheus_client::metrics::counter::Counter;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use crate::{
    origin::{OriginError, error::describe, memory::Memory},
    rate::Bucket,
};

/// Bytes that wait for the caps at once. A caller that gives up meanwhile pays for them again.
const PART_BYTES: usize = 64 * 1024;

/// An open body of content from the origin.
///
/// Nothing is retried in here: after an error the caller opens again at the first byte that it misses.
pub struct Body {
    /// Bytes in the whole content, from Content-Length or Content-Range.
    pub size: u64,
    pub(super) host: String,
    /// Of the upstream or mirror that was asked: if the body breaks off, another is asked first.
    pub(super) memory: Arc<Memory>,
    pub(super) flow: Flow,
    /// Bytes to throw away first: the origin answered a range request with the whole content.
    pub(super) skip: u64,
    /// Bytes still to come, the skipped ones included.
    pub(super) remaining: u64,
    pub(super) idle: Duration,
    pub(super) limits: Arc<[Bucket]>,
    /// Counts the bytes as they arrive.
    pub(super) received: Counter,
    /// A piece that waits for the caps. Kept here, so that a caller who gives up on [`Body::next`] can come back for it.
    pub(super) held: Option<Held>,
}

/// A piece that arrived, and how many of its bytes the caps have let pass.
pub(super) struct Held {
    piece: Bytes,
    passed: usize,
}

pub(super) enum Flow {
    Network(Response),
    /// Read before its size was known; counted already.
    Memory(VecDeque<Bytes>),
}

impl Body {
    /// Whether the host that sends this is known to send all of a blob, whatever range it is asked for.
    #[must_use]
    pub fn ignores_ranges(&self) -> bool {
        self.memory.ranges(&self.host, Instant::now()) == Some(false)
    }

    /// The next bytes, in order from the asked offset; none at the end. Waits at most the idle deadline for the origin, then as long
    /// as the rate caps say. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The stream broke, stalled, or ended too early ([`OriginError::Unavailable`]) or too late ([`OriginError::Protocol`]).
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        let outcome = self.following().await;
        if outcome.is_err() {
            self.memory.failed(Instant::now());
        }
        outcome
    }

    async fn following(&mut self) -> Result<Option<Bytes>, OriginError> {
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
        if self.held.is_none() {
            let response = match &mut self.flow {
                Flow::Memory(pieces) => return Ok(pieces.pop_front()),
                Flow::Network(response) => response,
            };
            let arrived = Self::arrive(response, self.idle, &self.host).await?;
            if let Some(piece) = &arrived {
                self.received.inc_by(piece.len() as u64);
            }
            self.held = arrived.map(|piece| Held { piece, passed: 0 });
        }
        if let Some(held) = &mut self.held {
            while held.passed < held.piece.len() {
                let part = (held.piece.len() - held.passed).min(PART_BYTES);
                // At all caps at once: one after the other, the wait at each would be time that the others do not save up.
                // Ahead of what comes from peers: everybody waits for the bytes that only the origin has.
                join_all(self.limits.iter().map(|limit| limit.take_first(part as u64))).await;
                held.passed += part;
            }
        }
        Ok(self.held.take().map(|held| held.piece))
    }

    async fn arrive(response: &mut Response, idle: Duration, host: &str) -> Result<Option<Bytes>, OriginError> {
        match timeout(idle, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(OriginError::unavailable(host, describe(error))),
            Err(_) => Err(OriginError::unavailable(host, format!("no bytes within {idle:?}"))),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = f.debug_struct("Body");
        body.field("host", &self.host)
            .field("size", &self.size)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}
