//! Layers that nobody has read yet: fetched and unpacked when somebody needs their bytes, once for all who ask at a time.
//!
//! A pull notes an image's layers without fetching them. What only passes them on (labels, a merge, a push to the registry
//! they came from) never needs more than their descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures::{FutureExt, StreamExt};
use kiln_oci::{Descriptor, Reference};
use kiln_registry::Repository;
use kiln_session::Session;
use kiln_solver::OpContext;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{Blob, ImmutableRef, Layer};

use super::images::StoredImage;
use super::layout::LayoutImage;
use super::registry::RegistryImage;
use super::resolve::ImageOrigin;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session::SessionCredentials;

/// How many layers of one chain are fetched at once.
const PARALLEL: usize = 4;
/// Beginning of the locator of an image in the engine's own store; the name follows.
pub(super) const STORED: &str = "kiln-image://";
/// Beginning of the locator of a client's layout; name of the layout, `@` and digest follow.
pub(super) const LAYOUT: &str = "oci-layout://";
/// Bytes between two reports: one event for each megabyte is enough for anybody's eyes.
const GRAIN: u64 = 1 << 20;

/// Makes the files of all layers of `references` available.
///
/// # Errors
/// A layer cannot be had from where it came, or is not what was announced.
pub async fn unpack<'a>(
    parts: &Parts,
    progress: &Progress,
    references: impl IntoIterator<Item = &'a ImmutableRef>,
) -> Result<(), EngineError> {
    for reference in references {
        if !reference.is_unpacked() {
            unpack_one(parts, progress, reference).await?;
        }
    }
    Ok(())
}

/// Makes the files of an operation's inputs available, unless the call is called off.
///
/// # Errors
/// As [`unpack`].
pub async fn unpack_inputs<'a>(
    parts: &Parts,
    cx: &OpContext,
    inputs: impl IntoIterator<Item = &'a ImmutableRef>,
) -> Result<(), EngineError> {
    let progress = Progress::new(cx);
    tokio::select! {
        unpacked = unpack(parts, &progress, inputs) => unpacked,
        () = cx.cancel().cancelled() => Err(EngineError::canceled()),
    }
}

/// Layers are unpacked bottom up while later ones are still on their way.
async fn unpack_one(parts: &Parts, progress: &Progress, reference: &ImmutableRef) -> Result<(), EngineError> {
    let lazy = reference.lazy_layers();
    let fetches: Vec<_> = lazy.iter().map(|(_, layer)| any_blob(parts, progress, layer).boxed()).collect();
    let mut fetches = futures::stream::iter(fetches).buffered(PARALLEL);
    let (done, mut ready) = tokio::sync::mpsc::channel(lazy.len().max(1));
    // Two loops, so that bytes go on coming while a layer is unpacked.
    let fetching = async {
        while let Some(blob) = fetches.next().await.transpose()? {
            // The other loop ends early only with an error of its own.
            let _ = done.send(blob).await;
        }
        drop(done);
        Ok(())
    };
    let unpacking = async {
        for (place, layer) in &lazy {
            let Some(blob) = ready.recv().await else { break };
            if layer.is_unpacked() {
                continue;
            }
            let (store, layer, below) = (parts.store.clone(), layer.clone(), reference.prefix(*place));
            let label = format!("extracting {}", blob.digest());
            let work = parts.unpacking(move || {
                let reader = std::io::BufReader::new(blob.open()?);
                Ok(store.unpack(&layer, &below, reader)?)
            });
            progress.timed(&label, work).await?;
        }
        Ok(())
    };
    tokio::try_join!(fetching, unpacking).map(drop)
}

/// Brings some form of every layer that has neither files nor a form here, so that each can be put out.
///
/// # Errors
/// As [`unpack`].
pub async fn fetch_missing(
    parts: &Parts,
    progress: &Progress,
    reference: &ImmutableRef,
) -> Result<Vec<Blob>, EngineError> {
    let lazy = reference.lazy_layers();
    let fetches: Vec<_> = lazy.iter().map(|(_, layer)| any_blob(parts, progress, layer).boxed()).collect();
    futures::stream::iter(fetches).buffered(PARALLEL).collect::<Vec<_>>().await.into_iter().collect()
}

/// Returns any form of a layer, one that is here rather than one that has to be fetched.
async fn any_blob(parts: &Parts, progress: &Progress, layer: &Layer) -> Result<Blob, EngineError> {
    let forms = layer.descriptors();
    if let Some(blob) = forms.iter().find_map(|form| parts.store.blob(&form.digest)) {
        return Ok(blob);
    }
    // The form noted last is that of the newest pull.
    let form = forms.last().ok_or_else(|| {
        EngineError::new(ErrorClass::Bug, format!("layer {} has neither files nor a blob", layer.id()))
    })?;
    blob(parts, progress, layer, &form.digest).await
}

/// Returns the form `digest` of a layer, fetched from where the layer came unless it is here. Of several callers at once
/// one fetches.
///
/// # Errors
/// It cannot be had from where it came, or is not what was announced.
pub async fn blob(parts: &Parts, progress: &Progress, layer: &Layer, digest: &Digest) -> Result<Blob, EngineError> {
    if let Some(blob) = parts.store.blob(digest) {
        return Ok(blob);
    }
    let descriptor = layer.descriptors().into_iter().find(|form| form.digest == *digest);
    let descriptor = descriptor
        .ok_or_else(|| EngineError::new(ErrorClass::Bug, format!("layer {} has no form {digest}", layer.id())))?;
    parts.fetches.run(*digest, fetch(parts, progress, layer, &descriptor)).await
}

