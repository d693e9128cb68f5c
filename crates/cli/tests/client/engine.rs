//! An engine that follows a script: the control service and the session registry, and nothing behind them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kiln_session::SessionRegistry;
use kiln_session::engine::SessionHeaders;
use kiln_session::progress::{LogProgress, Progress, VertexProgress};
use kiln_session::proto::control::control_server::{Control, ControlServer};
use kiln_session::proto::control::*;
use kiln_session::tunnel::Tunnel;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// What the engine does with each build.
#[derive(Clone)]
pub enum Act {
    /// Sends the file to exporter 0 when there is one that takes it, and succeeds.
    Succeed { file: Vec<u8> },
    /// Sends a file as well, and fails.
    FailAfterSending { code: Code, text: String },
    /// Never answers.
    Hang,
    /// Ends all connections.
    Vanish,
    /// Asks for secrets, and succeeds.
    ReadSecrets(Vec<String>),
}

#[derive(Default)]
struct Seen {
    requests: Vec<SolveRequest>,
    secrets: Vec<Option<Vec<u8>>>,
    canceled: bool,
}

#[derive(Clone)]
struct Script {
    act: Act,
    registry: SessionRegistry,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    vanish: CancellationToken,
}

/// A running engine; it ends when this is dropped.
pub struct ScriptedEngine {
    script: Script,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// Passes connections on until the engine vanishes, which ends them all as the end of a process would.
async fn relay(outer: std::os::unix::net::UnixListener, inner: std::path::PathBuf, vanish: CancellationToken) {
    let listener = tokio::net::UnixListener::from_std(outer).expect("listener");
    while let Ok((mut client, _)) = listener.accept().await {
        let (inner, vanish) = (inner.clone(), vanish.clone());
        tokio::spawn(async move {
            let mut engine = tokio::net::UnixStream::connect(inner).await.expect("connect");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut engine) => {}
                () = vanish.cancelled() => {}
            }
        });
    }
}

impl ScriptedEngine {
    /// Starts an engine.
    pub fn start(act: Act) -> ScriptedEngine {
        let dir = tempfile::tempdir().expect("temporary directory");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let script =
            Script { act, registry: SessionRegistry::new(), seen: Arc::default(), vanish: CancellationToken::new() };
        let bind = |name: &str| {
            let listener = std::os::unix::net::UnixListener::bind(dir.path().join(name)).expect("bind");
            listener.set_nonblocking(true).expect("nonblocking");
            listener
        };
        let (outer, inner) = (bind("s"), bind("inner"));
        let service = ControlServer::new(script.clone());
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(inner).expect("listener");
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        runtime.spawn(relay(outer, dir.path().join("inner"), script.vanish.clone()));
        ScriptedEngine { script, dir, _runtime: runtime }
    }

    /// Returns the address.
    pub fn address(&self) -> String {
        format!("unix://{}", self.dir.path().join("s").display())
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<SolveRequest> {
        self.script.seen.0.lock().expect("lock").requests.clone()
    }

    /// Returns the secrets that were read.
    pub fn secrets(&self) -> Vec<Option<Vec<u8>>> {
        self.script.seen.0.lock().expect("lock").secrets.clone()
    }

    /// Waits for a request.
    pub fn wait_solve(&self) {
        assert!(self.wait(Duration::from_secs(60), |seen| !seen.requests.is_empty()), "no build was asked for");
    }

    /// Waits until a call was given up by the client.
    pub fn wait_canceled(&self, limit: Duration) -> bool {
        self.wait(limit, |seen| seen.canceled)
    }

    fn wait(&self, limit: Duration, until: impl Fn(&Seen) -> bool) -> bool {
        let (lock, change) = &*self.script.seen;
        let seen = lock.lock().expect("lock");
        let (seen, _) = change.wait_timeout_while(seen, limit, |seen| !until(seen)).expect("lock");
        until(&seen)
    }
}

impl Script {
    fn see(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.0.lock().expect("lock"));
        self.seen.1.notify_all();
    }

