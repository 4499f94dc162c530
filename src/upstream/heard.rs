//! Answers that the blocking client would not hear by itself.
//!
//! - **An answer that comes before the body was sent**: a server or its front that refuses a request by its head (413,
//!   401, 429) may close the connection while the body is still being written. The write then fails, and the answer lies
//!   unread in the socket. Here a write that fails looks there first; and what is not heard that way is asked for once
//!   more with `Expect: 100-continue` ([`broke_off`]).
//! - **An answer with more headers than the client's parser takes** (ureq: 128 and 64 KiB). The server has done what was
//!   asked, so it must not be asked again: the head is cut to what fits ([`trimmed`]).
//! - **An interim answer with headers** (`100 Continue` of some proxies), which ureq takes for a fault: only its first line
//!   goes on.
//!
//! And a request that the client would not send: ureq refuses an `Authorization` beyond ASCII, which HTTP allows and
//! clients send. It goes under a name of the same length ([`STAND_IN`]), which becomes `authorization` on its way out.
//!
//! Sits on top of TLS, below the client.

use std::cell::Cell;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport, time};

/// Bytes of an answer's head at most, before it is trimmed.
const HEAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Headers that are kept of a head, beside [`ESSENTIAL`], and bytes of them.
const HEADERS_KEPT: usize = 80;
const HEADER_BYTES_KEPT: usize = 32 * 1024;
/// Headers that say where the answer ends and what it asks for.
const ESSENTIAL: [&[u8]; 11] = [
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"content-type",
    b"content-encoding",
    b"location",
    b"ratelimit-reset",
    b"retry-after",
    b"date",
    b"etag",
    b"www-authenticate",
];
/// How long an answer is waited for after a write failed. It is there already, or it never will be.
const AFTER_A_BREAK: Duration = Duration::from_millis(200);

/// The name under which the client sends an `Authorization` that it would refuse.
pub(super) const STAND_IN: &str = "x-opik-authzn";
const AUTHORIZATION: &[u8; STAND_IN.len()] = b"authorization";

