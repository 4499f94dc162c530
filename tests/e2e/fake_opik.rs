//! The fake server itself: what it accepts and refuses, what it remembers, and that its script and its checker work.
//! Nothing here needs the agent.

use std::io;

use serde_json::{Value, json};

use crate::support::fake_opik::check::{Endpoint, Kind};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::json::parse_lenient;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, update};

fn trace(id: &str, name: &str) -> Value {
    json!({ "id": id, "name": name, "start_time": "2026-03-01T09:30:15.123456+05:30", "input": { "q": name } })
}

fn traces(items: &[Value]) -> Value {
    json!({ "traces": items })
}

/// A server with one client of its own.
fn server_and_client() -> (FakeOpik, Client) {
    let server = FakeOpik::start_new();
    let client = Client::new(&server.url());
    (server, client)
}

#[test]
fn captured_sdk_requests_are_answered_as_recorded() {
    for (file, compared_min) in [
        (include_str!("../fixtures/http/python-sdk-2.2.122.jsonl"), 20),
        (include_str!("../fixtures/http/typescript-sdk-2.0.40.jsonl"), 8),
    ] {
        let (server, mut client) = server_and_client();
        let mut compared = 0;
        for line in file.lines() {
            let captured: Value = serde_json::from_str(line).expect("a line of JSON");
            let (method, path) = (captured["method"].as_str().unwrap(), captured["path"].as_str().unwrap());
            let route = path.strip_prefix("/api").unwrap_or(path);
            let read = matches!(route, "/v1/private/auth" | "/v1/private/traces/search")
                || route.starts_with("/is-alive/")
                || (method == "GET" && route.starts_with("/v1/private/traces/"));
            if !read && Endpoint::of(method, route).is_none() {
                continue;
            }
            let mut request = Request::new(method, route).bytes(base64(captured["body_base64"].as_str().unwrap_or("")));
            for header in captured["headers"].as_array().unwrap() {
                let (name, value) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
                if !["host", "content-length", "connection", "transfer-encoding"].contains(&&*name.to_lowercase()) {
                    request = request.header(name, value);
                }
            }
            let answer = client.expect(&request);
            assert_eq!(u64::from(answer.status), captured["answered_status"], "{method} {path}: {}", answer.text());
            compared += 1;
        }
        assert!(compared >= compared_min, "only {compared} of the captured requests were known");
        server.assert_no_violations();
        assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    }
}

#[test]
fn connections_are_kept_and_both_prefixes_work() {
    let (server, mut client) = server_and_client();
    assert_eq!(client.get("/is-alive/ping").status, 200);
    assert_eq!(client.expect(&Request::new("POST", "/v1/private/auth")).status, 204);
    assert_eq!(client.get("/v1/private/nothing").json(), json!({ "code": 404, "message": "HTTP 404 Not Found" }));

    let id = uuid7();
    let mut other = Client::new(&server.url().replace("/api", "/opik/api"));
    let answer = other.post("/v1/private/traces", &trace(&id, "one"));
    assert_eq!(answer.status, 201);
    let location = format!("{}/v1/private/traces/{id}", server.url().replace("/api", "/opik/api"));
    assert_eq!(answer.header("Location"), Some(&*location));
    let read = client.get(&format!("/v1/private/traces/{id}"));
    assert_eq!(read.json()["input"], json!({ "q": "one" }));
}

#[test]
fn bodies_arrive_chunked_compressed_and_in_pieces() {
    let (server, mut client) = server_and_client();
    let ids = [uuid7(), uuid7(), uuid7()];
    let body = |id: &str| traces(&[trace(id, "a name long enough for several chunks")]);
    let batch = |id: &str| Request::new("POST", "/v1/private/traces/batch").json(&body(id));
    assert_eq!(client.expect(&batch(&ids[0]).chunked(7)).status, 204);
    assert_eq!(client.expect(&batch(&ids[1]).gzip()).status, 204);
    let half = client.send_part(&batch(&ids[2]), 10).unwrap();
    assert_eq!(half.finish().unwrap().status, 204);
    client.send_part(&batch(&uuid7()), 10).unwrap().hang_up();
    wait_until("the server sees the half request end", PATIENCE, || server.unfinished() == 1);

    assert_eq!(server.count("default", Kind::Trace), 3);
    let compressed = &server.requests()[1];
    assert_eq!(compressed.header("content-encoding"), Some("gzip"));
    assert_ne!(&compressed.body[..], body(&ids[1]).to_string().as_bytes());
    assert_eq!(**compressed.json.as_ref().unwrap(), body(&ids[1]));
}

