//! A disk that fails for a while and works again: what is acknowledged afterwards is as safe as what was acknowledged
//! before.
//!
//! Nothing that is written back of one file during the outage reaches the disk; the kernel says so once and takes the
//! pages for clean (see [`crate::disk`]). The agent continues, alone or beside a second one on the same store, or it is
//! killed and started again, and power fails later. Readers hold snapshots meanwhile, so that checkpoints are cut
//! short.
//!
//! `OPIK_OFFLINE_OUTAGES=SEED:ROUNDS` sets how many outages each file has. A failure names its seed; with `SEED:1` it
//! is played again. One client writes, so the operations have nearly the same numbers each time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use opik_offline::store::{self, OpenMode};
use rusqlite::{Connection, OpenFlags};

use crate::dice::Dice;
use crate::disk::{Disk, Keeps};
use crate::journal::{self, Record, What};
use crate::layer::{Counter, DB, Layer};
use crate::promises::{LIMITS, Promises};
use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::{noise, tempdir, uuid7};
use crate::writes::{create_batch, trace};

/// Rounds at the same time; mostly they wait for the agent's next try.
const AT_ONCE: usize = 6;
/// Power cuts of one round.
const CUTS: u64 = 9;
/// How long a round may take. The agent tries an unusable store every three seconds.
const ROUND: Duration = Duration::from_secs(120);

/// How one round ended.
#[derive(Default)]
struct Round {
    acknowledged: usize,
    /// The most that a cut lost.
    lost: usize,
    /// Whether a cut left a store that contradicts itself.
    unsound: bool,
    /// Errors that the disk made.
    failed: u64,
    why: Vec<String>,
}

/// A reader that holds a snapshot now and then, as `status --watch`, a backup or an idle shell may. It is gone in
/// between: an agent that opens its store again while nobody else has it open reads the log from its start.
struct Reader {
    snapshot: Option<Connection>,
    writes_left: u64,
}

impl Reader {
    /// One more write was answered. Nobody begins to read a store that is not in use: its agents wait to have it alone.
    fn turn(&mut self, db: &Path, is_in_use: bool, dice: &mut Dice) {
        if self.writes_left > 0 {
            self.writes_left -= 1;
        } else if self.snapshot.take().is_none() && is_in_use && dice.below(12) == 0 {
            // A reader makes a log where there is none, which the layer would not see.
            let has_log = db.with_extension("db-wal").exists();
            // Where the store is just being made anew there is nothing to hold.
            self.snapshot = has_log.then(|| begin(db).ok()).flatten();
            self.writes_left = 5 + dice.below(60);
        }
    }
}

fn begin(db: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
    Ok(connection)
}

const DATABASE: &str = "opik_messages.db";

fn round(file: &str, seed: u64) -> Round {
    let mut dice = Dice::new(seed);
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    let start = Disk::new(&layer.root());
    let is_log = file != DATABASE;
    let from = 300 + dice.below(1500);
    let operations = if is_log { 4 + dice.below(24) } else { 150 + dice.below(500) };
    let last = from + operations + 600 + dice.below(1200);
    // A third of the agents is killed: the page cache outlives a process, and what its successor reads may not be on
    // the disk. A third is not alone.
    let company = dice.below(3);
    let mut kill = (company == 0).then(|| from + dice.below(operations + 60));
    // Most are over before the agent tries its store again.
    let lasting_ms = if dice.below(4) == 0 { 4500 } else { 2000 };
    let outage = format!("{file}:{from}:{operations}:{lasting_ms}:{seed}");
    let mut agents = vec![start_agent(&layer, &server, &outage)];
    if company == 1 {
        agents.push(start_agent(&layer, &server, &outage));
    }
    let promises = Promises::default();
    let mut clients: Vec<Client> = agents.iter().map(|agent| Client::new(&agent.url())).collect();
    let mut turns = (0..clients.len()).cycle();
    let mut reader = Reader { snapshot: None, writes_left: 0 };
    let deadline = Instant::now() + ROUND;
    let text = noise(4000);
    while layer.now() < last && Instant::now() < deadline {
        if kill.take_if(|at| layer.now() >= *at).is_some() {
            clients[0].disconnect();
            agents[0].kill9();
            agents[0].restart_on_same_port();
        }
        let client = &mut clients[turns.next().expect("they go round")];
        let request = write(&mut dice, &text);
        let answer = client.send(&request);
        let is_in_use = answer.as_ref().is_ok_and(|answer| (200..300).contains(&answer.status));
        match answer {
            Ok(_) if is_in_use => promises.note(&layer, &request),
            answer => {
                promises.unanswered(&request);
                if answer.is_err() {
                    client.disconnect();
                }
                sleep(Duration::from_millis(20));
            }
        }
        reader.turn(&layer.db(), is_in_use, &mut dice);
    }
    agents.iter_mut().for_each(Agent::kill9);
    drop(reader);
    let records = journal::read(&layer.journal());
    let end = layer.now();
    let mut round =
        Round { acknowledged: promises.acknowledged(), failed: layer.count(Counter::Failed), ..Round::default() };
    if end < last {
        round.why.push(format!("seed {seed}: after {ROUND:?} the agent has done {end} operations of {last}"));
    }
    // Half of them before the log starts anew, which takes what was lost out of it.
    let spans = [end.saturating_sub(from).max(1), operations + 300];
    let cut = |number: u64| end.min(from + dice.below(spans[(number % 2) as usize]));
    let mut cuts: Vec<u64> = (1..CUTS).map(cut).chain([end]).collect();
    cuts.sort_unstable();
    let mut disk = start;
    let mut left = &records[..];
    for cut in cuts {
        let done = left.iter().take_while(|record| record.operation <= cut).count();
        left[..done].iter().for_each(|record| disk.apply(&record.what));
        left = &left[done..];
        let folder = tempdir();
        let keeps = Keeps::any(&mut dice);
        disk.cut(keeps, &mut dice, folder.path());
        let lost = next_start(folder.path()).and_then(|()| promises.lost(&folder.path().join(DB), cut));
        let (lost, why) = match lost {
            Ok(lost) if lost.is_empty() => continue,
            Ok(lost) => (lost.len(), format!("{} lost, the first: {}", lost.len(), lost[0])),
            Err(why) => {
                round.unsound = true;
                (0, why)
            }
        };
        round.lost = round.lost.max(lost);
        round.why.push(format!(
            "seed {seed}: {file} failed from operation {from} for {operations}, power was cut after {cut} of {end}, kept \
             {keeps:?}: {why}\n{}",
            losses(&records, cut)
        ));
    }
    if !round.why.is_empty() {
        for agent in &agents {
            round.why.push(format!("an agent of seed {seed} wrote:\n{:.4000}", agent.stderr()));
        }
    }
    round
}

