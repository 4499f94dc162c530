//! Keys that change while messages wait: a person can give a held lane another one, and no key outlives its messages.

use std::fs;
use std::path::PathBuf;

use crate::support::agent::{Agent, AgentBuilder};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::Client;
use crate::support::process::{Output, run};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, update};

const OLD: &str = "made-up-old-key-0123456789";
const GATE: &str = "made-up-token-of-a-gate-4711";
const COOKIE: &str = "session=made-up-cookie-of-a-gate-4712";
const NEW: &str = "made-up-new-key-0123456789";

fn agent(server: &FakeOpik) -> AgentBuilder {
    Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("500ms")
}

fn has(server: &FakeOpik, workspace: &str, id: &str) -> bool {
    server.entity(workspace, Kind::Trace, id).is_some_and(|entity| entity.record.is_some())
}

/// Runs a command on the agent's store with this key in the environment.
fn cli_with_key(agent: &Agent, server: &FakeOpik, key: &str, args: &[&str]) -> Output {
    let mut command = agent.home().command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(args).args(["--upstream", &server.url(), "--db"]).arg(agent.db()).env("OPIK_API_KEY", key);
    run(&mut command)
}

/// An agent that holds traces of two workspaces under a key that the server refuses.
fn held(server: &FakeOpik, builder: AgentBuilder) -> (Agent, [String; 4]) {
    let agent = builder.start();
    let ids = [uuid7(), uuid7(), uuid7(), uuid7()];
    for (number, id) in ids.iter().enumerate() {
        let workspace = if number < 3 { "default" } else { "team" };
        let mut client =
            Client::new(&agent.url()).with_header("Authorization", OLD).with_header("Comet-Workspace", workspace);
        assert_eq!(client.expect(&create(id)).status, 201);
        assert_eq!(client.expect(&update(id, 1)).status, 204);
    }
    server.always(When::any().authorization(OLD), Then::status(401));
    server.start();
    let held = || agent.cli(&["status", "--format", "json"]).json()["held"].as_array().map_or(0, Vec::len);
    wait_until("both lanes are held", PATIENCE, || held() == 2);
    (agent, ids)
}

#[test]
fn a_revoked_key_is_replaced_when_a_person_says_so_and_not_before() {
    let server = FakeOpik::new_stopped();
    let (agent, ids) = held(&server, agent(&server));
    let status = agent.cli(&["status"]).stdout;
    assert!(status.contains("replay --rekey"), "nobody learns what to do: {status}");

    let without = agent.cli(&["replay", "--rekey", "--yes"]);
    assert_eq!(without.code(), Some(2), "{}", without.stderr);
    assert!(without.stderr.contains("no API key is configured"), "{}", without.stderr);
    let preview = cli_with_key(&agent, &server, NEW, &["replay", "--rekey", "--dry-run"]);
    assert_eq!(preview.code(), Some(0), "{}", preview.stderr);
    assert!(preview.stdout.contains("would give 8 messages another destination"), "{}", preview.stdout);
    assert!(!preview.stdout.contains(&NEW[6..]) && !preview.stdout.contains(&OLD[6..]), "{}", preview.stdout);
    let unasked = cli_with_key(&agent, &server, NEW, &["replay", "--rekey"]);
    assert_eq!(unasked.code(), Some(2), "{}", unasked.stderr);
    assert!(ids.iter().all(|id| !has(&server, "default", id)), "it was re-keyed without a yes");

    // One workspace first.
    let team = cli_with_key(&agent, &server, NEW, &["replay", "--rekey", "--yes", "--workspace", "team"]);
    assert_eq!(team.code(), Some(0), "{}{}", team.stdout, team.stderr);
    assert!(has(&server, "team", &ids[3]) && !has(&server, "default", &ids[0]));
    let all = cli_with_key(&agent, &server, NEW, &["replay", "--rekey", "--yes"]);
    assert_eq!(all.code(), Some(0), "{}{}", all.stdout, all.stderr);
    assert!(ids[..3].iter().all(|id| has(&server, "default", id)), "re-keyed messages were not delivered");
    assert_eq!(agent.backlog(), 0);
    server.assert_no_update_before_create();
}

