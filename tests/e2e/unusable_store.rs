//! The store can't be used and holds nothing: the agent warns, works as a plain proxy, acknowledges nothing that could
//! be lost, and is whole again without a restart when the obstacle is gone. The backlog is never overtaken:
//! `overtaking`.

use std::fs;

use serde_json::Value;

#[cfg(target_os = "linux")]
use crate::full_disk::{Made, Small};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::not_run::not_run;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, assert_error, create, trace, update};

const WARNING: &str = "NOT PROTECTED: some network resiliency features were disabled";

fn ready(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/ready").json()
}

fn wait_until_usable(agent: &Agent, usable: bool) {
    wait_until("the agent notices how its store is", PATIENCE, || ready(agent)["store"]["usable"] == usable);
}

/// Asserts that the agent is a plain proxy and says so, and that it heals when `mend` was done.
fn assert_degrades_and_heals(server: &FakeOpik, agent: &Agent, mend: impl FnOnce()) {
    let before = server.count("default", Kind::Trace);
    assert!(agent.stderr().contains(WARNING), "nobody was warned");
    assert_eq!(ready(agent)["ready"], true);
    assert!(!ready(agent)["store"]["reason"].as_str().unwrap().is_empty());
    let metrics = Client::new(&agent.origin()).get("/metrics").text();
    assert!(metrics.contains("opik_offline_store_usable 0"), "{metrics}");
    let status = agent.cli(&["status"]);
    let shown = format!("{}{}", status.stdout, status.stderr);
    assert!(shown.contains("passes writes on") || shown.contains("error:"), "status hides it:\n{shown}");

    // Plain pass-through: the server's answers, its errors too, and a 503 when there is none.
    let mut client = Client::new(&agent.url());
    let id = uuid7();
    assert_eq!(client.expect(&create(&id)).status, 201);
    assert!(server.entity("default", Kind::Trace, &id).is_some(), "acknowledged, and nowhere");
    let fault = server.script(When::write(), Then::status(503));
    assert_error(&client.expect(&update(&id, 1)), 503);
    fault.clear();
    server.stop();
    let refused = client.expect(&update(&id, 1));
    assert_error(&refused, 503);
    assert!(refused.header("Retry-After").is_some());

    mend();
    wait_until_usable(agent, true);
    assert_eq!(client.expect(&update(&id, 2)).status, 204);
    assert_eq!(agent.backlog(), 1);
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["agent"]["running"], true, "{status}");
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), before + 1);
}

#[test]
fn a_directory_in_the_stores_place() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let db = home.db();
    fs::create_dir(&db).unwrap();
    let named = db.display().to_string();
    let agent =
        Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &named).home(home).start();
    assert_degrades_and_heals(&server, &agent, || fs::remove_dir(&db).unwrap());
}

#[test]
fn a_foreign_file_in_the_stores_place_is_left_alone() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let db = home.db();
    let letter = "not a database at all, but a letter to a friend\n".repeat(100);
    fs::write(&db, &letter).unwrap();
    let agent = Agent::builder(&server.url()).impatient().home(home).start();
    assert_degrades_and_heals(&server, &agent, || {
        assert_eq!(fs::read_to_string(&db).unwrap(), letter);
        fs::remove_file(&db).unwrap();
    });
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    assert!(agent.terminate().success());
    let mut newer = fs::read(agent.db()).unwrap();
    // `user_version` is at offset 60 of an SQLite file, big-endian.
    newer[60..64].copy_from_slice(&9_999_u32.to_be_bytes());
    fs::write(agent.db(), &newer).unwrap();
    agent.restart_on_same_port();
    assert!(agent.stderr().contains("9999"), "{}", agent.stderr());
    assert!(agent.stderr().contains(WARNING), "nobody was warned");
    // Nobody can see what waits in it, so nothing is proven to overtake nothing: no plain proxy.
    let mut client = Client::new(&agent.url());
    let id = uuid7();
    let refused = client.expect(&create(&id));
    assert_error(&refused, 503);
    assert!(refused.header("Retry-After").is_some());
    assert_eq!(server.count("default", Kind::Trace), 0);
    assert_eq!(fs::read(agent.db()).unwrap(), newer, "it was touched");
    fs::remove_file(agent.db()).unwrap();
    wait_until_usable(&agent, true);
    assert_eq!(client.expect(&create(&id)).status, 201);
    assert!(server.entity("default", Kind::Trace, &id).is_some());
}

