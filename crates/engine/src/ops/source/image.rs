//! Images as sources: keyed by their layers, so that a new tag of the same layers is no change.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_oci::{Descriptor, Platform, Reference, chain_ids};
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::{ImmutableRef, Layer, LazyLayer, RecordType};
use tokio::sync::OnceCell;

use crate::build::Progress;
use crate::error::EngineError;
use crate::keys;
use crate::parts::{Parts, builds};
use crate::session;
use crate::source::layout::LayoutImage;
use crate::source::registry::RegistryImage;
use crate::source::resolve::{ImageOrigin, ResolvedImage, resolve};

/// How many layers of one image are fetched at once.
const PARALLEL: usize = 4;

enum Kind {
    Registry(Reference),
    Layout { layout: String, session: Option<String>, digest: Digest },
}

/// An image of a registry or of a client's OCI layout.
pub struct Image {
    parts: Arc<Parts>,
    kind: Kind,
    name: String,
    platform: Platform,
    checksum: Option<Digest>,
    layer_limit: Option<usize>,
    resolved: OnceCell<ResolvedImage>,
}

impl Image {
    /// Returns the operation of `docker-image://`.
    ///
    /// # Errors
    /// A malformed reference or attribute.
    pub fn registry(parts: Arc<Parts>, name: &str, op: &SourceOp, platform: Platform) -> Result<Self, EngineError> {
        let reference = Reference::parse(name).map_err(|e| EngineError::user(e.to_string()))?;
        let name = reference.to_string();
        Self::new(parts, Kind::Registry(reference), name, op, platform, attr::IMAGE_LAYER_LIMIT)
    }

    /// Returns the operation of `oci-layout://`.
    ///
    /// # Errors
    /// A name without digest, or a malformed attribute.
    pub fn layout(parts: Arc<Parts>, name: &str, op: &SourceOp, platform: Platform) -> Result<Self, EngineError> {
        let (path, digest) = name
            .rsplit_once('@')
            .ok_or_else(|| EngineError::user(format!("oci-layout://{name}: a digest is needed")))?;
        let digest = digest.parse().map_err(|e| EngineError::user(format!("oci-layout://{name}: {e}")))?;
        let layout = op.attr(attr::OCI_STORE).unwrap_or(path).to_owned();
        let session = op.attr(attr::OCI_SESSION).map(str::to_owned);
        let kind = Kind::Layout { layout, session, digest };
        Self::new(parts, kind, format!("oci-layout://{name}"), op, platform, attr::OCI_LAYER_LIMIT)
    }

    fn new(
        parts: Arc<Parts>,
        kind: Kind,
        name: String,
        op: &SourceOp,
        platform: Platform,
        limit: &str,
    ) -> Result<Self, EngineError> {
        let bad = |key: &str| EngineError::user(format!("{name}: bad value for {key}"));
        let checksum =
            op.attr(attr::IMAGE_CHECKSUM).map(|v| v.parse().map_err(|_| bad(attr::IMAGE_CHECKSUM))).transpose()?;
        let layer_limit = op.attr(limit).map(|v| v.parse().map_err(|_| bad(limit))).transpose()?;
        Ok(Self { parts, kind, name, platform, checksum, layer_limit, resolved: OnceCell::new() })
    }

    async fn origin(&self, cx: &OpContext) -> Result<Arc<dyn ImageOrigin>, EngineError> {
        let store = self.parts.store.clone();
        match &self.kind {
            Kind::Registry(reference) => {
                let session = session::open_sessions(&self.parts, cx).into_iter().next();
                let credentials = session::SessionCredentials::new(session);
                Ok(RegistryImage::new(self.parts.registry.clone(), store, reference.clone(), credentials))
            }
            Kind::Layout { layout, session: wanted, digest } => {
                let named = wanted.as_ref().and_then(|id| self.parts.sessions.try_get(id));
                let session = match named {
                    Some(session) => session,
                    None => session::any_session(&self.parts, cx).await?,
                };
                Ok(LayoutImage::new(&session, store, layout, self.name.clone(), *digest))
            }
        }
    }

    async fn resolve(&self, cx: &OpContext) -> Result<&ResolvedImage, EngineError> {
        let work = async {
            let key = (self.name.clone(), self.platform.clone());
            let known = builds(cx).iter().find_map(|build| build.images.lock().get(&key).cloned());
            if let Some(known) = known
                && self.checksum.is_none_or(|wanted| wanted == known.root)
            {
                return Ok(known);
            }
            let origin = self.origin(cx).await?;
            let progress = Progress::new(cx);
            progress
                .timed(&format!("resolve {}", self.name), resolve(origin.as_ref(), &self.platform, self.checksum))
                .await
        };
        self.resolved.get_or_try_init(|| work).await
    }

