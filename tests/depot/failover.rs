//! A server is killed in the middle of its work and its standby takes over: nothing that was reported as written is
//! lost. The same without synchronous replication must lose something, or the test would prove nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use opik_offline::depot::{Created, Depot, DepotError, Name};

use crate::contract::name;
use crate::postgres::LONG;
use crate::postgres::servers::Servers;
use crate::support::{PATIENCE, wait_until};

/// Threads that ship, each with a connection of its own.
const SHIPPERS: usize = 3;
/// Bundles that each round ships before the kill, and again after it.
const BUNDLES: usize = 100;
/// Time-out of a call: what hangs is tried again.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// How a round goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FailoverRound {
    /// Whether commits wait for the standby.
    is_synchronous: bool,
    /// Whether the standby stops receiving before the server is killed.
    stops_receiving: bool,
}

/// Answers that callers received.
#[derive(Default)]
struct Told {
    /// Bundles that count as shipped.
    shipped: Mutex<BTreeMap<Name, Vec<u8>>>,
    /// The last head that was swapped in.
    head: Mutex<u64>,
    is_over: AtomicBool,
}

impl Told {
    fn count(&self) -> usize {
        self.shipped.lock().unwrap().len()
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }
}

/// Returns the number of rounds, from `OPIK_OFFLINE_FAILOVERS`.
fn rounds() -> usize {
    std::env::var("OPIK_OFFLINE_FAILOVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn pause_after(error: &DepotError) {
    assert!(error.is_passing(), "a failover ends shipping for good: {error}");
    thread::sleep(PAUSE);
}

fn ship(servers: &Servers, shipper: usize, told: &Told) {
    let depot = servers.depot(TIMEOUT);
    for nr in (0..).take_while(|_| told.goes_on()) {
        let bundle = name(&format!("v1/bundles/{shipper}/{nr:08}"));
        let bytes = format!("bundle {nr} of shipper {shipper} ").repeat(40).into_bytes();
        while told.goes_on() {
            match depot.create(&bundle, &bytes) {
                Ok(Created::New | Created::AlreadyThere) => {
                    told.shipped.lock().unwrap().insert(bundle, bytes);
                    break;
                }
                Err(error) => pause_after(&error),
            }
        }
    }
}

/// Renews a head, each time with the next number; after an unknown outcome it reads which one is there.
fn renew(servers: &Servers, told: &Told) {
    let depot = servers.depot(TIMEOUT);
    let head = name("v1/heads/a");
    let mut version = None;
    let mut number = 0_u64;
    while told.goes_on() {
        match depot.swap(&head, version.as_ref(), (number + 1).to_string().as_bytes()) {
            Ok(swapped) => {
                (version, number) = (Some(swapped), number + 1);
                *told.head.lock().unwrap() = number;
            }
            Err(DepotError::UnknownOutcome { .. } | DepotError::Lost { .. }) => {
                while told.goes_on() {
                    match depot.get(&head) {
                        Ok(Some((bytes, found))) => {
                            number = String::from_utf8(bytes).unwrap().parse().unwrap();
                            version = Some(found);
                            *told.head.lock().unwrap() = number;
                            break;
                        }
                        Ok(None) => break,
                        Err(error) => pause_after(&error),
                    }
                }
            }
            Err(error) => pause_after(&error),
        }
    }
}

/// Runs one round; returns how many bundles count as shipped, how many of them are lost, and whether the head is.
fn run(servers: &Servers, round: FailoverRound) -> (usize, usize, bool) {
    servers.set_synchronous(round.is_synchronous);
    let told = Told::default();
    let at_kill = thread::scope(|scope| {
        let told = &told;
        for shipper in 0..SHIPPERS {
            scope.spawn(move || ship(servers, shipper, told));
        }
        scope.spawn(move || renew(servers, told));
        wait_until("bundles are shipped", PATIENCE, || told.count() >= BUNDLES);
        if round.stops_receiving {
            servers.stop_receiving();
            let before = told.count();
            match round.is_synchronous {
                true => wait_until("writes wait", PATIENCE, || servers.waiting_for_standby() >= SHIPPERS),
                false => wait_until("more is shipped", PATIENCE, || told.count() >= before + BUNDLES),
            }
        }
        servers.primary.kill();
        let head = *told.head.lock().unwrap();
        let at_kill = told.count();
        servers.promote();
        wait_until("bundles are shipped to the new server", PATIENCE, || told.count() >= at_kill + BUNDLES);
        told.is_over.store(true, Ordering::Relaxed);
        head
    });
    let depot = servers.depot(LONG);
    let shipped = told.shipped.into_inner().unwrap();
    let is_lost =
        |(name, bytes): &(&Name, &Vec<u8>)| depot.get(name).unwrap().is_none_or(|(found, _)| found != **bytes);
    let lost = shipped.iter().filter(is_lost).count();
    let (head, _) = depot.get(&name("v1/heads/a")).unwrap().unwrap();
    let head: u64 = String::from_utf8(head).unwrap().parse().unwrap();
    (shipped.len(), lost, head < at_kill)
}

#[test]
fn a_killed_server_loses_nothing_that_was_reported_as_written() {
    let mut all = 0;
    for nr in 0..rounds() {
        for stops_receiving in [false, true] {
            let Some(servers) = Servers::start_pair() else { return };
            let round = FailoverRound { is_synchronous: true, stops_receiving };
            let (shipped, lost, head) = run(&servers, round);
            assert_eq!(lost, 0, "round {nr}, {round:?}: of {shipped} bundles that count as shipped, {lost} are lost");
            assert!(!head, "round {nr}, {round:?}: a head went back to an earlier owner");
            all += shipped;
        }
    }
    eprintln!("{all} bundles, 0 lost");
}

#[test]
fn without_synchronous_replication_the_same_loses_bundles() {
    let Some(servers) = Servers::start_pair() else { return };
    let (shipped, lost, _) = run(&servers, FailoverRound { is_synchronous: false, stops_receiving: true });
    assert!(lost > 0, "the test with synchronous replication proves nothing: {shipped} shipped, none lost");
    eprintln!("{shipped} bundles, {lost} lost");
}
