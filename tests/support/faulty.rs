//! A proxy before a real depot: passes every request on, or does to it what networks and busy services do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::fake_opik::wire::read_chunk;

/// A request on its way to a depot.
#[derive(Clone, Debug)]
pub(crate) struct DepotRequest {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
}

impl DepotRequest {
    pub(crate) fn writes(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "POST" | "DELETE")
    }

    /// Returns whether it is a listing.
    pub(crate) fn lists(&self) -> bool {
        self.path.contains("list-type=2")
    }

    pub(crate) fn is_about(&self, part: &str) -> bool {
        self.path.contains(part)
    }
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DepotFault {
    /// It is passed on, and so is the answer.
    Pass,
    /// The connection is closed without an answer; nothing was done.
    Cut,
    /// It is refused with this status and code; nothing was done.
    Refuse(u16, &'static str),
    /// There is no answer for a long time; nothing was done.
    Hang,
    /// It is done, and the answer is lost.
    DoneUnanswered,
    /// Half of the answer's body arrives.
    Truncate,
    /// One bit in the middle of the answer's body is another.
    Flip,
    /// A listing without the objects whose names have this in them.
    Omit(String),
}

type Decide = dyn Fn(&DepotRequest) -> DepotFault + Send + Sync;

struct Plan {
    decide: Arc<Decide>,
    hits: usize,
}

/// The proxy. It ends with the test's process.
pub(crate) struct FaultyDepot {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl FaultyDepot {
    /// Starts a proxy before the service at this port, which passes everything on.
    pub(crate) fn start(behind: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let plan = Arc::new(Mutex::new(Plan { decide: Arc::new(|_| DepotFault::Pass), hits: 0 }));
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let plan = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(stream, behind, &plan)));
            }
        });
        Self { port, plan }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Decides like this from now on.
    pub(crate) fn set(&self, decide: impl Fn(&DepotRequest) -> DepotFault + Send + Sync + 'static) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Plan { decide: Arc::new(decide), hits: 0 };
    }

    /// Passes everything on from now on.
    pub(crate) fn heal(&self) {
        self.set(|_| DepotFault::Pass);
    }

    /// Returns how many requests met a fault since it was set.
    pub(crate) fn hits(&self) -> usize {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).hits
    }
}

fn serve(mut client: TcpStream, behind: u16, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    while let Some((request, wire)) = read_request(&mut reader)? {
        let decide = Arc::clone(&plan.lock().unwrap_or_else(PoisonError::into_inner).decide);
        let fault = decide(&request);
        if fault != DepotFault::Pass {
            plan.lock().unwrap_or_else(PoisonError::into_inner).hits += 1;
        }
        match &fault {
            DepotFault::Cut => return client.shutdown(Shutdown::Both),
            DepotFault::Hang => {
                std::thread::sleep(Duration::from_secs(600));
                return Ok(());
            }
            DepotFault::Refuse(status, code) => {
                let said = format!("<Error><Code>{code}</Code><Message>Not today.</Message></Error>");
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", said.len());
                let body = if request.method == "HEAD" { "" } else { &said };
                client.write_all(format!("{head}{body}").as_bytes())?;
                continue;
            }
            _ => {}
        }
        let answer = forward(&request, &wire, behind)?;
        if fault == DepotFault::DoneUnanswered {
            return client.shutdown(Shutdown::Both);
        }
        let (head, mut body) = answer;
        let is_good = head.starts_with("HTTP/1.1 2");
        match &fault {
            DepotFault::Flip if is_good && !body.is_empty() => {
                let middle = body.len() / 2;
                body[middle] ^= 0x10;
            }
            DepotFault::Omit(part) => body = without(&String::from_utf8_lossy(&body), part).into_bytes(),
            _ => {}
        }
        let length =
            if request.method == "HEAD" { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        client.write_all(format!("{head}{length}\r\n").as_bytes())?;
        if fault == DepotFault::Truncate && is_good && !body.is_empty() {
            client.write_all(&body[..body.len() / 2])?;
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&body)?;
    }
    Ok(())
}

/// Reads a request; its bytes are passed on as they are, because they are signed.
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<(DepotRequest, Vec<u8>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let mut first = head.split(' ');
    let (method, path) = (first.next().unwrap_or_default().to_owned(), first.next().unwrap_or_default().to_owned());
    let mut body = vec![0; value_of(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some((DepotRequest { method, path }, [head.into_bytes(), body].concat())))
}

fn value_of<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Returns the head of the answer without its length and its end, and the body.
fn forward(request: &DepotRequest, wire: &[u8], behind: u16) -> std::io::Result<(String, Vec<u8>)> {
    let mut depot = TcpStream::connect(("127.0.0.1", behind))?;
    depot.write_all(wire)?;
    let mut reader = BufReader::new(depot);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let is_framing = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        request.method != "HEAD" && name == "content-length" || name == "transfer-encoding"
    };
    let kept: Vec<&str> = head.trim_end().split("\r\n").filter(|line| !is_framing(line)).collect();
    let kept = format!("{}\r\n", kept.join("\r\n"));
    let status = head.split(' ').nth(1).unwrap_or_default();
    let mut body = Vec::new();
    if request.method == "HEAD" || status == "204" || status == "304" {
        return Ok((kept, body));
    }
    if value_of(&head, "transfer-encoding").is_some() {
        while read_chunk(&mut reader, &mut body)? {}
    } else {
        body = vec![0; value_of(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body)?;
    }
    Ok((kept, body))
}

/// Returns a listing without the objects whose names have this in them.
fn without(listing: &str, part: &str) -> String {
    let mut objects = listing.split("<Contents>");
    let mut kept = objects.next().unwrap_or_default().to_owned();
    for object in objects {
        let (inner, rest) = object.split_once("</Contents>").unwrap_or((object, ""));
        if !inner.contains(part) {
            kept += &format!("<Contents>{inner}</Contents>");
        }
        kept += rest;
    }
    kept
}
