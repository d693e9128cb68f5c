//! File sums: the content digest of each file's header and bytes. It cannot be had from the fingerprint of the bytes alone,
//! so it is remembered by that fingerprint and the header's fields: in memory for all layers, and beside each layer in the
//! file `sums`. What is remembered for one layer serves every other that holds the same file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_snapshot::{Entry, Node};
use kiln_stdx::{Digest, DigestHasher, FingerprintHasher};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::header;
use crate::disk;
use crate::error::{IoContext, Result, StoreError};
use crate::layout::{LayerDir, LayerId};
use crate::refs::ImmutableRef;
use crate::store::Store;

const KIND: &str = "kiln.sums.v2";
/// Sums kept in memory, at about 120 bytes each; beyond that all are forgotten and read again where needed.
const MOST: usize = 500_000;
/// Bytes of a pair in the file.
const PAIR: usize = KEY + 32;
const KEY: usize = 32 + 12 + 8;

/// What a sum depends on: the bytes' fingerprint, mode, owner, group, and a digest of the extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SumKey([u8; KEY]);

impl SumKey {
    fn of(entry: &Entry) -> Option<Self> {
        let mut key = [0; KEY];
        key[..32].copy_from_slice(entry.digest?.as_bytes());
        key[32..36].copy_from_slice(&entry.mode.to_le_bytes());
        key[36..40].copy_from_slice(&entry.uid.to_le_bytes());
        key[40..44].copy_from_slice(&entry.gid.to_le_bytes());
        if !entry.xattrs.is_empty() {
            let mut hasher = DigestHasher::new();
            for (name, value) in &entry.xattrs {
                for part in [name, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                }
            }
            key[44..].copy_from_slice(&hasher.finish().as_bytes()[..8]);
        }
        Some(Self(key))
    }
}

#[derive(Default)]
pub(crate) struct SumCache {
    known: Mutex<HashMap<SumKey, Digest>>,
    /// Layers whose file was read, with the number of pairs in it.
    files: Mutex<HashMap<LayerId, usize>>,
}

impl SumCache {
    pub fn note(&self, entry: &Entry, sum: Digest) {
        if let Some(key) = SumKey::of(entry) {
            self.insert([(key, sum)]);
        }
    }

    /// Forgets what is in memory, as a new process does.
    pub fn clear(&self) {
        *self.known.lock() = HashMap::new();
        *self.files.lock() = HashMap::new();
    }

    fn insert(&self, pairs: impl IntoIterator<Item = (SumKey, Digest)>) {
        let mut known = self.known.lock();
        if known.len() > MOST {
            known.clear();
            self.files.lock().clear();
        }
        known.extend(pairs);
    }
}

/// The sums of a set of files.
pub(super) struct Sums(HashMap<SumKey, Digest>);

/// A file whose sum has to be computed.
struct Missing<'a> {
    layer: usize,
    entry: &'a Entry,
    key: SumKey,
}

impl Sums {
    /// Finds or computes the sums of all regular files among `nodes`.
    ///
    /// # Errors
    /// A file is not what its manifest says.
    pub fn of<'a>(store: &Store, r: &ImmutableRef, nodes: impl Iterator<Item = Node<'a>>) -> Result<Self> {
        let cache = &store.0.sums;
        let wanted: Vec<(usize, &Entry, SumKey)> = nodes
            .filter(|node| node.entry.is_file())
            .filter_map(|node| Some((node.layer, node.entry, SumKey::of(node.entry)?)))
            .collect();
        let mut found = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for round in 0..2 {
            missing.clear();
            let known = cache.known.lock();
            for &(layer, entry, key) in &wanted {
                match known.get(&key) {
                    Some(&sum) => {
                        found.insert(key, sum);
                    }
                    None => missing.push(Missing { layer, entry, key }),
                }
            }
            drop(known);
            if round > 0 || missing.is_empty() || !load_files(store, r, &missing) {
                break;
            }
        }
        let mut seen = std::collections::HashSet::new();
        missing.retain(|m| seen.insert(m.key));
        if !missing.is_empty() {
            let computed = compute(&r.dirs(), &missing)?;
            cache.insert(computed.iter().copied());
            found.extend(computed);
        }
        save_files(store, r, &wanted, &found);
        Ok(Self(found))
    }

    pub fn get(&self, entry: &Entry) -> Result<Digest> {
        let sum = SumKey::of(entry).and_then(|key| self.0.get(&key).copied());
        sum.ok_or_else(|| StoreError::damage(format!("no sum of {:?}", String::from_utf8_lossy(&entry.path))))
    }
}

