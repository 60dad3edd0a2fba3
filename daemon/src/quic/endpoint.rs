//! The endpoint: dials peers, takes their dials, and turns proven connections into sessions.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::{Connection, Endpoint, Incoming, TokioRuntime, TransportConfig};
use shoal_proto::peer::{Contact, PeerId, Place};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};

use super::{
    BindError, DataPlaneConfig, PlaneEvent,
    close::Close,
    handshake::{Control, Handshake, HandshakeError},
    limits::{self, CONNECT_DEADLINE, HANDSHAKES_MAX, HANDSHAKES_TRUSTED, IDENTIFY_DEADLINE, PROOF_DEADLINE},
    peers::{Acceptance, Attempt, GivenUp, Peers},
    session::{self, Running, Session},
    socket::{self, CappedSocket},
    tls::{self, Tls, TlsError},
};
use crate::{rate::Bucket, secret::Secret};

/// Least time between two warnings about dialers that fail the handshake: anybody can cause them.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// What all tasks of a data plane share.
#[derive(Debug)]
pub(super) struct Inner {
    us: PeerId,
    pub(super) address: SocketAddr,
    pub(super) endpoint: Endpoint,
    tls: Tls,
    dial_transport: Arc<TransportConfig>,
    /// Where this node stands.
    place: Place,
    secret: Secret,
    pub(super) events: mpsc::Sender<PlaneEvent>,
    peers: Mutex<Peers<Session>>,
    /// One permit for each session and dial.
    connections: Arc<Semaphore>,
    /// One permit for each handshake with us as the listener.
    handshakes: Arc<Semaphore>,
    pub(super) upload: Bucket,
    pub(super) download: Bucket,
    warned: Mutex<Option<Instant>>,
}

/// Why an outgoing or incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("this node itself")]
    Own,
    #[error("this node has as many connections as it may")]
    Limit,
    #[error("given up for another connection or by request")]
    GivenUp,
    #[error("both ends dialed at once")]
    Duplicate,
    #[error("no answer in {} s", CONNECT_DEADLINE.as_secs())]
    Silent,
    #[error("the handshake took longer than {} s", PROOF_DEADLINE.as_secs())]
    Late,
    #[error("the peer refused: {}", .0.reason())]
    Refused(Close),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl From<GivenUp> for ConnectError {
    fn from(GivenUp: GivenUp) -> Self {
        Self::GivenUp
    }
}

impl ConnectError {
    const fn close(&self) -> Close {
        match self {
            Self::Own | Self::GivenUp | Self::Duplicate => Close::Duplicate,
            Self::Limit => Close::Limit,
            Self::Silent | Self::Late => Close::Late,
            Self::Tls(_) | Self::Connect(_) | Self::Connection(_) => Close::Lost,
            Self::Refused(close) => *close,
            Self::Handshake(error) => error.close(),
        }
    }

    /// Whether somebody has to set something right.
    const fn is_configuration(&self) -> bool {
        matches!(self, Self::Handshake(_) | Self::Refused(_)) && matches!(self.close(), Close::Proof | Close::Version)
    }
}

