//! Remote caches: importing before a build, exporting after it. A cache that cannot be read is a warning.

pub mod collect;
pub mod imported;
pub mod inline;
pub mod keys;
pub mod local;
pub mod mounts;
pub mod objects;
pub mod options;
pub mod registry;
pub mod stack;

pub use collect::results;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_exporter::cacheconfig::{self, CacheManifest, ParsedCache};
use kiln_exporter::{CacheCompression, ExportContext, ExportProgress};
use kiln_objects::{Kind, ObjectStore};
use kiln_stdx::{Digest, ErrorClass, StableHasher};
use parking_lot::Mutex;

use crate::bridge::{Bridge, FrontendResult, Ref};
use crate::build::{BuildContext, Progress};
use crate::error::EngineError;
use crate::remote::Origins;
use crate::request::CacheSpec;
use crate::source::fetch::{CACHED, CACHED_REGISTRY};
use crate::source::resolve::ImageOrigin;
use crate::source::stack::StackSource;
use imported::Imported;
use options::ExportSpec;

/// Adds a remote cache to the build's lookups.
///
/// # Errors
/// A kind of cache that this engine does not know.
pub async fn import(bridge: &Bridge, spec: &CacheSpec) -> Result<(), EngineError> {
    if !matches!(spec.kind.as_str(), "registry" | "local") && Kind::parse(&spec.kind).is_none() {
        return Err(EngineError::user(format!("unknown cache importer: {}", spec.kind)));
    }
    let build = bridge.build();
    let left_out = build.settings.offline && spec.kind != "local";
    if !left_out {
        mounts::import::register(bridge, spec)?;
    }
    let vertex = build.start(&format!("importing cache manifest from {}", name(spec)));
    let found = match left_out {
        true => Err(EngineError::user("the build is offline")),
        false => read(bridge, spec).await,
    };
    match found {
        Ok(0) => {}
        Ok(dropped) => {
            build.warn(vertex.digest(), &format!("the cache is damaged: {dropped} parts of it are left out"))
        }
        Err(error) if error.class() == ErrorClass::Canceled => return Err(error),
        Err(error) => {
            build.circumstances.lock().unreadable.push(format!("{}: {error}", name(spec)));
            build.warn(vertex.digest(), &format!("the cache is left out: {error}"));
        }
    }
    vertex.end(None);
    Ok(())
}

/// Reads a cache into the build's lookups and returns how many parts of it were no good.
async fn read(bridge: &Bridge, spec: &CacheSpec) -> Result<usize, EngineError> {
    let other = |source: &dyn StackSource| format!("{CACHED}{}", source.name());
    let (place, caches): ((String, Arc<dyn StackSource>), _) = match (spec.kind.as_str(), Kind::parse(&spec.kind)) {
        (_, Some(kind)) => {
            let store = objects::open(bridge, kind, spec).await?;
            let caches = objects::parse(store.as_ref()).await?;
            let layers = objects::ObjectLayers(store);
            ((other(&layers), Arc::new(layers)), caches)
        }
        ("registry", _) => {
            let origin = registry::open(bridge, spec).await?;
            let caches = registry::parse(origin.as_ref()).await?;
            ((format!("{CACHED_REGISTRY}{}", origin.name()), origin), caches)
        }
        _ => {
            let origin = local::LocalCache::open(bridge, spec).await?;
            let caches = vec![parse(origin.as_ref()).await?];
            ((other(origin.as_ref()), origin), caches)
        }
    };
    let (parts, build) = (bridge.parts(), bridge.build());
    let cache = Imported::add(build, place, &caches, stall(spec)?);
    let mut dropped = 0;
    for parsed in caches {
        let loader = stack::CachedStacks::new(parts.clone(), build.clone(), cache.clone());
        dropped += parsed.dropped;
        bridge.import(Arc::new(keys::ImportedKeys::new(parsed, Box::new(loader)))).await;
    }
    Ok(dropped)
}

/// Returns how long nothing may come from a cache, where that is said. Stores of objects see to their `timeout` themselves.
fn stall(spec: &CacheSpec) -> Result<Option<Duration>, EngineError> {
    let Some(text) = spec.attrs.get("timeout").filter(|_| Kind::parse(&spec.kind).is_none()) else { return Ok(None) };
    let time = kiln_stdx::duration::parse(text).filter(|time| !time.is_zero());
    time.map(Some).ok_or_else(|| EngineError::user(format!("timeout {text:?} is no time; write 30s or 10m")))
}

