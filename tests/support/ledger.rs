//! The answers to a client, and whether the server's final state keeps those promises.
//!
//! The expected state of an entity is what the server's own rules ([`super::fake_opik::state`]) make of the accepted
//! writes, in the order in which they were accepted. Two things may differ without anybody losing data: an update that
//! was accepted before its own create may be applied after it, and a write whose answer never came may be there or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::fake_opik::check::{Change, Fields, Key, Write};
use super::fake_opik::clock::{self, Stamp};
use super::fake_opik::state::Entity;
use super::fake_opik::{FakeOpik, writes_of};
use super::http::{Request, Response};

/// Unanswered writes of one entity that are tried in every combination.
const UNANSWERED_MAX: usize = 8;

#[derive(Default)]
pub(crate) struct ClientLedger {
    entries: Mutex<Vec<Entry>>,
}

#[derive(Clone)]
struct Entry {
    workspace: String,
    write: Write,
    /// The client was told so; otherwise it got no answer.
    accepted: bool,
    at: Stamp,
}

type ByEntity = BTreeMap<(String, Key), Vec<Entry>>;

impl ClientLedger {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Records what the client was told about a request. Only a success is a promise.
    ///
    /// # Panics
    ///
    /// When a success was answered to what the server could never take.
    #[track_caller]
    pub(crate) fn accepted(&self, method: &str, path: &str, headers: &[(String, String)], body: &[u8], status: u16) {
        if (200..300).contains(&status) {
            self.note(method, path, headers, body, None, true);
        }
    }

    /// Records a request whose answer never came: it may have been taken or not.
    #[track_caller]
    pub(crate) fn unanswered(&self, method: &str, path: &str, headers: &[(String, String)], body: &[u8]) {
        self.note(method, path, headers, body, None, false);
    }

    /// Records a request with the answer it got, or the lack of one.
    ///
    /// A create without an id is found on the server by the id in `Location`.
    #[track_caller]
    pub(crate) fn told<E>(&self, request: &Request, answer: &Result<Response, E>) {
        let Request { method, path, headers, body, .. } = request;
        match answer {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let id = answer.header("Location").and_then(|url| url.rsplit('/').next());
                self.note(method, path, headers, body, id, true);
            }
            Ok(_) => {}
            Err(_) => self.note(method, path, headers, body, None, false),
        }
    }

    /// Returns what clients were told about everything but these ids.
    pub(crate) fn without(&self, ids: &BTreeSet<String>) -> Self {
        let entries = self.entries.lock().expect("no thread panicked");
        let others = entries.iter().filter(|entry| !ids.contains(&entry.write.key.id)).cloned().collect();
        Self { entries: Mutex::new(others) }
    }

    /// Returns the accepted writes about these ids, each with its workspace, in the order of acceptance.
    pub(crate) fn accepted_about(&self, ids: &BTreeSet<String>) -> Vec<(String, Write)> {
        let entries = self.entries.lock().expect("no thread panicked");
        let about = entries.iter().filter(|entry| entry.accepted && ids.contains(&entry.write.key.id));
        about.map(|entry| (entry.workspace.clone(), entry.write.clone())).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.lock().expect("no thread panicked").is_empty()
    }

    /// Returns the entities about which the client holds a promise.
    pub(crate) fn entities(&self) -> Vec<(String, Key)> {
        self.by_entity().into_iter().filter(|(_, entries)| entries.iter().any(|e| e.accepted)).map(|(k, _)| k).collect()
    }

    #[track_caller]
    fn note(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
        location_id: Option<&str>,
        accepted: bool,
    ) {
        let header = |name: &str| headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        let workspace = header("Comet-Workspace").map_or("default", |(_, value)| value.as_str()).to_owned();
        let writes = match writes_of(method, path, headers, body) {
            Ok(writes) => writes,
            Err(why) if accepted => {
                panic!("{method} {path} was accepted, and no server would ever take it: {why}")
            }
            Err(_) => return,
        };
        let at = clock::now();
        let mut entries = self.entries.lock().expect("no thread panicked");
        for mut write in writes {
            if write.id_invented {
                let Some(id) = location_id else { continue };
                write.key.id = id.to_owned();
            }
            entries.push(Entry { workspace: workspace.clone(), write, accepted, at });
        }
    }

    fn by_entity(&self) -> ByEntity {
        let mut grouped = ByEntity::new();
        for entry in self.entries.lock().expect("no thread panicked").iter() {
            let key = (entry.workspace.clone(), entry.write.key.clone());
            grouped.entry(key).or_default().push(entry.clone());
        }
        grouped
    }
}