#[test]
fn a_folder_that_cannot_be_made() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let folder = home.path().join("no-folder");
    fs::write(&folder, "a file where the folder should be").unwrap();
    let db = folder.join("opik_messages.db").display().to_string();
    let agent = Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db).home(home).start();
    wait_until_usable(&agent, false);
    assert!(agent.stderr().contains(WARNING));
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1);
    fs::remove_file(&folder).unwrap();
    wait_until_usable(&agent, true);
}

/// An obstacle for the store's files while an agent uses them.
fn away(agent: &Agent, how: &str) {
    let file = |suffix: &str| format!("{}{suffix}", agent.db().display());
    match how {
        "its files are deleted" => {
            ["", "-wal", "-shm"].iter().for_each(|suffix| fs::remove_file(file(suffix)).unwrap())
        }
        "the database alone is deleted" => fs::remove_file(file("")).unwrap(),
        "an empty file takes its place" => {
            fs::write(file(".new"), "").unwrap();
            fs::rename(file(".new"), file("")).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_that_is_deleted_under_the_agent_costs_nothing() {
    for how in ["its files are deleted", "the database alone is deleted", "an empty file takes its place"] {
        let server = FakeOpik::start_new();
        let agent = Agent::start(&server);
        server.stop();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        for _ in 0..10 {
            assert_eq!(app.send(create(&uuid7())).unwrap().status, 201);
        }
        away(&agent, how);
        // Everything acknowledged from now on is in a file that exists.
        let mut acknowledged = 0;
        wait_until("writes are stored again", PATIENCE, || {
            acknowledged += u64::from(app.send(create(&uuid7())).unwrap().status == 201);
            acknowledged == 5
        });
        assert!(agent.backlog() >= 15, "{how}: acknowledged messages are gone");
        assert!(agent.stderr().contains(WARNING), "{how}");
        let status = agent.cli(&["status", "--format", "json"]).json();
        assert_eq!(status["agent"]["running"], true, "{how}: the new file does not know the agent: {status}");
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
    }
}

#[test]
fn a_file_that_is_moved_under_the_agent_is_whole_where_it_is_now() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    server.stop();
    let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
    let mut client = Client::new(&agent.url());
    for id in &ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    // Its log stays behind: only the agent can still put the two together.
    let moved = agent.home().path().join("moved.db");
    fs::rename(agent.db(), &moved).unwrap();
    let later = uuid7();
    wait_until("writes are stored again", PATIENCE, || client.expect(&create(&later)).status == 201);
    assert!(agent.terminate().success());
    server.start();
    for db in [&moved, &agent.db()] {
        let replay = agent.home().cli(&["replay", "--db", &db.display().to_string(), "--upstream", &server.url()]);
        assert_eq!(replay.code(), Some(0), "{}{}", replay.stdout, replay.stderr);
    }
    for id in ids.iter().chain([&later]) {
        assert!(server.entity("default", Kind::Trace, id).is_some(), "{id} was acknowledged and is lost");
    }
}

#[cfg(target_os = "linux")]
#[test]
pub(crate) fn a_limit_on_the_size_of_files_is_survived_and_nothing_acknowledged_is_lost() {
    use rustix::process::{Pid, Resource, getrlimit, prlimit};
    let server = FakeOpik::start_new();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    server.stop();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    assert_eq!(app.send(large(&uuid7())).unwrap().status, 201);
    let pid = Pid::from_raw(agent.pid() as i32);
    let unlimited = getrlimit(Resource::Fsize);
    let mut limited = unlimited;
    limited.current = Some(fs::metadata(format!("{}-wal", agent.db().display())).unwrap().len() + 10_000);
    prlimit(pid, Resource::Fsize, limited).unwrap();
    let mut refused = 0;
    for _ in 0..20 {
        let answer = app.send(large(&uuid7())).unwrap();
        refused += usize::from(answer.status == 503);
    }
    assert!(refused > 0, "the limit is not met");
    assert!(agent.is_running(), "the system ended the agent: {}", agent.stderr());
    assert!(agent.stderr().contains(WARNING), "nobody was warned: {}", agent.stderr());
    prlimit(pid, Resource::Fsize, unlimited).unwrap();
    wait_until("writes are stored again", PATIENCE, || app.send(large(&uuid7())).unwrap().status == 201);
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

/// The disk is full when the server confirms a message, and a user moves the store away to make room. The messages of
/// the store that takes its place have the same numbers, and nothing else in common with those.
#[cfg(target_os = "linux")]
#[test]
fn a_confirmation_for_one_store_does_not_count_for_the_next() {
    use rustix::process::{Pid, Resource, getrlimit, prlimit};
    const STORED: usize = 5;
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..STORED {
        app.acknowledged(create(&uuid7()), 201);
    }
    let held = server.script(When::write(), Then::Hold);
    server.start();
    wait_until("the replay has a request open", PATIENCE, || held.hits() > 0);
    let pid = Pid::from_raw(agent.pid() as i32);
    let unlimited = getrlimit(Resource::Fsize);
    let mut limited = unlimited;
    limited.current = Some(fs::metadata(format!("{}-wal", agent.db().display())).unwrap().len());
    prlimit(pid, Resource::Fsize, limited).unwrap();
    held.clear();
    wait_until("the server has them", PATIENCE, || server.count("default", Kind::Trace) == STORED);
    wait_until("the store can't take note of it", PATIENCE, || agent.stderr().contains("cannot replay"));

    server.stop();
    let aside = agent.home().path().join("aside");
    fs::create_dir(&aside).unwrap();
    fs::rename(agent.db(), aside.join("opik_messages.db")).unwrap();
    for name in ["opik_messages.db-wal", "opik_messages.db-shm"] {
        // It exists only while a process has the store open.
        let _ = fs::rename(agent.home().path().join(name), aside.join(name));
    }
    prlimit(pid, Resource::Fsize, unlimited).unwrap();
    wait_until("a new store is there", PATIENCE, || agent.db().exists() && ready(&agent)["store"]["usable"] == true);
    for _ in 0..STORED {
        app.acknowledged(create(&uuid7()), 201);
    }
    assert_eq!(agent.backlog(), STORED as u64, "an acknowledged message is not stored");
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

/// Asserts that an agent whose folder may not be written passes writes on, and stores again once it may.
fn assert_survives_a_folder_that_may_not_be_written(home: Home, within: &[String], allow: impl FnOnce(&Home)) {
    let server = FakeOpik::start_new();
    let db = home.path().join("store/opik_messages.db").display().to_string();
    let builder = Agent::builder(&server.url()).impatient().without_db().env("OPIK_OFFLINE_DB", &db);
    let agent = builder.within(within).home(home).start();
    wait_until_usable(&agent, false);
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1);
    allow(agent.home());
    wait_until_usable(&agent, true);
    server.stop();
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    server.start();
    wait_until("what was stored is delivered", PATIENCE, || server.count("default", Kind::Trace) == 2);
}

#[test]
fn a_folder_that_may_not_be_written_is_survived_and_comes_back() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        return not_run("root may write into every folder");
    }
    let home = Home::new();
    let folder = home.path().join("store");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
    assert_survives_a_folder_that_may_not_be_written(home, &[], |_| {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    });
}

/// Not even root may write there.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_that_is_read_only_is_survived_and_comes_back() {
    let home = Home::new();
    fs::create_dir(home.path().join("store")).unwrap();
    let small = match Small::mount(&home, Made::Bound) {
        Ok(small) => small,
        Err(why) => return not_run(&why),
    };
    small.root(&home, "mount -o remount,bind,ro \"$0\"");
    assert_survives_a_folder_that_may_not_be_written(home, &small.enter(), |home| {
        small.root(home, "mount -o remount,bind,rw \"$0\"");
    });
}

