//! Damaged store files under real processes: every kind of damage, for commands that deliver and for commands that only
//! read.
//!
//! The store of each case has 60 acknowledged traces. Delivery must bring every intact one to the server and report
//! how many are not; reading changes nothing and suggests a remedy.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::Client;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

const STORED: usize = 60;

/// A kind of damage to the file, and how many messages it may cost at most.
struct Damage {
    name: &'static str,
    lost_max: usize,
    injure: fn(&Path),
}

fn edit(db: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(db).unwrap();
    change(&mut bytes);
    fs::write(db, bytes).unwrap();
}

fn log(db: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", db.display()))
}

const DAMAGES: [Damage; 6] = [
    Damage { name: "the first page is zero", lost_max: 0, injure: |db| edit(db, |bytes| bytes[..4096].fill(0)) },
    Damage {
        name: "a page in the middle is nonsense",
        lost_max: 30,
        injure: |db| {
            edit(db, |bytes| {
                let middle = bytes.len() / 4096 / 2 * 4096;
                bytes[middle..middle + 4096].fill(0xa5);
            });
        },
    },
    Damage {
        name: "the last pages are gone",
        lost_max: STORED,
        injure: |db| edit(db, |bytes| bytes.truncate(bytes.len() - 3 * 4096)),
    },
    Damage {
        name: "bits are flipped in the header",
        lost_max: 0,
        injure: |db| {
            edit(db, |bytes| {
                for at in [18, 30, 70, 101] {
                    bytes[at] ^= 0x20
                }
            })
        },
    },
    Damage { name: "the log is nonsense", lost_max: 0, injure: |db| fs::write(log(db), vec![0x5a; 100_000]).unwrap() },
    Damage {
        name: "the log is that of another program",
        lost_max: 0,
        injure: |db| {
            let folder = tempfile::tempdir().unwrap();
            let other = folder.path().join("other.db");
            let connection = rusqlite::Connection::open(&other).unwrap();
            connection
                .execute_batch(
                    "PRAGMA journal_mode = WAL; CREATE TABLE letters (text TEXT);
                     WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
                     INSERT INTO letters SELECT hex(randomblob(900)) FROM n",
                )
                .unwrap();
            fs::copy(log(&other), log(db)).unwrap();
        },
    },
];

/// A store with acknowledged traces that no process has open.
fn stored(server: &FakeOpik) -> (Agent, Vec<String>) {
    server.stop();
    let mut agent = Agent::start(server);
    let ids: Vec<String> = (0..STORED).map(|_| uuid7()).collect();
    let mut client = Client::new(&agent.url());
    for id in &ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    assert!(agent.terminate().success());
    (agent, ids)
}

fn set_aside(db: &Path) -> Vec<PathBuf> {
    let name = format!("{}.damaged-", db.file_name().unwrap().to_str().unwrap());
    let entries = fs::read_dir(db.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| {
            let found = entry.file_name().into_string().unwrap();
            found.starts_with(&name) && !found.ends_with("-wal")
        })
        .map(|entry| entry.path())
        .collect()
}

fn delivered(server: &FakeOpik, ids: &[String]) -> usize {
    ids.iter().filter(|id| server.entity("default", Kind::Trace, id).is_some()).count()
}

/// Asserts that missing messages are reported, and that the damaged file is kept for this user alone.
fn assert_told(agent: &Agent, server: &FakeOpik, ids: &[String], damage: &Damage) {
    let arrived = delivered(server, ids);
    assert!(arrived + damage.lost_max >= STORED, "{}: only {arrived} of {STORED} arrived", damage.name);
    let files = set_aside(&agent.db());
    if files.is_empty() {
        // SQLite itself leaves such a log alone, and nothing was in it.
        assert_eq!(arrived, STORED, "{}: messages are lost, and nobody was told", damage.name);
        return;
    }
    assert_eq!(files.len(), 1, "{}: {files:?}", damage.name);
    assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o7777, 0o600, "{}", damage.name);
    let status = agent.cli(&["status", "--format", "json"]).json();
    let recovery = &status["store"]["recoveries"][0];
    assert_eq!(recovery["set_aside"], files[0].display().to_string(), "{}: {status}", damage.name);
    let told = recovery["recovered_messages"].as_u64().unwrap() as usize;
    assert_eq!(told, arrived, "{}: {status}", damage.name);
    let lost = recovery["lost_messages"].as_u64().unwrap() as usize;
    assert!(lost >= STORED - arrived, "{}: {lost} are reported lost, {arrived} arrived", damage.name);
    let shown = agent.cli(&["status"]).stdout;
    assert!(shown.contains("recovered") && shown.contains(&*files[0].to_string_lossy()), "{}:\n{shown}", damage.name);
    let health = agent.cli(&["healthcheck"]);
    assert!(health.stdout.contains("was damaged"), "{}:\n{}", damage.name, health.stdout);
    // A user who removes the file has seen it.
    fs::remove_file(&files[0]).unwrap();
    let status = agent.cli(&["status", "--format", "json"]).json();
    assert_eq!(status["store"]["recoveries"].as_array().map(Vec::len), Some(0), "{}", damage.name);
}

