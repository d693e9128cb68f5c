//! Connections to what listens inside a sandbox, made from within its network.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::thread::ThreadNameSpaceType;
use tokio::sync::oneshot;

use crate::ExecError;

/// Loopback answers at once or not at all.
const LIMIT: Duration = Duration::from_secs(5);

/// Connects to `port` in the network of the process behind `pidfd`.
pub(super) async fn connect(pidfd: OwnedFd, port: u16) -> Result<tokio::net::TcpStream, ExecError> {
    let fail = |error: io::Error| ExecError::setup(format!("connect to port {port} of the sandbox"), error);
    let (answer, answered) = oneshot::channel();
    // A thread of its own: it never comes back from the network it enters.
    std::thread::Builder::new()
        .name("kiln-connect".to_owned())
        .spawn(move || {
            // Whoever asked may be gone.
            let _ = answer.send(enter_and_connect(&pidfd, port));
        })
        .map_err(fail)?;
    let stream = answered.await.map_err(|_| fail(io::ErrorKind::Other.into()))?;
    stream.and_then(tokio::net::TcpStream::from_std).map_err(fail)
}

fn enter_and_connect(pidfd: &OwnedFd, port: u16) -> io::Result<TcpStream> {
    rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)?;
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&v4, LIMIT).or_else(|error| {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&v6, LIMIT).map_err(|_| error)
    })?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
