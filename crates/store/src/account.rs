//! How many bytes of the disk the store takes, at any moment and without looking through it: counters that change with what
//! is published and removed. They count blocks, as `du` does, and an inode that several layers share once: for the
//! layer that made it, until the last of its names goes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_snapshot::LayerManifest;
use parking_lot::Mutex;
use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::layer::LayerCell;
use crate::room::Rooms;
use crate::store::{Inner, Store};

/// Bytes of a file system's block: small files take one.
const BLOCK: u64 = 4096;
/// For how long the sizes of the store's own few files are believed.
const FILES_AGE: Duration = Duration::from_millis(250);
/// The row that carries what the records of layers do not tell over to the next opening.
const ROW: &[u8] = b"layers";

/// What the store takes, in bytes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounts {
    /// What counts against the budget: layers, blobs, cache mounts, what broke off on its way, metadata.
    pub cache: u64,
    /// What running builds are just making, as it was last measured, and blobs on their way with the size they will have.
    pub growing: u64,
    /// Blobs of named images, which are not of the cache.
    pub images: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    /// Directories of layers.
    layers: AtomicI64,
    /// Files of blobs, those of named images among them.
    blobs: AtomicI64,
    /// Blobs on their way, with the size they will have.
    pub coming: AtomicU64,
    /// What is being written to directories.
    pub rooms: Rooms,
    /// What lies in unfinished directories, as last measured.
    unfinished: AtomicU64,
    /// Counts layers that came or went.
    changes: AtomicU64,
    /// Somebody else may have changed what lies there: it has to be looked through.
    doubtful: AtomicBool,
    files: Mutex<Option<(Instant, u64)>>,
}

/// What the directories of layers took when the records said `listed`.
#[derive(Serialize, Deserialize)]
struct Carried {
    listed: u64,
    total: u64,
}

/// Returns what so many bytes take as a file.
pub(crate) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn blocks_of(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// Returns what a layer with these files adds to the disk: its directories, and the inodes that no other layer has.
pub(crate) fn layer_bytes(manifest: &LayerManifest, files: &Path, encoded: u64) -> u64 {
    // The directory of the layer, and its `info`.
    let own = blocks(encoded) + 2 * BLOCK;
    let Ok(top) = fs::File::open(files) else { return own + blocks(manifest.total_size()) };
    let mut names: HashMap<u32, usize> = HashMap::new();
    for group in manifest.entries().iter().filter_map(|entry| entry.nlink_group) {
        *names.entry(group).or_default() += 1;
    }
    let mut total = own + if manifest.entries().iter().any(|entry| entry.path.is_empty()) { 0 } else { BLOCK };
    for entry in manifest.entries() {
        let found = if entry.path.is_empty() {
            rustix::fs::fstat(&top)
        } else {
            rustix::fs::statat(&top, entry.path.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
        };
        let Ok(found) = found else { continue };
        let bytes = u64::try_from(found.st_blocks).unwrap_or_default() * 512;
        let is_dir = rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory;
        let links = usize::try_from(found.st_nlink).unwrap_or(usize::MAX);
        total += match entry.nlink_group {
            _ if is_dir => bytes,
            // Counted with the first of its names, if all of them are here.
            Some(group) => names.remove(&group).filter(|names| *names >= links).map_or(0, |_| bytes),
            None if links > 1 => 0,
            None => bytes,
        };
    }
    total
}

/// Returns what is free once a tree is gone: inodes whose names are all in it.
fn freed_by_removing(path: &Path) -> u64 {
    let Ok(top) = fs::symlink_metadata(path) else { return 0 };
    let mut total = blocks_of(&top);
    let mut names: HashMap<u64, u64> = HashMap::new();
    let mut work = if top.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = work.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                work.push(entry.path());
            } else if meta.nlink() > 1 {
                let seen = names.entry(meta.ino()).or_default();
                *seen += 1;
                if *seen < meta.nlink() {
                    continue;
                }
            }
            total += blocks_of(&meta);
        }
    }
    total
}

/// Returns what the files directly in a directory take.
fn files_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|meta| blocks_of(&meta)).sum()
}

impl Store {
    /// Returns what the store takes.
    ///
    /// # Errors
    /// The image store cannot be read.
    pub fn accounts(&self) -> crate::Result<Accounts> {
        self.0.pinned_blobs()?;
        let (cache, growing) = (self.0.cache_bytes(), self.0.growing());
        Ok(Accounts { cache, growing, images: self.0.pinned_bytes() })
    }

    /// Returns what a directory takes. Reads it.
    pub fn size_of(&self, dir: &Path) -> u64 {
        disk::tree_size(dir)
    }

    /// Measures what running builds are making, and the cache mounts that were written since they were last measured.
    /// Reads those directories.
    pub fn measure(&self) {
        self.0.measure();
    }
}

impl Inner {
    /// Returns what counts against the budget.
    pub(crate) fn cache_bytes(&self) -> u64 {
        let counters = &self.counters;
        let made = counters.layers.load(Ordering::Relaxed) + counters.blobs.load(Ordering::Relaxed);
        let made = u64::try_from(made).unwrap_or_default().saturating_sub(self.pinned_bytes());
        made + self.mount_bytes() + self.file_bytes()
    }

    /// Returns what running builds are making.
    pub(crate) fn growing(&self) -> u64 {
        let counters = &self.counters;
        counters.unfinished.load(Ordering::Relaxed) + counters.coming.load(Ordering::Relaxed)
    }