fn start_agent(layer: &Layer, server: &FakeOpik, outage: &str) -> Agent {
    let db = layer.db();
    // The smallest write-ahead log, so that it is checkpointed many times.
    let builder = Agent::builder(&server.url()).impatient().without_db().arg("--max-size").arg("6MiB");
    let builder = builder.arg("--db").arg(db.to_str().expect("text")).env("OPIK_DISK_OUTAGE", outage);
    layer.recording().iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start()
}

fn write(dice: &mut Dice, text: &str) -> Request {
    if dice.below(4) == 0 {
        let ids: Vec<String> = (0..=dice.below(5)).map(|_| uuid7()).collect();
        return create_batch(&ids);
    }
    let from = dice.below(1000) as usize;
    let bytes = 100 + dice.below(2500) as usize;
    Request::new("POST", "/v1/private/traces").json(&trace(&uuid7(), &text[from..from + bytes]))
}

/// Opens a store as the next agent does, which may have to recover it.
fn next_start(folder: &Path) -> Result<(), String> {
    store::open(&folder.join(DB), OpenMode::CreateIfMissing, LIMITS)
        .map(|_| ())
        .map_err(|why| format!("no agent can start: {why}"))
}

/// Tells what was lost before a cut.
fn losses(records: &[Record], cut: u64) -> String {
    let lost = records.iter().filter(|record| record.operation <= cut && matches!(record.what, What::Lost { .. }));
    lost.map(|record| format!("{:>6} {:?}\n", record.operation, record.what)).take(12).collect()
}

/// Plays rounds, some at once, until all are done.
fn sweep(file: &str) {
    let setting = std::env::var("OPIK_OFFLINE_OUTAGES").unwrap_or_else(|_| "1:10".into());
    let numbers = setting.split_once(':').and_then(|(seed, rounds)| Some((seed.parse().ok()?, rounds.parse().ok()?)));
    let (first, rounds): (u64, u64) = numbers.expect("OPIK_OFFLINE_OUTAGES is SEED:ROUNDS");
    let next = AtomicU64::new(first);
    let played: Vec<Round> = std::thread::scope(|scope| {
        let play = || -> Vec<Round> {
            let seeds = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::SeqCst)));
            seeds.take_while(|seed| *seed < first + rounds).map(|seed| round(file, seed)).collect()
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(play)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no round panicked")).collect()
    });
    let sum = |of: fn(&Round) -> usize| played.iter().map(of).sum::<usize>();
    let failed = played.iter().filter(|round| round.failed > 0).count();
    let figures = format!(
        "outages of {file}: {rounds} rounds from seed {first}, in {failed} of them writes were lost by the disk; {} \
         acknowledged, {} lost in {} rounds, {} stores unsound",
        sum(|round| round.acknowledged),
        sum(|round| round.lost),
        sum(|round| usize::from(round.lost > 0)),
        sum(|round| usize::from(round.unsound))
    );
    eprintln!("{figures}");
    let why: Vec<&str> = played.iter().flat_map(|round| &round.why).map(String::as_str).collect();
    assert!(why.is_empty(), "{figures}\n{}", why.join("\n"));
    assert!(failed * 10 > played.len(), "{figures}: the outages hit nothing");
}

#[test]
fn a_log_whose_writebacks_fail_for_a_while_loses_nothing_acknowledged_then_or_later() {
    sweep("-wal");
}

#[test]
fn a_database_file_whose_writebacks_fail_for_a_while_loses_nothing_acknowledged_then_or_later() {
    sweep(DATABASE);
}

#[test]
fn a_disk_whose_writebacks_fail_for_a_while_loses_nothing_acknowledged_then_or_later() {
    sweep("*");
}
