//! The store's life, cut short before each of its operations on the disk, by a kill or by the power.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{cell::RefCell, fs, io, sync::LazyLock};

use proptest::prelude::*;
use shoal_proto::{chunk::ChunkIndex, digest::Algorithm};

use super::{
    fault::Fault,
    tests::{Sample, chunks, scratch},
    *,
};

static LAYER: LazyLock<Sample> = LazyLock::new(Sample::three_chunks);
static OLD: LazyLock<Sample> = LazyLock::new(|| Sample::new(Algorithm::Sha256, 5000, 4));
static WIDE: LazyLock<Sample> = LazyLock::new(|| Sample::new(Algorithm::Sha512, 300_000, 5));
static PUSHED: LazyLock<Sample> = LazyLock::new(|| Sample::new(Algorithm::Sha256, 9000, 6));

/// What the store has promised so far.
#[derive(Debug, Default, Clone)]
struct Promises {
    sealed: Vec<Digest>,
    /// Chunks of [`LAYER`] that were written, and those of them that the last saved claim covers.
    written: Vec<u32>,
    claimed: Vec<u32>,
}

/// Everything a store does, until the cut.
fn live(dir: &Path, fault: &Arc<Fault>, promises: &RefCell<Promises>) -> io::Result<()> {
    let store = Store::open_on(fault.disk(), dir).map_err(io::Error::other)?;
    let promise = |change: &dyn Fn(&mut Promises)| {
        // The store does not fail for each error, but the dead promise nothing.
        if fault.is_cut() {
            return Err(io::Error::other("cut"));
        }
        change(&mut promises.borrow_mut());
        Ok(())
    };
    let seal = |sample: &Sample| {
        let blob = store.create(&sample.digest, sample.layout.size())?;
        for chunk in sample.layout.chunks() {
            sample.write(&blob, chunk.0)?;
        }
        blob.seal(&sample.whole())?;
        promise(&|promises| promises.sealed.push(sample.digest))
    };
    seal(&OLD)?;
    let blob = store.create(&LAYER.digest, LAYER.layout.size())?;
    LAYER.write(&blob, 0)?;
    promise(&|promises| promises.written = vec![0])?;
    blob.save_claim(&[LAYER.segment(0, 1)])?;
    promise(&|promises| promises.claimed = vec![0])?;
    LAYER.write(&blob, 2)?;
    promise(&|promises| promises.written = vec![0, 2])?;
    blob.save_claim(&[LAYER.segment(0, 1), LAYER.segment(1, 2)])?;
    promise(&|promises| promises.claimed = vec![0, 2])?;
    drop(blob);
    promises.borrow_mut().sealed.retain(|digest| *digest != OLD.digest);
    store.remove(&OLD.digest)?;
    seal(&WIDE)?;
    let resumed = store.resume(&LAYER.digest)?.unwrap();
    assert_eq!(chunks(&resumed.verified), [0, 2]);
    LAYER.write(&resumed.blob, 1)?;
    promise(&|promises| promises.written = vec![0, 1, 2])?;
    resumed.blob.seal(&resumed.segments)?;
    promise(&|promises| promises.sealed.push(LAYER.digest))?;
    seal(&OLD)?;
    promises.borrow_mut().sealed.retain(|digest| *digest != WIDE.digest);
    store.remove(&WIDE.digest)?;
    let blob = store.create(&WIDE.digest, WIDE.layout.size())?;
    blob.save_claim(&[])?;
    blob.discard()?;
    drop(store.draft()?);
    let mut draft = store.draft()?;
    draft.write(&[PUSHED.content.slice(..5000), PUSHED.content.slice(5000..)])?;
    let blob = draft.into_partial(&PUSHED.digest)?;
    blob.save_claim(&PUSHED.whole())?;
    blob.release();
    let resumed = store.resume(&PUSHED.digest)?.unwrap();
    assert!(resumed.verified.is_full());
    resumed.blob.seal(&resumed.segments)?;
    promise(&|promises| promises.sealed.push(PUSHED.digest))
}

