//! Open stores: a process that opens its own store again keeps the locks that keep others out of it, and closes an
//! unproven store.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opik_offline::message::{Effect, Server};
use opik_offline::store::committer::Committer;
use opik_offline::store::slot::StoreSlot;
use opik_offline::store::sqlite::SqliteStore;
use opik_offline::store::{BacklogSeen, Browse, Filter, Limits, OpenMode, Store, StoreError, WhenFull};

use crate::messages::{about_trace, lane};

const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };

fn store_one(store: &dyn Store, number: i64) -> Result<(), StoreError> {
    store.register(&[about_trace(&lane("team"), &format!("trace-{number}"), Effect::Create, number)]).map(drop)
}

/// Returns how many messages are in the files as a kill would leave them now.
fn left_by_a_kill(path: &Path) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("killed.db");
    for suffix in ["", "-wal"] {
        let of = |path: &Path| format!("{}{suffix}", path.display());
        if Path::new(&of(path)).exists() {
            // By another process: this one would drop its locks when it closes the file.
            let copied = Command::new("cp").args([of(path), of(&copy)]).status().expect("it runs");
            assert!(copied.success());
        }
    }
    let store = SqliteStore::open(&copy, OpenMode::CreateIfMissing, LIMITS).expect("it can be opened");
    store.backlog(&Filter::default()).expect("it can be read").messages()
}

#[test]
fn a_store_that_was_opened_again_is_not_taken_from_its_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let slot = StoreSlot::at(&path, LIMITS);
    for number in 0..20 {
        slot.with(|store| store_one(store, number)).expect("it is open");
    }
    let failed = slot.get().expect("it is open");
    let error = StoreError::Unusable { at: path.as_path().into(), reason: "disk I/O error".into() };
    slot.report(&failed, &Arc::new(error));
    drop(failed);
    slot.retry().expect("it can be opened again");
    slot.with(|store| store_one(store, 20)).expect("it is open");
    assert_eq!(left_by_a_kill(&path), 21);

    let replay = Command::new(env!("CARGO_BIN_EXE_opik-offline"))
        .args(["replay", "--upstream", "http://127.0.0.1:1/api", "--db"])
        .arg(&path)
        .env("HOME", folder.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&replay.stderr).into_owned();
    let acknowledged = (21..30).filter(|number| slot.with(|store| store_one(store, *number)).is_ok()).count() as u64;
    assert_eq!(left_by_a_kill(&path), 21 + acknowledged, "{acknowledged} were acknowledged after that: {said}");
    assert_eq!(acknowledged, 9, "{said}");
    assert_eq!(replay.status.code(), Some(0), "it can be opened, and nothing in it is for that server: {said}");
}

/// Marks the store as unproven, as another process does after a failed write or sync.
fn mark_unproven(path: &Path) {
    let mut flag = path.as_os_str().to_owned();
    flag.push("-unproven");
    fs::write(flag, "a sync failed").expect("the folder is ours");
}

fn wait_until_stored(slot: &StoreSlot, number: i64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = slot.with(|store| store_one(store, number)) {
        assert!(Instant::now() < deadline, "it never comes back: {error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_store_that_failed_otherwise_before_is_proven_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let slot = StoreSlot::at(&path, LIMITS);
    slot.with(|store| store_one(store, 0)).expect("it is open");
    let failed = slot.get().expect("it is open");
    let error = StoreError::Unusable { at: path.as_path().into(), reason: "disk I/O error".into() };
    slot.report(&failed, &Arc::new(error));
    drop(failed);
    mark_unproven(&path);
    wait_until_stored(&slot, 1);
    assert_eq!(slot.with(|store| store.backlog(&Filter::default())).expect("it is open").messages(), 2);
}

#[test]
fn a_store_whose_first_write_fails_is_proven_as_soon_as_it_can_be() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let (marked, is_first) = (path.clone(), AtomicBool::new(true));
    let slot = StoreSlot::at(&path, LIMITS).whenever_opened(move |store| {
        if is_first.swap(false, Ordering::SeqCst) {
            mark_unproven(&marked);
        }
        store_one(store, 0)
    });
    assert!(slot.get().is_err(), "the sync of its first write failed");
    wait_until_stored(&slot, 1);
    assert_eq!(slot.with(|store| store.backlog(&Filter::default())).expect("it is open").messages(), 2);
}

#[test]
fn a_store_is_proven_while_a_replay_that_waits_for_its_server_still_holds_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let slot = StoreSlot::at(&path, LIMITS);
    slot.with(|store| store_one(store, 0)).expect("it is open");
    let held = slot.get().expect("it is open");
    mark_unproven(&path);
    wait_until_stored(&slot, 1);
    // The last outcomes of the replay are not stored, and it gets an error.
    for result in [store_one(held.as_ref(), 2), held.backlog(&Filter::default()).map(drop), held.compact().map(drop)] {
        assert!(matches!(&result, Err(StoreError::Unproven { .. })), "{result:?}");
    }
    slot.report(&held, &Arc::new(StoreError::Unproven { at: path.as_path().into(), reason: "it was closed".into() }));
    slot.with(|store| store_one(store, 3)).expect("it is open");
    assert_eq!(left_by_a_kill(&path), 3);
    drop(held);
    assert_eq!(left_by_a_kill(&path), 3);
}

#[test]
fn what_a_failed_commit_may_have_stored_is_not_overtaken_until_that_is_known() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("opik_messages.db");
    let slot = Arc::new(StoreSlot::at(&path, LIMITS));
    let committer = Committer::start(slot.clone()).expect("a thread can be started");
    let message = |trace: &str| about_trace(&lane("team"), trace, Effect::Update, 1);
    committer.store(message("other")).expect("it is open");
    mark_unproven(&path);
    committer.store(message("trace")).expect_err("its sync failed");
    let server = lane("team").server.unwrap_or_else(|| Server::new("http://opik/api"));
    let conflicts = |trace: &str| {
        let seen = slot.backlog_seen(&server, &message(trace).touches);
        matches!(seen, BacklogSeen::Holds { conflicting: true, .. } | BacklogSeen::Unknown)
    };
    assert_eq!(["trace", "other", "third"].map(conflicts), [true, true, false]);
    wait_until_stored(&slot, 1);
    assert_eq!(["trace", "other", "third"].map(conflicts), [false, true, false], "none of it is stored");
}
