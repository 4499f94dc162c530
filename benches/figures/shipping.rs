//! How fast one agent copies its backlog to object storage, beside the rate of bare writes of the same bundles.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use opik_offline::depot::Name;

use crate::Size;
use crate::agent::{Agent, NOWHERE, folder};
use crate::backlog::Filled;
use crate::report::{Row, median, number};
use crate::seaweedfs::ObjectStorage;
use crate::streams::{FilledDepot, in_threads, store_traces};

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(3_000, 60_000, 200_000);
    let home = folder();
    let storage = ObjectStorage::start(home.path());
    let filled = Filled::new(|home| store_traces(home, NOWHERE, count));
    let [mut shipped, mut bare, mut bare_many, mut cpu] = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let (mut objects, mut bytes) = (0, 0);
    for round in 0..size.rounds() {
        let depot = FilledDepot::in_storage(home.path(), &format!("shipping-{round}"), &storage);
        let agents_home = filled.copy();
        let variables: Vec<(&str, &str)> =
            depot.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let args = ["--fleet", &depot.url, "--fleet-recipients", &depot.recipient()];
        let agent = Agent::start_with(agents_home.path(), NOWHERE, &args, &variables);
        let before = agent.cpu();
        shipped.push(shipping_rate(agent.address, count));
        cpu.push((agent.cpu() - before).as_secs_f64() * 1e6 / count as f64);
        drop(agent);
        let bundles: Vec<Vec<u8>> = bundles(&depot);
        (objects, bytes) = (bundles.len(), bundles.iter().map(Vec::len).sum::<usize>());
        let put = |number: usize| {
            let name = Name::new(&format!("v1/bare-{round}/{number}")).expect("a name");
            depot.depot.create(&name, &bundles[number]).expect("it takes a write");
        };
        let started = Instant::now();
        (0..bundles.len()).for_each(put);
        bare.push(count as f64 / started.elapsed().as_secs_f64());
        let again = |number: usize| {
            let name = Name::new(&format!("v1/bare-many-{round}/{number}")).expect("a name");
            depot.depot.create(&name, &bundles[number]).expect("it takes a write");
        };
        let started = Instant::now();
        in_threads(bundles.len(), again);
        bare_many.push(count as f64 / started.elapsed().as_secs_f64());
    }
    let (shipped, bare) = (median(shipped), median(bare));
    let what = format!("{count} messages of 1 KB copied to SeaweedFS by one agent, {objects} bundles");
    rows.push(Row::at_least(&what, (shipped, bare), "/s", "the same bundles, bare, one after the other", 0.7));
    rows.push(Row::compared("beside", (shipped, median(bare_many)), "/s", "bare, 8 at a time"));
    let each = format!("{} bytes a message in the depot", number(bytes as f64 / count as f64));
    rows.push(Row::told("", &each, &format!("{} us of the agent's processor time each", number(median(cpu)))));
}

/// Returns messages a second, from the first bundle that is there to the last.
fn shipping_rate(agent: SocketAddr, count: usize) -> f64 {
    let (mut first, began) = (None, Instant::now());
    loop {
        assert!(began.elapsed() < Duration::from_secs(300), "it does not ship");
        let shipped = shipped(agent);
        let (since, at_first) = *first.get_or_insert((Instant::now(), shipped));
        if at_first == 0 {
            first = None;
        }
        if shipped >= count {
            return (shipped - at_first) as f64 / since.elapsed().as_secs_f64();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns how many messages an agent has copied, by its metrics.
fn shipped(agent: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(agent).expect("it listens");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {agent}\r\nConnection: close\r\n\r\n").expect("it takes a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let line = text.lines().find_map(|line| line.strip_prefix("opik_offline_fleet_shipped_messages_total "));
    line.and_then(|value| value.parse::<f64>().ok()).expect("it tells") as usize
}

/// Returns the bundles of a depot.
fn bundles(depot: &FilledDepot) -> Vec<Vec<u8>> {
    let under = Name::new("v1/bundles").expect("a name");
    let listed = depot.depot.list(&under, None, 1_000).expect("it can be listed");
    listed.iter().map(|entry| depot.depot.get(&entry.name).expect("it can be read").expect("it is there").0).collect()
}
