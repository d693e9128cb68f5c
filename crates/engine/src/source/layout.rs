//! Images from an OCI layout that a client offers through its session's content store.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_oci::Descriptor;
use kiln_session::{ContentStore, Session};
use kiln_stdx::{Digest, limits};
use kiln_store::Store;

use super::resolve::{ImageOrigin, described, keep, kept};
use super::stack::{StackSource, take};
use crate::error::EngineError;

/// One image of a layout; layouts are always asked by digest, the client resolves tags.
pub struct LayoutImage {
    content: ContentStore,
    store: Store,
    layout: String,
    name: String,
    digest: Digest,
}

impl LayoutImage {
    /// Returns the origin of the image `digest` in the layout that the client calls `layout`.
    pub fn new(session: &Arc<Session>, store: Store, layout: &str, name: String, digest: Digest) -> Arc<Self> {
        let content = session.content(&format!("oci:{layout}"));
        Arc::new(Self { content, store, layout: layout.to_owned(), name, digest })
    }

    fn missing(&self, digest: &Digest) -> EngineError {
        EngineError::user(format!("{}: blob {digest} is not in the OCI layout", self.name))
    }
}

#[async_trait]
impl ImageOrigin for LayoutImage {
    async fn root(&self) -> Result<Descriptor, EngineError> {
        let kept = kept(&self.store, self.digest).await;
        let bytes = match kept {
            Some(bytes) => bytes,
            None => self
                .content
                .read_all(&self.digest, limits::MANIFEST)
                .await
                .map_err(|e| if e.is_not_found() { self.missing(&self.digest) } else { e.into() })?,
        };
        Ok(described(self.digest, &bytes))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        if let Some(bytes) = kept(&self.store, descriptor.digest).await {
            return Ok(bytes);
        }
        let read = self.content.read_all(&descriptor.digest, limits::MANIFEST).await;
        let bytes =
            read.map_err(|e| if e.is_not_found() { self.missing(&descriptor.digest) } else { EngineError::from(e) })?;
        keep(&self.store, &bytes).await;
        Ok(bytes)
    }
}

#[async_trait]
impl StackSource for LayoutImage {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn locator(&self) -> String {
        format!("{}{}@{}", super::fetch::LAYOUT, self.layout, self.digest)
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        let info = self.content.info(&descriptor.digest).await?;
        Ok(info.is_some_and(|info| info.size == descriptor.size))
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let opened = self.content.read(&descriptor.digest, 0, Some(descriptor.size)).await;
        let stream = opened
            .map_err(|e| if e.is_not_found() { self.missing(&descriptor.digest) } else { EngineError::from(e) })?;
        take(store, descriptor, stream, progress, EngineError::from).await
    }
}
