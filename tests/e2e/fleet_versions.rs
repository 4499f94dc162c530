//! Depots that other versions wrote: those of earlier ones are delivered, and what a later one wrote is left and named.
//!
//! `tests/fixtures/fleet/depot-1` is a depot as an agent of format 1 left it when it was killed.
//! `OPIK_OFFLINE_FLEET_FIXTURE=FOLDER cargo test --test e2e -- a_depot_of_an_earlier_version` writes another one, by the
//! version under test, before it delivers that.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opik_offline::fleet::bundle::BundleBuilder;
use opik_offline::fleet::head::HeadState;
use opik_offline::fleet::names::{ObjectName, StreamId};
use serde_json::json;

use crate::fleet_streams::{Outage, TestFleet, synthetic};
use crate::support::agent::{Agent, Home, program};
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::networks::ForwardProxy;
use crate::support::process::run;
use crate::support::{PATIENCE, tempdir, wait_until};
use crate::writes::{create, score, span, update};

/// The address under which the fixture's agent knew its server.
const UPSTREAM: &str = "http://opik.test/api";
const TRACES: [&str; 2] = ["01a20440-760d-73a3-a0fd-1799bd005801", "01a20440-760d-73a3-a0fd-1799bd005802"];
const SPANS: [&str; 2] = ["01a20440-760d-73a3-a0fd-1799bd005803", "01a20440-760d-73a3-a0fd-1799bd005804"];
/// What its agent had shipped and not delivered.
const LEFT: usize = 5;

fn file() -> Vec<u8> {
    (0..3000_u32).map(|at| (at % 251) as u8).collect()
}

