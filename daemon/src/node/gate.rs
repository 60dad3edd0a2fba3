//! Which peers are let near which blobs: public ones are open to all, those of a credential to peers that prove that they
//! hold it, private ones to nobody.

use std::{collections::HashMap, sync::Arc};

use shoal_proto::{
    digest::Digest,
    peer::PeerId,
    wire::{Join, Message},
};

use crate::access::{GroupKey, Ledger, Scope, Share};

/// Proofs that are kept for one peer. Blobs beyond it gets from the origin.
const PROOFS_MAX: usize = 4096;

/// What peers have shown.
#[derive(Debug)]
pub(super) struct Gate {
    ledger: Arc<Ledger>,
    me: PeerId,
    peers: HashMap<PeerId, Shown>,
    /// The digests behind names that are others.
    names: HashMap<Digest, Digest>,
}

#[derive(Debug)]
struct Shown {
    /// Key material of the connection.
    exporter: [u8; 32],
    /// Not looked at until the digest is asked for: it may be unknown here until then.
    proofs: HashMap<Digest, [u8; 32]>,
    /// The key of each that held. It is looked at again each time: a fetch that fails takes its key away from a digest.
    proven: HashMap<Digest, GroupKey>,
}

impl Gate {
    pub(super) fn new(ledger: Arc<Ledger>, me: PeerId) -> Self {
        Self { ledger, me, peers: HashMap::new(), names: HashMap::new() }
    }

    /// A connection with a peer begins; `exporter` is key material of its TLS session.
    pub(super) fn connected(&mut self, peer: PeerId, exporter: [u8; 32]) {
        self.peers.insert(peer, Shown { exporter, proofs: HashMap::new(), proven: HashMap::new() });
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }

    /// A peer says that it is entitled to a blob.
    pub(super) fn shown(&mut self, peer: PeerId, digest: Digest, proof: [u8; 32]) {
        let Some(shown) = self.peers.get_mut(&peer) else { return };
        if shown.proofs.len() >= PROOFS_MAX && !shown.proofs.contains_key(&digest) {
            // Proofs of blobs that never came here pile up; a connection lasts for weeks. The peer shows anew what it wants.
            shown.proofs.clear();
        }
        shown.proofs.insert(digest, proof);
    }

    /// Whether a peer may see what is here of a blob; `here` says whether anything is.
    pub(super) fn admits(&mut self, peer: PeerId, digest: &Digest, here: bool) -> bool {
        let keys = match self.ledger.share(digest) {
            Share::All => return true,
            Share::Nobody => return !here,
            Share::Groups(keys) => keys,
        };
        let Some(shown) = self.peers.get_mut(&peer) else { return false };
        if shown.proven.get(digest).is_some_and(|key| keys.contains(key)) {
            return true;
        }
        let Some(proof) = shown.proofs.get(digest) else { return false };
        let Some(key) = keys.into_iter().find(|key| key.check(&shown.exporter, peer, digest, proof)) else {
            return false;
        };
        shown.proofs.remove(digest);
        if shown.proven.len() >= PROOFS_MAX {
            shown.proven.clear();
        }
        shown.proven.insert(*digest, key);
        true
    }

    /// What has to be said to a peer before it is asked about a blob.
    pub(super) fn entitlement(&self, peer: PeerId, digest: &Digest) -> Option<Message> {
        let Some(Scope::Node(key)) = self.ledger.fetching(digest) else { return None };
        let shown = self.peers.get(&peer)?;
        Some(Message::Entitled { digest: *digest, proof: key.prove(&shown.exporter, self.me, digest) })
    }

    /// Whether no peer may know of a blob.
    pub(super) fn hides(&self, digest: &Digest) -> bool {
        self.ledger.share(digest) == Share::Nobody
    }

    /// The name of a blob towards trackers and the DHT.
    pub(super) fn name(&mut self, digest: &Digest) -> Digest {
        let name = self.ledger.name(digest);
        if name != *digest {
            self.names.insert(name, *digest);
        }
        name
    }

    /// A message for a tracker, as it may see it.
    pub(super) fn veil(&mut self, mut message: Message) -> Message {
        if let Message::Join(Join { digest, .. }) | Message::Leave { digest } = &mut message {
            *digest = self.name(digest);
        }
        message
    }

    /// A message of a tracker, as this node's machine knows the blob.
    pub(super) fn unveil(&self, mut message: Message) -> Message {
        if let Message::Joined { digest, .. } | Message::Revoked { digest, .. } = &mut message
            && let Some(known) = self.names.get(digest)
        {
            *digest = *known;
        }
        message
    }

