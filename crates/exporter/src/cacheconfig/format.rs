//! The JSON of a cache config, field by field as BuildKit writes and reads it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What Go writes for a time that was never set.
pub(super) const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheConfig {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    pub layers: Vec<CacheLayer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    pub records: Vec<CacheRecord>,
}

/// A blob on top of another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheLayer {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub blob: String,
    /// Index of the layer below; -1 is none, and absent means 0.
    #[serde(default, rename = "parent", skip_serializing_if = "is_zero")]
    pub parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<LayerAnnotations>,
}

/// A layer's descriptor, for caches that have no manifest to hold it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerAnnotations {
    #[serde(rename = "mediaType", skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(rename = "diffID", skip_serializing_if = "String::is_empty")]
    pub diff_id: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub size: i64,
    #[serde(rename = "createdAt", default = "no_time")]
    pub created_at: String,
}

/// A cache key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Results by their topmost layer.
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub results: Vec<LayerResult>,
    /// Results whose layers are listed one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub chains: Vec<ChainedResult>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Per input its alternatives.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inputs: Vec<Option<Vec<CacheInput>>>,
}

/// A result: the layer with this index and all below it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerResult {
    #[serde(default)]
    pub layer: i64,
    #[serde(default = "no_time", rename = "createdAt")]
    pub created_at: String,
}

/// A result: exactly these layers, bottom first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainedResult {
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<i64>,
    #[serde(default = "no_time", rename = "createdAt")]
    pub created_at: String,
}

/// An alternative for an input.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheInput {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Index of a record.
    #[serde(default)]
    pub link: i64,
}

fn no_time() -> String {
    NO_TIME.to_owned()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn nullable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a list whose damaged elements become empty ones: indexes into it must not shift.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::de::DeserializeOwned,
{
    let values = Option::<Vec<Value>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(values.into_iter().map(|value| serde_json::from_value(value).unwrap_or_default()).collect())
}
