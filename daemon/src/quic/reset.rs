//! Stateless resets (RFC 9000, section 10.3): after a crash and a restart, this node tells peers that still send to its former
//! process that the connection is gone. Without them a peer would wait for its idle timeout, and a pull with it.

use std::sync::Arc;

use hmac::{Hmac, Mac};
use quinn::{EndpointConfig, crypto};
use quinn_proto::HashedConnectionIdGenerator;
use sha2::Sha256;

use crate::{identity::Identity, secret::keyed};

/// The key of reset tokens. It outlives the process, since it follows from the node's own.
struct ResetKey(Hmac<Sha256>);

impl crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(&self.code(data).finalize().into_bytes());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), crypto::CryptoError> {
        self.code(data).verify_slice(signature).map_err(|_| crypto::CryptoError)
    }
}

impl ResetKey {
    fn code(&self, data: &[u8]) -> Hmac<Sha256> {
        let mut code = self.0.clone();
        code.update(data);
        code
    }
}

/// Parameters of an endpoint whose connections a later process of the same node can end.
pub(super) fn endpoint(identity: &Identity) -> EndpointConfig {
    let key = identity.derive(b"shoal stateless reset 1");
    let mut config = EndpointConfig::new(Arc::new(ResetKey(keyed(&key))));
    // Only for ids that it could have given itself, a node sends resets.
    let id_key =
        identity.derive(b"shoal connection ids 1").iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::HmacKey as _;

    #[test]
    fn tokens_are_the_same_for_one_node_and_others_for_another() {
        let token = |identity: &Identity, data: &[u8]| {
            let mut out = [0; 32];
            let key = ResetKey(keyed(&identity.derive(b"x")));
            key.sign(data, &mut out);
            assert!(key.verify(data, &out).is_ok() && key.verify(b"other", &out).is_err());
            out
        };
        let (node, other) = (Identity::generate(), Identity::generate());
        assert_eq!(token(&node, b"id"), token(&node.clone(), b"id"));
        assert_ne!(token(&node, b"id"), token(&node, b"di"));
        assert_ne!(token(&node, b"id"), token(&other, b"id"));
    }
}
