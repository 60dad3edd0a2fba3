//! What opening the store makes of what it finds. Nothing is trusted by being there: a sealed name needs a record of
//! the same size or content that hashes to it, a partial needs a readable claim. Names that are not ours are left alone.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    io::Read as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use shoal_proto::{
    chunk::Layout,
    digest::{Algorithm, Digest},
};

use super::{
    BlobFile, Index, StoreError,
    disk::{self, Disk},
    paths::{self, Name, Paths},
    record::{self, Record},
};
use crate::verify;

/// Foreign names that are logged one by one in each directory.
const FOREIGN_LOGGED: usize = 4;

/// Makes the data directory (0700) and the store's directories in it.
pub(super) fn make_directories(disk: &Disk, paths: &Paths) -> Result<(), StoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Disk { action: "creating a directory", path, source }
    };
    let root = paths.root();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed(root))?;
    let algorithms = [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| paths.algorithm(algorithm));
    for path in [paths.partials(), paths.blobs()].into_iter().chain(algorithms) {
        disk.directory(&path).map_err(failed(&path))?;
    }
    Ok(())
}

/// Reads the directories, deletes what is useless, and returns what is left. The directory is locked.
pub(super) fn recover(disk: &Disk, paths: &Paths) -> Result<Index, StoreError> {
    let mut index = Index::default();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        recover_sealed(disk, paths, algorithm, &mut index)?;
    }
    recover_partials(disk, paths, &mut index)?;
    tracing::info!(sealed = index.sealed.len(), partial = index.partial.len(), "store opened");
    Ok(index)
}

fn recover_sealed(disk: &Disk, paths: &Paths, algorithm: Algorithm, index: &mut Index) -> Result<(), StoreError> {
    let top = paths.algorithm(algorithm);
    let mut foreign = Foreign::new(&top);
    for shard in names(&top)? {
        let path = top.join(&shard);
        let ours =
            shard.len() == 2 && shard.to_str().is_some_and(|s| s.bytes().all(|b| b"0123456789abcdef".contains(&b)));
        if !ours || !path.is_dir() {
            foreign.log(&shard);
            continue;
        }
        // A shard that cannot be read costs its blobs, not the daemon.
        match names(&path) {
            Ok(names) => recover_shard(disk, paths, algorithm, &shard, names, index),
            Err(error) => tracing::warn!(%error, "a directory of the store is unreadable: its blobs are not used"),
        }
    }
    foreign.finish();
    Ok(())
}

fn recover_shard(
    disk: &Disk,
    paths: &Paths,
    algorithm: Algorithm,
    shard: &OsString,
    names: Vec<OsString>,
    index: &mut Index,
) {
    let path = paths.algorithm(algorithm).join(shard);
    let mut foreign = Foreign::new(&path);
    let (mut data, mut records) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        let digest = |digest: &Digest| digest.algorithm() == algorithm && *shard == *paths::shard_name(digest);
        match paths::parse(&name, paths::CHAIN) {
            Some(Name::Data(d)) if digest(&d) => _ = data.insert(d),
            Some(Name::Record(d)) if digest(&d) => _ = records.insert(d),
            Some(Name::Temporary(d)) if digest(&d) => delete(disk, &path.join(&name), "half-written"),
            _ => foreign.log(&name),
        }
    }
    foreign.finish();
    for digest in records.difference(&data) {
        delete(disk, &paths.chain(digest), "without its blob");
    }
    for digest in data {
        if let Some(record) = admit(disk, paths, &digest) {
            index.sealed.insert(digest, record.layout.size());
        }
    }
}

/// Decides on a name in `blobs/`: its record, if it is to be used. A blob without a usable record is proven by hashing
/// and gets a new record; one of the wrong size or content is deleted; one that cannot be read is left alone, unused.
pub(super) fn admit(disk: &Disk, paths: &Paths, digest: &Digest) -> Option<Record> {
    let path = paths.sealed(digest);
    match load_sealed(paths, digest) {
        Ok(Some((_, record))) => return Some(record),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a sealed blob is unreadable and not used");
            return None;
        }
    }
    match prove(&path, digest) {
        Ok(Some(layout)) => {
            tracing::warn!(%digest, "a sealed blob had lost its chain; its content was proven again");
            let record = Record { layout, segments: vec![] };
            if let Err(error) = write_chain(disk, paths, digest, &record::encode(digest, layout, &[])) {
                tracing::warn!(%digest, %error, "its new record could not be written");
            }
            Some(record)
        }
        Ok(None) => {
            delete(disk, &path, "not what its name says");
            delete(disk, &paths.chain(digest), "of a deleted blob");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a sealed blob is unreadable and not used");
            None
        }
    }
}

