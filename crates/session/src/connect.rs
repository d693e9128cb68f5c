//! Channels: to an engine's address, and over a byte stream that already exists.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kiln_stdx::limits;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::error::SessionError;
use crate::tls::ClientTls;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(20);

/// Returns an endpoint with the limits that the protocol needs: file sync sends its patterns as headers.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(limits::GRPC_HEADERS)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .connect_timeout(CONNECT)
}

/// An engine's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Address {
    /// Parses `unix:///path` or `tcp://host:port`.
    ///
    /// # Errors
    /// Any other form.
    pub fn parse(text: &str) -> Result<Self, SessionError> {
        if let Some(path) = text.strip_prefix("unix://").filter(|p| !p.is_empty()) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        match text.strip_prefix("tcp://").map(|a| a.trim_end_matches('/')).filter(|a| a.contains(':')) {
            Some(address) => Ok(Self::Tcp(address.to_owned())),
            None => {
                Err(SessionError::Input(format!("{text:?} is no address: expected unix:///path or tcp://host:port")))
            }
        }
    }
}

/// Connects to an engine.
///
/// # Errors
/// Nobody answers there.
pub async fn connect(address: &Address) -> Result<Channel, SessionError> {
    connect_with(address, None).await
}

/// Connects to an engine, by TLS where it is given and the address is not of this host's own kind.
///
/// # Errors
/// Nobody answers there, or one of the two does not trust the other.
pub async fn connect_with(address: &Address, tls: Option<&ClientTls>) -> Result<Channel, SessionError> {
    let made = match (address, tls) {
        (Address::Unix(path), _) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            endpoint().connect_with_connector(connector).await
        }
        (Address::Tcp(host), Some(tls)) => {
            let (host, tls) = (host.clone(), tls.clone());
            let connector = service_fn(move |_: Uri| {
                let (host, tls) = (host.clone(), tls.clone());
                async move {
                    let name = tls.name(&host)?;
                    let stream = TcpStream::connect(&host).await?;
                    stream.set_nodelay(true)?;
                    let stream = TlsConnector::from(tls.config.clone()).connect(name, stream).await?;
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            });
            endpoint().connect_with_connector(connector).await
        }
        (Address::Tcp(host), None) => {
            let host = host.clone();
            let connector = service_fn(move |_: Uri| {
                let host = host.clone();
                async move {
                    let stream = TcpStream::connect(host).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            });
            endpoint().connect_with_connector(connector).await
        }
    };
    made.map_err(|e| SessionError::io(format!("connecting to {}", describe(address)), io::Error::other(chain(&e))))
}

/// Connects to the unix socket at `path`.
///
/// # Errors
/// Nobody answers there.
pub async fn connect_unix(path: &Path) -> Result<Channel, SessionError> {
    connect(&Address::Unix(path.to_owned())).await
}

fn describe(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("unix://{}", path.display()),
        Address::Tcp(host) => format!("tcp://{host}"),
    }
}

/// The outermost text of a transport error says nothing; the causes do.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        last = cause.to_string();
        next = cause.source();
    }
    last
}

/// Makes a channel over one byte stream. When the stream ends, so does the channel: it never connects again.
///
/// # Errors
/// The handshake fails.
pub async fn over<I>(io: I) -> Result<Channel, SessionError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let once = Mutex::new(Some(io));
    let connector = service_fn(move |_: Uri| {
        let io = once.lock().take();
        async move { io.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection is closed")) }
    });
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|e| SessionError::Protocol(format!("handshake over the session failed: {}", chain(&e))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_two_forms() {
        assert_eq!(Address::parse("unix:///run/x.sock").unwrap(), Address::Unix("/run/x.sock".into()));
        assert_eq!(Address::parse("tcp://127.0.0.1:1234").unwrap(), Address::Tcp("127.0.0.1:1234".into()));
        for bad in ["", "unix://", "tcp://nohost", "http://x:1", "/run/x.sock"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
