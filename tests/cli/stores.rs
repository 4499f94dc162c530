//! Unusable stores: every command reports the reason, changes nothing and exits with 1.

use std::fs;
use std::path::Path;
use std::time::Duration;

use opik_offline::message::Bucket;
use opik_offline::store::{self, Filter, Hold, Owner};

use crate::sandbox::{Sandbox, assert_text, fill, open};
use crate::support::fake_opik::FakeOpik;

const COMMANDS: [&[&str]; 4] = [&["status"], &["inspect"], &["replay"], &["purge", "--yes"]];

#[track_caller]
fn assert_refused(damage: impl Fn(&Path), said: &str) {
    for command in COMMANDS {
        let sandbox = Sandbox::new();
        let db = sandbox.home.db();
        damage(&db);
        let before = fs::read(&db).ok();
        let found = sandbox.run(command);
        assert!(found.contains(said), "{command:?}: {said:?} is not in\n{found}");
        assert!(found.contains("\nhint: ") && found.ends_with("--- exit 1\n"), "{command:?}: {found}");
        assert!(!found.contains("delivered"), "{command:?} says more than it knows:\n{found}");
        assert!(fs::read(&db).ok() == before, "{command:?} changed the file");
    }
}

#[test]
fn a_directory_is_not_accepted_as_a_store() {
    assert_refused(
        |db| fs::create_dir(db).unwrap(),
        "error: HOME/opik_messages.db is not a message store: it is a directory",
    );
}

#[test]
fn a_text_file_is_not_accepted_as_a_store() {
    assert_refused(
        |db| fs::write(db, "dear diary").unwrap(),
        "error: HOME/opik_messages.db is not a message store: it is not an SQLite database",
    );
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    assert_refused(
        |db| {
            let connection = rusqlite::Connection::open(db).unwrap();
            fill(&db.with_extension("other"));
            drop(connection);
            fs::copy(db.with_extension("other"), db).unwrap();
            let connection = rusqlite::Connection::open(db).unwrap();
            connection.pragma_update(None, "user_version", 999).unwrap();
            connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
        },
        "has schema version 999, and this opik-offline knows versions up to",
    );
}

#[test]
fn a_truncated_store_is_damaged() {
    let sandbox = Sandbox::new();
    let db = sandbox.home.db();
    fill(&db);
    let file = fs::OpenOptions::new().write(true).open(&db).unwrap();
    file.set_len(5000).unwrap();
    for args in [&["status"][..], &["inspect"], &["purge", "--yes"], &["replay", "--dry-run"]] {
        let found = sandbox.run(args);
        assert!(found.contains("error: the message store HOME/opik_messages.db is damaged"), "{args:?}: {found}");
        assert!(found.ends_with("--- exit 1\n"), "{args:?}: {found}");
    }
    let found = sandbox.run(&["replay"]);
    assert!(found.contains("found no message in the damaged message store"), "{found}");
    assert!(found.contains("nothing to replay"), "{found}");
}

#[test]
fn a_path_through_a_file_leads_nowhere() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.home.path().join("file"), "").unwrap();
    let db = sandbox.home.path().join("file/store.db");
    let found = sandbox.run(&["inspect", "--db", &db.to_string_lossy()]);
    assert_text(
        &found,
        "
--- stderr
error: cannot use the message store HOME/file/store.db: not a directory
hint: give this user write access to the file and its directory, free disk space, or choose another file with --db
--- exit 1
",
    );
}

/// Makes a store as a process leaves it that saw a write or a sync fail: its log is there, and the flag.
fn left_unproven(db: &Path) -> std::path::PathBuf {
    let (other, flag) = (db.with_extension("other"), format!("{}-unproven", db.display()).into());
    fill(&other);
    let store = crate::sandbox::open(&other);
    let id = "0198c0de-0000-7000-8000-00000000abcd";
    store.register(&[crate::sandbox::create_trace(99, &crate::sandbox::team(), id)]).unwrap();
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        fs::copy(name(&other), name(db)).unwrap();
    }
    fs::write(&flag, "a sync failed\u{1b}[31m").unwrap();
    flag
}

#[test]
fn a_store_after_a_failed_sync_is_shown_and_not_written() {
    let sandbox = Sandbox::new();
    let db = sandbox.home.db();
    let flag = left_unproven(&db);
    let log = fs::read(format!("{}-wal", db.display())).unwrap();
    assert!(!log.is_empty());
    for args in [&["status"][..], &["inspect"], &["purge", "--dry-run"], &["replay", "--dry-run"]] {
        let found = sandbox.run(args);
        assert!(!found.contains("cannot use") && !found.contains("\u{1b}[31m"), "{args:?}: {found}");
        assert!(flag.exists(), "{args:?} claims that it is proven");
        assert!(fs::read(format!("{}-wal", db.display())).unwrap() == log, "{args:?} changed the log");
    }
    let found = sandbox.run(&["status"]);
    assert!(found.contains("so it is unproven: a sync failed"), "{found}");
    let found = sandbox.run(&["status", "--format", "json"]);
    assert!(found.contains("\"unproven_reason\": \"a sync failed"), "{found}");
}

