//! Rows of a damaged SDK store, found page by page (SQLite's "Database File Format", sections 1.5 and 1.6).
//!
//! SQLite finds rows through the tree of pages and gives up where it is broken. The leaves carry the rows whole, so all of
//! them that are left in the file are read without it. Pages that the file's own list says are free are left out: they
//! hold rows that were deleted, which for the SDK means delivered. What is left of the tree tells how many rows its missing
//! leaves had.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::StoredRow;
use crate::sqlite_format::{be32, cell_pointers, varint};

/// Bytes of a row that are believed.
const VALUE_BYTES_MAX: u64 = super::distrust::ROW_BYTES_MAX as u64;
/// Pages that are read between two questions whether to go on.
const PAGES_AT_ONCE: u32 = 256;
const LEAF: u8 = 0x0d;
const INTERIOR: u8 = 0x05;

/// Where a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) message_id: i64,
    page: u32,
    cell: u16,
}

/// What the pages of a file hold.
#[derive(Debug, Default)]
pub(super) struct Pages {
    page_bytes: u32,
    usable_bytes: u32,
    count: u32,
    /// Rows by their id, each once.
    pub(super) places: Vec<Place>,
    /// Rows that were in leaves which can't be read; an estimate.
    pub(super) lost: u64,
}

impl Pages {
    /// Looks through every page of the file once, until `is_over`: then the error is [`std::io::ErrorKind::Interrupted`].
    pub(super) fn read(file: &File, is_over: &dyn Fn() -> bool) -> std::io::Result<Self> {
        let mut header = [0; 100];
        file.read_exact_at(&mut header, 0)?;
        let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            bytes => u32::from(bytes),
        };
        if !page_bytes.is_power_of_two() || page_bytes < 512 {
            return Ok(Self::default());
        }
        let count = u32::try_from(file.metadata()?.len() / u64::from(page_bytes)).unwrap_or(u32::MAX);
        let usable_bytes = page_bytes - u32::from(header[20]).min(page_bytes - 480);
        let mut pages = Self { page_bytes, usable_bytes, count, ..Self::default() };
        let free = pages.free(file, u32::from_be_bytes([header[32], header[33], header[34], header[35]]));
        let mut readable = HashSet::new();
        let mut children = Vec::new();
        let mut page = vec![0; page_bytes as usize];
        for number in 2..=count {
            if number % PAGES_AT_ONCE == 0 && is_over() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            if free.contains(&number) || pages.page(file, number, &mut page).is_none() {
                continue;
            }
            let known = match page[0] {
                LEAF => pages.leaf(number, &page),
                INTERIOR => pages.interior(&page, &mut children),
                _ => false,
            };
            if known {
                readable.insert(number);
            }
        }
        pages.places.sort_unstable();
        pages.places.dedup_by_key(|place| place.message_id);
        pages.estimate_lost(&children, &readable);
        Ok(pages)
    }

    /// Reads one row, or `None` when a part of it is missing.
    pub(super) fn row(&self, file: &File, place: Place) -> Option<StoredRow> {
        let mut page = vec![0; self.page_bytes as usize];
        self.page(file, place.page, &mut page)?;
        let cell = Cell::read(&page, place.cell, self.usable_bytes)?;
        let mut payload = Vec::new();
        payload.extend_from_slice(page.get(cell.payload_at..cell.payload_at + cell.local_bytes)?);
        let mut next = match cell.overflow_at {
            Some(at) => be32(&page, at)?,
            None => 0,
        };
        let mut links = 0;
        while (payload.len() as u64) < cell.payload_bytes {
            links += 1;
            if next < 2 || links > self.count {
                return None;
            }
            self.page(file, next, &mut page)?;
            next = be32(&page, 0)?;
            let missing = cell.payload_bytes - payload.len() as u64;
            let taken = missing.min(u64::from(self.usable_bytes) - 4) as usize;
            payload.extend_from_slice(&page[4..4 + taken]);
        }
        let [status, message_type, json] = cell.values.map(|(at, bytes)| payload.get(at..at + bytes));
        let status = status?.iter().fold(0, |number, byte| number << 8 | i64::from(*byte));
        Some(StoredRow {
            message_id: place.message_id,
            status: if cell.status_type > 7 { i64::from(cell.status_type == 9) } else { status },
            message_type: String::from_utf8_lossy(message_type?).into_owned(),
            json: Some(json?.to_vec()),
        })
    }

    fn page(&self, file: &File, number: u32, page: &mut [u8]) -> Option<()> {
        if number == 0 || number > self.count {
            return None;
        }
        file.read_exact_at(page, u64::from(number - 1) * u64::from(self.page_bytes)).ok()
    }

    /// Returns the pages that the file lists as free, as far as the list can be read.
    fn free(&self, file: &File, first: u32) -> HashSet<u32> {
        let mut free = HashSet::new();
        let mut page = vec![0; self.page_bytes as usize];
        let mut trunk = first;
        while trunk != 0 && self.page(file, trunk, &mut page).is_some() && free.insert(trunk) {
            let entries = be32(&page, 4).unwrap_or(0).min(self.usable_bytes / 4 - 2);
            free.extend((0..entries as usize).filter_map(|entry| be32(&page, 8 + 4 * entry)));
            trunk = be32(&page, 0).unwrap_or(0);
        }
        free
    }

    /// Notes the rows of a leaf; says whether it is one of the SDK's table.
    fn leaf(&mut self, number: u32, page: &[u8]) -> bool {
        let mut cells = cell_pointers(page, 8, self.usable_bytes);
        // Pointers that all lead to one cell would be many times the file.
        cells.sort_unstable();
        cells.dedup();
        let places: Vec<Place> = cells
            .iter()
            .filter_map(|cell| {
                let read = Cell::read(page, *cell, self.usable_bytes)?;
                Some(Place { message_id: read.message_id, page: number, cell: *cell })
            })
            .collect();
        self.places.extend(&places);
        self.lost += if places.is_empty() { 0 } else { (cells.len() - places.len()) as u64 };
        !places.is_empty() && places.len() == cells.len()
    }

    /// Notes the children of an interior page, each with the highest id below it; `None` for the last one.
    fn interior(&self, page: &[u8], children: &mut Vec<(Option<i64>, u32)>) -> bool {
        let cells = cell_pointers(page, 12, self.usable_bytes);
        let read: Option<Vec<_>> = cells
            .iter()
            .map(|cell| {
                let child = be32(page, usize::from(*cell))?;
                let (key, _) = varint(page, usize::from(*cell) + 4)?;
                Some((Some(key as i64), child))
            })
            .collect();
        let (Some(read), Some(last)) = (read.filter(|read| !read.is_empty()), be32(page, 8)) else { return false };
        if !read.is_sorted() {
            return false;
        }
        children.extend(read);
        children.push((None, last));
        true
    }

    fn estimate_lost(&mut self, children: &[(Option<i64>, u32)], readable: &HashSet<u32>) {
        if children.is_empty() {
            // No tree: ids count from 0, and most that are missing were in lost pages.
            let highest = self.places.last().map_or(-1, |place| place.message_id);
            self.lost += u64::try_from(highest + 1 - self.places.len() as i64).unwrap_or(0);
            return;
        }
        let per_leaf = (self.places.len() as u64).div_ceil(readable.len().max(1) as u64).max(1);
        let mut before = None;
        for (highest, child) in children {
            if !readable.contains(child) {
                self.lost += match (highest, before) {
                    (Some(highest), Some(before)) => highest.saturating_sub(before).unsigned_abs(),
                    (Some(highest), None) => highest.saturating_add(1).unsigned_abs(),
                    (None, _) => per_leaf,
                };
            }
            before = highest.or(before);
        }
    }
}

