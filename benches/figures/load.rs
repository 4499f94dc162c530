//! A load generator of our own: keep-alive connections on one thread, each with one request at a time, and nothing
//! done per request that could be done before.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sink::MARK;

/// Whole requests, shared by all connections.
pub(crate) type Requests = Arc<Vec<Vec<u8>>>;

/// How a load went.
pub(crate) struct Went {
    /// From the first request to the last answer.
    pub took: Duration,
    /// Sorted.
    latencies: Vec<Duration>,
}

impl Went {
    fn new(took: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self { took, latencies }
    }

    pub(crate) fn count(&self) -> usize {
        self.latencies.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// Returns the latency that this share of the requests did not pass.
    pub(crate) fn latency(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(((last as f64) * share).round() as usize).copied().unwrap_or_default()
    }
}

/// As many requests at a time as there are connections, as fast as they are answered.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub connections: usize,
    /// This many requests after each other belong to one client: a connection sends them in their order.
    pub block: usize,
    /// How many requests come first that do not count: connections, pools and caches are new.
    pub warm_up: usize,
}

/// Sends each request once over this many connections; every answer must be a success.
pub(crate) fn run(address: SocketAddr, connections: usize, requests: &Requests) -> Went {
    Load { connections, block: 1, warm_up: 0 }.run(address, requests)
}

impl Load {
    /// Sends each request once; every answer must be a success.
    pub(crate) fn run(self, address: SocketAddr, requests: &Requests) -> Went {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let mut streams = Vec::new();
            for _ in 0..self.connections {
                streams.push(connect(address).await);
            }
            let next = Rc::new(Cell::new(0));
            let (streams, _) = self.part(streams, &next, self.warm_up, requests).await;
            let started = Instant::now();
            let (_, latencies) = self.part(streams, &next, requests.len(), requests).await;
            Went::new(started.elapsed(), latencies)
        })
    }

    /// Sends the requests from `next` to `end`.
    async fn part(
        self,
        streams: Vec<TcpStream>,
        next: &Rc<Cell<usize>>,
        end: usize,
        requests: &Requests,
    ) -> (Vec<TcpStream>, Vec<Duration>) {
        let client = |mut stream: TcpStream| {
            let (next, requests) = (next.clone(), requests.clone());
            tokio::task::spawn_local(async move {
                let (mut buffer, mut latencies) = (vec![0; 16 * 1024], Vec::new());
                while next.get() < end {
                    let first = next.replace(next.get() + self.block);
                    for request in requests.iter().skip(first).take(self.block) {
                        latencies.push(ask(&mut stream, request, &mut buffer).await.0);
                    }
                }
                (stream, latencies)
            })
        };
        let clients: Vec<_> = streams.into_iter().map(client).collect();
        let (mut streams, mut latencies) = (Vec::new(), Vec::with_capacity(requests.len()));
        for client in clients {
            let (stream, measured) = client.await.expect("no client fails");
            streams.push(stream);
            latencies.extend(measured);
        }
        (streams, latencies)
    }
}

/// Sends requests over this many connections, on each one every `pause`, until they are all sent or `until` is true;
/// returns how those went that the sink answered itself, and how many requests were answered altogether.
pub(crate) fn paced(
    address: SocketAddr,
    (connections, pause): (u32, Duration),
    requests: &Requests,
    until: impl Fn() -> bool + 'static,
) -> (Went, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (next, until) = (Rc::new(Cell::new(0)), Rc::new(until));
        let started = Instant::now();
        let client = |index: u32| {
            let (next, until, requests) = (next.clone(), until.clone(), requests.clone());
            tokio::task::spawn_local(async move {
                let (mut stream, mut buffer, mut latencies) = (connect(address).await, vec![0; 16 * 1024], Vec::new());
                let start = tokio::time::Instant::now() + pause * index / connections;
                let mut ticks = tokio::time::interval_at(start, pause);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while next.get() < requests.len() && !until() {
                    ticks.tick().await;
                    let request = &requests[next.replace(next.get() + 1) % requests.len()];
                    let (latency, by_sink) = ask(&mut stream, request, &mut buffer).await;
                    latencies.push((latency, by_sink));
                }
                latencies
            })
        };
        let clients: Vec<_> = (0..connections).map(client).collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.expect("no client fails"));
        }
        let answered = latencies.len();
        let forwarded = latencies.into_iter().filter_map(|(latency, by_sink)| by_sink.then_some(latency)).collect();
        (Went::new(started.elapsed(), forwarded), answered)
    })
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a socket option");
    stream
}

/// Sends a request and reads its answer; returns how long that took, and whether the answer is the sink's.
async fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> (Duration, bool) {
    let sent = Instant::now();
    stream.write_all(request).await.expect("the server takes the request");
    let mut read = 0;
    loop {
        let more = stream.read(&mut buffer[read..]).await.expect("the server answers");
        assert!(more > 0, "the connection was closed before an answer");
        read += more;
        if is_whole(&buffer[..read]) {
            break;
        }
    }
    let took = sent.elapsed();
    assert_eq!(&buffer[9..10], b"2", "refused: {}", String::from_utf8_lossy(&buffer[..read]));
    (took, memchr::memmem::find(&buffer[..read].to_ascii_lowercase(), &MARK.to_ascii_lowercase()).is_some())
}

/// Returns whether an answer is complete. Answers to writes have no body or one of a stated length.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    answer.len() >= head + 4 + crate::floor::content_length(&answer[..head])
}
