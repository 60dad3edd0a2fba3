//! A session: one proven connection with one peer, from `Connected` to `Disconnected`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use quinn::{Connection, RecvStream, SendStream};
use shoal_proto::{
    peer::{Contact, PeerId},
    wire::{self, FRAME_BYTES_MAX, Message},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    PlaneEvent, SendError,
    close::Close,
    endpoint::Inner,
    frame::{self, FrameError},
    handshake::{Control, GIVEN_UP},
    limits::{self, QUEUE_MESSAGES, STALL_DEADLINE},
    peers::Occupant,
    reply::Reply,
};

/// Most messages that are written at once.
const BATCH_MESSAGES: usize = 64;
/// Batches are cut at about this size, in bytes.
const BATCH_BYTES: usize = 4 * FRAME_BYTES_MAX;
/// Most bytes of a request stream: a small frame and its end.
const ASK_BYTES_MAX: usize = 256;

/// What others need to use a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: PeerId,
    pub(super) connection: Connection,
    queue: mpsc::Sender<Message>,
    /// Fires when the end of the session was reported.
    reported: CancellationToken,
}

impl Session {
    /// A session and the messages that are queued for it.
    pub(super) fn new(peer: PeerId, connection: Connection) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (queue, queued) = mpsc::channel(QUEUE_MESSAGES);
        (Arc::new(Self { peer, connection, queue, reported: CancellationToken::new() }), queued)
    }

    /// The peer and the address at which it is reached.
    pub(super) fn contact(&self) -> Contact {
        let address = self.connection.remote_address();
        // A socket for both IP versions names IPv4 peers by mapped IPv6 addresses.
        Contact { peer: self.peer, address: (address.ip().to_canonical(), address.port()).into() }
    }

    /// Queues a message. A peer that lets its queue run full is cut off.
    pub(super) fn send(&self, message: Message) -> Result<(), SendError> {
        self.queue.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                tracing::warn!(peer = %self.peer, "peer does not take its messages, closing the connection");
                Close::Slow.apply(&self.connection);
                SendError::Full
            }
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
        })
    }
}

impl Occupant for Session {
    fn peer(&self) -> PeerId {
        self.peer
    }

    fn is_live(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// What keeps a session running; consumed by [`run`].
#[derive(Debug)]
pub(super) struct Running {
    pub(super) session: Arc<Session>,
    pub(super) control: Control,
    pub(super) queued: mpsc::Receiver<Message>,
    /// The peer's former session, whose end comes first.
    pub(super) replaces: Option<Arc<Session>>,
    /// Counts the connection.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Runs a session to its end. Events come in order: `Connected`, what the peer sends, `Disconnected`.
pub(super) async fn run(plane: Arc<Inner>, running: Running) {
    let Running { session, mut control, queued, replaces, permit } = running;
    limits::widen(&session.connection);
    if let Err(error) = control.confirm().await {
        // The session is in its slot: it ends like any other, a moment later.
        tracing::debug!(peer = %session.peer, %error, "connection lost at its beginning");
    }
    if let Some(former) = replaces {
        Close::Replaced.apply(&former.connection);
        former.reported.cancelled().await;
    }
    let contact = session.contact();
    tracing::debug!(peer = %contact.peer, address = %contact.address, "peer connected");
    // A failed send of an event means that nobody listens any more: the session then ends like any other.
    if plane.events.send(PlaneEvent::Connected { contact, place: control.place }).await.is_ok() {
        let close = serve(&plane, &session, control, queued).await;
        close.apply(&session.connection);
    }
    let reason = session.connection.close_reason();
    drop(permit);
    let peer = session.peer;
    tracing::debug!(%peer, reason = reason.map(tracing::field::display), "peer disconnected");
    let told = plane.events.send(PlaneEvent::Disconnected { peer }).await;
    plane.peers().ended(&session);
    session.reported.cancel();
    if told.is_err() {
        tracing::trace!(%peer, "nobody listens to the data plane any more");
    }
}

/// Carries messages and requests until one of them fails or the connection ends.
async fn serve(plane: &Inner, session: &Session, control: Control, queued: mpsc::Receiver<Message>) -> Close {
    let Control { send, receive, .. } = control;
    tokio::select! {
        close = read_messages(plane, session.peer, receive) => close,
        close = write_messages(send, queued) => close,
        close = take_requests(plane, session) => close,
        _ = session.connection.closed() => Close::Lost,
    }
}

async fn read_messages(plane: &Inner, peer: PeerId, mut stream: RecvStream) -> Close {
    let mut body = Vec::new();
    loop {
        match frame::read_body(&mut stream, &mut body).await {
            Ok(()) => {}
            Err(FrameError::Stream(_)) => return Close::Lost,
            Err(FrameError::Wire(error)) => {
                tracing::warn!(%peer, %error, "peer breaks the protocol, closing the connection");
                return Close::Protocol;
            }
        }
        let message = match wire::decode_message(&body) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%peer, %error, "peer breaks the protocol, closing the connection");
                return Close::Protocol;
            }
        };
        if plane.events.send(PlaneEvent::Message { peer, message }).await.is_err() {
            return Close::Shutdown;
        }
    }
}

async fn write_messages(mut stream: SendStream, mut queued: mpsc::Receiver<Message>) -> Close {
    let mut batch = Vec::with_capacity(BATCH_MESSAGES);
    loop {
        if queued.recv_many(&mut batch, BATCH_MESSAGES).await == 0 {
            return Close::Hangup;
        }
        let mut messages = batch.drain(..).peekable();
        while messages.peek().is_some() {
            let mut bytes = Vec::new();
            while bytes.len() < BATCH_BYTES
                && let Some(message) = messages.next()
            {
                bytes.extend_from_slice(&wire::encode_message(&message));
            }
            match timeout(STALL_DEADLINE, stream.write_chunk(Bytes::from(bytes))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Close::Lost,
                Err(_) => return Close::Slow,
            }
        }
    }
}

/// Takes the peer's request streams. Their number is bounded by the connection's stream limit, which counts a stream
/// until its answer ends.
async fn take_requests(plane: &Inner, session: &Session) -> Close {
    // Not tasks of their own: when the session ends, none of them may report a request any more.
    let mut requests = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = session.connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let reply = Reply::new(send, plane.upload.clone());
                    requests.push(take_request(session.peer, receive, reply, &plane.events));
                }
                Err(_) => return Close::Lost,
            },
            Some(()) = requests.next() => {}
        }
    }
}

/// Reads one request. A broken one only costs its own stream: `reply` resets it when dropped.
async fn take_request(peer: PeerId, mut stream: RecvStream, reply: Reply, events: &mpsc::Sender<PlaneEvent>) {
    let ask = match timeout(STALL_DEADLINE, stream.read_to_end(ASK_BYTES_MAX)).await {
        Ok(Ok(bytes)) => match wire::split_frame(&bytes) {
            Ok(Some((body, []))) => wire::decode_ask(body).ok(),
            Ok(_) | Err(_) => None,
        },
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(ask) = ask else {
        tracing::debug!(%peer, "request stream without a request");
        // The stream may be gone already.
        stream.stop(GIVEN_UP).ok();
        return;
    };
    // If nobody listens, the event and the reply in it are dropped, which resets the stream.
    events.send(PlaneEvent::Asked { peer, ask, reply }).await.ok();
}
