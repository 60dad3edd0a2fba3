//! Where things lie in the data directory. Paths are built from parsed digests only.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use shoal_proto::digest::{Algorithm, Digest};

pub(super) const CHAIN: &str = ".chain";
pub(super) const CLAIM: &str = ".claim";
/// Behind the name of a record that is being written.
pub(super) const TEMPORARY: &str = ".tmp";

/// Before the number of a draft.
const DRAFT: &str = "draft-";

/// What a name in one of the store's directories says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// The blob's bytes.
    Data(Digest),
    /// The record beside them: chain or claim.
    Record(Digest),
    /// A record that was being written.
    Temporary(Digest),
}

#[derive(Debug)]
pub(super) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs().join(algorithm.name())
    }

    /// The directory of a sealed blob, by the first two digits of its digest.
    pub(super) fn shard(&self, digest: &Digest) -> PathBuf {
        self.algorithm(digest.algorithm()).join(shard_name(digest))
    }

    pub(super) fn sealed(&self, digest: &Digest) -> PathBuf {
        self.shard(digest).join(digest.hex())
    }

    pub(super) fn chain(&self, digest: &Digest) -> PathBuf {
        self.shard(digest).join(digest.hex() + CHAIN)
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    pub(super) fn draft(&self, number: u64) -> PathBuf {
        self.partials().join(format!("{DRAFT}{number}"))
    }

    pub(super) fn claim(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex() + CLAIM)
    }
}

pub(super) fn shard_name(digest: &Digest) -> String {
    let mut name = digest.hex();
    name.truncate(2);
    name
}

/// The temporary name of the record at `path`.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// Whether `name` is that of a draft.
pub(super) fn is_draft(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix(DRAFT));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

/// What `name` says in a directory whose records end in `record` (with the dot); none if it is not ours.
pub(super) fn parse(name: &OsStr, record: &str) -> Option<Name> {
    let name = name.to_str()?;
    let of_hex = |hex: &str| {
        let algorithm =
            [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|a| a.digest_bytes() * 2 == hex.len())?;
        format!("{}:{hex}", algorithm.name()).parse().ok()
    };
    if let Some(hex) = name.strip_suffix(TEMPORARY).and_then(|name| name.strip_suffix(record)) {
        of_hex(hex).map(Name::Temporary)
    } else if let Some(hex) = name.strip_suffix(record) {
        of_hex(hex).map(Name::Record)
    } else {
        of_hex(name).map(Name::Data)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn names_are_read_back_and_foreign_ones_are_not_ours() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"shoal");
            let hex = digest.hex();
            for (name, meaning) in [
                (hex.clone(), Some(Name::Data(digest))),
                (format!("{hex}.chain"), Some(Name::Record(digest))),
                (format!("{hex}.chain.tmp"), Some(Name::Temporary(digest))),
                (format!("{hex}.tmp"), None),
                (format!("{hex}.claim"), None),
                (format!("{hex}.chain.chain"), None),
                (hex.to_uppercase(), None),
                (hex[1..].to_owned(), None),
                (String::from(".chain"), None),
            ] {
                assert_eq!(parse(OsStr::new(&name), CHAIN), meaning, "{name}");
            }
        }
        assert_eq!(parse(OsStr::from_bytes(&[0xff; 64]), CHAIN), None);
    }
}
