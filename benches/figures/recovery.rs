//! How soon the first message is delivered when the server is back, for users who set nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Size;
use crate::agent::{Agent, folder};
use crate::bodies::Sent;
use crate::load::{self, Requests};
use crate::report::{Row, median, number};
use crate::sink::Sink;
use crate::templates::Templates;

/// How often a client writes during an outage.
const PAUSE: Duration = Duration::from_millis(50);
/// How many messages wait when nobody writes during the outage.
const WAITING: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Outages of different lengths, because an agent asks less and less often. They pass at the same time, each with an
/// agent and a server of its own: all of them are idle.
pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let away: &[u64] = size.pick(
        &[500],
        &[2_000, 5_300, 9_700, 14_100, 20_900],
        &[2_000, 5_300, 9_700, 14_100, 20_900, 31_700, 45_300, 60_100, 90_700],
    );
    let templates = Templates::of_content(20, 2_048);
    let requests: Requests = Arc::new((0..4_000).map(|number| templates.request(number, Sent::Python)).collect());
    for (writing, what, reach) in [(true, "while a client writes", 1.0), (false, "without traffic", 2.0)] {
        let outages = away.iter().map(|away| {
            let (away, requests) = (Duration::from_millis(*away), requests.clone());
            std::thread::spawn(move || outage(away, writing, &requests))
        });
        let outages: Vec<_> = outages.collect();
        let seconds: Vec<f64> = outages.into_iter().map(|outage| outage.join().expect("an outage passes")).collect();
        let each: Vec<String> = away
            .iter()
            .zip(&seconds)
            .map(|(away, seconds)| format!("{} after {} s", number(*seconds), number(*away as f64 / 1e3)))
            .collect();
        let what = format!("server back to first delivered message, no setting, {what}");
        rows.push(Row::bound(&what, median(seconds), " s", &each.join(", "), reach));
    }
}

/// Passes one outage of this length; returns the seconds from its end to the first delivered write.
fn outage(away: Duration, writing: bool, requests: &Requests) -> f64 {
    let home = folder();
    let sink = Sink::start(Duration::ZERO);
    let server = sink.address;
    let agent = Agent::start_default(home.path(), &sink.url());
    load::run(agent.address, 1, &Arc::new(requests[..5].to_vec()));
    assert!(sink.writes() >= 1, "nothing was forwarded before the outage");
    sink.stop();
    let over = Arc::new(AtomicBool::new(false));
    load::run(agent.address, 1, &Arc::new(requests[5..5 + WAITING].to_vec()));
    let client = writing.then(|| {
        let (over, requests, address) = (over.clone(), requests.clone(), agent.address);
        std::thread::spawn(move || write_until(&over, address, &requests[5 + WAITING..]))
    });
    std::thread::sleep(away);
    let back = Instant::now();
    let sink = Sink::start_at(server, Duration::ZERO);
    let first = loop {
        assert!(back.elapsed() < PATIENCE, "nothing is delivered");
        match sink.first_write() {
            Some(first) => break first,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    over.store(true, Ordering::Relaxed);
    if let Some(client) = client {
        client.join().expect("the client was answered");
    }
    first.saturating_duration_since(back).as_secs_f64()
}

/// Writes one request after the other, with pauses, until the outage is over.
fn write_until(over: &AtomicBool, address: SocketAddr, requests: &[Vec<u8>]) {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    let mut answer = [0; 16 * 1024];
    for request in requests {
        if over.load(Ordering::Relaxed) {
            return;
        }
        stream.write_all(request).expect("the agent takes the request");
        let read = stream.read(&mut answer).expect("the agent answers");
        assert!(read > 12 && answer[9] == b'2', "refused: {}", String::from_utf8_lossy(&answer[..read]));
        std::thread::sleep(PAUSE);
    }
}
