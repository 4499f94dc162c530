//! OTLP whose first attempt was processed and not answered, or failed half-way: exactly the spans that are missing are
//! delivered, and nothing that is there is called rejected. The server makes the traces of root spans by single
//! creates, and a trace that is there refuses the whole request (`support/fake_opik/otlp.rs`).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::chaos::Dice;
use crate::support::PATIENCE;
use crate::support::agent::Agent;
use crate::support::fake_opik::otlp::Version;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::wait_until;

const PATH: &str = "/v1/private/otel/v1/traces";
/// 16 November 2026.
const BEGIN_MS: u64 = 1_794_800_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    Protobuf,
}

const FORMATS: [Format; 2] = [Format::Json, Format::Protobuf];

/// A span of a trace: number 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    trace: u32,
    number: u32,
}

impl Span {
    fn trace_id(self) -> String {
        format!("{:032x}", u128::from(self.trace) << 64 | 0xabcd)
    }

    fn id(self) -> String {
        format!("{:016x}", (u64::from(self.trace) << 32) + u64::from(self.number) + 1)
    }

    fn parent(self) -> Option<String> {
        (self.number > 0).then(|| Self { number: 0, ..self }.id())
    }

    /// As the server names it.
    fn key(self) -> String {
        format!("{}:{}", self.trace_id(), self.id())
    }

    fn start_nanoseconds(self) -> u64 {
        (BEGIN_MS + u64::from(self.trace) * 1000 + u64::from(self.number)) * 1_000_000
    }

    fn json(self) -> Value {
        let mut span = json!({
            "traceId": self.trace_id(), "spanId": self.id(), "name": format!("span {}", self.number), "kind": 1,
            "startTimeUnixNano": self.start_nanoseconds().to_string(),
        });
        if let Some(parent) = self.parent() {
            span["parentSpanId"] = parent.into();
        }
        if self.number.is_multiple_of(2) {
            let attribute = json!({ "key": "gen_ai.prompt", "value": { "stringValue": "[{\"a\": 1}]" } });
            span["attributes"] = json!([attribute]);
        }
        span
    }

    fn protobuf(self) -> Vec<u8> {
        let bytes = |digits: String| -> Vec<u8> {
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
        };
        let start = [&[7 << 3 | 1][..], &self.start_nanoseconds().to_le_bytes()].concat();
        let name = format!("span {}", self.number);
        let mut span =
            [field(1, &bytes(self.trace_id())), field(2, &bytes(self.id())), field(5, name.as_bytes())].concat();
        if let Some(parent) = self.parent() {
            span.extend(field(4, &bytes(parent)));
        }
        span.extend(start);
        if self.number.is_multiple_of(2) {
            let value = field(2, &field(1, b"[{\"a\": 1}]"));
            span.extend(field(9, &[field(1, b"gen_ai.prompt"), value].concat()));
        }
        span
    }
}

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length =
        [(content.len() & 0x7f) as u8 | 0x80, (content.len() >> 7 & 0x7f) as u8 | 0x80, (content.len() >> 14) as u8];
    [&[number << 3 | 2][..], &length, content].concat()
}

fn export(format: Format, spans: &[Span]) -> Request {
    let request = Request::new("POST", PATH);
    match format {
        Format::Json => {
            let spans: Vec<Value> = spans.iter().map(|span| span.json()).collect();
            request
                .json(&json!({ "resourceSpans": [{ "scopeSpans": [{ "scope": { "name": "s" }, "spans": spans }] }] }))
        }
        Format::Protobuf => {
            let spans: Vec<u8> = spans.iter().flat_map(|span| field(2, &span.protobuf())).collect();
            let scope = field(1, &field(1, b"s"));
            let body = field(1, &field(2, &[scope, spans].concat()));
            request.header("Content-Type", "application/x-protobuf").bytes(body).gzip()
        }
    }
}

fn trace(trace: u32, numbers: impl IntoIterator<Item = u32>) -> Vec<Span> {
    numbers.into_iter().map(|number| Span { trace, number }).collect()
}

fn away() -> (FakeOpik, Agent) {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
    (server, agent)
}

