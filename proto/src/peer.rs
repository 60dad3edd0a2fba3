//! Who takes part: node identities and where they are reached.

use std::{fmt, net::SocketAddr};

/// A node's identity: its Ed25519 public key. The libp2p `PeerId` of the same key is derived from it at the edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where in a cluster a node stands, as far as its configuration says: nodes of one zone are near each other, nodes of one
/// rack nearer still, and bytes between zones cost money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// The zone's number; 0 if it has no name. Nodes without a zone count as one zone.
    pub zone: u32,
    /// The rack's number inside its zone; 0 if it has no name. Nodes without a rack share none.
    pub rack: u32,
}

impl Place {
    /// The place of a zone's and a rack's name. Numbers are hashes of the names (FNV-1a, 32 bits): two names rarely share
    /// one, and if they do, their nodes are taken for neighbours, which costs bytes but no safety.
    #[must_use]
    pub fn named(zone: Option<&str>, rack: Option<&str>) -> Self {
        Self { zone: zone.map_or(0, number), rack: rack.map_or(0, number) }
    }

    /// Whether both are of one zone.
    #[must_use]
    pub const fn shares_zone(self, other: Self) -> bool {
        self.zone == other.zone
    }

    /// Whether both are of one known rack.
    #[must_use]
    pub const fn shares_rack(self, other: Self) -> bool {
        self.zone == other.zone && self.rack == other.rack && self.rack != 0
    }
}

/// A name's number, never 0.
fn number(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)).max(1)
}

/// A peer and the address of its data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contact {
    /// Who.
    pub peer: PeerId,
    /// Where its QUIC endpoint listens.
    pub address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_without_names_share_a_zone_and_no_rack() {
        let (nowhere, here) = (Place::default(), Place::named(Some("eu-1"), Some("r7")));
        assert!(nowhere.shares_zone(nowhere) && !nowhere.shares_rack(nowhere));
        assert!(here.shares_rack(here) && !here.shares_zone(nowhere));
        assert!(!here.shares_rack(Place::named(Some("eu-2"), Some("r7"))));
    }
}
