//! Remote caches on their way out: layers of refs, a config over them, one manifest around both.

mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_oci::{Descriptor, Reference, media, to_ordered_json};
use kiln_registry::{Credentials, Registry};
use kiln_session::Session;
use kiln_snapshot::compress::Compression;
use kiln_stdx::Digest;
use kiln_store::{BlobOptions, ImmutableRef, Layer, LayerBlob, StoreError};

use crate::cacheconfig::{self, CREATED_AT, CacheForm, CacheNode, DESCRIPTION, UNCOMPRESSED};
use crate::content::{Content, Data};
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::image_config::format_nanoseconds;
use crate::progress::Status;
use crate::{push, send};

pub use objects::ObjectCache;

/// How the layers of a cache are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheCompression {
    pub compression: Compression,
    /// Recompress layers that are in another form.
    pub force: bool,
}

/// Collects the layers that results are made of; equal ones are made once.
pub struct CacheLayers {
    context: ExportContext,
    compression: CacheCompression,
    contents: BTreeMap<Digest, Content>,
}

/// A finished cache: every piece of it, the manifest last.
pub struct BuiltCache {
    /// The manifest.
    pub descriptor: Descriptor,
    contents: Vec<Content>,
    context: ExportContext,
}

impl CacheLayers {
    /// Returns a collection with nothing in it.
    pub fn new(context: &ExportContext, compression: CacheCompression) -> Self {
        Self { context: context.clone(), compression, contents: BTreeMap::new() }
    }

    /// Returns the descriptors of a ref's layers, bottom first, for a [`cacheconfig::CacheResult`]. Blocking.
    ///
    /// # Errors
    /// A layer that cannot be had, damage, a full disk.
    pub fn add(&mut self, reference: &ImmutableRef) -> Result<Vec<Descriptor>> {
        let made = crate::parallel::map(reference.layers(), |layer| self.layer(layer))?;
        let mut descriptors = Vec::with_capacity(made.len());
        for content in made {
            descriptors.push(content.descriptor.clone());
            self.contents.entry(content.descriptor.digest).or_insert(content);
        }
        Ok(descriptors)
    }

    fn layer(&self, layer: &Layer) -> Result<Content> {
        self.context.check_canceled()?;
        let CacheCompression { compression, force } = self.compression;
        let LayerBlob { mut descriptor, diff_id, blob } =
            layer_blob(&self.context, layer, &BlobOptions { compression, force, epoch: None, here: false })?;
        let notes = &mut descriptor.annotations;
        notes.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        notes.insert(CREATED_AT.to_owned(), format_nanoseconds(layer.created().into()));
        notes.insert(DESCRIPTION.to_owned(), layer.description());
        notes.retain(|_, text| !text.is_empty());
        let data = blob.map_or_else(|| Data::Remote(layer.clone()), Data::Blob);
        Ok(Content { descriptor, data, layer: Some(layer.clone()) })
    }

    /// Makes the cache of `nodes`, whose results are layers of this collection; none where no key has a result.
    ///
    /// # Errors
    /// Never for nodes made of this collection.
    pub fn finish(self, nodes: &[CacheNode], form: CacheForm) -> Result<Option<BuiltCache>> {
        let (config, blobs) = cacheconfig::build(nodes);
        if config.layers.is_empty() {
            return Ok(None);
        }
        let config = to_ordered_json("cache config", &config)?;
        let config_descriptor = Descriptor::of(media::CACHE_CONFIG, &config);
        let (descriptor, manifest) = cacheconfig::write_manifest(form, config_descriptor.clone(), &blobs)?;
        let mut contents: Vec<Content> = blobs.iter().filter_map(|b| self.contents.get(&b.digest).cloned()).collect();
        contents.push(Content::document(config_descriptor, config));
        contents.push(Content::document(descriptor.clone(), manifest));
        Ok(Some(BuiltCache { descriptor, contents, context: self.context }))
    }
}

