//! Everything at once, from one seed: clients with lives of all kinds of entities, a server that goes wrong in every
//! way it can, kills, a replay beside the agent, two agents on one store. Then an oracle: every write that a client was
//! told of is on the server, or in the store as rejected where the server refused it, with its words; of every entity
//! the writes came in the order in which they were accepted; and what the refusals cost was counted.
//!
//! `OPIK_OFFLINE_STORM=SEED:STEPS:CLIENTS` repeats a run or makes it larger; it is small by default, and printed. The
//! seed decides who does what and what goes wrong when; how threads and processes interleave, no seed decides.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::chaos::Dice;
use crate::mixed::{self, Numbers};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::check::Write;
use crate::support::fake_opik::{Answer, FakeOpik, Scripted, Then, When, writes_of};
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, create_batch, delete, score, update};

const WORDS: &str = "the project of this trace is archived";
/// The one whose key expires.
const KEYED: &str = "team-b";
const WORKSPACES: [&str; 4] = ["default", "team-a", KEYED, "team-c"];

/// Ids that the server refuses in every write.
type Poison = Arc<Mutex<BTreeSet<String>>>;

/// The writes about one new trace and what belongs to it, in their order.
fn life(dice: &mut Dice, client: u64) -> Vec<Request> {
    if dice.below(3) < 2 {
        return mixed::life(&mut Numbers(dice.below(1 << 30)), client);
    }
    let id = uuid7();
    let mut writes = match dice.below(3) {
        0 => vec![create(&id)],
        1 => vec![create(&id).gzip()],
        _ => {
            let others: Vec<String> = (0..=dice.below(12)).map(|_| uuid7()).collect();
            vec![create_batch([&id].into_iter().chain(&others)).gzip()]
        }
    };
    for n in 0..dice.below(8) {
        writes.push(if dice.below(3) == 0 { score(&id, n as f64) } else { update(&id, n) });
    }
    if dice.below(5) == 0 {
        writes.push(delete(&id));
    }
    writes
}

fn ids(request: &Request) -> Vec<String> {
    let writes = writes_of(&request.method, &request.path, &request.headers, &request.body);
    writes.expect("the clients write what the server takes").into_iter().map(|write| write.key.id).collect()
}

struct Shared<'a> {
    /// Where agents listen; a client goes to another one when its own is gone.
    urls: &'a [String],
    ledger: &'a ClientLedger,
    poison: &'a Poison,
    on: &'a AtomicBool,
    /// Requests of clients that the server refused for poison.
    told_of_poison: &'a AtomicUsize,
}

impl Shared<'_> {
    /// Sends a write until it is answered, as an SDK does; returns whether it was accepted.
    fn send(&self, clients: &mut [Client], dice: &mut Dice, workspace: &str, request: Request) -> Option<bool> {
        let request = request.header("Comet-Workspace", workspace);
        let request = if workspace == KEYED { request.header("Authorization", "key") } else { request };
        while self.on.load(Ordering::Relaxed) {
            let client = &mut clients[dice.below(self.urls.len() as u64) as usize];
            let answer = client.send(&request);
            match &answer {
                // The agent is dead; the one that follows it listens on the same port.
                Err(why) if why.kind() == ErrorKind::ConnectionRefused => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(_) => {
                    client.disconnect();
                    self.ledger.told(&request, &answer);
                    continue;
                }
                Ok(answer) => {
                    let is_poison = || {
                        let poison = self.poison.lock().expect("no thread panicked");
                        ids(&request).iter().any(|id| poison.contains(id))
                    };
                    match answer.status {
                        200..=299 => {}
                        422 if is_poison() => drop(self.told_of_poison.fetch_add(1, Ordering::Relaxed)),
                        401..=403 if workspace == KEYED => {}
                        413 => {}
                        status => {
                            let Request { method, path, .. } = &request;
                            panic!("{method} {path} in {workspace} got {status} {}", answer.text());
                        }
                    }
                }
            }
            self.ledger.told(&request, &answer);
            return Some(answer.is_ok_and(|answer| answer.status < 300));
        }
        None
    }

    fn client(&self, seed: u64, number: u64) {
        let mut dice = Dice::new(seed);
        let mut clients: Vec<Client> = self.urls.iter().map(|url| Client::new(url)).collect();
        let mut lives: Vec<(&str, bool, std::vec::IntoIter<Request>)> = Vec::new();
        while self.on.load(Ordering::Relaxed) {
            if lives.len() < 6 {
                let life = life(&mut dice, number);
                let is_poison = dice.below(12) == 0;
                if is_poison {
                    self.poison.lock().expect("no thread panicked").insert(ids(&life[0])[0].clone());
                }
                lives.push((WORKSPACES[dice.below(4) as usize], is_poison, life.into_iter()));
            }
            let at = dice.below(lives.len() as u64) as usize;
            let (workspace, is_poison, life) = &mut lives[at];
            let Some(request) = life.next() else {
                lives.swap_remove(at);
                continue;
            };
            let (workspace, is_poison) = (*workspace, *is_poison);
            if self.send(&mut clients, &mut dice, workspace, request) == Some(false) && !is_poison {
                // A refused write is for the client to fix; this one gives up the whole life.
                lives.swap_remove(at);
            }
            std::thread::sleep(Duration::from_millis(dice.below(4)));
        }
    }
}