#[test]
fn an_agent_that_starts_on_a_damaged_file_delivers_what_is_whole_and_tells_of_the_rest() {
    for damage in &DAMAGES {
        let server = FakeOpik::start_new();
        let (mut agent, ids) = stored(&server);
        (damage.injure)(&agent.db());
        agent.restart_on_same_port();
        // Intake continues at once.
        let later = uuid7();
        assert_eq!(Client::new(&agent.url()).expect(&create(&later)).status, 201, "{}", damage.name);
        server.start();
        agent.wait_until_delivered();
        assert!(server.entity("default", Kind::Trace, &later).is_some(), "{}", damage.name);
        assert_told(&agent, &server, &ids, damage);
    }
}

#[test]
fn a_replay_of_a_damaged_file_delivers_what_is_whole() {
    for damage in &DAMAGES {
        let server = FakeOpik::start_new();
        let (agent, ids) = stored(&server);
        (damage.injure)(&agent.db());
        server.start();
        let replay = agent.cli(&["replay"]);
        assert_eq!(replay.code(), Some(0), "{}:\n{}{}", damage.name, replay.stdout, replay.stderr);
        assert_told(&agent, &server, &ids, damage);
    }
}

#[test]
fn those_who_only_look_at_a_damaged_file_change_nothing_and_say_what_to_do() {
    let server = FakeOpik::start_new();
    let (agent, _) = stored(&server);
    (DAMAGES[0].injure)(&agent.db());
    let before = fs::read(agent.db()).unwrap();
    for args in [&["inspect"][..], &["status"], &["healthcheck"], &["purge", "--yes"], &["replay", "--dry-run"]] {
        let output = agent.cli(args);
        let shown = format!("{}{}", output.stdout, output.stderr);
        assert_ne!(output.code(), Some(0), "{args:?}:\n{shown}");
        assert!(shown.contains("damaged") && shown.contains("opik-offline replay"), "{args:?}:\n{shown}");
        assert!(fs::read(agent.db()).unwrap() == before, "{args:?} changed the file");
        assert_eq!(set_aside(&agent.db()), Vec::<PathBuf>::new(), "{args:?}");
    }
}

#[test]
fn a_file_that_is_damaged_while_agents_use_it_is_recovered_by_one_of_them() {
    let server = FakeOpik::start_new();
    server.stop();
    let agent = Agent::builder(&server.url()).impatient().start();
    let db = agent.db().display().to_string();
    let second = Agent::builder(&server.url()).impatient().without_db().arg("--db").arg(&db).start();
    let ids: Vec<String> = (0..STORED).map(|_| uuid7()).collect();
    let mut client = Client::new(&agent.url());
    for id in &ids {
        assert_eq!(client.expect(&create(id)).status, 201);
    }
    // Written back into the file, so that the damage is not behind the log.
    rusqlite::Connection::open(&db).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    edit(&agent.db(), |bytes| {
        // Every other page: the trees of all tables are broken, in ways that reads and writes meet.
        for page in (4..bytes.len() / 4096).step_by(2) {
            bytes[page * 4096..page * 4096 + 100].fill(0xa5);
        }
    });
    let mut acknowledged = BTreeSet::new();
    wait_until("the damage is met and the store recovered", PATIENCE, || {
        for agent in [&agent, &second] {
            let id = uuid7();
            if Client::new(&agent.url()).expect(&create(&id)).status == 201 {
                acknowledged.insert(id);
            }
        }
        server.start();
        let is_recovered = !set_aside(&agent.db()).is_empty();
        if !is_recovered {
            server.stop();
        }
        is_recovered
    });
    wait_until("both agents use the new file", PATIENCE, || {
        [&agent, &second]
            .iter()
            .all(|agent| Client::new(&agent.origin()).get("/-/ready").json()["store"]["usable"] == true)
    });
    assert_eq!(set_aside(&agent.db()).len(), 1, "both set a file aside");
    agent.wait_until_delivered();
    let status = agent.cli(&["status", "--format", "json"]).json();
    let recovery = &status["store"]["recoveries"][0];
    let lost = recovery["lost_messages"].as_u64().unwrap() as usize;
    let missing = STORED - delivered(&server, &ids)
        + acknowledged.iter().filter(|id| server.entity("default", Kind::Trace, id).is_none()).count();
    assert!(missing <= lost, "{missing} acknowledged messages are gone, {lost} are reported: {status}");
}

#[test]
fn another_programs_database_is_left_alone() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let db = home.db();
    rusqlite::Connection::open(&db)
        .and_then(|other| other.execute_batch("CREATE TABLE letters (text TEXT); INSERT INTO letters VALUES ('dear')"))
        .unwrap();
    let before = fs::read(&db).unwrap();
    let agent = Agent::builder(&server.url()).impatient().home(home).start();
    assert_eq!(Client::new(&agent.url()).expect(&create(&uuid7())).status, 201);
    assert_eq!(server.count("default", Kind::Trace), 1, "acknowledged, and nowhere");
    for args in [&["replay"][..], &["inspect"], &["status"]] {
        let shown = agent.cli(args);
        assert!(shown.stderr.contains("another program"), "{args:?}: {}", shown.stderr);
    }
    assert_eq!(fs::read(&db).unwrap(), before, "it was touched");
    assert_eq!(set_aside(&db), Vec::<PathBuf>::new());
}
