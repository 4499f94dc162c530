//! The network between an agent and its server in a company: TLS with an authority of one's own, client
//! certificates, forward proxies, SOCKS servers. Real protocols on loopback; behind them the fake server.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// An authority that only the test trusts.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
    folder: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Age {
    Valid,
    Expired,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = super::tempdir();
        let file = folder.path().join("authority.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file, folder }
    }

    /// The folder with `authority.pem` in it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn server(&self, host: &str, age: Age) -> ServerConfig {
        self.server_wanting(host, age, None)
    }

    /// The configuration of a server that wants certificates of this authority from its clients.
    pub(crate) fn server_wanting(&self, host: &str, age: Age, clients: Option<&Authority>) -> ServerConfig {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        if age == Age::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        builder.with_single_cert(vec![certificate], key).unwrap()
    }

    /// Returns the certificate of a server that is another program, and its key, in PEM form.
    pub(crate) fn server_files(&self, host: &str) -> (String, String) {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Returns a client's certificate and its key in PEM form.
    pub(crate) fn client(&self) -> (String, String) {
        let mut params = CertificateParams::new(vec!["agent".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A listener on a loopback port that can be taken away and comes back.
pub(crate) struct Front {
    pub port: u16,
    is_away: tokio::sync::watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Front {
    pub(crate) fn serving<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_away, away) = tokio::sync::watch::channel(false);
        let open = Arc::new(AtomicUsize::new(0));
        let counter = open.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (mut away, serving, counter) = (away.clone(), serve(stream), counter.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = away.wait_for(|is_away| *is_away) => {}
                        _ = serving => {}
                    }
                    counter.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, is_away, open, _runtime: runtime }
    }

    /// Closes every connection, and each new one at once.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.is_away.send(is_away).unwrap();
        if is_away {
            super::wait_until("every connection is closed", super::PATIENCE, || self.open.load(Ordering::SeqCst) == 0);
        }
    }

    /// TLS in front of a server on this machine.
    pub(crate) fn tls(config: ServerConfig, behind: u16) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::serving(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let mut client = acceptor.accept(stream).await?;
                let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
                copy_bidirectional(&mut client, &mut server).await.map(drop)
            }
        })
    }

    /// TLS whose configuration the test changes while it runs.
    pub(crate) fn renewable_tls(config: Arc<Mutex<Arc<ServerConfig>>>, behind: u16) -> Self {
        Self::serving(move |stream| {
            let acceptor = TlsAcceptor::from(config.lock().unwrap().clone());
            async move {
                let mut client = acceptor.accept(stream).await?;
                let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
                copy_bidirectional(&mut client, &mut server).await.map(drop)
            }
        })
    }
}

/// A request to a forward proxy.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    line: String,
    headers: http::HeaderMap,
}

impl Asked {
    /// Method and target, as in the request line.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    pub(crate) fn has(&self, header: &str) -> bool {
        self.headers.contains_key(header)
    }
}

/// A forward proxy like Squid with its usual rules: `CONNECT` to port 443 only, and plain HTTP by absolute form. All
/// that it is asked for leads to one port of this machine.
pub(crate) struct ForwardProxy {
    front: Front,
    asked: Arc<Mutex<Vec<Asked>>>,
    refusal: Arc<Mutex<Option<u16>>>,
}

type ProxyBody = BoxBody<Bytes, hyper::Error>;

impl ForwardProxy {
    /// Starts one that wants this `Proxy-Authorization`.
    pub(crate) fn start(behind: u16, credentials: Option<&'static str>) -> Self {
        let (asked, refusal) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let (notes, refuses) = (asked.clone(), refusal.clone());
        let front = Front::serving(move |stream| {
            let (asked, refusal) = (notes.clone(), refuses.clone());
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let line = format!("{} {}", request.method(), request.uri());
                asked.lock().unwrap().push(Asked { line, headers: request.headers().clone() });
                let refusal = *refusal.lock().unwrap();
                async move { Ok::<_, Infallible>(proxied(request, behind, credentials, refusal).await) }
            });
            async move {
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connection.with_upgrades().await.map_err(std::io::Error::other)
            }
        });
        Self { front, asked, refusal }
    }

    pub(crate) fn port(&self) -> u16 {
        self.front.port
    }

    /// Returns what it was asked for since the last time.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Answers everything with a page of its own.
    pub(crate) fn refuse_with(&self, status: Option<u16>) {
        *self.refusal.lock().unwrap() = status;
    }

    pub(crate) fn set_away(&self, is_away: bool) {
        self.front.set_away(is_away);
    }
}

