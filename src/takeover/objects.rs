//! Reading many objects of a depot: whole listings, and several requests at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::depot::{Depot, DepotError, Entry, Name};
use crate::fleet::names::ObjectName;

/// Objects that are listed with one request.
const PAGE: usize = 1000;
/// How often an object is read that did not arrive whole.
const READS_MAX: usize = 3;

/// Returns the name of an object as the depot takes it.
pub(super) fn name_of(object: &ObjectName) -> Name {
    folder(&object.to_string())
}

/// Returns the name of a folder as the depot takes it.
pub(super) fn folder(name: &str) -> Name {
    Name::new(name).expect("every name of the fleet is one of a depot")
}

/// Returns all objects of a folder.
pub(super) fn list_all(depot: &dyn Depot, under: &Name) -> Result<Vec<Entry>, DepotError> {
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let page = depot.list(under, found.last().map(|entry| &entry.name), PAGE)?;
        if page.is_empty() {
            return Ok(found);
        }
        found.extend(page);
    }
}

/// Returns an object's bytes, read again if they did not arrive whole; `None` if it does not exist.
pub(super) fn read_whole(depot: &dyn Depot, name: &Name) -> Result<Option<Vec<u8>>, DepotError> {
    let mut reads = 1;
    loop {
        match depot.get(name) {
            Err(DepotError::Damaged { .. }) if reads < READS_MAX => reads += 1,
            read => return Ok(read?.map(|(bytes, _)| bytes)),
        }
    }
}

/// Deletes objects, some at a time: a request has a limit.
pub(super) fn delete_all(depot: &dyn Depot, names: &[Name]) -> Result<(), DepotError> {
    names.chunks(PAGE).try_for_each(|names| depot.delete(names))
}

/// Does the same work for each of these, a few at a time; the results are in their order.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_results_keep_the_order_of_their_items() {
        let items: Vec<u64> = (0..100).collect();
        let doubled = in_parallel(&items, 8, |item| {
            std::thread::yield_now();
            item * 2
        });
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<u64>>());
        assert!(in_parallel(&[] as &[u64], 8, |item| *item).is_empty());
    }
}
