//! `schemas/`: what programs may rely on is what the commands write.
//!
//! Each document is valid, and has no field that its schema does not describe: a new field must be described there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use jsonschema::Validator;
use opik_offline::depot::folder::FolderDepot;
use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::bundle::encode_bundle;
use opik_offline::fleet::head::{Head, HeadOwner, HeadState, MissingKey};
use opik_offline::fleet::names::{BundleName, ObjectName, StreamId};
use opik_offline::fleet::record::FleetRecord;
use opik_offline::message::{Effect, EntityKind, MessageType};
use serde_json::{Value, json};

use crate::sandbox::{BAD_TRACE, Sandbox, TRACE, message, open, team_of};
use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::process::Output;
use crate::support::{PATIENCE, wait_until};

/// A store of SDK rows of every type, some of which can't be sent.
const SDK_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sdk-store/all-types.db");

/// Documents, by schema name.
#[derive(Default)]
struct Documents(Vec<(&'static str, Value)>);

impl Documents {
    /// Takes what a command writes as JSON, and what it writes as YAML, which has to be the same kind of document.
    fn of_command(&mut self, schema: &'static str, sandbox: &Sandbox, args: &[&str]) {
        let Output { stdout, stderr, .. } = sandbox.output(&[args, &["--format", "json"]].concat());
        let json = serde_json::from_str(&stdout).unwrap_or_else(|why| panic!("{args:?}: {why} in\n{stdout}{stderr}"));
        self.0.push((schema, json));
        let yaml = sandbox.output(&[args, &["--format", "yaml"]].concat()).stdout;
        self.0.push((schema, serde_yaml::from_str(&yaml).unwrap_or_else(|why| panic!("{args:?}: {why} in\n{yaml}"))));
    }

    fn of_lines(&mut self, schema: &'static str, output: &Output) {
        for line in output.stdout.lines() {
            // A body keeps its tokens, and an escaped lone surrogate, which JSON allows, is more than serde_json reads.
            let line = ["\\ud", "\\uD"].iter().fold(line.to_owned(), |line, half| line.replace(half, "\\u0"));
            self.0.push((schema, serde_json::from_str(&line).expect("a line is a document")));
        }
    }
}

/// Runs every command that writes documents, in the situations that change what is in them.
fn documents() -> Documents {
    let mut found = Documents::default();
    let server = FakeOpik::start_new();

    let empty = Sandbox::without_store();
    for args in [&["status"][..], &["healthcheck"], &["inspect"], &["replay", "--dry-run"], &["purge", "--dry-run"]] {
        found.of_command(schema_of(args), &empty, args);
    }
    let broken = Sandbox::new();
    fs::write(broken.home.db(), "no database").unwrap();
    found.of_command("status", &broken, &["status"]);
    found.of_command("healthcheck", &broken, &["healthcheck"]);

    let filled = Sandbox::filled().with_server(&server);
    let spans = json!({ "resourceSpans": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": "shop" } }] },
        "scopeSpans": [],
    }] });
    let (path, touches) = ("v1/private/otel/v1/traces", [(EntityKind::Trace, BAD_TRACE, Effect::Create)]);
    let otlp = message(9, &team_of(&server.url()), MessageType::OtlpTraces, ("POST", path), &touches, &spans);
    let ids = open(&filled.home.db()).register(&[otlp]).unwrap();
    found.of_command("status", &filled, &["status"]);
    found.of_command("healthcheck", &filled, &["healthcheck"]);
    found.of_command("healthcheck", &filled, &["healthcheck", "--smoke-test"]);
    found.of_command("inspect", &filled, &["inspect"]);
    found.of_command("inspect", &filled, &["inspect", "--search", "question"]);
    for by in ["project", "workspace", "server", "type", "status"] {
        found.of_command("inspect-totals", &filled, &["inspect", "--totals", by]);
    }
    for id in [1, 2, 3, 4, 5, ids[0].0] {
        found.of_command("inspect-message", &filled, &["inspect", &id.to_string()]);
    }
    found.of_lines("inspect-line", &filled.output(&["inspect", "--format", "jsonl"]));
    found.of_command("replay", &filled, &["replay", "--dry-run"]);
    found.of_command("replay-hold", &filled, &["replay", "--hold", "5m"]);
    found.of_command("status", &filled, &["status"]);
    found.of_command("replay", &filled, &["replay"]);
    found.of_command("replay-hold", &filled, &["replay", "--resume"]);
    found.of_command("purge", &filled, &["purge", "--dry-run"]);
    found.of_command("replay", &filled, &["replay", "--verify", "--type", "CreateTrace"]);
    found.of_command("purge", &filled, &["purge", "--yes", "--rejected"]);

    // Attachments, rejected rows and all types, of a file that an SDK left.
    let salvaging = Sandbox::new();
    let copy = salvaging.home.path().join("left.db");
    fs::copy(SDK_FILE, &copy).unwrap();
    let copy = copy.to_string_lossy();
    found.of_command("inspect-rows", &salvaging, &["inspect", "--from", &copy]);
    // The server is away: what was taken in waits.
    assert_eq!(
        salvaging.output(&["replay", "--from", &copy, "--readdress", "http://localhost:5173/api"]).code(),
        Some(3)
    );
    found.of_command("inspect", &salvaging, &["inspect", "--limit", "0"]);
    found.of_lines("inspect-line", &salvaging.output(&["inspect", "--limit", "0", "--format", "jsonl"]));
    found.of_command("status", &salvaging, &["status"]);
    let delivering = Sandbox::new().with_server(&server);
    found.of_command(
        "replay",
        &delivering,
        &["replay", "--from", &copy, "--timeout", "10s", "--readdress", "http://localhost:5173/api"],
    );

    of_a_depot(&mut found, &server);
    of_an_agent(&mut found);
    let background = Sandbox::new().with_server(&server);
    found.of_command("agent", &background, &["agent", "--background", "--idle-exit", "1m"]);
    found.of_command("agent-stop", &background, &["agent", "--stop"]);
    found
}

