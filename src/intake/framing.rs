//! Strict validation of HTTP/1 framing: a request whose end two HTTP parsers could see differently is refused.
//!
//! hyper accepts some of these silently: it drops a `Content-Length` beside `Transfer-Encoding`, merges two equal ones,
//! and ends lines at a bare LF. RFC 9112 allows that (sections 2.2 and 6.3), but each is a way to smuggle requests past
//! one program into another, and no Opik client sends any of them. hyper's parsing leaves no trace of them, so the
//! bytes are checked as they are read from the socket; they reach hyper unchanged, and the request is answered with 400
//! when hyper hands it over.
//!
//! Pure, and never stricter than hyper where hyper refuses: its own errors (no digits, broken chunks, a head without
//! end) only end the validation. The bytes of a body are counted, not read.

use super::limits::HEAD_BYTES_MAX;

/// Bytes of a line that is validated; hyper refuses a longer head.
const LINE_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Headers of a usual head. hyper parses as many, and some more, without a table from the heap.
const USUAL_HEADERS_MAX: usize = 64;

/// Validates the framing of the requests of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: FramingState,
    /// The line that is being read, without its line end.
    line: Vec<u8>,
    headers: FramingHeaders,
    /// Requests that have begun.
    requests: u64,
    fault: Option<&'static str>,
}

/// A head that hyper needs a large table for, which costs as much as parsing it: one with many headers, a fault, or a
/// body in chunks, because the limit of headers is the one of trailers, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnusualHead {
    /// The number of its request; the first is 1.
    pub(super) request: u64,
    /// How many of the bytes that have arrived come before the rest of it. There hyper still knows of neither its end nor
    /// its fault.
    pub(super) at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramingState {
    Between,
    RequestLine,
    Header,
    /// This many bytes of a body are left.
    Body(u64),
    ChunkSize,
    /// This many bytes of a chunk are left, including its line end.
    Chunk(u64),
    Trailer,
    /// A fault was found, or hyper will refuse what follows: nothing more is validated.
    Over,
}

#[derive(Debug, Default)]
struct FramingHeaders {
    lines: usize,
    length: Option<u64>,
    is_chunked: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            state: FramingState::Between,
            line: Vec::new(),
            headers: FramingHeaders::default(),
            requests: 0,
            fault: None,
        }
    }
}