/// Reads the files of the layers that `missing` comes from, where not read yet; tells whether any was.
fn load_files(store: &Store, r: &ImmutableRef, missing: &[Missing<'_>]) -> bool {
    let mut any = false;
    let mut last = usize::MAX;
    for m in missing {
        if m.layer == last {
            continue;
        }
        last = m.layer;
        let Some(layer) = r.layers().get(m.layer) else { continue };
        if store.0.sums.files.lock().contains_key(&layer.id()) {
            continue;
        }
        let path = LayerDir(store.0.layout.layer(layer.id())).sums();
        let pairs = disk::read(&path).and_then(|bytes| Some(decode(disk::unseal(KIND, &bytes)?))).unwrap_or_default();
        store.0.sums.files.lock().insert(layer.id(), pairs.len());
        any |= !pairs.is_empty();
        store.0.sums.insert(pairs);
    }
    any
}

/// Writes the sums of layers of which more is known now than their file holds. It may fail: then it is done again later.
fn save_files(store: &Store, r: &ImmutableRef, wanted: &[(usize, &Entry, SumKey)], found: &HashMap<SumKey, Digest>) {
    let mut by_layer: HashMap<usize, HashMap<SumKey, Digest>> = HashMap::new();
    for (layer, _, key) in wanted {
        if let Some(&sum) = found.get(key) {
            by_layer.entry(*layer).or_default().insert(*key, sum);
        }
    }
    for (index, mut pairs) in by_layer {
        let Some(layer) = r.layers().get(index) else { continue };
        let held = store.0.sums.files.lock().get(&layer.id()).copied();
        let path = LayerDir(store.0.layout.layer(layer.id())).sums();
        if held.is_some_and(|held| held >= pairs.len()) || layer.is_gone() {
            continue;
        }
        if let Some(bytes) = disk::read(&path)
            && let Some(payload) = disk::unseal(KIND, &bytes)
        {
            pairs.extend(decode(payload));
        }
        let mut bytes = Vec::with_capacity(pairs.len() * PAIR + 32);
        for (key, sum) in &pairs {
            bytes.extend_from_slice(&key.0);
            bytes.extend_from_slice(sum.as_bytes());
        }
        let before = disk::Stamp::of(&path).map_or(0, |stamp| stamp.size);
        let sealed = disk::seal(KIND, bytes);
        store.0.account_sums(before, sealed.len() as u64);
        let written = disk::replace(&path, store.0.layout.tmp(), &sealed, "store.sums.rename", false);
        match written {
            Ok(()) => drop(store.0.sums.files.lock().insert(layer.id(), pairs.len())),
            Err(e) => tracing::debug!(layer = %layer.id(), error = %e, "sums not kept"),
        }
    }
}

fn decode(payload: &[u8]) -> Vec<(SumKey, Digest)> {
    payload
        .chunks_exact(PAIR)
        .filter_map(|pair| {
            let (key, sum) = pair.split_at(KEY);
            Some((SumKey(key.try_into().ok()?), Digest::from_bytes(sum.try_into().ok()?)))
        })
        .collect()
}

/// Reads the files and hashes them, on as many threads as there are processors.
fn compute(dirs: &[std::path::PathBuf], missing: &[Missing<'_>]) -> Result<Vec<(SumKey, Digest)>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(SumKey, Digest)>> {
        let mut out = Vec::new();
        let mut open: HashMap<usize, File> = HashMap::new();
        let mut buffer = vec![0; 1 << 16];
        while let Some(m) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let std::collections::hash_map::Entry::Vacant(slot) = open.entry(m.layer) {
                let dir = dirs.get(m.layer).ok_or_else(|| StoreError::damage("a layer is missing"))?;
                slot.insert(File::open(dir).at("open", dir)?);
            }
            out.push((m.key, sum_of(&open[&m.layer], m.entry, &mut buffer)?));
        }
        Ok(out)
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(missing.len() / 16 + 1);
    if threads < 2 {
        return work();
    }
    let mut all = Vec::with_capacity(missing.len());
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            let part = handle.join().map_err(|_| StoreError::damage("a hashing thread ended early"))?;
            all.extend(part?);
        }
        Ok(all)
    })
}

/// Hashes one file both ways in one reading, so that damage is noticed.
fn sum_of(dir: &File, entry: &Entry, buffer: &mut [u8]) -> Result<Digest> {
    let damaged = || StoreError::damage(format!("{:?} differs", String::from_utf8_lossy(&entry.path)));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let fd = rustix::fs::openat2(dir, entry.path.as_slice(), flags, Mode::empty(), how).map_err(|_| damaged())?;
    let mut file = File::from(fd);
    let mut sum = header::FileSum::new(entry);
    let mut data = FingerprintHasher::new();
    loop {
        let n = match file.read(buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(damaged()),
        };
        sum.update(&buffer[..n]);
        data.update(&buffer[..n]);
    }
    if Some(data.finish()) != entry.digest {
        return Err(damaged());
    }
    Ok(sum.finish())
}
