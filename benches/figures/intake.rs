//! How fast writes are stored while the server is away, and what they take on the disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::agent::{Agent, NOWHERE, folder, store_path};
use crate::bodies::{Sent, request, span_batches, update};
use crate::load::{Load, Requests, Went};
use crate::report::{Row, median, number};
use crate::templates::Templates;
use crate::{Size, floor, load, sdk};

/// Beside the floor.
pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    for (bytes, name) in [(2_048, "2 KB"), (20_480, "20 KB")] {
        let templates = Templates::of_content(200, bytes);
        for (connections, full) in [(1, 8_000), (16, 40_000), (64, 60_000)] {
            let count = size.pick(full / 200, full / 4, full);
            let requests = Arc::new((0..count).map(|number| templates.request(number, Sent::Python)).collect());
            let what =
                format!("durable intake, server away, {name} spans, Python SDK (gzip), connections: {connections}");
            beside_floor(size, rows, &what, connections, &requests);
        }
    }
    let count = size.pick(200, 10_000, 40_000);
    let bodies = span_batches(3, count, 1, 2048, Sent::TypeScript);
    let requests = Arc::new(bodies.iter().map(|body| request(body, Sent::TypeScript)).collect());
    let what = "durable intake, server away, 2 KB spans, TypeScript SDK (uncompressed), connections: 64";
    beside_floor(size, rows, what, 64, &requests);
}

fn beside_floor(size: Size, rows: &mut Vec<Row>, what: &str, connections: usize, requests: &Requests) {
    let load = Load { connections, block: 1, warm_up: requests.len() / 10 };
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds() {
        let home = folder();
        let agent = Agent::start(home.path(), NOWHERE);
        let before = agent.cpu();
        ours.push(load.run(agent.address, requests));
        cpu.push((agent.cpu() - before).as_secs_f64() * 1e6 / requests.len() as f64);
        drop(agent);
        let floor = floor::start(home.path());
        theirs.push(load.run(floor.address, requests));
    }
    rows.push(Row::at_least(what, (per_second(&ours), per_second(&theirs)), "/s", "floor", 0.75));
    let latency = |went: &[Went], share: f64| median(went.iter().map(|went| went.latency(share).as_secs_f64() * 1e6));
    for share in [0.5, 0.99] {
        let name = format!("p{}", share * 100.0);
        rows.push(Row::compared(&name, (latency(&ours, share), latency(&theirs, share)), " us", "floor"));
    }
    let cpu = format!("{} us of processor time each", number(median(cpu)));
    rows.push(Row::told("", &cpu, &format!("{} B a request as sent", requests[0].len())));
}

fn per_second(went: &[Went]) -> f64 {
    median(went.iter().map(Went::per_second))
}

/// Writes about one entity, which must be stored in their order, beside writes about many.
pub(crate) fn entity(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(200, 8_000, 40_000);
    let (one, trace) = (Uuid::now_v7(), Uuid::now_v7());
    let same: Requests = Arc::new((0..count).map(|number| update(one, trace, number)).collect());
    let distinct: Requests =
        Arc::new((0..count).map(|number| update(Uuid::now_v7(), Uuid::now_v7(), number)).collect());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds() {
        for (requests, went) in [(&same, &mut ours), (&distinct, &mut theirs)] {
            let home = folder();
            let agent = Agent::start(home.path(), NOWHERE);
            went.push(load::run(agent.address, 32, requests));
        }
    }
    let what = "updates of one span, server away, Python SDK, connections: 32";
    let rates = (per_second(&ours), per_second(&theirs));
    rows.push(Row::at_least(what, rates, "/s", "updates of distinct spans", 0.5));
}

/// The disk space of a stored span, and the rate, beside the SDK's own store.
pub(crate) fn disk(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(200, 10_000, 40_000);
    let sdk = sdk::write(size.pick(50, 1_000, 3_000));
    for (sent, name) in [(Sent::Python, "Python SDK (gzip)"), (Sent::TypeScript, "TypeScript SDK (uncompressed)")] {
        let bodies = span_batches(7, count, 1, 2048, sent);
        let requests = Arc::new(bodies.iter().map(|body| request(body, sent)).collect::<Vec<_>>());
        let home = folder();
        let agent = Agent::start(home.path(), NOWHERE);
        let empty = store_bytes(home.path());
        let went = load::run(agent.address, 64, &requests);
        // The last connection to close writes the log back, so this is the file alone.
        drop(agent);
        let bytes = (store_bytes(home.path()).saturating_sub(empty)) as f64 / count as f64;
        let what = format!("disk per stored 2 KB span, {name}");
        rows.push(Row::at_most(&what, (bytes, sdk.bytes_per_message), " B", "the SDK's own store", 0.4));
        let body_bytes = bodies.iter().map(Vec::len).sum::<usize>() / bodies.len();
        rows.push(Row::told("", "", &format!("{body_bytes} B a body as sent")));
        if sent == Sent::Python {
            let what = "durable intake of them, connections: 64";
            rows.push(Row::at_least(what, (went.per_second(), sdk.per_second), "/s", "the SDK's own store", 25.0));
        }
    }
}

fn store_bytes(home: &Path) -> u64 {
    fs::metadata(store_path(home)).map_or(0, |metadata| metadata.len())
}