/// A row's cell in a leaf, and where its values stand in the payload.
struct Cell {
    message_id: i64,
    payload_at: usize,
    payload_bytes: u64,
    local_bytes: usize,
    overflow_at: Option<usize>,
    status_type: u64,
    /// Offset and length of status, message_type and message_json.
    values: [(usize, usize); 3],
}

impl Cell {
    /// Reads a cell, or `None` when it is no row of the SDK's table.
    fn read(page: &[u8], at: u16, usable_bytes: u32) -> Option<Self> {
        let (payload_bytes, at) = varint(page, usize::from(at))?;
        let (message_id, payload_at) = varint(page, at)?;
        if payload_bytes > VALUE_BYTES_MAX {
            return None;
        }
        let usable = u64::from(usable_bytes);
        let local_max = usable - 35;
        let local_bytes = if payload_bytes <= local_max {
            payload_bytes
        } else {
            let least = (usable - 12) * 32 / 255 - 23;
            let rest = least + (payload_bytes - least) % (usable - 4);
            if rest <= local_max { rest } else { least }
        };
        let local_bytes = usize::try_from(local_bytes).ok()?;
        let overflow_at = (payload_bytes > local_max).then_some(payload_at + local_bytes);
        let payload = page.get(payload_at..payload_at + local_bytes)?;

        let (header_bytes, mut next) = varint(payload, 0)?;
        let mut types = [0; 4];
        for found in &mut types {
            (*found, next) = varint(payload, next)?;
        }
        let [id_type, status_type, name_type, json_type] = types;
        let is_whole = next as u64 == header_bytes
            // The id is the row's own, so that nothing is stored for it.
            && id_type == 0
            && matches!(status_type, 1..=6 | 8 | 9)
            && name_type >= 13 && name_type % 2 == 1
            && json_type >= 12;
        if !is_whole {
            return None;
        }
        let bytes_of = |serial: u64| match serial {
            1..=4 => serial,
            5 => 6,
            6 => 8,
            12.. => (serial - 12) / 2,
            _ => 0,
        };
        let mut values = [(0, 0); 3];
        let mut offset = header_bytes;
        for (value, serial) in values.iter_mut().zip([status_type, name_type, json_type]) {
            *value = (usize::try_from(offset).ok()?, usize::try_from(bytes_of(serial)).ok()?);
            offset = offset.checked_add(bytes_of(serial))?;
        }
        let message_id = message_id as i64;
        (offset == payload_bytes).then_some(Self {
            message_id,
            payload_at,
            payload_bytes,
            local_bytes,
            overflow_at,
            status_type,
            values,
        })
    }
}
