//! Images from a registry, with the client's credentials.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use kiln_oci::{Descriptor, Reference};
use kiln_registry::{Credentials, ErrorKind, FetchStart, Registry, RegistryError, Repository};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{Ingest, Store};
use tokio::sync::Mutex;

use super::resolve::{ImageOrigin, keep, kept};
use super::stack::{StackSource, receive};
use crate::error::EngineError;

/// Layers of at most so many bytes are kept in memory until all of one is here, and then written at once: each step of taking
/// in a larger one, on a thread of its own, takes longer than this.
const SMALL: u64 = 16 << 10;

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

    /// Returns the length of a blob of the repository; none if it has no such blob.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, EngineError> {
        match self.registry.blob_size(&Repository::from(&self.reference), digest, &self.credentials).await {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: RegistryError) -> EngineError {
        let class = error.class();
        let hint = error.hint();
        let text = crate::error::chain(&error);
        let not_found = if error.is_not_found() && !text.ends_with("not found") { ": not found" } else { "" };
        let mut result = EngineError::new(class, format!("{}: {text}{not_found}", self.reference));
        result.hint = hint;
        if is_damage(&error.kind) {
            result.further_mut().damaged = true;
        }
        result
    }
}

#[async_trait]
impl ImageOrigin for RegistryImage {
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
}

#[async_trait]
impl StackSource for RegistryImage {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        Ok(self.blob_size(&descriptor.digest).await? == Some(descriptor.size))
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let mut avoid = Vec::new();
        if descriptor.size <= SMALL {
            match self.whole(descriptor, store, progress).await? {
                None => return Ok(()),
                Some(error) if !is_damage(&error.kind) => return Err(self.failed(error)),
                Some(error) => self.avoid(error, &mut avoid)?,
            }
        }
        loop {
            let (store, digest, size) = (store.clone(), descriptor.digest, descriptor.size);
            // What came of an earlier attempt is read again for its digest, which takes its time.
            let begun = tokio::task::spawn_blocking(move || store.resume(digest, size)).await;
            let ingest = begun.map_err(|e| panicked(&e))??;
            let resumed = ingest.written() > 0;
            let (ingest, error) = match self.receive(descriptor, ingest, &avoid, progress).await? {
                (ingest, None) => return Ok(ingest.commit().map(drop)?),
                (ingest, Some(error)) => (ingest, error),
            };
            if !is_damage(&error.kind) {
                return Err(self.failed(error));
            }
            // It may be what was here, or what this host gave: start over, the second time with other hosts.
            ingest.discard();
            if !resumed {
                self.avoid(error, &mut avoid)?;
            }
        }
    }
}

impl RegistryImage {
    /// Notes a host that gave something else than was asked for.
    ///
    /// # Errors
    /// There is no other host to ask.
    fn avoid(&self, error: RegistryError, avoid: &mut Vec<String>) -> Result<(), EngineError> {
        avoid.push(error.host.to_string());
        let hosts = self.registry.pull_hosts(&Repository::from(&self.reference));
        if avoid.len() >= hosts { Err(self.failed(error)) } else { Ok(()) }
    }

    /// Receives a small layer and adds it to the store. Returns what the registry failed with.
    async fn whole(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<RegistryError>, EngineError> {
        let repository = Repository::from(&self.reference);
        let mut stream = match self.registry.fetch_blob(&repository, descriptor, &self.credentials).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Some(error)),
        };
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => return Ok(Some(error)),
            }
            progress(bytes.len() as u64);
        }
        let (store, digest, size) = (store.clone(), descriptor.digest, descriptor.size);
        let written = tokio::task::spawn_blocking(move || {
            let mut ingest = store.ingest(Some(digest), Some(size))?;
            // The stream ends well only if the whole has the descriptor's digest and length.
            ingest.trust();
            ingest.write_all(&bytes)?;
            Ok::<_, EngineError>(ingest.commit().map(drop)?)
        });
        written.await.map_err(|e| panicked(&e))?.map(|()| None)
    }

    /// Receives a layer, or the rest of it, while what came before is being written. Returns what the registry failed
    /// with, all that came before that being written.
    async fn receive(
        &self,
        descriptor: &Descriptor,
        mut ingest: Ingest,
        avoid: &[String],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Ingest, Option<RegistryError>), EngineError> {
        let repository = Repository::from(&self.reference);
        // The stream ends well only if the whole has the descriptor's digest and length.
        let start = FetchStart { offset: ingest.written(), hasher: ingest.trust(), avoid: avoid.to_vec() };
        let stream = match self.registry.fetch_blob_from(&repository, descriptor, start, &self.credentials).await {
            Ok(stream) => stream,
            Err(error) => return Ok((ingest, Some(error))),
        };
        receive(ingest, stream, progress).await
    }
}

/// Tells whether something else came than was asked for.
pub(crate) fn is_damage(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::DigestMismatch { .. } | ErrorKind::LengthMismatch { .. })
}

fn panicked(error: &tokio::task::JoinError) -> EngineError {
    EngineError::new(ErrorClass::Bug, format!("a task panicked: {error}"))
}
