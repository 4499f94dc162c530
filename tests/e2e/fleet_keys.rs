//! Keys of applications and a depot: sealed, or only named, they lie readable nowhere; a replayer reads them from a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::bundle::BundleReader;
use opik_offline::fleet::fleet_file::FleetFile;
use opik_offline::fleet::record::fingerprint;
use opik_offline::message::Credential;
use opik_offline::sealing::{open, read_identities};

use crate::fleet_streams::TestFleet;
use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Received, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, tempdir, uuid7, wait_until};
use crate::writes::{Told, create, score, trace, update};

const KEY: &str = "canary-key-5d1f0c77";
const TOKEN: &str = "canary-token-of-a-gateway-81aa";
const TEXT: &str = "canary text of a prompt 90210";
const CANARIES: [&str; 3] = [KEY, TOKEN, TEXT];

fn agent(fleet: &TestFleet, server: &FakeOpik, credentials: &str) -> AgentBuilder {
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let agent = agent.arg("--acknowledge").arg("fleet").env("OPIK_OFFLINE_FLEET_CREDENTIALS", credentials);
    agent.env("OPIK_OFFLINE_FLEET_INTERVAL_MAX", "1s").env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG")
}

fn signed(request: Request, key: &str) -> Request {
    request.header("Authorization", key).header("Comet-Workspace", "research").header("X-Gateway-Token", TOKEN)
}

/// A folder of keys with these files.
fn keys(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempdir();
    files.iter().for_each(|(name, key)| put_key(folder.path(), name, key));
    folder
}

fn put_key(folder: &Path, name: &str, key: &str) {
    let path = folder.join(name);
    // As a volume does it: a file is there whole, or not at all.
    let hidden = folder.join(".new");
    fs::write(&hidden, format!("{key}\n")).unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&hidden, path).unwrap();
}

fn replay_with(fleet: &TestFleet, server: &FakeOpik, keys: Option<&Path>, args: &[&str]) -> Output {
    let home = Home::new();
    let mut command = fleet.replayer(&home, &server.url());
    command.env("OPIK_CONSOLE_LOGGING_LEVEL", "DEBUG");
    if let Some(keys) = keys {
        command.arg("--credentials-dir").arg(keys);
    }
    run(command.args(args))
}

fn writes(server: &FakeOpik) -> Vec<Received> {
    server.requests().into_iter().filter(|request| request.method != "GET").collect()
}

fn header<'a>(request: &'a Received, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

#[track_caller]
fn assert_has_none(bytes: &[u8], canaries: &[&str], what: &str) {
    for canary in canaries {
        let is_in = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
        assert!(!is_in, "{canary} lies readable in {what}");
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { files(&entry, found) } else { found.push(entry) }
    }
}

/// Checks the bytes and the names of all objects as they lie in the depot.
#[track_caller]
fn assert_nothing_is_readable(fleet: &TestFleet) {
    let mut found = Vec::new();
    files(&fleet.root(), &mut found);
    for file in found {
        assert_has_none(&fs::read(&file).unwrap(), &CANARIES, &file.display().to_string());
        assert_has_none(file.display().to_string().as_bytes(), &CANARIES, "a name");
    }
}

/// Returns the sealed objects of a folder, opened and inflated as far as they are bundles.
fn opened(fleet: &TestFleet, under: &str) -> Vec<String> {
    let identities = read_identities(&fleet.identity).unwrap();
    let mut found = Vec::new();
    for name in fleet.names(under) {
        let Some((sealed, _)) = fleet.depot.get(&Name::new(&name).unwrap()).unwrap() else { continue };
        let plain = open(&identities, &sealed).expect("it is sealed for us");
        for record in BundleReader::open(&plain).expect("a bundle") {
            let record = record.expect("it is whole");
            let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let key = record.message.lane.credential.as_ref().map(|key| shown(key.reveal()));
            let body = shown(&record.message.request.body.bytes);
            found.push(format!("{key:?} {} {body}", shown(&record.message.request.headers.to_wire())));
        }
    }
    found
}

fn name_of_key(fleet: &TestFleet, key: &str) -> String {
    let (bytes, _) = fleet.depot.get(&Name::new("v1/fleet.json").unwrap()).unwrap().expect("it is there");
    fingerprint(FleetFile::decode(&bytes).unwrap().fleet, &Credential::new(key)).to_string()
}

