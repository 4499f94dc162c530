//! Leftover files that another user planted, or that name files which are not the SDK's: nothing of this user's leaves
//! the machine through them, nothing is deleted for them, and none keeps a command busy for ever.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::not_run::not_run;
use crate::support::process::{Output, run};
use crate::support::{HANGS_AFTER, PATIENCE, uuid7, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
/// Nobody listens there.
const NO_SERVER: &str = "http://127.0.0.1:9/api";
/// Users that need not have a name on this machine.
const VICTIM: u32 = 61_001;
const PLANTER: u32 = 61_002;
const THIRD: u32 = 61_003;
const SECRET: &str = "made-up-secret-24680";

/// Returns a machine on which this test can act as other users, or prints why it does not run.
fn machine_of_several(test: &str) -> Option<Machine> {
    let why = if rustix::process::geteuid().is_root() {
        let machine = Machine::new();
        match machine.command_as(VICTIM).arg("--version").stdout(Stdio::null()).status() {
            Ok(status) if status.success() => return Some(machine),
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    } else {
        "only root can".to_owned()
    };
    not_run(&format!("{test}: it can't act as a second user: {why}"));
    None
}

/// A home with a folder in it that everybody shares, as `/tmp` is.
struct Machine {
    home: Home,
    shared: PathBuf,
    /// A path where every user can start it, independent of the sources.
    program: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let home = Home::new();
        let (shared, program) = (home.path().join("shared"), home.path().join("opik-offline"));
        fs::create_dir(&shared).expect("a folder");
        mode(home.path(), 0o755);
        mode(&shared, 0o1777);
        if fs::hard_link(BINARY, &program).is_err() {
            fs::copy(BINARY, &program).expect("a copy");
        }
        Self { home, shared, program }
    }

    /// Makes a folder of this user.
    fn home_of(&self, user: u32) -> PathBuf {
        let folder = self.home.path().join(format!("home-{user}"));
        fs::create_dir(&folder).expect("a folder");
        give(&folder, user, 0o700);
        folder
    }

    /// Plants an SDK's store of this user, readable for all.
    fn plant(&self, name: &str, user: u32, rows: &[(&str, Value)]) -> PathBuf {
        let path = self.shared.join(name).join("opik_messages.db");
        sdk_store(&path, rows);
        give(path.parent().expect("a folder"), user, 0o755);
        give(&path, user, 0o644);
        path
    }

    fn command_as(&self, user: u32) -> Command {
        let mut command = self.home.command(&self.program);
        command.uid(user).gid(user).current_dir("/");
        command
    }

    /// Runs a command as this user, whose store is in this folder.
    fn cli_as(&self, user: u32, folder: &Path, args: &[&str]) -> Output {
        let mut command = self.command_as(user);
        for name in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
            command.env(name, folder);
        }
        command.env("TMPDIR", &self.shared).env("OPIK_API_KEY", SECRET);
        run(command.args(args).arg("--db").arg(folder.join("store.db")))
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode can be set");
}

fn give(path: &Path, user: u32, bits: u32) {
    chown(path, Some(user), Some(user)).expect("root may give it away");
    mode(path, bits);
}

fn sdk_store(path: &Path, rows: &[(&str, Value)]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let connection = Connection::open(path).expect("a new file");
    connection
        .execute_batch(
            "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL,
             message_type TEXT NOT NULL, message_json TEXT NOT NULL)",
        )
        .expect("a table");
    for (number, (message_type, json)) in rows.iter().enumerate() {
        let row = rusqlite::params![number as i64, message_type, json.to_string()];
        connection.execute("INSERT INTO messages VALUES (?1, 3, ?2, ?3)", row).expect("a row");
    }
    mode(path, 0o600);
}

fn trace() -> (&'static str, Value) {
    let json =
        json!({ "trace_id": uuid7(), "project_name": "p", "name": "mine", "start_time": "2026-03-01T04:00:16Z" });
    ("CreateTraceMessage", json)
}

fn attachment(path: &Path) -> (&'static str, Value) {
    let json = json!({ "file_path": path, "file_name": "a.txt", "mime_type": "text/plain", "entity_type": "trace",
        "entity_id": uuid7(), "project_name": "p", "delete_after_upload": true });
    ("CreateAttachmentMessage", json)
}

