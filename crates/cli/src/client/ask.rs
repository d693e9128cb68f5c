//! Asks an engine's frontend a question: a build that is driven from here, since only then its answer comes back.

use std::collections::BTreeMap;

use kiln_session::errdetail;
use kiln_session::proto::{control, gateway};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::failure;
use super::offer::Offer;
use super::solve::{STATUS_END, end_of, watch};
use crate::build::request::BuildRequest;
use crate::error::CliError;
use crate::launch::Engine;
use crate::progress::Feed;

/// Names the build that a call of the bridge belongs to.
const BUILD: &str = "buildkit-controlapi-buildid";

/// Metadata of an answer: `result.json`, `result.txt`, `result.statuscode`, `version`.
pub type Answer = BTreeMap<String, Vec<u8>>;

/// A question about to be asked.
pub struct Ask<'a> {
    /// Of whom.
    pub engine: &'a Engine,
    /// What: a request with the attribute `requestid`.
    pub request: BuildRequest,
    /// What the engine may ask the client for.
    pub offer: Offer,
    /// Where progress is shown.
    pub feed: Feed,
    /// Name of the Dockerfile for messages.
    pub dockerfile: String,
}

impl Ask<'_> {
    /// Returns the answer.
    pub async fn run(self, cancel: &CancellationToken) -> Result<Answer, CliError> {
        let Ask { engine, request, offer, feed, dockerfile } = self;
        let reference = kiln_stdx::rand_id();
        let session = offer.open(engine).await?;
        let status = watch(engine, &reference, feed, false);
        let build = control::SolveRequest {
            r#ref: reference.clone(),
            session: session.id().to_owned(),
            entitlements: request.entitlements.clone(),
            ..Default::default()
        };
        let mut control = engine.control();
        let asked = async {
            // The build lasts until it is given its result; an error of its own says more than that of a call on it.
            let (built, answer) = tokio::join!(control.solve(build), drive(engine, &reference, request));
            match (built, answer) {
                (_, Ok(answer)) => Ok(answer),
                (Err(status), Err(_)) if failure::is_lost(&status) => Err(status),
                (_, Err(status)) => Err(status),
            }
        };
        let answer = tokio::select! {
            answer = asked => answer,
            () = cancel.cancelled() => Err(Status::cancelled("context canceled")),
        };
        session.close().await;
        end_of(status, STATUS_END).await;
        match answer {
            Err(_) if cancel.is_cancelled() => Err(CliError::canceled()),
            Err(status) => Err(failure::of_solve(&status, engine, &dockerfile)),
            Ok(answer) => Ok(answer),
        }
    }
}

/// Has the frontend run inside the build, and ends the build.
async fn drive(engine: &Engine, reference: &str, request: BuildRequest) -> Result<Answer, Status> {
    let mut bridge = engine.bridge();
    let question = gateway::SolveRequest {
        frontend: request.frontend.into_owned(),
        frontend_opt: request.attrs,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..Default::default()
    };
    let answer = bridge.solve(within(question, reference)?).await;
    let end = match &answer {
        Ok(_) => gateway::ReturnRequest { result: Some(gateway::Result::default()), error: None },
        Err(status) => gateway::ReturnRequest { result: None, error: Some(errdetail::status_to_rpc(status)) },
    };
    let ended = bridge.r#return(within(end, reference)?).await;
    let result = answer?.into_inner().result.unwrap_or_default();
    ended?;
    Ok(result.metadata.into_iter().map(|(k, v)| (k, v.to_vec())).collect())
}

fn within<T>(message: T, reference: &str) -> Result<Request<T>, Status> {
    let value =
        MetadataValue::try_from(reference).map_err(|_| Status::internal("the build's id is no header value"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD, value);
    Ok(request)
}
