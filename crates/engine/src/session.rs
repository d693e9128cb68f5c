//! What operations ask of clients' sessions. Of the builds that want a vertex the oldest with an open session is
//! asked; when that session ends, the next one takes over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kiln_llb::op::SessionFile;
use kiln_registry::{Credential, CredentialError, CredentialSource, Token, TokenRequest};
use kiln_session::proto::filesync::FetchTokenRequest;
use kiln_session::{Session, SshForward};
use kiln_solver::{OpContext, OpError};
use kiln_stdx::{ErrorClass, Secret, limits, rand_id};

use crate::error::EngineError;
use crate::parts::{Parts, builds};

impl From<kiln_session::SessionError> for EngineError {
    fn from(error: kiln_session::SessionError) -> Self {
        Self::new(error.class(), error.to_string())
    }
}

/// Returns the sessions that may be asked for a call, oldest build first.
pub fn open_sessions(parts: &Parts, cx: &OpContext) -> Vec<Arc<Session>> {
    builds(cx).iter().filter_map(|build| parts.sessions.try_get(&build.settings.session)).collect()
}

/// Returns the sessions that may be asked for a call. A client opens its session and asks for the build side by side, so
/// the first one is waited for a short while.
pub async fn sessions(parts: &Parts, cx: &OpContext) -> Vec<Arc<Session>> {
    let open = open_sessions(parts, cx);
    if !open.is_empty() {
        return open;
    }
    any_session(parts, cx).await.into_iter().collect()
}

/// Returns the session of the oldest build, waiting a short while for it to be opened.
///
/// # Errors
/// No build that wants the vertex has a session.
pub async fn any_session(parts: &Parts, cx: &OpContext) -> Result<Arc<Session>, EngineError> {
    if let Some(session) = open_sessions(parts, cx).into_iter().next() {
        return Ok(session);
    }
    let Some(build) = builds(cx).into_iter().find(|b| !b.settings.session.is_empty()) else {
        return Err(EngineError::user("no active sessions"));
    };
    Ok(parts.sessions.get(&build.settings.session, limits::SESSION_WAIT).await?)
}

/// Tells whether a failure is that of a session that ended while another one is open, so that trying again makes sense.
pub fn lost(used: Option<&Session>, open: &[Arc<Session>]) -> bool {
    used.is_some_and(Session::is_closed) && !open.is_empty()
}

/// Returns the value of a secret; none when no client has it.
///
/// # Errors
/// Every session ended while it was asked, or the value is too large.
pub async fn secret(parts: &Parts, cx: &OpContext, id: &str) -> Result<Option<Secret>, EngineError> {
    secret_of(&sessions(parts, cx).await, id).await
}

/// Returns the value of a secret that one of these sessions has; none when none has it.
///
/// # Errors
/// As [`secret`].
pub async fn secret_of(sessions: &[Arc<Session>], id: &str) -> Result<Option<Secret>, EngineError> {
    let mut last = None;
    for session in sessions {
        match session.secret(id).await {
            Ok(Some(value)) => return Ok(Some(value)),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => Ok(None),
    }
}

/// An agent's socket for one step.
pub struct SshSocket {
    path: PathBuf,
    _forward: SshForward,
}

impl SshSocket {
    /// Returns where the socket lies on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a socket that reaches the client's agent; none when no client forwards it.
///
/// # Errors
/// The socket cannot be made.
pub async fn ssh_socket(parts: &Parts, cx: &OpContext, file: &SessionFile) -> Result<Option<SshSocket>, EngineError> {
    ssh_socket_of(parts, &sessions(parts, cx).await, file).await
}

/// Opens a socket that reaches an agent of one of these sessions; none when none forwards it.
///
/// # Errors
/// As [`ssh_socket`].
pub async fn ssh_socket_of(
    parts: &Parts,
    sessions: &[Arc<Session>],
    file: &SessionFile,
) -> Result<Option<SshSocket>, EngineError> {
    for session in sessions {
        if session.check_ssh(&file.id).await.is_err() {
            continue;
        }
        let path = parts.runtime_dir.path().join(format!("ssh-{}", rand_id()));
        let socket = kiln_session::SshSocket { path: path.clone(), uid: file.uid, gid: file.gid, mode: file.mode };
        let forward = session.forward_ssh(&file.id, &socket).await?;
        return Ok(Some(SshSocket { path, _forward: forward }));
    }
    Ok(None)
}

/// Registry logins from a client's session.
pub struct SessionCredentials(Option<Arc<Session>>);

impl SessionCredentials {
    /// Returns the logins of the session that serves a call; without a session nobody is logged in.
    pub fn new(session: Option<Arc<Session>>) -> Arc<Self> {
        Arc::new(Self(session))
    }
}

#[async_trait]
impl CredentialSource for SessionCredentials {
    fn identity(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |session| session.id().to_owned())
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        let Some(session) = &self.0 else { return Ok(None) };
        // The name under which docker's configuration keeps Docker Hub's login.
        let host = if host == "registry-1.docker.io" { "https://index.docker.io/v1/" } else { host };
        match session.credentials(host).await {
            Ok(found) => Ok(found.map(|c| Credential { username: c.username, secret: c.secret })),
            Err(error) => Err(CredentialError(error.to_string())),
        }
    }

    async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, CredentialError> {
        let Some(session) = &self.0 else { return Ok(None) };
        let asked = FetchTokenRequest {
            client_id: "kiln".to_owned(),
            host: request.host.clone(),
            realm: request.realm.clone(),
            service: request.service.clone(),
            scopes: request.scopes.clone(),
        };
        match session.fetch_token(asked).await {
            Ok(None) => Ok(None),
            Ok(Some(token)) => {
                let lifetime = u64::try_from(token.expires_in).ok().filter(|s| *s > 0).map(Duration::from_secs);
                Ok(Some(Token { value: Secret::new(token.token.into_bytes()), expires_in: lifetime }))
            }
            Err(error) => Err(CredentialError(error.to_string())),
        }
    }
}

/// Turns an error of a call into the solver's, so that another build's session is tried when this one's ended.
pub fn op_error(error: EngineError, session: &Session) -> OpError {
    if session.is_closed() && error.class() != ErrorClass::Canceled {
        return OpError::session_lost(error);
    }
    error.into()
}
