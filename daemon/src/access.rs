//! Who may have which content.
//!
//! Storage is shared by digest, the right to it is not. Each upstream has a [`Policy`]; what a request may see and whom its
//! content may go to is its [`Scope`], which follows from the policy and from the credential that the origin is shown:
//!
//! | policy | content | whom it goes to |
//! |---|---|---|
//! | `public` | what the origin gives to anybody; no credential is used | all peers |
//! | `node` | what the origin gives to this node's credential | peers that prove that they hold the same credential |
//! | `private` | what the origin gives to the client's own credential | no peer; clients whom the origin lets have it just now |
//!
//! The [`Ledger`] remembers under which scopes each digest was had. A request under another scope than those has to ask the
//! origin first, so that knowing a digest opens nothing. What is not known to be allowed is not.

mod group;
mod ledger;

pub use self::{
    group::GroupKey,
    ledger::{Ledger, Share, Standing},
};

/// How the content of an upstream is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Anybody may have it.
    Public,
    /// Nodes that hold this node's credential may.
    Node,
    /// Clients that the origin lets have it.
    Private,
}

impl Policy {
    /// All of them, as they are written in the configuration.
    pub const NAMES: [(&'static str, Self); 3] =
        [("public", Self::Public), ("node", Self::Node), ("private", Self::Private)];

    /// As it is written in the configuration.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, policy)| *policy)
    }

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Node => "node",
            Self::Private => "private",
        }
    }
}

/// Under which right content is fetched, kept and handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody's.
    Public,
    /// That of the nodes which hold one credential.
    Node(GroupKey),
    /// That of single clients: nobody else's.
    Private,
}
