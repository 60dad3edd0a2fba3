//! Properties of the chain: it is plain SHA-256, cut at chunk boundaries, and nothing but the right bytes at the right
//! place passes it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::OnceLock;

use proptest::{prelude::*, sample::Index};
use sha2::{Digest as _, Sha256};
use shoal_proto::{
    chain::{Chain, ChainError, Link, LinkEnd, State},
    chunk::{ChunkIndex, Layout},
    digest::{Algorithm, Digest},
};

const CHUNK: usize = Layout::CHUNK_BYTES_MIN as usize;

/// Bytes without a period near a power of two, so that no two chunks are alike.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at * 31) ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn layout_of(data: &[u8]) -> Layout {
    Layout::new(data.len() as u64).unwrap()
}

fn bytes_of(data: &[u8], chunk: ChunkIndex) -> &[u8] {
    let range = layout_of(data).range(chunk);
    &data[range.start as usize..range.end as usize]
}

/// Follows one link over bytes that may or may not be the chunk's.
fn link(layout: Layout, chunk: ChunkIndex, before: State, bytes: &[u8]) -> Option<LinkEnd> {
    let mut link = Link::new(layout, chunk, before);
    link.update(bytes);
    link.end(layout, chunk)
}

/// Computes the whole chain as the first node does, while the origin's bytes go by.
fn chain_of(data: &[u8]) -> (Chain, Digest) {
    let layout = layout_of(data);
    let mut chain = Chain::new(Digest::of(Algorithm::Sha256, data), layout).unwrap();
    for chunk in layout.chunks() {
        let before = chain.expected(chunk).unwrap().before;
        match link(layout, chunk, before, bytes_of(data, chunk)).unwrap() {
            LinkEnd::State(state) => chain.extend(chunk, &[before, state]).unwrap(),
            LinkEnd::Digest(digest) => return (chain, digest),
        }
    }
    unreachable!("the last link ends in a digest");
}

/// Whether the chain lets these bytes pass as this chunk.
fn passes(chain: &Chain, chunk: ChunkIndex, bytes: &[u8]) -> bool {
    let expected = chain.expected(chunk).unwrap();
    let end = link(chain.layout(), chunk, expected.before, bytes);
    end.is_some() && end == expected.end
}

/// A blob of four chunks, the last of which ends inside a block; the same in every case of a property.
fn sample() -> &'static (Vec<u8>, Chain) {
    static SAMPLE: OnceLock<(Vec<u8>, Chain)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let data = content(3 * CHUNK + 70_001);
        let (chain, _) = chain_of(&data);
        (data, chain)
    })
}

fn chunk_of(chain: &Chain, index: Index) -> ChunkIndex {
    ChunkIndex(index.index(chain.layout().count() as usize) as u32)
}

#[test]
fn the_chain_ends_in_the_plain_digest_for_every_size_around_block_and_chunk_boundaries() {
    let most = 3 * CHUNK + 1;
    let data = content(most);
    let around = |border: usize| border - 65..=border + 65;
    let sizes = (0..300).chain(around(CHUNK)).chain(around(2 * CHUNK)).chain(3 * CHUNK - 1..=most);
    for size in sizes {
        let data = &data[..size];
        let (chain, digest) = chain_of(data);
        assert_eq!(digest.as_bytes(), Sha256::digest(data).as_slice(), "{size} bytes");
        assert!(chain.is_whole(), "{size} bytes");
        assert_eq!(chain.states().len(), size.div_ceil(CHUNK).max(1), "{size} bytes");
    }
}

