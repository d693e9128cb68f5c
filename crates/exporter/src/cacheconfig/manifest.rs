//! The manifest around a cache config: an image manifest whose layers are the blobs, or an index that lists them.

use std::collections::BTreeMap;

use kiln_oci::{Descriptor, Index, JsonError, Manifest, media, to_ordered_json};
use kiln_stdx::Digest;

use crate::layer_media;

/// The forms that registries and importers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheForm {
    /// `image-manifest=true`, OCI media types.
    ImageManifest,
    /// `image-manifest=false` with OCI media types.
    Index,
    /// `image-manifest=false` with Docker's.
    DockerIndex,
}

/// What a manifest says about a cache.
#[derive(Debug, Clone, PartialEq)]
pub enum CacheManifest {
    /// A cache config and the blobs that it names.
    Config { config: Box<Descriptor>, blobs: BTreeMap<Digest, Descriptor> },
    /// An image that may hold an inline cache.
    Image(Box<Manifest>),
    /// Manifests of images that may.
    Images(Vec<Descriptor>),
}

/// Returns the manifest of a cache with its descriptor.
///
/// # Errors
/// Never for descriptors that came from JSON.
pub fn write_manifest(
    form: CacheForm,
    config: Descriptor,
    blobs: &[Descriptor],
) -> Result<(Descriptor, Vec<u8>), JsonError> {
    let oci = form != CacheForm::DockerIndex;
    let mut blobs = blobs.to_vec();
    for blob in &mut blobs {
        // The annotations stay: importers read the uncompressed digests from them.
        let annotations = std::mem::take(&mut blob.annotations);
        layer_media::convert(blob, oci, true);
        blob.annotations = annotations;
    }
    let (media_type, bytes) = match form {
        CacheForm::ImageManifest => {
            let manifest = Manifest::new(media::OCI_MANIFEST, config, blobs);
            (media::OCI_MANIFEST, to_ordered_json("cache manifest", &manifest)?)
        }
        CacheForm::Index | CacheForm::DockerIndex => {
            let media_type = if oci { media::OCI_INDEX } else { media::DOCKER_INDEX };
            blobs.push(config);
            (media_type, to_ordered_json("cache manifest", &Index::new(media_type, blobs))?)
        }
    };
    Ok((Descriptor::of(media_type, &bytes), bytes))
}

/// Tells what a manifest or index is for a cache import. Media types inside decide, not what the registry calls it.
///
/// # Errors
/// Bytes that are neither manifest nor index.
pub fn read_manifest(bytes: &[u8]) -> Result<CacheManifest, JsonError> {
    let by_digest = |blobs: Vec<Descriptor>| blobs.into_iter().map(|b| (b.digest, b)).collect();
    if let Ok(manifest) = Manifest::from_json(bytes) {
        return Ok(match manifest.config.media_type == media::CACHE_CONFIG {
            true => CacheManifest::Config { config: Box::new(manifest.config), blobs: by_digest(manifest.layers) },
            false => CacheManifest::Image(Box::new(manifest)),
        });
    }
    let index = Index::from_json(bytes)?;
    let (mut configs, others): (Vec<_>, Vec<_>) =
        index.manifests.into_iter().partition(|m| m.media_type == media::CACHE_CONFIG);
    Ok(match configs.pop() {
        Some(config) => CacheManifest::Config { config: Box::new(config), blobs: by_digest(others) },
        None => CacheManifest::Images(others.into_iter().filter(|m| media::is_manifest(&m.media_type)).collect()),
    })
}
