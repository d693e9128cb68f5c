//! TLS of the engine's own addresses: which certificate it shows, and whose clients it lets in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_session::tls::{ALPN, key_pair, provider, roots};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::server::TlsStream;

use crate::DaemonError;

/// How long a client may take to agree on TLS, and how many may be about it at once.
const HANDSHAKE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 64;
/// How long accepting rests after it failed, which is when there are too many open files.
const REST: Duration = Duration::from_millis(100);

/// PEM files for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The engine's certificate and what leads from it to one the clients know.
    pub cert: Option<PathBuf>,
    /// The key of the certificate.
    pub key: Option<PathBuf>,
    /// Certificates that must have signed the clients'. Without it every client is let in.
    pub ca: Option<PathBuf>,
}

impl TlsSettings {
    /// Reads the files; none when no certificate is named.
    ///
    /// # Errors
    /// Only one of certificate and key is named, or a file is not what it should be.
    pub fn load(&self) -> Result<Option<TlsAcceptor>, DaemonError> {
        let failed = |why: String| DaemonError::Tls { why };
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if self.ca.is_none() => return Ok(None),
            _ => return Err(failed("certificate and key are given together".to_owned())),
        };
        let (chain, secret) = key_pair(cert, key).map_err(|e| failed(e.to_string()))?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(e.to_string()))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let known = Arc::new(roots(path).map_err(|e| failed(e.to_string()))?);
                let verifier = WebPkiClientVerifier::builder_with_provider(known, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| failed(format!("{}: {e}", path.display())))?)
            }
        };
        let mut config =
            builder.with_single_cert(chain, secret).map_err(|e| failed(format!("{}: {e}", cert.display())))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Sends connections that have agreed on TLS until nobody receives them. One that is slow or refused harms no other.
pub async fn accept(socket: TcpListener, tls: TlsAcceptor, ready: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        // Small answers must not wait for more data.
        let _ = stream.set_nodelay(true);
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let _place = place;
            match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::info!(%peer, %error, "a client is not let in"),
                Err(_) => tracing::info!(%peer, "a client did not agree on TLS in time"),
            }
        });
    }
}
