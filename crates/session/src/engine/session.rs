//! One client's session: its channel, what it offers, and when it ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::{Secret, limits};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::liveness::Liveness;
use super::registry::SessionHeaders;
use crate::connect;
use crate::error::SessionError;
use crate::proto::health::HealthCheckRequest;
use crate::proto::health::health_client::HealthClient;
use crate::proto::secrets::GetSecretRequest;
use crate::proto::secrets::secrets_client::SecretsClient;
use crate::proto::{exporter, policysession};
use crate::tunnel::Cut;

/// How often a session is asked whether it lives.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Least time it has to answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(15);

/// A client's session, as the engine sees it. Calls fail with [`SessionError::Closed`] once it has ended.
#[derive(Debug)]
pub struct Session {
    headers: SessionHeaders,
    methods: HashSet<String>,
    channel: Channel,
    closed: CancellationToken,
    why: Mutex<Option<String>>,
    pub(super) liveness: Liveness,
    direct: Mutex<HashMap<String, OwnedFd>>,
}

impl Session {
    /// Makes a session over a byte stream.
    pub(super) async fn open<I>(headers: SessionHeaders, io: I, patience: Duration) -> Result<Arc<Self>, SessionError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let closed = CancellationToken::new();
        let channel = connect::over(Cut::new(io, &closed)).await?;
        Ok(Arc::new(Self {
            methods: headers.methods.iter().map(|m| m.to_ascii_lowercase()).collect(),
            headers,
            channel,
            closed,
            why: Mutex::default(),
            liveness: Liveness::new(patience),
            direct: Mutex::default(),
        }))
    }

    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.headers.id
    }

    /// Returns the name the client gave the session.
    pub fn name(&self) -> &str {
        &self.headers.name
    }

    /// Returns the key under which local directories are reused.
    pub fn shared_key(&self) -> &str {
        &self.headers.shared_key
    }

    /// Tells whether the client serves `/service/Method`; case does not matter.
    pub fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// Returns the methods the client serves, in lower case.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(String::as_str)
    }

    /// Tells whether the session has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits for the end of the session.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Returns a token that is cancelled when the session ends.
    pub fn closed_token(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Ends the session.
    pub fn close(&self, why: &str) {
        self.why.lock().get_or_insert_with(|| why.to_owned());
        self.closed.cancel();
        self.direct.lock().clear();
    }

    /// Returns the channel to the client, for calls that have no method here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns the error for a session that has ended.
    pub(super) fn gone(&self) -> SessionError {
        SessionError::Closed { why: self.why.lock().clone() }
    }

    /// Fails unless the client serves `method`.
    pub(super) fn need(&self, method: &'static str) -> Result<(), SessionError> {
        if self.is_closed() {
            return Err(self.gone());
        }
        if self.supports(method) { Ok(()) } else { Err(SessionError::Unsupported { method }) }
    }

    /// Awaits one answer of the client, within the usual time.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, SessionError> {
        let asked = self.liveness.ask();
        let patience = self.liveness.patience();
        let answer = tokio::select! {
            () = self.closed.cancelled() => return Err(self.gone()),
            answer = tokio::time::timeout(patience, answer) => answer,
        };
        match answer {
            Err(_) => {
                Err(SessionError::Deadline { what: format!("{what} from session {}", self.id()), after: patience })
            }
            Ok(answer) => {
                asked.answered();
                answer.map(Response::into_inner).map_err(|status| self.rejected(status))
            }
        }
    }

    /// Tells an error of the client from the end of the session.
    pub(super) fn rejected(&self, status: Status) -> SessionError {
        if self.is_closed() { self.gone() } else { status.into() }
    }

    /// As `rejected`, for errors of a transfer.
    pub(super) fn explained(&self, error: SessionError) -> SessionError {
        match error {
            SessionError::Canceled { .. } if !self.is_closed() => error,
            _ if self.is_closed() => self.gone(),
            other => other,
        }
    }

    /// Asks the client again and again whether it lives. Returns when it is given up, or when the session was closed.
    ///
    /// A client that does not answer is given up when something else was asked of it and has waited for as long as calls
    /// may; a machine that sleeps while a step runs loses nothing. A client that says how fast it wants to be missed is
    /// given up after one answer that does not come in that time.
    pub(super) async fn watch_health(&self) {
        // A client's own wish is not honoured below a second: slow machines would lose their sessions.
        let custom = self.headers.health_timeout.map(|t| t.max(Duration::from_secs(1)));
        let patience = self.liveness.patience();
        let interval = custom.unwrap_or(HEALTH_INTERVAL).min(patience);
        let least = custom.unwrap_or(HEALTH_TIMEOUT).min(patience);
        let mut client = HealthClient::new(self.channel.clone());
        let (mut last, mut alive, mut missed) = (Duration::ZERO, Instant::now(), false);
        loop {
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let timeout = least.max(last.mul_f64(1.5)).min(patience);
            let begun = Instant::now();
            let answer = tokio::select! {
                () = self.closed.cancelled() => return,
                answer = tokio::time::timeout(timeout, client.check(HealthCheckRequest::default())) => answer,
            };
            last = begun.elapsed();
            let failure = match answer {
                Ok(Ok(_)) => None,
                // It speaks, if not of its health.
                Ok(Err(status)) if status.code() == Code::Unimplemented => None,
                Ok(Err(status)) => Some(status.to_string()),
                Err(_) => Some(format!("no answer for {} s", alive.elapsed().as_secs())),
            };
            let Some(failure) = failure else {
                self.liveness.alive();
                (alive, missed) = (Instant::now(), false);
                continue;
            };
            if !std::mem::replace(&mut missed, true) {
                tracing::warn!(session = self.id(), failure, "session health check failed");
            }
            let waited = self.liveness.waiting().unwrap_or_default();
            if custom.is_some() || waited >= patience {
                self.close(&format!("session {}: health check failed: {failure}", self.id()));
                return;
            }
        }
    }

    /// Returns the value of a secret; none when the client has no such secret.
    ///
    /// # Errors
    /// The session ended, the client does not answer or fails otherwise, or the value is too large.
    pub async fn secret(&self, id: &str) -> Result<Option<Secret>, SessionError> {
        match self.need("/moby.buildkit.secrets.v1.Secrets/GetSecret") {
            Err(SessionError::Unsupported { .. }) => return Ok(None),
            other => other?,
        }
        let mut client = SecretsClient::new(self.channel.clone()).max_decoding_message_size(limits::GRPC_MESSAGE);
        let request = GetSecretRequest { id: id.to_owned(), annotations: BTreeMap::new() };
        match self.call("reading a secret", client.get_secret(request)).await {
            Ok(answer) if answer.data.len() > limits::SECRET => {
                Err(SessionError::Input(format!("secret {id} is larger than {} KB", limits::SECRET / 1024)))
            }
            Ok(answer) => Ok(Some(Secret::new(answer.data))),
            Err(SessionError::Rejected(s)) if matches!(s.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the client which exporters to run, now that the result is known.
    ///
    /// # Errors
    /// The client does not choose exporters, fails, or is gone.
    pub async fn find_exporters(
        &self,
        metadata: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<exporter::ExporterRequest>, SessionError> {
        self.need("/moby.exporter.v1.Exporter/FindExporters")?;
        let mut client = exporter::exporter_client::ExporterClient::new(self.channel.clone());
        let request = exporter::FindExportersRequest { metadata, refs };
        Ok(self.call("choosing exporters", client.find_exporters(request)).await?.exporters)
    }

    /// Tells the client what its exporters answered.
    ///
    /// # Errors
    /// The client does not choose exporters, fails, or is gone.
    pub async fn finalize_export(&self, response: BTreeMap<String, String>) -> Result<(), SessionError> {
        self.need("/moby.exporter.v1.Exporter/FinalizeExport")?;
        let mut client = exporter::exporter_client::ExporterClient::new(self.channel.clone());
        let request = exporter::FinalizeExportRequest { exporter_response: response };
        self.call("finishing an export", client.finalize_export(request)).await.map(drop)
    }

    /// Asks the client's policy about a source.
    ///
    /// # Errors
    /// The client has no policy, fails, or is gone.
    pub async fn check_policy(
        &self,
        request: policysession::CheckPolicyRequest,
    ) -> Result<policysession::CheckPolicyResponse, SessionError> {
        self.need("/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy")?;
        let mut client = policysession::policy_verifier_client::PolicyVerifierClient::new(self.channel.clone());
        self.call("checking a source policy", client.check_policy(Request::new(request))).await
    }

    /// Keeps a directory that the client handed over, until the session ends.
    pub fn put_direct_dir(&self, name: &str, dir: OwnedFd) {
        if !self.is_closed() {
            self.direct.lock().insert(name.to_owned(), dir);
        }
    }

    /// Returns a descriptor of a directory that the client handed over.
    pub fn direct_dir(&self, name: &str) -> Option<OwnedFd> {
        self.direct.lock().get(name).and_then(|fd| fd.try_clone().ok())
    }
}
