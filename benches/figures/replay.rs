//! How fast a backlog drains, and what other clients notice of it.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::{Agent, command, folder, store_path};
use crate::backlog::{self, Filled, drained};
use crate::bodies::{Sent, request, span_batches};
use crate::load::{Requests, Went, paced};
use crate::report::{Row, median, number};
use crate::sink::Sink;
use crate::templates::Templates;
use crate::{Size, load, sdk};

/// The round-trip time in the drain over a slow line.
const ROUND_TRIP: Duration = Duration::from_millis(50);
const MESSAGES_OF_LANE: usize = 3;
/// Connections of the clients that write during a drain, and how often each of them does.
const CLIENTS: (u32, Duration) = (8, Duration::from_millis(8));
/// How long they write without a drain. With one, they write until no batch has come for [`QUIET`].
const CALM: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(300);

/// Beside the SDK.
pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    for (full, spans, reach) in [(10_000, 1, 1.0), (2_000, 10, 0.5)] {
        let count = size.pick(full / 50, full / 5, full);
        let filled = Filled::new(|home| backlog::fill(home, &sink.url(), count, spans));
        let mut requests = 0;
        let seconds = median((0..size.rounds()).map(|_| {
            let before = sink.writes();
            let seconds = replay(filled.copy().path(), &sink);
            requests = sink.writes() - before;
            seconds
        }));
        // The SDK takes minutes, always the same: its pauses and its own threads are what it waits for.
        let (default, tuned) = match size {
            Size::Tiny => (sdk::replay(60, spans, &sink.url(), false), sdk::replay(60, spans, &sink.url(), true)),
            _ => (sdk::replay(count, spans, &sink.url(), false), sdk::replay(count, spans, &sink.url(), true)),
        };
        let single = Arc::new(span_batches(1, count, spans, 1024, Sent::Python));
        let single = Arc::new(single.iter().map(|body| request(body, Sent::Python)).collect::<Vec<_>>());
        let one_by_one = load::run(sink.address, 1, &single).took.as_secs_f64();
        let theirs = format!(
            "SDK {} s, tuned {} s; bare requests one by one {} s",
            number(default),
            number(tuned),
            number(one_by_one)
        );
        let what = format!("drain of {count} messages of {spans} spans, {requests} requests");
        rows.push(Row::bound(&what, seconds, " s", &theirs, reach * count as f64 / full as f64));
    }
}

/// Over a round trip.
pub(crate) fn drain(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(200, 10_000, 10_000);
    let slow = Sink::start(ROUND_TRIP);
    let filled = Filled::new(|home| backlog::fill_singles(home, &slow.url(), count));
    let mut requests = 0;
    let by_command = median((0..size.rounds()).map(|_| {
        let before = slow.writes();
        let seconds = replay(filled.copy().path(), &slow);
        requests = slow.writes() - before;
        seconds
    }));
    let theirs = format!("one request a message: {} s", number(count as f64 * ROUND_TRIP.as_secs_f64()));
    let what = format!("drain of {count} spans over a round trip of 50 ms, {requests} requests");
    rows.push(Row::bound(&what, by_command, " s", &theirs, 0.8));
    let (seconds, peaks): (Vec<_>, Vec<_>) =
        (0..size.rounds()).map(|_| by_agent(filled.copy().path(), &slow, 1)).unzip();
    rows.push(Row::bound("by an agent, from its start to the last write", median(seconds), " s", &theirs, 0.8));
    rows.push(Row::bound("its peak memory (RSS)", median(peaks), " MiB", "", 36.0));
}

