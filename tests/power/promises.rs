//! The answers to clients in a recorded run, with the number of the operation that was the last by then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use opik_offline::store::{self, Filter, Limits, OpenMode, Page, Store, StoreError, StoredMessage, WhenFull};
use serde_json::Value;

use crate::layer::Layer;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};

pub(crate) const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };

/// When what was not acknowledged was.
const NEVER: u64 = u64::MAX;

/// One item of a request: `create ID` or `update ID N`.
type Item = String;

struct Told {
    path: String,
    body: Vec<u8>,
    items: BTreeMap<Item, Value>,
    /// Operations done when the answer had come.
    at: u64,
    /// A purge that selects it: when it began, and when it said that it was done.
    purged: Option<(u64, u64)>,
}

#[derive(Default)]
pub(crate) struct Promises {
    told: Mutex<Vec<Told>>,
    /// Operations done when an item had reached the server.
    arrived: Arc<Mutex<BTreeMap<Item, u64>>>,
}

/// Returns what a body carries. A server may get an item and its update in one.
fn items(path: &str, body: &Value) -> BTreeMap<Item, Value> {
    let (_, rest) = path.split_once("v1/private/").expect("a write's path");
    let listed: Vec<(String, Value)> = match body.get("traces").and_then(Value::as_array) {
        Some(list) => {
            list.iter().map(|item| (item["id"].as_str().unwrap_or_default().to_owned(), item.clone())).collect()
        }
        None => {
            let id = rest.strip_prefix("traces/").unwrap_or_else(|| body["id"].as_str().unwrap_or_default());
            vec![(id.to_owned(), body.clone())]
        }
    };
    let named = listed.into_iter().flat_map(|(id, item)| {
        let create = item.get("name").map(|_| format!("create {id}"));
        let update = item.pointer("/output/n").map(|n| format!("update {id} {n}"));
        create.into_iter().chain(update).map(move |name| (name, item.clone())).collect::<Vec<_>>()
    });
    named.collect()
}

impl Promises {
    /// Sends a write that has to be acknowledged, and notes when it was.
    #[track_caller]
    pub(crate) fn send(&self, layer: &Layer, client: &mut Client, request: &Request) {
        let answer = client.expect(request);
        assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
        self.note(layer, request);
    }

    /// Notes that a write was acknowledged.
    pub(crate) fn note(&self, layer: &Layer, request: &Request) {
        self.add(layer.now(), request);
    }

    /// Notes that a write was sent, and no answer came: it may be there or not.
    pub(crate) fn unanswered(&self, request: &Request) {
        self.add(NEVER, request);
    }

    fn add(&self, at: u64, request: &Request) {
        let body = serde_json::from_slice(&request.body).expect("JSON");
        let told = Told {
            path: request.path.clone(),
            items: items(&request.path, &body),
            body: request.body.clone(),
            at,
            purged: None,
        };
        self.told.lock().expect("no thread panicked").push(told);
    }

    /// Notes from now on what the server takes: everything but requests with one of these ids, which it refuses.
    pub(crate) fn watch(&self, layer: &Arc<Layer>, server: &FakeOpik, refused: &BTreeSet<String>) {
        let (layer, arrived, refused) = (Arc::clone(layer), Arc::clone(&self.arrived), refused.clone());
        let sees = When::write().and(move |request| {
            if !refused.iter().any(|id| request.touches_id(id)) {
                let now = layer.now();
                let mut arrived = arrived.lock().expect("no thread panicked");
                for item in items(request.route(), request.json.as_deref().unwrap_or(&Value::Null)).into_keys() {
                    arrived.entry(item).or_insert(now);
                }
            }
            false
        });
        server.script(sees, Then::status(500));
    }

    /// Returns the items, except those of these ids, that were promised and are not on the server.
    pub(crate) fn missing(&self, refused: &BTreeSet<String>) -> usize {
        let arrived = self.arrived.lock().expect("no thread panicked");
        let told = self.told.lock().expect("no thread panicked");
        let all = told.iter().filter(|told| told.at != NEVER).flat_map(|told| told.items.keys());
        all.filter(|item| !refused.iter().any(|id| item.contains(id.as_str())) && !arrived.contains_key(*item)).count()
    }

    /// Notes that a purge took what has this path.
    pub(crate) fn purged(&self, path: &str, began: u64, done: u64) {
        for told in self.told.lock().expect("no thread panicked").iter_mut().filter(|told| told.path == path) {
            told.purged = Some((began, done));
        }
    }

