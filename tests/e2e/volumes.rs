//! Volumes that change under a running agent: quotas, no inodes, a volume that shrinks, flags that forbid writing, a
//! file system that becomes read-only, and a store that is moved or deleted.
//!
//! In every case: what was acknowledged is delivered in its order, as soon as the volume allows that; what can't be
//! stored is refused with `Retry-After` or taken by the server; and the agent reports the problem and its place, once.

use std::time::{Duration, Instant};

use crate::full_disk::{CRUMBS, Filler, Made, Small, assert_left_by_delivering, bytes_free, store_backlog};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::ledger::ClientLedger;
use crate::support::not_run::not_run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, update};

/// An event for the agent while the obstacle exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Stopped,
    Killed,
    Replayed,
}

/// A volume on which something gets in the way of a running agent.
struct Trial {
    made: Made,
    /// Makes the obstacle, with the home directory as `$0`.
    obstacle: &'static str,
    /// Removes it.
    mend: &'static str,
    /// Whether the backlog is delivered while the obstacle is there.
    delivers: bool,
    /// Words by which a person knows what to do; one of them.
    words: &'static [&'static str],
}

impl Trial {
    /// Runs the trial, or prints why it can't be run here.
    fn run(&self, meanwhile: Meanwhile) {
        let name = format!("{} {meanwhile:?}", self.obstacle);
        let home = Home::new();
        let small = match Small::mount(&home, self.made) {
            Ok(small) => small,
            Err(reason) => return not_run(&reason),
        };
        let server = FakeOpik::new_stopped();
        let mut agent = Agent::builder(&server.url()).impatient().within(&small.enter()).home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let ids = store_backlog(&mut app, 200, 5000);
        small.root(agent.home(), self.obstacle);
        // Live writes while the server is away: new ones, and ones that conflict with what waits.
        let refusals = |app: &mut Told<'_>, round: u64| {
            let mut refused = 0;
            for id in ids.iter().skip(round as usize * 20).take(20) {
                for request in [update(id, round), create(&uuid7())] {
                    let answer = app.send(request).unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
                    match answer.status {
                        200..=299 => {}
                        503 => {
                            refused += 1;
                            assert!(answer.header("Retry-After").is_some(), "{name}: {}", answer.text());
                        }
                        other => panic!("{name}: {other} {}", answer.text()),
                    }
                }
            }
            refused
        };
        let mut refused = refusals(&mut app, 0);
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Stopped => {
                assert!(agent.terminate().success(), "{name}");
                agent.restart_on_same_port();
            }
            Meanwhile::Killed => {
                agent.kill9();
                agent.restart_on_same_port();
            }
            Meanwhile::Replayed => {
                assert!(agent.terminate().success(), "{name}");
                server.start();
                let replay = agent.cli(&["replay"]);
                if self.delivers {
                    assert_eq!(replay.code(), Some(0), "{name}: {}{}", replay.stdout, replay.stderr);
                } else {
                    assert!(replay.code() != Some(101), "{name}: {}{}", replay.stdout, replay.stderr);
                    assert!(self.words.iter().any(|words| replay.stderr.contains(words)), "{name}: {}", replay.stderr);
                }
                agent.restart_on_same_port();
            }
        }
        let mut app = Told::new(&agent.url(), &ledger);
        if meanwhile != Meanwhile::Replayed {
            refused += refusals(&mut app, 1);
            server.start();
        }
        // While it is back.
        let mut client = Client::new(&agent.origin());
        let status = |client: &mut Client| client.get("/-/status.json").json();
        let until = Instant::now() + Duration::from_secs(if self.delivers { 0 } else { 8 });
        let mut round = 2;
        while Instant::now() < until && round < 8 {
            refused += refusals(&mut app, round);
            round += 1;
            std::thread::sleep(Duration::from_millis(500));
        }
        if self.delivers {
            wait_until(&format!("{name}: what is stored is delivered"), PATIENCE, || {
                let store = status(&mut client)["store"].take();
                store["usable"] == true && store["waiting"] == 0
            });
            server.assert_equals(&ledger);
        }
        let says = |log: &str| self.words.iter().any(|words| log.contains(words));
        if refused > 0 && !self.delivers {
            wait_until(&format!("{name}: the log suggests a remedy"), PATIENCE, || says(&agent.stderr()));
        }
        let log = agent.stderr();
        let said = format!("{}{log}", client.get("/-/status.json").text());
        assert!(refused == 0 || self.words.iter().any(|words| said.contains(words)), "{name}: {said}");
        let lines = agent.stderr().lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
        assert!(lines <= 12, "{name}: the log repeats itself:\n{}", agent.stderr());
        small.root(agent.home(), self.mend);
        server.stop();
        wait_until(&format!("{name}: messages are stored again"), PATIENCE, || {
            app.send(create(&uuid7())).is_ok_and(|answer| answer.status == 201)
        });
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
        server.assert_order(&ledger);
    }

    fn run_all(&self) {
        for meanwhile in [Meanwhile::Nothing, Meanwhile::Stopped, Meanwhile::Killed, Meanwhile::Replayed] {
            self.run(meanwhile);
        }
    }
}

