//! Exporting the cache mounts that a build names: what the place has is read first, and what it lacks is added.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kiln_snapshot::LayerManifest;
use kiln_stdx::{Clock as _, ErrorClass, Fingerprint, SystemClock};
use kiln_store::{CacheMount, LayerDraft, MountInfo, MountReading};

use super::format::{self, Contents, Part, Root, Table, Travelled, VERSION};
use super::pack::{self, Packer};
use super::place::{self, Place};
use super::{Wish, restore, travels};
use crate::bridge::{Bridge, FrontendResult};
use crate::build::Progress;
use crate::error::EngineError;
use crate::request::CacheSpec;

/// How long a mount is waited for that another step writes to.
const PATIENCE: Duration = Duration::from_secs(10);
/// Parts on their way at once.
const PARALLEL: usize = 4;
/// Days for which a mount stays that no build names any more.
const DAYS: u64 = 30;
/// More tables than these become one.
const TABLES: usize = 32;

/// Checks what can be checked before anything is built.
///
/// # Errors
/// A wrong attribute, a kind of cache or a name that can have no mounts.
pub fn check(spec: &CacheSpec) -> Result<(), EngineError> {
    if Wish::of(spec)?.is_some() && spec.kind == "registry" {
        place::reference(spec)?;
    }
    Ok(())
}

/// Exports what the cache asks for, and returns what the client is told. What fails is a warning.
///
/// # Errors
/// The build was called off.
pub async fn export(
    bridge: &Bridge,
    spec: &CacheSpec,
    result: &FrontendResult,
) -> Result<BTreeMap<String, String>, EngineError> {
    let Some(wish) = Wish::of(spec)? else { return Ok(BTreeMap::new()) };
    let build = bridge.build();
    let vertex = build.start("exporting cache mounts");
    let mut names = super::named(result);
    if let Wish::Ids(ids) = &wish {
        for id in ids.iter().filter(|id| !names.iter().any(|(name, _)| name == *id)) {
            build.warn(vertex.digest(), &format!("no step of this build has a cache mount {id}"));
        }
    }
    names.retain(|(id, _)| wish.takes(id));
    let progress = Progress::of_build(build, vertex.digest());
    let told = match send(bridge, spec, &names, &progress).await {
        Err(error) if error.class() == ErrorClass::Canceled => return Err(error),
        Err(error) => {
            progress.warn(&format!("the cache mounts were not exported: {error}"));
            None
        }
        Ok(told) => told,
    };
    vertex.end(None);
    Ok(told.into_iter().collect())
}

async fn send(
    bridge: &Bridge,
    spec: &CacheSpec,
    names: &BTreeSet<(String, String)>,
    progress: &Progress,
) -> Result<place::Told, EngineError> {
    let place = place::open(bridge, spec).await?;
    let there = progress.timed("reading what is there", There::read(place.as_ref(), progress)).await?;
    let wanted = wanted(bridge, names, progress);
    let mut made = Made::new(bridge, &there, &wanted)?;
    for info in wanted {
        made.read(bridge, info, progress).await?;
    }
    let made = made.finish(bridge).await?;
    let next = Next::of(&there, made, names)?;
    let root = next.root.encode();
    if root.len() as u64 > format::ROOT_MAX {
        return Err(EngineError::user("the cache mounts have too many parts"));
    }
    if next.root.mounts.is_empty() || there.bytes.as_deref() == Some(&root[..]) {
        return Ok(None);
    }
    next.upload(place.as_ref(), progress).await?;
    place.set_root(root.into(), &next.root.parts()).await
}

/// What a place has already.
#[derive(Default)]
struct There {
    bytes: Option<Bytes>,
    root: Root,
    /// As read, beside their names.
    tables: Vec<(Part, Table)>,
    packs: HashSet<Part>,
    /// The mounts that are whole.
    mounts: Vec<(Travelled, LayerManifest)>,
}