/// Both modes: nothing readable in objects, names, logs, metrics and reports. By reference, the keys are not even inside
/// the sealed objects, and come back from the folder, also after kills of agent and replayer.
#[test]
fn keys_lie_readable_nowhere_and_by_reference_they_are_nowhere_in_the_depot() {
    for mode in ["sealed", "reference"] {
        let (fleet, server, ledger) = (TestFleet::new(), FakeOpik::new_stopped(), ClientLedger::new());
        let mut agent = agent(&fleet, &server, mode).start();
        {
            let mut app = Told::new(&agent.url(), &ledger);
            for number in 0..12 {
                let id = uuid7();
                let request = Request::new("POST", "/v1/private/traces").json(&trace(&id, &format!("{TEXT} {number}")));
                app.acknowledged(signed(request, KEY), 201);
                app.acknowledged(signed(update(&id, number), KEY), 204);
            }
            app.acknowledged(signed(score(&uuid7(), 0.5), KEY), 204);
        }
        let metrics = Client::new(&agent.origin()).get("/metrics").text();
        agent.kill9();
        fleet.close_all();
        assert_nothing_is_readable(&fleet);
        assert_has_none(agent.stderr().as_bytes(), &CANARIES, "the agent's log");
        assert_has_none(metrics.as_bytes(), &CANARIES, "the metrics");
        let copies = opened(&fleet, "v1/bundles").join("\n");
        assert!(copies.contains(TEXT), "{mode}: nothing was shipped, so nothing was tested");
        assert_eq!(copies.contains(KEY) && copies.contains(TOKEN), mode == "sealed", "{mode}: {copies}");

        server.start();
        let refused = server.script(When::write().method("PUT"), Then::status(400));
        let folder = keys(&[("team", KEY), ("gateway", TOKEN)]);
        if mode == "reference" {
            let without = replay_with(&fleet, &server, None, &[]);
            let said = format!("{}{}", without.stdout, without.stderr);
            assert_eq!(without.code(), Some(4), "{said}");
            let short = &name_of_key(&fleet, KEY)[..12];
            let line = format!("workspace research, key {short}: 25 messages wait for its key");
            assert!(said.contains("no key") && said.contains(&line), "{said}");
            assert!(writes(&server).is_empty(), "messages were sent without their key");
            let status = Home::new().cli(&["status", "--fleet", &fleet.url()]);
            assert!(status.stdout.contains(&line), "{}", status.stdout);
            assert_has_none(said.as_bytes(), &CANARIES, "the replayer's log");
        }
        let home = Home::new();
        let mut command = fleet.replayer(&home, &server.url());
        command.args(["--follow", "--batch-size", "3", "--delay", "20ms", "--credentials-dir"]).arg(folder.path());
        let mut replayer = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the replayer never delivers", PATIENCE, || writes(&server).len() > 4);
        replayer.kill().unwrap();
        replayer.wait().unwrap();
        assert_nothing_is_readable(&fleet);
        let report = replay_with(&fleet, &server, Some(folder.path()), &[]);
        assert_has_none(format!("{}{}", report.stdout, report.stderr).as_bytes(), &CANARIES, "the replayer's log");
        assert_eq!(fleet.left(), Vec::<String>::new(), "{mode}: {}{}", report.stdout, report.stderr);
        assert!(refused.hits() > 0);
        for request in writes(&server) {
            assert_eq!(header(&request, "authorization"), Some(KEY), "{mode}: {} {}", request.method, request.path);
            assert_eq!(header(&request, "x-gateway-token"), Some(TOKEN), "{mode}: {}", request.path);
        }
        server.assert_order(&ledger);
        // What the server rejected stays, and does not hold the keys either.
        let rejected = opened(&fleet, "v1/rejected").join("\n");
        assert!(rejected.contains("quality"), "{mode}: the rejected message is gone");
        assert_eq!(rejected.contains(KEY) || rejected.contains(TOKEN), mode == "sealed", "{mode}: {rejected}");
        assert_nothing_is_readable(&fleet);
    }
}

/// Two keys of one workspace write about one trace, and one of them is not here.
#[test]
fn a_write_behind_one_without_its_key_waits_with_it() {
    let (fleet, server, ledger) = (TestFleet::new(), FakeOpik::new_stopped(), ClientLedger::new());
    let mut agent = agent(&fleet, &server, "reference").start();
    let (shared, other) = (uuid7(), uuid7());
    {
        let mut app = Told::new(&agent.url(), &ledger);
        let with = |request: Request, key: &str| request.header("Authorization", key).header("Comet-Workspace", "w");
        app.acknowledged(with(create(&shared), "first-key-0001"), 201);
        app.acknowledged(with(update(&shared, 1), "second-key-0002"), 204);
        app.acknowledged(with(create(&other), "second-key-0002"), 201);
    }
    agent.kill9();
    fleet.close_all();
    server.start();
    let folder = keys(&[("second", "second-key-0002")]);
    let half = replay_with(&fleet, &server, Some(folder.path()), &["--format", "json"]);
    let report = half.json();
    assert_eq!(half.code(), Some(4), "{report}");
    assert_eq!((report["delivered"].as_u64(), report["behind"].as_u64()), (Some(1), Some(1)), "{report}");
    assert_eq!(report["missing_keys"][0]["key"], name_of_key(&fleet, "first-key-0001").as_str(), "{report}");
    assert!(server.sequence_for(&shared).is_empty(), "a newer write was sent before an older one");
    assert_eq!(server.sequence_for(&other).len(), 1, "another trace waits");
    put_key(folder.path(), "first", "first-key-0001");
    let rest = replay_with(&fleet, &server, Some(folder.path()), &["--format", "json"]);
    assert_eq!((rest.code(), rest.json()["delivered"].as_u64()), (Some(0), Some(2)), "{}", rest.stdout);
    // Two keys are two lanes: once both are here, each keeps its own order.
    assert_eq!(server.sequence_for(&shared).len(), 2, "a message is lost, or sent twice");
    assert_eq!(server.sequence_for(&other).len(), 1, "what was delivered is sent again");
    assert_eq!(fleet.left(), Vec::<String>::new());
}