const EXT4: Made = Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 \"$0\"");
const XFS: Made = Made::Blocks("truncate -s 320M \"$0\" && mkfs.xfs -q \"$0\"");

#[test]
fn an_immutable_database_under_a_running_agent() {
    Trial {
        made: EXT4,
        obstacle: "chattr +i \"$0\"/opik_messages.db",
        mend: "chattr -i \"$0\"/opik_messages.db",
        delivers: false,
        words: &["chattr -i"],
    }
    .run_all();
}

#[test]
fn an_immutable_log_under_a_running_agent() {
    Trial {
        made: EXT4,
        obstacle: "chattr +i \"$0\"/opik_messages.db-wal",
        mend: "chattr -i \"$0\"/opik_messages.db-wal",
        delivers: false,
        words: &["chattr -i"],
    }
    .run_all();
}

#[test]
fn an_immutable_folder_under_a_running_agent() {
    Trial { made: XFS, obstacle: "chattr +i \"$0\"", mend: "chattr -i \"$0\"", delivers: false, words: &["chattr -i"] }
        .run_all();
}

#[test]
fn no_inodes_under_a_running_agent() {
    Trial {
        made: Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 -N 64 \"$0\""),
        obstacle: "n=0; while touch \"$0\"/i$n 2>/dev/null; do n=$((n+1)); done",
        mend: "rm -f \"$0\"/i*",
        delivers: true,
        words: &["inodes"],
    }
    .run_all();
}

#[test]
fn no_inodes_on_a_tmpfs_under_a_running_agent() {
    Trial {
        made: Made::Tmpfs("24m,nr_inodes=40"),
        obstacle: "n=0; while touch \"$0\"/i$n 2>/dev/null; do n=$((n+1)); done",
        mend: "rm -f \"$0\"/i*",
        delivers: true,
        words: &["inodes"],
    }
    .run_all();
}

#[test]
fn a_tmpfs_that_shrinks_under_a_running_agent() {
    Trial {
        made: Made::Tmpfs("64m"),
        obstacle: "used=$(df --output=used -k \"$0\" | tail -1 | tr -d ' '); mount -o remount,size=${used}k \"$0\"",
        mend: "mount -o remount,size=64m \"$0\"",
        delivers: true,
        words: &["is full", "reserved"],
    }
    .run_all();
}

/// After an error ext4 takes no write until it is mounted anew.
#[test]
fn a_file_system_that_becomes_read_only_under_a_running_agent() {
    Trial {
        made: Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 -e remount-ro \"$0\""),
        obstacle: "d=$(basename $(findmnt -no SOURCE \"$0\")); echo 1 >/sys/fs/ext4/$d/trigger_fs_error; ! touch \"$0\"/x",
        mend: "d=$(findmnt -no SOURCE \"$0\"); image=$(losetup -nO BACK-FILE \"$d\"); n=0; \
               until umount \"$0\"; do n=$((n+1)); [ $n -lt 20 ] || exit 1; sleep 0.5; done; \
               e2fsck -p \"$image\"; mount -o loop \"$image\" \"$0\" && chmod 700 \"$0\"",
        delivers: false,
        words: &["remount,rw"],
    }
    .run_all();
}

