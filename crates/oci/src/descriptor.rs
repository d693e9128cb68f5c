//! Descriptors (OCI image spec, "Content Descriptors") and the identities of layers and layer chains.

use std::collections::BTreeMap;
use std::fmt;

use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::platform::Platform;

/// Annotations in a fixed order, so that what is hashed does not depend on luck.
pub type Annotations = BTreeMap<String, String>;

/// Points to content: what it is, its digest and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
    /// Inline content in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Descriptor {
    /// Returns a descriptor with nothing optional.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: None,
            platform: None,
            artifact_type: None,
            extra: BTreeMap::new(),
        }
    }

    /// Returns the descriptor of `content`.
    pub fn of(media_type: impl Into<String>, content: &[u8]) -> Self {
        Self::new(media_type, Digest::of(content), content.len() as u64)
    }
}

/// The digest of a layer's uncompressed tar archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// The identity of a stack of layers (OCI image spec, "Layer ChainID").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ChainId {
    /// Returns the chain made of `parent` (none for the bottom layer) and one more layer.
    pub fn extend(parent: Option<ChainId>, layer: DiffId) -> ChainId {
        match parent {
            None => ChainId(layer.0),
            Some(parent) => ChainId(Digest::of(format!("{parent} {layer}"))),
        }
    }
}

/// Returns the chain id at each layer of a stack, bottom first.
pub fn chain_ids(layers: &[DiffId]) -> Vec<ChainId> {
    let mut parent = None;
    layers
        .iter()
        .map(|&layer| {
            let chain = ChainId::extend(parent, layer);
            parent = Some(chain);
            chain
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_id_follows_the_spec() {
        let layers = [DiffId(Digest::of("a")), DiffId(Digest::of("b"))];
        let chains = chain_ids(&layers);
        assert_eq!(chains[0].0, layers[0].0);
        assert_eq!(chains[1].0, Digest::of(format!("{} {}", layers[0], layers[1])));
    }

    #[test]
    fn unknown_fields_survive() {
        let text = format!(r#"{{"mediaType":"m","digest":"{}","size":3,"future":[1]}}"#, Digest::of("x"));
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), text);
    }
}