/// A fault of a few requests.
fn mishap(dice: &mut Dice) -> Then {
    let statuses = [408, 425, 500, 502, 503, 504, 507, 509, 520, 524];
    let now = std::time::SystemTime::now();
    let limited = |name: &str, value: &str| Then::Answer(Answer::error(429, "Too Many Requests").with(name, value));
    match dice.below(16) {
        0 => Then::ResetUnread,
        1 => Then::Reset,
        2 => Then::ProcessThenReset,
        3 => Then::ProcessThenClose,
        4 => Then::Truncate,
        5 => Then::garbage(),
        6 => Then::Hang,
        7 => Then::ProcessThenHang,
        8 => Then::Delay(Duration::from_millis(50 + dice.below(300))),
        9 => Then::rate_limited(1),
        10 => limited("Retry-After", "1"),
        11 => limited("Retry-After", &httpdate::fmt_http_date(now + Duration::from_secs(2))),
        12 => Then::status(429),
        _ => Then::status(statuses[dice.below(statuses.len() as u64) as usize]),
    }
}

/// Whom it meets.
fn victims(dice: &mut Dice) -> When {
    match dice.below(4) {
        0 => When::path("/v1/private/traces*"),
        1 => When::path("/v1/private/*").workspace(WORKSPACES[dice.below(4) as usize]),
        2 => When::path("/v1/private/spans*"),
        _ => When::path("/v1/private/*"),
    }
}

/// A spell of bad weather that lasts until it is cleared.
fn spell<'a>(dice: &mut Dice, server: &'a FakeOpik) -> Scripted<'a> {
    match dice.below(7) {
        0 => {
            let status = 401 + dice.below(3) as u16;
            server.script(When::write().authorization("key"), Then::Answer(Answer::error(status, "API key expired")))
        }
        1 => server.script(When::write().larger_than(1_500), Then::Answer(Answer::error(413, "too large"))),
        2 => server.script(When::write().workspace("team-a").beyond_rate(10), Then::rate_limited(1)),
        3 => server.script(When::write().workspace("team-c"), Then::Hang),
        4 => server.script(When::write().flapping(Duration::from_millis(200)), Then::Reset),
        5 => server.script(When::any().flapping(Duration::from_millis(300)), Then::status(502)),
        _ => server.script(When::write(), Then::Delay(Duration::from_millis(30))),
    }
}

