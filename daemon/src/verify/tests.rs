#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::store::{PartialBlob, Store};

/// A blob of two chunks, its chain, and a place for it.
struct Sample {
    content: Bytes,
    chain: Chain,
    blob: PartialBlob,
    _dir: tempfile::TempDir,
}

fn sample() -> Sample {
    let content = Bytes::from((0..300_000_u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let layout = Layout::new(content.len() as u64).unwrap();
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut chain = Chain::new(digest, layout).unwrap();
    let mut link = Link::new(layout, ChunkIndex::FIRST, State::INITIAL);
    link.update(&content[..layout.chunk_bytes() as usize]);
    let Some(LinkEnd::State(state)) = link.end(layout, ChunkIndex::FIRST) else { panic!("not the last chunk") };
    chain.extend(ChunkIndex::FIRST, &[State::INITIAL, state]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blob = Store::open(dir.path()).unwrap().create(&digest, layout.size()).unwrap();
    Sample { content, chain, blob, _dir: dir }
}

impl Sample {
    /// A chunk as it may arrive, in pieces.
    fn frames(&self, chunk: ChunkIndex) -> Vec<Bytes> {
        let range = self.chain.layout().range(chunk);
        let bytes = self.content.slice(range.start as usize..range.end as usize);
        (0..bytes.len()).step_by(1200).map(|at| bytes.slice(at..bytes.len().min(at + 1200))).collect()
    }

    async fn check(&self, chunk: u32, expected: Expected, frames: Vec<Bytes>) -> Verdict {
        self.check_unless(&CancellationToken::new(), chunk, expected, frames).await
    }

    async fn check_unless(
        &self,
        stopped: &CancellationToken,
        chunk: u32,
        expected: Expected,
        frames: Vec<Bytes>,
    ) -> Verdict {
        Verifier::default().check(&self.blob, ChunkIndex(chunk), expected, frames, stopped).await
    }

    fn is_stored(&self, chunk: u32) -> bool {
        proven_chunks(self.blob.file(), &self.chain).contains(ChunkIndex(chunk))
    }
}

#[tokio::test]
async fn right_chunks_are_written_in_any_order() {
    let sample = sample();
    for chunk in [1, 0] {
        let expected = sample.chain.expected(ChunkIndex(chunk)).unwrap();
        let verdict = sample.check(chunk, expected, sample.frames(ChunkIndex(chunk))).await;
        assert!(matches!(verdict, Verdict::Good { end } if Some(end) == expected.end));
        assert!(sample.is_stored(chunk));
    }
    assert_eq!(sample.blob.file().read(0, sample.content.len()).unwrap(), sample.content);
    let (states, digest) = Verifier::default().derive(sample.blob.file()).await.unwrap().unwrap();
    assert_eq!((states.as_slice(), digest), (sample.chain.states(), sample.chain.digest()));
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let found = Verifier::default().digest_of(sample.blob.file(), algorithm).await.unwrap();
        assert_eq!(found, Digest::of(algorithm, &sample.content));
    }
}

#[tokio::test]
async fn wrong_short_and_long_chunks_are_corrupt_and_not_written() {
    let sample = sample();
    let right = sample.frames(ChunkIndex::FIRST);
    let mut flipped = right.clone();
    flipped[100] = Bytes::from(flipped[100].iter().map(|byte| byte ^ 1).collect::<Vec<_>>());
    let short = right[..right.len() - 1].to_vec();
    let long = [right.clone(), vec![Bytes::from_static(b"x")]].concat();
    let expected = sample.chain.expected(ChunkIndex::FIRST).unwrap();
    for frames in [flipped, short, long, vec![]] {
        for end in [expected.end, None] {
            if end.is_none() && frames.concat().len() == right.concat().len() {
                continue; // Nobody can tell.
            }
            let verdict = sample.check(0, Expected { end, ..expected }, frames.clone()).await;
            assert!(matches!(verdict, Verdict::Corrupt));
        }
    }
    assert_eq!(sample.blob.file().read(0, 1200).unwrap(), vec![0; 1200]);
}

#[tokio::test]
async fn a_chunk_that_extends_the_chain_tells_its_end() {
    let sample = sample();
    let expected = Expected { before: State::INITIAL, end: None };
    let verdict = sample.check(0, expected, sample.frames(ChunkIndex::FIRST)).await;
    let next = LinkEnd::State(sample.chain.states()[1]);
    assert!(matches!(verdict, Verdict::Good { end } if end == next));
}

/// Bytes of the first chunk's length that are not those of the blob.
fn wrong(sample: &Sample) -> Vec<Bytes> {
    vec![Bytes::from(vec![0xee; sample.chain.layout().len(ChunkIndex::FIRST) as usize])]
}

#[tokio::test]
async fn bytes_that_nobody_vouches_for_never_replace_verified_ones_but_their_end_is_told() {
    let sample = sample();
    let expected = sample.chain.expected(ChunkIndex::FIRST).unwrap();
    let right = sample.frames(ChunkIndex::FIRST);
    sample.check(0, expected, right).await;
    let verdict = sample.check(0, Expected { end: None, ..expected }, wrong(&sample)).await;
    assert!(matches!(verdict, Verdict::Good { end } if Some(end) != expected.end));
    assert!(sample.is_stored(0));
}

#[tokio::test]
async fn verified_bytes_replace_those_that_nobody_vouches_for() {
    let sample = sample();
    let expected = sample.chain.expected(ChunkIndex::FIRST).unwrap();
    sample.check(0, Expected { end: None, ..expected }, wrong(&sample)).await;
    assert!(!sample.is_stored(0));
    sample.check(0, expected, sample.frames(ChunkIndex::FIRST)).await;
    assert!(sample.is_stored(0));
}

#[tokio::test]
async fn what_nobody_vouches_for_is_not_written_once_its_stream_has_stopped() {
    let sample = sample();
    let expected = sample.chain.expected(ChunkIndex::FIRST).unwrap();
    let right = sample.frames(ChunkIndex::FIRST);
    let open = Expected { end: None, ..expected };
    sample.check(0, open, right.clone()).await;
    let stopped = CancellationToken::new();
    stopped.cancel();
    let verdict = sample.check_unless(&stopped, 0, open, wrong(&sample)).await;
    assert!(matches!(verdict, Verdict::Disk(error) if error.kind() == io::ErrorKind::Interrupted));
    assert!(sample.is_stored(0));
    assert!(matches!(sample.check_unless(&stopped, 0, expected, right).await, Verdict::Good { .. }));
}

#[tokio::test]
async fn a_chunk_that_cannot_be_written_is_not_blamed_on_its_bytes() {
    let sample = sample();
    sample.blob.seal(&[]).unwrap();
    let expected = sample.chain.expected(ChunkIndex::FIRST).unwrap();
    let verdict = sample.check(0, expected, sample.frames(ChunkIndex::FIRST)).await;
    assert!(matches!(verdict, Verdict::Disk(error) if error.kind() == io::ErrorKind::PermissionDenied));
}

#[tokio::test]
async fn a_stored_chunk_is_given_out_only_while_it_is_right() {
    let sample = sample();
    let (verifier, layout) = (Verifier::default(), sample.chain.layout());
    let expected = sample.chain.expected(ChunkIndex(1)).unwrap();
    let read = async || verifier.read(layout, ChunkIndex(1), expected, sample.blob.file()).await.unwrap();
    assert_eq!(read().await, None);
    let right = sample.frames(ChunkIndex(1));
    sample.blob.file().write(layout.range(ChunkIndex(1)).start, &right).unwrap();
    assert_eq!(read().await, Some(Bytes::from(right.concat())));
}

#[tokio::test]
async fn jobs_beyond_the_bound_wait_for_one_to_end_even_if_nobody_waits_for_that_one() {
    let verifier = Verifier::new(NonZeroUsize::MIN);
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let first = tokio::spawn({
        let verifier = verifier.clone();
        async move {
            let job = move || {
                begun.send(()).unwrap();
                released.recv().unwrap();
            };
            verifier.run(job).await
        }
    });
    has_begun.await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(verifier.jobs.available_permits(), 0);
    release.send(()).unwrap();
    verifier.run(|| ()).await.unwrap();
}
