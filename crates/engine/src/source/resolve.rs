//! From an image's name to its manifest and config: index, platform choice, checksums; the same for every origin.

use async_trait::async_trait;
use kiln_oci::{Descriptor, ImageConfig, Index, Manifest, Platform, media};
use kiln_stdx::{Digest, ErrorClass, limits};

use super::stack::StackSource;
use crate::error::EngineError;

/// Where images come from: a registry, or an OCI layout that a client offers.
#[async_trait]
pub trait ImageOrigin: StackSource {
    /// Returns what the name points to now.
    async fn root(&self) -> Result<Descriptor, EngineError>;

    /// Returns a manifest, index or config whole, verified.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError>;
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Digest of what the name points to; an index for images of several platforms.
    pub root: Digest,
    /// Digest of the manifest for the platform.
    pub manifest_digest: Digest,
    pub manifest: Manifest,
    /// The config as it is, byte for byte.
    pub config_json: Vec<u8>,
    pub config: ImageConfig,
    /// Where its layers can be fetched.
    pub locator: String,
}

/// Returns a document that an earlier look-up kept in the store, verified.
pub(super) async fn kept(store: &kiln_store::Store, digest: Digest) -> Option<Vec<u8>> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || store.read_blob(&digest, limits::MANIFEST).ok()).await.ok().flatten()
}

/// Returns the descriptor of an index or manifest that is known by its digest alone.
pub(super) fn described(digest: Digest, bytes: &[u8]) -> Descriptor {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let told = value.get("mediaType").and_then(|kind| kind.as_str());
    let media_type = match (told, value.get("manifests")) {
        (Some(told), _) => told,
        (None, Some(_)) => media::OCI_INDEX,
        (None, None) => media::OCI_MANIFEST,
    };
    Descriptor::new(media_type, digest, bytes.len() as u64)
}

/// Keeps a document in the store, which saves a question next time; not being able to is no reason to fail.
pub(super) async fn keep(store: &kiln_store::Store, bytes: &[u8]) {
    let (store, copy) = (store.clone(), bytes.to_vec());
    let _ = tokio::task::spawn_blocking(move || store.put_blob(&copy).map(drop)).await;
}

/// Finds the image for `platform` behind an origin.
///
/// # Errors
/// Whatever the origin fails with, a platform that the image does not have, or documents that contradict each other.
pub async fn resolve(
    origin: &dyn ImageOrigin,
    platform: &Platform,
    checksum: Option<Digest>,
) -> Result<ResolvedImage, EngineError> {
    let root = origin.root().await?;
    if let Some(wanted) = checksum
        && wanted != root.digest
    {
        return Err(EngineError::user(format!(
            "image digest {} for {} does not match expected checksum {wanted}",
            root.digest,
            origin.name()
        )));
    }
    let (descriptor, json) = manifest_for(origin, root.clone(), platform).await?;
    let manifest = Manifest::from_json(&json)?;
    if !media::is_manifest(manifest.media_type.as_deref().unwrap_or(media::OCI_MANIFEST)) {
        return Err(EngineError::user(format!("{} is not an image", origin.name())));
    }
    check_size(&manifest.config)?;
    let config_json = origin.document(&manifest.config).await?;
    let config = ImageConfig::from_json(&config_json)?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(EngineError::new(
            ErrorClass::Remote,
            format!(
                "image {} has {} layers but {} diff ids",
                origin.name(),
                manifest.layers.len(),
                config.rootfs.diff_ids.len()
            ),
        ));
    }
    let (root, manifest_digest, locator) = (root.digest, descriptor.digest, origin.locator());
    Ok(ResolvedImage { root, manifest_digest, manifest, config_json, config, locator })
}

async fn manifest_for(
    origin: &dyn ImageOrigin,
    root: Descriptor,
    platform: &Platform,
) -> Result<(Descriptor, Vec<u8>), EngineError> {
    let mut descriptor = root;
    // An index may hold indexes; more than a few levels are a mistake or an attack.
    for _ in 0..4 {
        check_size(&descriptor)?;
        let json = origin.document(&descriptor).await?;
        let index = match Index::from_json(&json) {
            Ok(index) if media::is_index(&descriptor.media_type) || !index.manifests.is_empty() => index,
            _ => return Ok((descriptor, json)),
        };
        descriptor = choose(&index, platform).ok_or_else(|| no_match(origin, &index, platform))?;
    }
    Err(EngineError::new(ErrorClass::Remote, format!("image {} nests too many indexes", origin.name())))
}

/// Returns the best manifest of an index for a platform. Attestations are never chosen.
pub(super) fn choose(index: &Index, platform: &Platform) -> Option<Descriptor> {
    let runnable = |d: &&Descriptor| {
        !d.annotations.contains_key("vnd.docker.reference.type")
            && d.platform.as_ref().is_none_or(|p| p.os != "unknown")
    };
    let candidates: Vec<&Descriptor> = index.manifests.iter().filter(runnable).collect();
    let best = candidates
        .iter()
        .filter_map(|d| Some((d.platform.as_ref()?.rank(platform)?, *d)))
        // The first of equals wins, as the index's own order says.
        .fold(None, |best: Option<(u32, &Descriptor)>, (rank, d)| match best {
            Some((top, _)) if top >= rank => best,
            _ => Some((rank, d)),
        })
        .map(|(_, d)| d);
    match (best, candidates.as_slice()) {
        (Some(best), _) => Some(best.clone()),
        // A layout often names its only image without a platform; its config tells then.
        (None, [only]) if only.platform.is_none() => Some((*only).clone()),
        _ => None,
    }
}

fn no_match(origin: &dyn ImageOrigin, index: &Index, platform: &Platform) -> EngineError {
    let mut have: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(Platform::short)
        .collect();
    have.sort();
    have.dedup();
    let error = EngineError::user(format!("{}: no match for platform in manifest: not found", origin.name()));
    error.with_hint(format!("{platform} was asked for; the image has: {}", have.join(", ")))
}

fn check_size(descriptor: &Descriptor) -> Result<(), EngineError> {
    if descriptor.size > limits::MANIFEST {
        return Err(EngineError::new(
            ErrorClass::Remote,
            format!("{} has {} bytes, more than the {} allowed", descriptor.digest, descriptor.size, limits::MANIFEST),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, platform: Option<&str>) -> Descriptor {
        let mut d = Descriptor::of(media::OCI_MANIFEST, text.as_bytes());
        d.platform = platform.map(|p| Platform::parse(p).unwrap());
        d
    }

    #[test]
    fn the_nearest_platform_is_chosen() {
        let index = Index::new(
            media::OCI_INDEX,
            vec![entry("a", Some("linux/arm/v6")), entry("b", Some("linux/arm/v7")), entry("c", Some("linux/amd64"))],
        );
        let chosen = |p: &str| choose(&index, &Platform::parse(p).unwrap()).map(|d| d.digest);
        assert_eq!(chosen("linux/arm/v7"), Some(Digest::of("b")));
        assert_eq!(chosen("linux/arm/v6"), Some(Digest::of("a")));
        assert_eq!(chosen("linux/s390x"), None);
    }

    #[test]
    fn an_attestation_is_no_image() {
        let mut attestation = entry("x", None);
        attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let index = Index::new(media::OCI_INDEX, vec![attestation, entry("c", None)]);
        let chosen = choose(&index, &Platform::parse("linux/amd64").unwrap()).map(|d| d.digest);
        assert_eq!(chosen, Some(Digest::of("c")));
    }
}
