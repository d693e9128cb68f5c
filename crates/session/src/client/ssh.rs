//! SSH agents for the engine: an agent's socket, or keys held here.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::agent;
use super::keys::KeyRing;
use crate::error::SessionError;
use crate::headers;
use crate::proto::ssh::ssh_server::Ssh;
use crate::proto::ssh::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use crate::tunnel::Tunnel;

const DEFAULT_ID: &str = "default";
/// How long an agent may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// One agent.
#[derive(Debug, Clone)]
pub enum SshAgent {
    /// The socket of an agent; only listing keys and signing pass through.
    Socket(PathBuf),
    /// Any socket, passed through as it is.
    Raw(PathBuf),
    /// Keys held in this process.
    Keys(Arc<KeyRing>),
}

impl SshAgent {
    /// Makes an agent from paths: none for `SSH_AUTH_SOCK`, else one socket, or key files.
    ///
    /// # Errors
    /// There is no agent, a path does not exist or is neither, a key cannot be used, or kinds are mixed.
    pub fn from_paths(paths: &[PathBuf], raw: bool) -> Result<Self, SessionError> {
        let paths: Vec<PathBuf> = match paths {
            [] => match std::env::var_os("SSH_AUTH_SOCK").filter(|p| !p.is_empty()) {
                Some(path) => vec![path.into()],
                None => {
                    return Err(SessionError::Input(
                        "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set".into(),
                    ));
                }
            },
            list => list.to_vec(),
        };
        let sockets = paths.iter().map(|p| is_socket(p)).collect::<Result<Vec<_>, _>>()?;
        match (paths.as_slice(), sockets.as_slice()) {
            ([path], [true]) if raw => Ok(Self::Raw(path.clone())),
            ([path], [true]) => Ok(Self::Socket(path.clone())),
            _ if raw => Err(SessionError::Input("raw mode must supply exactly one socket path".into())),
            (_, sockets) if sockets.contains(&true) => {
                Err(SessionError::Input("invalid combination of keys and sockets".into()))
            }
            (paths, _) => KeyRing::load(paths).map(|keys| Self::Keys(Arc::new(keys))),
        }
    }
}

fn is_socket(path: &Path) -> Result<bool, SessionError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.file_type().is_socket()),
        Err(error) => Err(SessionError::io(format!("ssh: {}", path.display()), error)),
    }
}

/// Serves agents by id.
#[derive(Debug, Clone, Default)]
pub struct SshProvider {
    agents: Arc<BTreeMap<String, SshAgent>>,
}

impl SshProvider {
    /// Makes a provider; an empty id is `default`.
    ///
    /// # Errors
    /// Two agents have the same id.
    pub fn new(agents: impl IntoIterator<Item = (String, SshAgent)>) -> Result<Self, SessionError> {
        let mut map = BTreeMap::new();
        for (id, agent) in agents {
            let id = if id.is_empty() { DEFAULT_ID.to_owned() } else { id };
            if map.insert(id.clone(), agent).is_some() {
                return Err(SessionError::Input(format!("duplicate agent ID {id:?}")));
            }
        }
        Ok(Self { agents: Arc::new(map) })
    }

    fn agent(&self, id: &str) -> Result<&SshAgent, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.agents.get(id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

async fn dial(path: &Path) -> Result<UnixStream, Status> {
    let failed = |why: String| Status::unavailable(format!("failed to connect to {}: {why}", path.display()));
    match tokio::time::timeout(CONNECT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no answer".into())),
    }
}

#[async_trait::async_trait]
impl Ssh for SshProvider {
    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = headers::get_one(request.metadata(), headers::SSH_ID).unwrap_or_default();
        let agent = self.agent(&id)?.clone();
        let upstream = match &agent {
            SshAgent::Socket(path) | SshAgent::Raw(path) => Some(dial(path).await?),
            SshAgent::Keys(_) => None,
        };
        let (mut tunnel, outgoing) = Tunnel::new::<BytesMessage>(request.into_inner());
        let stop = CancellationToken::new();
        // When the engine drops the call, so is the answer, and with it the connection to the agent.
        let guard = stop.clone().drop_guard();
        tokio::spawn(async move {
            let talk = async {
                match (agent, upstream) {
                    (SshAgent::Keys(keys), _) => agent::serve_keys(&mut tunnel, &keys).await,
                    (SshAgent::Socket(_), Some(mut up)) => agent::proxy_read_only(&mut tunnel, &mut up).await,
                    (_, Some(mut up)) => tokio::io::copy_bidirectional(&mut tunnel, &mut up).await.map(drop),
                    (_, None) => Ok(()),
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                done = talk => if let Err(error) = done {
                    tracing::debug!(%error, "agent connection");
                }
            }
        });
        let answer = outgoing.map(move |message| {
            let _guard = &guard;
            Ok(message)
        });
        Ok(Response::new(answer.boxed()))
    }
}
