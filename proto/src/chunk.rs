//! How a blob is cut into chunks, and sets of chunks.

use std::ops::Range;

use fixedbitset::FixedBitSet;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Position of a chunk in its blob, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// The first chunk.
    pub const FIRST: Self = Self(0);

    /// As an index into slices.
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }

    /// The chunk behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How a blob of a given size is cut. The cut follows from the size alone, so that all nodes agree on it.
///
/// Chunks are 256 KiB to 4 MiB (powers of two), aimed at 1024 to 2048 chunks a blob: fewer make the last node wait for
/// store-and-forward, more cost messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    size: u64,
}

impl Layout {
    /// Largest blob that has a layout, in bytes.
    pub const SIZE_MAX: u64 = 256 * 1024 * MIB;
    /// Largest chunk, in bytes.
    pub const CHUNK_BYTES_MAX: u64 = 4 * MIB;
    /// Smallest chunk length for blobs of more than one chunk, in bytes.
    pub const CHUNK_BYTES_MIN: u64 = 256 * KIB;

    /// From this size on chunks are twice the smallest at least, in bytes.
    const LARGE: u64 = 256 * MIB;

    /// The layout of a blob of `size` bytes; none above [`Self::SIZE_MAX`].
    #[must_use]
    pub const fn new(size: u64) -> Option<Self> {
        if size <= Self::SIZE_MAX { Some(Self { size }) } else { None }
    }

    /// Bytes in the blob.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Bytes in each chunk but the last; a multiple of 64.
    #[must_use]
    pub const fn chunk_bytes(self) -> u64 {
        let wanted = (self.size / 4096).next_power_of_two();
        let least = if self.size < Self::LARGE { Self::CHUNK_BYTES_MIN } else { 2 * Self::CHUNK_BYTES_MIN };
        if wanted < least {
            least
        } else if wanted > Self::CHUNK_BYTES_MAX {
            Self::CHUNK_BYTES_MAX
        } else {
            wanted
        }
    }

    /// Number of chunks: at least one, also for the empty blob.
    #[must_use]
    pub const fn count(self) -> u32 {
        let count = self.size.div_ceil(self.chunk_bytes());
        if count == 0 { 1 } else { count as u32 }
    }

    /// The last chunk, whose link ends in the digest.
    #[must_use]
    pub const fn last(self) -> ChunkIndex {
        ChunkIndex(self.count() - 1)
    }

    /// Whether the blob has this chunk.
    #[must_use]
    pub const fn contains(self, chunk: ChunkIndex) -> bool {
        chunk.0 < self.count()
    }

    /// The bytes of a chunk; none, at the blob's end, for chunks beyond it.
    #[must_use]
    pub fn range(self, chunk: ChunkIndex) -> Range<u64> {
        let start = (u64::from(chunk.0) * self.chunk_bytes()).min(self.size);
        start..(start + self.chunk_bytes()).min(self.size)
    }

    /// Length of a chunk in bytes; 0 for chunks beyond the blob.
    #[must_use]
    pub fn len(self, chunk: ChunkIndex) -> u64 {
        let range = self.range(chunk);
        range.end - range.start
    }

    /// The chunk that holds the byte at `offset`; the last one for offsets at or past the end.
    #[must_use]
    pub fn chunk_at(self, offset: u64) -> ChunkIndex {
        let index = offset / self.chunk_bytes();
        ChunkIndex(index.min(u64::from(self.last().0)) as u32)
    }

    /// All chunks, in order.
    pub fn chunks(self) -> impl DoubleEndedIterator<Item = ChunkIndex> + ExactSizeIterator {
        (0..self.count()).map(ChunkIndex)
    }
}

/// A set of chunks of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSet {
    bits: FixedBitSet,
    /// How many bits are set: asked for at every turn of a fetch.
    len: u32,
}

impl ChunkSet {
    /// No chunk of a blob of `count` chunks.
    #[must_use]
    pub fn empty(count: u32) -> Self {
        Self { bits: FixedBitSet::with_capacity(count as usize), len: 0 }
    }

    /// Every chunk of a blob of `count` chunks.
    #[must_use]
    pub fn full(count: u32) -> Self {
        let mut set = Self::empty(count);
        set.bits.insert_range(..);
        set.len = count;
        set
    }

