//! An engine's control socket that serves only sessions, and a target that collects what is synced.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_session::client::{RunningSession, SessionServer, SessionServerBuilder};
use kiln_session::proto::control as pb;
use kiln_session::proto::control::control_server::{Control, ControlServer};
use kiln_session::proto::fs::Stat;
use kiln_session::tunnel::Tunnel;
use kiln_session::{Session, SessionHeaders, SessionRegistry, SyncTarget, connect_unix};
use kiln_stdx::limits;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// Long enough that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub registry: SessionRegistry,
    pub channel: Channel,
    pub dir: TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Starts an engine's socket and connects to it.
pub async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let registry = SessionRegistry::new();
    let listener = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let service = ControlServer::new(SessionsOnly { registry: registry.clone() });
    let server = tokio::spawn(async move {
        let mut server = Server::builder().http2_max_header_list_size(limits::GRPC_HEADERS);
        server.add_service(service).serve_with_incoming(listener).await.unwrap();
    });
    let channel = connect_unix(&path).await.unwrap();
    Rig { registry, channel, dir, server }
}

/// Begins a session.
pub fn offer() -> SessionServerBuilder {
    SessionServer::builder("shared")
}

impl Rig {
    /// Opens a session and returns both its ends.
    pub async fn open(&self, builder: SessionServerBuilder) -> (RunningSession, Arc<Session>) {
        let running = builder.build().start(self.channel.clone());
        let session = self.registry.get(running.id(), PATIENCE).await.unwrap();
        (running, session)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

struct SessionsOnly {
    registry: SessionRegistry,
}

fn absent<T>() -> Result<T, Status> {
    Err(Status::unimplemented("sessions only"))
}

#[tonic::async_trait]
impl Control for SessionsOnly {
    type PruneStream = BoxStream<'static, Result<pb::UsageRecord, Status>>;
    type StatusStream = BoxStream<'static, Result<pb::StatusResponse, Status>>;
    type SessionStream = BoxStream<'static, Result<pb::BytesMessage, Status>>;
    type ListenBuildHistoryStream = BoxStream<'static, Result<pb::BuildHistoryEvent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let headers = SessionHeaders::from_metadata(request.metadata()).map_err(|e| e.to_status())?;
        let (tunnel, outgoing) = Tunnel::new::<pb::BytesMessage>(request.into_inner());
        let registry = self.registry.clone();
        tokio::spawn(async move { registry.serve(headers, tunnel).await });
        Ok(Response::new(outgoing.map(Ok).boxed()))
    }

    async fn disk_usage(&self, _: Request<pb::DiskUsageRequest>) -> Result<Response<pb::DiskUsageResponse>, Status> {
        absent()
    }

    async fn prune(&self, _: Request<pb::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        absent()
    }

    async fn solve(&self, _: Request<pb::SolveRequest>) -> Result<Response<pb::SolveResponse>, Status> {
        absent()
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        absent()
    }

    async fn list_workers(
        &self,
        _: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        absent()
    }

    async fn info(&self, _: Request<pb::InfoRequest>) -> Result<Response<pb::InfoResponse>, Status> {
        absent()
    }

    async fn listen_build_history(
        &self,
        _: Request<pb::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        absent()
    }

    async fn update_build_history(
        &self,
        _: Request<pb::UpdateBuildHistoryRequest>,
    ) -> Result<Response<pb::UpdateBuildHistoryResponse>, Status> {
        absent()
    }
}

/// Keeps everything it is sent, in memory.
#[derive(Default)]
pub struct Collect {
    pub entries: Vec<Stat>,
    pub contents: BTreeMap<u32, Vec<u8>>,
    pub ended: usize,
    pub listed: bool,
    /// Ask for no content.
    pub list_only: bool,
    /// Fail at this many entries.
    pub fail_at: Option<usize>,
}

impl Collect {
    pub fn paths(&self) -> Vec<String> {
        self.entries.iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect()
    }

    pub fn get(&self, path: &[u8]) -> &Stat {
        self.entries.iter().find(|e| e.path == path).unwrap()
    }

    pub fn content(&self, path: &[u8]) -> &[u8] {
        let id = self.entries.iter().position(|e| e.path == path).unwrap();
        &self.contents[&u32::try_from(id).unwrap()]
    }
}

impl SyncTarget for Collect {
    fn entry(&mut self, id: u32, stat: Stat) -> io::Result<bool> {
        assert_eq!(id as usize, self.entries.len());
        if self.fail_at == Some(self.entries.len()) {
            return Err(io::Error::other("the disk is full"));
        }
        let wanted = !self.list_only && stat.has_content() && stat.linkname.is_empty();
        if wanted {
            self.contents.insert(id, Vec::new());
        }
        self.entries.push(stat);
        Ok(wanted)
    }

    fn data(&mut self, id: u32, data: Bytes) -> io::Result<()> {
        self.contents.get_mut(&id).unwrap().extend_from_slice(&data);
        Ok(())
    }

    fn end(&mut self, _: u32) -> io::Result<()> {
        self.ended += 1;
        Ok(())
    }

    fn listed(&mut self) -> io::Result<()> {
        self.listed = true;
        Ok(())
    }
}
