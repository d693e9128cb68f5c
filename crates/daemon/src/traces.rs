//! Hands what builds did to an OpenTelemetry collector, where the usual variables (`OTEL_*`) name one: a span for each
//! build and one for each of its steps.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::StreamExt;
use kiln_engine::Engine;
use kiln_engine::history::{Change, Record};
use kiln_session::proto::control::StatusResponse;
use kiln_session::proto::opentelemetry::trace::v1::trace_service_server::TraceService;
use kiln_session::proto::opentelemetry::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use kiln_stdx::Digest;
use prost::Message;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use crate::otlp::{KeyValue, Request, Resource, ResourceSpans, Response, Scope, ScopeSpans, Span, Status, Value};
use crate::status;

/// The call by which a collector takes spans.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// How long a collector may take, and how long after a build its last news may come.
const LIMIT: Duration = Duration::from_secs(10);
/// Spans of a step and of a build.
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    url: String,
    protocol: Protocol,
    headers: Vec<(String, String)>,
    /// What the engine calls itself.
    resource: BTreeMap<String, String>,
}

impl Collector {
    /// Reads the variables; none when no collector is named or spans are turned off.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let of_traces = |name: &str| {
            var(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| var(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let off = var("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        if off || var("OTEL_TRACES_EXPORTER").is_some_and(|v| v != "otlp") {
            return None;
        }
        let protocol = match of_traces("PROTOCOL").as_deref() {
            None | Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            Some(other) => {
                tracing::warn!(
                    "traces are not exported: protocol {other:?} is not supported, use grpc or http/protobuf"
                );
                return None;
            }
        };
        let url = match (var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), var("OTEL_EXPORTER_OTLP_ENDPOINT"), protocol) {
            (Some(url), _, _) | (None, Some(url), Protocol::Grpc) => url,
            (None, Some(url), Protocol::Http) => format!("{}/v1/traces", url.trim_end_matches('/')),
            (None, None, _) => return None,
        };
        let url = if url.contains("://") { url } else { format!("http://{url}") };
        let mut resource: BTreeMap<_, _> =
            var("OTEL_RESOURCE_ATTRIBUTES").map(|list| pairs(&list).into_iter().collect()).unwrap_or_default();
        let name = var("OTEL_SERVICE_NAME").or_else(|| resource.get("service.name").cloned());
        resource.insert("service.name".to_owned(), name.unwrap_or_else(|| "kiln".to_owned()));
        let headers = of_traces("HEADERS").map(|list| pairs(&list)).unwrap_or_default();
        Some(Self { url, protocol, headers, resource })
    }

    /// Hands over the spans of builds as they end, until `stop`.
    pub async fn run(self, engine: Engine, stop: CancellationToken) {
        let mut changes = engine.history().changes();
        let mut followed: HashMap<String, JoinHandle<Steps>> = HashMap::new();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = stop.cancelled() => return,
            };
            match change {
                Ok(Change::Started(record)) => {
                    let steps = tokio::spawn(follow(engine.clone(), record.reference.clone()));
                    followed.insert(record.reference, steps);
                }
                Ok(Change::Completed(record)) => {
                    let steps = followed.remove(&record.reference);
                    tokio::spawn(self.clone().export(record, steps));
                }
                Ok(Change::Deleted(_)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn export(self, record: Record, steps: Option<JoinHandle<Steps>>) {
        let steps = match steps {
            Some(steps) => tokio::time::timeout(LIMIT, steps).await.ok().and_then(Result::ok).unwrap_or_default(),
            None => Steps::default(),
        };
        let request = request(&self.resource, &record, &steps);
        if let Err(why) = self.send(request).await {
            tracing::warn!(build = record.reference, why, "the collector did not take a trace");
        }
    }

    /// Hands over spans, in whatever form of the request.
    async fn send(&self, request: impl Message + Default + 'static) -> Result<(), String> {
        match self.protocol {
            Protocol::Grpc => self.by_grpc(request).await,
            Protocol::Http => self.by_http(request.encode_to_vec()).await,
        }
    }

    async fn by_http(&self, body: Vec<u8>) -> Result<(), String> {
        let client = reqwest::Client::builder().timeout(LIMIT).build().map_err(|e| e.to_string())?;
        let mut post = client.post(&self.url).header("content-type", "application/x-protobuf").body(body);
        for (name, value) in &self.headers {
            post = post.header(name, value);
        }
        let answer = post.send().await.map_err(|e| e.without_url().to_string())?;
        answer.error_for_status().map(drop).map_err(|e| e.without_url().to_string())
    }

    async fn by_grpc<R: Message + Default + 'static>(&self, request: R) -> Result<(), String> {
        let endpoint = Endpoint::from_shared(self.url.clone()).map_err(|e| e.to_string())?;
        let channel = endpoint.connect_timeout(LIMIT).timeout(LIMIT).connect().await.map_err(|e| e.to_string())?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let mut message = tonic::Request::new(request);
        for (name, value) in &self.headers {
            let name = tonic::metadata::MetadataKey::from_bytes(name.to_lowercase().as_bytes());
            if let (Ok(name), Ok(value)) = (name, value.parse()) {
                message.metadata_mut().insert(name, value);
            }
        }
        let codec = tonic_prost::ProstCodec::<R, Response>::default();
        let answer = client.unary(message, PathAndQuery::from_static(EXPORT), codec).await;
        answer.map(drop).map_err(|e| e.message().to_owned())
    }
}

/// Takes spans of clients, which need no collector of their own: theirs go where the engine's go.
pub struct Passing(pub Option<Collector>);

#[tonic::async_trait]
impl TraceService for Passing {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        // Without a collector they are of no use, which is nothing that a client could mend.
        if let Some(collector) = &self.0 {
            collector.send(request.into_inner()).await.map_err(tonic::Status::unavailable)?;
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse {}))
    }
}

