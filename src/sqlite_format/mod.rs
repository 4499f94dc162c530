//! SQLite's file format, decoded without SQLite, for files that SQLite cannot read to the end
//! (<https://sqlite.org/fileformat2.html>; sections are cited as "File Format").
//!
//! SQLite descends from the root page of a table and fails at the first corrupt page; everything behind that page is
//! out of its reach. A leaf page carries its rows whole, so a reader that visits *every* page finds each row whose own
//! pages are intact. The layers are those of Chromium's `sql/recover_module`:
//!
//! | module | decodes |
//! | --- | --- |
//! | [`pager`] | pages, by number, as of the last commit of the write-ahead log; the list of free pages |
//! | [`wal`] | the valid frames of a write-ahead log |
//! | [`pointer_map`] | which page is the parent of which (`auto_vacuum` only) |
//! | [`btree`] | the cells of a page |
//! | [`payload`] | the bytes of a record, which may continue in overflow pages |
//! | [`record`] | the types and values of a record's columns |
//!
//! # Invariants
//!
//! - **Pure.** Bytes come through [`ReadAt`]. Nothing is written, logged or timed.
//! - **Total.** No input panics: every offset is checked. Loops are bounded by the page count or by the length of one
//!   payload, so a cycle of page numbers ends.
//! - **All or nothing.** A decoder returns a complete value or `None`, never a part. Whether a row is genuine, and what
//!   it means, is for the caller to decide: these are candidates.
//!
//! Two rooms use it: `store/sqlite` recovers our own damaged stores, `sdk` reads damaged files of the Python SDK.

pub(crate) mod btree;
pub(crate) mod pager;
pub(crate) mod payload;
pub(crate) mod pointer_map;
pub(crate) mod record;
pub(crate) mod wal;

use std::io;
use std::sync::Arc;

const PAGE_BYTES_MIN: u32 = 512;
const PAGE_BYTES_MAX: u32 = 65_536;

/// Bytes of a file, read at an offset.
pub(crate) trait ReadAt {
    /// Returns how many bytes there are.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn byte_len(&self) -> io::Result<u64>;

    /// Fills the buffer from this offset; returns how many bytes were read, fewer only at the end of the file.
    ///
    /// # Errors
    ///
    /// The error of the operating system.
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills the whole buffer from this offset.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends earlier, or the error of the operating system.
    fn fill_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fill_at(buffer, offset)? == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<R: ReadAt> ReadAt for Arc<R> {
    fn byte_len(&self) -> io::Result<u64> {
        (**self).byte_len()
    }

    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).fill_at(buffer, offset)
    }
}

#[cfg(test)]
impl ReadAt for Vec<u8> {
    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// Returns whether SQLite's pages may have this size.
fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&bytes)
}

/// Reads a big-endian integer of four bytes.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
}

/// Reads SQLite's variable-length integer; returns it and the offset of the byte after it (File Format 1.6).
pub(crate) fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (read, byte) in bytes.get(at..)?.iter().take(9).enumerate() {
        if read == 8 {
            return Some((value << 8 | u64::from(*byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + read + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_up_to_nine_bytes() {
        assert_eq!(varint(&[0x7f], 0), Some((127, 1)));
        assert_eq!(varint(&[0, 0x81, 0x00], 1), Some((128, 3)));
        assert_eq!(varint(&[0xff; 9], 0), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0xff; 8], 0), None);
        assert_eq!(varint(&[], 1), None);
    }
}