impl Inner {
    pub(super) fn bind(config: DataPlaneConfig, events: mpsc::Sender<PlaneEvent>) -> Result<Arc<Self>, BindError> {
        let DataPlaneConfig { listen, identity, place, secret, upload, download, connections } = config;
        let io = |source| BindError::Socket { address: listen, source };
        let tls = Tls::new(&identity)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls.server()?));
        server.transport_config(limits::unproven_transport(1));
        limits::bound_incoming(&mut server);
        let socket = CappedSocket::new(socket::bind(listen).map_err(io)?, &TokioRuntime).map_err(io)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            limits::endpoint(&identity)?,
            Some(server),
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )
        .map_err(io)?;
        let us = identity.peer();
        let plane = Arc::new(Self {
            us,
            address: endpoint.local_addr().map_err(io)?,
            endpoint,
            tls,
            dial_transport: limits::unproven_transport(0),
            place,
            secret,
            events,
            peers: Mutex::new(Peers::new(us)),
            connections: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            upload: Bucket::optional(upload),
            download,
            warned: Mutex::new(None),
        });
        tokio::spawn(take_dials(Arc::clone(&plane)));
        Ok(plane)
    }

    /// The slots of all peers; held for a moment only.
    pub(super) fn peers(&self) -> MutexGuard<'_, Peers<Session>> {
        // Every change to the slots is complete before anything could panic.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials in the background, unless there is a connection or a handshake already.
    pub(super) fn dial(self: &Arc<Self>, contact: Contact) {
        let Some(attempt) = self.peers().begin_dial(contact.peer) else { return };
        let plane = Arc::clone(self);
        tokio::spawn(async move {
            let connected = tokio::select! {
                biased;
                () = attempt.cancelled.cancelled() => Err(ConnectError::GivenUp),
                connected = plane.connect(contact, &attempt) => connected,
            };
            match connected {
                Ok(running) => session::run(plane, running).await,
                Err(error) => plane.dial_failed(contact, &attempt, &error).await,
            }
        });
    }

    async fn dial_failed(&self, contact: Contact, attempt: &Attempt, error: &ConnectError) {
        let Contact { peer, address } = contact;
        if error.is_configuration() {
            tracing::warn!(%peer, %address, %error, "cannot connect to peer");
        } else {
            tracing::debug!(%peer, %address, %error, "cannot connect to peer");
        }
        self.failed(attempt).await;
    }

    /// Ends a failed attempt, and tells of a dial that came to nothing.
    async fn failed(&self, attempt: &Attempt) {
        let report = self.peers().abandon(attempt);
        if report && self.events.send(PlaneEvent::DialFailed { peer: attempt.peer }).await.is_err() {
            tracing::trace!(peer = %attempt.peer, "nobody listens to the data plane any more");
        }
    }

    async fn connect(&self, contact: Contact, attempt: &Attempt) -> Result<Running, ConnectError> {
        if contact.peer == self.us {
            return Err(ConnectError::Own);
        }
        let permit = self.permit()?;
        let mut config = quinn::ClientConfig::new(Arc::new(self.tls.client(Some(contact.peer))?));
        config.transport_config(Arc::clone(&self.dial_transport));
        let connecting = self.endpoint.connect_with(config, contact.address, tls::SERVER_NAME)?;
        let connection = timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| ConnectError::Silent)??;
        closing(&connection, async {
            let proven = timeout(PROOF_DEADLINE, Handshake::dial(&connection, &self.secret, self.place)).await;
            let handshake = proven.map_err(|_| ConnectError::Late)??;
            self.commit(attempt, &connection, handshake.into_control(), permit)
        })
        .await
    }

    async fn who(&self, address: SocketAddr) -> Result<PeerId, ConnectError> {
        let mut config = quinn::ClientConfig::new(Arc::new(self.tls.client(None)?));
        config.transport_config(Arc::clone(&self.dial_transport));
        let connecting = self.endpoint.connect_with(config, address, tls::SERVER_NAME)?;
        let connection = timeout(IDENTIFY_DEADLINE, connecting).await.map_err(|_| ConnectError::Silent)??;
        let peer = tls::remote_peer(&connection).ok_or(HandshakeError::Certificate);
        Close::Hangup.apply(&connection);
        Ok(peer?)
    }

    /// Who is at an address, by its certificate.
    pub(super) async fn identify(&self, address: SocketAddr) -> Option<PeerId> {
        match self.who(address).await {
            Ok(peer) => Some(peer),
            Err(error) => {
                tracing::debug!(%address, %error, "cannot find out who is there");
                None
            }
        }
    }

    /// Puts a session into its slot. From then on it must run.
    fn commit(
        &self,
        attempt: &Attempt,
        connection: &Connection,
        control: Control,
        permit: OwnedSemaphorePermit,
    ) -> Result<Running, ConnectError> {
        let (session, queued) = Session::new(attempt.peer, connection.clone());
        let replaces = self.peers().commit(attempt, Arc::clone(&session))?;
        Ok(Running { session, control, queued, replaces, permit })
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, ConnectError> {
        Arc::clone(&self.connections).try_acquire_owned().map_err(|_| ConnectError::Limit)
    }

    async fn accept(self: Arc<Self>, incoming: Incoming, handshake_permit: OwnedSemaphorePermit) {
        let address = incoming.remote_address();
        match self.take_dial(incoming).await {
            Ok(running) => {
                drop(handshake_permit);
                session::run(self, running).await;
            }
            Err(error) if error.is_configuration() && self.may_warn() => {
                tracing::warn!(%address, %error, "refused a dialer");
            }
            Err(error) => tracing::debug!(%address, %error, "dialer came to nothing"),
        }
    }

    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let may = warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL);
        if may {
            *warned = Some(Instant::now());
        }
        may
    }

    async fn take_dial(&self, incoming: Incoming) -> Result<Running, ConnectError> {
        let connecting = incoming.accept()?;
        let connection = timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| ConnectError::Silent)??;
        let deadline = Instant::now() + PROOF_DEADLINE;
        closing(&connection, async {
            let proven = timeout_at(deadline, Handshake::accept(&connection, &self.secret, self.place)).await;
            let handshake = proven.map_err(|_| ConnectError::Late)??;
            if handshake.peer == self.us {
                return Err(ConnectError::Own);
            }
            let permit = self.permit()?;
            let attempt = timeout_at(deadline, self.turn(handshake.peer)).await.map_err(|_| ConnectError::Late)??;
            // No early return from here on: the attempt must leave its slot.
            let answered = tokio::select! {
                biased;
                () = attempt.cancelled.cancelled() => Err(ConnectError::GivenUp),
                answered = timeout_at(deadline, handshake.answer()) => match answered {
                    Ok(answered) => answered.map_err(ConnectError::from),
                    Err(_) => Err(ConnectError::Late),
                },
            };
            let running = answered.and_then(|control| self.commit(&attempt, &connection, control, permit));
            if running.is_err() {
                self.failed(&attempt).await;
            }
            running
        })
        .await
    }

    /// Waits until a dial of ours to the same peer, if any, has an end.
    async fn turn(&self, peer: PeerId) -> Result<Attempt, ConnectError> {
        let mut waited = false;
        loop {
            let acceptance = self.peers().begin_accept(peer, waited);
            match acceptance {
                Acceptance::Answer(attempt) => return Ok(attempt),
                Acceptance::Duplicate => return Err(ConnectError::Duplicate),
                Acceptance::Wait(done) => done.cancelled().await,
            }
            waited = true;
        }
    }
}

/// Runs a handshake on `connection`; if it fails, the peer is told why.
async fn closing<T>(
    connection: &Connection,
    handshake: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    handshake.await.map_err(|error| {
        // A peer's own words say more than the broken stream that its close left behind.
        if let Some(refusal) = connection.close_reason().as_ref().and_then(Close::of_peer) {
            return ConnectError::Refused(refusal);
        }
        error.close().apply(connection);
        error
    })
}

/// Takes dials until the endpoint closes.
async fn take_dials(plane: Arc<Inner>) {
    while let Some(incoming) = plane.endpoint.accept().await {
        let busy = HANDSHAKES_MAX.saturating_sub(plane.handshakes.available_permits()) >= HANDSHAKES_TRUSTED;
        if busy && !incoming.remote_address_validated() {
            // Can only fail for validated addresses.
            incoming.retry().ok();
            continue;
        }
        match Arc::clone(&plane.handshakes).try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(Arc::clone(&plane).accept(incoming, permit));
            }
            Err(_) => incoming.refuse(),
        }
    }
}
