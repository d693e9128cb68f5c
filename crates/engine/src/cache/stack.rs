//! Results of an imported cache. They stay where they are until something reads them, with the session of the build that
//! reads them.
//!
//! A result that is left there is used only if the cache has each of its blobs. When one of them cannot be had all the same,
//! the build goes on with another job ([`crate::bridge::Bridge::recovers`]), for which results are fetched and unpacked before
//! they are used ([`BuildContext::eager`]), so that a step is run whose result cannot be had. Blobs that were not given once
//! are not left where they are again ([`crate::parts::Refused`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kiln_exporter::cacheconfig::{CREATED_AT, DESCRIPTION, UNCOMPRESSED, nanoseconds};
use kiln_oci::{Descriptor, DiffId, chain_ids, media};
use kiln_solver::OpContext;
use kiln_stdx::ErrorClass;
use kiln_store::{Blob, ImmutableRef, Layer, LazyLayer, RecordType};

use super::imported::Imported;
use super::keys::StackLoader;
use crate::build::{BuildContext, Progress};
use crate::error::EngineError;
use crate::parts::Parts;
use crate::source::fetch::{only_cached, transfer};
use crate::source::stack::StackSource;

/// How many blobs of one result are fetched at once.
const PARALLEL: usize = 4;
/// How many blobs of one result are asked for at once.
const ASKED: usize = 8;

/// Loads stacks of layers from where the cache is kept.
pub struct CachedStacks {
    parts: Arc<Parts>,
    build: Arc<BuildContext>,
    cache: Arc<Imported>,
}

impl CachedStacks {
    /// Returns the loader for a cache that `build` imported.
    pub fn new(parts: Arc<Parts>, build: Arc<BuildContext>, cache: Arc<Imported>) -> Self {
        Self { parts, build, cache }
    }

