//! The cluster secret: what every member knows and nobody else.
//!
//! A file holds one or more keys of 32 bytes, each in base64 on its own line; blank lines and lines that start with `#`
//! are skipped. The first key is used to prove membership and to derive the keys of the DHT; proofs under any key are
//! accepted, so that a cluster can rotate: add the new key below the old one everywhere, then swap, then drop the old.
//!
//! The DHT's transport knows one key only (libp2p's private networks have no way to try several): while the swap rolls
//! through the cluster, nodes on the two sides of it do not meet in the DHT.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shoal_proto::digest::Digest;

/// Bytes of one key.
const KEY_BYTES: usize = 32;

/// Keys that one file may hold. A rotation needs two.
const KEYS_MAX: usize = 16;

/// A secret file with comments is far smaller; whatever is larger is something else.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The key of a cluster without a secret. Public by design: such a cluster lives on loopback only.
const NO_KEY: [u8; KEY_BYTES] = *b"shoal without a secret: loopback";

/// The keys of a cluster. Cheap to clone; prints no key.
#[derive(Clone)]
pub struct Secret {
    /// At least one; the first is ours to use.
    keys: Arc<[[u8; KEY_BYTES]]>,
    none: bool,
}

/// Which end of a connection proves that it knows the secret. A proof of one end is no proof of the other, so that it
/// cannot be reflected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end that dialed.
    Dialer,
    /// The end that was dialed.
    Listener,
}

impl Role {
    const fn purpose(self) -> &'static [u8] {
        match self {
            Self::Dialer => b"shoal member 1 dialer\0",
            Self::Listener => b"shoal member 1 listener\0",
        }
    }
}

/// Why a secret file is refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system refused.
    #[error("cannot read the secret file {}: {source}", path.display())]
    Io {
        /// The secret file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may use the file.
    #[error("the secret file {} is open to group or others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The secret file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line holds no key.
    #[error("line {line} of the secret file {} is not base64 of 32 bytes; `shoal key generate` prints a good one", path.display())]
    Line {
        /// The secret file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// Nothing but blank lines and comments.
    #[error("the secret file {} holds no key; `shoal key generate` prints one", path.display())]
    Empty {
        /// The secret file.
        path: PathBuf,
    },
    /// More than a rotation could need.
    #[error("the secret file {} is too large: it may hold {KEYS_MAX} keys", path.display())]
    TooLarge {
        /// The secret file.
        path: PathBuf,
    },
}

impl Secret {
    /// Reads the keys at `path`. Links are followed: what counts is the mode of the file at their end.
    ///
    /// # Errors
    /// [`SecretError`] if the file cannot be read, is open to group or others, or holds anything but good keys.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let io_error = |source| SecretError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        // The open file is asked, not the path: nobody can swap it in between.
        let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(SecretError::TooLarge { path: path.to_owned() });
        }
        Self::parse(&bytes, path)
    }

    /// The secret of a cluster that has none: one fixed, public key. For clusters on loopback only.
    #[must_use]
    pub fn none() -> Self {
        Self { keys: Arc::new([NO_KEY]), none: true }
    }

    /// Whether this is [`Self::none`], which protects nothing.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.none
    }

    /// A new random key as a line for a secret file, without the line end.
    #[must_use]
    pub fn generate_line() -> String {
        STANDARD.encode(rand::random::<[u8; KEY_BYTES]>())
    }

    /// The key of the libp2p private network, derived from the first key.
    #[must_use]
    pub fn pre_shared_key(&self) -> [u8; 32] {
        code(&self.keys[0], b"shoal private network 1\0", &[]).finalize().into_bytes().into()
    }

    /// Where `digest` lives in the DHT: a keyed hash, so that a DHT node learns no names.
    #[must_use]
    pub fn blob_key(&self, digest: &Digest) -> [u8; 32] {
        code(&self.keys[0], b"shoal blob key 1", digest.to_string().as_bytes()).finalize().into_bytes().into()
    }

    /// A key of its own for each `message`, here: who holds which credential.
    #[must_use]
    pub(crate) fn group_key(&self, message: &[u8]) -> [u8; 32] {
        code(&self.keys[0], b"shoal group key 1\0", message).finalize().into_bytes().into()
    }

    /// Proves to the other end of a connection that this end, in its `role`, knows the first key.
    ///
    /// `exporter` is key material exported from the connection's TLS session: it binds the proof to this connection.
    #[must_use]
    pub fn prove(&self, exporter: &[u8; 32], role: Role) -> [u8; 32] {
        code(&self.keys[0], role.purpose(), exporter).finalize().into_bytes().into()
    }

    /// Whether `proof` shows that the end in `role` knows any of the keys. Constant time in the proof.
    #[must_use]
    pub fn check(&self, exporter: &[u8; 32], role: Role, proof: &[u8; 32]) -> bool {
        // No early exit: the time does not tell which key matched.
        self.keys.iter().fold(false, |good, key| code(key, role.purpose(), exporter).verify_slice(proof).is_ok() | good)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, SecretError> {
        let mut keys = Vec::new();
        for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let key = STANDARD
                .decode(line)
                .ok()
                .and_then(|key| <[u8; KEY_BYTES]>::try_from(key).ok())
                .ok_or_else(|| SecretError::Line { path: path.to_owned(), line: at + 1 })?;
            if keys.len() == KEYS_MAX {
                return Err(SecretError::TooLarge { path: path.to_owned() });
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(SecretError::Empty { path: path.to_owned() });
        }
        Ok(Self { keys: keys.into(), none: false })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.none {
            return f.write_str("Secret(none)");
        }
        write!(f, "Secret({} keys)", self.keys.len())
    }
}

