//! Pages by number, as the last commit of the write-ahead log left them (File Format 1.2, 1.3 and 1.5).

use std::collections::{HashMap, HashSet};
use std::io;

use super::wal::Frames;
use super::{PAGE_BYTES_MAX, PAGE_BYTES_MIN, ReadAt, be32, is_page_size};

/// How every SQLite database begins.
pub(crate) const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
/// SQLite's smallest usable part of a page.
const USABLE_BYTES_MIN: u32 = 480;

/// The pages of a database.
#[derive(Debug)]
pub(crate) struct Pager<R> {
    file: Option<R>,
    log: Option<R>,
    /// Offset in the log of the newest version of a page.
    in_log: HashMap<u32, u64>,
    page_bytes: u32,
    usable_bytes: u32,
    count: u32,
}

impl<R: ReadAt> Pager<R> {
    /// Opens a database file that has no log. Only whole pages count; without a valid page size in its header, it has
    /// none.
    ///
    /// # Errors
    ///
    /// The error of the reader, for a file without a header too.
    pub(crate) fn of_file(file: R) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        file.fill_exact_at(&mut header, 0)?;
        let stated = stated_page_bytes(&header);
        let page_bytes = if is_page_size(stated) { stated } else { PAGE_BYTES_MIN };
        let pages = if is_page_size(stated) { file.byte_len()? / u64::from(page_bytes) } else { 0 };
        let usable_bytes = page_bytes - u32::from(header[20]).min(page_bytes - USABLE_BYTES_MIN);
        let count = u32::try_from(pages).unwrap_or(u32::MAX);
        Ok(Self { file: Some(file), log: None, in_log: HashMap::new(), page_bytes, usable_bytes, count })
    }

    /// Opens a database as of the last commit of its log, of which either may be missing. If neither states a valid
    /// page size, pages have `default_page_bytes`. No page has reserved space, and the last page may be cut off.
    ///
    /// # Errors
    ///
    /// The error of the reader when it cannot tell the length of the file or the log.
    pub(crate) fn with_log(file: Option<R>, log: Option<R>, default_page_bytes: u32) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        let file_bytes = file.as_ref().map_or(Ok(0), ReadAt::byte_len)?;
        let has_header = file.as_ref().is_some_and(|file| file.fill_exact_at(&mut header, 0).is_ok());
        let in_header = Some(stated_page_bytes(&header))
            .filter(|stated| has_header && header.starts_with(MAGIC) && is_page_size(*stated));
        let frames = log.as_ref().map(|log| Frames::read(log, default_page_bytes)).transpose()?.flatten();
        let in_frames = frames.as_ref().map(|frames| frames.page_bytes);
        let page_bytes = in_frames.or(in_header).unwrap_or(default_page_bytes);
        let in_file = u32::try_from(file_bytes.div_ceil(u64::from(page_bytes))).unwrap_or(u32::MAX);
        let (in_log, committed) = frames.map_or_else(Default::default, |frames| (frames.pages, frames.committed_pages));
        let count = if committed > 0 { committed } else { in_file };
        Ok(Self { file, log, in_log, page_bytes, usable_bytes: page_bytes, count })
    }

    /// Reads a page and returns whether that succeeded. The missing end of a page that is cut off is zero.
    pub(crate) fn read(&self, number: u32, page: &mut [u8]) -> bool {
        if number == 0 || number > self.count {
            return false;
        }
        if let (Some(offset), Some(log)) = (self.in_log.get(&number), &self.log) {
            return log.fill_exact_at(page, *offset).is_ok();
        }
        let offset = u64::from(number - 1) * u64::from(self.page_bytes);
        // A bad sector costs its page and no more.
        let Some(Ok(filled)) = self.file.as_ref().map(|file| file.fill_at(page, offset)) else { return false };
        page[filled..].fill(0);
        filled > 0
    }

    /// Returns a buffer for [`Pager::read`].
    pub(crate) fn buffer(&self) -> Vec<u8> {
        vec![0; self.page_bytes as usize]
    }

    pub(crate) fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    /// Returns the size of a page without the space that is reserved at its end.
    pub(crate) fn usable_bytes(&self) -> u32 {
        self.usable_bytes
    }

    /// Returns how many pages the database has.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

