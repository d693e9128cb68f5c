//! Blobs of lazy layers: fetched from where the layer can be had, once for all who ask at a time.

use std::collections::{BTreeSet, VecDeque};
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
use super::offline::missing;
use super::registry::RegistryImage;
use super::stack::StackSource;
use crate::build::Progress;
use crate::cache::imported::Imported;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session::SessionCredentials;

/// Beginning of the locator of an image in the engine's own store; the name follows.
pub(super) const STORED: &str = "kiln-image://";
/// Beginning of the locator of a client's layout; name of the layout, `@` and digest follow.
pub(super) const LAYOUT: &str = "oci-layout://";
/// Beginning of the locator of an imported cache; its name follows.
pub const CACHED: &str = "kiln-cache://";
/// Beginning of the locator of an imported cache in a registry; the reference follows.
pub const CACHED_REGISTRY: &str = "kiln-cache://registry/";
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
    // The form noted last is that of the newest pull, but others may be what the builds that want it know of.
    let known = forms.iter().rev().find(|form| is_known(progress, &form.digest));
    let form = known.or(forms.last()).ok_or_else(|| {
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
    // Not as the one who fetches for others: they may use the network.
    let cached = layer.origin().is_some_and(|origin| origin.starts_with(CACHED));
    if progress.offline() && !cached && reachable(progress, layer, digest).is_empty() {
        return Err(not_here(layer, digest));
    }
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
    let offline = progress.offline();
    let mut places = reachable(progress, layer, &descriptor.digest);
    while let Some(place) = places.pop_front() {
        let session = open().into_iter().next();
        let source = match &place {
            Place::Named(locator) => origin(parts, session.clone(), locator).await,
            Place::Cache(cache) => Ok(Some(cache.clone() as Arc<dyn StackSource>)),
        };
        let got = match source {
            Ok(Some(source)) => transfer(parts, progress, source.as_ref(), descriptor, begun).await,
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match got {
            Ok(blob) => return Ok(blob),
            Err(error) if error.class() == ErrorClass::Canceled => return Err(error),
            // Another build's session takes over from one that ended.
            Err(_) if crate::session::lost(session.as_deref(), &open()) => places.push_front(place),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let from = layer.origin().unwrap_or_else(|| "nowhere".to_owned());
    let failure = failure.unwrap_or_else(|| {
        if offline {
            return not_here(layer, &descriptor.digest);
        }
        let text = format!("layer {} of {from} was not fetched yet, and nothing gives it now", descriptor.digest);
        EngineError::new(ErrorClass::Remote, text).with_hint("build with the image it came from within reach")
    });
    let offered = caches(progress, &descriptor.digest);
    if offered.is_empty() && !from.starts_with(CACHED) {
        return Err(failure);
    }
    Err(lost(parts, progress, &offered, &descriptor.digest, failure))
}

/// Notes that a layer that a cache offered cannot be had. The error is one after which a build is done once more: its
/// step can be run instead.
fn lost(
    parts: &Parts,
    progress: &Progress,
    caches: &[Arc<Imported>],
    digest: &Digest,
    error: EngineError,
) -> EngineError {
    for build in progress.builds() {
        build.lost.lock().insert(*digest);
    }
    caches.iter().for_each(|cache| cache.warn(progress, &error));
    let text = format!("layer {digest} of a cached result cannot be had: {error}");
    parts.refused.note(*digest, &Err::<(), _>(error));
    EngineError::new(ErrorClass::Damage, text).with_hint("build again: the step is run if its result cannot be fetched")
}

/// Returns the caches of the builds that want a call which offer a blob.
fn caches(progress: &Progress, digest: &Digest) -> Vec<Arc<Imported>> {
    let mut found: Vec<Arc<Imported>> = Vec::new();
    for build in progress.builds() {
        found.extend(build.caches.lock().iter().filter(|cache| cache.offers(digest)).cloned());
    }
    found
}

/// Tells whether a build that wants a call knows an image or a cache that has a blob.
fn is_known(progress: &Progress, digest: &Digest) -> bool {
    !images(progress, digest).is_empty() || !caches(progress, digest).is_empty()
}

/// Returns the error of a layer that cannot be had without the network.
fn not_here(layer: &Layer, digest: &Digest) -> EngineError {
    let from = layer.origin().map(|origin| format!(" of {origin}")).unwrap_or_default();
    missing(format!("layer {digest}{from}"))
}

/// Returns the places that may be asked. An offline build has imported no caches behind the network.
fn reachable(progress: &Progress, layer: &Layer, digest: &Digest) -> VecDeque<Place> {
    let mut places = places(progress, layer, digest);
    if progress.offline() {
        places.retain(|place| !matches!(place, Place::Named(locator) if is_remote(locator)));
    }
    places
}

/// Tells whether a locator names a place behind the network.
fn is_remote(locator: &str) -> bool {
    !locator.starts_with(STORED) && !locator.starts_with(LAYOUT)
}

/// Brings a blob from one place, and shows how far it is. `begun` is handed its beginning as soon as there is one.
///
/// # Errors
/// It cannot be had from there, or is not what was announced.
pub async fn transfer(
    parts: &Parts,
    progress: &Progress,
    source: &dyn StackSource,
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
    source.layer(descriptor, &parts.store, &report).await?;
    progress.status(&id, descriptor.size, descriptor.size, started, true);
    let gone = || EngineError::new(ErrorClass::Damage, format!("blob {} is gone again", descriptor.digest));
    parts.store.blob(&descriptor.digest).ok_or_else(gone)
}

/// Where a blob may be had.
enum Place {
    /// By the words of a locator, with the session of a build that wants it.
    Named(String),
    /// In a cache that a build which wants it imported.
    Cache(Arc<Imported>),
}

/// Returns where a form may be had: first where the builds that want it found it, then where it was first seen. Caches are
/// asked last, but for what was first seen in one.
fn places(progress: &Progress, layer: &Layer, digest: &Digest) -> VecDeque<Place> {
    let mut named = images(progress, digest);
    let origin = layer.origin();
    let cached = origin.clone().filter(|origin| origin.starts_with(CACHED));
    named.extend(origin.filter(|_| cached.is_none()));
    let mut seen = BTreeSet::new();
    named.retain(|locator| seen.insert(place(locator)));
    let mut caches = caches(progress, digest);
    // Where it was first seen comes first.
    caches.sort_by_key(|cache| Some(cache.locator()) != cached);
    caches.retain(|cache| seen.insert(place(&cache.locator())));
    let mut places: VecDeque<Place> = named.into_iter().map(Place::Named).collect();
    places.extend(caches.into_iter().map(Place::Cache));
    // Any build may ask a registry, whether it imported the cache or not.
    let registry = cached.filter(|locator| locator.starts_with(CACHED_REGISTRY) && seen.insert(place(locator)));
    places.extend(registry.map(Place::Named));
    places
}

/// Returns the locators of the images of the builds that want a call which have a blob.
fn images(progress: &Progress, digest: &Digest) -> Vec<String> {
    let mut found = Vec::new();
    for build in progress.builds() {
        let images = build.images.lock();
        let with_layer = images.values().filter(|i| i.manifest.layers.iter().any(|l| l.digest == *digest));
        found.extend(with_layer.map(|image| image.locator.clone()));
    }
    found
}

/// Returns what tells places apart: of a registry's names only the repository counts.
fn place(locator: &str) -> String {
    let name = uncached(locator);
    match Reference::parse(name) {
        Ok(reference) if !name.contains("://") => Repository::from(&reference).to_string(),
        _ => locator.to_owned(),
    }
}

/// Returns the name in a registry where a locator is that of an imported cache.
fn uncached(locator: &str) -> &str {
    locator.strip_prefix(CACHED_REGISTRY).unwrap_or(locator)
}

/// Tells whether a layer is known from an imported cache alone: neither its files nor a form of it are here.
pub fn only_cached(store: &kiln_store::Store, layer: &Layer) -> bool {
    !layer.is_unpacked()
        && layer.origin().is_some_and(|origin| origin.starts_with(CACHED))
        && layer.descriptors().iter().all(|form| store.blob(&form.digest).is_none())
}

/// Returns the image of a locator; none where no client offers its layout now.
async fn origin(
    parts: &Parts,
    session: Option<Arc<Session>>,
    locator: &str,
) -> Result<Option<Arc<dyn StackSource>>, EngineError> {
    if let Some(name) = locator.strip_prefix(STORED) {
        let reference = Reference::parse(name).map_err(|e| EngineError::user(e.to_string()))?;
        return Ok(StoredImage::find(parts, &reference).await?.map(|image| image as Arc<dyn StackSource>));
    }
    if let Some(place) = locator.strip_prefix(LAYOUT) {
        let Some((layout, digest)) = place.rsplit_once('@') else { return Ok(None) };
        let (Some(session), Ok(digest)) = (session, digest.parse()) else { return Ok(None) };
        return Ok(Some(LayoutImage::new(&session, parts.store.clone(), layout, locator.to_owned(), digest)));
    }
    let name = uncached(locator);
    if name.starts_with(CACHED) {
        return Ok(None);
    }
    let Ok(reference) = Reference::parse(name) else { return Ok(None) };
    let credentials = SessionCredentials::new(session);
    Ok(Some(RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference, credentials)))
}

/// Returns the registry reference that a layer came from, if it came from a registry.
pub fn registry_of(layer: &Layer) -> Option<Reference> {
    let origin = layer.origin()?;
    let origin = uncached(&origin);
    (!origin.contains("://")).then(|| Reference::parse(origin).ok()).flatten()
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
        assert_eq!(place(&format!("{CACHED_REGISTRY}r.test/a/b:cache")), same);
        assert_ne!(place("r.test/a/c:1"), same);
        for other in [
            format!("{CACHED}local:r.test/a/b"),
            "kiln-image://r.test/a/b:1".to_owned(),
            format!("oci-layout://b@{digest}"),
        ] {
            assert_eq!(place(&other), other);
        }
    }
}
