//! One row for every write that the agent keeps: the request, the answer to the client during an outage, how the
//! message is counted, and that the server gets the very same request afterwards.

use std::collections::BTreeSet;

use opik_offline::message::MessageType;
use serde_json::{Value, json};

use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request, Response};
use crate::support::prism::Prism;
use crate::support::{PATIENCE, uuid7, wait_until};

/// One write.
struct Row {
    message_type: MessageType,
    request: Request,
    items: u64,
    /// The project that lists show.
    project: Option<&'static str>,
}

fn row(message_type: MessageType, method: &str, path: &str, body: &Value, items: u64) -> Row {
    let project = body.to_string().contains(r#""project_name":"p""#).then_some("p");
    Row { message_type, request: Request::new(method, &format!("/v1/private/{path}")).json(body), items, project }
}

/// A span in protobuf: OTLP's `ExportTraceServiceRequest` with one span, by hand.
pub(crate) fn otlp_protobuf(trace: &[u8; 16], span: &[u8; 8], name: &str, service: &str) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| -> Vec<u8> {
        assert!(content.len() < 16_384);
        let length = [(content.len() & 0x7f) as u8 | 0x80, (content.len() >> 7) as u8];
        [&[number << 3 | 2][..], &length, content].concat()
    };
    let service = [field(1, b"service.name"), field(2, &field(1, service.as_bytes()))].concat();
    let span = [field(1, trace), field(2, span), field(5, name.as_bytes())].concat();
    let resource = field(1, &field(1, &service));
    field(1, &[resource, field(2, &field(2, &span))].concat())
}

fn otlp_json(trace: &str) -> Value {
    let span = json!({ "traceId": trace, "spanId": "0102030405060708", "name": "s", "kind": 1 });
    json!({ "resourceSpans": [{ "resource": {}, "scopeSpans": [{ "spans": [span, span] }] }] })
}

