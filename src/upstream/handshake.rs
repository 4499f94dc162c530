//! Handshakes that open a tunnel through a proxy: `CONNECT` (RFC 9110, section 9.3.6), SOCKS 5 (RFC 1928, RFC 1929),
//! SOCKS 4 and 4a.
//!
//! This state machine does no I/O: the blocking and the asynchronous client both send and read on its behalf, so
//! that they behave the same and report the same errors.

use std::net::IpAddr;

use super::fault::ConnectFault;
use super::route::{PeerAddress, Proxy, ProxyKind};

/// Limit of a proxy's response to `CONNECT`, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The next I/O operation of a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HandshakeStep {
    Send(Vec<u8>),
    Read,
    Done,
}

#[derive(Debug)]
enum Expects {
    ConnectAnswer,
    Method,
    SignIn,
    Socks5Answer,
    Socks4Answer,
    Nothing,
}

/// The state of a handshake with a proxy.
pub(super) struct Handshake {
    to_send: Vec<Vec<u8>>,
    expects: Expects,
    input: Vec<u8>,
    /// The credentials message, sent if the proxy asks for it.
    sign_in: Option<Vec<u8>>,
    request: Vec<u8>,
}

/// Returns whether we have to resolve the target's name because the proxy doesn't; for SOCKS 4 only to IPv4.
pub(super) fn needs_address(proxy: &Proxy, target: &PeerAddress) -> bool {
    let resolves = match proxy.kind {
        ProxyKind::Http { .. } => true,
        ProxyKind::Socks4 { resolves } | ProxyKind::Socks5 { resolves } => resolves,
    };
    !resolves && target.ip().is_none()
}

/// Returns the first of a name's addresses that the proxy's protocol supports.
pub(super) fn usable(
    proxy: &Proxy,
    target: &PeerAddress,
    mut addresses: impl Iterator<Item = IpAddr>,
) -> Result<IpAddr, ConnectFault> {
    let only_v4 = matches!(proxy.kind, ProxyKind::Socks4 { .. });
    let found = addresses.find(|ip| ip.is_ipv4() || !only_v4);
    let reason = if only_v4 { "it has no IPv4 address, and SOCKS 4 knows no other" } else { "it has no address" };
    found.ok_or_else(|| ConnectFault::unresolved(target.bare_host(), reason))
}

impl Handshake {
    /// Starts a handshake for a tunnel to the target, by its address if we resolved it.
    pub(super) fn new(proxy: &Proxy, target: &PeerAddress, address: Option<IpAddr>) -> Result<Self, ConnectFault> {
        let address = target.ip().or(address);
        let (first, expects, sign_in, request) = match proxy.kind {
            ProxyKind::Http { .. } => (connect(proxy, target), Expects::ConnectAnswer, None, Vec::new()),
            ProxyKind::Socks5 { .. } => {
                let sign_in = proxy.credentials.as_ref().map(sign_in).transpose()?;
                let methods: &[u8] = if sign_in.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
                (methods.to_vec(), Expects::Method, sign_in, socks5(target, address)?)
            }
            ProxyKind::Socks4 { .. } => (socks4(proxy, target, address)?, Expects::Socks4Answer, None, Vec::new()),
        };
        Ok(Self { to_send: vec![first], expects, input: Vec::new(), sign_in, request })
    }

    /// Adds bytes that were read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns the next I/O operation.
    ///
    /// # Errors
    ///
    /// [`ConnectFault`] with the reason if the proxy refuses.
    pub(super) fn step(&mut self) -> Result<HandshakeStep, ConnectFault> {
        loop {
            if let Some(bytes) = self.to_send.pop() {
                return Ok(HandshakeStep::Send(bytes));
            }
            let is_heard = match self.expects {
                Expects::Nothing if self.input.is_empty() => return Ok(HandshakeStep::Done),
                Expects::Nothing => return Err(ConnectFault::new("the proxy sends more than its answer")),
                Expects::ConnectAnswer => self.connect_answer()?,
                Expects::Method => self.method()?,
                Expects::SignIn => self.signed_in()?,
                Expects::Socks5Answer => self.socks5_answer()?,
                Expects::Socks4Answer => self.socks4_answer()?,
            };
            if !is_heard {
                return Ok(HandshakeStep::Read);
            }
        }
    }

