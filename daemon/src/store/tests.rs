#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::PathBuf};

use bytes::Bytes;
use shoal_proto::{chain::State, chunk::ChunkIndex, claim::Signature, digest::Algorithm, peer::PeerId};

use super::*;

/// A blob to store, with its chain.
pub(super) struct Sample {
    pub(super) digest: Digest,
    pub(super) layout: Layout,
    pub(super) content: Bytes,
    pub(super) states: Vec<State>,
}

impl Sample {
    pub(super) fn new(algorithm: Algorithm, size: u64, seed: u64) -> Self {
        let mut word = seed;
        let content: Vec<u8> = (0..size)
            .map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (word >> 56) as u8
            })
            .collect();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let file = BlobFile::new(file, size, true);
        file.write(0, &[Bytes::from(content.clone())]).unwrap();
        let (states, _) = verify::derive(&file).unwrap().unwrap();
        let digest = Digest::of(algorithm, &content);
        Self { digest, layout: Layout::new(size).unwrap(), content: Bytes::from(content), states }
    }

    /// Three chunks, the last of odd length.
    pub(super) fn three_chunks() -> Self {
        Self::new(Algorithm::Sha256, Layout::CHUNK_BYTES_MIN * 2 + 12_345, 1)
    }

    /// A segment with the states in front of chunks `from..=to`.
    pub(super) fn segment(&self, from: u32, to: u32) -> Segment {
        Segment {
            author: PeerId([9; 32]),
            from: ChunkIndex(from),
            states: self.states[from as usize..=to as usize].to_vec(),
            signature: Signature([8; 64]),
        }
    }

    pub(super) fn whole(&self) -> Vec<Segment> {
        if self.digest.algorithm() == Algorithm::Sha512 { vec![] } else { vec![self.segment(0, self.layout.last().0)] }
    }

    pub(super) fn write(&self, blob: &PartialBlob, chunk: u32) -> io::Result<()> {
        let range = self.layout.range(ChunkIndex(chunk));
        blob.file().write(range.start, &[self.content.slice(range.start as usize..range.end as usize)])
    }

    pub(super) fn seal_into(&self, store: &Store) {
        let blob = store.create(&self.digest, self.layout.size()).unwrap();
        for chunk in self.layout.chunks() {
            self.write(&blob, chunk.0).unwrap();
        }
        blob.seal(&self.whole()).unwrap();
    }

    /// Asserts that the store has the blob, with its bytes and with `segments`.
    pub(super) fn assert_sealed(&self, store: &Store, segments: &[Segment]) {
        assert_eq!(store.sealed_size(&self.digest), Some(self.layout.size()));
        let sealed = store.open_sealed(&self.digest).unwrap().unwrap();
        assert_eq!(sealed.layout, self.layout);
        assert_eq!(sealed.segments, segments);
        assert_eq!(sealed.file.read(0, self.content.len()).unwrap(), self.content);
    }

    fn assert_absent(&self, store: &Store) {
        assert_eq!(store.sealed_size(&self.digest), None);
        assert!(store.open_sealed(&self.digest).unwrap().is_none());
    }

    fn partial(&self, dir: &Path) -> PathBuf {
        Paths::new(dir).partial(&self.digest)
    }

    fn claim(&self, dir: &Path) -> PathBuf {
        Paths::new(dir).claim(&self.digest)
    }

    fn sealed(&self, dir: &Path) -> PathBuf {
        Paths::new(dir).sealed(&self.digest)
    }

    fn chain(&self, dir: &Path) -> PathBuf {
        Paths::new(dir).chain(&self.digest)
    }
}

/// A directory for tests that sync often: in memory if there is such a place.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(super) fn chunks(set: &ChunkSet) -> Vec<u32> {
    set.iter().map(|chunk| chunk.0).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_sealed_blob_is_there_after_a_restart_with_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = [
        Sample::three_chunks(),
        Sample::new(Algorithm::Sha256, 0, 0),
        Sample::new(Algorithm::Sha256, 1000, 2),
        Sample::new(Algorithm::Sha512, 400_000, 3),
    ];
    let store = Store::open(dir.path()).unwrap();
    blobs.iter().for_each(|blob| blob.seal_into(&store));
    let listed = store.list();
    for blob in &blobs {
        assert!(listed.contains(&StoredBlob { digest: blob.digest, size: blob.layout.size(), sealed: true }));
    }
    assert_eq!(store.bytes(), blobs.iter().map(|blob| blob.layout.size()).sum::<u64>());
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), listed);
    blobs.iter().for_each(|blob| blob.assert_sealed(&store, &blob.whole()));
    assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    assert_eq!(fs::metadata(blobs[0].sealed(dir.path())).unwrap().permissions().mode() & 0o777 & !0o640, 0);
}