/// The SDK's types, then the others.
fn rows() -> Vec<Row> {
    use MessageType as T;
    let at = "2026-03-01T04:00:16Z";
    let (trace, span, experiment, item, dataset) = (uuid7(), uuid7(), uuid7(), uuid7(), uuid7());
    let one = |id: &str| json!({ "id": id, "project_name": "p", "start_time": at, "thread_id": "th" });
    let one_span = |id: &str| json!({ "id": id, "trace_id": trace, "project_name": "p", "start_time": at, "input": { "null": null } });
    let score = json!({ "name": "n", "value": 0.5, "source": "sdk", "reason": null });
    let with = |base: &Value, name: &str, value: &str| {
        let mut item = base.clone();
        item[name] = value.into();
        item["project_name"] = "p".into();
        item
    };
    let guardrail = json!({ "entity_id": trace, "secondary_id": span, "name": "PII", "result": "failed", "config": {}, "details": {}, "project_name": null });
    let assertion =
        json!({ "entity_id": trace, "name": "polite", "status": "failed", "source": "sdk", "project_name": "p" });
    let experiment_item =
        json!({ "id": item, "experiment_id": experiment, "dataset_item_id": uuid7(), "trace_id": trace });
    let (otel, otel_id) = ([7; 16], [9; 8]);
    let mut rows = vec![
        row(T::CreateTrace, "POST", "traces", &one(&trace), 1),
        row(
            T::UpdateTrace,
            "PATCH",
            &format!("traces/{trace}"),
            &json!({ "output": { "a": 1 }, "project_name": "p" }),
            1,
        ),
        row(T::CreateTraceBatch, "POST", "traces/batch", &json!({ "traces": [one(&uuid7()), one(&uuid7())] }), 2),
        row(T::CreateSpan, "POST", "spans", &one_span(&span), 1),
        row(
            T::UpdateSpan,
            "PATCH",
            &format!("spans/{span}"),
            &json!({ "trace_id": trace, "project_name": "p", "model": "m" }),
            1,
        ),
        row(T::CreateSpansBatch, "POST", "spans/batch", &json!({ "spans": [one_span(&uuid7())] }), 1),
        row(
            T::AddTraceFeedbackScoresBatch,
            "PUT",
            "traces/feedback-scores",
            &json!({ "scores": [with(&score, "id", &trace)] }),
            1,
        ),
        row(
            T::AddSpanFeedbackScoresBatch,
            "PUT",
            "spans/feedback-scores",
            &json!({ "scores": [with(&score, "id", &span)] }),
            1,
        ),
        row(
            T::AddThreadsFeedbackScoresBatch,
            "PUT",
            "traces/threads/feedback-scores",
            &json!({ "scores": [with(&score, "thread_id", "th")] }),
            1,
        ),
        row(
            T::CreateExperimentItemsBatch,
            "POST",
            "experiments/items",
            &json!({ "experiment_items": [experiment_item] }),
            1,
        ),
        row(T::GuardrailBatch, "POST", "guardrails", &json!({ "guardrails": [guardrail] }), 1),
        row(
            T::AddAssertionResultsBatch,
            "PUT",
            "assertion-results",
            &json!({ "entity_type": "TRACE", "assertion_results": [assertion] }),
            1,
        ),
        Row {
            message_type: T::OtlpTraces,
            request: Request::new("POST", "/v1/private/otel/v1/traces")
                .header("Content-Type", "application/x-protobuf")
                .header("projectname", "p")
                .bytes(otlp_protobuf(&otel, &otel_id, "an OTel span", "checkout"))
                .gzip(),
            items: 1,
            project: Some("p"),
        },
        row(T::OtlpTraces, "POST", "otel/v1/traces", &otlp_json(&"08".repeat(16)), 2),
    ];
    let ids = |id: &str| json!({ "ids": [id] });
    let set = |update: &Value| json!({ "ids": [uuid7(), uuid7()], "update": update });
    let bulk = json!({
        "experiment_name": "e", "dataset_name": "d", "experiment_id": experiment,
        "items": [{ "dataset_item_id": uuid7(), "trace": one(&uuid7()), "spans": [one_span(&uuid7())] }],
    });
    let dataset_item = json!({ "id": uuid7(), "source": "sdk", "data": { "q": 1 } });
    let optimization = json!({ "id": uuid7(), "dataset_name": "d", "objective_name": "o", "status": "running" });
    let comment = json!({ "text": "well" });
    let named = json!({ "name": "n" });
    let closing = json!({ "project_name": "p", "thread_ids": ["th"] });
    let one_thread = json!({ "project_name": "p", "thread_id": "th" });
    let thread_names = json!({ "project_name": "p", "thread_id": "th", "names": ["n"] });
    let put_items = json!({ "dataset_name": "d", "items": [dataset_item], "batch_group_id": uuid7() });
    let items_by_id = json!({ "item_ids": [item], "dataset_id": dataset });
    let tags = json!({ "tags": ["a"] });
    let attachment = json!({ "file_name": "f", "entity_type": "trace", "entity_id": trace, "project_name": "p", "file_size": 1, "upload_id": "u", "uploaded_file_parts": [{ "e_tag": "e", "part_number": 1 }] });
    for (message_type, method, path, body, items) in [
        (T::UpdateTraces, "PATCH", "traces/batch".to_owned(), &set(&json!({ "project_name": "p", "tags": [] })), 2),
        (T::ScoreTrace, "PUT", format!("traces/{trace}/feedback-scores"), &score, 1),
        (T::DeleteTraceScore, "POST", format!("traces/{trace}/feedback-scores/delete"), &named, 1),
        (T::UpdateTraceComment, "PATCH", format!("traces/comments/{}", uuid7()), &comment, 1),
        (T::DeleteTraceComments, "POST", "traces/comments/delete".into(), &ids(&uuid7()), 1),
        (T::UpdateSpans, "PATCH", "spans/batch".into(), &set(&json!({ "trace_id": trace })), 2),
        (T::ScoreSpan, "PUT", format!("spans/{span}/feedback-scores"), &score, 1),
        (T::DeleteSpanScore, "POST", format!("spans/{span}/feedback-scores/delete"), &named, 1),
        (T::UpdateSpanComment, "PATCH", format!("spans/comments/{}", uuid7()), &comment, 1),
        (T::DeleteSpanComments, "POST", "spans/comments/delete".into(), &ids(&uuid7()), 1),
        (T::CloseThreads, "PUT", "traces/threads/close".into(), &closing, 1),
        (T::OpenThread, "PUT", "traces/threads/open".into(), &one_thread, 1),
        (T::UpdateThread, "PATCH", format!("traces/threads/{}", uuid7()), &tags, 1),
        (T::UpdateThreads, "PATCH", "traces/threads/batch".into(), &set(&tags), 2),
        (T::DeleteThreadScores, "POST", "traces/threads/feedback-scores/delete".into(), &thread_names, 1),
        (T::UpdateThreadComment, "PATCH", format!("traces/threads/comments/{}", uuid7()), &comment, 1),
        (T::DeleteThreadComments, "POST", "traces/threads/comments/delete".into(), &ids(&uuid7()), 1),
        (T::DeleteThreads, "POST", "traces/threads/delete".into(), &closing, 1),
        (T::CreateDataset, "POST", "datasets".into(), &json!({ "id": dataset, "name": "d" }), 1),
        (T::PutDatasetItems, "PUT", "datasets/items".into(), &put_items, 1),
        (T::UpdateDatasetItem, "PATCH", format!("datasets/items/{item}"), &dataset_item, 1),
        (T::UpdateDatasetItems, "PATCH", "datasets/items/batch".into(), &set(&tags), 2),
        (T::DeleteDatasetItems, "POST", "datasets/items/delete".into(), &items_by_id, 1),
        (T::CreateExperiment, "POST", "experiments".into(), &json!({ "id": experiment, "dataset_name": "d" }), 1),
        (T::UpdateExperiment, "PATCH", format!("experiments/{experiment}"), &named, 1),
        (T::UpdateExperiments, "PATCH", "experiments/batch".into(), &set(&named), 2),
        (T::PutExperimentItems, "PUT", "experiments/items/bulk".into(), &bulk, 1),
        (T::FinishExperiments, "POST", "experiments/finish".into(), &ids(&experiment), 1),
        (T::DeleteExperimentItems, "POST", "experiments/items/delete".into(), &ids(&item), 1),
        (T::DeleteExperiments, "POST", "experiments/delete".into(), &ids(&experiment), 1),
        (T::CreateOptimization, "POST", "optimizations".into(), &optimization, 1),
        (T::PutOptimization, "PUT", "optimizations".into(), &optimization, 1),
        (T::UpdateOptimization, "PUT", format!("optimizations/{}", uuid7()), &named, 1),
        (T::AddQueueItems, "POST", format!("annotation-queues/{}/items/add", uuid7()), &ids(&trace), 1),
        (T::RemoveQueueItems, "POST", format!("annotation-queues/{}/items/delete", uuid7()), &ids(&trace), 1),
        (T::DeleteAttachments, "POST", "attachment/delete".into(), &attachment, 1),
        (
            T::AppendJobLogs,
            "POST",
            format!("local-runners/jobs/{}/logs", uuid7()),
            &json!([{ "stream": "o", "text": "t" }]),
            1,
        ),
        (T::DeleteSpan, "DELETE", format!("spans/{span}"), &Value::Null, 1),
        (T::DeleteTrace, "DELETE", format!("traces/{trace}"), &Value::Null, 1),
        (T::DeleteTraces, "POST", "traces/delete".into(), &json!({ "ids": [uuid7(), uuid7()] }), 2),
    ] {
        rows.push(row(message_type, method, &path, body, items));
        if body.is_null() {
            let path = format!("/v1/private/{path}");
            rows.last_mut().expect("just pushed").request = Request::new(method, &path);
        }
    }
    for (number, row) in rows.iter_mut().enumerate() {
        // Parameters in the client's URL are kept.
        if number % 5 == 4 {
            row.request.path += "?odd=%20x&y";
        }
    }
    rows
}

