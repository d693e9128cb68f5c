//! Builds that the client drives itself: it asks the frontend and gets its metadata, which the engine keeps from others.

use std::collections::BTreeMap;

use kiln_session::errdetail;
use kiln_session::proto::control;
use kiln_session::proto::gateway::{ReturnRequest, SolveRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::failure;
use crate::launch::Engine;

/// Names the build that a call belongs to.
const BUILD: &str = "buildkit-controlapi-buildid";

/// Runs a build by way of the frontend's bridge; returns what the engine answers and the frontend's answer: metadata
/// `result.*` (`result.json`, `result.txt`, `result.statuscode`) and `version`.
///
/// # Errors
/// The frontend or the build failed.
pub async fn ask(engine: &Engine, mut message: control::SolveRequest) -> Result<BTreeMap<String, String>, Status> {
    let question = SolveRequest {
        definition: message.definition.take(),
        frontend: std::mem::take(&mut message.frontend),
        frontend_opt: std::mem::take(&mut message.frontend_attrs),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..Default::default()
    };
    let build = MetadataValue::try_from(message.r#ref.as_str()).map_err(|e| Status::internal(e.to_string()))?;
    let mut control = engine.control();
    // The build lasts until it is given its result, and its own error then repeats that of the call, but where there is no
    // such build or no engine any more.
    let (solved, told) = tokio::join!(control.solve(message), drive(engine, question, &build));
    let told = match (told, &solved) {
        (Err(call), Err(status)) if call.code() == Code::NotFound || failure::is_lost(status) => {
            return Err(status.clone());
        }
        (told, _) => told?,
    };
    let mut response: BTreeMap<String, String> = solved?.into_inner().exporter_response.into_iter().collect();
    let answers = told.into_iter().filter(|(name, _)| name.starts_with("result.") || name == "version");
    response.extend(answers.map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())));
    Ok(response)
}

/// Has the frontend run inside the build, and ends the build with its result.
async fn drive(
    engine: &Engine,
    question: SolveRequest,
    build: &MetadataValue<Ascii>,
) -> Result<BTreeMap<String, Vec<u8>>, Status> {
    let mut bridge = engine.bridge();
    let (told, reply) = match bridge.solve(of_build(question, build)).await {
        Ok(answer) => {
            let result = answer.into_inner().result.unwrap_or_default();
            let told = result.metadata.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
            (Ok(told), ReturnRequest { result: Some(result), error: None })
        }
        Err(status) => {
            let error = Some(errdetail::status_to_rpc(&status));
            (Err(status), ReturnRequest { result: None, error })
        }
    };
    // Without an end of it the build would wait for one.
    let returned = bridge.r#return(of_build(reply, build)).await;
    told.and_then(|told| returned.map(|_| told))
}

fn of_build<T>(message: T, build: &MetadataValue<Ascii>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD, build.clone());
    request
}
