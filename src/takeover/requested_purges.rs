//! The purges that people have requested of the owners of streams, and that are not carried out yet.

use std::collections::HashMap;

use super::objects::{folder, list_all};
use crate::depot::{Depot, DepotError};
use crate::fleet::head::Head;
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::parallel::in_parallel;
use crate::fleet::stream_purge::StreamPurge;

/// Requests that are read at most, which bounds the latency: the listing names the streams of the others.
const READ_MAX: usize = 20;
/// Requests that are read concurrently.
const READS_AT_ONCE: usize = 4;

/// A purge that a person has requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingPurge {
    pub stream: StreamId,
    /// The request; `None` if this version can't read it, or if there are too many.
    pub request: Option<StreamPurge>,
}

/// Returns the requests in a depot.
///
/// # Errors
///
/// If it can't be read or listed.
pub(super) fn requested_purges(depot: &dyn Depot) -> Result<Vec<PendingPurge>, DepotError> {
    let listed = list_all(depot, &folder(&names::purges()))?;
    let purge = |entry: &crate::depot::Entry| match ObjectName::parse(entry.name.as_str()) {
        Some(ObjectName::Purge(stream)) => Some((stream, entry.name.clone())),
        _ => None,
    };
    let mut listed: Vec<_> = listed.iter().filter_map(purge).collect();
    let rest = listed.split_off(listed.len().min(READ_MAX));
    let mut found = Vec::with_capacity(listed.len() + rest.len());
    let read = in_parallel(&listed, READS_AT_ONCE, |(_, name)| depot.get(name));
    for ((stream, _), read) in listed.into_iter().zip(read) {
        // Otherwise it was withdrawn in this instant.
        if let Some((bytes, _)) = read? {
            found.push(PendingPurge { stream, request: StreamPurge::decode(&bytes) });
        }
    }
    found.extend(rest.into_iter().map(|(stream, _)| PendingPurge { stream, request: None }));
    Ok(found)
}

/// Returns the requests that are not carried out yet, by a snapshot of the heads of the streams that exist; `None` for a stream whose
/// head is missing or can't be read.
pub(super) fn outstanding(purges: Vec<PendingPurge>, streams: &HashMap<StreamId, Option<&Head>>) -> Vec<PendingPurge> {
    let is_outstanding = |purge: &PendingPurge| {
        let Some(head) = streams.get(&purge.stream) else { return false };
        let answer = head.and_then(|head| head.purged);
        let (answered, requested) = (answer.map(|it| it.order), purge.request.as_ref().map(|it| it.order));
        answered.is_none() || answered != requested
    };
    purges.into_iter().filter(is_outstanding).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::depot::model::ModelDepot;
    use crate::fleet::head::{HeadOwner, HeadState};
    use crate::fleet::samples::stream;
    use crate::fleet::stream_purge::PurgeAnswer;
    use crate::takeover::objects::name_of;

    fn request() -> StreamPurge {
        StreamPurge::of_all(Uuid::now_v7(), "ana (uid 1000 on host-a)".to_owned())
    }

    #[test]
    fn a_request_is_shown_until_its_owner_has_answered_or_its_stream_is_gone() {
        let (carried_out, request) = (request(), request());
        let answer = PurgeAnswer { order: carried_out.order, deleted: 1, kept: 0 };
        let head = Head { purged: Some(answer), ..Head::first(HeadState::Open, HeadOwner::default()) };
        let streams = HashMap::from([(stream(1), Some(&head)), (stream(2), Some(&head)), (stream(3), None)]);
        let purge =
            |number, request: &StreamPurge| PendingPurge { stream: stream(number), request: Some(request.clone()) };
        let all = vec![purge(1, &carried_out), purge(2, &request), purge(3, &request), purge(4, &request)];
        let left: Vec<StreamId> = outstanding(all, &streams).iter().map(|purge| purge.stream).collect();
        assert_eq!(left, [stream(2), stream(3)], "a person waits for what is done, or does not see what is not");
    }

    #[test]
    fn many_requests_take_few_reads_and_all_of_their_streams_are_named() {
        let depot = ModelDepot::new();
        for number in 1..=30 {
            let name = name_of(&ObjectName::Purge(stream(number)));
            depot.create(&name, &request().encode()).expect("it answers");
        }
        let found = requested_purges(&depot).expect("it answers");
        assert_eq!((found.len(), found.iter().filter(|purge| purge.request.is_some()).count()), (30, READ_MAX));
    }
}
