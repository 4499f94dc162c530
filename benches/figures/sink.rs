//! A server that answers every write at once, or after a set delay, and counts them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::floor::content_length;

/// A line of the sink's answers: the agent's own have none.
pub(crate) const MARK: &[u8] = b"X-Sink: 1";
/// Writes with a larger body are batches of a replay, where what is forwarded is smaller.
const SMALL_MAX: usize = 16 * 1024;

/// Since when the times of all sinks count.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A running sink; lives as long as the process, unless it is stopped.
pub(crate) struct Sink {
    pub address: SocketAddr,
    counts: Arc<Counts>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Times are in nanoseconds since [`EPOCH`]; 0 is never.
#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    last_large: AtomicU64,
}

impl Sink {
    /// Starts a sink whose answers take this long, on a thread of its own.
    pub(crate) fn start(delay: Duration) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), delay)
    }

    /// Starts a sink at this address: a server that was away and comes back.
    pub(crate) fn start_at(address: SocketAddr, delay: Duration) -> Self {
        LazyLock::force(&EPOCH);
        let counts = Arc::new(Counts::default());
        let (told, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let counts = counts.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async move {
                    let listener = TcpListener::bind(address).await.expect("a free port");
                    told.send(listener.local_addr().expect("an address")).expect("somebody asked");
                    tokio::select! {
                        () = accept(listener, counts, delay) => {}
                        Ok(()) = stopped => {}
                    }
                });
            }
        });
        Self { address: bound.recv().expect("the sink starts"), counts, stop, thread }
    }

    /// Closes the listener and all connections: the server goes away.
    pub(crate) fn stop(self) {
        self.stop.send(()).expect("the sink runs");
        self.thread.join().expect("the sink ends");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Returns how many writes came so far.
    pub(crate) fn writes(&self) -> u64 {
        self.counts.writes.load(Ordering::Relaxed)
    }

    /// Returns when the first write came.
    pub(crate) fn first_write(&self) -> Option<Instant> {
        at(&self.counts.first)
    }

    /// Returns when the last write came.
    pub(crate) fn last_write(&self) -> Option<Instant> {
        at(&self.counts.last)
    }

    /// Returns when the last batch of a replay came.
    pub(crate) fn last_batch(&self) -> Option<Instant> {
        at(&self.counts.last_large)
    }
}

fn at(nanos: &AtomicU64) -> Option<Instant> {
    let nanos = nanos.load(Ordering::Relaxed);
    (nanos > 0).then(|| *EPOCH + Duration::from_nanos(nanos))
}

async fn accept(listener: TcpListener, counts: Arc<Counts>, delay: Duration) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        tokio::spawn(serve(stream, counts.clone(), delay));
    }
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>, delay: Duration) {
    let mut buffer: Vec<u8> = Vec::with_capacity(64 * 1024);
    loop {
        let Some((asked, body_bytes)) = receive(&mut stream, &mut buffer).await else { return };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if asked == Asked::Write {
            counts.count(body_bytes);
        }
        let answer: &[u8] = match asked {
            Asked::Write => b"HTTP/1.1 204 No Content\r\nX-Sink: 1\r\n\r\n",
            // Nothing is found.
            Asked::Search => {
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 0\r\n\r\n"
            }
            // Opik's answer to a ping: nothing else is recognized as Opik.
            Asked::Other => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n{\"message\":\"Healthy Server\"}",
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// The kind of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Write,
    Search,
    Other,
}

impl Asked {
    fn of(head: &[u8]) -> Self {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        match () {
            () if line.starts_with(b"GET") => Self::Other,
            () if memchr::memmem::find(line, b"/search ").is_some() => Self::Search,
            () => Self::Write,
        }
    }
}

/// Reads one request; returns its kind, and the size of its body.
async fn receive(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(Asked, usize)> {
    buffer.clear();
    let head = loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let asked = Asked::of(&buffer[..head]);
    let length = content_length(&buffer[..head]);
    if length == 0 && is_chunked(&buffer[..head]) {
        // Nobody sends another request before this one is answered.
        while !buffer.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        }
        return Some((asked, buffer.len() - head));
    }
    let mut left = (head + 4 + length).saturating_sub(buffer.len());
    while left > 0 {
        buffer.clear();
        let read = stream.read_buf(buffer).await.ok()?;
        if read == 0 {
            return None;
        }
        left = left.saturating_sub(read);
    }
    Some((asked, length))
}

fn is_chunked(head: &[u8]) -> bool {
    String::from_utf8_lossy(head).to_ascii_lowercase().contains("transfer-encoding: chunked")
}

impl Counts {
    fn count(&self, body_bytes: usize) {
        let now = u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if self.writes.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.store(now, Ordering::Relaxed);
        }
        self.last.store(now, Ordering::Relaxed);
        if body_bytes > SMALL_MAX {
            self.last_large.store(now, Ordering::Relaxed);
        }
    }
}
