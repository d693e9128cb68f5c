//! A client's session: it serves its attachables over a byte stream that the engine keeps open.

use std::sync::Arc;

use futures::TryStreamExt;
use kiln_stdx::limits;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::{
    AuthProvider, ContentProvider, FileReceivers, FileSyncProvider, SecretsProvider, SshProvider, UploadProvider,
};
use crate::engine::SessionHeaders;
use crate::error::SessionError;
use crate::proto::content::content_server::ContentServer;
use crate::proto::control::BytesMessage;
use crate::proto::control::control_client::ControlClient;
use crate::proto::exporter::exporter_server::{Exporter, ExporterServer};
use crate::proto::filesync::auth_server::AuthServer;
use crate::proto::filesync::file_send_server::FileSendServer;
use crate::proto::filesync::file_sync_server::FileSyncServer;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::{Health, HealthServer};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};
use crate::proto::policysession::policy_verifier_server::{PolicyVerifier, PolicyVerifierServer};
use crate::proto::secrets::secrets_server::SecretsServer;
use crate::proto::ssh::ssh_server::SshServer;
use crate::proto::upload::upload_server::UploadServer;
use crate::tunnel::{Cut, Tunnel};

/// What a session will offer, in the making.
pub struct SessionServerBuilder {
    headers: SessionHeaders,
    routes: Routes,
}

/// A session ready to be opened.
pub struct SessionServer {
    headers: SessionHeaders,
    routes: Routes,
}

impl std::fmt::Debug for SessionServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionServer").field("headers", &self.headers).finish_non_exhaustive()
    }
}