    /// How many chunks the blob has.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.bits.len() as u32
    }

    /// How many chunks are in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no chunk is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every chunk is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.capacity()
    }

    /// Whether the chunk is in the set; false for chunks beyond the blob.
    #[must_use]
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.bits.contains(chunk.at())
    }

    /// Adds a chunk; returns whether it is new. Chunks beyond the blob are ignored.
    pub fn insert(&mut self, chunk: ChunkIndex) -> bool {
        let new = chunk.at() < self.bits.len() && !self.bits.put(chunk.at());
        self.len += u32::from(new);
        new
    }

    /// Takes a chunk out.
    pub fn remove(&mut self, chunk: ChunkIndex) {
        if self.contains(chunk) {
            self.bits.set(chunk.at(), false);
            self.len -= 1;
        }
    }

    /// The chunks in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> {
        self.bits.ones().map(|at| ChunkIndex(at as u32))
    }

    /// The last chunk in the set.
    #[must_use]
    pub fn last(&self) -> Option<ChunkIndex> {
        self.bits.maximum().map(|at| ChunkIndex(at as u32))
    }

    /// The chunks not in the set, in order.
    pub fn missing(&self) -> impl Iterator<Item = ChunkIndex> {
        self.bits.zeroes().map(|at| ChunkIndex(at as u32))
    }

    /// The chunks of this set that are in neither of two others of the same blob, in order.
    pub fn without<'a>(&'a self, one: &'a Self, other: &'a Self) -> impl Iterator<Item = ChunkIndex> + 'a {
        let words = self.bits.as_slice().iter().zip(one.bits.as_slice()).zip(other.bits.as_slice());
        words.enumerate().flat_map(|(at, ((all, one), other))| {
            let mut word = all & !one & !other;
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                (word != 0).then(|| {
                    word &= word - 1;
                    ChunkIndex(at as u32 * usize::BITS + bit)
                })
            })
        })
    }

    /// The first chunk at or behind `from` that is not in the set.
    #[must_use]
    pub fn first_missing(&self, from: ChunkIndex) -> Option<ChunkIndex> {
        (from.at()..self.bits.len()).find(|at| !self.bits.contains(*at)).map(|at| ChunkIndex(at as u32))
    }

    /// The set as bytes, least significant bit first.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bits.len().div_ceil(8)];
        for at in self.bits.ones() {
            bytes[at / 8] |= 1 << (at % 8);
        }
        bytes
    }

    /// The set of a blob of `count` chunks from [`Self::to_bytes`]; none if the length does not fit or a bit beyond
    /// `count` is set.
    #[must_use]
    pub fn from_bytes(count: u32, bytes: &[u8]) -> Option<Self> {
        let mut set = Self::empty(count);
        if bytes.len() != (count as usize).div_ceil(8) {
            return None;
        }
        for (at, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let chunk = at * 8 + bit;
                if chunk >= count as usize {
                    return None;
                }
                set.insert(ChunkIndex(chunk as u32));
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_blob_without_gap_or_overlap() {
        for size in [0, 1, 63, 64, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 300 * MIB + 5, 10_000 * MIB] {
            let layout = Layout::new(size).expect("within the limit");
            let mut end = 0;
            for chunk in layout.chunks() {
                let range = layout.range(chunk);
                assert_eq!(range.start, end);
                end = range.end;
                if !range.is_empty() {
                    assert_eq!(layout.chunk_at(range.start), chunk);
                    assert_eq!(layout.chunk_at(range.end - 1), chunk);
                }
            }
            assert_eq!(end, size);
            assert_eq!(layout.chunk_bytes() % 64, 0);
            for beyond in [layout.last().next(), ChunkIndex(u32::MAX)] {
                assert_eq!((layout.range(beyond), layout.len(beyond)), (size..size, 0));
            }
        }
        assert!(Layout::new(Layout::SIZE_MAX + 1).is_none());
    }

    #[test]
    fn a_chunk_set_survives_its_bytes_and_refuses_stray_bits() {
        let mut set = ChunkSet::empty(11);
        for at in [0, 3, 10] {
            assert!(set.insert(ChunkIndex(at)));
            assert!(!set.insert(ChunkIndex(at)));
        }
        assert!(!set.insert(ChunkIndex(11)));
        assert_eq!(ChunkSet::from_bytes(11, &set.to_bytes()), Some(set.clone()));
        assert_eq!(ChunkSet::from_bytes(11, &[0, 0xf8]), None);
        assert_eq!(ChunkSet::from_bytes(11, &[0]), None);
        let mut other = ChunkSet::empty(11);
        other.insert(ChunkIndex(3));
        let rest: Vec<_> = set.without(&other, &ChunkSet::empty(11)).collect();
        assert_eq!(rest, [ChunkIndex(0), ChunkIndex(10)]);
        assert_eq!(set.missing().count(), 8);
        assert_eq!(set.first_missing(ChunkIndex(3)), Some(ChunkIndex(4)));
    }
}
