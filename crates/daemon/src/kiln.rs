//! Calls that only kiln's own clients make.

use kiln_engine::Engine;
use kiln_session::proto::kiln_v1::kiln_server::Kiln;
use kiln_session::proto::kiln_v1::{Problem, VerifyRequest, VerifyResponse};
use tonic::{Request, Response, Status};

/// kiln's own service.
pub struct KilnService {
    pub engine: Engine,
}

#[tonic::async_trait]
impl Kiln for KilnService {
    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let repair = !request.into_inner().check_only;
        let store = self.engine.parts().store.clone();
        let report = tokio::task::spawn_blocking(move || store.verify(repair))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::unknown(e.to_string()))?;
        let problems = report
            .problems
            .iter()
            .map(|p| Problem {
                subject: p.subject.clone(),
                what: p.what.clone(),
                action: p.action.as_ref().map(|a| format!("{a:?}").to_lowercase()).unwrap_or_default(),
            })
            .collect();
        Ok(Response::new(VerifyResponse {
            blobs: report.blobs,
            layers: report.layers,
            rows: report.rows,
            bytes: report.bytes,
            problems,
        }))
    }
}
