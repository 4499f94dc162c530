//! Rows of a damaged SDK file, found page by page ([`crate::sqlite_format`]).
//!
//! SQLite finds rows through the tree of pages and fails where it is corrupt. The leaves carry the rows whole, so every
//! row that is left in the file is read without the tree. Pages that the file itself lists as free are left out: they
//! hold rows that were deleted, which for the SDK means delivered. The rest of the tree shows how many rows the missing
//! leaves had.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::distrust::ROW_BYTES_MAX;
use super::row::StoredRow;
use crate::sqlite_format::btree::{PageKind, RecordCell, RowLocation, TreeChild, cell_offsets, children};
use crate::sqlite_format::pager::{FreeList, Pager};
use crate::sqlite_format::payload;
use crate::sqlite_format::record::{self, ColumnValue};

/// How many pages are read between two checks for the shutdown.
const PAGES_PER_CHECK: u32 = 256;

/// The rows that the pages of a damaged file hold.
#[derive(Debug)]
pub(super) struct ScannedRows {
    pager: Pager<Arc<File>>,
    /// By message id, one for each.
    pub(super) rows: Vec<RowLocation>,
    /// How many rows were in leaves that cannot be read; an estimate.
    pub(super) lost: u64,
}

impl ScannedRows {
    /// Scans every page once. Stops once `is_stopped` returns true.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Interrupted`] if it was stopped, or why the header cannot be read.
    pub(super) fn scan(file: &Arc<File>, is_stopped: &dyn Fn() -> bool) -> io::Result<Self> {
        let pager = Pager::of_file(file.clone())?;
        let count = pager.count();
        let free = FreeList::read(&pager);
        let mut page = pager.buffer();
        let mut found = Self { pager, rows: Vec::new(), lost: 0 };
        let mut intact = HashSet::new();
        let mut tree = Vec::new();
        for number in 2..=count {
            if number % PAGES_PER_CHECK == 0 && is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if free.contains(number) || !found.pager.read(number, &mut page) {
                continue;
            }
            let is_intact = match PageKind::of(&page) {
                Some(PageKind::TableLeaf) => found.add_leaf(number, &page),
                Some(PageKind::TableInterior) => match children(&page, found.pager.usable_bytes()) {
                    Some(children) => {
                        tree.extend(children);
                        true
                    }
                    None => false,
                },
                _ => false,
            };
            if is_intact {
                intact.insert(number);
            }
        }
        found.rows.sort_unstable();
        found.rows.dedup_by_key(|row| row.key);
        found.lost = found.lost.saturating_add(found.rows_missing_from(&tree, &intact));
        Ok(found)
    }

    /// Reads one row; `None` if a part of it is missing.
    pub(super) fn row(&self, location: RowLocation) -> Option<StoredRow> {
        let values = payload::row(&self.pager, location)?;
        let [_, status, ColumnValue::Text(message_type), ColumnValue::Text(json) | ColumnValue::Blob(json)] =
            &values[..]
        else {
            return None;
        };
        Some(StoredRow {
            message_id: location.key,
            status: status.integer()?,
            message_type: String::from_utf8_lossy(message_type).into_owned(),
            json: Some(json.clone()),
        })
    }

    /// Adds the rows of a leaf; returns whether it is an intact leaf of the SDK's table.
    fn add_leaf(&mut self, number: u32, page: &[u8]) -> bool {
        let usable_bytes = self.pager.usable_bytes();
        let mut cells = cell_offsets(page, PageKind::TableLeaf, usable_bytes);
        // Pointers that all lead to one cell would take many times the size of the file.
        cells.sort_unstable();
        cells.dedup();
        let rows: Vec<RowLocation> = cells
            .iter()
            .filter_map(|cell| {
                let key = key_of_row(page, *cell, usable_bytes)?;
                Some(RowLocation { key, page: number, cell: *cell })
            })
            .collect();
        self.rows.extend(&rows);
        self.lost += if rows.is_empty() { 0 } else { (cells.len() - rows.len()) as u64 };
        !rows.is_empty() && rows.len() == cells.len()
    }

    /// Estimates how many rows were in leaves that are not intact. `tree` has the children of all interior pages.
    fn rows_missing_from(&self, tree: &[TreeChild], intact: &HashSet<u32>) -> u64 {
        if tree.is_empty() {
            // Ids count from 0, and most of those that are missing were in lost pages.
            let highest = self.rows.last().map_or(-1, |row| row.key);
            return u64::try_from(highest.saturating_add(1).saturating_sub(self.rows.len() as i64)).unwrap_or(0);
        }
        let per_leaf = (self.rows.len() as u64).div_ceil(intact.len().max(1) as u64).max(1);
        let mut lost: u64 = 0;
        let mut previous = None;
        for (highest, child) in tree {
            if !intact.contains(child) {
                lost = lost.saturating_add(match (highest, previous) {
                    (Some(highest), Some(previous)) => highest.saturating_sub(previous).unsigned_abs(),
                    (Some(highest), None) => highest.saturating_add(1).unsigned_abs(),
                    (None, _) => per_leaf,
                });
            }
            previous = highest.or(previous);
        }
        lost
    }
}

/// Returns the message id of a row; `None` if the cell is not a row of the SDK's table.
fn key_of_row(page: &[u8], cell: u16, usable_bytes: u32) -> Option<i64> {
    let cell = RecordCell::read(page, PageKind::TableLeaf, cell, usable_bytes)?;
    if cell.payload_bytes > u64::from(ROW_BYTES_MAX) {
        return None;
    }
    match record::types(payload::local(page, &cell)?, cell.payload_bytes)?[..] {
        // The id is the row id, so null is stored for it.
        [id, status, message_type, json]
            if id.is_null() && status.is_integer() && message_type.is_text() && (json.is_text() || json.is_blob()) =>
        {
            Some(cell.key)
        }
        _ => None,
    }
}