    /// Checks a store as a power cut right after this operation left it.
    pub(crate) fn check(&self, db: &Path, cut: u64) -> Result<(), String> {
        let lost = self.lost(db, cut)?;
        if lost.is_empty() { Ok(()) } else { Err(format!("{} of them: {}", lost.len(), lost.join("; "))) }
    }

    /// Returns how many items were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        let told = self.told.lock().expect("no thread panicked");
        told.iter().filter(|told| told.at != NEVER).map(|told| told.items.len()).sum()
    }

    /// Returns what was acknowledged by the time of a cut, and is neither in the store that it left nor at the server.
    pub(crate) fn lost(&self, db: &Path, cut: u64) -> Result<Vec<String>, String> {
        let mut kept = BTreeSet::new();
        let told = self.told.lock().expect("no thread panicked");
        for message in messages(db)? {
            let (path, body) = (format!("/{}", message.request.path), &message.request.body.bytes);
            let json: Value =
                serde_json::from_slice(body).map_err(|why| format!("a stored body is not JSON: {why}"))?;
            let found = items(&path, &json);
            let source =
                told.iter().find(|told| told.path == path && found.keys().all(|item| told.items.contains_key(item)));
            let Some(source) = source else { return Err(format!("nobody sent {path} {json}")) };
            // A part of a divided message is written anew, item by item.
            let is_as_sent = match found.len() < source.items.len() {
                true => found.iter().all(|(item, value)| source.items[item] == *value),
                false => source.body == body[..],
            };
            if !is_as_sent {
                return Err(format!("stored is {json}, sent was {}", String::from_utf8_lossy(&source.body)));
            }
            if source.purged.is_some_and(|(_, done)| cut >= done) {
                return Err(format!("{path} is back, and `purge` had said that it is deleted"));
            }
            kept.extend(found.into_keys());
        }
        let arrived = self.arrived.lock().expect("no thread panicked");
        let due = told.iter().filter(|told| told.at <= cut && told.purged.is_none_or(|(began, _)| began > cut));
        let lost = due
            .flat_map(|told| told.items.keys().map(|item| (item, told.at)))
            .filter(|(item, _)| !kept.contains(*item) && arrived.get(*item).is_none_or(|at| *at > cut))
            .map(|(item, at)| format!("{item}, acknowledged by operation {at}, is lost"))
            .collect();
        Ok(lost)
    }
}

/// Opens a store as one who only looks does, who repairs nothing; `None` when there is none, or an empty file.
pub(crate) fn sound(db: &Path) -> Result<Option<Arc<dyn Store>>, String> {
    match store::open(db, OpenMode::Existing, LIMITS) {
        Ok(store) => {
            let wrong = store.check().map_err(|why| why.to_string())?;
            if wrong.is_empty() { Ok(Some(store)) } else { Err(wrong.join("; ")) }
        }
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(why) => Err(format!("the store does not open: {why}")),
    }
}

/// Returns all that is stored, after a check for damage.
pub(crate) fn messages(db: &Path) -> Result<Vec<StoredMessage>, String> {
    let Some(store) = sound(db)? else { return Ok(Vec::new()) };
    let all = Page { after: None, limit: 100_000, newest_first: false };
    let listed = store.list(&Filter::default(), &all).map_err(|why| why.to_string())?;
    let whole = listed.iter().map(|listed| store.get(listed.id).map_err(|why| why.to_string()));
    whole.map(|message| message?.ok_or_else(|| "a listed message is gone".to_owned())).collect()
}

/// Checks that the next agent takes the store as it is, and sets nothing aside.
pub(crate) fn opens_unrepaired(db: &Path) -> Result<(), String> {
    let before = messages(db)?.len();
    let store =
        store::open(db, OpenMode::CreateIfMissing, LIMITS).map_err(|why| format!("no agent can start: {why}"))?;
    let after = store.backlog(&Filter::default()).map_err(|why| why.to_string())?.messages();
    let folder = std::fs::read_dir(db.parent().expect("a folder")).map_err(|why| why.to_string())?;
    let names = folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let aside: Vec<String> = names.filter(|name| name.contains("damaged") || name.contains("recovering")).collect();
    match aside.is_empty() && after == before as u64 {
        true => Ok(()),
        false => Err(format!("the next agent has {after} messages, and {before} were expected, set aside: {aside:?}")),
    }
}