fn code(key: &[u8; KEY_BYTES], purpose: &[u8], message: &[u8]) -> Hmac<Sha256> {
    let mut code = keyed(key);
    code.update(purpose);
    code.update(message);
    code
}

/// HMAC-SHA256 under a key of 32 bytes.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC pads a short key with zeros to its block: the same as a key of one whole block, which cannot be refused.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    Hmac::new(&block.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn load(text: &str) -> Result<Secret, SecretError> {
        Secret::parse(text.as_bytes(), Path::new("secret"))
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_generated_line_is_a_good_secret_and_never_the_same() {
        let (first, second) = (Secret::generate_line(), Secret::generate_line());
        assert_ne!(first, second);
        let (_directory, path) = file(&format!("{first}\n"), 0o600);
        assert!(!Secret::load(&path).unwrap().is_none());
    }

    #[test]
    fn a_file_open_to_group_or_others_is_refused_with_the_cure() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644, 0o440] {
            let (_directory, path) = file(&Secret::generate_line(), mode);
            let error = Secret::load(&path).unwrap_err();
            assert!(matches!(error, SecretError::Exposed { mode: found, .. } if found == mode));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        let (_directory, path) = file(&Secret::generate_line(), 0o400);
        assert!(Secret::load(&path).is_ok());
    }

    #[test]
    fn behind_a_link_the_mode_of_the_file_counts() {
        for (mode, good) in [(0o600, true), (0o644, false)] {
            let (directory, path) = file(&Secret::generate_line(), mode);
            let link = directory.path().join("link");
            symlink(&path, &link).unwrap();
            assert_eq!(Secret::load(&link).is_ok(), good);
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped() {
        let line = Secret::generate_line();
        let bare = load(&line).unwrap();
        let dressed = load(&format!("# the cluster\r\n\n  {line}\t\r\n# end\n")).unwrap();
        assert_eq!(bare.pre_shared_key(), dressed.pre_shared_key());
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let good = Secret::generate_line();
        for bad in ["secret", "c2hvcnQ=", &format!("{good}{good}"), &good[..43]] {
            let error = load(&format!("# first\n{good}\n{bad}\n")).unwrap_err();
            assert!(matches!(error, SecretError::Line { line: 3, .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        for text in ["", "\n\n", "# nothing\n"] {
            assert!(matches!(load(text), Err(SecretError::Empty { .. })));
        }
    }

    #[test]
    fn a_file_with_more_keys_than_a_rotation_needs_is_refused() {
        let text = format!("{}\n", Secret::generate_line()).repeat(KEYS_MAX + 1);
        assert!(matches!(load(&text), Err(SecretError::TooLarge { .. })));
    }

    #[test]
    fn members_prove_themselves_to_one_another_and_strangers_cannot() {
        let line = Secret::generate_line();
        let (ours, same, stranger) =
            (load(&line).unwrap(), load(&line).unwrap(), load(&Secret::generate_line()).unwrap());
        let proof = ours.prove(&[7; 32], Role::Dialer);
        assert!(same.check(&[7; 32], Role::Dialer, &proof));
        assert!(!stranger.check(&[7; 32], Role::Dialer, &proof));
        assert!(!Secret::none().check(&[7; 32], Role::Dialer, &proof));
    }

    #[test]
    fn a_proof_holds_for_one_connection_and_one_end() {
        let secret = load(&Secret::generate_line()).unwrap();
        let proof = secret.prove(&[7; 32], Role::Dialer);
        assert!(!secret.check(&[8; 32], Role::Dialer, &proof));
        assert!(!secret.check(&[7; 32], Role::Listener, &proof));
    }

    #[test]
    fn during_a_rotation_the_first_key_is_used_and_all_are_accepted() {
        let (old, new) = (Secret::generate_line(), Secret::generate_line());
        let before = load(&format!("{old}\n{new}\n")).unwrap();
        let after = load(&format!("{new}\n{old}\n")).unwrap();
        for (prover, checker) in [(&before, &after), (&after, &before)] {
            assert!(checker.check(&[7; 32], Role::Listener, &prover.prove(&[7; 32], Role::Listener)));
        }
        assert_eq!(after.pre_shared_key(), load(&new).unwrap().pre_shared_key());
    }

    #[test]
    fn blob_keys_are_the_agreed_code_and_depend_on_the_secret() {
        use base64::prelude::BASE64_STANDARD;
        let secret = load(&BASE64_STANDARD.encode([1; 32])).unwrap();
        let digest = Digest::sha256([2; 32]);
        let mut expected = Hmac::<Sha256>::new_from_slice(&[1; 32]).unwrap();
        expected.update(format!("shoal blob key 1sha256:{}", "02".repeat(32)).as_bytes());
        assert_eq!(secret.blob_key(&digest), <[u8; 32]>::from(expected.finalize().into_bytes()));
        assert_ne!(secret.blob_key(&digest), Secret::none().blob_key(&digest));
        assert_ne!(secret.blob_key(&digest), secret.blob_key(&Digest::sha256([3; 32])));
    }

    #[test]
    fn a_secret_prints_no_key() {
        let secret = load(&Secret::generate_line()).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(1 keys)");
        assert_eq!(format!("{:?}", Secret::none()), "Secret(none)");
    }
}