/// An endpoint's answer, except the server's address.
fn said(answer: &Response, base: &str) -> (u16, Option<String>, Option<String>, Vec<u8>) {
    let location = answer.header("Location").map(|url| {
        url.strip_prefix(base).unwrap_or_else(|| panic!("Location {url} does not lead to {base}")).to_owned()
    });
    (answer.status, location, answer.header("Content-Type").map(str::to_owned), answer.body.clone())
}

#[test]
fn every_write_that_is_kept_is_acknowledged_counted_and_replayed_byte_for_byte() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url()).with_header("Comet-Workspace", "team");
    let mut rows = rows();
    for row in rows.iter_mut().filter(|row| row.request.body.starts_with(b"{")) {
        // As no JSON library writes it: a body that was read and written anew is seen.
        row.request.body.insert(1, b' ');
    }
    let covered: BTreeSet<MessageType> = rows.iter().map(|row| row.message_type).collect();
    let all: BTreeSet<MessageType> = MessageType::ALL.iter().copied().collect();
    // Attachments have a flow of their own, and what is not known in a file of the SDK's comes by no request.
    let apart = [&MessageType::CreateAttachment, &MessageType::UnknownSdkRow];
    assert_eq!(all.difference(&covered).collect::<Vec<_>>(), apart);
    let told: Vec<Response> = rows.iter().map(|row| client.expect(&row.request)).collect();

    let listed = agent.cli(&["inspect", "--limit", "0", "--format", "json"]).json();
    let listed = listed["messages"].as_array().expect("a list");
    assert_eq!(listed.len(), rows.len());
    for (row, listed) in rows.iter().zip(listed) {
        assert_eq!(listed["message_type"], row.message_type.name());
        assert_eq!(listed["items"], row.items, "{}", row.message_type);
        assert_eq!(listed["project"], json!(row.project), "{}", row.message_type);
        assert_eq!(listed["workspace"], "team");
    }
    let status = agent.cli(&["status", "--format", "json"]).stdout;
    for message_type in &covered {
        assert!(status.contains(message_type.name()), "status does not count {message_type}");
    }
    let dry = agent.cli(&["purge", "--type", "deletetraces", "--dry-run"]);
    assert!(dry.stdout.contains('1'), "{}", dry.stdout);

    server.start();
    agent.wait_until_delivered();
    let writes: Vec<_> = server.requests().into_iter().filter(|request| request.method != "GET").collect();
    assert_eq!(writes.len(), rows.len(), "nothing was merged, and nothing went twice");
    // Requests that don't conflict may change places.
    let mut left: Vec<_> = writes.iter().collect();
    for row in &rows {
        let is_rows = |replayed: &&crate::support::fake_opik::Received| {
            let path = match &replayed.query {
                Some(query) => format!("{}?{query}", replayed.route()),
                None => replayed.route().to_owned(),
            };
            (&replayed.method, &path) == (&row.request.method, &row.request.path) && replayed.body == row.request.body
        };
        let found = left.iter().position(is_rows);
        let replayed =
            left.remove(found.unwrap_or_else(|| panic!("{} was not replayed byte for byte", row.message_type)));
        for name in ["Content-Type", "Content-Encoding", "projectname"] {
            let sent = row.request.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
            assert_eq!(replayed.header(name), sent, "{}: {name}", row.message_type);
        }
        assert_eq!(replayed.workspace, "team");
        assert!(replayed.answered_status.is_some_and(|status| status < 300), "{}: {replayed:?}", row.message_type);
    }
    server.assert_no_violations();

    // The clients got the same answers as the server itself gives to the same request.
    let direct = FakeOpik::start_new();
    let mut client = Client::new(&direct.url());
    for (row, told) in rows.iter().zip(&told) {
        let mut expected = said(&client.expect(&row.request), &direct.url());
        if row.message_type == MessageType::OtlpTraces {
            // The server leaves the answer empty; an encoded empty response is as good, and some exporters read it.
            let content_type = row.request.headers.iter().find(|(name, _)| name == "Content-Type").expect("one");
            let body = if content_type.1 == "application/json" { b"{}".to_vec() } else { Vec::new() };
            expected = (200, None, Some(content_type.1.clone()), body);
        }
        assert_eq!(said(told, &agent.url()), expected, "{}", row.message_type);
    }
}

