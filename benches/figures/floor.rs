//! The floor of durable intake over HTTP: the same work and nothing else.
//!
//! One thread waits for all connections (epoll), appends the bodies of one wake-up to one file, syncs it once, and
//! answers. It parses no more of a request than its length, and inflates nothing.
//!
//! Generator and floor share the machine with what is compared, so a generator that costs less per request raises the
//! floor's rate more than the agent's. Ratios of different generators don't compare.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::process::{Process, end_with_parent};

/// The argument that makes this program a floor.
pub(crate) const ARGUMENT: &str = "--serve-floor";

const EVENTS_MAX: usize = 256;
const READ_BYTES: usize = 64 * 1024;

/// Starts a floor whose file is in this folder.
pub(crate) fn start(home: &Path) -> Process {
    Process::start_own(home, ARGUMENT, &[])
}

struct Client {
    stream: TcpStream,
    /// Received, not yet a whole request.
    buffer: Vec<u8>,
}

/// Serves at this address until the process is killed; the file is in the current folder.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) {
    end_with_parent();
    let address: SocketAddr = args.next().and_then(|address| address.parse().ok()).expect("an address");
    let listener = TcpListener::bind(address).expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let mut file = OpenOptions::new().create(true).append(true).open("floor").expect("a file");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN).expect("epoll");
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let (mut bodies, mut answered, mut scratch) = (Vec::new(), Vec::new(), vec![0; READ_BYTES]);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None).expect("epoll");
        for event in events.drain(..) {
            let data = event.data;
            let Ok(index) = usize::try_from(data.u64()).map(|index| (index != usize::MAX).then_some(index)) else {
                continue;
            };
            let Some(index) = index else {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).expect("a socket option");
                    let data = epoll::EventData::new_u64(clients.len() as u64);
                    epoll::add(&epoll, &stream, data, epoll::EventFlags::IN).expect("epoll");
                    clients.push(Some(Client { stream, buffer: Vec::new() }));
                }
                continue;
            };
            let Some(client) = &mut clients[index] else { continue };
            match client.receive(&mut scratch, &mut bodies) {
                Ok(true) => answered.push(index),
                Ok(false) => {}
                // Dropping the stream takes it out of the epoll.
                Err(_) => clients[index] = None,
            }
        }
        if answered.is_empty() {
            continue;
        }
        commit(&mut file, &mut bodies).expect("the disk takes it");
        for index in answered.drain(..) {
            let Some(client) = &mut clients[index] else { continue };
            if client.stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                clients[index] = None;
            }
        }
    }
}

fn commit(file: &mut File, bodies: &mut Vec<u8>) -> io::Result<()> {
    file.write_all(bodies)?;
    bodies.clear();
    file.sync_data()
}

impl Client {
    /// Reads what has come, and moves the body of a whole request to `bodies`; returns whether there was one.
    fn receive(&mut self, scratch: &mut [u8], bodies: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.buffer.extend_from_slice(&scratch[..read]);
                    if read < scratch.len() {
                        break;
                    }
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => break,
                Err(why) => return Err(why),
            }
        }
        let Some(head) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else { return Ok(false) };
        let body = head + 4;
        let end = body + content_length(&self.buffer[..head]);
        if self.buffer.len() < end {
            return Ok(false);
        }
        bodies.extend_from_slice(&self.buffer[body..end]);
        // A client has one request at a time.
        self.buffer.clear();
        Ok(true)
    }
}

/// Returns the value of `Content-Length`, or 0.
pub(crate) fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|byte| *byte == b'\n')
        .find(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)));
    let value = line.and_then(|line| std::str::from_utf8(&line[NAME.len()..]).ok());
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