#[test]
fn messages_older_than_max_age_are_dropped_and_counted() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-age").arg("1s").start();
    let mut client = Client::new(&agent.url());
    for _ in 0..3 {
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
    wait_until("expired messages are gone", PATIENCE, || agent.backlog() == 0);
    let metrics = Client::new(&agent.origin()).get("/metrics").text();
    assert!(metrics.contains("opik_offline_store_expired_messages 3\n"), "{metrics}");
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("3 messages because they were older than max_age"), "{status}");
    let health = agent.cli(&["healthcheck"]).stdout;
    assert!(health.contains("3 messages were dropped because they were older than max_age"), "{health}");
    assert!(agent.stderr().contains("max_age"), "{}", agent.stderr());
}

#[test]
fn a_file_that_is_damaged_under_the_agent_is_noticed() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    assert!(agent.terminate().success());
    // Whole pages of nonsense behind a good header: it opens, and can't be read.
    let mut damaged = fs::read(agent.db()).unwrap();
    damaged[4096..].fill(0xa5);
    fs::write(agent.db(), &damaged).unwrap();
    agent.restart_on_same_port();
    // Reads and writes both meet it; neither may take the server away from the application.
    let mut client = Client::new(&agent.url());
    for _ in 0..3 {
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
    assert_eq!(server.count("default", Kind::Trace), 3, "acknowledged, and not on the server");
    assert!(agent.stderr().contains("damaged"), "{}", agent.stderr());
    assert!(agent.is_running());
    wait_until_usable(&agent, true);
}