#[test]
fn acknowledgements_match_opiks_openapi_file() {
    let prism = Prism::start();
    let live = Agent::builder(&prism.url()).impatient().start();
    let away = FakeOpik::new_stopped();
    let keeping = Agent::start(&away);
    let (mut live, mut keeping) = (Client::new(&live.url()), Client::new(&keeping.url()));
    for row in rows() {
        // The file knows OTLP only as some binary object, and a 501 as the first answer to the deletion of a span.
        if [MessageType::OtlpTraces, MessageType::DeleteSpan].contains(&row.message_type) {
            continue;
        }
        let (said, told) = (live.expect(&row.request), keeping.expect(&row.request));
        assert_eq!(told.status, said.status, "{}: Prism says {}", row.message_type, said.text());
        assert_eq!(told.header("Location").is_some(), said.header("Location").is_some(), "{}", row.message_type);
    }
}

#[test]
fn a_live_deletion_waits_for_a_span_that_is_on_its_way() {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    let (trace, span) = (uuid7(), uuid7());
    let held = server.script(When::path("/v1/private/spans"), Then::Hold);
    std::thread::scope(|scope| {
        let create = scope.spawn(|| {
            let body = json!({ "id": span, "trace_id": trace, "start_time": "2026-03-01T04:00:16Z" });
            Client::new(&agent.url()).post("/v1/private/spans", &body).status
        });
        wait_until("the span is on its way", PATIENCE, || held.hits() == 1);
        let delete = scope.spawn(|| {
            Client::new(&agent.url()).expect(&Request::new("DELETE", &format!("/v1/private/traces/{trace}"))).status
        });
        // Other traces are not held up meanwhile.
        let other = Request::new("DELETE", &format!("/v1/private/traces/{}", uuid7()));
        assert_eq!(Client::new(&agent.url()).expect(&other).status, 204);
        assert_eq!(server.requests_to("DELETE", &format!("/v1/private/traces/{trace}")).len(), 0);
        held.clear();
        assert_eq!((create.join().expect("it ran"), delete.join().expect("it ran")), (201, 204));
    });
    let sent: Vec<String> = server.requests().into_iter().filter(|r| r.method != "GET").map(|r| r.path).collect();
    assert!(sent[0].ends_with("/spans") && sent.last().is_some_and(|path| path.ends_with(&trace)), "{sent:?}");
}

