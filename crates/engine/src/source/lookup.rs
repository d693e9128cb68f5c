//! Looking up an image's digest and config while a build runs, shown as a step of the build.

use std::sync::Arc;

use kiln_oci::{Platform, Reference};
use kiln_stdx::Digest;

use super::layout::LayoutImage;
use super::registry::RegistryImage;
use super::resolve::{ImageOrigin, ResolvedImage, resolve};
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::session::SessionCredentials;

/// Returns digest and config of the image `name` for `platform`, the host's when there is none.
///
/// `layout` names session and store when the image is in a client's OCI layout; `name` is then `path@digest`. Equal
/// look-ups of one build ask only once.
///
/// # Errors
/// The image does not exist, has not the platform, or cannot be reached.
pub async fn image_config(
    bridge: &Bridge,
    name: &str,
    platform: Option<Platform>,
    layout: Option<(String, String)>,
    log_name: &str,
) -> Result<ResolvedImage, EngineError> {
    let platform = platform.unwrap_or_else(Platform::host);
    let origin = origin(bridge, name, layout).await?;
    let key = (origin.name(), platform.clone());
    if let Some(known) = bridge.build().images.lock().get(&key) {
        return Ok(known.clone());
    }
    let shown = if log_name.is_empty() { format!("resolve image config for {name}") } else { log_name.to_owned() };
    let vertex = bridge.build().start(&shown);
    let resolved = resolve(origin.as_ref(), &platform, None).await.map_err(|mut error| {
        if !error.to_string().starts_with("failed to resolve") {
            let text = format!("failed to resolve source metadata for {}: {error}", origin.name());
            let hint = error.hint.take();
            error = EngineError::new(error.class(), text);
            error.hint = hint;
        }
        error
    });
    vertex.end(resolved.as_ref().err().map(ToString::to_string));
    let resolved = resolved?;
    bridge.build().images.lock().insert(key, resolved.clone());
    Ok(resolved)
}

async fn origin(
    bridge: &Bridge,
    name: &str,
    layout: Option<(String, String)>,
) -> Result<Arc<dyn ImageOrigin>, EngineError> {
    let parts = bridge.parts();
    let own_session = bridge.build().settings.session.clone();
    let Some((session, store)) = layout else {
        let reference = Reference::parse(name).map_err(|e| EngineError::user(e.to_string()))?;
        let credentials = SessionCredentials::new(parts.sessions.try_get(&own_session));
        return Ok(RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference, credentials));
    };
    let session = if session.is_empty() { own_session } else { session };
    let session = parts.sessions.get(&session, kiln_stdx::limits::SESSION_WAIT).await?;
    let (path, digest) =
        name.rsplit_once('@').ok_or_else(|| EngineError::user(format!("oci-layout://{name}: a digest is needed")))?;
    let digest: Digest = digest.parse().map_err(|e| EngineError::user(format!("oci-layout://{name}: {e}")))?;
    let store = if store.is_empty() { path.to_owned() } else { store };
    Ok(LayoutImage::new(&session, parts.store.clone(), &store, format!("oci-layout://{name}"), digest))
}
