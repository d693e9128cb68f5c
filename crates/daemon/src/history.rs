//! Records of past builds on the wire.

use std::time::{Duration, UNIX_EPOCH};

use kiln_engine::history::{Change, Record};
use kiln_session::proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildResultInfo, Exporter,
};
use kiln_session::proto::google::rpc;
use tonic::Code;

use crate::convert::time;

/// Returns a record as a message.
pub fn record(record: &Record) -> BuildHistoryRecord {
    let at = |nanos: u64| (nanos != 0).then(|| time(UNIX_EPOCH + Duration::from_nanos(nanos)));
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let code = if record.canceled { Code::Cancelled } else { Code::Unknown };
    let error = (!record.error.is_empty()).then(|| rpc::Status {
        code: code as i32,
        message: record.error.clone(),
        details: Vec::new(),
    });
    BuildHistoryRecord {
        r#ref: record.reference.clone(),
        frontend: record.frontend.clone(),
        frontend_attrs: record.frontend_attrs.clone(),
        exporters: record
            .exporters
            .iter()
            .map(|(kind, attrs)| Exporter { r#type: kind.clone(), attrs: attrs.clone() })
            .collect(),
        error,
        created_at: at(record.created),
        completed_at: at(record.completed),
        exporter_response: record.exporter_response.clone(),
        generation: record.generation,
        pinned: record.pinned,
        num_cached_steps: count(record.cached_steps),
        num_total_steps: count(record.total_steps),
        num_completed_steps: count(record.completed_steps),
        num_warnings: count(record.warnings),
        // Clients take it for granted in a build that succeeded.
        result: (record.completed != 0 && record.error.is_empty()).then(BuildResultInfo::default),
        ..BuildHistoryRecord::default()
    }
}

/// Returns the event that tells of a record as it is.
pub fn state(of: &Record) -> BuildHistoryEvent {
    let kind = if of.completed == 0 { BuildHistoryEventType::Started } else { BuildHistoryEventType::Complete };
    BuildHistoryEvent { r#type: kind.into(), record: Some(record(of)) }
}

/// Returns the event of a change.
pub fn event(change: &Change) -> BuildHistoryEvent {
    let (kind, of) = match change {
        Change::Started(of) => (BuildHistoryEventType::Started, of),
        Change::Completed(of) => (BuildHistoryEventType::Complete, of),
        Change::Deleted(of) => (BuildHistoryEventType::Deleted, of),
    };
    BuildHistoryEvent { r#type: kind.into(), record: Some(record(of)) }
}