#[test]
fn the_chain_ends_in_the_plain_digest_beyond_32_bits_of_bit_length_and_with_larger_chunks() {
    let size = 513 * 1024 * 1024 + 77;
    let layout = Layout::new(size).unwrap();
    assert!(layout.chunk_bytes() > Layout::CHUNK_BYTES_MIN && size * 8 > u64::from(u32::MAX));
    let pattern = content(layout.chunk_bytes() as usize);
    let mut plain = Sha256::new();
    let mut before = State::INITIAL;
    for chunk in layout.chunks() {
        let bytes = &pattern[..layout.len(chunk) as usize];
        plain.update(bytes);
        match link(layout, chunk, before, bytes).unwrap() {
            LinkEnd::State(state) => before = state,
            LinkEnd::Digest(digest) => {
                assert_eq!(chunk, layout.last());
                assert_eq!(digest, Digest::sha256(plain.clone().finalize().into()));
            }
        }
    }
}

/// Nodes of all releases and processors must mean the same bytes by a state. The figures come from `sha256sum` and from
/// a plain SHA-256 compression written after the standard.
#[test]
fn the_state_behind_256_kib_of_zeros_is_what_the_standard_says() {
    let (chain, digest) = chain_of(&vec![0; 2 * CHUNK]);
    assert_eq!(digest.hex(), "07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541");
    let state = Digest::sha256(chain.state(ChunkIndex(1)).unwrap().0);
    assert_eq!(state.hex(), "09286a497feaf44f06041b40cc5c808981990a6a7439250e85f85b39e6e137bb");
}

#[test]
fn only_sha256_has_a_chain() {
    assert_eq!(Chain::new(Digest::of(Algorithm::Sha512, b""), Layout::new(0).unwrap()), None);
}

/// The data followed by its padding, which a length extension attack would present as content.
fn sha256_padded(data: &[u8]) -> Vec<u8> {
    let mut padded = data.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((data.len() as u64 * 8).to_be_bytes());
    padded
}

#[test]
fn a_blob_of_another_size_is_refused_even_with_the_right_states() {
    for size in [0, 1, 55, 56, 64, 1000, CHUNK - 1, CHUNK, CHUNK + 64, 2 * CHUNK] {
        let data = content(size);
        let (chain, digest) = chain_of(&data);
        for wrong in [size.wrapping_sub(64), size.wrapping_sub(1), size + 1, size + 9, size + 64, size + CHUNK] {
            let Some(layout) = Layout::new(wrong as u64) else { continue };
            // The last link alone decides: true bytes up to it, cut or continued by zeros or as SHA-256 pads.
            for mut bytes in [data.clone(), sha256_padded(&data)] {
                bytes.resize(wrong, 0);
                let (continued, _) = chain_of(&bytes);
                let mut claimed = Chain::new(digest, layout).unwrap();
                claimed.extend(ChunkIndex::FIRST, continued.states()).unwrap();
                assert!(!passes(&claimed, layout.last(), bytes_of(&bytes, layout.last())), "{size} passes as {wrong}");
                if let Some(state) = chain.state(layout.last()) {
                    let end = link(layout, layout.last(), state, bytes_of(&bytes, layout.last()));
                    assert_ne!(end, Some(LinkEnd::Digest(digest)), "{size} passes as {wrong}");
                }
            }
        }
    }
}