async fn fetch(
    parts: &Parts,
    progress: &Progress,
    layer: &Layer,
    descriptor: &Descriptor,
) -> Result<Blob, EngineError> {
    if let Some(blob) = parts.store.blob(&descriptor.digest) {
        return Ok(blob);
    }
    let open = || -> Vec<Arc<Session>> {
        progress.builds().iter().filter_map(|build| parts.sessions.try_get(&build.settings.session)).collect()
    };
    let mut failure = None;
    let mut locators = std::collections::VecDeque::from(locators(progress, layer, &descriptor.digest));
    while let Some(locator) = locators.pop_front() {
        let session = open().into_iter().next();
        let got = match origin(parts, session.clone(), &locator).await {
            Ok(Some(origin)) => transfer(parts, progress, origin.as_ref(), descriptor).await,
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match got {
            Ok(blob) => return Ok(blob),
            Err(error) if error.class() == ErrorClass::Canceled => return Err(error),
            // Another build's session takes over from one that ended.
            Err(_) if crate::session::lost(session.as_deref(), &open()) => locators.push_front(locator),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| {
        let from = layer.origin().unwrap_or_else(|| "nowhere".to_owned());
        let text = format!("layer {} of {from} was not fetched yet, and nothing gives it now", descriptor.digest);
        EngineError::new(ErrorClass::Remote, text).with_hint("build with the image it came from within reach")
    }))
}

async fn transfer(
    parts: &Parts,
    progress: &Progress,
    origin: &dyn ImageOrigin,
    descriptor: &Descriptor,
) -> Result<Blob, EngineError> {
    let started = SystemTime::now();
    let id = descriptor.digest.to_string();
    progress.status(&id, 0, descriptor.size, started, false);
    let shown = AtomicU64::new(0);
    let report = |done: u64| {
        if done.saturating_sub(shown.load(Ordering::Relaxed)) >= GRAIN {
            shown.store(done, Ordering::Relaxed);
            progress.status(&id, done, descriptor.size, started, false);
        }
    };
    origin.layer(descriptor, &parts.store, &report).await?;
    progress.status(&id, descriptor.size, descriptor.size, started, true);
    let gone = || EngineError::new(ErrorClass::Damage, format!("blob {} is gone again", descriptor.digest));
    parts.store.blob(&descriptor.digest).ok_or_else(gone)
}

/// Returns where a form may be had: first where the builds that want it found it, then where it was first seen.
fn locators(progress: &Progress, layer: &Layer, digest: &Digest) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for build in progress.builds() {
        let images = build.images.lock();
        let with_layer = images.values().filter(|i| i.manifest.layers.iter().any(|l| l.digest == *digest));
        found.extend(with_layer.map(|image| image.locator.clone()));
    }
    found.extend(layer.origin());
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|locator| seen.insert(place(locator)));
    found
}

/// Returns what tells places apart: of a registry's names only the repository counts.
fn place(locator: &str) -> String {
    match Reference::parse(locator) {
        Ok(reference) if !locator.contains("://") => Repository::from(&reference).to_string(),
        _ => locator.to_owned(),
    }
}

/// Returns the image of a locator; none where no client offers its layout now.
async fn origin(
    parts: &Parts,
    session: Option<Arc<Session>>,
    locator: &str,
) -> Result<Option<Arc<dyn ImageOrigin>>, EngineError> {
    if let Some(name) = locator.strip_prefix(STORED) {
        let reference = Reference::parse(name).map_err(|e| EngineError::user(e.to_string()))?;
        return Ok(StoredImage::find(parts, &reference).await?.map(|image| image as Arc<dyn ImageOrigin>));
    }
    if let Some(place) = locator.strip_prefix(LAYOUT) {
        let Some((layout, digest)) = place.rsplit_once('@') else { return Ok(None) };
        let (Some(session), Ok(digest)) = (session, digest.parse()) else { return Ok(None) };
        return Ok(Some(LayoutImage::new(&session, parts.store.clone(), layout, locator.to_owned(), digest)));
    }
    let Ok(reference) = Reference::parse(locator) else { return Ok(None) };
    let credentials = SessionCredentials::new(session);
    Ok(Some(RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference, credentials)))
}

/// Returns the registry reference that a layer came from, if it came from a registry.
pub fn registry_of(layer: &Layer) -> Option<Reference> {
    let origin = layer.origin()?;
    (!origin.contains("://")).then(|| Reference::parse(&origin).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_of_a_repository_are_one_place() {
        let digest = Digest::of("x");
        let same = place("r.test/a/b:1");
        assert_eq!(place(&format!("r.test/a/b@{digest}")), same);
        assert_eq!(place(&format!("r.test/a/b:2@{digest}")), same);
        assert_ne!(place("r.test/a/c:1"), same);
        for other in ["kiln-image://r.test/a/b:1".to_owned(), format!("oci-layout://b@{digest}")] {
            assert_eq!(place(&other), other);
        }
    }
}
