//! What is put out: the finished refs of a build with what their frontend said of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_oci::Platform;
use kiln_stdx::Digest;
use kiln_store::ImmutableRef;

use crate::attest::Attestation;
use crate::error::{ExportError, Result};

/// Metadata key of the time that outputs are cut to, seconds since 1970; per platform with `/<id>` behind it.
pub const EPOCH_KEY: &str = "source.date.epoch";
/// Metadata key of names for an output named `*`.
pub const IMAGE_NAME_KEY: &str = "image.name";

/// The finished result of a build.
#[derive(Debug, Clone, Default)]
pub struct ExportSource {
    /// One entry per platform, in the order of `refs.platforms`. A result without platforms has one entry.
    pub entries: Vec<PlatformResult>,
    /// Whether the frontend gave a map of platforms, which makes an index even of one entry.
    pub keyed: bool,
    /// The frontend's other metadata: annotations, [`EPOCH_KEY`], [`IMAGE_NAME_KEY`].
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// The result for one platform.
#[derive(Debug, Clone, Default)]
pub struct PlatformResult {
    /// The frontend's name for the platform, `linux/amd64`; empty for a result without platforms.
    pub id: String,
    /// None for a result without platforms.
    pub platform: Option<Platform>,
    /// The file system; none is an empty one.
    pub reference: Option<ImmutableRef>,
    /// The image config as the frontend wrote it; none gives a minimal one.
    pub config: Option<Bytes>,
    /// The config of the base image, whose times are kept.
    pub base_config: Option<Bytes>,
    /// The inline cache: the JSON array of records (see [`crate::cacheconfig`]).
    pub inline_cache: Option<Vec<u8>>,
    /// What is attested of it.
    pub attestations: Vec<Attestation>,
}

impl ExportSource {
    /// Returns the time that `entry` is cut to: the exporter's own, the platform's, or the whole result's.
    ///
    /// # Errors
    /// A frontend that gave no number.
    pub fn epoch(&self, own: Option<Option<i64>>, entry: &PlatformResult) -> Result<Option<i64>> {
        if let Some(own) = own {
            return Ok(own);
        }
        for key in [format!("{EPOCH_KEY}/{}", entry.id), EPOCH_KEY.to_owned()] {
            if let Some(value) = self.metadata.get(&key) {
                return parse_epoch(EPOCH_KEY, &String::from_utf8_lossy(value));
            }
        }
        Ok(None)
    }
}

impl PlatformResult {
    /// Returns the directory that a split output puts this platform into: `linux_arm_v7`.
    pub fn directory(&self) -> String {
        if !self.id.is_empty() {
            return self.id.replace('/', "_");
        }
        // A result without platforms is for the machine that made it.
        let platform = self.platform.clone().unwrap_or_else(Platform::host).normalize();
        platform.short().replace('/', "_")
    }
}

/// Reads SOURCE_DATE_EPOCH; an empty value switches it off.
///
/// # Errors
/// A value that is no whole number of seconds.
pub fn parse_epoch(name: &str, value: &str) -> Result<Option<i64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let seconds: Option<i64> = value.parse().ok();
    match seconds.filter(|s| jiff::Timestamp::from_second(*s).is_ok()) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(ExportError::invalid(name, value, "expected seconds since 1970")),
    }
}

/// What the engine can do about layers whose blobs are not here.
pub trait RemoteLayers: Send + Sync {
    /// Fetches the blob of `layer` that `descriptor` names into the store.
    ///
    /// # Errors
    /// It cannot be had; the text says why.
    fn fetch(&self, layer: &kiln_store::Layer, digest: &Digest) -> Result<kiln_store::Blob>;

    /// Makes the files of every layer of `reference` available.
    ///
    /// # Errors
    /// A blob cannot be had or unpacked; the text says why.
    fn unpack(&self, reference: &ImmutableRef) -> Result<()>;

    /// Returns the repository that the layer's blob came from, for mounting it into another of the same registry.
    fn repository(&self, layer: &kiln_store::Layer) -> Option<kiln_registry::Repository>;
}

/// For results whose layers are all here.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRemoteLayers;

impl NoRemoteLayers {
    fn missing(what: String) -> ExportError {
        let why = "it is not in the store, and nothing is configured to fetch it".to_owned();
        ExportError::Fetch { layer: what, why, class: kiln_stdx::ErrorClass::Environment, hint: None }
    }
}

impl RemoteLayers for NoRemoteLayers {
    fn fetch(&self, _: &kiln_store::Layer, digest: &Digest) -> Result<kiln_store::Blob> {
        Err(Self::missing(digest.to_string()))
    }

    fn unpack(&self, reference: &ImmutableRef) -> Result<()> {
        Err(Self::missing(format!("{:?}", reference.layer_ids())))
    }

    fn repository(&self, _: &kiln_store::Layer) -> Option<kiln_registry::Repository> {
        None
    }
}
