//! Images from a registry, with the client's credentials.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use kiln_oci::{Descriptor, Reference};
use kiln_registry::{Credentials, Registry, Repository};
use kiln_store::Store;
use tokio::sync::Mutex;

use super::resolve::{ImageOrigin, keep, kept};
use crate::error::EngineError;

/// One name in a registry, as one build sees it.
pub struct RegistryImage {
    registry: Registry,
    store: Store,
    reference: Reference,
    credentials: Credentials,
    /// Answer to `root`: the name is resolved once per build step.
    root: Mutex<Option<Descriptor>>,
}

impl RegistryImage {
    /// Returns the origin of `reference`.
    pub fn new(registry: Registry, store: Store, reference: Reference, credentials: Credentials) -> Arc<Self> {
        Arc::new(Self { registry, store, reference, credentials, root: Mutex::new(None) })
    }

    fn failed(&self, error: kiln_registry::RegistryError) -> EngineError {
        let class = error.class();
        let hint = error.hint();
        let text = crate::error::chain(&error);
        let not_found = if error.is_not_found() && !text.ends_with("not found") { ": not found" } else { "" };
        let mut result = EngineError::new(class, format!("{}: {text}{not_found}", self.reference));
        result.hint = hint;
        result
    }
}

#[async_trait]
impl ImageOrigin for RegistryImage {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    async fn root(&self) -> Result<Descriptor, EngineError> {
        let mut root = self.root.lock().await;
        if let Some(root) = root.as_ref() {
            return Ok(root.clone());
        }
        let resolved = self.registry.resolve(&self.reference, &self.credentials).await.map_err(|e| self.failed(e))?;
        *root = Some(resolved.clone());
        Ok(resolved)
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        if let Some(bytes) = kept(&self.store, descriptor.digest).await {
            return Ok(bytes);
        }
        let repository = Repository::from(&self.reference);
        let bytes = if kiln_oci::media::is_manifest(&descriptor.media_type)
            || kiln_oci::media::is_index(&descriptor.media_type)
            || descriptor.media_type.is_empty()
        {
            let fetched = self.registry.fetch_manifest(&repository, descriptor, &self.credentials).await;
            fetched.map_err(|e| self.failed(e))?.bytes.to_vec()
        } else {
            let opened = self.registry.fetch_blob(&repository, descriptor, &self.credentials).await;
            let mut stream = opened.map_err(|e| self.failed(e))?;
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece.map_err(|e| self.failed(e))?);
            }
            bytes
        };
        keep(&self.store, &bytes).await;
        Ok(bytes)
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let repository = Repository::from(&self.reference);
        let opened = self.registry.fetch_blob(&repository, descriptor, &self.credentials).await;
        let mut stream = opened.map_err(|e| self.failed(e))?;
        let mut ingest = store.ingest(Some(descriptor.digest), Some(descriptor.size))?;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| self.failed(e))?;
            ingest.write_all(&piece)?;
            progress(ingest.written());
        }
        ingest.commit()?;
        Ok(())
    }
}
