//! Connection setup of the streaming client: DNS, proxies, TLS.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::dns::{GaiAddrs, GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::super::fault::ConnectFault;
use super::super::fault::words;
use super::super::handshake::{Handshake, HandshakeStep, needs_address, usable};
use super::super::route::{PeerAddress, Proxy, ProxyKind, ProxyMode};
use super::super::tls::{self, TlsSource};
use super::{BoxError, innermost};

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
/// A plain connection, or TLS over one.
type Plain = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Returns the connector of plain TCP connections.
pub(super) fn tcp_connector(connect_timeout: Duration) -> HttpConnector<SystemResolver> {
    let mut connector = HttpConnector::new_with_resolver(SystemResolver(GaiResolver::new()));
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector
}

/// The system's resolver, with errors that name the host.
#[derive(Clone, Debug)]
pub(super) struct SystemResolver(GaiResolver);

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

/// Connects to servers without a proxy.
#[derive(Clone, Debug)]
pub(super) struct DirectConnector {
    pub http: HttpConnector<SystemResolver>,
    pub tls: Arc<TlsSource>,
}

impl Service<Uri> for DirectConnector {
    type Response = Plain;
    type Error = BoxError;
    type Future = Pending<Plain>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let is_https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let host = uri.host().unwrap_or_default().to_owned();
        let (tcp, tls) = (self.http.call(uri), self.tls.clone());
        Box::pin(async move {
            let tcp = tcp.await?;
            match is_https {
                true => Ok(MaybeHttpsStream::Https(encrypted(tcp, &host, &tls).await?)),
                false => Ok(MaybeHttpsStream::Http(tcp)),
            }
        })
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

/// Connects to a server through a proxy.
#[derive(Clone, Debug)]
pub(super) struct ProxyConnector {
    pub dialer: DirectConnector,
    pub proxy: Arc<Proxy>,
    pub leads: ProxyMode,
    pub target: PeerAddress,
    /// Timeout for all steps together.
    pub timeout: Duration,
}

impl Service<Uri> for ProxyConnector {
    type Response = ProxyStream;
    type Error = BoxError;
    type Future = Pending<ProxyStream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dialer.poll_ready(cx)
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(dialer.timeout, dialer.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(ConnectFault::new("no connection within the time").into()),
            }
        })
    }
}

impl ProxyConnector {
    async fn connect(mut self) -> Result<ProxyStream, BoxError> {
        let mut stream = self.reach_proxy().await.map_err(|error| at_the_proxy(&*error))?;
        if self.leads == ProxyMode::ByAbsoluteForm {
            return Ok(ProxyStream::ToProxy(stream));
        }
        let address = match needs_address(&self.proxy, &self.target) {
            true => Some(self.resolve_target().await?),
            false => None,
        };
        tunnel(&mut stream, Handshake::new(&self.proxy, &self.target, address)?).await?;
        match self.target.is_https {
            true => {
                let encrypted = encrypted(stream, &self.target.host, &self.dialer.tls).await?;
                Ok(ProxyStream::Encrypted(Box::new(encrypted)))
            }
            false => Ok(ProxyStream::Tunnel(stream)),
        }
    }

    async fn reach_proxy(&mut self) -> Result<Plain, BoxError> {
        let tcp = self.dialer.http.call(self.proxy.address().parse()?).await?;
        match self.proxy.kind {
            ProxyKind::Http { over_tls: true } => {
                Ok(MaybeHttpsStream::Https(encrypted(tcp, &self.proxy.host, &self.dialer.tls).await?))
            }
            _ => Ok(MaybeHttpsStream::Http(tcp)),
        }
    }

    async fn resolve_target(&self) -> Result<IpAddr, ConnectFault> {
        let name = self.target.bare_host();
        let addresses = tokio::net::lookup_host((name, self.target.port)).await;
        let addresses = addresses.map_err(|error| ConnectFault::unresolved(name, &error.to_string()))?;
        usable(&self.proxy, &self.target, addresses.map(|address| address.ip()))
    }
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

/// A connection through a proxy.
pub(super) enum ProxyStream {
    /// To a proxy that takes requests in absolute form.
    ToProxy(Plain),
    /// A plain tunnel.
    Tunnel(Plain),
    /// A tunnel with TLS to the server.
    Encrypted(Box<TokioIo<TlsStream<TokioIo<Plain>>>>),
}

/// Delegates to the connection of any variant.
macro_rules! each {
    ($stream:expr, $inner:ident => $done:expr) => {
        match $stream {
            ProxyStream::ToProxy($inner) | ProxyStream::Tunnel($inner) => $done,
            ProxyStream::Encrypted($inner) => $done,
        }
    };
}

impl Read for ProxyStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl Write for ProxyStream {
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

impl Connection for ProxyStream {
    fn connected(&self) -> Connected {
        // Marking the connection as a proxy's makes hyper send requests in absolute form.
        Connected::new().proxy(matches!(self, Self::ToProxy(_)))
    }
}
