//! BuildKit's cache config: which cache keys have which layers, as remote caches keep it.
//!
//! The format, pure data both ways. [`CacheNode`]s are what the engine's keys become; [`CacheConfig`] is what goes over
//! the wire. Reading is tolerant: what is damaged, loops or names blobs that are not there is left out, never an error.

mod build;
mod format;
mod inline;
mod manifest;
mod parse;
mod seal;

use kiln_oci::Descriptor;
use kiln_stdx::Digest;

pub use build::{build, build_annotated};
pub use format::{CacheConfig, CacheInput, CacheLayer, CacheRecord, ChainedResult, LayerAnnotations, LayerResult};
pub use inline::{inline_records, parse_inline};
pub use manifest::{CacheForm, CacheManifest, read_manifest, write_manifest};
pub use parse::{ParsedCache, nanoseconds, parse, parse_annotated};
pub use seal::seal;

/// Annotation of a layer's uncompressed digest.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Annotation of when a layer was made, RFC 3339.
pub const CREATED_AT: &str = "buildkit/createdat";
/// Annotation of what a layer is, for people.
pub const DESCRIPTION: &str = "buildkit/description";
/// Largest cache config that is read, in bytes.
pub const CONFIG_MAX: u64 = 16 << 20;

/// One cache key with what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheNode {
    /// The key's digest.
    pub digest: Digest,
    /// For each input of the operation the nodes it may come from; empty for roots.
    pub inputs: Vec<Vec<CacheLink>>,
    /// The results known for it.
    pub results: Vec<CacheResult>,
}

/// Where an input may come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheLink {
    /// Which part of the input counts.
    pub selector: Option<Digest>,
    /// Index of another node of the same list.
    pub node: usize,
}

/// A result: a stack of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheResult {
    /// Blobs, bottom first; never empty. Their annotations hold [`UNCOMPRESSED`] and perhaps the others.
    pub layers: Vec<Descriptor>,
    /// When it was made, nanoseconds since 1970.
    pub created: i128,
}

#[cfg(test)]
mod tests;
