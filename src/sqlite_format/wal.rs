//! The valid frames of a write-ahead log (File Format 4).
//!
//! SQLite drops everything behind the first invalid frame. Here an invalid frame costs itself alone: a frame is valid
//! if its checksum follows from the checksum that is *stored* in the frame before it, even if that frame is invalid
//! itself.

use std::collections::HashMap;
use std::io;

use super::{ReadAt, be32, is_page_size};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC_LITTLE_ENDIAN: u32 = 0x377f_0682;
const MAGIC_BIG_ENDIAN: u32 = 0x377f_0683;
/// By how many pages a commit may grow the database if its own frame is invalid. A larger size is taken as noise.
const GROWTH_MAX: u32 = 1 << 16;

/// The frames of the log's last generation, up to its last commit.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(super) page_bytes: u32,
    /// Offset in the log of the newest valid version of each page.
    pub(super) pages: HashMap<u32, u64>,
    /// How many pages the database has after the last commit; 0 if nothing was committed.
    pub(super) committed_pages: u32,
    is_intact: bool,
}

impl Frames {
    /// Reads a log; `None` if no frame in it was committed. If its header is corrupt, pages have `default_page_bytes`.
    ///
    /// # Errors
    ///
    /// The error of the reader when it cannot tell the length of the log.
    pub(crate) fn read<R: ReadAt>(log: &R, default_page_bytes: u32) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_BYTES];
        if log.fill_exact_at(&mut header, 0).is_err() {
            return Ok(None);
        }
        let word = |at: usize| be32(&header, at).unwrap_or(0);
        let big_endian = word(0) == MAGIC_BIG_ENDIAN;
        let mut stored = (word(24), word(28));
        let is_intact = matches!(word(0), MAGIC_LITTLE_ENDIAN | MAGIC_BIG_ENDIAN)
            && checksum((0, 0), &header[..24], big_endian) == stored
            && word(8).is_power_of_two();
        let page_bytes = if is_intact { word(8) } else { default_page_bytes };
        if !is_page_size(page_bytes) {
            return Ok(None);
        }
        let mut salts = is_intact.then(|| (word(16), word(20)));
        let frame_bytes = FRAME_HEADER_BYTES + page_bytes as usize;
        let frames = log.byte_len()?.saturating_sub(HEADER_BYTES as u64) / frame_bytes as u64;
        let mut frame = vec![0; frame_bytes];
        // Versions since the last commit: they count when the next commit comes.
        let mut uncommitted: Vec<(u32, u64)> = Vec::new();
        let mut found = Self { page_bytes, pages: HashMap::new(), committed_pages: 0, is_intact };
        let mut has_invalid = false;
        for number in 0..frames {
            let offset = HEADER_BYTES as u64 + number * frame_bytes as u64;
            let is_read = log.fill_exact_at(&mut frame, offset).is_ok();
            let word = |at: usize| be32(&frame, at).unwrap_or(0);
            let (page, pages_after, frame_salts) = (word(0), word(4), (word(8), word(12)));
            let sum = checksum(stored, &frame[..8], big_endian);
            let is_valid = is_read && checksum(sum, &frame[FRAME_HEADER_BYTES..], big_endian) == (word(16), word(20));
            stored = (word(16), word(20));
            if salts.is_none() && is_valid {
                salts = Some(frame_salts);
            }
            // A frame with other salts is left over from an earlier generation.
            if salts != Some(frame_salts) {
                continue;
            }
            match is_valid {
                true => uncommitted.push((page, offset + FRAME_HEADER_BYTES as u64)),
                false => has_invalid = true,
            }
            // The frame that ends a commit may be the invalid one.
            let is_commit = pages_after > 0
                && (is_valid || pages_after <= found.committed_pages.max(page).saturating_add(GROWTH_MAX));
            if is_commit {
                found.pages.extend(uncommitted.drain(..));
                found.committed_pages = pages_after;
                found.is_intact &= !has_invalid;
            }
        }
        Ok((!found.pages.is_empty()).then_some(found))
    }

    /// Returns whether SQLite would read every committed frame: the header is intact, and no frame before the last
    /// commit is invalid.
    pub(crate) fn is_intact(&self) -> bool {
        self.is_intact
    }
}

/// SQLite's checksum of a log, over words of four bytes.
fn checksum(seed: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let (mut first, mut second) = seed;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 512;

    /// Makes a log of commits of one page each, every page filled with its number.
    fn log(pages: &[u32]) -> Vec<u8> {
        let mut log = Vec::new();
        for word in [MAGIC_BIG_ENDIAN, 3_007_000, PAGE_BYTES as u32, 0, 11, 12] {
            log.extend(word.to_be_bytes());
        }
        let mut sum = checksum((0, 0), &log, true);
        log.extend([sum.0, sum.1].into_iter().flat_map(u32::to_be_bytes));
        for number in pages {
            let head: Vec<u8> = [*number, 9].into_iter().flat_map(u32::to_be_bytes).collect();
            let page = [*number as u8; PAGE_BYTES];
            sum = checksum(checksum(sum, &head, true), &page, true);
            log.extend(&head);
            log.extend([11, 12, sum.0, sum.1].into_iter().flat_map(u32::to_be_bytes));
            log.extend(page);
        }
        log
    }

    fn frame_at(number: usize) -> usize {
        HEADER_BYTES + number * (FRAME_HEADER_BYTES + PAGE_BYTES)
    }

    fn pages(log: Vec<u8>) -> Option<(Vec<u32>, bool)> {
        let frames = Frames::read(&log, PAGE_BYTES as u32).expect("it is in memory")?;
        let mut pages: Vec<u32> = frames.pages.keys().copied().collect();
        pages.sort_unstable();
        Some((pages, frames.is_intact()))
    }

    #[test]
    fn an_invalid_frame_costs_only_itself() {
        assert_eq!(pages(log(&[2, 3, 4])), Some((vec![2, 3, 4], true)));
        let mut damaged = log(&[2, 3, 4]);
        damaged[frame_at(1) + FRAME_HEADER_BYTES + 5] ^= 1;
        assert_eq!(pages(damaged), Some((vec![2, 4], false)));
    }

    #[test]
    fn a_log_without_its_header_still_has_its_frames() {
        let mut damaged = log(&[2, 3, 4]);
        damaged[8..16].fill(0xa5);
        // Big-endian words are known by the header's first bytes.
        assert_eq!(pages(damaged), Some((vec![2, 3, 4], false)));
    }

    #[test]
    fn frames_of_an_earlier_generation_do_not_count() {
        let mut log = log(&[2, 3]);
        let at = frame_at(1) + 8;
        log[at..at + 8].fill(1);
        assert_eq!(pages(log), Some((vec![2], true)));
        assert_eq!(pages(Vec::new()), None);
    }
}