impl Framing {
    /// Returns how many requests have begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Returns what is wrong with the request with this number; the first is 1.
    ///
    /// A fault ends the validation, so it applies to every later request, too.
    pub(super) fn fault_of(&self, request: u64) -> Option<&'static str> {
        self.fault.filter(|_| request >= self.requests)
    }

    /// Returns whether no byte of a next request has arrived.
    pub(super) fn is_between_requests(&self) -> bool {
        self.state == FramingState::Between
    }

    /// Returns the number of the request whose head is read next; `None` within a body, and after a fault.
    pub(super) fn awaited_head(&self) -> Option<u64> {
        match self.state {
            FramingState::Between => Some(self.requests + 1),
            FramingState::RequestLine | FramingState::Header => Some(self.requests),
            _ => None,
        }
    }

    /// Validates bytes that have arrived. Returns after how many of them a head was found to be an unusual one: it has
    /// [`USUAL_HEADERS_MAX`] headers and does not end there, a fault, or a body in chunks.
    pub(super) fn feed(&mut self, arrived: &[u8]) -> Option<UnusualHead> {
        let (mut bytes, mut unusual) = (arrived, None);
        while !bytes.is_empty() {
            if self.may_skip_header()
                && let Some(rest) = after_plain_header(bytes)
            {
                self.headers.lines += 1;
                bytes = rest;
                continue;
            }
            match self.state {
                FramingState::Over => break,
                FramingState::Between => {
                    // Empty lines before a request are skipped (RFC 9112, section 2.2).
                    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                    bytes = &bytes[skipped..];
                    if !bytes.is_empty() {
                        self.requests += 1;
                        self.headers = FramingHeaders::default();
                        self.state = FramingState::RequestLine;
                    }
                }
                FramingState::Body(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 { FramingState::Between } else { FramingState::Body(left) };
                }
                FramingState::Chunk(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 { FramingState::ChunkSize } else { FramingState::Chunk(left) };
                }
                FramingState::RequestLine | FramingState::Header | FramingState::ChunkSize | FramingState::Trailer => {
                    let end = memchr::memchr(b'\n', bytes);
                    let piece = &bytes[..end.unwrap_or(bytes.len())];
                    if self.line.len() + piece.len() > LINE_BYTES_MAX {
                        self.end();
                        break;
                    }
                    let Some(end) = end else {
                        self.line.extend_from_slice(piece);
                        break;
                    };
                    let before = arrived.len() - bytes.len();
                    bytes = &bytes[end + 1..];
                    // Mostly the whole line is in these bytes, and nothing is copied.
                    let mut begun = std::mem::take(&mut self.line);
                    let line = match begun.is_empty() {
                        true => piece,
                        false => {
                            begun.extend_from_slice(piece);
                            &begun
                        }
                    };
                    let was_chunked = self.headers.is_chunked;
                    let is_in_head = matches!(self.state, FramingState::RequestLine | FramingState::Header);
                    match self.next_state(line) {
                        Ok(state) => self.state = state,
                        Err(fault) => {
                            self.fault = Some(fault);
                            let head = UnusualHead { request: self.requests, at: before };
                            unusual = unusual.or(is_in_head.then_some(head));
                            self.end();
                            break;
                        }
                    }
                    let becomes_chunked = self.headers.is_chunked && !was_chunked;
                    let is_long = self.headers.lines == USUAL_HEADERS_MAX;
                    if self.state == FramingState::Header && (is_long || becomes_chunked) {
                        let at = arrived.len() - bytes.len();
                        unusual = unusual.or(Some(UnusualHead { request: self.requests, at }));
                    }
                }
            }
        }
        unusual
    }

    /// Returns whether the next line is a header that begins here, and not the one that makes a head unusual.
    fn may_skip_header(&self) -> bool {
        self.state == FramingState::Header && self.line.is_empty() && self.headers.lines + 1 < USUAL_HEADERS_MAX
    }

    fn end(&mut self) {
        self.state = FramingState::Over;
        self.line = Vec::new();
    }

    /// Returns the state after a line, or why the request is refused.
    fn next_state(&mut self, line: &[u8]) -> Result<FramingState, &'static str> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a line ends with a bare LF instead of CRLF");
        };
        if memchr::memchr(b'\r', line).is_some() {
            return Err("a line holds a bare CR");
        }
        match self.state {
            FramingState::RequestLine => Ok(FramingState::Header),
            FramingState::Header if line.is_empty() => match (self.headers.length, self.headers.is_chunked) {
                (Some(_), true) => Err("the request has both Content-Length and Transfer-Encoding"),
                (None, true) => Ok(FramingState::ChunkSize),
                (Some(0) | None, false) => Ok(FramingState::Between),
                (Some(length), false) => Ok(FramingState::Body(length)),
            },
            FramingState::Header => self.read_header(line).map(|()| FramingState::Header),
            FramingState::ChunkSize => Ok(match chunk_size(line) {
                Some(0) => FramingState::Trailer,
                Some(size) => FramingState::Chunk(size.saturating_add(2)),
                None => FramingState::Over,
            }),
            FramingState::Trailer if line.is_empty() => Ok(FramingState::Between),
            FramingState::Trailer => Ok(FramingState::Trailer),
            FramingState::Between | FramingState::Body(_) | FramingState::Chunk(_) | FramingState::Over => {
                Ok(FramingState::Over)
            }
        }
    }

    fn read_header(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.headers.lines += 1;
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err("a header is folded over two lines");
        }
        // hyper refuses a line without a colon.
        let Some(colon) = memchr::memchr(b':', line) else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = digits(value).ok_or("Content-Length is not a number of bytes")?;
            if self.headers.length.replace(length).is_some() {
                return Err("the request has more than one Content-Length");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding is not chunked and nothing else");
            }
            if std::mem::replace(&mut self.headers.is_chunked, true) {
                return Err("the request has more than one Transfer-Encoding");
            }
        }
        Ok(())
    }
}

