//! Image manifests and indexes (OCI image spec; Docker's schema 2 has the same fields).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::descriptor::{Annotations, Descriptor};
use crate::json::{JsonError, null_as_default, to_indented_json};

/// One image: its config and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Some builders write `null` for an image without layers.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: Annotations,
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// A list of manifests, usually one per platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: Annotations,
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Manifest {
    /// Returns a manifest of the given media type with these parts.
    pub fn new(media_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: Annotations::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Bytes that are not JSON or lack a required field.
    pub fn from_json(json: &[u8]) -> Result<Self, JsonError> {
        serde_json::from_slice(json).map_err(|e| JsonError::new("manifest", e))
    }

    /// Returns the bytes that are stored and hashed.
    ///
    /// # Errors
    /// Never for values that came from JSON.
    pub fn to_manifest_json(&self) -> Result<Vec<u8>, JsonError> {
        to_indented_json("manifest", self)
    }
}

impl Index {
    /// Returns an index of the given media type.
    pub fn new(media_type: &str, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: Annotations::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads an index.
    ///
    /// # Errors
    /// Bytes that are not JSON or lack a required field.
    pub fn from_json(json: &[u8]) -> Result<Self, JsonError> {
        serde_json::from_slice(json).map_err(|e| JsonError::new("index", e))
    }

    /// Returns the bytes that are stored and hashed.
    ///
    /// # Errors
    /// Never for values that came from JSON.
    pub fn to_manifest_json(&self) -> Result<Vec<u8>, JsonError> {
        to_indented_json("index", self)
    }
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    #[test]
    fn lists_may_be_null() {
        let digest = kiln_stdx::Digest::of("x");
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"m","digest":"{digest}","size":1}},"layers":null,"annotations":null}}"#
        );
        let manifest = Manifest::from_json(json.as_bytes()).unwrap();
        assert!(manifest.layers.is_empty() && manifest.annotations.is_empty());
    }
}
