//! How fast writes pass through while the server is there, beside nginx and a bare proxy.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::Size;
use crate::agent::{Agent, folder};
use crate::bare::{self, Passing};
use crate::bodies::{Sent, score, update};
use crate::load::{Load, Requests, Went};
use crate::nginx;
use crate::report::{Row, median, number};
use crate::sink::Sink;
use crate::templates::Templates;

const BODY_BYTES: usize = 8_500;
/// Requests of one client that belong together in the mixed load: creates, then an update or a score.
const BLOCK: usize = 4;

/// Several loads on the same server.
#[derive(Default)]
struct Runs(Vec<Went>);

impl Runs {
    fn per_second(&self) -> f64 {
        median(self.0.iter().map(Went::per_second))
    }

    /// Returns a latency in microseconds.
    fn latency(&self, share: f64) -> f64 {
        median(self.0.iter().map(|went| went.latency(share).as_secs_f64() * 1e6))
    }
}

/// What was measured side by side.
#[derive(Default)]
struct Beside {
    ours: Runs,
    nginx: Runs,
    streamed: Runs,
    collected: Runs,
    /// Processor time of a request, in microseconds.
    cpu: Vec<f64>,
}

/// Creates only.
pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    let templates = Templates::of_gzip(200, BODY_BYTES);
    for (connections, sent) in [(1, Sent::Python), (16, Sent::Python), (64, Sent::Python), (16, Sent::Plain)] {
        let count = size.pick(60, 10_000, 40_000) / if connections == 1 { 4 } else { 1 };
        let requests = Arc::new((0..count).map(|number| templates.request(number, sent)).collect());
        let load = Load { connections, block: 1, warm_up: count / 10 };
        let beside = measure(size.rounds(), &sink, load, &requests);
        let as_whom = if sent == Sent::Python { "Python SDK" } else { "no SDK's headers" };
        let what = format!("pass-through of an 8.5 KB gzip create, {as_whom}, connections: {connections}");
        tell(rows, &what, connections, &beside, 0.9);
    }
}

/// Creates, and updates and scores of what the same client created: a quarter of the requests.
pub(crate) fn mixed(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    let templates = Templates::of_gzip(200, BODY_BYTES);
    for connections in [1, 16, 64] {
        let count = size.pick(60, 12_000, 40_000) / if connections == 1 { 4 } else { 1 } / BLOCK * BLOCK;
        let requests = Arc::new((0..count / BLOCK).flat_map(|number| block(&templates, number)).collect());
        let load = Load { connections, block: BLOCK, warm_up: count / 10 / BLOCK * BLOCK };
        let beside = measure(size.rounds(), &sink, load, &requests);
        let what = format!(
            "pass-through, a quarter are updates and scores of created spans, Python SDK, connections: {connections}"
        );
        tell(rows, &what, connections, &beside, 0.75);
    }
}

/// Returns creates, and then an update or a score of one of them.
fn block(templates: &Templates, number: usize) -> Vec<Vec<u8>> {
    let creates: Vec<_> = (0..BLOCK - 1).map(|index| templates.create(number * (BLOCK - 1) + index)).collect();
    let about = &creates[number % creates.len()];
    let last = if number.is_multiple_of(2) { update(about.span, about.trace, number) } else { score(about.span) };
    let creates = creates.iter().map(|create| crate::bodies::request(&create.body, Sent::Python));
    creates.chain([last]).collect()
}

fn measure(rounds: usize, sink: &Sink, load: Load, requests: &Requests) -> Beside {
    let mut beside = Beside::default();
    for _ in 0..rounds {
        let home = folder();
        let agent = Agent::start(home.path(), &sink.url());
        let before = agent.cpu();
        beside.ours.0.push(load.run(agent.address, requests));
        beside.cpu.push((agent.cpu() - before).as_secs_f64() * 1e6 / requests.len() as f64);
        drop(agent);
        let nginx = nginx::start(home.path(), sink.address);
        beside.nginx.0.push(load.run(nginx.address, requests));
        drop(nginx);
        let bare = |passing| bare_load(home.path(), sink.address, passing, load, requests);
        beside.streamed.0.push(bare(Passing::Streamed));
        beside.collected.0.push(bare(Passing::Collected));
    }
    beside
}

fn bare_load(home: &Path, sink: SocketAddr, passing: Passing, load: Load, requests: &Requests) -> Went {
    let proxy = bare::start(home, sink, passing);
    load.run(proxy.address, requests)
}

fn tell(rows: &mut Vec<Row>, what: &str, connections: usize, beside: &Beside, reach: f64) {
    let Beside { ours, nginx, streamed, collected, cpu } = beside;
    rows.push(Row::at_least(what, (ours.per_second(), nginx.per_second()), "/s", "nginx", reach));
    let p50 = (ours.latency(0.5), nginx.latency(0.5));
    if connections == 1 {
        rows.push(Row::at_most("p50", p50, " us", "nginx", 1.15));
    } else {
        rows.push(Row::compared("p50", p50, " us", "nginx"));
    }
    rows.push(Row::at_most("p99", (ours.latency(0.99), nginx.latency(0.99)), " us", "nginx", 1.2));
    for (runs, name) in [(streamed, "bare proxy, body streamed"), (collected, "bare proxy, body collected")] {
        rows.push(Row::compared("beside", (ours.per_second(), runs.per_second()), "/s", name));
        rows.push(Row::compared("p50", (p50.0, runs.latency(0.5)), " us", name));
    }
    let cpu = format!("{} us of processor time each", number(median(cpu.iter().copied())));
    rows.push(Row::told("", &cpu, ""));
}
