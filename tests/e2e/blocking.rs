//! A command that nobody attends to keeps no application waiting: a list on a full pipe, a question without an answer.

use std::io::{BufReader, Read, Write};
use std::process::{Child, Stdio};

use rustix::io::ioctl_fionread;

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, create, trace};

/// More than any log of a store that is checkpointed may become, in bytes.
const LOG_BYTES_MAX: u64 = 20 * 1024 * 1024;

fn large(id: &str) -> crate::support::http::Request {
    let mut body = trace(id, "chat");
    body["input"] = serde_json::json!({ "text": noise(256 * 1024) });
    crate::support::http::Request::new("POST", "/v1/private/traces").json(&body)
}

fn log_bytes(agent: &Agent) -> u64 {
    let log = agent.db().with_extension("db-wal");
    std::fs::metadata(&log).unwrap_or_else(|why| panic!("{}: {why}", log.display())).len()
}

/// Waits until the pipe takes no more: what is in it has not grown for twenty looks.
fn wait_until_full(child: &Child) {
    let pipe = child.stdout.as_ref().expect("it is piped");
    let (mut last, mut same) = (0, 0);
    wait_until("`inspect` hangs on a pipe that nobody reads", PATIENCE, || {
        let bytes = ioctl_fionread(pipe).expect("a pipe says what is in it");
        same = if bytes == last && bytes > 32 * 1024 { same + 1 } else { 0 };
        last = bytes;
        same >= 20
    });
}

#[test]
fn an_inspect_that_nobody_reads_holds_up_no_write_and_lets_the_log_not_grow() {
    const STORED: usize = 300;
    const LARGE: usize = 160;
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    for _ in 0..STORED {
        app.acknowledged(create(&uuid7()), 201);
    }
    let mut command = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(["inspect", "--limit", "0", "--format", "jsonl", "--db"]).arg(agent.db());
    let mut inspecting = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it can be started");
    wait_until_full(&inspecting);
    for _ in 0..LARGE {
        app.acknowledged(large(&uuid7()), 201);
    }
    let log = log_bytes(&agent);
    assert!(log < LOG_BYTES_MAX, "the log of the store grew to {log} bytes behind a list that nobody reads");
    assert!(inspecting.try_wait().expect("a child can be waited for").is_none(), "the list ended too early to show it");
    // Read at last, it lists at least what was there when it began.
    let mut listed = String::new();
    inspecting.stdout.take().expect("it is piped").read_to_string(&mut listed).expect("lines of JSON");
    assert!(inspecting.wait().expect("a child can be waited for").success());
    assert!(listed.lines().count() >= STORED, "{} of {STORED} messages are listed", listed.lines().count());
    assert_eq!(agent.backlog(), (STORED + LARGE) as u64, "a message acknowledged meanwhile is not stored");
}

#[test]
fn a_purge_that_waits_for_its_answer_holds_up_no_write() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().start();
    let (gone, kept) = (ClientLedger::new(), ClientLedger::new());
    let mut team = Told::new(&agent.url(), &gone).in_workspace("team");
    let mut app = Told::new(&agent.url(), &kept);
    for _ in 0..5 {
        team.acknowledged(create(&uuid7()), 201);
    }
    // A terminal of its own, which `script` makes.
    let binary = env!("CARGO_BIN_EXE_opik-offline");
    let purge = format!("'{binary}' purge --workspace team --db '{}'", agent.db().display());
    let mut command = agent.home().command("script");
    command.args(["-q", "-e", "-c", &purge, "/dev/null"]).env("TERM", "dumb");
    let mut purging =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux's script is there");
    let shown = purging.stdout.take().expect("it is piped");
    // The question has no line end, so it is read byte by byte.
    let (asked, question) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        for byte in BufReader::new(shown).bytes().map_while(Result::ok) {
            text.push(char::from(byte));
            if text.ends_with("[y/N]") {
                // The receiver no longer exists if the test has failed.
                let _ = asked.send(());
            }
        }
        text
    });
    question.recv_timeout(PATIENCE).expect("the purge asks before it deletes");
    for _ in 0..100 {
        app.acknowledged(create(&uuid7()), 201);
    }
    assert_eq!(agent.backlog(), 105, "something was deleted before the answer");
    let mut stdin = purging.stdin.take().expect("it is piped");
    stdin.write_all(b"y\n").expect("the terminal takes an answer");
    let status = purging.wait().expect("a child can be waited for");
    drop(stdin);
    let text = reader.join().expect("the reader reads to the end");
    assert!(status.success(), "{text}");
    assert_eq!(agent.backlog(), 100, "{text}");
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&kept);
}
