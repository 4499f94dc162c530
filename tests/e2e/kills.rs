//! The agent and `replay` are killed at random moments while many writes about a few entities are replayed: the server
//! never applies an older write over a newer one.
//!
//! `OPIK_OFFLINE_REPLAY_KILLS=SEED:KILLS` makes it larger or repeats a run; it is small by default.

use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::chaos::Dice;
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::{Change, Fields};
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{Told, create, create_batch, score, update};

/// Entities in one backlog, of which each is created in another way.
const ENTITIES: usize = 8;
/// Rounds of updates in one backlog.
const UPDATES: u64 = 40;

/// A batch create that an update can be folded into: the server stamps it.
fn unstamped_batch(ids: &[String]) -> Request {
    let traces: Vec<_> =
        ids.iter().map(|id| json!({ "id": id, "name": "chat", "start_time": "2026-03-01T04:00:16Z" })).collect();
    Request::new("POST", "/v1/private/traces/batch").json(&json!({ "traces": traces }))
}

/// Two scores of one name for one trace, the older first, beside one that the server refuses: this batch is divided.
fn scores_with_a_bad_one(id: &str, n: u64, bad: &str) -> Request {
    let of = |id: &str, value: u64| json!({ "id": id, "name": "quality", "source": "sdk", "value": value });
    Request::new("PUT", "/v1/private/traces/feedback-scores")
        .json(&json!({ "scores": [of(id, n), of(id, n + 1), of(bad, 1)] }))
}

/// Stores one backlog while the server is away.
fn fill(agent: &Agent, ledger: &ClientLedger, bad: &str) -> usize {
    let mut app = Told::new(&agent.url(), ledger);
    let ids: Vec<String> = (0..ENTITIES).map(|_| uuid7()).collect();
    let (single, batched) = ids.split_at(ENTITIES / 2);
    single.iter().for_each(|id| drop(app.acknowledged(create(id), 201)));
    app.acknowledged(create_batch(&batched[..1]), 204);
    app.acknowledged(unstamped_batch(&batched[1..]), 204);
    let mut messages = single.len() + 2;
    for n in 1..=UPDATES {
        for id in &ids {
            app.acknowledged(update(id, n), 204);
            messages += 1;
        }
        if n % 8 == 0 {
            app.acknowledged(scores_with_a_bad_one(&ids[n as usize % ENTITIES], n, bad), 204);
            app.acknowledged(score(&ids[n as usize % ENTITIES], (n + 2) as f64), 204);
            messages += 2;
        }
    }
    messages
}

/// The state in which a write leaves its entity, and how new that is.
fn age(change: &Change) -> Option<(String, f64)> {
    let n = |fields: &Fields| fields.get("output").and_then(|output| output["n"].as_f64()).unwrap_or(0.0);
    match change {
        Change::CreateOne(fields) | Change::CreateInBatch(fields) | Change::Update(fields) => {
            Some(("record".to_owned(), n(fields)))
        }
        Change::Score { name, fields } => Some((format!("score {name}"), fields["value"].as_f64()?)),
        _ => None,
    }
}

/// Returns the writes that were applied after a newer one of the same entity was.
fn stale_rewrites(server: &FakeOpik) -> Vec<String> {
    let mut newest: HashMap<(String, String), f64> = HashMap::new();
    let mut stale = Vec::new();
    for request in server.requests().iter().filter(|request| request.processed) {
        // One request is one write of each entity: the last of those that it has.
        let written: HashMap<(String, String), f64> = request
            .writes
            .iter()
            .filter_map(|write| age(&write.change).map(|(what, n)| ((write.key.to_string(), what), n)))
            .collect();
        for ((entity, what), n) in written {
            let known = newest.entry((entity.clone(), what.clone())).or_insert(n);
            if n < *known {
                stale.push(format!("request {}: {entity} {what} {n} over {known}", request.seq));
            }
            *known = known.max(n);
        }
    }
    stale
}