#[test]
fn commands_that_write_prove_a_store_first_and_say_who_keeps_them_from_it() {
    for args in [&["replay"][..], &["purge", "--yes"], &["healthcheck"]] {
        let sandbox = Sandbox::new();
        let db = sandbox.home.db();
        let flag = left_unproven(&db);
        let in_use = rusqlite::Connection::open(&db).unwrap();
        in_use.query_row("SELECT count(*) FROM messages", [], |_| Ok(())).unwrap();
        let found = sandbox.run(args);
        assert!(found.contains("another process still has it open"), "{args:?}: {found}");
        assert!(flag.exists(), "{args:?} claims that it is proven");
        in_use.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        drop(in_use);
        sandbox.run(args);
        assert!(!flag.exists(), "{args:?} did not prove it");
    }
}

#[test]
fn a_store_that_is_named_and_not_there_is_an_error() {
    for command in [
        &["status"][..],
        &["status", "--format", "json"],
        &["inspect"],
        &["inspect", "37"],
        &["replay"],
        &["replay", "--dry-run"],
        &["purge", "--yes"],
        &["purge", "--dry-run"],
    ] {
        let sandbox = Sandbox::without_store();
        let db = sandbox.home.path().join("my store.db");
        assert_text(
            &sandbox.run(&[command, &["--db", &db.to_string_lossy()]].concat()),
            "
--- stderr
error: there is no message store at HOME/my store.db, named by flag --db
hint: check the path; an agent makes the file when it starts: `opik-offline agent --db 'HOME/my store.db'`
--- exit 2
",
        );
        assert!(!db.exists(), "{command:?} made it");
        let output = Sandbox::new().output(command);
        assert_eq!((output.code(), &*output.stdout), (Some(2), ""), "{command:?}: {}", output.stderr);
        assert!(output.stderr.contains(", named by environment OPIK_OFFLINE_DB\n"), "{command:?}: {}", output.stderr);
    }
}

#[test]
fn an_agent_does_not_start_where_no_store_can_be() {
    let sandbox = Sandbox::without_store();
    let (folder, file) = (sandbox.home.path().join("folder"), sandbox.home.path().join("file"));
    fs::create_dir(&folder).unwrap();
    fs::write(&file, "").unwrap();
    for (db, said) in [
        (folder.clone(), "it is a directory\nhint: name a file in it, with --db HOME/folder/opik_messages.db"),
        (file.join("store.db"), "HOME/file is not a directory\nhint: name a file with --db"),
    ] {
        for args in [&["agent"][..], &["agent", "--background"], &["agent", "--", "touch", "ran"]] {
            let db = db.to_string_lossy();
            let found = sandbox.run(&[&["--db", &*db], args].concat());
            assert!(found.contains(said) && found.ends_with("--- exit 2\n"), "{args:?}: {found}");
        }
    }
    assert!(!sandbox.home.path().join("ran").exists(), "the command ran without protection");
}

#[test]
fn an_agent_that_cannot_use_its_store_says_that_nothing_is_protected() {
    let sandbox = Sandbox::new().with_env("OPIK_OFFLINE_LISTEN", "127.0.0.1:0");
    fs::create_dir(sandbox.home.db()).unwrap();
    let found = sandbox.run(&["agent", "--", "true"]);
    assert!(found.contains(" ERROR db_manager: NOT PROTECTED: some network resiliency features"), "{found}");
    assert!(found.contains("\nopik-offline: NOT PROTECTED: nothing could be stored: "), "{found}");
    assert!(found.ends_with("--- exit 0\n"), "the command's own code: {found}");
}

#[test]
fn healthcheck_names_a_store_that_is_named_and_not_there() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::without_store().with_server(&server);
    let check = |path: &Path| sandbox.run(&["healthcheck", "-q", "--db", &path.to_string_lossy()]);
    let found = check(&sandbox.home.path().join("typo.db"));
    assert!(
        found.contains("!! store         HOME/typo.db: there is no message store, named by flag --db\n"),
        "{found}"
    );
    assert!(found.ends_with("--- exit 0\n"), "an agent makes it: {found}");
    let found = check(&sandbox.home.path().join("folder/typo.db"));
    let says = "!! store         HOME/folder/typo.db: there is no message store, nor a folder HOME/folder, named by flag --db\n";
    assert!(found.contains(says) && found.ends_with("--- exit 0\n"), "an agent makes the folder, too: {found}");
    let found = sandbox.run(&["healthcheck", "-q"]);
    assert!(found.contains("-- store ") && found.contains(": nothing was stored yet\n"), "nobody named it: {found}");
    assert!(!sandbox.home.path().join("typo.db").exists() && !sandbox.home.path().join("folder").exists());
}

#[test]
fn a_lane_without_messages_is_not_shown_as_held() {
    let sandbox = Sandbox::filled();
    let store = open(&sandbox.home.db());
    let lease = store.acquire(&Owner::this_process("replay"), Duration::from_secs(30)).unwrap();
    let hold = |bucket| Hold {
        until_ms: store::now_ms() + 3_600_000,
        reason: "the server limits the rate (429)".into(),
        probe: false,
        status: Some(429),
        bucket,
    };
    for lane in store.lanes(&Filter::default(), store::now_ms()).unwrap() {
        store.hold(&lease, lane.id, Some(&hold(None))).unwrap();
        store.hold(&lease, lane.id, Some(&hold(Some(Bucket::Events)))).unwrap();
    }
    store.release(&lease).unwrap();
    assert_eq!(store.condition().unwrap().held.len(), 4, "two lanes, and a bucket of each");
    assert!(sandbox.run(&["status"]).contains(" lanes are held"), "they hold what waits");
    store.purge(&Filter::default(), 1000).unwrap();
    assert_eq!(store.condition().unwrap().held, Vec::new());
    let status = sandbox.run(&["status"]);
    assert!(!status.contains("held"), "nothing waits there: {status}");
}