fn there() -> (FakeOpik, Agent) {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
    wait_until("the agent sees the server", PATIENCE, || {
        Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"] == "available"
    });
    (server, agent)
}

#[track_caller]
fn accepted(agent: &Agent, request: &Request) {
    let answer = Client::new(&agent.url()).expect(request);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn rejected(agent: &Agent) -> Vec<Value> {
    agent.cli(&["inspect", "--rejected", "--format", "json"]).json()["messages"].as_array().unwrap().clone()
}

/// Every span is stored once, and the spans of each trace are in one trace that exists.
#[track_caller]
fn assert_exactly(server: &FakeOpik, spans: &[Span]) {
    let stored = server.otel_spans("default");
    let expected: BTreeSet<String> = spans.iter().map(|span| span.key()).collect();
    let found: BTreeSet<String> = stored.keys().cloned().collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(missing.is_empty(), "{} of {} spans are missing: {missing:?}", missing.len(), expected.len());
    assert_eq!(found, expected);
    let traces: BTreeSet<u32> = spans.iter().map(|span| span.trace).collect();
    for trace in &traces {
        let own = spans.iter().filter(|span| span.trace == *trace);
        let ids: BTreeSet<_> = own.clone().map(|span| stored[&span.key()].trace).collect();
        assert_eq!(ids.len(), 1, "the spans of trace {trace} are in several: {ids:?}");
        for span in own {
            let parent = span.parent().map(|_| stored.get(&Span { number: 0, ..*span }.key()).map(|root| root.id));
            if let Some(Some(root)) = parent {
                assert_eq!(stored[&span.key()].parent, Some(root), "{span:?} has lost its parent");
            }
            assert!(span.number > 0 || stored[&span.key()].parent.is_none(), "{span:?} is a root no more");
        }
    }
    let with_root = spans.iter().filter(|span| span.number == 0).count();
    assert_eq!(server.otel_traces("default"), with_root, "traces");
}

#[track_caller]
fn assert_delivered(server: &FakeOpik, agent: &Agent, spans: &[Span]) {
    agent.wait_until_delivered();
    assert_eq!(rejected(agent), Vec::<Value>::new(), "a delivered span is called rejected");
    assert_exactly(server, spans);
    server.assert_no_violations();
}

#[test]
fn a_lost_answer_costs_no_span_and_rejects_nothing() {
    for format in FORMATS {
        for lost in [Then::ProcessThenClose, Then::ProcessThenReset, Then::Truncate] {
            let (server, agent) = away();
            let spans = trace(1, [1, 2, 3, 0]);
            accepted(&agent, &export(format, &spans));
            let fault = server.script_times(1, When::path(PATH), lost);
            server.start();
            assert_delivered(&server, &agent, &spans);
            assert_eq!(fault.hits(), 1);
        }
    }
}

#[test]
fn a_first_attempt_that_failed_half_way_is_completed() {
    for format in FORMATS {
        let (server, agent) = away();
        let spans = trace(1, 0..16);
        accepted(&agent, &export(format, &spans));
        let fault = server.script_times(1, When::path(PATH), Then::Halfway { traces: 1 });
        server.start();
        assert_delivered(&server, &agent, &spans);
        assert_eq!(fault.hits(), 1);
    }
}

#[test]
fn a_failure_among_many_traces_is_completed() {
    for format in FORMATS {
        for made in [0, 1, 3, 5] {
            let (server, agent) = away();
            let spans: Vec<Span> = (1..=5).flat_map(|number| trace(number, [1, 0, 2])).collect();
            accepted(&agent, &export(format, &spans));
            server.script_times(1, When::path(PATH), Then::Halfway { traces: made });
            server.start();
            assert_delivered(&server, &agent, &spans);
        }
    }
}

#[test]
fn a_root_that_comes_after_its_children_is_completed() {
    for format in FORMATS {
        for fault in [Then::ProcessThenClose, Then::Halfway { traces: 1 }] {
            let (server, agent) = away();
            let children = trace(1, 1..6);
            let root = trace(1, [0, 6]);
            accepted(&agent, &export(format, &children));
            accepted(&agent, &export(format, &root));
            // Only of the second request, which has the root.
            server.script_times(1, When::ids([root[0].key()]), fault);
            server.start();
            assert_delivered(&server, &agent, &[children, root].concat());
        }
    }
}

#[test]
fn an_export_split_over_the_outage_is_completed() {
    for fault in [Then::ProcessThenClose, Then::Halfway { traces: 1 }] {
        let (server, agent) = there();
        let children = trace(1, 1..4);
        let root = trace(1, [0]);
        accepted(&agent, &export(Format::Protobuf, &children));
        assert_exactly(&server, &children);
        server.stop();
        accepted(&agent, &export(Format::Protobuf, &root));
        server.script_times(1, When::path(PATH), fault);
        server.start();
        assert_delivered(&server, &agent, &[children, root].concat());
    }
}

#[test]
fn a_forwarded_export_whose_answer_is_lost_is_completed() {
    for fault in [Then::ProcessThenClose, Then::Halfway { traces: 1 }, Then::Truncate] {
        let (server, agent) = there();
        let spans = trace(1, 0..4);
        let fault = server.script_times(1, When::path(PATH), fault);
        accepted(&agent, &export(Format::Json, &spans));
        assert_delivered(&server, &agent, &spans);
        assert_eq!(fault.hits(), 1);
    }
}

#[test]
fn an_exporters_own_retry_is_taken_and_completed() {
    let (server, agent) = there();
    // The first attempt failed half-way, and its exporter did not hear of it from this agent.
    let spans = trace(1, 0..4);
    server.script_times(1, When::path(PATH), Then::Halfway { traces: 1 });
    assert_eq!(Client::new(&server.url()).expect(&export(Format::Protobuf, &spans)).status, 500);
    assert_exactly_none(&server);
    accepted(&agent, &export(Format::Protobuf, &spans));
    assert_delivered(&server, &agent, &spans);
    // All is there, and it comes once more.
    accepted(&agent, &export(Format::Protobuf, &spans));
    assert_delivered(&server, &agent, &spans);
}

fn assert_exactly_none(server: &FakeOpik) {
    assert!(server.otel_spans("default").is_empty());
}

#[test]
fn a_second_root_of_a_trace_in_a_later_export_is_stored() {
    let (server, agent) = there();
    let first = trace(1, [0, 1]);
    accepted(&agent, &export(Format::Json, &first));
    // A span that names the trace itself as its parent is a root, too.
    let id = first[0].trace_id();
    let second = json!({ "traceId": id, "spanId": "00000000000000aa", "parentSpanId": id, "name": "other root",
        "startTimeUnixNano": first[1].start_nanoseconds(), "attributes": null });
    let body = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [second] }] }] });
    accepted(&agent, &Request::new("POST", PATH).json(&body));
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent), Vec::<Value>::new());
    let stored = server.otel_spans("default");
    assert_eq!(stored[&format!("{id}:00000000000000aa")].trace, stored[&first[0].key()].trace);
    assert_eq!(server.otel_traces("default"), 1);
}