#[test]
fn a_key_that_is_mounted_later_replaces_the_one_that_messages_name() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let mut agent = agent(&fleet, &server, "reference").start();
    let mut client = Client::new(&agent.url());
    for _ in 0..5 {
        let request = create(&uuid7()).header("Authorization", KEY).header("Comet-Workspace", "research");
        assert_eq!(client.send(&request).unwrap().status, 201);
    }
    agent.kill9();
    fleet.close_all();
    server.start();
    let folder = keys(&[("team", "another-key-that-nobody-names")]);
    let unreadable = folder.path().join("open");
    fs::write(&unreadable, "key-that-others-can-read").unwrap();
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o644)).unwrap();
    let home = Home::new();
    let mut command = fleet.replayer(&home, &server.url());
    command.arg("--follow").arg("--credentials-dir").arg(folder.path());
    let mut replayer = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = || Home::new().cli(&["status", "--fleet", &fleet.url(), "--format", "json"]).json();
    wait_until("nobody sees which key is missing", PATIENCE, || {
        status()["missing_keys"][0]["key"] == name_of_key(&fleet, KEY).as_str()
    });
    assert!(writes(&server).is_empty(), "messages were sent with a key that they do not name");
    put_key(folder.path(), &name_of_key(&fleet, KEY), "rotated-key-5d1f");
    wait_until("a new key frees nothing", PATIENCE, || fleet.left().is_empty());
    replayer.kill().unwrap();
    let said = String::from_utf8_lossy(&replayer.wait_with_output().unwrap().stderr).into_owned();
    assert!(said.contains("open") && said.contains("0644"), "an unusable file is not named: {said}");
    assert_eq!(server.count("research", Kind::Trace), 5, "a message is lost");
    assert!(writes(&server).iter().all(|request| header(request, "authorization") == Some("rotated-key-5d1f")));
}

#[test]
fn nothing_is_shipped_by_reference_before_the_fleet_has_an_id() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let name = Name::new("v1/fleet.json").unwrap();
    fleet.depot.delete(std::slice::from_ref(&name)).unwrap();
    let recipient = read_identities(&fleet.identity).unwrap()[0].recipient().to_string();
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    let agent = agent.arg("--fleet-recipients").arg(&recipient).env("OPIK_OFFLINE_FLEET_DELAY", "0s");
    let agent = agent.env("OPIK_OFFLINE_FLEET_CREDENTIALS", "reference").start();
    assert_eq!(Client::new(&agent.url()).send(&signed(create(&uuid7()), KEY)).unwrap().status, 201);
    let problem = || Client::new(&agent.origin()).get("/-/status.json").json()["fleet"]["problem"].clone();
    wait_until("nobody sees what is missing", PATIENCE, || {
        problem().as_str().is_some_and(|problem| problem.contains("fleet.json") && problem.contains("--make-identity"))
    });
    assert_eq!(fleet.names("v1/bundles"), Vec::<String>::new(), "it was shipped in another way");
    let folder = keys(&[]);
    let early = replay_with(&fleet, &server, Some(folder.path()), &[]);
    assert!(early.code() == Some(2) && early.stderr.contains("fleet.json"), "{}", early.stderr);
    // The command that the message names.
    let home = Home::new();
    let (file, url) = (home.path().join("identity").display().to_string(), fleet.url());
    let made = home.cli(&["replay", "--make-identity", &file, "--fleet", &url]);
    assert!(made.status.success() && made.stdout.starts_with("age1"), "{}{}", made.stdout, made.stderr);
    wait_until("it is never shipped", PATIENCE, || !fleet.names("v1/bundles").is_empty());
    let (before, _) = fleet.depot.get(&name).unwrap().expect("it was made");
    assert!(String::from_utf8_lossy(&before).contains(made.stdout.trim()), "agents would not seal for this key");
    let second = home.path().join("second").display().to_string();
    let again = home.cli(&["replay", "--make-identity", &second, "--fleet", &url]);
    assert!(again.code() == Some(1) && !Path::new(&second).exists(), "{}", again.stderr);
    assert_eq!(fleet.depot.get(&name).unwrap().expect("it stays").0, before, "a fleet has another id");
}
