//! How fast a backlog drains.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::{command, folder, store_path};
use crate::bodies::{Sent, request, span_batches};
use crate::report::{Row, median, number};
use crate::sink::Sink;
use crate::{Size, backlog, load, sdk};

/// The round-trip time in the drain over a slow line.
const ROUND_TRIP: Duration = Duration::from_millis(50);

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    for (full, spans, reach) in [(10_000, 1, 1.0), (2_000, 10, 0.5)] {
        let count = size.pick(full / 50, full / 5, full);
        let home = folder();
        let mut requests = 0;
        let seconds = median((0..size.rounds()).map(|_| {
            let before = sink.writes();
            let seconds = drain(home.path(), &sink, count, spans);
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
    let slow = Sink::start(ROUND_TRIP);
    let count = size.pick(200, 2_000, 10_000);
    let home = folder();
    let seconds = drain(home.path(), &slow, count, 1);
    let theirs = format!("one request a message: {} s", number(count as f64 * ROUND_TRIP.as_secs_f64()));
    let what = format!("drain of {count} spans over a round trip of 50 ms, {} requests", slow.writes());
    rows.push(Row::bound(&what, seconds, " s", &theirs, 20.0 * ROUND_TRIP.as_secs_f64()));
}

/// Fills a store and drains it by the `replay` command; returns the seconds from its start to its end.
fn drain(home: &Path, sink: &Sink, count: usize, spans: usize) -> f64 {
    drop(TcpStream::connect(sink.address).expect("the sink listens"));
    backlog::fill(home, &sink.url(), count, spans);
    let started = Instant::now();
    let mut command = command(home);
    command.args(["replay", "--quiet", "--upstream", &sink.url(), "--db"]).arg(store_path(home));
    let status = command.status().expect("the command runs");
    assert!(status.success(), "the replay ended with {status}");
    started.elapsed().as_secs_f64()
}
