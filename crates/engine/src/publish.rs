//! Ports of a process that are reached by the host's loopback interface.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kiln_executor::{Executor, NetworkMode};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;

/// How long a connection waits for the process to listen: it was perhaps started a moment ago.
const PATIENCE: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(25);
/// How long what a process said last may take to reach its peers.
const DRAIN: Duration = Duration::from_millis(300);

/// A port of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The port of the host; 0 for any that is free.
    pub host: u16,
    /// The port that the process listens on.
    pub port: u16,
}

/// How a process is reached.
#[derive(Clone)]
pub enum Reach {
    /// It listens in the host's network.
    Host,
    /// It listens in the network of the sandbox of this run.
    Inside(Arc<dyn Executor>, String),
}

/// Ports that are listened on for a process.
pub struct Published {
    ports: Vec<Port>,
    listeners: Vec<(TcpListener, u16)>,
}

impl Published {
    /// Begins to listen. Connections wait until [`Published::serve`].
    ///
    /// # Errors
    /// A port is taken.
    pub async fn listen(wanted: &[Port], network: NetworkMode) -> Result<Self, EngineError> {
        let mut this = Self { ports: Vec::new(), listeners: Vec::new() };
        for port in wanted {
            if port.host == port.port && network != NetworkMode::None {
                // In the host's network it listens there itself.
                this.ports.push(*port);
                continue;
            }
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.host));
            let listener = TcpListener::bind(address).await.map_err(|error| {
                EngineError::user(format!("cannot publish port {}: {address}: {error}", port.port))
                    .with_hint(format!("choose another port of the host, or any free one: -p {}", port.port))
            })?;
            this.ports.push(Port { host: listener.local_addr()?.port(), port: port.port });
            this.listeners.push((listener, port.port));
        }
        Ok(this)
    }

    /// Returns the ports with the numbers that were chosen.
    pub fn ports(&self) -> Vec<Port> {
        self.ports.clone()
    }

    /// Passes connections on to the process until it is over.
    pub async fn serve(self, reach: Reach, over: &CancellationToken) {
        let mut tasks = JoinSet::new();
        for (listener, port) in self.listeners {
            tasks.spawn(accept(listener, port, reach.clone(), over.clone()));
        }
        over.cancelled().await;
        let ended = async { while tasks.join_next().await.is_some() {} };
        // The rest is cut off.
        let _ = tokio::time::timeout(DRAIN, ended).await;
    }
}

async fn accept(listener: TcpListener, port: u16, reach: Reach, over: CancellationToken) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    open.spawn(pass_on(stream, port, reach.clone(), over.clone()));
                }
                // Out of descriptors: those who wait may be served when others have ended.
                Err(_) => tokio::time::sleep(GLANCE).await,
            },
            Some(_) = open.join_next(), if !open.is_empty() => {}
            () = over.cancelled() => break,
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn pass_on(mut outside: TcpStream, port: u16, reach: Reach, over: CancellationToken) {
    let until = tokio::time::Instant::now() + PATIENCE;
    let inside = loop {
        let tried = match &reach {
            Reach::Host => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok(),
            Reach::Inside(executor, id) => executor.connect(id, port).await.ok(),
        };
        match tried {
            Some(stream) => break Some(stream),
            None if over.is_cancelled() || tokio::time::Instant::now() >= until => break None,
            None => tokio::time::sleep(GLANCE).await,
        }
    };
    // Without the process the peer sees its connection end.
    let Some(mut inside) = inside else { return };
    let _ = (outside.set_nodelay(true), inside.set_nodelay(true));
    // Either end may break off, which the other then sees.
    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connections_reach_what_listens_a_little_later() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let port = target.local_addr().expect("address").port();
        drop(target);
        let published = Published::listen(&[Port { host: 0, port }], NetworkMode::Auto).await.expect("listen");
        let host = published.ports()[0].host;
        assert_ne!(host, 0);
        let over = CancellationToken::new();
        let client = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, host)).await.expect("connect");
            stream.write_all(b"ping").await.expect("write");
            let target = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("bind");
            let (mut inside, _) = target.accept().await.expect("accept");
            let mut said = [0; 4];
            inside.read_exact(&mut said).await.expect("read");
            assert_eq!(&said, b"ping");
            inside.write_all(b"pong").await.expect("write");
            drop(inside);
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("read");
            assert_eq!(answer, "pong");
            over.cancel();
        };
        tokio::join!(published.serve(Reach::Host, &over), client);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, host)).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let host = taken.local_addr().expect("address").port();
        let error = Published::listen(&[Port { host, port: 80 }], NetworkMode::None).await.err().expect("refused");
        assert!(error.to_string().contains(&format!("127.0.0.1:{host}")), "{error}");
    }
}
