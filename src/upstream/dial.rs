//! Connection setup of the blocking client: DNS, proxies, TLS.
//!
//! ureq has these too, but no requests in absolute form (its pull request 587 was dropped in version 3), no
//! error text from a proxy's response, and no TLS settings that can be reloaded.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Instant;

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use ureq::Error;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport, TransportAdapter, time,
};

use super::fault::ConnectFault;
use super::fault::words;
use super::handshake::{Handshake, HandshakeStep, needs_address, usable};
use super::heard::Heard;
use super::route::{PeerAddress, Proxies, Proxy, ProxyKind, ProxyMode, ServerRoute, in_absolute_form};
use super::tls::TlsSource;

/// A resolver that resolves nothing: [`Dialer`] resolves the host that it connects to, which may be a proxy.
#[derive(Debug)]
pub(super) struct Unresolved;

impl Resolver for Unresolved {
    fn resolve(&self, _: &http::Uri, _: &ureq::config::Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

/// Opens connections, directly or through a proxy.
#[derive(Debug)]
pub(super) struct Dialer {
    pub proxies: Proxies,
    pub tls: Arc<TlsSource>,
    pub resolver: DefaultResolver,
}

/// The deadline for opening a connection.
#[derive(Clone, Copy)]
struct Patience {
    timeout: NextTimeout,
    since: Instant,
}

impl Patience {
    fn left(&self) -> Result<NextTimeout, Error> {
        let time::Duration::Exact(after) = self.timeout.after else { return Ok(self.timeout) };
        let left = after.saturating_sub(self.since.elapsed());
        match left.is_zero() {
            true => Err(Error::Timeout(self.timeout.reason)),
            false => Ok(NextTimeout { after: time::Duration::Exact(left), ..self.timeout }),
        }
    }
}

/// A connection attempt.
struct ConnectionAttempt<'a, 'b> {
    details: &'a ConnectionDetails<'b>,
    target: &'a PeerAddress,
    patience: Patience,
}

impl Connector<()> for Dialer {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let patience = Patience { timeout: details.timeout, since: Instant::now() };
        let target = PeerAddress::of(details.uri).ok_or_else(|| Error::BadUri(details.uri.to_string()))?;
        let way = self.proxies.route_to(&target).map_err(fault)?;
        let opening = ConnectionAttempt { details, target: &target, patience };
        let transport = match way {
            ServerRoute::Direct => self.direct(&opening)?,
            ServerRoute::Through(proxy, leads) => self.through(&opening, &proxy, leads)?,
        };
        Ok(Some(Box::new(Heard::over(transport))))
    }
}

impl Dialer {
    fn direct(&self, opening: &ConnectionAttempt<'_, '_>) -> Result<Box<dyn Transport>, Error> {
        let tcp = self.tcp(opening, opening.details.uri)?;
        self.to_server(opening, tcp)
    }

    fn through(
        &self,
        opening: &ConnectionAttempt<'_, '_>,
        proxy: &Proxy,
        leads: ProxyMode,
    ) -> Result<Box<dyn Transport>, Error> {
        let target = opening.target;
        let address: http::Uri = proxy.address().parse().map_err(|_| Error::BadUri(proxy.to_string()))?;
        let reached = self.tcp(opening, &address).and_then(|tcp| match proxy.kind {
            ProxyKind::Http { over_tls: true } => self.encrypted(opening, tcp, &proxy.host),
            _ => Ok(tcp),
        });
        let reached = reached.map_err(at_the_proxy)?;
        if leads == ProxyMode::ByAbsoluteForm {
            let authorization = proxy.authorization();
            let target = target.clone();
            return Ok(Box::new(AbsoluteForm { inner: reached, target, authorization, is_at_head: true }));
        }
        let address = if needs_address(proxy, target) {
            let addresses = self.resolve(opening, opening.details.uri)?;
            Some(usable(proxy, target, addresses.iter().map(|address| address.ip())).map_err(fault)?)
        } else {
            None
        };
        let handshake = Handshake::new(proxy, target, address).map_err(fault)?;
        self.to_server(opening, tunnel(opening, reached, handshake)?)
    }

    /// Adds TLS to a connection to the server if its scheme is https.
    fn to_server(
        &self,
        opening: &ConnectionAttempt<'_, '_>,
        inner: Box<dyn Transport>,
    ) -> Result<Box<dyn Transport>, Error> {
        if opening.target.is_https { self.encrypted(opening, inner, &opening.target.host) } else { Ok(inner) }
    }

    fn resolve(&self, opening: &ConnectionAttempt<'_, '_>, uri: &http::Uri) -> Result<ResolvedSocketAddrs, Error> {
        let name = uri.host().unwrap_or_default();
        let found = self.resolver.resolve(uri, opening.details.config, opening.patience.left()?);
        found.map_err(|error| match error {
            Error::Io(io) => fault(ConnectFault::unresolved(name, &words_of_resolver(&io))),
            Error::HostNotFound => fault(ConnectFault::unresolved(name, "it has no address")),
            Error::Timeout(_) => Error::Timeout(ureq::Timeout::Resolve),
            other => other,
        })
    }