    fn pinned_bytes(&self) -> u64 {
        let last = &self.images.pinned;
        let Some(pins) = self.images.known_pins() else { return last.load(Ordering::Relaxed) };
        let bytes = if pins.is_empty() {
            0
        } else {
            let blobs = self.blobs.lock();
            pins.iter().filter_map(|digest| blobs.get(digest)).map(|cell| blocks(cell.row.lock().size)).sum()
        };
        last.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// The metadata, and what broke off on its way.
    fn file_bytes(&self) -> u64 {
        let mut known = self.counters.files.lock();
        if let Some((_, bytes)) = known.filter(|(at, _)| at.elapsed() < FILES_AGE) {
            return bytes;
        }
        let root = &self.layout.root;
        let files: u64 = ["", "context", "damaged"].iter().map(|name| files_in(&root.join(name))).sum();
        let files = files + self.partial_bytes();
        // One of 256 directories for each first byte of a digest.
        let dirs = fs::metadata(root.join("blobs/sha256")).map_or(0, |meta| meta.nlink().saturating_sub(2).min(256));
        let bytes = files + (dirs + 16) * BLOCK;
        *known = Some((Instant::now(), bytes));
        bytes
    }

    /// Forgets the sizes of the store's own files: they have changed.
    pub(crate) fn files_changed(&self) {
        *self.counters.files.lock() = None;
    }

    /// Counts a layer that was published, or unpacked: what its directory takes now.
    pub(crate) fn account_layer(&self, cell: &LayerCell, bytes: u64) {
        let before = cell.disk.swap(bytes, Ordering::Relaxed);
        self.counters.layers.fetch_add(bytes.cast_signed() - before.cast_signed(), Ordering::Relaxed);
        self.counters.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a file beside a layer's files that was written again.
    pub(crate) fn account_sums(&self, before: u64, now: u64) {
        let more = blocks(now).cast_signed() - blocks(before).cast_signed();
        self.counters.layers.fetch_add(more, Ordering::Relaxed);
    }

    /// Counts what was unfinished and has become a layer.
    pub(crate) fn account_finished(&self, bytes: u64) {
        let less = |now: u64| Some(now.saturating_sub(bytes));
        let _ = self.counters.unfinished.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Counts a blob that came, or went.
    pub(crate) fn account_blob(&self, bytes: u64, came: bool) {
        let bytes = blocks(bytes).cast_signed();
        self.counters.blobs.fetch_add(if came { bytes } else { -bytes }, Ordering::Relaxed);
    }

    /// Deletes the directory of a layer, and counts what that frees.
    pub(crate) fn discard_layer(&self, path: &Path) {
        let freed = freed_by_removing(path);
        self.discard(path);
        self.counters.layers.fetch_sub(freed.cast_signed(), Ordering::Relaxed);
        self.counters.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn listed(&self) -> u64 {
        self.layers.lock().by_id.values().map(|cell| cell.disk.load(Ordering::Relaxed)).sum()
    }

    /// Notes for the next opening what the records do not tell: inodes whose first layer is gone, sums.
    pub(crate) fn carry_account(&self) {
        let total = u64::try_from(self.counters.layers.load(Ordering::Relaxed)).unwrap_or_default();
        if let Ok(json) = serde_json::to_vec(&Carried { listed: self.listed(), total }) {
            let table = self.meta.table("account");
            if table.get(ROW).as_deref() != Some(&json) {
                table.put(ROW, &json);
            }
        }
    }

    /// Adds, once the layers are loaded, what an earlier session has carried over.
    pub(crate) fn load_account(&self) {
        let row = self.meta.table("account").get(ROW).and_then(|json| serde_json::from_slice::<Carried>(&json).ok());
        if let Some(Carried { listed, total }) = row {
            self.counters.layers.fetch_add(total.saturating_sub(listed).cast_signed(), Ordering::Relaxed);
        }
    }

    /// Counts the directories of layers by looking through them; not believed if layers came or went meanwhile.
    pub(crate) fn recount(&self) {
        let before = self.counters.changes.load(Ordering::Relaxed);
        let found = disk::tree_size(&self.layout.layers());
        if before == self.counters.changes.load(Ordering::Relaxed) {
            self.counters.layers.store(found.cast_signed(), Ordering::Relaxed);
            self.counters.doubtful.store(false, Ordering::Relaxed);
        }
    }

    /// Notes that layers are not as they were counted: damaged, or of a program that did not count.
    pub(crate) fn doubt(&self) {
        self.counters.doubtful.store(true, Ordering::Relaxed);
    }

    /// Counts anew where that is needed.
    pub(crate) fn settle_doubt(&self) {
        if self.counters.doubtful.load(Ordering::Relaxed) {
            self.recount();
        }
    }

    /// See [`Store::measure`].
    pub(crate) fn measure(&self) {
        let mut bytes = 0;
        let dirs = [self.layout.drafts(), self.layout.temp_dir()];
        for entry in dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()) {
            // Directories are of drafts, and of contexts that come; files are blobs on their way, which are counted.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                // What was linked there is of the layer that it comes from.
                let found = freed_by_removing(&path);
                self.counters.rooms.measured(&path, found);
                bytes += found;
            }
        }
        self.counters.unfinished.store(bytes, Ordering::Relaxed);
        self.settle_doubt();
        self.mount_records(true);
    }
}