/// Returns the only source of a report.
#[track_caller]
fn source(output: &Output) -> Value {
    let report = output.json();
    assert_eq!(report["sources"].as_array().map(Vec::len), Some(1), "{output:?}");
    report["sources"][0].clone()
}

/// Asserts that no part of a secret reached the server.
#[track_caller]
fn assert_no_secret(server: &FakeOpik) {
    for request in server.requests() {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        assert!(!body.contains(SECRET), "a file of the victim's was uploaded: {} {}", request.method, request.path);
    }
}

#[test]
fn a_store_that_another_user_planted_is_not_taken_and_the_users_own_is() {
    let Some(machine) = machine_of_several("a_store_that_another_user_planted_is_not_taken_and_the_users_own_is")
    else {
        return;
    };
    let server = FakeOpik::start_new();
    let victim = machine.home_of(VICTIM);
    let key = victim.join("id_rsa");
    fs::write(&key, SECRET).expect("a file");
    give(&key, VICTIM, 0o600);
    let rows = [trace(), attachment(&key), attachment(Path::new("/proc/self/environ"))];
    let planted = machine.plant("tmpplanted", PLANTER, &rows);
    // The folder is the victim's by a link of the planter's; and a store of the victim's is where the planter put it.
    let mine = machine.plant("tmpmine0001", VICTIM, &[trace()]);
    mode(mine.parent().expect("a folder"), 0o700);
    let lured = victim.join("lured/opik_messages.db");
    sdk_store(&lured, &[trace(), attachment(&key)]);
    give(lured.parent().expect("a folder"), VICTIM, 0o700);
    give(&lured, VICTIM, 0o600);
    symlink(lured.parent().expect("a folder"), machine.shared.join("tmplink0001")).expect("a link");
    std::os::unix::fs::lchown(machine.shared.join("tmplink0001"), Some(PLANTER), Some(PLANTER)).expect("it is root");

    // As in docs/guide.md.
    let pattern = machine.shared.join("tmp*/opik_messages.db").to_string_lossy().into_owned();
    let args = ["replay", "--upstream", &server.url(), "--format", "json", "--remove-source", "--from", &pattern];
    let replayed = machine.cli_as(VICTIM, &victim, &args);
    assert_eq!(replayed.code(), Some(1), "{replayed:?}");
    assert_eq!(source(&replayed)["path"], *mine.to_string_lossy(), "{replayed:?}");
    assert_eq!(replayed.stderr.matches(" is not trusted: ").count(), 2, "{replayed:?}");
    assert_eq!(server.count("default", Kind::Trace), 1, "{replayed:?}");
    assert_no_secret(&server);
    assert!(planted.exists() && lured.exists() && key.exists(), "something was deleted for the planter");
    assert!(!mine.parent().is_some_and(Path::exists), "the user's own store stays");
    for args in [["inspect", "--from"], ["replay", "--from"]] {
        let named = machine.cli_as(VICTIM, &victim, &[args[0], args[1], &planted.to_string_lossy()]);
        assert_eq!(named.code(), Some(1), "{named:?}");
        assert!(named.stderr.contains("belongs to another user") && named.stderr.contains("hint: "), "{named:?}");
    }
    server.assert_no_violations();
}

