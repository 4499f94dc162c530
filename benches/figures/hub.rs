//! What a hub between an edge and the server costs an application.

use std::sync::Arc;
use std::time::Duration;

use crate::Size;
use crate::agent::{Agent, folder};
use crate::bodies::Sent;
use crate::load::{Load, Requests};
use crate::report::{Row, median};
use crate::sink::Sink;
use crate::templates::Templates;

const TOKEN: &str = "made-up-token-of-a-hub";

/// How long the server takes for a write, and connections of the application.
const CASES: [(Duration, usize); 5] = [
    (Duration::ZERO, 1),
    (Duration::ZERO, 16),
    (Duration::from_millis(5), 16),
    (Duration::from_millis(20), 1),
    (Duration::from_millis(20), 16),
];

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let templates = Templates::of_gzip(200, 8_500);
    for (delay, connections) in CASES {
        let count =
            size.pick(40, 1_000, 4_000) * if delay.is_zero() { 4 } else { 1 } / if connections == 1 { 4 } else { 1 };
        let requests: Requests = Arc::new((0..count).map(|number| templates.request(number, Sent::Python)).collect());
        let load = Load { connections, block: 1, warm_up: count / 10 };
        let sink = Sink::start(delay);
        let [mut bare, mut direct, mut hub] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..size.rounds() {
            let p50 = |address| load.run(address, &requests).latency(0.5).as_secs_f64() * 1e6;
            bare.push(p50(sink.address));
            let home = folder();
            direct.push(p50(Agent::start(home.path(), &sink.url()).address));
            let (home, hubs_home) = (folder(), folder());
            let behind =
                Agent::start_with(hubs_home.path(), &sink.url(), &["--hub"], &[("OPIK_OFFLINE_INTAKE_TOKEN", TOKEN)]);
            let url = format!("http://{}/api", behind.address);
            let edge = Agent::start_with(home.path(), &url, &[], &[("OPIK_OFFLINE_HUB_TOKEN", TOKEN)]);
            hub.push(p50(edge.address));
        }
        let (bare, direct, hub) = (median(bare), median(direct), median(hub));
        let what = format!(
            "p50 of an application through edge and hub, server's answer after {delay:?}, connections: {connections}"
        );
        rows.push(Row::at_most(&what, (hub, direct), " us", "edge to the server", 1.1));
        rows.push(Row::compared(
            "added to the server's own p50",
            (hub - bare, direct - bare),
            " us",
            "edge to the server",
        ));
    }
}