fn start(home: &Home, server: &FakeOpik, dice: &mut Dice) -> Child {
    let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
    if dice.below(3) == 0 {
        command.args(["replay", "--quiet", "--timeout", "30s"]);
        if dice.below(2) == 0 {
            command.args(["--batch-size", &(1 + dice.below(60)).to_string()]);
        }
    } else {
        command.args(["agent", "--listen", "127.0.0.1:0"]).env("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "0.1");
    }
    command.args(["--upstream", &server.url(), "--db"]).arg(home.db());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started")
}

/// Waits until the server has taken `more` requests, and then for so long.
fn wait_for_requests(server: &FakeOpik, more: usize, then: Duration) {
    let writes = || server.requests().iter().filter(|request| !request.writes.is_empty()).count();
    let (until, deadline) = (writes() + more, Instant::now() + Duration::from_secs(3));
    while writes() < until && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(then);
}

#[test]
fn a_replay_killed_at_any_moment_never_writes_older_over_newer() {
    let setting = std::env::var("OPIK_OFFLINE_REPLAY_KILLS").unwrap_or_else(|_| "1:8".into());
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:KILLS")).collect();
    let &[seed, kills] = &numbers[..] else { panic!("OPIK_OFFLINE_REPLAY_KILLS is SEED:KILLS") };
    eprintln!("OPIK_OFFLINE_REPLAY_KILLS={setting}");

    let server = FakeOpik::new_stopped();
    let bad = uuid7();
    let refused = server.always(When::ids([bad.as_str()]), Then::status(400));
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let (mut dice, ledger) = (Dice::new(seed), ClientLedger::new());
    let mut killed = 0;
    let mut messages = 0;
    while killed < kills {
        messages += fill(&agent, &ledger, &bad);
        agent.kill9();
        server.start();
        loop {
            let mut child = start(agent.home(), &server, &mut dice);
            // Some are killed while they begin.
            if dice.below(5) == 0 {
                std::thread::sleep(Duration::from_millis(dice.below(60)));
            } else {
                wait_for_requests(&server, 1 + dice.below(40) as usize, Duration::from_millis(dice.below(8)));
            }
            let ended = child.try_wait().expect("a child can be waited for").is_some();
            child.kill().expect("our own child can be killed");
            child.wait().expect("it ends");
            killed += u64::from(!ended);
            // Requests of the killed process have arrived, or never will.
            std::thread::sleep(Duration::from_millis(5));
            let waits = agent.cli(&["status", "--format", "json"]).json()["backlog"]["messages"].as_u64();
            if waits == Some(0) || killed >= kills {
                break;
            }
        }
        server.stop();
        agent.restart_on_same_port();
    }
    server.start();
    agent.wait_until_delivered();
    let stale = stale_rewrites(&server);
    let requests = server.requests().len();
    eprintln!("{killed} kills, {messages} messages, {requests} requests, {} stale rewrites", stale.len());
    assert!(refused.hits() > 0, "no batch was divided");
    assert!(stale.is_empty(), "{} older writes were applied over newer ones:\n{}", stale.len(), stale.join("\n"));
    server.assert_no_violations();
}

#[test]
fn what_was_folded_into_one_request_before_a_crash_is_not_sent_one_by_one_after_it() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let mut app = Told::new(&agent.url(), &ledger);
    let ids = [uuid7()];
    app.acknowledged(unstamped_batch(&ids), 204);
    (1..=5).for_each(|n| drop(app.acknowledged(update(&ids[0], n), 204)));
    let batch = When::path("/v1/private/traces/batch").method("POST");
    let hang = server.script_times(1, batch.clone(), Then::ProcessThenHang);
    server.start();
    wait_until("the folded request is on its way", PATIENCE, || server.open(&batch) == 1);
    agent.kill9();
    hang.clear();
    // A replay that is killed after it began, and before it sent anything, forgets nothing either.
    server.stop();
    let unreachable = agent.cli(&["replay", "--quiet"]);
    assert_eq!(unreachable.code(), Some(3), "{}", unreachable.stderr);
    server.start();
    let replay = agent.cli(&["replay", "--quiet", "--batch-size", "2"]);
    assert_eq!(replay.code(), Some(0), "{}", replay.stderr);
    assert_eq!(stale_rewrites(&server), [""; 0], "older writes were applied over newer ones");
    server.assert_equals(&ledger);
}

#[test]
fn a_divided_batch_never_writes_older_over_newer_after_a_crash() {
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url()).impatient().start();
    let ledger = ClientLedger::new();
    let (id, bad) = (uuid7(), uuid7());
    let refused = server.always(When::ids([bad.as_str()]), Then::status(400));
    let mut app = Told::new(&agent.url(), &ledger);
    app.acknowledged(create(&id), 201);
    let of = |id: &str, value: u64| json!({ "id": id, "name": "quality", "source": "sdk", "value": value });
    let scores = [of(&id, 1), of(&bad, 1), of(&id, 2), of(&id, 3)];
    let request = Request::new("PUT", "/v1/private/traces/feedback-scores").json(&json!({ "scores": scores }));
    app.acknowledged(request, 204);
    app.acknowledged(score(&id, 4.0), 204);
    // Every score that is taken is the last word before a crash.
    let taken = When::path("/v1/private/traces/feedback-scores");
    for value in 1..=4 {
        let newest = move |request: &crate::support::fake_opik::Received| {
            request.writes.iter().filter_map(|write| age(&write.change)).any(|(_, n)| n == f64::from(value))
        };
        let _hang = server.script_times(1, taken.clone().and(newest), Then::ProcessThenHang);
    }
    server.start();
    for _ in 0..6 {
        wait_until("a score is taken, or all is delivered", PATIENCE, || {
            server.open(&taken) > 0 || agent.backlog() == 0
        });
        agent.kill9();
        server.stop();
        server.start();
        agent.restart_on_same_port();
    }
    agent.wait_until_delivered();
    assert!(refused.hits() > 0, "no batch was divided");
    assert_eq!(stale_rewrites(&server), [""; 0], "older writes were applied over newer ones");
}