    fn connect_answer(&mut self) -> Result<bool, ConnectFault> {
        let Some(end) = head_end(&self.input) else {
            return match self.input.len() > ANSWER_BYTES_MAX {
                true => Err(ConnectFault::new("the proxy's answer has no end")),
                false => Ok(false),
            };
        };
        let status = status_line(&self.input)?;
        if !status.starts_with('2') {
            let hint = match status.starts_with("407") {
                true => "; name the user and password that it wants in the proxy's URL",
                false => "",
            };
            return Err(ConnectFault::new(format!("the proxy answers {status}{hint}")));
        }
        self.input.drain(..end);
        self.expects = Expects::Nothing;
        Ok(true)
    }

    fn method(&mut self) -> Result<bool, ConnectFault> {
        let [version, method, ..] = self.input[..] else { return Ok(false) };
        self.input.drain(..2);
        match (version, method, self.sign_in.take()) {
            (5, 0, _) => {
                self.to_send.push(self.request.clone());
                self.expects = Expects::Socks5Answer;
            }
            (5, 2, Some(sign_in)) => {
                self.to_send.push(sign_in);
                self.expects = Expects::SignIn;
            }
            (5, 0xff, None) => {
                return Err(ConnectFault::new("the proxy wants a user and a password; name them in the proxy's URL"));
            }
            (5, 0xff, Some(_)) => {
                return Err(ConnectFault::new("the proxy takes neither user and password nor nobody"));
            }
            _ => return Err(ConnectFault::new("the proxy does not speak SOCKS 5")),
        }
        Ok(true)
    }

    fn signed_in(&mut self) -> Result<bool, ConnectFault> {
        let [_, status, ..] = self.input[..] else { return Ok(false) };
        self.input.drain(..2);
        if status != 0 {
            return Err(ConnectFault::new("the proxy refuses the user or the password of its URL"));
        }
        self.to_send.push(self.request.clone());
        self.expects = Expects::Socks5Answer;
        Ok(true)
    }

    fn socks5_answer(&mut self) -> Result<bool, ConnectFault> {
        let [version, reply, ..] = self.input[..] else { return Ok(false) };
        if version != 5 {
            return Err(ConnectFault::new("the proxy does not speak SOCKS 5"));
        }
        if reply != 0 {
            return Err(ConnectFault::new(format!("the proxy answers: {}", socks5_words(reply))));
        }
        let [_, _, _, kind, length, ..] = self.input[..] else { return Ok(false) };
        let address = match kind {
            1 => 4,
            4 => 16,
            3 => 1 + usize::from(length),
            _ => return Err(ConnectFault::new("the proxy does not speak SOCKS 5")),
        };
        let bytes = 4 + address + 2;
        if self.input.len() < bytes {
            return Ok(false);
        }
        self.input.drain(..bytes);
        self.expects = Expects::Nothing;
        Ok(true)
    }

    fn socks4_answer(&mut self) -> Result<bool, ConnectFault> {
        let [version, reply, ..] = self.input[..] else { return Ok(false) };
        let words = match (version, reply) {
            (0, 90) if self.input.len() < 8 => return Ok(false),
            (0, 90) => {
                self.input.drain(..8);
                self.expects = Expects::Nothing;
                return Ok(true);
            }
            (0, 91) => "the proxy answers: rejected or failed",
            (0, 92 | 93) => "the proxy answers: the user is not known to identd",
            _ => "the proxy does not speak SOCKS 4",
        };
        Err(ConnectFault::new(words))
    }
}

fn connect(proxy: &Proxy, target: &PeerAddress) -> Vec<u8> {
    let (host, port) = (&target.host, target.port);
    let authorization =
        proxy.authorization().map_or(String::new(), |value| format!("Proxy-Authorization: {value}\r\n"));
    let agent = concat!("opik-offline/", env!("CARGO_PKG_VERSION"));
    format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: {agent}\r\n{authorization}\r\n")
        .into_bytes()
}

/// Encodes a SOCKS 5 field: length and bytes.
fn field(bytes: &[u8], what: &str) -> Result<Vec<u8>, ConnectFault> {
    let length = u8::try_from(bytes.len()).map_err(|_| too_long(what))?;
    Ok([&[length][..], bytes].concat())
}

