//! Builds that the client drives itself: it asks the frontend and gets its metadata, which the engine keeps from others.

use std::collections::BTreeMap;

use kiln_session::proto::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_session::proto::gateway::{ReturnRequest, SolveRequest};
use kiln_session::proto::{control, google::rpc};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::launch::Engine;

/// Names the build that a call belongs to.
const BUILD: &str = "buildkit-controlapi-buildid";
/// Metadata that answers a question to a frontend.
const ANSWER: &str = "result.";

/// Runs a build by way of the frontend's bridge; returns what the engine answers and the frontend's answer.
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
    let mut bridge = LlbBridgeClient::new(engine.channel.clone())
        .max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
        .max_encoding_message_size(kiln_stdx::limits::GRPC_MESSAGE);
    let drive = async {
        let (told, reply) = match bridge.solve(of_build(question, &build)).await {
            Ok(answer) => {
                let result = answer.into_inner().result;
                let told = result.as_ref().map(|r| r.metadata.clone()).unwrap_or_default();
                (Ok(told), ReturnRequest { result, error: None })
            }
            Err(status) => {
                let error = rpc::Status {
                    code: status.code() as i32,
                    message: status.message().to_owned(),
                    details: Vec::new(),
                };
                (Err(status), ReturnRequest { result: None, error: Some(error) })
            }
        };
        // Without an end of it the build would wait for one.
        let returned = bridge.r#return(of_build(reply, &build)).await;
        told.and_then(|told| returned.map(|_| told))
    };
    let (solved, told) = tokio::join!(control.solve(message), drive);
    let told = told?;
    let mut response: BTreeMap<String, String> = solved?.into_inner().exporter_response.into_iter().collect();
    let answers = told.into_iter().filter(|(name, _)| name.starts_with(ANSWER));
    response.extend(answers.map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())));
    Ok(response)
}

fn of_build<T>(message: T, build: &MetadataValue<tonic::metadata::Ascii>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD, build.clone());
    request
}
