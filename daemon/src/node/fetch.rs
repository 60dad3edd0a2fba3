//! Waiting for a whole blob without reading it.

use std::sync::Arc;

use shoal_proto::digest::Digest;

use super::{
    Flights, OpenError,
    flight::{Advance, Flight},
};
use crate::store::Store;

/// A blob that is in the store, or on its way there.
#[derive(Debug, Clone)]
pub struct Fetch {
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Stored(u64),
    Flying { digest: Digest, flight: Arc<Flight>, flights: Flights, store: Store },
}

impl Fetch {
    pub(super) const fn stored(size: u64) -> Self {
        Self { state: State::Stored(size) }
    }

    pub(super) const fn flying(digest: Digest, flight: Arc<Flight>, flights: Flights, store: Store) -> Self {
        Self { state: State::Flying { digest, flight, flights, store } }
    }

    /// How far it is.
    #[must_use]
    pub fn advance(&self) -> Advance {
        match &self.state {
            State::Stored(size) => Advance { size: Some(*size), have: *size, stirs: 0 },
            State::Flying { flight, .. } => flight.advance(),
        }
    }

    /// Waits until the blob is proven and in the store; returns its size in bytes. Sets no deadline: look at
    /// [`Self::advance`] now and then. May be dropped and called again.
    ///
    /// # Errors
    /// Why the fetch ended without the blob. [`OpenError::Corrupt`] may mean that a false claim was found out, and then
    /// the next fetch gets the truth.
    pub async fn done(&self) -> Result<u64, OpenError> {
        match &self.state {
            State::Stored(size) => Ok(*size),
            State::Flying { digest, flight, flights, store } => {
                let landed = flight.until(|flying| match flying.ended()? {
                    // Proven is not yet stored: only when the flight is over, the store has the blob.
                    Ok(()) if flights.is_current(digest, flight) => None,
                    end => Some(end),
                });
                landed.await?;
                stored(store, digest)
            }
        }
    }
}

fn stored(store: &Store, digest: &Digest) -> Result<u64, OpenError> {
    let size = store.sealed_size(digest);
    size.ok_or_else(|| OpenError::Disk("the blob arrived but could not be kept; see the daemon's log".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::{
        chunk::{ChunkIndex, Layout},
        digest::Algorithm,
    };

    use super::{super::flight::Progress, *};
    use crate::store::PartialBlob;

    struct World {
        _dir: tempfile::TempDir,
        store: Store,
        flights: Flights,
        digest: Digest,
        flight: Arc<Flight>,
        content: Vec<u8>,
        partial: PartialBlob,
    }

    /// A flight of a blob of three chunks, the last of them short.
    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let content = vec![7; 600 * 1024];
        let digest = Digest::of(Algorithm::Sha256, &content);
        let flights = Flights::default();
        let (flight, new) = flights.join(digest);
        assert!(new);
        let partial = store.create(&digest, content.len() as u64).unwrap();
        partial.file().write(0, &[content.clone().into()]).unwrap();
        World { _dir: dir, store, flights, digest, flight, content, partial }
    }

    impl World {
        fn fetch(&self) -> Fetch {
            Fetch::flying(self.digest, Arc::clone(&self.flight), self.flights.clone(), self.store.clone())
        }

        fn size(&self) -> u64 {
            self.content.len() as u64
        }
    }

    fn is_waiting(fetch: &Fetch) -> bool {
        use futures_util::FutureExt as _;
        fetch.done().now_or_never().is_none()
    }

    #[test]
    fn the_advance_counts_verified_bytes_and_every_sign_of_life() {
        let world = world();
        let fetch = world.fetch();
        assert_eq!(fetch.advance(), Advance { size: None, have: 0, stirs: 0 });
        let layout = Layout::new(world.size()).unwrap();
        world.flight.sized(layout, world.partial.file().clone());
        world.flight.arrived(layout.last());
        let short = world.size() - 2 * layout.chunk_bytes();
        assert_eq!(fetch.advance(), Advance { size: Some(world.size()), have: short, stirs: 2 });
        world.flight.arrived(ChunkIndex(0));
        world.flight.stirred();
        assert_eq!(fetch.advance(), Advance { size: Some(world.size()), have: short + layout.chunk_bytes(), stirs: 4 });
    }

    #[test]
    fn a_flight_moves_when_bytes_come_and_not_when_only_its_size_is_known() {
        let world = world();
        let before = world.flight.moves();
        world.flight.sized(world.partial.layout(), world.partial.file().clone());
        assert_eq!(world.flight.moves(), before);
        world.flight.stirred();
        assert_ne!(world.flight.moves(), before);
        let progress = world.flight.progress(|_| ChunkIndex::FIRST, false);
        assert!(matches!(progress, Progress::Waiting { some: false, .. }), "{progress:?}");
    }

    #[test]
    fn a_flight_that_ended_well_without_content_has_landed() {
        let flight = Flight::default();
        assert!(matches!(flight.progress(|_| ChunkIndex::FIRST, false), Progress::Unsized));
        flight.end(Ok(()));
        assert!(matches!(flight.progress(|_| ChunkIndex::FIRST, false), Progress::Landed));
    }

    #[tokio::test]
    async fn a_fetch_is_done_when_the_blob_is_in_the_store_and_not_when_it_is_only_proven() {
        let world = world();
        let fetch = world.fetch();
        world.flight.sized(world.partial.layout(), world.partial.file().clone());
        assert!(is_waiting(&fetch));
        world.flight.end(Ok(()));
        assert!(is_waiting(&fetch));
        let waiting = tokio::spawn({
            let fetch = fetch.clone();
            async move { fetch.done().await }
        });
        world.partial.seal(&[]).unwrap();
        world.flights.end(&world.digest, Ok(()));
        assert_eq!(waiting.await.unwrap().unwrap(), world.size());
        assert_eq!(fetch.advance().have, world.size());
    }

    #[tokio::test]
    async fn a_blob_that_cannot_be_sealed_is_not_told_done() {
        let world = world();
        world.flight.end(Ok(()));
        world.flights.end(&world.digest, Ok(()));
        assert!(matches!(world.fetch().done().await, Err(OpenError::Disk(_))));
    }

    #[tokio::test]
    async fn after_a_false_claim_the_next_fetch_joins_the_new_beginning() {
        let world = world();
        let next = world.flights.renew(world.digest, Err(OpenError::Corrupt));
        assert!(matches!(world.fetch().done().await, Err(OpenError::Corrupt)));
        let (joined, new) = world.flights.join(world.digest);
        assert!(!new && Arc::ptr_eq(&joined, &next));
    }
}