/// Checks a store after a crash, then finishes every blob.
fn check(dir: &Path, promises: &Promises, killed: bool) {
    let store = Store::open(dir).unwrap();
    let samples: [&Sample; 4] = [&LAYER, &OLD, &WIDE, &PUSHED];
    for sample in samples {
        if store.sealed_size(&sample.digest).is_some() {
            let sealed = store.open_sealed(&sample.digest).unwrap().unwrap();
            assert_eq!(sealed.file.read(0, sample.content.len()).unwrap(), sample.content);
            let segments = sealed.segments;
            let fitting = record::assemble(sample.digest, sample.layout, segments.clone());
            if let Some((chain, fitting)) = &fitting {
                assert_eq!(*fitting, segments);
                let promised = promises.sealed.contains(&sample.digest);
                assert!(chain.is_whole() || !promised, "the chain of {:?} is gone", sample.digest);
            }
        } else {
            assert!(!promises.sealed.contains(&sample.digest), "{:?} was sealed and is gone", sample.digest);
            assert!(store.open_sealed(&sample.digest).unwrap().is_none());
        }
    }
    assert_only_listed_files(dir, &store);
    let layer = store.resume(&LAYER.digest).unwrap();
    if let Some(resumed) = &layer {
        for chunk in chunks(&resumed.verified) {
            assert!(promises.written.contains(&chunk), "chunk {chunk} was never written");
            let range = LAYER.layout.range(ChunkIndex(chunk));
            let bytes = resumed.blob.file().read(range.start, (range.end - range.start) as usize).unwrap();
            assert_eq!(bytes, LAYER.content.slice(range.start as usize..range.end as usize));
        }
    }
    if killed && store.sealed_size(&LAYER.digest).is_none() {
        for chunk in &promises.claimed {
            let verified = &layer.as_ref().expect("a claim was saved").verified;
            assert!(verified.contains(ChunkIndex(*chunk)), "chunk {chunk} was claimed and is lost");
        }
    }
    if let Some(resumed) = layer {
        resumed.verified.missing().for_each(|chunk| LAYER.write(&resumed.blob, chunk.0).unwrap());
        resumed.blob.seal(&LAYER.whole()).unwrap();
        LAYER.assert_sealed(&store, &LAYER.whole());
    }
    for sample in samples {
        if store.sealed_size(&sample.digest).is_none() {
            sample.seal_into(&store);
        }
    }
    assert_eq!(store.list().len(), 4);
    assert_only_listed_files(dir, &store);
}

/// Nothing lies about that the store does not know of.
fn assert_only_listed_files(dir: &Path, store: &Store) {
    let paths = Paths::new(dir);
    let mut expected: Vec<_> = store
        .list()
        .into_iter()
        .flat_map(|StoredBlob { digest, sealed, .. }| match sealed {
            true => [paths.sealed(&digest), paths.chain(&digest)],
            false => [paths.partial(&digest), paths.claim(&digest)],
        })
        .collect();
    let mut found = vec![];
    let mut directories = vec![paths.blobs(), paths.partials()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// Runs [`live`] until the cut; returns what was promised, and whether it came to its end.
fn live_until(dir: &Path, fault: &Arc<Fault>) -> (Promises, bool) {
    let promises = RefCell::default();
    let finished = live(dir, fault, &promises).is_ok() && !fault.is_cut();
    (promises.into_inner(), finished)
}

#[test]
fn a_kill_before_any_operation_leaves_only_what_is_proven_and_all_that_was_promised() {
    let mut operations = 0;
    loop {
        let dir = scratch();
        let (promises, finished) = live_until(dir.path(), &Fault::after(operations));
        check(dir.path(), &promises, true);
        if finished {
            break;
        }
        operations += 1;
    }
    assert!(operations > 50, "only {operations} operations were cut");
}

#[test]
fn a_kill_during_recovery_is_recovered_from() {
    for operations in (0..).step_by(3) {
        let dir = scratch();
        let (promises, finished) = live_until(dir.path(), &Fault::after(operations));
        // Each try comes one operation further.
        for more in 0.. {
            let fault = Fault::after(more);
            // Recovery goes on past what it cannot delete.
            drop(Store::open_on(fault.disk(), dir.path()));
            if !fault.is_cut() {
                break;
            }
        }
        check(dir.path(), &promises, true);
        if finished {
            return;
        }
    }
}

/// Operations of a life that is not cut.
static OPERATIONS: LazyLock<usize> = LazyLock::new(|| {
    let dir = scratch();
    let fault = Fault::after(usize::MAX);
    assert!(live_until(dir.path(), &fault).1);
    fault.passed()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn a_power_cut_takes_only_what_was_not_promised_to_last(
        at in 0.0..1.0, coins in prop::collection::vec(any::<bool>(), 1..24),
    ) {
        let dir = scratch();
        let fault = Fault::after((*OPERATIONS as f64 * at) as usize);
        let (promises, _) = live_until(dir.path(), &fault);
        fault.cut_power(&coins);
        check(dir.path(), &promises, false);
    }
}
