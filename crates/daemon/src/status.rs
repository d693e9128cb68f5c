//! A build's events as status responses.

use std::sync::Arc;

use kiln_engine::events::{Event, EventLog, EventReader};
use kiln_llb::pb;
use kiln_session::proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use prost::Message as _;
use tonic::Status;

use crate::convert::time;

/// Most bytes of log in one response, well below the largest message.
const LOG_BYTES: usize = 1 << 20;

/// Returns a stream of all events of a build, from the first to the last.
pub fn stream(reader: EventReader) -> impl futures::Stream<Item = Result<StatusResponse, Status>> + Send {
    futures::stream::unfold(reader, |mut reader| async move {
        let batch = reader.next().await?;
        let responses: Vec<_> = responses(reader.log(), &batch).into_iter().map(Ok).collect();
        Some((futures::stream::iter(responses), reader))
    })
    .flatten()
}

use futures::StreamExt as _;

/// Returns the responses of a build that is over, of what its record keeps: each follows its length in four bytes. Ends where
/// the bytes cannot be understood.
pub fn replay(kept: &[u8]) -> std::vec::IntoIter<StatusResponse> {
    let mut rest = kept;
    let mut responses = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((message, after)) = after.split_at_checked(length) else { break };
        let Ok(response) = StatusResponse::decode(message) else { break };
        responses.push(response);
        rest = after;
    }
    responses.into_iter()
}

/// Returns a batch of events as responses of bounded size.
pub fn responses(log: &EventLog, batch: &[Arc<Event>]) -> Vec<StatusResponse> {
    let mut all = vec![StatusResponse::default()];
    let mut bytes = 0;
    for event in batch {
        if bytes > LOG_BYTES {
            all.push(StatusResponse::default());
            bytes = 0;
        }
        let Some(response) = all.last_mut() else { break };
        match event.as_ref() {
            Event::Vertex(v) => response.vertexes.push(Vertex {
                digest: v.digest.map(|d| d.to_string()).unwrap_or_default(),
                inputs: v.inputs.iter().map(ToString::to_string).collect(),
                name: v.name.clone(),
                cached: v.cached,
                started: v.started.map(time),
                completed: v.completed.map(time),
                error: v.error.clone(),
                progress_group: v.progress_group.as_ref().map(|g| pb::ProgressGroup {
                    id: g.id.clone(),
                    name: g.name.clone(),
                    weak: g.weak,
                }),
            }),
            Event::Status(s) => response.statuses.push(VertexStatus {
                id: s.id.clone(),
                vertex: s.vertex.to_string(),
                name: s.name.clone(),
                current: s.current,
                total: s.total,
                timestamp: Some(time(s.timestamp)),
                started: s.started.map(time),
                completed: s.completed.map(time),
            }),
            Event::Log(l) => {
                let msg = log.data(l).unwrap_or_default();
                bytes += msg.len();
                response.logs.push(VertexLog {
                    vertex: l.vertex.to_string(),
                    timestamp: Some(time(l.timestamp)),
                    stream: i64::from(l.stream),
                    msg: msg.into(),
                });
            }
            Event::Warning(w) => response.warnings.push(VertexWarning {
                vertex: w.vertex.to_string(),
                level: w.level,
                short: w.short.clone(),
                detail: w.detail.clone(),
                url: w.url.clone(),
                info: w.source.clone(),
                ranges: w.ranges.clone(),
            }),
            // Clients of BuildKit's API have no place for it.
            Event::Reason(_) => {}
        }
    }
    all
}
