//! Private data stays with its owner: other users' leftover files, copies that others could read, keys.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::not_run::not_run;
use crate::support::process::run;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
/// Another user; nothing has to be theirs before.
const STRANGER: u32 = 65_534;

fn leftover() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store/all-types.db")
}

/// Leaves a file as a killed Python process does, with these owners of folder and file.
fn leave(home: &Home, name: &str, folder_of: u32, file_of: u32) -> PathBuf {
    let folder = home.path().join(name);
    fs::DirBuilder::new().mode(0o700).create(&folder).expect("a folder");
    let file = folder.join("opik_messages.db");
    fs::copy(leftover(), &file).expect("a copy of the fixture");
    // Its attachments name a server.
    let rows = rusqlite::Connection::open(&file).expect("it is whole");
    rows.execute("DELETE FROM messages WHERE message_type LIKE '%Attachment%'", []).expect("it is ours");
    rows.close().expect("it can be closed");
    for (path, owner) in [(&file, file_of), (&folder, folder_of)] {
        lchown(path, Some(owner), Some(owner)).expect("root may");
    }
    file
}

#[test]
fn an_agent_adopts_its_own_users_files_only() {
    let me = rustix::process::geteuid().as_raw();
    if me != 0 {
        return not_run("only root can make files of another user");
    }
    let home = Home::new();
    let theirs =
        [("tmptheirs", STRANGER, STRANGER), ("tmptheir-file", me, STRANGER), ("tmptheir-folder", STRANGER, me)]
            .map(|(name, folder_of, file_of)| leave(&home, name, folder_of, file_of));
    let before = theirs.each_ref().map(|path| fs::read(path).expect("root can read it"));
    // Found in the same look as the others.
    let ours = leave(&home, "tmpours", me, me);
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().home(home).arg("--adopt-orphans").start();
    wait_until("the agent takes in its own user's file", PATIENCE, || !ours.exists());
    let adopted = || agent.stderr().matches("stored the messages that a Python process left").count();
    wait_until("the agent says so", PATIENCE, || adopted() > 0);
    std::thread::sleep(std::time::Duration::from_secs(1));
    for (path, before) in theirs.iter().zip(before) {
        assert!(fs::read(path).is_ok_and(|now| now == before), "{} is gone or changed", path.display());
        assert!(!agent.stderr().contains(&path.display().to_string()), "{} was touched", path.display());
    }
    assert_eq!(adopted(), 1, "{}", agent.stderr());
}

#[test]
fn nobody_else_can_look_into_the_copy_of_an_sdks_file() {
    /// Copying it takes long enough to be seen.
    const BYTES: u64 = 400 * 1024 * 1024;
    let home = Home::new();
    let source = home.path().join("left.db");
    fs::copy(leftover(), &source).expect("a copy of the fixture");
    let file = fs::File::options().write(true).open(&source).expect("it is ours");
    file.set_len(BYTES).expect("it is sparse");
    drop(file);
    let mut command = home.command("sh");
    // Whatever the umask is.
    command.args(["-c", r#"umask 0; exec "$0" "$@""#, BINARY, "inspect", "--from"]);
    let mut reading = command.arg(&source).spawn().expect("it can be started");
    let mut modes = Vec::new();
    while reading.try_wait().expect("a child can be waited for").is_none() {
        for entry in fs::read_dir(home.path()).expect("it is ours").flatten() {
            let is_copy = entry.file_name().to_string_lossy().starts_with("opik-offline-");
            modes.extend(entry.metadata().ok().filter(|_| is_copy).map(|metadata| metadata.mode() & 0o777));
        }
    }
    assert!(!modes.is_empty(), "the copy was not seen");
    assert!(modes.iter().all(|mode| *mode == 0o700), "others can look into the copy: {:o}", modes[0]);
}

#[test]
fn a_key_is_kept_with_its_lane_and_not_among_the_headers_of_a_message() {
    const OLD: &str = "made-up-old-key-0123456789";
    const NEW: &str = "made-up-new-key-0123456789";
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url()).with_header("Authorization", OLD);
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    let kept: i64 = rusqlite::Connection::open(agent.db())
        .and_then(|db| {
            let sql = "SELECT count(*) FROM header_sets WHERE instr(lower(CAST(wire AS TEXT)), 'authorization') > 0";
            db.query_row(sql, [], |row| row.get(0))
        })
        .expect("the store can be read");
    assert_eq!(kept, 0, "a key is kept where --rekey does not replace it");

    // And the server gets the one that replaced it, and no other.
    server.always(When::any().authorization(OLD), Then::status(401));
    server.start();
    let held = || agent.cli(&["status", "--format", "json"]).json()["held"].as_array().map_or(0, Vec::len);
    wait_until("the lane is held", PATIENCE, || held() == 1);
    let mut rekey = agent.home().command(BINARY);
    rekey.args(["replay", "--rekey", "--yes", "--upstream", &server.url(), "--db"]).arg(agent.db());
    let rekeyed = run(rekey.env("OPIK_API_KEY", NEW));
    assert_eq!(rekeyed.code(), Some(0), "{}{}", rekeyed.stdout, rekeyed.stderr);
    let last = server.requests().into_iter().rfind(|request| !request.writes.is_empty()).expect("it was delivered");
    let keys = last.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    assert_eq!(keys.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), [NEW]);
}

#[test]
fn a_file_that_is_sent_to_another_origin_carries_no_key_there() {
    const KEY: &str = "made-up-key-0123456789";
    let (server, elsewhere) = (FakeOpik::start_new(), FakeOpik::start_new());
    // As a server answers that keeps files itself, behind another name than the agent's.
    let url = format!("{}/v1/private/attachment/upload", elsewhere.url());
    let start = Answer::json(200, &serde_json::json!({ "upload_id": "BEMinIO", "pre_sign_urls": [url] }));
    let local = server.script(When::path("/v1/private/attachment/upload-start"), Then::Answer(start));
    let agent = Agent::start(&server);
    let id = uuid7();
    let mut client = Client::new(&agent.url()).with_header("Authorization", KEY);
    assert_eq!(client.expect(&create(&id)).status, 201);
    let upload = format!("/v1/private/attachment/upload?file_name=a.txt&entity_type=trace&entity_id={id}");
    assert_eq!(client.expect(&Request::new("PUT", &upload).bytes(vec![7; 10_000])).status, 204);
    wait_until("the bytes are sent there", PATIENCE, || local.hits() > 0 && !elsewhere.requests().is_empty());
    for request in elsewhere.requests() {
        assert!(!format!("{:?}", request.headers).contains(KEY), "another origin got the key: {request:?}");
    }
}
