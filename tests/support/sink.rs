//! A server that takes writes of any size and keeps none of them: only the ids, so that a test of memory measures the
//! agent and not itself.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::reserve_port;

/// How much of a body is kept to read the id of what it creates.
const BEGINNING: usize = 4096;

pub(crate) struct Sink {
    port: u16,
    taken: Arc<Mutex<HashMap<String, usize>>>,
    is_slow: Arc<AtomicBool>,
    reservation: Mutex<Option<tokio::net::TcpSocket>>,
}

impl Sink {
    /// Keeps a port that refuses connections until [`Sink::start`].
    pub(crate) fn new_stopped() -> Self {
        let reservation = reserve_port(0).expect("there is a free port");
        let port = reservation.local_addr().expect("it is bound").port();
        Self { port, taken: Arc::default(), is_slow: Arc::default(), reservation: Mutex::new(Some(reservation)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    /// Waits a while before it answers a write, as a busy server does.
    pub(crate) fn be_slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    pub(crate) fn start(&self) {
        self.reservation.lock().expect("nobody panicked").take();
        let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("the port is kept for this");
        let (taken, is_slow) = (self.taken.clone(), self.is_slow.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (taken, is_slow) = (taken.clone(), is_slow.clone());
                std::thread::spawn(move || drop(serve(&stream, &taken, &is_slow)));
            }
        });
    }

    /// Returns the ids of the traces that were created, each with the times that it came.
    pub(crate) fn taken(&self) -> HashMap<String, usize> {
        self.taken.lock().expect("nobody panicked").clone()
    }
}

fn serve(stream: &TcpStream, taken: &Mutex<HashMap<String, usize>>, is_slow: &AtomicBool) -> std::io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut line, mut length, mut expects) = (String::new(), 0_u64, false);
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let lower = header.trim().to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            expects |= lower == "expect: 100-continue";
            if lower.is_empty() {
                break;
            }
        }
        if expects {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut beginning = Vec::new();
        (&mut reader).take(length.min(BEGINNING as u64)).read_to_end(&mut beginning)?;
        let rest = length - beginning.len() as u64;
        if std::io::copy(&mut (&mut reader).take(rest), &mut std::io::sink())? < rest {
            return Ok(());
        }
        if line.starts_with("GET") {
            let body = r#"{"message":"Healthy Server","healthy":true}"#;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
            writer.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
            continue;
        }
        if is_slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(300));
        }
        let text = String::from_utf8_lossy(&beginning);
        let id = text.split_once("\"id\":\"").and_then(|(_, rest)| rest.get(..36)).unwrap_or_default().to_owned();
        *taken.lock().expect("nobody panicked").entry(id.clone()).or_default() += 1;
        let location = format!("http://127.0.0.1/api/v1/private/traces/{id}");
        writer.write_all(
            format!("HTTP/1.1 201 Created\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        )?;
    }
}
