//! What is attested of an image that a frontend asks about, by the statements beside it in its index.

use std::collections::BTreeMap;

use kiln_oci::{Descriptor, Index, Manifest, Platform, media};
use kiln_stdx::{Digest, ErrorClass, limits};

use super::lookup::{self, ImageQuery};
use super::resolve::{ImageOrigin, choose};
use crate::bridge::Bridge;
use crate::error::EngineError;

const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// From an image's index to its statements, each document as it is.
#[derive(Debug, Clone, Default)]
pub struct AttestationChain {
    /// The index.
    pub root: Option<Digest>,
    /// The image's manifest for the platform.
    pub image: Option<Digest>,
    /// The manifest of what is attested of it.
    pub attestation: Option<Digest>,
    /// The index, the manifest of attestations, and the statements that were asked for.
    pub blobs: BTreeMap<Digest, (Descriptor, Vec<u8>)>,
}

/// Returns what is attested of an image, with the statements of these predicate types; none for an image without index.
///
/// # Errors
/// The image cannot be had, or a document of it.
pub async fn chain(
    bridge: &Bridge,
    query: ImageQuery<'_>,
    predicates: &[String],
) -> Result<Option<AttestationChain>, EngineError> {
    let platform = query.platform.unwrap_or_else(Platform::host);
    let origin = lookup::origin(bridge, query.name, query.layout, query.pull).await?;
    of(origin.as_ref(), &platform, predicates).await
}

async fn of(
    origin: &dyn ImageOrigin,
    platform: &Platform,
    predicates: &[String],
) -> Result<Option<AttestationChain>, EngineError> {
    let root = origin.root().await?;
    if !media::is_index(&root.media_type) {
        return Ok(None);
    }
    let mut chain = AttestationChain { root: Some(root.digest), ..AttestationChain::default() };
    let json = document(origin, &root, &mut chain).await?;
    let index = Index::from_json(&json)?;
    let Some(image) = choose(&index, platform) else { return Ok(Some(chain)) };
    chain.image = Some(image.digest);
    let Some(beside) = index.manifests.iter().find(|d| is_about(d, &image.digest)) else { return Ok(Some(chain)) };
    chain.attestation = Some(beside.digest);
    let json = document(origin, beside, &mut chain).await?;
    for layer in &Manifest::from_json(&json)?.layers {
        if layer.annotations.get(PREDICATE_TYPE).is_some_and(|kind| predicates.contains(kind)) {
            document(origin, layer, &mut chain).await?;
        }
    }
    Ok(Some(chain))
}

/// Tells whether a manifest of an index attests the image `digest`.
fn is_about(descriptor: &Descriptor, digest: &Digest) -> bool {
    let annotation = |key: &str| descriptor.annotations.get(key).map(String::as_str);
    annotation(REFERENCE_TYPE) == Some("attestation-manifest")
        && annotation(REFERENCE_DIGEST) == Some(digest.to_string().as_str())
}

async fn document(
    origin: &dyn ImageOrigin,
    descriptor: &Descriptor,
    chain: &mut AttestationChain,
) -> Result<Vec<u8>, EngineError> {
    if descriptor.size > limits::FRONTEND_FILE {
        let text = format!("{} has {} bytes, more than a frontend may read", descriptor.digest, descriptor.size);
        return Err(EngineError::new(ErrorClass::Remote, text));
    }
    let bytes = origin.document(descriptor).await?;
    chain.blobs.insert(descriptor.digest, (descriptor.clone(), bytes.clone()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::source::stack::StackSource;

    /// An image in memory.
    struct Held(Descriptor, BTreeMap<Digest, Vec<u8>>);

    #[async_trait]
    impl ImageOrigin for Held {
        async fn root(&self) -> Result<Descriptor, EngineError> {
            Ok(self.0.clone())
        }

        async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
            self.1.get(&descriptor.digest).cloned().ok_or_else(|| EngineError::user("not there"))
        }
    }

    #[async_trait]
    impl StackSource for Held {
        fn name(&self) -> String {
            "held".to_owned()
        }

        async fn has(&self, _: &Descriptor) -> Result<bool, EngineError> {
            Ok(false)
        }

        async fn layer(
            &self,
            _: &Descriptor,
            _: &kiln_store::Store,
            _: &(dyn Fn(u64) + Send + Sync),
        ) -> Result<(), EngineError> {
            Err(EngineError::user("no layers"))
        }
    }

    #[tokio::test]
    async fn statements_are_found_by_their_type() {
        let mut held = BTreeMap::new();
        let mut hold = |kind: &str, bytes: &[u8]| {
            held.insert(Digest::of(bytes), bytes.to_vec());
            Descriptor::of(kind, bytes)
        };
        let statement = |hold: &mut dyn FnMut(&str, &[u8]) -> Descriptor, kind: &str| {
            let mut layer = hold(media::IN_TOTO, kind.as_bytes());
            layer.annotations.insert(PREDICATE_TYPE.into(), kind.into());
            layer
        };
        let layers = vec![statement(&mut hold, "wanted"), statement(&mut hold, "other")];
        let config = hold(media::OCI_CONFIG, b"{}");
        let about = Manifest::new(media::OCI_MANIFEST, config, layers).to_manifest_json().unwrap();
        let mut about = hold(media::OCI_MANIFEST, &about);
        let mut image = Descriptor::of(media::OCI_MANIFEST, b"image");
        image.platform = Some(Platform::host());
        about.annotations.insert(REFERENCE_TYPE.into(), "attestation-manifest".into());
        about.annotations.insert(REFERENCE_DIGEST.into(), image.digest.to_string());
        let index = Index::new(media::OCI_INDEX, vec![image.clone(), about.clone()]).to_manifest_json().unwrap();
        let root = hold(media::OCI_INDEX, &index);
        let origin = Held(root.clone(), held);
        let chain = of(&origin, &Platform::host(), &["wanted".to_owned()]).await.unwrap().unwrap();
        assert_eq!((chain.root, chain.image), (Some(root.digest), Some(image.digest)));
        assert_eq!(chain.attestation, Some(about.digest));
        assert_eq!(chain.blobs.len(), 3);
        assert_eq!(chain.blobs[&Digest::of("wanted")].1, b"wanted");
        let alone = Held(Descriptor::of(media::OCI_MANIFEST, b"image"), BTreeMap::new());
        assert!(of(&alone, &Platform::host(), &[]).await.unwrap().is_none());
    }
}