#[test]
fn a_second_daemon_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::Locked { pid, .. } if *pid == Some(std::process::id())), "{error}");
    assert!(error.to_string().contains(&format!("in use by another daemon (process {})", std::process::id())));
    let blob = store.create(&Sample::three_chunks().digest, 10).unwrap();
    drop(store);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })), "a partial blob still writes");
    drop(blob);
    Store::open(dir.path()).unwrap();
}

#[test]
fn readers_of_the_partial_file_read_on_after_the_seal_and_after_removal() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    let reader = blob.file().clone();
    sample.layout.chunks().for_each(|chunk| sample.write(&blob, chunk.0).unwrap());
    let sealed = blob.seal(&sample.whole()).unwrap();
    assert_eq!(reader.read(0, sample.content.len()).unwrap(), sample.content);
    assert_eq!(sample.write(&blob, 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(blob.seal(&[]).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(blob.save_claim(&[]).unwrap_err().kind(), io::ErrorKind::NotFound);
    blob.discard().unwrap();
    sample.assert_sealed(&store, &sample.whole());
    let again = store.create(&sample.digest, sample.layout.size()).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);

    assert!(store.remove(&sample.digest).unwrap());
    assert!(!store.remove(&sample.digest).unwrap());
    assert_eq!(reader.read(0, sample.content.len()).unwrap(), sample.content);
    assert_eq!(sealed.read(0, 10).unwrap(), sample.content.slice(..10));
    sample.assert_absent(&store);
    assert!(!sample.chain(dir.path()).exists());
    // The old handle does not stand in the way of a new try.
    sample.seal_into(&store);
}

#[test]
fn a_blob_is_removed_by_its_file_but_not_the_one_that_came_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    sample.seal_into(&store);
    let former = store.open_sealed(&sample.digest).unwrap().unwrap().file;
    assert!(store.remove_file(&sample.digest, &former).unwrap());
    assert!(!store.remove_file(&sample.digest, &former).unwrap());
    sample.seal_into(&store);
    assert!(!store.remove_file(&sample.digest, &former).unwrap());
    sample.assert_sealed(&store, &sample.whole());
}

#[test]
fn one_digest_has_one_partial_blob_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    let clone = blob.clone();
    let in_use = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    in_use(store.create(&sample.digest, 5).unwrap_err());
    in_use(store.resume(&sample.digest).unwrap_err());
    in_use(store.remove(&sample.digest).unwrap_err());
    drop(blob);
    in_use(store.create(&sample.digest, 5).unwrap_err());
    clone.discard().unwrap();
    assert!(store.list().is_empty());
    let blob = store.create(&sample.digest, 5).unwrap();
    drop(blob);
    assert!(store.resume(&sample.digest).unwrap().is_none(), "nothing was claimed");
    assert!(!sample.partial(dir.path()).exists());
}

#[test]
fn a_partial_blob_resumes_with_the_chunks_that_its_claim_proves() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::three_chunks();
    let size = sample.layout.size();
    let store = Store::open(dir.path()).unwrap();
    let blob = store.create(&sample.digest, size).unwrap();
    sample.write(&blob, 0).unwrap();
    sample.write(&blob, 2).unwrap();
    blob.save_claim(&[sample.segment(0, 1)]).unwrap();
    drop((blob, store));

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), [StoredBlob { digest: sample.digest, size, sealed: false }]);
    let resumed = store.resume(&sample.digest).unwrap().unwrap();
    assert_eq!(chunks(&resumed.verified), [0], "chunk 2 lies beyond the claim");
    let segments = [sample.segment(1, 2), sample.segment(0, 1)];
    resumed.blob.save_claim(&segments).unwrap();
    drop(resumed);
    let resumed = store.resume(&sample.digest).unwrap().unwrap();
    assert_eq!(chunks(&resumed.verified), [0, 2]);
    assert_eq!(resumed.segments, [sample.segment(0, 1), sample.segment(1, 2)]);
    sample.write(&resumed.blob, 1).unwrap();
    resumed.blob.seal(&resumed.segments).unwrap();
    sample.assert_sealed(&store, &resumed.segments);
}