/// The layout of the file at `path` if its content is that of `digest`.
fn prove(path: &Path, digest: &Digest) -> io::Result<Option<Layout>> {
    let file = disk::open(path, false)?;
    let Some(layout) = Layout::new(file.metadata()?.len()) else { return Ok(None) };
    let found = verify::digest_of(&BlobFile::new(file, layout.size(), false), digest.algorithm())?;
    Ok((found == *digest).then_some(layout))
}

fn recover_partials(disk: &Disk, paths: &Paths, index: &mut Index) -> Result<(), StoreError> {
    let path = paths.partials();
    let mut foreign = Foreign::new(&path);
    let mut found = BTreeSet::new();
    for name in names(&path)? {
        match paths::parse(&name, paths::CLAIM) {
            Some(Name::Data(digest) | Name::Record(digest)) => _ = found.insert(digest),
            Some(Name::Temporary(_)) => delete(disk, &path.join(&name), "half-written"),
            None if paths::is_draft(&name) => delete(disk, &path.join(&name), "of an upload that broke off"),
            None => foreign.log(&name),
        }
    }
    foreign.finish();
    for digest in found {
        let usable = if index.sealed.contains_key(&digest) { Ok(None) } else { load_partial(paths, &digest) };
        match usable {
            Ok(Some((file, _))) => _ = index.partial.insert(digest, file.size()),
            Ok(None) => {
                delete(disk, &paths.claim(&digest), "of no use");
                delete(disk, &paths.partial(&digest), "of no use");
            }
            Err(error) => tracing::warn!(%digest, %error, "a partial blob is unreadable and not used"),
        }
    }
    Ok(())
}

/// Opens a sealed blob with its record; none if the record is unusable or of another size than the file. Errors are
/// those of the blob itself.
pub(super) fn load_sealed(paths: &Paths, digest: &Digest) -> io::Result<Option<(BlobFile, Record)>> {
    let file = disk::open(&paths.sealed(digest), false)?;
    let len = file.metadata()?.len();
    let record = read_record(&paths.chain(digest), digest).unwrap_or_else(|error| {
        tracing::warn!(%digest, %error, "the record of a sealed blob is unreadable");
        None
    });
    let record = record.filter(|record| record.layout.size() == len);
    Ok(record.map(|record| (BlobFile::new(file, len, false), record)))
}

/// Opens a partial blob with its claim; none if one of them is missing or they do not fit.
pub(super) fn load_partial(paths: &Paths, digest: &Digest) -> io::Result<Option<(BlobFile, Record)>> {
    let Some(record) = read_record(&paths.claim(digest), digest)? else { return Ok(None) };
    let file = match disk::open(&paths.partial(digest), true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let len = file.metadata()?.len();
    Ok((record.layout.size() == len).then(|| (BlobFile::new(file, len, true), record)))
}

/// The record at `path`; none if it is missing or unusable.
fn read_record(path: &Path, digest: &Digest) -> io::Result<Option<Record>> {
    let file = match disk::open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(record::RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    match record::decode(digest, &bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record is not used");
            Ok(None)
        }
    }
}

/// Puts a sealed blob's record in place, durable, and whole or not at all.
pub(super) fn write_chain(disk: &Disk, paths: &Paths, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
    disk.directory(&paths.shard(digest))?;
    let chain = paths.chain(digest);
    let temporary = paths::temporary(&chain);
    disk.write(&temporary, bytes, true)?;
    disk.rename(&temporary, &chain)
}

fn delete(disk: &Disk, path: &Path, why: &'static str) {
    match disk.unlink(path) {
        Ok(()) => tracing::info!(path = %path.display(), why, "deleted"),
        Err(error) => tracing::warn!(path = %path.display(), why, %error, "could not be deleted"),
    }
}

fn names(directory: &Path) -> Result<Vec<OsString>, StoreError> {
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>();
    read().map_err(|source| StoreError::Disk { action: "reading a directory", path: directory.to_owned(), source })
}

/// Names that are not ours: logged, but not without end.
struct Foreign {
    directory: PathBuf,
    count: usize,
}

impl Foreign {
    fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), count: 0 }
    }

    fn log(&mut self, name: &OsString) {
        self.count += 1;
        if self.count <= FOREIGN_LOGGED {
            tracing::warn!(path = %self.directory.join(name).display(), "not a file of the store: left alone");
        }
    }

    fn finish(self) {
        if let Some(more) = self.count.checked_sub(FOREIGN_LOGGED + 1) {
            tracing::warn!(directory = %self.directory.display(), more = more + 1, "more names that are not ours");
        }
    }
}
