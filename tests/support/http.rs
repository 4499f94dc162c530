//! A small blocking HTTP/1.1 client that keeps its connection, and can also misbehave: send half a body, send it in
//! chunks, hang up in the middle. It never retries a request on its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use super::PATIENCE;
use super::fake_opik::wire::read_chunk;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub method: String,
    /// After the client's base URL: `/v1/private/traces`.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    chunk_bytes: Option<usize>,
    is_untyped: bool,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        let (method, path) = (method.into(), path.into());
        Self { method, path, headers: Vec::new(), body: Vec::new(), chunk_bytes: None, is_untyped: false }
    }

    #[must_use]
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends the same to another path.
    #[must_use]
    pub(crate) fn to(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    #[must_use]
    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").bytes(body.to_string())
    }

    #[must_use]
    pub(crate) fn bytes(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Leaves the body without the type that every client of Opik gives it; that of a file has none.
    #[must_use]
    pub(crate) fn untyped(mut self) -> Self {
        self.is_untyped = true;
        self
    }

    /// Compresses the body that is there so far.
    #[must_use]
    pub(crate) fn gzip(mut self) -> Self {
        self.body = gzip(&self.body);
        self.header("Content-Encoding", "gzip")
    }

    /// Sends the body in chunks of this many bytes, without a length.
    #[must_use]
    pub(crate) fn chunked(mut self, chunk_bytes: usize) -> Self {
        self.chunk_bytes = Some(chunk_bytes);
        self
    }

    fn head(&self, client: &Client) -> Vec<u8> {
        let mut head = format!("{} {}{} HTTP/1.1\r\nHost: {}\r\n", self.method, client.prefix, self.path, client.host);
        for (name, value) in client.headers.iter().chain(&self.headers) {
            head += &format!("{name}: {value}\r\n");
        }
        let is_file = self.method == "PUT" && self.path.contains("/attachment/upload");
        let is_typed =
            client.headers.iter().chain(&self.headers).any(|(name, _)| name.eq_ignore_ascii_case("Content-Type"));
        if !(self.body.is_empty() || is_typed || is_file || self.is_untyped) {
            head += "Content-Type: application/json\r\n";
        }
        if self.chunk_bytes.is_some() {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !self.body.is_empty() || self.method != "GET" {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        (head + "\r\n").into_bytes()
    }

    fn body_on_the_wire(&self) -> Vec<u8> {
        let Some(chunk_bytes) = self.chunk_bytes else {
            return self.body.clone();
        };
        let mut wire = Vec::new();
        for chunk in self.body.chunks(chunk_bytes) {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why} in the answer {:?}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) struct Client {
    host: String,
    prefix: String,
    headers: Vec<(String, String)>,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// Makes a client for a base URL like `http://127.0.0.1:6745/api`; it connects with the first request.
    pub(crate) fn new(base_url: &str) -> Self {
        let rest = base_url.strip_prefix("http://").expect("an http URL");
        let (host, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let prefix = prefix.trim_end_matches('/').to_owned();
        Self { host: host.to_owned(), prefix, headers: Vec::new(), connection: None }
    }

    /// Sends this header with every request.
    #[must_use]
    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.expect(&Request::new("GET", path))
    }

    #[track_caller]
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Response {
        self.expect(&Request::new("POST", path).json(body))
    }

    #[track_caller]
    pub(crate) fn put(&mut self, path: &str, body: &Value) -> Response {
        self.expect(&Request::new("PUT", path).json(body))
    }

    #[track_caller]
    pub(crate) fn patch(&mut self, path: &str, body: &Value) -> Response {
        self.expect(&Request::new("PATCH", path).json(body))
    }

    /// Sends a request that must be answered, with any status.
    #[track_caller]
    pub(crate) fn expect(&mut self, request: &Request) -> Response {
        match self.send(request) {
            Ok(response) => response,
            Err(why) => panic!("{} {} got no answer: {why}", request.method, request.path),
        }
    }

    /// Sends a request and reads its answer whole.
    pub(crate) fn send(&mut self, request: &Request) -> io::Result<Response> {
        self.open(request)?.finish()
    }

    /// Sends a request and reads the head of its answer only.
    pub(crate) fn open(&mut self, request: &Request) -> io::Result<Incoming<'_>> {
        let wire = [request.head(self), request.body_on_the_wire()].concat();
        self.connection()?.get_mut().write_all(&wire).inspect_err(|_| self.connection = None)?;
        self.read_head(&request.method)
    }

    /// Sends the head of a request and the first `bytes` of its body as they go over the wire.
    pub(crate) fn send_part(&mut self, request: &Request, bytes: usize) -> io::Result<Unfinished<'_>> {
        let (head, body) = (request.head(self), request.body_on_the_wire());
        let (now, later) = body.split_at(bytes);
        self.connection()?.get_mut().write_all(&[&head, now].concat())?;
        Ok(Unfinished { client: self, method: request.method.clone(), rest: later.to_vec() })
    }

    /// Closes the connection; the next request opens a new one.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    fn connection(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        if self.connection.is_none() {
            let stream = TcpStream::connect(&self.host)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            self.connection = Some(BufReader::new(stream));
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }

    fn read_head(&mut self, method: &str) -> io::Result<Incoming<'_>> {
        // Taken out, so that an answer that breaks off or is dropped half read closes the connection.
        let mut from = self.connection.take().expect("the request went out on it");
        let first = line(&mut from)?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = line(&mut from)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        if status == 100 {
            self.connection = Some(from);
            return self.read_head(method);
        }
        let head = Response { status, headers, body: Vec::new() };
        let left = if status == 204 || status == 304 || method == "HEAD" {
            Left::Bytes(0)
        } else if head.header("Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            Left::Chunks
        } else if let Some(length) = head.header("Content-Length") {
            Left::Bytes(length.parse().map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?)
        } else {
            Left::UntilClosed
        };
        Ok(Incoming { client: self, from, head, left })
    }
}