    /// Connects to the first reachable address of a name.
    fn tcp(&self, opening: &ConnectionAttempt<'_, '_>, uri: &http::Uri) -> Result<Box<dyn Transport>, Error> {
        let addrs = self.resolve(opening, uri)?;
        let details = opening.details;
        let details = ConnectionDetails {
            uri,
            addrs,
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: time::Instant::now(),
            timeout: opening.patience.left()?,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let connected = Connector::<()>::connect(&TcpConnector::default(), &details, None)?;
        Ok(Box::new(connected.ok_or(Error::ConnectionFailed)?))
    }

    fn encrypted(
        &self,
        opening: &ConnectionAttempt<'_, '_>,
        inner: Box<dyn Transport>,
        host: &str,
    ) -> Result<Box<dyn Transport>, Error> {
        let (details, bare) = (opening.details, host.trim_start_matches('[').trim_end_matches(']'));
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| fault(ConnectFault::new(format!("no certificate can be for {host}"))))?;
        let config = self.tls.current().map_err(fault)?;
        let mut conn = ClientConnection::new(config, name)?;
        let mut sock = TransportAdapter::new(inner, details.current_time.clone());
        sock.set_timeout(opening.patience.left()?);
        while conn.is_handshaking() {
            conn.complete_io(&mut sock)?;
        }
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Box::new(Encrypted { stream: StreamOwned { conn, sock }, buffers }))
    }
}

fn words_of_resolver(error: &std::io::Error) -> String {
    let reason = error.to_string();
    reason.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Opens a tunnel through a proxy.
fn tunnel(
    opening: &ConnectionAttempt<'_, '_>,
    transport: Box<dyn Transport>,
    mut handshake: Handshake,
) -> Result<Box<dyn Transport>, Error> {
    let mut stream = TransportAdapter::new(transport, opening.details.current_time.clone());
    let mut piece = [0; 4096];
    loop {
        stream.set_timeout(opening.patience.left()?);
        match handshake.step().map_err(fault)? {
            HandshakeStep::Send(bytes) => stream.write_all(&bytes).map_err(|error| at_the_proxy(error.into()))?,
            HandshakeStep::Read => match stream.read(&mut piece).map_err(|error| at_the_proxy(error.into()))? {
                0 => return Err(fault(ConnectFault::at_the_proxy("it closes the connection without an answer"))),
                read => handshake.feed(&piece[..read]),
            },
            HandshakeStep::Done => return Ok(Box::new(Tunnel(stream.into_inner()))),
        }
    }
}

fn fault(fault: ConnectFault) -> Error {
    Error::Io(fault.into())
}

/// Marks an error as one of the connection to the proxy. A timeout stays a timeout.
fn at_the_proxy(error: Error) -> Error {
    let reason = match &error {
        Error::Timeout(_) => return error,
        Error::Io(io) => {
            let of_tls = super::tls::reason(io);
            let of_name = || ConnectFault::find(io).map(ToString::to_string);
            of_tls.or_else(of_name).unwrap_or_else(|| words(&io.to_string()))
        }
        Error::Rustls(tls) => super::tls::reason(tls).unwrap_or_else(|| tls.to_string()),
        other => other.to_string(),
    };
    fault(ConnectFault::at_the_proxy(&reason))
}

/// A tunnel: the inner connection to the server is not encrypted yet, even if the outer one to the proxy is.
#[derive(Debug)]
struct Tunnel(Box<dyn Transport>);

impl Transport for Tunnel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}

/// A connection to a proxy that takes requests in absolute form.
struct AbsoluteForm {
    inner: Box<dyn Transport>,
    target: PeerAddress,
    /// The proxy's own.
    authorization: Option<String>,
    /// Whether the next output starts a request. ureq checks whether a connection is open after each request and
    /// before the next one, and at no other time.
    is_at_head: bool,
}

impl fmt::Debug for AbsoluteForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbsoluteForm").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Transport for AbsoluteForm {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !self.is_at_head {
            return self.inner.transmit_output(amount, timeout);
        }
        let head = &self.inner.buffers().output()[..amount];
        let head = in_absolute_form(head, &self.target, self.authorization.as_deref())
            .ok_or_else(|| fault(ConnectFault::new("the request's head cannot be given to a proxy")))?;
        self.is_at_head = false;
        let mut rest = &head[..];
        while !rest.is_empty() {
            let output = self.inner.buffers().output();
            let piece = rest.len().min(output.len());
            output[..piece].copy_from_slice(&rest[..piece]);
            rest = &rest[piece..];
            self.inner.transmit_output(piece, timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.is_at_head = true;
        self.inner.is_open()
    }
}

/// TLS on top of a connection.
struct Encrypted {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").finish_non_exhaustive()
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