#[test]
fn a_btrfs_that_another_program_filled_is_left_by_delivering() {
    assert_left_by_delivering(Made::Blocks("truncate -s 128M \"$0\" && mkfs.btrfs -q \"$0\""));
}

/// The store's file moves away, and back. Its backlog is not lost, not overtaken meanwhile, and never forgotten.
#[test]
fn nothing_overtakes_what_waits_in_a_store_that_was_moved_away() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let waits = uuid7();
    app.acknowledged(create(&waits), 201);
    let moved = agent.home().path().join("elsewhere.db");
    std::fs::rename(agent.db(), &moved).expect("a file can be renamed");
    for server_is_there in [false, true] {
        if server_is_there {
            server.start();
            wait_until("the server counts as there", PATIENCE, || {
                Client::new(&agent.origin()).get("/-/status.json").json()["server"]["connection"] == "available"
            });
        }
        for _ in 0..3 {
            let answer = app.send(update(&waits, 1)).expect("an answer");
            assert_eq!(answer.status, 503, "with the server there: {server_is_there}: {}", answer.text());
            assert!(answer.header("Retry-After").is_some());
            app.acknowledged(create(&uuid7()), 201);
            std::thread::sleep(Duration::from_millis(600));
        }
    }
    let moved_stores = Client::new(&agent.origin()).get("/-/status.json").json()["store"]["moved_stores"].take();
    assert_eq!(moved_stores, serde_json::json!([moved]), "its place is not reported");
    let status = agent.cli(&["status"]);
    assert!(status.stdout.contains("moved away"), "{}", status.stdout);
    let lines = agent.stderr().lines().filter(|line| line.contains("moved away")).count();
    assert_eq!(lines, 1, "it is reported once:\n{}", agent.stderr());
    // Moved on, it is still known.
    let further = agent.home().path().join("further.db");
    std::fs::rename(&moved, &further).expect("a file can be renamed");
    assert_eq!(app.send(update(&waits, 2)).expect("an answer").status, 503);
    std::fs::rename(&further, agent.db()).expect("a file can be renamed");
    wait_until("what waited is delivered", PATIENCE, || server.sequence_for(&waits).len() == 1);
    wait_until("its updates are taken again", PATIENCE, || {
        app.send(update(&waits, 3)).is_ok_and(|it| it.status == 204)
    });
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
}

#[test]
fn a_moved_store_that_was_delivered_from_where_it_is_holds_nothing_up() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let waits = uuid7();
    app.acknowledged(create(&waits), 201);
    let moved = agent.home().path().join("elsewhere.db");
    std::fs::rename(agent.db(), &moved).expect("a file can be renamed");
    assert_eq!(app.send(update(&waits, 1)).expect("an answer").status, 503);
    server.start();
    let moved = moved.to_str().expect("its name is UTF-8");
    let replay = agent.home().cli(&["replay", "--db", moved, "--upstream", &server.url()]);
    assert_eq!(replay.code(), Some(0), "{}{}", replay.stdout, replay.stderr);
    wait_until("its updates are taken again", PATIENCE, || {
        app.send(update(&waits, 2)).is_ok_and(|it| it.status == 204)
    });
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_no_update_before_create();
}

#[test]
fn a_folder_that_is_deleted_or_moved_under_the_agent_loses_nothing() {
    for script in [
        "rm -rf \"$0\"/data",
        "mv \"$0\"/data \"$0\"/old; sleep 3; mv \"$0\"/data \"$0\"/new; mv \"$0\"/old \"$0\"/data",
    ] {
        let home = Home::new();
        let folder = home.path().join("data/opik-offline");
        let server = FakeOpik::new_stopped();
        let agent = Agent::builder(&server.url()).impatient().without_db().home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let ids: Vec<String> = (0..20).map(|_| uuid7()).collect();
        for id in &ids {
            app.acknowledged(create(id), 201);
        }
        assert!(folder.join("opik_messages.db").exists(), "the store is somewhere else");
        let mut shell = agent.home().command("sh");
        let output = crate::support::process::run(shell.args(["-c", script]).arg(agent.home().path()));
        assert!(output.status.success(), "{script}: {}", output.stderr);
        server.start();
        for id in &ids {
            wait_until(script, PATIENCE, || app.send(update(id, 1)).is_ok_and(|answer| answer.status == 204));
        }
        wait_until(script, PATIENCE, || {
            let store = Client::new(&agent.origin()).get("/-/status.json").json()["store"].take();
            store["usable"] == true && store["waiting"] == 0
        });
        server.assert_equals(&ledger);
        server.assert_order(&ledger);
    }
}

