//! Pages of b-trees, and the cells in them (File Format 1.6).

use super::{be32, varint};

/// The content of a page of a b-tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// Rows of a table.
    TableLeaf,
    /// Children of a page of a table, and the keys between them.
    TableInterior,
    /// Entries of an index, or rows of a table without row ids.
    IndexLeaf,
    /// The same, with children between them.
    IndexInterior,
}

impl PageKind {
    /// Returns the kind that a page states; `None` if it is not a page of a b-tree.
    pub(crate) fn of(page: &[u8]) -> Option<Self> {
        match page.first()? {
            0x0d => Some(Self::TableLeaf),
            0x05 => Some(Self::TableInterior),
            0x0a => Some(Self::IndexLeaf),
            0x02 => Some(Self::IndexInterior),
            _ => None,
        }
    }

    fn header_bytes(self) -> usize {
        match self {
            Self::TableLeaf | Self::IndexLeaf => 8,
            Self::TableInterior | Self::IndexInterior => 12,
        }
    }
}

/// Returns the offsets of a page's cells; none if the page cannot have as many as it states. Page 1 is not supported:
/// a header of the database comes before its cells.
pub(crate) fn cell_offsets(page: &[u8], kind: PageKind, usable_bytes: u32) -> Vec<u16> {
    let header_bytes = kind.header_bytes();
    let be16 = |at: usize| page.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let count = usize::from(be16(3).unwrap_or(0));
    if header_bytes + 2 * count > usable_bytes as usize {
        return Vec::new();
    }
    (0..count).filter_map(|cell| be16(header_bytes + 2 * cell)).collect()
}

/// A cell that carries a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordCell {
    /// The row id; 0 in an index.
    pub(crate) key: i64,
    pub(super) payload_at: usize,
    pub(crate) payload_bytes: u64,
    /// How many bytes of the payload are in the page itself.
    pub(super) local_bytes: usize,
}

impl RecordCell {
    /// Reads the head of a cell.
    pub(crate) fn read(page: &[u8], kind: PageKind, offset: u16, usable_bytes: u32) -> Option<Self> {
        let at = match kind {
            PageKind::TableInterior => return None,
            PageKind::IndexInterior => usize::from(offset) + 4,
            PageKind::TableLeaf | PageKind::IndexLeaf => usize::from(offset),
        };
        let is_table = kind == PageKind::TableLeaf;
        let (payload_bytes, at) = varint(page, at)?;
        let (key, payload_at) = if is_table { varint(page, at)? } else { (0, at) };
        let usable = u64::from(usable_bytes);
        let local_max = if is_table { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
        let local_bytes = if payload_bytes <= local_max {
            payload_bytes
        } else {
            let local_min = (usable - 12) * 32 / 255 - 23;
            let wanted = local_min + (payload_bytes - local_min) % (usable - 4);
            if wanted <= local_max { wanted } else { local_min }
        };
        Some(Self { key: key as i64, payload_at, payload_bytes, local_bytes: usize::try_from(local_bytes).ok()? })
    }
}

/// Where the cell of a row is, found earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowLocation {
    /// The row id.
    pub(crate) key: i64,
    pub(crate) page: u32,
    /// Its offset in the page.
    pub(crate) cell: u16,
}

/// A child of an interior page: the highest key below it (none for the last child), and its page.
pub(crate) type TreeChild = (Option<i64>, u32);

/// Returns the children of an interior page of a table; `None` if one of them is corrupt.
pub(crate) fn children(page: &[u8], usable_bytes: u32) -> Option<Vec<TreeChild>> {
    let cells = cell_offsets(page, PageKind::TableInterior, usable_bytes);
    let child = |cell: &u16| {
        let at = usize::from(*cell);
        let (key, _) = varint(page, at + 4)?;
        Some((Some(key as i64), be32(page, at)?))
    };
    let mut children: Vec<TreeChild> = cells.iter().map(child).collect::<Option<_>>()?;
    if children.is_empty() || !children.is_sorted() {
        return None;
    }
    children.push((None, be32(page, 8)?));
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_more_cells_than_fit_has_none() {
        let mut page = vec![0; 512];
        page[0] = 0x0d;
        page[3..5].copy_from_slice(&253_u16.to_be_bytes());
        assert_eq!(cell_offsets(&page, PageKind::TableLeaf, 512), Vec::<u16>::new());
        page[3..5].copy_from_slice(&1_u16.to_be_bytes());
        page[8..10].copy_from_slice(&500_u16.to_be_bytes());
        assert_eq!(cell_offsets(&page, PageKind::TableLeaf, 512), [500]);
    }

    #[test]
    fn large_payloads_are_partly_in_overflow_pages() {
        let mut page = vec![0; 512];
        // 477 bytes are the most that a leaf of 512 bytes keeps of a row.
        for (payload, local) in [(477_u64, 477), (478, 39), (600, 92), (1000, 39)] {
            page[100..103].copy_from_slice(&[0x80 | (payload >> 7) as u8, (payload & 0x7f) as u8, 5]);
            let cell = RecordCell::read(&page, PageKind::TableLeaf, 100, 512).expect("it is a cell");
            assert_eq!((cell.key, cell.payload_bytes, cell.local_bytes), (5, payload, local), "{payload}");
        }
    }
}
