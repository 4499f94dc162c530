//! Deleting a stream of which everything is settled.

use std::time::Duration;

use super::objects::{delete_all, folder, list_all, name_of};
use crate::depot::{Depot, DepotError};
use crate::fleet::finished::FinishedStream;
use crate::fleet::names::{self, BundleName, ObjectName, StreamId};

/// How long the record of a finished stream is kept: an agent that comes back later delivers its messages once more.
const FINISHED_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Deletes a stream with these bundles, the head last: as long as it is there, what is left is found and deleted by the
/// next owner. `keeps_file` tells of a message whether its file is kept.
///
/// A record that the stream is finished, and what its bundles had, is made first. Without it, its agent could not tell a stream that was delivered
/// from one that the depot has lost.
///
/// # Errors
///
/// If the depot can't be used: a retry deletes the rest.
pub(super) fn delete_stream(
    depot: &dyn Depot,
    stream: StreamId,
    (bundles, finished): (&[BundleName], &FinishedStream),
    keeps_file: impl Fn(u64) -> bool,
) -> Result<(), DepotError> {
    depot.create(&name_of(&ObjectName::Finished(stream)), &finished.encode())?;
    let of_bundle = |bundle: &BundleName| name_of(&ObjectName::Bundle(stream, *bundle));
    delete_all(depot, &bundles.iter().map(of_bundle).collect::<Vec<_>>())?;
    delete_folder(depot, &names::all_files_of(&stream), |name| match name {
        ObjectName::File { message, .. } => !keeps_file(*message),
        _ => false,
    })?;
    delete_folder(depot, &names::marks_of(&stream), |name| matches!(name, ObjectName::Marks { .. }))?;
    depot.delete(&[name_of(&ObjectName::Purge(stream)), name_of(&ObjectName::Head(stream))])
}

/// Deletes the records of streams that began too long ago.
pub(super) fn delete_outdated_records(depot: &dyn Depot, now: Duration) -> Result<(), DepotError> {
    delete_folder(depot, &names::finished(), |name| match name {
        ObjectName::Finished(stream) => is_outdated(*stream, now),
        _ => false,
    })
}

/// Returns whether the record of a stream is no longer kept at this time since the Unix epoch.
fn is_outdated(stream: StreamId, now: Duration) -> bool {
    let began = stream.uuid().get_timestamp().map(|at| Duration::from_secs(at.to_unix().0));
    began.is_some_and(|began| now.saturating_sub(began) > FINISHED_KEPT)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::ModelDepot;

    const BEGAN: u64 = 1_796_000_000;

    fn stream() -> StreamId {
        let at = uuid::Timestamp::from_unix(uuid::NoContext, BEGAN, 0);
        StreamId::new(uuid::Uuid::new_v7(at))
    }

    #[test]
    fn the_record_of_a_finished_stream_is_kept_for_ninety_days() {
        let (depot, stream) = (ModelDepot::new(), stream());
        delete_stream(&depot, stream, (&[], &FinishedStream::default()), |_| false).expect("the depot is there");
        let began = Duration::from_secs(BEGAN);
        for (later, is_kept) in [(Duration::ZERO, true), (FINISHED_KEPT, true), (FINISHED_KEPT * 2, false)] {
            delete_outdated_records(&depot, began + later).expect("the depot is there");
            assert_eq!(depot.names().len(), usize::from(is_kept), "{later:?} later");
        }
        // A clock that was set back, and an id without a time.
        assert!(!is_outdated(stream, Duration::ZERO));
        assert!(!is_outdated(StreamId::new(uuid::Uuid::nil()), began * 2));
    }
}
