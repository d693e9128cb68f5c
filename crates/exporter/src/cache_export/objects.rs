//! A remote cache for a store of objects: blobs, and a config that tells what they are.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use kiln_objects::{ObjectError, ObjectStore, Stored};
use kiln_oci::to_ordered_json;
use kiln_stdx::Digest;
use parking_lot::Mutex;

use super::CacheLayers;
use crate::cacheconfig::{self, CacheNode};
use crate::content::Content;
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::progress::Status;
use crate::push;

/// A finished cache without a manifest around it.
pub struct ObjectCache {
    blobs: Vec<Content>,
    config: Bytes,
    context: ExportContext,
}

impl CacheLayers {
    /// As [`CacheLayers::finish`], for a store of objects.
    ///
    /// # Errors
    /// Never for nodes made of this collection.
    pub fn finish_objects(self, nodes: &[CacheNode]) -> Result<Option<ObjectCache>> {
        let (config, blobs) = cacheconfig::build_annotated(nodes);
        if config.layers.is_empty() {
            return Ok(None);
        }
        let config = cacheconfig::seal(&to_ordered_json("cache config", &config)?).into();
        let blobs = blobs.iter().filter_map(|blob| self.contents.get(&blob.digest).cloned()).collect();
        Ok(Some(ObjectCache { blobs, config, context: self.context }))
    }
}

impl ObjectCache {
    /// Sends what the store does not have, then the config.
    ///
    /// # Errors
    /// The store refuses or cannot be reached; damage found on the way.
    pub async fn put(&self, store: &dyn ObjectStore) -> Result<()> {
        // Boxed: the compiler cannot show that a stream of borrowing futures may change threads.
        let mut uploads: Vec<BoxFuture<'_, Result<Stored>>> = Vec::with_capacity(self.blobs.len());
        for content in &self.blobs {
            uploads.push(Box::pin(self.unless_canceled(self.blob(content, store))));
        }
        let uploads = futures::stream::iter(uploads).buffer_unordered(store.uploads().max(1));
        let stored = uploads.try_collect::<Vec<Stored>>().await?;
        let awaited = stored.iter().filter(|stored| **stored == Stored::Awaited).count();
        if awaited > 0 {
            self.context.progress.warn(&format!(
                "{}: {awaited} layers are held by another export, or by one that was cut off; imports do without them \
                 until they are there",
                store.name()
            ));
        }
        let id = format!("writing config {}", Digest::of(&self.config));
        let _status = Status::start(&self.context.progress, id, 0);
        let config =
            async { store.put_manifest(self.config.clone()).await.map_err(|kind| failed(store, "manifest", kind)) };
        self.unless_canceled(config).await
    }

    async fn unless_canceled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            () = self.context.cancel.cancelled() => Err(ExportError::Canceled),
            done = work => done,
        }
    }

    async fn blob(&self, content: &Content, store: &dyn ObjectStore) -> Result<Stored> {
        let (digest, size) = (content.descriptor.digest, content.descriptor.size);
        let object = format!("layer {digest}");
        if store.has(&digest).await.map_err(|kind| failed(store, &object, kind))? {
            return Ok(Stored::There);
        }
        let status = Status::start(&self.context.progress, format!("writing layer {digest}"), size);
        let source = push::source(&self.context, content, &Arc::new(Mutex::new(status)));
        store.put(&digest, size, source).await.map_err(|kind| failed(store, &object, kind))
    }
}

fn failed(store: &dyn ObjectStore, object: &str, kind: kiln_registry::ErrorKind) -> ExportError {
    ExportError::Objects(Box::new(ObjectError::of(store.name(), object, kind)))
}
