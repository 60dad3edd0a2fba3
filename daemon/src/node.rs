//! The node: the one loop that turns facts into inputs of the `proto` machines and obeys their orders.
//!
//! [`Node`] is the handle that the registry front and the admin API hold. Behind it, `driver` owns both machines, is
//! the only maker of [`Time`](shoal_proto::time::Time), and never waits for anything but the next fact.

mod driver;
mod fetch;
mod flight;
mod gate;
mod incoming;
mod job;
mod keep;
mod locate;
mod obey;
mod origin_run;
mod parts;
mod read;
mod rendezvous;
mod tag_body;
mod tags;
#[cfg(test)]
mod tests;
mod through;
mod vouched;
mod whole;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_proto::{
    digest::{Algorithm, Digest},
    swarm::{FetchView, ReaderId},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use self::{
    driver::Command,
    flight::{Flight, Progress},
    read::{Keeper, Watch},
    through::Through,
    vouched::Shelf,
};
pub use self::{fetch::Fetch, flight::Advance, parts::Parts, read::Blob, rendezvous::Rendezvous, tags::TagAnswer};
use crate::{
    access::{Ledger, Scope, Standing},
    credentials::CredentialError,
    metrics::Metrics,
    origin::{OriginError, Source, Upstream},
    store::Store,
};

/// Somebody took the blob away between two looks.
const REMOVED: OpenError = OpenError::Overloaded("the blob was removed just now");

/// Flights of a blob that a reader boards, one after the other, if those for others fail.
const BOARDINGS_MAX: usize = 3;

/// A wish for a blob.
#[derive(Debug, Clone)]
pub struct Want {
    /// Which.
    pub digest: Digest,
    /// Where the origin has it.
    pub source: Source,
    /// Under which right it is wanted.
    pub scope: Scope,
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
    /// The data directory cannot take it.
    #[error("cannot write to the data directory: {0}")]
    Disk(String),
    /// The daemon is at one of its limits or shutting down.
    #[error("{0}")]
    Overloaded(&'static str),
}

/// A fetch or held blob as people see it.
#[derive(Debug, Clone, Copy)]
pub struct NodeFetch {
    /// What the machine knows of it.
    pub view: FetchView,
    /// Verified bytes that this fetch got from the origin.
    pub from_origin: u64,
    /// Verified bytes that this fetch got from peers.
    pub from_peers: u64,
}

/// The handle that clients of the node hold.
#[derive(Debug, Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    store: Store,
    /// Serve only what is proven as a whole.
    sealed_only: bool,
    readers: AtomicU64,
    flights: Flights,
    shelf: Arc<Shelf>,
    parts: Arc<Parts>,
}

/// The flights that readers can join, by digest.
#[derive(Debug, Clone, Default)]
struct Flights {
    current: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    access: Arc<Ledger>,
}

impl Flights {
    fn new(access: Arc<Ledger>) -> Self {
        Self { current: Arc::default(), access }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flight of a blob, if there is one.
    fn current(&self, digest: &Digest) -> Option<Arc<Flight>> {
        self.lock().get(digest).cloned()
    }

    /// The flight of a blob, and whether it is new.
    fn join(&self, digest: Digest) -> (Arc<Flight>, bool) {
        let mut flights = self.lock();
        let mut new = false;
        let flight = flights.entry(digest).or_insert_with(|| {
            new = true;
            Arc::default()
        });
        (Arc::clone(flight), new)
    }

    /// Ends the flight of a blob, and lets the next one begin at once: whoever looks for one joins that.
    fn renew(&self, digest: Digest, end: Result<(), OpenError>) -> Arc<Flight> {
        let next = Arc::<Flight>::default();
        if let Some(flight) = self.lock().insert(digest, Arc::clone(&next)) {
            next.ask_as(&flight);
            flight.end(end);
        }
        next
    }

    /// Whether this is the flight that readers of its blob would join.
    fn is_current(&self, digest: &Digest, flight: &Arc<Flight>) -> bool {
        self.lock().get(digest).is_some_and(|current| Arc::ptr_eq(current, flight))
    }

    fn end(&self, digest: &Digest, end: Result<(), OpenError>) {
        let mut flights = self.lock();
        if let Some(flight) = flights.remove(digest) {
            // While no other can begin.
            self.access.ended(digest);
            flight.end(end);
        }
    }
}

impl Node {
    /// The blob's size if it is already here, sealed; whoever tells it to somebody calls [`Self::admit`] first.
    #[must_use]
    pub fn sealed_size(&self, digest: &Digest) -> Option<u64> {
        self.shared.store.sealed_size(digest)
    }

