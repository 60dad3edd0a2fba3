//! The first exchange on a new connection: both ends prove the cluster secret.
//!
//! The dialer opens the control stream and says [`Hello`]; the listener checks it and answers with its own; the dialer
//! checks that and confirms with one byte. Proofs are bound to this TLS session and to the role, so that they can be
//! neither relayed nor reflected. Before its proof passed, nothing of a peer is read but this, and nothing is answered.

use quinn::{Connection, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use shoal_proto::{
    peer::{PeerId, Place},
    wire::{self, Hello, VERSION, WireError},
};

use super::{
    close::Close,
    frame::{self, FrameError},
    tls,
};
use crate::secret::{Role, Secret};

/// Label of the TLS exporter that proofs are bound to.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-shoal-1";
/// The dialer's confirmation that the listener's proof passed.
const READY: u8 = 1;
/// Messages go before the bytes of chunks.
const CONTROL_PRIORITY: i32 = 1;

/// The two directions of a connection's control stream.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
    /// Where the peer stands, as it says.
    pub(super) place: Place,
    /// Whether the peer waits for a confirmation.
    confirm: bool,
}

impl Control {
    /// Tells a listener that its proof passed; nothing to do for the listener itself.
    pub(super) async fn confirm(&mut self) -> Result<(), WriteError> {
        if std::mem::take(&mut self.confirm) { self.send.write_all(&[READY]).await } else { Ok(()) }
    }
}

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the peer's certificate is not one of a node")]
    Certificate,
    #[error("the peer does not know the cluster secret; give all nodes the same secret file")]
    Proof,
    #[error("the peer has not confirmed the handshake")]
    Unconfirmed,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the connection ended in the handshake: {0}")]
    Read(#[from] ReadExactError),
    #[error("the connection ended in the handshake: {0}")]
    Write(#[from] WriteError),
    #[error("the connection ended in the handshake: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("no key material for the proof of the secret")]
    Exporter,
}

impl HandshakeError {
    /// What the peer is told.
    pub(super) const fn close(&self) -> Close {
        match self {
            Self::Certificate | Self::Unconfirmed => Close::Protocol,
            Self::Proof | Self::Exporter => Close::Proof,
            Self::Wire(WireError::Version(_)) => Close::Version,
            Self::Wire(_) => Close::Protocol,
            Self::Read(_) | Self::Write(_) | Self::Connection(_) => Close::Lost,
        }
    }
}

impl From<FrameError> for HandshakeError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Wire(error) => Self::Wire(error),
            FrameError::Stream(error) => Self::Read(error),
        }
    }
}

/// One end of the exchange.
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    secret: &'a Secret,
    /// Where this node stands.
    place: Place,
    exporter: [u8; 32],
    control: Control,
    /// The other end.
    pub(super) peer: PeerId,
}

impl<'a> Handshake<'a> {
    /// Opens the control stream, says hello, and checks the answer. The caller goes on by [`Self::into_control`].
    pub(super) async fn dial(
        connection: &Connection,
        secret: &'a Secret,
        place: Place,
    ) -> Result<Self, HandshakeError> {
        let (send, receive) = connection.open_bi().await?;
        let mut handshake = Self::new(connection, secret, place, send, receive)?;
        handshake.hello(Role::Dialer).await?;
        handshake.check(Role::Listener).await?;
        Ok(handshake)
    }

    /// Takes the control stream and checks the dialer's proof. The caller answers by [`Self::answer`].
    pub(super) async fn accept(
        connection: &Connection,
        secret: &'a Secret,
        place: Place,
    ) -> Result<Self, HandshakeError> {
        let (send, receive) = connection.accept_bi().await?;
        let mut handshake = Self::new(connection, secret, place, send, receive)?;
        handshake.check(Role::Dialer).await?;
        Ok(handshake)
    }

    fn new(
        connection: &Connection,
        secret: &'a Secret,
        place: Place,
        send: SendStream,
        receive: RecvStream,
    ) -> Result<Self, HandshakeError> {
        let peer = tls::remote_peer(connection).ok_or(HandshakeError::Certificate)?;
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, EXPORTER_LABEL, b"").map_err(|_| HandshakeError::Exporter)?;
        // Fails only if the stream is gone; the next write says so.
        send.set_priority(CONTROL_PRIORITY).ok();
        let control = Control { send, receive, place: Place::default(), confirm: false };
        Ok(Self { secret, place, exporter, control, peer })
    }

    async fn hello(&mut self, role: Role) -> Result<(), HandshakeError> {
        let hello = Hello { version: VERSION, proof: self.secret.prove(&self.exporter, role), place: self.place };
        Ok(self.control.send.write_all(&wire::encode_hello(&hello)).await?)
    }

    async fn check(&mut self, role: Role) -> Result<(), HandshakeError> {
        let mut body = Vec::new();
        frame::read_body(&mut self.control.receive, &mut body).await?;
        let hello = wire::decode_hello(&body)?;
        if !self.secret.check(&self.exporter, role, &hello.proof) {
            return Err(HandshakeError::Proof);
        }
        self.control.place = hello.place;
        Ok(())
    }

    /// The control stream of a dialer whose peer has proven the secret; [`Control::confirm`] is its next step.
    pub(super) fn into_control(self) -> Control {
        Control { confirm: true, ..self.control }
    }

    /// The listener's last step: says hello and waits for the confirmation.
    pub(super) async fn answer(mut self) -> Result<Control, HandshakeError> {
        self.hello(Role::Listener).await?;
        let mut ready = [0];
        self.control.receive.read_exact(&mut ready).await?;
        if ready == [READY] { Ok(self.control) } else { Err(HandshakeError::Unconfirmed) }
    }
}

/// Stream error code of a request or answer that was given up.
pub(super) const GIVEN_UP: VarInt = VarInt::from_u32(1);
