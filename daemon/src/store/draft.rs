//! Bytes that come in before anybody says what they are: an upload is named by its digest only at its end.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use shoal_proto::{
    chunk::{ChunkSet, Layout},
    digest::Digest,
};

use super::{BlobFile, Hold, PartialBlob, Shared, Store};

/// A growing file that belongs to no blob yet. Deleted when dropped, and by recovery if a crash leaves it behind.
#[derive(Debug)]
pub struct Draft {
    shared: Arc<Shared>,
    path: PathBuf,
    file: BlobFile,
    length: u64,
}

impl Store {
    /// A new, empty draft.
    ///
    /// # Errors
    /// What the disk says.
    pub fn draft(&self) -> io::Result<Draft> {
        let shared = Arc::clone(&self.shared);
        let path = shared.paths.draft(shared.drafts.fetch_add(1, Relaxed));
        let file = BlobFile::new(shared.disk.create(&path)?, Layout::SIZE_MAX, true);
        Ok(Draft { shared, path, file, length: 0 })
    }
}

impl Draft {
    /// Bytes in it so far.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Adds the pieces, one behind the other.
    ///
    /// # Errors
    /// As [`BlobFile::write`]. What is in the draft is then unknown: drop it.
    pub fn write(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        self.file.write(self.length, pieces)?;
        self.length += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        Ok(())
    }

    /// What is in it, to be read as a whole.
    ///
    /// # Errors
    /// What the system says.
    pub fn content(&self) -> io::Result<BlobFile> {
        Ok(BlobFile::new(self.file.file().try_clone()?, self.length, false))
    }

    /// Makes it the partial blob of `digest`, in which nothing counts as verified yet.
    ///
    /// # Errors
    /// `AlreadyExists` if that blob is sealed or somebody works on it; otherwise what the disk says. The draft is gone.
    pub fn into_partial(self, digest: &Digest) -> io::Result<PartialBlob> {
        let shared = &self.shared;
        let layout = Layout::new(self.length).ok_or(io::ErrorKind::InvalidInput)?;
        let hold = Hold::take(shared, digest)?;
        if shared.index().sealed.contains_key(digest) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{digest} is sealed")));
        }
        shared.drop_partial(digest)?;
        let file = BlobFile::new(self.file.file().try_clone()?, self.length, true);
        shared.disk.rename(&self.path, &shared.paths.partial(digest))?;
        shared.index().partial.insert(*digest, self.length);
        Ok(PartialBlob::new(hold, layout, file, &ChunkSet::empty(layout.count())))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // No error if it has become a blob: then the name is gone.
        if let Err(error) = self.shared.disk.unlink(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a draft is left behind until the next start");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::digest::Algorithm;

    use super::*;

    fn pieces(text: &'static str) -> Vec<Bytes> {
        text.as_bytes().chunks(3).map(Bytes::from_static).collect()
    }

    fn names(directory: &std::path::Path) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(directory.join("partial")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_draft_becomes_the_blob_that_its_bytes_make() {
        for (algorithm, text) in
            [(Algorithm::Sha256, "brown fox"), (Algorithm::Sha512, "lazy dog"), (Algorithm::Sha256, "")]
        {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            let (mut draft, digest) = (store.draft().unwrap(), Digest::of(algorithm, text.as_bytes()));
            draft.write(&pieces(text)).unwrap();
            assert_eq!(draft.length(), text.len() as u64);
            assert_eq!(crate::verify::digest_of(&draft.content().unwrap(), algorithm).unwrap(), digest);
            draft.into_partial(&digest).unwrap().seal(&[]).unwrap();
            assert_eq!(store.sealed_size(&digest), Some(text.len() as u64));
            assert_eq!(names(directory.path()), Vec::<std::ffi::OsString>::new());
            let again = store.draft().unwrap().into_partial(&digest).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        }
    }

    #[test]
    fn a_draft_that_is_dropped_or_left_by_a_crash_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut draft = store.draft().unwrap();
        draft.write(&pieces("quick")).unwrap();
        assert_eq!(names(directory.path()).len(), 1);
        drop(draft);
        assert_eq!(names(directory.path()), Vec::<std::ffi::OsString>::new());
        std::fs::write(directory.path().join("partial/draft-17"), "left by a crash").unwrap();
        std::fs::write(directory.path().join("partial/draft-x"), "not ours").unwrap();
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(names(directory.path()), ["draft-x"]);
        assert!(store.list().is_empty());
    }

    #[test]
    fn a_blob_that_somebody_works_on_is_left_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"brown fox");
        let theirs = store.create(&digest, 9).unwrap();
        let mut draft = store.draft().unwrap();
        draft.write(&pieces("brown fox")).unwrap();
        assert_eq!(draft.into_partial(&digest).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        theirs.file().write(0, &pieces("brown fox")).unwrap();
        theirs.seal(&[]).unwrap();
    }
}