#[test]
fn root_salvages_files_of_another_user_only_with_owner() {
    let Some(machine) = machine_of_several("root_salvages_files_of_another_user_only_with_owner") else { return };
    let server = FakeOpik::start_new();
    let root = machine.home_of(0);
    let (theirs, third) = (machine.shared.join("tmpcopy0001.txt"), machine.shared.join("tmpcopy0002.txt"));
    for (path, user) in [(&theirs, PLANTER), (&third, THIRD)] {
        fs::write(path, if user == THIRD { SECRET } else { "theirs" }).expect("a file");
        give(path, user, 0o600);
    }
    let planted = machine.plant("tmpplanted", PLANTER, &[attachment(&theirs), attachment(&third)]);
    // A hard link to a file of root's is not the planter's to choose either.
    let of_root = machine.plant("tmpofroot01", PLANTER, &[trace()]);
    give(&of_root, 0, 0o600);
    let from = planted.to_string_lossy().into_owned();
    let replay = |more: &[&str], from: &str| {
        let args = ["replay", "--upstream", &server.url(), "--format", "json", "--remove-source", "--from", from];
        machine.cli_as(0, &root, &[&args, more].concat())
    };
    let refused = replay(&[], &from);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains(&format!("it belongs to user {PLANTER}, not to user 0")), "{refused:?}");
    assert!(refused.stderr.contains(&format!("--owner {PLANTER} ")), "{refused:?}");
    assert!(planted.exists() && theirs.exists() && third.exists(), "a file of another user's was deleted");

    let taken = replay(&["--owner", &PLANTER.to_string()], &from);
    let taken_source = source(&taken);
    assert_eq!((&taken_source["messages"], &taken_source["rejected"]), (&json!(1), &json!(1)), "{taken:?}");
    assert_no_secret(&server);
    assert!(third.exists() && planted.exists(), "a file of a third user's, or what named it, was deleted");

    let linked = replay(&["--owner", &PLANTER.to_string()], &of_root.to_string_lossy());
    assert!(linked.stderr.contains("it belongs to user 0"), "{linked:?}");
    assert!(of_root.exists());

    for (user, owner) in [(VICTIM, "0"), (0, "no-such-user-here")] {
        let home = if user == 0 { root.clone() } else { machine.home_of(user) };
        let wrong = machine.cli_as(user, &home, &["replay", "--owner", owner, "--from", &from]);
        assert_eq!(wrong.code(), Some(2), "{wrong:?}");
        assert!(wrong.stderr.contains("--owner") && wrong.stderr.contains("hint: "), "{wrong:?}");
    }
}

#[test]
fn an_agent_adopts_no_store_of_another_user() {
    let Some(machine) = machine_of_several("an_agent_adopts_no_store_of_another_user") else { return };
    let server = FakeOpik::start_new();
    let third = machine.shared.join("tmpcopy0001.txt");
    fs::write(&third, SECRET).expect("a file");
    give(&third, THIRD, 0o600);
    let planted = machine.plant("tmpplanted", PLANTER, &[trace(), attachment(&third)]);
    // A file of theirs in a folder of ours, and of ours in a folder of theirs.
    let file = machine.plant("tmpfile0001", 0, &[trace()]);
    give(&file, PLANTER, 0o644);
    let folder = machine.plant("tmpfolder01", PLANTER, &[trace()]);
    give(&folder, 0, 0o600);
    let mine = machine.plant("tmpmine0001", 0, &[trace()]);
    // The oldest comes first, so the others were tried by the time when this one is gone.
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    fs::File::options().write(true).open(&mine).and_then(|file| file.set_modified(later)).expect("it is ours");
    let temp = machine.shared.to_string_lossy().into_owned();
    // Of the default store, which need not be there.
    let (mut status, home) = (machine.command_as(0), machine.home_of(0));
    for name in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        status.env(name, &home);
    }
    let args = ["status", "--format", "json", "--upstream", NO_SERVER];
    let listed = run(status.env("TMPDIR", &machine.shared).args(args));
    let orphans: Vec<Value> = listed.json()["orphans"].as_array().expect("a list").clone();
    assert_eq!(orphans.len(), 1, "{orphans:?}");
    assert_eq!(orphans[0]["path"], *mine.to_string_lossy());

    let agent = Agent::builder(&server.url()).impatient().arg("--adopt-orphans").env("TMPDIR", &temp).start();
    wait_until("the agent adopts the store of its own user", PATIENCE, || !mine.exists());
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 1, "a store of another user's was adopted");
    assert_no_secret(&server);
    for path in [planted, file, folder, third] {
        assert!(path.exists(), "{} was deleted", path.display());
    }
}

