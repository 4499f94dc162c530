//! TLS settings of both clients: rustls, the built-in CA certificates or those of `SSL_CERT_FILE` or
//! `SSL_CERT_DIR`, the client certificate, and the option to disable verification
//! (`OPIK_CHECK_TLS_CERTIFICATE=false`).

use std::error::Error;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tracing::{info, warn};

use super::error::UpstreamError;
use super::fault::ConnectFault;

/// Trusted CA certificates and the client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Whether certificates are verified (`OPIK_CHECK_TLS_CERTIFICATE`).
    pub check_certificate: bool,
    /// A PEM file of trusted CA certificates, instead of the built-in ones (`SSL_CERT_FILE`).
    pub ca_file: Option<PathBuf>,
    /// Folders of such files (`SSL_CERT_DIR`).
    pub ca_folders: Vec<PathBuf>,
    /// The certificate for servers that request one (mTLS).
    pub client_certificate: Option<ClientCertificate>,
}

/// The files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// Its private key; `None` if it is in the same file.
    pub key: Option<PathBuf>,
}

/// Minimum interval between checks of the files for changes, made when a connection is opened.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Identifies a version of a file: device and inode, size, and times of its last changes in nanoseconds.
type Stamp = Option<(u64, u64, u64, i128, i128)>;

/// The TLS settings in effect, cached. Renewed files are reloaded when the next connection is opened; if
/// they are invalid, the previous ones stay in effect.
pub(super) struct TlsSource {
    settings: TlsSettings,
    state: Mutex<LoadedTls>,
}

#[derive(Default)]
struct LoadedTls {
    config: Option<Arc<ClientConfig>>,
    /// Stamps of the files at the last load, successful or not.
    stamps: Vec<Stamp>,
    looked_at: Option<Instant>,
}

impl TlsSource {
    pub(super) fn new(settings: TlsSettings) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// Returns the settings for a new connection, reloading changed files.
    ///
    /// # Errors
    ///
    /// [`ConnectFault`] if the files are invalid and there is no previous version.
    pub(super) fn current(&self) -> Result<Arc<ClientConfig>, ConnectFault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &state.config
            && (!self.settings.has_files() || state.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL))
        {
            return Ok(config.clone());
        }
        // Taken before the files are read: a concurrent change is detected by the next check.
        let stamps = self.settings.stamps();
        state.looked_at = Some(Instant::now());
        if let Some(config) = state.config.as_ref().filter(|_| stamps == state.stamps) {
            return Ok(config.clone());
        }
        state.stamps = stamps;
        let renewed = self.settings.config();
        match (renewed, state.config.clone()) {
            (Ok(config), before) => {
                if before.is_some() {
                    info!(target: "connection_monitor", "certificate files have changed and were read again");
                }
                let config = Arc::new(config);
                state.config = Some(config.clone());
                Ok(config)
            }
            (Err(error), Some(before)) => {
                warn!(
                    target: "connection_monitor",
                    "certificate files have changed and can't be used, the earlier ones stay in force: {error}"
                );
                Ok(before)
            }
            (Err(error), None) => Err(ConnectFault::new(error.to_string())),
        }
    }
}

impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSource")
    }
}

impl TlsSettings {
    /// Loads the files into a rustls configuration.
    pub(crate) fn config(&self) -> Result<ClientConfig, UpstreamError> {
        let tls = |error: rustls::Error| UpstreamError::Tls { reason: error.to_string() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(tls)?;
        let builder = if self.check_certificate {
            builder.with_root_certificates(self.roots()?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(NoCheck { provider }))
        };
        let Some(identity) = &self.client_certificate else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = identity.read()?;
        builder.with_client_auth_cert(chain, key).map_err(|error| UpstreamError::ClientCertificate {
            path: identity.certificate.clone(),
            reason: match error {
                rustls::Error::InconsistentKeys(_) => "it does not belong to the key".to_owned(),
                error => error.to_string(),
            },
        })
    }

    /// Loads the trusted CA certificates. As in the SDK and httpx, the file takes precedence over the folder, and both
    /// apply only while certificates are verified.
    fn roots(&self) -> Result<RootCertStore, UpstreamError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca_file {
            for certificate in certificates(path)? {
                let unusable =
                    |error: rustls::Error| UpstreamError::CaFile { path: path.clone(), reason: error.to_string() };
                roots.add(certificate).map_err(unusable)?;
            }
            if roots.is_empty() {
                return Err(UpstreamError::NoCertificates { path: path.clone() });
            }
        } else if !self.ca_folders.is_empty() {
            // A folder may contain other files, and old certificates that fail to parse.
            // A missing folder is not an error as long as another one has certificates, as in OpenSSL.
            let mut fault = None;
            for folder in &self.ca_folders {
                let files = files_of(folder).unwrap_or_else(|error| {
                    fault.get_or_insert(error);
                    Vec::new()
                });
                for certificate in files.iter().flat_map(|path| certificates(path).unwrap_or_default()) {
                    roots.add_parsable_certificates([certificate]);
                }
            }
            if let Some(path) = self.ca_folders.first().filter(|_| roots.is_empty()) {
                return Err(fault.unwrap_or_else(|| UpstreamError::NoCertificates { path: path.clone() }));
            }
        } else {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Ok(roots)
    }

    /// Returns whether only folders of CA certificates are configured.
    pub(super) fn has_only_folders(&self) -> bool {
        !self.ca_folders.is_empty() && self.ca_file.is_none() && self.client_certificate.is_none()
    }

    fn has_files(&self) -> bool {
        self.ca_file.is_some() || !self.ca_folders.is_empty() || self.client_certificate.is_some()
    }

    fn stamps(&self) -> Vec<Stamp> {
        let mut paths: Vec<PathBuf> = Vec::new();
        match &self.ca_file {
            Some(file) => paths.push(file.clone()),
            None => {
                for folder in &self.ca_folders {
                    paths.push(folder.clone());
                    paths.extend(files_of(folder).unwrap_or_default());
                }
            }
        }
        if let Some(identity) = &self.client_certificate {
            paths.push(identity.certificate.clone());
            paths.extend(identity.key.clone());
        }
        paths.iter().map(|path| stamp(path)).collect()
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let (changed, modified) =
        (nanoseconds(found.ctime(), found.ctime_nsec()), nanoseconds(found.mtime(), found.mtime_nsec()));
    Some((found.dev(), found.ino(), found.len(), changed, modified))
}

/// Returns the files of a folder, sorted by name.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, UpstreamError> {
    let unreadable =
        |error: std::io::Error| UpstreamError::CaFile { path: folder.to_owned(), reason: words_of(&error) };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort_unstable();
    Ok(files)
}

/// Parses the certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
    let unreadable = |reason: String| UpstreamError::CaFile { path: path.to_owned(), reason };
    let pem = read_bounded(path).map_err(|error| unreadable(words_of(&error)))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates.map_err(|error| unreadable(error.to_string()))
}

