//! Attachments through outages and kills, against both kinds of server: a file whose PUT was answered with 204 is on the
//! server afterwards, byte for byte, after the trace that it belongs to; and the client sees no error.
//!
//! `OPIK_OFFLINE_ATTACHMENT_MB` sets the size of the large file, `OPIK_OFFLINE_KILLS` how often the agent is killed.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::agent::Agent;
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::{FakeOpik, FilesIn, Then, When};
use crate::support::http::{Client, Request, Response};
use crate::support::sdk::SdkApp;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{assert_error, trace};

const START: &str = "/v1/private/attachment/upload-start";
const COMPLETE: &str = "/v1/private/attachment/upload-complete";
const KEY: &str = "made-up-key-0123456789";

fn env(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Bytes that differ from place to place and from file to file.
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(count).collect()
}

fn start_body(agent_url: &str, entity: &str, name: &str, parts: usize) -> Value {
    json!({
        "file_name": name, "num_of_file_parts": parts, "mime_type": "application/pdf", "project_name": "demo",
        "entity_type": "trace", "entity_id": entity, "path": STANDARD.encode(format!("{agent_url}/")),
    })
}

/// Returns where the bytes go, below the client's base URL.
pub(crate) fn begin(client: &mut Client, agent: &Agent, entity: &str, name: &str, size: usize) -> String {
    let body = start_body(&agent.url(), entity, name, size.div_ceil(5 << 20).max(1));
    let answer = client.expect(&Request::new("POST", START).json(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["upload_id"], "BEMinIO");
    let url = answer.json()["pre_sign_urls"][0].as_str().unwrap().to_owned();
    url.strip_prefix(&agent.url()).unwrap_or_else(|| panic!("{url} does not lead through the agent")).to_owned()
}

pub(crate) fn put(client: &mut Client, path: &str, bytes: &[u8]) -> std::io::Result<Response> {
    client.send(&Request::new("PUT", path).bytes(bytes).chunked(60_000))
}

fn client(agent: &Agent) -> Client {
    Client::new(&agent.url()).with_header("Authorization", KEY)
}

/// Waits until these files are on the server as they were sent.
#[track_caller]
pub(crate) fn wait_for_files(server: &FakeOpik, sent: &BTreeMap<(String, String), String>) {
    let missing = || {
        let files = server.files();
        let is_missing = |((id, name), digest): &(&(String, String), &String)| {
            files.get(&("default".to_owned(), id.clone(), name.clone())).is_none_or(|file| file.sha256 != **digest)
        };
        sent.iter().filter(is_missing).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    wait_until("files reach the server", PATIENCE, || missing().is_empty());
    for (key, file) in server.files() {
        assert_eq!(file.mime_type.as_deref(), Some("application/pdf"), "{key:?}");
        assert_eq!(file.project.as_deref(), Some("demo"), "{key:?}");
        assert_eq!(file.authorization.as_deref(), Some(KEY), "{key:?}");
    }
    server.assert_no_violations();
}

#[test]
fn a_file_reaches_either_kind_of_server_online_and_after_an_outage() {
    for files_in in [FilesIn::Itself, FilesIn::ObjectStore] {
        let server = FakeOpik::start_new();
        server.keep_files_in(files_in);
        let agent = Agent::builder(&server.url()).impatient().start();
        let mut client = client(&agent);
        let mut sent = BTreeMap::new();
        for (seed, away) in [(1, false), (2, true)] {
            if away {
                agent.wait_until_delivered();
                server.stop();
            }
            for size in [0, 10, 5 << 20, (6 << 20) + 1] {
                let (entity, name) = (uuid7(), format!("report {size}.pdf"));
                let file = bytes(seed + size as u64, size);
                // The SDK sends a file before its trace as well.
                let path = begin(&mut client, &agent, &entity, &name, size);
                assert_eq!(client.post("/v1/private/traces", &trace(&entity, "t")).status, 201);
                let answer = put(&mut client, &path, &file).unwrap();
                assert_eq!(answer.status, 204, "{}", answer.text());
                let complete = json!({
                    "file_name": name, "entity_type": "trace", "entity_id": entity, "file_size": size,
                    "upload_id": "BEMinIO", "uploaded_file_parts": [],
                });
                assert_eq!(client.post(COMPLETE, &complete).status, 204);
                sent.insert((entity, name), sha256(&file));
            }
        }
        assert_eq!(agent.backlog(), 8, "four traces and four files wait");
        server.start();
        wait_for_files(&server, &sent);
        agent.wait_until_delivered();
        assert!(server.files().values().all(|file| file.after_entity), "a file overtook its trace");
    }
}

#[test]
fn a_file_announced_before_its_trace_or_span_is_sent_after_it() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = client(&agent);
    let mut sent = BTreeMap::new();
    for (kind, path) in [("trace", "/v1/private/traces"), ("span", "/v1/private/spans")] {
        let entity = uuid7();
        let mut body = start_body(&agent.url(), &entity, "early.pdf", 1);
        body["entity_type"] = kind.into();
        let answer = client.expect(&Request::new("POST", START).json(&body));
        let url = answer.json()["pre_sign_urls"][0].as_str().unwrap().to_owned();
        let file = bytes(7, 1000);
        assert_eq!(put(&mut client, url.strip_prefix(&agent.url()).unwrap(), &file).unwrap().status, 204);
        let mut create = trace(&entity, "t");
        if kind == "span" {
            create["trace_id"] = uuid7().into();
        }
        assert_eq!(client.post(path, &create).status, 201);
        sent.insert((entity, "early.pdf".to_owned()), sha256(&file));
    }
    server.start();
    wait_for_files(&server, &sent);
    assert!(
        server.files().values().all(|file| file.after_entity),
        "a file reached the server before what it belongs to"
    );
}

#[test]
fn the_python_sdks_attachments_survive_an_outage_and_a_killed_agent() {
    for files_in in [FilesIn::Itself, FilesIn::ObjectStore] {
        let server = FakeOpik::start_new();
        server.keep_files_in(files_in);
        let mut agent = Agent::builder(&server.url()).impatient().start();
        let mut app = SdkApp::start("attachments", &agent.url());
        app.run("attach 3");
        app.flush();
        app.wait_until_all_on(&server);
        agent.wait_until_delivered();
        server.stop();
        app.run("attach 3");
        app.flush();
        assert!(agent.backlog() >= 9, "nine files wait, and what they belong to");
        agent.kill9();
        agent.restart_on_same_port();
        server.start();
        app.wait_until_all_on(&server);
        agent.wait_until_delivered();
        app.quit();
        app.assert_all_on(&server);
        server.assert_no_violations();
    }
}

#[test]
fn a_server_that_dies_at_any_step_gets_the_file_later() {
    for (files_in, step) in [
        (FilesIn::Itself, START),
        (FilesIn::Itself, "/v1/private/attachment/upload"),
        (FilesIn::ObjectStore, START),
        (FilesIn::ObjectStore, "/object-store/upload-1/2"),
        (FilesIn::ObjectStore, COMPLETE),
    ] {
        for then in [Then::ProcessThenReset, Then::status(503)] {
            let server = FakeOpik::start_new();
            server.keep_files_in(files_in);
            let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("200ms").start();
            // Three times, so that not even the tries of one part are enough.
            let fault = server.script_times(3, When::path(step), then.clone());
            let entity = uuid7();
            let file = bytes(5, (6 << 20) + 7);
            let mut client = client(&agent);
            let path = begin(&mut client, &agent, &entity, "a.pdf", file.len());
            assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
            let sent = BTreeMap::from([((entity, "a.pdf".to_owned()), sha256(&file))]);
            wait_for_files(&server, &sent);
            assert!(fault.hits() > 0, "{step} was never reached");
            agent.wait_until_delivered();
        }
    }
}

#[test]
fn an_expired_signature_does_not_lose_a_file() {
    let server = FakeOpik::start_new();
    server.keep_files_in(FilesIn::ObjectStore);
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("200ms").start();
    let fault = server.script_times(2, When::path("/object-store/*"), Then::status(403));
    let entity = uuid7();
    let file = bytes(6, 1000);
    let mut client = client(&agent);
    let path = begin(&mut client, &agent, &entity, "a.pdf", file.len());
    assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
    wait_for_files(&server, &BTreeMap::from([((entity, "a.pdf".to_owned()), sha256(&file))]));
    assert_eq!(fault.hits(), 2);
    assert_eq!(server.requests_to("POST", START).len(), 3, "a new signature for each try");
    agent.wait_until_delivered();
}

#[test]
fn a_key_that_is_refused_and_a_file_that_is_refused() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("200ms").start();
    let refusing = server.script(When::path(START), Then::status(401));
    let mut client = client(&agent);
    let entity = uuid7();
    let path = begin(&mut client, &agent, &entity, "a.pdf", 9);
    assert_eq!(put(&mut client, &path, &bytes(1, 9)).unwrap().status, 204);
    wait_until("the server was asked", PATIENCE, || refusing.hits() > 1);
    assert_eq!(agent.backlog(), 1, "a file is dropped for a key");
    refusing.clear();
    wait_for_files(&server, &BTreeMap::from([((entity, "a.pdf".to_owned()), sha256(&bytes(1, 9)))]));
    agent.wait_until_delivered();
    // One that the server never takes is kept with its words, and with its bytes.
    server.script(When::path("/v1/private/attachment/upload"), Then::status(413));
    let path = begin(&mut client, &agent, &uuid7(), "b.pdf", 9);
    assert_eq!(put(&mut client, &path, &bytes(2, 9)).unwrap().status, 204);
    let shown = || agent.cli(&["inspect", "--rejected", "--format", "json"]).json();
    wait_until("it is rejected", PATIENCE, || shown()["selected"] == 1);
    let message = &shown()["messages"][0];
    assert_eq!(message["answer"]["status"], 413);
    assert_eq!(message["attachment"]["sha256"], sha256(&bytes(2, 9)));
}