/// Lets an agent be killed while it delivers; what is in the depot then is the fixture.
fn write_fixture(folder: &Path) {
    let fleet = TestFleet::new();
    let server = FakeOpik::start_new();
    let proxy = ForwardProxy::start(server.port(), None);
    proxy.set_away(true);
    let agent = Agent::builder(UPSTREAM).impatient().arg("--fleet").arg(&fleet.url()).arg("--batch-size").arg("1");
    let agent = agent.env("_OPIK_HTTP_PROXY", &format!("http://127.0.0.1:{}", proxy.port()));
    let mut agent = agent.env("OPIK_OFFLINE_FLEET_DELAY", "0s").start();
    let mut client = Client::new(&agent.url()).with_header("Authorization", "key-of-the-fixture");
    for (trace, span_id) in TRACES.iter().zip(SPANS) {
        client.expect(&create(trace));
        client.expect(&span(span_id, trace));
    }
    let start = json!({
        "file_name": "report.pdf", "num_of_file_parts": 1, "mime_type": "application/pdf", "project_name": "demo",
        "entity_type": "trace", "entity_id": TRACES[0], "path": STANDARD.encode(format!("{}/", agent.url())),
    });
    for trace in TRACES {
        client.expect(&score(trace, 0.5));
        client.expect(&update(trace, 1));
    }
    let answer = client.expect(&Request::new("POST", "/v1/private/attachment/upload-start").json(&start));
    let url = answer.json()["pre_sign_urls"][0].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&agent.url()).expect("it leads through the agent").to_owned();
    assert_eq!(client.send(&Request::new("PUT", &path).bytes(file())).unwrap().status, 204);
    wait_until("it is shipped", PATIENCE, || fleet.shipped() == 9);
    let hang = server.script(When::write().method("PUT"), Then::Hang);
    let hang_upload = server.script(When::path("/v1/private/attachment/upload-start"), Then::Hang);
    proxy.set_away(false);
    let name = fleet.names("v1/heads").remove(0);
    let Some(ObjectName::Head(stream)) = ObjectName::parse(&name) else { panic!("{name}") };
    wait_until("creates are delivered and marked", PATIENCE, || fleet.marked(stream) == 4);
    agent.kill9();
    hang.clear();
    hang_upload.clear();
    std::fs::create_dir_all(folder).unwrap();
    copy_folder(&fleet.root(), &folder.join("depot"));
    std::fs::copy(&fleet.identity, folder.join("identity")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_depot_of_an_earlier_version_is_delivered() {
    let kept = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fleet/depot-1"));
    let folder = std::env::var_os("OPIK_OFFLINE_FLEET_FIXTURE").map(PathBuf::from);
    if let Some(folder) = &folder {
        write_fixture(folder);
    }
    let (kept, copied) = (folder.unwrap_or(kept), tempdir());
    copy_folder(&kept, copied.path());
    // A file that others may read is not taken as a key.
    let identity = copied.path().join("identity");
    std::fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let server = FakeOpik::start_new();
    let proxy = ForwardProxy::start(server.port(), None);
    let home = Home::new();
    let mut command = home.command(program());
    command
        .args(["replay", "--upstream", UPSTREAM, "--fleet"])
        .arg(format!("file://{}/depot", copied.path().display()));
    command.arg("--identity").arg(&identity).args(["--format", "json", "--fail-if-backlog"]);
    command.env("OPIK_OFFLINE_DB", home.db()).env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", "3s");
    command.env("_OPIK_HTTP_PROXY", format!("http://127.0.0.1:{}", proxy.port()));
    let output = run(&mut command);
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    let report = output.json();
    assert_eq!((&report["delivered"], &report["streams"]["finished"]), (&LEFT.into(), &1.into()), "{report}");
    assert!(server.requests_to("POST", "/v1/private/traces").is_empty(), "a marked message was sent again");
    for trace in TRACES {
        let entity = server.entity("default", Kind::Trace, trace).expect("its update is lost");
        assert!(entity.scores.contains_key("quality"), "{trace}: its score is lost");
    }
    let files = server.files();
    assert_eq!(files.values().next().map(|file| file.sha256.clone()), Some(sha256(&file())), "the file is lost");
    let writes = server.requests().into_iter().filter(|request| !request.writes.is_empty());
    let keys: Vec<_> = writes.map(|request| request.header("Authorization").map(str::to_owned)).collect();
    assert!(keys.iter().all(|key| key.as_deref() == Some("key-of-the-fixture")), "{keys:?}");
}

/// Returns a bundle as a version with a later format begins it.
fn of_the_future(mut plain: Vec<u8>) -> Vec<u8> {
    // Magic, format, program, checksum.
    const START: usize = 8 + 2 + 32;
    plain[8..10].copy_from_slice(&9_u16.to_le_bytes());
    plain[10..42].fill(0);
    plain[10..15].copy_from_slice(b"9.1.0");
    let mut checksum = flate2::Crc::new();
    checksum.update(&plain[..START]);
    plain[START..START + 4].copy_from_slice(&checksum.sum().to_le_bytes());
    plain
}

#[test]
fn objects_of_a_later_version_are_left_counted_and_named() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 1, 2);
    let fleet = TestFleet::new();
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let mut builder = BundleBuilder::new();
    builder.push(&synthetic(900, &server.url())).unwrap();
    let bundle = builder.finish().expect("it has a record");
    let later = ObjectName::Bundle(stream, bundle.manifest.name(50));
    fleet.put_sealed(&later, &of_the_future(bundle.bytes));
    let unknown = StreamId::new(uuid::Uuid::now_v7());
    fleet.put(&ObjectName::Head(unknown), br#"{"format":9,"state":"suspended","owner":{"version":"9.1.0"}}"#);
    let before = fleet.left();
    server.start();
    let report = fleet.replayed(&server, &[]);
    assert_eq!(report["delivered"], outage.messages(), "the rest of the stream waits for a later version: {report}");
    let unreadable = &report["unreadable"];
    assert!(unreadable["messages"].as_u64() >= Some(1), "{report}");
    let reasons: Vec<(String, String)> = unreadable["objects"].as_array().unwrap().iter().map(named).collect();
    for object in [later.to_string(), ObjectName::Head(unknown).to_string()] {
        let reason = reasons.iter().find(|(name, _)| *name == object);
        assert!(reason.is_some_and(|(_, reason)| reason.contains("9.1.0")), "{object} is not named: {reasons:?}");
    }
    let left = fleet.left();
    let is_kept =
        |name: &String| left.contains(name) || !name.starts_with("v1/bundles") && !name.starts_with("v1/heads");
    assert!(before.iter().all(is_kept), "an object that was not read is gone: {before:?}, {left:?}");
}

fn named(object: &serde_json::Value) -> (String, String) {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    (text("object"), text("reason"))
}