    async fn send(&self, session: &str, request: &SolveRequest, file: &[u8]) -> Result<(), Status> {
        if request.exporters.first().is_none_or(|e| e.r#type != "oci") {
            return Ok(());
        }
        let session = self.registry.get(session, Duration::from_secs(10)).await.map_err(|e| e.to_status())?;
        let mut sender = session.send_file(0, &BTreeMap::new()).map_err(|e| e.to_status())?;
        sender.write(file).await.map_err(|e| Status::internal(e.to_string()))?;
        sender.finish(&CancellationToken::new()).await.map_err(|e| e.to_status())?;
        Ok(())
    }

    async fn act(&self, request: &SolveRequest) -> Result<(), Status> {
        match &self.act {
            Act::Succeed { file } => self.send(&request.session, request, file).await,
            Act::FailAfterSending { code, text } => {
                self.send(&request.session, request, b"half").await?;
                Err(Status::new(*code, text.clone()))
            }
            Act::Hang => std::future::pending().await,
            Act::Vanish => {
                // The process of an engine would end here; its sockets go with it.
                self.vanish.cancel();
                std::future::pending().await
            }
            Act::ReadSecrets(ids) => {
                let wait = Duration::from_secs(10);
                let session = self.registry.get(&request.session, wait).await.map_err(|e| e.to_status())?;
                for id in ids {
                    let value = session.secret(id).await.map_err(|e| e.to_status())?;
                    self.see(|seen| seen.secrets.push(value.map(|v| v.expose().to_vec())));
                }
                Ok(())
            }
        }
    }
}

/// Notes when a call is dropped before it was answered.
struct Unanswered(Option<Script>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(script) = self.0.take() {
            script.see(|seen| seen.canceled = true);
        }
    }
}

fn news() -> Vec<Progress> {
    let at = |millis: i64| jiff::Timestamp::from_millisecond(1_700_000_000_000 + millis).expect("time");
    let vertex = |completed: Option<i64>| VertexProgress {
        digest: "sha256:aa".into(),
        name: "[1/1] COPY a /".into(),
        started: Some(at(0)),
        completed: completed.map(at),
        ..VertexProgress::default()
    };
    let log = LogProgress { vertex: "sha256:aa".into(), stream: 1, data: b"copied\n".to_vec(), timestamp: at(250) };
    vec![
        Progress { vertexes: vec![vertex(None)], ..Progress::default() },
        Progress { logs: vec![log], ..Progress::default() },
        Progress { vertexes: vec![vertex(Some(500))], ..Progress::default() },
    ]
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Script {
    type PruneStream = Messages<UsageRecord>;
    type StatusStream = Messages<StatusResponse>;
    type SessionStream = Messages<BytesMessage>;
    type ListenBuildHistoryStream = Messages<BuildHistoryEvent>;

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let request = request.into_inner();
        self.see(|seen| seen.requests.push(request.clone()));
        let mut unanswered = Unanswered(Some(self.clone()));
        let result = self.act(&request).await;
        unanswered.0 = None;
        result?;
        let answer = [("containerimage.config.digest", "sha256:cc"), ("containerimage.digest", "sha256:dd")];
        let exporter_response = answer.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        Ok(Response::new(SolveResponse { exporter_response }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let stream = futures::stream::iter(news().into_iter().map(|n| Ok(StatusResponse::from(n))));
        Ok(Response::new(stream.boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let headers = SessionHeaders::from_metadata(request.metadata()).map_err(|e| e.to_status())?;
        let (tunnel, outgoing) = Tunnel::new(request.into_inner());
        let registry = self.registry.clone();
        tokio::spawn(async move { registry.serve(headers, tunnel).await });
        Ok(Response::new(outgoing.map(Ok).boxed()))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse::default()))
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}