/// A depot with a stream whose agent is gone, and objects that can't be read.
fn of_a_depot(found: &mut Documents, server: &FakeOpik) {
    let sandbox = Sandbox::new().with_server(server).with_env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", "1s");
    let root = sandbox.home.path().join("depot");
    fs::create_dir(&root).unwrap();
    let depot = FolderDepot::open(&root, Duration::from_secs(30)).unwrap();
    let put = |name: &ObjectName, bytes: &[u8]| {
        depot.create(&Name::new(&name.to_string()).unwrap(), bytes).unwrap();
    };
    let stream = |state: HeadState| {
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let records: Vec<FleetRecord> = [TRACE, BAD_TRACE]
            .iter()
            .zip(1_u64..)
            .map(|(trace, id)| {
                let touches = [(EntityKind::Trace, *trace, Effect::Create)];
                let body = json!({ "id": trace, "start_time": "2026-01-02T03:04:05Z" });
                let target = ("POST", "v1/private/traces");
                let message = message(1, &team_of(&server.url()), MessageType::CreateTrace, target, &touches, &body);
                FleetRecord::waiting(id, message)
            })
            .collect();
        let bundle = encode_bundle(&records).unwrap().expect("it has records");
        put(&ObjectName::Bundle(stream, bundle.manifest.name(0)), &bundle.bytes);
        let owner = HeadOwner { host: "pod-host".to_owned(), version: "0.1.0".to_owned(), ..HeadOwner::default() };
        let head = Head {
            bundles: 1,
            shipped: 2,
            waiting: 2,
            oldest_ms: Some(1_767_323_045_000),
            renewed: 1,
            renewed_at_ms: 1_767_323_045_000,
            missing_keys: vec![MissingKey { workspace: "research".to_owned(), key: "9f3c".to_owned(), messages: 1 }],
            ..Head::first(state, owner)
        };
        put(&ObjectName::Head(stream), &head.encode());
        stream
    };
    stream(HeadState::Closed);
    let taken = stream(HeadState::Taken);
    put(&ObjectName::Head(StreamId::new(uuid::Uuid::now_v7())), b"no head");
    let bad = ObjectName::Bundle(taken, BundleName { number: 1, messages: 1, bytes: 1, oldest_ms: 1, newest_ms: 1 });
    put(&bad, b"no bundle");
    let url = format!("file://{}", root.display());
    let fleet = ["--fleet", &url];
    found.of_command("fleet-status", &sandbox, &[&["status"][..], &fleet].concat());
    found.of_command("fleet-inspect", &sandbox, &[&["inspect"][..], &fleet].concat());
    let lines = sandbox.output(&[&["inspect", "--format", "jsonl"][..], &fleet].concat());
    found.of_lines("fleet-inspect-line", &lines);
    let message = format!("{taken}/1");
    found.of_command("inspect-message", &sandbox, &[&["inspect", &message][..], &fleet].concat());
    found.of_command("fleet-purge", &sandbox, &[&["purge", "--dry-run", "--older-than", "1h"][..], &fleet].concat());
    found.of_command("fleet-replay", &sandbox, &[&["replay"][..], &fleet].concat());
    found.of_command("fleet-dial", &sandbox, &[&["replay", "--pace", "20000/s", "--hold", "30m"][..], &fleet].concat());
    found.of_command("fleet-status", &sandbox, &[&["status"][..], &fleet].concat());
}