impl There {
    async fn read(place: &dyn Place, progress: &Progress) -> Result<Self, EngineError> {
        let Some(bytes) = place.root().await? else { return Ok(Self::default()) };
        let root = match Root::decode(&bytes) {
            Ok(root) => root,
            Err(error) => {
                progress.warn(&format!("what was exported before is made anew: {error}"));
                return Ok(Self::default());
            }
        };
        let mut this = Self { bytes: Some(bytes), ..Self::default() };
        for part in &root.tables {
            // What cannot be read is as good as not there.
            if let Ok(table) = place.get(part).await.and_then(|bytes| format::read_table(&bytes)) {
                this.tables.push((part.clone(), table));
            }
        }
        let mut checks: Vec<futures::future::BoxFuture<'_, Result<Option<Part>, EngineError>>> = Vec::new();
        for part in &root.packs {
            checks.push(Box::pin(async move { Ok(place.has(part).await?.then(|| part.clone())) }));
        }
        let checks: Vec<_> = futures::stream::iter(checks).buffer_unordered(2 * PARALLEL).try_collect().await?;
        this.packs = checks.into_iter().flatten().collect();
        let contents = this.contents(&[], |_| true)?;
        for mount in &root.mounts {
            let files = place.get(&mount.files).await.and_then(|bytes| format::read_files(&bytes));
            if let Ok(files) = files
                && restore::needed(&contents, &files, mount.bytes).is_ok()
            {
                this.mounts.push((mount.clone(), files));
            }
        }
        this.root = root;
        Ok(this)
    }

    /// Returns what is in packs: in `new` ones, and in those that are there and for which `wanted` holds.
    fn contents(&self, new: &[Table], wanted: impl Fn(&Part) -> bool) -> Result<Contents, EngineError> {
        let made: HashSet<&Part> = new.iter().flat_map(|table| &table.packs).map(|pack| &pack.blob).collect();
        let tables = new.iter().cloned().chain(self.tables.iter().map(|(_, table)| table.clone())).collect();
        Contents::of(tables, |part| made.contains(part) || (self.packs.contains(part) && wanted(part)))
    }

    /// Returns packs of which less than half is still used, and nothing by mounts that stay as they are: what is used of them
    /// goes into new ones.
    fn sparse(&self, stays: impl Fn(&Travelled) -> bool) -> Result<HashSet<Part>, EngineError> {
        let contents = self.contents(&[], |_| true)?;
        let mut used: HashMap<usize, usize> = HashMap::new();
        let mut seen: HashSet<Fingerprint> = HashSet::new();
        let mut held = HashSet::new();
        for (mount, files) in &self.mounts {
            if stays(mount) {
                held.extend(restore::needed(&contents, files, mount.bytes)?);
            }
            let prints = files.entries().iter().filter_map(|entry| entry.digest);
            for piece in prints.flat_map(|print| contents.pieces(&print).unwrap_or_default().to_vec()) {
                if let Some(place) = contents.place(&piece).filter(|_| seen.insert(piece)) {
                    *used.entry(place.pack).or_default() += place.length;
                }
            }
        }
        let few = |place: &usize, length: usize| used.get(place).copied().unwrap_or(0) * 2 < length;
        let packs = contents.packs.iter().enumerate();
        let sparse = packs.filter(|(place, pack)| !held.contains(place) && few(place, pack.length()));
        Ok(sparse.map(|(_, pack)| pack.blob.clone()).collect())
    }
}

/// Returns the mounts of this store that are meant, the one used last of each key.
fn wanted(bridge: &Bridge, names: &BTreeSet<(String, String)>, progress: &Progress) -> Vec<MountInfo> {
    let mut mounts = bridge.parts().store.cache_mounts(false);
    mounts.retain(|info| names.contains(&(info.id.clone(), info.platform.clone())));
    mounts.sort_by_key(|info| std::cmp::Reverse(info.last_used));
    let mut keys = HashSet::new();
    mounts.retain(|info| keys.insert((info.key.clone(), info.platform.clone())));
    mounts.retain(|info| match (&info.mark, travels(&info.key, &info.id)) {
        (None, travels) => travels,
        (Some(mark), _) => {
            progress.warn(&format!("cache mount {} is not exported: its last writer {}", info.id, mark.why));
            false
        }
    });
    mounts.sort_by(|a, b| (&a.id, &a.platform, &a.key).cmp(&(&b.id, &b.platform, &b.key)));
    mounts
}

