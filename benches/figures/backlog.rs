//! Stores filled without an agent: what is measured is what happens to them afterwards.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use opik_offline::message::{Body, Credential, Encoding, HeaderSet, Lane, Message, Request, Server};
use opik_offline::protocol::inspection::inspect;
use opik_offline::protocol::routes::{Protected, Route, classify};
use opik_offline::store::{self, Limits, OpenMode, WhenFull};

use crate::agent::{folder, is_empty, store_path};
use crate::bodies::{Sent, span_batches};
use crate::sink::Sink;
use crate::templates::Templates;

const PATH: &str = "v1/private/spans/batch";
/// Messages of one commit.
const COMMIT: usize = 1_000;
/// How long a backlog may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// A filled store, of which copies are drained.
pub(crate) struct Filled(TempDir);

impl Filled {
    /// Fills a store.
    pub(crate) fn new(fill: impl FnOnce(&Path)) -> Self {
        let home = folder();
        fill(home.path());
        Self(home)
    }

    /// Returns a home with a copy of the store, which is on the disk.
    pub(crate) fn copy(&self) -> TempDir {
        let home = folder();
        fs::copy(store_path(self.0.path()), store_path(home.path())).expect("a file can be copied");
        fs::File::open(store_path(home.path())).and_then(|file| file.sync_all()).expect("a file can be synced");
        home
    }
}

/// Waits until the store of this home is empty; returns the seconds from `started` to the last write.
///
/// Does not ask the store before this many requests came, because that would take time from the replay.
pub(crate) fn drained(home: &Path, sink: &Sink, started: Instant, requests: u64) -> f64 {
    loop {
        assert!(started.elapsed() < PATIENCE, "the backlog stays");
        std::thread::sleep(Duration::from_millis(50));
        if sink.writes() >= requests && is_empty(home) {
            let last = sink.last_write().expect("a backlog is delivered");
            return last.saturating_duration_since(started).as_secs_f64();
        }
    }
}

/// Stores messages for this server, each with this many spans of 1 KB, as the Python SDK sends them.
pub(crate) fn fill(home: &Path, server: &str, messages: usize, spans: usize) {
    let bodies = |first: usize, count: usize| span_batches(first as u64, count, spans, 1024, Sent::Python);
    store_all(home, messages, bodies, |_| lane(server, "default", "made-up-key"));
}

/// Stores messages for this server, each with one span of 1 KB.
pub(crate) fn fill_singles(home: &Path, server: &str, messages: usize) {
    let templates = Templates::of_content(200, 1024);
    let bodies = |first: usize, count: usize| singles(&templates, first, count);
    store_all(home, messages, bodies, |_| lane(server, "default", "made-up-key"));
}

/// Stores messages of this many lanes, each with this many messages of one span, which take turns: a lane is a
/// workspace with a key of its own.
pub(crate) fn fill_lanes(home: &Path, server: &str, lanes: usize, messages: usize) {
    let templates = Templates::of_content(200, 1024);
    let bodies = |first: usize, count: usize| singles(&templates, first, count);
    store_all(home, lanes * messages, bodies, |number| {
        let number = number % lanes;
        lane(server, &format!("workspace-{number}"), &format!("made-up-key-{number}"))
    });
}

fn singles(templates: &Templates, first: usize, count: usize) -> Vec<Vec<u8>> {
    (first..first + count).map(|number| templates.create(number).body).collect()
}

fn lane(server: &str, workspace: &str, key: &str) -> Lane {
    Lane {
        server: Some(Server::new(server)),
        workspace: Some(workspace.to_owned()),
        credential: Some(Credential::new(key)),
    }
}

fn store_all(
    home: &Path,
    messages: usize,
    bodies: impl Fn(usize, usize) -> Vec<Vec<u8>>,
    lane: impl Fn(usize) -> Lane,
) {
    let limits = Limits { size_max: 100 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
    let store = store::open(&store_path(home), OpenMode::CreateIfMissing, limits).expect("a new store");
    let Route::Protected(write) = classify("POST", PATH) else { panic!("spans are protected") };
    let headers = HeaderSet::new(vec![
        ("content-type".into(), b"application/json".to_vec()),
        ("content-encoding".into(), b"gzip".to_vec()),
    ]);
    for first in (0..messages).step_by(COMMIT) {
        let bodies = bodies(first, COMMIT.min(messages - first));
        let messages: Vec<Message> =
            (first..).zip(bodies).map(|(number, bytes)| message(&write, &headers, lane(number), bytes)).collect();
        store.register(&messages).expect("there is room");
    }
}

fn message(write: &Protected, headers: &HeaderSet, lane: Lane, bytes: Vec<u8>) -> Message {
    let body = Body::new(bytes, Encoding::Gzip);
    let content = body.decode(1 << 30).expect("a body of ours");
    let inspection = inspect(write, &content).expect("a body of ours");
    let request = Request { method: "POST".into(), path: PATH.into(), headers: headers.clone(), body };
    Message {
        lane,
        message_type: write.message_type,
        request,
        touches: inspection.touches,
        items: inspection.items,
        project: inspection.project,
        accepted_at_ms: store::now_ms(),
    }
}