impl FakeOpik {
    /// Checks that the server knows exactly what the client was told it would know.
    ///
    /// # Panics
    ///
    /// When it does not; the message lists what the user would have lost.
    #[track_caller]
    pub(crate) fn assert_equals(&self, ledger: &ClientLedger) {
        self.assert_equals_besides(ledger, &BTreeSet::new());
    }

    /// Checks the same of everything but what these ids name, whose writes are not all there.
    #[track_caller]
    pub(crate) fn assert_equals_besides(&self, ledger: &ClientLedger, ids: &BTreeSet<String>) {
        let lost = self.differences_besides(&ledger.without(ids), ids);
        let shown: Vec<&str> = lost.iter().take(40).map(String::as_str).collect();
        assert!(lost.is_empty(), "{} differences to what the client was told:\n{}", lost.len(), shown.join("\n"));
    }

    /// Returns what [`FakeOpik::assert_equals`] would complain about.
    pub(crate) fn differences(&self, ledger: &ClientLedger) -> Vec<String> {
        self.differences_besides(ledger, &BTreeSet::new())
    }

    fn differences_besides(&self, ledger: &ClientLedger, ids: &BTreeSet<String>) -> Vec<String> {
        let state = self.state();
        let promised = ledger.by_entity();
        let mut found = Vec::new();
        for ((workspace, key), entries) in &promised {
            let actual = state.get(workspace).and_then(|entities| entities.get(key)).cloned().unwrap_or_default();
            let expected: Vec<Entity> = possible_ends(entries);
            let best = expected.iter().map(|expected| difference(expected, &actual)).min_by_key(Vec::len);
            found.extend(
                best.unwrap_or_default().into_iter().map(|what| in_workspace(workspace, &format!("{key}{what}"))),
            );
        }
        for (workspace, entities) in &state {
            let told_of = |key: &&Key| !ids.contains(&key.id);
            for key in entities
                .keys()
                .filter(told_of)
                .filter(|key| !promised.contains_key(&(workspace.clone(), (*key).clone())))
            {
                found.push(in_workspace(workspace, &format!("{key} is on the server, and no client was told so")));
            }
        }
        found
    }

    /// Checks that of every entity the accepted writes reached the server in the order in which they were accepted.
    ///
    /// Repeats don't count, and neither does a write that the server never processed: that is a loss, and
    /// [`FakeOpik::assert_equals`] tells it.
    #[track_caller]
    pub(crate) fn assert_order(&self, ledger: &ClientLedger) {
        let mut arrived: BTreeMap<(String, Key), Vec<(usize, Change)>> = BTreeMap::new();
        for request in self.requests().into_iter().filter(|request| request.processed) {
            for write in request.writes {
                let entity = (request.workspace.clone(), write.key);
                arrived.entry(entity).or_default().push((request.seq, write.change));
            }
        }
        let mut wrong = Vec::new();
        for ((workspace, key), entries) in ledger.by_entity() {
            let arrived = arrived.get(&(workspace.clone(), key.clone())).map_or(&[][..], Vec::as_slice);
            let accepted: Vec<&Entry> = entries.iter().filter(|entry| entry.accepted).collect();
            let complaint = |order: &[&Entry]| out_of_order(order, arrived);
            if let Some(what) = complaint(&accepted)
                && complaint(&updates_after_create(&accepted)).is_some()
            {
                wrong.push(in_workspace(&workspace, &format!("{key}: {what}")));
            }
        }
        assert!(
            wrong.is_empty(),
            "writes reached the server in another order than they were accepted:\n{}",
            wrong.join("\n")
        );
    }
}

fn in_workspace(workspace: &str, what: &str) -> String {
    if workspace == "default" { what.to_owned() } else { format!("workspace {workspace}: {what}") }
}

/// The first pair of distinct writes that arrived the wrong way round.
fn out_of_order(accepted: &[&Entry], arrived: &[(usize, Change)]) -> Option<String> {
    let mut seen: Vec<&Change> = Vec::new();
    let mut latest: Option<(usize, usize, &Change)> = None;
    for change in accepted.iter().map(|entry| &entry.write.change) {
        if seen.iter().any(|earlier| earlier.same_content(change)) {
            continue;
        }
        seen.push(change);
        let Some(place) = arrived.iter().position(|(_, found)| found.same_content(change)) else {
            continue;
        };
        let seq = arrived[place].0;
        match latest {
            Some((before, before_seq, earlier)) if before > place => {
                return Some(format!("{change} (request {seq}) came before {earlier} (request {before_seq})"));
            }
            _ => latest = Some((place, seq, change)),
        }
    }
    None
}