/// What an export makes of the mounts of this store.
struct Made {
    packer: Option<Packer>,
    draft: Arc<LayerDraft>,
    mounts: Vec<(MountInfo, LayerManifest)>,
    table: Table,
}

impl Made {
    fn new(bridge: &Bridge, there: &There, own: &[MountInfo]) -> Result<Self, EngineError> {
        let stays = |mount: &Travelled| !own.iter().any(|i| (&i.key, &i.platform) == (&mount.key, &mount.platform));
        let sparse = there.sparse(stays)?;
        let known = there.contents(&[], |part| !sparse.contains(part))?;
        let draft = bridge.parts().store.draft()?;
        let packer = Packer::new(known.into(), draft.fs());
        Ok(Self { packer: Some(packer), draft: Arc::new(draft), mounts: Vec::new(), table: Table::default() })
    }

    /// Reads one mount. One that cannot be read now stays as it was exported before.
    async fn read(&mut self, bridge: &Bridge, info: MountInfo, progress: &Progress) -> Result<(), EngineError> {
        let skipped = |why: String| progress.warn(&format!("cache mount {} is not exported: {why}", info.id));
        let mount = match free(bridge, &info.directory).await {
            Some(mount) => mount,
            None => {
                skipped("a step is using it".to_owned());
                return Ok(());
            }
        };
        let Some(mut packer) = self.packer.take() else { return Ok(()) };
        let draft = self.draft.clone();
        let work = bridge.parts().blocking(move || {
            let files = pack::read(&mut packer, mount.path());
            drop((mount, draft));
            Ok((packer, files))
        });
        let (packer, files) = progress.timed(&format!("reading cache mount {}", info.id), work).await?;
        self.packer = Some(packer);
        match files {
            Ok(files) => self.mounts.push((info, files)),
            Err(error) => skipped(error.to_string()),
        }
        Ok(())
    }

    async fn finish(mut self, bridge: &Bridge) -> Result<Self, EngineError> {
        if let Some(packer) = self.packer.take() {
            let draft = self.draft.clone();
            self.table = bridge
                .parts()
                .blocking(move || {
                    let table = packer.finish();
                    drop(draft);
                    table
                })
                .await?;
        }
        Ok(self)
    }
}