#[test]
fn an_older_server_loses_no_span_and_what_it_can_not_take_is_said() {
    let (server, agent) = away();
    server.takes_otlp_like(Version::Old);
    let (lost, half) = (trace(1, [1, 2, 0]), trace(2, (0..16).rev()));
    accepted(&agent, &export(Format::Protobuf, &lost));
    accepted(&agent, &export(Format::Protobuf, &half));
    server.script_times(1, When::ids([lost[0].key()]), Then::ProcessThenClose);
    server.script_times(1, When::ids([half[0].key()]), Then::Halfway { traces: 1 });
    server.start();
    agent.wait_until_delivered();
    let stored = server.otel_spans("default");
    let missing: Vec<Span> =
        [lost, half].concat().into_iter().filter(|span| !stored.contains_key(&span.key())).collect();
    assert_eq!(missing, [Span { trace: 2, number: 0 }]);
    let rejected = rejected(&agent);
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0]["items"], 1);
    let words = rejected[0]["answer"]["text"].as_str().unwrap();
    assert!(words.contains("Trace already exists") && words.contains("own record is not"), "{words}");
}

#[test]
fn a_server_that_lets_nobody_read_gets_every_span_and_rejects_no_root() {
    let (server, agent) = away();
    server.takes_otlp_like(Version::WithoutReads);
    let spans = trace(1, [1, 2, 0]);
    accepted(&agent, &export(Format::Json, &spans));
    server.script_times(1, When::path(PATH), Then::ProcessThenClose);
    server.start();
    assert_delivered(&server, &agent, &spans);
}

