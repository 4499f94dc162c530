//! Connection setup of the streaming client: DNS, proxies, TLS.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiAddrs, GaiResolver, Name};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::super::fault::{BoxError, ConnectFault, innermost, words};
use super::super::handshake::{Handshake, HandshakeStep, needs_address, usable};
use super::super::route::{PeerAddress, Proxy, ProxyKind, ProxyMode, ServerRoute};
use super::super::tls::{self, TlsSource};

/// A plain connection, or TLS over one.
type Plain = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Returns the connector of plain TCP connections.
fn tcp_connector(connect_timeout: Duration) -> HttpConnector<SystemResolver> {
    let mut connector = HttpConnector::new_with_resolver(SystemResolver(GaiResolver::new()));
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector
}

/// The system's resolver, with errors that name the host.
#[derive(Clone, Debug)]
struct SystemResolver(GaiResolver);

impl Service<Name> for SystemResolver {
    type Response = GaiAddrs;
    type Error = ConnectFault;
    type Future = Pin<Box<dyn Future<Output = Result<GaiAddrs, ConnectFault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let asked = name.as_str().to_owned();
        let addresses = self.0.call(name);
        Box::pin(async move { addresses.await.map_err(|error| ConnectFault::unresolved(&asked, &error.to_string())) })
    }
}

/// Opens connections to the server.
#[derive(Debug)]
pub(super) struct ServerDialer {
    http: HttpConnector<SystemResolver>,
    tls: Arc<TlsSource>,
    target: PeerAddress,
    route: ServerRoute,
    /// Timeout for all steps to a proxy and through it together.
    timeout: Duration,
}

impl ServerDialer {
    pub(super) fn new(target: PeerAddress, route: ServerRoute, connect_timeout: Duration, tls: Arc<TlsSource>) -> Self {
        Self { http: tcp_connector(connect_timeout), tls, target, route, timeout: connect_timeout }
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<ServerStream, BoxError> {
        match &self.route {
            ServerRoute::Direct => self.connect_directly().await,
            ServerRoute::Through(proxy, mode) => {
                let connected = tokio::time::timeout(self.timeout, self.connect_through(proxy, *mode)).await;
                connected.unwrap_or_else(|_| Err(ConnectFault::new("no connection within the time").into()))
            }
        }
    }

    async fn connect_directly(&self) -> Result<ServerStream, BoxError> {
        let tcp = self.http.clone().call(self.target.origin().parse()?).await?;
        match self.target.is_https {
            true => {
                Ok(ServerStream::Plain(MaybeHttpsStream::Https(encrypted(tcp, &self.target.host, &self.tls).await?)))
            }
            false => Ok(ServerStream::Plain(MaybeHttpsStream::Http(tcp))),
        }
    }

    async fn connect_through(&self, proxy: &Proxy, mode: ProxyMode) -> Result<ServerStream, BoxError> {
        let mut stream = self.reach_proxy(proxy).await.map_err(|error| at_the_proxy(&*error))?;
        if mode == ProxyMode::ByAbsoluteForm {
            return Ok(ServerStream::Plain(stream));
        }
        let address = match needs_address(proxy, &self.target) {
            true => Some(self.resolve_target(proxy).await?),
            false => None,
        };
        tunnel(&mut stream, Handshake::new(proxy, &self.target, address)?).await?;
        match self.target.is_https {
            true => Ok(ServerStream::Tunnelled(Box::new(encrypted(stream, &self.target.host, &self.tls).await?))),
            false => Ok(ServerStream::Plain(stream)),
        }
    }

    async fn reach_proxy(&self, proxy: &Proxy) -> Result<Plain, BoxError> {
        let tcp = self.http.clone().call(proxy.address().parse()?).await?;
        match proxy.kind {
            ProxyKind::Http { over_tls: true } => {
                Ok(MaybeHttpsStream::Https(encrypted(tcp, &proxy.host, &self.tls).await?))
            }
            _ => Ok(MaybeHttpsStream::Http(tcp)),
        }
    }

    async fn resolve_target(&self, proxy: &Proxy) -> Result<IpAddr, ConnectFault> {
        let name = self.target.bare_host();
        let addresses = tokio::net::lookup_host((name, self.target.port)).await;
        let addresses = addresses.map_err(|error| ConnectFault::unresolved(name, &error.to_string()))?;
        usable(proxy, &self.target, addresses.map(|address| address.ip()))
    }
}

/// Adds TLS to a connection.
async fn encrypted<T>(stream: T, host: &str, tls: &TlsSource) -> Result<TokioIo<TlsStream<TokioIo<T>>>, BoxError>
where
    T: Read + Write + Unpin,
{
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name =
        ServerName::try_from(bare).map_err(|_| ConnectFault::new(format!("no certificate can be for {host}")))?;
    let connector = TlsConnector::from(tls.current()?);
    Ok(TokioIo::new(connector.connect(name, TokioIo::new(stream)).await?))
}

/// Opens a tunnel through a proxy.
async fn tunnel(stream: &mut Plain, mut handshake: Handshake) -> Result<(), BoxError> {
    let mut stream = TokioIo::new(stream);
    let mut piece = [0; 4096];
    loop {
        match handshake.step()? {
            HandshakeStep::Send(bytes) => stream.write_all(&bytes).await.map_err(|error| at_the_proxy(&error))?,
            HandshakeStep::Read => match stream.read(&mut piece).await.map_err(|error| at_the_proxy(&error))? {
                0 => return Err(ConnectFault::at_the_proxy("it closes the connection without an answer").into()),
                read => handshake.feed(&piece[..read]),
            },
            HandshakeStep::Done => return Ok(()),
        }
    }
}

/// Marks an error as one of the connection to the proxy.
fn at_the_proxy(error: &(dyn std::error::Error + 'static)) -> ConnectFault {
    let known = ConnectFault::find(error).map(ToString::to_string).or_else(|| tls::reason(error));
    ConnectFault::at_the_proxy(&known.unwrap_or_else(|| words(&innermost(error))))
}

/// A connection that leads to the server.
#[expect(clippy::large_enum_variant, reason = "there is one for each connection, and the larger variant is usual")]
pub(super) enum ServerStream {
    /// To the server or to a proxy, or a plain tunnel through one.
    Plain(Plain),
    /// TLS through a tunnel.
    Tunnelled(Box<TokioIo<TlsStream<TokioIo<Plain>>>>),
}

/// Delegates to the connection of any variant.
macro_rules! each {
    ($stream:expr, $inner:ident => $done:expr) => {
        match $stream {
            ServerStream::Plain($inner) => $done,
            ServerStream::Tunnelled($inner) => $done,
        }
    };
}

impl Read for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl Write for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, inner => inner.is_write_vectored())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }
}
