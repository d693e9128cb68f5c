//! TLS as a host's settings want it: the system's authorities and further ones, and the client certificates.

use std::path::Path;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use crate::config::HostConfig;
use crate::error::ErrorKind;

/// Returns what connections to a host begin with.
///
/// # Errors
/// [`ErrorKind::Config`] names the file that cannot be read or holds nothing usable.
pub(crate) fn client_config(settings: &HostConfig) -> Result<ClientConfig, ErrorKind> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let broken = |error: rustls::Error| ErrorKind::Config(format!("cannot set up TLS: {error}"));
    let verifier: Arc<dyn ServerCertVerifier> = if settings.insecure {
        Arc::new(Anybody(provider.clone()))
    } else {
        let mut extra = Vec::new();
        for path in &settings.ca {
            extra.extend(certificates(path)?);
        }
        Arc::new(Verifier::new_with_extra_roots(extra, provider.clone()).map_err(broken)?)
    };
    let pairs = settings.keypairs.iter().map(|pair| {
        let key = PrivateKeyDer::from_pem_slice(&read(&pair.key)?).map_err(|_| bad(&pair.key, "private key"))?;
        let chain = certificates(&pair.cert)?;
        let made = CertifiedKey::from_der(chain, key, &provider);
        Ok(Arc::new(made.map_err(|_| bad(&pair.cert, "key pair"))?))
    });
    let pairs = Pairs(pairs.collect::<Result<_, ErrorKind>>()?);
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(broken)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_client_cert_resolver(Arc::new(pairs)))
}

fn read(path: &Path) -> Result<Vec<u8>, ErrorKind> {
    std::fs::read(path).map_err(|e| ErrorKind::Config(format!("cannot read `{}`: {e}", path.display())))
}

fn bad(path: &Path, what: &str) -> ErrorKind {
    ErrorKind::Config(format!("`{}` holds no usable {what} in PEM form", path.display()))
}

/// Reads the certificates of a PEM file; having none is an error.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ErrorKind> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| bad(path, "certificate"))
}

/// The client certificates of a host, of which the registry's wishes choose one.
#[derive(Debug)]
struct Pairs(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Pairs {
    /// `issuers` are the names (DER) of authorities that the registry accepts; none means any.
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fits = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(schemes).is_some();
        // A certificate holds the name of its issuer byte for byte.
        let from = |pair: &&Arc<CertifiedKey>| {
            pair.cert.iter().any(|cert| issuers.iter().any(|name| cert.windows(name.len().max(1)).any(|w| w == *name)))
        };
        let wanted = self.0.iter().filter(fits).find(|pair| issuers.is_empty() || from(pair));
        // A registry may know more authorities than it names; it refuses what it does not accept.
        wanted.or_else(|| self.0.iter().find(fits)).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Accepts any certificate, as `insecure` asks; that the peer has its key is checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
