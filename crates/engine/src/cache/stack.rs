//! Results of an imported cache: blobs brought into the store and unpacked, bottom first.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kiln_exporter::cacheconfig::{CREATED_AT, DESCRIPTION, UNCOMPRESSED, seconds};
use kiln_oci::{Descriptor, DiffId, chain_ids, media};
use kiln_solver::OpContext;
use kiln_stdx::ErrorClass;
use kiln_store::{Blob, ImmutableRef, Layer, LazyLayer, RecordType, Store};

use super::keys::StackLoader;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::source::resolve::ImageOrigin;

/// How many blobs of one result are fetched at once.
const PARALLEL: usize = 4;

/// Where the layers of a cache are.
#[async_trait]
pub trait StackSource: Send + Sync {
    /// Returns a name for messages.
    fn name(&self) -> String;

    /// Brings a layer into the store's content, verified, and shows progress in bytes.
    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError>;
}

/// Layers beside a manifest, as those of images are.
pub struct OriginLayers(pub Arc<dyn ImageOrigin>);

#[async_trait]
impl StackSource for OriginLayers {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        self.0.layer(descriptor, store, progress).await
    }
}

/// Loads stacks of layers from where the cache is kept.
pub struct CachedStacks {
    parts: Arc<Parts>,
    origin: Arc<dyn StackSource>,
}

impl CachedStacks {
    /// Returns the loader for a cache kept at `origin`.
    pub fn new(parts: Arc<Parts>, origin: Arc<dyn StackSource>) -> Self {
        Self { parts, origin }
    }

    /// Returns the layers as the store knows them; none need have been fetched.
    fn layers(&self, stack: &[Descriptor]) -> Result<Vec<Layer>, EngineError> {
        let diff_ids = stack.iter().map(diff_id).collect::<Result<Vec<_>, _>>()?;
        let mut layers: Vec<Layer> = Vec::with_capacity(stack.len());
        for ((descriptor, diff_id), chain_id) in stack.iter().zip(&diff_ids).zip(chain_ids(&diff_ids)) {
            let description = descriptor.annotations.get(DESCRIPTION).filter(|text| !text.is_empty());
            let description = description.cloned().unwrap_or_else(|| format!("imported from {}", self.origin.name()));
            layers.push(self.parts.store.lazy_layer(LazyLayer {
                descriptor: plain(descriptor),
                diff_id: *diff_id,
                chain_id,
                origin: self.origin.name(),
                chain: layers.iter().map(Layer::id).collect(),
                description,
                created: created(descriptor),
                record_type: RecordType::Regular,
            })?);
        }
        Ok(layers)
    }

    async fn pull(&self, cx: &OpContext, stack: &[Descriptor]) -> Result<ImmutableRef, EngineError> {
        let store = &self.parts.store;
        let reference = store.ref_of_layers(self.layers(stack)?);
        let lazy = reference.lazy_layers();
        let progress = Progress::new(cx);
        let wanted: Vec<_> = lazy.iter().filter_map(|(place, _)| stack.get(*place)).cloned().collect();
        let fetches: Vec<_> = wanted.iter().map(|blob| self.fetch(blob, &progress).boxed()).collect();
        let mut fetches = futures::stream::iter(fetches).buffered(PARALLEL);
        // Lower layers are unpacked while upper ones are still on their way.
        for ((place, layer), descriptor) in lazy.iter().zip(&wanted) {
            let Some(blob) = fetches.next().await else { break };
            let blob = blob?;
            let (store, layer, parents) = (store.clone(), layer.clone(), reference.prefix(*place));
            let unpack = self.parts.blocking(move || {
                let reader = std::io::BufReader::new(blob.open_verified()?);
                Ok(store.unpack(&layer, &parents, reader)?)
            });
            progress.timed(&format!("extracting {}", descriptor.digest), unpack).await?;
        }
        // Layers that were here already may have been damaged since.
        let (store, copy) = (store.clone(), reference.clone());
        self.parts.blocking(move || Ok(store.check(&copy)?)).await?;
        Ok(reference)
    }

