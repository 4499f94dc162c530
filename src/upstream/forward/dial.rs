//! How the streaming client connects: names, proxies, TLS.

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
use super::super::handshake::{Handshake, Step, needs_address, usable};
use super::super::route::{Leads, Proxy, ProxyKind, Target};
use super::super::tls::{self, TlsSource};
use super::super::words;
use super::{BoxError, innermost};

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
/// A connection in the clear, or TLS on top of it.
type Plain = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Returns what opens connections.
pub(super) fn tcp_connector(connect_timeout: Duration) -> HttpConnector<Names> {
    let mut connector = HttpConnector::new_with_resolver(Names(GaiResolver::new()));
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector
}

/// Asks the system for the addresses of names, and says which name has none.
#[derive(Clone, Debug)]
pub(super) struct Names(GaiResolver);

impl Service<Name> for Names {
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

/// Connects to servers directly.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    pub http: HttpConnector<Names>,
    pub tls: Arc<TlsSource>,
}

impl Service<Uri> for Dialer {
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

/// Puts TLS on a connection.
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
pub(super) struct ProxyDialer {
    pub dialer: Dialer,
    pub proxy: Arc<Proxy>,
    pub leads: Leads,
    pub target: Target,
    /// For all of it together.
    pub timeout: Duration,
}

impl Service<Uri> for ProxyDialer {
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

impl ProxyDialer {
    async fn connect(mut self) -> Result<ProxyStream, BoxError> {
        let mut stream = self.reach_proxy().await.map_err(|error| at_the_proxy(&*error))?;
        if self.leads == Leads::ByAbsoluteForm {
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

/// Asks a proxy for a tunnel.
async fn tunnel(stream: &mut Plain, mut handshake: Handshake) -> Result<(), BoxError> {
    let mut stream = TokioIo::new(stream);
    let mut piece = [0; 4096];
    loop {
        match handshake.step()? {
            Step::Send(bytes) => stream.write_all(&bytes).await.map_err(|error| at_the_proxy(&error))?,
            Step::Read => match stream.read(&mut piece).await.map_err(|error| at_the_proxy(&error))? {
                0 => return Err(ConnectFault::at_the_proxy("it closes the connection without an answer").into()),
                read => handshake.feed(&piece[..read]),
            },
            Step::Done => return Ok(()),
        }
    }
}

/// Says that what failed was the way to the proxy, not to the server.
fn at_the_proxy(error: &(dyn std::error::Error + 'static)) -> ConnectFault {
    let known = ConnectFault::find(error).map(ToString::to_string).or_else(|| tls::reason(error));
    ConnectFault::at_the_proxy(&known.unwrap_or_else(|| words(&innermost(error))))
}

/// A connection that leads through a proxy.
pub(super) enum ProxyStream {
    /// To a proxy that gets the requests themselves.
    ToProxy(Plain),
    /// Through a proxy, in the clear.
    Tunnel(Plain),
    /// Through a proxy, with TLS to the server.
    Encrypted(Box<TokioIo<TlsStream<TokioIo<Plain>>>>),
}

/// Does the same with every kind of connection.
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
        // A connection through which requests go to a proxy makes hyper send them in absolute form.
        Connected::new().proxy(matches!(self, Self::ToProxy(_)))
    }
}
