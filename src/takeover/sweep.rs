//! Deleting a stream of which everything is settled.

use super::objects::{delete_all, folder, list_all, name_of};
use crate::depot::{Depot, DepotError};
use crate::fleet::names::{self, BundleName, ObjectName, StreamId};

/// Deletes a stream with these bundles, the head last: as long as it is there, what is left is found and deleted by the
/// next owner. `keeps_file` tells of a message whether its file is kept.
///
/// # Errors
///
/// If the depot can't be used: a repeat deletes the rest.
pub(super) fn delete_stream(
    depot: &dyn Depot,
    stream: StreamId,
    bundles: &[BundleName],
    keeps_file: impl Fn(u64) -> bool,
) -> Result<(), DepotError> {
    let of_bundle = |bundle: &BundleName| name_of(&ObjectName::Bundle(stream, *bundle));
    delete_all(depot, &bundles.iter().map(of_bundle).collect::<Vec<_>>())?;
    delete_folder(depot, &names::all_files_of(&stream), |name| match name {
        ObjectName::File { message, .. } => !keeps_file(*message),
        _ => false,
    })?;
    delete_folder(depot, &names::marks_of(&stream), |name| matches!(name, ObjectName::Marks { .. }))?;
    depot.delete(&[name_of(&ObjectName::Head(stream))])
}

/// Deletes the objects of a folder that are ours and may go.
pub(super) fn delete_folder(
    depot: &dyn Depot,
    under: &str,
    may_go: impl Fn(&ObjectName) -> bool,
) -> Result<(), DepotError> {
    let names = list_all(depot, &folder(under))?.into_iter().map(|entry| entry.name);
    let gone: Vec<_> =
        names.filter(|name| ObjectName::parse(name.as_str()).is_some_and(|name| may_go(&name))).collect();
    delete_all(depot, &gone)
}
