//! One set of TLS settings for both clients: rustls, the built-in authorities or those of `SSL_CERT_FILE`, and the
//! user's choice to check nothing (`OPIK_CHECK_TLS_CERTIFICATE=false`).

use std::error::Error;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{UpstreamError, UpstreamSettings};

/// Reads the authorities to trust, or `None` for the built-in ones.
///
/// As in the SDK the file counts only while certificates are checked.
fn authorities(settings: &UpstreamSettings) -> Result<Option<Vec<CertificateDer<'static>>>, UpstreamError> {
    let Some(path) = settings.ca_file.as_ref().filter(|_| settings.check_tls_certificate) else { return Ok(None) };
    let unreadable = |reason: String| UpstreamError::CaFile { path: path.clone(), reason };
    let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(UpstreamError::NoCertificates { path: path.clone() });
    }
    Ok(Some(certificates))
}

/// Returns the settings in ureq's form.
pub(super) fn for_ureq(settings: &UpstreamSettings) -> Result<ureq::tls::TlsConfig, UpstreamError> {
    let roots = match authorities(settings)? {
        Some(certificates) => certificates
            .iter()
            .map(|certificate| ureq::tls::Certificate::from_der(certificate.as_ref()).to_owned())
            .collect::<Vec<_>>()
            .into(),
        None => ureq::tls::RootCerts::WebPki,
    };
    let config =
        ureq::tls::TlsConfig::builder().root_certs(roots).disable_verification(!settings.check_tls_certificate).build();
    Ok(config)
}

/// Returns the settings in rustls' own form, for hyper.
pub(super) fn for_rustls(settings: &UpstreamSettings) -> Result<ClientConfig, UpstreamError> {
    let tls = |error: rustls::Error| UpstreamError::Tls { reason: error.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(tls)?;
    if !settings.check_tls_certificate {
        let verifier = Arc::new(NoCheck { provider });
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match authorities(settings)? {
        Some(certificates) => {
            for certificate in certificates {
                roots.add(certificate).map_err(tls)?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Returns why TLS failed and what to do about it, if a chain of errors comes from it.
pub(super) fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(found) = error.downcast_ref() {
        return Some(words(found));
    }
    // What an I/O error wraps is not among its sources.
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
            // The second is what an authority looks like that was made anew under its old name.
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
        error => format!("TLS failed: {error}"),
    }
}

/// Takes any certificate: what `OPIK_CHECK_TLS_CERTIFICATE=false` asks for. Signatures are still checked, so that the
/// connection is at least with whoever holds that certificate's key.
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
