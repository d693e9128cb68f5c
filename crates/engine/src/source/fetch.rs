//! Blobs of lazy layers: fetched from where the layer can be had, once for all who ask at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use kiln_oci::{Descriptor, Reference};
use kiln_registry::Repository;
use kiln_session::Session;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{ArrivingReader, Blob, Layer};

use super::images::StoredImage;
use super::layout::LayoutImage;
use super::registry::RegistryImage;
use super::resolve::ImageOrigin;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session::SessionCredentials;

/// Beginning of the locator of an image in the engine's own store; the name follows.
pub(super) const STORED: &str = "kiln-image://";
/// Beginning of the locator of a client's layout; name of the layout, `@` and digest follow.
pub(super) const LAYOUT: &str = "oci-layout://";
/// Bytes between two reports: one event for each megabyte is enough for anybody's eyes.
const GRAIN: u64 = 1 << 20;

/// Is told of a blob that has begun to come, at most once, unless somebody else is fetching it.
pub type Begun<'a> = &'a (dyn Fn(ArrivingReader) + Send + Sync);

/// Returns any form of a layer, one that is here rather than one that has to be fetched.
///
/// # Errors
/// As [`blob`].
pub async fn any_blob(
    parts: &Parts,
    progress: &Progress,
    layer: &Layer,
    begun: Begun<'_>,
) -> Result<Blob, EngineError> {
    let forms = layer.descriptors();
    if let Some(blob) = forms.iter().find_map(|form| parts.store.blob(&form.digest)) {
        return Ok(blob);
    }
    // The form noted last is that of the newest pull.
    let form = forms.last().ok_or_else(|| {
        EngineError::new(ErrorClass::Bug, format!("layer {} has neither files nor a blob", layer.id()))
    })?;
    form_blob(parts, progress, layer, &form.digest, begun).await
}

/// Returns the form `digest` of a layer, fetched from where the layer came unless it is here. Of several callers at once
/// one fetches.
///
/// # Errors
/// It cannot be had from where it came, or is not what was announced.
pub async fn blob(parts: &Parts, progress: &Progress, layer: &Layer, digest: &Digest) -> Result<Blob, EngineError> {
    form_blob(parts, progress, layer, digest, &|_| ()).await
}

async fn form_blob(
    parts: &Parts,
    progress: &Progress,
    layer: &Layer,
    digest: &Digest,
    begun: Begun<'_>,
) -> Result<Blob, EngineError> {
    if let Some(blob) = parts.store.blob(digest) {
        return Ok(blob);
    }
    let descriptor = layer.descriptors().into_iter().find(|form| form.digest == *digest);
    let descriptor = descriptor
        .ok_or_else(|| EngineError::new(ErrorClass::Bug, format!("layer {} has no form {digest}", layer.id())))?;
    parts.fetches.run(*digest, fetch(parts, progress, layer, &descriptor, begun)).await
}

async fn fetch(
    parts: &Parts,
    progress: &Progress,
    layer: &Layer,
    descriptor: &Descriptor,
    begun: Begun<'_>,
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
            Ok(Some(origin)) => transfer(parts, progress, origin.as_ref(), descriptor, begun).await,
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

/// Brings a blob from one place, and shows how far it is. `begun` is handed its beginning as soon as there is one.
///
/// # Errors
/// It cannot be had from there, or is not what was announced.
pub(super) async fn transfer(
    parts: &Parts,
    progress: &Progress,
    origin: &dyn ImageOrigin,
    descriptor: &Descriptor,
    begun: Begun<'_>,
) -> Result<Blob, EngineError> {
    let started = SystemTime::now();
    let id = descriptor.digest.to_string();
    progress.status(&id, 0, descriptor.size, started, false);
    let (shown, told) = (AtomicU64::new(0), AtomicBool::new(false));
    let report = |done: u64| {
        if !told.swap(true, Ordering::Relaxed)
            && let Some(reader) = parts.store.arriving(&descriptor.digest)
        {
            begun(reader);
        }
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
