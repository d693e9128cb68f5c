//! Details of a failure inside a gRPC status. Each is an `Any` whose value is JSON, not protobuf: that is how
//! BuildKit's clients decode them, by type URL (features 3.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use kiln_llb::pb;
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use crate::proto::google::rpc;

const URL_PREFIX: &str = "github.com/moby/buildkit/";

/// Number of the action in a policy's decision.
const DENY: i32 = 1;

/// One detail.
#[derive(Debug, Clone, PartialEq)]
pub enum Detail {
    /// The operation that failed.
    Vertex { digest: String },
    /// Where it was written.
    Source { info: pb::SourceInfo, ranges: Vec<pb::Range> },
    /// The frontend that failed; `source` is its image.
    Frontend { name: String, source: String },
    /// A capability the frontend lacks.
    FrontendCap { name: String },
    /// A subrequest the frontend does not know.
    Subrequest { name: String },
    /// A feature that the wanted compatibility version lacks.
    CompatibilityFeature { version: i64, feature: String },
    /// Why a policy denied a source.
    Denied { messages: Vec<String> },
    /// Results that stay alive so that the failed step can be looked at.
    Solve { input_ids: Vec<String>, mount_ids: Vec<String>, op: Option<Box<pb::Op>>, subject: Option<Subject> },
}

