//! Caches in stores of objects: a plain HTTP server, S3, the cache of GitHub Actions, Azure's blobs.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use kiln_exporter::cacheconfig::{self, ParsedCache};
use kiln_objects::{Attrs, Kind, Limits, ObjectError, ObjectStore, fetch};
use kiln_oci::Descriptor;
use kiln_registry::ErrorKind;
use kiln_stdx::{ErrorClass, limits};
use kiln_store::Store;
use tokio::sync::mpsc;

use super::stack::StackSource;
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::request::CacheSpec;

/// Attribute of a plain server: the id of a secret of the client whose value is the token.
const TOKEN_SECRET: &str = "token_secret";
/// Transfers in a row that may fail before a store is given up for the rest of a build: each takes its time to fail.
const FAILURES: u32 = 2;
/// Pieces of a layer that may wait for the disk; each is some ten kilobytes.
const AHEAD: usize = 32;

/// Checks what can be checked of attributes before anything is asked.
///
/// # Errors
/// Attributes that are missing or wrong.
pub fn check(kind: Kind, attrs: &Attrs) -> Result<(), EngineError> {
    kiln_objects::open(kind, attrs, &environment, Limits::default()).map(drop).map_err(failed)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the store that a cache names.
///
/// # Errors
/// Attributes that are missing or wrong; a secret that the client does not have.
pub async fn open(bridge: &Bridge, kind: Kind, spec: &CacheSpec) -> Result<Arc<dyn ObjectStore>, EngineError> {
    let mut attrs = spec.attrs.clone();
    if let Some(id) = attrs.remove(TOKEN_SECRET).filter(|_| kind == Kind::Http) {
        let session = bridge.parts().sessions.get(&bridge.build().settings.session, limits::SESSION_WAIT).await?;
        let secret = session.secret(&id).await?;
        let secret = secret.ok_or_else(|| {
            EngineError::user(format!("http cache: secret {id} not found"))
                .with_hint(format!("give it with --secret id={id},…"))
        })?;
        attrs.insert("token".to_owned(), String::from_utf8_lossy(secret.expose()).trim().to_owned());
    }
    kiln_objects::open(kind, &attrs, &environment, Limits::default()).map_err(failed)
}

/// Reads the caches that the store has under its names.
///
/// # Errors
/// The store cannot be reached, refuses, has nothing under these names, or what it has is damaged.
pub async fn parse(store: &dyn ObjectStore) -> Result<Vec<ParsedCache>, EngineError> {
    let wrap = |kind| failed(ObjectError { store: store.name().to_owned(), kind });
    let read = tokio::time::timeout(store.limits().manifests, store.manifests()).await;
    let manifests = read.map_err(|_| wrap(ErrorKind::Timeout("reading it takes too long")))?.map_err(wrap)?;
    let damaged = |e| EngineError::new(ErrorClass::Remote, format!("{}: the manifest is damaged: {e}", store.name()));
    manifests.iter().map(|bytes| cacheconfig::parse_annotated(bytes).map_err(damaged)).collect()
}

fn failed(error: ObjectError) -> EngineError {
    let hint = error.hint();
    let result = EngineError::new(error.class(), error.to_string());
    match hint {
        Some(hint) => result.with_hint(hint),
        None => result,
    }
}

/// Layers of one store, for one build.
pub struct ObjectLayers {
    store: Arc<dyn ObjectStore>,
    failures: AtomicU32,
}

impl ObjectLayers {
    /// Returns the layers of `store`.
    pub fn new(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { store, failures: AtomicU32::new(0) })
    }

    async fn receive(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let mut stream = fetch(self.store.clone(), descriptor.digest, descriptor.size);
        let mut ingest = store.ingest(Some(descriptor.digest), Some(descriptor.size))?;
        let (pieces, mut queue) = mpsc::channel::<Bytes>(AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = queue.blocking_recv() {
                ingest.write_all(&piece)?;
            }
            Ok::<_, std::io::Error>(ingest)
        });
        let mut received = 0;
        let mut failure = None;
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => {
                    received += piece.len() as u64;
                    // The writer ends early only with an error of its own.
                    if pieces.send(piece).await.is_err() {
                        break;
                    }
                    progress(received);
                }
                Err(error) => {
                    failure = Some(failed(error));
                    break;
                }
            }
        }
        drop(pieces);
        let written = writing.await.map_err(|e| EngineError::from_error(ErrorClass::Bug, e))??;
        match failure {
            Some(error) => Err(error),
            None => Ok(written.commit().map(drop)?),
        }
    }
}

#[async_trait]
impl StackSource for ObjectLayers {
    fn name(&self) -> String {
        self.store.name().to_owned()
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        if self.failures.load(Ordering::Relaxed) >= FAILURES {
            let text = format!("{}: given up after {FAILURES} transfers that failed", self.name());
            return Err(EngineError::new(ErrorClass::Remote, text));
        }
        let outcome = self.receive(descriptor, store, progress).await;
        match &outcome {
            Ok(()) => self.failures.store(0, Ordering::Relaxed),
            // One damaged object says nothing of others, and is told soon.
            Err(error) if error.class() == ErrorClass::Remote && !is_damage(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        outcome
    }
}

fn is_damage(error: &EngineError) -> bool {
    error.to_string().contains("mismatch")
}
