//! Why a connection is closed: the application codes that peers and packet captures see.

use quinn::{Connection, ConnectionError, VarInt};

/// A reason to close a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// This node stops.
    Shutdown,
    /// The node does not need this peer any more.
    Hangup,
    /// The peer's protocol version is another.
    Version,
    /// The peer does not know the cluster secret.
    Proof,
    /// The peer sent what no sound peer sends.
    Protocol,
    /// Both ends dialed at once, and the other connection stays.
    Duplicate,
    /// The peer has a newer connection.
    Replaced,
    /// The peer does not take its messages.
    Slow,
    /// This node has as many connections as it may.
    Limit,
    /// The handshake took too long.
    Late,
    /// The connection or its control stream broke.
    Lost,
}

impl Close {
    const ALL: [Self; 11] = [
        Self::Shutdown,
        Self::Hangup,
        Self::Version,
        Self::Proof,
        Self::Protocol,
        Self::Duplicate,
        Self::Replaced,
        Self::Slow,
        Self::Limit,
        Self::Late,
        Self::Lost,
    ];

    const fn code(self) -> u32 {
        match self {
            Self::Shutdown => 0,
            Self::Hangup => 1,
            Self::Version => 2,
            Self::Proof => 3,
            Self::Protocol => 4,
            Self::Duplicate => 5,
            Self::Replaced => 6,
            Self::Slow => 7,
            Self::Limit => 8,
            Self::Late => 9,
            Self::Lost => 10,
        }
    }

    pub(super) const fn var_int(self) -> VarInt {
        VarInt::from_u32(self.code())
    }

    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Shutdown => "node stops",
            Self::Hangup => "not needed any more",
            Self::Version => "another protocol version",
            Self::Proof => "the cluster secret was not proven",
            Self::Protocol => "protocol violation",
            Self::Duplicate => "both ends dialed at once",
            Self::Replaced => "replaced by a newer connection",
            Self::Slow => "messages were not taken in time",
            Self::Limit => "too many connections",
            Self::Late => "handshake took too long",
            Self::Lost => "connection broke",
        }
    }

    /// The reason that a peer gave for closing a connection.
    pub(super) fn of_peer(error: &ConnectionError) -> Option<Self> {
        let ConnectionError::ApplicationClosed(close) = error else { return None };
        Self::ALL.into_iter().find(|known| known.var_int() == close.error_code)
    }

    /// Closes `connection`; a closed one keeps its first reason.
    pub(super) fn apply(self, connection: &Connection) {
        connection.close(self.var_int(), self.reason().as_bytes());
    }
}