#[test]
fn what_the_sdks_really_write_is_accepted() {
    let (server, mut client) = server_and_client();
    let id = uuid7();
    let body = format!(
        r#"{{"id": "{id}", "start_time": "2026-03-01T04:00:16Z", "end_time": null,
            "input": {{"a": NaN, "b": [-Infinity, Infinity], "c": 123456789012345678901234567890, "d": "\ud83d", "e": 1e+22}}}}"#
    );
    let answer = client.expect(&Request::new("POST", "/v1/private/traces").bytes(body));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let input = server.entity("default", Kind::Trace, &id).unwrap().record.unwrap().fields["input"].clone();
    assert_eq!(input["a"], json!({ "$number": "NaN" }));
    assert_eq!(input["c"], json!({ "$number": "123456789012345678901234567890" }));
    assert_eq!(input["d"], json!("\u{fffc}d83d"));
    server.assert_no_violations();
}

#[test]
fn lenient_json_still_refuses_what_is_no_json() {
    for text in ["", "{", "[1,]", "{\"a\"}", "nul", "1 2", "\"\u{1}\"", "{'a':1}", "-", "\"\\u12\"", "\"\\x\"", "inf"] {
        assert!(parse_lenient(text.as_bytes()).is_err(), "{text:?} was accepted");
    }
    let text = r#" {"a": [1, -2.5, true, null, "x\n\u00e9\ud83d\ude00"], "b": {}} "#;
    assert_eq!(parse_lenient(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    assert_ne!(parse_lenient(b"0.12345678901234567891").unwrap(), parse_lenient(b"0.12345678901234567").unwrap());
}

#[test]
fn what_the_server_would_refuse_is_a_violation() {
    let (server, mut client) = server_and_client();
    let id = uuid7();
    let score = json!({ "id": id, "name": "quality", "source": "sdk", "value": 1.0 });
    let many: Vec<Value> = (0..1_001).map(|_| score.clone()).collect();
    let guardrail = json!({ "entity_id": id, "secondary_id": id, "name": "OTHER", "result": "passed", "config": {}, "details": {} });
    let cases = [
        ("POST", "/v1/private/traces", json!({ "id": id })),
        ("POST", "/v1/private/traces", json!({ "id": uuid4(), "start_time": "2026-03-01T04:00:16Z" })),
        ("POST", "/v1/private/traces", json!({ "id": id, "start_time": "2026-03-01T04:00:16" })),
        ("POST", "/v1/private/traces", json!({ "id": id, "start_time": "2026-03-01T04:00:16Z", "project_name": " " })),
        ("POST", "/v1/private/traces/batch", traces(&[])),
        ("POST", "/v1/private/spans/batch", json!({ "spans": {} })),
        ("POST", "/v1/private/spans", json!({ "id": id, "start_time": "2026-03-01T04:00:16Z", "type": "odd" })),
        ("PATCH", &format!("/v1/private/spans/{id}"), json!({ "output": {} })),
        ("PUT", "/v1/private/traces/feedback-scores", json!({ "scores": many })),
        ("PUT", "/v1/private/traces/threads/feedback-scores", json!({ "scores": [score] })),
        ("POST", "/v1/private/guardrails", json!({ "guardrails": [guardrail] })),
        ("PUT", "/v1/private/assertion-results", json!({ "assertion_results": [{}] })),
        ("POST", "/v1/private/experiments/items", json!({ "experiment_items": [{ "id": id }] })),
    ];
    for (count, (method, path, body)) in cases.iter().enumerate() {
        let answer = client.expect(&Request::new(method, path).json(body));
        assert_eq!(answer.status, 400, "{method} {path} {body}");
        assert_eq!(answer.json()["code"], 400);
        assert!(answer.json()["message"].is_string());
        assert_eq!(server.violations().len(), count + 1);
    }
    let post = |body: &[u8]| Request::new("POST", "/v1/private/traces").bytes(body);
    assert_eq!(client.expect(&post(b"not json")).status, 400);
    assert_eq!(client.expect(&post(b"not gzip").header("Content-Encoding", "gzip")).status, 400);
    assert_eq!(client.expect(&post(b"{}").header("Content-Encoding", "br")).status, 415);
    assert_eq!(client.expect(&post(&vec![b' '; 129 * 1024 * 1024])).status, 413);
    assert!(server.state().values().all(std::collections::BTreeMap::is_empty));
}

#[test]
fn the_state_follows_the_servers_rules() {
    let (server, mut client) = server_and_client();
    let fields = |id: &str| server.entity("default", Kind::Trace, id).unwrap().record.unwrap().fields;
    let dated = |id: &str, name: &str, at: &str| {
        let mut trace = trace(id, name);
        trace["last_updated_at"] = at.into();
        trace
    };

    // A single create leaves a full record alone.
    let id = uuid7();
    client.post("/v1/private/traces", &trace(&id, "first"));
    client.post("/v1/private/traces", &trace(&id, "second"));
    assert_eq!(fields(&id)["name"], "first");

    // The newest last_updated_at wins in batches, whatever its offset.
    let id = uuid7();
    let items = [dated(&id, "late", "2026-03-01T10:00:00+02:00"), dated(&id, "early", "2026-03-01T07:59:59.9Z")];
    client.post("/v1/private/traces/batch", &traces(&items));
    assert_eq!(fields(&id)["name"], "late");

    // An update merges what is not null.
    client.patch(&format!("/v1/private/traces/{id}"), &json!({ "output": { "a": 1 }, "name": null }));
    assert_eq!((&fields(&id)["name"], &fields(&id)["output"]), (&json!("late"), &json!({ "a": 1 })));

    // An early update hides an older batch create, and a single create completes it.
    let id = uuid7();
    client.patch(&format!("/v1/private/traces/{id}"), &json!({ "output": { "a": 1 } }));
    client.post("/v1/private/traces/batch", &traces(&[dated(&id, "hidden", "2026-03-01T04:00:16Z")]));
    assert!(!fields(&id).contains_key("name"));
    client.post("/v1/private/traces", &trace(&id, "completed"));
    assert_eq!((&fields(&id)["name"], &fields(&id)["output"]), (&json!("completed"), &json!({ "a": 1 })));
    assert_eq!(server.early_updates().len(), 1);

    // Scores are kept by entity and name, the last one wins; workspaces don't see each other.
    for value in [0.1, 0.9] {
        let score = json!({ "id": id, "name": "quality", "source": "sdk", "value": value });
        client.put("/v1/private/traces/feedback-scores", &json!({ "scores": [score] }));
    }
    let scores = server.entity("default", Kind::Trace, &id).unwrap().scores;
    assert_eq!(scores["quality"]["value"], 0.9);
    let mut elsewhere = Client::new(&server.url()).with_header("Comet-Workspace", "elsewhere");
    assert_eq!(elsewhere.get(&format!("/v1/private/traces/{id}")).status, 404);

    // A span update that names another parent is a conflict.
    let (span, parent) = (uuid7(), uuid7());
    let body = json!({ "id": span, "trace_id": id, "parent_span_id": parent, "start_time": "2026-03-01T04:00:16Z" });
    assert_eq!(client.post("/v1/private/spans", &body).status, 201);
    let update = |body| Request::new("PATCH", &format!("/v1/private/spans/{span}")).json(&body);
    assert_eq!(client.expect(&update(json!({ "trace_id": id }))).status, 409);
    assert_eq!(client.expect(&update(json!({ "trace_id": id, "parent_span_id": parent, "model": "m" }))).status, 204);
    server.assert_no_violations();
}

#[test]
fn a_stopped_server_refuses_and_comes_back_on_its_port_with_its_state() {
    let (server, mut client) = server_and_client();
    let id = uuid7();
    client.post("/v1/private/traces", &trace(&id, "before"));
    server.stop();
    assert!(client.send(&Request::new("GET", "/is-alive/ping")).is_err(), "the kept connection was cut");
    for _ in 0..3 {
        let refused = client.send(&Request::new("GET", "/is-alive/ping")).unwrap_err();
        // Reset where another test starts a process at this moment: until it has, that holds a copy of the listener.
        let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
        assert!(kinds.contains(&refused.kind()), "{refused}");
    }
    server.start();
    assert_eq!(client.get(&format!("/v1/private/traces/{id}")).status, 200);
    server.stop();
    server.stop();
    server.start();
    server.start();
    assert!(client.send(&Request::new("GET", "/is-alive/ping")).is_err(), "this connection is of the earlier run");
    assert_eq!(client.get("/is-alive/ping").status, 200);
}

#[test]
fn every_fault_of_the_script_does_what_it_says() {
    let (server, mut client) = server_and_client();
    let create = |id: &str| Request::new("POST", "/v1/private/traces").json(&trace(id, "x"));
    let known = |id: &str| server.entity("default", Kind::Trace, id).is_some();

    // An answer, `n` times, with headers; nothing is processed.
    let id = uuid7();
    let busy = server.script_times(2, When::path("/v1/private/traces").method("POST"), Then::rate_limited(7));
    for _ in 0..2 {
        let answer = client.expect(&create(&id));
        assert_eq!((answer.status, answer.header("RateLimit-Reset")), (429, Some("7")));
    }
    assert!(!known(&id));
    assert_eq!(client.expect(&create(&id)).status, 201);
    assert_eq!(busy.hits(), 2);

    // Only for some ids, until it is cleared.
    let (good, bad) = (uuid7(), uuid7());
    let rejected = server.reject_ids([&*bad]);
    assert_eq!(client.expect(&create(&good)).status, 201);
    assert_eq!(client.post("/v1/private/traces/batch", &traces(&[trace(&uuid7(), "a"), trace(&bad, "b")])).status, 400);
    rejected.clear();
    assert_eq!(client.expect(&create(&bad)).status, 201);

    // Only for one key or one workspace.
    server.script(When::any().authorization("wrong"), Then::status(401));
    server.script(When::any().workspace("closed"), Then::Answer(Answer::error(403, "no")));
    assert_eq!(client.expect(&create(&uuid7()).header("Authorization", "wrong")).status, 401);
    assert_eq!(client.expect(&create(&uuid7()).header("Comet-Workspace", "closed")).status, 403);
    assert_eq!(client.expect(&create(&uuid7()).header("Authorization", "right")).status, 201);

    // Broken before, after and within the answer.
    for (then, error, processed) in [
        (Then::ResetUnread, Some(io::ErrorKind::ConnectionReset), false),
        (Then::ProcessThenReset, Some(io::ErrorKind::ConnectionReset), true),
        (Then::ProcessThenClose, Some(io::ErrorKind::UnexpectedEof), true),
        (Then::Truncate, Some(io::ErrorKind::UnexpectedEof), true),
        (Then::Delay(std::time::Duration::from_millis(30)), None, true),
    ] {
        let id = uuid7();
        server.script_times(1, When::path("/v1/private/*").method("POST"), then.clone());
        let ended = client.send(&create(&id));
        assert_eq!(ended.as_ref().map_err(io::Error::kind).err(), error, "{then:?}: {ended:?}");
        assert_eq!(known(&id), processed, "{then:?}");
    }
    let id = &uuid7();
    client.expect(&create(id));
    server.script_times(1, When::any(), Then::Truncate);
    let cut = client.send(&Request::new("GET", &format!("/v1/private/traces/{id}")));
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

    // The whole server.
    let down = server.status_all(503);
    assert_eq!(client.get("/is-alive/ping").status, 503);
    down.clear();
    assert_eq!(client.get("/is-alive/ping").status, 200);
}

#[test]
fn hanging_requests_end_when_the_test_says_so() {
    let server = FakeOpik::start_new();
    let send = |id: &str| {
        let (url, id) = (server.url(), id.to_owned());
        std::thread::spawn(move || {
            Client::new(&url).send(&Request::new("POST", "/v1/private/traces").json(&trace(&id, "x")))
        })
    };
    let known = |id: &str| server.entity("default", Kind::Trace, id).is_some();

    let (held, hung, taken) = (uuid7(), uuid7(), uuid7());
    let hold = server.script_times(1, When::ids([&*held]), Then::Hold);
    let hang = server.script_times(1, When::ids([&*hung]), Then::Hang);
    let take = server.script_times(1, When::ids([&*taken]), Then::ProcessThenHang);
    let (held_answer, hung_answer, taken_answer) = (send(&held), send(&hung), send(&taken));
    wait_until("all three wait", PATIENCE, || server.requests().len() == 3);
    wait_until("one is processed", PATIENCE, || known(&taken));
    assert!(!known(&held) && !known(&hung));
    hold.clear();
    assert_eq!(held_answer.join().unwrap().unwrap().status, 201);
    hang.clear();
    assert!(hung_answer.join().unwrap().is_err());
    assert!(!taken_answer.is_finished());
    server.stop();
    assert!(taken_answer.join().unwrap().is_err());
    assert!(known(&held) && !known(&hung));
    take.clear();
}

#[test]
fn streamed_answers_leave_chunk_by_chunk() {
    let (server, mut client) = server_and_client();
    server.hold_streams_after(1);
    let mut answer = client.open(&Request::new("GET", "/v1/private/stream/3")).unwrap();
    assert_eq!(answer.next_piece().unwrap().unwrap(), b"chunk 0\n");
    server.release_streams();
    assert_eq!(answer.finish().unwrap().text(), "chunk 1\nchunk 2\n");

    for name in ["a", "b"] {
        let mut body = trace(&uuid7(), name);
        body["project_name"] = name.into();
        client.post("/v1/private/traces", &body);
    }
    let found = client.post("/v1/private/traces/search", &json!({ "project_name": "b" })).text();
    assert_eq!(found.lines().count(), 1);
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["name"], "b");
}

#[test]
fn two_requests_about_one_entity_at_once_are_seen() {
    let server = FakeOpik::start_new();
    let (shared, alone) = (uuid7(), uuid7());
    let hold = server.script(When::write(), Then::Hold);
    let send = |id: &str| {
        let (url, id) = (server.url(), id.to_owned());
        std::thread::spawn(move || Client::new(&url).post("/v1/private/traces", &trace(&id, "x")))
    };
    let first = send(&shared);
    wait_until("the first is held", PATIENCE, || server.requests().len() == 1);
    let others = [send(&shared), send(&alone)];
    wait_until("all are held", PATIENCE, || server.requests().len() == 3);
    hold.clear();
    for thread in [first].into_iter().chain(others) {
        thread.join().unwrap();
    }
    let overlaps = server.overlaps();
    assert_eq!(overlaps.len(), 1, "{overlaps:?}");
    assert_eq!((overlaps[0].first, &overlaps[0].key.id), (0, &shared));

    // One after the other, on any connection, is none.
    for _ in 0..20 {
        Client::new(&server.url()).post("/v1/private/traces", &trace(&alone, "x"));
    }
    assert_eq!(server.overlaps().len(), 1);
    assert_eq!(server.sequence_for(&alone).len(), 21);
}

#[test]
fn the_ledger_says_what_the_user_would_have_lost() {
    let (server, mut client) = server_and_client();
    let ledger = ClientLedger::new();
    let mut tell = |request: Request| {
        let answer = client.send(&request);
        ledger.told(&request, &answer);
        answer
    };
    let (kept, lost, changed, scored) = (uuid7(), uuid7(), uuid7(), uuid7());
    let create = |id: &str| Request::new("POST", "/v1/private/traces").json(&trace(id, "chat"));
    for id in [&kept, &changed, &scored] {
        assert_eq!(tell(create(id)).unwrap().status, 201);
    }
    let mut anonymous = trace(&kept, "no id");
    anonymous.as_object_mut().unwrap().remove("id");
    assert_eq!(tell(Request::new("POST", "/v1/private/traces").json(&anonymous)).unwrap().status, 201);
    server.assert_equals(&ledger);
    server.assert_order(&ledger);

    // Answered with a success, but never reached the server.
    let score = json!({ "scores": [{ "id": scored, "name": "quality", "source": "sdk", "value": 0.5 }] });
    let pretend =
        |request: &Request| ledger.accepted(&request.method, &request.path, &request.headers, &request.body, 204);
    pretend(&create(&lost));
    pretend(&Request::new("PATCH", &format!("/v1/private/traces/{changed}")).json(&json!({ "output": { "a": 1 } })));
    pretend(&Request::new("PUT", "/v1/private/traces/feedback-scores").json(&score));
    // A refused or unanswered write is not a promise.
    ledger.accepted("POST", "/v1/private/traces", &[], &create(&uuid7()).body, 503);
    ledger.unanswered("POST", "/v1/private/traces", &create(&uuid7()).headers, &create(&uuid7()).body);
    // A write on the server that no client was told of.
    let surprise = uuid7();
    client.post("/v1/private/traces", &trace(&surprise, "surprise"));

    let mut expected = [
        format!("trace {lost} (\"chat\") is lost"),
        format!("trace {changed}: field output is lost, it was {{\"a\":1}}"),
        format!("trace {scored}: score \"quality\" is lost"),
        format!("trace {surprise} is on the server, and no client was told so"),
    ];
    let mut found = server.differences(&ledger);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_ledger_sees_a_wrong_order_and_forgives_an_update_moved_behind_its_create() {
    let (server, mut client) = server_and_client();
    let ledger = ClientLedger::new();
    let mut send = |request: &Request| assert!(client.expect(request).status < 300);
    let accepted =
        |request: &Request| ledger.accepted(&request.method, &request.path, &request.headers, &request.body, 204);
    let create = |id: &str| Request::new("POST", "/v1/private/traces/batch").json(&traces(&[trace(id, "chat")]));
    let update = |id: &str, n: u32| {
        Request::new("PATCH", &format!("/v1/private/traces/{id}")).json(&json!({ "output": { "n": n } }))
    };

    // Accepted before its create, delivered after it, the create twice.
    let early = uuid7();
    for request in [&update(&early, 1), &create(&early)] {
        accepted(request);
    }
    for request in [&create(&early), &create(&early), &update(&early, 1)] {
        send(request);
    }
    server.assert_equals(&ledger);
    server.assert_order(&ledger);

    let swapped = uuid7();
    for request in [&create(&swapped), &update(&swapped, 1), &update(&swapped, 2)] {
        accepted(request);
    }
    for request in [&create(&swapped), &update(&swapped, 2), &update(&swapped, 1)] {
        send(request);
    }
    let complaint = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.assert_order(&ledger)));
    let complaint = *complaint.unwrap_err().downcast::<String>().unwrap();
    assert!(complaint.contains(&format!("trace {swapped}: update")), "{complaint}");
    assert!(!complaint.contains(&early), "{complaint}");
    assert_eq!(server.differences(&ledger).len(), 1);
}

