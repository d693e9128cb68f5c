//! Runs one build on an engine: the session, the solve and the status stream belong together and end together.

use std::time::Duration;

use kiln_session::progress::{Progress, ReasonProgress};
use kiln_session::proto::control;
use kiln_session::proto::kiln_v1::{FollowRequest, FollowResponse};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::offer::Offer;
use super::{failure, gateway};
use crate::build::request::{BuildRequest, CacheOption};
use crate::build::result::Response;
use crate::error::CliError;
use crate::launch::Engine;
use crate::progress::Feed;

/// How long the status stream may go on without news after the solve has ended.
const STATUS_END: Duration = Duration::from_secs(5);
/// How long a cancelled build may take to tell of its end.
const CANCEL_END: Duration = Duration::from_secs(2);

/// A build about to run.
pub struct Solve<'a> {
    /// Where.
    pub engine: &'a Engine,
    /// What.
    pub request: BuildRequest,
    /// What the engine may ask the client for.
    pub offer: Offer,
    /// Where progress is shown; the display ends when the build does.
    pub feed: Feed,
    /// Name of the Dockerfile for messages.
    pub dockerfile: String,
    /// Whether the frontend is asked something in place of a build.
    pub asks: bool,
    /// Whether it is shown why steps ran; only an engine of kiln knows.
    pub why: bool,
}

/// A build that succeeded.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Identity of the build.
    pub reference: String,
    /// Values the engine answered with.
    pub response: Response,
}

impl Solve<'_> {
    /// Runs the build. Outputs are in place when this returns well; after an error nothing of them is.
    pub async fn run(self, cancel: &CancellationToken) -> Result<Solved, CliError> {
        let reference = self.reference();
        self.run_as(reference, cancel).await
    }

    /// Returns an identity that no other build has.
    pub fn reference(&self) -> String {
        kiln_stdx::rand_id()
    }

    /// Runs the build under an identity, as [`Solve::run`] does.
    pub async fn run_as(self, reference: String, cancel: &CancellationToken) -> Result<Solved, CliError> {
        let Solve { engine, request, offer, feed, dockerfile, asks, why } = self;
        let session = offer.open(engine).await?;
        let status = watch(engine, &reference, feed, why);
        let message = wire(request, &reference, session.id());
        let call = async {
            match asks {
                true => gateway::ask(engine, message).await,
                false => {
                    let answer = engine.control().solve(message).await;
                    answer.map(|a| a.into_inner().exporter_response.into_iter().collect())
                }
            }
        };
        let solved = tokio::select! {
            answer = call => answer,
            // Dropping the call resets its stream, by which the engine knows.
            () = cancel.cancelled() => Err(Status::cancelled("context canceled")),
        };
        let patience = if cancel.is_cancelled() { CANCEL_END } else { STATUS_END };
        if solved.is_err() {
            session.close().await;
            end_of(status, patience).await;
        } else {
            end_of(status, patience).await;
            session.finish().await?;
        }
        match solved {
            Ok(response) => Ok(Solved { reference, response }),
            Err(_) if cancel.is_cancelled() => Err(CliError::canceled()),
            Err(status) => Err(failure::of_solve(&status, engine, &dockerfile)),
        }
    }
}

/// Waits for the end of the status stream; a stream that says nothing more is given up.
async fn end_of(mut watcher: JoinHandle<()>, patience: Duration) {
    if timeout(patience, &mut watcher).await.is_err() {
        watcher.abort();
    }
}

/// Passes the status stream on to the display, with the reasons of steps where `why` says so.
fn watch(engine: &Engine, reference: &str, feed: Feed, why: bool) -> JoinHandle<()> {
    let (engine, reference) = (engine.clone(), reference.to_owned());
    tokio::spawn(async move {
        let watched = match why {
            true => watch_reasons(&engine, reference, &feed).await,
            false => watch_status(&engine, reference, &feed).await,
        };
        if let Err(status) = watched {
            ended(&status);
        }
    })
}

async fn watch_status(engine: &Engine, reference: String, feed: &Feed) -> Result<(), Status> {
    let mut stream = engine.control().status(control::StatusRequest { r#ref: reference }).await?.into_inner();
    while let Some(message) = stream.message().await? {
        feed.send(Progress::from(message)).await;
    }
    Ok(())
}

async fn watch_reasons(engine: &Engine, reference: String, feed: &Feed) -> Result<(), Status> {
    let mut stream = engine.own().follow(FollowRequest { r#ref: reference }).await?.into_inner();
    while let Some(FollowResponse { status, reasons }) = stream.message().await? {
        let why = reasons.into_iter().map(ReasonProgress::from).collect();
        feed.send(Progress { why, ..Progress::from(status.unwrap_or_default()) }).await;
    }
    Ok(())
}

/// The solve tells why a build failed; a status stream that breaks only loses what it would have shown.
pub fn ended(status: &Status) {
    if status.code() != Code::Cancelled {
        tracing::debug!(%status, "the status stream ended early");
    }
}

fn wire(request: BuildRequest, reference: &str, session: &str) -> control::SolveRequest {
    let entry = |o: CacheOption| control::CacheOptionsEntry { r#type: o.kind, attrs: o.attrs };
    let exporters: Vec<control::Exporter> =
        request.exporters.into_iter().map(|e| control::Exporter { r#type: e.kind, attrs: e.attrs }).collect();
    // Engines that know one exporter only read these two.
    let first = exporters.first().cloned().unwrap_or_default();
    control::SolveRequest {
        r#ref: reference.to_owned(),
        session: session.to_owned(),
        frontend: request.frontend.into_owned(),
        definition: request.definition,
        source_policy: request.policy,
        frontend_attrs: request.attrs,
        cache: Some(control::CacheOptions {
            exports: request.exports.into_iter().map(entry).collect(),
            imports: request.imports.into_iter().map(entry).collect(),
            ..Default::default()
        }),
        entitlements: request.entitlements,
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        exporters,
        ..Default::default()
    }
}
