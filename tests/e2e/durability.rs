//! Many clients write while the server comes and goes and the agent is killed and started again, at moments that a
//! seed decides: every answer to a client is true in the end, and every entity has its writes in the order of
//! acceptance.
//!
//! `OPIK_OFFLINE_CHAOS=SEED:STEPS:CLIENTS` makes it larger or repeats a run; it is small by default.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::uuid7;
use crate::writes::{Told, create, create_batch, score, span, update};

/// xorshift64*: enough for dice, and the same on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// Sends a write until it is answered, as an SDK does, and notes every try that may have arrived.
fn send(app: &mut Told<'_>, request: &Request, on: &AtomicBool) {
    while on.load(Ordering::Relaxed) {
        match app.try_send(request) {
            Ok(answer) => {
                assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
                return;
            }
            // The agent is dead; the one that follows it listens on the same port.
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => app.client.disconnect(),
        }
    }
}

fn client(url: &str, ledger: &ClientLedger, seed: u64, on: &AtomicBool) {
    let mut dice = Dice::new(seed);
    let workspaces = ["default", "team-a", "team-b"];
    let mut apps: Vec<Told<'_>> =
        workspaces.iter().map(|workspace| Told::new(url, ledger).in_workspace(workspace)).collect();
    let mut known: Vec<(usize, String)> = Vec::new();
    let mut n = 0;
    while on.load(Ordering::Relaxed) {
        n += 1;
        let place = dice.below(3) as usize;
        let app = &mut apps[place];
        let recent = known.len().saturating_sub(20);
        let old = (known.len() > recent)
            .then(|| known[recent + dice.below(20).min((known.len() - recent) as u64 - 1) as usize].clone());
        match (dice.below(8), old) {
            (0 | 1, _) | (_, None) => {
                let id = uuid7();
                send(app, &create(&id), on);
                known.push((place, id));
            }
            (2, _) => {
                let ids: Vec<String> = (0..=dice.below(5)).map(|_| uuid7()).collect();
                send(app, &create_batch(&ids).gzip(), on);
                known.extend(ids.into_iter().map(|id| (place, id)));
            }
            (3, _) => {
                // A span may come before its trace.
                let id = uuid7();
                if dice.below(4) == 0 {
                    send(app, &span(&uuid7(), &id), on);
                }
                send(app, &create(&id), on);
                send(app, &update(&id, n), on);
                known.push((place, id));
            }
            (4, Some((place, id))) => send(&mut apps[place], &score(&id, n as f64), on),
            (_, Some((place, id))) => send(&mut apps[place], &update(&id, n), on),
        }
        std::thread::sleep(Duration::from_millis(dice.below(4)));
    }
}

#[test]
fn every_answer_to_a_client_is_true_after_any_kills() {
    let setting = std::env::var("OPIK_OFFLINE_CHAOS").unwrap_or_else(|_| "1:40:8".into());
    let numbers: Vec<u64> = setting.split(':').map(|n| n.parse().expect("SEED:STEPS:CLIENTS")).collect();
    let &[seed, steps, clients] = &numbers[..] else { panic!("OPIK_OFFLINE_CHAOS is SEED:STEPS:CLIENTS") };
    eprintln!("OPIK_OFFLINE_CHAOS={setting}");

    let server = FakeOpik::start_new();
    let mut agent = Agent::builder(&server.url()).impatient().arg("--retry-interval").arg("1s").start();
    let ledger = ClientLedger::new();
    let (url, on) = (agent.url(), AtomicBool::new(true));
    let mut dice = Dice::new(seed);
    std::thread::scope(|scope| {
        let _ends = OffOnDrop(&on);
        for n in 0..clients {
            let (url, ledger, on) = (&url, &ledger, &on);
            scope.spawn(move || client(url, ledger, seed * 1000 + n, on));
        }
        for _ in 0..steps {
            std::thread::sleep(Duration::from_millis(20 + dice.below(150)));
            match dice.below(10) {
                0 | 1 => server.stop(),
                2..=4 => server.start(),
                5 => {
                    let times = 1 + dice.below(5) as usize;
                    let then = match dice.below(6) {
                        0 => Then::ResetUnread,
                        1 => Then::ProcessThenReset,
                        2 => Then::Truncate,
                        3 => Then::status(500),
                        4 => Then::status(503),
                        _ => Then::rate_limited(1),
                    };
                    let _stays = server.script_times(times, When::path("/v1/private/*"), then);
                }
                6..=8 => {
                    // Two of three in an outage: a kill finds an acknowledgement that came too early only while
                    // writes are stored.
                    if dice.below(3) > 0 {
                        server.stop();
                        std::thread::sleep(Duration::from_millis(30 + dice.below(60)));
                    }
                    agent.kill9();
                    std::thread::sleep(Duration::from_millis(dice.below(50)));
                    agent.restart_on_same_port();
                }
                _ => {
                    assert!(agent.terminate().success());
                    agent.restart_on_same_port();
                }
            }
        }
    });
    server.clear_script();
    server.start();
    // A killed replay's lease expires, which takes 30 seconds.
    agent.wait_until_delivered();
    assert!(ledger.entities().len() > clients as usize, "the clients got nothing done");
    eprintln!("{} entities, {} requests at the server", ledger.entities().len(), server.requests().len());
    server.assert_equals(&ledger);
    server.assert_order(&ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
}

/// Ends the clients when the conductor ends, by a failure too.
struct OffOnDrop<'a>(&'a AtomicBool);

impl Drop for OffOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