    /// Under which right this node gets what is in a repository.
    ///
    /// # Errors
    /// Whether there is a credential for it cannot be told.
    pub async fn scope(&self, upstream: &Upstream, repository: &str) -> Result<Scope, CredentialError> {
        upstream.scope(&self.shared.parts.secret, repository).await
    }

    /// Whether a wish may be met from what is here: if it was had under another scope, or is private, the origin is asked.
    ///
    /// # Errors
    /// [`OpenError::Origin`]: the origin refuses, or cannot be asked.
    pub async fn admit(&self, want: &Want) -> Result<(), OpenError> {
        let Want { digest, source, scope } = want;
        let access = &self.shared.parts.access;
        let stored = || self.sealed_size(digest).is_some();
        if access.standing(digest, scope, stored()) == Standing::Ask {
            let told = self.shared.parts.origin.size(source, digest).await?;
            let flying = || self.shared.flights.current(digest).and_then(|flight| flight.advance().size);
            // Nothing but its size shows that the origin means this blob, and not its page for those who must sign in.
            if let Some(size) = self.sealed_size(digest).or_else(flying).filter(|size| *size != told) {
                let why = format!("says that a blob of {size} bytes has {told}");
                return Err(OriginError::Protocol { host: source.upstream.host().to_owned(), why }.into());
            }
            access.prove(digest, *scope, stored());
        }
        Ok(())
    }

    /// [`Self::admit`] was called; but what was not here then may have come under another scope since.
    async fn admit_still(&self, want: &Want) -> Result<(), OpenError> {
        if want.scope == Scope::Private { Ok(()) } else { self.admit(want).await }
    }

    /// Opens a blob, if [`Self::admit`] says so: from the store, or by a fetch that this starts or joins. Returns as soon as its size is known and
    /// bytes at `offset` are at hand or on their way (a complete blob: at once), at the latest after `deadline`. If the
    /// disk cannot take the blob, it is streamed past the store, from the origin, to a reader that wants all of it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, want: Want, offset: u64, deadline: Duration) -> Result<Blob, OpenError> {
        timeout(deadline, self.admit(&want)).await.map_err(|_| OpenError::Deadline(deadline))??;
        match self.open_stored(want.clone(), offset, deadline).await {
            Err(OpenError::Disk(why)) if offset == 0 => {
                tracing::warn!(digest = %want.digest.short(), why, "streaming past the store");
                let through = timeout(deadline, Through::open(&self.shared.parts.origin, &want)).await;
                Ok(Blob::through(through.map_err(|_| OpenError::Deadline(deadline))??))
            }
            opened => opened,
        }
    }

    async fn open_stored(&self, want: Want, offset: u64, deadline: Duration) -> Result<Blob, OpenError> {
        let mut failed = REMOVED;
        for _ in 0..BOARDINGS_MAX {
            if let Some(blob) = self.open_sealed(&want).await? {
                return Ok(blob);
            }
            let Some(flight) = self.board(want.clone()).await? else {
                return self.open_sealed(&want).await?.ok_or(REMOVED);
            };
            let is_foreign = !flight.asks_at(&want.source);
            match self.open_aboard(&want, flight, offset, deadline).await {
                // That it is not there, or not for whoever asked there, says nothing of where it is wanted from here.
                Err(error @ OpenError::Origin(OriginError::NotFound { .. } | OriginError::Denied { .. }))
                    if is_foreign =>
                {
                    failed = error;
                }
                opened => return opened,
            }
        }
        Err(failed)
    }