/// A body that does not get much smaller and shares no page with others.
fn large(id: &str) -> Request {
    let mut body = trace(id, "large");
    body["input"] = noise(90_000).into();
    Request::new("POST", "/v1/private/traces").json(&body)
}

#[test]
fn a_full_store_refuses_what_it_cannot_keep() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-size").arg("1MiB").start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let mut refused = None;
    for _ in 0..40 {
        let answer = app.send(large(&uuid7())).unwrap();
        if answer.status != 201 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("more than a MiB was stored");
    assert_error(&refused, 503);
    assert!(refused.header("Retry-After").is_some());
    assert!(refused.json()["message"].as_str().unwrap().contains("full"), "{}", refused.text());
    assert!(agent.backlog() > 2);
    assert_eq!(ready(&agent)["store"]["usable"], true, "a full store still delivers");
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    // There is room again.
    server.stop();
    assert_eq!(app.send(large(&uuid7())).unwrap().status, 201);
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

#[test]
fn a_full_store_evicts_the_oldest_if_configured_and_counts_them() {
    let server = FakeOpik::new_stopped();
    let args = ["--max-size", "1MiB", "--when-full", "drop_oldest"];
    let agent = args.iter().fold(Agent::builder(&server.url()).impatient(), |agent, arg| agent.arg(arg)).start();
    let mut client = Client::new(&agent.url());
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    for id in &ids {
        assert_eq!(client.expect(&large(id)).status, 201);
    }
    let kept = agent.backlog();
    assert!(kept < 30);
    let metrics = Client::new(&agent.origin()).get("/metrics").text();
    assert!(metrics.contains(&format!("opik_offline_store_dropped_messages {}\n", 30 - kept)), "{metrics}");
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("dropped"), "{status}");
    let health = agent.cli(&["healthcheck"]).stdout;
    assert!(health.contains("were dropped because the store was full"), "{health}");
    server.start();
    agent.wait_until_delivered();
    let arrived: Vec<bool> = ids.iter().map(|id| server.entity("default", Kind::Trace, id).is_some()).collect();
    assert!(arrived.is_sorted() && arrived[29], "not the oldest were dropped: {arrived:?}");
}

#[test]
fn a_disk_that_is_nearly_full_is_left_alone() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().arg("--free-disk-reserve").arg("4096TiB").start();
    let mut client = Client::new(&agent.url());
    // The server is there, so nothing has to be kept.
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    // A write that can't be kept gets the server's own answer.
    let fault = server.script(When::write(), Then::status(500));
    let answer = client.expect(&create(&uuid7()));
    assert_error(&answer, 500);
    assert_eq!(answer.json()["message"], "scripted by the test");
    fault.clear();
    server.stop();
    let answer = client.expect(&create(&uuid7()));
    assert_error(&answer, 503);
    assert!(answer.text().contains("reserved"), "{}", answer.text());
    assert_eq!(agent.backlog(), 0);
}
