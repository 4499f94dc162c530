//! Creates that are forwarded unread: order holds, and nothing is lost, even if something fails before their contents
//! are known.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::durability::Dice;
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create_batch, score, trace, update};

const BATCH: &str = "/v1/private/traces/batch";

fn batch(traces: &[Value]) -> Request {
    Request::new("POST", BATCH).json(&json!({ "traces": traces })).gzip()
}

/// A trace whose name the server takes over a create that came before.
fn renamed(id: &str, name: &str, second: u64) -> Value {
    let mut trace = trace(id, name);
    trace["last_updated_at"] = format!("2126-03-01T04:00:{second:02}Z").into();
    trace
}

/// A client whose connection has shown that its creates carry ids.
fn trusted(agent: &Agent) -> Client {
    let mut client = Client::new(&agent.url());
    assert_eq!(client.expect(&create_batch([&uuid7()])).status, 204);
    client
}

#[test]
fn a_body_that_no_server_can_read_gets_the_servers_own_answer_while_it_is_there() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = trusted(&agent);
    let _refusal = server.script(When::path(BATCH), Then::Answer(Answer::error(400, "the server's own words")));
    let broken = Request::new("POST", BATCH).header("Content-Encoding", "gzip").bytes(*b"no gzip\x20\x00\x00\x00");
    let answer = client.expect(&broken);
    assert_eq!((answer.status, &answer.json()["message"]), (400, &json!("the server's own words")));
    server.stop();
    let answer = client.expect(&broken);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_ne!(answer.json()["message"], "the server's own words");
    assert_eq!(agent.backlog(), 0, "a body that no server can read is stored");
}

#[test]
fn creates_without_ids_are_read_and_get_them() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let mut client = Client::new(&agent.url());
    let mut nameless = trace("", "chat");
    nameless.as_object_mut().unwrap().remove("id");
    for _ in 0..3 {
        assert_eq!(client.expect(&batch(std::slice::from_ref(&nameless))).status, 204);
    }
    let sent = server.requests_to("POST", BATCH);
    assert!(sent.iter().flat_map(|request| &request.writes).all(|write| !write.id_invented), "sent without an id");
    assert_eq!(server.count("default", Kind::Trace), 3);
}

#[test]
fn a_later_create_of_the_same_trace_is_the_one_that_stays_when_the_earlier_one_fails() {
    let server = FakeOpik::start_new();
    let agent = Agent::builder(&server.url()).impatient().start();
    let (mut one, mut two) = (trusted(&agent), trusted(&agent));
    for round in 0..6 {
        let (id, first, second) = (uuid7(), uuid7(), uuid7());
        let older = batch(&[renamed(&id, "older", 1), trace(&first, "a")]);
        let newer = batch(&[renamed(&id, "newer", 2), trace(&second, "b")]);
        let fails =
            server.script(When::ids([&*first]), if round % 2 == 0 { Then::Hang } else { Then::ProcessThenHang });
        std::thread::scope(|scope| {
            let older = scope.spawn(|| one.expect(&older));
            wait_until("the older one is in flight", PATIENCE, || fails.hits() == 1);
            let newer = scope.spawn(|| two.expect(&newer));
            // Within a moment it goes unread as well, and is answered; later it waits for the older one.
            let pings = server.requests_to("GET", "/is-alive/ping").len();
            wait_until("the newer one is under way", PATIENCE, || {
                newer.is_finished() || round < 3 || server.requests_to("GET", "/is-alive/ping").len() > pings
            });
            fails.clear();
            assert_eq!((older.join().unwrap().status, newer.join().unwrap().status), (204, 204));
        });
        agent.wait_until_delivered();
        let record = server.entity("default", Kind::Trace, &id).and_then(|entity| entity.record).expect("it is there");
        assert_eq!(record.fields.get("name"), Some(&json!("newer")), "an older write over a newer one, round {round}");
    }
}

/// Sends a write until it is answered, as an SDK does.
fn send(app: &mut Told<'_>, request: &Request, on: &AtomicBool) -> bool {
    while on.load(Ordering::Relaxed) {
        match app.try_send(request) {
            Ok(answer) => {
                assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
                return true;
            }
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => app.client.disconnect(),
        }
    }
    false
}

/// Creates traces in batches, and updates and scores them at once.
fn live(url: &str, ledger: &ClientLedger, seed: u64, on: &AtomicBool) {
    let mut dice = Dice::new(seed);
    let mut app = Told::new(url, ledger);
    while on.load(Ordering::Relaxed) {
        let ids: Vec<String> = (0..=dice.below(3)).map(|_| uuid7()).collect();
        if !send(&mut app, &create_batch(&ids).gzip(), on) {
            return;
        }
        for n in 0..dice.below(4) {
            let id = &ids[dice.below(ids.len() as u64) as usize];
            let write = if dice.below(2) == 0 { update(id, n) } else { score(id, n as f64) };
            if !send(&mut app, &write, on) {
                return;
            }
        }
    }
}

fn storm(seed: u64, agents_count: usize, kills: bool) {
    let server = FakeOpik::start_new();
    let mut agents = vec![Agent::builder(&server.url()).impatient().start()];
    while agents.len() < agents_count {
        let db = agents[0].db().display().to_string();
        let agent = Agent::builder(&server.url()).impatient().home(Home::new()).env("OPIK_OFFLINE_DB", &db);
        agents.push(agent.without_db().start());
    }
    let (ledger, on) = (ClientLedger::new(), AtomicBool::new(true));
    let urls: Vec<String> = agents.iter().map(Agent::url).collect();
    let mut dice = Dice::new(seed);
    std::thread::scope(|scope| {
        for number in 0..64 {
            let (url, ledger, on) = (&urls[number % agents_count], &ledger, &on);
            scope.spawn(move || live(url, ledger, seed * 1000 + number as u64, on));
        }
        for _ in 0..12 {
            let reached = server.requests().len() + 60;
            let mishap = match dice.below(5) {
                0 => Then::Reset,
                1 => Then::ProcessThenReset,
                2 => Then::ProcessThenClose,
                3 => Then::status(503),
                _ => Then::Delay(Duration::from_millis(60)),
            };
            let _stays = server.script_times(1 + dice.below(4) as usize, When::path("/v1/private/*"), mishap);
            let is_far = || server.requests().len() >= reached || agents.iter().any(|agent| agent.backlog() > 20);
            wait_until("the clients continue", PATIENCE, is_far);
            if kills && dice.below(3) == 0 {
                let chosen = dice.below(agents_count as u64) as usize;
                agents[chosen].kill9();
                agents[chosen].restart_on_same_port();
            }
        }
        on.store(false, Ordering::Relaxed);
    });
    server.clear_script();
    agents[0].wait_until_delivered();
    assert!(ledger.entities().len() > 64, "the clients got nothing done");
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_violations();
}

#[test]
fn resets_amid_concurrent_creates_and_updates_cost_no_write_and_no_order() {
    storm(1, 1, false);
}

#[test]
fn kills_amid_unread_creates_make_no_answer_untrue() {
    storm(2, 1, true);
}

#[test]
fn unread_creates_of_two_agents_on_one_store_keep_the_promises() {
    storm(3, 2, true);
}