async fn parse(origin: &dyn ImageOrigin) -> Result<ParsedCache, EngineError> {
    let manifest = origin.document(&origin.root().await?).await?;
    let CacheManifest::Config { config, blobs } = cacheconfig::read_manifest(&manifest)? else {
        return Err(EngineError::user(format!("{} holds an image, not a cache", origin.name())));
    };
    Ok(cacheconfig::parse(&origin.document(&config).await?, &blobs)?)
}

/// Returns what an import is called: a name in a registry, or the kind and a number made of its attributes.
fn name(spec: &CacheSpec) -> String {
    if let ("registry", Some(reference)) = (spec.kind.as_str(), spec.attrs.get("ref")) {
        return reference.clone();
    }
    let hasher = StableHasher::new("kiln.cache.import.v1");
    let shown = kiln_objects::attrs::shown(&spec.attrs);
    let digest = shown.iter().fold(hasher, |hasher, (key, value)| hasher.str(key, value)).finish();
    let number = digest.as_bytes().iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{}:{number}", spec.kind)
}

/// The kind of cache that lies in the image itself.
const INLINE: &str = "inline";

/// Checks what can be checked of exports before anything is built.
///
/// # Errors
/// A kind of cache that this engine does not know, a bad value.
pub fn check(specs: &[CacheSpec]) -> Result<(), EngineError> {
    for spec in specs {
        mounts::export::check(spec)?;
        match spec.kind.as_str() {
            INLINE => {}
            "registry" => drop((registry::reference(spec)?, ExportSpec::parse(spec)?)),
            "local" => drop(ExportSpec::parse(spec)?),
            kind if let Some(kind) = Kind::parse(kind) => {
                ExportSpec::parse(spec)?;
                objects::check(kind, &spec.attrs)?;
            }
            other => return Err(EngineError::user(format!("unknown cache exporter: {other:?}"))),
        }
    }
    Ok(())
}

/// Returns the records for the image of one result, when the inline cache was asked for.
///
/// # Errors
/// A layer that cannot be had, damage, a full disk.
pub async fn inline_records(
    bridge: &Bridge,
    specs: &[CacheSpec],
    reference: &Ref,
    compression: CacheCompression,
) -> Result<Option<Vec<u8>>, EngineError> {
    if !specs.iter().any(|spec| spec.kind == INLINE) {
        return Ok(None);
    }
    let vertex = bridge.build().start("preparing layers for inline cache");
    let work = async {
        let (context, _cancel, _) = context(bridge, vertex.digest());
        let last = bridge.evaluate(reference).await?;
        let mut kept = Vec::new();
        collect::add(bridge, vertex.digest(), reference, options::Mode::Min, &mut kept).await?;
        bridge.parts().blocking(move || inline::records(&context, &last, kept, compression)).await
    };
    let made = work.await;
    vertex.end(made.as_ref().err().map(ToString::to_string));
    made
}

/// Returns what an export works with; it is called off when the guard is dropped.
fn context(bridge: &Bridge, vertex: Digest) -> (ExportContext, tokio_util::sync::DropGuard, Arc<CacheProgress>) {
    let progress = Arc::new(CacheProgress::new(bridge.build().clone(), vertex));
    let cancel = tokio_util::sync::CancellationToken::new();
    let context = ExportContext {
        store: bridge.parts().store.clone(),
        remote: Origins::new(bridge.parts(), Progress::of_build(bridge.build(), vertex), &cancel),
        progress: progress.clone(),
        compatibility: 30,
        cancel,
    };
    let guard = context.cancel.clone().drop_guard();
    (context, guard, progress)
}

/// Writes every cache that was asked for and returns what the client is told.
///
/// # Errors
/// A kind of cache that this engine does not know, or a cache that cannot be written and must be.
pub async fn export(
    bridge: &Bridge,
    specs: &[CacheSpec],
    result: &FrontendResult,
) -> Result<BTreeMap<String, String>, EngineError> {
    let mut response = BTreeMap::new();
    // The inline cache is part of the image and was written with it.
    for spec in specs.iter().filter(|spec| spec.kind != INLINE) {
        let build = bridge.build();
        let vertex = build.start(match (spec.kind.as_str(), Kind::parse(&spec.kind)) {
            (_, Some(kind)) => kind.exporting(),
            ("registry", _) => registry::VERTEX,
            _ => local::VERTEX,
        });
        match write(bridge, spec, result, vertex.digest()).await {
            Ok(told) => {
                response.extend(told);
                vertex.end(None);
            }
            Err(error) if spec.ignores_errors() && error.class() != ErrorClass::Canceled => {
                build.warn(vertex.digest(), &format!("the cache was not exported: {error}"));
                vertex.end(None);
            }
            Err(error) => {
                vertex.end(Some(error.to_string()));
                return Err(error);
            }
        }
        response.extend(mounts::export::export(bridge, spec, result).await?);
    }
    Ok(response)
}

