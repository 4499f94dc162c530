//! All kinds of writes from several clients at once, through a server that comes, goes and fails: afterwards it knows what
//! each client was told, and everything about one entity came in the order in which it was accepted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::messages::otlp_protobuf;
use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::uuid7;

const CLIENTS: u64 = 4;
const ROUNDS: u64 = 150;

/// Numbers that look random and are the same in every run (Knuth's MMIX generator).
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn json_request(method: &str, path: &str, body: &Value) -> Request {
    Request::new(method, &format!("/v1/private/{path}")).json(body)
}

/// The writes about a few new entities, from their making to their end.
pub(crate) fn life(numbers: &mut Numbers, client: u64) -> Vec<Request> {
    let at = "2026-03-01T04:00:16Z";
    let (trace, span, thread) = (uuid7(), uuid7(), format!("thread-{client}"));
    let mut item = json!({ "id": trace, "start_time": at, "name": "n", "thread_id": thread });
    let span_item = json!({ "id": span, "trace_id": trace, "start_time": at, "last_updated_at": at });
    let mut writes = Vec::new();
    match numbers.below(3) {
        0 => writes.push(json_request("POST", "traces", &item)),
        way => {
            item["last_updated_at"] = at.into();
            let other = json!({ "id": uuid7(), "start_time": at, "last_updated_at": at });
            let batch = json!({ "traces": [item, other] });
            let request = if way == 1 {
                json_request("POST", "traces/batch", &batch).gzip()
            } else {
                json_request("POST", "traces", &item)
            };
            writes.push(request);
        }
    }
    writes.push(json_request("POST", "spans", &span_item));
    for n in 0..numbers.below(3) {
        writes.push(json_request("PATCH", &format!("traces/{trace}"), &json!({ "output": { "n": n } })));
        let score = json!({ "id": span, "name": "q", "value": n, "source": "sdk" });
        writes.push(json_request("PUT", "spans/feedback-scores", &json!({ "scores": [score] })));
    }
    match numbers.below(6) {
        0 => writes.push(Request::new("DELETE", &format!("/v1/private/traces/{trace}"))),
        1 => writes.push(json_request("POST", "traces/delete", &json!({ "ids": [trace] }))),
        2 => {
            writes.push(json_request("PUT", "traces/threads/close", &json!({ "thread_id": thread })));
            writes.push(json_request("PUT", "traces/threads/open", &json!({ "thread_id": thread })));
        }
        3 => {
            let experiment = uuid7();
            writes.push(json_request("POST", "experiments", &json!({ "id": experiment, "dataset_name": "d" })));
            let item =
                json!({ "id": uuid7(), "experiment_id": experiment, "dataset_item_id": uuid7(), "trace_id": trace });
            writes.push(json_request("POST", "experiments/items", &json!({ "experiment_items": [item] })));
            writes.push(json_request("POST", "experiments/finish", &json!({ "ids": [experiment] })));
            if numbers.below(2) == 0 {
                writes.push(json_request("POST", "experiments/delete", &json!({ "ids": [experiment] })));
            }
        }
        4 => {
            let (kept, gone) = (uuid7(), uuid7());
            let item = |id: &str| json!({ "id": id, "source": "sdk", "data": { "q": 1 } });
            let items = json!({ "dataset_name": format!("d-{client}"), "items": [item(&kept), item(&gone)] });
            writes.push(json_request("PUT", "datasets/items", &items));
            writes.push(json_request("POST", "datasets/items/delete", &json!({ "item_ids": [gone] })));
        }
        _ => {
            let id = uuid::Uuid::now_v7().into_bytes();
            let span: [u8; 8] = id[8..].try_into().expect("eight bytes");
            let body = otlp_protobuf(&id, &span, "otel", "mixed");
            let request = Request::new("POST", "/v1/private/otel/v1/traces").bytes(body);
            writes.push(request.header("Content-Type", "application/x-protobuf"));
        }
    }
    writes
}

#[test]
fn a_flapping_server_ends_with_every_acknowledged_write() {
    let server = FakeOpik::start_new();
    // A lane that is held for a server in trouble tries again soon.
    let agent = Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_RETRY_INTERVAL", "500ms").start();
    let ledger = ClientLedger::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (agent, ledger) = (&agent, &ledger);
                scope.spawn(move || {
                    let mut numbers = Numbers(number + 1);
                    let mut client = Client::new(&agent.url());
                    for _ in 0..ROUNDS {
                        for request in life(&mut numbers, number) {
                            let answer = client.send(&request);
                            let status = answer.as_ref().map(|answer| answer.status).unwrap_or_default();
                            assert!((200..300).contains(&status), "{} {} got {status}", request.method, request.path);
                            ledger.told(&request, &answer);
                        }
                    }
                })
            })
            .collect();
        let trouble = scope.spawn(|| {
            let mut numbers = Numbers(99);
            let mut troubles = 0;
            while !done.load(Ordering::SeqCst) {
                match numbers.below(4) {
                    0 => {
                        server.stop();
                        std::thread::sleep(Duration::from_millis(150));
                        server.start();
                    }
                    1 => drop(server.script_times(5, When::write(), Then::ProcessThenReset)),
                    2 => drop(server.script_times(5, When::write(), Then::status(500))),
                    _ => drop(server.script_times(3, When::write(), Then::rate_limited(1))),
                }
                troubles += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            troubles
        });
        for client in clients {
            client.join().expect("no client saw an error");
        }
        done.store(true, Ordering::SeqCst);
        assert!(trouble.join().expect("no thread panicked") > 5, "the clients were done before there was any trouble");
    });
    server.clear_script();
    agent.wait_until_delivered();

    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();
    server.assert_no_overlaps();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    assert_eq!(agent.cli(&["inspect", "--rejected", "--format", "json"]).json()["selected"], 0);
}
