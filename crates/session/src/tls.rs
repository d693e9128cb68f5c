//! TLS towards an engine: which files say whom to trust and who the client is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::error::SessionError;

/// The protocol that is agreed on inside of TLS.
pub const ALPN: &[u8] = b"h2";

/// Files and names for TLS towards an engine, as flags give them. Everything is PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that may have signed the engine's; the system's when absent.
    pub ca: Option<PathBuf>,
    /// The client's certificate and what leads from it to the one the engine knows.
    pub cert: Option<PathBuf>,
    /// The key of the client's certificate.
    pub key: Option<PathBuf>,
    /// The name that the engine's certificate must be for; that of the address when absent.
    pub server_name: Option<String>,
}

/// TLS towards an engine, ready for use.
#[derive(Debug, Clone)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    server_name: Option<String>,
}

impl TlsFiles {
    /// Returns whether nothing asks for TLS; a name alone does not.
    pub fn is_empty(&self) -> bool {
        self.ca.is_none() && self.cert.is_none() && self.key.is_none()
    }

    /// Returns the files of a directory: `ca.pem`, `cert.pem` and `key.pem`, or `ca.crt`, `tls.crt` and `tls.key`.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn in_dir(dir: &Path) -> Result<Self, SessionError> {
        let find = |first: &str, second: &str| {
            let found = [first, second].iter().map(|name| dir.join(name)).find(|path| path.exists());
            found.map(Some).ok_or_else(|| {
                SessionError::Input(format!("directory {} has neither {first} nor {second}", dir.display()))
            })
        };
        Ok(Self {
            ca: find("ca.pem", "ca.crt")?,
            cert: find("cert.pem", "tls.crt")?,
            key: find("key.pem", "tls.key")?,
            server_name: None,
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or only one of certificate and key is given.
    pub fn load(&self) -> Result<ClientTls, SessionError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| SessionError::Input(format!("TLS: {e}")))?;
        let builder = match &self.ca {
            Some(path) => builder.with_root_certificates(roots(path)?),
            None => builder.with_platform_verifier().map_err(|e| SessionError::Input(format!("TLS: {e}")))?,
        };
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let (chain, secret) = key_pair(cert, key)?;
                builder.with_client_auth_cert(chain, secret).map_err(|e| bad(cert, &e))?
            }
            _ => return Err(SessionError::Input("a TLS certificate and its key are given together".to_owned())),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(ClientTls { config: Arc::new(config), server_name: self.server_name.clone() })
    }
}

impl ClientTls {
    /// Returns the name that the certificate of the engine at `host:port` must be for.
    pub(crate) fn name(&self, address: &str) -> io::Result<ServerName<'static>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = self.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']);
        ServerName::try_from(name.to_owned()).map_err(|e| io::Error::other(format!("{name:?}: {e}")))
    }
}

/// Returns the implementation of ciphers that all TLS of this program uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Reads certificates that are trusted.
///
/// # Errors
/// The file cannot be read or has no certificate.
pub fn roots(path: &Path) -> Result<RootCertStore, SessionError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|e| bad(path, &e))?;
    }
    Ok(store)
}

/// Reads a chain of certificates and the key of the first.
///
/// # Errors
/// A file cannot be read or holds something else.
pub fn key_pair(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SessionError> {
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, e))?;
    Ok((chain, secret))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SessionError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|e| unreadable(path, e))?;
    if all.is_empty() {
        return Err(SessionError::Input(format!("{} has no certificate", path.display())));
    }
    Ok(all)
}

fn unreadable(path: &Path, error: pem::Error) -> SessionError {
    match error {
        pem::Error::Io(error) => SessionError::Input(format!("cannot read {}: {error}", path.display())),
        other => SessionError::Input(format!("{}: {other}", path.display())),
    }
}

fn bad(path: &Path, error: &rustls::Error) -> SessionError {
    SessionError::Input(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_missing_or_alone_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = |e: SessionError| e.to_string();
        assert!(text(TlsFiles::in_dir(dir.path()).unwrap_err()).contains("neither ca.pem nor ca.crt"));
        std::fs::write(dir.path().join("empty"), "").unwrap();
        let ca = Some(dir.path().join("empty"));
        assert!(text(TlsFiles { ca, ..TlsFiles::default() }.load().unwrap_err()).contains("has no certificate"));
        let ca = Some(dir.path().join("gone"));
        assert!(text(TlsFiles { ca, ..TlsFiles::default() }.load().unwrap_err()).contains("cannot read"));
        let cert = Some(dir.path().join("empty"));
        let alone = TlsFiles { cert, ..TlsFiles::default() };
        assert!(!alone.is_empty() && text(alone.load().unwrap_err()).contains("together"));
    }

    #[test]
    fn the_name_is_that_of_the_address_or_the_one_given() {
        let files = TlsFiles::default();
        let tls = ClientTls { config: bare(), server_name: files.server_name.clone() };
        assert_eq!(tls.name("builder.test:1234").unwrap().to_str(), "builder.test");
        assert_eq!(tls.name("[::1]:1234").unwrap().to_str(), "::1");
        let tls = ClientTls { config: bare(), server_name: Some("other".to_owned()) };
        assert_eq!(tls.name("127.0.0.1:1").unwrap().to_str(), "other");
    }

    fn bare() -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }
}