/// Reads a certificate or key file; bounds memory if the path names a device or a log.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    const FILE_BYTES_MAX: u64 = 16 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other("larger than 16MiB")),
        false => Ok(bytes),
    }
}

fn words_of(error: &std::io::Error) -> String {
    super::fault::words(&error.to_string())
}

impl ClientCertificate {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), UpstreamError> {
        let refuse = |path: &Path, reason: String| UpstreamError::ClientCertificate { path: path.to_owned(), reason };
        let path = &self.certificate;
        let pem = read_bounded(path).map_err(|error| refuse(path, words_of(&error)))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|error| refuse(path, error.to_string()))?;
        if chain.is_empty() {
            return Err(refuse(path, "it holds no certificate in PEM form".to_owned()));
        }
        let key_path = self.key.as_ref().unwrap_or(path);
        let pem = read_bounded(key_path).map_err(|error| refuse(key_path, words_of(&error)))?;
        let key = PrivateKeyDer::from_pem_slice(&pem);
        let unusable = "it holds no private key in PEM form, or one with a passphrase".to_owned();
        Ok((chain, key.map_err(|_| refuse(key_path, unusable))?))
    }
}

/// Returns the reason and remedy of a TLS failure in an error chain, if there is one.
pub(super) fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(found) = error.downcast_ref() {
        return Some(words(found));
    }
    // The error wrapped by an I/O error is not one of its sources.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => reason(wrapped),
        None => reason(error.source()?),
    }
}

fn words(error: &rustls::Error) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            // The second error is that of a CA that was recreated under its old name.
            UnknownIssuer | BadSignature => {
                "its certificate is signed by no authority that is trusted here; name the file of your \
                              authority with SSL_CERT_FILE"
                    .to_owned()
            }
            Expired | ExpiredContext { .. } => {
                "its certificate has expired; have it renewed, or check this machine's clock".to_owned()
            }
            NotValidYet | NotValidYetContext { .. } => {
                "its certificate is not valid yet; check this machine's clock".to_owned()
            }
            NotValidForName | NotValidForNameContext { .. } => {
                "its certificate is for another host; name the server as its certificate does".to_owned()
            }
            fault => format!("its certificate is refused: {fault}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "what answers there speaks no TLS; should the URL begin with http:?".to_owned()
        }
        rustls::Error::AlertReceived(alert) => alert_words(*alert),
        error => format!("TLS failed: {error}"),
    }
}

/// Describes an alert with which the peer ended the handshake.
fn alert_words(alert: AlertDescription) -> String {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, UnknownCA, UnsupportedCertificate,
    };
    match alert {
        CertificateRequired => {
            "it wants a certificate from its clients; name one with OPIK_OFFLINE_CLIENT_CERT_FILE".to_owned()
        }
        AccessDenied
        | BadCertificate
        | CertificateExpired
        | CertificateRevoked
        | CertificateUnknown
        | DecryptError
        | UnknownCA
        | UnsupportedCertificate => {
            format!(
                "it does not take the client certificate (TLS alert {alert:?}); look at OPIK_OFFLINE_CLIENT_CERT_FILE"
            )
        }
        alert => format!("TLS failed: the server ends it with the alert {alert:?}"),
    }
}

/// Accepts any certificate, for `OPIK_CHECK_TLS_CERTIFICATE=false`. Signatures are still verified, so that the
/// peer at least holds that certificate's key.
#[derive(Debug)]
struct NoCheck {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NoCheck {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
