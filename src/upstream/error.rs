//! Errors of connection settings.

use std::path::PathBuf;

use thiserror::Error;

/// Unusable connection settings.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// A file or folder of CA certificates can't be read.
    #[error("cannot read the certificates in {path}: {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The file or folder contains no CA certificate.
    #[error("{path} holds no certificate in PEM form")]
    NoCertificates {
        /// The file.
        path: PathBuf,
    },
    /// The client certificate or its key is unusable.
    #[error("cannot use the client certificate {path}: {reason}")]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The TLS library rejects the settings.
    #[error("cannot set up TLS: {reason}")]
    Tls {
        /// Its error.
        reason: String,
    },
}