    /// Waits until a flight has what is wanted.
    async fn open_aboard(
        &self,
        want: &Want,
        flight: Arc<Flight>,
        offset: u64,
        deadline: Duration,
    ) -> Result<Blob, OpenError> {
        let digest = want.digest;
        let reader = ReaderId(self.shared.readers.fetch_add(1, Ordering::Relaxed));
        let (commands, moves) = (self.shared.commands.clone(), flight.moves());
        let watch = Watch { digest, reader, commands, sealed: self.shared.sealed_only };
        let ready = flight.until(|flight| match flight.progress(|layout| layout.chunk_at(offset), watch.sealed) {
            Progress::Ready { layout, .. } => Some(Ok(Some(layout))),
            Progress::Landed => Some(Ok(None)),
            Progress::Failed(error) => Some(Err(error)),
            Progress::Unsized | Progress::Waiting { .. } => None,
        });
        let layout = match timeout(deadline, ready).await {
            Ok(ready) => ready?,
            // A slow but moving fetch is no reason to send the client away.
            Err(_) => match flight.progress(|layout| layout.chunk_at(offset), watch.sealed) {
                Progress::Waiting { layout, some } if some || flight.moves() != moves => Some(layout),
                Progress::Ready { layout, .. } => Some(layout),
                Progress::Landed => None,
                Progress::Failed(error) => return Err(error),
                Progress::Unsized | Progress::Waiting { .. } => return Err(OpenError::Deadline(deadline)),
            },
        };
        match layout {
            Some(layout) => Ok(Blob::arriving(flight, watch, layout.size())),
            None => self.open_sealed(want).await?.ok_or(REMOVED),
        }
    }

    /// Brings a blob into the store, if [`Self::admit`] says so: by a fetch that this starts or joins, if it is not there yet. The fetch goes on when
    /// nobody waits for it any more.
    ///
    /// # Errors
    /// See [`OpenError`]; what goes wrong later comes out of [`Fetch::done`].
    pub async fn fetch(&self, want: Want) -> Result<Fetch, OpenError> {
        self.admit(&want).await?;
        let digest = want.digest;
        if let Some(size) = self.sealed_size(&digest) {
            return Ok(Fetch::stored(size));
        }
        if let Some(flight) = self.board(want).await? {
            return Ok(Fetch::flying(digest, flight, self.shared.flights.clone(), self.shared.store.clone()));
        }
        Ok(Fetch::stored(self.sealed_size(&digest).ok_or(REMOVED)?))
    }

    /// The fetches and held blobs of the swarm; empty if the node shuts down.
    pub async fn fetches(&self) -> Vec<NodeFetch> {
        let (tx, rx) = oneshot::channel();
        if self.shared.commands.send(Command::Report(tx)).await.is_err() {
            return Vec::new();
        }
        rx.await.unwrap_or_default()
    }

    /// What the node counts.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.parts.metrics
    }

    async fn open_sealed(&self, want: &Want) -> Result<Option<Blob>, OpenError> {
        let (shelf, digest) = (&self.shared.shelf, want.digest);
        let sealed = shelf.take(digest).await.map_err(|error| OpenError::Disk(error.to_string()))?;
        if sealed.is_some() {
            self.admit_still(want).await?;
        }
        let verifier = self.shared.parts.verifier.clone();
        Ok(sealed.map(|blob| Blob::sealed(blob, Keeper { verifier, shelf: Arc::clone(shelf), digest })))
    }

    /// Joins the flight of a blob, or starts it. None if it has just landed: then the blob is in the store.
    async fn board(&self, want: Want) -> Result<Option<Arc<Flight>>, OpenError> {
        let digest = want.digest;
        if let Some(flight) = self.shared.flights.current(&digest) {
            self.admit_still(&want).await?;
            return Ok(Some(flight));
        }
        // Before the flight is entered: whoever waits for its place in the queue may go away, and a flight that is entered
        // but never starts would never end.
        let place = match digest.algorithm() {
            Algorithm::Sha256 => Some(self.place().await?),
            Algorithm::Sha512 => None,
        };
        let (flight, new) = self.shared.flights.join(digest);
        if !new {
            drop(place);
            self.admit_still(&want).await?;
            return Ok(Some(flight));
        }
        flight.ask_at(&want.source);
        let resumes = self.shared.parts.access.begin(&digest, want.scope);
        // A blob is in the store before its flight is over, so this look cannot miss it.
        if self.sealed_size(&digest).is_some() {
            self.shared.flights.end(&digest, Ok(()));
            return Ok(None);
        }
        match place {
            Some(place) => place.send(Command::Want { want, flight: Arc::clone(&flight), resumes }),
            None => {
                let (parts, flights) = (Arc::clone(&self.shared.parts), self.shared.flights.clone());
                whole::spawn(parts, flights, want, Arc::clone(&flight));
            }
        }
        Ok(Some(flight))
    }

    /// A place in the loop's queue.
    async fn place(&self) -> Result<mpsc::Permit<'_, Command>, OpenError> {
        self.shared.commands.reserve().await.map_err(|_| OpenError::Overloaded("shutting down"))
    }
}
