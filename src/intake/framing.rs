//! Where each request of a connection ends, read strictly: what two HTTP programs could read in two ways is refused.
//!
//! hyper takes some of these in silence: it drops a `Content-Length` beside `Transfer-Encoding`, merges two equal ones, and
//! ends lines at a bare LF. RFC 9112 allows that (sections 2.2 and 6.3), but each is how requests are smuggled past one
//! program into another, and no client of Opik sends any of them. What is gone after hyper's parsing can't be found later,
//! so the bytes are looked at on their way in; they reach hyper unchanged, and the request is answered with 400 when hyper
//! hands it over.
//!
//! Pure, and never ahead of hyper: what hyper refuses by itself (no digits, broken chunks, a head without end) only ends
//! the watch. A body is counted, not looked at.

/// Bytes of a line that is watched; hyper refuses a longer head by itself.
const LINE_BYTES_MAX: usize = super::HEAD_BYTES_MAX;

/// Watches what a client sends on one connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// The line that is being read, without its end.
    line: Vec<u8>,
    head: Head,
    /// Requests that have begun.
    requests: u64,
    fault: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    RequestLine,
    Header,
    /// So many bytes of a body are left.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk are left, its line end included.
    Chunk(u64),
    Trailer,
    /// A fault was found, or hyper will refuse what comes: nothing more is read.
    Over,
}

#[derive(Debug, Default)]
struct Head {
    length: Option<u64>,
    is_chunked: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self { state: State::Between, line: Vec::new(), head: Head::default(), requests: 0, fault: None }
    }
}

impl Framing {
    /// Returns how many requests have begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Says what is wrong with the request of this number, of which the first is 1.
    ///
    /// A fault ends the watch, so it counts for whatever comes after it, too.
    pub(super) fn fault_of(&self, request: u64) -> Option<&'static str> {
        self.fault.filter(|_| request >= self.requests)
    }

    /// Says whether nothing of a next request has come.
    pub(super) fn is_between_requests(&self) -> bool {
        self.state == State::Between
    }

    /// Takes note of bytes that have come.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::Over => return,
                State::Between => {
                    // Empty lines before a request are skipped (RFC 9112, section 2.2).
                    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                    bytes = &bytes[skipped..];
                    if !bytes.is_empty() {
                        self.requests += 1;
                        self.head = Head::default();
                        self.state = State::RequestLine;
                    }
                }
                State::Body(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 { State::Between } else { State::Body(left) };
                }
                State::Chunk(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 { State::ChunkSize } else { State::Chunk(left) };
                }
                State::RequestLine | State::Header | State::ChunkSize | State::Trailer => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let piece = &bytes[..end.unwrap_or(bytes.len())];
                    if self.line.len() + piece.len() > LINE_BYTES_MAX {
                        return self.end();
                    }
                    self.line.extend_from_slice(piece);
                    let Some(end) = end else { return };
                    bytes = &bytes[end + 1..];
                    let line = std::mem::take(&mut self.line);
                    match self.next(&line) {
                        Ok(state) => self.state = state,
                        Err(fault) => {
                            self.fault = Some(fault);
                            return self.end();
                        }
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        self.state = State::Over;
        self.line = Vec::new();
    }

    /// Returns what follows a line, or why the request is refused.
    fn next(&mut self, line: &[u8]) -> Result<State, &'static str> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a line ends with a bare LF instead of CRLF");
        };
        if line.contains(&b'\r') {
            return Err("a line holds a bare CR");
        }
        match self.state {
            State::RequestLine => Ok(State::Header),
            State::Header if line.is_empty() => match (self.head.length, self.head.is_chunked) {
                (Some(_), true) => Err("the request has both Content-Length and Transfer-Encoding"),
                (None, true) => Ok(State::ChunkSize),
                (Some(0) | None, false) => Ok(State::Between),
                (Some(length), false) => Ok(State::Body(length)),
            },
            State::Header => self.header(line).map(|()| State::Header),
            State::ChunkSize => Ok(match chunk_size(line) {
                Some(0) => State::Trailer,
                Some(size) => State::Chunk(size.saturating_add(2)),
                None => State::Over,
            }),
            State::Trailer if line.is_empty() => Ok(State::Between),
            State::Trailer => Ok(State::Trailer),
            State::Between | State::Body(_) | State::Chunk(_) | State::Over => Ok(State::Over),
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err("a header is folded over two lines");
        }
        // A line without a colon is refused by hyper.
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = digits(value).ok_or("Content-Length is no number of bytes")?;
            if self.head.length.replace(length).is_some() {
                return Err("the request has more than one Content-Length");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding is not chunked and nothing else");
            }
            if std::mem::replace(&mut self.head.is_chunked, true) {
                return Err("the request has more than one Transfer-Encoding");
            }
        }
        Ok(())
    }
}