fn storm(setting: &str, agents_count: usize) {
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:STEPS:CLIENTS")).collect();
    let &[seed, steps, clients] = &numbers[..] else { panic!("OPIK_OFFLINE_STORM is SEED:STEPS:CLIENTS") };
    eprintln!("OPIK_OFFLINE_STORM={setting} with {agents_count} agents");

    let server = FakeOpik::start_new();
    let poison = Poison::default();
    let refuses = {
        let poison = Arc::clone(&poison);
        move |request: &crate::support::fake_opik::Received| {
            let poison = poison.lock().expect("no thread panicked");
            request.writes.iter().any(|write| poison.contains(&write.key.id))
        }
    };
    let refused = server.always(When::write().and(refuses), Then::Answer(Answer::error(422, WORDS)));
    let agent = || {
        let agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("500ms");
        agent.arg("--forward-timeout").arg("700ms").arg("--max-attempts").arg("1000")
    };
    let mut agents = vec![agent().start()];
    while agents.len() < agents_count {
        let db = agents[0].db().display().to_string();
        agents.push(agent().home(Home::new()).env("OPIK_OFFLINE_DB", &db).without_db().start());
    }
    let ledger = ClientLedger::new();
    early_updates(&server, &agents[0], &ledger);

    let urls: Vec<String> = agents.iter().map(Agent::url).collect();
    let (on, told_of_poison) = (AtomicBool::new(true), AtomicUsize::new(0));
    let shared = Shared { urls: &urls, ledger: &ledger, poison: &poison, on: &on, told_of_poison: &told_of_poison };
    let mut dice = Dice::new(seed);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let _ends = OffOnDrop(&on);
        let shared = &shared;
        for n in 0..clients {
            scope.spawn(move || shared.client(seed * 1000 + n, n));
        }
        let mut spells: Vec<Scripted<'_>> = Vec::new();
        for _ in 0..steps {
            std::thread::sleep(Duration::from_millis(20 + dice.below(130)));
            let chosen = dice.below(agents_count as u64) as usize;
            match dice.below(16) {
                0 | 1 => server.stop(),
                2..=5 => server.start(),
                6..=8 => {
                    let (times, when, then) = (1 + dice.below(6) as usize, victims(&mut dice), mishap(&mut dice));
                    let _stays = server.script_times(times, when, then);
                }
                9 | 10 => spells.push(spell(&mut dice, &server)),
                11 | 12 => spells.drain(..).for_each(Scripted::clear),
                13 => {
                    kills += 1;
                    agents[chosen].kill9();
                    std::thread::sleep(Duration::from_millis(dice.below(50)));
                    agents[chosen].restart_on_same_port();
                }
                14 => {
                    assert!(agents[chosen].terminate().success());
                    agents[chosen].restart_on_same_port();
                }
                _ => {
                    let beside = agents[chosen].cli(&["replay", "--batch-size", "7", "--timeout", "1s", "--quiet"]);
                    let fine = beside.code().is_some_and(|code| [0, 1, 3, 4].contains(&code));
                    assert!(fine, "{:?} {}", beside.code(), beside.stderr);
                }
            }
            assert!(agents.iter_mut().all(Agent::is_running), "an agent ended without a reason");
        }
    });
    server.clear_script();
    server.start();
    // Writes that follow a refused create stay until a person decides.
    wait_until("the backlog is delivered", 2 * PATIENCE, || {
        let status = agents[0].cli(&["status", "--format", "json"]).json();
        let stranded = status["stranded"].as_array().into_iter().flatten();
        let stranded: u64 = stranded.filter_map(|lane| lane["messages"].as_u64()).sum();
        status["backlog"]["messages"] == stranded
    });

    let poison = poison.lock().expect("no thread panicked").clone();
    let (stranded, followers) = stranded_writes(&agents[0], &poison);
    let unfinished = poison.union(&followers).cloned().collect();
    let good = ledger.without(&unfinished);
    assert!(good.entities().len() > clients as usize, "the clients got nothing done");
    server.assert_equals_besides(&good, &unfinished);
    server.assert_order(&good);
    assert_no_update_before_create(&server);
    server.assert_no_violations();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    let kept = assert_rejected_are_the_refused(&server, &agents[0], &ledger, &poison, stranded);
    // Requests that were refused: those that clients were told of, and for each message that is kept what it cost to
    // find it among others (a batch has 1,000 items at most, a division that a kill interrupts begins again).
    let spent = refused.hits() - told_of_poison.load(Ordering::Relaxed);
    let bound = (kept + kills) * 2 * 10;
    assert!(spent <= bound, "{spent} requests were spent on {kept} refused messages with {kills} kills");
    eprintln!(
        "{} entities, {} requests, {spent} of them to isolate {kept} refused messages, {kills} kills",
        good.entities().len(),
        server.requests().len(),
    );
}

/// Checks that no update reached the server before the create of its entity. A replay that was killed after its batch
/// was confirmed sends it again, update and deletion: that update finds nothing and does not count as early.
#[track_caller]
fn assert_no_update_before_create(server: &FakeOpik) {
    let requests = server.requests();
    for early in server.early_updates() {
        let about = requests[..early.seq].iter().filter(|request| request.processed && request.touches(&early.key));
        let mut before = about.flat_map(|request| &request.writes).filter(|write| write.key == early.key);
        let is_repeat = before.any(|write| write.change.is_create());
        assert!(
            is_repeat,
            "an update of {} (request {}) came before its create and hides its fields",
            early.key, early.seq
        );
    }
}

/// Updates that are accepted before their create, as the SDKs sometimes send them, in an outage.
fn early_updates(server: &FakeOpik, agent: &Agent, ledger: &ClientLedger) {
    server.stop();
    let mut client = Client::new(&agent.url());
    for n in 0..5 {
        let id = uuid7();
        for request in [update(&id, n), update(&id, n + 1), create(&id), update(&id, n + 2), score(&id, 1.0)] {
            let request = request.header("Comet-Workspace", "team-a");
            let answer = client.send(&request);
            assert!(answer.as_ref().is_ok_and(|answer| answer.status < 300), "{answer:?}");
            ledger.told(&request, &answer);
        }
    }
    server.start();
}