#[test]
fn an_agent_replaces_refused_keys_only_where_it_is_allowed_to() {
    let server = FakeOpik::new_stopped();
    let (_agent, ids) = held(&server, agent(&server).arg("--rekey-refused").env("OPIK_API_KEY", NEW));
    wait_until("the configured workspace is delivered", PATIENCE, || {
        ids[..3].iter().all(|id| has(&server, "default", id))
    });
    server.assert_no_update_before_create();
    assert!(!has(&server, "team", &ids[3]), "the key of one workspace was used for another");

    let server = FakeOpik::new_stopped();
    let (agent, ids) = held(&server, agent(&server).env("OPIK_API_KEY", NEW));
    let tries = || server.requests().iter().filter(|request| !request.writes.is_empty()).count();
    let before = tries();
    wait_until("the held lanes were tried again", PATIENCE, || tries() >= before + 4);
    assert!(ids.iter().all(|id| !has(&server, "default", id)), "it was re-keyed without being asked");
    assert_eq!(agent.backlog(), 8);
}

/// The files of the agent's store.
fn files(agent: &Agent) -> Vec<PathBuf> {
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", agent.db().display()));
    ["", "-wal", "-shm"].map(beside).into_iter().filter(|path| path.exists()).collect()
}

fn tokens_found(agent: &Agent, tokens: &[String]) -> usize {
    let bytes: Vec<u8> = files(agent).iter().flat_map(|path| fs::read(path).unwrap_or_default()).collect();
    tokens.iter().filter(|token| memchr::memmem::find(&bytes, token.as_bytes()).is_some()).count()
}

#[test]
fn no_token_stays_in_the_files_after_its_messages() {
    const TOKENS: usize = 400;
    let server = FakeOpik::new_stopped();
    let mut agent = agent(&server).start();
    let tokens: Vec<String> = (0..TOKENS).map(|_| format!("one-time-token-{}", uuid7())).collect();
    for token in &tokens {
        let mut client = Client::new(&agent.url()).with_header("Authorization", token);
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
    // A gate's token, and its cookie, are as secret.
    for (header, value) in [("X-Gate-Token", GATE), ("Cookie", COOKIE)] {
        let mut client = Client::new(&agent.url()).with_header(header, value);
        assert_eq!(client.expect(&create(&uuid7())).status, 201);
    }
    let gates = [GATE.to_owned(), COOKIE.to_owned()];
    assert_eq!(tokens_found(&agent, &gates), 2, "the test looks in the wrong place");
    assert_eq!(tokens_found(&agent, &tokens), TOKENS, "the test looks in the wrong place");
    server.start();
    agent.wait_until_delivered();
    wait_until("no token can be read from the files", PATIENCE, || tokens_found(&agent, &tokens) == 0);
    wait_until("no gate's token can be read", PATIENCE, || tokens_found(&agent, &gates) == 0);

    // A purge also erases the tokens of what it deletes; and a killed agent's successor erases at its start.
    server.stop();
    let mut client = Client::new(&agent.url()).with_header("Authorization", &tokens[0]);
    assert_eq!(client.expect(&create(&uuid7())).status, 201);
    agent.kill9();
    assert_eq!(tokens_found(&agent, &tokens), 1, "the message that waits needs its token");
    assert_eq!(agent.cli(&["purge", "--yes"]).code(), Some(0));
    assert_eq!(tokens_found(&agent, &tokens), 0, "a purged message's token can still be read");
}

#[test]
fn a_fronts_403_is_no_word_about_a_key() {
    let server = FakeOpik::new_stopped();
    let agent = agent(&server).arg("--rekey-refused").env("OPIK_API_KEY", NEW).start();
    let id = uuid7();
    let mut client = Client::new(&agent.url()).with_header("Authorization", OLD);
    assert_eq!(client.expect(&create(&id)).status, 201);
    let answer = Answer::raw(403, "text/html", "<title>Just a moment...</title>");
    let other = server.script(When::path("/v1/private/**").authorization(NEW), Then::status(401));
    let front = server.script(When::path("/v1/private/**"), Then::Answer(answer));
    server.start();
    wait_until("the front is met", PATIENCE, || front.hits() >= 4);
    front.clear();
    agent.wait_until_delivered();
    assert_eq!(other.hits(), 0, "another key was used for a front's 403");
    assert!(has(&server, "default", &id));
}