    async fn fetch(&self, descriptor: &Descriptor, progress: &Progress) -> Result<Blob, EngineError> {
        let store = &self.parts.store;
        if let Some(blob) = store.blob(&descriptor.digest) {
            return Ok(blob);
        }
        let started = SystemTime::now();
        let id = descriptor.digest.to_string();
        progress.status(&id, 0, descriptor.size, started, false);
        let shown = std::sync::atomic::AtomicU64::new(0);
        let report = |done: u64| {
            use std::sync::atomic::Ordering::Relaxed;
            // One event for each megabyte is enough for anybody's eyes.
            if done.saturating_sub(shown.load(Relaxed)) >= 1 << 20 {
                shown.store(done, Relaxed);
                progress.status(&id, done, descriptor.size, started, false);
            }
        };
        self.origin.layer(descriptor, store, &report).await?;
        progress.status(&id, descriptor.size, descriptor.size, started, true);
        let gone = || EngineError::new(ErrorClass::Damage, format!("blob {} is gone again", descriptor.digest));
        store.blob(&descriptor.digest).ok_or_else(gone)
    }
}

#[async_trait]
impl StackLoader<ImmutableRef> for CachedStacks {
    async fn load(&self, cx: &OpContext, layers: &[Descriptor]) -> Result<ImmutableRef, EngineError> {
        let loaded = tokio::select! {
            loaded = self.pull(cx, layers) => loaded,
            () = cx.cancel().cancelled() => Err(EngineError::canceled()),
        };
        if let Err(error) = &loaded
            && error.class() != ErrorClass::Canceled
        {
            Progress::new(cx).warn(&format!("a result cannot be taken from cache {}: {error}", self.origin.name()));
        }
        loaded
    }

    fn at_hand(&self, layers: &[Descriptor]) -> Option<ImmutableRef> {
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| diff_id(layer).ok()).collect::<Option<_>>()?;
        let store = &self.parts.store;
        let known: Option<Vec<Layer>> =
            chain_ids(&diff_ids).into_iter().map(|chain| store.layer_by_chain_id(chain)).collect();
        Some(store.ref_of_layers(known?))
    }
}

/// Returns a descriptor without what the cache notes of its layer, which images that have the layer are not to say.
fn plain(descriptor: &Descriptor) -> Descriptor {
    let mut plain = descriptor.clone();
    for note in [CREATED_AT, DESCRIPTION, UNCOMPRESSED] {
        plain.annotations.remove(note);
    }
    plain
}

/// Returns when a layer was made, as the cache tells; 0 if it does not. An image that is made of it then has the times that
/// it had where the cache comes from.
fn created(descriptor: &Descriptor) -> u64 {
    let noted = descriptor.annotations.get(CREATED_AT).map_or(0, |text| seconds(text));
    u64::try_from(noted).unwrap_or(0)
}

/// Returns the digest of a blob's archive: as annotated, or the blob's own where it is not compressed.
fn diff_id(descriptor: &Descriptor) -> Result<DiffId, EngineError> {
    let noted = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
    let plain = matches!(descriptor.media_type.as_str(), media::OCI_LAYER | media::DOCKER_LAYER);
    noted.or(plain.then_some(descriptor.digest)).map(DiffId).ok_or_else(|| {
        let what = format!("the cache does not tell the uncompressed digest of blob {}", descriptor.digest);
        EngineError::new(ErrorClass::Damage, what)
    })
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Digest;

    use super::*;

    #[test]
    fn uncompressed_digests() {
        let blob = |media_type| Descriptor::new(media_type, Digest::of("blob"), 4);
        assert_eq!(diff_id(&blob(media::OCI_LAYER)).unwrap(), DiffId(Digest::of("blob")));
        assert_eq!(diff_id(&blob(media::OCI_LAYER_GZIP)).unwrap_err().class(), ErrorClass::Damage);
        let mut noted = blob(media::OCI_LAYER_GZIP);
        noted.annotations.insert(UNCOMPRESSED.into(), Digest::of("tar").to_string());
        assert_eq!(diff_id(&noted).unwrap(), DiffId(Digest::of("tar")));
        assert_eq!(created(&noted), 0);
        noted.annotations.insert(CREATED_AT.into(), "1970-01-01T00:01:40Z".into());
        assert_eq!(created(&noted), 100);
        noted.annotations.insert("mine".into(), "1".into());
        let left = plain(&noted);
        assert_eq!((left.annotations.len(), left.digest), (1, noted.digest));
    }
}
