//! The answering side of a chunk stream.

use std::{pin::pin, task::Poll};

use bytes::Bytes;
use futures_util::poll;
use quinn::{ConnectionError, SendStream, StoppedError, WriteError};
use shoal_proto::wire::Answer;
use tokio::time::{Duration, timeout};

use super::{
    handshake::GIVEN_UP,
    limits::{SEND_DEADLINE, STALL_DEADLINE},
};
use crate::rate::Bucket;

/// Bytes that are paid for and written at once under an upload cap: small, so that a chunk leaves as a stream, not as a bang.
const PIECE_BYTES: usize = 64 * 1024;

/// Answers one request of a peer. Dropped unanswered, it resets the stream, which the peer sees as a broken link.
#[derive(Debug)]
pub struct Reply {
    stream: SendStream,
    upload: Bucket,
    /// Whether all was written; if not, the end of the stream must not look like the end of the answer.
    whole: bool,
}

/// Why an answer did not get out.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The peer does not want the bytes any more.
    #[error("the peer gave the request up")]
    GivenUp,
    /// The peer took no bytes for too long.
    #[error("the peer took no bytes for {} s", STALL_DEADLINE.as_secs())]
    Stalled,
    /// The peer took bytes, but too slowly.
    #[error("the peer did not take all bytes within {0:?}")]
    Slow(Duration),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(ConnectionError),
}

impl From<WriteError> for ReplyError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::GivenUp,
        }
    }
}

impl Reply {
    pub(super) const fn new(stream: SendStream, upload: Bucket) -> Self {
        Self { stream, upload, whole: false }
    }

    /// Declines the request. The byte goes out in the background.
    pub fn refuse(mut self, answer: Answer) {
        debug_assert_ne!(answer, Answer::Bytes, "a refusal is not an answer with bytes");
        tokio::spawn(async move {
            if let Err(error) = self.write(&mut [byte(answer)]).await {
                tracing::trace!(%error, "refusal did not get out");
                return;
            }
            self.finish();
        });
    }

    /// Sends the chunk's bytes, without copying them, under the upload cap. Ends when the last byte was handed to the
    /// connection, which is up to its send window (8 MiB) before the peer has it.
    ///
    /// # Errors
    /// When the peer gives up, stalls, takes more than a minute, or is gone. The stream is reset then.
    pub async fn send(self, chunks: Vec<Bytes>) -> Result<(), ReplyError> {
        self.send_within(SEND_DEADLINE, chunks).await
    }

    pub(super) async fn send_within(mut self, deadline: Duration, chunks: Vec<Bytes>) -> Result<(), ReplyError> {
        timeout(deadline, self.send_all(chunks)).await.map_err(|_| ReplyError::Slow(deadline))??;
        self.finish();
        Ok(())
    }

    async fn send_all(&mut self, mut chunks: Vec<Bytes>) -> Result<(), ReplyError> {
        chunks.insert(0, byte(Answer::Bytes));
        if self.upload.is_limited() { self.send_capped(chunks).await } else { self.write(&mut chunks).await }
    }

    /// Answers take turns at the upload cap, one chunk after the other: if all shared it evenly, all would be whole, and could
    /// go on to the next peer, only when the last one is. One whose peer does not take its bytes lets the others go on.
    async fn send_capped(&mut self, chunks: Vec<Bytes>) -> Result<(), ReplyError> {
        let upload = self.upload.clone();
        let mut turn = None;
        for mut chunk in chunks {
            while !chunk.is_empty() {
                let piece = chunk.split_to(PIECE_BYTES.min(chunk.len()));
                let paid = async {
                    let turn = match turn.take() {
                        Some(turn) => turn,
                        None => upload.turn().await,
                    };
                    turn.take(piece.len() as u64).await;
                    turn
                };
                let paid = self.unless_given_up(paid).await?;
                let mut piece = [piece];
                let mut writing = pin!(self.write(&mut piece));
                match poll!(&mut writing) {
                    Poll::Ready(written) => {
                        written?;
                        turn = Some(paid);
                    }
                    Poll::Pending => {
                        drop(paid);
                        writing.await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Completes when the peer gives the request up or its connection ends; for work that goes before [`Self::send`].
    pub async fn given_up(&self) {
        // Both outcomes say the same: nobody waits for the answer.
        self.stream.stopped().await.ok();
    }

    /// Waits, unless the peer gives up meanwhile.
    async fn unless_given_up<T>(&self, wait: impl Future<Output = T>) -> Result<T, ReplyError> {
        tokio::select! {
            biased;
            done = wait => Ok(done),
            stopped = self.stream.stopped() => Err(match stopped {
                Ok(_) => ReplyError::GivenUp,
                Err(StoppedError::ConnectionLost(error)) => ReplyError::Lost(error),
                Err(StoppedError::ZeroRttRejected) => ReplyError::GivenUp,
            }),
        }
    }

    /// Writes all of `chunks`, with a deadline on each bit of progress.
    async fn write(&mut self, mut chunks: &mut [Bytes]) -> Result<(), ReplyError> {
        while !chunks.is_empty() {
            let written =
                timeout(STALL_DEADLINE, self.stream.write_chunks(chunks)).await.map_err(|_| ReplyError::Stalled)??;
            chunks = &mut chunks[written.chunks..];
        }
        Ok(())
    }

    fn finish(&mut self) {
        self.whole = true;
        // Fails only if the peer gave up, which no longer matters.
        self.stream.finish().ok();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.whole {
            // Fails only if the stream has ended already.
            self.stream.reset(GIVEN_UP).ok();
        }
    }
}

fn byte(answer: Answer) -> Bytes {
    Bytes::copy_from_slice(&[answer.to_byte()])
}