#[test]
fn single_creates_become_a_batch_that_says_the_same() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let bodies: Vec<String> = (0..5)
        .map(|n| {
            let id = uuid7();
            format!(
                r#"{{"id": "{id}", "name": "{n}", "thread_id": "th", "start_time": "2026-03-01T04:00:16Z",
                "last_updated_at": "2026-03-01T04:00:16Z", "input": {{"nan": NaN, "big": 123456789012345678901234567890}}}}"#
            )
        })
        .collect();
    for body in &bodies {
        let request = Request::new("POST", "/v1/private/traces").header("Content-Type", "application/json");
        assert_eq!(client.expect(&request.bytes(body.as_bytes())).status, 201);
    }
    server.start();
    agent.wait_until_delivered();
    let sent = server.requests_to("POST", "/v1/private/traces*");
    assert_eq!(sent.len(), 1, "traces of one thread share a request");
    let expected = bodies.iter().map(|body| crate::support::json::parse_lenient(body.as_bytes()).expect("JSON"));
    assert_eq!(**sent[0].json.as_ref().expect("JSON"), json!({ "traces": expected.collect::<Vec<_>>() }));
}

#[test]
fn deletions_reach_the_server_after_what_they_delete_and_before_what_comes_later() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let at = "2026-03-01T04:00:16Z";
    let trace = |id: &str| json!({ "id": id, "start_time": at, "last_updated_at": at, "thread_id": "th" });
    let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
    for id in &ids {
        client.post("/v1/private/traces", &trace(id));
        client.post(
            "/v1/private/spans",
            &json!({ "id": uuid7(), "trace_id": id, "start_time": at, "last_updated_at": at }),
        );
    }
    assert_eq!(client.put("/v1/private/traces/threads/close", &json!({ "thread_id": "th" })).status, 204);
    for id in &ids[..10] {
        assert_eq!(client.expect(&Request::new("DELETE", &format!("/v1/private/traces/{id}"))).status, 204);
    }
    assert_eq!(client.post("/v1/private/traces/delete", &json!({ "ids": ids[10..19] })).status, 204);
    server.start();
    agent.wait_until_delivered();

    assert_eq!(server.count("default", crate::support::fake_opik::check::Kind::Trace), 1, "deleted traces came back");
    let sent: Vec<_> = server.requests().into_iter().filter(|request| request.method != "GET").collect();
    let close = sent.iter().position(|request| request.path.ends_with("/close")).expect("it was sent");
    let creates = sent.iter().rposition(|request| request.path.contains("/batch")).expect("they were sent");
    assert!(creates < close, "a thread was closed before its traces arrived");
    assert!(sent.len() < 20, "{} requests for 51 messages", sent.len());
}