#[test]
fn a_trace_that_no_search_shows_is_found_by_its_id() {
    let (server, agent) = away();
    server.takes_otlp_like(Version::WithoutSearch);
    let spans = trace(1, [1, 2, 0]);
    accepted(&agent, &export(Format::Json, &spans));
    server.script_times(1, When::path(PATH), Then::Halfway { traces: 1 });
    server.start();
    assert_delivered(&server, &agent, &spans);
}

#[test]
fn a_server_that_forgot_its_ids_between_two_attempts_gets_no_second_trace() {
    for lost in [Then::ProcessThenClose, Then::Halfway { traces: 1 }] {
        let (server, agent) = away();
        let spans = trace(1, [1, 2, 0]);
        accepted(&agent, &export(Format::Protobuf, &spans));
        let fault = server.script_times(1, When::path(PATH), lost);
        server.start();
        wait_until("the first attempt is over", PATIENCE, || fault.hits() == 1);
        server.forget_otel_ids();
        assert_delivered(&server, &agent, &spans);
    }
}

#[test]
fn a_trace_that_is_shown_late_is_waited_for() {
    let (server, agent) = away();
    server.takes_otlp_like(Version::Late);
    let spans = trace(1, [1, 0, 2]);
    accepted(&agent, &export(Format::Protobuf, &spans));
    server.script_times(1, When::path(PATH), Then::Halfway { traces: 1 });
    server.start();
    let children = [spans[0], spans[2]];
    wait_until("the spans beside the root are stored", PATIENCE, || {
        let stored = server.otel_spans("default");
        children.iter().all(|span| stored.contains_key(&span.key()))
    });
    assert_eq!(rejected(&agent), Vec::<Value>::new());
    server.takes_otlp_like(Version::New);
    assert_delivered(&server, &agent, &spans);
}

#[test]
fn a_key_that_may_not_read_loses_no_other_span() {
    let (server, agent) = away();
    let spans = trace(1, [1, 0, 2]);
    accepted(&agent, &export(Format::Protobuf, &spans));
    server.script(When::path("/v1/private/traces/search"), Then::status(403));
    server.script_times(1, When::path(PATH), Then::Halfway { traces: 1 });
    server.start();
    agent.wait_until_delivered();
    let rejected = rejected(&agent);
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert!(rejected[0]["answer"]["text"].as_str().unwrap().contains("the key may not read"), "{rejected:?}");
    let stored = server.otel_spans("default");
    assert!(stored.contains_key(&spans[0].key()) && stored.contains_key(&spans[2].key()));
}

#[test]
fn a_conflict_with_another_project_is_rejected_with_the_servers_words() {
    let (server, agent) = away();
    let spans = trace(1, [0]);
    accepted(&agent, &export(Format::Json, &spans));
    let words = "Project name and workspace name do not match the existing trace";
    server.script(When::path(PATH), Then::Answer(Answer::json(409, &json!({ "errors": [words] }))));
    server.start();
    agent.wait_until_delivered();
    let rejected = rejected(&agent);
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0]["answer"]["text"].as_str().unwrap().contains(words));
    assert_eq!(server.requests_to("POST", PATH).len(), 1, "a conflict is not worked around");
}