/// What of an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Index of a file action.
    File(i64),
    /// Index of the input whose content could not be hashed.
    Cache(i64),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct VertexJson {
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct NameJson {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct FeatureJson {
    version: i64,
    feature: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct SourceJson {
    info: SourceInfoJson,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<RangeJson>,
}

/// As `pb.SourceInfo`; of the definition that the file was read from only the operations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SourceInfoJson {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    /// Base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<DefinitionJson>,
}

/// As `pb.Definition`: its operations, base64.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DefinitionJson {
    def: Vec<String>,
}

/// As `pb.Range`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RangeJson {
    start: PositionJson,
    end: PositionJson,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct PositionJson {
    #[serde(skip_serializing_if = "is_zero")]
    line: i32,
    #[serde(skip_serializing_if = "is_zero")]
    character: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i32) -> bool {
    *n == 0
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct SolveJson {
    #[serde(rename = "inputIDs", skip_serializing_if = "Vec::is_empty")]
    input_ids: Vec<String>,
    #[serde(rename = "mountIDs", skip_serializing_if = "Vec::is_empty")]
    mount_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<IndexJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<IndexJson>,
}

/// A 64-bit number is a text in protobuf's JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct IndexJson {
    index: serde_json::Value,
}

impl IndexJson {
    fn new(index: i64) -> Self {
        Self { index: index.to_string().into() }
    }

    fn get(&self) -> i64 {
        self.index.as_i64().or_else(|| self.index.as_str().and_then(|s| s.parse().ok())).unwrap_or(0)
    }
}

impl From<&pb::SourceInfo> for SourceInfoJson {
    fn from(info: &pb::SourceInfo) -> Self {
        let operations =
            |d: &pb::Definition| DefinitionJson { def: d.def.iter().map(|op| BASE64.encode(op)).collect() };
        Self {
            filename: info.filename.clone(),
            data: BASE64.encode(&info.data),
            language: info.language.clone(),
            definition: info.definition.as_ref().map(operations),
        }
    }
}

impl From<SourceInfoJson> for pb::SourceInfo {
    fn from(json: SourceInfoJson) -> Self {
        Self {
            filename: json.filename,
            data: BASE64.decode(json.data).unwrap_or_default().into(),
            language: json.language,
            definition: json.definition.map(|d| pb::Definition {
                def: d.def.iter().map(|op| BASE64.decode(op).unwrap_or_default().into()).collect(),
                ..pb::Definition::default()
            }),
        }
    }
}

impl From<&pb::Range> for RangeJson {
    fn from(range: &pb::Range) -> Self {
        let position = |p: Option<pb::Position>| {
            p.map_or_else(PositionJson::default, |p| PositionJson { line: p.line, character: p.character })
        };
        Self { start: position(range.start), end: position(range.end) }
    }
}

impl From<RangeJson> for pb::Range {
    fn from(json: RangeJson) -> Self {
        let position = |p: PositionJson| Some(pb::Position { line: p.line, character: p.character });
        Self { start: position(json.start), end: position(json.end) }
    }
}

impl Detail {
    fn encode(&self) -> Option<prost_types::Any> {
        let (name, value) = match self {
            Self::Vertex { digest } => ("Vertex", serde_json::to_vec(&VertexJson { digest: digest.clone() })),
            Self::Source { info, ranges } => {
                let json = SourceJson { info: info.into(), ranges: ranges.iter().map(Into::into).collect() };
                ("Source", serde_json::to_vec(&json))
            }
            Self::Frontend { name, source } => {
                ("Frontend", serde_json::to_vec(&NameJson { name: name.clone(), source: source.clone() }))
            }
            Self::FrontendCap { name } => ("FrontendCap", name_json(name)),
            Self::Subrequest { name } => ("Subrequest", name_json(name)),
            Self::CompatibilityFeature { version, feature } => {
                let json = FeatureJson { version: *version, feature: feature.clone() };
                ("CompatibilityFeature", serde_json::to_vec(&json))
            }
            Self::Denied { messages } => {
                let list: Vec<_> = messages.iter().map(|m| serde_json::json!({ "message": m })).collect();
                ("DecisionResponse", serde_json::to_vec(&serde_json::json!({ "action": DENY, "denyMessages": list })))
            }
            Self::Solve { input_ids, mount_ids, op, subject } => {
                let (file, cache) = match subject {
                    Some(Subject::File(i)) => (Some(IndexJson::new(*i)), None),
                    Some(Subject::Cache(i)) => (None, Some(IndexJson::new(*i))),
                    None => (None, None),
                };
                let op = op.as_deref().and_then(|op| serde_json::to_value(op).ok()).map(without_wrappers);
                let json = SolveJson { input_ids: input_ids.clone(), mount_ids: mount_ids.clone(), op, file, cache };
                ("Solve", serde_json::to_vec(&json))
            }
        };
        // These types cannot fail to encode.
        let place = if matches!(self, Self::Denied { .. }) { "policysession" } else { "errdefs" };
        value.ok().map(|value| prost_types::Any { type_url: format!("{URL_PREFIX}{place}.{name}+json"), value })
    }

    fn decode(any: &prost_types::Any) -> Option<Self> {
        let name = any.type_url.strip_prefix(URL_PREFIX)?.strip_prefix("errdefs.")?.strip_suffix("+json")?;
        let data = any.value.as_slice();
        match name {
            "Vertex" => json::<VertexJson>(data).map(|v| Self::Vertex { digest: v.digest }),
            "Source" => json::<SourceJson>(data)
                .map(|s| Self::Source { info: s.info.into(), ranges: s.ranges.into_iter().map(Into::into).collect() }),
            "Frontend" => json::<NameJson>(data).map(|f| Self::Frontend { name: f.name, source: f.source }),
            "FrontendCap" => json::<NameJson>(data).map(|f| Self::FrontendCap { name: f.name }),
            "Subrequest" => json::<NameJson>(data).map(|f| Self::Subrequest { name: f.name }),
            "CompatibilityFeature" => {
                json::<FeatureJson>(data).map(|f| Self::CompatibilityFeature { version: f.version, feature: f.feature })
            }
            "Solve" => json::<SolveJson>(data).map(|s| Self::Solve {
                subject: match (&s.file, &s.cache) {
                    (Some(i), _) => Some(Subject::File(i.get())),
                    (None, Some(i)) => Some(Subject::Cache(i.get())),
                    (None, None) => None,
                },
                input_ids: s.input_ids,
                mount_ids: s.mount_ids,
                // Whoever needs the operation has the definition.
                op: None,
            }),
            _ => None,
        }
    }
}

/// Makes protobuf's JSON of Go's: there a choice has no name of its own.
fn without_wrappers(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let mut flat = serde_json::Map::new();
            for (name, value) in fields {
                match (name.as_str(), without_wrappers(value)) {
                    ("Op" | "Action", Value::Object(chosen)) => flat.extend(chosen),
                    (_, value) => drop(flat.insert(name, value)),
                }
            }
            Value::Object(flat)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_wrappers).collect()),
        other => other,
    }
}

fn name_json(name: &str) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&NameJson { name: name.to_owned(), source: String::new() })
}

fn json<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Option<T> {
    serde_json::from_slice(data).ok()
}