/// A request whose body has not been sent whole. Dropping it leaves the connection to the client as it is;
/// [`Unfinished::hang_up`] closes it.
pub(crate) struct Unfinished<'a> {
    client: &'a mut Client,
    method: String,
    rest: Vec<u8>,
}

impl Unfinished<'_> {
    /// Sends the rest and reads the answer.
    pub(crate) fn finish(self) -> io::Result<Response> {
        self.client.connection()?.get_mut().write_all(&self.rest)?;
        self.client.read_head(&self.method)?.finish()
    }

    /// Closes the connection in the middle of the body.
    pub(crate) fn hang_up(self) {
        self.client.disconnect();
    }
}

enum Left {
    Bytes(usize),
    Chunks,
    UntilClosed,
    Nothing,
}

/// An answer whose head was read. Dropping it before its end closes the connection.
pub(crate) struct Incoming<'a> {
    client: &'a mut Client,
    from: BufReader<TcpStream>,
    pub head: Response,
    left: Left,
}

impl Incoming<'_> {
    /// Waits for more of the body and returns it; `None` at its end.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut piece = Vec::new();
        match &mut self.left {
            Left::Nothing | Left::Bytes(0) => return Ok(None),
            Left::Chunks => {
                if !read_chunk(&mut self.from, &mut piece)? {
                    self.left = Left::Nothing;
                    return Ok(None);
                }
            }
            Left::Bytes(left) => {
                let ready = self.from.fill_buf()?;
                if ready.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                piece.extend_from_slice(&ready[..ready.len().min(*left)]);
                self.from.consume(piece.len());
                *left -= piece.len();
            }
            Left::UntilClosed => {
                self.from.read_to_end(&mut piece)?;
                self.left = Left::Nothing;
                self.head.headers.push(("Connection".into(), "close".into()));
            }
        }
        Ok(Some(piece))
    }

    /// Reads the rest and returns the connection for the next request.
    pub(crate) fn finish(mut self) -> io::Result<Response> {
        while let Some(piece) = self.next_piece()? {
            self.head.body.extend_from_slice(&piece);
        }
        if !self.head.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.client.connection = Some(self.from);
        }
        Ok(self.head)
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing into memory can't fail")
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without an answer")),
    }
}
