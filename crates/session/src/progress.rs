//! What a build reports while it runs, as plain data; its JSON is the one of `--progress=rawjson` (features 8).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use kiln_llb::pb;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::errdetail::{RangeJson, SourceInfoJson};
use crate::proto::{control, kiln_v1};

/// News since the last report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vertexes: Vec<VertexProgress>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<StatusProgress>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogProgress>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<WarningProgress>,
    /// Only where kiln's own service was asked for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<ReasonProgress>,
}

/// Why an operation ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReasonProgress {
    pub vertex: String,
    pub name: String,
    /// In a line.
    pub text: String,
    /// Where it goes back to, when that is another operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootProgress>,
    /// All that is known.
    pub reason: serde_json::Value,
}

/// The operation that a reason goes back to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootProgress {
    pub name: String,
    pub text: String,
}

/// The state of one operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VertexProgress {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_false")]
    pub cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    #[serde(rename = "progressGroup", skip_serializing_if = "Option::is_none")]
    pub progress_group: Option<GroupProgress>,
}

/// A group that operations are shown under.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupProgress {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "is_false")]
    pub weak: bool,
}

/// The state of a part of an operation, such as a download. Bytes, or whatever the part counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusProgress {
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub total: i64,
    pub current: i64,
    pub timestamp: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
}

/// Output of an operation. Stream 1 is standard output, 2 is standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogProgress {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stream: i64,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
    pub timestamp: Timestamp,
}

/// Something the user should know that is no error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarningProgress {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vertex: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub level: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub short: Vec<u8>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "list_to_base64",
        deserialize_with = "list_from_base64"
    )]
    pub detail: Vec<Vec<u8>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    #[serde(
        rename = "sourceInfo",
        skip_serializing_if = "Option::is_none",
        serialize_with = "info_to_json",
        deserialize_with = "info_from_json"
    )]
    pub source_info: Option<pb::SourceInfo>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "ranges_to_json",
        deserialize_with = "ranges_from_json"
    )]
    pub range: Vec<pb::Range>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(b: &bool) -> bool {
    !b
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn to_base64<S: Serializer>(data: &[u8], out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&BASE64.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(input)?.unwrap_or_default();
    BASE64.decode(text).map_err(serde::de::Error::custom)
}

fn list_to_base64<S: Serializer>(list: &[Vec<u8>], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(list.iter().map(|d| BASE64.encode(d)))
}

fn list_from_base64<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Vec<u8>>, D::Error> {
    let list = Vec::<String>::deserialize(input)?;
    list.into_iter().map(|t| BASE64.decode(t).map_err(serde::de::Error::custom)).collect()
}

fn info_to_json<S: Serializer>(info: &Option<pb::SourceInfo>, out: S) -> Result<S::Ok, S::Error> {
    info.as_ref().map(SourceInfoJson::from).serialize(out)
}

fn info_from_json<'de, D: Deserializer<'de>>(input: D) -> Result<Option<pb::SourceInfo>, D::Error> {
    Ok(Option::<SourceInfoJson>::deserialize(input)?.map(Into::into))
}

fn ranges_to_json<S: Serializer>(ranges: &[pb::Range], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(ranges.iter().map(RangeJson::from))
}

fn ranges_from_json<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<pb::Range>, D::Error> {
    Ok(Vec::<RangeJson>::deserialize(input)?.into_iter().map(Into::into).collect())
}

/// Turns a wire time into a time; times that jiff cannot hold are none.
pub fn from_wire_time(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|t| Timestamp::new(t.seconds, t.nanos).ok())
}

/// Turns a time into a wire time.
pub fn to_wire_time(time: Timestamp) -> prost_types::Timestamp {
    // The wire wants nanoseconds that count forward from the second, jiff gives both parts one sign.
    let nanos = time.subsec_nanosecond();
    if nanos < 0 {
        prost_types::Timestamp { seconds: time.as_second() - 1, nanos: nanos + 1_000_000_000 }
    } else {
        prost_types::Timestamp { seconds: time.as_second(), nanos }
    }
}

impl From<kiln_v1::Reason> for ReasonProgress {
    fn from(wire: kiln_v1::Reason) -> Self {
        let root = RootProgress { name: wire.root_name, text: wire.root_text };
        Self {
            vertex: wire.vertex,
            name: wire.name,
            text: wire.text,
            root: (!root.name.is_empty()).then_some(root),
            reason: serde_json::from_slice(&wire.detail).unwrap_or_default(),
        }
    }
}

impl From<control::StatusResponse> for Progress {
    fn from(wire: control::StatusResponse) -> Self {
        Self {
            vertexes: wire.vertexes.into_iter().map(vertex_from_wire).collect(),
            statuses: wire.statuses.into_iter().map(status_from_wire).collect(),
            logs: wire
                .logs
                .into_iter()
                .map(|l| LogProgress {
                    vertex: l.vertex,
                    stream: l.stream,
                    data: l.msg.into(),
                    timestamp: from_wire_time(l.timestamp).unwrap_or_default(),
                })
                .collect(),
            warnings: wire
                .warnings
                .into_iter()
                .map(|w| WarningProgress {
                    vertex: w.vertex,
                    level: w.level,
                    short: w.short,
                    detail: w.detail,
                    url: w.url,
                    source_info: w.info,
                    range: w.ranges,
                })
                .collect(),
            why: Vec::new(),
        }
    }
}

