//! The store itself: opening, the tables in memory, and what the other modules share.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_oci::ChainId;
use kiln_snapshot::{LayerManifest, Tree};
use kiln_stdx::{Clock, SystemClock, fault};
use parking_lot::Mutex;

use crate::blob::BlobTable;
use crate::contenthash::{ContentCache, SumCache};
use crate::context_index::ContextIndexes;
use crate::disk;
use crate::epoch::Epochs;
use crate::error::{IoContext, Result, StoreError};
use crate::images::ImageTable;
use crate::layer::LayerCell;
use crate::layout::{LayerId, Layout, RefId};
use crate::lru::Lru;
use crate::meta::Meta;
use crate::mounts::MountTable;
use crate::repair::{RepairAction, RepairLog};

/// The on-disk format that this version writes, and the newest that it reads.
///
/// The rule: a version reads every older format and brings it up to date, at open or where a layer is first used (format 1
/// had manifests of version 1); a newer one is refused with an error
/// that names both numbers. A missing or damaged `version` file counts as the current format, because everything else
/// carries its own checksums and formats.
pub const FORMAT: u32 = 2;

/// Entries of manifests kept in memory; at about 250 bytes each this is 100 MB.
const MANIFEST_ENTRIES: usize = 400_000;
/// Entries of merged trees kept in memory.
const TREE_ENTRIES: usize = 800_000;

/// How a store is opened.
#[derive(Clone)]
pub struct StoreConfig {
    /// The state root; created with mode 0700.
    pub root: PathBuf,
    /// How long a blob or layer that was found good is believed to be; zero checks at every use.
    pub recheck: Duration,
    /// Where times come from.
    pub clock: Arc<dyn Clock>,
}

impl StoreConfig {
    /// A configuration with the defaults: recheck after a minute, the system's clock.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), recheck: Duration::from_secs(60), clock: Arc::new(SystemClock) }
    }
}

/// An open store; clones share it. All calls block on the disk only: callers in async code use blocking threads.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub layout: Layout,
    pub recheck: Duration,
    /// What was checked before is checked again, in nanoseconds of the clock.
    pub doubted: AtomicU64,
    pub clock: Arc<dyn Clock>,
    pub log: RepairLog,
    pub meta: Meta,
    pub epochs: Epochs,
    pub layers: Mutex<LayerTable>,
    /// Held while a layer is looked up by its chain id and noted if it is new.
    pub pulls: Mutex<()>,
    /// Held while a long chain is made shorter.
    pub flattening: Mutex<()>,
    pub blobs: BlobTable,
    /// Digests of blobs on their way whose beginning somebody goes on with.
    pub partials: Mutex<HashMap<kiln_stdx::Digest, Arc<crate::arrival::Arrival>>>,
    pub manifests: Mutex<Lru<LayerId, Arc<LayerManifest>>>,
    pub trees: Mutex<Lru<RefId, Arc<Tree>>>,
    pub content: ContentCache,
    pub sums: SumCache,
    pub images: ImageTable,
    pub mounts: MountTable,
    pub indexes: ContextIndexes,
    pub counters: crate::account::Counters,
    pub budget: crate::budget::Budget,
    /// Deletes what no step waits for.
    pub broom: crate::broom::Broom,
    /// The thread that clears what earlier sessions left, until somebody has waited for it.
    sweeping: Mutex<Option<JoinHandle<()>>>,
    /// Held as long as the store is open. The last field: everything else is closed before another may come in.
    _lock: crate::lock::StoreLock,
}

impl Store {
    /// Forgets what is only kept to save reading it again: for times when nobody needs it.
    pub fn rest(&self) {
        *self.0.manifests.lock() = Lru::new(MANIFEST_ENTRIES);
        *self.0.trees.lock() = Lru::new(TREE_ENTRIES);
        self.0.sums.clear();
    }
}

/// The layers in memory.
#[derive(Default)]
pub(crate) struct LayerTable {
    pub by_id: HashMap<LayerId, Arc<LayerCell>>,
    pub by_chain: HashMap<ChainId, LayerId>,
}