#[test]
fn a_row_may_name_only_the_copies_that_the_sdk_made_for_this_user() {
    let server = FakeOpik::start_new();
    let machine = Machine::new();
    let temp = machine.shared.clone();
    let home = machine.home.path();
    let secret = home.join("own/secret.txt");
    fs::create_dir(home.join("own")).expect("a folder");
    fs::write(&secret, SECRET).expect("a file");
    let copy = temp.join("tmpcopy0001.png");
    fs::write(&copy, "a copy").expect("a file");
    symlink(&secret, temp.join("tmplink0001")).expect("a link");
    fs::hard_link(&secret, temp.join("tmphard0001")).expect("a link");
    fs::write(temp.join("other.txt"), SECRET).expect("a file");
    fs::create_dir(temp.join("tmpdir00001")).expect("a folder");
    symlink(home.join("own"), temp.join("tmpown00001")).expect("a link");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        temp.join("tmppipe0001"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a pipe");
    let mut bad: Vec<PathBuf> =
        ["tmplink0001", "tmphard0001", "other.txt", "tmpdir00001", "tmppipe0001", "../own/secret.txt"]
            .map(|name| temp.join(name))
            .into();
    bad.extend([secret.clone(), temp.join("tmpown00001/secret.txt")]);
    bad.extend(
        ["/proc/self/environ", "/dev/zero", "/dev/stdin", "/sys/kernel/notes", "/etc/hostname", "tmpcopy0001.png", ""]
            .map(PathBuf::from),
    );
    let mut others = Vec::new();
    if rustix::process::geteuid().is_root() {
        let theirs = temp.join("tmptheirs01");
        fs::write(&theirs, SECRET).expect("a file");
        give(&theirs, THIRD, 0o644);
        others.push(theirs);
    } else {
        eprintln!(
            "not run: a_row_may_name_only_the_copies_that_the_sdk_made_for_this_user (other users): only root can give files away"
        );
    }
    let all: Vec<_> = bad.iter().chain(&others).collect();
    let rows: Vec<_> =
        [trace(), attachment(&copy)].into_iter().chain(all.iter().map(|path| attachment(path))).collect();
    let path = temp.join("tmpstore001/opik_messages.db");
    sdk_store(&path, &rows);
    let from = path.to_string_lossy().into_owned();
    let replay = |more: &[&str]| {
        let db = machine.home.db().to_string_lossy().into_owned();
        let args = ["replay", "--upstream", &server.url(), "--db", &db, "--format", "json", "--from", &from];
        machine.home.cli(&[&args, more].concat())
    };
    let replayed = replay(&["--remove-source"]);
    assert_eq!(source(&replayed)["messages"], 2, "{replayed:?}");
    assert_eq!(source(&replayed)["rejected"], all.len(), "{replayed:?}");
    assert!(replayed.stderr.contains("attachments in it name files that are not sent"), "{replayed:?}");
    assert_eq!(replayed.code(), Some(1), "{replayed:?}");
    assert_no_secret(&server);
    assert!(path.exists() && secret.exists() && copy.exists() && temp.join("other.txt").exists(), "a file was deleted");
    assert!(others.iter().all(|path| path.exists()), "a file of another user's was deleted");
    assert_eq!(server.requests_to("PUT", "/v1/private/attachment/upload").len(), 1);

    // The files that the user names are sent, and nothing twice.
    let folder = home.join("own").to_string_lossy().into_owned();
    let named = replay(&["--attachments-from", &folder, "--attachments-from", "/proc", "--attachments-from", "/dev"]);
    assert_eq!(source(&named)["messages"], 0, "it has a second name: {named:?}");
    fs::remove_file(temp.join("tmphard0001")).expect("it is there");
    let named = replay(&["--attachments-from", &folder, "--attachments-from", "/proc", "--attachments-from", "/dev"]);
    // The same file by two ways, of which one leads through a link of the user's own.
    assert_eq!(source(&named)["messages"], 3, "{named:?}");
    // The process that has ended.
    assert_eq!(source(&named)["rejected"], 1, "{named:?}");
    server.assert_no_violations();
}

#[test]
fn a_file_that_others_can_change_or_replace_is_not_taken() {
    let machine = Machine::new();
    let path = machine.shared.join("tmpstore001/opik_messages.db");
    let folder = machine.shared.join("tmpstore001");
    let from = |path: &Path| {
        let db = machine.home.db().to_string_lossy().into_owned();
        machine.home.cli(&[
            "replay",
            "--dry-run",
            "--upstream",
            NO_SERVER,
            "--db",
            &db,
            "--from",
            &path.to_string_lossy(),
        ])
    };
    sdk_store(&path, &[trace()]);
    for bits in [0o666, 0o660, 0o602] {
        mode(&path, bits);
        let refused = from(&path);
        assert_eq!(refused.code(), Some(1), "{bits:o}: {refused:?}");
        assert!(refused.stderr.contains("other users can write to it"), "{refused:?}");
    }
    mode(&path, 0o644);
    for bits in [0o777, 0o770] {
        mode(&folder, bits);
        let refused = from(&path);
        assert_eq!(refused.code(), Some(1), "{bits:o}: {refused:?}");
        assert!(refused.stderr.contains("other users can replace it"), "{refused:?}");
    }
    // As a store that was copied into the shared folder itself.
    mode(&folder, 0o1777);
    assert_eq!(from(&path).code(), Some(0));
    mode(&folder, 0o700);

    let link = folder.join("link.db");
    symlink(&path, &link).expect("a link");
    let linked = from(&link);
    assert!(linked.code() == Some(1) && linked.stderr.contains("it is a symbolic link"), "{linked:?}");
    // The files that SQLite would read beside it.
    for suffix in ["-journal", "-wal", "-shm"] {
        let beside = folder.join(format!("opik_messages.db{suffix}"));
        symlink("/etc/passwd", &beside).expect("a link");
        let refused = from(&path);
        assert!(refused.code() == Some(1) && refused.stderr.contains("it is a symbolic link"), "{refused:?}");
        fs::remove_file(&beside).expect("it is there");
        fs::write(&beside, "").expect("a file");
        mode(&beside, 0o666);
        let refused = from(&path);
        assert!(refused.code() == Some(1) && refused.stderr.contains("can write to it"), "{refused:?}");
        fs::remove_file(&beside).expect("it is there");
    }
    assert_eq!(from(&path).code(), Some(0));
    // The user's own link on the way there is the user's own choice.
    symlink(&folder, machine.home.path().join("way")).expect("a link");
    assert_eq!(from(&machine.home.path().join("way/opik_messages.db")).code(), Some(0));
}

#[test]
fn a_journal_that_names_another_file_deletes_nothing() {
    let machine = Machine::new();
    let folder = machine.shared.join("tmpstore001");
    fs::create_dir(&folder).expect("a folder");
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store").join(name);
    let path = folder.join("opik_messages.db");
    fs::copy(fixture("killed-hot-journal.db"), &path).expect("a copy");
    let mut journal = fs::read(fixture("killed-hot-journal.db-journal")).expect("a journal");
    let victim = machine.home.path().join("precious");
    fs::write(&victim, "precious").expect("a file");
    // SQLite's format of the name of a super-journal, which it deletes when its own journal is rolled back.
    let name = victim.to_string_lossy().into_owned();
    let sum: u32 = name.bytes().map(u32::from).sum();
    journal.extend(0x4000_0000_u32.to_be_bytes());
    journal.extend(name.as_bytes());
    journal.extend((name.len() as u32).to_be_bytes());
    journal.extend(sum.to_be_bytes());
    journal.extend([0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]);
    fs::write(folder.join("opik_messages.db-journal"), journal).expect("a file");
    mode(&path, 0o600);
    let from = path.to_string_lossy().into_owned();
    let db = machine.home.db().to_string_lossy().into_owned();
    for args in [&["inspect", "--from", &from][..], &["replay", "--upstream", NO_SERVER, "--from", &from]] {
        let refused = machine.home.cli(&[args, &["--db", &db]].concat());
        assert!(victim.exists(), "a file that the journal named was deleted: {refused:?}");
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains("names a journal of several databases"), "{refused:?}");
    }
}