/// Makes the message form of a status with details.
pub fn to_rpc(code: Code, message: &str, details: &[Detail]) -> rpc::Status {
    rpc::Status {
        code: code as i32,
        message: message.to_owned(),
        details: details.iter().filter_map(Detail::encode).collect(),
    }
}

/// Makes a status with details.
pub fn to_status(code: Code, message: &str, details: &[Detail]) -> Status {
    from_rpc(&to_rpc(code, message, details))
}

/// Turns a status message into a status, keeping all details, also those unknown here.
pub fn from_rpc(status: &rpc::Status) -> Status {
    Status::with_details(Code::from_i32(status.code), status.message.clone(), status.encode_to_vec().into())
}

/// Turns a status into its message form.
pub fn status_to_rpc(status: &Status) -> rpc::Status {
    let plain = || to_rpc(status.code(), status.message(), &[]);
    if status.details().is_empty() {
        return plain();
    }
    rpc::Status::decode(status.details()).unwrap_or_else(|_| plain())
}

/// Returns the details of a status that nothing is known of here: type URL and value of each.
pub fn foreign(status: &Status) -> Vec<(String, Vec<u8>)> {
    let details = status_to_rpc(status).details;
    details.into_iter().filter(|any| Detail::decode(any).is_none()).map(|any| (any.type_url, any.value)).collect()
}

/// Adds details that nothing is known of here to a status.
pub fn with_foreign(status: &Status, details: &[(String, Vec<u8>)]) -> Status {
    let mut message = status_to_rpc(status);
    let any =
        |(type_url, value): &(String, Vec<u8>)| prost_types::Any { type_url: type_url.clone(), value: value.clone() };
    message.details.extend(details.iter().map(any));
    from_rpc(&message)
}

/// Returns the details of a status that are known here.
pub fn details(status: &Status) -> Vec<Detail> {
    status_to_rpc(status).details.iter().filter_map(Detail::decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_passed_on() {
        let known = to_status(Code::Unknown, "it broke", &[Detail::Vertex { digest: "sha256:ab".into() }]);
        let more = [("example.org/x.Y+json".to_owned(), b"{}".to_vec())];
        let both = with_foreign(&known, &more);
        assert_eq!(foreign(&both), more);
        assert_eq!((details(&both), both.message()), (details(&known), "it broke"));
    }

    #[test]
    fn details_are_json_under_buildkits_type_urls() {
        let list = vec![
            Detail::Vertex { digest: "sha256:ab".into() },
            Detail::Source {
                info: pb::SourceInfo {
                    filename: "Dockerfile".into(),
                    data: "FROM x".into(),
                    language: "Dockerfile".into(),
                    definition: None,
                },
                ranges: vec![kiln_llb::builder::range(3, 4)],
            },
            Detail::Frontend { name: "gateway.v0".into(), source: "x/y".into() },
            Detail::Subrequest { name: "lint".into() },
            Detail::CompatibilityFeature { version: 30, feature: "f".into() },
            Detail::Solve {
                input_ids: vec!["i".into()],
                mount_ids: vec!["m".into()],
                op: None,
                subject: Some(Subject::File(2)),
            },
        ];
        let status = to_status(Code::Unknown, "it broke", &list);
        assert_eq!(details(&status), list);
        let rpc = status_to_rpc(&status);
        assert_eq!(rpc.details[0].type_url, "github.com/moby/buildkit/errdefs.Vertex+json");
        assert_eq!(rpc.details[0].value, br#"{"digest":"sha256:ab"}"#);
        let source = String::from_utf8(rpc.details[1].value.clone()).unwrap();
        assert!(source.contains(r#""ranges":[{"start":{"line":3},"end":{"line":4}}]"#), "{source}");
        assert_eq!(rpc.details[5].value, br#"{"inputIDs":["i"],"mountIDs":["m"],"file":{"index":"2"}}"#);
    }

    #[test]
    fn unknown_details_pass_through() {
        let any = prost_types::Any { type_url: "github.com/moby/buildkit/stack.Stack+json".into(), value: vec![1] };
        let rpc = rpc::Status { code: 5, message: "m".into(), details: vec![any] };
        let status = from_rpc(&rpc);
        assert_eq!((status.code(), status.message()), (Code::NotFound, "m"));
        assert!(details(&status).is_empty());
        assert_eq!(status_to_rpc(&status), rpc);
        assert_eq!(status_to_rpc(&Status::aborted("x")).message, "x");
    }
}