fn vertex_from_wire(v: control::Vertex) -> VertexProgress {
    VertexProgress {
        digest: v.digest,
        inputs: v.inputs,
        name: v.name,
        started: from_wire_time(v.started),
        completed: from_wire_time(v.completed),
        cached: v.cached,
        error: v.error,
        progress_group: v.progress_group.map(|g| GroupProgress { id: g.id, name: g.name, weak: g.weak }),
    }
}

fn status_from_wire(s: control::VertexStatus) -> StatusProgress {
    StatusProgress {
        id: s.id,
        vertex: s.vertex,
        name: s.name,
        total: s.total,
        current: s.current,
        timestamp: from_wire_time(s.timestamp).unwrap_or_default(),
        started: from_wire_time(s.started),
        completed: from_wire_time(s.completed),
    }
}

impl From<Progress> for control::StatusResponse {
    fn from(progress: Progress) -> Self {
        Self {
            vertexes: progress.vertexes.into_iter().map(vertex_to_wire).collect(),
            statuses: progress.statuses.into_iter().map(status_to_wire).collect(),
            logs: progress
                .logs
                .into_iter()
                .map(|l| control::VertexLog {
                    vertex: l.vertex,
                    timestamp: Some(to_wire_time(l.timestamp)),
                    stream: l.stream,
                    msg: l.data.into(),
                })
                .collect(),
            warnings: progress
                .warnings
                .into_iter()
                .map(|w| control::VertexWarning {
                    vertex: w.vertex,
                    level: w.level,
                    short: w.short,
                    detail: w.detail,
                    url: w.url,
                    info: w.source_info,
                    ranges: w.range,
                })
                .collect(),
        }
    }
}

fn vertex_to_wire(v: VertexProgress) -> control::Vertex {
    control::Vertex {
        digest: v.digest,
        inputs: v.inputs,
        name: v.name,
        cached: v.cached,
        started: v.started.map(to_wire_time),
        completed: v.completed.map(to_wire_time),
        error: v.error,
        progress_group: v.progress_group.map(|g| pb::ProgressGroup { id: g.id, name: g.name, weak: g.weak }),
    }
}

fn status_to_wire(s: StatusProgress) -> control::VertexStatus {
    control::VertexStatus {
        id: s.id,
        vertex: s.vertex,
        name: s.name,
        current: s.current,
        total: s.total,
        timestamp: Some(to_wire_time(s.timestamp)),
        started: s.started.map(to_wire_time),
        completed: s.completed.map(to_wire_time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Progress {
        let time = Timestamp::new(1_700_000_000, 120_000_000).unwrap();
        Progress {
            vertexes: vec![VertexProgress {
                digest: "sha256:aa".into(),
                inputs: vec!["sha256:bb".into()],
                name: "step".into(),
                started: Some(time),
                completed: None,
                cached: true,
                error: String::new(),
                progress_group: Some(GroupProgress { id: "g".into(), name: "G".into(), weak: true }),
            }],
            statuses: vec![StatusProgress {
                id: "load".into(),
                vertex: "sha256:aa".into(),
                name: String::new(),
                total: 7,
                current: 0,
                timestamp: time,
                started: None,
                completed: Some(time),
            }],
            logs: vec![LogProgress { vertex: "sha256:aa".into(), stream: 2, data: b"a\xff".to_vec(), timestamp: time }],
            warnings: vec![WarningProgress {
                vertex: "sha256:aa".into(),
                level: 1,
                short: b"careful".to_vec(),
                detail: vec![b"why".to_vec()],
                url: "https://docs.test/x".into(),
                source_info: Some(pb::SourceInfo { filename: "Dockerfile".into(), ..pb::SourceInfo::default() }),
                range: vec![kiln_llb::builder::range(1, 2)],
            }],
            why: Vec::new(),
        }
    }

    #[test]
    fn wire_and_json_keep_everything() {
        let progress = sample();
        assert_eq!(Progress::from(control::StatusResponse::from(progress.clone())), progress);
        let text = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&text).unwrap(), progress);
    }

    #[test]
    fn json_is_the_one_of_rawjson() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(text.starts_with(
            r#"{"vertexes":[{"digest":"sha256:aa","inputs":["sha256:bb"],"name":"step","started":"2023-11-14T22:13:20.12Z","cached":true,"progressGroup":{"id":"g","name":"G","weak":true}}]"#
        ), "{text}");
        assert!(text.contains(r#""statuses":[{"id":"load","vertex":"sha256:aa","total":7,"current":0,"timestamp":"2023-11-14T22:13:20.12Z","completed""#), "{text}");
        assert!(text.contains(r#""stream":2,"data":"Yf8=","timestamp""#), "{text}");
        assert!(text.contains(r#""short":"Y2FyZWZ1bA==","detail":["d2h5"],"url""#), "{text}");
        assert_eq!(serde_json::to_string(&Progress::default()).unwrap(), "{}");
    }

    #[test]
    fn times_before_the_epoch_survive() {
        let time = Timestamp::new(-5, -250_000_000).unwrap();
        let wire = to_wire_time(time);
        assert_eq!((wire.seconds, wire.nanos), (-6, 750_000_000));
        assert_eq!(from_wire_time(Some(wire)), Some(time));
    }
}