#[test]
fn a_schema_that_computes_is_refused_at_once() {
    const TABLE: &str = "message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL, message_type TEXT NOT NULL,
        message_json TEXT NOT NULL";
    const ENDLESS: &str = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
        SELECT x AS message_id, 3 AS status, 'a' AS message_type, 'b' AS message_json FROM c WHERE x < 0";
    let machine = Machine::new();
    let schema = |sql: &str| format!("PRAGMA writable_schema = ON; {sql}");
    for (number, (what, sql)) in [
        ("a view", format!("CREATE TABLE m ({TABLE}); CREATE VIEW messages AS {ENDLESS}")),
        (
            "a view that claims to be a table",
            schema(&format!(
                "CREATE TABLE messages ({TABLE}); UPDATE sqlite_schema SET sql = 'CREATE VIEW messages AS {}'",
                ENDLESS.replace('\'', "''")
            )),
        ),
        (
            "a view that claims to be an index",
            schema(&format!(
                "CREATE TABLE m ({TABLE}); CREATE VIEW messages AS {ENDLESS};
                 UPDATE sqlite_schema SET type = 'table', rootpage = 2 WHERE name = 'messages'"
            )),
        ),
        (
            "computed columns",
            "CREATE TABLE messages (message_id INTEGER NOT NULL PRIMARY KEY, status INTEGER NOT NULL, message_type TEXT,
             message_json TEXT AS (hex(zeroblob(400000000)))); INSERT INTO messages VALUES (1, 3, 'a')"
                .to_owned(),
        ),
        ("a trigger", format!("CREATE TABLE messages ({TABLE}); CREATE TRIGGER t AFTER INSERT ON messages BEGIN SELECT 1; END")),
        ("a virtual table", "CREATE VIRTUAL TABLE messages USING dbstat".into()),
        (
            "a virtual table of a module that our SQLite does not have",
            schema(
                "INSERT INTO sqlite_schema VALUES ('table', 'messages', 'messages', 0,
                 'CREATE VIRTUAL TABLE messages USING fts5(message_id, status, message_type, message_json)')",
            ),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let path = machine.shared.join(format!("tmpstore{number:03}/opik_messages.db"));
        fs::create_dir(path.parent().expect("a folder")).expect("a folder");
        match Connection::open(&path).and_then(|connection| connection.execute_batch(&sql)) {
            Ok(()) => {}
            Err(error) if error.to_string().contains("no such module") => {
                not_run(&format!("{what}: {error}"));
                continue;
            }
            Err(error) => panic!("{what}: {error}"),
        }
        mode(&path, 0o600);
        let from = path.to_string_lossy().into_owned();
        let db = machine.home.db().to_string_lossy().into_owned();
        for args in [&["replay", "--from", &from][..], &["inspect", "--from", &from]] {
            let refused = ends_by_itself(&machine, &[args, &["--db", &db, "--upstream", NO_SERVER]].concat());
            assert_eq!(refused.code(), Some(1), "{what}: {refused:?}");
            assert!(refused.stderr.contains("is not a store of the Opik Python SDK"), "{what}: {refused:?}");
        }
        // The same file as an orphan that status lists.
        let status = ends_by_itself(&machine, &["status", "--format", "json", "--db", &db, "--upstream", NO_SERVER]);
        assert!(status.code().is_some_and(|code| code < 5), "{what}: {status:?}");
        fs::remove_file(&path).expect("it is there");
    }
}

