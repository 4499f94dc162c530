//! A load generator of our own: keep-alive connections on one thread, each with one request at a time, and nothing
//! done per request that could be done before.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// Returns the latency that this share of the requests did not pass.
    pub(crate) fn latency(&self, share: f64) -> Duration {
        let last = self.latencies.len() - 1;
        self.latencies[((last as f64) * share).round() as usize]
    }
}

/// Sends each request once over this many connections; every answer must be a success.
pub(crate) fn run(address: SocketAddr, connections: usize, requests: &Requests) -> Went {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let next = Rc::new(Cell::new(0));
        let mut streams = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(address).await.expect("the server listens");
            stream.set_nodelay(true).expect("a socket option");
            streams.push(stream);
        }
        let started = Instant::now();
        let clients: Vec<_> = streams
            .into_iter()
            .map(|stream| tokio::task::spawn_local(client(stream, next.clone(), requests.clone())))
            .collect();
        let mut latencies = Vec::with_capacity(requests.len());
        for client in clients {
            latencies.extend(client.await.expect("no client fails"));
        }
        let took = started.elapsed();
        latencies.sort_unstable();
        Went { took, latencies }
    })
}

async fn client(mut stream: TcpStream, next: Rc<Cell<usize>>, requests: Requests) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while next.get() < requests.len() {
        let request = &requests[next.replace(next.get() + 1)];
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
        assert_eq!(&buffer[9..10], b"2", "refused: {}", String::from_utf8_lossy(&buffer[..read]));
        latencies.push(sent.elapsed());
    }
    latencies
}

/// Returns whether an answer is complete. Answers to writes have no body or one of a stated length.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text.split("content-length:").nth(1).and_then(|rest| rest.split("\r\n").next()?.trim().parse().ok());
    answer.len() >= head + 4 + length.unwrap_or(0)
}