    /// Forgets names of blobs that are not in use any more.
    pub(super) fn retain(&mut self, in_use: impl Fn(&Digest) -> bool) {
        self.names.retain(|_, digest| in_use(digest));
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::wire::Epoch;

    use super::*;
    use crate::{access::GroupKey, credentials::Credential, secret::Secret};

    const DIGEST: Digest = Digest::sha256([1; 32]);
    const US: PeerId = PeerId([1; 32]);
    const THEM: PeerId = PeerId([2; 32]);
    const LINK: [u8; 32] = [9; 32];

    fn node(password: &str) -> Scope {
        let credential = Credential::Basic { username: "robot".to_owned(), password: password.to_owned() };
        Scope::Node(GroupKey::derive(&Secret::none(), "a.test", &credential))
    }

    /// The gate of a node that fetches the blob under a scope and has one peer.
    fn gate(me: PeerId, peer: PeerId, scope: Scope) -> Gate {
        let ledger = Arc::new(Ledger::default());
        assert!(!ledger.begin(&DIGEST, scope));
        let mut gate = Gate::new(ledger, me);
        gate.connected(peer, LINK);
        gate
    }

    /// What the one says to the other before it asks.
    fn show(from: &Gate, to: &mut Gate) {
        if let Some(Message::Entitled { digest, proof }) = from.entitlement(to.me, &DIGEST) {
            to.shown(from.me, digest, proof);
        }
    }

    #[test]
    fn peers_with_the_same_credential_see_one_another_and_others_do_not() {
        for (theirs, admitted) in
            [(node("a"), true), (node("b"), false), (Scope::Public, false), (Scope::Private, false)]
        {
            let (mut ours, theirs) = (gate(US, THEM, node("a")), gate(THEM, US, theirs));
            show(&theirs, &mut ours);
            assert_eq!(ours.admits(THEM, &DIGEST, true), admitted);
        }
    }

    #[test]
    fn public_content_is_for_all_and_private_content_for_nobody() {
        let mut public = gate(US, THEM, Scope::Public);
        assert!(public.admits(THEM, &DIGEST, true) && public.entitlement(THEM, &DIGEST).is_none());
        assert!(!public.hides(&DIGEST));
        let mut private = gate(US, THEM, Scope::Private);
        assert!(!private.admits(THEM, &DIGEST, true) && private.entitlement(THEM, &DIGEST).is_none());
        assert!(private.hides(&DIGEST));
    }

    #[test]
    fn trackers_see_a_name_and_the_machine_sees_the_digest() {
        for (scope, veiled) in [(Scope::Public, false), (node("a"), true), (Scope::Private, true)] {
            let mut gate = gate(US, THEM, scope);
            let Message::Leave { digest: name } = gate.veil(Message::Leave { digest: DIGEST }) else {
                panic!("not that")
            };
            assert_eq!(name != DIGEST, veiled, "{scope:?}");
            let answer = gate.unveil(Message::Revoked { digest: name, epoch: Epoch(1) });
            assert_eq!(answer, Message::Revoked { digest: DIGEST, epoch: Epoch(1) });
            gate.retain(|_| false);
            assert!(gate.names.is_empty());
        }
        assert_eq!(gate(US, THEM, node("a")).name(&DIGEST), gate(THEM, US, node("a")).name(&DIGEST));
        assert_ne!(gate(US, THEM, Scope::Private).name(&DIGEST), gate(THEM, US, Scope::Private).name(&DIGEST));
    }

    #[test]
    fn a_proof_may_come_before_the_blob_is_known() {
        let theirs = gate(THEM, US, node("a"));
        let mut ours = Gate::new(Arc::new(Ledger::default()), US);
        ours.connected(THEM, LINK);
        show(&theirs, &mut ours);
        assert!(ours.admits(THEM, &DIGEST, false), "there is nothing to see");
        assert!(!ours.ledger.begin(&DIGEST, node("a")));
        assert!(ours.admits(THEM, &DIGEST, true));
    }

    #[test]
    fn a_proof_of_a_key_that_a_blob_has_no_more_opens_nothing() {
        let (mut ours, theirs) = (gate(US, THEM, node("a")), gate(THEM, US, node("a")));
        show(&theirs, &mut ours);
        assert!(ours.admits(THEM, &DIGEST, true));
        // The fetch fails, and the next one is for holders of another credential.
        ours.ledger.ended(&DIGEST);
        assert!(!ours.ledger.begin(&DIGEST, node("b")));
        assert!(!ours.admits(THEM, &DIGEST, true));
    }

    #[test]
    fn proofs_of_blobs_that_never_came_leave_room_for_others() {
        let (mut ours, theirs) = (gate(US, THEM, node("a")), gate(THEM, US, node("a")));
        for number in 0..PROOFS_MAX {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            ours.shown(THEM, Digest::sha256(bytes), [0; 32]);
        }
        show(&theirs, &mut ours);
        assert!(ours.admits(THEM, &DIGEST, true));
        assert!(ours.peers[&THEM].proofs.len() <= PROOFS_MAX);
    }

    #[test]
    fn a_proof_is_good_for_its_connection_only() {
        let (mut ours, theirs) = (gate(US, THEM, node("a")), gate(THEM, US, node("a")));
        let Some(Message::Entitled { digest, proof }) = theirs.entitlement(US, &DIGEST) else { panic!("no proof") };
        ours.connected(THEM, [8; 32]);
        ours.shown(THEM, digest, proof);
        assert!(!ours.admits(THEM, &DIGEST, true), "that was said on another connection");
        let stranger = PeerId([3; 32]);
        ours.connected(stranger, LINK);
        ours.shown(stranger, digest, proof);
        assert!(!ours.admits(stranger, &DIGEST, true), "that was said by another");
        ours.connected(THEM, LINK);
        ours.shown(THEM, digest, proof);
        assert!(ours.admits(THEM, &DIGEST, true));
        ours.disconnected(THEM);
        assert!(!ours.admits(THEM, &DIGEST, true));
    }
}
