//! Where a depot is and how it is reached, as plain values.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::upstream::route::Proxies;
use crate::upstream::tls::TlsSettings;

/// The time-out of a request to a depot, from its first byte to the last of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The time-out of opening a connection to a depot.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A service that stores objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectService {
    /// S3, and what is compatible.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl ObjectService {
    /// Returns the scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

/// Where a depot is.
#[derive(Clone, PartialEq, Eq)]
pub enum DepotAddress {
    /// In a folder.
    Folder(PathBuf),
    /// In a bucket or container, below a prefix without slashes at its ends.
    Bucket {
        /// The service.
        service: ObjectService,
        /// The bucket or container.
        bucket: String,
        /// The prefix; may be empty.
        prefix: String,
    },
    /// In a PostgreSQL database. The URL may hold a password.
    Postgres(String),
}

impl fmt::Debug for DepotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DepotAddress({self})")
    }
}

/// The URL, without a user and a password.
impl fmt::Display for DepotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket { service, bucket, prefix } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", service.scheme())
            }
            Self::Bucket { service, bucket, prefix } => write!(f, "{}://{bucket}/{prefix}", service.scheme()),
            Self::Postgres(url) => match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => write!(f, "{scheme}://***@{host}"),
                _ => f.write_str(url),
            },
        }
    }
}

/// How a depot is reached.
#[derive(Clone)]
pub struct DepotSettings {
    /// Where it is.
    pub address: DepotAddress,
    /// The provider's variables: credentials, endpoint, region.
    pub variables: Vec<(String, String)>,
    /// Whether it may be reached without TLS, and not only on this machine.
    pub is_insecure: bool,
    /// TLS settings. The client certificate is of the Opik server and not presented here.
    pub tls: TlsSettings,
    /// Rules that select the proxy.
    pub proxies: Proxies,
    /// The time-out of one request.
    pub timeout: Duration,
}

impl DepotSettings {
    /// Returns settings without variables, proxy and own certificates.
    pub fn plain(address: DepotAddress) -> Self {
        Self {
            address,
            variables: Vec::new(),
            is_insecure: false,
            tls: TlsSettings { check_certificate: true, ..TlsSettings::default() },
            proxies: Proxies::none(),
            timeout: TIMEOUT,
        }
    }

    /// Returns a variable of the provider.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(set, _)| set == name).map(|(_, value)| value.as_str())
    }
}

/// Leaves out the values of the variables, most of which are secret.
impl fmt::Debug for DepotSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.variables.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("DepotSettings")
            .field("address", &self.address)
            .field("variables", &names)
            .finish_non_exhaustive()
    }
}