fn skip(bytes: &[u8], left: u64) -> (&[u8], u64) {
    let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (&bytes[skipped..], left - skipped as u64)
}

fn digits(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok())?
}

/// Reads the line before a chunk; what follows a semicolon is an extension, which nobody here knows and nobody is sent.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let is_number = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    is_number.then(|| u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watched(pieces: &[&[u8]]) -> Framing {
        let mut framing = Framing::default();
        for piece in pieces {
            framing.feed(piece);
        }
        framing
    }

    const GOOD: [&str; 6] = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\na\nb\r\n",
        "\r\nPOST / HTTP/1.1\r\nhost: a\r\nTRANSFER-ENCODING: Chunked\r\n\r\n5;x=y\r\na\nb\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding:chunked\r\n\r\n1\r\n\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "HEAD / HTTP/1.0\r\n\r\n",
    ];

    #[test]
    fn what_can_be_read_in_two_ways_is_found() {
        for (headers, fault) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "both"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "both"),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "more than one Content-Length"),
            ("Content-Length: 5\r\ncontent-length: 6\r\n", "more than one Content-Length"),
            ("Content-Length: 5, 5\r\n", "no number"),
            ("Content-Length: -5\r\n", "no number"),
            ("Content-Length: +5\r\n", "no number"),
            ("Content-Length: 0x5\r\n", "no number"),
            ("Content-Length:\r\n", "no number"),
            ("Content-Length: 18446744073709551616\r\n", "no number"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "more than one Transfer-Encoding"),
            ("Transfer-Encoding: identity\r\n", "not chunked"),
            ("Transfer-Encoding: gzip, chunked\r\n", "not chunked"),
            ("X: a\r\n b\r\n", "folded"),
            ("X: a\r\n\tContent-Length: 5\r\n", "folded"),
            ("X: a\nY: b\r\n", "bare LF"),
            ("X: a\rContent-Length: 5\r\n", "bare CR"),
        ] {
            let wire = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            let found = watched(&[wire.as_bytes()]).fault_of(1);
            assert!(found.is_some_and(|found| found.contains(fault)), "{headers:?}: {found:?}");
        }
    }

    #[test]
    fn a_fault_is_the_fault_of_its_own_request() {
        let wire = format!("{}{}GET / HTTP/1.1\nHost: a\r\n\r\n", GOOD[1], GOOD[0]);
        let framing = watched(&[wire.as_bytes()]);
        let faults = [1, 2, 3, 4].map(|request| framing.fault_of(request).is_some());
        assert_eq!(faults, [false, false, true, true]);
    }

    proptest! {
        #[test]
        fn good_requests_in_any_pieces_have_no_fault(order in proptest::collection::vec(0..GOOD.len(), 1..8), cuts in proptest::collection::vec(1_usize..40, 0..30)) {
            let wire: Vec<u8> = order.iter().flat_map(|at| GOOD[*at].bytes()).collect();
            let mut framing = Framing::default();
            let mut rest = &wire[..];
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                framing.feed(piece);
                rest = later;
            }
            framing.feed(rest);
            prop_assert_eq!((framing.requests, framing.fault), (order.len() as u64, None));
            prop_assert!(framing.is_between_requests());
        }

        #[test]
        fn any_bytes_are_watched_without_a_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut framing = Framing::default();
            for piece in &pieces {
                framing.feed(piece);
            }
        }
    }
}
