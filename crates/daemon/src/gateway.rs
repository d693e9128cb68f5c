//! Serves LLBBridge to frontends in images, over the stream that stands for their standard streams.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_engine::frontend::gateway::{Frontend, GatewayServer};
use kiln_session::proto::gateway::llb_bridge_server::LlbBridgeServer;
use kiln_session::proto::health::health_server::HealthServer;
use kiln_stdx::limits;
use tokio::io::DuplexStream;
use tonic::transport::Server;

use crate::bridge::{BridgeService, Builds};
use crate::health::Serving;
use crate::workers::About;

/// The server.
pub struct Gateway {
    about: About,
    /// What frontends are told of the worker, as JSON.
    workers: String,
}

impl Gateway {
    /// Returns the server of an engine that says this of itself.
    pub fn new(about: About) -> Self {
        let platform = kiln_oci::Platform::host();
        let platform = serde_json::json!({ "architecture": platform.architecture, "os": platform.os });
        let worker = serde_json::json!([{ "id": "kiln", "labels": about.labels, "platforms": [platform] }]);
        Self { about, workers: worker.to_string() }
    }
}

#[async_trait]
impl GatewayServer for Gateway {
    async fn serve(&self, frontend: Arc<Frontend>, stream: DuplexStream) {
        let service = BridgeService { builds: Builds::OfFrontend(frontend), about: self.about.clone() };
        let service = LlbBridgeServer::new(service)
            .max_decoding_message_size(limits::GRPC_MESSAGE)
            .max_encoding_message_size(limits::GRPC_MESSAGE);
        let once = tokio_stream::once(Ok::<_, std::io::Error>(stream));
        // The stream is open as long as the frontend runs; it must not be taken for the end of all connections.
        let incoming = futures::StreamExt::chain(once, futures::stream::pending());
        let server = Server::builder()
            .http2_max_header_list_size(limits::GRPC_HEADERS)
            .add_service(service)
            .add_service(HealthServer::new(Serving))
            .serve_with_incoming(incoming);
        if let Err(error) = server.await {
            tracing::debug!(%error, "a frontend's connection ended");
        }
    }

    fn workers(&self) -> String {
        self.workers.clone()
    }
}
