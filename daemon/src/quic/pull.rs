//! The asking side of a chunk stream.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, WriteError};
use shoal_proto::wire::{self, Answer, Ask};
use tokio::time::timeout;

use crate::rate::Bucket;

/// Received frames that are taken at once. Each is at most a datagram long.
const BATCH_FRAMES: usize = 64;

/// Why a pull brought no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// All upload slots of the peer are taken.
    #[error("the peer is busy")]
    Busy,
    /// The peer does not have the chunk.
    #[error("the peer does not have the chunk")]
    Missing,
    /// No connection, a broken or late answer, or one of the wrong length.
    #[error("no whole answer from the peer")]
    Link,
}

/// What [`PullError::Link`] was, for the log.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Refused(PullError),
    #[error("answer of an unknown kind: {0}")]
    Kind(u8),
    #[error("answer ended after {0} bytes")]
    Short(u64),
    #[error("answer is longer than asked for")]
    Long,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Answer(#[from] ReadExactError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Pulls `expected` bytes, and calls `came` whenever some of them are here. Dropping the future tells the peer to stop: quinn does so for streams that are dropped
/// before their end.
pub(super) async fn pull(
    connection: Connection,
    download: Bucket,
    ask: Ask,
    expected: u64,
    deadline: Duration,
    came: impl Fn(),
) -> Result<Vec<Bytes>, PullError> {
    match timeout(deadline, exchange(&connection, &download, ask, expected, came)).await {
        Ok(Ok(frames)) => Ok(frames),
        Ok(Err(Fault::Refused(error))) => Err(error),
        Ok(Err(fault)) => {
            tracing::debug!(address = %connection.remote_address(), %fault, "pull failed");
            Err(PullError::Link)
        }
        Err(_) => {
            tracing::debug!(address = %connection.remote_address(), ?deadline, "pull took too long");
            Err(PullError::Link)
        }
    }
}

async fn exchange(
    connection: &Connection,
    download: &Bucket,
    ask: Ask,
    expected: u64,
    came: impl Fn(),
) -> Result<Vec<Bytes>, Fault> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&wire::encode_ask(&ask)).await?;
    // Fails only if the peer has refused to read on; its answer says why.
    send.finish().ok();
    let mut kind = [0];
    receive.read_exact(&mut kind).await?;
    match Answer::from_byte(kind[0]) {
        Some(Answer::Bytes) => read_whole(&mut receive, download, expected, came).await,
        Some(Answer::Busy) => Err(Fault::Refused(PullError::Busy)),
        Some(Answer::Missing) => Err(Fault::Refused(PullError::Missing)),
        None => Err(Fault::Kind(kind[0])),
    }
}

/// Reads to the end of the stream, which must come after exactly `expected` bytes.
async fn read_whole(
    stream: &mut RecvStream,
    download: &Bucket,
    expected: u64,
    came: impl Fn(),
) -> Result<Vec<Bytes>, Fault> {
    let mut frames = Vec::new();
    let mut batch: [Bytes; BATCH_FRAMES] = std::array::from_fn(|_| Bytes::new());
    let mut received = 0_u64;
    while let Some(count) = stream.read_chunks(&mut batch).await? {
        let before = received;
        for frame in &mut batch[..count] {
            received += frame.len() as u64;
            frames.push(std::mem::take(frame));
        }
        if received > expected {
            return Err(Fault::Long);
        }
        came();
        download.take(received - before).await;
    }
    if received == expected { Ok(frames) } else { Err(Fault::Short(received)) }
}