#[test]
fn people_see_files_and_purge_gives_their_space_back() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = client(&agent);
    let entity = uuid7();
    let file = bytes(3, 3_000_000);
    let path = begin(&mut client, &agent, &entity, "Bericht für Ä.pdf", file.len());
    assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
    let list = agent.cli(&["inspect", "--trace", &entity, "--format", "json"]).json();
    let shown = &list["messages"][0];
    assert_eq!(shown["message_type"], "CreateAttachmentMessage");
    assert_eq!(
        shown["attachment"],
        json!({
            "name": "Bericht für Ä.pdf", "mime_type": "application/pdf", "bytes": 3_000_000, "sha256": sha256(&file),
            "entity_type": "trace", "entity_id": entity,
        })
    );
    let whole = agent.cli(&["inspect", &shown["id"].to_string()]).stdout;
    for text in ["Bericht für Ä.pdf", "application/pdf", "3,000,000", &sha256(&file), &entity] {
        assert!(whole.contains(text), "{text} is not shown in {whole}");
    }
    assert!(agent.cli(&["inspect"]).stdout.contains("CreateAttachment Bericht für Ä.pdf"));
    let status = agent.cli(&["status", "--format", "json"]).stdout;
    assert!(status.contains(&shown["body_bytes"].to_string()), "{status}");
    let before = std::fs::metadata(agent.db()).unwrap().len();
    assert_eq!(agent.cli(&["purge", "--yes"]).code(), Some(0));
    let after = std::fs::metadata(agent.db()).unwrap().len();
    assert!(before > after + 2_000_000 || before < 3_000_000, "{before} bytes before, {after} after");
    assert!(after < 1_000_000, "{after} bytes are left of an empty store");
}

