//! Reading many objects of a depot.

use crate::depot::{Depot, DepotError, Entry, Name};
use crate::fleet::names::ObjectName;
use crate::fleet::parallel::in_parallel;

/// Objects that are listed with one request.
const PAGE: usize = 1000;
/// Pages of a folder that are listed one after the other before its folders are listed at the same time.
const PAGES_ALONE: usize = 4;
/// Folders that are listed at a time.
const LISTS_AT_ONCE: usize = 16;
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
    list_behind(depot, under, None)
}

fn list_behind(depot: &dyn Depot, under: &Name, after: Option<&Name>) -> Result<Vec<Entry>, DepotError> {
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let page = depot.list(under, found.last().map(|entry| &entry.name).or(after), PAGE)?;
        let is_last = page.len() < PAGE;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
}

/// Returns all objects of a folder whose folders are two hexadecimal digits each. Where there are more than a few pages,
/// these are listed several at a time: a page tells only at its end where the next one begins.
pub(super) fn list_spread(depot: &dyn Depot, under: &str) -> Result<Vec<Entry>, DepotError> {
    let whole = folder(under);
    let mut found: Vec<Entry> = Vec::new();
    for _ in 0..PAGES_ALONE {
        let page = depot.list(&whole, found.last().map(|entry| &entry.name), PAGE)?;
        let is_last = page.len() < PAGE;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
    let Some(last) = found.last().map(|entry| entry.name.clone()) else { return Ok(found) };
    let is_reached = |digits: &u8| last.as_str().starts_with(&format!("{under}/{digits:02x}/"));
    let Some(reached) = (0..=u8::MAX).find(is_reached) else {
        // Another program's object.
        found.extend(list_behind(depot, &whole, Some(&last))?);
        return Ok(found);
    };
    let rest: Vec<u8> = (reached..=u8::MAX).collect();
    let listed = in_parallel(&rest, LISTS_AT_ONCE, |digits| {
        let after = (*digits == reached).then_some(&last);
        list_behind(depot, &folder(&format!("{under}/{digits:02x}")), after)
    });
    for entries in listed {
        found.extend(entries?);
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::Created;
    use crate::depot::model::ModelDepot;

    #[test]
    fn a_spread_folder_is_listed_whole_however_much_is_in_it() {
        for (folders, each) in [(0, 0), (3, 5), (256, 20), (1, PAGE * PAGES_ALONE), (2, PAGE * PAGES_ALONE)] {
            let depot = ModelDepot::new();
            for number in 0..folders * each {
                let name = format!("v1/bundles/{:02x}/stream/{number:010}", number % folders);
                assert_eq!(depot.create(&folder(&name), b"bundle"), Ok(Created::New));
            }
            let names = |listed: Vec<Entry>| listed.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
            let expected = names(list_all(&depot, &folder("v1/bundles")).expect("the model is there"));
            assert_eq!(expected.len(), folders * each);
            assert_eq!(names(list_spread(&depot, "v1/bundles").expect("the model is there")), expected);
        }
    }

    #[test]
    fn objects_of_other_programs_in_a_spread_folder_end_no_listing() {
        let depot = ModelDepot::new();
        for number in 0..PAGE * (PAGES_ALONE + 1) {
            assert_eq!(depot.create(&folder(&format!("v1/bundles/Z{number:010}")), b"?"), Ok(Created::New));
        }
        assert_eq!(depot.create(&folder("v1/bundles/ab/stream/0000000000"), b"bundle"), Ok(Created::New));
        let listed = list_spread(&depot, "v1/bundles").expect("the model is there");
        assert_eq!(listed.len(), PAGE * (PAGES_ALONE + 1) + 1);
    }
}
