//! A blob's file: positioned reads and writes of whole ranges, shared by any number of readers and writers.
//!
//! Plain `pread` and `pwritev`, no memory map: the resident size stays small, a failing disk is an error instead of a
//! signal, and no `unsafe` is needed.

use std::{
    fs::File,
    io::{self, IoSlice},
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};

use super::buffers::{BUFFER_BYTES, Buffer};

/// Slices per `pwritev`: the kernel's `IOV_MAX`.
const SLICES_MAX: usize = 1024;

/// The open file of a blob, partial or sealed. Clones share it, and it stays readable when the blob is sealed (same
/// inode) or removed (unlinked, never truncated).
#[derive(Debug, Clone)]
pub struct BlobFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    size: u64,
    /// Held shared during each write, so that closing waits for those under way.
    writable: RwLock<bool>,
}

impl BlobFile {
    pub(super) fn new(file: File, size: u64, writable: bool) -> Self {
        Self { inner: Arc::new(Inner { file, size, writable: RwLock::new(writable) }) }
    }

    /// Size of the blob in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Reads exactly `len` bytes at `offset`, in pieces of one buffer each.
    ///
    /// # Errors
    /// `UnexpectedEof` if the blob or its file ends before; otherwise what the disk says.
    pub fn read_pieces(&self, offset: u64, len: usize) -> io::Result<Vec<Bytes>> {
        let starts = (0..len).step_by(BUFFER_BYTES);
        starts.map(|at| self.read(offset + at as u64, (len - at).min(BUFFER_BYTES))).collect()
    }