    /// Returns the layers that are wanted, bottom first, as the store knows them; none of them need be fetched.
    fn layers(&self, image: &ResolvedImage) -> Result<Vec<Layer>, EngineError> {
        let limit = self.layer_limit.unwrap_or(usize::MAX);
        let diff_ids = &image.config.rootfs.diff_ids;
        let chains = chain_ids(diff_ids);
        let mut layers: Vec<Layer> = Vec::new();
        for ((descriptor, diff_id), chain_id) in image.manifest.layers.iter().zip(diff_ids).zip(chains).take(limit) {
            let lazy = LazyLayer {
                descriptor: descriptor.clone(),
                diff_id: *diff_id,
                chain_id,
                origin: self.name.clone(),
                description: format!("pulled from {}", self.name),
                record_type: RecordType::Regular,
                chain: layers.iter().map(Layer::id).collect(),
            };
            layers.push(self.parts.store.lazy_layer(lazy)?);
        }
        Ok(layers)
    }

    async fn pull(&self, cx: &OpContext) -> Result<ImmutableRef, EngineError> {
        let image = self.resolve(cx).await?;
        let origin = self.origin(cx).await?;
        let layers = self.layers(image)?;
        let reference = self.parts.store.ref_of_layers(layers.clone());
        let lazy = reference.lazy_layers();
        let progress = Progress::new(cx);
        let wanted: Vec<Descriptor> = lazy.iter().map(|(place, _)| image.manifest.layers[*place].clone()).collect();
        let fetches =
            wanted.into_iter().map(|layer| fetch(self.parts.clone(), origin.clone(), layer, progress.clone()).boxed());
        let mut fetches = futures::stream::iter(fetches.collect::<Vec<_>>()).buffered(PARALLEL);
        // Layers are unpacked bottom up while later ones are still on their way.
        for (place, layer) in &lazy {
            fetches.next().await.transpose()?;
            let descriptor = image.manifest.layers[*place].clone();
            let (store, layer, parents) = (self.parts.store.clone(), layer.clone(), reference.prefix(*place));
            let label = format!("extracting {}", descriptor.digest);
            let unpack = self.parts.blocking(move || {
                let blob = store
                    .blob(&descriptor.digest)
                    .ok_or_else(|| EngineError::new(kiln_stdx::ErrorClass::Damage, "a fetched layer is gone"))?;
                let reader = std::io::BufReader::new(blob.open()?);
                Ok(store.unpack(&layer, &parents, reader)?)
            });
            progress.timed(&label, unpack).await?;
        }
        Ok(reference)
    }
}

async fn fetch(
    parts: Arc<Parts>,
    origin: Arc<dyn ImageOrigin>,
    descriptor: Descriptor,
    progress: Progress,
) -> Result<(), EngineError> {
    if parts.store.blob(&descriptor.digest).is_some() {
        return Ok(());
    }
    let started = SystemTime::now();
    let id = descriptor.digest.to_string();
    progress.status(&id, 0, descriptor.size, started, false);
    let shown = std::sync::atomic::AtomicU64::new(0);
    let report = |done: u64| {
        // One event for each megabyte is enough for anybody's eyes.
        if done.saturating_sub(shown.load(std::sync::atomic::Ordering::Relaxed)) >= 1 << 20 {
            shown.store(done, std::sync::atomic::Ordering::Relaxed);
            progress.status(&id, done, descriptor.size, started, false);
        }
    };
    origin.layer(&descriptor, &parts.store, &report).await?;
    progress.status(&id, descriptor.size, descriptor.size, started, true);
    Ok(())
}

#[async_trait]
impl Op<ImmutableRef> for Image {
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError> {
        let image = self.resolve(cx).await?;
        let limit = self.layer_limit.unwrap_or(usize::MAX);
        let diff_ids: Vec<_> = image.config.rootfs.diff_ids.iter().copied().take(limit).collect();
        let identity = match chain_ids(&diff_ids).last() {
            Some(chain) => chain.to_string(),
            // An image without layers is known by its config.
            None => image.manifest.config.digest.to_string(),
        };
        let record = KeyRecord::new()
            .with("image", self.name.clone())
            .with("digest", image.manifest_digest.to_string())
            .with("platform", self.platform.short());
        Ok(CacheMap { digest: keys::source(&identity), record, deps: Vec::new(), life: KeyLife::Stored })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        tokio::select! {
            pulled = self.pull(cx) => Ok(vec![pulled?]),
            () = cx.cancel().cancelled() => Err(OpError::canceled()),
        }
    }
}
