//! The node's Ed25519 key: who it is on both planes, and what signs its claims.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use libp2p::identity::{Keypair, PublicKey, ed25519};
use sha2::{Digest as _, Sha256};
use shoal_proto::{claim::Signature, peer::PeerId};

/// A key file is 68 bytes; whatever is much larger is not one.
const FILE_BYTES_MAX: u64 = 1024;

/// One node's key pair. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
    secret: ed25519::Keypair,
    peer: PeerId,
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {verb} the node key {}: {source}", path.display())]
    Io {
        /// What was tried: `read` or `create`.
        verb: &'static str,
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else, or an other kind of key.
    #[error("{} is not an Ed25519 node key; restore it, or remove it to let the node take a new identity", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
}

impl Identity {
    /// Reads the key at `path`, or creates it there (mode 0600, whole or not at all) if nothing is there yet.
    ///
    /// The file holds libp2p's protobuf encoding of the key pair, raw. A file that others may read is closed to them.
    ///
    /// # Errors
    /// [`IdentityError`] if the file cannot be read or created or holds no Ed25519 key; a bad key is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match File::open(path) {
            Ok(file) => Self::read(&file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate();
                identity.write(path).map_err(|source| IdentityError::Io {
                    verb: "create",
                    path: path.to_owned(),
                    source,
                })?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::Io { verb: "read", path: path.to_owned(), source }),
        }
    }

    /// A new random identity, kept nowhere.
    #[must_use]
    pub fn generate() -> Self {
        Self::new(ed25519::Keypair::generate())
    }

    /// The public half: who this node is.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// The key pair as libp2p wants it, for its transports and certificates.
    #[must_use]
    pub const fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = [0; 64];
        // Ed25519 signatures are 64 bytes; libp2p hands them out as a vector.
        signature.copy_from_slice(&self.secret.sign(message));
        Signature(signature)
    }

    /// A key for `purpose` that nobody else has, the same in each process of this node.
    #[must_use]
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(purpose);
        hash.update(self.secret.secret());
        hash.finalize().into()
    }

    fn new(secret: ed25519::Keypair) -> Self {
        let peer = PeerId(secret.public().to_bytes());
        Self { keypair: Keypair::from(secret.clone()), secret, peer }
    }

    fn read(file: &File, path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io { verb: "read", path: path.to_owned(), source };
        let mode = file.metadata().map_err(io_error)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format_args!("{:o}", mode & 0o777), "node key was open to others: closing it");
            // A volume manager may own the mode (and a read-only mount refuses): the key still works.
            if let Err(error) = file.set_permissions(fs::Permissions::from_mode(0o600)) {
                tracing::warn!(path = %path.display(), %error, "cannot close the node key to others");
            }
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error)?;
        Keypair::from_protobuf_encoding(&bytes)
            .ok()
            .and_then(|keypair| keypair.try_into_ed25519().ok())
            .map(Self::new)
            .ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let temporary = PathBuf::from(name);
        let bytes = self.keypair.to_protobuf_encoding().map_err(io::Error::other)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer)
    }
}

/// Whether `signature` is `peer`'s over `message`.
#[must_use]
pub fn verify(peer: &PeerId, message: &[u8], signature: &Signature) -> bool {
    ed25519::PublicKey::try_from_bytes(&peer.0).is_ok_and(|key| key.verify(message, &signature.0))
}

/// libp2p's name for the same key; none if the 32 bytes are no Ed25519 public key.
#[must_use]
pub fn to_libp2p(peer: &PeerId) -> Option<libp2p::PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&peer.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The Ed25519 key inside a libp2p peer name; none if the name is a hash or holds another kind of key.
#[must_use]
pub fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    let multihash: &libp2p::multihash::Multihash<64> = peer.as_ref();
    // Code 0 is the identity function: the multihash is the encoded public key itself.
    if multihash.code() != 0 {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(multihash.digest()).ok()?;
    Some(PeerId(key.try_into_ed25519().ok()?.to_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_the_same_peer_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let first = Identity::load_or_create(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.peer(), second.peer());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing but the key is left behind");
    }

    #[test]
    fn a_key_that_others_may_read_is_closed_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let identity = Identity::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().peer(), identity.peer());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        for damage in [b"".as_slice(), b"not a key", &[0; 68]] {
            fs::write(&path, damage).unwrap();
            assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Malformed { .. })));
            assert_eq!(fs::read(&path).unwrap(), damage);
        }
    }

    #[test]
    fn a_key_in_a_missing_directory_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("node.key");
        let error = Identity::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("missing/node.key"), "{error}");
    }

    #[test]
    fn a_signature_holds_for_its_author_and_message_only() {
        let (author, other) = (Identity::generate(), Identity::generate());
        let signature = author.sign(b"states");
        assert!(verify(&author.peer(), b"states", &signature));
        assert!(!verify(&author.peer(), b"other states", &signature));
        assert!(!verify(&other.peer(), b"states", &signature));
        let mut forged = signature;
        forged.0[0] ^= 1;
        assert!(!verify(&author.peer(), b"states", &forged));
    }

    #[test]
    fn peer_names_translate_to_libp2p_and_back() {
        let identity = Identity::generate();
        let name = to_libp2p(&identity.peer()).unwrap();
        assert_eq!(name, identity.keypair().public().to_peer_id());
        assert_eq!(from_libp2p(&name), Some(identity.peer()));
    }

    #[test]
    fn a_libp2p_name_without_an_ed25519_key_has_no_translation() {
        assert_eq!(from_libp2p(&libp2p::PeerId::random()), None);
    }

    #[test]
    fn an_identity_prints_no_secret() {
        let identity = Identity::generate();
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.peer()));
    }
}
