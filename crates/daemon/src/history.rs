//! Records of past builds on the wire.

use std::time::{Duration, UNIX_EPOCH};

use kiln_engine::history::{Attachment, Change, Record};
use kiln_session::proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildResultInfo, Descriptor, Exporter,
};
use kiln_session::proto::google::rpc;
use tonic::Code;

use crate::convert::time;

/// Returns a record as a message.
pub fn record(record: &Record) -> BuildHistoryRecord {
    let at = |nanos: u64| (nanos != 0).then(|| time(UNIX_EPOCH + Duration::from_nanos(nanos)));
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let code = match record.error_code {
        // Records of older engines have none.
        0 if record.canceled => Code::Cancelled as i32,
        0 => Code::Unknown as i32,
        code => code,
    };
    let error =
        (!record.error.is_empty()).then(|| rpc::Status { code, message: record.error.clone(), details: Vec::new() });
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
        external_error: record.failure.as_ref().map(descriptor),
        logs: record.logs.as_ref().map(descriptor),
        trace: record.trace.as_ref().map(descriptor),
        result: result(record),
        results: record
            .statements
            .iter()
            .filter(|(platform, _)| !platform.is_empty())
            .map(|(platform, told)| (platform.clone(), statements(told)))
            .collect(),
    }
}

/// Returns what a build delivered and what is told of it. Clients take it for granted in a build that succeeded.
fn result(record: &Record) -> Option<BuildResultInfo> {
    if record.completed == 0 || !record.error.is_empty() {
        return None;
    }
    let mut info = statements(record.statements.get("").map(Vec::as_slice).unwrap_or_default());
    let number = |n: &usize| i64::try_from(*n).unwrap_or(i64::MAX);
    info.results = record.results.iter().map(|(n, attachment)| (number(n), descriptor(attachment))).collect();
    info.result_deprecated = record.results.values().next().map(descriptor);
    Some(info)
}

fn statements(told: &[Attachment]) -> BuildResultInfo {
    BuildResultInfo { attestations: told.iter().map(descriptor).collect(), ..BuildResultInfo::default() }
}

fn descriptor(attachment: &Attachment) -> Descriptor {
    Descriptor {
        media_type: attachment.media_type.clone(),
        digest: attachment.digest.clone(),
        size: i64::try_from(attachment.size).unwrap_or(i64::MAX),
        annotations: attachment.annotations.clone(),
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