async fn write(
    bridge: &Bridge,
    spec: &CacheSpec,
    result: &FrontendResult,
    vertex: Digest,
) -> Result<BTreeMap<String, String>, EngineError> {
    let options = ExportSpec::parse(spec)?;
    let place = Place::of(bridge, spec).await?;
    let parts = bridge.parts();
    // Dropping this future, as a cancelled build does, calls off the blocking part too.
    let (context, _cancel, progress) = context(bridge, vertex);
    progress.started(PREPARING, 0);
    let kept = collect::collect(bridge, vertex, result, options.mode).await?;
    if let Place::Objects(store) = place {
        let built = parts.blocking(move || collect::build_objects(&context, &options, kept)).await?;
        progress.completed(PREPARING);
        match built {
            Some(built) => built.put(store.as_ref()).await?,
            None => progress.skipped(),
        }
        return Ok(BTreeMap::new());
    }
    let built = parts.blocking(move || collect::build(&context, &options, kept)).await?;
    progress.completed(PREPARING);
    let Some(built) = built else {
        progress.skipped();
        return Ok(BTreeMap::new());
    };
    match place {
        Place::Directory(session, store) => built.send(&session, &store).await?,
        Place::Registry(name, credentials) => built.push(&name, &parts.registry, &credentials).await?,
        Place::Objects(_) => {}
    }
    Ok(built.response()?)
}

/// Where a cache goes.
enum Place {
    /// A directory of the client, by the name of its blob store.
    Directory(Arc<kiln_session::Session>, String),
    Registry(kiln_oci::Reference, kiln_registry::Credentials),
    Objects(Arc<dyn ObjectStore>),
}

impl Place {
    async fn of(bridge: &Bridge, spec: &CacheSpec) -> Result<Self, EngineError> {
        if let Some(kind) = Kind::parse(&spec.kind) {
            return Ok(Self::Objects(objects::open(bridge, kind, spec).await?));
        }
        if spec.kind == "registry" {
            return Ok(Self::Registry(registry::reference(spec)?, registry::credentials(bridge).await));
        }
        let directory = spec.attrs.get("dest").filter(|text| !text.is_empty());
        let directory = directory.ok_or_else(|| EngineError::user("local cache exporter requires dest"))?;
        Ok(Self::Directory(local::session(bridge).await?, local::store_id(directory)))
    }
}

/// Status of the first part of an export.
const PREPARING: &str = "preparing build cache for export";
/// Status of an export of nothing.
const SKIPPED: &str = "skipping cache export for empty result";

/// Shows an export's statuses below its vertex.
struct CacheProgress {
    build: Arc<BuildContext>,
    vertex: Digest,
    /// When each status began, and its total.
    begun: Mutex<BTreeMap<String, (SystemTime, u64)>>,
}

impl CacheProgress {
    fn new(build: Arc<BuildContext>, vertex: Digest) -> Self {
        Self { build, vertex, begun: Mutex::default() }
    }

    /// Says that there is nothing to export.
    fn skipped(&self) {
        self.started(SKIPPED, 0);
        self.completed(SKIPPED);
    }
}

impl ExportProgress for CacheProgress {
    fn started(&self, id: &str, total: u64) {
        let now = SystemTime::now();
        self.begun.lock().insert(id.to_owned(), (now, total));
        self.build.status(self.vertex, id, 0, total, now, false);
    }

    fn advanced(&self, id: &str, current: u64, total: u64) {
        let began = self.begun.lock().get(id).map_or_else(SystemTime::now, |(began, _)| *began);
        self.build.status(self.vertex, id, current, total, began, false);
    }

    fn completed(&self, id: &str) {
        let (began, total) = self.begun.lock().remove(id).unwrap_or_else(|| (SystemTime::now(), 0));
        self.build.status(self.vertex, id, total, total, began, true);
    }

    fn warn(&self, message: &str) {
        self.build.warn(self.vertex, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_told_apart_by_their_attributes() {
        let spec = |kind: &str, key: &str, value: &str| CacheSpec {
            kind: kind.into(),
            attrs: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        };
        assert_eq!(name(&spec("registry", "ref", "user/app:cache")), "user/app:cache");
        let (one, other) = (name(&spec("local", "src", "a")), name(&spec("local", "src", "b")));
        assert_ne!(one, other);
        assert!(one.strip_prefix("local:").is_some_and(|number| number.parse::<u64>().is_ok()), "{one}");
    }
}
