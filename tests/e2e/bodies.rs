//! Bodies as the SDKs really send them, and worse: what is accepted while the server is away is replayed byte for byte.

use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request, gzip};
use crate::support::uuid7;

const MB: usize = 1_000_000;

/// A single create with these members besides its id and time.
fn trace(members: &str) -> Vec<u8> {
    let id = uuid7();
    format!(r#"{{"id": "{id}", "start_time": "2026-03-01T04:00:16Z", {members}}}"#).into_bytes()
}

#[test]
fn what_the_sdks_really_send_is_replayed_byte_for_byte() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let post = |body: Vec<u8>| {
        Request::new("POST", "/v1/private/traces").header("Content-Type", "application/json").bytes(body)
    };
    let long = format!(r#""input": {{"text": "{}"}}"#, "many words ".repeat(2000));
    let spaces = format!(r#""input": {{"spaces": "{}"}}"#, " ".repeat(50 * MB));
    let whole = trace(r#""name": "in two members""#);
    let (first, second) = whole.split_at(whole.len() / 2);
    let cases = [
        ("NaN and the infinities", post(trace(r#""input": {"a": NaN, "b": [Infinity, -Infinity, -0.0, 1e+22]}"#))),
        (
            "integers beyond 64 bits",
            post(trace(r#""metadata": {"n": 123456789012345678901234567890, "m": -18446744073709551617}"#)),
        ),
        (
            "lone surrogates and NUL as escapes",
            post(trace(r#""output": {"s": "\ud83d", "t": "\udc00x", "pair": "\ud83d\ude00", "nul": "\u0000"}"#)),
        ),
        ("duplicate keys", post(trace(r#""name": "first", "name": "second", "input": {"1": "a", "1": "b"}"#))),
        ("raw UTF-8 and odd space", post(trace("\"name\":\t\"Grüße 你好 \u{2028}\" \r\n"))),
        ("less than 256 bytes, uncompressed", post(trace(r#""name": "small""#))),
        ("gzip", post(trace(&long)).gzip()),
        ("small but still gzip", post(trace(r#""name": "small""#)).gzip()),
        ("chunked", post(trace(&long)).chunked(1000)),
        ("chunked byte by byte", post(trace(r#""name": "drops""#)).chunked(1)),
        ("gzip and chunked", post(trace(&long)).gzip().chunked(7)),
        ("gzip in two members", post([gzip(first), gzip(second)].concat()).header("Content-Encoding", "gzip")),
        ("50 MB in a small gzip body", post(trace(&spaces)).gzip()),
        ("5 MB as it is", post(trace(&format!(r#""input": "{}""#, "x".repeat(5 * MB))))),
        (
            "a client that names the charset",
            Request::new("POST", "/v1/private/traces")
                .header("Content-Type", "Application/JSON; charset=utf-8")
                .bytes(trace(r#""name": "charset""#)),
        ),
    ];
    for (what, request) in &cases {
        let answer = client.expect(request);
        assert_eq!(answer.status, 201, "{what}: {}", answer.text());
    }
    assert_eq!(agent.backlog(), cases.len() as u64);
    server.start();
    agent.wait_until_delivered();
    let replayed = server.requests_to("POST", "/v1/private/traces");
    assert_eq!(replayed.len(), cases.len());
    for ((what, request), replayed) in cases.iter().zip(&replayed) {
        assert!(replayed.body == request.body, "{what}: the body was changed");
        let encoding = request.headers.iter().find(|(name, _)| name == "Content-Encoding");
        assert_eq!(replayed.header("Content-Encoding"), encoding.map(|(_, value)| value.as_str()), "{what}");
        assert_eq!(replayed.answered_status, Some(201), "{what}");
    }
    server.assert_no_violations();
}

#[test]
fn captured_sdk_requests_are_replayed_byte_for_byte() {
    use base64::Engine;
    for file in [
        include_str!("../fixtures/http/python-sdk-2.2.122.jsonl"),
        include_str!("../fixtures/http/typescript-sdk-2.0.40.jsonl"),
    ] {
        let server = FakeOpik::new_stopped();
        // One message at a time: several may become one request, whose body says the same in other bytes.
        let one_by_one = [("OPIK_REPLAY_BATCH_SIZE", "1"), ("OPIK_REPLAY_BATCH_REPLAY_DELAY", "0")];
        let agent = one_by_one
            .iter()
            .fold(Agent::builder(&server.url()).impatient(), |agent, (name, value)| agent.env(name, value));
        let agent = agent.start();
        let mut client = Client::new(&agent.url());
        let mut kept = Vec::new();
        for line in file.lines() {
            let captured: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let text = |name: &str| captured[name].as_str().unwrap_or_default().to_owned();
            let path = text("path");
            let below = path.trim_start_matches("/opik").trim_start_matches("/api");
            let body = base64::engine::general_purpose::STANDARD.decode(text("body_base64")).expect("base64");
            let mut request = Request::new(&text("method"), below).bytes(body);
            for header in captured["headers"].as_array().expect("headers") {
                let (name, value) = (header[0].as_str().expect("a name"), header[1].as_str().expect("a value"));
                let of_the_connection =
                    ["host", "content-length", "connection", "transfer-encoding", "accept-encoding"];
                if !of_the_connection.contains(&&*name.to_lowercase()) {
                    request = request.header(name, value);
                }
            }
            // Attachments are taken over and uploaded by a flow of the agent's own, see `attachments.rs`.
            if below.starts_with("/v1/private/attachment/") {
                continue;
            }
            let answer = client.expect(&request);
            if (200..300).contains(&answer.status) && request.method != "GET" {
                assert_eq!(u64::from(answer.status), captured["answered_status"], "{} {path}", request.method);
                kept.push(request);
            } else if request.method != "GET" {
                assert_eq!(answer.status, 503, "{} {path}: {}", request.method, answer.text());
            }
        }
        assert!(kept.len() > 8, "only {} of the captured requests were kept", kept.len());
        server.start();
        agent.wait_until_delivered();
        // Lanes don't wait for each other, and what the SDKs send too early moves behind its create.
        let mut replayed: Vec<_> = server.requests().into_iter().filter(|request| request.method != "GET").collect();
        for request in &kept {
            let same = replayed.iter().position(|replayed| {
                replayed.route() == request.path && replayed.method == request.method && replayed.body == request.body
            });
            let same = same.unwrap_or_else(|| panic!("{} {} did not arrive as it was", request.method, request.path));
            let replayed = replayed.swap_remove(same);
            for (name, value) in &request.headers {
                assert_eq!(replayed.header(name), Some(value.as_str()), "{} {}: {name}", request.method, request.path);
            }
        }
        assert!(replayed.is_empty(), "{} requests too many", replayed.len());
    }
}

#[test]
fn items_without_an_id_get_one_that_a_repeat_keeps() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let body = r#"{"dataset_name": "d", "items": [{"source": "sdk", "data": {"n": 1e+22}}, {"id": null, "source": "sdk", "data": {}}]}"#;
    let put = Request::new("PUT", "/v1/private/datasets/items").bytes(body);
    assert_eq!(client.expect(&put).status, 204);
    let _answer_lost = server.script_times(1, When::path("/v1/private/datasets/items"), Then::ProcessThenClose);
    server.start();
    agent.wait_until_delivered();
    assert!(server.requests_to("PUT", "/v1/private/datasets/items").len() > 1, "it was sent again");
    assert_eq!(server.count("default", Kind::DatasetItem), 2, "a repeat made more items");
    server.assert_no_violations();
}

#[test]
fn what_only_the_server_can_judge_is_stored_whole_and_sorted_out_on_replay() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let item = || String::from_utf8(trace(r#""name": "n""#)).expect("text");
    let traces = |items: &[String]| format!(r#"{{"traces": [{}]}}"#, items.join(", "));
    let many: Vec<String> = (0..1001).map(|_| item()).collect();
    let bad = || r#"{"id": "no UUID", "start_time": 7}"#.to_owned();
    let two_bad = [item(), bad(), item(), item(), bad()];
    let bodies = [traces(&many), traces(&two_bad), traces(&[bad()]), traces(&[item()])];
    for body in &bodies {
        let request = Request::new("POST", "/v1/private/traces/batch").bytes(body.as_bytes()).gzip();
        assert_eq!(client.expect(&request).status, 204);
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 1001 + 3 + 1, "good items are not lost for bad ones");
    let rejected = agent.cli(&["inspect", "--rejected", "--format", "json"]).json();
    let rejected = rejected["messages"].as_array().expect("a list");
    assert_eq!(rejected.iter().map(|message| message["items"].clone()).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(rejected.iter().all(|message| message["answer"]["status"] == 400));
    for message in rejected {
        let whole = agent.cli(&["inspect", &message["id"].to_string(), "--format", "json"]).json();
        assert_eq!(whole["body"].as_str(), Some(traces(&[bad()]).as_str()), "a bad item stands alone, as it was sent");
    }
}

#[test]
fn what_no_server_reads_is_refused_at_once() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let json = |body: &[u8]| Request::new("POST", "/v1/private/traces").bytes(body);
    let otlp = |content_type: &str, body: &[u8]| {
        Request::new("POST", "/v1/private/otel/v1/traces").header("Content-Type", content_type).bytes(body)
    };
    for (request, status) in [
        (json(b"{\"id\": "), 400),
        (json(b""), 400),
        (json(b"not gzip").header("Content-Encoding", "gzip"), 400),
        (json(b"{}").header("Content-Encoding", "br"), 415),
        (otlp("text/plain", b""), 415),
        (otlp("application/x-protobuf", b"not protobuf"), 400),
        (otlp("application/x-protobuf", b"{}"), 400),
        (otlp("application/json", b"\x0a\x00"), 400),
        (otlp("application/x-protobuf", b"cut").header("Content-Encoding", "gzip"), 400),
        (Request::new("POST", "/v1/private/otel/v1/traces").bytes(b""), 415),
    ] {
        let answer = client.expect(&request);
        assert_eq!(answer.status, status, "{} {:?}", request.path, String::from_utf8_lossy(&request.body));
        assert_eq!(answer.json()["code"], status);
    }
    assert_eq!(agent.backlog(), 0);
}
