//! The cost of the pure parts: classification, inspection, decoding, planning of shipments, conversion of the SDK's
//! rows.
//!
//! ```text
//! cargo bench --bench micro                   times
//! cargo bench --bench micro -- --test         each once: does it still run?
//! ```
//!
//! No clock, socket or disk is in them, so two runs on an idle machine agree. `figures` measures the performance for
//! users.

#![allow(clippy::disallowed_methods, reason = "a bench is not part of the configuration")]

#[allow(dead_code)]
#[path = "figures/bodies.rs"]
mod bodies;

use bodies::{Sent, span_batches};
use divan::{Bencher, black_box};
use opik_offline::delivery::batching::coalesce::plan;
use opik_offline::message::{Body, Claimed, Encoding, HeaderSet, MessageId, Request};
use opik_offline::protocol::inspection::{inspect, with_ids};
use opik_offline::protocol::routes::{Protected, Route, classify};
use opik_offline::sdk::rows::convert;

const PATH: &str = "v1/private/spans/batch";

fn main() {
    divan::main();
}

fn write() -> Protected {
    match classify("POST", PATH) {
        Route::Protected(write) => write,
        _ => panic!("spans are protected"),
    }
}

/// A batch of one span of this many bytes, as the Python SDK sends it, decoded.
fn content(bytes: usize) -> Vec<u8> {
    let body = Body::new(span_batches(1, 1, 1, bytes, Sent::Python).remove(0), Encoding::Gzip);
    body.decode(1 << 30).expect("a body of ours").to_vec()
}

#[divan::bench(args = ["v1/private/spans/batch", "v1/private/traces/01a20440-760d-73a3-a0fd-1799bd005824", "v1/private/projects"])]
fn classify_path(path: &str) -> Route {
    classify(black_box("POST"), black_box(path))
}

#[divan::bench(args = [2_048, 20_480, 1_048_576])]
fn inspect_span(bencher: Bencher, bytes: usize) {
    let (write, content) = (write(), content(bytes));
    bencher.counter(divan::counter::BytesCount::new(content.len())).bench(|| inspect(&write, black_box(&content)));
}

#[divan::bench(args = [2_048, 20_480, 1_048_576])]
fn inflate_span(bencher: Bencher, bytes: usize) {
    let body = Body::new(span_batches(1, 1, 1, bytes, Sent::Python).remove(0), Encoding::Gzip);
    let inflated = content(bytes).len();
    bencher.counter(divan::counter::BytesCount::new(inflated)).bench(|| black_box(&body).decode(1 << 30));
}

#[divan::bench]
fn add_missing_ids(bencher: Bencher) {
    let content = br#"{"spans":[{"name":"a","start_time":"2026-11-22T00:00:00Z"},{"name":"b","start_time":"2026-11-22T00:00:00Z"}]}"#;
    let missing = inspect(&write(), content).expect("JSON").missing_ids;
    bencher.bench(|| with_ids(black_box(content), &missing, || "01a20440-760d-73a3-a0fd-1799bd005824".to_owned()));
}

#[divan::bench(args = [100, 1_000])]
fn plan_shipments(bencher: Bencher, messages: usize) {
    let write = write();
    let claimed: Vec<Claimed> = span_batches(3, messages, 1, 1_024, Sent::Python)
        .into_iter()
        .zip(1..)
        .map(|(bytes, id)| {
            let body = Body::new(bytes, Encoding::Gzip);
            let inspection = inspect(&write, &body.decode(1 << 30).expect("a body of ours")).expect("JSON");
            Claimed {
                id: MessageId(id),
                message_type: write.message_type,
                request: Request { method: "POST".into(), path: PATH.into(), headers: HeaderSet::default(), body },
                touches: inspection.touches,
                items: inspection.items,
                attempts: 0,
                ahead: Vec::new(),
                is_unsure: false,
                way: Default::default(),
            }
        })
        .collect();
    let count = divan::counter::ItemsCount::new(messages);
    bencher.counter(count).with_inputs(|| claimed.clone()).bench_values(|claimed| plan(claimed).len());
}

#[divan::bench]
fn convert_sdk_row(bencher: Bencher) {
    let row = br#"{"trace_id": "01a20440-760d-73a3-a0fd-1799bd005824", "project_name": "p", "name": "chat", "start_time": "2026-11-22T17:19:23.475379+00:00", "end_time": null, "input": {"text": "a question"}, "output": {"text": "an answer"}, "tags": null, "metadata": null, "error_info": null, "thread_id": null, "last_updated_at": "2026-11-22T17:19:23.475379+00:00", "source": "sdk"}"#;
    assert!(convert("CreateTraceMessage", row).is_ok(), "the row is one of the SDK's");
    bencher.bench(|| convert(black_box("CreateTraceMessage"), black_box(row)));
}
