//! The record beside a blob's bytes: its size and the segments of its chain, as signed. `.chain` beside a sealed blob,
//! `.claim` beside a partial one; the same form, because sealing only makes the claim true.
//!
//! ```text
//! magic "shoal chain" 0, version u8 | algorithm's name length u8, name, digest | size u64 | segment count u32 |
//! per segment: author 32, from u32, state count u32, states 32 each, signature 64 | SHA-256 of all before
//! ```
//! Integers are little-endian. The checksum guards against torn and rotten files, not against malice: nothing in a
//! record is believed without proof except that a sealed blob has its size.

use shoal_proto::{
    chain::{Chain, State},
    chunk::{ChunkIndex, Layout},
    claim::{Segment, Signature},
    digest::{Algorithm, Digest},
    peer::PeerId,
};

const MAGIC: &[u8] = b"shoal chain\0\x01";
const CHECKSUM_BYTES: usize = 32;
/// Longest record that is read. The largest blob has 65536 chunks, so even one segment for each is a third of this.
pub(super) const RECORD_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) layout: Layout,
    pub(super) segments: Vec<Segment>,
}

/// Why a record is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("not a chain record of a version that this daemon knows")]
    Magic,
    #[error("the record is torn or rotten (wrong checksum)")]
    Checksum,
    #[error("the record belongs to another digest")]
    Digest,
    #[error("the record is malformed")]
    Form,
}

pub(super) fn encode(digest: &Digest, layout: Layout, segments: &[Segment]) -> Vec<u8> {
    let states: usize = segments.iter().map(|segment| segment.states.len()).sum();
    let mut bytes = Vec::with_capacity(256 + segments.len() * 104 + states * 32);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&name_of(digest));
    bytes.extend_from_slice(&layout.size().to_le_bytes());
    bytes.extend_from_slice(&(segments.len() as u32).to_le_bytes());
    for segment in segments {
        bytes.extend_from_slice(&segment.author.0);
        bytes.extend_from_slice(&segment.from.0.to_le_bytes());
        bytes.extend_from_slice(&(segment.states.len() as u32).to_le_bytes());
        for state in &segment.states {
            bytes.extend_from_slice(&state.0);
        }
        bytes.extend_from_slice(&segment.signature.0);
    }
    let checksum = Digest::of(Algorithm::Sha256, &bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

pub(super) fn decode(digest: &Digest, bytes: &[u8]) -> Result<Record, RecordError> {
    if !bytes.starts_with(MAGIC) {
        return Err(RecordError::Magic);
    }
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(RecordError::Checksum)?;
    if Digest::of(Algorithm::Sha256, body).as_bytes() != checksum {
        return Err(RecordError::Checksum);
    }
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(RecordError::Form)?);
    reader.0 = reader.0.strip_prefix(name_of(digest).as_slice()).ok_or(RecordError::Digest)?;
    let layout = Layout::new(u64::from_le_bytes(reader.array()?)).ok_or(RecordError::Form)?;
    let count = reader.u32()?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let author = PeerId(reader.array()?);
        let from = ChunkIndex(reader.u32()?);
        let count = reader.u32()?;
        if u64::from(from.0) + u64::from(count) > u64::from(layout.count()) {
            return Err(RecordError::Form);
        }
        let states = (0..count).map(|_| reader.array().map(State)).collect::<Result<_, _>>()?;
        segments.push(Segment { author, from, states, signature: Signature(reader.array()?) });
    }
    if !reader.0.is_empty() {
        return Err(RecordError::Form);
    }
    Ok(Record { layout, segments })
}

/// The chain that the segments make, and those of them that fit: a segment that touches nothing or contradicts what is
/// before it is left out. None for digests that have no chain.
pub(super) fn assemble(digest: Digest, layout: Layout, mut segments: Vec<Segment>) -> Option<(Chain, Vec<Segment>)> {
    let mut chain = Chain::new(digest, layout)?;
    segments.sort_by_key(|segment| segment.from);
    segments.retain(|segment| chain.extend(segment.from, &segment.states).is_ok());
    Some((chain, segments))
}

/// Algorithm and value: what binds a record to its blob.
fn name_of(digest: &Digest) -> Vec<u8> {
    let name = digest.algorithm().name().as_bytes();
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (value, rest) = self.0.split_first_chunk::<N>().ok_or(RecordError::Form)?;
        self.0 = rest;
        Ok(*value)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> (Digest, Layout, Vec<Segment>) {
        let segment = |from: u32, count: u8| Segment {
            author: PeerId([from as u8; 32]),
            from: ChunkIndex(from),
            states: (0..count).map(|at| State([from as u8 + at; 32])).collect(),
            signature: Signature([7; 64]),
        };
        let digest = Digest::of(Algorithm::Sha256, b"shoal");
        (digest, Layout::new(Layout::CHUNK_BYTES_MIN * 9 + 1).unwrap(), vec![segment(0, 3), segment(2, 8)])
    }

    #[test]
    fn a_record_is_read_back_for_its_own_digest_only() {
        let (digest, layout, segments) = sample();
        let bytes = encode(&digest, layout, &segments);
        assert_eq!(decode(&digest, &bytes), Ok(Record { layout, segments: segments.clone() }));
        let other = Digest::of(Algorithm::Sha512, b"shoal");
        assert_eq!(decode(&other, &bytes), Err(RecordError::Digest));
        let bytes = encode(&other, layout, &[]);
        assert_eq!(decode(&other, &bytes), Ok(Record { layout, segments: vec![] }));
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let (digest, layout, segments) = sample();
        let bytes = encode(&digest, layout, &segments);
        for cut in 0..bytes.len() {
            assert!(decode(&digest, &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn states_beyond_the_blob_are_refused_even_with_a_right_checksum() {
        let (digest, _, segments) = sample();
        let small = Layout::new(Layout::CHUNK_BYTES_MIN * 8).unwrap();
        assert_eq!(decode(&digest, &encode(&digest, small, &segments)), Err(RecordError::Form));
    }

    #[test]
    fn only_segments_that_fit_make_the_chain() {
        let (digest, layout, mut segments) = sample();
        segments[0].states = vec![State::INITIAL, State([1; 32]), State([2; 32])];
        segments.reverse();
        let gap = Segment { from: ChunkIndex(12), ..segments[0].clone() };
        let contradiction = Segment { states: vec![State([99; 32]); 2], from: ChunkIndex(2), ..segments[0].clone() };
        let mut all = segments.clone();
        all.extend([gap, contradiction]);
        let (chain, fitting) = assemble(digest, layout, all).unwrap();
        assert!(chain.is_whole());
        segments.reverse();
        assert_eq!(fitting, segments);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_noticed(at in 0_usize..1024, bit in 0_u8..8) {
            let (digest, layout, segments) = sample();
            let mut bytes = encode(&digest, layout, &segments);
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(decode(&digest, &bytes).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(garbage: Vec<u8>, checksummed: bool) {
            let (digest, _, _) = sample();
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&name_of(&digest));
            bytes.extend_from_slice(&garbage);
            if checksummed {
                let checksum = Digest::of(Algorithm::Sha256, &bytes);
                bytes.extend_from_slice(checksum.as_bytes());
            }
            if let Ok(record) = decode(&digest, &bytes) {
                prop_assert!(record.segments.len() <= garbage.len() / 104);
            }
        }
    }
}