/// Returns a mount once no step writes to it; none if that takes too long, or it is gone.
async fn free(bridge: &Bridge, directory: &str) -> Option<CacheMount> {
    let store = &bridge.parts().store;
    let changed = store.cache_mounts_changed();
    let wait = async {
        loop {
            let wake = changed.notified();
            tokio::pin!(wake);
            wake.as_mut().enable();
            match store.read_cache_mount(directory) {
                MountReading::Free(mount) => return Some(mount),
                MountReading::Gone => return None,
                MountReading::Busy => wake.await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
}

/// What the place has next.
struct Next {
    root: Root,
    /// Small parts that may not be there, with their bytes.
    lists: Vec<(Part, Bytes)>,
    /// Packs that were made, in files.
    packs: Vec<Part>,
    /// Keeps the files.
    draft: Arc<LayerDraft>,
}

impl Next {
    fn of(there: &There, made: Made, names: &BTreeSet<(String, String)>) -> Result<Self, EngineError> {
        let day = SystemClock.unix() / 86_400;
        let contents = there.contents(std::slice::from_ref(&made.table), |_| true)?;
        let mut lists = Vec::new();
        let mut mounts: Vec<(Travelled, &LayerManifest)> = Vec::new();
        for (info, files) in &made.mounts {
            let bytes = format::write_files(files)?;
            let part = Part::of(&bytes);
            let (id, platform, key) = (info.id.clone(), info.platform.clone(), info.key.clone());
            mounts.push((Travelled { id, platform, key, day, bytes: files.total_size(), files: part.clone() }, files));
            lists.push((part, bytes.into()));
        }
        for (old, files) in &there.mounts {
            let again = mounts.iter().any(|(new, _)| (&new.key, &new.platform) == (&old.key, &old.platform));
            let named = names.contains(&(old.id.clone(), old.platform.clone()));
            if !again && (named || old.day + DAYS >= day) {
                mounts.push((Travelled { day: if named { day } else { old.day }, ..old.clone() }, files));
            }
        }
        mounts.sort_by(|(a, _), (b, _)| (&a.id, &a.platform, &a.key).cmp(&(&b.id, &b.platform, &b.key)));
        let mut used = HashSet::new();
        let mut prints = HashSet::new();
        for (mount, files) in &mounts {
            used.extend(restore::needed(&contents, files, mount.bytes)?);
            prints.extend(files.entries().iter().filter_map(|entry| entry.digest));
        }
        let kept = contents.packs.iter().enumerate().filter(|(place, _)| used.contains(place));
        let mut packs: Vec<Part> = kept.map(|(_, pack)| pack.blob.clone()).collect();
        packs.sort_by_key(|part| part.digest);
        packs.dedup();
        let tables = tables(there, &made.table, &packs, &prints, &mut lists)?;
        let new = made.table.packs.iter().map(|pack| pack.blob.clone()).filter(|blob| packs.contains(blob)).collect();
        let mounts = mounts.into_iter().map(|(mount, _)| mount).collect();
        Ok(Self { root: Root { version: VERSION, mounts, packs, tables }, lists, packs: new, draft: made.draft })
    }

    /// Sends what is not there.
    async fn upload(&self, place: &dyn Place, progress: &Progress) -> Result<(), EngineError> {
        let total = self.packs.iter().map(|part| part.size).chain(self.lists.iter().map(|(part, _)| part.size)).sum();
        let (started, id) = (SystemTime::now(), "sending what is new");
        progress.status(id, 0, total, started, false);
        let sent = std::sync::atomic::AtomicU64::new(0);
        let done = |part: &Part| {
            let before = sent.fetch_add(part.size, std::sync::atomic::Ordering::Relaxed);
            progress.status(id, before + part.size, total, started, false);
        };
        let dir = self.draft.fs();
        // Boxed: the compiler cannot show that a stream of borrowing futures may change threads.
        let mut uploads: Vec<futures::future::BoxFuture<'_, Result<(), EngineError>>> = Vec::new();
        for part in &self.packs {
            let (file, done) = (pack::file_of(&dir, part), &done);
            uploads.push(Box::pin(async move {
                place.put(part, tokio::fs::read(file).await?.into()).await?;
                done(part);
                Ok(())
            }));
        }
        for (part, bytes) in &self.lists {
            let done = &done;
            uploads.push(Box::pin(async move {
                place.put(part, bytes.clone()).await?;
                done(part);
                Ok(())
            }));
        }
        futures::stream::iter(uploads).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        progress.status(id, total, total, started, true);
        Ok(())
    }
}

/// Returns the tables of a root: the old ones that tell of a pack or a file that is used, and a new one; or one of all.
fn tables(
    there: &There,
    new: &Table,
    packs: &[Part],
    files: &HashSet<Fingerprint>,
    lists: &mut Vec<(Part, Bytes)>,
) -> Result<Vec<Part>, EngineError> {
    let kept: HashSet<&Part> = packs.iter().collect();
    let tells = |table: &Table| {
        table.packs.iter().any(|pack| kept.contains(&pack.blob))
            || table.files.iter().any(|(file, _)| files.contains(file))
    };
    let old: Vec<&(Part, Table)> = there.tables.iter().filter(|(_, table)| tells(table)).collect();
    let mut list = |table: &Table| {
        let bytes = format::write_table(table)?;
        let part = Part::of(&bytes);
        lists.push((part.clone(), bytes.into()));
        Ok::<_, EngineError>(part)
    };
    if old.len() >= TABLES {
        let mut all = Table::default();
        for table in std::iter::once(new).chain(old.iter().map(|(_, table)| table)) {
            all.packs.extend(table.packs.iter().filter(|pack| kept.contains(&pack.blob)).cloned());
            all.files.extend(table.files.iter().filter(|(file, _)| files.contains(file)).cloned());
        }
        return Ok(vec![list(&all)?]);
    }
    let mut parts: Vec<Part> = old.into_iter().map(|(part, _)| part.clone()).collect();
    if tells(new) {
        parts.push(list(new)?);
    }
    Ok(parts)
}