#[test]
fn faults_of_a_bad_day_meet_what_they_are_meant_for() {
    let server = FakeOpik::start_new();
    let mut client = Client::new(&server.url());
    let (chosen, other) = (uuid7(), uuid7());
    let reset = server.script(When::ids([&*chosen]), Then::Reset);
    assert!(client.send(&create(&chosen)).is_err());
    assert_eq!(client.expect(&create(&other)).status, 201, "only the chosen one is reset");
    assert!(server.entity("default", Kind::Trace, &chosen).is_none(), "it was processed");
    reset.clear();
    let garbage = server.script(When::write().workspaces("team-"), Then::garbage());
    assert!(client.send(&create(&uuid7()).header("Comet-Workspace", "team-1")).is_err());
    assert_eq!(client.expect(&create(&uuid7()).header("Comet-Workspace", "alone")).status, 201);
    assert_eq!(garbage.hits(), 1);
    garbage.clear();
    let large = server.script(When::write().larger_than(100), Then::status(413));
    assert_eq!(client.expect(&create(&uuid7())).status, 413);
    assert_eq!(client.expect(&update(&other, 1)).status, 204);
    large.clear();
    let limit = server.script(When::write().beyond_rate(2), Then::rate_limited(1));
    let told: Vec<u16> = (0..4).map(|n| client.expect(&update(&other, n)).status).collect();
    assert!(told.starts_with(&[204, 204]) && told.contains(&429), "{told:?}");
    limit.clear();
    assert_eq!((server.open(&When::any()), server.open_at_once(&When::any())), (0, 1));
}

fn uuid4() -> &'static str {
    "0b7fa3a2-5a2f-4c54-9c3a-6c1b8a9f3d10"
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|a| *a == letter).expect("base64") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
