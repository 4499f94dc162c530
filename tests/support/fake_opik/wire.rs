//! HTTP/1.1 by hand, so that a script can break it anywhere.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::script::Answer;

/// Bytes of a request's head, and of one body on the wire.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024 * 1024;

pub(crate) struct Head {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.header(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }

    pub(crate) fn wants_close(&self) -> bool {
        self.has_token("Connection", "close")
    }
}

/// Reads the head of the next request; `None` when the client closed the connection between two requests.
pub(crate) fn read_head(from: &mut BufReader<TcpStream>) -> io::Result<Option<Head>> {
    let mut lines = Vec::new();
    let mut bytes = 0;
    loop {
        let mut line = Vec::new();
        let read = from.by_ref().take((HEAD_BYTES_MAX - bytes) as u64).read_until(b'\n', &mut line)?;
        bytes += read;
        if !line.ends_with(b"\n") {
            return if bytes == 0 { Ok(None) } else { Err(broken("the head ends in the middle or is too long")) };
        }
        let line = String::from_utf8(line).map_err(|_| broken("the head is not UTF-8"))?;
        let line = line.trim_end_matches(['\r', '\n']).to_owned();
        if !line.is_empty() {
            lines.push(line);
        } else if !lines.is_empty() {
            break;
        }
    }
    let mut words = lines[0].split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(broken("no HTTP/1.1 request line"));
    };
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(':').ok_or_else(|| broken("a header without a colon"))?;
        Ok((name.to_owned(), value.trim().to_owned()))
    });
    Ok(Some(Head {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: headers.collect::<io::Result<_>>()?,
    }))
}

/// Reads the body that follows `head`.
pub(crate) fn read_body(from: &mut BufReader<TcpStream>, head: &Head) -> io::Result<Vec<u8>> {
    if head.has_token("Expect", "100-continue") {
        from.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    if head.has_token("Transfer-Encoding", "chunked") {
        while read_chunk(from, &mut body)? {}
    } else if let Some(length) = head.header("Content-Length") {
        let length = length.parse().ok().filter(|length| *length <= BODY_BYTES_MAX);
        body.resize(length.ok_or_else(|| broken("no usable Content-Length"))?, 0);
        from.read_exact(&mut body)?;
    }
    Ok(body)
}

/// Reads one chunk to the end of `body`; `false` when it was the last one.
pub(crate) fn read_chunk(from: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<bool> {
    let size = line(from)?;
    let size = size.split(';').next().unwrap_or("");
    let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken("no chunk size"))?;
    if size == 0 {
        while !line(from)?.is_empty() {}
        return Ok(false);
    }
    if body.len() + size > BODY_BYTES_MAX {
        return Err(broken("the body is too long"));
    }
    let start = body.len();
    body.resize(start + size, 0);
    from.read_exact(&mut body[start..])?;
    if line(from)?.is_empty() { Ok(true) } else { Err(broken("a chunk longer than it says")) }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(HEAD_BYTES_MAX as u64).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends an answer whole, except when it is a stream or answers a HEAD: then only its head.
pub(crate) fn write_answer(mut to: &TcpStream, answer: &Answer, is_head: bool, close: bool) -> io::Result<()> {
    let mut bytes = head_bytes(answer, close);
    if !is_head {
        bytes.extend_from_slice(&answer.body);
    }
    to.write_all(&bytes)
}

/// Sends an answer that breaks off: half of its body where it has one, else the middle of its head.
pub(crate) fn write_truncated(mut to: &TcpStream, answer: &Answer) -> io::Result<()> {
    let mut bytes = head_bytes(answer, false);
    if answer.body.is_empty() {
        bytes.truncate("HTTP/1.1 204 No".len());
    } else {
        bytes.extend_from_slice(&answer.body[..answer.body.len() / 2]);
    }
    to.write_all(&bytes)
}

pub(crate) fn write_chunk(mut to: &TcpStream, chunk: &[u8]) -> io::Result<()> {
    let mut bytes = format!("{:x}\r\n", chunk.len()).into_bytes();
    bytes.extend_from_slice(chunk);
    bytes.extend_from_slice(b"\r\n");
    to.write_all(&bytes)
}

fn head_bytes(answer: &Answer, close: bool) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason());
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason.unwrap_or("Unknown"));
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if answer.stream.is_some() {
        head += "Transfer-Encoding: chunked\r\n";
    } else if answer.status != 204 && answer.status != 304 {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    if close {
        head += "Connection: close\r\n";
    }
    head += "\r\n";
    head.into_bytes()
}

/// Closes a connection by a TCP reset. It needs the last handle of the connection.
pub(crate) fn reset(stream: TcpStream) {
    let socket = tokio::net::TcpSocket::from_std_stream(stream);
    socket.set_zero_linger().expect("a socket can be told not to linger");
}

/// Returns whether the other side has closed the connection, without taking anything from it.
pub(crate) fn is_closed(stream: &TcpStream) -> bool {
    let patience = stream.read_timeout().ok().flatten();
    let set = |timeout| stream.set_read_timeout(timeout).is_ok();
    let closed = !set(Some(Duration::from_millis(1)))
        || match stream.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        };
    set(patience);
    closed
}
