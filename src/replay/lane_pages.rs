//! The lanes of a store, read page by page, so that their number does not matter.

use super::sweep::LANES_LISTED;
use crate::store::{Filter, LaneRange, LaneWork, Store, StoreError};

/// Returns the lanes with waiting messages in pages; after an error there are no more.
pub(super) fn lane_pages<'s>(
    store: &'s dyn Store,
    filter: &'s Filter,
    now_ms: i64,
) -> impl Iterator<Item = Result<Vec<LaneWork>, StoreError>> + 's {
    let mut range = Some(LaneRange::first(LANES_LISTED));
    std::iter::from_fn(move || {
        let page = store.lane_page(filter, range.take()?, now_ms);
        Some(page.map(|page| {
            range = page.next.map(|after| LaneRange::behind(after, LANES_LISTED));
            page.lanes
        }))
    })
}
