//! Responses that the blocking client would lose.
//!
//! - **An early response**: a server or its front that rejects a request by its head (413, 401, 429) may close the
//!   connection while the body is still being written. The write then fails, and the response is unread in the socket
//!   buffer. This transport reads it after a failed write; if there is none, the request is retried once with `Expect:
//!   100-continue` ([`broke_off`]).
//! - **A response with more headers than the client's parser accepts** (ureq: 128 and 64 KiB). The server has processed
//!   the request, so it must not be retried: the head is trimmed to fit ([`trimmed`]).
//! - **An interim response with headers** (`100 Continue` of some proxies), which ureq rejects: only its first line
//!   is passed on.
//!
//! It also spares system calls, which are most of what a small request costs: a head leaves together with the first
//! piece of its body, where ureq sends each on its own ([`Heard::transmit`]); a long timeout is set on the socket again
//! only once a second ([`coarse`]); and an idle connection is probed once, before its next request.
//!
//! And it sends a request that the client rejects: ureq validates `Authorization` as ASCII, while HTTP allows other
//! bytes and clients send them. Such a value is sent under a name of the same length ([`STAND_IN`]), which this
//! transport replaces by `authorization`.
//!
//! Layered above TLS and below the client.

use std::cell::Cell;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport, time};

/// Limit of a response's head before trimming, in bytes.
const HEAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Headers kept by trimming in addition to [`ESSENTIAL`], and their bytes.
const HEADERS_KEPT: usize = 80;
const HEADER_BYTES_KEPT: usize = 32 * 1024;
/// Headers that define the length of the response or affect a retry.
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
/// Timeout for reading a response after a failed write. It has already arrived, or never will.
const AFTER_A_BREAK: Duration = Duration::from_millis(200);

/// Placeholder name for an `Authorization` that the client would reject.
pub(super) const STAND_IN: &str = "x-opik-authzn";
const AUTHORIZATION: &[u8; STAND_IN.len()] = b"authorization";

thread_local! {
    static BROKE_OFF: Cell<bool> = const { Cell::new(false) };
}

/// Takes the flag that a write of this thread's last request failed without a response.
///
/// The request was truncated then, so the server can't have processed it, and a retry is safe.
pub(super) fn broke_off() -> bool {
    BROKE_OFF.with(|broke_off| broke_off.replace(false))
}

/// The part of the response that is expected next.
#[derive(Debug)]
enum Next {
    /// A head; the number of bytes that have arrived.
    Head(Vec<u8>),
    /// A body, passed through.
    Body,
}

/// A transport that preserves such responses.
#[derive(Debug)]
pub(super) struct Heard {
    inner: Box<dyn Transport>,
    next: Next,
    /// Input buffer, and the number of bytes consumed.
    input: Vec<u8>,
    used: usize,
    has_progressed: bool,
    /// Whether the next output is a request's head.
    sends_head: bool,
    /// A head that leaves together with the next output.
    held: Vec<u8>,
    /// Whether the connection was not used since it was last asked whether it is open.
    is_idle: bool,
    /// The error of a failed write; no further writes are possible.
    broken: Option<Error>,
}

impl Heard {
    pub(super) fn over(inner: Box<dyn Transport>) -> Self {
        let next = Next::Head(Vec::new());
        Self {
            inner,
            next,
            input: Vec::new(),
            used: 0,
            has_progressed: false,
            sends_head: true,
            held: Vec::new(),
            is_idle: false,
            broken: None,
        }
    }

    /// Sends the head that is held, and this much of the output behind it.
    fn transmit(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = coarse(timeout);
        let head = std::mem::take(&mut self.held);
        let output = self.inner.buffers().output();
        // A head was output before, so it fits.
        let beside = amount.min(output.len() - head.len());
        let behind = output[beside..amount].to_vec();
        output.copy_within(..beside, head.len());
        output[..head.len()].copy_from_slice(&head);
        let mut sent = self.inner.transmit_output(head.len() + beside, timeout);
        if sent.is_ok() && !behind.is_empty() {
            self.inner.buffers().output()[..behind.len()].copy_from_slice(&behind);
            sent = self.inner.transmit_output(behind.len(), timeout);
        }
        let Err(failure) = sent else { return Ok(()) };
        let soon = NextTimeout { after: time::Duration::Exact(AFTER_A_BREAK), ..timeout };
        while !self.has_input() && matches!(self.read(soon), Ok(true)) {}
        if self.has_input() {
            self.broken = Some(failure);
            return Ok(());
        }
        BROKE_OFF.with(|broke_off| broke_off.set(true));
        Err(failure)
    }

    /// Reads once; returns whether the connection is still open.
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
            // An interim response (1xx) is followed by another head.
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
        self.is_idle = false;
        if self.broken.is_some() {
            // The response has already arrived: the server no longer reads the body.
            return Ok(());
        }
        if matches!(self.next, Next::Body) && !self.has_input() {
            self.next = Next::Head(Vec::new());
            self.sends_head = true;
        }
        if std::mem::take(&mut self.sends_head) {
            let head = &mut self.inner.buffers().output()[..amount];
            name_authorization(head);
            self.held.extend_from_slice(head);
            return Ok(());
        }
        self.transmit(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !self.held.is_empty() {
            // Without a body, or to wait for `100 Continue`: that it does not come is no failure, that the head does not
            // leave is one.
            self.transmit(0, NextTimeout { reason: ureq::Timeout::SendRequest, ..timeout })?;
        }
        let started = Instant::now();
        loop {
            let had = self.input.len() - self.used;
            let left = timeout.after.checked_sub(started.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(Error::Timeout(timeout.reason)) };
            let after = if timeout.after.is_not_happening() { timeout.after } else { time::Duration::Exact(left) };
            match self.read(coarse(NextTimeout { after, ..timeout })) {
                // The head is incomplete: there is nothing to parse yet.
                Ok(true) if self.input.len() - self.used == had => {}
                Ok(is_open) => return Ok(is_open),
                Err(failure) => return Err(self.broken.take().unwrap_or(failure)),
            }
        }
    }

