//! Accepting connections and serving the requests on them, with the script's faults at every step.

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::log::Received;
use super::routes::{self, Reading};
use super::script::{Answer, Then};
use super::wire::{self, Head};
use super::{Fault, Inner, Shared};

/// How often a waiting request checks that its client is still connected.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The pause between two chunks of a streamed answer.
const CHUNK_PAUSE: Duration = Duration::from_millis(5);

pub(super) fn accept(inner: &Arc<Inner>, listener: &TcpListener, run: u64) {
    for stream in listener.incoming() {
        let mut shared = inner.lock();
        if !shared.is_run(run) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        shared.connections_count += 1;
        let id = shared.connections_count;
        shared.connections.insert(id, handle);
        let inner = Arc::clone(inner);
        std::thread::spawn(move || {
            // An error here is a connection that broke, which the client sees as well.
            let _ = Connection { inner: &inner, id, run }.serve(stream);
            inner.lock().connections.remove(&id);
        });
    }
}

struct Connection<'a> {
    inner: &'a Inner,
    id: u64,
    run: u64,
}

enum Next {
    KeepAlive,
    Close,
    Reset,
}

impl Connection<'_> {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(head) = wire::read_head(&mut reader).inspect_err(|_| self.count_unfinished())? {
            let next = if self.is_reset_unread(&head) {
                Next::Reset
            } else {
                let body = wire::read_body(&mut reader, &head).inspect_err(|_| self.count_unfinished())?;
                self.request(reader.get_ref(), head, body)?
            };
            match next {
                Next::KeepAlive => {}
                Next::Close => return Ok(()),
                Next::Reset => {
                    self.inner.lock().connections.remove(&self.id);
                    wire::reset(reader.into_inner());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn count_unfinished(&self) {
        self.inner.lock().unfinished += 1;
    }

    fn is_reset_unread(&self, head: &Head) -> bool {
        let request = routes::received(head, Bytes::new());
        let mut shared = self.inner.lock();
        let found = shared.fault_for(&request, true).is_some();
        if found {
            shared.unfinished += 1;
        }
        found
    }

    fn request(&self, stream: &TcpStream, head: Head, body: Vec<u8>) -> io::Result<Next> {
        let mut request = routes::received(&head, Bytes::from(body));
        let reading = routes::read(&mut request);
        let close = head.wants_close();
        let is_head = head.method == "HEAD";
        let mut shared = self.inner.lock();
        if !shared.is_run(self.run) {
            return Ok(Next::Close);
        }
        let seq = shared.log(request, &reading);
        let request = shared.requests[seq].clone();
        let fault = shared.fault_for(&request, false);
        let cleared = |shared: &mut Shared| fault.as_ref().is_none_or(|(id, _)| shared.fault(*id).cleared);
        let then = fault.as_ref().map(|(_, then)| then.clone());
        let process = |shared: &mut Shared| shared.process(seq, &reading);
        let (shared, answer) = match then {
            None => {
                let answer = process(&mut shared);
                (shared, answer)
            }
            Some(Then::Answer(answer)) => (shared, answer),
            Some(Then::Respond(respond)) => {
                let answer = respond.answer(&request, &shared.state);
                let answer = answer.unwrap_or_else(|| process(&mut shared));
                (shared, answer)
            }
            Some(Then::Hang) => {
                if let Some(mut shared) = self.wait(shared, stream, seq, cleared) {
                    shared.end(seq, None);
                }
                return Ok(Next::Close);
            }
            Some(Then::Hold) => match self.wait(shared, stream, seq, cleared) {
                Some(mut shared) => {
                    let answer = process(&mut shared);
                    (shared, answer)
                }
                None => return Ok(Next::Close),
            },
            Some(Then::Delay(delay)) => {
                let until = Instant::now() + delay;
                match self.wait(shared, stream, seq, |_| Instant::now() >= until) {
                    Some(mut shared) => {
                        let answer = process(&mut shared);
                        (shared, answer)
                    }
                    None => return Ok(Next::Close),
                }
            }
            Some(Then::Reset) => {
                shared.end(seq, None);
                return Ok(Next::Reset);
            }
            Some(Then::Garbage(bytes)) => {
                shared.end(seq, None);
                drop(shared);
                (&mut &*stream).write_all(bytes)?;
                return Ok(Next::Close);
            }
            Some(Then::Halfway { traces }) => {
                let answer = shared.make_otel_traces(seq, Some(traces)).err();
                (shared, answer.unwrap_or_else(|| Answer::error(500, "failed half-way")))
            }
            Some(Then::ProcessThenReset) => {
                process(&mut shared);
                shared.end(seq, None);
                return Ok(Next::Reset);
            }
            Some(Then::ProcessThenClose) => {
                process(&mut shared);
                shared.end(seq, None);
                return Ok(Next::Close);
            }
            Some(Then::ProcessThenHang) => {
                process(&mut shared);
                if let Some(mut shared) = self.wait(shared, stream, seq, cleared) {
                    shared.end(seq, None);
                }
                return Ok(Next::Close);
            }
            Some(Then::Truncate) => {
                let answer = process(&mut shared);
                shared.end(seq, None);
                drop(shared);
                wire::write_truncated(stream, &answer)?;
                return Ok(Next::Close);
            }
            Some(Then::ResetUnread) => unreachable!("it is met before the body is read"),
        };
        self.answer(shared, stream, seq, &answer, (is_head, close))
    }

    fn answer(
        &self,
        mut shared: MutexGuard<'_, Shared>,
        stream: &TcpStream,
        seq: usize,
        answer: &Answer,
        (is_head, close): (bool, bool),
    ) -> io::Result<Next> {
        // The client may send the next request the moment it has the answer, so this one ends before.
        shared.end(seq, Some(answer.status));
        drop(shared);
        wire::write_answer(stream, answer, is_head, close)?;
        if is_head {
            return Ok(if close { Next::Close } else { Next::KeepAlive });
        }
        for (sent, chunk) in answer.stream.iter().flatten().enumerate() {
            let shared = self.inner.lock();
            let free = |shared: &mut Shared| shared.stream_allowance.is_none_or(|allowed| sent < allowed);
            let Some(shared) = self.wait(shared, stream, seq, free) else {
                return Ok(Next::Close);
            };
            drop(shared);
            wire::write_chunk(stream, chunk)?;
            std::thread::sleep(CHUNK_PAUSE);
        }
        if answer.stream.is_some() {
            wire::write_chunk(stream, b"")?;
        }
        Ok(if close { Next::Close } else { Next::KeepAlive })
    }

    /// Waits until `done`; `None` when the server was stopped or the client went away first.
    fn wait<'a>(
        &'a self,
        mut shared: MutexGuard<'a, Shared>,
        stream: &TcpStream,
        seq: usize,
        mut done: impl FnMut(&mut Shared) -> bool,
    ) -> Option<MutexGuard<'a, Shared>> {
        loop {
            if !shared.is_run(self.run) {
                return None;
            }
            if done(&mut shared) {
                return Some(shared);
            }
            shared = self.inner.changed.wait_timeout(shared, LOOK_INTERVAL).unwrap_or_else(|e| e.into_inner()).0;
            drop(shared);
            let gone = wire::is_closed(stream);
            shared = self.inner.lock();
            if gone {
                shared.end(seq, None);
                return None;
            }
        }
    }
}

