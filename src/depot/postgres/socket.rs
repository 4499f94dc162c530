//! The connection to one server: TCP, TLS over it, or a Unix socket; every read and write has a deadline.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::url::PostgresHost;

/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// An open connection. Dropping it closes it; nothing is ever cancelled on the server.
pub(super) enum PostgresSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl PostgresSocket {
    /// Connects to a server, with TLS if there is a configuration for it.
    pub(super) fn connect(
        host: &PostgresHost,
        tls: Option<&Arc<ClientConfig>>,
        deadline: Instant,
    ) -> io::Result<PostgresSocket> {
        match host {
            PostgresHost::Socket { folder, port } => {
                Ok(Self::Unix(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}")))?))
            }
            PostgresHost::Tcp { host, port } => {
                let socket = dial(host, *port, deadline)?;
                socket.set_nodelay(true)?;
                match tls {
                    None => Ok(Self::Tcp(socket)),
                    Some(config) => encrypt(socket, host, config, deadline),
                }
            }
        }
    }

    /// Sends all bytes.
    pub(super) fn send(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.limit(deadline)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            // In parts, so that a server that takes a byte now and then meets the deadline, too.
            let (part, behind) = rest.split_at(rest.len().min(READ_BYTES));
            match self {
                Self::Tcp(socket) => socket.write_all(part)?,
                Self::Unix(socket) => socket.write_all(part)?,
                Self::Tls(socket) => socket.write_all(part)?,
            }
            rest = behind;
            self.limit(deadline)?;
        }
        match self {
            Self::Tls(socket) => socket.flush(),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Appends what arrives next, at least one byte.
    pub(super) fn receive(&mut self, into: &mut BytesMut, deadline: Instant) -> io::Result<()> {
        self.limit(deadline)?;
        let mut part = [0; READ_BYTES];
        let read = match self {
            Self::Tcp(socket) => socket.read(&mut part)?,
            Self::Unix(socket) => socket.read(&mut part)?,
            Self::Tls(socket) => socket.read(&mut part)?,
        };
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        into.extend_from_slice(&part[..read]);
        Ok(())
    }

    /// Returns whether an idle connection can be reused: it is open, and the server has sent nothing since.
    pub(super) fn is_quiet(&mut self) -> bool {
        fn would_block(found: io::Result<usize>) -> bool {
            found.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        }
        let mut byte = [0];
        let quiet = self.set_nonblocking(true).is_ok()
            && match self {
                Self::Tcp(socket) => would_block(socket.peek(&mut byte)),
                Self::Unix(socket) => would_block(socket.read(&mut byte)),
                Self::Tls(socket) => would_block(socket.sock.peek(&mut byte)),
            };
        quiet && self.set_nonblocking(false).is_ok()
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(on),
            Self::Unix(socket) => socket.set_nonblocking(on),
            Self::Tls(socket) => socket.sock.set_nonblocking(on),
        }
    }

    fn limit(&self, deadline: Instant) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => limit(socket, deadline),
            Self::Tls(socket) => limit(&socket.sock, deadline),
            Self::Unix(socket) => {
                let left = left(deadline)?;
                socket.set_read_timeout(Some(left))?;
                socket.set_write_timeout(Some(left))
            }
        }
    }
}

/// Sets the time-outs of a socket to what is left.
fn limit(socket: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = left(deadline)?;
    socket.set_read_timeout(Some(left))?;
    socket.set_write_timeout(Some(left))
}

/// Returns the time until the deadline, more than zero.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] behind it.
pub(super) fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Zero would mean no time-out at all, and less than a microsecond is rounded to it.
    match left > Duration::from_micros(1) {
        true => Ok(left),
        false => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
    }
}

/// Connects to the first address of a host that answers.
fn dial(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses = resolve(host, port, deadline)?;
    let mut failure = io::Error::other("its name has no address");
    for (nr, address) in addresses.iter().enumerate() {
        // An address that swallows everything leaves the next ones their share.
        let share = left(deadline)? / u32::try_from(addresses.len() - nr).unwrap_or(1);
        match TcpStream::connect_timeout(address, share) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Looks a name up, in a thread of its own: the system's look-up has no deadline.
fn resolve(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    let (answer, answered) = mpsc::channel();
    let name = (host.to_owned(), port);
    std::thread::Builder::new().name("depot-name".to_owned()).spawn(move || {
        // Fails if the caller has timed out.
        let _ = answer.send((name.0.as_str(), name.1).to_socket_addrs().map(Iterator::collect));
    })?;
    answered
        .recv_timeout(left(deadline)?)
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "its name was not resolved in time"))?
}

/// Asks the server for TLS and shakes hands.
fn encrypt(
    mut socket: TcpStream,
    host: &str,
    config: &Arc<ClientConfig>,
    deadline: Instant,
) -> io::Result<PostgresSocket> {
    limit(&socket, deadline)?;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request)?;
    let mut answer = [0];
    // One byte and no more: plain text behind it must not be read as if it came through TLS.
    socket.read_exact(&mut answer)?;
    if answer != *b"S" {
        return Err(io::Error::other(
            "it offers no TLS; switch it on there (ssl = on), or add --fleet-insecure where the network is trusted",
        ));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        limit(&stream.sock, deadline)?;
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(PostgresSocket::Tls(Box::new(stream)))
}