#[test]
fn an_agent_killed_during_uploads_loses_no_file_and_keeps_no_half() {
    let server = FakeOpik::start_new();
    let mut sent = BTreeMap::new();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let kills = env("OPIK_OFFLINE_KILLS", 6);
    for round in 0..kills {
        server.keep_files_in(if round % 2 == 0 { FilesIn::Itself } else { FilesIn::ObjectStore });
        let file = bytes(round as u64, 2_000_000 + round * 1000);
        let mut client = client(&agent);
        // Somewhere in the middle, and at the end.
        let entity = uuid7();
        let path = begin(&mut client, &agent, &entity, "whole.pdf", file.len());
        assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
        sent.insert((entity, "whole.pdf".to_owned()), sha256(&file));
        let half = uuid7();
        let path = begin(&mut client, &agent, &half, "half.pdf", file.len());
        let request = Request::new("PUT", &path).bytes(file.clone());
        let part = file.len() * round / kills;
        let unfinished = client.send_part(&request, part).unwrap();
        agent.kill9();
        drop(unfinished);
        agent.restart_on_same_port();
    }
    wait_for_files(&server, &sent);
    agent.wait_until_delivered();
    assert!(!server.files().keys().any(|(_, _, name)| name == "half.pdf"), "half a file reached the server");
    // A client that hangs up leaves nothing either.
    let mut client = client(&agent);
    let path = begin(&mut client, &agent, &uuid7(), "half.pdf", 4_000_000);
    let request = Request::new("PUT", &path).bytes(bytes(1, 4_000_000));
    client.send_part(&request, 2_000_000).unwrap().hang_up();
    agent.terminate();
    let store = rusqlite::Connection::open(agent.db()).unwrap();
    for table in ["attachments", "attachment_pieces", "messages"] {
        let rows: i64 = store.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0, "{table} keeps bytes of nobody");
    }
}

