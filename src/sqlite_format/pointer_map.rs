//! Which page is the parent of which, in a database with `auto_vacuum` (File Format 1.8).

use std::collections::HashMap;

use super::pager::Pager;
use super::{ReadAt, be32};

/// The page with this byte is never used.
const PENDING_BYTE: u64 = 0x4000_0000;
const ENTRY_BYTES: usize = 5;
/// SQLite's trees are at most this deep: how many parents are followed to a root.
const DEPTH_MAX: usize = 20;

/// The use of a page, according to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageUse {
    /// The root of a tree.
    Root,
    /// In the list of free pages.
    Free,
    /// An overflow page.
    Overflow,
    /// A page of a tree, below this parent.
    Child(u32),
}

/// The pages of the map, each read once.
#[derive(Debug, Default)]
pub(crate) struct PointerMap {
    pages: HashMap<u32, Option<Vec<u8>>>,
}

impl PointerMap {
    /// Returns what the map says about a page; `None` if it says nothing, or nothing that SQLite writes.
    pub(crate) fn page_use<R: ReadAt>(&mut self, pager: &Pager<R>, number: u32) -> Option<PageUse> {
        let (map, at) = entry_of(pager, number)?;
        let entries = self.pages.entry(map).or_insert_with(|| {
            let mut page = pager.buffer();
            pager.read(map, &mut page).then_some(page)
        });
        let entries = entries.as_ref()?;
        match (*entries.get(at)?, be32(entries, at + 1)?) {
            (1, _) => Some(PageUse::Root),
            (2, 0) => Some(PageUse::Free),
            (3 | 4, _) => Some(PageUse::Overflow),
            (5, parent) => Some(PageUse::Child(parent)),
            _ => None,
        }
    }

    /// Returns the root of the tree that a page belongs to, if the map leads there.
    pub(crate) fn root_of<R: ReadAt>(&mut self, pager: &Pager<R>, number: u32) -> Option<u32> {
        let mut page = number;
        for _ in 0..DEPTH_MAX {
            match self.page_use(pager, page)? {
                PageUse::Root => return Some(page),
                PageUse::Child(parent) => page = parent,
                PageUse::Free | PageUse::Overflow => return None,
            }
        }
        None
    }
}

/// Returns whether a page is part of the map.
pub(crate) fn is_map_page<R: ReadAt>(pager: &Pager<R>, number: u32) -> bool {
    number == 2 || number.checked_add(1).and_then(|next| entry_of(pager, next)).is_some_and(|(map, _)| map == number)
}

/// Returns the map page with the entry of a page, and the offset of the entry; `None` for pages without one.
fn entry_of<R: ReadAt>(pager: &Pager<R>, number: u32) -> Option<(u32, usize)> {
    let pending = u32::try_from(PENDING_BYTE / u64::from(pager.page_bytes())).ok()? + 1;
    if number < 3 || number == pending {
        return None;
    }
    let per_map = pager.usable_bytes() / ENTRY_BYTES as u32 + 1;
    let mut map = (number - 2) / per_map * per_map + 2;
    if map == pending {
        map += 1;
    }
    let index = number.checked_sub(map + 1)?;
    Some((map, ENTRY_BYTES * index as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_found_through_its_children_and_a_cycle_has_none() {
        let mut bytes = vec![0; 512 * 6];
        // Pages 3 to 6: a root, its child, a child of itself, a free page.
        for (index, (kind, parent)) in [(1, 0_u32), (5, 3), (5, 5), (2, 0)].into_iter().enumerate() {
            bytes[512 + 5 * index] = kind;
            bytes[512 + 5 * index + 1..][..4].copy_from_slice(&parent.to_be_bytes());
        }
        let pager = Pager::with_log(Some(bytes), None, 512).expect("it is in memory");
        let mut map = PointerMap::default();
        assert_eq!([3, 4, 5, 6].map(|page| map.root_of(&pager, page)), [Some(3), Some(3), None, None]);
        assert_eq!(map.page_use(&pager, 6), Some(PageUse::Free));
        assert_eq!(map.page_use(&pager, 1), None);
        // Of pages of 512 bytes, 102 have their entries in one page of the map.
        assert!([2, 105].iter().all(|page| is_map_page(&pager, *page)) && !is_map_page(&pager, 3));
    }
}