#[test]
fn a_released_blob_can_be_resumed_while_its_clones_live_and_they_can_no_longer_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    sample.write(&blob, 0).unwrap();
    blob.save_claim(&sample.whole()).unwrap();
    let clone = blob.clone();
    blob.release();
    let resumed = store.resume(&sample.digest).unwrap().unwrap();
    assert_eq!(chunks(&resumed.verified), [0]);
    assert_eq!(sample.write(&clone, 1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(clone.save_claim(&[]).unwrap_err().kind(), io::ErrorKind::NotFound);
    clone.discard().unwrap();
    sample.write(&resumed.blob, 1).unwrap();
}

#[test]
fn a_rotten_chunk_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::three_chunks();
    let store = Store::open(dir.path()).unwrap();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    (0..3).for_each(|chunk| sample.write(&blob, chunk).unwrap());
    blob.save_claim(&sample.whole()).unwrap();
    drop(blob);
    flip(&sample.partial(dir.path()), Layout::CHUNK_BYTES_MIN as usize + 77);
    let resumed = store.resume(&sample.digest).unwrap().unwrap();
    assert_eq!(chunks(&resumed.verified), [0, 2]);
}

#[test]
fn a_false_claim_proves_nothing_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::three_chunks();
    let store = Store::open(dir.path()).unwrap();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    (0..3).for_each(|chunk| sample.write(&blob, chunk).unwrap());
    let mut lie = sample.segment(0, 2);
    lie.states[2] = State([0xaa; 32]);
    blob.save_claim(&[lie]).unwrap();
    drop(blob);
    assert_eq!(chunks(&store.resume(&sample.digest).unwrap().unwrap().verified), [0]);
}

#[test]
fn a_partial_blob_without_a_usable_claim_is_deleted() {
    type Damage = fn(&Sample, &Path);
    let damages: [Damage; 6] = [
        |s, dir| flip(&s.claim(dir), 100),
        |s, dir| fs::write(s.claim(dir), b"").unwrap(),
        |s, dir| fs::remove_file(s.claim(dir)).unwrap(),
        |s, dir| fs::remove_file(s.partial(dir)).unwrap(),
        |s, dir| fs::write(s.partial(dir), b"short").unwrap(),
        // The claim of another blob.
        |s, dir| {
            let other = Digest::of(Algorithm::Sha256, b"other");
            fs::write(s.claim(dir), record::encode(&other, s.layout, &s.whole())).unwrap();
        },
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        for restart in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let sample = Sample::three_chunks();
            let mut store = Store::open(dir.path()).unwrap();
            let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
            sample.write(&blob, 0).unwrap();
            blob.save_claim(&sample.whole()).unwrap();
            drop(blob);
            damage(&sample, dir.path());
            if restart {
                drop(store);
                store = Store::open(dir.path()).unwrap();
                assert!(store.list().is_empty(), "damage {at}");
            }
            assert!(store.resume(&sample.digest).unwrap().is_none(), "damage {at}");
            assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0, "damage {at}");
            sample.seal_into(&store);
        }
    }
}

#[test]
fn a_sealed_blob_whose_chain_is_lost_is_proven_by_its_content() {
    type Damage = fn(&Path);
    let damages: [Damage; 4] = [
        |chain| flip(chain, 60),
        |chain| fs::write(chain, b"").unwrap(),
        |chain| fs::remove_file(chain).unwrap(),
        |chain| {
            fs::remove_file(chain).unwrap();
            fs::create_dir(chain).unwrap();
        },
    ];
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for (at, damage) in damages.into_iter().enumerate() {
            for restart in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let sample = Sample::new(algorithm, 300_000, at as u64);
                let mut store = Store::open(dir.path()).unwrap();
                sample.seal_into(&store);
                damage(&sample.chain(dir.path()));
                if restart {
                    drop(store);
                    store = Store::open(dir.path()).unwrap();
                }
                sample.assert_sealed(&store, &[]);
                if at < 3 {
                    store.save_chain(&sample.digest, &sample.whole()).unwrap();
                    sample.assert_sealed(&store, &sample.whole());
                }
            }
        }
    }
}

#[test]
fn a_sealed_name_over_other_content_is_never_served() {
    type Damage = fn(&Sample, &Path);
    let damages: [Damage; 4] = [
        |s, dir| fs::write(s.sealed(dir), b"short").unwrap(),
        |s, dir| fs::write(s.sealed(dir), b"").unwrap(),
        |s, dir| {
            fs::remove_file(s.chain(dir)).unwrap();
            flip(&s.sealed(dir), 300_000);
        },
        |s, dir| fs::remove_file(s.sealed(dir)).unwrap(),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        for restart in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let sample = Sample::three_chunks();
            let mut store = Store::open(dir.path()).unwrap();
            sample.seal_into(&store);
            damage(&sample, dir.path());
            if restart {
                drop(store);
                store = Store::open(dir.path()).unwrap();
            } else {
                assert!(store.open_sealed(&sample.digest).unwrap().is_none(), "damage {at}");
            }
            sample.assert_absent(&store);
            assert!(!sample.sealed(dir.path()).exists());
            sample.seal_into(&store);
            sample.assert_sealed(&store, &sample.whole());
        }
    }
}