#[test]
fn a_large_file_goes_through_in_constant_memory() {
    let size = env("OPIK_OFFLINE_ATTACHMENT_MB", 40) * 1_000_000;
    let file = bytes(9, size);
    for files_in in [FilesIn::Itself, FilesIn::ObjectStore] {
        let server = FakeOpik::new_stopped();
        server.keep_files_in(files_in);
        let agent = Agent::builder(&server.url()).impatient().start();
        let mut client = client(&agent);
        let entity = uuid7();
        let path = begin(&mut client, &agent, &entity, "large.pdf", size);
        let began = std::time::Instant::now();
        assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
        eprintln!("{size} bytes stored in {:?}, peak {} KiB", began.elapsed(), peak_kib(agent.pid()));
        server.start();
        let began = std::time::Instant::now();
        wait_for_files(&server, &BTreeMap::from([((entity, "large.pdf".to_owned()), sha256(&file))]));
        agent.wait_until_delivered();
        let peak = peak_kib(agent.pid());
        eprintln!("delivered in {:?}, peak {peak} KiB", began.elapsed());
        assert!(peak < 100 * 1024, "the agent needed {peak} KiB for a file of {size} bytes");
    }
}

/// The most memory that a process had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn invalid_uploads_are_refused_and_leave_nothing() {
    for away in [false, true] {
        let server = FakeOpik::start_new();
        let agent = Agent::builder(&server.url()).impatient().arg("--max-attachment-size").arg("1MiB").start();
        if away {
            server.stop();
        }
        let mut client = client(&agent);
        let entity = uuid7();
        for (name, value) in [
            ("file_name", Value::Null),
            ("entity_type", json!("thread")),
            ("entity_id", json!("no-uuid")),
            ("num_of_file_parts", Value::Null),
            ("path", json!("")),
        ] {
            let mut body = start_body(&agent.url(), &entity, "a.pdf", 1);
            body[name] = value;
            assert_error(&client.post(START, &body), 400);
        }
        assert_error(
            &client.expect(&Request::new("POST", START).bytes("{").header("Content-Type", "application/json")),
            400,
        );
        let good = begin(&mut client, &agent, &entity, "a.pdf", 10);
        let without = |name: &str| {
            let (path, query) = good.split_once('?').unwrap();
            let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with(name)).collect();
            format!("{path}?{}", kept.join("&"))
        };
        for path in [without("file_name"), without("entity_type"), without("entity_id"), format!("{good}&file_name=b")]
        {
            assert_error(&put(&mut client, &path, b"x").unwrap(), 400);
        }
        for size in [1_048_577, 3_000_000] {
            assert_error(&client.expect(&Request::new("PUT", &good).bytes(bytes(1, size))), 413);
            assert_error(&put(&mut client, &good, &bytes(1, size)).unwrap(), 413);
        }
        let complete = |size: u64, numbers: &[u64]| {
            let parts: Vec<Value> = numbers.iter().map(|n| json!({ "e_tag": "\"x\"", "part_number": n })).collect();
            json!({
                "file_name": "a.pdf", "entity_type": "trace", "entity_id": entity, "file_size": size,
                "upload_id": "BEMinIO", "uploaded_file_parts": parts,
            })
        };
        assert_error(&client.post(COMPLETE, &complete(10, &[1])), 400);
        assert_eq!(agent.backlog(), 0, "something of it was stored");
        server.stop();
        assert_eq!(put(&mut client, &good, &bytes(1, 10)).unwrap().status, 204);
        for (size, numbers) in [(11, &[1][..]), (10, &[1, 1]), (10, &[2])] {
            assert_error(&client.post(COMPLETE, &complete(size, numbers)), 400);
        }
        assert_eq!(client.post(COMPLETE, &complete(10, &[1])).status, 204);
        assert_eq!(agent.backlog(), 1);
    }
}

#[test]
fn without_a_store_the_agent_is_a_proxy_for_uploads_too() {
    let server = FakeOpik::start_new();
    let agent =
        Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", "/proc/no/store.db").start();
    let mut client = client(&agent);
    let (entity, file) = (uuid7(), bytes(4, 700_000));
    // The server believes `path`, so a client that names the server gets its URL; it is made to lead through the agent.
    let body = start_body(&server.url(), &entity, "a.pdf", 1);
    let answer = client.post(START, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let url = answer.json()["pre_sign_urls"][0].as_str().unwrap().to_owned();
    let path =
        url.strip_prefix(&agent.url()).unwrap_or_else(|| panic!("{url} does not lead through the agent")).to_owned();
    assert_eq!(put(&mut client, &path, &file).unwrap().status, 204);
    let stored = server.files().into_values().next().expect("the file is on the server");
    assert_eq!(stored.sha256, sha256(&file));
}
