use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::delivery::batching::coalesce::{Shipment, plan};
use crate::delivery::batching::split::Divisible;
use crate::message::{Body, Encoding, HeaderSet, MessageId, Request};
use crate::protocol::inspection::inspect;
use crate::protocol::routes::{Route, classify};

const ID: &str = "01a20440-760f-72f8-b5dd-31cb6adc731c";
const OTHER: &str = "01a20440-763c-76b8-b9ac-c70a71f0d99a";
const BYTES_MAX: usize = 100_000;

fn claimed(id: i64, method: &str, path: &str, content: &str) -> Claimed {
    let Route::Protected(write) = classify(method, path) else { panic!("{path} is protected") };
    let inspection = inspect(&write, content.as_bytes()).expect("JSON");
    Claimed {
        id: MessageId(id),
        message_type: write.message_type,
        request: Request {
            method: method.into(),
            path: path.into(),
            headers: HeaderSet::new(vec![("content-type".into(), b"application/json".to_vec())]),
            body: Body::new(content.to_owned(), Encoding::Identity),
        },
        touches: inspection.touches,
        items: inspection.items,
        attempts: 0,
        ahead: Vec::new(),
        is_unsure: false,
        way: Default::default(),
    }
}

fn batch(id: i64, kind: &str, items: &str) -> Claimed {
    claimed(id, "POST", &format!("v1/private/{kind}/batch"), &format!(r#"{{"{kind}":[{items}]}}"#))
}

fn update(id: i64, kind: &str, entity: &str, content: &str) -> Claimed {
    claimed(id, "PATCH", &format!("v1/private/{kind}/{entity}"), content)
}

fn ids(shipment: &Shipment) -> Vec<i64> {
    shipment.messages().map(|message| message.id.0).collect()
}

/// Returns the item as folded, or `None` if the update stays separate.
fn folded(kind: &str, item: &str, content: &str) -> Option<String> {
    let item = format!(r#"{{"id":"{ID}",{item}}}"#);
    let mut fold = Fold::of(&batch(1, kind, &item), BYTES_MAX).expect("a batch");
    let was = fold.content();
    if !fold.take(&update(2, kind, ID, content)) {
        assert_eq!(fold.content(), was, "an update that stays apart has changed the create");
        return None;
    }
    let result = String::from_utf8(fold.content()).expect("UTF-8");
    let head = format!(r#"{{"{kind}":[{{"id":"{ID}","#);
    Some(result.strip_prefix(&head).expect("the head stays").strip_suffix("}]}").expect("the end stays").to_owned())
}

#[test]
fn a_fold_keeps_every_other_byte() {
    let span = r#""trace_id":"t","parent_span_id":"p","project_name":"x""#;
    let with = |more: &str| format!("{span},{more}");
    for (kind, item, content, expected) in [
        (
            "traces",
            r#""name" : "n""#,
            r#"{"output":{"a": NaN}}"#.to_owned(),
            r#""name" : "n","output":{"a": NaN}"#.to_owned(),
        ),
        ("traces", r#""output":null ,"odd":1"#, r#"{"output":"b"}"#.into(), r#""output":"b" ,"odd":1"#.into()),
        (
            "traces",
            r#""input":{"a":1},"name":"n""#,
            r#"{"name":"m", "input":{"b":2}}"#.into(),
            r#""input":{"b":2},"name":"m""#.into(),
        ),
        (
            "traces",
            r#""name":"n","thread_id":"t""#,
            r#"{"thread_id":"t","ttft":1.5}"#.into(),
            r#""name":"n","thread_id":"t","ttft":1.5"#.into(),
        ),
        (
            "traces",
            r#""project_name":"x""#,
            r#"{"project_name":"x","tags":["a","b"]}"#.into(),
            r#""project_name":"x","tags":["a","b"]"#.into(),
        ),
        ("spans", span, format!("{{{}}}", with(r#""end_time":"2026""#)), with(r#""end_time":"2026""#)),
        (
            "spans",
            span,
            format!("{{{}}}", with(r#""model":"m","usage":{"a":1}"#)),
            with(r#""model":"m","usage":{"a":1}"#),
        ),
    ] {
        let item = if kind == "spans" && expected.contains("model") { span } else { item };
        assert_eq!(folded(kind, item, &content).as_deref(), Some(&*expected), "{item} and {content}");
    }
    let priced = r#""trace_id":"t","model":"m","usage":{"a":1}"#;
    let cost = folded("spans", priced, r#"{"trace_id":"t","usage":{"a":1},"total_estimated_cost":0.25}"#);
    assert!(cost.is_some(), "an update that names the cost leaves nothing to estimate");
    assert!(folded("spans", priced, r#"{"trace_id":"t","output":{"a":1}}"#).is_some(), "nothing about the cost");
}

#[test]
fn updates_that_are_not_known_to_be_exact_stay_separate() {
    let many = format!(r#"{{"tags":[{}"t"]}}"#, r#""t","#.repeat(50));
    let long = format!(r#"{{"tags":["{}"]}}"#, "t".repeat(101));
    let deep = format!(r#""input":{{"a":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    for (kind, item, content, why) in [
        ("traces", r#""last_updated_at":"2026""#, r#"{"name":"n"}"#, "the create has a time"),
        ("traces", r#""last_updated_at":null"#, r#"{"name":"n"}"#, "the create has a time of an unknown kind"),
        ("traces", r#""name":"n""#, r#"{"name":null}"#, "null"),
        ("traces", r#""name":"n""#, r#"{"name":" "}"#, "blank"),
        ("traces", r#""name":"n""#, r#"{"output":{ }}"#, "an empty object"),
        ("traces", r#""name":"n""#, r#"{"tags":[]}"#, "an empty list"),
        ("traces", r#""name":"n""#, r#"{"ttft":0.0}"#, "zero"),
        ("traces", r#""name":"n""#, r#"{"ttft":1e-400}"#, "a number that rounds to zero"),
        ("traces", r#""name":"n""#, r#"{"ttft":NaN}"#, "no number"),
        ("traces", r#""name":"n""#, "{}", "nothing"),
        ("traces", r#""name":"n""#, r#"{"name":"a","name":"b"}"#, "a duplicate key"),
        ("traces", r#""name":"n""#, "{\"name\":\"a\",\"n\\u0061me\":\"b\"}", "a key in two spellings"),
        ("traces", r#""name":"n","name":"m""#, r#"{"output":"o"}"#, "a duplicate key of the create"),
        ("traces", r#""name":"n""#, r#"["name"]"#, "no object"),
        ("traces", r#""name":"n""#, r#"{"tags_to_add":["a"]}"#, "adds"),
        ("traces", r#""name":"n""#, r#"{"name":"m","odd":1}"#, "an unknown member"),
        ("traces", r#""name":"n""#, r#"{"name":"m","id":"i"}"#, "a member that updates don't have"),
        ("traces", r#""name":"n""#, r#"{"name":"m","model":"m"}"#, "a member that traces don't have"),
        ("traces", r#""name":"n""#, r#"{"name":"m","project_name":"x"}"#, "another project than the default one"),
        ("traces", r#""project_name":"x""#, r#"{"name":"m"}"#, "the default project"),
        ("traces", r#""project_name":"x""#, r#"{"name":"m","project_name":"y"}"#, "another project"),
        (
            "traces",
            r#""project_name":"x""#,
            r#"{"name":"m","project_name":"x","project_id":"i"}"#,
            "a project by its id",
        ),
        ("traces", r#""name":"n""#, r#"{"thread_id":"t"}"#, "a thread that the create does not name"),
        ("traces", r#""name":"n""#, r#"{"name":"m","source":"sdk"}"#, "a source that the create does not name"),
        ("traces", r#""name":"n""#, &many, "more tags than an update may have"),
        ("traces", r#""name":"n""#, &long, "a longer tag than an update may have"),
        ("traces", r#""name":7"#, r#"{"name":"n"}"#, "it would heal a name that the server refuses"),
        (
            "traces",
            r#""end_time":"never""#,
            r#"{"end_time":"2026"}"#,
            "it would heal a time that the server may refuse",
        ),
        ("traces", r#""input":{"a":NaN}"#, r#"{"input":"i"}"#, "it would heal what the server may refuse"),
        ("traces", &deep, r#"{"input":"i"}"#, "it would heal what the server may refuse"),
        ("spans", r#""trace_id":"t""#, r#"{"name":"n"}"#, "the update lacks the trace"),
        ("spans", r#""trace_id":"t""#, r#"{"name":"n","trace_id":"u"}"#, "another trace"),
        ("spans", r#""trace_id":"t","parent_span_id":"p""#, r#"{"name":"n","trace_id":"t"}"#, "no parent"),
        ("spans", r#""trace_id":"t","model":"m""#, r#"{"trace_id":"t","usage":{"a":1}}"#, "the cost"),
        ("spans", r#""trace_id":"t","total_estimated_cost":1"#, r#"{"trace_id":"t","usage":{"a":1}}"#, "the cost"),
        (
            "spans",
            r#""trace_id":"t","total_estimated_cost_version":"v""#,
            r#"{"trace_id":"t","total_estimated_cost":1}"#,
            "the cost's version",
        ),
    ] {
        assert_eq!(folded(kind, item, content), None, "{why}: {item} and {content}");
    }
}

#[test]
fn only_a_lone_item_of_a_plain_batch_takes_an_update() {
    let item = |id: &str| format!(r#"{{"id":"{id}"}}"#);
    let takes =
        |create: &Claimed, update: &Claimed| Fold::of(create, BYTES_MAX).is_some_and(|mut fold| fold.take(update));
    let name = update(2, "traces", ID, r#"{"name":"n"}"#);
    let upper = update(2, "traces", &ID.to_uppercase(), r#"{"name":"n"}"#);
    assert!(takes(&batch(1, "traces", &format!("{},{}", item(OTHER), item(ID))), &name));
    assert!(takes(&batch(1, "traces", &item(ID)), &upper), "one id in two spellings is one trace");
    assert!(!takes(&batch(1, "traces", &item(OTHER)), &name));
    assert!(!takes(&batch(1, "traces", &format!("{},{}", item(ID), item(&ID.to_uppercase()))), &name), "twice");
    assert!(!takes(&batch(1, "traces", &format!("{},{{\"id\":7}}", item(ID))), &name), "an id of unknown kind");
    assert!(!takes(&batch(1, "spans", &item(ID)), &name), "a span with the trace's id");
    assert!(!takes(&claimed(1, "POST", "v1/private/traces", &item(ID)), &name), "a single create");
    let odd = claimed(1, "POST", "v1/private/traces/batch", &format!(r#"{{"traces":[{}],"odd":1}}"#, item(ID)));
    assert!(!takes(&odd, &name), "a body with something else in it");
    let mut query = name.clone();
    query.request.path.push_str("?odd=1");
    assert!(!takes(&batch(1, "traces", &item(ID)), &query), "a query");
    assert!(Fold::of(&batch(1, "traces", &item(ID)), 10).is_none(), "larger than a request may become");
}

#[test]
fn a_typescript_backlog_of_a_thousand_updates_is_two_requests() {
    let id = |n: usize| format!("01a20440-760f-72f8-b5dd-{n:012}");
    let item = |n: usize| format!(r#"{{"id":"{}","trace_id":"{ID}","name":"call {n}"}}"#, id(n));
    let of = |ns: std::ops::Range<usize>| ns.map(item).collect::<Vec<_>>().join(",");
    let mut messages = vec![batch(1, "spans", &of(0..500)), batch(2, "spans", &of(500..1000))];
    messages.extend((0..1000).map(|n| {
        let content = format!(r#"{{"trace_id":"{ID}","output":{{"n":{n}}}}}"#);
        update(10 + n as i64, "spans", &id(n), &content)
    }));
    let shipments = plan(messages);
    assert_eq!(shipments.iter().map(Shipment::len).collect::<Vec<_>>(), [501, 501]);
    let request = shipments[1].request();
    assert_eq!(request.body.encoding, Encoding::Gzip);
    assert_eq!(request.headers.get("content-encoding"), Some(&b"gzip"[..]));
    let content: Value = serde_json::from_slice(&request.body.decode(1 << 20).expect("gzip")).expect("JSON");
    let outputs: Vec<_> = (500..1000).map(|n| json!({ "n": n })).collect();
    let found: Vec<_> = content["spans"].as_array().expect("items").iter().map(|span| span["output"].clone()).collect();
    assert_eq!(found, outputs);
}

#[test]
fn a_409_to_a_folded_request_is_a_refusal_and_unfolding_restores_the_stored_requests() {
    let create = batch(1, "traces", &format!(r#"{{"id":"{ID}"}},{{"id":"{OTHER}"}}"#));
    let updates = [update(2, "traces", OTHER, r#"{"name":"a"}"#), update(3, "traces", ID, r#"{"name":"b"}"#)];
    let [shipment] = &plan([create.clone(), updates[0].clone(), updates[1].clone()])[..] else { panic!("one request") };
    assert!(!shipment.message_type().is_create());
    let parts = shipment.clone().parts().expect("it has parts");
    assert_eq!(parts.iter().map(ids).collect::<Vec<_>>(), [[1], [2], [3]]);
    assert_eq!(parts[0].request(), create.request);
    assert_eq!(parts[0].message_type(), MessageType::CreateTraceBatch);
    assert_eq!(parts[1].request(), updates[0].request);
}

#[test]
fn an_update_overtakes_nothing_that_it_conflicts_with() {
    let create = || batch(1, "traces", &format!(r#"{{"id":"{ID}"}},{{"id":"{OTHER}"}}"#));
    let name = |id, entity| update(id, "traces", entity, r#"{"name":"n"}"#);
    let score = format!(r#"{{"scores":[{{"id":"{ID}","name":"q","value":1,"source":"sdk"}}]}}"#);
    let between = [
        (claimed(2, "PUT", "v1/private/traces/feedback-scores", &score), "its score"),
        (claimed(2, "DELETE", &format!("v1/private/traces/{ID}"), ""), "its deletion"),
        (update(2, "traces", ID, r#"{"tags_to_add":["a"]}"#), "an update that stays apart"),
        (claimed(2, "POST", "v1/private/traces", &format!(r#"{{"id":"{ID}","name":"m"}}"#)), "another create"),
    ];
    for (message, what) in between {
        let shipments = plan([create(), message, name(3, ID), name(4, OTHER)]);
        assert_eq!(shipments.iter().map(ids).collect::<Vec<_>>(), [vec![1, 4], vec![2], vec![3]], "past {what}");
    }
    let mut other_headers = name(2, ID);
    other_headers.request.headers = HeaderSet::new(vec![("x-odd".into(), b"1".to_vec())]);
    assert_eq!(plan([create(), other_headers]).len(), 2);
    assert_eq!(plan([name(1, ID), create()]).len(), 2, "an early update stays before");
    assert_eq!(plan([create(), name(2, ID), update(3, "traces", ID, r#"{"name":"m"}"#)]).len(), 1);
}

// A small server, by the dossier's section f, and replay's reaction to its answers.

/// Undocumented behaviour in which servers may differ.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    /// An update's estimate of the cost looks at what is stored.
    estimates_from_stored: bool,
    /// Empty values of an update clear the field instead of counting as not given.
    empties_clear: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Record {
    fields: Map<String, Value>,
    cost: Option<String>,
    partial: bool,
    stamp: u64,
    scores: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    now: u64,
}

/// Returns whether the server would refuse it, in a create and in an update alike.
fn is_bad(fields: &Map<String, Value>) -> bool {
    fields.get("name").is_some_and(|name| !name.is_string() && !name.is_null())
        || fields.get("end_time") == Some(&json!("never"))
}

fn estimate(fields: &Map<String, Value>) -> Option<String> {
    if let Some(cost) = fields.get("total_estimated_cost") {
        return Some(cost.to_string());
    }
    let usage = fields.get("usage")?;
    Some(format!("{} {:?} {:?}", usage, fields.get("model"), fields.get("metadata")))
}

impl State {
    /// Applies a request, or refuses all of it.
    fn send(&mut self, server: Server, request: &Request) -> Result<(), u16> {
        self.now += 1;
        let now = self.now;
        let content = request.body.decode(1 << 20).expect("it decodes");
        let body: Map<String, Value> = serde_json::from_slice(&content).unwrap_or_default();
        let stamp = |item: &Map<String, Value>| {
            item.get("last_updated_at").and_then(Value::as_str).map_or(now, |text| text.parse().expect("a number"))
        };
        let without_nulls = |mut item: Map<String, Value>| {
            item.retain(|_, value| !value.is_null());
            item
        };
        let path = request.path.strip_prefix("v1/private/").expect("a path");
        match (&*request.method, path) {
            ("POST", "spans/batch") => {
                let items: Vec<Map<String, Value>> =
                    serde_json::from_value(body["spans"].clone()).expect("a list of objects");
                if items.iter().any(is_bad) {
                    return Err(400);
                }
                for item in items.into_iter().map(without_nulls) {
                    let record = self.records.entry(item["id"].to_string()).or_default();
                    if record.fields.is_empty() || stamp(&item) >= record.stamp {
                        let scores = std::mem::take(&mut record.scores);
                        let (stamp, cost) = (stamp(&item), estimate(&item));
                        *record = Record { fields: item, cost, partial: false, stamp, scores };
                    }
                }
            }
            ("POST", "spans") => {
                if is_bad(&body) {
                    return Err(400);
                }
                let body = without_nulls(body);
                let record = self.records.entry(body["id"].to_string()).or_default();
                if record.fields.is_empty() || record.partial {
                    record.stamp = if record.partial { now } else { stamp(&body) };
                    let early = std::mem::replace(&mut record.fields, body);
                    record.fields.extend(early);
                    record.cost = estimate(&record.fields);
                    record.partial = false;
                }
            }
            ("PUT", _) => {
                let score = &body["scores"][0];
                let record = self.records.entry(score["id"].to_string()).or_default();
                record.scores.insert("q".into(), score["value"].clone());
            }
            ("DELETE", path) => {
                let id = json!(path.rsplit('/').next());
                self.records.remove(&id.to_string());
            }
            ("PATCH", path) => {
                let id = json!(path.rsplit('/').next()).to_string();
                let tags = body.get("tags").and_then(Value::as_array).map_or(0, Vec::len);
                if is_bad(&body) || tags > 50 {
                    return Err(400);
                }
                let mut body = without_nulls(body);
                let is_empty = |value: &Value| [json!(""), json!({}), json!([]), json!(0)].contains(value);
                if !server.empties_clear {
                    body.retain(|_, value| !is_empty(value));
                }
                let record = self.records.entry(id).or_default();
                if record.fields.is_empty() {
                    record.partial = true;
                } else if ["project_name", "trace_id", "parent_span_id"]
                    .iter()
                    .any(|name| record.fields.get(*name) != body.get(*name))
                {
                    return Err(409);
                }
                let added = body.remove("tags_to_add");
                let of_update = estimate(&body);
                record.fields.extend(body);
                if let Some(Value::Array(added)) = added {
                    let tags = record.fields.entry("tags").or_insert(json!([])).as_array_mut().expect("a list");
                    tags.retain(|tag| !added.contains(tag));
                    tags.extend(added);
                }
                let estimated = if server.estimates_from_stored && of_update.is_some() {
                    estimate(&record.fields)
                } else {
                    of_update
                };
                record.cost = estimated.or(record.cost.take());
                record.stamp = now;
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }
}

/// Delivers claims as replay does, and returns the refused messages. A claim with a lost answer is sent once more, as
/// after a crash before it was settled; `stops_at` is the number of requests before that crash.
fn deliver(
    server: Server,
    claims: &[(Vec<Claimed>, Option<usize>)],
    folds: bool,
    crashes: bool,
) -> (BTreeMap<String, Value>, BTreeSet<String>) {
    let mut state = State { now: 1000, ..State::default() };
    let mut refused = BTreeSet::new();
    for (claim, stops_at) in claims {
        if let (Some(stops_at), true) = (stops_at, crashes) {
            deliver_claim(server, &mut state, claim, folds, *stops_at);
        }
        refused.extend(deliver_claim(server, &mut state, claim, folds, usize::MAX));
    }
    let seen = |(id, record): (String, Record)| {
        // The time of the server's stamp is not guaranteed, only that there is one.
        let is_stamped = record.stamp > 1000;
        let seen = json!([record.fields, record.cost, record.partial, is_stamped, record.scores]);
        (id, seen)
    };
    (state.records.into_iter().map(seen).collect(), refused)
}

fn deliver_claim(
    server: Server,
    state: &mut State,
    claim: &[Claimed],
    folds: bool,
    stops_at: usize,
) -> BTreeSet<String> {
    let mut refused = BTreeSet::new();
    let shipments = if folds {
        plan(claim.iter().cloned())
    } else {
        claim.iter().flat_map(|message| plan([message.clone()])).collect()
    };
    let mut queue: Vec<Shipment> = shipments.into_iter().rev().collect();
    let mut sent = 0;
    while let Some(shipment) = queue.pop() {
        sent += 1;
        if sent > stops_at {
            break;
        }
        if state.send(server, &shipment.request()).is_ok() {
            continue;
        }
        match shipment.parts() {
            Ok(parts) => queue.extend(parts.into_iter().rev()),
            Err(single) => {
                let message = single.messages().next().expect("one");
                match Divisible::of(message.message_type, &message.request) {
                    None => drop(refused.insert(message.id.to_string())),
                    Some(items) => refused.extend((0..items.len()).filter_map(|n| {
                        let piece = items.piece(&message.request, n..n + 1);
                        state.send(server, &piece).is_err().then(|| format!("{} {n}", message.id))
                    })),
                }
            }
        }
    }
    refused
}

fn any_members() -> impl Strategy<Value = String> {
    let member = prop_oneof![
        3 => (0..3).prop_map(|n| format!(r#""output":{{"n":{n}}}"#)),
        3 => (0..3).prop_map(|n| format!(r#""name":"n{n}""#)),
        1 => Just(r#""name":7"#.to_owned()),
        1 => Just(r#""name":"""#.to_owned()),
        1 => Just(r#""output":{}"#.to_owned()),
        1 => Just(r#""input":null"#.to_owned()),
        2 => (0..2).prop_map(|n| format!(r#""end_time":"{n}""#)),
        1 => Just(r#""end_time":"never""#.to_owned()),
        1 => Just(r#""model":"m""#.to_owned()),
        1 => (1..3).prop_map(|n| format!(r#""usage":{{"a":{n}}}"#)),
        1 => Just(r#""metadata":{"a":1}"#.to_owned()),
        1 => (0..2).prop_map(|n| format!(r#""total_estimated_cost":{n}"#)),
        1 => Just(r#""tags":["a","b"]"#.to_owned()),
        1 => Just(format!(r#""tags":["a"{}]"#, r#","a""#.repeat(50))),
        1 => Just(r#""odd":1"#.to_owned()),
    ];
    prop::collection::vec(member, 0..4).prop_map(|members| {
        let mut seen = BTreeSet::new();
        let name = |member: &String| member.split(':').next().expect("a name").to_owned();
        members.into_iter().filter(|member| seen.insert(name(member))).map(|member| format!(",{member}")).collect()
    })
}

fn identity() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        8 => Just(r#""trace_id":"t""#),
        1 => Just(r#""trace_id":"u""#),
        1 => Just(r#""trace_id":"t","parent_span_id":"p""#),
        1 => Just(r#""trace_id":"t","project_name":"x""#),
    ]
}

fn any_message() -> impl Strategy<Value = (&'static str, String, String)> {
    let id = || (0..4).prop_map(|n| format!("01a20440-760f-72f8-b5dd-{n:012}"));
    let time = || prop_oneof![4 => Just(""), 1 => Just(r#","last_updated_at":"0007""#), 1 => Just(r#","last_updated_at":"0008""#)];
    let item = move || {
        (id(), identity(), any_members(), time())
            .prop_map(|(id, identity, members, time)| format!(r#"{{"id":"{id}",{identity}{members}{time}}}"#))
    };
    prop_oneof![
        4 => prop::collection::vec(item(), 1..4).prop_map(|items| {
            ("POST", "v1/private/spans/batch".to_owned(), format!(r#"{{"spans":[{}]}}"#, items.join(",")))
        }),
        // Without a time, so that it is sent alone with folding as without: coalescing is not tested here.
        1 => (id(), identity(), any_members()).prop_map(|(id, identity, members)| {
            ("POST", "v1/private/spans".to_owned(), format!(r#"{{"id":"{id}",{identity}{members}}}"#))
        }),
        8 => (id(), identity(), any_members()).prop_map(|(id, identity, members)| {
            ("PATCH", format!("v1/private/spans/{id}"), format!("{{{identity}{members}}}"))
        }),
        1 => (id(), identity()).prop_map(|(id, identity)| {
            ("PATCH", format!("v1/private/spans/{id}"), format!(r#"{{{identity},"tags_to_add":["c"]}}"#))
        }),
        1 => (id(), 0..3).prop_map(|(id, value)| {
            let score = format!(r#"{{"scores":[{{"id":"{id}","name":"q","value":{value},"source":"sdk"}}]}}"#);
            ("PUT", "v1/private/spans/feedback-scores".to_owned(), score)
        }),
        1 => id().prop_map(|id| ("DELETE", format!("v1/private/spans/{id}"), String::new())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_server_has_the_same_record_with_and_without_folding(
        history in prop::collection::vec((any_message(), 0..5), 1..25),
        crashes in prop::collection::vec(prop::option::of(0_usize..8), 25),
        (estimates_from_stored, empties_clear) in any::<(bool, bool)>(),
    ) {
        let server = Server { estimates_from_stored, empties_clear };
        let mut claims: Vec<(Vec<Claimed>, Option<usize>)> = Vec::new();
        for (id, ((method, path, content), new_claim)) in (1..).zip(history) {
            if new_claim == 0 || claims.is_empty() {
                let crash = crashes[claims.len()];
                claims.push((Vec::new(), crash));
            }
            let claim = claims.last_mut().expect("there is one");
            claim.0.push(claimed(id, method, &path, &content));
        }
        let apart = deliver(server, &claims, false, false);
        prop_assert_eq!(&deliver(server, &claims, true, false), &apart);
        // If a repeat alone changes the final record, folding has nothing to prove. Unfolded, a crash comes after
        // other messages than folded: a repeat counts as idempotent here if it is, at any point of the crash.
        let harmless = |stop: usize| {
            let claims: Vec<_> = claims.iter().map(|(claim, crash)| (claim.clone(), crash.map(|_| stop))).collect();
            deliver(server, &claims, false, true) == apart
        };
        if deliver(server, &claims, false, true) == apart && (0..30).all(harmless) {
            prop_assert_eq!(&deliver(server, &claims, true, true), &apart);
        }
    }
}
