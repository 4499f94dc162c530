//! The bytes of a record, which may continue in overflow pages (File Format 1.6).

use super::btree::{PageKind, RecordCell, RowLocation};
use super::pager::Pager;
use super::record::{self, ColumnValue};
use super::{ReadAt, be32};

/// Returns the part of a payload that is in the page of its cell.
pub(crate) fn local<'page>(page: &'page [u8], cell: &RecordCell) -> Option<&'page [u8]> {
    page.get(cell.payload_at..cell.payload_at.checked_add(cell.local_bytes)?)
}

/// Reads a payload; `None` if a part of it is missing.
pub(crate) fn read<R: ReadAt>(pager: &Pager<R>, page: &[u8], cell: &RecordCell) -> Option<Vec<u8>> {
    let mut payload = local(page, cell)?.to_vec();
    if payload.len() as u64 == cell.payload_bytes {
        return Some(payload);
    }
    // No payload is longer than all pages together.
    if cell.payload_bytes > u64::from(pager.count()) * u64::from(pager.page_bytes()) {
        return None;
    }
    let mut next = be32(page, cell.payload_at + cell.local_bytes)?;
    let mut buffer = pager.buffer();
    let mut links = 0;
    while (payload.len() as u64) < cell.payload_bytes {
        links += 1;
        if next < 2 || links > pager.count() || !pager.read(next, &mut buffer) {
            return None;
        }
        next = be32(&buffer, 0)?;
        let missing = cell.payload_bytes - payload.len() as u64;
        let taken = missing.min(u64::from(pager.usable_bytes()) - 4) as usize;
        payload.extend_from_slice(&buffer[4..4 + taken]);
    }
    Some(payload)
}

/// Reads the values of a row; `None` if a part of it is missing.
pub(crate) fn row<R: ReadAt>(pager: &Pager<R>, location: RowLocation) -> Option<Vec<ColumnValue>> {
    let mut page = pager.buffer();
    if !pager.read(location.page, &mut page) {
        return None;
    }
    let cell = RecordCell::read(&page, PageKind::of(&page)?, location.cell, pager.usable_bytes())?;
    record::values(&read(pager, &page, &cell)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a database of 512-byte pages whose second page has a row of `payload_bytes`, continued in page `overflow`.
    fn database(payload_bytes: u16, overflow: u32, pages: usize) -> (Vec<u8>, RecordCell) {
        let mut bytes = vec![1; 512 * pages];
        let cell = [0x80 | (payload_bytes >> 7) as u8, (payload_bytes & 0x7f) as u8, 1];
        bytes[512 + 20..][..3].copy_from_slice(&cell);
        bytes[512] = 0x0d;
        let cell = RecordCell::read(&bytes[512..1024], PageKind::TableLeaf, 20, 512).expect("it is a cell");
        bytes[512 + cell.payload_at + cell.local_bytes..][..4].copy_from_slice(&overflow.to_be_bytes());
        (bytes, cell)
    }

    #[test]
    fn a_chain_of_overflow_pages_is_read_to_its_end() {
        let (mut bytes, cell) = database(1000, 3, 4);
        bytes[1024..1028].copy_from_slice(&4_u32.to_be_bytes());
        let page = bytes[512..1024].to_vec();
        let pager = Pager::with_log(Some(bytes), None, 512).expect("it is in memory");
        assert_eq!(read(&pager, &page, &cell).map(|payload| payload.len()), Some(1000));
    }

    #[test]
    fn a_payload_with_a_missing_page_is_not_read() {
        for (payload_bytes, next) in [(1400, 9), (1400, 0), (2000, 3)] {
            let (mut bytes, cell) = database(payload_bytes, 3, 3);
            bytes[1024..1028].copy_from_slice(&u32::to_be_bytes(next));
            let page = bytes[512..1024].to_vec();
            let pager = Pager::with_log(Some(bytes), None, 512).expect("it is in memory");
            assert_eq!(read(&pager, &page, &cell), None, "{payload_bytes} bytes, continued in page {next}");
        }
    }
}
