//! The standard health service: an engine that answers is well.

use std::pin::Pin;

use futures::Stream;
use kiln_session::proto::health::health_check_response::ServingStatus;
use kiln_session::proto::health::health_server::Health;
use kiln_session::proto::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

/// Says that the engine serves.
pub struct Serving;

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

#[tonic::async_trait]
impl Health for Serving {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // The state never changes while the engine answers; the stream stays open until the caller goes.
        let forever = futures::StreamExt::chain(futures::stream::iter([Ok(serving())]), futures::stream::pending());
        Ok(Response::new(Box::pin(forever)))
    }
}
