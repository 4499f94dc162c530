//! Stores filled without an agent: what is measured is what happens to them afterwards.

use std::path::Path;

use opik_offline::message::{Body, Credential, Encoding, HeaderSet, Lane, Message, Request, Server};
use opik_offline::protocol::inspection::inspect;
use opik_offline::protocol::routes::{Route, classify};
use opik_offline::store::{self, Limits, OpenMode, WhenFull};

use crate::agent::store_path;
use crate::bodies::{Sent, span_batches};

const PATH: &str = "v1/private/spans/batch";

/// Stores messages for this server, each with this many spans of 1 KB, as the Python SDK sends them.
pub(crate) fn fill(home: &Path, server: &str, messages: usize, spans: usize) {
    let limits = Limits { size_max: 100 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
    let store = store::open(&store_path(home), OpenMode::CreateIfMissing, limits).expect("a new store");
    let Route::Protected(write) = classify("POST", PATH) else { panic!("spans are protected") };
    let headers = HeaderSet::new(vec![
        ("content-type".into(), b"application/json".to_vec()),
        ("content-encoding".into(), b"gzip".to_vec()),
    ]);
    let lane = Lane {
        server: Some(Server::new(server)),
        workspace: Some("default".into()),
        credential: Some(Credential::new("made-up-key")),
    };
    let mut left = messages;
    while left > 0 {
        let count = left.min(1_000);
        let bodies = span_batches(left as u64, count, spans, 1024, Sent::Python);
        let registered: Vec<Message> = bodies
            .into_iter()
            .map(|bytes| {
                let body = Body::new(bytes, Encoding::Gzip);
                let content = body.decode(1 << 30).expect("a body of ours");
                let inspection = inspect(&write, &content).expect("a body of ours");
                let request = Request { method: "POST".into(), path: PATH.into(), headers: headers.clone(), body };
                Message {
                    lane: lane.clone(),
                    message_type: write.message_type,
                    request,
                    touches: inspection.touches,
                    items: inspection.items,
                    project: inspection.project,
                    accepted_at_ms: store::now_ms(),
                }
            })
            .collect();
        store.register(&registered).expect("there is room");
        left -= count;
    }
}