/// Returns what follows the first line, if that is whole and without fault, and can't be a header about framing: most
/// lines, and the names of only a few begin like `Content-Length` or `Transfer-Encoding`.
fn after_plain_header(bytes: &[u8]) -> Option<&[u8]> {
    if matches!(bytes.first()?, b'c' | b'C' | b't' | b'T' | b' ' | b'\t' | b'\r' | b'\n') {
        return None;
    }
    let end = memchr::memchr2(b'\r', b'\n', bytes).filter(|end| *end < LINE_BYTES_MAX)?;
    bytes[end..].strip_prefix(b"\r\n")
}

fn skip(bytes: &[u8], left: u64) -> (&[u8], u64) {
    let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (&bytes[skipped..], left - skipped as u64)
}

fn digits(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok())?
}

/// Parses the line before a chunk. After a semicolon are extensions, which are ignored and not forwarded.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let is_number = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    is_number.then(|| u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checked(pieces: &[&[u8]]) -> Framing {
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
    fn ambiguous_framing_is_found() {
        for (headers, fault) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "both"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "both"),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "more than one Content-Length"),
            ("Content-Length: 5\r\ncontent-length: 6\r\n", "more than one Content-Length"),
            ("Content-Length: 5, 5\r\n", "not a number"),
            ("Content-Length: -5\r\n", "not a number"),
            ("Content-Length: +5\r\n", "not a number"),
            ("Content-Length: 0x5\r\n", "not a number"),
            ("Content-Length:\r\n", "not a number"),
            ("Content-Length: 18446744073709551616\r\n", "not a number"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "more than one Transfer-Encoding"),
            ("Transfer-Encoding: identity\r\n", "not chunked"),
            ("Transfer-Encoding: gzip, chunked\r\n", "not chunked"),
            ("X: a\r\n b\r\n", "folded"),
            ("X: a\r\n\tContent-Length: 5\r\n", "folded"),
            ("X: a\nY: b\r\n", "bare LF"),
            ("X: a\rContent-Length: 5\r\n", "bare CR"),
        ] {
            let wire = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            let found = checked(&[wire.as_bytes()]).fault_of(1);
            assert!(found.is_some_and(|found| found.contains(fault)), "{headers:?}: {found:?}");
        }
    }

    #[test]
    fn an_unusual_head_is_found_before_its_end() {
        let many = |count: usize| format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(count));
        let usual = GOOD[1].to_owned() + &many(USUAL_HEADERS_MAX - 1) + "\r\n";
        let mut framing = Framing::default();
        assert_eq!(framing.feed(usual.as_bytes()), None);
        let unusual = many(USUAL_HEADERS_MAX);
        let wire = usual.clone() + &unusual + "\r\n" + &many(USUAL_HEADERS_MAX + 9);
        assert_eq!(framing.feed(wire.as_bytes()), Some(UnusualHead { request: 5, at: usual.len() + unusual.len() }));
        let faulty = "GET / HTTP/1.1\r\nA: b\r\n";
        let wire = GOOD[0].to_owned() + faulty + " c\r\n\r\n";
        let at = GOOD[0].len() + faulty.len();
        assert_eq!(Framing::default().feed(wire.as_bytes()), Some(UnusualHead { request: 2, at }));
        let mut framing = Framing::default();
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n";
        let unusual = UnusualHead { request: 1, at: chunked.len() };
        assert_eq!(framing.feed(format!("{chunked}\r\n").as_bytes()), Some(unusual), "it may have many trailers");
        assert_eq!(framing.feed(b"1\n"), None, "the rest of a body is awaited");
    }

    #[test]
    fn a_fault_belongs_to_its_own_request() {
        let wire = format!("{}{}GET / HTTP/1.1\nHost: a\r\n\r\n", GOOD[1], GOOD[0]);
        let framing = checked(&[wire.as_bytes()]);
        let faults = [1, 2, 3, 4].map(|request| framing.fault_of(request).is_some());
        assert_eq!(faults, [false, false, true, true]);
    }

    proptest! {
        #[test]
        fn valid_requests_in_any_pieces_have_no_fault(order in proptest::collection::vec(0..GOOD.len(), 1..8), cuts in proptest::collection::vec(1_usize..40, 0..30)) {
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
        fn any_bytes_are_validated_without_a_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut framing = Framing::default();
            for piece in &pieces {
                framing.feed(piece);
            }
        }
    }
}