#[test]
fn refused_states_leave_the_chain_as_it_was() {
    let (_, whole) = sample();
    let mut chain = Chain::new(whole.digest(), whole.layout()).unwrap();
    chain.extend(ChunkIndex::FIRST, &whole.states()[..3]).unwrap();
    let before = chain.clone();
    let mut forged = whole.states()[1..].to_vec();
    forged[0].0[0] ^= 1;
    assert_eq!(chain.extend(ChunkIndex(1), &forged), Err(ChainError::Contradiction));
    let mut beyond = whole.states()[2..].to_vec();
    beyond.push(State([0; 32]));
    assert_eq!(chain.extend(ChunkIndex(2), &beyond), Err(ChainError::Beyond));
    assert_eq!(chain.extend(ChunkIndex::FIRST, &[State([0; 32])]), Err(ChainError::Contradiction));
    for gap in [3, 4, u32::MAX] {
        assert_eq!(chain.extend(ChunkIndex(gap), &whole.states()[3..]), Err(ChainError::Gap));
    }
    assert_eq!(chain, before);
    assert_eq!(chain.expected(ChunkIndex(4)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn links_hold_in_any_order_and_however_their_bytes_arrive(
        order in Just(Vec::from_iter(0..4_u32)).prop_shuffle(),
        cuts in proptest::collection::vec(any::<Index>(), 0..12),
    ) {
        let (data, chain) = sample();
        for chunk in order.into_iter().map(ChunkIndex) {
            let bytes = bytes_of(data, chunk);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let expected = chain.expected(chunk).unwrap();
            let mut link = Link::new(chain.layout(), chunk, expected.before);
            for piece in cuts.windows(2) {
                link.update(&bytes[piece[0]..piece[1]]);
            }
            prop_assert_eq!(link.end(chain.layout(), chunk), expected.end);
        }
    }

    #[test]
    fn any_flipped_bit_of_the_data_is_refused(chunk in any::<Index>(), at in any::<Index>(), bit in 0..8_u8) {
        let (data, chain) = sample();
        let chunk = chunk_of(chain, chunk);
        let mut bytes = bytes_of(data, chunk).to_vec();
        prop_assert!(passes(chain, chunk, &bytes));
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(!passes(chain, chunk, &bytes));
    }

    #[test]
    fn any_flipped_bit_of_a_state_breaks_both_links_that_touch_it(state in 1..4_usize, at in 0..32_usize, bit in 0..8_u8) {
        let (data, chain) = sample();
        let mut states = chain.states().to_vec();
        states[state].0[at] ^= 1_u8 << bit;
        let mut forged = Chain::new(chain.digest(), chain.layout()).unwrap();
        forged.extend(ChunkIndex::FIRST, &states).unwrap();
        for chunk in chain.layout().chunks() {
            let touches = chunk.at() == state || chunk.at() + 1 == state;
            prop_assert_eq!(passes(&forged, chunk, bytes_of(data, chunk)), !touches);
        }
    }

    #[test]
    fn bytes_of_another_chunk_are_refused(chunk in 0..4_u32, other in 0..4_u32) {
        let (data, chain) = sample();
        let right = chunk == other;
        prop_assert_eq!(passes(chain, ChunkIndex(chunk), bytes_of(data, ChunkIndex(other))), right);
    }

    #[test]
    fn a_link_ends_only_after_exactly_its_bytes(chunk in any::<Index>(), length in any::<Index>()) {
        let (data, chain) = sample();
        let chunk = chunk_of(chain, chunk);
        let bytes = bytes_of(data, chunk);
        let before = chain.state(chunk).unwrap();
        let short = &bytes[..length.index(bytes.len())];
        prop_assert_eq!(link(chain.layout(), chunk, before, short), None);
        let mut long = bytes.to_vec();
        long.push(0);
        prop_assert_eq!(link(chain.layout(), chunk, before, &long), None);
    }

    #[test]
    fn segments_in_any_order_and_overlap_build_the_same_chain(
        borders in proptest::collection::vec((0..40_usize, 0..40_usize), 1..30),
    ) {
        let layout = Layout::new(40 * CHUNK as u64).unwrap();
        let states: Vec<_> = (0..40_u8).map(|at| if at == 0 { State::INITIAL } else { State([at; 32]) }).collect();
        let mut chain = Chain::new(Digest::sha256([0; 32]), layout).unwrap();
        for (one, other) in borders {
            let (from, to) = (one.min(other), one.max(other) + 1);
            let known = chain.states().len();
            let result = chain.extend(ChunkIndex(from as u32), &states[from..to]);
            prop_assert_eq!(result, if from >= known { Err(ChainError::Gap) } else { Ok(()) });
            let now = if result.is_ok() { known.max(to) } else { known };
            prop_assert_eq!(chain.states(), &states[..now]);
            prop_assert_eq!(chain.frontier().at(), now - 1);
            prop_assert_eq!(chain.is_whole(), now == 40);
            for chunk in layout.chunks() {
                prop_assert_eq!(chain.can_verify(chunk), chunk.at() + 1 < now || now == 40);
            }
        }
    }
}