thread_local! {
    static BROKE_OFF: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether a write of this thread's last request failed, and no answer to it was heard; forgets it.
///
/// The request was then not sent whole, so the server can't have done what it asks.
pub(super) fn broke_off() -> bool {
    BROKE_OFF.with(|broke_off| broke_off.replace(false))
}

/// What is expected from the server next.
#[derive(Debug)]
enum Next {
    /// The head of an answer, of which so much is there.
    Head(Vec<u8>),
    /// Its body, as it comes.
    Body,
}

/// A transport that hears such answers.
#[derive(Debug)]
pub(super) struct Heard {
    inner: Box<dyn Transport>,
    next: Next,
    /// What was read, and how much of it was used.
    input: Vec<u8>,
    used: usize,
    has_progressed: bool,
    /// Whether the head of a request goes out next.
    sends_head: bool,
    /// Why nothing can be written any more.
    broken: Option<Error>,
}

impl Heard {
    pub(super) fn over(inner: Box<dyn Transport>) -> Self {
        let next = Next::Head(Vec::new());
        Self { inner, next, input: Vec::new(), used: 0, has_progressed: false, sends_head: true, broken: None }
    }

    /// Reads once, and returns whether the connection is still open.
    fn read(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let is_open = self.inner.await_input(timeout)?;
        let buffers = self.inner.buffers();
        let mut rest = buffers.input().to_vec();
        buffers.input_consume(rest.len());
        if !is_open && rest.is_empty() {
            return Ok(false);
        }
        if self.used == self.input.len() {
            self.input.clear();
            self.used = 0;
        }
        while let Next::Head(head) = &mut self.next {
            head.append(&mut rest);
            let Some(end) = head_end(head) else {
                if head.len() > HEAD_BYTES_MAX {
                    return Err(Error::LargeResponseHeader(head.len(), HEAD_BYTES_MAX));
                }
                return Ok(true);
            };
            rest = head.split_off(end);
            // An interim answer (1xx) is followed by another head.
            if head.get(8..10) == Some(b" 1") && head.get(10..12) != Some(b"01") {
                self.input.extend(head.iter().take_while(|byte| **byte != b'\n'));
                self.input.extend_from_slice(b"\n\r\n");
                head.clear();
                if rest.is_empty() {
                    return Ok(true);
                }
            } else {
                self.input.extend_from_slice(&trimmed(head));
                self.next = Next::Body;
            }
        }
        self.input.append(&mut rest);
        Ok(true)
    }

    fn has_input(&self) -> bool {
        self.used < self.input.len()
    }
}

impl Transport for Heard {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.broken.is_some() {
            // The answer is there already: nobody reads this any more.
            return Ok(());
        }
        if matches!(self.next, Next::Body) && !self.has_input() {
            self.next = Next::Head(Vec::new());
            self.sends_head = true;
        }
        if std::mem::take(&mut self.sends_head) {
            name_authorization(&mut self.inner.buffers().output()[..amount]);
        }
        let failure = match self.inner.transmit_output(amount, timeout) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let soon = NextTimeout { after: time::Duration::Exact(AFTER_A_BREAK), ..timeout };
        while !self.has_input() && matches!(self.read(soon), Ok(true)) {}
        if self.has_input() {
            self.broken = Some(failure);
            return Ok(());
        }
        BROKE_OFF.with(|broke_off| broke_off.set(true));
        Err(failure)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let started = Instant::now();
        loop {
            let had = self.input.len() - self.used;
            let left = timeout.after.checked_sub(started.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(Error::Timeout(timeout.reason)) };
            let after = if timeout.after.is_not_happening() { timeout.after } else { time::Duration::Exact(left) };
            match self.read(NextTimeout { after, ..timeout }) {
                // Not enough of a head to be read: there is nothing to show yet.
                Ok(true) if self.input.len() - self.used == had => {}
                Ok(is_open) => return Ok(is_open),
                Err(failure) => return Err(self.broken.take().unwrap_or(failure)),
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.broken.is_none() && !self.has_input() && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl Buffers for Heard {
    fn output(&mut self) -> &mut [u8] {
        self.inner.buffers().output()
    }

    fn input(&self) -> &[u8] {
        &self.input[self.used..]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.inner.buffers().input_append_buf()
    }

    fn input_appended(&mut self, amount: usize) {
        self.inner.buffers().input_appended(amount);
    }

    fn input_consume(&mut self, amount: usize) {
        self.has_progressed = amount > 0;
        self.used = self.input.len().min(self.used + amount);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.inner.buffers().tmp_and_output()
    }

    fn can_use_input(&self) -> bool {
        self.has_input() && self.has_progressed
    }
}

/// Gives the `Authorization` of a request's head its own name.
fn name_authorization(sent: &mut [u8]) {
    let end = head_end(sent).unwrap_or(sent.len());
    let mut from = 0;
    while let Some(at) = sent[from..end].iter().position(|byte| *byte == b'\n').map(|at| from + at + 1) {
        if let Some(name) = sent.get_mut(at..at + STAND_IN.len())
            && name == STAND_IN.as_bytes()
        {
            name.copy_from_slice(AUTHORIZATION);
            return;
        }
        from = at;
    }
}

/// Returns where the head of an answer ends, behind its empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if line_start > 0 && matches!(&bytes[line_start..at], b"" | b"\r") {
            return Some(at + 1);
        }
        line_start = at + 1;
    }
    None
}

/// Returns the head of an answer with no more headers than the client's parser takes: the essential ones, and of the
/// others the first. A head that fits is as it was.
fn trimmed(head: &[u8]) -> Vec<u8> {
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    if lines <= HEADERS_KEPT && head.len() <= HEADER_BYTES_KEPT {
        return head.to_vec();
    }
    let mut kept = Vec::new();
    let (mut others, mut other_bytes) = (0, 0);
    let mut is_kept = true;
    for (number, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let is_folded = line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if number == 0 || matches!(line, b"\r\n" | b"\n") {
            is_kept = true;
        } else if !is_folded {
            is_kept =
                line.len() <= HEADER_BYTES_KEPT / 4 && ESSENTIAL.iter().any(|known| name.eq_ignore_ascii_case(known));
            if !is_kept && others < HEADERS_KEPT && other_bytes + line.len() <= HEADER_BYTES_KEPT {
                is_kept = true;
                others += 1;
                other_bytes += line.len();
            }
        }
        if is_kept {
            kept.extend_from_slice(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_gets_its_own_name_in_the_head_only() {
        let named = |sent: &str| {
            let mut sent = sent.as_bytes().to_vec();
            name_authorization(&mut sent);
            String::from_utf8(sent).expect("text")
        };
        let (stand_in, own) = ("\r\nx-opik-authzn: k\u{e9}y\r\n", "\r\nauthorization: k\u{e9}y\r\n");
        assert_eq!(
            named(&format!("POST /x HTTP/1.1{stand_in}a: b\r\n\r\n")),
            format!("POST /x HTTP/1.1{own}a: b\r\n\r\n")
        );
        for other in [
            format!("POST /x HTTP/1.1\r\na: b\r\n\r\n{stand_in}"),
            "POST /x-opik-authzn: HTTP/1.1\r\n\r\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(named(&other), other);
        }
    }

    #[test]
    fn the_end_of_a_head_is_found() {
        for (bytes, expected) in [
            ("", None),
            ("HTTP/1.1 200 OK\r\n", None),
            ("HTTP/1.1 200 OK\r\n\r\nbody\r\n\r\n", Some(19)),
            ("HTTP/1.1 200 OK\nA: b\n\nbody", Some(22)),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r", None),
        ] {
            assert_eq!(head_end(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_head_keeps_what_says_where_the_answer_ends_however_many_headers_it_has() {
        let head = |headers: usize, bytes: usize| {
            let others: String = (0..headers).map(|n| format!("X-{n}: {}\r\n", "x".repeat(bytes))).collect();
            format!("HTTP/1.1 204 No Content\r\n{others}Content-Length: 7\r\nRateLimit-Reset: 3\r\n\r\n").into_bytes()
        };
        let small = head(10, 10);
        assert_eq!(trimmed(&small), small);
        for (headers, bytes) in [(100, 10), (1000, 10), (3, 100_000), (60, 2000)] {
            let trimmed = trimmed(&head(headers, bytes));
            let text = String::from_utf8_lossy(&trimmed);
            assert!(text.starts_with("HTTP/1.1 204 No Content\r\n"), "{text}");
            assert!(text.ends_with("Content-Length: 7\r\nRateLimit-Reset: 3\r\n\r\n"), "{text}");
            assert!(
                text.lines().count() < 100 && trimmed.len() < 40_000,
                "{headers} of {bytes}: {} bytes",
                trimmed.len()
            );
        }
    }
}