impl BuiltCache {
    /// Returns what the client gets told, from which it writes its directory's `index.json`.
    ///
    /// # Errors
    /// Never for a cache built here.
    pub fn response(&self) -> Result<BTreeMap<String, String>> {
        let descriptor = to_ordered_json("descriptor", &self.descriptor)?;
        Ok(BTreeMap::from([("cache.manifest".to_owned(), String::from_utf8_lossy(&descriptor).into_owned())]))
    }

    /// Returns all pieces, the manifest last.
    pub fn contents(&self) -> &[Content] {
        &self.contents
    }

    /// Copies the cache into the client's blob store `store` (`local:<directory>`).
    ///
    /// # Errors
    /// A client that does not take it; damage found on the way.
    pub async fn send(&self, session: &Arc<Session>, store: &str) -> Result<()> {
        for content in &self.contents {
            let _status = Status::start(&self.context.progress, self.status(content), content.descriptor.size);
            send::content(&self.context, session, store, content).await?;
        }
        Ok(())
    }

    /// Uploads the cache under `name`.
    ///
    /// # Errors
    /// The registry refuses or cannot be reached; damage found on the way.
    pub async fn push(&self, name: &Reference, registry: &Registry, credentials: &Credentials) -> Result<()> {
        let (manifest, blobs) = match self.contents.split_last() {
            Some(parts) => parts,
            None => return Ok(()),
        };
        push::push_cache(&self.context, name, blobs, manifest, registry, credentials).await
    }

    fn status(&self, content: &Content) -> String {
        let digest = content.descriptor.digest;
        match content.descriptor.media_type.as_str() {
            media::CACHE_CONFIG => format!("writing config {digest}"),
            media::OCI_MANIFEST => format!("writing cache image manifest {digest}"),
            _ if digest == self.descriptor.digest => format!("writing cache manifest {digest}"),
            _ => format!("writing layer {digest}"),
        }
    }
}

/// Returns a compressed form of a layer, fetching its blob where only that can give it.
pub(crate) fn layer_blob(context: &ExportContext, layer: &Layer, wanted: &BlobOptions) -> Result<LayerBlob> {
    match context.store.layer_blob(layer, wanted) {
        Err(StoreError::MissingBlob(digest)) => match context.remote.fetch(layer, &digest) {
            Ok(_) => Ok(context.store.layer_blob(layer, wanted)?),
            Err(error) => from_files(context, layer, wanted, &digest, error),
        },
        other => Ok(other?),
    }
}

/// As [`layer_blob`], with the bytes here: fetched, or, where the place they came from no longer has them, made from the
/// layer's files, which gives the layer another digest but the same content.
pub(crate) fn layer_blob_here(context: &ExportContext, layer: &Layer, wanted: &BlobOptions) -> Result<LayerBlob> {
    let mut found = layer_blob(context, layer, wanted)?;
    if found.blob.is_some() {
        return Ok(found);
    }
    let digest = found.descriptor.digest;
    match context.remote.fetch(layer, &digest) {
        Ok(blob) => {
            found.blob = Some(blob);
            Ok(found)
        }
        Err(error) => from_files(context, layer, wanted, &digest, error),
    }
}

/// Makes a form of a layer whose own blob cannot be fetched, for the reason `error`, from its files where these are here.
fn from_files(
    context: &ExportContext,
    layer: &Layer,
    wanted: &BlobOptions,
    digest: &Digest,
    error: ExportError,
) -> Result<LayerBlob> {
    if !layer.is_unpacked() || error.class() == kiln_stdx::ErrorClass::Canceled {
        return Err(error);
    }
    let what = format!("layer {digest} cannot be fetched again and is made from its files");
    context.progress.warn(&format!("{what}: {error}"));
    Ok(context.store.layer_blob(layer, &BlobOptions { here: true, ..wanted.clone() })?)
}