/// Many lanes, of which each needs a request of its own.
pub(crate) fn lanes(size: Size, rows: &mut Vec<Row>) {
    let lanes = size.pick(100, 5_000, 20_000);
    let sink = Sink::start(Duration::ZERO);
    let filled = Filled::new(|home| backlog::fill_lanes(home, &sink.url(), lanes, MESSAGES_OF_LANE));
    let bodies = span_batches(5, 200, MESSAGES_OF_LANE, 1024, Sent::Python);
    let bodies = bodies.iter().cycle().take(lanes).map(|body| request(body, Sent::Python));
    let requests: Requests = Arc::new(bodies.collect());
    let (mut command, mut agent, mut one_by_one) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.pick(1, 1, 3) {
        agent.push(by_agent(filled.copy().path(), &sink, lanes as u64).0);
        command.push(replay(filled.copy().path(), &sink));
        one_by_one.push(load::run(sink.address, 1, &requests).took.as_secs_f64());
    }
    let theirs = median(one_by_one);
    let than = format!("{lanes} requests on one connection");
    let what = format!("drain of {lanes} lanes with {MESSAGES_OF_LANE} messages each, by an agent, from its start");
    rows.push(Row::at_most(&what, (median(agent), theirs), " s", &than, 1.2));
    rows.push(Row::at_most("the same, by the command `replay`", (median(command), theirs), " s", &than, 1.2));
}

/// What forwarded writes take while a backlog drains.
pub(crate) fn live(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(2_000, 60_000, 100_000);
    let sink = Arc::new(Sink::start(Duration::ZERO));
    let filled = Filled::new(|home| backlog::fill_singles(home, &sink.url(), count));
    let templates = Templates::of_content(200, 2_048);
    let requests: Requests = Arc::new((0..100_000).map(|number| templates.request(number, Sent::Python)).collect());
    let [mut calm, mut draining] = [Vec::new(), Vec::new()];
    let (mut seconds, mut stored) = (0.0, 0);
    for _ in 0..size.rounds() {
        let home = folder();
        let agent = Agent::start(home.path(), &sink.url());
        let until = Instant::now() + CALM;
        calm.push(paced(agent.address, CLIENTS, &requests, move || Instant::now() > until).0);
        drop(agent);
        let home = filled.copy();
        let started = Instant::now();
        let agent = Agent::start(home.path(), &sink.url());
        let until = {
            let sink = sink.clone();
            // The batch of an earlier round is not one of this drain.
            move || sink.last_batch().is_some_and(|last| last > started && last.elapsed() > QUIET)
        };
        let (went, answered) = paced(agent.address, CLIENTS, &requests, until);
        seconds = drained(home.path(), &sink, started, 0);
        stored = answered - went.count();
        draining.push(went);
    }
    let latency = |went: &[Went], share: f64| median(went.iter().map(|went| went.latency(share).as_secs_f64() * 1e6));
    let what = format!("p99 of forwarded 2 KB writes (1,000/s, Python SDK) while {count} messages drain");
    let p99 = (latency(&draining, 0.99), latency(&calm, 0.99));
    rows.push(Row::at_most(&what, p99, " us", "without a drain", 2.0));
    let p50 = (latency(&draining, 0.5), latency(&calm, 0.5));
    rows.push(Row::compared("p50", p50, " us", "without a drain"));
    let told = format!("drained in {} s", number(seconds));
    rows.push(Row::told("", &told, &format!("{stored} other writes were stored")));
}

/// Drains a store by an agent; returns the seconds from its start to the last write, of at least this many, and its
/// peak memory in MiB.
fn by_agent(home: &Path, sink: &Sink, requests: u64) -> (f64, f64) {
    let requests = sink.writes() + requests;
    let started = Instant::now();
    let agent = Agent::start(home, &sink.url());
    let seconds = drained(home, sink, started, requests);
    (seconds, agent.memory_mib("VmHWM"))
}

/// Drains a store by the `replay` command; returns the seconds from its start to its end.
fn replay(home: &Path, sink: &Sink) -> f64 {
    drop(TcpStream::connect(sink.address).expect("the sink listens"));
    let started = Instant::now();
    let mut command = command(home);
    command.args(["replay", "--quiet", "--upstream", &sink.url(), "--db"]).arg(store_path(home));
    let status = command.status().expect("the command runs");
    assert!(status.success(), "the replay ended with {status}");
    started.elapsed().as_secs_f64()
}
