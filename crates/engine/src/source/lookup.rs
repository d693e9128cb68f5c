//! Looking up an image's digest and config while a build runs, shown as a step of the build.

use std::sync::Arc;

use kiln_oci::{Platform, Reference};
use kiln_session::Session;
use kiln_stdx::Digest;

use super::images::StoredImage;
use super::layout::LayoutImage;
use super::offline::{self, PinnedImage};
use super::pins::Pins;
use super::registry::RegistryImage;
use super::resolve::{ImageOrigin, ResolvedImage, resolve};
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::provenance::ImageSource;
use crate::session::SessionCredentials;

/// What is asked of an image.
#[derive(Clone)]
pub struct ImageQuery<'a> {
    /// A reference; for a layout `path@digest`.
    pub name: &'a str,
    /// The host's when absent.
    pub platform: Option<Platform>,
    /// Session and store when the image is in a client's OCI layout.
    pub layout: Option<(String, String)>,
    /// Ask the registry even where the engine's image store has the name.
    pub pull: bool,
    /// What the step is called; empty for the usual name.
    pub log_name: &'a str,
}

/// Returns digest and config of an image. Equal look-ups of one build ask only once.
///
/// # Errors
/// The image does not exist, has not the platform, or cannot be reached.
pub async fn image_config(bridge: &Bridge, query: ImageQuery<'_>) -> Result<ResolvedImage, EngineError> {
    let ImageQuery { name, platform, layout, pull, log_name } = query;
    let mut seen =
        ImageSource { name: name.to_owned(), platform: platform.clone(), digest: None, local: layout.is_some() };
    let platform = platform.unwrap_or_else(Platform::host);
    let origin = origin(bridge, name, layout, pull).await?;
    let key = (origin.name(), platform.clone());
    let known = bridge.build().images.lock().get(&key).cloned();
    if let Some(known) = known {
        seen.digest = Some(known.root);
        bridge.scope().looked_up(seen);
        return Ok(known);
    }
    let shown = if log_name.is_empty() { format!("resolve image config for {name}") } else { log_name.to_owned() };
    let vertex = bridge.build().start(&shown);
    let resolved = resolve(origin.as_ref(), &platform, None).await.map_err(|mut error| {
        if !error.to_string().starts_with("failed to resolve") && !offline::is_missing(&error) {
            let text = format!("failed to resolve source metadata for {}: {error}", origin.name());
            let hint = error.hint.take();
            error = EngineError::new(error.class(), text);
            error.hint = hint;
        }
        error
    });
    vertex.end(resolved.as_ref().err().map(ToString::to_string));
    let resolved = resolved?;
    Pins::new(&bridge.parts().store).found(&resolved);
    seen.digest = Some(resolved.root);
    bridge.scope().looked_up(seen);
    bridge.build().images.lock().insert(key, resolved.clone());
    Ok(resolved)
}

pub(super) async fn origin(
    bridge: &Bridge,
    name: &str,
    layout: Option<(String, String)>,
    pull: bool,
) -> Result<Arc<dyn ImageOrigin>, EngineError> {
    let parts = bridge.parts();
    let own_session = bridge.build().settings.session.clone();
    let Some((session, store)) = layout else {
        let reference = Reference::parse(name).map_err(|e| EngineError::user(e.to_string()))?;
        let offline = bridge.build().settings.offline;
        return named(parts, &reference, Asking { pull, offline }, parts.sessions.try_get(&own_session)).await;
    };
    let session = if session.is_empty() { own_session } else { session };
    let session = parts.sessions.get(&session, kiln_stdx::limits::SESSION_WAIT).await?;
    let (path, digest) =
        name.rsplit_once('@').ok_or_else(|| EngineError::user(format!("oci-layout://{name}: a digest is needed")))?;
    let digest: Digest = digest.parse().map_err(|e| EngineError::user(format!("oci-layout://{name}: {e}")))?;
    let store = if store.is_empty() { path.to_owned() } else { store };
    Ok(LayoutImage::new(&session, parts.store.clone(), &store, format!("oci-layout://{name}"), digest))
}

/// Whether a registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asking {
    /// Even where the engine's image store has the name.
    pub pull: bool,
    /// Never.
    pub offline: bool,
}

/// Returns where the image `reference` is read: the engine's image store if that has the name, as builders with an image
/// store of their own do, and the registry if not or if that is asked for; offline what the registry said last.
///
/// # Errors
/// The image store cannot be read.
pub async fn named(
    parts: &Parts,
    reference: &Reference,
    asking: Asking,
    session: Option<Arc<Session>>,
) -> Result<Arc<dyn ImageOrigin>, EngineError> {
    if (!asking.pull || asking.offline)
        && let Some(stored) = StoredImage::find(parts, reference).await?
    {
        return Ok(stored);
    }
    if asking.offline {
        return Ok(PinnedImage::new(parts.store.clone(), reference.clone()));
    }
    let credentials = SessionCredentials::new(session);
    Ok(RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference.clone(), credentials))
}
