//! When each step of a build ran, as a trace that viewers of OpenTelemetry read: the whole build and a span per vertex.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kiln_stdx::{Digest, StableHasher};
use serde::Serialize;

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
    let mut out = Vec::new();
    let mut add = |span: Span| {
        // Texts and numbers can always be written.
        let _ = serde_json::to_writer(&mut out, &span);
        out.push(b'\n');
    };
    let asked = vec![attribute("build.ref", reference)];
    add(Span {
        child_span_count: ran.len(),
        ..span("build", ids.context(None), Context::default(), (started, ended), error, asked)
    });
    for (digest, started, ended, vertex) in &ran {
        let digest = digest.to_string();
        let attributes =
            vec![attribute("vertex", &digest), attribute("cached", if vertex.cached { "true" } else { "false" })];
        let (own, parent) = (ids.context(Some(&digest)), ids.context(None));
        add(span(&vertex.name, own, parent, (*started, *ended), &vertex.error, attributes));
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

    fn context(&self, vertex: Option<&str>) -> Context {
        let span_id = vertex.map_or_else(|| self.root.clone(), |v| id("span", &format!("{}{v}", self.root), 16));
        Context { trace_id: self.trace.clone(), span_id, trace_flags: "01", ..Context::default() }
    }
}

fn id(kind: &str, of: &str, digits: usize) -> String {
    let hash = StableHasher::new("kiln.trace.v1").str("kind", kind).str("of", of).finish().hex();
    hash.get(..digits).unwrap_or(&hash).to_owned()
}

/// Where a span is.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Context {
    #[serde(rename = "TraceID")]
    trace_id: String,
    #[serde(rename = "SpanID")]
    span_id: String,
    trace_flags: &'static str,
    trace_state: &'static str,
    remote: bool,
}

impl Default for Context {
    fn default() -> Self {
        let (trace_id, span_id) = ("0".repeat(32), "0".repeat(16));
        Self { trace_id, span_id, trace_flags: "00", trace_state: "", remote: false }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute<'a> {
    key: &'a str,
    value: Text<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Text<'a> {
    r#type: &'static str,
    value: &'a str,
}

fn attribute<'a>(key: &'a str, value: &'a str) -> Attribute<'a> {
    Attribute { key, value: Text { r#type: "STRING", value } }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status<'a> {
    code: u8,
    description: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Library {
    name: &'static str,
    version: &'static str,
    #[serde(rename = "SchemaURL")]
    schema_url: &'static str,
}

/// A span as its viewers read it. The lists that would be empty are null.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Span<'a> {
    name: &'a str,
    span_context: Context,
    parent: Context,
    span_kind: u8,
    start_time: String,
    end_time: String,
    attributes: Vec<Attribute<'a>>,
    events: (),
    links: (),
    status: Status<'a>,
    dropped_attributes: u32,
    dropped_events: u32,
    dropped_links: u32,
    child_span_count: usize,
    resource: [Attribute<'a>; 1],
    instrumentation_library: Library,
}

fn span<'a>(
    name: &'a str,
    span_context: Context,
    parent: Context,
    (started, ended): (SystemTime, SystemTime),
    error: &'a str,
    attributes: Vec<Attribute<'a>>,
) -> Span<'a> {
    Span {
        name,
        span_context,
        parent,
        span_kind: INTERNAL,
        start_time: crate::provenance::time(started),
        end_time: crate::provenance::time(ended.max(started)),
        attributes,
        events: (),
        links: (),
        status: Status { code: if error.is_empty() { SUCCEEDED } else { FAILED }, description: error },
        dropped_attributes: 0,
        dropped_events: 0,
        dropped_links: 0,
        child_span_count: 0,
        resource: [attribute("service.name", "kiln")],
        instrumentation_library: Library { name: "kiln", version: env!("CARGO_PKG_VERSION"), schema_url: "" },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

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
        assert_eq!(spans[0]["Parent"]["TraceID"], "0".repeat(32));
        assert_eq!((&spans[0]["ChildSpanCount"], &spans[0]["Events"]), (&json!(2), &Value::Null));
        assert_eq!(
            spans[1]["Attributes"][1],
            json!({ "Key": "cached", "Value": { "Type": "STRING", "Value": "false" } })
        );
        assert_eq!(spans[2]["EndTime"], "1970-01-01T00:00:09.000000000Z");
    }
}