    fn is_open(&mut self) -> bool {
        // ureq asks after a request and again before the next one, which is when it matters.
        let is_asked_again = std::mem::replace(&mut self.is_idle, true);
        self.broken.is_none() && !self.has_input() && (!is_asked_again || self.inner.is_open())
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

/// Returns a timeout that is longer by less than a second, and by at most a tenth: setting one is a system call.
fn coarse(timeout: NextTimeout) -> NextTimeout {
    const EXACT_BELOW: Duration = Duration::from_secs(10);
    match timeout.after {
        time::Duration::Exact(after) if after >= EXACT_BELOW => {
            let whole = Duration::from_secs(after.as_secs() + u64::from(after.subsec_nanos() > 0));
            NextTimeout { after: time::Duration::Exact(whole), ..timeout }
        }
        _ => timeout,
    }
}

/// Replaces the placeholder by `authorization` in a request's head.
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

/// Returns the offset of the end of a response's head, after its empty line.
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

/// Trims a response's head to the limits of the client's parser: it keeps the essential headers, and of the
/// others the first. A head within the limits is unchanged.
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use ureq::unversioned::transport::LazyBuffers;

    use super::*;

    /// A connection whose output buffer has this many bytes, and what is sent on it, write by write.
    #[derive(Debug)]
    struct Wire {
        buffers: LazyBuffers,
        sent: Arc<Mutex<Vec<String>>>,
        probes: Arc<AtomicUsize>,
    }

    impl Transport for Wire {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            let sent = String::from_utf8_lossy(&self.buffers.output()[..amount]).into_owned();
            self.sent.lock().expect("no panic").push(sent);
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            self.buffers.input_append_buf()[..answer.len()].copy_from_slice(answer);
            self.buffers.input_appended(answer.len());
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            self.probes.fetch_add(1, Ordering::Relaxed);
            true
        }
    }

    const NEVER: NextTimeout = NextTimeout {
        after: time::Duration::NotHappening,
        reason: ureq::Timeout::Global,
        per_read: None,
        per_write: None,
    };

    fn wire(output_bytes: usize) -> (Heard, Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) {
        let (sent, probes) = (Arc::default(), Arc::default());
        let wire = Wire { buffers: LazyBuffers::new(1000, output_bytes), sent, probes };
        let (sent, probes) = (wire.sent.clone(), wire.probes.clone());
        (Heard::over(Box::new(wire)), sent, probes)
    }

    /// Sends as ureq does: the head, then the body in pieces as large as the buffer.
    fn send(heard: &mut Heard, head: &str, body: &str) {
        let bytes_max = heard.output().len();
        for piece in [head.as_bytes()].into_iter().chain(body.as_bytes().chunks(bytes_max)) {
            heard.output()[..piece.len()].copy_from_slice(piece);
            heard.transmit_output(piece.len(), NEVER).expect("it is taken");
        }
        assert!(heard.await_input(NEVER).expect("it is answered"));
        let answered = heard.input().len();
        heard.input_consume(answered);
    }

    #[test]
    fn a_head_leaves_with_the_beginning_of_its_body() {
        let (mut heard, sent, _) = wire(16);
        let mut writes = |head: &str, body: &str| {
            send(&mut heard, head, body);
            std::mem::take(&mut *sent.lock().expect("no panic"))
        };
        assert_eq!(writes("POST /a\r\n\r\n", "body"), ["POST /a\r\n\r\nbody"]);
        let longer = "0123456789abcdef-and-more";
        assert_eq!(writes("POST /a\r\n\r\n", longer), ["POST /a\r\n\r\n01234", "56789abcdef", "-and-more"]);
        assert_eq!(writes("GET /abcdef\r\n\r\n", ""), ["GET /abcdef\r\n\r\n"], "nothing follows it");
        assert_eq!(writes("0123456789ab\r\n\r\n", "body"), ["0123456789ab\r\n\r\n", "body"], "it fills the buffer");
    }

    #[test]
    fn an_idle_connection_is_probed_before_its_next_request() {
        let (mut heard, _, probes) = wire(100);
        for round in 1..=3 {
            send(&mut heard, "GET /a\r\n\r\n", "");
            assert!(heard.is_open() && heard.is_open());
            assert_eq!(probes.load(Ordering::Relaxed), round, "it is asked after a request, and before the next one");
        }
    }

    #[test]
    fn a_long_timeout_changes_once_a_second() {
        let after = |millis| match coarse(NextTimeout { after: time::Duration::from_millis(millis), ..NEVER }).after {
            time::Duration::Exact(after) => after.as_millis(),
            time::Duration::NotHappening => 0,
        };
        assert_eq!([95_000, 94_999, 94_001, 10_000, 9_999, 7].map(after), [95_000, 95_000, 95_000, 10_000, 9_999, 7]);
        assert!(coarse(NEVER).after.is_not_happening());
    }

    #[test]
    fn the_placeholder_is_replaced_only_in_the_head() {
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
    fn head_ends_are_detected() {
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
    fn trimming_keeps_the_essential_headers() {
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
