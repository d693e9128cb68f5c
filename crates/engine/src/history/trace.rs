//! When each step of a build ran, as a trace that viewers of OpenTelemetry read: the whole build and a span per vertex.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kiln_stdx::{Digest, StableHasher};
use serde_json::{Value, json};

use crate::events::{Event, EventLog, VertexEvent};

/// The media type of such a trace.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
/// What a span stands for: work inside of a process.
const INTERNAL: u8 = 1;
/// Whether the work of a span succeeded.
const FAILED: u8 = 1;
const SUCCEEDED: u8 = 2;

/// Returns the trace of a build: JSON objects behind each other.
pub fn trace(reference: &str, started: SystemTime, ended: SystemTime, error: &str, log: &EventLog) -> Vec<u8> {
    let mut vertices: BTreeMap<Digest, VertexEvent> = BTreeMap::new();
    for event in log.snapshot() {
        if let Event::Vertex(vertex) = event.as_ref()
            && let Some(digest) = vertex.digest
        {
            vertices.insert(digest, vertex.clone());
        }
    }
    let ran =
        vertices.into_iter().filter_map(|(digest, v)| Some((digest, v.started?, v.completed.unwrap_or(ended), v)));
    let mut ran: Vec<_> = ran.collect();
    ran.sort_by_key(|(digest, started, ..)| (*started, *digest));
    let ids = Ids::of(reference);
    let mut spans = vec![span(&ids, None, "build", (started, ended), error, &[("build.ref", reference)], ran.len())];
    for (digest, started, ended, vertex) in &ran {
        let digest = digest.to_string();
        let cached = if vertex.cached { "true" } else { "false" };
        let attributes = [("vertex", digest.as_str()), ("cached", cached)];
        spans.push(span(&ids, Some(&digest), &vertex.name, (*started, *ended), &vertex.error, &attributes, 0));
    }
    let mut out = Vec::new();
    for span in spans {
        out.extend(span.to_string().into_bytes());
        out.push(b'\n');
    }
    out
}

struct Ids {
    trace: String,
    root: String,
}

impl Ids {
    fn of(reference: &str) -> Self {
        Self { trace: id("trace", reference, 32), root: id("span", reference, 16) }
    }

    fn context(&self, span: Option<&str>) -> Value {
        let span = span.map_or_else(|| self.root.clone(), |vertex| id("span", &format!("{}{vertex}", self.root), 16));
        json!({ "TraceID": self.trace, "SpanID": span, "TraceFlags": "01", "TraceState": "", "Remote": false })
    }
}

fn id(kind: &str, of: &str, digits: usize) -> String {
    let hash = StableHasher::new("kiln.trace.v1").str("kind", kind).str("of", of).finish().hex();
    hash.get(..digits).unwrap_or(&hash).to_owned()
}

fn span(
    ids: &Ids,
    vertex: Option<&str>,
    name: &str,
    (started, ended): (SystemTime, SystemTime),
    error: &str,
    attributes: &[(&str, &str)],
    children: usize,
) -> Value {
    let nothing = json!({
        "TraceID": "0".repeat(32), "SpanID": "0".repeat(16), "TraceFlags": "00", "TraceState": "", "Remote": false,
    });
    let attribute = |key: &str, value: &str| json!({ "Key": key, "Value": { "Type": "STRING", "Value": value } });
    json!({
        "Name": name,
        "SpanContext": ids.context(vertex),
        "Parent": if vertex.is_some() { ids.context(None) } else { nothing },
        "SpanKind": INTERNAL,
        "StartTime": crate::provenance::time(started),
        "EndTime": crate::provenance::time(ended.max(started)),
        "Attributes": attributes.iter().map(|(key, value)| attribute(key, value)).collect::<Vec<_>>(),
        "Events": null,
        "Links": null,
        "Status": { "Code": if error.is_empty() { SUCCEEDED } else { FAILED }, "Description": error },
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": children,
        "Resource": [attribute("service.name", "kiln")],
        "InstrumentationLibrary": { "Name": "kiln", "Version": env!("CARGO_PKG_VERSION"), "SchemaURL": "" },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_vertex_that_ran_is_a_span_of_the_build() {
        let log = EventLog::new(tempfile::tempfile().unwrap());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let vertex = |name: &str, started, error: &str| VertexEvent {
            digest: Some(Digest::of(name)),
            name: name.to_owned(),
            started,
            error: error.to_owned(),
            ..VertexEvent::default()
        };
        for event in [vertex("late", Some(at(5)), "boom"), vertex("early", Some(at(2)), ""), vertex("never", None, "")]
        {
            log.push(Event::Vertex(event));
        }
        let text = String::from_utf8(trace("ref1", at(1), at(9), "boom", &log)).unwrap();
        let spans: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> = spans.iter().filter_map(|s| s["Name"].as_str()).collect();
        assert_eq!(names, ["build", "early", "late"]);
        assert_eq!(spans[1]["Parent"], spans[0]["SpanContext"]);
        assert_ne!(spans[1]["SpanContext"], spans[2]["SpanContext"]);
        assert_eq!(spans[2]["Status"], json!({ "Code": FAILED, "Description": "boom" }));
        assert_eq!(spans[2]["EndTime"], "1970-01-01T00:00:09.000000000Z");
    }
}
