//! Caches in registries: beside an image under a name of their own, or inside an image's config (inline).

use std::sync::Arc;

use kiln_exporter::cacheconfig::{self, CacheManifest, ParsedCache};
use kiln_oci::{ImageConfig, Manifest, Reference};
use kiln_registry::Credentials;
use kiln_stdx::limits;

use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::request::CacheSpec;
use crate::session::SessionCredentials;
use crate::source::registry::RegistryImage;
use crate::source::resolve::ImageOrigin;

/// Name of the vertex of an export.
pub const VERTEX: &str = "exporting cache to registry";

/// Returns the name that an import or export has in a registry.
///
/// # Errors
/// It is missing or malformed.
pub fn reference(spec: &CacheSpec) -> Result<Reference, EngineError> {
    let name = spec.attrs.get("ref").filter(|text| !text.is_empty());
    let name = name.ok_or_else(|| EngineError::user("registry cache needs a name: ref=HOST/NAME"))?;
    Reference::parse(name).map_err(|e| EngineError::user(format!("registry cache {name}: {e}")))
}

/// Returns the logins of the client that started the build.
pub async fn credentials(bridge: &Bridge) -> Credentials {
    let id = &bridge.build().settings.session;
    let session = match id.as_str() {
        "" => None,
        // A registry that needs no login can be asked without a session.
        id => bridge.parts().sessions.get(id, limits::SESSION_WAIT).await.ok(),
    };
    SessionCredentials::new(session)
}

/// Returns where an import's layers come from.
///
/// # Errors
/// A missing or malformed name.
pub async fn open(bridge: &Bridge, spec: &CacheSpec) -> Result<Arc<RegistryImage>, EngineError> {
    let parts = bridge.parts();
    let credentials = credentials(bridge).await;
    Ok(RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference(spec)?, credentials))
}

/// Reads a cache of either kind. An image of several platforms gives the records of each.
///
/// # Errors
/// The registry cannot be reached, or what it has is no cache and holds none.
pub async fn parse(origin: &dyn ImageOrigin) -> Result<Vec<ParsedCache>, EngineError> {
    let manifest = origin.document(&origin.root().await?).await?;
    match cacheconfig::read_manifest(&manifest)? {
        CacheManifest::Config { config, blobs } => {
            Ok(vec![cacheconfig::parse(&origin.document(&config).await?, &blobs)?])
        }
        CacheManifest::Image(manifest) => Ok(inline(origin, &manifest).await?.into_iter().collect()),
        CacheManifest::Images(manifests) => {
            let mut found = Vec::new();
            for descriptor in manifests {
                if descriptor.annotations.contains_key("vnd.docker.reference.type") {
                    continue;
                }
                let manifest = Manifest::from_json(&origin.document(&descriptor).await?)?;
                found.extend(inline(origin, &manifest).await?);
            }
            Ok(found)
        }
    }
}

async fn inline(origin: &dyn ImageOrigin, manifest: &Manifest) -> Result<Option<ParsedCache>, EngineError> {
    let config = origin.document(&manifest.config).await?;
    // Any image may be named; what is no image config has no records.
    if ImageConfig::from_json(&config).is_err() {
        return Ok(None);
    }
    Ok(cacheconfig::parse_inline(&config, manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_cache_has_a_name() {
        let spec = |attrs: &[(&str, &str)]| CacheSpec {
            kind: "registry".into(),
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        assert!(reference(&spec(&[])).unwrap_err().to_string().contains("ref="));
        assert!(reference(&spec(&[("ref", "UPPER case")])).unwrap_err().to_string().contains("UPPER case"));
        assert_eq!(reference(&spec(&[("ref", "h:5000/a/b:t")])).unwrap().to_string(), "h:5000/a/b:t");
    }
}