    /// Reads exactly `len` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the blob or its file ends before; otherwise what the disk says.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.within(offset, len as u64, io::ErrorKind::UnexpectedEof)?;
        if len <= BUFFER_BYTES {
            let mut buffer = Buffer::take();
            while buffer.filled() < len {
                let (at, filled) = (offset + buffer.filled() as u64, buffer.filled() as u64);
                match rustix::io::pread(&self.inner.file, buffer.rest(len), at) {
                    Ok(0) => return Err(short(io::ErrorKind::UnexpectedEof, offset, len as u64, filled)),
                    Ok(read) => buffer.fill(read),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(buffer.freeze());
        }
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.inner.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(short(io::ErrorKind::UnexpectedEof, offset, len as u64, bytes.len() as u64)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than asked for.
        bytes.truncate(len);
        Ok(Bytes::from(bytes))
    }

    /// The same without waiting for the disk: none if not all of it lies in memory, or it is longer than a buffer, or
    /// the read fails for whatever reason, which [`Self::read`] will tell.
    #[must_use]
    pub fn read_cached(&self, offset: u64, len: usize) -> Option<Bytes> {
        self.within(offset, len as u64, io::ErrorKind::UnexpectedEof).ok()?;
        if len > BUFFER_BYTES {
            return None;
        }
        #[cfg(target_os = "linux")]
        {
            let mut buffer = Buffer::take();
            let mut room = [io::IoSliceMut::new(buffer.rest(len))];
            let read = rustix::io::preadv2(&self.inner.file, &mut room, offset, rustix::io::ReadWriteFlags::NOWAIT);
            buffer.fill(read.ok()?);
            (buffer.filled() == len).then(|| buffer.freeze())
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Has the system bring up to `len` bytes at `offset` into memory, without waiting for them. Only a hint.
    pub(crate) fn read_ahead(&self, offset: u64, len: u64) {
        #[cfg(target_os = "linux")]
        if let Some(len) = std::num::NonZeroU64::new(len)
            && let Err(error) = rustix::fs::fadvise(&self.inner.file, offset, Some(len), rustix::fs::Advice::WillNeed)
        {
            tracing::trace!(%error, "no read-ahead");
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len);
    }

    /// Writes the pieces one behind the other, starting at `offset`. On an error any part of them may have been written.
    ///
    /// # Errors
    /// `InvalidInput` if they go beyond the blob, `PermissionDenied` once the blob is sealed; otherwise what the disk
    /// says (`StorageFull` where the file system could not reserve the space beforehand).
    pub fn write(&self, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.within(offset, len, io::ErrorKind::InvalidInput)?;
        let writable = self.inner.writable.read().unwrap_or_else(PoisonError::into_inner);
        if !*writable {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the blob is sealed"));
        }
        for batch in pieces.chunks(SLICES_MAX) {
            let mut slices: Vec<_> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut slices = slices.as_mut_slice();
            // Drops empty pieces in front, so that nothing written means a full disk.
            IoSlice::advance_slices(&mut slices, 0);
            while !slices.is_empty() {
                match rustix::io::pwritev(&self.inner.file, slices, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        offset += written as u64;
                        IoSlice::advance_slices(&mut slices, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Whether nothing was ever written to a range that is not empty, as far as the file system can tell.
    pub(crate) fn is_hole(&self, range: &std::ops::Range<u64>) -> bool {
        if range.is_empty() {
            return false;
        }
        // The file's own position moves, which nobody uses.
        match rustix::fs::seek(&self.inner.file, rustix::fs::SeekFrom::Data(range.start)) {
            Ok(data) => data >= range.end,
            Err(error) => error == Errno::NXIO,
        }
    }

    /// Whether both are handles of one open file.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Refuses writes from here on, after those under way.
    pub(super) fn close_to_writes(&self) {
        *self.inner.writable.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    pub(super) fn reopen_to_writes(&self) {
        *self.inner.writable.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub(super) fn file(&self) -> &File {
        &self.inner.file
    }

    fn within(&self, offset: u64, len: u64, kind: io::ErrorKind) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.inner.size => Ok(()),
            _ => Err(short(kind, offset, len, self.inner.size.saturating_sub(offset).min(len))),
        }
    }
}

fn short(kind: io::ErrorKind, offset: u64, len: u64, there: u64) -> io::Error {
    io::Error::new(kind, format!("{len} bytes at offset {offset}: only {there} are within the blob"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn file(size: u64) -> BlobFile {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        BlobFile::new(file, size, true)
    }

    #[test]
    fn many_pieces_with_empty_ones_among_them_are_read_back_as_one() {
        let pieces: Vec<_> =
            (0..3000_u32).map(|at| Bytes::from(vec![at as u8; if at % 7 == 0 { 0 } else { 13 }])).collect();
        let whole: Vec<u8> = pieces.concat();
        let file = file(100 + whole.len() as u64);
        file.write(100, &pieces).unwrap();
        assert_eq!(file.read(100, whole.len()).unwrap(), whole);
        assert_eq!(file.read(0, 100).unwrap(), vec![0; 100]);
        file.write(100, &[Bytes::new(), Bytes::new()]).unwrap();
    }

    #[test]
    fn pieces_of_every_length_are_read_alike_from_memory_and_from_the_disk() {
        let whole: Vec<u8> = (0..3 * BUFFER_BYTES + 5).map(|at| (at / 7) as u8).collect();
        let file = file(whole.len() as u64);
        file.write(0, &[Bytes::from(whole.clone())]).unwrap();
        for (offset, len) in [(0, whole.len()), (1, 2 * BUFFER_BYTES), (9, BUFFER_BYTES), (3, 1), (5, 0)] {
            let expected = &whole[offset..offset + len];
            assert_eq!(file.read_pieces(offset as u64, len).unwrap().concat(), expected);
            assert_eq!(file.read(offset as u64, len).unwrap(), expected);
            // Not every file system can tell what lies in memory.
            assert!(file.read_cached(offset as u64, len).is_none_or(|bytes| bytes == expected));
        }
        assert!(file.read_cached(whole.len() as u64, 1).is_none());
    }

    #[test]
    fn reads_and_writes_beyond_the_blob_are_refused() {
        let file = file(10);
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1)] {
            assert_eq!(file.read(offset, len).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let bytes = Bytes::from(vec![1; len]);
            assert_eq!(file.write(offset, &[bytes]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(file.read(10, 0).unwrap().is_empty());
    }

    #[test]
    fn a_file_shorter_than_its_blob_is_a_short_read() {
        let short = BlobFile::new(tempfile::tempfile().unwrap(), 10, false);
        assert_eq!(short.read(0, 10).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_was_written_is_no_hole_and_what_was_not_is_one() {
        let part = 1 << 20;
        let file = file(3 * part);
        file.write(part, &[Bytes::from(vec![0; part as usize])]).unwrap();
        let holes = [0..part, part..2 * part, 2 * part..3 * part, 0..part + 1, 0..0, 3 * part..3 * part];
        assert_eq!(holes.map(|range| file.is_hole(&range)), [true, false, true, false, false, false]);
    }

    #[test]
    fn a_closed_file_refuses_writes() {
        let file = file(10);
        file.close_to_writes();
        let error = file.write(0, &[Bytes::from_static(b"late")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