#[test]
fn writes_that_need_an_answer_are_never_stored() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    for (method, path, body) in [
        ("POST", "/v1/private/datasets", json!({ "name": "d" })),
        ("POST", "/v1/private/experiments", json!({ "dataset_name": "d" })),
        ("POST", "/v1/private/datasets/items/delete", json!({ "dataset_id": uuid7(), "filters": [{ "field": "id" }] })),
        ("POST", &format!("/v1/private/traces/{}/comments", uuid7()), json!({ "text": "t" })),
        ("POST", "/v1/private/prompts/versions", json!({})),
        ("POST", "/v1/private/traces/search", json!({})),
    ] {
        let answer = client.expect(&Request::new(method, path).json(&body));
        assert_eq!(answer.status, 503, "{method} {path}");
        assert_eq!(answer.json()["code"], 503);
        assert!(
            answer.json()["message"].as_str().is_some_and(|text| text.contains("needs its answer")),
            "{}",
            answer.text()
        );
        assert!(answer.header("Retry-After").is_some());
    }
    assert_eq!(agent.backlog(), 0);
}

#[test]
fn a_deletion_by_filter_does_not_pass_the_items_that_wait() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let (dataset, item) = (uuid7(), uuid7());
    let items = json!({ "dataset_id": dataset, "items": [{ "id": item, "source": "sdk", "data": {} }] });
    assert_eq!(client.put("/v1/private/datasets/items", &items).status, 204);
    // The server is back for this path alone: the items still wait.
    let stuck = server.script(When::path("/v1/private/datasets/items"), Then::rate_limited(1));
    server.start();
    wait_until("the replay meets the limit", PATIENCE, || stuck.hits() > 0);
    let filter = json!({ "dataset_id": dataset, "filters": [{ "field": "source", "operator": "=", "value": "sdk" }] });
    let answer = client.post("/v1/private/datasets/items/delete", &filter);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("depends on all of them"), "{}", answer.text());
    // Nothing that waits means anything to a create.
    let create = client.post("/v1/private/experiments", &json!({ "dataset_name": "d" }));
    assert_eq!(create.status, 201, "{}", create.text());
    stuck.clear();
    agent.wait_until_delivered();
    let deletions = server.requests_to("POST", "/v1/private/datasets/items/delete");
    assert!(deletions.is_empty(), "the deletion passed the items");
    client.post("/v1/private/datasets/items/delete", &filter);
    assert_eq!(server.requests_to("POST", "/v1/private/datasets/items/delete").len(), 1, "nothing holds it now");
}

#[test]
fn assertion_results_reach_a_server_that_only_knows_scores() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let mut client = Client::new(&agent.url());
    let trace = uuid7();
    let assertion =
        json!({ "entity_id": trace, "name": "polite", "status": "passed", "source": "sdk", "reason": "so" });
    let body = json!({ "entity_type": "TRACE", "assertion_results": [assertion] });
    assert_eq!(client.put("/v1/private/assertion-results", &body).status, 204);
    let _older = server.script(When::path("/v1/private/assertion-results"), Then::status(404));
    server.start();
    agent.wait_until_delivered();
    let scores = server.requests_to("PUT", "/v1/private/traces/feedback-scores");
    let expected = json!({ "scores": [{
        "id": trace, "name": "polite", "source": "sdk", "reason": "so", "value": 1.0, "category_name": "suite_assertion",
    }] });
    assert_eq!(**scores[0].json.as_ref().expect("JSON"), expected);
    assert_eq!(agent.cli(&["inspect", "--rejected", "--format", "json"]).json()["selected"], 0);
}