fn too_long(what: &str) -> ConnectFault {
    ConnectFault::new(format!("the {what} is too long for SOCKS"))
}

fn sign_in((user, password): &(Vec<u8>, Vec<u8>)) -> Result<Vec<u8>, ConnectFault> {
    let (user, password) = (field(user, "proxy's user")?, field(password, "proxy's password")?);
    Ok([&[1][..], &user, &password].concat())
}

fn socks5(target: &PeerAddress, address: Option<IpAddr>) -> Result<Vec<u8>, ConnectFault> {
    let (kind, address) = match address {
        Some(IpAddr::V4(ip)) => (1, ip.octets().to_vec()),
        Some(IpAddr::V6(ip)) => (4, ip.octets().to_vec()),
        None => (3, field(target.host.as_bytes(), "server's name")?),
    };
    Ok([&[5, 1, 0, kind][..], &address, &target.port.to_be_bytes()].concat())
}

fn socks4(proxy: &Proxy, target: &PeerAddress, address: Option<IpAddr>) -> Result<Vec<u8>, ConnectFault> {
    let user = proxy.credentials.as_ref().map_or(&[][..], |(user, _)| user);
    if user.contains(&0) {
        return Err(ConnectFault::new("the proxy's user has a zero byte"));
    }
    let (ip, name) = match address.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => (ip.octets(), Vec::new()),
        Some(IpAddr::V6(_)) => return Err(ConnectFault::new("SOCKS 4 knows no IPv6 addresses")),
        // 4a: an invalid address, followed by the name.
        None => ([0, 0, 0, 1], [target.host.as_bytes(), &[0]].concat()),
    };
    Ok([&[4, 1][..], &target.port.to_be_bytes(), &ip, user, &[0], &name].concat())
}

fn socks5_words(reply: u8) -> &'static str {
    match reply {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "an unknown error",
    }
}