impl Store {
    /// Opens the store, creating or repairing what is missing.
    ///
    /// # Errors
    /// Another process has it open; its format is newer; the root cannot be created or written.
    pub fn open(config: StoreConfig) -> Result<Store> {
        let layout = Layout { root: config.root.clone() };
        create_root(&layout.root)?;
        let lock = crate::lock::StoreLock::take(&layout)?;
        let log = RepairLog::new(config.clock.clone());
        check_version(&layout, &log)?;
        for dir in Layout::DIRS {
            disk::ensure_dir(&layout.root.join(dir))?;
        }
        disk::spread(&layout.drafts());
        let sweeping = sweep(&layout);
        crate::partial::sweep(&layout);
        let meta = Meta::open(layout.meta(), layout.damaged(), log.clone());
        let inner = Arc::new(Inner {
            epochs: Epochs::open(&layout),
            recheck: config.recheck,
            doubted: AtomicU64::new(0),
            clock: config.clock,
            log,
            meta,
            layers: Mutex::default(),
            pulls: Mutex::default(),
            flattening: Mutex::default(),
            blobs: Mutex::default(),
            partials: Mutex::default(),
            manifests: Mutex::new(Lru::new(MANIFEST_ENTRIES)),
            trees: Mutex::new(Lru::new(TREE_ENTRIES)),
            content: ContentCache::default(),
            sums: SumCache::default(),
            images: ImageTable::default(),
            mounts: MountTable::default(),
            indexes: ContextIndexes::default(),
            counters: crate::account::Counters::default(),
            budget: crate::budget::Budget::default(),
            broom: crate::broom::Broom::default(),
            layout,
            sweeping: Mutex::new(sweeping),
            _lock: lock,
        });
        inner.load_layers();
        inner.load_account();
        inner.load_blobs();
        inner.load_mounts();
        let weak = Arc::downgrade(&inner);
        inner.meta.on_replaced(move || weak.upgrade().map(|inner| inner.rows()).unwrap_or_default());
        Ok(Store(inner))
    }

    /// The log of damage found and repaired.
    pub fn repairs(&self) -> &RepairLog {
        &self.0.log
    }

    /// Tables for the engine's own disposable metadata.
    pub fn meta(&self) -> &Meta {
        &self.0.meta
    }

    /// The state root.
    pub fn root(&self) -> &Path {
        &self.0.layout.root
    }

    /// Where the store takes the time from.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Makes durable all that was published so far, by one sync of the file system; free if nothing was.
    /// To be called when a build has ended and before the engine exits.
    ///
    /// # Errors
    /// The sync failed; the next call tries again.
    pub fn close_epoch(&self) -> Result<()> {
        self.0.carry_account();
        self.0.epochs.close(&self.0.layout, &self.0.meta, || self.0.makers())
    }

    /// Waits until what earlier sessions left half done is gone, which opening the store only puts aside, and what
    /// this one has put aside since.
    pub fn finish_sweep(&self) {
        let mut sweeping = self.0.sweeping.lock();
        if let Some(thread) = sweeping.take() {
            // A panic there has left some files, which the next opening tries again.
            let _ = thread.join();
        }
        drop(sweeping);
        self.0.broom.finish();
    }

    /// From now on nothing is believed that was checked before: each layer and blob is looked at again at its next use. Said
    /// as a build begins, so that none is made of what was damaged since the one before.
    pub fn doubt_checks(&self) {
        self.0.doubted.store(self.0.clock.unix_nanos(), Ordering::Relaxed);
    }

    /// The directory of temporary files on the store's file system, made anew where it was removed.
    pub fn temp_dir(&self) -> PathBuf {
        self.0.layout.temp_dir()
    }

    /// A fresh path on the store's file system, swept away at the next open if it is still there then.
    pub fn temp_path(&self) -> PathBuf {
        self.0.layout.tmp()
    }
}

impl Inner {
    /// Tells whether a check at `checked` (nanoseconds of the clock) is recent enough.
    pub fn is_fresh(&self, checked: u64) -> bool {
        let age = Duration::from_nanos(self.clock.unix_nanos().saturating_sub(checked));
        checked != 0 && age < self.recheck && checked >= self.doubted.load(Ordering::Relaxed)
    }

