//! Caches in directories of the client, reached through its session's content store `local:<directory>`.
//!
//! The client resolves tags to digests before the build and enters the manifest into its index after it.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_oci::{Descriptor, media};
use kiln_session::{ContentStore, Session, SessionError};
use kiln_stdx::{Digest, limits};
use kiln_store::Store;

use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::request::CacheSpec;
use crate::source::resolve::ImageOrigin;
use crate::source::stack::{StackSource, take};

/// Name of the vertex of an export.
pub const VERTEX: &str = "exporting cache to client directory";

/// One cache in a directory of a client.
pub struct LocalCache {
    content: ContentStore,
    name: String,
    digest: Digest,
}

impl LocalCache {
    /// Returns the cache that an import names by `src` and `digest`.
    ///
    /// # Errors
    /// A missing or malformed attribute; the client's session is gone.
    pub async fn open(bridge: &Bridge, spec: &CacheSpec) -> Result<Arc<Self>, EngineError> {
        let (directory, digest) = attributes(spec)?;
        let name = store_id(directory);
        let content = session(bridge).await?.content(&name);
        Ok(Arc::new(Self { content, name, digest }))
    }

    fn failed(&self, digest: &Digest, error: SessionError) -> EngineError {
        if error.is_not_found() {
            return EngineError::user(format!("{}: blob {digest} is not in the directory", self.name));
        }
        error.into()
    }
}

/// Returns directory and digest of an import.
fn attributes(spec: &CacheSpec) -> Result<(&str, Digest), EngineError> {
    let attr = |name: &str| spec.attrs.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let directory = attr("src").ok_or_else(|| EngineError::user("local cache importer requires src"))?;
    let digest = attr("digest").ok_or_else(|| EngineError::user("local cache importer requires explicit digest"))?;
    let digest = digest.parse().map_err(|e| EngineError::user(format!("local cache {directory}: {e}")))?;
    Ok((directory, digest))
}

/// Returns the name by which the client knows the blobs of a directory.
pub fn store_id(directory: &str) -> String {
    format!("local:{directory}")
}

/// Returns the session of the client that started the build.
///
/// # Errors
/// It has none, or it ended.
pub async fn session(bridge: &Bridge) -> Result<Arc<Session>, EngineError> {
    let id = &bridge.build().settings.session;
    if id.is_empty() {
        return Err(EngineError::user("local cache exporter/importer requires session"));
    }
    Ok(bridge.parts().sessions.get(id, limits::SESSION_WAIT).await?)
}

#[async_trait]
impl ImageOrigin for LocalCache {
    async fn root(&self) -> Result<Descriptor, EngineError> {
        let info = self.content.info(&self.digest).await.map_err(|e| self.failed(&self.digest, e))?;
        let missing = || EngineError::user(format!("{}: blob {} is not in the directory", self.name, self.digest));
        // What the manifest is stands in itself.
        Ok(Descriptor::new(media::OCI_MANIFEST, self.digest, info.ok_or_else(missing)?.size))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        let limit = match descriptor.media_type.as_str() {
            media::CACHE_CONFIG => kiln_exporter::cacheconfig::CONFIG_MAX,
            _ => limits::MANIFEST,
        };
        self.content.read_all(&descriptor.digest, limit).await.map_err(|e| self.failed(&descriptor.digest, e))
    }
}

#[async_trait]
impl StackSource for LocalCache {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        let info = self.content.info(&descriptor.digest).await.map_err(|e| self.failed(&descriptor.digest, e))?;
        Ok(info.is_some_and(|info| info.size == descriptor.size))
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let failed = |e| self.failed(&descriptor.digest, e);
        let stream = self.content.read(&descriptor.digest, 0, Some(descriptor.size)).await.map_err(failed)?;
        take(store, descriptor, stream, progress, failed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_names_directory_and_digest() {
        let digest = Digest::of("manifest");
        let read = |attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let spec = CacheSpec { kind: "local".into(), attrs };
            attributes(&spec).map(|(dir, digest)| (dir.to_owned(), digest)).map_err(|e| e.to_string())
        };
        let text = digest.to_string();
        assert_eq!(read(&[("src", "c"), ("digest", &text), ("tag", "t")]), Ok(("c".to_owned(), digest)));
        assert_eq!(read(&[("digest", &text)]), Err("local cache importer requires src".to_owned()));
        assert_eq!(read(&[("src", "c")]), Err("local cache importer requires explicit digest".to_owned()));
        assert!(read(&[("src", "c"), ("digest", "latest")]).unwrap_err().starts_with("local cache c: "));
        assert_eq!(store_id("a/b"), "local:a/b");
    }
}
