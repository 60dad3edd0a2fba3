//! What a record of a tag says, and to whom: trackers carry what not all of them may read.

use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce, aead::Aead as _, aead::Payload};
use shoal_proto::{
    digest::{Algorithm, Digest},
    tags::RECORD_BYTES_MAX,
};

use crate::{
    access::{GroupKey, Scope},
    origin::{MANIFEST_BYTES, Resolved},
};

const NONCE_BYTES: usize = 24;

/// Those who share one tag: its key, and how they write its record.
pub(super) struct Circle {
    key: Digest,
    group: Option<GroupKey>,
}

impl Circle {
    /// Those who may have under `scope` what is asked for by these `names`. None if the scope is nobody else's.
    pub(super) fn new(scope: &Scope, names: &[&str]) -> Option<Self> {
        // Lengths keep the names apart.
        let mut bytes = b"shoal tag key 1\0".to_vec();
        for name in names {
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        let plain = Digest::of(Algorithm::Sha256, &bytes);
        match scope {
            Scope::Public => Some(Self { key: plain, group: None }),
            Scope::Node(group) => Some(Self { key: group.name(&plain), group: Some(*group) }),
            Scope::Private => None,
        }
    }

    /// The tag towards trackers and the DHT.
    pub(super) const fn key(&self) -> Digest {
        self.key
    }

    /// A record's body: `DIGEST SIZE MEDIA-TYPE`, sealed if only the holders of a credential may read it. None if it would
    /// be too long.
    pub(super) fn write(&self, resolved: &Resolved) -> Option<Vec<u8>> {
        let text = format!("{} {} {}", resolved.digest, resolved.size, resolved.media_type);
        let body = match self.group {
            None => text.into_bytes(),
            Some(group) => {
                let nonce: [u8; NONCE_BYTES] = rand::random();
                let sealed = self.cipher(&group).encrypt(&XNonce::from(nonce), self.payload(text.as_bytes())).ok()?;
                [&nonce[..], &sealed].concat()
            }
        };
        (body.len() <= RECORD_BYTES_MAX).then_some(body)
    }

    /// What a record says; none if that is nothing sound, or nothing that one of the circle wrote.
    pub(super) fn read(&self, body: &[u8]) -> Option<Resolved> {
        let Some(group) = self.group else { return parse(body) };
        let (nonce, sealed) = body.split_first_chunk::<NONCE_BYTES>()?;
        let text = self.cipher(&group).decrypt(&XNonce::from(*nonce), self.payload(sealed)).ok()?;
        parse(&text)
    }

    fn cipher(&self, group: &GroupKey) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&group.tag_key(&self.key).into())
    }

    fn payload<'a>(&'a self, msg: &'a [u8]) -> Payload<'a, 'a> {
        Payload { msg, aad: self.key.as_bytes() }
    }
}

fn parse(text: &[u8]) -> Option<Resolved> {
    let mut words = std::str::from_utf8(text).ok()?.splitn(3, ' ');
    let (digest, size, media_type) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let size =
        size.parse().ok().filter(|bytes| *bytes <= MANIFEST_BYTES && size.bytes().all(|b| b.is_ascii_digit()))?;
    let sound = media_type.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    sound.then(|| Resolved { digest, size, media_type: media_type.to_owned(), warnings: Vec::new() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{credentials::Credential, secret::Secret};

    const NAMES: [&str; 4] = ["a.test", "team/x", "v1", "a/b, c/d"];

    fn node(password: &str) -> Scope {
        let credential = Credential::Basic { username: "robot".to_owned(), password: password.to_owned() };
        Scope::Node(GroupKey::derive(&Secret::none(), "a.test", &credential))
    }

    fn circle(scope: &Scope, names: &[&str]) -> Circle {
        Circle::new(scope, names).unwrap()
    }

    fn resolved() -> Resolved {
        let media_type = String::from("application/vnd.oci.image.index.v1+json");
        Resolved { digest: Digest::sha512([7; 64]), size: 1234, media_type, warnings: Vec::new() }
    }

    fn is_the_same(read: Option<Resolved>) -> bool {
        let Resolved { digest, size, media_type, .. } = resolved();
        read.is_some_and(|read| (read.digest, read.size, read.media_type) == (digest, size, media_type))
    }

    #[test]
    fn a_record_survives_for_those_who_share_the_tag() {
        for scope in [Scope::Public, node("word")] {
            let body = circle(&scope, &NAMES).write(&resolved()).unwrap();
            assert!(is_the_same(circle(&scope, &NAMES).read(&body)), "{scope:?}");
        }
        assert!(Circle::new(&Scope::Private, &NAMES).is_none());
    }

    #[test]
    fn whoever_lacks_the_credential_can_neither_find_nor_read_nor_write_its_records() {
        let (ours, theirs) = (circle(&node("word"), &NAMES), circle(&node("other"), &NAMES));
        let public = circle(&Scope::Public, &NAMES);
        let body = ours.write(&resolved()).unwrap();
        for stranger in [&theirs, &public] {
            assert_ne!(stranger.key(), ours.key());
            assert!(stranger.read(&body).is_none());
            assert!(ours.read(&stranger.write(&resolved()).unwrap()).is_none());
        }
        let digest = resolved().digest.to_string();
        assert!(!body.windows(digest.len()).any(|window| window == digest.as_bytes()));
    }

    #[test]
    fn whatever_decides_the_origins_answer_makes_another_key() {
        let key = circle(&Scope::Public, &NAMES).key();
        for names in [
            ["b.test", "team/x", "v1", "a/b, c/d"],
            ["a.test", "team/y", "v1", "a/b, c/d"],
            ["a.test", "team/x", "v2", "a/b, c/d"],
            ["a.test", "team/x", "v1", "c/d, a/b"],
            ["a.test", "team/", "xv1", "a/b, c/d"],
        ] {
            assert_ne!(circle(&Scope::Public, &names).key(), key, "{names:?}");
        }
    }

    #[test]
    fn a_changed_or_cut_record_is_refused() {
        let ours = circle(&node("word"), &NAMES);
        let body = ours.write(&resolved()).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(ours.read(&changed).is_none() && ours.read(&body[..at]).is_none(), "{at}");
        }
        let other_tag = circle(&node("word"), &["a.test", "team/x", "v2", "a/b, c/d"]);
        assert!(other_tag.read(&body).is_none());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let public = circle(&Scope::Public, &NAMES);
        let digest = format!("sha256:{}", "a".repeat(64));
        for text in [
            String::new(),
            " ".repeat(500),
            digest.clone(),
            format!("{digest} 5"),
            format!("{digest} -5 a/b"),
            format!("{digest} +5 a/b"),
            format!("{digest} {} a/b", MANIFEST_BYTES + 1),
            format!("{digest} 99999999999999999999 a/b"),
            format!("sha256:{} 5 a/b", "A".repeat(64)),
            format!("{digest} 5 a/b\r\nX-Evil: 1"),
            format!("{digest} 5 é"),
        ] {
            assert!(public.read(text.as_bytes()).is_none(), "{text}");
        }
        assert!(public.read(&[0xff; 100]).is_none());
        assert!(public.read(format!("{digest} 5 a/b").as_bytes()).is_some());
    }

    #[test]
    fn a_record_that_would_be_too_long_is_not_written() {
        let long = Resolved { media_type: "x".repeat(RECORD_BYTES_MAX), ..resolved() };
        for scope in [Scope::Public, node("word")] {
            assert!(circle(&scope, &NAMES).write(&long).is_none());
        }
    }
}
