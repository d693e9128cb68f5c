//! Images as sources: keyed by their layers, so that a new tag of the same layers is no change.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_oci::{Platform, Reference, chain_ids};
use kiln_session::Session;
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::{ImmutableRef, Layer, LazyLayer, RecordType};
use tokio::sync::OnceCell;

use crate::build::Progress;
use crate::error::EngineError;
use crate::keys;
use crate::parts::{Parts, builds};
use crate::session;
use crate::source::fetch::CACHED;
use crate::source::layout::LayoutImage;
use crate::source::lookup::{Asking, named};
use crate::source::pins::Pins;
use crate::source::resolve::{ImageOrigin, ResolvedImage, resolve};

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
    /// Whether the registry is asked even where the image store has the name.
    pull: bool,
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
        if layer_limit == Some(0) {
            return Err(EngineError::user(format!("invalid layer limit 0 for {name}")));
        }
        let pull = op.attr(attr::IMAGE_RESOLVE_MODE) == Some("pull");
        Ok(Self { parts, kind, name, platform, checksum, layer_limit, pull, resolved: OnceCell::new() })
    }

    /// Returns the session to be asked; a registry may do without.
    async fn session(&self, cx: &OpContext) -> Result<Option<Arc<Session>>, EngineError> {
        match &self.kind {
            Kind::Registry(_) => Ok(session::open_sessions(&self.parts, cx).into_iter().next()),
            Kind::Layout { session: wanted, .. } => {
                match wanted.as_ref().and_then(|id| self.parts.sessions.try_get(id)) {
                    Some(session) => Ok(Some(session)),
                    None => session::any_session(&self.parts, cx).await.map(Some),
                }
            }
        }
    }

    async fn origin(&self, session: Option<Arc<Session>>, offline: bool) -> Result<Arc<dyn ImageOrigin>, EngineError> {
        match (&self.kind, session) {
            (Kind::Registry(reference), session) => {
                named(&self.parts, reference, Asking { pull: self.pull, offline }, session).await
            }
            (Kind::Layout { layout, digest, .. }, Some(session)) => {
                Ok(LayoutImage::new(&session, self.parts.store.clone(), layout, self.name.clone(), *digest))
            }
            (Kind::Layout { .. }, None) => Err(EngineError::user("no active sessions")),
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
            let progress = Progress::new(cx);
            let found = loop {
                let session = self.session(cx).await?;
                let offline = progress.offline();
                let origin = self.origin(session.clone(), offline).await?;
                let work = resolve(origin.as_ref(), &self.platform, self.checksum);
                match progress.timed(&format!("resolve {}", self.name), work).await {
                    Ok(found) => break found,
                    // Another build's session takes over from one that ended.
                    Err(_) if session::lost(session.as_deref(), &session::open_sessions(&self.parts, cx)) => {}
                    // A build that may use the network came meanwhile.
                    Err(_) if offline && !progress.offline() => {}
                    Err(error) => return Err(error),
                }
            };
            Pins::new(&self.parts.store).found(&found);
            for build in builds(cx) {
                build.images.lock().insert(key.clone(), found.clone());
            }
            Ok(found)
        };
        self.resolved.get_or_try_init(|| work).await
    }
}

/// Returns the layers of an image, bottom first and at most `limit`, as the store knows them; none of them need be fetched.
///
/// # Errors
/// The store cannot note them.
pub(crate) fn layers(
    parts: &Parts,
    name: &str,
    image: &ResolvedImage,
    limit: usize,
) -> Result<Vec<Layer>, EngineError> {
    let diff_ids = &image.config.rootfs.diff_ids;
    let chains = chain_ids(diff_ids);
    let mut layers: Vec<Layer> = Vec::new();
    // An image's history tells when its layers were made; those that are not told of are as old as their note here.
    let told = image.config.history.iter().filter(|entry| !entry.empty_layer);
    let mut told = told.map(|entry| entry.created.as_deref().map_or(0, kiln_exporter::cacheconfig::nanoseconds));
    for ((descriptor, diff_id), chain_id) in image.manifest.layers.iter().zip(diff_ids).zip(chains).take(limit) {
        let lazy = LazyLayer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
            chain_id,
            origin: image.locator.clone(),
            // Images say so in their history, where the scheme is nobody's business.
            description: format!("pulled from {}", name.split_once("://").map_or(name, |(_, name)| name)),
            created: told.next().and_then(|nanoseconds| u64::try_from(nanoseconds).ok()).unwrap_or(0),
            record_type: RecordType::Regular,
            chain: layers.iter().map(Layer::id).collect(),
        };
        let layer = parts.store.lazy_layer(lazy)?;
        // An image is there for longer than a cache.
        if layer.origin().is_some_and(|origin| origin.starts_with(CACHED)) {
            parts.store.relocate(&layer, &image.locator)?;
        }
        layers.push(layer);
    }
    Ok(layers)
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
        let also = vec![keys::source(&keys::manifest(&image.root, &self.platform, self.layer_limit))];
        Ok(CacheMap { digest: keys::source(&identity), also, record, deps: Vec::new(), life: KeyLife::Stored })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        // Nothing is fetched here: whoever reads the layers fetches them.
        let image = tokio::select! {
            image = self.resolve(cx) => image?,
            () = cx.cancel().cancelled() => return Err(OpError::canceled()),
        };
        let limit = self.layer_limit.unwrap_or(usize::MAX);
        let layers = layers(&self.parts, &self.name, image, limit)?;
        Ok(vec![self.parts.store.ref_of_layers(layers)])
    }
}
