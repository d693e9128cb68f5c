//! Caches in stores of objects: a plain HTTP server, S3, the cache of GitHub Actions, Azure's blobs.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_exporter::cacheconfig::{self, ParsedCache};
use kiln_objects::{Attrs, Kind, Limits, ObjectError, ObjectStore, fetch};
use kiln_oci::Descriptor;
use kiln_registry::ErrorKind;
use kiln_stdx::{ErrorClass, limits};
use kiln_store::Store;

use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::request::CacheSpec;
use crate::source::registry::is_damage;
use crate::source::stack::{StackSource, take};

/// Attribute of a plain server: the id of a secret of the client whose value is the token.
const TOKEN_SECRET: &str = "token_secret";
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
    let wrap = |kind| failed(ObjectError::of(store.name(), "manifest", kind));
    let read = tokio::time::timeout(store.limits().manifests, store.manifests()).await;
    let manifests = read.map_err(|_| wrap(ErrorKind::Timeout("reading it takes too long")))?.map_err(wrap)?;
    let damaged = |e| EngineError::new(ErrorClass::Remote, format!("{}: the manifest is damaged: {e}", store.name()));
    manifests.iter().map(|bytes| cacheconfig::parse_annotated(bytes).map_err(damaged)).collect()
}

/// Returns the error of a store, with what may help.
pub fn failed(error: ObjectError) -> EngineError {
    let hint = error.hint();
    let mut result = EngineError::new(error.class(), error.to_string());
    if is_damage(&error.kind) {
        result.further_mut().damaged = true;
    }
    match hint {
        Some(hint) => result.with_hint(hint),
        None => result,
    }
}

/// Layers of one store.
pub struct ObjectLayers(pub Arc<dyn ObjectStore>);

#[async_trait]
impl StackSource for ObjectLayers {
    fn name(&self) -> String {
        self.0.name().to_owned()
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        let found = self.0.has(&descriptor.digest).await;
        let object = || format!("blob {}", descriptor.digest);
        found.map_err(|kind| failed(ObjectError::of(self.0.name(), object(), kind)))
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let stream = fetch(self.0.clone(), descriptor.digest, descriptor.size);
        take(store, descriptor, stream, progress, failed).await
    }
}