fn page(status: u16) -> http::Response<ProxyBody> {
    let page = "<html><head><title>ERROR: Cache Access Denied</title></head><body>Squid</body></html>";
    let body = Full::new(Bytes::from(page)).map_err(|never: Infallible| match never {}).boxed();
    http::Response::builder().status(status).header("Content-Type", "text/html").body(body).unwrap()
}

async fn proxied(
    mut request: http::Request<Incoming>,
    behind: u16,
    credentials: Option<&str>,
    refusal: Option<u16>,
) -> http::Response<ProxyBody> {
    let given = request.headers_mut().remove("Proxy-Authorization");
    if let Some(status) = refusal {
        return page(status);
    }
    if credentials.is_some_and(|wanted| given.is_none_or(|given| given != wanted)) {
        return page(407);
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", behind)).await else { return page(503) };
    if request.method() == http::Method::CONNECT {
        if request.uri().port_u16() != Some(443) {
            return page(403);
        }
        tokio::spawn(async move {
            let client = hyper::upgrade::on(request).await.map_err(std::io::Error::other)?;
            copy_bidirectional(&mut TokioIo::new(client), &mut server).await
        });
        return http::Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed());
    }
    if request.uri().scheme_str() != Some("http") {
        return page(400);
    }
    let path = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
    *request.uri_mut() = path;
    let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await else {
        return page(502);
    };
    tokio::spawn(connection);
    match sender.send_request(request).await {
        Ok(answer) => answer.map(|body| body.boxed()),
        Err(_) => page(502),
    }
}

/// A SOCKS server (RFC 1928, RFC 1929, and SOCKS 4a). All that it is asked for leads to one port of this machine.
pub(crate) struct SocksServer {
    pub front: Front,
    asked: Arc<Mutex<Vec<String>>>,
}

impl SocksServer {
    /// Starts one that wants this user and password.
    pub(crate) fn start(behind: u16, credentials: Option<(&'static str, &'static str)>) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = asked.clone();
        let front = Front::serving(move |stream| socks(stream, behind, credentials, notes.clone()));
        Self { front, asked }
    }

    pub(crate) fn port(&self) -> u16 {
        self.front.port
    }

    /// Returns the hosts and ports that it was asked for since the last time, as they were given: names or addresses.
    pub(crate) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn socks(
    mut client: TcpStream,
    behind: u16,
    credentials: Option<(&str, &str)>,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let refused = || std::io::Error::other("refused");
    let version = client.read_u8().await?;
    let (host, port, done) = if version == 4 {
        let _command = client.read_u8().await?;
        let port = client.read_u16().await?;
        let mut ip = [0; 4];
        client.read_exact(&mut ip).await?;
        let _user = until_zero(&mut client).await?;
        let host = match ip {
            [0, 0, 0, _] => until_zero(&mut client).await?,
            ip => std::net::Ipv4Addr::from(ip).to_string(),
        };
        (host, port, vec![0, 90, 0, 0, 0, 0, 0, 0])
    } else {
        let mut methods = vec![0; client.read_u8().await?.into()];
        client.read_exact(&mut methods).await?;
        let wanted = if credentials.is_some() { 2 } else { 0 };
        if !methods.contains(&wanted) {
            client.write_all(&[5, 0xff]).await?;
            return Err(refused());
        }
        client.write_all(&[5, wanted]).await?;
        if let Some((user, password)) = credentials {
            client.read_u8().await?;
            let given = (field(&mut client).await?, field(&mut client).await?);
            let is_right = given == (user.to_owned(), password.to_owned());
            client.write_all(&[1, u8::from(!is_right)]).await?;
            if !is_right {
                return Err(refused());
            }
        }
        let mut head = [0; 4];
        client.read_exact(&mut head).await?;
        let host = match head[3] {
            1 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
            4 => std::net::Ipv6Addr::from(client.read_u128().await?).to_string(),
            _ => field(&mut client).await?,
        };
        (host, client.read_u16().await?, vec![5, 0, 0, 1, 127, 0, 0, 1, 0, 1])
    };
    asked.lock().unwrap().push(format!("{host}:{port}"));
    let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
    client.write_all(&done).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

async fn until_zero(client: &mut TcpStream) -> std::io::Result<String> {
    let mut text = Vec::new();
    loop {
        match client.read_u8().await? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            byte => text.push(byte),
        }
    }
}

async fn field(client: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