/// Returns the offset of the end of a response's head, after its empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Parses a status line; returns the status and the proxy's reason phrase, sanitised for a terminal.
fn status_line(answer: &[u8]) -> Result<String, ConnectFault> {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).take(200).collect();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_once(' ')).map(|(_, status)| status.trim());
    match status {
        Some(status) if status.len() >= 3 && status.as_bytes()[..3].iter().all(u8::is_ascii_digit) => {
            Ok(status.to_owned())
        }
        _ => Err(ConnectFault::new("what answers in place of the proxy does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(kind: ProxyKind, has_credentials: bool) -> Proxy {
        let credentials = has_credentials.then(|| (b"me".to_vec(), b"pw".to_vec()));
        Proxy { kind, host: "proxy".into(), port: 1, credentials }
    }

    fn target(host: &str) -> PeerAddress {
        PeerAddress { is_https: true, host: host.into(), port: 443 }
    }

    /// Runs a handshake against scripted responses, fed one byte at a time.
    fn played(mut handshake: Handshake, answers: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), String>) {
        let (mut sent, mut answers) = (Vec::new(), answers.iter());
        let mut input: Vec<u8> = Vec::new();
        loop {
            match handshake.step() {
                Ok(HandshakeStep::Send(bytes)) => {
                    sent.push(bytes);
                    input = answers.next().map_or(Vec::new(), |answer| answer.to_vec());
                }
                Ok(HandshakeStep::Read) if input.is_empty() => return (sent, Err("it waits".into())),
                Ok(HandshakeStep::Read) => handshake.feed(&[input.remove(0)]),
                Ok(HandshakeStep::Done) => return (sent, Ok(())),
                Err(fault) => return (sent, Err(fault.to_string())),
            }
        }
    }

    #[test]
    fn connect_responses_are_judged_by_status_and_keep_the_reason_phrase() {
        let kind = ProxyKind::Http { over_tls: false };
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Ok(())),
            ("HTTP/1.0 200\r\nX: y\r\n\r\n", Ok(())),
            ("HTTP/1.1 403 Forbidden by IT\r\n\r\nno", Err("the proxy answers 403 Forbidden by IT")),
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n",
                Err("the proxy answers 407 Proxy Authentication Required; name the user"),
            ),
            ("SSH-2.0-OpenSSH\r\n\r\n", Err("what answers in place of the proxy")),
            ("HTTP/1.1 20", Err("it waits")),
        ] {
            let handshake = Handshake::new(&proxy(kind, true), &target("opik.test"), None).expect("made");
            let (sent, end) = played(handshake, &[answer.as_bytes()]);
            let head = String::from_utf8_lossy(&sent[0]).into_owned();
            assert!(head.starts_with("CONNECT opik.test:443 HTTP/1.1\r\nHost: opik.test:443\r\n"), "{head}");
            assert!(head.ends_with("\r\nProxy-Authorization: Basic bWU6cHc=\r\n\r\n"), "{head}");
            match expected {
                Ok(()) => assert_eq!(end, Ok(()), "{answer}"),
                Err(words) => assert!(end.as_ref().is_err_and(|end| end.starts_with(words)), "{answer}: {end:?}"),
            }
        }
    }

    #[test]
    fn socks5_handshakes_work_with_and_without_password() {
        let kind = ProxyKind::Socks5 { resolves: true };
        let name: &[u8] = b"\x05\x01\x00\x03\x09opik.test\x01\xbb";
        let done: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let by_name: &[u8] = b"\x05\x00\x00\x03\x04host\x00\x01";
        let make = |has_credentials| Handshake::new(&proxy(kind, has_credentials), &target("opik.test"), None);
        let (sent, end) = played(make(false).expect("made"), &[&[5, 0], done]);
        assert_eq!((sent, end), (vec![vec![5, 1, 0], name.to_vec()], Ok(())));
        let (sent, end) = played(make(true).expect("made"), &[&[5, 2], &[1, 0], by_name]);
        assert_eq!(sent, [&[5, 2, 0, 2][..], b"\x01\x02me\x02pw", name]);
        assert_eq!(end, Ok(()));
        for (has_credentials, answers, words) in [
            (false, &[&[5, 0xff][..]][..], "wants a user and a password"),
            (true, &[&[5, 2], &[1, 1]], "refuses the user or the password"),
            (false, &[&[5, 0], &[5, 2]], "not allowed by its rules"),
            (false, &[&[5, 0], &[5, 4]], "host unreachable"),
            (false, &[b"HTTP/1.1 400"], "does not speak SOCKS 5"),
        ] {
            let (_, end) = played(make(has_credentials).expect("made"), answers);
            assert!(end.as_ref().is_err_and(|end| end.contains(words)), "{words}: {end:?}");
        }
        let long = Handshake::new(&proxy(kind, false), &target(&"a".repeat(256)), None);
        assert!(long.is_err_and(|fault| fault.to_string().contains("too long")));
    }

    #[test]
    fn socks4_takes_only_ipv4_addresses() {
        let (local, remote) = (ProxyKind::Socks5 { resolves: false }, ProxyKind::Socks4 { resolves: true });
        let socks4 = ProxyKind::Socks4 { resolves: false };
        assert!(needs_address(&proxy(local, false), &target("opik.test")));
        assert!(!needs_address(&proxy(local, false), &target("10.0.0.1")));
        assert!(!needs_address(&proxy(remote, false), &target("opik.test")));
        let v6 = Handshake::new(&proxy(local, false), &target("[fd00::1]"), None).expect("made");
        assert_eq!(v6.request[..6], [5, 1, 0, 4, 0xfd, 0]);
        let mut v4 = Handshake::new(&proxy(socks4, true), &target("h"), "10.0.0.1".parse().ok()).expect("made");
        assert_eq!(v4.step(), Ok(HandshakeStep::Send(b"\x04\x01\x01\xbb\x0a\x00\x00\x01me\x00".to_vec())));
        let mut by_name = Handshake::new(&proxy(remote, false), &target("h"), None).expect("made");
        assert_eq!(by_name.step(), Ok(HandshakeStep::Send(b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00h\x00".to_vec())));
        by_name.feed(&[0, 91, 0, 0, 0, 0, 0, 0]);
        assert!(by_name.step().is_err_and(|fault| fault.to_string().contains("rejected")));
        assert!(Handshake::new(&proxy(socks4, false), &target("[fd00::1]"), None).is_err());
        let v6_only = usable(&proxy(socks4, false), &target("h"), ["fd00::1".parse().expect("an address")].into_iter());
        assert!(v6_only.is_err_and(|fault| fault.to_string().contains("no IPv4 address")));
    }
}