#[test]
fn foreign_names_are_left_alone_and_ours_are_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::three_chunks();
    sample.seal_into(&Store::open(dir.path()).unwrap());
    let root = dir.path();
    let hex = sample.digest.hex();
    let shard = format!("blobs/sha256/{}", &hex[..2]);
    let other = Digest::of(Algorithm::Sha256, b"other").hex();
    let (foreign, ours): (Vec<_>, Vec<_>) = (
        [
            String::from("node.key"),
            String::from("partial/notes.txt"),
            format!("partial/{hex}.tmp"),
            format!("{shard}/{other}"),
            format!("{shard}/README"),
            String::from("blobs/sha256/zz"),
            String::from("blobs/md5"),
        ]
        .to_vec(),
        vec![
            format!("{shard}/{hex}.chain.tmp"),
            format!("partial/{other}.claim.tmp"),
            format!("partial/{other}.claim"),
            format!("partial/{hex}"),
            format!("partial/{hex}.claim"),
        ],
    );
    for path in foreign.iter().chain(&ours) {
        fs::write(root.join(path), b"garbage").unwrap();
    }
    fs::create_dir_all(root.join(format!("partial/{other}"))).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join(format!("{shard}/{}{}", &hex[..2], &other[2..]))).unwrap();

    let store = Store::open(root).unwrap();
    for path in &foreign {
        assert!(root.join(path).exists(), "{path}");
    }
    for path in &ours {
        assert!(!root.join(path).exists(), "{path}");
    }
    assert_eq!(store.list().len(), 1);
    sample.assert_sealed(&store, &sample.whole());
    store.create(&Digest::of(Algorithm::Sha256, b"other"), 5).unwrap_err();
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_on(fault::Fault::full_disk().disk(), dir.path()).unwrap();
    let sample = Sample::three_chunks();
    for _ in 0..2 {
        let error = store.create(&sample.digest, sample.layout.size()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(store.bytes(), 0);
    assert!(!sample.partial(dir.path()).exists());
    let error = store.create(&sample.digest, Layout::SIZE_MAX + 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn segments_that_contradict_one_another_are_not_kept_with_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    (0..3).for_each(|chunk| sample.write(&blob, chunk).unwrap());
    let mut lie = sample.segment(0, 2);
    lie.states[1] = State([0xaa; 32]);
    blob.seal(&[lie, sample.segment(0, 2)]).unwrap();
    sample.assert_sealed(&store, &[]);
}

#[test]
fn a_blob_whose_partial_name_was_replaced_is_not_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::three_chunks();
    let blob = store.create(&sample.digest, sample.layout.size()).unwrap();
    (0..3).for_each(|chunk| sample.write(&blob, chunk).unwrap());
    fs::remove_file(sample.partial(dir.path())).unwrap();
    fs::write(sample.partial(dir.path()), vec![0; sample.content.len()]).unwrap();
    assert_eq!(blob.seal(&sample.whole()).unwrap_err().kind(), io::ErrorKind::NotFound);
    sample.assert_absent(&store);
    sample.write(&blob, 0).unwrap();
}

#[test]
fn threads_that_seal_open_and_remove_one_digest_never_see_anything_but_the_blob() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let sample = Sample::new(Algorithm::Sha256, 3000, 6);
    let expected = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, sample) = (&store, &sample);
            scope.spawn(move || {
                for _ in 0..100 {
                    match store.create(&sample.digest, sample.layout.size()) {
                        Ok(blob) => {
                            sample.write(&blob, 0).unwrap();
                            blob.save_claim(&[]).unwrap();
                            if thread == 0 { blob.discard() } else { blob.seal(&[]).map(drop) }.unwrap();
                        }
                        Err(error) => expected(error),
                    }
                    if let Some(sealed) = store.open_sealed(&sample.digest).unwrap() {
                        assert_eq!(sealed.file.read(0, 3000).unwrap(), sample.content);
                    }
                    if thread == 1 {
                        store.remove(&sample.digest).map(drop).unwrap_or_else(expected);
                    }
                }
            });
        }
    });
    if store.sealed_size(&sample.digest).is_none() {
        sample.seal_into(&store);
    }
    let listed = store.list();
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().list(), listed);
}