/// Returns the page size that a header states, valid or not.
fn stated_page_bytes(header: &[u8; HEADER_BYTES]) -> u32 {
    match u16::from_be_bytes([header[16], header[17]]) {
        1 => PAGE_BYTES_MAX,
        bytes => u32::from(bytes),
    }
}

/// The pages that the database lists as free (File Format 1.5).
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    pages: HashSet<u32>,
    is_complete: bool,
}

impl FreeList {
    /// Reads the list up to its end or its first corrupt page.
    pub(crate) fn read<R: ReadAt>(pager: &Pager<R>) -> Self {
        let mut list = Self::default();
        let mut page = pager.buffer();
        if !pager.read(1, &mut page) || !page.starts_with(MAGIC) {
            return list;
        }
        let (mut trunk, expected) = (be32(&page, 32).unwrap_or(0), be32(&page, 36).unwrap_or(0));
        while trunk != 0 && pager.read(trunk, &mut page) && list.pages.insert(trunk) {
            let entries = be32(&page, 4).unwrap_or(0);
            if entries > pager.usable_bytes / 4 - 2 {
                break;
            }
            list.pages.extend((0..entries as usize).filter_map(|entry| be32(&page, 8 + 4 * entry)));
            trunk = be32(&page, 0).unwrap_or(0);
        }
        list.is_complete = list.pages.len() == expected as usize && trunk == 0;
        list
    }

    pub(crate) fn contains(&self, page: u32) -> bool {
        self.pages.contains(&page)
    }

    /// Returns whether the list was read to its end, and has as many pages as the header says.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(pages: u32, free: &[(usize, [u32; 3])]) -> Vec<u8> {
        let mut bytes = vec![0; 512 * pages as usize];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&512_u16.to_be_bytes());
        for (at, words) in free {
            for (place, word) in words.iter().enumerate() {
                bytes[at + 4 * place..][..4].copy_from_slice(&word.to_be_bytes());
            }
        }
        bytes
    }

    #[test]
    fn a_page_that_is_cut_off_ends_in_zeros_or_does_not_count() {
        let mut bytes = database(2, &[]);
        bytes[512..].fill(7);
        bytes.truncate(1000);
        let mut page = vec![9; 512];
        let pager = Pager::with_log(Some(bytes.clone()), None, 4096).expect("it is in memory");
        assert!(pager.read(2, &mut page) && page[487] == 7 && page[488] == 0 && !pager.read(3, &mut page));
        let pager = Pager::of_file(bytes).expect("it has a header");
        assert!(pager.count() == 1 && !pager.read(2, &mut page) && !pager.read(0, &mut page));
    }

    #[test]
    fn a_file_without_a_valid_page_size_has_no_pages() {
        let mut bytes = database(2, &[]);
        bytes[16..18].copy_from_slice(&513_u16.to_be_bytes());
        assert_eq!(Pager::of_file(bytes.clone()).expect("it has a header").count(), 0);
        assert_eq!(Pager::with_log(Some(bytes), None, 512).expect("it is in memory").count(), 2);
    }

    #[test]
    fn a_cycle_or_a_corrupt_trunk_ends_the_free_list() {
        let list =
            |free: &[(usize, [u32; 3])]| FreeList::read(&Pager::of_file(database(4, free)).expect("it has a header"));
        let whole = list(&[(32, [2, 2, 0]), (512, [0, 1, 3])]);
        assert!(whole.contains(2) && whole.contains(3) && !whole.contains(4) && whole.is_complete());
        let cycle = list(&[(32, [2, 2, 0]), (512, [2, 1, 3])]);
        assert!(cycle.contains(3) && !cycle.is_complete());
        let corrupt = list(&[(32, [2, 2, 0]), (512, [4, 1 << 20, 3])]);
        assert!(corrupt.contains(2) && !corrupt.contains(3) && !corrupt.contains(4) && !corrupt.is_complete());
    }
}
