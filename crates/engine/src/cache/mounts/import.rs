//! Bringing a cache mount in where a step would begin with an empty one. Nothing is asked of a place before that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use kiln_solver::OpContext;
use kiln_stdx::ErrorClass;
use kiln_store::{CacheMount, MountKey};
use tokio::sync::OnceCell;

use super::format::{self, Contents, Pack, Root};
use super::place::{self, Place};
use super::{Wish, restore};
use crate::bridge::Bridge;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::{Parts, builds};
use crate::request::CacheSpec;

/// Packs on their way at once.
const PARALLEL: usize = 4;
/// Longest time that reading lists takes, and that any transfer may take beside its bytes.
const LISTS: Duration = Duration::from_secs(90);
/// Fewest bytes that have to come in a second, on average.
const PACE: u64 = 128 << 10;

/// A place that a build takes mounts from.
pub struct MountImport {
    spec: CacheSpec,
    wish: Wish,
    loaded: OnceCell<Loaded>,
    /// It failed, which takes its time: for the rest of the build it is not asked again.
    given_up: AtomicBool,
}

struct Loaded {
    place: Box<dyn Place>,
    root: Root,
    contents: Contents,
}

/// Makes the mounts of a cache known to the steps of a build, if it asks for them.
///
/// # Errors
/// The attribute is wrong.
pub fn register(bridge: &Bridge, spec: &CacheSpec) -> Result<(), EngineError> {
    let Some(wish) = Wish::of(spec)? else { return Ok(()) };
    if spec.kind == "registry" {
        place::reference(spec)?;
    }
    let import = MountImport { spec: spec.clone(), wish, loaded: OnceCell::new(), given_up: AtomicBool::new(false) };
    let mut imports = bridge.build().mount_imports.lock();
    // A frontend may name what the client has named.
    if !imports.iter().any(|known| known.spec == *spec) {
        imports.push(Arc::new(import));
    }
    Ok(())
}

/// Returns the places that have wishes for a mount, each with a build that has it.
fn wishes(cx: &OpContext, key: &MountKey) -> Vec<(Bridge, Arc<MountImport>)> {
    let mut found = Vec::new();
    for build in builds(cx) {
        let Some(bridge) = build.bridge.lock().as_ref().and_then(crate::bridge::WeakBridge::get) else { continue };
        let imports = build.mount_imports.lock().clone();
        let wanted = imports.into_iter().filter(|import| import.wish.takes(&key.id) && !import.is_given_up());
        found.extend(wanted.map(|import| (bridge.clone(), import)));
    }
    found
}

/// Lets a mount go that is here and empty, where it may come from elsewhere.
pub fn make_way(parts: &Parts, cx: &OpContext, key: &MountKey) {
    if !wishes(cx, key).is_empty() {
        parts.store.drop_empty_cache_mounts(key);
    }
}

/// Fills a new mount from the first place that has it, and tells whether one had. What fails is a warning, and leaves the
/// mount empty.
///
/// # Errors
/// The call was called off.
pub async fn fill(
    parts: &Arc<Parts>,
    cx: &OpContext,
    key: &MountKey,
    mount: &mut CacheMount,
) -> Result<bool, EngineError> {
    let progress = Progress::new(cx);
    for (bridge, import) in wishes(cx, key) {
        let work = import.restore(&bridge, parts, key, mount, &progress);
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = cx.cancel().cancelled() => Err(EngineError::canceled()),
        };
        match outcome {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) if error.class() == ErrorClass::Canceled => return Err(error),
            Err(error) => {
                // Damage of one mount says nothing of the others.
                let damaged = error.to_string().starts_with("damaged");
                if damaged || !import.given_up.swap(true, Ordering::Relaxed) {
                    progress.warn(&format!("cache mount {} begins empty, it cannot be imported: {error}", key.id));
                }
            }
        }
    }
    Ok(false)
}

impl MountImport {
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    async fn restore(
        &self,
        bridge: &Bridge,
        parts: &Arc<Parts>,
        key: &MountKey,
        mount: &mut CacheMount,
        progress: &Progress,
    ) -> Result<bool, EngineError> {
        let loaded = self.loaded.get_or_try_init(|| within(LISTS, Loaded::read(bridge, &self.spec))).await?;
        let of_key = |found: &&format::Travelled| found.key == key.key && found.platform == key.platform;
        let Some(found) = loaded.root.mounts.iter().find(of_key) else { return Ok(false) };
        let files = format::read_files(&within(LISTS, loaded.place.get(&found.files)).await?)?;
        let needed = restore::needed(&loaded.contents, &files, found.bytes)?;
        let packs: Vec<Pack> = needed.iter().filter_map(|place| loaded.contents.packs.get(*place)).cloned().collect();
        let draft = Arc::new(parts.store.draft()?);
        draft.room().runs();
        let raw = draft.scratch()?.to_owned();

        let total: u64 = packs.iter().map(|pack| pack.blob.size).sum();
        let started = SystemTime::now();
        let id = format!("importing cache mount {} from {}", key.id, loaded.place.name());
        let came = AtomicU64::new(0);
        progress.status(&id, 0, total, started, false);
        let mut fetches: Vec<futures::future::BoxFuture<'_, Result<(), EngineError>>> = Vec::new();
        for pack in &packs {
            let (raw, draft, id, came) = (&raw, &draft, &id, &came);
            fetches.push(Box::pin(async move {
                let bytes = loaded.place.get(&pack.blob).await?;
                let (file, draft, of) = (restore::raw_file(raw, pack), draft.clone(), pack.clone());
                let written = parts.blocking(move || {
                    std::fs::write(file, format::unpack(&of, &bytes)?)?;
                    drop(draft);
                    Ok(())
                });
                written.await?;
                let before = came.fetch_add(pack.blob.size, Ordering::Relaxed);
                progress.status(id, before + pack.blob.size, total, started, false);
                Ok(())
            }));
        }
        let fetches = futures::stream::iter(fetches).buffer_unordered(PARALLEL).try_collect::<Vec<()>>();
        within(LISTS + Duration::from_secs(total / PACE), fetches).await?;
        progress.status(&id, total, total, started, true);
        // Copies for the thread: a call that is called off does not wait for it.
        let contents = Contents::of(vec![format::Table { packs, files: loaded.contents.joined(&files) }], |_| true)?;
        let of = draft.clone();
        let work = parts.blocking(move || restore::restore(&contents, &files, &raw, &of.fs()));
        progress.timed(&format!("unpacking cache mount {}", key.id), work).await?;
        mount.begin_with(&draft.fs())?;
        Ok(true)
    }
}

impl Loaded {
    async fn read(bridge: &Bridge, spec: &CacheSpec) -> Result<Self, EngineError> {
        let place = place::open(bridge, spec).await?;
        // Nothing was exported yet, as before the first build of a branch.
        let Some(bytes) = place.root().await? else {
            return Ok(Self { place, root: Root::default(), contents: Contents::default() });
        };
        let root = Root::decode(&bytes)?;
        let mut tables = Vec::new();
        for part in &root.tables {
            tables.push(format::read_table(&place.get(part).await?)?);
        }
        let packs: std::collections::HashSet<_> = root.packs.iter().cloned().collect();
        let contents = Contents::of(tables, |part| packs.contains(part))?;
        Ok(Self { place, root, contents })
    }
}

/// Bounds the time that a transfer takes.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let late = || EngineError::new(ErrorClass::Remote, format!("timed out after {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}