/// The same writes, with the updates that were accepted before the first create moved behind it.
fn updates_after_create<'a>(entries: &[&'a Entry]) -> Vec<&'a Entry> {
    let Some(create) = entries.iter().position(|entry| entry.write.change.is_create()) else {
        return entries.to_vec();
    };
    let (early, before): (Vec<&Entry>, Vec<&Entry>) =
        entries[..create].iter().partition(|entry| entry.write.change.is_update());
    [&before[..], &entries[create..=create], &early[..], &entries[create + 1..]].concat()
}

/// A permitted final state of an entity.
fn possible_ends(entries: &[Entry]) -> Vec<Entity> {
    let unanswered: Vec<usize> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| !entry.accepted)
        .map(|(at, _)| at)
        .take(UNANSWERED_MAX)
        .collect();
    let mut ends: Vec<Entity> = Vec::new();
    for taken in 0..1_usize << unanswered.len() {
        let counts = |at: usize| unanswered.iter().position(|u| *u == at).is_none_or(|bit| taken >> bit & 1 == 1);
        let order: Vec<&Entry> = entries.iter().enumerate().filter(|(at, _)| counts(*at)).map(|(_, e)| e).collect();
        for order in [updates_after_create(&order), order] {
            let mut entity = Entity::default();
            for entry in order {
                // A write that the server would refuse with 409 changes nothing.
                let _ = entity.apply(&entry.write.change, entry.at);
            }
            ends.push(entity);
        }
    }
    ends
}

/// The differences, from the user's point of view. The server's own times don't count.
fn difference(expected: &Entity, actual: &Entity) -> Vec<String> {
    let mut found = Vec::new();
    match (&expected.record, &actual.record) {
        (Some(expected), Some(actual)) => {
            if actual.partial && !expected.partial {
                found.push(": only updates arrived, its create is lost".to_owned());
            }
            fields(&mut found, "", &expected.fields, &actual.fields);
        }
        (Some(expected), None) => {
            let name = expected.fields.get("name").map(|name| format!(" ({name})")).unwrap_or_default();
            found.push(format!("{name} is lost"));
        }
        (None, Some(_)) => found.push(" is on the server, and no client was told so".to_owned()),
        (None, None) => {}
    }
    for (what, expected, actual) in
        [("score", &expected.scores, &actual.scores), ("assertion result", &expected.assertions, &actual.assertions)]
    {
        for (name, expected) in expected {
            match actual.get(name) {
                Some(actual) => fields(&mut found, &format!(" {what} {name:?}"), expected, actual),
                None => found.push(format!(": {what} {name:?} is lost")),
            }
        }
        for name in actual.keys().filter(|name| !expected.contains_key(*name)) {
            found.push(format!(": {what} {name:?} is on the server, and no client was told so"));
        }
    }
    for guardrail in expected.guardrails.iter().filter(|wanted| !actual.guardrails.contains(wanted)) {
        found.push(format!(": guardrail result {} is lost", guardrail["name"]));
    }
    for guardrail in actual.guardrails.iter().filter(|there| !expected.guardrails.contains(there)) {
        found.push(format!(": guardrail result {} is on the server, and no client was told so", guardrail["name"]));
    }
    found
}

fn fields(found: &mut Vec<String>, of: &str, expected: &Fields, actual: &Fields) {
    let names: BTreeSet<&String> = expected.keys().chain(actual.keys()).collect();
    // An update makes the server set its own time, so this field says nothing once it is gone on one side.
    let names = names
        .into_iter()
        .filter(|name| *name != "last_updated_at" || (expected.contains_key(*name) && actual.contains_key(*name)));
    for name in names {
        match (expected.get(name), actual.get(name)) {
            (Some(expected), None) => found.push(format!("{of}: field {name} is lost, it was {}", short(expected))),
            (None, Some(actual)) => {
                found.push(format!("{of}: field {name} was never sent, the server has {}", short(actual)))
            }
            (Some(expected), Some(actual)) if expected != actual => {
                found.push(format!("{of}: field {name} is {}, the client sent {}", short(actual), short(expected)));
            }
            _ => {}
        }
    }
}

fn short(value: &serde_json::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}
