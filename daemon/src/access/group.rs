//! The key that all holders of one credential share, and proofs of it.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use shoal_proto::{digest::Digest, peer::PeerId};

use crate::{
    credentials::Credential,
    secret::{Secret, keyed},
};

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// Users whose passwords are tokens that last for hours and differ from node to node: Amazon's, Google's and Azure's. Holders
/// of such are told by the user alone.
const ROTATING: [&str; 3] = ["AWS", "oauth2accesstoken", "00000000-0000-0000-0000-000000000000"];

/// What the holders of one credential for one upstream have in common. Derived from the credential under the cluster secret:
/// it neither gives the credential away nor can be had without it. Prints nothing of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupKey([u8; KEY_BYTES]);

impl GroupKey {
    /// The key of those who hold `credential` for the upstream of this name.
    #[must_use]
    pub fn derive(secret: &Secret, upstream: &str, credential: &Credential) -> Self {
        let (kind, parts): (&str, [&str; 2]) = match credential {
            Credential::Basic { username, .. } if ROTATING.contains(&username.as_str()) => ("user", [username, ""]),
            Credential::Basic { username, password } => ("basic", [username, password]),
            Credential::Identity(token) => ("identity", [token, ""]),
            Credential::Bearer(token) => ("bearer", [token, ""]),
        };
        // Lengths keep the parts apart.
        let mut message = Vec::new();
        for part in [upstream, kind, parts[0], parts[1]] {
            message.extend_from_slice(&(part.len() as u64).to_le_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        Self(secret.group_key(&message))
    }

    /// Shows the other end of a connection that `prover` knows the key, for one digest. `exporter` is key material of the
    /// connection's TLS session.
    #[must_use]
    pub fn prove(&self, exporter: &[u8; 32], prover: PeerId, digest: &Digest) -> [u8; 32] {
        self.code(exporter, prover, digest).finalize().into_bytes().into()
    }

    /// Whether `proof` shows that. Constant time in the proof.
    #[must_use]
    pub fn check(&self, exporter: &[u8; 32], prover: PeerId, digest: &Digest, proof: &[u8; 32]) -> bool {
        self.code(exporter, prover, digest).verify_slice(proof).is_ok()
    }

    fn code(&self, exporter: &[u8; 32], prover: PeerId, digest: &Digest) -> Hmac<Sha256> {
        let mut code = self.keyed(b"shoal entitled 1\0", digest);
        code.update(exporter);
        code.update(&prover.0);
        code
    }

    fn keyed(&self, purpose: &[u8], digest: &Digest) -> Hmac<Sha256> {
        let mut code = keyed(&self.0);
        code.update(purpose);
        code.update(digest.to_string().as_bytes());
        code
    }

    /// A key that nobody else has.
    pub(super) fn random() -> Self {
        Self(rand::random())
    }

    /// The name under which the holders find one another: whoever has not the key learns nothing from it.
    #[must_use]
    pub fn name(&self, digest: &Digest) -> Digest {
        Digest::sha256(self.keyed(b"shoal name 1\0", digest).finalize().into_bytes().into())
    }

    /// Closes what the holders tell one another of a tag through nodes that may not see it; a key of its own for each tag.
    #[must_use]
    pub fn tag_key(&self, key: &Digest) -> [u8; 32] {
        self.keyed(b"shoal tag key 1\0", key).finalize().into_bytes().into()
    }

    /// For the ledger, which only its owner can read.
    pub(super) fn to_hex(self) -> String {
        Digest::sha256(self.0).hex()
    }

    /// The key of a ledger's line.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let digest: Digest = format!("sha256:{text}").parse().ok()?;
        digest.as_bytes().try_into().ok().map(Self)
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    fn key(upstream: &str, credential: &Credential) -> GroupKey {
        GroupKey::derive(&Secret::none(), upstream, credential)
    }

    #[test]
    fn holders_of_one_credential_have_one_key_and_others_have_another() {
        let ours = key("a.test", &basic("robot", "word"));
        assert_eq!(ours, key("a.test", &basic("robot", "word")));
        for (upstream, other) in [
            ("b.test", basic("robot", "word")),
            ("a.test", basic("robot", "other")),
            ("a.test", basic("robo", "tword")),
            ("a.test", Credential::Identity("word".to_owned())),
            ("a.test", Credential::Bearer("word".to_owned())),
        ] {
            assert_ne!(ours, key(upstream, &other), "{upstream} {other:?}");
        }
    }

    #[test]
    fn passwords_that_rotate_do_not_tell_their_holders_apart() {
        for user in ROTATING {
            assert_eq!(key("a.test", &basic(user, "monday")), key("a.test", &basic(user, "tuesday")));
        }
    }

    #[test]
    fn a_proof_holds_for_one_connection_one_end_and_one_digest() {
        let (key, other) = (key("a.test", &basic("a", "b")), key("a.test", &basic("a", "c")));
        let (peer, digest) = (PeerId([1; 32]), Digest::sha256([2; 32]));
        let proof = key.prove(&[7; 32], peer, &digest);
        assert!(key.check(&[7; 32], peer, &digest, &proof));
        assert!(!other.check(&[7; 32], peer, &digest, &proof));
        assert!(!key.check(&[8; 32], peer, &digest, &proof));
        assert!(!key.check(&[7; 32], PeerId([2; 32]), &digest, &proof));
        assert!(!key.check(&[7; 32], peer, &Digest::sha256([3; 32]), &proof));
    }

    #[test]
    fn names_are_the_same_for_holders_of_one_key_and_for_nobody_else() {
        let (key, other) = (key("a.test", &basic("a", "b")), key("a.test", &basic("a", "c")));
        let digest = Digest::sha256([2; 32]);
        assert_eq!(key.name(&digest), key.name(&digest));
        for different in [other.name(&digest), key.name(&Digest::sha256([3; 32])), digest] {
            assert_ne!(key.name(&digest), different);
        }
    }

    #[test]
    fn a_key_survives_the_ledger_and_prints_nothing() {
        let key = key("a.test", &basic("a", "b"));
        assert_eq!(GroupKey::from_hex(&key.to_hex()), Some(key));
        assert_eq!(format!("{key:?}"), "GroupKey");
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &key.to_hex()[..63]] {
            assert_eq!(GroupKey::from_hex(bad), None, "{bad}");
        }
    }
}
