//! The client's SSH agent as a socket for a step.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;
use tonic::transport::Channel;

use super::session::Session;
use crate::error::SessionError;
use crate::headers;
use crate::proto::ssh::ssh_client::SshClient;
use crate::proto::ssh::{BytesMessage, CheckAgentRequest};
use crate::tunnel::Tunnel;

/// The id used when none is given.
const DEFAULT_ID: &str = "default";

/// Where the socket goes and who may use it.
#[derive(Debug, Clone)]
pub struct SshSocket {
    /// Path of the socket; its directory must exist.
    pub path: PathBuf,
    /// Owner as the kernel sees it, and permission bits.
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// A forwarding that is served until this is dropped; the socket is then removed.
#[derive(Debug)]
pub struct SshForward {
    path: PathBuf,
    _stop: DropGuard,
}

impl SshForward {
    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SshForward {
    fn drop(&mut self) {
        // A step may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn agent_id(id: &str) -> &str {
    if id.is_empty() { DEFAULT_ID } else { id }
}

impl Session {
    /// Tells whether the client forwards any agent.
    pub fn forwards_ssh(&self) -> bool {
        self.supports("/moby.sshforward.v1.SSH/CheckAgent")
    }

    /// Checks that the client forwards the agent `id`.
    ///
    /// # Errors
    /// It does not ([`SessionError::is_not_found`]), fails, or is gone.
    pub async fn check_ssh(&self, id: &str) -> Result<(), SessionError> {
        self.need("/moby.sshforward.v1.SSH/CheckAgent")?;
        let mut client = SshClient::new(self.channel());
        let request = CheckAgentRequest { id: agent_id(id).to_owned() };
        self.call("checking the SSH agent", client.check_agent(request)).await.map(drop)
    }

    /// Creates a socket that forwards each connection to the client's agent `id`.
    ///
    /// # Errors
    /// The client forwards no agents, or the socket cannot be made.
    pub async fn forward_ssh(self: &Arc<Self>, id: &str, socket: &SshSocket) -> Result<SshForward, SessionError> {
        self.need("/moby.sshforward.v1.SSH/ForwardAgent")?;
        let failed = |e| SessionError::io(format!("creating the agent socket {}", socket.path.display()), e);
        let listener = UnixListener::bind(&socket.path).map_err(failed)?;
        let stop = CancellationToken::new();
        let forward = SshForward { path: socket.path.clone(), _stop: stop.clone().drop_guard() };
        std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(socket.mode)).map_err(failed)?;
        std::os::unix::fs::chown(&socket.path, Some(socket.uid), Some(socket.gid)).map_err(failed)?;
        let (session, id) = (self.clone(), agent_id(id).to_owned());
        tokio::spawn(async move {
            let serve = serve(listener, session.channel(), id);
            tokio::select! {
                () = stop.cancelled() => {}
                () = session.closed() => {}
                () = serve => {}
            }
        });
        Ok(forward)
    }
}

/// Accepts connections until dropped; connections end with it.
async fn serve(listener: UnixListener, channel: Channel, id: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(forward(stream, channel.clone(), id.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting on an agent socket");
                    return;
                }
            },
            Some(done) = connections.join_next() => {
                if let Ok(Err(error)) = done {
                    tracing::debug!(%error, "agent connection");
                }
            }
        }
    }
}

async fn forward(mut stream: UnixStream, channel: Channel, id: String) -> io::Result<()> {
    let (pending, outgoing) = Tunnel::outgoing_first::<BytesMessage>();
    let mut call = Request::new(outgoing);
    headers::put_one(call.metadata_mut(), headers::SSH_ID, &id);
    let mut client = SshClient::new(channel);
    let incoming = futures::stream::once(async move { client.forward_agent(call).await.map(|r| r.into_inner()) });
    let mut tunnel = pending.attach(incoming.try_flatten());
    tokio::io::copy_bidirectional(&mut stream, &mut tunnel).await.map(drop)
}
