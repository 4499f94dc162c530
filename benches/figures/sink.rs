//! A server that answers every write at once, or after a set delay, and counts them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running sink; lives as long as the process.
pub(crate) struct Sink {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
}

impl Sink {
    /// Starts a sink whose answers take this long, on a thread of its own.
    pub(crate) fn start(delay: Duration) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), delay)
    }

    /// Starts a sink at this address: a server that was away and comes back.
    pub(crate) fn start_at(address: SocketAddr, delay: Duration) -> Self {
        let counts = Arc::new(Counts::default());
        let (told, bound) = std::sync::mpsc::channel();
        std::thread::spawn({
            let counts = counts.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async move {
                    let listener = TcpListener::bind(address).await.expect("a free port");
                    told.send(listener.local_addr().expect("an address")).expect("somebody asked");
                    loop {
                        let (stream, _) = listener.accept().await.expect("a connection");
                        stream.set_nodelay(true).expect("a socket option");
                        tokio::spawn(serve(stream, counts.clone(), delay));
                    }
                });
            }
        });
        Self { address: bound.recv().expect("the sink starts"), counts }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Returns how many writes came so far.
    pub(crate) fn writes(&self) -> u64 {
        self.counts.writes.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>, delay: Duration) {
    let mut buffer: Vec<u8> = Vec::with_capacity(64 * 1024);
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                break end;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let is_write = !text.starts_with("get");
        let chunked = text.contains("transfer-encoding: chunked");
        let length: usize = text
            .split("content-length:")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.trim().parse().ok())
            .unwrap_or(0);
        let mut left = (head + 4 + length).saturating_sub(buffer.len());
        if chunked {
            // Nobody sends another request before this one is answered.
            while !buffer.ends_with(b"0\r\n\r\n") {
                match stream.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        }
        buffer.clear();
        while left > 0 {
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
            buffer.clear();
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        counts.writes.fetch_add(is_write.into(), Ordering::Relaxed);
        let answer: &[u8] = if is_write {
            b"HTTP/1.1 204 No Content\r\n\r\n"
        } else {
            // Opik's answer to a ping: nothing else is recognized as Opik.
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n{\"message\":\"Healthy Server\"}"
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}