/// Random exporters, random faults: in the end exactly all spans are there.
#[test]
fn random_backlogs_end_with_exactly_all_spans() {
    let cases = std::env::var("OPIK_OFFLINE_OTLP").ok().and_then(|cases| cases.parse().ok()).unwrap_or(6);
    for seed in 1..=cases {
        eprintln!("seed {seed}");
        let mut dice = Dice::new(seed);
        let (server, agent) = away();
        let mut all: Vec<Span> = Vec::new();
        for number in 1..=1 + dice.below(4) as u32 {
            let mut spans = trace(number, 0..1 + dice.below(8) as u32);
            for at in (1..spans.len()).rev() {
                spans.swap(at, dice.below(at as u64 + 1) as usize);
            }
            all.extend(spans);
        }
        // Exports take spans of all traces as they come.
        for at in (1..all.len()).rev() {
            if dice.below(3) == 0 {
                all.swap(at, dice.below(at as u64 + 1) as usize);
            }
        }
        let mut rest = &all[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + dice.below(rest.len() as u64) as usize);
            accepted(&agent, &export(FORMATS[dice.below(2) as usize], now));
            rest = later;
        }
        for _ in 0..1 + dice.below(5) {
            let then = match dice.below(5) {
                0 => Then::ProcessThenClose,
                1 => Then::ProcessThenReset,
                2 => Then::Reset,
                3 => Then::status(500),
                _ => Then::Halfway { traces: dice.below(3) as usize },
            };
            let target = all[dice.below(all.len() as u64) as usize].key();
            server.script_times(1 + dice.below(2) as usize, When::ids([target]), then);
        }
        server.start();
        let mut agent = agent;
        for _ in 0..dice.below(3) {
            let until = server.requests_to("POST", PATH).len() + dice.below(4) as usize;
            wait_until("more is sent, or all is done", PATIENCE, || {
                server.requests_to("POST", PATH).len() > until || agent.backlog() == 0
            });
            agent.kill9();
            agent.restart_on_same_port();
        }
        assert_delivered(&server, &agent, &all);
    }
}

/// The server looks at the spans of a request side by side: what was processed is not overwritten by pieces.
#[test]
fn a_repeat_after_a_lost_answer_carries_all_spans_together() {
    let (server, agent) = away();
    let spans = trace(1, [1, 2, 3, 0]);
    accepted(&agent, &export(Format::Json, &spans).header("projectName", "of a team"));
    server.script_times(1, When::path(PATH), Then::ProcessThenClose);
    server.start();
    assert_delivered(&server, &agent, &spans);
    for request in server.requests_to("POST", PATH) {
        assert_eq!(request.writes.len(), spans.len(), "request {} has a part of the spans", request.seq);
    }
}

#[test]
fn a_front_that_says_conflict_or_not_found_takes_no_span_away() {
    for answer in [
        Answer::raw(409, "text/plain", "Conflict"),
        Answer::raw(409, "text/html", "<title>409 Conflict</title>"),
        Answer::raw(404, "text/plain", "default backend - 404"),
    ] {
        let spans = trace(1, [0]);
        let (server, agent) = away();
        accepted(&agent, &export(Format::Json, &spans));
        let front = server.script(When::path("/v1/private/**"), Then::Answer(answer));
        server.start();
        wait_until("replay meets the front", PATIENCE, || front.hits() >= 4);
        assert_eq!(agent.backlog(), 1, "a root was deleted or rejected on a front's word");
        front.clear();
        assert_delivered(&server, &agent, &spans);
    }
}

#[test]
fn what_a_front_says_of_a_read_rejects_no_root_of_an_older_server() {
    let spans = trace(1, [0]);
    let (server, agent) = away();
    server.takes_otlp_like(Version::Old);
    accepted(&agent, &export(Format::Json, &spans));
    let _lost = server.script_times(1, When::path(PATH), Then::ProcessThenClose);
    let front = server.script(
        When::path("/v1/private/spans/*").method("GET"),
        Then::Answer(Answer::raw(404, "text/plain", "404 page not found")),
    );
    server.start();
    wait_until("replay asks for what is there", PATIENCE, || front.hits() >= 2);
    assert_eq!(rejected(&agent), Vec::<Value>::new(), "a root is rejected for a router's 404");
    front.clear();
    agent.wait_until_delivered();
    assert_eq!(rejected(&agent), Vec::<Value>::new());
}