/// A store that another process keeps locked takes nothing, although the server is there.
#[test]
fn what_a_locked_store_cannot_take_goes_to_the_server_unless_it_overtakes() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "120").start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let waits = uuid7();
    app.acknowledged(create(&waits), 201);
    let other = rusqlite::Connection::open(agent.db()).expect("it can be opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
    server.start();
    let answer = app.send(update(&waits, 1)).expect("an answer");
    assert_eq!(answer.status, 503, "it overtakes what waits: {}", answer.text());
    assert!(answer.header("Retry-After").is_some());
    app.acknowledged(create(&uuid7()), 201);
    assert!(agent.stderr().contains("kept it locked"), "the log does not say why:\n{}", agent.stderr());
    other.execute_batch("ROLLBACK").expect("it is ours");
    drop(other);
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
    server.assert_no_update_before_create();
}

/// Stores that need room to be opened: an older schema, and a damaged file.
#[test]
fn an_old_or_damaged_store_on_a_full_disk_is_kept_named_and_opened_once_there_is_room() {
    for (is_damaged, made) in [
        (false, Made::Tmpfs("24m")),
        (false, Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 \"$0\"")),
        (true, Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 \"$0\"")),
    ] {
        let home = Home::new();
        let small = match Small::mount(&home, made) {
            Ok(small) => small,
            Err(reason) => return not_run(&reason),
        };
        let server = FakeOpik::new_stopped();
        let mut agent = Agent::builder(&server.url()).impatient().within(&small.enter()).home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        for _ in 0..100 {
            app.acknowledged(create(&uuid7()), 201);
        }
        assert!(agent.terminate().success());
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stores/version-8.db");
        let spoil = match is_damaged {
            // The header stays: it is a store, whose tables can't be read.
            true => {
                "printf xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | dd of=\"$0\"/opik_messages.db bs=1 seek=100 conv=notrunc"
                    .to_owned()
            }
            false => format!(
                "rm \"$0\"/opik_messages.db*; cp {fixture} \"$0\"/opik_messages.db; chmod 600 \"$0\"/opik_messages.db"
            ),
        };
        small.root(agent.home(), &spoil);
        let filler = Filler::start(&small, agent.home());
        wait_until("the disk is full", PATIENCE, || bytes_free(&small, agent.home()) < CRUMBS);
        server.start();
        agent.restart_on_same_port();
        let mut app = Told::new(&agent.url(), &ledger);
        let answer = app.send(create(&uuid7())).expect("an answer");
        assert!([201, 503].contains(&answer.status), "{made:?}: {}", answer.text());
        std::thread::sleep(Duration::from_secs(4));
        assert!(agent.is_running(), "{made:?}: {}", agent.stderr());
        let status = agent.cli(&["status"]);
        assert!(status.stderr.contains("disk is full"), "{made:?}: {}{}", status.stdout, status.stderr);
        let replay = agent.cli(&["replay"]);
        assert_eq!(replay.code(), Some(1), "{made:?}: {}{}", replay.stdout, replay.stderr);
        assert!(replay.stderr.contains("disk is full"), "{made:?}: {}", replay.stderr);
        let log = agent.stderr();
        assert!(log.contains("disk is full"), "{made:?}: {log}");
        assert!(!log.contains("delivered meanwhile"), "{made:?}: {log}");
        drop(filler);
        small.root(agent.home(), "rm \"$0\"/filler");
        wait_until("the store is used again", PATIENCE, || {
            Client::new(&agent.origin()).get("/-/status.json").json()["store"]["usable"] == true
        });
        if is_damaged {
            agent.wait_until_delivered();
            server.assert_equals(&ledger);
        } else {
            // The server may accept the fixture's messages or not: all of them are there.
            let status = agent.cli(&["status", "--format", "json"]).json();
            assert_eq!(status["store"]["state"], "usable", "{status}");
        }
    }
}