/// An open session; it ends when this is dropped.
#[derive(Debug)]
pub struct RunningSession {
    id: String,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl RunningSession {
    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until the session has ended, from whichever side.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends the session.
    pub async fn close(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for RunningSession {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn methods(headers: &mut SessionHeaders, service: &str, names: &[&str]) {
    headers.methods.extend(names.iter().map(|m| format!("/{service}/{m}")));
}

impl SessionServer {
    /// Begins a session; `shared_key` stands for the directory it works from.
    pub fn builder(shared_key: impl Into<String>) -> SessionServerBuilder {
        let mut headers =
            SessionHeaders { id: kiln_stdx::rand_id(), shared_key: shared_key.into(), ..SessionHeaders::default() };
        methods(&mut headers, "grpc.health.v1.Health", &["Check", "Watch"]);
        SessionServerBuilder { headers, routes: Routes::new(HealthServer::new(Alive)) }
    }

    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.headers.id
    }

    /// Opens the session on an engine. Returns once the call is under way; the engine knows the session soon after.
    pub fn start(self, engine: Channel) -> RunningSession {
        let running = RunningSession {
            id: self.headers.id.clone(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        let (stop, ended) = (running.stop.clone(), running.ended.clone().drop_guard());
        tokio::spawn(async move {
            let _ended = ended;
            let done = tokio::select! {
                () = stop.cancelled() => Ok(()),
                done = self.run(engine) => done,
            };
            if let Err(error) = done {
                tracing::debug!(%error, "session ended");
            }
        });
        running
    }

    /// Opens the session on an engine and serves it until it ends.
    ///
    /// # Errors
    /// The engine refuses the session, or the connection breaks.
    pub async fn run(self, engine: Channel) -> Result<(), SessionError> {
        let (pending, outgoing) = Tunnel::outgoing_first::<BytesMessage>();
        let mut call = Request::new(outgoing);
        self.headers.to_metadata(call.metadata_mut());
        let mut client = ControlClient::new(engine).max_decoding_message_size(limits::GRPC_MESSAGE);
        // An engine may answer only once it has something to say, and that needs us to listen.
        let incoming = futures::stream::once(async move { client.session(call).await.map(Response::into_inner) });
        let tunnel = pending.attach(incoming.try_flatten());
        self.serve(tunnel).await
    }

    /// Serves the session over a byte stream until it ends.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn serve(self, tunnel: Tunnel) -> Result<(), SessionError> {
        // Connections are tasks of their own: this one ends with this future, and the server with the connection.
        let life = CancellationToken::new();
        let _end = life.clone().drop_guard();
        let connections = async_once(Cut::new(tunnel, &life), life);
        Server::builder()
            .http2_max_header_list_size(limits::GRPC_HEADERS)
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .add_routes(self.routes)
            .serve_with_incoming(connections)
            .await
            .map_err(|e| SessionError::Protocol(e.to_string()))
    }
}

/// A stream of one connection that ends when the connection does.
fn async_once(
    tunnel: Cut<Tunnel>,
    ended: CancellationToken,
) -> impl futures::Stream<Item = Result<Cut<Tunnel>, std::io::Error>> {
    futures::stream::unfold(Some(tunnel), move |tunnel| {
        let ended = ended.clone();
        async move {
            match tunnel {
                Some(tunnel) => Some((Ok(tunnel), None)),
                None => {
                    ended.cancelled().await;
                    None
                }
            }
        }
    })
}

impl SessionServerBuilder {
    /// Names the session.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.headers.name = name.into();
        self
    }

    /// Sets the session's id instead of a random one.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.headers.id = id.into();
        self
    }

    fn add(mut self, service: &str, names: &[&str], add: impl FnOnce(Routes) -> Routes) -> Self {
        methods(&mut self.headers, service, names);
        self.routes = add(self.routes);
        self
    }

    /// Offers directories.
    #[must_use]
    pub fn file_sync(self, provider: FileSyncProvider) -> Self {
        let server = FileSyncServer::new(provider).max_decoding_message_size(limits::GRPC_MESSAGE);
        self.add("moby.filesync.v1.FileSync", &["DiffCopy", "TarStream"], |r| r.add_service(server))
    }

    /// Takes results.
    #[must_use]
    pub fn file_send(self, receivers: FileReceivers) -> Self {
        let server = FileSendServer::new(receivers).max_decoding_message_size(limits::GRPC_MESSAGE);
        self.add("moby.filesync.v1.FileSend", &["DiffCopy"], |r| r.add_service(server))
    }

    /// Offers secrets.
    #[must_use]
    pub fn secrets(self, provider: SecretsProvider) -> Self {
        let server = SecretsServer::new(provider);
        self.add("moby.buildkit.secrets.v1.Secrets", &["GetSecret"], |r| r.add_service(server))
    }

    /// Offers SSH agents.
    #[must_use]
    pub fn ssh(self, provider: SshProvider) -> Self {
        let server = SshServer::new(provider);
        self.add("moby.sshforward.v1.SSH", &["CheckAgent", "ForwardAgent"], |r| r.add_service(server))
    }

    /// Offers registry logins.
    #[must_use]
    pub fn auth(self, provider: AuthProvider) -> Self {
        let names = ["Credentials", "FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"];
        self.add("moby.filesync.v1.Auth", &names, |r| r.add_service(AuthServer::new(provider)))
    }

    /// Offers blob stores.
    #[must_use]
    pub fn content(self, provider: ContentProvider) -> Self {
        let names = ["Info", "Update", "List", "Delete", "Read", "Status", "ListStatuses", "Write", "Abort"];
        let server = ContentServer::new(provider).max_decoding_message_size(limits::GRPC_MESSAGE);
        self.add("containerd.services.content.v1.Content", &names, |r| r.add_service(server))
    }

    /// Offers request bodies.
    #[must_use]
    pub fn upload(self, provider: UploadProvider) -> Self {
        self.add("moby.upload.v1.Upload", &["Pull"], |r| r.add_service(UploadServer::new(provider)))
    }

    /// Chooses exporters when the build is done.
    #[must_use]
    pub fn exporters(self, chooser: Arc<dyn Exporter>) -> Self {
        let server = ExporterServer::from_arc(Arc::new(DynExporter(chooser)));
        self.add("moby.exporter.v1.Exporter", &["FindExporters", "FinalizeExport"], |r| r.add_service(server))
    }

    /// Decides about sources.
    #[must_use]
    pub fn policy(self, verifier: Arc<dyn PolicyVerifier>) -> Self {
        let server = PolicyVerifierServer::new(DynVerifier(verifier));
        self.add("moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier", &["CheckPolicy"], |r| {
            r.add_service(server)
        })
    }

    /// Completes the session.
    pub fn build(self) -> SessionServer {
        SessionServer { headers: self.headers, routes: self.routes }
    }
}

struct DynExporter(Arc<dyn Exporter>);

#[async_trait::async_trait]
impl Exporter for DynExporter {
    async fn find_exporters(
        &self,
        request: Request<crate::proto::exporter::FindExportersRequest>,
    ) -> Result<Response<crate::proto::exporter::FindExportersResponse>, Status> {
        self.0.find_exporters(request).await
    }

    async fn finalize_export(
        &self,
        request: Request<crate::proto::exporter::FinalizeExportRequest>,
    ) -> Result<Response<crate::proto::exporter::FinalizeExportResponse>, Status> {
        self.0.finalize_export(request).await
    }
}

struct DynVerifier(Arc<dyn PolicyVerifier>);

#[async_trait::async_trait]
impl PolicyVerifier for DynVerifier {
    async fn check_policy(
        &self,
        request: Request<crate::proto::policysession::CheckPolicyRequest>,
    ) -> Result<Response<crate::proto::policysession::CheckPolicyResponse>, Status> {
        self.0.check_policy(request).await
    }
}

/// A session that answers is alive.
struct Alive;

const SERVING: HealthCheckResponse = HealthCheckResponse { status: ServingStatus::Serving as i32 };

#[async_trait::async_trait]
impl Health for Alive {
    type WatchStream = futures::stream::BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(SERVING))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use futures::StreamExt;
        let stream = futures::stream::iter([Ok(SERVING)]).chain(futures::stream::pending());
        Ok(Response::new(stream.boxed()))
    }
}