    /// Returns the layers as the store knows them; none need have been fetched.
    fn layers(&self, stack: &[Descriptor]) -> Result<Vec<Layer>, EngineError> {
        let diff_ids = stack.iter().map(diff_id).collect::<Result<Vec<_>, _>>()?;
        let mut layers: Vec<Layer> = Vec::with_capacity(stack.len());
        for ((descriptor, diff_id), chain_id) in stack.iter().zip(&diff_ids).zip(chain_ids(&diff_ids)) {
            let description = descriptor.annotations.get(DESCRIPTION).filter(|text| !text.is_empty());
            let description = description.cloned().unwrap_or_else(|| format!("imported from {}", self.cache.name()));
            layers.push(self.parts.store.lazy_layer(LazyLayer {
                descriptor: plain(descriptor),
                diff_id: *diff_id,
                chain_id,
                origin: self.cache.locator(),
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
        let wanted: Vec<_> = lazy.iter().filter_map(|(place, _)| stack.get(*place)).cloned().collect();
        if !self.may_stay(&wanted).await? {
            self.bring(cx, &reference, &lazy, &wanted).await?;
        }
        // Layers that were here already may have been damaged since.
        let (store, copy) = (store.clone(), reference.clone());
        self.parts.blocking(move || Ok(store.check(&copy)?)).await?;
        Ok(reference)
    }

    /// Tells whether a result may be used before its blobs are here.
    async fn may_stay(&self, blobs: &[Descriptor]) -> Result<bool, EngineError> {
        if self.build.eager.load(Ordering::Relaxed) || self.parts.refused.any(blobs) {
            return Ok(false);
        }
        let away = blobs.iter().filter(|blob| self.parts.store.blob(&blob.digest).is_none());
        let asked: Vec<_> = away.map(|blob| async move { (blob, self.cache.has(blob).await) }.boxed()).collect();
        let mut asked = futures::stream::iter(asked).buffer_unordered(ASKED);
        while let Some((blob, found)) = asked.next().await {
            match found {
                Ok(true) => {}
                Ok(false) => {
                    let text = format!("{}: layer {}: not found", self.cache.name(), blob.digest);
                    return Err(EngineError::new(ErrorClass::Remote, text));
                }
                // It may still give what it does not tell of.
                Err(error) => {
                    tracing::debug!(%error, cache = self.cache.name(), "not told whether there is a blob");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Fetches and unpacks the layers `lazy` of a result, whose blobs are `wanted`, bottom first.
    async fn bring(
        &self,
        cx: &OpContext,
        reference: &ImmutableRef,
        lazy: &[(usize, Layer)],
        wanted: &[Descriptor],
    ) -> Result<(), EngineError> {
        let progress = Progress::new(cx);
        let fetches: Vec<_> = wanted.iter().map(|blob| self.fetch(blob, &progress).boxed()).collect();
        let mut fetches = futures::stream::iter(fetches).buffered(PARALLEL);
        // Lower layers are unpacked while upper ones are still on their way.
        for ((place, layer), descriptor) in lazy.iter().zip(wanted) {
            let Some(blob) = fetches.next().await else { break };
            let blob = blob?;
            let (store, layer, parents) = (self.parts.store.clone(), layer.clone(), reference.prefix(*place));
            let unpack = self.parts.blocking(move || {
                let reader = std::io::BufReader::new(blob.open_verified()?);
                Ok(store.unpack(&layer, &parents, reader)?)
            });
            progress.timed(&format!("extracting {}", descriptor.digest), unpack).await?;
        }
        Ok(())
    }

    async fn fetch(&self, blob: &Descriptor, progress: &Progress) -> Result<Blob, EngineError> {
        let parts = &self.parts;
        if let Some(here) = parts.store.blob(&blob.digest) {
            return Ok(here);
        }
        let transfer = transfer(parts, progress, self.cache.as_ref(), blob, &|_| ());
        let fetched = parts.fetches.run(blob.digest, transfer).await;
        parts.refused.note(blob.digest, &fetched);
        fetched
    }

    /// Returns what this build has learned of a blob that it could not have.
    fn known_lost(&self, stack: &[Descriptor]) -> Option<EngineError> {
        let lost = self.build.lost.lock();
        let blob = stack.iter().find(|blob| lost.contains(&blob.digest))?;
        let text = format!("layer {} could not be had from cache {}", blob.digest, self.cache.name());
        Some(EngineError::new(ErrorClass::Remote, text))
    }
}

#[async_trait]
impl StackLoader<ImmutableRef> for CachedStacks {
    async fn load(&self, cx: &OpContext, layers: &[Descriptor]) -> Result<ImmutableRef, EngineError> {
        if let Some(error) = self.known_lost(layers) {
            return Err(error);
        }
        let loaded = tokio::select! {
            loaded = self.pull(cx, layers) => loaded,
            () = cx.cancel().cancelled() => Err(EngineError::canceled()),
        };
        if let Err(error) = &loaded
            && error.class() != ErrorClass::Canceled
        {
            self.cache.warn(&Progress::new(cx), error);
        }
        loaded
    }

    fn at_hand(&self, layers: &[Descriptor]) -> Option<ImmutableRef> {
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| diff_id(layer).ok()).collect::<Option<_>>()?;
        let store = &self.parts.store;
        let known: Option<Vec<Layer>> =
            chain_ids(&diff_ids).into_iter().map(|chain| store.layer_by_chain_id(chain)).collect();
        // What another cache offered once is not at hand by this one.
        let offered = |layer: &Layer| layer.descriptors().iter().any(|form| self.cache.offers(&form.digest));
        let here = |layer: &Layer| !only_cached(store, layer) || offered(layer);
        known.filter(|layers| layers.iter().all(here)).map(|layers| store.ref_of_layers(layers))
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

/// Returns when a layer was made, in nanoseconds since 1970, as the cache tells; 0 if it does not. An image that is made of it then has the times that
/// it had where the cache comes from.
fn created(descriptor: &Descriptor) -> u64 {
    let noted = descriptor.annotations.get(CREATED_AT).map_or(0, |text| nanoseconds(text));
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
        noted.annotations.insert(CREATED_AT.into(), "1970-01-01T00:01:40.5Z".into());
        assert_eq!(created(&noted), 100_500_000_000);
        noted.annotations.insert("mine".into(), "1".into());
        let left = plain(&noted);
        assert_eq!((left.annotations.len(), left.digest), (1, noted.digest));
    }
}
