//! Batch creates of which it is unknown whether an update reached the server first: one request for each project of a
//! claim reads the partial rows back.
//!
//! Without an answer, replay delivers such a batch as if there were an update: each entity as a single create. That is
//! correct, takes a request or two for each entity, and meets the server's rate limit for single requests.

use std::collections::{BTreeMap, BTreeSet};

use tracing::debug;

use super::Batch;
use crate::message::Claimed;
use crate::protocol::partial_rows;
use crate::protocol::readback::{DEFAULT_PROJECT, ReadableKind, facts};

/// Search requests for one claim at most.
const PROJECTS_MAX: usize = 16;
/// Bytes of a response that are read: ids, and the names of scores.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a message's body, decompressed, that are parsed.
const CONTENT_BYTES_MAX: u64 = 1024 * 1024;

/// What one search is about: the kind and project of entities.
type SearchScope = (ReadableKind, String);

/// The unsure entities of one message: the id of each, and where it is.
type Unsure = Vec<(String, SearchScope)>;

impl Batch<'_, '_> {
    /// Removes the entities without a partial row on the server from the claimed messages' lists of updates ahead.
    ///
    /// A message keeps its list if a note in the store says that there was an update, or if no response lists the rows.
    pub(super) fn ask_about_unsure(&mut self, claimed: &mut [Claimed]) {
        let mut asked: BTreeMap<SearchScope, Option<BTreeSet<String>>> = BTreeMap::new();
        for message in claimed.iter_mut().filter(|message| message.is_unsure && !message.ahead.is_empty()) {
            let Some(unsure) = unsure_entities(message) else { continue };
            for scope in unsure.iter().map(|(_, scope)| scope) {
                if !asked.contains_key(scope) && asked.len() < PROJECTS_MAX && self.may_send() {
                    let partial = self.partial_rows(scope);
                    asked.insert(scope.clone(), partial);
                }
            }
            let is_whole = |id: &String, scope: &SearchScope| {
                asked.get(scope).and_then(Option::as_ref).is_some_and(|partial| !partial.contains(id))
            };
            let whole: BTreeSet<&String> =
                unsure.iter().filter(|(id, scope)| is_whole(id, scope)).map(|(id, _)| id).collect();
            message.ahead.retain(|entity| !whole.contains(&entity.uuid().to_string()));
        }
    }

    /// Returns the ids of the partial rows of a project; `None` without a response that lists them.
    fn partial_rows(&self, (kind, project): &SearchScope) -> Option<BTreeSet<String>> {
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

/// Returns the entities of a batch create that may have an update ahead; `None` if the message can't be parsed.
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
