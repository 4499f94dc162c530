//! OTLP requests that the server refuses as a whole: what it takes in pieces arrives.

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::wait_until;

const SPANS: usize = 300;

/// A request of [`SPANS`] spans in three resources of two scopes each, and the ids by which the server knows them.
fn many_spans(trace: u8) -> (Value, Vec<String>) {
    let trace = format!("{trace:02x}").repeat(16);
    let mut ids = Vec::new();
    let mut resources = Vec::new();
    for resource in 0..3 {
        let mut scopes = Vec::new();
        for scope in 0..2 {
            let spans = (0..SPANS / 6).map(|_| {
                let id = format!("{:016x}", ids.len() + 1);
                ids.push(format!("{trace}:{id}"));
                json!({ "traceId": trace, "spanId": id, "name": "s", "kind": 1 })
            });
            let spans: Vec<Value> = spans.collect();
            scopes.push(json!({ "scope": { "name": format!("scope {scope}") }, "spans": spans }));
        }
        let service = json!({ "key": "service.name", "value": { "stringValue": format!("service {resource}") } });
        resources.push(json!({ "resource": { "attributes": [service] }, "scopeSpans": scopes }));
    }
    (json!({ "resourceSpans": resources }), ids)
}

/// The same in protobuf: what the JSON says beside ids and names is left out.
fn protobuf(request: &Value) -> Vec<u8> {
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut length = content.len();
        let mut bytes = vec![number << 3 | 2];
        while length > 0x7f {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(content);
        bytes
    }
    fn id(span: &Value, name: &str) -> Vec<u8> {
        let digits = span[name].as_str().unwrap();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }
    let list = |value: &Value, name: &str| value[name].as_array().unwrap().clone();
    let mut bytes = Vec::new();
    for resource in list(request, "resourceSpans") {
        let service = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap();
        let service = [field(1, b"service.name"), field(2, &field(1, service.as_bytes()))].concat();
        let mut resource_spans = field(1, &field(1, &service));
        for scope in list(&resource, "scopeSpans") {
            let mut scope_spans = field(1, &field(1, scope["scope"]["name"].as_str().unwrap().as_bytes()));
            for span in list(&scope, "spans") {
                let span = [field(1, &id(&span, "traceId")), field(2, &id(&span, "spanId")), field(5, b"s")].concat();
                scope_spans.extend(field(2, &span));
            }
            resource_spans.extend(field(2, &scope_spans));
        }
        bytes.extend(field(1, &resource_spans));
    }
    bytes
}

/// An agent that keeps one request of many spans in JSON and one in protobuf, gzipped, for a server that is away.
fn keeping() -> (FakeOpik, Agent, Vec<String>) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    let post = || Request::new("POST", "/v1/private/otel/v1/traces");
    let (as_json, mut ids) = many_spans(1);
    let (as_protobuf, others) = many_spans(2);
    ids.extend(others);
    assert_eq!(client.expect(&post().json(&as_json)).status, 200);
    let request = post().header("Content-Type", "application/x-protobuf").bytes(protobuf(&as_protobuf)).gzip();
    assert_eq!(client.expect(&request).status, 200);
    (server, agent, ids)
}

fn missing<'a>(server: &FakeOpik, ids: &'a [String]) -> Vec<&'a String> {
    ids.iter().filter(|id| server.entity("default", Kind::OtelSpan, id).is_none()).collect()
}

fn rejected(agent: &Agent) -> Value {
    agent.cli(&["inspect", "--rejected", "--format", "json"]).json()["messages"].clone()
}

#[test]
fn one_bad_span_does_not_cost_the_others_of_its_request() {
    let (server, agent, ids) = keeping();
    // One in the JSON request, one in the other.
    let bad = [ids[137].clone(), ids[SPANS].clone()];
    let fault = server.reject_ids(bad.iter());
    server.start();
    agent.wait_until_delivered();
    assert_eq!(missing(&server, &ids), bad.iter().collect::<Vec<_>>(), "spans that the server would take are lost");
    let kept = rejected(&agent);
    assert_eq!(kept.as_array().map(Vec::len), Some(2), "{kept}");
    assert!(kept.as_array().unwrap().iter().all(|message| message["items"] == 1), "{kept}");
    // The whole and one piece of each size: 300, 150, ... 1.
    assert!(fault.hits() <= 2 * 10, "{} requests were spent on two bad spans of 600", fault.hits());
    let sent = server.requests_to("POST", "/v1/private/otel/v1/traces").len();
    assert!(sent <= 2 * 20, "{sent} requests");
}

#[test]
fn requests_that_are_too_large_for_the_server_arrive_in_pieces() {
    let (server, agent, ids) = keeping();
    const BYTES_MAX: usize = 4000;
    server.script(When::write().and(|request| request.body.len() > BYTES_MAX), Then::status(413));
    server.start();
    agent.wait_until_delivered();
    wait_until("the last piece is on the server", PATIENCE, || missing(&server, &ids).is_empty());
    assert_eq!(rejected(&agent), json!([]));
    // Every piece still says whose spans they are.
    for request in server.requests_to("POST", "/v1/private/otel/v1/traces") {
        for resource in request.json.unwrap()["resourceSpans"].as_array().unwrap() {
            let service = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap();
            assert!(service.starts_with("service "), "spans have lost their resource: {resource}");
            let scope = resource["scopeSpans"][0]["scope"]["name"].as_str().unwrap();
            assert!(scope.starts_with("scope "), "spans have lost their scope: {resource}");
        }
    }
}