fn schema_of(args: &[&'static str]) -> &'static str {
    args[0]
}

/// An agent through an outage, and what it tells.
fn of_an_agent(found: &mut Documents) {
    let server = FakeOpik::start_new();
    let agent = Agent::start(&server);
    server.stop();
    let trace = json!({ "id": TRACE, "start_time": "2026-01-02T03:04:05Z" });
    assert_eq!(Client::new(&agent.url()).post("/v1/private/traces", &trace).status, 201);
    let told = || Client::new(&agent.origin()).get("/-/status.json").json();
    found.0.push(("agent-status", told()));
    wait_until("the agent has measured its rates", PATIENCE, || !told()["rates"].is_null());
    assert_eq!(told()["lanes"].as_array().map(Vec::len), Some(1));
    found.0.push(("agent-status", told()));
    assert_eq!(agent.cli(&["replay", "--hold", "5m"]).code(), Some(0));
    wait_until("the hold is told", PATIENCE, || told()["store"]["replay_hold"].is_object());
    found.0.push(("agent-status", told()));
    assert_eq!(agent.cli(&["replay", "--resume"]).code(), Some(0));
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["eta"]["state"], "server_away", "the agent's estimate is not told: {status}");
    found.0.push(("status", status));
    let flush = |query: &str| {
        let request = Request::new("POST", &format!("/-/flush{query}"));
        Client::new(&agent.origin()).send(&request).expect("an answer").json()
    };
    found.0.push(("flush", flush("?timeout=100ms")));
    server.start();
    let delivered = flush("");
    assert_eq!(delivered["delivered"], true, "{delivered}");
    found.0.push(("flush", delivered));
    wait_until("a replay is reported", PATIENCE, || told()["replays"].as_array().is_some_and(|seen| !seen.is_empty()));
    found.0.push(("agent-status", told()));

    // A store without room, with an agent and without.
    server.stop();
    let mut full = Agent::builder(&server.url()).impatient().arg("--free-disk-reserve").arg("4096TiB").start();
    assert_eq!(Client::new(&full.url()).post("/v1/private/traces", &trace).status, 503);
    let told = Client::new(&full.origin()).get("/-/status.json").json();
    assert_eq!(told["store"]["full"]["limit"], "disk_reserve", "{told}");
    found.0.push(("agent-status", told));
    let status = |agent: &Agent| {
        let status = agent.cli(&["status", "--format", "json"]).json();
        assert_eq!(status["store"]["refused_writes"], 1, "{status}");
        status
    };
    let running = status(&full);
    assert_eq!(running["store"]["full"]["refused_writes"], 1, "{running}");
    found.0.push(("status", running));
    full.terminate();
    found.0.push(("status", status(&full)));
}

#[test]
fn every_document_matches_its_schema() {
    let schemas = schemas();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, document) in documents().0 {
        *seen.entry(name).or_default() += 1;
        let schema = &schemas[name];
        assert_valid(&validator(schema), &document, name);
        let told = "is not in its schema: describe the new field in schemas/";
        assert_valid(&validator(&closed(schema)), &document, &format!("{name}: a field of what is written {told}"));
        assert_valid(&validator(schema), &grown(&document), &format!("{name}: a program has to tolerate a new field"));
    }
    let unused: Vec<_> = schemas.keys().filter(|name| !seen.contains_key(name.as_str())).collect();
    assert!(unused.is_empty(), "nothing was checked against {unused:?}");
}

#[test]
fn a_schema_is_one_and_refuses_what_it_should() {
    for (name, schema) in schemas() {
        jsonschema::meta::validate(&schema).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(schema["properties"]["schema_version"]["const"], 1, "{name}");
        assert!(schema["description"].is_string(), "{name}: of what?");
        assert!(!validator(&schema).is_valid(&json!({})), "{name} requires nothing");
        assert!(!validator(&schema).is_valid(&json!({ "schema_version": 2 })), "{name} takes another version");
    }
}

fn schemas() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let files = fs::read_dir(&folder).expect("there are schemas").map(|entry| entry.unwrap().path());
    let schema = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".schema.json")?.to_owned();
        let text = fs::read_to_string(&path).unwrap();
        Some((name, serde_json::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))))
    };
    files.filter_map(schema).collect()
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap_or_else(|why| panic!("{why}"))
}

#[track_caller]
fn assert_valid(validator: &Validator, document: &Value, name: &str) {
    let faults: Vec<String> =
        validator.iter_errors(document).map(|fault| format!("at {}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{name}:\n{}\nin {document:#}", faults.join("\n"));
}

/// Returns the schema as it would be if nothing could be added.
fn closed(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut closed: serde_json::Map<String, Value> =
                fields.iter().map(|(name, value)| (name.clone(), closed_inside(name, value))).collect();
            if fields.contains_key("properties") {
                closed.insert("additionalProperties".into(), Value::Bool(false));
            }
            Value::Object(closed)
        }
        other => other.clone(),
    }
}

fn closed_inside(keyword: &str, value: &Value) -> Value {
    match (keyword, value) {
        ("properties", Value::Object(fields)) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), closed(value))).collect())
        }
        ("anyOf", Value::Array(choices)) => Value::Array(choices.iter().map(closed).collect()),
        ("items", value) => closed(value),
        (_, value) => value.clone(),
    }
}

/// Returns the document as a later version might write it, with one more field in each object.
fn grown(document: &Value) -> Value {
    match document {
        Value::Object(fields) => {
            // Names that are data stay what they are.
            let inside = |name: &str, value: &Value| match name {
                "not_readable" => value.clone(),
                _ => grown(value),
            };
            let fields = fields.iter().map(|(name, value)| (name.clone(), inside(name, value)));
            Value::Object(fields.chain([("a_field_of_later".to_owned(), json!({ "new": true }))]).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(grown).collect()),
        other => other.clone(),
    }
}
