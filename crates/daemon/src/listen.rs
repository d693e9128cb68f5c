//! Where the engine listens: unix sockets, TCP, and sockets that whoever started it hands over.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;

use crate::{DaemonError, tls};

/// The first descriptor that socket activation hands over.
const FIRST_FD: i32 = 3;
/// Connections that have agreed on TLS and may wait to be served.
const BACKLOG: usize = 16;

/// A socket that connections come from.
pub enum Listener {
    Unix(UnixListener, Option<PathBuf>),
    Tcp(TcpListener),
}

/// Connections of one listener.
pub type Connections = Pin<Box<dyn Stream<Item = std::io::Result<Counted>> + Send>>;

/// Opens the sockets of an address.
///
/// # Errors
/// The address is malformed, taken, or of a kind that cannot be listened on.
pub async fn listen(
    address: &str,
    group: Option<&str>,
    owner: (Option<u32>, Option<u32>),
) -> Result<Vec<Listener>, DaemonError> {
    let failed = |source| DaemonError::Listen { address: address.to_owned(), source };
    match address.split_once("://") {
        Some(("unix", path)) => {
            let socket = bind_unix(Path::new(path), group, owner).map_err(failed)?;
            Ok(vec![Listener::Unix(socket, Some(PathBuf::from(path)))])
        }
        Some(("tcp", place)) => Ok(vec![Listener::Tcp(TcpListener::bind(place).await.map_err(failed)?)]),
        Some(("fd", name)) => activated(name).map_err(failed),
        _ => {
            let text = "an address begins with unix://, tcp:// or fd://";
            Err(failed(std::io::Error::new(std::io::ErrorKind::Unsupported, text)))
        }
    }
}

/// Binds a socket that only its user (and `group`, where given) may use, in place of one that nobody listens on.
///
/// # Errors
/// The path is in use or cannot be bound; there is no such group.
pub fn bind_unix(
    path: &Path,
    group: Option<&str>,
    (uid, gid): (Option<u32>, Option<u32>),
) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    if path.symlink_metadata().is_ok() {
        std::fs::remove_file(path)?;
    } else if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    let gid = match group {
        Some(group) => Some(group_id(group).ok_or_else(|| std::io::Error::other(format!("no group {group}")))?),
        None => gid,
    };
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(path, uid, gid)?;
    }
    Ok(listener)
}

/// Returns the number of a group that is given by name or number.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(id) = group.parse() {
        return Some(id);
    }
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(group))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Takes over the sockets of socket activation (`LISTEN_FDS`); `name` picks one by its number from 0, empty takes all.
fn activated(name: &str) -> std::io::Result<Vec<Listener>> {
    let other = |text: &str| std::io::Error::other(text.to_owned());
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if variable("LISTEN_PID").is_some_and(|pid| pid != std::process::id()) {
        return Err(other("the sockets were handed to another process"));
    }
    let count = variable("LISTEN_FDS").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let wanted = match name {
        "" => None,
        number => Some(number.parse::<i32>().map_err(|_| other("fd:// takes the number of a socket"))?),
    };
    let mut listeners = Vec::new();
    for index in (0..count).filter(|i| wanted.is_none_or(|w| w == *i)) {
        // SAFETY: the starter passes these descriptors to this process alone, and each is taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(FIRST_FD + index) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        listeners.push(adopt(fd)?);
    }
    if listeners.is_empty() {
        return Err(other("no socket was handed over"));
    }
    Ok(listeners)
}

fn adopt(fd: OwnedFd) -> std::io::Result<Listener> {
    if rustix::net::getsockname(&fd)?.address_family() == rustix::net::AddressFamily::UNIX {
        let socket = std::os::unix::net::UnixListener::from(fd);
        socket.set_nonblocking(true)?;
        return Ok(Listener::Unix(UnixListener::from_std(socket)?, None));
    }
    let socket = std::net::TcpListener::from(fd);
    socket.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(socket)?))
}

impl Listener {
    /// Returns where it listens, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::Unix(_, Some(path)) => path.display().to_string(),
            Self::Unix(_, None) => "a socket that was handed over".to_owned(),
            Self::Tcp(socket) => socket.local_addr().map(|a| a.to_string()).unwrap_or_default(),
        }
    }

    /// Returns the connections that come, counted; those that are not of a unix socket by TLS, where it is given.
    pub fn connections(self, counter: &Arc<AtomicUsize>, tls: Option<&TlsAcceptor>) -> Connections {
        let counter = counter.clone();
        match self {
            Self::Tcp(socket) if tls.is_some() => {
                let (accepted, streams) = mpsc::channel(BACKLOG);
                if let Some(tls) = tls {
                    tokio::spawn(tls::accept(socket, tls.clone(), accepted));
                }
                Box::pin(
                    ReceiverStream::new(streams)
                        .map(move |c| c.map(|io| Counted::new(Io::Tls(Box::new(io)), &counter))),
                )
            }
            Self::Unix(socket, _) => {
                Box::pin(UnixListenerStream::new(socket).map(move |c| c.map(|io| Counted::new(Io::Unix(io), &counter))))
            }
            Self::Tcp(socket) => Box::pin(TcpListenerStream::new(socket).map(move |c| {
                c.map(|io| {
                    // Small answers must not wait for more data.
                    let _ = io.set_nodelay(true);
                    Counted::new(Io::Tcp(io), &counter)
                })
            })),
        }
    }
}

enum Io {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is counted while it lives.
pub struct Counted {
    io: Io,
    connections: Arc<AtomicUsize>,
}

impl Counted {
    /// Counts a connection of a unix socket.
    pub fn unix(io: UnixStream, connections: &Arc<AtomicUsize>) -> Self {
        Self::new(Io::Unix(io), connections)
    }

    fn new(io: Io, connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::SeqCst);
        Self { io, connections: connections.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// The user, when it is a process of this host.
    pub uid: Option<u32>,
}

impl Connected for Counted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Self::ConnectInfo {
        match &self.io {
            Io::Unix(io) => Peer { uid: io.peer_cred().ok().map(|peer| peer.uid()) },
            Io::Tcp(_) | Io::Tls(_) => Peer::default(),
        }
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.io {
            Io::Unix($io) => $call,
            Io::Tcp($io) => $call,
            Io::Tls($io) => $call,
        }
    };
}

type Polled<T> = Poll<std::io::Result<T>>;

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled<()> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Polled<usize> {
        each!(self, io => Pin::new(io).poll_write(cx, data))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<()> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<()> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