impl Shared {
    fn is_run(&self, run: u64) -> bool {
        self.running && self.run == run
    }

    /// Writes a request into the log and returns its place there.
    fn log(&mut self, mut request: Received, reading: &Reading) -> usize {
        request.seq = self.requests.len();
        request.began_step = self.next_step();
        if let Reading::Refused { message, .. } = reading {
            let Received { seq, method, path, .. } = &request;
            self.violations.push(format!("request {seq} {method} {path}: {message}"));
        }
        self.requests.push(request);
        self.requests.len() - 1
    }

    /// Ends a request that has not ended yet.
    fn end(&mut self, seq: usize, status: Option<u16>) {
        let step = self.next_step();
        let request = &mut self.requests[seq];
        if request.ended_step.is_none() {
            request.ended_step = Some(step);
            request.answered_status = status;
        }
    }

    /// Takes one use of the newest fault that meets this request, among those that act on the head or on the whole.
    fn fault_for(&mut self, request: &Received, on_head: bool) -> Option<(u64, Then)> {
        let meets = |fault: &Fault| {
            !fault.cleared
                && fault.times_left != Some(0)
                && matches!(fault.then, Then::ResetUnread) == on_head
                && fault.when.matches(request)
        };
        let always = self.faults.iter().rposition(|fault| fault.always && meets(fault));
        let at = always.or_else(|| self.faults.iter().rposition(|fault| !fault.always && meets(fault)))?;
        let fault = &mut self.faults[at];
        fault.hits += 1;
        if let Some(left) = &mut fault.times_left {
            *left -= 1;
        }
        Some((fault.id, fault.then.clone()))
    }
}
