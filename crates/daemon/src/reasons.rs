//! Why steps ran: of a build that runs from its events, of one that has ended from its record.

use futures::StreamExt as _;
use kiln_engine::Engine;
use kiln_engine::events::{Event, EventReader};
use kiln_engine::history::Record;
use kiln_engine::why::StepReason;
use kiln_session::proto::kiln_v1::{BuildSummary, FollowResponse, Reason, ReasonsResponse};
use tonic::Status;

use crate::status;

/// Returns a stream of all events of a build, from the first to the last, with the reasons of steps.
pub fn follow(reader: EventReader) -> impl futures::Stream<Item = Result<FollowResponse, Status>> + Send {
    let batches = futures::stream::unfold(reader, |mut reader| async move {
        let batch = reader.next().await?;
        let of_status = |status| FollowResponse { status: Some(status), reasons: Vec::new() };
        let mut messages: Vec<_> = status::responses(reader.log(), &batch).into_iter().map(of_status).collect();
        if let Some(last) = messages.last_mut() {
            last.reasons = batch.iter().filter_map(|event| reason_of(event)).collect();
        }
        Some((futures::stream::iter(messages.into_iter().map(Ok)), reader))
    });
    batches.flatten()
}

fn reason_of(event: &Event) -> Option<Reason> {
    match event {
        Event::Reason(reason) => Some(wire(reason)),
        _ => None,
    }
}

/// Returns what is recorded of a build that has ended: the last one, or the one whose reference begins with `reference`.
///
/// # Errors
/// There is none, or several begin so.
pub fn recorded(engine: &Engine, reference: &str) -> Result<ReasonsResponse, Status> {
    let ended = |record: &Record| record.completed != 0 && record.reference.starts_with(reference);
    let mut records = engine.history().list().into_iter().filter(ended);
    let record = records.next().ok_or_else(|| {
        Status::not_found(match reference {
            "" => "no build is recorded".to_owned(),
            reference => format!("build {reference:?} is not recorded"),
        })
    })?;
    if !reference.is_empty() && record.reference != reference && records.next().is_some() {
        return Err(Status::invalid_argument(format!("several builds begin with {reference:?}")));
    }
    let json = record.reasons.as_ref().and_then(|kept| engine.history().attachment(&kept.digest.parse().ok()?));
    let reasons: Vec<StepReason> = json.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let build = BuildSummary {
        r#ref: record.reference,
        created: record.created,
        completed: record.completed,
        steps: record.total_steps as u64,
        cached: record.cached_steps as u64,
        error: record.error,
    };
    Ok(ReasonsResponse { build: Some(build), reasons: reasons.iter().map(wire).collect() })
}

fn wire(reason: &StepReason) -> Reason {
    let (root_name, root_text) = reason.root.clone().map_or_else(Default::default, |root| (root.name, root.text));
    Reason {
        vertex: reason.vertex.to_string(),
        name: reason.name.clone(),
        text: reason.text.clone(),
        root_name,
        root_text,
        detail: serde_json::to_vec(&reason.reason).unwrap_or_default(),
    }
}
