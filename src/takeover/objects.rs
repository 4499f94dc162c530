//! Reading many objects of a depot.

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
