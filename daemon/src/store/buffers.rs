//! Buffers for reads, used again and again: fresh memory of this size would be mapped, cleared and unmapped by the kernel
//! for each read, which costs as much as the read itself.

use std::{
    mem,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

/// Length of a buffer: several fit into a core's second-level cache, so that what was read is still there when it is
/// sent; and it amortises the calls.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;
/// Buffers that are kept for later: 8 MiB.
const KEPT_MAX: usize = 32;

/// Those that nobody uses.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer that goes back when it is dropped.
pub(super) struct Buffer {
    /// [`BUFFER_BYTES`] long.
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    /// A buffer with old content.
    pub(super) fn take() -> Self {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { bytes: kept.unwrap_or_else(|| vec![0; BUFFER_BYTES]), filled: 0 }
    }

    /// The part of the first `len` bytes that was not filled yet.
    pub(super) fn rest(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.filled..len]
    }

    pub(super) const fn filled(&self) -> usize {
        self.filled
    }

    pub(super) const fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// What was filled.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_filled_comes_out_of_a_buffer_with_old_content() {
        for filled in [BUFFER_BYTES, 3, 0] {
            let mut buffer = Buffer::take();
            buffer.rest(filled).fill(7);
            buffer.fill(filled);
            assert_eq!(buffer.filled(), filled);
            assert_eq!(buffer.freeze(), vec![7; filled]);
        }
        assert!(KEPT.lock().is_ok_and(|kept| kept.len() <= KEPT_MAX));
    }
}