    /// Returns the sessions that have made something that is here.
    fn makers(&self) -> BTreeSet<String> {
        let mut makers = BTreeSet::new();
        for cell in self.layers.lock().by_id.values() {
            makers.extend(cell.record().unpacked.as_ref().map(|unpacked| unpacked.stamp.session.clone()));
        }
        makers.extend(self.blobs.lock().values().map(|cell| cell.row.lock().stamp.session.clone()));
        makers
    }

    /// All rows that the store itself keeps in the metadata.
    fn rows(&self) -> Vec<crate::meta::Change> {
        let mut rows = Vec::new();
        let layers = self.meta.table("layer");
        rows.extend(
            self.layers
                .lock()
                .by_id
                .values()
                .map(|cell| layers.change(&cell.id.0.to_be_bytes(), &cell.record().encode())),
        );
        let blobs = self.meta.table("blob");
        rows.extend(self.blobs.lock().values().filter_map(|cell| {
            let row = serde_json::to_vec(&*cell.row.lock()).ok()?;
            Some(blobs.change(cell.digest.as_bytes(), &row))
        }));
        rows
    }

    /// Moves a directory out of the way at once and returns where it is to be deleted.
    fn put_aside(&self, path: &Path) -> PathBuf {
        // What is to go stays where it is if the rename fails, too.
        if fault::point("store.discard").is_err() {
            return path.to_owned();
        }
        let aside = self.layout.tmp();
        if fs::rename(path, &aside).is_ok() { aside } else { path.to_owned() }
    }

    /// Moves a directory out of the way at once and has it deleted in the background.
    pub fn discard_later(&self, path: &Path) {
        self.broom.take(self.put_aside(path));
    }

    /// Moves a directory out of the way at once and deletes it.
    pub fn discard(&self, path: &Path) {
        disk::remove_or_warn(&self.put_aside(path));
    }
}

fn create_root(root: &Path) -> Result<()> {
    if !root.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).at("create", root)?;
    }
    Ok(())
}

fn check_version(layout: &Layout, log: &RepairLog) -> Result<()> {
    let path = layout.version();
    let found = disk::read(&path);
    let existed = fs::symlink_metadata(&path).is_ok();
    let number = found.as_deref().and_then(parse_version);
    match number {
        Some(n) if n == FORMAT => return Ok(()),
        Some(n) if n > FORMAT => {
            return Err(StoreError::Version { root: layout.root.clone(), found: n, supported: FORMAT });
        }
        _ => {}
    }
    if number.is_none() && (existed || layout.root.join("layers").exists()) {
        log.add("version", if existed { "unreadable" } else { "missing" }, RepairAction::Repaired);
    }
    disk::ensure_dir(&layout.root.join("tmp"))?;
    let text = format!("kiln store {FORMAT} {}\n", version_check(FORMAT));
    disk::replace(&path, layout.tmp(), text.as_bytes(), "store.version.rename", false)
}

/// The check word keeps a flipped digit from looking like a newer format.
fn version_check(number: u32) -> String {
    kiln_stdx::Digest::of(format!("kiln store {number}")).hex()[..8].to_owned()
}

fn parse_version(bytes: &[u8]) -> Option<u32> {
    let rest = std::str::from_utf8(bytes).ok()?.strip_prefix("kiln store ")?;
    let (number, check) = rest.strip_suffix('\n')?.split_once(' ')?;
    let number = number.parse().ok()?;
    (check == version_check(number)).then_some(number)
}

/// Clears what earlier sessions left half done. The renames are quick; the deleting goes on in the background.
fn sweep(layout: &Layout) -> Option<JoinHandle<()>> {
    let mut victims = Vec::new();
    for entry in fs::read_dir(layout.root.join("tmp")).into_iter().flatten().flatten() {
        victims.push(entry.path());
    }
    for entry in fs::read_dir(layout.drafts()).into_iter().flatten().flatten() {
        let aside = layout.tmp();
        if fs::rename(entry.path(), &aside).is_ok() {
            victims.push(aside);
        }
    }
    if victims.is_empty() {
        return None;
    }
    let sweep = move || {
        for victim in victims {
            let _ = disk::remove_tree(&victim);
        }
    };
    let started = std::thread::Builder::new().name("kiln-sweep".into()).spawn(sweep);
    started.map_err(|e| tracing::warn!(error = %e, "cannot clear temporary files")).ok()
}