/// Returns what waits with a refused create, by workspace, and the ids that it is about. Each such message names
/// poison, or what an earlier one of them names.
#[track_caller]
fn stranded_writes(agent: &Agent, poison: &BTreeSet<String>) -> (Vec<(String, Write)>, BTreeSet<String>) {
    let mut stranded = Vec::new();
    let mut waited_for = poison.clone();
    let listed = agent.cli(&["inspect", "--status", "failed", "--limit", "0", "--format", "json"]).json();
    for message in listed["messages"].as_array().expect("a list") {
        let (whole, writes) = whole(agent, message);
        let text = format!("{} {}", whole["path"], whole["body"]);
        assert!(
            waited_for.iter().any(|id| text.contains(id.as_str())),
            "it waits for nothing that was refused: {whole}"
        );
        let workspace = whole["workspace"].as_str().expect("a workspace");
        let named = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-').filter(|word| word.len() == 36);
        waited_for.extend(named.map(str::to_owned));
        stranded.extend(writes.into_iter().map(|write| (workspace.to_owned(), write)));
    }
    let ids = stranded.iter().map(|(_, write)| write.key.id.clone()).collect();
    (stranded, ids)
}

/// Returns all of a listed message, and what it writes.
#[track_caller]
fn whole(agent: &Agent, message: &serde_json::Value) -> (serde_json::Value, Vec<Write>) {
    let whole = agent.cli(&["inspect", &message["id"].to_string(), "--format", "json"]).json();
    let path = format!("/{}", whole["path"].as_str().expect("a path").trim_start_matches('/'));
    let method = whole["method"].as_str().expect("a method");
    let body = whole["body"].as_str().unwrap_or_default();
    let json = [("Content-Type".to_owned(), "application/json".to_owned())];
    let writes = writes_of(method, &path, &json, body.as_bytes()).expect("it was accepted");
    (whole, writes)
}

/// Checks that the store keeps what clients were told about poison, all of it and nothing else: `stranded`, or rejected
/// with the server's words; returns how many messages are rejected.
#[track_caller]
fn assert_rejected_are_the_refused(
    server: &FakeOpik,
    agent: &Agent,
    ledger: &ClientLedger,
    poison: &BTreeSet<String>,
    stranded: Vec<(String, Write)>,
) -> usize {
    let mut kept = stranded;
    let listed = agent.cli(&["inspect", "--rejected", "--limit", "0", "--format", "json"]).json();
    let listed = listed["messages"].as_array().expect("a list");
    for message in listed {
        let (whole, writes) = whole(agent, message);
        let answer = &whole["answer"];
        let by_the_server = answer["status"] == 422 && answer["text"].as_str().is_some_and(|text| text.contains(WORDS));
        assert!(by_the_server, "rejected without the server's words: {whole}");
        for write in writes {
            assert!(poison.contains(&write.key.id), "a good write was rejected with a bad one: {whole}");
            kept.push((whole["workspace"].as_str().expect("a workspace").to_owned(), write));
        }
    }
    let lost: Vec<String> = ledger
        .accepted_about(poison)
        .iter()
        .filter(|(workspace, accepted)| {
            !kept.iter().any(|(lane, write)| {
                lane == workspace && write.key == accepted.key && write.change.same_content(&accepted.change)
            })
        })
        .map(|(workspace, write)| format!("{workspace}: {} {}", write.key, write.change))
        .collect();
    assert!(lost.is_empty(), "accepted, refused by the server, and not kept for anyone:\n{}", lost.join("\n"));
    for (workspace, entities) in server.state() {
        let known = entities.into_keys().find(|key| poison.contains(&key.id));
        assert!(known.is_none(), "{workspace}: {known:?} was refused and is there");
    }
    listed.len()
}

/// Ends the clients when the conductor ends, by a failure too.
struct OffOnDrop<'a>(&'a AtomicBool);

impl Drop for OffOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn setting(default: &str) -> String {
    std::env::var("OPIK_OFFLINE_STORM").unwrap_or_else(|_| default.to_owned())
}

#[test]
fn whatever_the_server_does_what_clients_were_told_is_true() {
    storm(&setting("1:50:6"), 1);
}

#[test]
fn two_agents_on_one_store_keep_what_both_have_told() {
    storm(&setting("2:40:6"), 2);
}
