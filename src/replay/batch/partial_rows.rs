//! Batch creates of which it is unknown whether an update reached the server first: the server is asked, once for each
//! project of a claim.
//!
//! Without an answer such a message is sent as if there were an update: each entity singly, which is right as well, takes
//! a request or two for each, and meets the server's limit for single requests.

use std::collections::{BTreeMap, BTreeSet};

use tracing::debug;

use super::Batch;
use crate::message::Claimed;
use crate::protocol::partial_rows;
use crate::protocol::readback::{DEFAULT_PROJECT, ReadableKind, facts};

/// Projects of one claim that are asked about.
const PROJECTS_MAX: usize = 16;
/// Bytes of such an answer that are read: ids, and the names of scores.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of the content of a message that is asked about.
const CONTENT_BYTES_MAX: u64 = 1024 * 1024;

/// The kind and project of entities.
type Place = (ReadableKind, String);

/// The unsure entities of one message: the id of each, and where it is.
type Unsure = Vec<(String, Place)>;

impl Batch<'_, '_> {
    /// Takes those entities off the lists of updates ahead of which the server has no partial row.
    ///
    /// A message keeps its list where a note says that there was an update, or if the server does not tell.
    pub(super) fn ask_about_unsure(&mut self, claimed: &mut [Claimed]) {
        let mut asked: BTreeMap<Place, Option<BTreeSet<String>>> = BTreeMap::new();
        for message in claimed.iter_mut().filter(|message| message.is_unsure && !message.ahead.is_empty()) {
            let Some(unsure) = unsure_entities(message) else { continue };
            for place in unsure.iter().map(|(_, place)| place) {
                if !asked.contains_key(place) && asked.len() < PROJECTS_MAX && self.may_send() {
                    let partial = self.partial_rows(place);
                    asked.insert(place.clone(), partial);
                }
            }
            let is_whole = |id: &String, place: &Place| {
                asked.get(place).and_then(Option::as_ref).is_some_and(|partial| !partial.contains(id))
            };
            let whole: BTreeSet<&String> =
                unsure.iter().filter(|(id, place)| is_whole(id, place)).map(|(id, _)| id).collect();
            message.ahead.retain(|entity| !whole.contains(&entity.uuid().to_string()));
        }
    }

    /// Returns the ids of the partial rows of a project; `None` if the server does not tell.
    fn partial_rows(&self, (kind, project): &Place) -> Option<BTreeSet<String>> {
        let read = partial_rows::search(*kind, project)?;
        let replay = self.sender.replay;
        let answer = replay.upstream.read_back(&self.sender.work.lane, &read, PAGE_BYTES_MAX).ok()?;
        let is_whole = answer.status == 200 && answer.is_confirmed() && answer.text.len() < PAGE_BYTES_MAX;
        let partial = is_whole.then(|| partial_rows::ids(answer.text.as_bytes())).flatten();
        debug!(
            target: "replay_manager", status = answer.status, partial = partial.as_ref().map(BTreeSet::len),
            "asked the server for the partial rows of a project"
        );
        partial
    }
}

/// Returns the entities of a batch create that may have an update ahead; `None` if it can't be asked about.
fn unsure_entities(message: &Claimed) -> Option<Unsure> {
    if !message.message_type.is_batch_create() {
        return None;
    }
    let request = &message.request;
    let content = request.body.decode(CONTENT_BYTES_MAX).ok()?;
    let ahead: BTreeSet<String> = message.ahead.iter().map(|entity| entity.uuid().to_string()).collect();
    let facts = facts(message.message_type, &request.method, &request.path, &content)?;
    let unsure = facts.into_iter().filter(|fact| ahead.contains(&fact.id)).map(|fact| {
        let project = fact.project.filter(|project| !project.is_empty());
        (fact.id, (fact.kind, project.unwrap_or_else(|| DEFAULT_PROJECT.to_owned())))
    });
    Some(unsure.collect())
}
