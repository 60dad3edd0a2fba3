//! Blobs named by SHA-512: fetched from the origin by this node alone, and shown to readers once proven as a whole.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha512};
use shoal_proto::{chunk::Layout, digest::Digest};
use tokio::task::spawn_blocking;

use super::{Flights, OpenError, Want, flight::Flight, parts::Parts};
use crate::{
    origin::Body,
    store::{BlobFile, PartialBlob},
};

/// Bytes hashed and written at once.
const BATCH_BYTES: usize = 1024 * 1024;

/// Starts the fetch of a blob that has no chain.
pub(super) fn spawn(parts: Arc<Parts>, flights: Flights, want: Want, flight: Arc<Flight>) {
    tokio::spawn(async move {
        let (digest, started) = (want.digest, Instant::now());
        parts.metrics.fetches_started.inc();
        let end = fetch(&parts, &want, &flight).await;
        match &end {
            Ok(()) => {
                parts.access.sealed(&digest);
                parts.metrics.fetches_finished.inc();
                parts.metrics.fetch_seconds.observe(started.elapsed().as_secs_f64());
            }
            Err(error) => {
                parts.metrics.fetches_failed.inc();
                tracing::warn!(%digest, %error, "fetch failed");
            }
        }
        flights.end(&digest, end);
    });
}

async fn fetch(parts: &Parts, want: &Want, flight: &Flight) -> Result<(), OpenError> {
    let mut body = parts.origin.open(&want.source, &want.digest, 0).await?;
    let size = body.size;
    let layout = Layout::new(size).ok_or(OpenError::Overloaded("the blob is too large"))?;
    let (store, digest) = (parts.store.clone(), want.digest);
    let partial = blocking(move || store.create(&digest, size)).await?;
    flight.sized(layout, partial.file().clone());
    let outcome = fill(&mut body, digest, &partial, flight).await;
    if outcome.is_err() {
        blocking(move || partial.discard()).await?;
    }
    outcome
}

async fn fill(body: &mut Body, digest: Digest, partial: &PartialBlob, flight: &Flight) -> Result<(), OpenError> {
    let mut hash = Sha512::new();
    let (mut at, mut batch, mut batched) = (0, Vec::new(), 0);
    loop {
        let next = body.next().await?;
        let ended = next.is_none();
        if let Some(bytes) = next {
            flight.stirred();
            batched += bytes.len();
            batch.push(bytes);
        }
        if batched >= BATCH_BYTES || ended {
            let (frames, file) = (std::mem::take(&mut batch), partial.file().clone());
            hash = blocking(move || write(hash, &file, at, &frames)).await?;
            at += batched as u64;
            batched = 0;
        }
        if ended {
            break;
        }
    }
    if at != body.size || Digest::sha512(hash.finalize().into()) != digest {
        return Err(OpenError::Corrupt);
    }
    let partial = partial.clone();
    blocking(move || partial.seal(&[])).await?;
    Ok(())
}

fn write(mut hash: Sha512, file: &BlobFile, at: u64, frames: &[Bytes]) -> std::io::Result<Sha512> {
    for frame in frames {
        hash.update(frame);
    }
    file.write(at, frames)?;
    Ok(hash)
}

/// Work on the disk, off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, OpenError> {
    let done = spawn_blocking(work).await.map_err(std::io::Error::other).and_then(|done| done);
    done.map_err(|error| OpenError::Disk(error.to_string()))
}
