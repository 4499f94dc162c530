//! How fast writes are stored while the server is away, and what they take on the disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::agent::{Agent, NOWHERE, folder, store_path};
use crate::bodies::{Sent, request, span_batches};
use crate::report::{Row, median};
use crate::{Size, load, raw, sdk};

/// One way of loading the agent.
struct Case {
    what: &'static str,
    sent: Sent,
    bytes: usize,
    connections: usize,
    count: usize,
    /// Rows per transaction of raw SQLite.
    rows: usize,
    reach: f64,
}

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let count = |full: usize| size.pick(full / 200, full / 4, full);
    let cases = [
        Case {
            what: "durable intake, server away, 2 KB spans (gzip), 64 connections",
            sent: Sent::Python,
            bytes: 2048,
            connections: 64,
            count: count(40_000),
            rows: 64,
            reach: 0.5,
        },
        Case {
            what: "the same, 1 connection",
            sent: Sent::Python,
            bytes: 2048,
            connections: 1,
            count: count(4_000),
            rows: 1,
            reach: 0.7,
        },
        Case {
            what: "the same, 20 KB, 64 connections",
            sent: Sent::Python,
            bytes: 20_480,
            connections: 64,
            count: count(12_000),
            rows: 64,
            reach: 0.6,
        },
        Case {
            what: "the same, 2 KB uncompressed as the TypeScript SDK sends them, 64 connections",
            sent: Sent::TypeScript,
            bytes: 2048,
            connections: 64,
            count: count(40_000),
            rows: 64,
            reach: 0.5,
        },
    ];
    for (index, case) in cases.iter().enumerate() {
        let bodies = span_batches(index as u64, case.count, 1, case.bytes, case.sent);
        let requests = Arc::new(bodies.iter().map(|body| request(body, case.sent)).collect::<Vec<_>>());
        let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..size.rounds() {
            let home = folder();
            let agent = Agent::start(home.path(), NOWHERE);
            ours.push(load::run(agent.address, case.connections, &requests));
            cpu.push(agent.cpu().as_secs_f64() * 1e6 / case.count as f64);
            drop(agent);
            let folder = folder();
            theirs.push(case.count as f64 / raw::write(folder.path(), &bodies, case.rows).as_secs_f64());
        }
        let per_second = median(ours.iter().map(load::Went::per_second));
        let than = format!("raw SQLite, {} a commit", case.rows);
        rows.push(Row::at_least(case.what, (per_second, median(theirs)), "/s", &than, case.reach));
        let p99 = median(ours.iter().map(|went| went.latency(0.99).as_secs_f64() * 1e3));
        let body_bytes = bodies.iter().map(Vec::len).sum::<usize>() / bodies.len();
        rows.push(Row::told(
            "",
            &format!("p99 {p99:.1} ms, {:.0} us of processor time each", median(cpu)),
            &format!("{body_bytes} B a body as sent"),
        ));
        if index == 0 {
            let sdk = sdk::write(size.pick(50, 1_000, 3_000));
            rows.push(Row::at_least("", (per_second, sdk.per_second), "/s", "the SDK's own store", 25.0));
        }
    }
}

/// The disk space of a stored span.
pub(crate) fn disk(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(200, 10_000, 40_000);
    let sdk = sdk::write(size.pick(50, 1_000, 3_000));
    for (sent, name) in [(Sent::Python, "Python SDK (gzip)"), (Sent::TypeScript, "TypeScript SDK (uncompressed)")] {
        let bodies = span_batches(7, count, 1, 2048, sent);
        let requests = Arc::new(bodies.iter().map(|body| request(body, sent)).collect::<Vec<_>>());
        let home = folder();
        let agent = Agent::start(home.path(), NOWHERE);
        let empty = store_bytes(home.path());
        load::run(agent.address, 64, &requests);
        // The last connection to close writes the log back, so this is the file alone.
        drop(agent);
        let bytes = (store_bytes(home.path()).saturating_sub(empty)) as f64 / count as f64;
        let what = format!("disk per stored 2 KB span, {name}");
        rows.push(Row::at_most(&what, (bytes, sdk.bytes_per_message), " B", "the SDK's own store", 0.4));
        let body_bytes = bodies.iter().map(Vec::len).sum::<usize>() / bodies.len();
        rows.push(Row::told("", "", &format!("{body_bytes} B a body as sent")));
    }
}

fn store_bytes(home: &Path) -> u64 {
    fs::metadata(store_path(home)).map_or(0, |metadata| metadata.len())
}