/// Reads `name=value,name=value`; `%20` and its like stand for other letters.
fn pairs(list: &str) -> Vec<(String, String)> {
    let pair = |item: &str| {
        let (name, value) = item.split_once('=')?;
        Some((name.trim().to_owned(), unescape(value.trim())))
    };
    list.split(',').filter_map(pair).collect()
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is known of the steps of a build, by their digests.
type Steps = BTreeMap<String, Step>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Step {
    name: String,
    start: u64,
    end: u64,
    cached: bool,
    error: String,
}

/// Takes note of the steps of a build until it ends.
async fn follow(engine: Engine, reference: String) -> Steps {
    let mut steps = Steps::new();
    let Ok(reader) = engine.status(&reference).await else { return steps };
    let mut news = Box::pin(status::stream(reader));
    while let Some(Ok(response)) = news.next().await {
        note(&mut steps, response);
    }
    steps
}

fn note(steps: &mut Steps, response: StatusResponse) {
    let nanos = |time: &prost_types::Timestamp| {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.nanos).unwrap_or(0))
    };
    for vertex in response.vertexes {
        let step = steps.entry(vertex.digest).or_default();
        step.name = vertex.name;
        step.cached |= vertex.cached;
        step.error = vertex.error;
        // A step that runs in parts began with the first and ended with the last.
        match vertex.started.as_ref().map(nanos) {
            Some(start) if step.start == 0 || start < step.start => step.start = start,
            _ => {}
        }
        step.end = step.end.max(vertex.completed.as_ref().map_or(0, nanos));
    }
}

fn request(resource: &BTreeMap<String, String>, record: &Record, steps: &Steps) -> Request {
    let whole = Digest::of(format!("{}\0{}", record.reference, record.created));
    let trace_id = whole.as_bytes()[..16].to_vec();
    let id = |name: &str| Digest::of(format!("{}\0{name}", record.reference)).as_bytes()[..8].to_vec();
    let ended = |error: &str| Status { message: error.to_owned(), code: if error.is_empty() { 1 } else { 2 } };
    let build = Span {
        trace_id: trace_id.clone(),
        span_id: id(""),
        name: "build".to_owned(),
        kind: SERVER,
        start: record.created,
        end: record.completed,
        attributes: vec![
            KeyValue::text("ref", &record.reference),
            KeyValue::text("frontend", &record.frontend),
            KeyValue::new("steps", Value::Int(i64::try_from(record.total_steps).unwrap_or(i64::MAX))),
        ],
        status: Some(ended(&record.error)),
        ..Span::default()
    };
    let begun = steps.iter().filter(|(_, step)| step.start > 0);
    let spans = begun.map(|(digest, step)| Span {
        trace_id: trace_id.clone(),
        span_id: id(digest),
        parent_span_id: id(""),
        name: step.name.clone(),
        kind: INTERNAL,
        start: step.start,
        end: step.end.max(step.start),
        attributes: vec![KeyValue::text("vertex", digest), KeyValue::new("cached", Value::Bool(step.cached))],
        status: Some(ended(&step.error)),
    });
    let scope = Scope { name: "kiln".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = std::iter::once(build).chain(spans).collect();
    let attributes = resource.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
    Request {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector(vars: &[(&str, &str)]) -> Option<Collector> {
        Collector::from_env(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_usual_variables_name_a_collector() {
        assert_eq!(collector(&[]), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
        assert_eq!(collector(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), None);
        assert_eq!(collector(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]), None);
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d=e");
        let found = collector(&[endpoint, http, headers, ("OTEL_SERVICE_NAME", "mine")]).unwrap();
        assert_eq!((found.url.as_str(), found.protocol), ("http://c:4318/v1/traces", Protocol::Http));
        assert_eq!(found.headers, [("a".into(), "b c".into()), ("d".into(), "e".into())]);
        assert_eq!(found.resource["service.name"], "mine");
        let found = collector(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c:4317")]).unwrap();
        assert_eq!((found.url.as_str(), found.protocol), ("http://c:4317", Protocol::Grpc));
    }

    #[test]
    fn a_build_is_the_parent_of_its_steps() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 5 });
        let vertex = |started, completed, error: &str| kiln_session::proto::control::Vertex {
            digest: "sha256:x".into(),
            name: "[1/1] RUN".into(),
            started,
            completed,
            error: error.into(),
            ..Default::default()
        };
        let mut steps = Steps::new();
        for vertexes in [vec![vertex(time(1), None, "")], vec![vertex(time(1), time(3), "broke")]] {
            note(&mut steps, StatusResponse { vertexes, ..Default::default() });
        }
        let record = Record { reference: "r".into(), created: 1, completed: 9, ..Default::default() };
        let request = request(&BTreeMap::new(), &record, &steps);
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        assert_eq!((spans.len(), spans[0].trace_id.len(), spans[1].span_id.len()), (2, 16, 8));
        assert_eq!((&spans[1].parent_span_id, &spans[1].trace_id), (&spans[0].span_id, &spans[0].trace_id));
        assert_eq!((spans[1].start, spans[1].end), (1_000_000_005, 3_000_000_005));
        assert_eq!(spans.iter().map(|s| s.status.as_ref().unwrap().code).collect::<Vec<_>>(), [1, 2]);
    }
}