/// Runs a command that must end on its own.
#[track_caller]
fn ends_by_itself(machine: &Machine, args: &[&str]) -> Output {
    let mut command = machine.home.command(BINARY);
    command.env("TMPDIR", &machine.shared).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be started");
    let started = Instant::now();
    while child.try_wait().expect("a child can be waited for").is_none() {
        if started.elapsed() > HANGS_AFTER {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{args:?} runs for ever");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("its output can be read");
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_salvage_stops_when_it_is_interrupted() {
    let machine = Machine::new();
    let path = machine.shared.join("tmpstore001/opik_messages.db");
    let rows: Vec<_> = (0..200).map(|_| trace()).collect();
    sdk_store(&path, &rows);
    Connection::open(&path)
        .and_then(|connection| {
            connection.execute_batch(
                "WITH RECURSIVE n(x) AS (SELECT 1000 UNION ALL SELECT x + 1 FROM n WHERE x < 400000)
                 INSERT INTO messages SELECT x, 3, 'CreateTraceMessage', '{}' FROM n",
            )
        })
        .expect("many rows");
    let mut command = machine.home.command(BINARY);
    command.args(["replay", "--upstream", NO_SERVER, "--from"]).arg(&path).arg("--db").arg(machine.home.db());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
    wait_until("the salvage stores rows", PATIENCE, || machine.home.db().exists());
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::INT).expect("it runs");
    let started = Instant::now();
    let status = child.wait().expect("a child can be waited for");
    assert_eq!(status.code(), Some(130), "after {:?}", started.elapsed());
    assert!(path.exists());
}
